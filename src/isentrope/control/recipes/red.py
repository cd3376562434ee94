"""RED: distilled text beside the policy-gradient loss, weighted by how its entropy changes against that of the model's own answers.

    L   = L_policy(own answers) + coef w_k L_off(teacher's answers)
    w_k = clip( dH_off / (dH_on + eps), 1, w_max )                 dH: mean |change| of the token entropies per update, exponentially averaged
    L_off = - mean_o mean_t rho_t,      rho_t = p_t / sg(p_t)^(1 - e),      e = the policy's accuracy on the prompt

rho has the value p^e and the gradient p^e grad ln p: e = 0 imitates (gradient of the cross-entropy), e = 1 moves only what is likely already.

| paper / re-implementation | here |
|---|---|
| w_max (called G there) | `w_max` |
| base SFT coefficient | `coef` |
| EMA decay | `decay` |
| eps | `epsilon` |

Paper and code: the paper's equations could not be read; the weight is that of an independent re-implementation, the shift is (inferred) from reviews and
a summary (sheet `red`). `variant="code"` leaves rho at plain imitation and multiplies w by w_max^(1 - 2 accuracy) instead, clipped to [1, w_max^2], so that
a high accuracy can never take it below 1. The re-implementation's averages begin at 1; ours at what is first seen, and w is 1 until two updates were.
With dH_on near 0 the clip decides everything: `state["bound"]` counts the updates in which it did. |dH| forgets the direction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.recipes.mixture import Mixture, Weights
from isentrope.control.step import Progress, State, Step


def entropy_weight(change_off: float, change_on: float, w_max: float, epsilon: float = 1e-8) -> float:
    """w = clip(dH_off / (dH_on + eps), 1, w_max)."""
    return min(max(change_off / (change_on + epsilon), 1.0), w_max)


def accuracy_factor(accuracy: Float[Tensor, " response"], w_max: float) -> Float[Tensor, " response"]:
    """w_max^(1 - 2 accuracy): w_max, 1, 1 / w_max at 0, 1/2, 1."""
    return w_max ** (1 - 2 * accuracy)


def shifted_ratio(log_probs: Float[Tensor, "response token"], exponent: Float[Tensor, " response"]) -> Float[Tensor, "response token"]:
    """rho = p / sg(p)^(1 - e): value p^e, gradient p^e grad ln p."""
    return (log_probs - (1 - exponent[:, None]) * log_probs.detach()).exp()


@dataclass(frozen=True)
class Red(Mixture):
    """The weight of distilled text from the ratio of entropy changes, and its shift by accuracy."""

    coef: float = 0.1
    w_max: float = 5.0
    decay: float = 0.99
    epsilon: float = 1e-8
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_at_least("Red", "coef", self.coef, 0.0, "Off is 0.")
        check_at_least("Red", "w_max", self.w_max, 1.0, "A constant weight is w_max=1.")
        check_fraction("Red", "decay", self.decay)
        check_one_of("Red", "variant", self.variant, ("paper", "code"), 'The default is "paper".')
        if not self.epsilon > 0:
            raise ValueError(f"Red: epsilon must be above 0. Got {self.epsilon}.")

    def init(self) -> State:
        return {"online": math.nan, "offline": math.nan, "change_online": math.nan, "change_offline": math.nan, "updates": 0, "bound": 0}

    def ratio(self, state: State) -> float:
        """w of the update now beginning; 1 until two were seen."""
        on, off = _number(state["change_online"]), _number(state["change_offline"])
        return 1.0 if math.isnan(on) or math.isnan(off) else entropy_weight(off, on, self.w_max, self.epsilon)

    def weights(self, state: State) -> Weights:
        """In the code's variant w is in the loss, where the accuracy is known."""
        return Weights(1.0, self.coef * (self.ratio(state) if self.variant == "paper" else 1.0))

    def offline_loss(self, step: Step, state: State) -> Float[Tensor, ""]:
        """- mean over rows of the mean of rho over their tokens; an accuracy that is not known counts as 0 (imitation)."""
        accuracy = torch.nan_to_num(step.rollouts.correct.to(step.log_probs.dtype), nan=0.0)
        exponent = accuracy if self.variant == "paper" else torch.zeros_like(accuracy)
        log_probs = torch.where(step.mask, step.log_probs, 0.0)
        rho = torch.where(step.mask, shifted_ratio(log_probs, exponent), 0.0)
        rows = rho.sum(-1) / step.mask.sum(-1).clamp(min=1)
        if self.variant == "code":
            rows = rows * (self.ratio(state) * accuracy_factor(accuracy, self.w_max)).clamp(1.0, self.w_max**2)
        return -rows.mean() if len(rows) else rho.sum()

    def update(self, state: State, seen: Mapping[str, float], progress: Progress) -> State:
        after = dict(state)
        for name in ("online", "offline"):
            before, now = _number(state[name]), seen[f"{name}_entropy"]
            if math.isnan(now):
                continue
            average = now if math.isnan(before) else self.decay * before + (1 - self.decay) * now
            if not math.isnan(before):
                change, step = _number(state[f"change_{name}"]), abs(average - before)
                after[f"change_{name}"] = step if math.isnan(change) else self.decay * change + (1 - self.decay) * step
            after[name] = average
        after["updates"] = int(_number(state["updates"])) + 1
        after["bound"] = int(_number(state["bound"])) + (self.ratio(after) in (1.0, self.w_max))
        return after


def _number(value: object) -> float:
    return float(value)  # type: ignore[arg-type]  # a flat state of numbers
