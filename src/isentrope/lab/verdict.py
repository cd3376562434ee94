"""A verdict per method, in words that are defined here and nowhere else.

Judged are held-out pass@1 and pass@k at matched step, against the baseline and against the method's placebo (four tests a method), all
in one Holm family over the page. A difference is "found" if its corrected p value is at most 0.05.

| word | when |
|---|---|
| helps | better than the baseline in pass@1 or pass@k, worse in neither; and better than its placebo in one of those it is better in |
| hurts | worse than the baseline in pass@1 or pass@k, better in neither; worse than its placebo in one of those; and not the next |
| slower learning only | as "hurts", in pass@1; and at matched reward no metric differs from the baseline (Holm over the method's own tests there) |
| trades | better than the baseline in one of pass@1 and pass@k, worse in the other; and apart from its placebo in one of them |
| same as its placebo | differs from the baseline, but nowhere from its placebo in what it differs in: its budget does it, not its choice |
| no difference found | differs from the baseline in neither; the sentence says how large a difference could have been seen |
| same computation | every run equals the baseline's to the last bit: the method changed nothing here |
| not judged | fewer than MIN_PAIRS seeds in common with the baseline |

A method without a placebo (it treats all tokens alike) is judged against the baseline alone, and the sentence says so. An absence of a
found difference is not a proof of equality: "slower learning only" and "same as its placebo" rest on such absences, so they state
what could have been seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from isentrope.lab.statistics import ALPHA, Difference, holm

MIN_PAIRS = 3
WORDS = ("helps", "hurts", "slower learning only", "trades", "same as its placebo", "no difference found", "same computation", "not judged")


@dataclass(frozen=True)
class Verdict:
    """`word` is one of WORDS; `because` says why with figures; `entropy` what the method does to entropy at the same reward."""

    word: str
    because: str
    entropy: str = ""


def judge(base: Mapping[str, Difference], sham: Mapping[str, Difference] | None, matched: Mapping[str, Difference]) -> Verdict:
    """The verdict of one method. base, sham: outcome -> difference at matched step to the baseline and the placebo (None: it has none);
    matched: metric -> difference to the baseline at matched reward."""
    entropy = _entropy(matched.get("entropy"))
    pairs = min((item.pairs for item in base.values()), default=0)
    if pairs < MIN_PAIRS:
        return Verdict("not judged", f"{pairs} seed{'' if pairs == 1 else 's'} in common with the baseline; at least {MIN_PAIRS} are needed.", entropy)
    if all(item.identical for item in base.values()):
        return Verdict("same computation", "On every seed its figures equal the baseline's exactly: with this setting it changed nothing here.", entropy)
    better = [name for name, item in base.items() if item.found > 0]
    worse = [name for name, item in base.items() if item.found < 0]
    if not better and not worse:
        return Verdict("no difference found", f"Differences to the baseline of {_seen(base)} would have been seen four times in five.", entropy)
    differs = f"Against the baseline {_listed(base, [*better, *worse])}"
    usable = None if sham is None or min((item.pairs for item in sham.values()), default=0) < MIN_PAIRS else sham
    apart = [name for name in (*better, *worse) if usable is not None and usable[name].found == base[name].found]
    if usable is not None and not apart:
        return Verdict(
            "same as its placebo",
            f"{differs}; against its placebo {_listed(usable, [*better, *worse])}, not found to differ (differences of {_seen(usable)} would have been seen).",
            entropy,
        )
    against = f"; against its placebo {_listed(usable, apart)}." if usable is not None else _unplaced(sham)
    if better and worse:
        return Verdict("trades", differs + against, entropy)
    if better:
        return Verdict("helps", differs + against, entropy)
    if "pass@1" in worse and same_path(matched):
        return Verdict("slower learning only", f"{differs}{against} At the same reward nothing differs ({_seen(matched)} would have been seen).", entropy)
    return Verdict("hurts", differs + against, entropy)


def _unplaced(sham: Mapping[str, Difference] | None) -> str:
    why = "it treats all tokens alike and has no placebo" if sham is None else "too few runs of its placebo have finished"
    return f"; {why}, so that its choice of tokens is the cause is not shown."


def same_path(matched: Mapping[str, Difference]) -> bool:
    """Whether every metric could be compared at matched reward and none differs, by Holm over these tests alone."""
    tests = list(matched.values())
    if not tests or any(item.pairs < MIN_PAIRS for item in tests):
        return False
    return all(p > ALPHA for p in holm([item.p for item in tests]))


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign.

    >>> signed(-0.0213)
    '−0.021'
    """
    if math.isnan(value):
        return "—"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−")


def with_interval(item: Difference, digits: int = 3) -> str:
    """Mean and, where there is one, its interval.

    >>> with_interval(Difference(0.05, 0.01, 0.09, 0.04, 6, 5.0, 0.01))
    '+0.050 [+0.010, +0.090]'
    """
    if math.isnan(item.low):
        return signed(item.mean, digits)
    return f"{signed(item.mean, digits)} [{signed(item.low, digits)}, {signed(item.high, digits)}]"


def chance(p: float) -> str:
    """A corrected p value in words.

    >>> chance(0.0312), chance(3e-9)
    ('corrected p 0.031', 'corrected p < 0.001')
    """
    return "corrected p < 0.001" if p < 0.001 else f"corrected p {p:.2g}"


def _listed(found: Mapping[str, Difference], names: list[str]) -> str:
    return " and ".join(f"{with_interval(found[name])} {name} ({chance(found[name].adjusted)})" for name in names)


def _seen(found: Mapping[str, Difference]) -> str:
    return ", ".join(f"{item.detectable:.2g} {_unit(name)}" for name, item in found.items() if not math.isnan(item.detectable)) or "no known size"


def _unit(name: str) -> str:
    return {"entropy": "nats", "length": "tokens"}.get(name, name)


def _entropy(item: Difference | None) -> str:
    if item is None or item.pairs < MIN_PAIRS:
        return ""
    if item.identical:
        return "Entropy at the same reward is the baseline's."
    if not item.found:
        return f"Entropy at the same reward: no difference found ({with_interval(item)} nats; {item.detectable:.2g} would have been seen)."
    return f"Entropy at the same reward is {'higher' if item.found > 0 else 'lower'}: {with_interval(item)} nats ({chance(item.adjusted)})."
