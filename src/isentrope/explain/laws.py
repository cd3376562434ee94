r"""R = -a exp(H) + b: fitted, with intervals, and put to an honest test of extrapolation; where the plateau of a run begins.

The law (sheet `clip-cov`, section A; arXiv 2505.22617 Eq. 6): R is the validation accuracy as a fraction or the mean training reward, H the
mean token entropy of the same responses in nats. dR/dH = -a exp(H), so a is the price of entropy, and at H = 0 the ceiling is b - a.
Ordinary least squares in exp(H) (inferred: the paper names no solver). Claimed for runs without entropy or KL intervention.

The test: fit on the first 15, 25 and 50 % of the run, predict the rest, and count error and how often the stated 95 % interval of a single
observation held. Beside it stand

    -a H + b               rival: straight in H                                    knows the later entropies, as the paper's test does
    b - a exp(-t / tau)    rival: saturating in the update t, without entropy      knows the update only
    the law on its own forecast of H(t) = h + c exp(-t / tau)                      knows the update only: a forecast in earnest
    the last value         naive: the mean of the last tenth of what was seen      knows nothing

Stages (sheet `entropy-performance-exchange`, 3; by eye in the paper, two straight lines here (inferred)): the rising stage ends where the
second of two straight lines fitted to H begins, if two lines explain more than one would by chance, and the second is flatter by half.

Entropy is measured with noise too, which pulls a towards 0 (attenuation); a fit on few updates, where H hardly moved, suffers most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from isentrope.explain.fitting import DRAWS, Array, Band, Estimate, Fit, Form, fit, redrawn

SHARES = (0.15, 0.25, 0.5)
"""Shares of the run that are fitted to predict the rest; 15 % is the paper's."""
LEAST_POINTS = 8
"""Points that `stages` needs."""
FLATTER = 0.5
"""A plateau's slope is at most this share of the slope before it."""
_TWO = 4  # parameters of two lines


def _exponential(x: Array, theta: Array) -> Array:
    return np.stack([-np.exp(np.minimum(x, 700.0)), np.ones(len(x))], axis=1)


def _straight(x: Array, theta: Array) -> Array:
    return np.stack([-x, np.ones(len(x))], axis=1)


def _saturating(x: Array, theta: Array) -> Array:
    return np.stack([-np.exp(-x / theta[0]), np.ones(len(x))], axis=1)


def _times(x: Array) -> Array:
    """Time constants between a fiftieth of the span seen and ten spans: beyond them the data cannot tell."""
    span = max(float(np.ptp(x)), 1e-9)
    return np.array([[span / 50, 10 * span]])


LAW = Form("R = -a exp(H) + b", ("a", "b"), _exponential)
LINEAR = Form("R = -a H + b", ("a", "b"), _straight)
SATURATING = Form("R = b - a exp(-t / tau)", ("a", "b"), _saturating, ("tau",), _times)
LEVEL = Form("last value", ("level",), lambda x, theta: np.ones((len(x), 1)))


def law(entropy: Float[Array, " point"], performance: Float[Array, " point"], *, seed: int = 0) -> Fit:
    """The law fitted to points in the order of time: parameters a and b. entropy: nats. See `ceiling`."""
    return fit(LAW, entropy, performance, seed=seed)


def ceiling(found: Fit) -> Estimate:
    """b - a: where performance ends when no entropy is left, in the unit of R. It is outside of what was seen while H > 0."""
    return found.quantity(lambda parameters: parameters[..., 1] - parameters[..., 0])


# --- extrapolation


@dataclass(frozen=True)
class Forecast:
    """What a law fitted on the first `share` of a run said of the rest, and what happened.

    knows: what it was told of the rest ("entropy", "update" or "nothing"). happened is NaN where nothing has yet. rmse and bias (predicted less
    happened) are in the unit of R; coverage is the share of points inside their 95 % interval.
    """

    method: str
    knows: str
    share: float
    until: float  # the last update that was fitted
    step: Float[Array, " point"]
    band: Band
    happened: Float[Array, " point"]
    problem: str | None = None

    @property
    def _seen(self) -> Array:
        return np.isfinite(self.happened) & np.isfinite(self.band.value)

    @property
    def rmse(self) -> float:
        return _mean((self.band.value - self.happened)[self._seen] ** 2) ** 0.5

    @property
    def bias(self) -> float:
        return _mean((self.band.value - self.happened)[self._seen])

    @property
    def coverage(self) -> float:
        inside = (self.band.low <= self.happened) & (self.happened <= self.band.high)
        return _mean(inside[self._seen].astype(float))

    @property
    def end(self) -> Estimate:
        """What was said of the last twentieth of the updates predicted: mean of the value and of the ends of its intervals."""
        count = max(1, len(self.step) // 20)
        return Estimate(*(_mean(part[-count:]) for part in (self.band.value, self.band.low, self.band.high)))

    @property
    def end_happened(self) -> float:
        return _mean(self.happened[-max(1, len(self.step) // 20) :])


def forecasts(
    step: Float[Array, " point"],
    entropy: Float[Array, " point"],
    performance: Float[Array, " point"],
    *,
    total: float | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> list[Forecast]:
    """The five forecasts at each share of `total` updates (None: of the run so far) that the run has passed; shares still ahead are left out.

    Points of a step, an entropy or a performance that is not finite are left out.
    """
    step, entropy, performance = _finite(step, entropy, performance)
    if not len(step):
        return []
    total = float(step[-1]) if total is None else float(total)
    found = []
    for share in shares:
        seen = step <= share * total
        if 0 < seen.sum() < len(step) and step[-1] > share * total:
            found += _at(share, step, entropy, performance, seen, seed)
    return found


def ahead(
    step: Float[Array, " point"], entropy: Float[Array, " point"], performance: Float[Array, " point"], later: Float[Array, " point"], *, seed: int = 0
) -> Forecast:
    """The law's forecast for updates `later` than all that is known, from its own forecast of the entropy."""
    step, entropy, performance = _finite(step, entropy, performance)
    nothing = np.full(len(later), math.nan)
    return _blind(math.nan, step, entropy, performance, np.asarray(later, dtype=np.float64), nothing, seed)


def _at(share: float, step: Array, entropy: Array, performance: Array, seen: Array, seed: int) -> list[Forecast]:
    """The forecasts made when `seen` was all there was."""
    rest, until = ~seen, float(step[seen][-1])
    found = []
    for form, x, knows in ((LAW, entropy, "entropy"), (LINEAR, entropy, "entropy"), (SATURATING, step, "update")):
        fitted = fit(form, x[seen], performance[seen], seed=seed)
        found.append(Forecast(form.name, knows, share, until, step[rest], fitted.band(x[rest], noise=True), performance[rest], fitted.problem))
    found.append(_blind(share, step[seen], entropy[seen], performance[seen], step[rest], performance[rest], seed))
    last = max(LEVEL_POINTS, int(seen.sum()) // 10)
    level = fit(LEVEL, step[seen][-last:], performance[seen][-last:], seed=seed)
    found.append(Forecast(LEVEL.name, "nothing", share, until, step[rest], level.band(step[rest], noise=True), performance[rest], level.problem))
    return found


LEVEL_POINTS = 4
"""Points of the naive baseline at least: one parameter and `fitting.SPARE`."""
BLIND = "R = -a exp(H) + b, H forecast"


def _blind(share: float, step: Array, entropy: Array, performance: Array, later: Array, happened: Array, seed: int) -> Forecast:
    """The law at the entropies that a curve saturating in the update forecasts; no entropy is below 0."""
    course, fitted = fit(SATURATING, step, entropy, seed=seed), fit(LAW, entropy, performance, seed=seed)
    problem = course.problem or fitted.problem
    if problem is not None:
        empty = np.full(len(later), math.nan)
        band = Band(empty, empty, empty)
    else:
        paths = fitted.paths(np.maximum(course.paths(later), 0.0), noise=True)
        band = Band(fitted.value(np.maximum(course.value(later), 0.0)), *np.quantile(paths, (0.025, 0.975), axis=0))
    return Forecast(BLIND, "update", share, float(step[-1]) if len(step) else math.nan, later, band, happened, problem)


# --- stages


@dataclass(frozen=True)
class Stages:
    """Two straight lines through H(step): `plateau` is the update at which the second begins, with its interval; NaN if there is none yet.

    stage: "plateau" or "rising" (the paper's name: performance rises while entropy falls), what the run is in at its end; None if `problem`.
    slopes: of both lines, nats per update. chance: how often one line with the same kind of errors would be bettered as much.
    """

    stage: str | None
    plateau: Estimate
    slopes: tuple[float, float]
    chance: float
    problem: str | None = None


def stages(step: Float[Array, " point"], entropy: Float[Array, " point"], *, seed: int = 0, draws: int = DRAWS) -> Stages:
    """The rising stage and the plateau of a run, looking back. Too few points or a constant entropy have a `problem`."""
    step, entropy = _finite(step, entropy)
    nothing = Estimate(math.nan, math.nan, math.nan)
    if len(step) < LEAST_POINTS:
        return Stages(None, nothing, (math.nan, math.nan), math.nan, f"{LEAST_POINTS} points are needed to find a knee; there are {len(step)}")
    if np.ptp(entropy) <= 1e-12 * max(1.0, float(np.abs(entropy).max())):
        return Stages(None, nothing, (0.0, 0.0), math.nan, "entropy did not move")
    cut, two, slopes = _two_lines(step, entropy)
    chance = _chance(step, entropy, entropy - two, seed, draws)
    if chance >= 0.05 or abs(slopes[1]) > FLATTER * abs(slopes[0]):
        return Stages("rising", nothing, slopes, chance)
    again = two + redrawn(entropy - two, _TWO, draws, np.random.default_rng((seed, 3)))
    low, high = np.quantile(step[_cuts(step, again)], (0.025, 0.975))
    return Stages("plateau", Estimate(float(step[cut]), float(low), float(high)), slopes, chance)


def _chance(step: Array, entropy: Array, errors: Array, seed: int, draws: int) -> float:
    """How often one straight line with such errors gains as much by a second line. (Gains do not depend on the line, nor on the errors' size.)"""
    again = redrawn(errors, _TWO, draws, np.random.default_rng((seed, 2)))
    gain = lambda y: 1 - _errors(step, y).min(axis=-1) / np.maximum(_running(step, y)[:, -1], 1e-300)  # noqa: E731
    return float(np.mean(gain(again) >= gain(entropy[None])[0]))


def _two_lines(step: Array, y: Array) -> tuple[int, Array, tuple[float, float]]:
    """Where the second line begins, both lines, and their slopes."""
    cut = int(_cuts(step, y[None])[0])
    parts = [np.polyfit(step[part], y[part], 1) for part in (slice(None, cut), slice(cut, None))]
    lines = np.concatenate([np.polyval(parts[0], step[:cut]), np.polyval(parts[1], step[cut:])])
    return cut, lines, (float(parts[0][0]), float(parts[1][0]))


def _cuts(step: Array, y: Array) -> Array:
    """[draw] the index at which the second of two lines begins. y: [draw point]."""
    return 2 + np.argmin(_errors(step, y), axis=-1)


def _errors(step: Array, y: Array) -> Array:
    """[draw cut] summed squared error of two lines, the second beginning at cut + 2; each has at least two points. By running sums."""
    left = _running(step, y)[:, 1:-2]
    right = _running(step[::-1], y[:, ::-1])[:, ::-1][:, 2:-1]
    return left + right


def _running(step: Array, y: Array) -> Array:
    """[draw point] squared error of the best line through the first 1, 2, ... points."""
    t, y = step - step.mean(), y - y.mean(axis=-1, keepdims=True)
    n = np.arange(1, len(t) + 1)
    st, stt, sy, syy, sty = t.cumsum(), (t * t).cumsum(), y.cumsum(-1), (y * y).cumsum(-1), (t * y).cumsum(-1)
    xx, yy, xy = stt - st * st / n, syy - sy * sy / n, sty - st * sy / n
    slope = np.divide(xy, xx, out=np.zeros_like(xy), where=xx > 1e-12 * max(float(stt[-1]), 1e-300))
    return np.maximum(yy - slope * xy, 0.0)


def _finite(*series: Array) -> tuple[Array, ...]:
    arrays = [np.asarray(one, dtype=np.float64) for one in series]
    kept = np.isfinite(np.stack(arrays)).all(0) if arrays else np.zeros(0, bool)
    return tuple(one[kept] for one in arrays)


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else math.nan
