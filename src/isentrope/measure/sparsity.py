"""Activation sparsity of gated layers: the neurons that can be dropped at a given relative error of the layer's output. Pure functions.

Symbols: h = act(W_gate x) * (W_in x), [token, neuron], the input of W_out [model, neuron]; neuron i adds n_i = W_out[:, i] h_i to the output, and
||n_i|| = |h_i| ||W_out[:, i]||. Thresholds e are in the units of the output. Padding: mask it, here and in the perplexities. Float32 or wider inside.
Sheet `sparsing-law` (arXiv 2411.02335).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Threshold = float | Float[Tensor, ""]


@dataclass(frozen=True)
class ReluLaw:
    """Activation ratio of a ReLU model after D billion training tokens, a fraction: exp(-c D^alpha + b) + limit, falling. Sheet `sparsing-law`."""

    alpha: float
    b: float
    c: float
    limit: float

    def __call__(self, tokens: Float[Tensor, "*run"]) -> Float[Tensor, "*run"]:
        """The ratio after `tokens` (in 1e9 training tokens): exp(b) + limit at 0, `limit` at infinity."""
        return (self.b - self.c * _wide(tokens) ** self.alpha).exp() + self.limit


@dataclass(frozen=True)
class SiluLaw:
    """Activation ratio of a SiLU model after D billion training tokens, a fraction: limit - c / D^alpha, rising. Sheet `sparsing-law`."""

    alpha: float
    c: float
    limit: float

    def __call__(self, tokens: Float[Tensor, "*run"]) -> Float[Tensor, "*run"]:
        """The ratio after `tokens` (in 1e9 training tokens): `limit` at infinity, -inf at 0, where the law does not hold."""
        return self.limit - self.c / _wide(tokens) ** self.alpha


def neuron_norms(hidden: Float[Tensor, "*token neuron"], weight: Float[Tensor, "model neuron"]) -> Float[Tensor, "*token neuron"]:
    """||n_i|| = |h_i| * ||W_out[:, i]||, in the units of the layer's output, of hidden = h. Source: arXiv 2411.02335; sheet `sparsing-law`."""
    return _wide(hidden).abs() * torch.linalg.vector_norm(_wide(weight), dim=0)


def cett(
    hidden: Float[Tensor, "token neuron"], weight: Float[Tensor, "model neuron"], threshold: Threshold, *, mask: Bool[Tensor, " token"] | None = None
) -> Float[Tensor, ""]:
    """Mean over tokens of ||sum of the neurons with ||n_i|| <= threshold|| / ||output||, a fraction: the relative error of dropping them.

    0 below the least norm, 1 when all are dropped; at most the dropped norms' sum over the output's. It may pass 1 and fall again, where the
    dropped cancel what is kept. An output below rounding of its neurons' sum is held there; a token of zeros counts 0.
    Raises ValueError if no token counts. Source: arXiv 2411.02335, Eq. 3.
    """
    return _relative_error(_dense("cett", hidden, weight, mask), threshold)


def cett_threshold(
    hidden: Float[Tensor, "token neuron"],
    weight: Float[Tensor, "model neuron"],
    target: float,
    *,
    mask: Bool[Tensor, " token"] | None = None,
    candidates: int = 65536,
    quantile: float = 0.99,
    released: bool = False,
) -> Float[Tensor, ""]:
    """The threshold at which the `cett` of a layer passes the target, in the units of its output: the candidate just below.

    Candidates are equally spaced from the least norm to the quantile of the norms (over a strided subsample of about `candidates` values), searched by
    halves as though cett rose steadily. If the least exceeds the target it is the answer (`kept_neurons` then keeps all); if none does, the greatest.
    `released=True`: in the first case the GREATEST, by an index of -1, and in the second the last but one, as the authors' code.
    Raises ValueError unless 0 <= target <= 1, candidates >= 2 and 0 < quantile <= 1, or if no token counts.
    Source: arXiv 2411.02335; sheet `sparsing-law`, method and pitfall 1.
    """
    if not 0 <= target <= 1 or candidates < 2 or not 0 < quantile <= 1:
        raise ValueError(
            "cett_threshold: target must be a fraction in [0, 1], candidates at least 2, quantile in (0, 1]. "
            f"Got target={target}, candidates={candidates}, quantile={quantile}."
        )
    dense = _dense("cett_threshold", hidden, weight, mask)
    norms = dense.norms
    sample = norms.flatten()[:: max(norms.numel() // candidates, 1)]
    low, high = norms.min(), sample.quantile(quantile)
    grid = low + (high - low) * torch.linspace(0, 1, candidates, dtype=norms.dtype, device=norms.device)
    left, right = 0, candidates - 1
    while left < right:
        middle = (left + right) // 2
        if _relative_error(dense, grid[middle]) > target:
            right = middle
        else:
            left = middle + 1
    if released:
        return grid[left - 1]
    beyond = _relative_error(dense, grid[left]) > target  # only of the last candidate is it not known yet
    return grid[max(left - 1, 0) if beyond else left]


def perplexity_cett(ratio: Callable[[float], float], *, rise: float = 0.01, tolerance: float = 1e-6) -> float:
    """The CETT shared by all layers at which the perplexity has risen by `rise`, a fraction in [0, 1]: PPL-p% with p = 100 * rise.

    `ratio(c)` is the sparse model's perplexity over the dense one's with each layer at CETT c, thresholds from the DENSE activations; for a run, the
    mean over its last checkpoints. Halving, as though it rose steadily; 1 - tolerance/2 or nearer if the rise is never reached.
    Raises ValueError unless rise > 0 and 0 < tolerance <= 1. Source: arXiv 2411.02335; sheet `sparsing-law`.
    """
    if not rise > 0 or not 0 < tolerance <= 1:
        raise ValueError(f"perplexity_cett: rise must be positive and tolerance in (0, 1]. Got rise={rise}, tolerance={tolerance}. For 1 % write rise=0.01.")
    low, high = 0.0, 1.0
    for _ in range(math.ceil(-math.log2(tolerance))):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < 1 + rise else (low, middle)
    return (low + high) / 2


def kept_neurons(hidden: Float[Tensor, "*token neuron"], weight: Float[Tensor, "model neuron"], threshold: Threshold) -> Bool[Tensor, "*token neuron"]:
    """Which neurons a sparse forward keeps: ||n_i|| >= threshold (the search drops <=: a tie is kept here).

    Unchanged by (W_in, W_out) -> (a W_in, W_out / a). Source: arXiv 2411.02335; sheet `sparsing-law`.
    """
    return neuron_norms(hidden, weight) >= threshold


def kept_by_magnitude(gate: Float[Tensor, "*token neuron"], threshold: float) -> Bool[Tensor, "*token neuron"]:
    """FAT-e, a baseline: |s_i| >= threshold, one for all layers; a gate of exactly 0 is never kept, so threshold 0 is ReLU's own sparsity."""
    return (gate.abs() >= threshold) & (gate != 0)


def kept_top_k(gate: Float[Tensor, "*token neuron"], share: float, *, released: bool = False) -> Bool[Tensor, "*token neuron"]:
    """Top-k, a baseline: the share of neurons of largest |s_i| of each token; `released=True` of the whole tensor. A gate of 0 is never kept.

    ceil(share * n) of n, rounding of the product aside; `released=True` drops floor((1 - share) * n), rounding included: 10 of 10 at a share of 0.9.
    Raises ValueError unless 0 <= share <= 1. Source: arXiv 2411.02335; sheet `sparsing-law`, baselines.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"kept_top_k: share must be a fraction in [0, 1]. Got {share}. For 20 % write 0.2.")
    size = gate.abs().flatten() if released else gate.abs()
    n = size.shape[-1]
    count = n - int(n * (1 - share)) if released else math.ceil(round(share * n, 6))
    kept = torch.zeros_like(size, dtype=torch.bool).scatter_(-1, size.topk(count, -1).indices, True)
    return kept.reshape(gate.shape) & (gate != 0)


def activation_ratio(kept: Bool[Tensor, "*layer token neuron"], *, mask: Bool[Tensor, "*#layer token"] | None = None) -> Float[Tensor, "*layer"]:
    """Share of neurons kept, the mean over the tokens that count, a fraction; 1 - it is the sparsity. NaN where none counts. Source: as `cett`."""
    return activation_frequency(kept, mask=mask).mean(-1)


def activation_frequency(kept: Bool[Tensor, "*layer token neuron"], *, mask: Bool[Tensor, "*#layer token"] | None = None) -> Float[Tensor, "*layer neuron"]:
    """Share of the tokens that count on which each neuron is kept, a fraction; NaN where none counts. Source: arXiv 2411.02335; sheet `sparsing-law`."""
    if mask is None:
        return kept.sum(-2) / kept.shape[-2]
    return (kept & mask.unsqueeze(-1)).sum(-2) / mask.sum(-1, keepdim=True)


# --- parts


class _Dense(NamedTuple):
    """The tokens that count, W_out, the neurons' norms, and the norm of the output, held at its own rounding."""

    hidden: Tensor
    weight: Tensor
    norms: Tensor
    output: Tensor


def _dense(who: str, hidden: Tensor, weight: Tensor, mask: Tensor | None) -> _Dense:
    h, w = _wide(hidden if mask is None else hidden[mask]), _wide(weight)
    if not h.numel():
        raise ValueError(f"{who}: needs at least one token that counts. Got none of {len(hidden)}.")
    norms = neuron_norms(h, w)
    floor = torch.finfo(norms.dtype).eps * norms.sum(-1)
    return _Dense(h, w, norms, torch.linalg.vector_norm(h @ w.mT, dim=-1).maximum(floor))


def _relative_error(dense: _Dense, threshold: float | Tensor) -> Tensor:
    lost = torch.linalg.vector_norm(torch.where(dense.norms <= threshold, dense.hidden, 0) @ dense.weight.mT, dim=-1)
    return (lost / torch.where(dense.output > 0, dense.output, 1)).mean()


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
