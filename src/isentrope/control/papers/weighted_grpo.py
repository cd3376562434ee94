"""Weighted GRPO: the rare success on a hard prompt and the rare failure on an easy one count more than other responses.

    hard prompt: 1 to `rare` of its G responses are correct;      easy prompt: 1 to `rare` are wrong
    after:     A' = success * A on the correct of a hard prompt,  failure * A on the wrong of an easy one,  A elsewhere
    before:    R = +1 | -failure,   A' = (R - mean) / (std + 1e-4)           mean-only:  A' = R - mean

| paper | here | |
|---|---|---|
| lambda_neg | `failure` | no value known; 0.5 to 4 is sensible (inferred) |
| weight of a rare success | `success` | (inferred), as the pair is weighted on both sides |
| c | `rare` | of the band [1/G, c/G] of success rates, and its mirror |
| mapping to +1, -lambda_neg before the normalisation | `stage` | |

No code was found. As printed the mapping precedes the normalisation, and (R - mean) / std forgets every affine map of a two-valued reward: whatever
lambda_neg is, A = sqrt((1 - p) / p) and -sqrt(p / (1 - p)), plain GRPO. So `stage="after"` is the default, as the sheet recommends, and "before"
warns. Without the deviation ("mean-only") lambda_neg is one factor 1 + lambda_neg on everything. Weights after it leave a group's mean at
(success - 1) sqrt(p (1 - p)) or (1 - failure) sqrt(p (1 - p)). The choice of the two prompts by probing is a property of the data set, not of the step, and
is not here.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Rollouts, State
from isentrope.control.transforms import transform_advantage

_STAGES = ("after", "before", "mean-only")


def rare_events(
    right: Bool[Tensor, " response"], group: Int[Tensor, " response"], counts: Bool[Tensor, " response"], rare: int
) -> tuple[Bool[Tensor, " response"], Bool[Tensor, " response"]]:
    """(rare successes, rare failures): right responses of groups with at most `rare` of them and some wrong one, and the mirror image."""
    rights, wrongs = _number(right & counts, group), _number(~right & counts, group)
    mixed = counts & (rights > 0) & (wrongs > 0)
    return mixed & right & (rights <= rare), mixed & ~right & (wrongs <= rare)


def normalised_outcomes(
    right: Bool[Tensor, " response"], group: Int[Tensor, " response"], counts: Bool[Tensor, " response"], failure: float, *, scale: bool
) -> Float64[Tensor, " response"]:
    """R - mean of R = +1 | -failure over the counted of the group, with `scale` over their (population) deviation + 1e-4; 0 where not counted."""
    n, k = _number(counts, group).double().clamp(min=1), _number(right & counts, group).double()
    p = k / n
    centred = (1 + failure) * (right.double() - p)
    deviation = (1 + failure) * (p * (1 - p)).sqrt()
    return torch.where(counts, centred / (deviation + 1e-4) if scale else centred, 0.0)


def _number(which: Bool[Tensor, " response"], group: Int[Tensor, " response"]) -> Int[Tensor, " response"]:
    index = torch.unique(group, return_inverse=True)[1]
    return torch.zeros(len(group), dtype=torch.long, device=group.device).index_add(0, index, which.long())[index]


@dataclass(frozen=True)
class WeightedGrpo(Intervention):
    """Weights on rare outcomes; success = failure = 1 leaves the advantage as it is. A response is right if it was found correct, or has a
    positive reward where no verifier spoke."""

    name = "weighted-grpo"
    slug = "weighted-grpo"
    source = "Beyond Variance, arXiv 2602.03452; abstract and a third-party note, no code found"
    effect = "Raises entropy where successes are rare, for these count more."

    success: float = 2.0
    failure: float = 2.0
    rare: int = 2
    stage: Literal["after", "before", "mean-only"] = "after"

    def __post_init__(self):
        check_at_least("WeightedGrpo", "success", self.success, 0, "1 leaves rare successes as they are.")
        check_at_least("WeightedGrpo", "failure", self.failure, 0, "1 leaves rare failures as they are.")
        check_at_least("WeightedGrpo", "rare", self.rare, 1, "It counts responses of a group.")
        check_one_of("WeightedGrpo", "stage", self.stage, _STAGES, 'The default is "after".')
        if self.stage == "before":
            warnings.warn("WeightedGrpo: before the normalisation failure cancels, (R - mean) / std is the same for every value: plain GRPO.", stacklevel=2)

    def neutral(self) -> "WeightedGrpo":
        return replace(self, success=1.0, failure=1.0, stage="after")

    def recipe(self) -> Objective:
        return Objective.named("grpo")

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        counts = rollouts.trained_mask.any(-1)
        right = torch.where(rollouts.correct.isnan(), rollouts.reward > 0, rollouts.correct > 0)
        dtype = rollouts.advantage.dtype
        if self.stage != "after":
            return normalised_outcomes(right, rollouts.group, counts, self.failure, scale=self.stage == "before").to(dtype)[:, None]
        if self.success == 1 and self.failure == 1:
            return rollouts.advantage
        won, lost = rare_events(right, rollouts.group, counts, self.rare)
        weight = torch.ones_like(rollouts.reward, dtype=dtype).masked_fill(won, self.success).masked_fill(lost, self.failure)
        return transform_advantage(rollouts.advantage, rollouts.trained_mask, weight=weight[:, None])
