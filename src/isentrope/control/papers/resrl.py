r"""ResRL: right answers count a tenth, and a token of a wrong answer by how far its hidden state lies from what the right answers to its prompt span.

    A_t <- scale A                       right answers (reward > threshold)
    A_t <- w_t A                         wrong answers,  w_t = least + (1 - least) clip((e_t - lo) / (hi - lo), 0, 1)
    e_t = |(I - V V^T)(LN(h_t) - mu)|^2 / d      mu, V: mean and top `rank` directions of LN(h) over the right answers' tokens of the prompt

| paper | here | |
|---|---|---|
| h_t | `old.hidden[-2]` | state that enters the last block at the position before the token, detached |
| rank, M_max | `rank`, `max_rows` | of more right tokens than M_max as many are drawn, by row keys |
| q_low, q_high | `low`, `high` | lo, hi: quantiles of e over the wrong answers' tokens of the prompt |
| w_min, pos_weight | `least`, `scale` | NSR of the same strength: `least=1` |

Two token losses through one output head have gradients whose inner product is <delta, delta'> <x, x'>, so a large e certifies that lowering the wrong
token disturbs the right ones little. A prompt without a right answer, without a wrong one, or with fewer than 4 right tokens keeps weight 1.

Where the release differs: it groups inside a micro-batch, whose rows its trainer has usually scattered, so that most wrong answers keep weight 1; here
the prompt's rows are found wherever they stand. It takes the states of the update being made; here they are of the policy that sampled, scored once
per generation, the same until the first update on it. It draws a random subspace (randomised PCA with exactly k directions), here the singular vectors
are exact. The upper bound as the paper prints it was not readable; the one above is derived. The release's length factor on rewards is
`control.projection.length_factor`, and not part of this. Its clipped loss as GRPO's here is (inferred).
The states of the whole batch are held on every process while advantages are made: rows x tokens x d numbers.

Right answers weigh ten times less than wrong ones, which raises the entropy: compare with NSR of the same strength, not with GRPO alone.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction
from isentrope.control.projection import projection_weights, reweighted
from isentrope.control.requests import HiddenStates
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State


@dataclass(frozen=True)
class ResRL(Intervention):
    """Scaled advantages of right answers; per-token advantages of wrong ones by the distance from the right answers' subspace."""

    name = "resrl"
    slug = "resrl"
    source = "ResRL, arXiv 2605.00380 (ICML 2026); 1229095296/ResRL dp_actor.py (Apache-2.0)"
    effect = "Raises entropy as NSR does, right answers weighing ten times less; the weights on wrong ones take some of it back."

    scale: float = 0.1  # of the advantages of right answers; 1 leaves them
    least: float = 0.1  # smallest weight of a wrong answer's token; 1 leaves them all
    rank: int = 64
    low: float = 0.2  # quantiles of the residuals between which the weight rises
    high: float = 0.8
    max_rows: int = 4096  # right tokens per prompt that the subspace is made of
    threshold: float = 0.0  # an answer is right above this reward
    layer: int = -2  # of the list of states: 0 the embeddings, -1 what the head reads

    def __post_init__(self):
        for name in ("least", "low", "high"):
            check_fraction("ResRL", name, self.__dict__[name])
        if self.low >= self.high:
            raise ValueError(f"ResRL: low must be below high. Got {self.low} and {self.high}. The paper has 0.2 and 0.8.")
        check_at_least("ResRL", "scale", self.scale, 0, "1 leaves the right answers as they are.")
        check_at_least("ResRL", "rank", self.rank, 1, "The paper has 64.")
        check_at_least("ResRL", "max_rows", self.max_rows, 4, "With fewer right tokens nothing is weighted.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(HiddenStates(self.layer), policy="old"),)

    @property
    def dense(self) -> str:
        return "every token of a right answer is scaled, and four fifths of those of wrong ones lie below the upper quantile"

    def neutral(self) -> "ResRL":
        """Weight 1 throughout."""
        return replace(self, scale=1.0, least=1.0)

    def embedded(self) -> "ResRL":
        """A subspace small beside the embedded model's states."""
        return replace(self, rank=4)

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.scale == 1 and self.least == 1:
            return rollouts.advantage
        positive = rollouts.reward > self.threshold
        weights = torch.ones(rollouts.trained_mask.shape, dtype=torch.float64, device=positive.device)
        if self.least < 1:
            weights = projection_weights(
                rollouts.signal(self.needs[0].key), rollouts.trained_mask, positive, rollouts.group,
                rank=self.rank, low=self.low, high=self.high, least=self.least, max_rows=self.max_rows, row_id=rollouts.row_id,
            )  # fmt: skip
        return reweighted(rollouts.advantage, weights, positive, self.scale)
