"""Light-IF: an entropy bonus that goes to the tokens whose covariance is about to take entropy away (TEA), and a reward of its length.

    c_t = (A_t - mean A)(ln p_t - mean ln p)             means over the valid tokens of the update
    w_t = min( cap, scale softmax_t(c) )                  softmax over the tokens of one response; a constant
    loss - mean over valid tokens of w_t H_t
    length: f = (1 - cos(pi L / limit)) / 2;   r = 2 score f where score >= 0.2, -f below, -2 from the limit on

| released code | here | |
|---|---|---|
| cov_alpha | `scale` | 10; the sum of w over a response is at most this |
| clip_cov_ub | `cap` | 5; binds where the softmax exceeds cap / scale |
| 8192 | `limit` | tokens |

The additive counterpart of `clip-cov`. Every response has the same weight to give, so in a short one it is more per token.

Paper and code: the released branch cannot run (it waits behind another mode of the loss, reads a name that is not defined, and would be overwritten), so
the published models were trained without it. Its function keeps the graph of ln p in the softmax and takes its means over a micro-batch;
`variant="code"` lets that gradient flow, `scope="micro-batch"` takes its means. The default "fixed" holds w constant, as the sheet recommends. A
response without a valid token has NaN gradients there and none here. The means, a and u of the paper itself are (inferred) those of the code.

The length reward belongs to the stage before (Zero-RL) and is not added by the released default. Entropy-SFT of the same paper is
`isentrope.control.entropy_sft`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of, check_scope, in_row_order
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Penalty
from isentrope.control.step import Need, Rollouts, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(grad=True))
_GOOD = 0.2  # a score from here on counts as a success


def covariance_weights(
    covariance: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], scale: float, cap: float
) -> Float[Tensor, "response token"]:
    """min(cap, scale softmax over the response's valid tokens); 0 outside the mask, and in a response that has none."""
    inside = torch.where(mask, covariance, -torch.inf)
    top = inside.detach().amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    part = torch.where(mask, (torch.where(mask, covariance, 0.0) - top).exp(), 0.0)
    total = part.sum(-1, keepdim=True)
    return torch.where(mask, scale * part / torch.where(total > 0, total, 1.0), 0.0).clamp(max=cap)


def cosine_length_reward(score: Float[Tensor, " response"], length: Tensor, limit: int) -> Float[Tensor, " response"]:
    """The released length reward in [-2, 2 score]: 2 score f or -f with f = (1 - cos(pi L / limit)) / 2, and -2 from the limit on."""
    f = (1 - torch.cos(math.pi * length.to(score.dtype) / limit)) / 2
    return torch.where(length >= limit, -2.0, torch.where(score >= _GOOD, 2 * score * f, -f))


@dataclass(frozen=True)
class Tea(Intervention):
    """Light-IF's TEA: an entropy bonus in proportion to a softmax, over the response, of the covariance of advantage and log-prob. scale=0 switches it off."""

    name = "tea"
    slug = "light-if"
    source = "Light-IF, arXiv 2508.03178; Qihoo360/Light-IF rl/verl/verl/trainer/ppo/core_algos.py (Apache-2.0)"
    effect = "Raises entropy where a likely token is rewarded."

    scale: float = 10.0
    cap: float = 5.0
    scope: Scope = "update"
    variant: Literal["fixed", "code"] = "fixed"

    def __post_init__(self):
        check_at_least("Tea", "scale", self.scale, 0, "0 switches the bonus off.")
        check_at_least("Tea", "cap", self.cap, 0, "It bounds the coefficient of one token; for none write cap=float('inf').")
        check_scope("Tea", self.scope)
        check_one_of("Tea", "variant", self.variant, ("fixed", "code"), 'The default is "fixed".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def dense(self) -> str:
        return "a softmax gives every token of a response something"

    def neutral(self) -> "Tea":
        return replace(self, scale=0.0)

    def embedded(self) -> "Tea":
        """The responses of the small model have some twenty tokens, the paper's thousands."""
        return replace(self, scale=0.5, cap=0.25)

    def recipe(self) -> Objective:
        """Token-mean PPO with a ratio in [0, 2] and dual clip 10 (released script; without its KL of 0.001 to the reference)."""
        return replace(Objective.named("dapo"), epsilon_low=1.0, epsilon_high=1.0, dual_clip=10.0)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        mask, row_id = view.mask, view.rollouts.row_id
        means = {
            name: in_row_order(value.expand(mask.shape), mask, row_id).mean().nan_to_num()
            for name, value in (("log_prob", view.log_probs), ("advantage", view.advantage))
        }
        if self.variant == "code":
            return Stats(row_id, means)
        return Stats(row_id, means, {"weight": self.weights(view, means).detach()})

    def weights(self, step: Step, means: Mapping[str, Tensor]) -> Float[Tensor, "response token"]:
        """w of every token, with the gradient of ln p, in float32 or wider."""
        log_probs = step.log_probs.to(torch.promote_types(step.log_probs.dtype, torch.float32))
        apart = step.advantage - means["advantage"].to(step.advantage.dtype)
        return covariance_weights(apart * (log_probs - means["log_prob"].to(log_probs.dtype)), step.mask, self.scale, self.cap)

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        if self.scale == 0:
            return Penalty()
        weight = self.weights(step, stats.scalars) if self.variant == "code" else stats.token("weight", step)
        entropy = step.signal(_ENTROPY.key)
        wide = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
        return Penalty(token=-weight.to(wide.dtype) * wide, touched=step.mask & (weight > 0))


@dataclass(frozen=True)
class LengthReward(Intervention):
    """Adds Light-IF's length reward: a good answer earns more the longer it is, a bad one loses more, and one at the limit loses 2.

    limit: tokens of text. closing: a response without this text earns 0 (the released `</think>`); None asks for none.
    """

    name = "light-if-length"
    slug = "light-if"
    source = "Light-IF, arXiv 2508.03178; Qihoo360/Light-IF rl reward_score/IF.py (Apache-2.0)"
    effect = "None of its own: longer answers are paid more where they are right."

    coef: float = 1.0
    limit: int = 8192
    closing: str | None = None

    def __post_init__(self):
        check_at_least("LengthReward", "coef", self.coef, 0, "0 switches it off.")
        check_at_least("LengthReward", "limit", self.limit, 1, "It is a number of tokens.")

    @property
    def dense(self) -> str:
        return "every answer has a length, so every group's advantages move"

    def neutral(self) -> "LengthReward":
        return replace(self, coef=0.0)

    def embedded(self) -> "LengthReward":
        """A limit that the small model's answers of some twenty tokens feel."""
        return replace(self, limit=48)

    def recipe(self) -> Objective:
        return Tea().recipe()

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        if self.coef == 0:
            return rollouts.reward
        earned = cosine_length_reward(rollouts.reward, rollouts.completion_mask.sum(-1), self.limit)
        if self.closing is not None:
            if rollouts.text is None:
                raise ValueError("LengthReward: closing looks into the text of the responses, which this host does not give. Write closing=None.")
            closed = torch.tensor([self.closing in text for text in rollouts.text], device=earned.device)
            earned = torch.where(closed, earned, 0.0)
        return rollouts.reward + self.coef * earned
