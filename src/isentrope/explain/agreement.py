"""How well a prediction agrees with what was measured over the updates of a run: correlation, slope and agreement of signs, with intervals.

Neighbouring updates share momentum and nearly all weights, so intervals of correlation and slope resample blocks of neighbours (circular block
bootstrap, Politis and Romano 1992, block of n^(1/3) updates) and keep pairs together; that of the signs is Wilson's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; NaN where the data define none."""

    value: float
    low: float
    high: float


NOTHING = Figure(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Agreement:
    """Of `updates` pairs: Pearson's correlation, the share with equal signs, and the least-squares slope of measured on predicted."""

    correlation: Figure
    sign_agreement: Figure
    slope: Figure
    updates: int

    def figures(self) -> dict[str, Figure]:
        return {"correlation": self.correlation, "sign_agreement": self.sign_agreement, "slope": self.slope}


def agreement(predicted: Float[np.ndarray, " update"], measured: Float[np.ndarray, " update"], *, resamples: int = 2000, seed: int = 0) -> Agreement:
    """Their agreement; pairs with a NaN are left out. Fewer than 3 pairs, or a prediction that never varies, define no slope or correlation.

    >>> x = np.arange(20.0) - 3
    >>> found = agreement(x, 2 * x)
    >>> found.correlation.value, found.slope.value, found.sign_agreement.value
    (1.0, 2.0, 1.0)
    """
    predicted, measured = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    kept = np.isfinite(predicted) & np.isfinite(measured)
    x, y = predicted[kept], measured[kept]
    correlation, slope = _line(x[None], y[None])
    signs = _signs(x, y)
    if len(x) < 3 or not np.isfinite(correlation[0] + slope[0]):
        slope_alone = Figure(float(slope[0]), math.nan, math.nan) if len(x) >= 3 and np.isfinite(slope[0]) else NOTHING
        return Agreement(NOTHING, signs, slope_alone, len(x))
    rows = _blocks(len(x), resamples, seed)
    spread = _line(x[rows], y[rows])
    return Agreement(_figure(correlation[0], spread[0]), signs, _figure(slope[0], spread[1]), len(x))


def by_thirds(steps: Shaped[np.ndarray, " update"], predicted: Float[np.ndarray, " update"], measured: Float[np.ndarray, " update"]) -> Mapping[str, Agreement]:
    """The agreement over the whole ("all") and over the first, second and last third of the updates, as they are counted."""
    order = np.argsort(np.asarray(steps), kind="stable")
    predicted, measured = np.asarray(predicted, dtype=float)[order], np.asarray(measured, dtype=float)[order]
    found = {"all": agreement(predicted, measured)}
    for name, rows in zip(THIRDS, np.array_split(np.arange(len(order)), 3), strict=True):
        found[name] = agreement(predicted[rows], measured[rows])
    return found


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[sample] correlation and slope of y on x of every row; NaN where x, or y for the correlation, does not vary."""
    x, y = x - x.mean(-1, keepdims=True) if x.size else x, y - y.mean(-1, keepdims=True) if y.size else y
    xx, yy, xy = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where((xx > 0) & (yy > 0), xy / np.sqrt(xx) / np.sqrt(yy), np.nan)
        return np.clip(correlation, -1, 1), np.where(xx > 0, xy / xx, np.nan)


def _blocks(count: int, resamples: int, seed: int) -> np.ndarray:
    """[resample, count] rows, drawn in circular blocks of neighbours."""
    size = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(seed).integers(count, size=(resamples, -(-count // size)))
    return ((starts[:, :, None] + np.arange(size)) % count).reshape(resamples, -1)[:, :count]


def _figure(value: float, spread: np.ndarray) -> Figure:
    low, high = np.nanquantile(spread, [0.025, 0.975])
    return Figure(float(value), float(low), float(high))


def _signs(x: np.ndarray, y: np.ndarray) -> Figure:
    """Share of pairs of one sign, among those of which not both are 0, with Wilson's interval."""
    some = (x != 0) | (y != 0)
    count = int(some.sum())
    if not count:
        return NOTHING
    share, z = float((np.sign(x) == np.sign(y))[some].mean()), 1.959964
    middle, reach = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Figure(share, max(0.0, (middle - reach) / (1 + z * z / count)), min(1.0, (middle + reach) / (1 + z * z / count)))


def ledger_figures(columns: Mapping[str, np.ndarray]) -> dict[str, float | int | None]:
    """The summary of a run's ledgers: what is on the tape's table `ledger`, column by column, as flat figures; an undefined one is None.

    `ledger.THEORY.correlation | sign_agreement | slope`, each with `.low` and `.high`, and of each third of the run as `.early`, `.middle`, `.late`;
    `ledger.account.NAME`: nats per update with a ledger, and `ledger.account.NAME.share` of the measured change. Empty without ledgers.
    """
    steps, measured = columns["step"], columns["measured"]
    if not len(steps):
        return {}
    found: dict[str, float] = {"ledger.updates": len(steps), "ledger.measured": float(np.nanmean(measured)) if np.isfinite(measured).any() else math.nan}
    for name in sorted(columns):
        if name.startswith("account/"):
            account = f"ledger.account.{name.removeprefix('account/')}"
            found[account] = float(columns[name].mean())
            found[f"{account}.share"] = float(columns[name].sum() / measured.sum()) if measured.sum() else math.nan
        if name.startswith("theory/"):
            for third, agreed in by_thirds(steps, columns[name], measured).items():
                for figure, value in agreed.figures().items():
                    key = f"ledger.{name.removeprefix('theory/')}.{figure}" + ("" if third == "all" else f".{third}")
                    found |= {key: value.value, f"{key}.low": value.low, f"{key}.high": value.high}
    return {key: value if math.isfinite(value) else None for key, value in found.items()}
