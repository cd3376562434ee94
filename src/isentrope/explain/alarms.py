"""Alarms: streaming detectors over a run, each of which names a number, a cause and a knob.

    collapse             entropy is being spent: under half of its opening, falling, and forecast to reach `spent` of it before the run ends
    explosion            entropy rises past `rise` times its opening
    few-tokens           a handful of sampled tokens holds nearly all of the predicted push on entropy (the covariance with the update)
    equal-groups         nearly all groups have equal rewards: their advantages are 0
    narrowing            entropy fell since the best evaluation, and pass@k with it, by more than its interval
    touches-nothing      a mask or clip of the chain changes no token
    touches-everything   it changes every token; or the objective's own clip takes the gradient of most

A detector is a frozen dataclass of its thresholds. What it remembers is an explicit state of plain floats, lists and bools, so a resumed run
goes on exactly. It rings once an episode: when its condition has held for `patience` observations, and again only after the milder condition
of its end has held as long (hysteresis). Pure Python floats, no randomness. The thresholds are ours (inferred): no paper fixes them.

The trend behind the first two: opening = mean entropy of the first OPENING updates; a straight line through ln H of the last WINDOW updates
against the update (H falls at a steady rate) and one against its logarithm (H falls as a power of the update, ever more slowly); a collapse is
expected between the two. The standard error of a slope is widened by sqrt((1 + rho) / (1 - rho)), rho the correlation of neighbouring residuals,
held at 0.9.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

State = dict[str, Any]
"""What a detector remembers: JSON takes it as it is."""

OPENING, WINDOW, LEAST = 5, 20, 10
"""Updates of the opening entropy; of the trend's line, at most and at least."""
TOP = 3
"""Tokens that an alarm names."""


@dataclass(frozen=True)
class Push:
    """A sampled token: its text, the predicted push of its gradient on entropy (nats, first order), its advantage."""

    text: str
    push: float
    advantage: float


@dataclass(frozen=True)
class Seen:
    """What an update shows. row: the tape's row of `steps`. pushes: the tokens sampled in this update, none in most. evaluation: metric ->
    (value, low, high), where there was one after this update."""

    step: int
    row: Mapping[str, float] = field(default_factory=dict)
    pushes: Sequence[Push] = ()
    evaluation: Mapping[str, tuple[float, float, float]] | None = None

    def value(self, name: str) -> float | None:
        """A number of the row, or None where it is missing or not finite."""
        found = self.row.get(name)
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


@dataclass(frozen=True)
class Alarm:
    """One ring, or the end of an episode (`over`). knobs: what to set, as `--set` takes it, the mildest first."""

    name: str
    step: int
    number: str
    cause: str = ""
    knobs: tuple[str, ...] = ()
    about: str = ""  # the link of the chain that it is about
    over: bool = False

    def sentence(self) -> str:
        """All of it in words."""
        about = f" ({self.about})" if self.about else ""
        if self.over:
            return f"{self.name}{about} is over: {self.number}."
        return f"{self.name}{about}: {self.number}. Cause: {self.cause}. Knob: {' or '.join(self.knobs)}."


class Detector(Protocol):
    """`init()` is the state before the first update; `update` gives the state after one, and the alarm that it made ring, if any."""

    @property
    def key(self) -> str: ...
    def init(self) -> State: ...
    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]: ...


# --- episodes


def turned(state: State, bad: bool, well: bool, patience: int) -> tuple[State, bool | None]:
    """State after an observation, and True if an episode begins with it, False if one ends, None if neither."""
    on = state["on"]
    held = state["held"] + 1 if (well if on else bad) else 0
    if held < patience:
        return {**state, "held": held}, None
    return {**state, "on": not on, "held": 0}, not on


QUIET: State = {"on": False, "held": 0}


# --- the trend of entropy


@dataclass(frozen=True)
class Line:
    """A straight line: its value at the last point, its slope with two standard errors either side."""

    last: float
    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """Entropy now (nats), its opening, and the lines through ln H against the update and against the update's logarithm."""

    step: int
    opening: float
    steady: Line
    slackening: Line

    @property
    def now(self) -> float:
        return math.exp(self.steady.last)

    def reaches(self, level: float) -> tuple[float, float]:
        """The first and the last update at which H is to be expected at `level`: falling at its present rate (and two standard errors more), or as a
        power of the update. Infinite if never; now, if it is there."""
        steady, slackening = (math.log(level) - one.last for one in (self.steady, self.slackening))
        if steady >= 0:
            return self.step, self.step
        low, high = self.steady.low, self.slackening.slope
        first = self.step + steady / low if low < 0 else math.inf
        return first, self.step * math.exp(min(min(slackening, 0.0) / high, 700.0)) if high < 0 else math.inf


def remembered(state: State, step: int, entropy: float) -> State:
    """The state with an update's entropy (nats); ln H is held at e^-20 or above."""
    opening = [*state["opening"], entropy] if len(state["opening"]) < OPENING else state["opening"]
    return {**state, "opening": opening, "recent": [*state["recent"], [step, math.log(max(entropy, math.exp(-20)))]][-WINDOW:]}


def trend(state: State) -> Trend | None:
    """The trend, or None while too few updates are known, or the opening entropy is 0."""
    points, opening = state["recent"], math.fsum(state["opening"]) / max(1, len(state["opening"]))
    if len(points) < LEAST or opening <= 0 or points[0][0] < 1:
        return None
    steps, y = [float(step) for step, _ in points], [value for _, value in points]
    return Trend(points[-1][0], opening, line(steps, y), line([math.log(step) for step in steps], y))


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares through points of rising x; the standard error widened for the correlation of neighbouring residuals."""
    n = len(x)
    middle, level = math.fsum(x) / n, math.fsum(y) / n
    across = math.fsum((a - middle) ** 2 for a in x)
    slope = math.fsum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / across
    rest = [b - level - slope * (a - middle) for a, b in zip(x, y, strict=True)]
    squares = math.fsum(r * r for r in rest)
    rho = 0.0 if squares == 0 else min(max(math.fsum(a * b for a, b in zip(rest[1:], rest[:-1], strict=True)) / squares, 0.0), 0.9)
    error = math.sqrt(squares / (n - 2) / across * (1 + rho) / (1 - rho))
    return Line(level + slope * (x[-1] - middle), slope, slope - 2 * error, slope + 2 * error)


NO_TREND: State = {**QUIET, "opening": [], "recent": [], "pushes": [], "sampled": 0}


def _with_sample(state: State, seen: Seen, sign: int) -> State:
    """The state with what this update's token sample says of the push down (sign -1) or up (1)."""
    if not seen.pushes:
        return state
    total = math.fsum(abs(one.push) for one in seen.pushes if one.push * sign > 0)
    rewarded = math.fsum(abs(one.push) for one in seen.pushes if one.push * sign > 0 and one.advantage > 0)
    named = [[text, share] for text, share in _by_text(seen.pushes, sign)][:TOP]
    return {**state, "pushes": named, "rewarded": rewarded / total if total > 0 else math.nan, "sampled": seen.step}


def _by_text(pushes: Sequence[Push], sign: int = 0) -> list[tuple[str, float]]:
    """Texts of tokens with their share of the push of that sign (0: of either), the largest first."""
    sums: dict[str, float] = {}
    for one in pushes:
        if one.push * sign > 0 or (sign == 0 and one.push != 0):
            sums[one.text] = sums.get(one.text, 0.0) + abs(one.push)
    total = math.fsum(sums.values())
    return sorted(((text, value / total) for text, value in sums.items()), key=lambda item: (-item[1], item[0])) if total > 0 else []


def _cause(state: State, way: str) -> str:
    if not state["sampled"]:
        return "not known, no tokens are sampled (tape.tokens_every)"
    if not state["pushes"]:
        return f"no sampled token of update {state['sampled']} pushes it {way}"
    rewarded = state["rewarded"]
    return f"of the push {way} in the sample of update {state['sampled']}, {rewarded:.0%} is on rewarded responses; most on {named(state['pushes'])}"


def named(shares: Sequence[Sequence[Any]]) -> str:
    """Tokens in quotation marks with their shares."""
    return ", ".join(f"{text!r} {share:.0%}" for text, share in shares)


# --- detectors


@dataclass(frozen=True)
class Collapse:
    """Entropy is being spent. spent: share of the opening entropy that counts as spent. end: the last update planned (None: 100 ahead count).
    bonus: the coefficient of the chain's entropy bonus, if it has one."""

    spent: float = 0.25
    end: int | None = None
    bonus: float | None = None
    patience: int = 3
    key = "collapse"

    def init(self) -> State:
        return dict(NO_TREND)

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        state = _with_sample(state, seen, -1)
        entropy = seen.value("entropy/mean")
        if entropy is None:
            return state, None
        state = remembered(state, seen.step, entropy)
        found = trend(state)
        if found is None:
            return state, None
        level = self.spent * found.opening
        soon = found.reaches(level)[0] <= (seen.step + 100 if self.end is None else self.end)
        falling = found.now <= 0.5 * found.opening and found.steady.high < 0 and soon
        well = found.now > 1.5 * level and found.steady.high >= 0
        state, begins = turned(state, found.now <= level or falling, well, self.patience)
        if begins is None:
            return state, None
        number = f"entropy {found.now:.3g} nats, {found.now / found.opening:.0%} of its opening {found.opening:.3g}"
        if not begins:
            return state, Alarm(self.key, seen.step, number, over=True)
        knobs = (f"control=[{{name: entropy-bonus, coef: {2 * self.bonus if self.bonus else 0.01:g}}}]", *_halved(seen))
        return state, Alarm(self.key, seen.step, f"{number}; {self._spent(found, level)}", _cause(state, "down"), knobs)

    def _spent(self, found: Trend, level: float) -> str:
        if found.now <= level:
            return f"it counts as spent at {self.spent:.0%}"
        first, last = found.reaches(level)
        later = "or never" if math.isinf(last) or last > 1e6 else f"and {last:.0f}"
        return f"{self.spent:.0%} is reached between update {first:.0f} (at its present rate) {later} (if it slackens as a power of the update)"


@dataclass(frozen=True)
class Explosion:
    """Entropy rises past `rise` times its opening and goes on, or stands a third above that. bonus: as in `Collapse`."""

    rise: float = 1.5
    bonus: float | None = None
    patience: int = 3
    key = "explosion"

    def init(self) -> State:
        return dict(NO_TREND)

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        state = _with_sample(state, seen, 1)
        entropy = seen.value("entropy/mean")
        if entropy is None:
            return state, None
        state = remembered(state, seen.step, entropy)
        found = trend(state)
        if found is None:
            return state, None
        level = self.rise * found.opening
        bad = (found.now >= level and found.steady.low > 0) or found.now >= 4 / 3 * level
        state, begins = turned(state, bad, found.now < 0.8 * level, self.patience)
        if begins is None:
            return state, None
        number = f"entropy {found.now:.3g} nats, {found.now / found.opening:.1f} times its opening {found.opening:.3g}"
        if not begins:
            return state, Alarm(self.key, seen.step, number, over=True)
        knobs = (f"control=[{{name: entropy-bonus, coef: {self.bonus / 2:g}}}]",) if self.bonus else ()
        return state, Alarm(self.key, seen.step, number, _cause(state, "up"), (*knobs, *_halved(seen)))


@dataclass(frozen=True)
class FewTokens:
    """`count` of the sampled tokens hold at least `share` of the predicted push, of at least `least` tokens."""

    count: int = 5
    share: float = 0.8
    least: int = 50
    patience: int = 2
    key = "few-tokens"

    def init(self) -> State:
        return dict(QUIET)

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        sizes = sorted((abs(one.push) for one in seen.pushes if math.isfinite(one.push)), reverse=True)
        total = math.fsum(sizes)
        if len(sizes) < self.least or total <= 0:
            return state, None
        share = math.fsum(sizes[: self.count]) / total
        state, begins = turned(state, share >= self.share, share < 0.75 * self.share, self.patience)
        if begins is None:
            return state, None
        number = f"{self.count} of {len(sizes)} sampled tokens hold {share:.0%} of the predicted push on entropy"
        cause = f"the largest shares are on {named(_by_text(seen.pushes)[:TOP])}"
        if not begins:
            return state, Alarm(self.key, seen.step, number, over=True)
        return state, Alarm(self.key, seen.step, number, cause, ("control=[{name: clip-cov, ratio: 0.02}]", "tape.token_rows=32 (to see more of them)"))


@dataclass(frozen=True)
class EqualGroups:
    """At least `share` of the groups have equal rewards."""

    share: float = 0.9
    patience: int = 5
    key = "equal-groups"

    def init(self) -> State:
        return dict(QUIET)

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        share = seen.value("reward/zero_std_groups")
        if share is None:
            return state, None
        state, begins = turned(state, share >= self.share, share < 0.75 * self.share, self.patience)
        if begins is None:
            return state, None
        number = f"{share:.0%} of the groups have equal rewards, so advantage 0"
        if not begins:
            return state, Alarm(self.key, seen.step, number, over=True)
        return state, Alarm(self.key, seen.step, number, self._why(seen), ("control=[{name: dynamic-sampling}]", "trl.num_generations=16"))

    def _why(self, seen: Seen) -> str:
        right = seen.value("correct/mean")
        if right is None:
            return "not known, no response was judged"
        if right >= 0.9:
            return f"the task is too easy by now, {right:.0%} of the responses are right"
        if right <= 0.1:
            return f"the task is too hard, {right:.0%} of the responses are right"
        return f"all responses to a prompt fare alike, {right:.0%} are right"


@dataclass(frozen=True)
class Narrowing:
    """Since the evaluation with the best pass@k (the largest k there is), entropy fell and pass@k fell below it by more than its interval."""

    key = "narrowing"

    def init(self) -> State:
        return {**QUIET, "best": None}

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        metric = _largest_k(seen.evaluation)
        if seen.evaluation is None or metric is None or "entropy" not in seen.evaluation:
            return state, None
        (value, low, high), entropy = seen.evaluation[metric], seen.evaluation["entropy"][0]
        if not (math.isfinite(value) and math.isfinite(entropy)):
            return state, None
        best = state["best"]
        if best is None or value >= best["value"]:
            best = {"value": value, "low": low, "entropy": entropy, "step": seen.step}
        state, begins = turned({**state, "best": best}, high < best["value"] and entropy < best["entropy"], value >= best["low"], 1)
        if begins is None:
            return state, None
        number = f"{metric} {value:.3f} (95 %: {low:.3f} to {high:.3f}) against {best['value']:.3f} at update {best['step']}"
        if not begins:
            return state, Alarm(self.key, seen.step, number, over=True)
        cause = f"held-out entropy fell from {best['entropy']:.3g} to {entropy:.3g} nats meanwhile: answers are lost faster than others are won"
        knobs = (f"trl.max_steps={best['step']} (where it was best)", "control=[{name: entropy-bonus, coef: 0.01}]")
        return state, Alarm(self.key, seen.step, number, cause, knobs)


@dataclass(frozen=True)
class Touch:
    """A link of the chain that touches nothing (`everything` False) or everything; link "": the objective's own clip, everything only."""

    link: str
    everything: bool
    patience: int = 10

    @property
    def key(self) -> str:
        return f"touches-{'everything' if self.everything else 'nothing'}:{self.link}"

    def init(self) -> State:
        return dict(QUIET)

    def _share(self, seen: Seen) -> float | None:
        if self.link:
            return seen.value(f"touch/{self.link}")
        low, high = seen.value("clip/low"), seen.value("clip/high")
        return None if low is None or high is None else low + high

    def update(self, state: State, seen: Seen) -> tuple[State, Alarm | None]:
        share = self._share(seen)
        if share is None:
            return state, None
        full = 0.98 if self.link else 0.5
        bad, well = (share >= full, share < 0.9 * full) if self.everything else (share <= 0, share > 0)
        state, begins = turned(state, bad, well, self.patience)
        if begins is None:
            return state, None
        name, about = self.key.partition(":")[0], self.link or "the objective's clip"
        number = f"it touches {share:.2%} of the tokens" if begins else f"it touches {share:.2%} of the tokens again"
        if not begins:
            return state, Alarm(name, seen.step, number, about=about, over=True)
        return state, Alarm(name, seen.step, f"{number}, for {self.patience} updates", *self._why(seen), about=about)

    def _why(self, seen: Seen) -> tuple[str, tuple[str, ...]]:
        """Cause and knobs."""
        ratio = seen.value("ratio/max")
        if not self.link:
            return "the policy has moved far from the one that sampled", ("trl.num_iterations=1", *_halved(seen))
        if not self.everything and ratio is not None and ratio <= 1 + 1e-6:
            return "every ratio is 1, as with one update per generation", ("trl.num_iterations=2", f"control: drop {self.link}")
        return "its threshold lies beyond all tokens of this run", (f"control: the parameters of {self.link}",)


def _largest_k(evaluation: Mapping[str, Any] | None) -> str | None:
    counts = [int(name[5:]) for name in evaluation or () if name.startswith("pass@") and name[5:].isdigit()]
    return f"pass@{max(counts)}" if counts and max(counts) > 1 else None


def _halved(seen: Seen) -> tuple[str, ...]:
    rate = seen.value("learning_rate")
    return (f"trl.learning_rate={rate / 2:.3g} (now {rate:.3g})",) if rate else ("trl.learning_rate (half of it)",)


# --- all of them


@dataclass(frozen=True)
class Monitor:
    """Several detectors as one; its state is theirs by key."""

    detectors: tuple[Detector, ...]

    def init(self) -> State:
        return {detector.key: detector.init() for detector in self.detectors}

    def update(self, state: State, seen: Seen) -> tuple[State, tuple[Alarm, ...]]:
        """A detector that the state does not know yet begins anew."""
        after, rung = {}, []
        for detector in self.detectors:
            after[detector.key], alarm = detector.update(state.get(detector.key) or detector.init(), seen)
            rung += [] if alarm is None else [alarm]
        return after, tuple(rung)

    def over(self, run: Sequence[Seen]) -> Iterator[Alarm]:
        """The alarms of a whole run, in the order in which they rang."""
        state = self.init()
        for seen in run:
            state, rung = self.update(state, seen)
            yield from rung


NAMES = ("collapse", "explosion", "few-tokens", "equal-groups", "narrowing", "touches-nothing", "touches-everything")


def detectors(*, end: int | None = None, spent: float = 0.25, masks: Sequence[str] = (), bonus: float | None = None) -> tuple[Detector, ...]:
    """The detectors of a run. masks: the links of its chain that choose tokens. bonus: the coefficient of its entropy bonus."""
    touch = [Touch(link, everything) for link in masks for everything in (False, True)]
    return (Collapse(spent, end, bonus), Explosion(bonus=bonus), FewTokens(), EqualGroups(), Narrowing(), Touch("", True), *touch)
