"""Interventions that no paper of the collection owns: the clips of DAPO and of dual clip, overlong punishment, dynamic sampling, a KL
to a reference, and the entropy bonus and band of `entropy_terms`.

    clip-higher       r in [1 - low, 1 + high]                                  DAPO, arXiv 2503.14476, Eq. 10
    dual-clip         loss at most -A cap where A < 0                           arXiv 1912.09729, Eq. 5
    overlong          R + min((limit - buffer - length) / buffer factor, 0)     DAPO, Eq. 13
    dynamic-sampling  groups of equal rewards are sampled again                 DAPO, Eq. 11
    reference-kl      loss + coef KL(policy || reference)                       joschu.net/blog/kl-approx.html

Paper and code: beyond the limit the overlong punishment stays at its largest (`variant="paper"`, Eq. 13, the default) or keeps growing
(`variant="code"`, verl). Where the limit is the trainer's, no response passes it and the two are the same.

What is said of all tokens alike (one window for all) has no placebo by permutation: `expected_failures` says so.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.advantages import overlong_reward
from isentrope.control.blocks import check_at_least, check_one_of, ratio_and_bounds
from isentrope.control.entropy_terms import ALIKE, EntropyBand, EntropyBonus
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Penalty
from isentrope.control.step import Rollouts, State, Stats, Step
from isentrope.control.surrogates import Bounds, kl_estimate
from isentrope.control.transforms import mixed_groups, shape_reward

__all__ = ["ClipHigher", "DualClip", "DynamicSampling", "EntropyBand", "EntropyBonus", "Overlong", "ReferenceKL"]

# --- clips


@dataclass(frozen=True)
class ClipHigher(Intervention):
    """A clip window with sides of its own: a higher upper side lets unlikely tokens of good responses grow, which keeps entropy up."""

    name = "clip-higher"
    source = "DAPO, arXiv 2503.14476, Eq. 10"
    effect = "Keeps entropy up: unlikely tokens of good responses may grow further."
    replaces = frozenset({"epsilon", "epsilon_high"})

    high: float | None = 0.28  # the window is [1 - low, 1 + high]; None leaves that side as the objective has it
    low: float | None = None

    def __post_init__(self):
        for parameter, value in (("high", self.high), ("low", self.low)):
            check_at_least("ClipHigher", parameter, 0 if value is None else value, 0, "None leaves the side as the objective has it.")

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": ALIKE}

    def neutral(self) -> "ClipHigher":
        return replace(self, high=None, low=None)

    def embedded(self) -> "ClipHigher":
        """The small model's ratios seldom pass 1.2, so its lower side is drawn in as well."""
        return replace(self, low=0.05)

    def recipe(self) -> Objective:
        """DAPO's, whose own window is [0.8, 1.28]."""
        return Objective.named("dapo")

    def idle_under(self, objective: Objective, *, on_policy: bool = False) -> str:
        return _idle_clip(objective, "high", on_policy) if self != self.neutral() else ""

    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds:
        bounds = ratio_and_bounds(step)[1]
        bounds = bounds if self.low is None else replace(bounds, low=1 - self.low)
        return bounds if self.high is None else replace(bounds, high=1 + self.high)


@dataclass(frozen=True)
class DualClip(Intervention):
    """Bounds the loss at -A cap where A < 0, so a token that became much more likely in a bad response has no gradient.

    TRL's `delta` is the same bound.
    """

    name = "dual-clip"
    source = "Ye et al. 2020, Mastering Complex Control in MOBA Games, arXiv 1912.09729, Eq. 5; verl clip_ratio_c"
    effect = "Bounds how far wrong answers that became likelier can move entropy."
    replaces = frozenset({"delta"})

    cap: float | None = 3.0

    def __post_init__(self):
        if self.cap is not None and not self.cap > 1:
            raise ValueError(f"DualClip: cap must be above 1, it bounds the ratio of tokens with A < 0. Got {self.cap}. None switches it off.")

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {"placebo_keeps_the_budget": ALIKE}

    def neutral(self) -> "DualClip":
        return replace(self, cap=None)

    def embedded(self) -> "DualClip":
        """The small model's ratios seldom reach 3."""
        return replace(self, cap=1.05)

    def idle_under(self, objective: Objective, *, on_policy: bool = False) -> str:
        return _idle_clip(objective, "cap", on_policy) if self.cap is not None else ""

    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds:
        bounds = ratio_and_bounds(step)[1]
        return bounds if self.cap is None else replace(bounds, cap=self.cap)


def _idle_clip(objective: Objective, bound: str, on_policy: bool) -> str:
    """Why a bound of the ratio cannot act: the form of the objective has no place for it, or there is no ratio but 1."""
    if bound not in objective.reads:
        return f"the objective's form {objective.form!r} takes no such bound of the ratio."
    if on_policy:
        return (
            "with one update per generation every ratio is 1. It needs several: in TRL raise num_iterations, or steps_per_generation above "
            "gradient_accumulation_steps."
        )
    return ""


# --- rewards and groups


@dataclass(frozen=True)
class Overlong(Intervention):
    """Soft overlong punishment: from `buffer` tokens before the limit the reward falls linearly, by `factor` at the limit.

    limit: tokens; set it to the trainer's max_completion_length. "cut": the length at which responses of this rollout were truncated,
    so nothing is punished in a rollout that truncates none. "longest": the longest response of this rollout.
    buffer: tokens; None is a fifth of the limit, as in DAPO (4,096 of 20,480). Lengths are of all text of a response.
    variant: beyond the limit the punishment stays at `factor` ("paper", Eq. 13) or keeps growing ("code", verl); the same for a limit
    that no response can pass. Responses that the trainer masks for being truncated are not punished twice: choose one.
    """

    name = "overlong"
    source = "DAPO, arXiv 2503.14476, Eq. 13; verl reward_manager/dapo.py"
    effect = "None of its own: long responses are paid less."
    replaces = frozenset({"mask_truncated_completions"})

    limit: int | Literal["cut", "longest"] = "cut"
    buffer: int | None = None
    factor: float = 1.0
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        if isinstance(self.limit, str):
            check_one_of("Overlong", "limit", self.limit, ("cut", "longest"), "Or give a number of tokens.")
        else:
            check_at_least("Overlong", "limit", self.limit, 1, 'Tokens; "cut" finds it.')
            check_at_least("Overlong", "limit", self.limit, self.buffer or 0, f"buffer is {self.buffer} of its tokens.")
        check_at_least("Overlong", "buffer", 1 if self.buffer is None else self.buffer, 1, "None is a fifth of the limit.")
        check_at_least("Overlong", "factor", self.factor, 0, "0 switches it off.")
        check_one_of("Overlong", "variant", self.variant, ("paper", "code"), 'The default is "paper".')

    def neutral(self) -> "Overlong":
        return replace(self, factor=0.0)

    def embedded(self) -> "Overlong":
        """The small model is never cut, so the longest response stands for the limit."""
        return replace(self, limit="longest", buffer=3)

    def recipe(self) -> Objective:
        return Objective.named("dapo")

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        if self.factor == 0:
            return rollouts.reward
        length = rollouts.completion_mask.sum(-1)
        among = rollouts.truncated if self.limit == "cut" else torch.ones_like(rollouts.truncated)
        limit = int(torch.where(among, length, 0).max()) if isinstance(self.limit, str) else self.limit
        if limit == 0:
            return rollouts.reward
        buffer = max(1, limit // 5) if self.buffer is None else min(self.buffer, limit)
        length = length.clamp(max=limit) if self.variant == "paper" else length
        zero = torch.zeros_like(rollouts.reward)
        return shape_reward(rollouts.reward, overlong_reward(zero, length, limit=limit, buffer=buffer, factor=self.factor))


@dataclass(frozen=True)
class DynamicSampling(Intervention):
    """Groups whose rewards are all equal teach nothing: they are sampled again from fresh prompts, for at most `rounds` rounds.

    What is still equal then leaves the loss and its divisor.
    """

    name = "dynamic-sampling"
    source = "DAPO, arXiv 2503.14476, Eq. 11; verl algorithm.filter_groups"
    effect = "None of its own: an update holds more groups that teach something."

    rounds: int = 3
    spread: float = 0.0  # groups whose rewards span at most this are dropped; -1 drops none
    of: Literal["reward", "correct"] = "reward"  # what is compared; verl's acc is "correct"

    def __post_init__(self):
        check_at_least("DynamicSampling", "rounds", self.rounds, 0, "0 drops groups and samples none.")
        check_at_least("DynamicSampling", "spread", self.spread, -1, "-1 keeps every group.")
        check_one_of("DynamicSampling", "of", self.of, ("reward", "correct"), 'The default is "reward".')

    def neutral(self) -> "DynamicSampling":
        return replace(self, spread=-1.0)

    def recipe(self) -> Objective:
        """DAPO's token mean: a mean over rows would still count the empty ones."""
        return Objective.named("dapo")

    def keep(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        if self.spread < 0:
            return torch.ones_like(rollouts.truncated)
        value = rollouts.reward if self.of == "reward" else rollouts.correct
        return mixed_groups(value, rollouts.group, self.spread)


# --- KL


@dataclass(frozen=True)
class ReferenceKL(Intervention):
    """A KL to a reference policy in the loss, by an estimator of one's choice; tokens within `free` nats of the reference pay nothing.

    With x = log p - ref log p of the sampled token: k1 is x, k2 x^2 / 2, k3 e^-x + x - 1 (x held inside +-20). As a loss the mean
    gradient of k2 is that of KL(policy || reference), of k3 that of KL(reference || policy), of k1 it is 0. `free` moves x towards 0 by
    up to that much before it is estimated.

    against: "reference" is the trainer's own, which TRL loads only with beta > 0; beta then puts a KL into the objective too, so
    take that one out with `objective: {kl: null, kl_coef: 0}`. "old" is the policy that sampled, a trust region.
    """

    name = "reference-kl"
    source = "Schulman, Approximating KL divergence, joschu.net/blog/kl-approx.html; sheet grpo-family, section 6"
    effect = "Holds entropy near that of the reference."

    coef: float = 0.001
    estimator: Literal["k1", "k2", "k3"] = "k2"
    against: Literal["reference", "old"] = "reference"
    free: float = 0.0  # nats

    def __post_init__(self):
        check_at_least("ReferenceKL", "coef", self.coef, 0, "0 switches it off.")
        check_one_of("ReferenceKL", "estimator", self.estimator, ("k1", "k2", "k3"), 'The default is "k2".')
        check_one_of("ReferenceKL", "against", self.against, ("reference", "old"), 'The default is "reference".')
        check_at_least("ReferenceKL", "free", self.free, 0, "It is a distance in nats.")
        if self.estimator == "k1" and self.coef > 0:
            warnings.warn("ReferenceKL: k1 in the loss has mean gradient 0 and only adds noise; it belongs into the reward. Take k2 or k3.", stacklevel=3)

    def neutral(self) -> "ReferenceKL":
        return replace(self, coef=0.0)

    def embedded(self) -> "ReferenceKL":
        """Without a reference in memory, and only where the policy has moved."""
        return replace(self, coef=0.1, against="old", free=0.05)

    def idle_under(self, objective: Objective, *, on_policy: bool = False) -> str:
        if self.coef == 0 or self.against == "reference" or not on_policy:
            return ""
        return "with one update per generation the policy that sampled is the one that is trained, and the distance between them is 0."

    def regularise(self, step: Step, stats: Stats | None, state: State) -> Penalty:
        if self.coef == 0:
            return Penalty()
        reference = step.rollouts.ref_log_probs if self.against == "reference" else step.old_log_probs
        if reference is None:
            raise ValueError(
                "ReferenceKL: this step carries no log-probs of a reference; TRL loads one only with trl.beta above 0. Set trl.beta=1e-6 and "
                "objective: {kl: null, kl_coef: 0}, so that the objective's own KL is off; or against='old'."
            )
        x = step.log_probs - reference.detach()
        acts = x != 0
        if self.free > 0:
            acts = x.abs() > self.free
            x = torch.where(acts, x - self.free * torch.sign(x.detach()), 0.0)
        elif self.estimator == "k1":
            acts = torch.ones_like(acts)
        value = kl_estimate(x, torch.zeros_like(x), self.estimator, log_ratio_clamp=20.0)
        return Penalty(token=self.coef * value, touched=acts & step.mask)
