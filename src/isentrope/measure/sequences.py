"""Uncertainty of whole sequences: from their log-probabilities, from token distributions, from a graph of similar samples. Pure functions.

Graph scores take, for the n samples of one prompt, a matrix of probabilities that row i entails (or resembles) column j. Higher is more
uncertain, except the divergences from the uniform distribution, where higher is more certain. Leading axes are prompts.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def predictive_entropy(log_probs: Float[Tensor, "*batch sample"], *, mask: Bool[Tensor, "*batch sample"] | None = None) -> Float[Tensor, "*batch"]:
    """Monte-Carlo entropy over sequences, in nats: -mean_i l_i over the samples; unbiased for the entropy of the sampling distribution.

    With l_i the mean over tokens it is the length-normalised form, no entropy of a distribution. Differentiable; samples outside `mask` do not
    count, a row of none is NaN. Source: Malinin & Gales 2021, arXiv 2002.07650.

    >>> predictive_entropy(torch.tensor([-1.0, -3.0]))
    tensor(2.)
    """
    values = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    if mask is None:
        return -values.mean(-1)
    return -values.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)


def sampled_mass_entropy(log_probs: Float[Tensor, "*batch sample"]) -> Float[Tensor, "*batch"]:
    """The part of the entropy that the samples themselves carry, in nats: -sum_i exp(l_i) l_i ("Rao" form), weights as they are.

    Over distinct sequences a lower bound of their distribution's entropy; a sequence drawn twice counts twice. -inf adds 0.
    Source: vectors README, `semantic-entropy` (the released `predictive_entropy_rao`).
    """
    return torch.special.entr((log_probs if log_probs.dtype == torch.float64 else log_probs.float()).exp()).sum(-1)


def perplexity(log_probs: Float[Tensor, "*batch token"], *, mask: Bool[Tensor, "*batch token"] | None = None) -> Float[Tensor, "*batch"]:
    """exp(-mean over tokens of ln p), of a given trace: in [1, inf), no unit. Tokens outside `mask` do not count; no tokens: NaN.

    Source: sheet `invisible-leash`, method 9.
    """
    return predictive_entropy(log_probs, mask=mask).exp()


def divergence_from_uniform(
    log_probs: Float[Tensor, "*batch vocab"], *, order: float = 1.0, temperature: float = 1.0, released: bool = False
) -> Float[Tensor, "*batch"]:
    """Renyi divergence of q = softmax(log_probs / temperature) from the uniform distribution, in nats: ln sum_v q^a / (a - 1) + ln vocab.

    Range [0, ln vocab]; order 1 is the limit, ln vocab - H(q). Higher is more certain. `released=True`: a common library subtracts ln vocab
    where it belongs added (orders other than 1). Raises ValueError unless order and temperature are positive and finite.
    Source: Darrin et al. 2023, arXiv 2212.09171; vectors README, `semantic-entropy`.
    """
    if not (0 < order < math.inf and 0 < temperature < math.inf):
        raise ValueError(f"divergence_from_uniform: order and temperature must be positive and finite. Got order={order}, temperature={temperature}.")
    q, log_vocab = _tempered(log_probs, temperature), math.log(log_probs.shape[-1])
    if order == 1:
        return log_vocab - torch.special.entr(q.exp()).sum(-1)
    return (order * q).logsumexp(-1) / (order - 1) + (-log_vocab if released else log_vocab)


def fisher_rao_from_uniform(log_probs: Float[Tensor, "*batch vocab"], *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """Fisher-Rao distance of q = softmax(log_probs / temperature) from uniform, as a share of the largest angle: (2/pi) arccos sum_v sqrt(q_v / vocab).

    Range [0, 1). Higher is more certain. Source: Darrin et al. 2023, arXiv 2212.09171.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"fisher_rao_from_uniform: temperature must be positive and finite. Got {temperature}.")
    overlap = (_tempered(log_probs, temperature) / 2).exp().sum(-1) / math.sqrt(log_probs.shape[-1])
    return 2 / math.pi * overlap.clamp(max=1).arccos()  # rounding can carry the uniform row past 1


def self_certainty(log_probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(uniform || p) of a token distribution, in nats: -ln vocab - mean_v ln p_v; >= 0, inf where a probability is 0. Higher is more certain.

    Source: Kang et al. 2025, arXiv 2502.18581 (up to their constant).
    """
    return -math.log(log_probs.shape[-1]) - _tempered(log_probs, 1.0).mean(-1)


def laplacian_score(similarity: Float[Tensor, "*batch sample sample"]) -> Float[Tensor, "*batch"]:
    """A continuous number of meanings: sum_k max(0, 1 - lambda_k) over the eigenvalues of the normalised graph Laplacian.

    W = (E + E^T) / 2, L = I - D^-1/2 W D^-1/2. No unit; in [1, n] for similarities in [0, 1] with unit diagonal: 1 when all are alike, n when none are.
    Raises ValueError where a sample resembles none, itself included. Source: Lin et al. 2023, arXiv 2305.19187.
    """
    weights = _symmetric(similarity)
    degree = weights.sum(-1)
    if not (degree > 0).all():
        raise ValueError("laplacian_score: every sample needs a positive degree. Got one that resembles none. Put ones on the diagonal.")
    scale = degree.rsqrt()
    return torch.linalg.eigvalsh(scale.unsqueeze(-1) * weights * scale.unsqueeze(-2)).clamp(min=0).sum(-1)  # 1 - lambda


def degree_score(similarity: Float[Tensor, "*batch sample sample"]) -> Float[Tensor, "*batch"]:
    """One minus the mean similarity, a fraction: (n^2 - sum W) / n^2 with W = (E + E^T) / 2. Source: Lin et al. 2023, arXiv 2305.19187."""
    return 1 - _symmetric(similarity).mean((-1, -2))


def kernel_language_entropy(
    entail: Float[Tensor, "*batch sample sample"], contradict: Float[Tensor, "*batch sample sample"], *, time: float = 0.3
) -> Float[Tensor, "*batch"]:
    """Von Neumann entropy of the heat kernel of the semantic graph, divided by ln n: a fraction in [0, 1] without unit; n = 1 gives 0.

    G = E + E^T + (neutral + neutral^T) / 2 with neutral = 1 - E - C; K = exp(-time (diag(colsum G) - G)); K_ij / sqrt(K_ii K_jj) / n
    has unit trace. Source: Nikitin et al. 2024, arXiv 2405.20003; vectors README, `semantic-entropy`.
    """
    e, c = _wide(entail), _wide(contradict)
    n = e.shape[-1]
    if n == 1:
        return torch.zeros_like(e[..., 0, 0])
    neutral = 1 - e - c
    graph = e + e.transpose(-1, -2) + (neutral + neutral.transpose(-1, -2)) / 2
    kernel = torch.linalg.matrix_exp(-time * (torch.diag_embed(graph.sum(-2)) - graph))
    scale = kernel.diagonal(dim1=-2, dim2=-1).rsqrt()
    spectrum = torch.linalg.eigvalsh(scale.unsqueeze(-1) * kernel * scale.unsqueeze(-2) / n)
    return torch.special.entr(spectrum.clamp(min=0)).sum(-1) / math.log(n)


def sentence_relevance_score(
    log_probs: Float[Tensor, "*batch sample"], similarity: Float[Tensor, "*batch sample sample"], *, temperature: float = 0.001
) -> Float[Tensor, "*batch"]:
    """Predictive entropy in which samples that resemble each other share their mass ("sentence SAR"), in nats.

    -mean_i ln( e^l_i + sum_{j != i} s_ij e^l_j / temperature ); falls below 0 since the inner sum is no probability.
    Source: Duan et al. 2024, arXiv 2307.01379.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"sentence_relevance_score: temperature must be positive and finite. Got {temperature}.")
    values, alike = _wide(log_probs), _wide(similarity)
    itself = torch.eye(values.shape[-1], dtype=alike.dtype, device=alike.device)
    share = alike * (1 - itself) / temperature + itself
    return -(values.unsqueeze(-2) + share.log()).logsumexp(-1).mean(-1)


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    return (_wide(log_probs) / temperature).log_softmax(-1)


def _symmetric(similarity: Tensor) -> Tensor:
    wide = _wide(similarity)
    return (wide + wide.transpose(-1, -2)) / 2


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
