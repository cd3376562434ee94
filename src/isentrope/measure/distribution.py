"""Entropies and divergences of finite distributions, from probabilities or logits, along any dim, in nats or bits. Pure functions.

The tensors are probabilities that sum to 1 along `dim` (not renormalised), or with `logits=True` logits, of which -inf is legal. float32 or wider inside
and out. An outcome of probability 0 adds its limit; where a value's slope is infinite there (d(-p ln p)/dp at 0), the gradient is 0: what is
impossible stays so. Two tensors broadcast. A divergence that is infinite is inf, and its gradient is that of its finite terms.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Unit = Literal["nats", "bits"]
Divergence = Literal["kl", "reverse-kl", "js", "jeffreys", "total-variation", "squared-hellinger", "pearson", "neyman"]
NEAR_ONE = 0.01  # orders this near to 1 are summed as differences from it, or the division by (1 - order) would magnify rounding
CEILING = 80.0  # exp of it is finite in float32; above it only outcomes whose probability is 0 in that dtype


def shannon(x: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """Shannon entropy -sum p ln p, in nats (or bits), in [0, ln outcomes]; without `dim`. Source: Shannon 1948, section 6.

    Differentiable: dH/dz_i = -p_i (ln p_i + H) of logits z. A row of only -inf is NaN. Raises ValueError for another unit.

    >>> shannon(torch.tensor([0.5, 0.5, 0.0]), unit="bits")
    tensor(1.)
    """
    p, log_p, _ = _logged(x, dim, logits)
    return -(p * log_p).sum(dim) / _unit("shannon", unit)


def renyi(x: Float[Tensor, "..."], order: float, *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """Renyi entropy ln(sum p^order) / (1 - order), in nats (or bits), in [0, ln outcomes], falling with the order; without `dim`.

    Limits: 0 is ln of the support (gradient 0), 1 Shannon, inf the min-entropy -ln max p. Raises ValueError for a negative or NaN order.
    Source: Renyi 1961.

    >>> renyi(torch.tensor([0.5, 0.25, 0.25]), 2.0)  # -ln 3/8
    tensor(0.9808)
    """
    scale = _unit("renyi", unit)
    if not order >= 0:
        raise ValueError(f"renyi: order must be in [0, inf]. Got {order}.")
    p, log_p, some = _logged(x, dim, logits)
    if order == 1:
        return -(p * log_p).sum(dim) / scale
    void = torch.full_like(log_p, -math.inf)
    if math.isinf(order):
        return -torch.where(some, log_p, void).amax(dim) / scale + 0 * p.sum(dim)
    if abs(order - 1) < NEAR_ONE:
        excess = p * ((order - 1) * log_p).clamp(max=CEILING).expm1()
        return excess.sum(dim).log1p() / ((1 - order) * scale)
    return torch.where(some, order * log_p, void).logsumexp(dim) / ((1 - order) * scale) + 0 * p.sum(dim)


def min_entropy(x: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """-ln max p, in nats (or bits), in [0, ln outcomes]: the Renyi entropy of order inf. The gradient is shared among equal maxima."""
    return renyi(x, math.inf, dim=dim, logits=logits, unit=unit)


def tsallis(x: Float[Tensor, "..."], order: float, *, dim: int = -1, logits: bool = False) -> Float[Tensor, "..."]:
    """Tsallis entropy (1 - sum p^order) / (order - 1), a pure number (nats at order 1, the Shannon entropy); without `dim`.

    Order 0: support - 1; 2: 1 - sum p^2. Raises ValueError for a negative or infinite order. Source: Tsallis 1988.
    """
    if not 0 <= order < math.inf:
        raise ValueError(f"tsallis: order must be in [0, inf). Got {order}.")
    p, log_p, some = _logged(x, dim, logits)
    if order == 1:
        return -(p * log_p).sum(dim)
    if abs(order - 1) < NEAR_ONE:
        return (p * ((order - 1) * log_p).clamp(max=CEILING).expm1()).sum(dim) / (1 - order)
    powers = torch.where(some, (order * log_p).exp(), torch.zeros_like(log_p)).sum(dim)
    return (1 - powers) / (order - 1) + 0 * p.sum(dim)


def varentropy(x: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """Variance of the surprisal, sum p (ln p + H)^2, in nats^2 (or bits^2), >= 0; 0 for a uniform or a certain outcome; without `dim`."""
    p, log_p, _ = _logged(x, dim, logits)
    entropy = -(p * log_p).sum(dim, keepdim=True)
    return (p * (log_p + entropy).square()).sum(dim) / _unit("varentropy", unit) ** 2


def cross_entropy(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """-sum p ln q, in nats (or bits), >= H(p); inf where q lacks an outcome of p; without `dim`."""
    (p, _, some_p), (_, log_q, some_q) = _logged(p, dim, logits), _logged(q, dim, logits)
    return _beyond(-p * log_q, some_p & ~some_q).sum(dim) / _unit("cross_entropy", unit)


def kl(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """KL(p || q) = sum p ln(p/q), in nats (or bits), >= 0; inf where q lacks an outcome of p; without `dim`. Source: Kullback & Leibler 1951.

    >>> kl(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), unit="bits")
    tensor(1.)
    """
    return f_divergence(p, q, "kl", dim=dim, logits=logits, unit=unit)


def reverse_kl(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """KL(q || p) = sum q ln(q/p), in nats (or bits), >= 0; inf where p lacks an outcome of q; without `dim`."""
    return f_divergence(p, q, "reverse-kl", dim=dim, logits=logits, unit=unit)


def js(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """Jensen-Shannon divergence, the mean of KL(p || m) and KL(q || m), m = (p+q)/2, in nats (or bits), in [0, ln 2]. Source: Lin 1991."""
    return f_divergence(p, q, "js", dim=dim, logits=logits, unit=unit)


def jeffreys(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """KL(p || q) + KL(q || p) = sum (p - q) ln(p/q), in nats (or bits), >= 0; inf unless the supports agree. Source: Jeffreys 1946."""
    return f_divergence(p, q, "jeffreys", dim=dim, logits=logits, unit=unit)


def total_variation(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False) -> Float[Tensor, "..."]:
    """Half of sum |p - q|, a probability: the most by which an event's chances differ."""
    return f_divergence(p, q, "total-variation", dim=dim, logits=logits)


def hellinger(p: Float[Tensor, "..."], q: Float[Tensor, "..."], *, dim: int = -1, logits: bool = False) -> Float[Tensor, "..."]:
    """Hellinger distance sqrt(1 - sum sqrt(p q)), in [0, 1], a metric. Its gradient where p = q, a corner, is 0."""
    square = f_divergence(p, q, "squared-hellinger", dim=dim, logits=logits)
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), square)


def f_divergence(
    p: Float[Tensor, "..."], q: Float[Tensor, "..."], name: Divergence, *, dim: int = -1, logits: bool = False, unit: Unit = "nats"
) -> Float[Tensor, "..."]:
    """D_f(p, q) = sum q f(p/q), >= 0, in nats (or bits) where f has a logarithm, else a pure number; without `dim`.

    "kl", "reverse-kl", "js", "jeffreys", "total-variation", "squared-hellinger" (1 - sum sqrt(pq)), "pearson" (sum (p-q)^2 / q), "neyman"
    (sum (p-q)^2 / p). Raises ValueError for another name. Source: Csiszar 1967; Ali & Silvey 1966.
    """
    scale = _unit("f_divergence", unit)
    (p, log_p, some_p), (q, log_q, some_q) = _logged(p, dim, logits), _logged(q, dim, logits)
    lacks_p, lacks_q = some_q & ~some_p, some_p & ~some_q
    match name:
        case "kl":
            terms = _beyond(p * (log_p - log_q), lacks_q) / scale
        case "reverse-kl":
            terms = _beyond(q * (log_q - log_p), lacks_p) / scale
        case "jeffreys":
            terms = _beyond((p - q) * (log_p - log_q), lacks_p | lacks_q) / scale
        case "js":
            middle = (p + q) / 2
            log_middle = torch.where(middle > 0, middle, 1.0).log()
            terms = (p * (log_p - log_middle) + q * (log_q - log_middle)) / (2 * scale)
        case "total-variation":
            terms = (p - q).abs() / 2
        case "squared-hellinger":
            root_p, root_q = (torch.where(some, (log / 2).exp(), 0.0) for some, log in ((some_p, log_p), (some_q, log_q)))
            terms = (root_p - root_q).square() / 2 + 0 * (p + q)
        case "pearson" | "neyman":
            over, some, lacks = (log_q, some_q, lacks_q) if name == "pearson" else (log_p, some_p, lacks_p)
            terms = _beyond(torch.where(some, (p - q).square() * (-over).exp(), 0.0), lacks)
        case _:
            raise ValueError(f"f_divergence: no divergence {name!r}. There are {', '.join(Divergence.__args__)}.")
    return terms.sum(dim)


def boltzmann(counts: Int[Tensor, "..."], *, dim: int = -1, unit: Unit = "nats") -> Float[Tensor, "..."]:
    """Counting entropy ln W = ln N! - sum ln n_j!, in nats (or bits): in how many orders N units come in groups of n_j. float64; without `dim`.

    In [0, ln N!], at most N times the Shannon entropy of n / N, and N times it for large counts. An empty group adds nothing.
    Raises ValueError for negative counts. Source: Boltzmann 1877; sheet `last-mile-entropy`, items 1-2.

    >>> boltzmann(torch.tensor([2, 1, 1]))  # ln 12
    tensor(2.4849, dtype=torch.float64)
    """
    if counts.numel() and (counts < 0).any():
        raise ValueError(f"boltzmann: counts must not be negative. Got {int(counts.min())}.")
    n = counts.double()
    return ((n.sum(dim) + 1).lgamma() - (n + 1).lgamma().sum(dim)) / _unit("boltzmann", unit)


def grouped(counts: Int[Tensor, "*batch fine"], group: Int[Tensor, " fine"], *, unit: Unit = "nats") -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The two parts of the counting entropy when fine groups are merged, in nats (or bits): of the coarse groups, and within them.

    `group` names the coarse group of each fine one, from 0. Their sum is `boltzmann(counts)`, whatever the grouping. float64.
    Raises ValueError for negative counts or names. Source: sheet `last-mile-entropy`, item 4.

    >>> coarse, within = grouped(torch.tensor([12, 5, 8, 1, 20]), torch.tensor([0, 0, 1, 1, 1]))
    >>> coarse + within
    tensor(55.2376, dtype=torch.float64)
    """
    if group.numel() and (group < 0).any():
        raise ValueError(f"grouped: group must name coarse groups from 0 on. Got {int(group.min())}.")
    size = int(group.max()) + 1 if group.numel() else 0
    coarse = counts.new_zeros(*counts.shape[:-1], size).index_add(-1, group, counts)
    parts = [boltzmann(counts[..., group == name], unit=unit) for name in range(size)]
    whole = boltzmann(coarse, unit=unit)
    return whole, torch.stack(parts).sum(0) if parts else torch.zeros_like(whole)


def _logged(x: Tensor, dim: int, logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """p, ln p with 0 where p is 0, and where p is not 0."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if logits:
        log_p = x.log_softmax(dim)
        some = log_p > -math.inf
        return log_p.exp(), log_p.masked_fill(~some, 0.0), some
    some = x > 0
    log_p = torch.where(some, x, 1.0).log()
    return x, torch.where(x < 0, math.nan, log_p), some


def _beyond(terms: Tensor, where: Tensor) -> Tensor:
    """inf where one of the two has no share; as a constant, so that it has no slope that would be NaN."""
    return torch.where(where, math.inf, terms)


def _unit(who: str, unit: str) -> float:
    if unit not in ("nats", "bits"):
        raise ValueError(f"{who}: unit must be 'nats' or 'bits'. Got {unit!r}.")
    return math.log(2) if unit == "bits" else 1.0
