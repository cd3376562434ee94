"""AEPO (arbitrary entropy): correct responses sampled hotter, or cooler, replace a few rows and are imitated, so entropy meets a target.

    T = hot if H_now <= target else cold
    n more responses for the first quarter of the groups at T; those with GRPO advantage > 0.05 are kept
    M = min(replaced, kept), halved (floor) while H_now > target;  the first M rows become the first M kept, with advantage 1
    then one ordinary clipped update; H_now <- entropy of this update

| paper | here | |
|---|---|---|
| H_target | `target` | nats; 0.5 in the code, 0.75 is the best reported (Qwen2.5-Math-7B) |
| T_high, T_low | `hot`, `cold` | absolute sampling temperatures, (inferred) from the code |
| reinforce_sample_num | `replaced` | rows; takes the place of the free coefficient alpha of the paper's gradient |

The log-prob is of the policy at T = 1 though the response came from T: no importance correction, the fixed point imitates pi_T filtered by
reward. To first order the extra term moves entropy by alpha eta Cov(log p, p - pi_T): up for T > 1, down for T < 1 (inferred, derived).

Where we leave the code: H_now is the full-vocabulary entropy of the trained policy on the ordinary rows (`variant="fixed"`, default); the
code takes minus the mean log-prob of all trained rows, inflated by the hot ones (`variant="code"`). Without a kept response nothing is
replaced (the code fails). "First" is by group and row id. Replaced rows vanish from their GRPO group after its advantages were computed.

A second algorithm of the same repository, DCPO, is `dcpo_advantage`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.advantages import group_advantages
from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number
from isentrope.control.objectives import Objective
from isentrope.control.stages import ExtraRequest, Intervention, RowEdit
from isentrope.control.step import ORIGINS, Need, Progress, Rollouts, RowRng, State, Stats, Step
from isentrope.control.surrogates import Bounds, clip_fractions, masked_mean
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy())


@dataclass(frozen=True)
class Replacements:
    """Positions of the kept extra responses, in their order, and how many of them replace rows."""

    kept: Int[Tensor, " kept"]
    count: int


def replacements(
    reward: Float[Tensor, " extra"],
    group: Int[Tensor, " extra"],
    *,
    entropy: float,
    target: float,
    most: int,
    threshold: float = 0.05,
) -> Replacements:
    """Which extra responses are kept (GRPO advantage above `threshold`) and how many replace the head of the batch.

    entropy, target: nats. A group of equal rewards keeps none.
    """
    kept = (group_advantages(reward.double(), group) > threshold).nonzero().squeeze(1)
    count = min(most, len(kept))
    return Replacements(kept, count // 2 if entropy > target else count)


@dataclass(frozen=True)
class LogSpaceLoss:
    """Token-mean loss, minus the mean log-prob (nats), and the shares of valid tokens where the clip and the dual clip act."""

    loss: Float[Tensor, ""]
    surprise: Float[Tensor, ""]
    clipped: Float[Tensor, ""]
    dual_clipped: Float[Tensor, ""]


def log_space_clip_loss(
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.3,
    dual_clip: float = 3.0,
) -> LogSpaceLoss:
    """The released loss: the clipped branch bounds the log-ratio to [ln(1 - low), ln(1 + high)]; the unclipped branch is free.

    Equal to clipping the ratio, so `recipe()` is the ordinary objective. `clipped` counts either sign of the advantage.
    """
    bounds = Bounds(1 - epsilon_low, 1 + epsilon_high, dual_clip)
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    free, held = -advantage * log_ratio.exp(), -advantage * bounds.log().clamp(log_ratio).exp()
    loss, floor = torch.max(free, held), -advantage * dual_clip
    loss = torch.where((advantage < 0) & (loss > floor), floor, loss)
    return LogSpaceLoss(masked_mean(loss, mask), -masked_mean(log_probs, mask), *clip_fractions(log_ratio.exp(), advantage, mask, bounds))


def dcpo_advantage(
    advantage: Float[Tensor, "response #token"],
    correct: Bool[Tensor, " response"],
    old_log_probs: Float[Tensor, "response token"],
    old_log_probs_at_t: Float[Tensor, "response token"],
    *,
    entropy: float,
    target: float,
    cap: float = 0.1,
) -> Float[Tensor, "response token"]:
    """(1 - alpha) A + alpha [correct] exp(log p_T - log p_1), alpha = a / (1 + a), a = min(|target - entropy|, cap) / share correct.

    Both log-probs are the old policy's, at T (1.2 where entropy <= target, else 0.8) and at 1. Without a correct response unchanged (NaN
    as released).
    """
    share = correct.double().mean().item()
    if share == 0:
        return advantage.expand(old_log_probs.shape)
    a = min(abs(target - entropy), cap) / share
    alpha = a / (1 + a)
    imitation = torch.where(correct.unsqueeze(1), torch.exp(old_log_probs_at_t - old_log_probs), 0.0)
    return (1 - alpha) * advantage + alpha * imitation


@dataclass(frozen=True)
class AepoArbitrary(Intervention):
    """Bang-bang control of entropy by imitating correct responses that were sampled at another temperature."""

    name = "aepo-arbitrary"
    slug = "aepo-arbitrary"
    source = "Arbitrary Entropy Policy Optimization, arXiv 2510.08141; 597358816/AEPO ray_trainer.py, core_algos.py"
    effect = "Brings entropy to a target."

    target: float = 0.5  # nats
    hot: float = 1.2
    cold: float = 0.8
    replaced: int = 60  # rows at most, of 2,560 in the released script; 0 switches it off
    groups: float = 0.25  # share of the groups that are sampled again
    threshold: float = 0.05  # GRPO advantage above which an extra response is kept
    variant: Literal["fixed", "code"] = "fixed"

    def __post_init__(self):
        check_at_least("AepoArbitrary", "target", self.target, 0, "It is an entropy in nats.")
        check_at_least("AepoArbitrary", "replaced", self.replaced, 0, "0 switches it off.")
        check_fraction("AepoArbitrary", "groups", self.groups)
        check_one_of("AepoArbitrary", "variant", self.variant, ("fixed", "code"), 'The default is "fixed".')
        if not 0 < self.cold <= self.hot:
            raise ValueError(
                f"AepoArbitrary: temperatures must satisfy 0 < cold <= hot. Got cold={self.cold}, hot={self.hot}. The code takes 0.8 and 1.2."
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.variant == "code" else (_ENTROPY,)

    def init(self) -> State:
        """`entropy`: H_now in nats; 0 before the first update, so it begins hot."""
        return {"entropy": 0.0}

    def neutral(self) -> "AepoArbitrary":
        return replace(self, replaced=0)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.3], dual clip 3."""
        return replace(Objective.named("dapo"), epsilon_high=0.3, dual_clip=3.0)

    def extra(self, rollouts: Rollouts, progress: Progress, state: State) -> ExtraRequest | None:
        if self.replaced == 0 or self.groups == 0:
            return None
        known = torch.unique(rollouts.group)
        chosen = known[: max(1, int(self.groups * len(known)))]
        hot = number(state, "entropy") <= self.target
        return ExtraRequest(chosen, samples=max(1, len(rollouts) // len(known)), temperature=self.hot if hot else self.cold)

    def rows(self, rollouts: Rollouts, extra: Rollouts | None, state: State, rng: RowRng) -> RowEdit:
        advantage = rollouts.advantage
        if extra is None:
            none = torch.zeros(0, dtype=torch.long, device=advantage.device)
            return RowEdit(none, none, advantage.new_zeros(0))
        order = torch.argsort(extra.row_id)
        found = replacements(
            extra.reward[order], extra.group[order], entropy=number(state, "entropy"), target=self.target, most=self.replaced,
            threshold=self.threshold,
        )  # fmt: skip
        target = torch.argsort(rollouts.row_id)[: found.count]
        return RowEdit(target, order[found.kept[: len(target)]], advantage.new_ones(len(target)))

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        ordinary = view.mask & (view.rollouts.origin == ORIGINS.index("policy")).unsqueeze(1)
        counted = view.mask if self.variant == "code" else ordinary
        value = -view.log_probs if self.variant == "code" else view.signal(_ENTROPY.key)
        return Stats(view.rollouts.row_id, {"entropy": masked_mean(value.double(), counted), "counted": counted.sum()})

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """H_now for the next rollout; kept where no ordinary token was trained."""
        if stats is None or int(stats.scalars["counted"]) == 0:
            return state
        return {"entropy": float(stats.scalars["entropy"])}
