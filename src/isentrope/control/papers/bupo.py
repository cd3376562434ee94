"""BuPO: for the first updates the policy that is trained is not the model's own but what one of its blocks would say, decoded at once.

    pi_l(v) = softmax( H_l W^T / T )_v                         H_l: what block l leaves; W the unembedding; no final norm
    rho_t = pi_l(o_t) / pi_l,old(o_t)                          both decoded alike; old: by the policy that sampled
    surrogate of rho_t and the group's advantage              for the first `updates` updates, then of the model's own ratio

| paper | here | |
|---|---|---|
| l | `layer` | blocks counted from 1: 6 of Qwen3-4B's and 8B's 36; the code's index is one less |
| s_inter | `updates` | 30 in both scripts, 20 to 30 in the paper; here of the optimiser, of which a rollout may feed several |
| LN or none | `norm` | "none"; "final" decodes through the model's final norm (slightly worse in the paper) |

The rollouts are the full model's. rho is a trust region of the internal policy, not an importance weight of the distribution that sampled; with one
update per rollout it is 1. The gradient reaches the embeddings, the blocks up to `layer` and the head, and exactly none of the blocks
above or of the final norm, which keep their old reading of a stream that moves: so a long phase destroys the model (the paper's 50 and 70
steps). An internal entropy grows as the stream gets shorter, so it mixes direction with length (`isentrope.probe.lens`).

Paper and code: the paper averages per response and then over the group, the scripts over tokens (`recipe`). The last block is decoded with the final
norm in the training code, which is the full policy: `layer` = number of blocks is plain GRPO. Logged entropies are the full policy's.
Under data parallelism blocks without gradient need trl.ddp_find_unused_parameters=true.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.requests import LayerLogProb
from isentrope.control.stages import Intervention, PolicyPair
from isentrope.control.step import Need, Step


@dataclass(frozen=True)
class Bupo(Intervention):
    """Trains the policy of one block for the first updates, then the model's own. updates=0 is the objective alone."""

    name = "bupo"
    slug = "bupo"
    source = "BuPO, arXiv 2512.19673 (v3), Eq. 9-15; Trae1ounG/BuPO actor worker, custom model forward (MIT)"
    effect = "Shapes the lower blocks first; the full policy's entropy is moved only through them."

    layer: int = 6
    updates: int = 30
    norm: Literal["none", "final"] = "none"

    def __post_init__(self):
        check_at_least("Bupo", "layer", self.layer, 1, "Blocks are counted from 1.")
        check_at_least("Bupo", "updates", self.updates, 0, "0 switches it off.")
        check_one_of("Bupo", "norm", self.norm, ("none", "final"), 'The default is "none".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(LayerLogProb(self.layer, self.norm)), Need(LayerLogProb(self.layer, self.norm, grad=False), policy="old"))

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": "a policy has no budget to permute; compare it with the policy of another layer"}

    @property
    def dense(self) -> str:
        return "the ratio of every token is another policy's"

    def neutral(self) -> "Bupo":
        return replace(self, updates=0)

    def embedded(self) -> "Bupo":
        """The second of four blocks."""
        return replace(self, layer=2)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2], dual clip 10; no KL."""
        return replace(Objective.named("dapo"), epsilon_high=0.2, dual_clip=10.0)

    def policy(self, step: Step) -> Float[Tensor, "response token"] | PolicyPair:
        if step.progress.step >= self.updates:
            return step.log_probs
        current, old = (step.signal(need.key) for need in self.needs)
        wide = torch.promote_types(current.dtype, torch.float32)  # a ratio of 16-bit log-probs would be off by a hundredth
        return PolicyPair(current.to(wide), old.detach().to(wide))
