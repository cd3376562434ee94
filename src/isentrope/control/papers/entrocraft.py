"""Entrocraft: entropy is held in a moving band by leaving out rollouts of one sign: no successes while it is too low, no failures while too high.

    m = 1[H > high] - 1[H < low]                   H: entropy of the policy that sampled, mean over responses of their token means
    a response is kept where m A >= 0                 A: its advantage; inside the band all are kept
    low, high: from their start to their end, linearly or as half a cosine wave in the fraction of the run

| paper | here | |
|---|---|---|
| h_low, h_high at step 0 | `low`, `high` | nats; (0.6, 0.7) |
| at the last step | `low_end`, `high_end` | (0.1, 0.2) in a footnote, (0.4, 0.5) in the released script |
| h(s) | `schedule` | |

A response that is left out leaves the loss and its divisor: the mean is over the kept (Alg. 1), with a token mean of the objective; a mean over
rows still counts the empty ones. Where nothing is kept the update is empty. A = 0 is always kept.

Paper and code differ, and `variant="paper"` is the default. The code replaces the advantage by a raw score instead, max(score, 0) above the band and
min(score, 0) below it, so that groups of equal rewards push too, and what it leaves out stays in the divisor with advantage 0
(`variant="code"`; the score is +1 | -1 by correctness as there, and the reward where no verifier spoke). Its H is aggregated as the loss is
(`of="token"` for a token mean). H is that of the generation, so the band acts with a delay of one generation.

The paper's theorem (A dH <= 0) holds for likely tokens only: a rare one that is rewarded raises entropy, and a wrong one that is rare and
punished lowers it. So the band may be out of reach, and negatives alone may lower entropy too. `released_advantage`,
`positive_weighted` and `integral_weighted` are the code's rule and its two baselines as functions.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of, in_row_order
from isentrope.control.entropy_terms import response_means
from isentrope.control.objectives import Objective
from isentrope.control.schedules import Schedule
from isentrope.control.stages import Intervention, RowEdit
from isentrope.control.step import Need, Progress, Rollouts, RowRng, State, Stats
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="old")


def side_of(entropy: float, low: float, high: float) -> int:
    """m: 1 above the band, -1 below it, 0 inside and on its edges."""
    return int(entropy > high) - int(entropy < low)


def released_advantage(score: Float[Tensor, " response"], advantage: Float[Tensor, " response"], side: int) -> Float[Tensor, " response"]:
    """The code's rule: the raw score's positive part above the band, its negative part below, the advantage inside."""
    if side == 0:
        return advantage
    return score.clamp(min=0.0) if side > 0 else score.clamp(max=0.0)


def positive_weighted(score: Float[Tensor, " response"], weight: float) -> Float[Tensor, " response"]:
    """The baseline W-REINFORCE: positive scores times `weight`."""
    return torch.where(score > 0, weight * score, score)


def integral_weighted(
    score: Float[Tensor, " response"], entropy: float, target: float, integral: float, *, gain_p: float = 1.0, gain_i: float = 0.01
) -> tuple[Float[Tensor, " response"], float]:
    """The baseline EntroPIC, and its new integral: positive scores times 1 + a, negative ones times 1 - a, a = integral + gain_p (H - target).

    The released trainer starts every step from an integral of 0.
    """
    apart = entropy - target
    a = integral + gain_p * apart
    return torch.where(score > 0, (1 + a) * score, (1 - a) * score), integral + gain_i * apart


@dataclass(frozen=True)
class Entrocraft(Intervention):
    """Leaves out successes while entropy is below a moving band, and failures while it is above. A side at 0 or infinity is open.

    of: how the entropy of a generation is taken: the mean over responses of their token means, or over all tokens.
    """

    name = "entrocraft"
    slug = "entrocraft"
    source = "Entrocraft, arXiv 2604.26326 (v2), Alg. 1, Sec. 3-5; lblaoke/entrocraft core_algos.py, ray_trainer.py"
    effect = "Steers entropy towards a moving band: successes lower it, failures raise it."

    low: float = 0.6
    high: float = 0.7
    low_end: float | None = 0.1
    high_end: float | None = 0.2
    schedule: Literal["linear", "cosine"] = "linear"
    of: Literal["response", "token"] = "response"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_at_least("Entrocraft", "low", self.low, 0, "It is an entropy in nats; 0 leaves that side open.")
        check_at_least("Entrocraft", "high", self.high, self.low, f"The band is low..high; low is {self.low}.")
        low, high = self._ends()
        check_at_least("Entrocraft", "low_end", low, 0, "None keeps low.")
        check_at_least("Entrocraft", "high_end", high, low, f"The band ends at low_end..high_end; low_end is {low}.")
        if math.isinf(high) != math.isinf(self.high):
            raise ValueError(f"Entrocraft: high and high_end must both be finite or both be inf. Got {self.high} and {high}.")
        check_one_of("Entrocraft", "schedule", self.schedule, ("linear", "cosine"), 'The default is "linear".')
        check_one_of("Entrocraft", "of", self.of, ("response", "token"), 'The default is "response".')
        check_one_of("Entrocraft", "variant", self.variant, ("paper", "code"), 'The default is "paper".')

    def _ends(self) -> tuple[float, float]:
        return self.low if self.low_end is None else self.low_end, self.high if self.high_end is None else self.high_end

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def dense(self) -> str:
        return "outside the band a raw score stands in the place of every advantage" if self.variant == "code" else ""

    def init(self) -> State:
        """`step` and `total`: where the run stands."""
        return {"step": 0, "total": 1}

    def neutral(self) -> "Entrocraft":
        """A band that nothing leaves."""
        return replace(self, low=0.0, high=math.inf, low_end=None, high_end=None)

    def embedded(self) -> "Entrocraft":
        """A band above the small model's entropy, so that its successes are left out."""
        return replace(self, low=3.0, high=3.5, low_end=2.5, high_end=3.0)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2]; the scripts add a KL of 0.001 to the reference."""
        return replace(Objective.named("dapo"), epsilon_high=0.2)

    def band(self, state: State) -> tuple[float, float]:
        """(low, high) in nats where the run stands."""
        if math.isinf(self.high):
            return self.low, self.high
        now = Progress(int(state["step"] or 0), int(state["total"] or 1))
        ends = self._ends()
        return Schedule(self.schedule, self.low, ends[0]).value(now), Schedule(self.schedule, self.high, ends[1]).value(now)

    def entropy(self, rollouts: Rollouts) -> float:
        """H of the generation in nats; NaN, which no band excludes, where no token is in the loss."""
        entropy, mask, row_id = rollouts.signal(_ENTROPY.key), rollouts.trained_mask, rollouts.row_id
        if self.of == "token":
            return float(in_row_order(entropy, mask, row_id).mean())
        means = response_means(torch.where(mask, entropy, 0.0).double(), mask)
        return float(in_row_order(means[:, None], mask.any(-1, keepdim=True), row_id).mean())

    def side(self, rollouts: Rollouts, state: State) -> int:
        """m of this generation."""
        return side_of(self.entropy(rollouts), *self.band(state))

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        """The advantage itself; with "code", the raw score's one side outside the band."""
        if self.variant == "paper":
            return rollouts.advantage
        side = self.side(rollouts, state)
        if side == 0:
            return rollouts.advantage
        score = torch.where(rollouts.correct.isnan(), rollouts.reward, 2 * rollouts.correct.to(rollouts.reward.dtype) - 1).nan_to_num()
        return released_advantage(score, score, side)[:, None].expand(rollouts.advantage.shape).to(rollouts.advantage.dtype)

    def rows(self, rollouts: Rollouts, extra: Rollouts | None, state: State, rng: RowRng) -> RowEdit:
        """Drops the responses with m A < 0; with "code" none, for there they stay in the divisor."""
        none = torch.zeros(0, dtype=torch.long, device=rollouts.row_id.device)
        dropped = none
        if self.variant == "paper":
            left = rollouts.trained_mask.any(-1) & (self.side(rollouts, state) * _of_response(rollouts) < 0)
            dropped = left.nonzero().squeeze(1)
        return RowEdit(none, none, rollouts.advantage.new_zeros(0), dropped)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        return {"step": progress.step, "total": progress.total}


def _of_response(rollouts: Rollouts) -> Float[Tensor, " response"]:
    """A of every response; where it differs by token, its mean over the trained ones."""
    if rollouts.advantage.shape[1] == 1:
        return rollouts.advantage.squeeze(1)
    return response_means(rollouts.advantage, rollouts.trained_mask)
