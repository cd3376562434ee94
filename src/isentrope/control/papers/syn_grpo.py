"""Syn-GRPO: prompts and responses that make a group's outcomes diverse are worth more.

    D(x)   = population variance of the outcomes r_j of the g responses to prompt x;    binary: p (1 - p) <= 1/4
    P_j    = g D - (g - 1) D without j = (r_j - mean r)^2 g / (g - 1)          what response j adds to it (its jackknife value)
    A'_j   = A_j + coef (P_j - level),    level <- smoothing level + (1 - smoothing) mean_x D(x), once per generation
    chosen before training: the `prompts` prompts of highest D by `probes` responses of the starting policy

| paper | here | |
|---|---|---|
| lambda | `coef` | no value known |
| "diversity smoothing" | `smoothing` | the running level that diversity is compared with; 0.9 (inferred) |
| difficulty of what is synthesised | `prompts`, `probes`, `probe_prompts` | by success rate: D is highest at p = 1/2 (inferred) |

The paper's policy writes a description, another model paints a new image after it, and the description is paid by the diversity that the
image brings, D(x') - level. Nothing is synthesised here: text tasks have no such generator. What is left of it are its two ideas, and both
forms are (inferred), from an abstract and summaries; no code was readable. Prompts are chosen by their success rate. And the pay of a
description becomes one of a response: a term D - level alike for all responses of a prompt is a baseline, with no gradient in the mean, so each gets
its own share P_j of it, whose mean over the group is D g / (g - 1). Rare outcomes are paid, right or wrong.
It is added after the normalisation: before it, (R - mean) / std forgets every map of a two-valued outcome.

Diversity of outcomes is not diversity of text: look at the entropy beside it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, number
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Probed, ProbeRequest
from isentrope.control.step import Rollouts, State


def diversity(
    outcome: Float64[Tensor, " response"], counts: Bool[Tensor, " response"], group: Int[Tensor, " response"]
) -> tuple[Float64[Tensor, " response"], Float64[Tensor, " response"]]:
    """(D of the response's group, P of the response) over the counted responses; both 0 where a group has one, or the response is not counted."""
    index = torch.unique(group, return_inverse=True)[1]
    value = torch.where(counts, outcome, 0.0)

    def total(of: Tensor) -> Tensor:
        return torch.zeros(len(group), dtype=torch.float64, device=of.device).index_add(0, index, of.double())[index]

    n = total(counts)
    square = torch.where(counts, (value - total(value) / n.clamp(min=1)) ** 2, 0.0)
    there = counts & (n > 1)
    return torch.where(there, total(square) / n.clamp(min=1), 0.0), torch.where(there, square * n / (n - 1).clamp(min=1), 0.0)


@dataclass(frozen=True)
class SynGrpo(Intervention):
    """Pays each response for the diversity of outcomes that it brings its group, and trains on prompts of middling success. coef=0 pays nothing.

    prompts: train on so many of them, of highest D by `probes` responses to each of `probe_prompts` prompts drawn from the training set (None: all of
    it). None trains on every prompt. An outcome is the verifier's verdict, or the reward where it gave none.
    """

    name = "syn-grpo"
    slug = "syn-grpo"
    source = "Syn-GRPO, arXiv 2511.19343; abstract and summaries, no code readable"
    effect = "Raises entropy: outcomes that are rare in their group are paid."

    coef: float = 0.1
    smoothing: float = 0.9
    prompts: int | None = None
    probes: int = 16
    probe_prompts: int | None = 256

    def __post_init__(self):
        check_at_least("SynGrpo", "coef", self.coef, 0, "0 switches the pay off.")
        check_fraction("SynGrpo", "smoothing", self.smoothing)
        check_at_least("SynGrpo", "prompts", 1 if self.prompts is None else self.prompts, 1, "None trains on every prompt.")
        check_at_least("SynGrpo", "probes", self.probes, 2, "A variance needs two responses.")
        check_at_least("SynGrpo", "probe_prompts", 1 if self.probe_prompts is None else self.probe_prompts, 1, "None probes all of them.")

    @property
    def dense(self) -> str:
        return "every response is compared with the running level"

    def init(self) -> State:
        """`level`: of D, None before the first generation."""
        return {"level": None}

    def neutral(self) -> "SynGrpo":
        return replace(self, coef=0.0, prompts=None)

    def embedded(self) -> "SynGrpo":
        """Sixteen prompts fill a generation of the small model's preset."""
        return replace(self, coef=0.5, prompts=16, probes=8, probe_prompts=64)

    def probe(self) -> ProbeRequest | None:
        return None if self.prompts is None else ProbeRequest(self.probes, self.probe_prompts)

    def select(self, probed: Probed) -> Int[Tensor, " chosen"]:
        """The prompts of highest D, ties by position; fewer than `prompts` where the others' outcomes were all alike.

        Raises ValueError where all were.
        """
        outcome = torch.where(probed.correct.isnan(), probed.reward, probed.correct).double()
        d = outcome.var(dim=1, correction=0)
        order = torch.argsort(-d, stable=True)[: self.prompts]
        chosen = order[d[order] > 0]
        if len(chosen) == 0:
            raise ValueError(
                f"SynGrpo: prompts chooses those whose outcomes differ. Of {len(d)} prompts with {outcome.shape[1]} responses each none did. Raise "
                "probes or probe_prompts, or take another task."
            )
        return probed.position[chosen]

    def measured(self, rollouts: Rollouts) -> tuple[Float64[Tensor, " response"], Float64[Tensor, " response"], Bool[Tensor, " response"]]:
        """(D of the group, P) of every response, and which of them count."""
        counts = rollouts.trained_mask.any(-1) & ~rollouts.reward.isnan()
        outcome = torch.where(rollouts.correct.isnan(), rollouts.reward, rollouts.correct).double()
        return *diversity(outcome, counts, rollouts.group), counts

    def level(self, rollouts: Rollouts, state: State) -> float:
        """The level that this generation is compared with: before the first, its own mean D."""
        return number(state, "level") if state["level"] is not None else self._mean(rollouts)

    def _mean(self, rollouts: Rollouts) -> float:
        """Mean of D over the prompts that have a counted response, 0 without one; the same number in any order of the rows."""
        d, _, counts = self.measured(rollouts)
        groups, index = torch.unique(rollouts.group, return_inverse=True)
        of_group, some = torch.zeros(len(groups), dtype=torch.float64, device=d.device), torch.zeros_like(groups, dtype=torch.bool)
        of_group[index[counts]], some[index[counts]] = d[counts], True  # a group's responses all hold its D
        return float(of_group[some].mean()) if bool(some.any()) else 0.0

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.coef == 0:
            return rollouts.advantage
        _, own, counts = self.measured(rollouts)
        paid = torch.where(counts, self.coef * (own - self.level(rollouts, state)), 0.0)[:, None].to(rollouts.advantage.dtype)
        return rollouts.advantage + paid

    def collect(self, rollouts: Rollouts, state: State) -> State:
        if not bool(rollouts.trained_mask.any()):
            return state
        mean = self._mean(rollouts)
        return {"level": mean if state["level"] is None else self.smoothing * number(state, "level") + (1 - self.smoothing) * mean}

    def recipe(self) -> Objective:
        return Objective.named("grpo")
