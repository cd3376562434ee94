"""Weight of evidence, information value and population stability index of two samples' bin counts, with errors and the law without drift.

With shares g_j, b_j of n_g, n_b records: W_j = ln(g_j/b_j) and J = sum_j (g_j - b_j) W_j = KL(g||b) + KL(b||g), Jeffreys' divergence: information value
when the samples are two classes, population stability index when they are two times. It cannot grow when bins merge. Bins must be fixed beforehand.
A bin that both samples leave empty is not counted; a sample without any record gives NaN. float64.
Source: Sudjianto & Burakov, arXiv 2509.09855; sheet `credit-iv-psi` (its items 2 and 4 are (inferred), and were simulated).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.measure.distribution import jeffreys


@dataclass(frozen=True)
class Evidence:
    """Weight of evidence of each bin, nats, and its standard error; 0 and inf for a bin that both samples leave empty."""

    value: Float[Tensor, "*batch bin"]
    standard_error: Float[Tensor, "*batch bin"]


@dataclass(frozen=True)
class Stability:
    """J of two samples, nats."""

    value: Float[Tensor, "*batch"]
    standard_error: Float[Tensor, "*batch"]  # full delta method: weights and shares come from the same counts
    bias: Float[Tensor, "*batch"]  # what sampling and smoothing add to `value` on average, to second order
    statistic: Float[Tensor, "*batch"]  # J / (1/n_g + 1/n_b): chi-square of bins - 1 degrees when both populations are one
    p_value: Float[Tensor, "*batch"]  # the chance of so large a statistic then
    near_null: Bool[Tensor, "*batch"]  # J under 3 x its mean without drift: there `standard_error` says nothing, `p_value` does

    def interval(self, *, level: float = 0.95) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Normal interval of J around value - bias, in nats: lower and upper end, not clipped at 0. NaN where `near_null`, since it is wrong there.

        Raises ValueError unless 0 < level < 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"Stability.interval: level must be in (0, 1). Got {level}. If you meant 95 %, write level=0.95.")
        reach = torch.special.ndtri(torch.full_like(self.value, (1 + level) / 2)) * self.standard_error
        middle = (self.value - self.bias).masked_fill(self.near_null, math.nan)
        return middle - reach, middle + reach


def weight_of_evidence(first: Int[Tensor, "*batch bin"], second: Int[Tensor, "*batch bin"], *, smoothing: float = 0.5) -> Evidence:
    """ln(g_j / b_j) of each bin, in nats, and its standard error for multinomial samples.

    Var = (1-g)/(n_g g) + (1-b)/(n_b b); the usual 1/(n_g g) + 1/(n_b b) takes the totals' log ratio as known, and is larger by 1/n_g + 1/n_b.
    `smoothing` is added to every count (0.5: sheet); with 0, a bin that only one sample fills gives an infinity. Swapping the samples flips the sign.
    Raises ValueError for negative counts or smoothing. Source: sheet `credit-iv-psi`, item 3.

    >>> weight_of_evidence(torch.tensor([30, 70]), torch.tensor([60, 40]), smoothing=0).value  # ln 1/2, ln 7/4
    tensor([-0.6931,  0.5596], dtype=torch.float64)
    """
    g, b, n_g, n_b, filled = _shares("weight_of_evidence", first, second, smoothing)
    value, variance = (g / b).log(), (1 - g) / (n_g * g) + (1 - b) / (n_b * b)
    void = ~filled & ~n_g.isnan() & ~n_b.isnan()
    return Evidence(value.masked_fill(void, 0.0), variance.sqrt().masked_fill(void, math.inf))


def information_value(first: Int[Tensor, "*batch bin"], second: Int[Tensor, "*batch bin"], *, smoothing: float = 0.5) -> Stability:
    """Information value of bins for two classes, in nats, >= 0, with its standard error, bias and the test against no difference.

    `smoothing` is added to every count, and the totals in errors and statistic count it (0.5: sheet; the test is then near its level from about 5 records a
    bin, and too shy below). With 0, a bin that only one sample fills makes J, error and bias infinite and the p-value NaN: such a test says nothing.
    Symmetric in the samples. Raises ValueError for negative counts or smoothing. Source: sheet `credit-iv-psi`, items 1, 2, 4.

    >>> round(float(information_value(torch.tensor([30, 70]), torch.tensor([50, 50]), smoothing=0).value), 4)
    0.1695
    """
    g, b, n_g, n_b, filled = _shares("information_value", first, second, smoothing)
    bins = filled.sum(-1)
    value, scale = jeffreys(g, b) + 0 * (n_g + n_b).squeeze(-1), (1 / n_g + 1 / n_b).squeeze(-1)
    to_b, to_g = (torch.where(filled, ratio, 1.0) for ratio in (b / g, g / b))
    weight = -to_b.log()
    slope_g, slope_b = weight + 1 - to_b, -weight + 1 - to_g  # dJ/dg, dJ/db
    variance = _variance(g, slope_g) / n_g.squeeze(-1) + _variance(b, slope_b) / n_b.squeeze(-1)
    curved = (1 + to_b) * (1 - g) / n_g + (1 + to_g) * (1 - b) / n_b  # J'' times the variance of the share, of each bin; shares' covariances drop out
    pulled = smoothing * (slope_g * (1 - bins.unsqueeze(-1) * g) / n_g + slope_b * (1 - bins.unsqueeze(-1) * b) / n_b)  # smoothing moves shares to 1/bins
    bias = (torch.where(filled, curved, 0.0) / 2 + pulled).sum(-1)
    statistic = value / scale
    boundless = value.isinf()
    p_value = _chance(statistic, bins - 1).masked_fill(boundless, math.nan)
    return Stability(
        value=value,
        standard_error=variance.clamp(min=0).sqrt().masked_fill(boundless, math.inf),
        bias=bias.masked_fill(boundless, math.inf),
        statistic=statistic,
        p_value=p_value,
        near_null=statistic < 3 * (bins - 1),
    )


def population_stability(expected: Int[Tensor, "*batch bin"], actual: Int[Tensor, "*batch bin"], *, smoothing: float = 0.5) -> Stability:
    """Population stability index, in nats, >= 0: `information_value` of an earlier and a later sample. Judge drift by its `p_value`, not by 0.1 and 0.25."""
    return information_value(expected, actual, smoothing=smoothing)


def stability_cutoff(bins: int, first_total: int, second_total: int, *, level: float = 0.05) -> float:
    """The J, in nats, that two samples of one population exceed with chance `level`; without drift the mean of J is (bins - 1) (1/n_g + 1/n_b).

    Raises ValueError unless bins >= 2, totals >= 1, 0 < level < 1. Source: sheet `credit-iv-psi`, item 4.

    >>> round(stability_cutoff(5, 4000, 800), 5)  # 9.488 (1/4000 + 1/800)
    0.01423
    """
    if bins < 2 or min(first_total, second_total) < 1 or not 0 < level < 1:
        raise ValueError(f"stability_cutoff: needs bins >= 2, totals >= 1, 0 < level < 1. Got {bins}, {first_total}, {second_total}, {level}.")
    low, high = torch.zeros((), dtype=torch.float64), torch.full((), 1e4 + 10.0 * bins, dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(middle, bins - 1) > level else (low, middle)
    return float(high) * (1 / first_total + 1 / second_total)


def pearson_p_value(first: Int[Tensor, "*batch bin"], second: Int[Tensor, "*batch bin"]) -> Float[Tensor, "*batch"]:
    """p-value of Pearson's chi-square test that both samples have the same shares: near its level with fewer records a bin than J's. Needs no smoothing.

    NaN for a sample without records. Raises ValueError for negative counts. Source: Pearson 1900.
    """
    g, b, n_g, n_b, filled = _shares("pearson_p_value", first, second, 0.0)
    pooled = (n_g * g + n_b * b) / (n_g + n_b)
    terms = torch.where(filled, (g - b).square() / pooled, 0.0) + 0 * g.sum(-1, keepdim=True)
    return _chance(terms.sum(-1) / (1 / n_g + 1 / n_b).squeeze(-1), filled.sum(-1) - 1)


def _chance(statistic: Tensor, degrees: int | Tensor) -> Tensor:
    """Upper tail of chi-square; 1 with no degree of freedom left, where the statistic is 0."""
    half = torch.as_tensor(degrees, dtype=torch.float64) / 2
    none = half <= 0
    tail = torch.special.gammaincc(torch.where(none, 1.0, half).expand_as(statistic), statistic.clamp(min=0) / 2)
    return torch.where(none & ~statistic.isnan(), 1.0, tail)


def _variance(p: Tensor, x: Tensor) -> Tensor:
    mean = (p * x).sum(-1, keepdim=True)
    return (p * (x - mean).square()).sum(-1)


def _shares(who: str, first: Tensor, second: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Shares and totals of both, and the bins that count; totals are NaN without records."""
    if not 0 <= smoothing < math.inf:
        raise ValueError(f"{who}: smoothing must be in [0, inf). Got {smoothing}.")
    low = min((int(n.min()) for n in (first, second) if n.numel()), default=0)
    if low < 0:
        raise ValueError(f"{who}: counts must not be negative. Got {low}.")
    filled = (first > 0) | (second > 0)
    extra = smoothing * filled.double()  # smoothing times bool would be float32
    totals = [(n + extra).sum(-1, keepdim=True).masked_fill(n.sum(-1, keepdim=True) == 0, math.nan) for n in (first, second)]
    return (first + extra) / totals[0], (second + extra) / totals[1], totals[0], totals[1], filled
