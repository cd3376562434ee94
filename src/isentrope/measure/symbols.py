"""Entropies of discrete symbols and joint distributions: plug-in information of samples, ordinal patterns, many-variable information.

A symbol is an integer or a row of integers. H over a set S of variables is written H(S); all values in nats, float64, no gradient for symbols.
"""

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def symbol_entropy(symbols: Int[Tensor, "sample *dim"]) -> Float[Tensor, ""]:
    """Plug-in entropy of the symbols (rows when there are several columns), in nats: -sum_i f_i ln f_i; float64, in [0, ln sample].

    Biased low by about (distinct - 1) / 2n. Raises ValueError without symbols.

    >>> symbol_entropy(torch.tensor([0, 0, 7, 7]))
    tensor(0.6931, dtype=torch.float64)
    """
    if not symbols.shape[0]:
        raise ValueError("symbol_entropy: needs at least one symbol. Got none.")
    counts = symbols.flatten(1).unique(dim=0, return_counts=True)[1] if symbols.ndim > 1 else symbols.unique(return_counts=True)[1]
    return torch.special.entr(counts.double() / symbols.shape[0]).sum()


def aligned_counts(x: Int[Tensor, " sample"], y: Int[Tensor, " other"]) -> tuple[Int[Tensor, " symbol"], Int[Tensor, " symbol"]]:
    """How often each symbol that occurs in either sample occurs in the first and in the second, in the order of the symbols.

    >>> aligned_counts(torch.tensor([4, 4, 9]), torch.tensor([9]))
    (tensor([2, 1]), tensor([0, 1]))
    """
    names, place = torch.cat((x, y)).unique(return_inverse=True)
    return place[: len(x)].bincount(minlength=len(names)), place[len(x) :].bincount(minlength=len(names))


def symbol_information(
    x: Int[Tensor, "sample *xdim"], y: Int[Tensor, "sample *ydim"], *, given: Int[Tensor, "sample *zdim"] | None = None
) -> Float[Tensor, ""]:
    """Plug-in I(x; y), or I(x; y | given), in nats: H(xz) + H(yz) - H(xyz) - H(z); >= 0 up to rounding, biased HIGH by undersampling."""
    a, b = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if given is None:
        return symbol_entropy(a) + symbol_entropy(b) - symbol_entropy(torch.cat((a, b), 1))
    c = given.reshape(len(given), -1)
    return symbol_entropy(torch.cat((a, c), 1)) + symbol_entropy(torch.cat((b, c), 1)) - symbol_entropy(torch.cat((a, b, c), 1)) - symbol_entropy(c)


def transfer_entropy(source: Int[Tensor, " time"], target: Int[Tensor, " time"], *, history: int = 1) -> Float[Tensor, ""]:
    """Plug-in transfer entropy I(target_t; source's past | target's past), pasts of `history` steps, in nats.

    Raises ValueError unless 1 <= history < time. Source: Schreiber 2000, arXiv nlin/0001042.
    """
    if not 1 <= history < len(target):
        raise ValueError(f"transfer_entropy: history must lie in [1, time={len(target)}). Got {history}.")
    past, of_source = (series.unfold(0, history, 1)[:-1] for series in (target, source))
    return symbol_information(target[history:], of_source, given=past)


def ordinal_patterns(series: Float[Tensor, " time"], *, size: int = 3, lag: int = 1) -> Int[Tensor, " window"]:
    """The order (argsort, ties by time) of `size` values `lag` apart, as one integer in [0, size^size) per window.

    `symbol_entropy` of it is the permutation entropy, in [0, ln size!]. Any increasing map of the series changes nothing.
    Raises ValueError when no window fits. Source: Bandt & Pompe 2002 (Phys. Rev. Lett. 88, 174102).
    """
    if size < 2 or lag < 1 or (size - 1) * lag >= len(series):
        raise ValueError(f"ordinal_patterns: size must be at least 2, lag at least 1, (size - 1) * lag below {len(series)}. Got size={size}, lag={lag}.")
    order = series.unfold(0, (size - 1) * lag + 1, 1)[:, ::lag].argsort(dim=-1, stable=True)
    return (order * size ** torch.arange(size, device=series.device)).sum(-1)


def subset_entropy(joint: Float[Tensor, "..."], variables: tuple[int, ...]) -> Float[Tensor, ""]:
    """H of some variables of a joint distribution (axis i is variable i), in nats; no variables: 0. Differentiable where positive."""
    rest = tuple(axis for axis in range(joint.ndim) if axis not in variables)
    marginal = joint.double().sum(rest) if rest else joint.double()
    return torch.special.entr(marginal).sum() if variables else joint.new_zeros((), dtype=torch.float64)


def joint_information(joint: Float[Tensor, "..."], x: tuple[int, ...], y: tuple[int, ...], *, given: tuple[int, ...] = ()) -> Float[Tensor, ""]:
    """I(x; y | given) of a joint distribution, sets of axes, in nats: H(xz) + H(yz) - H(xyz) - H(z)."""
    return subset_entropy(joint, x + given) + subset_entropy(joint, y + given) - subset_entropy(joint, x + y + given) - subset_entropy(joint, given)


def co_information(joint: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Co-information of all variables, in nats: -sum over non-empty S of (-1)^|S| H(S). Negative for synergy: parity of three has -ln 2.

    Source: Bell 2003; vectors README, `information-estimators`.
    """
    return _sum(-((-1) ** len(s)) * subset_entropy(joint, s) for size in range(1, joint.ndim + 1) for s in itertools.combinations(range(joint.ndim), size))


def total_correlation(joint: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """sum_i H(i) - H, in nats, >= 0; 0 exactly for independent variables. Source: Watanabe 1960."""
    return _sum(subset_entropy(joint, (i,)) for i in range(joint.ndim)) - _whole(joint)


def residual_entropy(joint: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """sum_i H(i | all others), in nats, >= 0: what each variable alone knows."""
    return _sum(_whole(joint) - subset_entropy(joint, _without(joint, i)) for i in range(joint.ndim))


def dual_total_correlation(joint: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """H - residual entropy, in nats, >= 0. Source: Han 1975."""
    return _whole(joint) - residual_entropy(joint)


def tse_complexity(joint: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Tononi-Sporns-Edelman complexity, in nats: sum over sizes k of (mean of H(S) over |S| = k) - (k/n) H; 0 for independent identical ones."""
    n, whole = joint.ndim, _whole(joint)
    return _sum(_sum(subset_entropy(joint, s) for s in itertools.combinations(range(n), k)) / math.comb(n, k) - k / n * whole for k in range(1, n + 1))


def extropy(probs: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """The dual of entropy, in nats: -sum_i (1 - p_i) ln(1 - p_i); equals H for two outcomes. Source: Lad, Sanfilippo & Agro 2015, arXiv 1109.6440."""
    return torch.special.entr(1 - probs.double()).sum(-1)


def _whole(joint: Tensor) -> Tensor:
    return subset_entropy(joint, tuple(range(joint.ndim)))


def _without(joint: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(joint.ndim) if other != axis)


def _sum(terms) -> Tensor:
    return torch.stack(list(terms)).sum()
