"""EPO: an entropy bonus averaged trajectory by trajectory, and hinges that hold every token in a corridor around the entropy of the past.

    B = mean over responses of the mean over their turns of the mean over tokens          every turn counts equally, however long
    P_t = max(0, low R - H_t) + max(0, H_t - high R)                                      R: mean entropy of all updates so far, a constant
    loss - coef ( B[H] - alpha beta_k B[P] ),   beta_k = 1 + exp(-gamma k / floor(K/2))   Eq. 2-6; P is 0 while there is no past

| paper | here | |
|---|---|---|
| lambda | `coef` | per nat; 0.001 |
| kappa_l, kappa_r | `low`, `high` | multiples of R; launcher 0.5 and 1.5, README runs 0 and 2 |
| alpha | `alpha` | of the hinge relative to the bonus |
| gamma | `gamma` | no value was found; 1 (inferred) |
| H-bar_W | `reference` in the state | nats; of all turns together, or with `history="turn"` of each turn number |

A token's entropy is pushed up with coef inside the corridor, with coef (1 + alpha beta_k) below it, and with coef (1 - alpha beta_k) above:
down only where alpha beta_k > 1. With the released alpha of 0.05 to 0.1 the upper hinge would only trim the bonus, which a warning says;
the default 1 is (inferred). A corridor of multiples closes when R goes to 0; `floor` keeps its lower edge at so many nats.

Paper and code differ, and `variant="paper"` is the default. In the code the penalty is a constant, 0 inside and alpha outside, so it has no gradient and a
plain bonus is what trains; `variant="code"` gives that loss: the objective's own aggregation, a reference for every turn number in which an
update that never got that far counts as 0, and another phase weight (1 to 0.83 over the first half, 0.77 to 0.04 over the second). It raises
on an empty history; here the first update has the bonus alone. Its gate (the term only from half of the allowed turns on) changes no
gradient and is left out, as is its "seq" mode, whose mean runs over padding (`released_penalty` has it).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.entropy_terms import ALIKE
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Penalty
from isentrope.control.step import Need, Progress, RowRng, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(grad=True))


def nested_share(turn: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float64[Tensor, "response token"]:
    """Every token's share in B: 1 / (responses with a trained token x turns of its response x trained tokens of its turn); sums to 1."""
    span = int(turn.max()) + 1 if turn.numel() else 1
    row = torch.arange(len(mask), device=mask.device)[:, None]
    tokens = torch.bincount((row * span + turn)[mask], minlength=len(mask) * span).view(len(mask), span)
    turns = (tokens > 0).sum(-1, keepdim=True)
    share = 1.0 / (tokens.gather(1, turn).clamp(min=1).double() * turns.clamp(min=1) * (turns > 0).sum().clamp(min=1))
    return torch.where(mask, share, 0.0)


def phase(step: int, total: int, gamma: float) -> float:
    """beta_k = 1 + exp(-gamma k / floor(K/2)): 2 at the start, 1 + exp(-2 gamma) at the end."""
    return 1 + math.exp(-gamma * step / max(1, total // 2))


def released_phase(step: int, total: int) -> float:
    """The phase weight of the code: 1 - 0.2 (1 - e^(-2 k/m)) up to m = floor(K/2), then 0.8 e^(-3 (k - m)/m')), m' the rest."""
    half, step = max(1, total // 2), min(max(step, 0), total)
    if step <= half:
        return 1 - 0.2 * (1 - math.exp(-2 * step / half))
    return 0.8 * math.exp(-3 * (step - half) / (total - half))


def released_penalty(
    entropy: Float[Tensor, "response token"],
    reference: Float[Tensor, "response #token"],
    low: float,
    high: float,
    alpha: float,
    mode: Literal["token", "seq"] = "token",
) -> Float[Tensor, "response token"]:
    """The code's penalty: 0 strictly inside low R .. high R, alpha elsewhere; a constant. "seq" compares the mean of the padded row."""
    compared = entropy.detach() if mode == "token" else entropy.detach().mean(-1, keepdim=True).expand(entropy.shape)
    inside = (compared > low * reference) & (compared < high * reference)
    return torch.where(inside, 0.0, alpha).to(entropy.dtype)


@dataclass(frozen=True)
class Epo(Intervention):
    """Pays for entropy turn by turn and holds every token in a corridor around the past. coef=0 switches both off, alpha=0 the corridor.

    history: what R is a mean of: all tokens of an update, or those of one turn number. decay: R as an exponential average instead of the plain mean of
    all updates (None). variant="code" has its own history (by turn, zeros where a turn was not reached) and takes neither, nor `floor`.
    """

    name = "epo"
    slug = "epo"
    source = "EPO, arXiv 2509.22576 (v2), Eq. 2-6, Alg. 1; WujiangXu/EPO dp_actor.py, ray_trainer.py"
    effect = "Raises entropy, and damps its swings around its own past."
    replaces = frozenset({"entropy_coef", "use_adaptive_entropy"})

    coef: float = 0.001
    low: float = 0.5
    high: float = 1.5
    alpha: float = 1.0
    gamma: float = 1.0
    history: Literal["all", "turn"] = "all"
    decay: float | None = None
    floor: float = 0.0  # nats
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        for parameter in ("coef", "low", "alpha", "gamma", "floor"):
            check_at_least("Epo", parameter, self.__dict__[parameter], 0, "0 is the least that has a meaning.")
        check_at_least("Epo", "high", self.high, self.low, f"The corridor is low..high; low is {self.low}.")
        check_fraction("Epo", "decay", 0.0 if self.decay is None else self.decay)
        check_one_of("Epo", "history", self.history, ("all", "turn"), 'The default is "all".')
        check_one_of("Epo", "variant", self.variant, ("paper", "code"), 'The default is "paper".')
        if self.variant == "code" and (self.history != "all" or self.decay is not None or self.floor):
            raise ValueError('Epo: variant="code" keeps its own history, by turn. Leave history, decay and floor at their defaults.')
        last = 1 + math.exp(-2 * self.gamma)
        if self.variant == "paper" and self.coef > 0 and 0 < self.alpha * last < 1:
            warnings.warn(
                f"Epo: alpha={self.alpha} times the phase weight ends at {self.alpha * last:.2f}, below 1: above the corridor the term still raises "
                f"entropy, only less. To push it down take alpha of at least {1 / last:.2f}.",
                stacklevel=3,
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": ALIKE} if self.variant == "code" else {}

    @property
    def dense(self) -> str:
        return "a bonus acts on every token"

    def init(self) -> State:
        """`reference`: R in nats by turn number (one entry where all turns are taken together), `count`: updates in each; None before the first."""
        return {"reference": None, "count": None}

    def neutral(self) -> "Epo":
        return replace(self, coef=0.0)

    def embedded(self) -> "Epo":
        """A weight that a run of twenty updates can feel, and a corridor that the tokens of a small model leave."""
        return replace(self, coef=0.05, low=0.8, high=1.2)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2]; the scripts add a KL of 0.01 to the reference."""
        return replace(Objective.named("dapo"), epsilon_high=0.2)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """Mean entropy by turn number; and for "paper" of every token its share in B, its side of the corridor (1 above, -1 below), and that edge."""
        entropy, mask, row_id = view.signal(_ENTROPY.key).detach().double(), view.mask, view.rollouts.row_id
        turn = self._turns(view)
        order = torch.argsort(row_id)  # so that a mean is the same number in any order
        index, value = turn[order][mask[order]], entropy[order][mask[order]]
        count = torch.bincount(index, minlength=1)
        mean = torch.zeros_like(count, dtype=torch.float64).index_add(0, index, value) / count.clamp(min=1)
        found = {"mean": mean, "tokens": count}
        if self.variant == "code":
            return Stats(row_id, found)
        reference = self.reference(state, turn)
        low, high = (self.low * reference).clamp(min=self.floor), self.high * reference
        high = torch.maximum(low, high)
        side = torch.where(mask, (entropy > high).double() - (entropy < low).double(), 0.0)  # NaN, no past: neither
        bound = torch.where(side > 0, high, low).masked_fill(side == 0, 0.0)
        own = torch.zeros_like(turn) if view.rollouts.turn is None else view.rollouts.turn
        return Stats(row_id, found, {"share": nested_share(own, mask), "side": side, "bound": bound})

    def _turns(self, step: Step) -> Int[Tensor, "response token"]:
        turn = step.rollouts.turn
        return torch.zeros_like(step.mask, dtype=torch.long) if turn is None or (self.variant, self.history) == ("paper", "all") else turn

    def reference(self, state: State, turn: Int[Tensor, "response token"]) -> Float64[Tensor, "response token"]:
        """R of every token in nats, NaN where its turn has no past."""
        past = state["reference"]
        if not isinstance(past, Tensor):
            return torch.full(turn.shape, math.nan, dtype=torch.float64, device=turn.device)
        count = torch.as_tensor(state["count"])
        known = torch.where(count > 0, past, math.nan).to(turn.device)
        return torch.where(turn < len(known), known[turn.clamp(max=len(known) - 1)], math.nan)

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        if self.coef == 0:
            return Penalty()
        entropy = step.signal(_ENTROPY.key)
        entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        now = step.progress
        if self.variant == "code":
            reference = self.reference(state, self._turns(step))
            outside = torch.where(reference.isnan(), 0.0, released_penalty(entropy, reference, self.low, self.high, self.alpha))
            return Penalty(token=-self.coef * (entropy - released_phase(now.step, now.total) * outside.to(entropy.dtype)), touched=step.mask)
        share, side, bound = (stats.token(name, step) for name in ("share", "side", "bound"))
        weight = self.alpha * phase(now.step, now.total, self.gamma)
        bonus = entropy - (weight * side).to(entropy.dtype) * (entropy - bound.to(entropy.dtype))
        return Penalty(total=-self.coef * (share.to(entropy.dtype) * torch.where(step.mask, bonus, 0.0)).sum(), touched=step.mask)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """The history after this update, by turn number: a turn that was not reached keeps its mean ("code": counts as 0)."""
        if stats is None or int(stats.scalars["tokens"].sum()) == 0:
            return state
        mean, seen = stats.scalars["mean"], stats.scalars["tokens"] > 0
        past, count = state["reference"], state["count"]
        past = torch.zeros(0, dtype=torch.float64) if not isinstance(past, Tensor) else past
        count = torch.zeros(0, dtype=torch.long) if not isinstance(count, Tensor) else count
        turns, updates = max(len(past), len(mean)), int(count.max()) if len(count) else 0
        past, mean, count = (torch.nn.functional.pad(value.cpu(), (0, turns - len(value))) for value in (past, mean, count))
        seen = torch.nn.functional.pad(seen.cpu(), (0, turns - len(seen)))
        if self.variant == "code":
            count, seen = torch.full_like(count, updates), torch.ones_like(seen)
        rate = 1 / (count + 1).double()
        if self.decay is not None:
            rate = torch.where(count > 0, 1 - self.decay, rate)
        return {"reference": torch.where(seen, past + rate * (mean - past), past), "count": count + seen.long()}
