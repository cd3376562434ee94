"""Weighted GRPO: the rare success on a hard prompt and the rare failure on an easy one count more than other responses, and pairs of such prompts
are what is trained on.

    q+ = the prompt of the lowest success rate >= 1/K,   q- = of the highest <= 1 - 1/K          by K responses of the starting policy; `pairs`

    hard prompt: 1 to `rare` of its G responses are correct;      easy prompt: 1 to `rare` are wrong
    after:     A' = success * A on the correct of a hard prompt,  failure * A on the wrong of an easy one,  A elsewhere
    before:    R = +1 | -failure,   A' = (R - mean) / (std + 1e-4)           mean-only:  A' = R - mean

| paper | here | |
|---|---|---|
| lambda_neg | `failure` | no value known; 0.5 to 4 is sensible (inferred) |
| weight of a rare success | `success` | (inferred), as the pair is weighted on both sides |
| c | `rare` | of the band [1/G, c/G] of success rates, and its mirror |
| mapping to +1, -lambda_neg before the normalisation | `stage` | |
| K, pools | `probes`, `probe_prompts` | K at least 2 G (inferred); the paper's pools are AIME 2025 and 1209 DeepScaleR prompts |

No code was found. As printed the mapping precedes the normalisation, and (R - mean) / std forgets every affine map of a two-valued reward: whatever
lambda_neg is, A = sqrt((1 - p) / p) and -sqrt(p / (1 - p)), plain GRPO. So `stage="after"` is the default, as the sheet recommends, and "before"
warns. Without the deviation ("mean-only") lambda_neg is one factor 1 + lambda_neg on everything. Weights after it leave a group's mean at
(success - 1) sqrt(p (1 - p)) or (1 - failure) sqrt(p (1 - p)).

`pairs=1` is the paper's: two prompts, each half of every update, chosen once before training from `probe_prompts` prompts of the training set (the
paper has a pool of its own for each side). Ties go to the shorter mean length, then to the first. The choice is static while the policy
moves on, and a pair of extremes wastes groups: with p = 1/8 and G = 8 all eight are alike in 34 % of them.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Probed, ProbeRequest
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


def pairing(rate: Float[Tensor, " prompt"], length: Float[Tensor, " prompt"], pairs: int, probes: int) -> tuple[Int[Tensor, " hard"], Int[Tensor, " easy"]]:
    """Rows of the `pairs` hardest prompts that were solved at least once, and of the easiest that failed at least once; no prompt is in both.

    rate: share of `probes` responses that were right. Ties: the shorter mean length, then the first row.
    """
    mixed = (rate * probes > 0.5) & ((1 - rate) * probes > 0.5)
    pairs = min(pairs, int(mixed.sum()) // 2)
    by_length = torch.argsort(length, stable=True)
    ascending = by_length[torch.argsort(rate[by_length], stable=True)]
    descending = by_length[torch.argsort(-rate[by_length], stable=True)]
    hard = ascending[mixed[ascending]][:pairs]
    easy = descending[mixed[descending] & ~torch.isin(descending, hard)][:pairs]
    return hard, easy


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
    positive reward where no verifier spoke.

    pairs: train on so many hard and so many easy prompts, chosen before training by `probes` responses to each of `probe_prompts` prompts drawn from
    the training set (None: all of it). None trains on every prompt.
    """

    name = "weighted-grpo"
    slug = "weighted-grpo"
    source = "Beyond Variance, arXiv 2602.03452; abstract and a third-party note, no code found"
    effect = "Raises entropy where successes are rare, for these count more."

    success: float = 2.0
    failure: float = 2.0
    rare: int = 2
    stage: Literal["after", "before", "mean-only"] = "after"
    pairs: int | None = None
    probes: int = 16
    probe_prompts: int | None = 256

    def __post_init__(self):
        check_at_least("WeightedGrpo", "pairs", 1 if self.pairs is None else self.pairs, 1, "None trains on every prompt.")
        check_at_least("WeightedGrpo", "probes", self.probes, 2, "A rate between 0 and 1 needs two responses; twice the group or more is sensible.")
        check_at_least("WeightedGrpo", "probe_prompts", 2 if self.probe_prompts is None else self.probe_prompts, 2, "None probes all of them.")
        check_at_least("WeightedGrpo", "success", self.success, 0, "1 leaves rare successes as they are.")
        check_at_least("WeightedGrpo", "failure", self.failure, 0, "1 leaves rare failures as they are.")
        check_at_least("WeightedGrpo", "rare", self.rare, 1, "It counts responses of a group.")
        check_one_of("WeightedGrpo", "stage", self.stage, _STAGES, 'The default is "after".')
        if self.stage == "before":
            warnings.warn("WeightedGrpo: before the normalisation failure cancels, (R - mean) / std is the same for every value: plain GRPO.", stacklevel=2)

    def neutral(self) -> "WeightedGrpo":
        return replace(self, success=1.0, failure=1.0, stage="after", pairs=None)

    def embedded(self) -> "WeightedGrpo":
        """Eight pairs fill a generation of the small model's preset."""
        return replace(self, pairs=8, probes=8, probe_prompts=64)

    def recipe(self) -> Objective:
        return Objective.named("grpo")

    def probe(self) -> ProbeRequest | None:
        return None if self.pairs is None else ProbeRequest(self.probes, self.probe_prompts)

    def select(self, probed: Probed) -> Int[Tensor, " chosen"]:
        """Hard and easy prompts in turn. Raises ValueError where no prompt was both solved and failed."""
        right = torch.where(probed.correct.isnan(), probed.reward > 0, probed.correct > 0).double()
        hard, easy = pairing(right.mean(1), probed.length.double().mean(1), self.pairs or len(right), right.shape[1])
        if len(easy) == 0:
            raise ValueError(
                f"WeightedGrpo: pairs needs two prompts that are solved sometimes and failed sometimes. Of {len(right)} prompts with {right.shape[1]} "
                f"responses each fewer were. Raise probes or probe_prompts, or take another task."
            )
        if float(right[hard].mean()) >= 0.5 or float(right[easy].mean()) <= 0.5:
            warnings.warn(
                f"WeightedGrpo: the hard prompts are solved in {float(right[hard].mean()):.0%} and the easy ones in {float(right[easy].mean()):.0%} of the "
                "trials, so what is rare on them is not. Probe more prompts.", stacklevel=2,
            )  # fmt: skip
        count = min(len(hard), len(easy))
        return probed.position[torch.stack([hard[:count], easy[:count]], dim=1).flatten()]

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
