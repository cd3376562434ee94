"""Claims whose experiment is a recipe's own (`isentrope recipe NAME`): its arms on the bench's seeds, made once and kept."""

from collections.abc import Sequence

import numpy as np

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Picture
from isentrope.lab.pictures import curves
from isentrope.lab.recipes import Rows, run

SEEN = (
    "The figures of this experiment stood in the documentation (Recipes on SFT and DPO trainers, seeds 0 and up) before the expectations were "
    "written down as bands, so the verdict only says what those figures mean."
)


def measured(bench: Bench, name: str) -> Rows:
    """arm -> seed -> figure -> value."""
    return run(name, bench.runs / f"recipe-{name}", seeds=bench.seeds, show=bench.tell)["rows"]


def values(rows: Rows, figure: str, arm: str) -> list[float]:
    """One per seed."""
    return [found[figure] for _, found in sorted(rows[arm].items(), key=lambda item: int(item[0]))]


def gaps(rows: Rows, figure: str, arm: str, base: str) -> list[float]:
    """`arm` less `base`, one per seed."""
    return [one - other for one, other in zip(values(rows, figure, arm), values(rows, figure, base), strict=True)]


def picture(rows: Rows, figure: str, arms: Sequence[str], *, title: str, y: str) -> Picture:
    """A line per arm over the seeds: the arms of one seed have the same start and data."""
    lines = {arm: (np.arange(len(rows[arm]), dtype=float), [np.array(values(rows, figure, arm))]) for arm in arms}
    return Picture(title, curves(lines, x="seed", y=y), "Arms of one seed have the same start and the same data.")
