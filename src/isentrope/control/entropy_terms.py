"""Terms that act on the policy's entropy itself: a bonus whose coefficient is scheduled or controlled, and a band.

    entropy-bonus   loss - c H                                  c from a schedule, or from a controller of H
    entropy-band    loss + coef g(low - H) + coef g(H - high)   g(x) = max(x, 0) or its square; the gradient flows through H

H is the entropy of every trained token at the sampling temperature, in nats. Both are registered through `standard`. Cost: with several
slices per update, or several ranks, the survey is one forward pass more.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, in_row_order, number, quantile
from isentrope.control.coefficients import AdaptiveEntropyCoef
from isentrope.control.controllers import PI, BandController, Controller
from isentrope.control.objectives import Objective
from isentrope.control.schedules import SHAPES, Schedule, Shape
from isentrope.control.stages import Intervention, Penalty
from isentrope.control.step import Need, Progress, RowRng, State, Stats, Step
from isentrope.measure.tokens import Entropy

ALIKE = "it treats all tokens alike, so nothing can be permuted; compare it with a yoked series of its coefficient"
_ENTROPY = Need(Entropy(grad=True))
_COLLAPSED = 1e-4  # nats


def mean_entropy(view: Step) -> Float[Tensor, ""]:
    """Mean entropy of the trained tokens in nats, float64; NaN where none is trained."""
    return in_row_order(view.signal(_ENTROPY.key), view.mask, view.rollouts.row_id).mean()


def response_means(value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, " response"]:
    """Mean over each response's trained tokens, float32 or wider; 0 where there is none."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return torch.where(mask, wide, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class EntropyBonus(Intervention):
    """Adds coef x entropy to the objective, with a coefficient on a schedule or under a controller that holds entropy at `target`.

    Without a controller the coefficient goes from `coef` to `end` by `schedule` (see `schedules.Schedule`). Controllers start at `coef`
    and stay in [coef_low, coef_high]: "adaptive" is TRL's (+-delta, applied only while entropy is at most `target`), "pi" has
    anti-windup and a dead zone, "band" moves by +-delta outside [target, ceiling]. A negative coefficient lowers entropy.
    The mean is over the tokens that the policy loss divides by, so slices add up; TRL's is over those of each slice.
    """

    name = "entropy-bonus"
    source = "Williams and Peng 1991; TRL 1.16 entropy_coef, use_adaptive_entropy (after Skywork-OR1, arXiv 2505.22312)"
    effect = "Raises entropy; a negative coefficient lowers it."
    replaces = frozenset({"entropy_coef", "use_adaptive_entropy"})

    coef: float = 0.001
    schedule: Shape = "constant"
    end: float = 0.0
    begin: float = 0.0  # fractions of the run between which the coefficient moves
    finish: float = 1.0
    controller: Literal["none", "adaptive", "pi", "band"] = "none"
    target: float = 0.2  # nats
    ceiling: float = 0.4  # nats; upper edge of "band"
    delta: float = 0.005  # per update; "adaptive" and "band"
    gain_p: float = 0.01  # per nat; "pi"
    gain_i: float = 0.001  # per nat and update; "pi"
    dead_zone: float = 0.0  # nats; "pi"
    coef_low: float = 0.0
    coef_high: float = 1.0

    def __post_init__(self):
        check_one_of("EntropyBonus", "schedule", self.schedule, SHAPES, 'The default is "constant".')
        check_one_of("EntropyBonus", "controller", self.controller, ("none", "adaptive", "pi", "band"), 'The default is "none".')
        if not isfinite(self.coef):
            raise ValueError(f"EntropyBonus: coef must be finite. Got {self.coef}. 0 switches it off.")
        if self.controller == "none":
            self._schedule()
        elif self.schedule != "constant":
            raise ValueError(
                f"EntropyBonus: schedule and controller both move the coefficient. Got schedule={self.schedule!r}, "
                f'controller={self.controller!r}. Keep one: schedule="constant", or controller="none".'
            )
        else:
            check_at_least("EntropyBonus", "target", self.target, 0, "It is an entropy in nats.")
            self._controller()

    def _schedule(self) -> Schedule:
        return Schedule(self.schedule, self.coef, self.end, self.begin, self.finish)

    def _controller(self) -> Controller:
        low, high = self.coef_low, self.coef_high
        check_at_least("EntropyBonus", "coef_high", high, low, f"The coefficient stays in coef_low..coef_high; coef_low is {low}.")
        if self.controller == "adaptive":
            return AdaptiveEntropyCoef(self.target, self.delta, low, high, self.coef)
        if self.controller == "pi":
            return PI(self.target, self.gain_p, self.gain_i, self.dead_zone, low, high, self.coef)
        return BandController(self.target, self.ceiling, self.delta, low, high, self.coef)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": ALIKE}

    @property
    def dense(self) -> str:
        return "a bonus acts on every token"

    def init(self) -> State:
        return {} if self.controller == "none" else self._controller().init()

    def neutral(self) -> "EntropyBonus":
        return replace(self, coef=0.0, schedule="constant", controller="none")

    def embedded(self) -> "EntropyBonus":
        """A weight that a run of twenty updates can feel."""
        return replace(self, coef=0.05)

    def recipe(self) -> Objective:
        """Token-mean PPO, as TRL adds its bonus."""
        return Objective.named("dapo")

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        correct = view.rollouts.correct.double()
        accuracy = in_row_order(correct[:, None], ~correct.isnan()[:, None], view.rollouts.row_id).mean()
        return Stats(view.rollouts.row_id, {"entropy": mean_entropy(view), "accuracy": accuracy})

    def applied(self, state: State, stats: Stats, progress: Progress) -> float:
        """The coefficient of this update."""
        if self.controller == "none":
            return self._schedule().value(progress, float(stats.scalars["accuracy"]))
        return self._controller().applied(state)

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        coef = self.applied(state, stats, step.progress)
        return Penalty() if coef == 0 else Penalty(token=-coef * step.signal(_ENTROPY.key), touched=step.mask)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        if stats is None or self.controller == "none":
            return state
        return self._controller().update(state, float(stats.scalars["entropy"]))


@dataclass(frozen=True)
class EntropyBand(Intervention):
    """Holds entropy between two edges by a hinge whose gradient flows through the entropy itself; inside it costs nothing.

    level: whose entropy is held: the mean of the update's tokens, the mean of each response, or each token's.
    of: what `low` and `high` are. "constant": nats. "history", "ema", "anchor": multiples of a reference, which is the mean over all
    updates so far, its exponential average with `decay`, or the first update's; nothing is held before there is one. "quantile":
    levels in [0, 1] of the update's own tokens (or responses). None leaves a side open. floor: nats below which the lower edge of a
    multiple never sinks; without it a corridor collapses with its reference, and a warning says so.
    """

    name = "entropy-band"
    source = "hinge as in EPO, arXiv 2509.22576, Eq. 3, with a gradient (its released code has none)"
    effect = "Holds entropy between two edges."
    replaces = frozenset({"entropy_coef", "use_adaptive_entropy"})

    low: float | None = 0.2
    high: float | None = None
    of: Literal["constant", "history", "ema", "anchor", "quantile"] = "constant"
    level: Literal["update", "response", "token"] = "update"
    coef: float = 0.01  # per nat, or per nat^2
    shape: Literal["linear", "squared"] = "linear"
    decay: float = 0.9  # of "ema"
    floor: float = 0.0  # nats

    def __post_init__(self):
        who = "EntropyBand"
        check_at_least(who, "coef", self.coef, 0, "0 switches it off.")
        check_one_of(who, "of", self.of, ("constant", "history", "ema", "anchor", "quantile"), 'The default is "constant", in nats.')
        check_one_of(who, "level", self.level, ("update", "response", "token"), 'The default is "update".')
        check_one_of(who, "shape", self.shape, ("linear", "squared"), 'The default is "linear".')
        check_fraction(who, "decay", self.decay)
        check_at_least(who, "floor", self.floor, 0, "It is an entropy in nats.")
        if self.low is not None and self.high is not None:
            check_at_least(who, "high", self.high, self.low, f"The band is low..high; low is {self.low}.")
        if self.of == "quantile":
            if self.level == "update":
                raise ValueError(f'{who}: of="quantile" needs level "token" or "response"; an update has one mean. Got level={self.level!r}.')
            for parameter, value in (("low", self.low), ("high", self.high)):
                check_fraction(who, parameter, 0.0 if value is None else value)
        reason = self.idle()
        if reason and self.coef > 0:
            warnings.warn(f"EntropyBand(low={self.low}, high={self.high}, of={self.of!r}) cannot bind: {reason}", stacklevel=3)

    def idle(self) -> str | None:
        """Why neither edge can ever bind, or None."""
        if self.high is not None and self.high < (1 if self.of == "quantile" else inf):
            return None
        if self.low is None or (self.low <= 0 and (self.floor <= 0 or self.of in ("constant", "quantile"))):
            return "no entropy is below the lower edge and none above the upper one. Raise low, or give high."
        return None

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": ALIKE} if self.level == "update" else {}

    @property
    def dense(self) -> str:
        return "the mean of the update is held, so it acts on every token or on none" if self.level == "update" else ""

    @property
    def _relative(self) -> bool:
        return self.of in ("history", "ema", "anchor")

    def init(self) -> State:
        """`reference` in nats, None before the first update; `updates` seen."""
        return {"reference": None, "updates": 0} if self._relative else {}

    def neutral(self) -> "EntropyBand":
        return replace(self, coef=0.0)

    def embedded(self) -> "EntropyBand":
        """The least and the most certain tokens of every update."""
        return replace(self, low=0.1, high=0.9, of="quantile", level="token", coef=0.1)

    def edges(self, value: Float[Tensor, " item"], state: State) -> tuple[float, float]:
        """(low, high) in nats of an update whose held entropies are `value`; -inf and inf where a side is open."""
        low, high = -inf if self.low is None else self.low, inf if self.high is None else self.high
        if self.of == "constant":
            return low, high
        if self.of == "quantile":
            there = torch.ones_like(value, dtype=torch.bool)
            at = [float(quantile(value, there, level)) if 0 <= level <= 1 and len(value) else level for level in (low, high)]
            return at[0], at[1]
        if state["reference"] is None:
            return -inf, inf
        reference = number(state, "reference")
        low = -inf if self.low is None else max(self.low * reference, self.floor)
        return low, inf if self.high is None else max(self.high * reference, low)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        entropy, mask, row_id = view.signal(_ENTROPY.key), view.mask, view.rollouts.row_id
        present = mask.any(-1)
        per_response = torch.where(present, response_means(entropy.double(), mask), float("nan"))
        held = in_row_order(entropy, mask, row_id) if self.level == "token" else in_row_order(per_response[:, None], present[:, None], row_id)
        low, high = self.edges(held, state)
        mean = mean_entropy(view)
        scalars = {"entropy": mean, "low": torch.tensor(low), "high": torch.tensor(high), "tokens": mask.sum(), "responses": present.sum()}
        return Stats(row_id, scalars | {"rows": torch.tensor(len(mask))})

    def hinge(self, entropy: Float[Tensor, "*shape"], stats: Stats) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
        """coef g(low - H) + coef g(H - high), and where it is not 0."""
        entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        low, high = float(stats.scalars["low"]), float(stats.scalars["high"])
        outside = (entropy < low) | (entropy > high)
        distance = torch.where(outside, torch.where(entropy < low, low - entropy, entropy - high), 0.0)
        return self.coef * (distance if self.shape == "linear" else distance**2), outside

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        if self.coef == 0:
            return Penalty()
        entropy, mask = step.signal(_ENTROPY.key), step.mask
        if self.level == "token":
            cost, outside = self.hinge(entropy, stats)
            return Penalty(token=cost, touched=outside & mask)
        if self.level == "response":
            cost, outside = self.hinge(response_means(entropy, mask), stats)
            outside = outside & mask.any(-1)
            total = torch.where(outside, cost, 0.0).sum() / stats.scalars["responses"].clamp(min=1)
            return Penalty(total=total, touched=outside[:, None] & mask)
        return self._of_update(entropy, mask, stats)

    def _of_update(self, entropy: Tensor, mask: Tensor, stats: Stats) -> Penalty:
        """This slice's part: its share of the value, and the exact gradient of its part of the mean."""
        mean, tokens = stats.scalars["entropy"], stats.scalars["tokens"]
        if int(tokens) == 0:
            return Penalty()
        cost, outside = self.hinge(mean, stats)
        if not bool(outside):
            return Penalty()
        side = -1.0 if float(mean) < float(stats.scalars["low"]) else 1.0
        slope = side * self.coef * (1.0 if self.shape == "linear" else 2 * (cost / self.coef).sqrt())
        wide = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        part = torch.where(mask, wide, 0.0).sum() / tokens
        value = cost * len(mask) / stats.scalars["rows"]
        return Penalty(total=(value + slope * (part - part.detach())).to(wide.dtype), touched=mask)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """The reference moves; the first update of tokens sets it. Warns when a corridor collapses."""
        if stats is None or not self._relative or int(stats.scalars["tokens"]) == 0:
            return state
        found, seen = float(stats.scalars["entropy"]), int(number(state, "updates")) + 1
        before = found if state["reference"] is None else number(state, "reference")
        share = {"history": 1 / seen, "ema": 1 - self.decay, "anchor": 0.0}[self.of]
        after = before + share * (found - before)
        if self.floor == 0 and after <= _COLLAPSED and (state["reference"] is None or before > _COLLAPSED):
            warnings.warn(
                f"EntropyBand: the reference fell to {after:.1g} nats, and multiples of it with it, so the band cannot bind from below any "
                "more. Give an absolute floor in nats.",
                stacklevel=2,
            )
        return {"reference": after, "updates": seen}
