"""A run's law R = -a exp(H) + b from its tape: which entropy against which performance, and the figures for summary.json.

Two pairs, never mixed, each with an entropy of its own responses:

    reward    mean reward against mean token entropy of the training responses, one point per update      (steps)
    pass@1    pass@1 against mean token entropy of the held-out responses, one point per evaluation       (evals)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isentrope.explain import laws
from isentrope.explain.fitting import Estimate, Fit

PAIRS = ("reward", "pass@1")
OF = {"reward": "training responses, one point per update", "pass@1": "held-out responses, one point per evaluation"}
ENTROPY = {"reward": "steps.entropy/mean", "pass@1": "evals.entropy"}
"""The tape column whose provenance is that of the pair's entropy."""
MOST = 2000
"""Points of a pair; more updates than that are averaged in so many equal bins, so that a long run's page stays a matter of seconds."""
KEYS = {laws.LAW.name: "exp", laws.LINEAR.name: "linear", laws.SATURATING.name: "saturating", laws.BLIND: "ahead", laws.LEVEL.name: "last"}
"""A forecast's method, as summary.json names it."""


@dataclass(frozen=True)
class Pair:
    """Entropy in nats and performance of the same responses, by update; NaN where one is missing."""

    step: np.ndarray
    entropy: np.ndarray
    performance: np.ndarray


def pair(name: str, steps: pl.DataFrame, evals: pl.DataFrame) -> Pair:
    """One of PAIRS from a tape's tables; of length 0 where they do not hold it."""
    if name == "reward":
        return _binned(Pair(*(_column(steps, column) for column in ("step", "entropy/mean", "reward/mean"))))
    if not {"step", "metric", "value"} <= set(evals.columns):
        return Pair(*(np.zeros(0),) * 3)
    rows = {metric: evals.filter(pl.col("metric") == metric).unique("step", keep="last").sort("step") for metric in ("entropy", "pass@1")}
    joined = rows["pass@1"].join(rows["entropy"], on="step", how="inner", suffix=".entropy").sort("step")
    return Pair(*(_column(joined, column) for column in ("step", "value.entropy", "value")))


def law_figures(steps: pl.DataFrame, evals: pl.DataFrame, total: float | None = None) -> dict[str, Any]:
    """`law.PAIR.a`, `.b`, `.ceiling` with `.low` and `.high`, how well it fits, what its forecasts were worth, and the stage of the run.

    total: planned updates (None: those on the tape). What could not be fitted is absent, with `law.PAIR.problem` saying why.
    """
    found: dict[str, Any] = {}
    for name in PAIRS:
        data = pair(name, steps, evals)
        if not len(data.step):
            continue
        fitted = laws.law(data.entropy, data.performance)
        found |= {f"law.{name}.of": OF[name], f"law.{name}.points": len(fitted.y)}
        found |= {f"law.{name}.{key}": value for key, value in _fit_figures(fitted)}
        for one in laws.forecasts(data.step, data.entropy, data.performance, total=total):
            found |= {f"law.{name}.{KEYS[one.method]}.{round(100 * one.share)}.{key}": value for key, value in _forecast_figures(one)}
    data = pair("reward", steps, evals)
    stages = laws.stages(data.step, data.entropy)
    if stages.problem is None:
        found |= {"law.stage": stages.stage, **{f"law.{key}": value for key, value in _estimate("plateau", stages.plateau)}}
    return found


def _fit_figures(fitted: Fit) -> Iterator[tuple[str, Any]]:
    if fitted.problem is not None:
        yield "problem", fitted.problem
        return
    for name, value in (("a", fitted["a"]), ("b", fitted["b"]), ("ceiling", laws.ceiling(fitted))):
        yield from _estimate(name, value)
    yield from _finite("rmse", fitted.rmse)
    yield from _finite("r2", fitted.r_squared)


def _forecast_figures(one: laws.Forecast) -> Iterator[tuple[str, Any]]:
    if one.problem is not None:
        return
    for key, value in (("rmse", one.rmse), ("coverage", one.coverage)):
        yield from _finite(key, value)
    if one.method in (laws.LAW.name, laws.BLIND):
        yield from _estimate("end", one.end)
        yield from _finite("end.happened", one.end_happened)


def _estimate(name: str, value: Estimate) -> Iterator[tuple[str, float]]:
    for key, number in ((name, value.value), (f"{name}.low", value.low), (f"{name}.high", value.high)):
        yield from _finite(key, number)


def _finite(key: str, value: float) -> Iterator[tuple[str, float]]:
    if math.isfinite(value):
        yield key, value


def _binned(data: Pair) -> Pair:
    """At most MOST points: means of neighbours. A bin with a value that is missing is missing."""
    if len(data.step) <= MOST:
        return data
    cuts = np.linspace(0, len(data.step), MOST + 1).astype(int)[:-1]
    sizes = np.diff(np.append(cuts, len(data.step)))
    return Pair(*(np.add.reduceat(series, cuts) / sizes for series in (data.step, data.entropy, data.performance)))


def _column(frame: pl.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(len(frame), math.nan)
    return frame[name].cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy()
