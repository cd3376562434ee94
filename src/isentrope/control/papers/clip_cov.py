"""Clip-Cov and KL-Cov: stop, or penalise, the few tokens whose log-prob and advantage are both far from the mean in the same direction.

    C_t = (log p_t - mean log p) (A_t - mean A)                  means over the valid tokens of the scope; nats x advantage
    Clip-Cov: up to K of the tokens with low < C_t < high, drawn at random, lose their loss; the divisor still counts them
    KL-Cov:   the K tokens of largest C_t get + beta |log p_t - old log p_t|; the ratio is not clipped anywhere
    K = max(1, floor(ratio N))

| paper | here | |
|---|---|---|
| Cov(y_t), Eq. 10 | `covariance` | detached, float64 |
| r, Eq. 11 | `ClipCov.ratio` | share of the N valid tokens |
| omega_low, omega_high | `low`, `high` | nats x advantage, for advantages of unit variance |
| k, Eq. 13 | `KLCov.ratio` | a fraction; the authors' repository writes percent |
| beta, Eq. 14 | `KLCov.beta` | 1 in the paper, 0.1 in verl's configuration |

Paper and code: the code has a strict window, at least one token, and leaves tokens out of the window that PPO's clip already stopped
(`variant="code"`, the default, because the published curves come from it); Eq. 11-12 have a closed window, K = floor(ratio N) and no
PPO clip (`variant="paper"`). Eq. 14 writes KL(old || new), its listing and the code the absolute log-ratio; both variants take the latter.
The code takes means and K per micro-batch; here they are taken over the whole update unless `scope="micro-batch"`.

KL-Cov has no gradient where the ratio is 1: with one update per rollout it does nothing, and a warning says so.
"""

import warnings
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import (
    check_at_least,
    check_fraction,
    check_one_of,
    check_scope,
    choose,
    in_row_order,
    largest,
    number,
    ratio_and_bounds,
)  # fmt: skip
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, Penalty, TokenWeight
from isentrope.control.step import Progress, RowRng, Scope, State, Stats, Step

Formula = Literal["paper", "code"]
_SOURCE = "Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617"
_CODE = "PRIME-RL/Entropy-Mechanism-of-RL and volcengine/verl, core_algos.py"


def covariance(
    log_probs: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    row_id: Int[Tensor, " response"] | None = None,
) -> Float64[Tensor, "response token"]:
    """C_t (Eq. 10) in nats x advantage, detached: centred log-prob times centred advantage, means over the valid tokens.

    Its mean over the valid tokens is their covariance. Outside the mask it is the product of whatever stands there.
    """
    advantage = advantage.expand(mask.shape)
    spread = log_probs.detach().double() - in_row_order(log_probs, mask, row_id).mean()
    return spread * (advantage.detach().double() - in_row_order(advantage, mask, row_id).mean())


def quota(ratio: float, tokens: int, variant: Formula = "code") -> int:
    """K: floor(ratio x tokens), in the code at least 1."""
    count = int(ratio * tokens)
    return max(1, count) if variant == "code" else count


def ppo_clipped(
    ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], bounds: Bounds
) -> Bool[Tensor, "response #token"]:
    """Tokens that PPO's clip already stopped: below the window with A < 0, above it with A > 0."""
    low = torch.zeros_like(ratio * advantage, dtype=torch.bool) if bounds.low is None else (ratio < bounds.low) & (advantage < 0)
    return low if bounds.high is None else low | ((ratio > bounds.high) & (advantage > 0))


def clip_cov_candidates(
    found: Float64[Tensor, "response token"], allowed: Bool[Tensor, "response token"], low: float, high: float, variant: Formula = "code"
) -> Bool[Tensor, "response token"]:
    """Allowed tokens whose C_t is inside the window: open in the code, closed in the paper."""
    inside = (found > low) & (found < high) if variant == "code" else (found >= low) & (found <= high)
    return inside & allowed


@dataclass(frozen=True)
class ClipCov(Intervention):
    """Tokens drawn from a window of high covariance lose their loss (Eq. 11-12).

    Scaling advantages by c scales C_t by c, so the window assumes advantages divided by their group's standard deviation.
    """

    name = "clip-cov"
    slug = "clip-cov"
    source = f"{_SOURCE}, Eq. 10-12; {_CODE} (loss mode clip_cov)"
    effect = "Slows the fall of entropy: some of the tokens that lower it most leave the loss."

    ratio: float = 2e-4  # share of the valid tokens that lose their gradient (section 4)
    low: float = 1.0  # window of C_t
    high: float = 5.0
    scope: Scope = "update"
    variant: Formula = "code"

    def __post_init__(self):
        check_fraction("ClipCov", "ratio", self.ratio)
        check_at_least("ClipCov", "high", self.high, self.low, f"The window is low..high; low is {self.low}.")
        check_scope("ClipCov", self.scope)
        check_one_of("ClipCov", "variant", self.variant, ("paper", "code"), 'The default is "code".')

    def neutral(self) -> "ClipCov":
        """An empty window: in the code no ratio switches it off, K is at least 1."""
        return replace(self, low=inf, high=inf)

    def embedded(self) -> "ClipCov":
        """A share that is more than one of the thousand tokens of an update."""
        return replace(self, ratio=0.02)

    def recipe(self) -> Objective:
        """Token-mean PPO whose ratio is only kept in [0, 2] (released scripts); in the paper's equation it is not clipped."""
        epsilon = 1.0 if self.variant == "code" else None
        return replace(Objective.named("dapo"), epsilon_low=epsilon, epsilon_high=epsilon)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        row_id, mask = view.rollouts.row_id, view.mask
        found = covariance(view.log_probs, view.advantage, mask, row_id)
        ratio, bounds = ratio_and_bounds(view)
        allowed = mask & ~ppo_clipped(ratio, view.advantage, bounds)
        candidates = clip_cov_candidates(found, allowed, self.low, self.high, self.variant)
        chosen = choose(candidates, quota(self.ratio, int(mask.sum()), self.variant), rng.uniform(row_id, mask.shape[1]))
        wrong = (chosen & (view.advantage < 0)).sum() / chosen.sum().clamp(min=1)
        return Stats(row_id, {"candidates": candidates.sum(), "chosen": chosen.sum(), "chosen/negative_share": wrong}, {"chosen": chosen})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        return TokenWeight(keep=~stats.token("chosen", step), denominator="all")


@dataclass(frozen=True)
class KLCov(Intervention):
    """The tokens of highest covariance pay for their distance from the old policy; nothing is clipped (Eq. 13-14)."""

    name = "kl-cov"
    slug = "clip-cov"
    source = f"{_SOURCE}, Eq. 13-14; {_CODE} (loss mode kl_cov)"
    effect = "Slows the fall of entropy: the tokens that lower it most are held by a KL."

    ratio: float = 2e-3  # share of the valid tokens: 2e-3 for 7B, 2e-4 for 32B (section 4)
    beta: float = 1.0  # per nat of absolute log-ratio
    scope: Scope = "update"
    variant: Formula = "code"

    def __post_init__(self):
        check_fraction("KLCov", "ratio", self.ratio)
        check_at_least("KLCov", "beta", self.beta, 0, "0 switches the penalty off.")
        check_scope("KLCov", self.scope)
        check_one_of("KLCov", "variant", self.variant, ("paper", "code"), 'The default is "code".')

    def init(self) -> State:
        """`on_policy`: consecutive updates in which every ratio was exactly 1."""
        return {"on_policy": 0}

    def neutral(self) -> "KLCov":
        """Without penalty: the unclipped policy gradient."""
        return replace(self, beta=0.0)

    def embedded(self) -> "KLCov":
        """A share that is more than one of the thousand tokens of an update."""
        return replace(self, ratio=0.02)

    def recipe(self) -> Objective:
        """Token-mean importance-weighted policy gradient without a clip."""
        return replace(Objective.named("dapo"), epsilon_low=None, epsilon_high=None)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        row_id, mask = view.rollouts.row_id, view.mask
        found = covariance(view.log_probs, view.advantage, mask, row_id)
        count = quota(self.ratio, int(mask.sum()), self.variant)
        chosen = largest(found, mask, count, row_id, rng)
        moved = ((ratio_and_bounds(view)[0] != 1) & mask).any()
        return Stats(row_id, {"chosen": chosen.sum(), "on_policy": mask.any() & ~moved}, {"chosen": chosen})

    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds:
        return Bounds()

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        if self.beta == 0:
            return Penalty()
        chosen = stats.token("chosen", step)
        distance = (step.log_probs - step.old_log_probs).abs()
        return Penalty(token=self.beta * torch.where(chosen, distance, 0.0), touched=chosen)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """Warns once, when a second update in a row had no ratio other than 1."""
        if stats is None:
            return state
        count = int(number(state, "on_policy")) + 1 if bool(stats.scalars["on_policy"]) else 0
        if count == 2 and self.beta > 0:
            warnings.warn(
                "KLCov: every ratio was 1 in two updates in a row, where |log-ratio| has no gradient, so kl-cov does nothing. It needs "
                "several updates per rollout: in TRL raise num_iterations, or steps_per_generation above gradient_accumulation_steps.",
                stacklevel=2,
            )
        return {"on_policy": count}
