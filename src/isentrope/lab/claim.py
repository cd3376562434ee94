"""A paper's central claim as an experiment: what is said, what is measured here, and a verdict whose rule stands before the numbers.

A claim lists what it expects of its measurements, each as a band that the 95 % interval must lie in; the first expectation is the
central one. The rule is the same for all papers:

| verdict | when |
|---|---|
| confirmed | every expectation holds |
| refuted | the central one fails (its whole interval lies outside its band), or nothing holds and something fails |
| out of reach here | all are open, or the claim says why no small experiment can tell |
| partly | all else: the central one holds and another does not, or it is open and another holds |

An expectation is open where the interval reaches both into its band and out of it.
"""

import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from isentrope.errors import UserError

Word = Literal["confirmed", "partly", "refuted", "out of reach here"]
WORDS: tuple[str, ...] = get_args(Word)
Outcome = Literal["holds", "fails", "open"]


@dataclass(frozen=True)
class Measurement:
    """A number of ours with its 95 % interval. `of`: what the interval is over ("20 seeds"), or "exact" where it is none.

    Ends that are infinite mean that one repetition says nothing about its spread.
    """

    key: str
    what: str
    value: float
    low: float
    high: float
    unit: str
    of: str

    def __str__(self) -> str:
        ends = "" if self.of == "exact" else f" [{number(self.low)}, {number(self.high)}]"
        return f"{number(self.value)}{ends}{' ' + self.unit if self.unit else ''}"


def exact(key: str, what: str, value: float, unit: str = "") -> Measurement:
    """A number without sampling error: a closed form, an enumeration, or a finite difference of one."""
    return Measurement(key, what, float(value), float(value), float(value), unit, "exact")


def over(key: str, what: str, values: Sequence[float] | np.ndarray, unit: str = "", of: str = "seeds") -> Measurement:
    """The mean of independent repetitions with Student's 95 % interval.

    One repetition, or one that is no number, gives an interval that excludes nothing. Raises UserError for none.
    """
    found = np.asarray(values, dtype=float)
    if not found.size:
        raise UserError(f"{key}: there is not one of the {of}, so nothing was measured. Ask for at least two: --seeds 2.")
    mean = float(found.mean())
    if found.size < 2 or not np.isfinite(found).all():
        return Measurement(key, what, mean, -math.inf, math.inf, unit, f"{found.size} {of}")
    from scipy.stats import t

    half = float(t.ppf(0.975, found.size - 1)) * float(found.std(ddof=1)) / math.sqrt(found.size)
    return Measurement(key, what, mean, mean - half, mean + half, unit, f"{found.size} {of}")


def number(value: float) -> str:
    """A number as it stands in a table: three significant digits, a minus sign, infinity as a sign.

    >>> number(-0.012345), number(1234.5), number(0.0)
    ('−0.0123', '1234', '0')
    """
    if math.isnan(value):
        return "no number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{size:.0f}" if size >= 1000 else f"{size:.2e}" if 0 < size < 1e-4 else f"{size:.3g}"
    return f"−{text}" if value < 0 and float(text) != 0 else text


@dataclass(frozen=True)
class Expect:
    """What the claim says of the measurement `key`: that it lies inside (low, high), ends not included. `says` is the same in words, ending a
    sentence "... if". No difference at all is no difference in the claim's favour."""

    key: str
    says: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"Expect {self.key}: low must lie below high. Got {self.low} and {self.high}.")

    def outcome(self, found: Measurement) -> Outcome:
        if math.isnan(found.value):
            return "open"
        if self.low < found.low and found.high < self.high:
            return "holds"
        return "fails" if found.high <= self.low or found.low >= self.high else "open"


@dataclass(frozen=True)
class Verdict:
    """One word, and the outcome of every expectation in order."""

    word: Word
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Picture:
    """A chart (a specification of `report.figure`) with its title and how to read it."""

    title: str
    chart: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What an experiment brought: measurements by key, one or two pictures, and what else a reader must know."""

    measurements: tuple[Measurement, ...]
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        keys = [item.key for item in self.measurements]
        if len(set(keys)) < len(keys):
            raise ValueError(f"Findings: every measurement needs a key of its own. Got {', '.join(keys)}.")

    def by_key(self) -> dict[str, Measurement]:
        return {item.key: item for item in self.measurements}


@dataclass(frozen=True)
class Claim:
    """One paper's central claim and the experiment that puts it to the test.

    sentence: the claim. figure: the paper's figure and its scale. source: where that stands. ours: what is done here.
    scale: of ours (model or bandit, steps, seeds). minutes: it takes on one core. measure: the experiment.
    expects: the rule, the central expectation first. reach: why no small experiment can tell; then `expects` is empty.
    untested: what of the claim is left aside. seeds: repetitions. trains: whether it trains the embedded model (then it needs `isentrope[trl]`).
    """

    slug: str
    title: str
    sentence: str
    figure: str
    source: str
    ours: str
    scale: str
    minutes: float
    measure: Callable[[Any], Findings]
    expects: tuple[Expect, ...] = ()
    reach: str = ""
    untested: str = ""
    seeds: int = 20
    trains: bool = False

    def __post_init__(self):
        if bool(self.expects) == bool(self.reach):
            raise ValueError(f"claim {self.slug}: either `expects` says what decides, or `reach` says why nothing small can.")

    def verdict(self, found: Findings) -> Verdict:
        """The word that the rule gives these findings.

        Raises KeyError for an expectation without a measurement.
        """
        if self.reach:
            return Verdict("out of reach here", ())
        known = found.by_key()
        outcomes: tuple[Outcome, ...] = tuple([item.outcome(known[item.key]) for item in self.expects])
        return Verdict(decide(outcomes), outcomes)

    def rule(self) -> list[str]:
        """The rule in sentences."""
        if self.reach:
            return [f"No verdict can be had here: {self.reach}"]
        central, *others = (item.says for item in self.expects)
        also = f" and {' and '.join(others)}" if others else ""
        return [
            f"Confirmed if {central}{also}, each with its whole 95 % interval.",
            f"Refuted if the interval excludes that {central}{', or if nothing of this holds and something is excluded' if others else ''}.",
            f"Out of reach here if {'every' if others else 'the'} interval leaves both open{'; partly in all other cases' if others else ''}.",
        ]

    def fingerprint(self) -> str:
        """Of the claim's own file: a result of another version of the experiment is not taken for this one's."""
        module = sys.modules.get(self.measure.__module__)
        text = inspect.getsource(module) if module is not None else self.slug
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def decide(outcomes: Sequence[Outcome]) -> Word:
    """The verdict from the outcomes of the expectations, the central one first.

    >>> decide(["holds", "holds"]), decide(["fails", "holds"]), decide(["open", "holds"]), decide(["open"])
    ('confirmed', 'refuted', 'partly', 'out of reach here')
    """
    if all(item == "holds" for item in outcomes):
        return "confirmed"
    if all(item == "open" for item in outcomes):
        return "out of reach here"
    return "refuted" if outcomes[0] == "fails" or "holds" not in outcomes else "partly"
