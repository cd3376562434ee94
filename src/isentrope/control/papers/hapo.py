"""HAPO: one signal per token, its normalised log-entropy h in [-1, 1], sets sampling temperature, clip widths and advantage scale.

    l_t = ln max(H_t, 1e-8)     m = nearest-rank `pivot` quantile of l     sigma^2 = mean (l - m)^2     z_t = (l_t - m) / sigma
    h_t = z_t / max z  for z_t > 0,     z_t / |min z|  for z_t <= 0
    sampling:  T_t = T_0 (1 + tau h_t), with m, sigma and both scales of the previous update
    advantage: A_i = (R_i - mu) / (s + 1e-6), mean and (population) variance over the TOKENS of the group
    clip:      h <= 0: e_low (1 - alpha h);   h > 0: e_high (1 + alpha h)
    weight:    1 + beta h for h > 0 outside the neutral zone and for h <= 0 inside it, else 1; zone (1 - e_low/2, 1 + e_high/2)

| paper | here | |
|---|---|---|
| q = 0.8 | `pivot` | quantile level of the log-entropy |
| tau, beta, a | `tau`, `beta`, `alpha` | sampling, redistribution, clip |
| m_q, sigma, scales | the state | scale_pos = 1 / max z, scale_neg = 1 / |min z|, 0 for an empty side |

The published code divides the negative side by min z instead of |min z|, so its h is never negative: every token takes the branch h > 0, no
left bound widens, nothing is attenuated, and the least certain and the most certain positions are both sampled hotter. Which of the two
made the published figures is open. `variant="fixed"` (default) has the sign that the prose describes; `variant="code"` is as released.
That the prose means this sign is (inferred): the paper's own equations were not read.

The released loss takes the statistics per micro-batch; here they are the update's unless `scope="micro-batch"`, which leaves the sampling
temperature at its base. Importance ratios are at T_0 for both policies, so sampling at T_t is an uncorrected mismatch, as published.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.advantages import group_advantages
from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, check_scope, in_row_order, number, ratio_and_bounds
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, Progress, Rollouts, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy())
_STATISTICS = ("pivot", "sigma", "scale_pos", "scale_neg")


@dataclass(frozen=True)
class EntropySignal:
    """h and what it was normalised with: pivot and sigma in ln nats, scales per unit of z (scale_neg is negative as released)."""

    h: Float[Tensor, "response token"]
    pivot: Float[Tensor, ""]
    sigma: Float[Tensor, ""]
    scale_pos: Float[Tensor, ""]
    scale_neg: Float[Tensor, ""]


def entropy_signal(
    entropy: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    quantile: float = 0.8,
    released: bool = False,
    row_id: Int[Tensor, " response"] | None = None,
) -> EntropySignal:
    """h_t of every position in float64 (outside the mask too), statistics from the valid ones; all 0 without a valid token.

    entropy: nats. released: the sign of the published code, h >= 0.
    """
    entropy = entropy.detach().double()
    counted = in_row_order(entropy, mask, row_id).clamp(min=1e-8).log()
    if len(counted) == 0:
        zero = entropy.new_zeros(())
        return EntropySignal(torch.zeros_like(entropy), zero, zero, zero, zero)
    pivot = counted.sort().values[round(quantile * (len(counted) - 1))]
    sigma = (counted - pivot).square().mean().clamp(min=1e-8).sqrt()
    z = (counted - pivot) / sigma
    scale_pos, scale_neg = _inverse(z.max().clamp(min=0)), _inverse(z.min().clamp(max=0))
    scale_neg = scale_neg if released else -scale_neg
    z = (entropy.clamp(min=1e-8).log() - pivot) / sigma
    return EntropySignal(torch.where(z > 0, z * scale_pos, z * scale_neg), pivot, sigma, scale_pos, scale_neg)


def _inverse(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return torch.where(value != 0, 1 / value, 0.0)


def adaptive_temperature(
    logits: Float[Tensor, "response vocab"],
    base: float | Float[Tensor, " response"],
    tau: float,
    *,
    pivot: float,
    sigma: float,
    scale_pos: float,
    scale_neg: float,
) -> Float[Tensor, " response"]:
    """T_0 (1 + tau h) of the next token, from raw logits and the previous update's statistics; the sampler's own constants (1e-6)."""
    entropy = torch.special.entr(torch.softmax(logits, dim=-1)).sum(-1)
    z = (entropy.clamp(min=1e-6).log() - pivot) / (sigma + 1e-6)
    h = torch.where(z > 0, z * scale_pos, z * scale_neg).clamp(-1.0, 1.0)
    return base * (1 + tau * h)


def clip_widths(
    h: Float[Tensor, "response token"], epsilon_low: float | Tensor, epsilon_high: float | Tensor, alpha: float = 1.0
) -> tuple[Float[Tensor, "response token"], Float[Tensor, "response token"]]:
    """(left, right) distance of the clip window from 1: left wider for h <= 0, right wider for h > 0, each up to (1 + alpha) times."""
    return torch.where(h > 0, epsilon_low, epsilon_low * (1 - alpha * h)), torch.where(h > 0, epsilon_high * (1 + alpha * h), epsilon_high)


def redistribution(
    h: Float[Tensor, "response token"],
    ratio: Float[Tensor, "response #token"],
    width_low: Float[Tensor, "response token"] | float,
    width_high: Float[Tensor, "response token"] | float,
    beta: float = 1.0,
) -> Float[Tensor, "response token"]:
    """Factor of the advantage: uncertain tokens that moved are amplified, certain ones that did not are attenuated; detached."""
    ratio = ratio.detach()
    still = (ratio > 1 - width_low / 2) & (ratio < 1 + width_high / 2)
    return torch.where(still == (h > 0), 1.0, 1 + beta * h)


def group_advantage(
    reward: Float[Tensor, " response"],
    lengths: Int[Tensor, " response"],
    group: Int[Tensor, " response"],
    *,
    scale: bool = True,
    epsilon: float = 1e-6,
    limit: float = 5.0,
) -> Float[Tensor, " response"]:
    """(R - mu) / (s + epsilon) with mean and population deviation over the tokens of the group, so that sum_i L_i A_i = 0.

    A group with any |A| >= `limit` gets GRPO's (sample deviation over responses) instead. Equal rewards and a group of one give 0.
    Rows without tokens or with a NaN reward are 0 and leave the statistics. scale=False: R - mu (the fallback without deviation too).
    """
    out = torch.zeros_like(reward)
    for value in group.unique():
        rows = ((group == value) & (lengths > 0) & ~reward.isnan()).nonzero().squeeze(1)
        r, weight = reward[rows].double(), lengths[rows].double()
        if len(rows) < 2 or bool((r == r[0]).all()):
            continue
        mean = (weight * r).sum() / weight.sum()
        deviation = ((weight * (r - mean) ** 2).sum() / weight.sum()).sqrt()
        found = (r - mean) / (deviation + epsilon) if scale else r - mean
        if bool((found.abs() >= limit).any()):
            found = group_advantages(r, torch.zeros_like(rows), scale=scale, epsilon=epsilon)
        out[rows] = found.to(out.dtype)
    return out


@dataclass(frozen=True)
class Hapo(Intervention):
    """Temperature, advantage, clip and weight from one entropy signal. tau, alpha, beta = 0 and token_average=False switch them off.

    beta is at most 1: the factor 1 + beta h would otherwise turn negative for certain tokens, reversing their advantage.
    """

    name = "hapo"
    slug = "hapo"
    source = "From Uniform to Heterogeneous (HAPO), arXiv 2509.16591; starriver030515/HAPO core_algos.py, ray_trainer.py, sampler.py"
    effect = "Raises entropy where it is high (hotter, wider clip) and lowers it where it is low."

    pivot: float = 0.8
    tau: float = 0.05
    alpha: float = 1.0
    beta: float = 1.0
    token_average: bool = True
    scope: Scope = "update"
    variant: Literal["fixed", "code"] = "fixed"

    def __post_init__(self):
        for parameter in ("pivot", "beta"):
            check_fraction("Hapo", parameter, self.__dict__[parameter])
        if not 0 <= self.tau < 1:
            raise ValueError(
                f"Hapo: tau must be in [0, 1), or a temperature T_0 (1 + tau h) could reach 0. Got {self.tau}. The paper takes 0.05."
            )
        check_at_least("Hapo", "alpha", self.alpha, 0, "0 keeps the objective's own clip window.")
        check_scope("Hapo", self.scope)
        check_one_of("Hapo", "variant", self.variant, ("fixed", "code"), 'The default is "fixed".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    def init(self) -> State:
        """Statistics of the previous update; None before the first."""
        return dict.fromkeys(_STATISTICS)

    def neutral(self) -> "Hapo":
        return replace(self, tau=0.0, alpha=0.0, beta=0.0, token_average=False)

    def embedded(self) -> "Hapo":
        """A low pivot: at ratio 1 every token with h <= 0 is attenuated, which at 0.8 is four fifths of them."""
        return replace(self, pivot=0.3)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2], dual clip 10 (the 7B script)."""
        return replace(Objective.named("dapo"), epsilon_high=0.2, dual_clip=10.0)

    def temperature(self, logits: Float[Tensor, "response vocab"], base: float, state: State) -> Float[Tensor, " response"]:
        if self.tau == 0 or state["sigma"] is None:
            return torch.full(logits.shape[:1], base, dtype=logits.dtype, device=logits.device)
        return adaptive_temperature(logits, base, self.tau, **{name: number(state, name) for name in _STATISTICS})

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if not self.token_average:
            return rollouts.advantage
        return group_advantage(rollouts.reward, rollouts.lengths, rollouts.group).to(rollouts.advantage.dtype).unsqueeze(1)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        found = entropy_signal(view.signal(_ENTROPY.key), view.mask, self.pivot, self.variant == "code", view.rollouts.row_id)
        scalars = {name: found.__dict__[name] for name in _STATISTICS} | {"valid": view.mask.sum()}
        return Stats(view.rollouts.row_id, scalars, {"h": torch.where(view.mask, found.h, 0.0)})

    def clip(self, step: Step, stats: Stats, state: State) -> Bounds:
        _, bounds = ratio_and_bounds(step)
        if self.alpha == 0:
            return bounds
        low, high = clip_widths(_h(step, stats), *_widths(bounds), self.alpha)
        return replace(bounds, low=1 - low, high=1 + high)

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.beta == 0:
            return TokenWeight()
        ratio, bounds = ratio_and_bounds(step)
        return TokenWeight(value=redistribution(_h(step, stats), ratio, *_widths(bounds), self.beta))

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        if stats is None or int(stats.scalars["valid"]) == 0:
            return state
        return {name: float(stats.scalars[name]) for name in _STATISTICS}


def _h(step: Step, stats: Stats) -> Float[Tensor, "response token"]:
    return stats.token("h", step).to(torch.promote_types(step.log_probs.dtype, torch.float32))


def _widths(bounds: Bounds) -> tuple[float | Tensor, float | Tensor]:
    if bounds.low is None or bounds.high is None:
        raise ValueError(
            "Hapo: widths and neutral zone follow the clip window of the ratio, so the objective needs one on both sides. "
            f"Got low={bounds.low}, high={bounds.high}. Use loss_type grpo, bnpo, dr_grpo or dapo."
        )
    return 1 - bounds.low, bounds.high - 1
