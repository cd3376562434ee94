"""What a finished run says, in the numbers that a comparison is about, at matched step and at matched reward.

Matched step: the mean of the evaluations in the last third of the updates.

Matched reward: of two runs of one seed, each metric is read where the held-out pass@1 is the same.
1. pass@1 over the evaluations of a run is made to rise: neighbours that fall are pooled into their mean until none does (isotonic least
   squares, pool adjacent violators). Steps and metrics are averaged over the same pools. Each pool is a knot.
2. Between knots a metric is a monotone cubic of pass@1 (Fritsch-Carlson). Straight lines would cut the corners of a bent path, more so
   for the run whose evaluations lie farther apart in reward, and so make a difference where there is none.
3. The common range is from the higher of the two first knots to the lower of the two last ones. The difference is averaged over its
   upper half, where the runs have learned something and both have been. A range below MIN_RANGE compares nothing: NaN.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from isentrope.explain.ledger import ACCOUNTS
from isentrope.tape import Tape

MIN_RANGE = 0.02
"""Common range of pass@1 below which two runs share no reward to be compared at."""
ROUNDING = 1e-9
"""Means of pass@1 that are closer are equal: sums in another order."""
LEVELS = 65
LATE = 2 / 3
"""Evaluations from this share of the updates on are the run's outcome at matched step."""


@dataclass(frozen=True)
class Outcome:
    """One finished run. `evals`: metric -> values at `step`; `train`: column of the tape's steps -> values at each update; `books`: column of
    its entropy ledger -> values at each ledger, empty where none was kept."""

    step: np.ndarray
    evals: Mapping[str, np.ndarray]
    train: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    books: Mapping[str, np.ndarray] = field(default_factory=dict)

    def late(self, metric: str) -> float:
        """Mean over the evaluations in the last third of the updates; NaN where the metric was not measured."""
        if metric not in self.evals or not len(self.step):
            return math.nan
        return float(np.mean(self.evals[metric][self.step >= LATE * self.step.max() - 1e-9]))

    def path(self) -> float:
        """How far the weights went in all, sum of |delta theta|; NaN if that was not recorded."""
        return float(self.train["update/norm"].sum()) if "update/norm" in self.train else math.nan

    def tokens(self) -> float:
        """Tokens sampled in all, with what a method samples in addition."""
        extra = [values for name, values in self.train.items() if name.endswith("extra_tokens")]
        return float(sum(np.nansum(values) for values in (self.train.get("tokens", np.array([math.nan])), *extra))) if "tokens" in self.train else math.nan

    def stride(self, skip: int = 0) -> float:
        """Mean of |delta theta| per unit of learning rate over the updates after the first `skip`; NaN if not recorded."""
        if "update/norm" not in self.train:
            return math.nan
        norm, rate = (self.train[name][skip:] for name in ("update/norm", "learning_rate"))
        return float((norm[rate > 0] / rate[rate > 0]).mean()) if (rate > 0).any() else math.nan


TRAIN = ("step", "entropy/mean", "reward/mean", "update/norm", "learning_rate", "tokens", "seconds", "isentrope/extra_tokens", "trl/isentrope/extra_tokens")

BOOKS = ("measured", *(f"account/{name}" for name in ACCOUNTS))


def read(directory: Path) -> Outcome:
    """The outcome of the run in `directory`. Raises UserError if its tape cannot be read."""
    tape = Tape.read(directory)
    evals, steps = tape.evals, tape.steps.sort("step")
    at = np.unique(evals["step"].to_numpy()) if len(evals) else np.zeros(0)
    metrics = {}
    for metric in evals["metric"].unique().to_list() if len(evals) else ():
        rows = evals.filter(evals["metric"] == metric).sort("step")
        if len(rows) == len(at):
            metrics[metric] = rows["value"].to_numpy().astype(float)
    train = {name: steps[name].to_numpy().astype(float) for name in TRAIN if name in steps.columns and len(steps)}
    train |= {name: steps[name].to_numpy().astype(float) for name in steps.columns if name.startswith("touch/")}
    ledger = tape.table("ledger")
    books = {name: ledger[name].to_numpy().astype(float) for name in BOOKS if name in ledger.columns and len(ledger)}
    path = directory / "summary.json"
    return Outcome(at.astype(float), metrics, train, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}, books)


def states(directory: Path, key: str) -> dict[str, list[float | None]]:
    """The recorded state of one link of a run's chain, entry -> its value after 0, 1, 2, ... updates (None where it had none yet)."""
    steps = Tape.read(directory).steps.sort("step")
    stem = f"state/{key}/"
    columns = [name for name in steps.columns if name.startswith(stem)]
    return {name.removeprefix(stem): [None if value is None else float(value) for value in steps[name].to_list()] for name in columns}


# --- matched reward


def knots(outcome: Outcome, *metrics: str) -> dict[str, np.ndarray]:
    """Rising pass@1 with step and `metrics` averaged over the same pools of evaluations."""
    columns = np.stack([outcome.evals["pass@1"], outcome.step, *(outcome.evals[metric] for metric in metrics)])
    pools: list[list[int]] = []
    for at in range(columns.shape[1]):
        pools.append([at])
        while len(pools) > 1 and columns[0, pools[-2]].mean() >= columns[0, pools[-1]].mean() - ROUNDING:
            last = pools.pop()
            pools[-1] += last
    return dict(zip(("pass@1", "step", *metrics), np.stack([columns[:, pool].mean(1) for pool in pools], axis=1), strict=True))


def matched(one: Outcome, other: Outcome, metric: str) -> float:
    """Mean difference of `metric` ("step": of the updates needed), one less other, over the upper half of the common range of pass@1."""
    names = () if metric == "step" else (metric,)
    if any(name not in run.evals for run in (one, other) for name in ("pass@1", *names)):
        return math.nan
    a, b = knots(one, *names), knots(other, *names)
    low, high = max(a["pass@1"][0], b["pass@1"][0]), min(a["pass@1"][-1], b["pass@1"][-1])
    if high - low < MIN_RANGE:
        return math.nan
    levels = np.linspace((low + high) / 2, high, LEVELS)
    return float(np.mean(_along(a, metric, levels) - _along(b, metric, levels)))


def _along(knots: Mapping[str, np.ndarray], metric: str, levels: np.ndarray) -> np.ndarray:
    """The metric at these levels of pass@1, inside the knots' range."""
    return PchipInterpolator(knots["pass@1"], knots[metric])(levels)


def common(one: Outcome, other: Outcome) -> tuple[float, float]:
    """The range of pass@1 over which `matched` averages; (NaN, NaN) where it is too narrow."""
    if "pass@1" not in one.evals or "pass@1" not in other.evals:
        return math.nan, math.nan
    a, b = knots(one)["pass@1"], knots(other)["pass@1"]
    low, high = max(a[0], b[0]), min(a[-1], b[-1])
    return (math.nan, math.nan) if high - low < MIN_RANGE else ((low + high) / 2, high)
