"""Charts of experiments: a line per arm with its 95 % interval over seeds, along updates or along reward."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isentrope.lab.claim import Picture, over
from isentrope.report.figure import line, lines

COLOURS = ("muted", "entropy", "learn", "minus", "plus", "good")
"""Roles of the palette, the baseline's first."""


BANDS = "Mean over seeds, with 95 % intervals."


def learning(arms: Mapping[str, Sequence[Any]], what: str = "reward", *, title: str = "Learning", y: str = "expected reward", note: str = BANDS) -> Picture:
    """A figure along the updates, a line per arm."""
    return Picture(title, bands(arms, "update", what, x="update", y=y), note)


def exchange(arms: Mapping[str, Sequence[Any]]) -> Picture:
    """Entropy at equal expected reward, a line per arm."""
    return Picture("Entropy as reward rises", bands(arms, "reward", "entropy", x="expected reward", y="token entropy, nats"), BANDS)


def bands(arms: Mapping[str, Sequence[Any]], along: str, what: str, *, x: str, y: str, unit: str = "number") -> dict[str, Any]:
    """One line per arm (the baseline first) of histories that hold arrays by name. along: "update", or "reward" for a comparison at equal reward.

    At a reward that less than half of the seeds reach nothing is drawn.
    """
    if along == "update":
        return curves({name: (found[0]["update"], [history[what] for history in found]) for name, found in arms.items()}, x=x, y=y, unit=unit)
    every = [history for found in arms.values() for history in found]
    grid = np.linspace(max(history["reward"][0] for history in every), max(history["reward"].max() for history in every), 25)
    at_equal = {name: (grid, [np.array([history.at(level, what) for level in grid]) for history in found]) for name, found in arms.items()}
    return curves(at_equal, x=x, y=y, unit=unit)


def curves(arms: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]], *, x: str, y: str, unit: str = "number", rule: float | None = None) -> dict[str, Any]:
    """One line per arm from (x, one array per seed): the mean of the seeds that have a value there, with Student's interval."""
    series = []
    for colour, (name, (places, values)) in zip(COLOURS, arms.items(), strict=False):
        table = np.array(values, dtype=float)
        mean, low, high = (np.full(len(places), np.nan) for _ in range(3))
        for at in range(len(places)):
            column = table[:, at][np.isfinite(table[:, at])]
            if 2 * len(column) >= len(table):
                found = over(name, name, column)
                mean[at] = found.value
                if len(column) > 1:
                    low[at], high[at] = found.low, found.high
        kept = np.isfinite(mean)
        few = bool(kept.sum() < 15)
        series.append(
            line(
                name, np.asarray(places, dtype=float)[kept], mean[kept], colour, low=low[kept], high=high[kept], band="95 % interval", label=name, marks=few
            )
        )  # fmt: skip
    return lines(series, x=x, y=y, unit=unit, zero=False, rule=rule)
