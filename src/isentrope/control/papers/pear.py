"""PEAR: a correct answer is paid less by what its thinking is less certain than its answer, on average over tokens.

    H_think = mean of H_t before the closing tag      H_ans = mean of H_t after it      P = max(0, H_think - alpha H_ans)
    reward of a correct response:  s - coef P          of a wrong one: as it was

| paper | here | |
|---|---|---|
| H_t | signal `old.entropy` | nats, policy that sampled, at its temperature; detached, once per rollout |
| k, the first closing tag | `close` | its token ids in a row; excluded from both means. Empty: phases are `Rollouts.segment`, 0 thinking, 1 and up answer |
| alpha | `alpha` | 1 is the best of -1, 0, 0.5, 1, 2 |
| s, r_fmt | the reward that the task gave; `wrong` | 1 and 0 in the README |
| - | `coef` | ours: 0 switches it off, 1 is the paper |

An empty phase has entropy 0 (the empty thinking is a choice of the sheet); without a tag all is thinking, its last token too, where "k = T" would
leave that out. The paper's min(1, .) is idle, since P >= 0 and s <= 1, and left out.

Where paper and we differ: the paper has no lower bound, and entropies are in nats, so a correct answer can fall below a wrong one
(`variant="paper"`). Default `variant="fixed"`: a correct answer keeps at least `wrong + margin`, as the sheet recommends.

In a group where all are correct the division by the group's std cancels s and any common factor of P: however small the gap of entropies, it then
supplies the whole gradient. With one reward in (nats), another unit would change mixed groups only. The released reward file was not readable;
formulas are of Eq. 5-8 as restated by readers.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.measure.level import pool
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="old")


@dataclass(frozen=True)
class PhaseEntropies:
    """Mean token entropy of each phase in nats, 0 where the phase is empty, and how many tokens it has."""

    think: Float[Tensor, " response"]
    answer: Float[Tensor, " response"]
    think_tokens: Float[Tensor, " response"]
    answer_tokens: Float[Tensor, " response"]

    def penalty(self, alpha: float = 1.0) -> Float[Tensor, " response"]:
        """P = max(0, H_think - alpha H_ans), nats."""
        return (self.think - alpha * self.answer).clamp(min=0)


def closing_tag(ids: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"], close: tuple[int, ...]) -> Int[Tensor, "response token"]:
    """The phase of each token: 0 before the first occurrence of the ids `close` in a row, 1 after it, -1 on it and outside the mask.

    Raises ValueError for an empty `close`.
    """
    if not close:
        raise ValueError("closing_tag: close must hold at least one token id. Got none. Encode the model's closing tag, such as </think>.")
    width, size = ids.shape[1], len(close)
    padded = torch.nn.functional.pad(torch.where(mask, ids, -1), (0, size), value=-1)
    starts = torch.stack([padded[:, offset : offset + width] == token for offset, token in enumerate(close)]).all(0)
    place = torch.arange(width, device=ids.device)
    first = torch.where(starts, place, width).amin(-1, keepdim=True) if width else place.new_zeros(len(ids), 1)
    phase = torch.where(place < first, 0, torch.where(place < first + size, -1, 1))
    return phase.masked_fill(~mask, -1)


def phase_entropies(entropy: Float[Tensor, "response token"], phase: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> PhaseEntropies:
    """Mean entropy of the tokens of phase 0 (thinking) and of phase 1 and up (answer), in nats; -1 belongs to none."""
    ids = phase.masked_fill(~mask, -1).clamp(max=1)
    mean, count = (pool(entropy.detach(), ids, pools=2, how=how, empty=0.0) for how in ("mean", "count"))
    return PhaseEntropies(mean[:, 0], mean[:, 1], count[:, 0], count[:, 1])


@dataclass(frozen=True)
class Pear(Intervention):
    """Correct responses lose reward by the excess of their thinking's mean entropy over their answer's."""

    name = "pear"
    slug = "pear"
    source = "Phase Entropy Aware Reward for Efficient Reasoning, arXiv 2510.08026, Eq. 5-8 (ICLR 2026); iNLP-Lab/PEAR README"
    effect = "Lowers the entropy of the thinking towards that of the answer."

    alpha: float = 1.0  # weight of the answer's entropy; 0.5 to 1.5 recommended
    coef: float = 1.0  # reward per nat; 0 switches it off
    close: tuple[int, ...] | list[int] = ()  # token ids of the closing tag
    wrong: float = 0.0  # the task's reward of a wrong answer
    margin: float = 0.1  # what a correct answer keeps above it ("fixed")
    variant: Literal["fixed", "paper"] = "fixed"

    def __post_init__(self):
        object.__setattr__(self, "close", tuple(self.close))  # YAML hands over a list
        check_at_least("Pear", "coef", self.coef, 0, "0 switches it off; a negative one would pay for uncertain thinking.")
        check_at_least("Pear", "margin", self.margin, 0, "It is what a correct answer keeps above a wrong one; 0.1 by default.")
        check_at_least("Pear", "close", min(self.close, default=0), 0, "Token ids are not negative.")
        check_one_of("Pear", "variant", self.variant, ("fixed", "paper"), 'The default is "fixed".')
        if self.alpha != self.alpha:
            raise ValueError(f"Pear: alpha must be a number. Got {self.alpha}. The paper takes 1.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def dense(self) -> str:
        return "every response of a group with a penalised answer gets another advantage, 88 to 100 % of the tokens"

    def neutral(self) -> "Pear":
        return replace(self, coef=0.0)

    def embedded(self) -> "Pear":
        """</think> is one token of the embedded model."""
        return replace(self, close=(511,))

    def recipe(self) -> Objective:
        """GRPO; the paper adds a KL to the reference, which is the trainer's to set."""
        return Objective.named("grpo")

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        before = rollouts.reward.detach()
        penalty = self.coef * self.phases(rollouts).penalty(self.alpha).to(before.dtype)
        after = before - penalty
        if self.variant == "fixed":
            after = torch.minimum(before, after.clamp(min=self.wrong + self.margin))
        return torch.where((rollouts.correct > 0) & (penalty > 0), after, before)

    def phases(self, rollouts: Rollouts) -> PhaseEntropies:
        """Entropies and lengths of both phases; log all four, since mean entropy is only a proxy of length.

        Raises ValueError without a closing tag and without segments.
        """
        mask = rollouts.trained_mask
        if self.close:
            phase = closing_tag(rollouts.completion_ids, mask, tuple(self.close))
        elif rollouts.segment is not None:
            phase = rollouts.segment
        else:
            raise ValueError(
                "Pear: close must hold the token ids of the closing tag where the rollouts name no segments. Got (). "
                'Write close=[...] with tokenizer("</think>", add_special_tokens=False).'
            )
        return phase_entropies(rollouts.signal(_ENTROPY.key), phase, mask)
