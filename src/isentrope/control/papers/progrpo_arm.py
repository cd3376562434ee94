"""ARM (ProGRPO): subtract from each advantage the response's own confidence on its least likely tokens, relative to the prompt's.

    c_i = exp( mean of the n smallest ln p_t of response i ),   n = max(1, ceil(share T_i)),   in (0, 1], policy that sampled
    A'_i = A_i                          in a group without a correct response
    A'_i = A_i + alpha (c_q - c_i)      else, on every response of the group

| paper | here | |
|---|---|---|
| alpha | `alpha` | advantage per unit of confidence; the paper's value is not known, 0.1 to 0.5 is a start (inferred) |
| T_low(x) | the `share` least likely tokens | 0.2, from the paper's remark that four tokens of five are near certain |
| c(q) | `prompt` | a constant within a group, so it moves no response past another |
| sum r = 0 | `correct`, or a positive reward where no verifier spoke | |

No code was found. c(q) needs the log-probs of the prompt, which a batch does not carry: `prompt=None` (default) takes the group's mean confidence in
its place (inferred), which keeps the group's mean advantage where it was; a number is c(q) itself, with the drift of alpha (c_q - mean c) that the
paper has. A group in which all are correct has A = 0 and gets the term alone, pure pressure to differ: so reads the formula, and
`all_correct=False` leaves such groups out, as one note has it.

Where c_i is a bandit's probability the term's first-order entropy change is alpha Cov(S, pi) >= 0: it pushes entropy up. The perplexity
shaping of `entropy-performance-exchange` does the opposite; chaining both warns.
"""

import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.measure.tokens import TargetProb

_CHOSEN = Need(TargetProb(), policy="old")  # old log-probs may be absent on-policy; this is always scored
_LEAST = 1e-30  # probabilities below it count as it


def confidence(log_probs: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], share: float = 0.2) -> Float64[Tensor, " response"]:
    """Geometric mean of the probabilities of the `share` least likely tokens (rounded up, at least one), in [0, 1]; 1 without a token.

    >>> confidence(torch.log(torch.tensor([[0.5, 0.9, 0.8]])), torch.ones(1, 3, dtype=torch.bool), 0.5).round(decimals=4)
    tensor([0.6325], dtype=torch.float64)
    """
    ordered = torch.where(mask, log_probs.detach().double(), torch.inf).sort(dim=-1).values
    length = mask.sum(-1)
    count = torch.ceil(share * length.double() - 1e-9).clamp(min=1).long().minimum(length)
    taken = torch.arange(mask.shape[1], device=mask.device) < count[:, None]
    return torch.exp(torch.where(taken, ordered, 0.0).sum(-1) / count.clamp(min=1))


def group_mean(
    value: Float64[Tensor, " response"], group: Int[Tensor, " response"], counts: Bool[Tensor, " response"], row_id: Int[Tensor, " response"]
) -> Float64[Tensor, " response"]:
    """Mean over the counted responses of each response's group, 0 in a group without any; rows added in the order of their ids."""
    index = torch.unique(group, return_inverse=True)[1]
    rows = torch.argsort(row_id)
    rows = rows[counts[rows]]
    zero = value.new_zeros(len(value))
    total, number = zero.index_add(0, index[rows], value[rows]), zero.index_add(0, index[rows], torch.ones_like(value[rows]))
    return (total / number.clamp(min=1))[index]


@dataclass(frozen=True)
class Arm(Intervention):
    """The advantage less alpha times the confidence. alpha = 0 leaves it as it is."""

    name = "arm"
    slug = "progrpo-arm"
    source = "Back to Basics (ProGRPO), arXiv 2602.05281, the advantage re-weighting mechanism; no code found"
    effect = "Slows the fall of entropy: responses without doubt gain less."
    opposes = frozenset({"perplexity-shaping"})

    alpha: float = 0.3
    share: float = 0.2
    prompt: float | None = None
    all_correct: bool = True

    def __post_init__(self):
        check_at_least("Arm", "alpha", self.alpha, 0, "0 switches it off; to favour confident responses take perplexity-shaping.")
        check_fraction("Arm", "share", self.share)
        if self.prompt is not None:
            check_fraction("Arm", "prompt", self.prompt)
        if self.alpha > 1:
            warnings.warn(
                f"Arm: alpha={self.alpha} may outweigh the reward: confidences differ by up to 1, the standardised advantages of a right and a "
                "wrong response by as little as 1.4, so a wrong unlikely response can pass a right likely one.",
                stacklevel=2,
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_CHOSEN,)

    @property
    def dense(self) -> str:
        return "every response of a group with a correct one gets a term, 88 to 100 % of the tokens"

    def neutral(self) -> "Arm":
        return replace(self, alpha=0.0)

    def recipe(self) -> Objective:
        """Token-mean PPO with the ratio in [0.8, 1.28], no KL."""
        return Objective.named("dapo")

    def term(self, rollouts: Rollouts) -> Float64[Tensor, " response"]:
        """c_q - c_i on the responses that it concerns, 0 on the others."""
        mask, group, row_id = rollouts.trained_mask, rollouts.group, rollouts.row_id
        counts = mask.any(-1)
        c = confidence(rollouts.signal(_CHOSEN.key).double().clamp(min=_LEAST).log(), mask, self.share)
        right = torch.where(rollouts.correct.isnan(), rollouts.reward > 0, rollouts.correct > 0)
        accuracy = group_mean(right.double(), group, torch.ones_like(right), row_id)
        on = counts & (accuracy > 0) & (self.all_correct | (accuracy < 1))
        c_q = group_mean(c, group, counts, row_id) if self.prompt is None else torch.full_like(c, self.prompt)
        return torch.where(on, c_q - c, 0.0)

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.alpha == 0:
            return rollouts.advantage
        return rollouts.advantage + (self.alpha * self.term(rollouts)).to(rollouts.advantage.dtype)[:, None]
