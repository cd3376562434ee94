"""Statistics of runs that share their seeds: paired differences, their intervals, tests, and what could have been seen at all.

D[m, s] is an outcome of method m less that of its reference on seed s. Over the seeds, for every method:

    estimate      mean of D[m]
    interval      bootstrap over seeds at the expanded level alpha' = 2 Phi(-sqrt(n / (n - 1)) t_{1 - alpha/2, n - 1}): with few seeds a plain
                  percentile interval is too short (Hesterberg 2015, arXiv 1411.5279, section 3.3); none below FEWEST seeds
    deviation     s_m, drawn up to that of the other methods: s^2 = (d0 s0^2 + d s_m^2) / (d0 + d), d = n - 1, with d0 and s0 from the spread
                  of the s_m^2 (moderated t: Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, section 6.2), but never below s_m; a method that
                  scatters far more than the others (F test at OUTLYING) keeps its own freedom d too. Not with fewer than three methods
    p             two-sided, of t = mean sqrt(n) / s with min(d0 + d, f) degrees of freedom, where f are those of a pooled variance whose parts
                  are correlated, because all differences share the runs of one reference: f = d / mean of rho^2 over all pairs of methods
    adjusted      Holm's step-down over the family of all tests that a page's verdicts may rest on (Holm 1979): the chance of one or more
                  false findings on the page stays below alpha, whatever depends on what
    detectable    the true difference that this design finds four times in five at the strictest of Holm's levels, alpha / family

Pure functions of arrays. NaN marks a missing run. Type-I error and power of all this are measured in the test beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special, stats

ALPHA = 0.05
POWER = 0.8
FEWEST = 5
"""Seeds below which no bootstrap interval is given: so few values can hardly be resampled."""
POOLED = 3
"""Methods below which every one keeps its own deviation."""
OUTLYING = 0.05
"""Chance below which a variance is too large to be one of the others'."""
ROUNDING = 1e-12
"""Differences below this are those of sums in another order: the runs are the same."""
RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """A mean paired difference over `pairs` seeds. What cannot be said is NaN. `identical`: no pair differs."""

    mean: float
    low: float
    high: float
    deviation: float
    pairs: int
    freedom: float
    p: float
    adjusted: float = math.nan
    detectable: float = math.nan
    identical: bool = False

    @property
    def found(self) -> int:
        """Its sign where the corrected test finds one, else 0."""
        return int(np.sign(self.mean)) if self.adjusted <= ALPHA else 0


def compared(groups: Sequence[np.ndarray], *, alpha: float = ALPHA, seed: int = 0, resamples: int = RESAMPLES) -> list[list[Difference]]:
    """Every row of every group as a `Difference`; one Holm family over all rows.

    groups: arrays [method, seed] of paired differences; a group shares one outcome and one kind of reference, so its deviations are of
    one kind. Rows with fewer than two pairs, and rows of zeros, are no tests and count for nothing.
    """
    found = [_tested(np.asarray(group, dtype=float), seed, resamples) for group in groups]
    flat = [item for group in found for item in group]
    tests = [item for item in flat if not (math.isnan(item.p) or item.identical)]
    corrected = dict(zip(map(id, tests), holm([item.p for item in tests]), strict=True))
    level = alpha / max(1, len(tests))
    return [
        [replace(item, adjusted=corrected.get(id(item), item.p), detectable=detectable(item.deviation, item.pairs, item.freedom, level)) for item in group]
        for group in found
    ]


def _tested(values: np.ndarray, seed: int, resamples: int) -> list[Difference]:
    pairs = np.isfinite(values).sum(1)
    means = np.array([row[np.isfinite(row)].mean() if count else math.nan for row, count in zip(values, pairs, strict=True)])
    own = np.array([row[np.isfinite(row)].var(ddof=1) if count > 1 else math.nan for row, count in zip(values, pairs, strict=True)])
    deviations, freedoms = pooled(values, own, pairs - 1)
    found = []
    for at, row in enumerate(values):
        row, count = row[np.isfinite(row)], int(pairs[at])
        low, high = interval(row, seed=seed, resamples=resamples)
        if count < 2:
            found.append(Difference(float(means[at]), low, high, math.nan, count, 0.0, math.nan))
            continue
        if np.abs(row).max() < ROUNDING:
            found.append(Difference(0.0, 0.0, 0.0, 0.0, count, float(freedoms[at]), 1.0, identical=True))
            continue
        t = abs(means[at]) * math.sqrt(count) / deviations[at] if deviations[at] > 0 else math.inf
        p = float(2 * stats.t.sf(t, freedoms[at]))
        found.append(Difference(float(means[at]), low, high, float(deviations[at]), count, float(freedoms[at]), p))
    return found


def pooled(values: np.ndarray, own: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviation and degrees of freedom of every row of `values`, moderated over the rows; `own` are its variances, of `freedom` each."""
    usable = np.isfinite(own) & (own > 0)
    deviations, freedoms = np.sqrt(own), freedom.astype(float)
    if usable.sum() < POOLED:
        return deviations, freedoms
    prior, strength = prior_of(own[usable], freedom[usable])
    calm = usable.copy()
    calm[usable] = stats.f.sf(own[usable] / prior, freedom[usable], min(strength, 1e9)) > OUTLYING
    if calm.sum() < POOLED:
        return deviations, freedoms
    prior, strength = prior_of(own[calm], freedom[calm])
    d = freedom[calm]
    moderated = np.full(d.shape, prior) if math.isinf(strength) else (strength * prior + d * own[calm]) / (strength + d)
    deviations[calm] = np.sqrt(np.maximum(moderated, own[calm]))  # the floor holds the error where methods scatter unequally
    freedoms[calm] = np.maximum(d, np.minimum(strength + d, shared_freedom(values[calm])))
    return deviations, freedoms


def prior_of(variances: np.ndarray, freedom: np.ndarray) -> tuple[float, float]:
    """(s0^2, d0) such that variances ~ s0^2 F(freedom, d0), by the moments of their logarithms; d0 is infinite if they differ no more than by chance."""
    half = freedom / 2
    centred = np.log(variances) - special.digamma(half) + np.log(half)
    spread = float(centred.var(ddof=1) - special.polygamma(1, half).mean())
    if spread <= 0:
        return float(np.exp(centred.mean())), math.inf
    strength = 2 * _trigamma_inverse(spread)
    return float(np.exp(centred.mean() + special.digamma(strength / 2) - math.log(strength / 2))), strength


def _trigamma_inverse(value: float) -> float:
    """x > 0 with trigamma(x) = value, by Newton's method on 1 / trigamma, which is convex and nearly linear (Smyth 2004, appendix)."""
    x = 0.5 + 1 / value
    for _ in range(50):
        at = float(special.polygamma(1, x))
        step = at * (1 - at / value) / float(special.polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def shared_freedom(values: np.ndarray) -> float:
    """Degrees of freedom of the mean variance of correlated rows: d / mean(rho^2), the mean over all pairs of rows, each with itself too.

    The squared sample correlations of different rows are adjusted for their mean 1/d under independence. Seeds that some row lacks are left out.
    """
    whole = values[:, np.isfinite(values).all(0)]
    rows, count = whole.shape
    d = count - 1
    if d < 2 or rows < 2:
        return float(max(d, 1))
    centred = whole - whole.mean(1, keepdims=True)
    scale = np.sqrt((centred**2).sum(1))
    if not (scale > 0).all():
        return float(d)
    squared = (centred @ centred.T / np.outer(scale, scale)) ** 2
    apart = (squared.sum() - rows) / (rows * (rows - 1))
    apart = max(0.0, (apart - 1 / d) / (1 - 1 / d))
    return d / ((1 + (rows - 1) * apart) / rows)


def interval(values: np.ndarray, *, level: float = 1 - ALPHA, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Bootstrap interval of the mean over seeds at the expanded level; (NaN, NaN) below FEWEST values."""
    n = len(values)
    if n < FEWEST:
        return math.nan, math.nan
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1))
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.quantile(values[drawn].mean(1), [tail, 1 - tail])
    return float(low), float(high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p values: the i-th smallest times the number of tests not smaller, made monotone, at most 1."""
    adjusted, running = [0.0] * len(p), 0.0
    for place, at in enumerate(np.argsort(p, kind="stable")):
        running = max(running, min(1.0, (len(p) - place) * float(p[at])))
        adjusted[at] = running
    return adjusted


def detectable(deviation: float, pairs: int, freedom: float, level: float, power: float = POWER) -> float:
    """The true difference that a two-sided test at `level` finds with chance `power`: where the noncentral t has that much beyond its bound."""
    if not (deviation > 0 and pairs > 1 and freedom > 0):
        return math.nan
    return _shift(float(freedom), level, power) * deviation / math.sqrt(pairs)


@lru_cache(maxsize=4096)
def _shift(freedom: float, level: float, power: float) -> float:
    """The noncentrality at which t exceeds its bound with chance `power`."""
    bound = float(stats.t.isf(level / 2, freedom))
    missed = lambda shift: float(stats.nct.sf(bound, freedom, shift)) - power  # noqa: E731
    high = bound + 4.0
    while missed(high) < 0:
        high *= 2
    found: Any = optimize.brentq(missed, 0.0, high, xtol=1e-6)
    return float(found)


def ranks(outcome: np.ndarray, *, level: float = 1 - ALPHA, seed: int = 0, resamples: int = RESAMPLES) -> list[tuple[int, int, int]]:
    """(rank, low, high) of every row of `outcome` [arm, seed], 1 for the largest mean; the interval from seeds resampled together.

    Seeds that some arm lacks are left out. With fewer than two seeds the interval is all ranks: nothing is known of the order.
    """
    whole = outcome[:, np.isfinite(outcome).all(0)]
    arms, count = whole.shape
    if count == 0:
        return [(0, 1, arms)] * arms
    place = lambda means: stats.rankdata(-means, method="min", axis=-1).astype(int)  # noqa: E731
    now = place(whole.mean(1))
    if count < 2:
        return [(int(rank), 1, arms) for rank in now]
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    again = place(whole[:, drawn].mean(2).T)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(again, tails[0], axis=0, method="lower"), np.quantile(again, tails[1], axis=0, method="higher")
    return [(int(rank), int(min(a, rank)), int(max(b, rank))) for rank, a, b in zip(now, low, high, strict=True)]
