"""Advantages: from one reward per response (or per token) to the number that a policy-gradient step multiplies by.

Sheet `grpo-family`, sections 2, 5 and 6. Rewards and advantages have no unit. Two conventions of what a group is:

- TRL's: rows lie side by side, `num_generations` per prompt; a reward of NaN is unscorable, leaves every mean, standard deviation and
  count, and its advantage is 0. `trl_advantages`, `decoupled_advantages`, `leave_one_out_advantages`; bit-equal to TRL 1.16.
- verl's: `group` holds a prompt id per response, groups may differ in size. The others. `spread` puts the result on valid tokens.

Standard deviations divide by n - 1. Every function is finite on all-equal rewards, a group of one and a fully masked row.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from isentrope.control.surrogates import kl_estimate

# --- TRL's convention: consecutive groups, NaN is unscorable


def total_reward(parts: Float[Tensor, "response part"], weights: Float[Tensor, " part"]) -> Float[Tensor, " response"]:
    """Weighted sum of the reward functions' values. NaN (the function returned None) counts as 0; all NaN gives NaN, unscorable."""
    reward = (parts * weights.unsqueeze(0)).nansum(dim=1)
    return torch.where(parts.isnan().all(dim=1), torch.nan, reward)


def trl_advantages(
    reward: Float[Tensor, " response"],
    num_generations: int,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    epsilon: float = 1e-4,
) -> Float[Tensor, " response"]:
    """GRPO's (R - group mean) / (std + epsilon), with the standard deviation of the group or of the whole batch; "none" is Dr.GRPO.

    Raises ValueError if the rows are no whole number of groups or `scale` is unknown.

    >>> trl_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, scale="none")
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"trl_advantages: scale must be group, batch or none. Got {scale!r}.")
    groups = _consecutive(reward, num_generations)
    advantage = reward - torch.nanmean(groups, dim=1).repeat_interleave(num_generations, dim=0)
    if scale == "group":
        advantage = advantage / (_nanstd(groups, dim=1).repeat_interleave(num_generations, dim=0) + epsilon)
    elif scale == "batch":
        advantage = advantage / (_nanstd(reward, dim=0).expand_as(reward) + epsilon)
    return torch.nan_to_num(advantage, nan=0.0)


def decoupled_advantages(
    parts: Float[Tensor, "response part"], weights: Float[Tensor, " part"], num_generations: int, *, epsilon: float = 1e-4
) -> Float[Tensor, " response"]:
    """GDPO: every reward z-scored in its group, the weighted sum z-scored over the scorable rows of the batch.

    A missing part counts as 0. Source: TRL multi_objective_aggregation "normalize_then_sum".
    """
    groups = _consecutive(parts, num_generations)
    scored = (groups - torch.nanmean(groups, dim=1, keepdim=True)) / (_nanstd(groups, dim=1).unsqueeze(1) + epsilon)
    total = (scored.view(parts.shape) * weights.unsqueeze(0)).nansum(dim=1)
    total = torch.where(parts.isnan().all(dim=1), torch.nan, total)
    advantage = (total - torch.nanmean(total)) / (_nanstd(total, dim=0).expand_as(total) + epsilon)
    return torch.nan_to_num(advantage, nan=0.0)


def leave_one_out_advantages(
    reward: Float[Tensor, " response"], num_generations: int, *, whiten: bool = False, epsilon: float = 1e-4
) -> Float[Tensor, " response"]:
    """RLOO: R_i minus the mean of its scorable siblings; 0 for a response without one.

    whiten: then (A - mean) / (std + epsilon) over the scorable rows of the batch.
    """
    groups = _consecutive(reward, num_generations)
    others = (~groups.isnan()).sum(dim=1, keepdim=True) - 1
    baseline = (torch.nansum(groups, dim=1, keepdim=True) - groups) / others
    advantage = torch.where(others > 0, groups - baseline, torch.nan).view(-1)
    if whiten:
        advantage = (advantage - torch.nanmean(advantage)) / (_nanstd(advantage, dim=0) + epsilon)
    return torch.nan_to_num(advantage, nan=0.0)


def _consecutive(values: Tensor, num_generations: int) -> Tensor:
    if num_generations < 1 or len(values) % num_generations:
        raise ValueError(f"advantages: num_generations must divide the {len(values)} rows. Got {num_generations}.")
    return values.view(-1, num_generations, *values.shape[1:])


def _nanstd(values: Tensor, *, dim: int) -> Tensor:
    """Sample standard deviation without NaN entries; 0 of an axis of length 1, NaN of one other entry. The order of operations
    (and the float32 of the Bessel factor, also for float64 values) is TRL's."""
    mean = torch.nanmean(values, dim=dim, keepdim=True)
    if values.shape[dim] == 1:
        return torch.zeros_like(mean).squeeze(dim)
    variance = torch.nanmean((values - mean) ** 2, dim=dim, keepdim=True)
    count = torch.sum(~torch.isnan(values), dim=dim, keepdim=True)
    bessel = count / (count - 1)
    bessel = torch.where(count > 1, bessel, torch.nan)
    return torch.sqrt(variance * bessel).squeeze(dim)


# --- verl's convention: a prompt id per response


def spread(advantage: Float[Tensor, " response"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
    """The response's advantage on each of its valid tokens, 0 elsewhere."""
    return torch.where(mask, advantage.unsqueeze(-1), 0.0)


def group_advantages(
    reward: Float[Tensor, " response"], group: Int[Tensor, " response"], *, scale: bool = True, epsilon: float = 1e-6
) -> Float[Tensor, " response"]:
    """GRPO's (R - group mean) / (group std + epsilon); without `scale` Dr.GRPO's R - group mean.

    A group of one has mean 0 and std 1 (verl), so it keeps its raw reward.
    """
    mean, std, _ = _moments(reward, group)
    return (reward - mean) / (std + epsilon) if scale else reward - mean


def rloo_advantages(
    reward: Float[Tensor, " response"], group: Int[Tensor, " response"], *, single: Literal["raw", "zero"] = "zero"
) -> Float[Tensor, " response"]:
    """RLOO: R_i minus the mean of its siblings = G / (G - 1) (R_i - mean).

    single: what a group of one gets, its raw reward (verl rloo) or 0 (verl rloo_vectorized).
    """
    mean, _, count = _moments(reward, group)
    advantage = count / (count - 1).clamp(min=1) * (reward - mean)
    return torch.where(count > 1, advantage, reward if single == "raw" else torch.zeros_like(reward))


def opo_advantages(
    reward: Float[Tensor, " response"], lengths: Num[Tensor, " response"], group: Int[Tensor, " response"]
) -> Float[Tensor, " response"]:
    """OPO: R_i minus the length-weighted mean reward of the group; lengths in valid tokens. A group of one keeps its raw reward.

    A group without any token has baseline 0.
    """
    lengths = lengths.to(reward.dtype)
    index, count = _groups(group)
    weight = _sum(lengths, index)
    baseline = _sum(lengths * reward, index) / torch.where(weight > 0, weight, 1.0)
    return reward - torch.where(count > 1, baseline, 0.0)


def gpg_advantages(
    reward: Float[Tensor, " response"], group: Int[Tensor, " response"], *, f_norm: float = 1.0
) -> Float[Tensor, " response"]:
    """GPG: a (R - group mean) / f_norm with a = responses / responses of non-zero reward; the mean of a group of one is 0."""
    mean, _, _ = _moments(reward, group)
    alpha = len(reward) / torch.count_nonzero(reward).clamp(min=1)
    return alpha * (reward - mean) / f_norm


def pass_at_k_advantages(
    reward: Float[Tensor, " response"], group: Int[Tensor, " response"], *, scale: bool = True, epsilon: float = 1e-6
) -> Float[Tensor, " response"]:
    """Pass@k: the best response of a group gets (R_max - R_second) / (group std + epsilon), all others 0; 0 on a tie and for a
    group of one."""
    index, count = _groups(group)
    _, std, _ = _moments(reward, group)
    groups = int(index.max()) + 1 if len(index) else 0
    lowest = torch.full((groups,), -torch.inf, dtype=reward.dtype, device=reward.device)
    best = lowest.scatter_reduce(0, index, reward, "amax")[index]
    below = torch.where(reward < best, reward, -torch.inf)
    second = lowest.scatter_reduce(0, index, below, "amax")[index]
    unique = (reward == best) & (_sum((reward == best).to(reward.dtype), index) == 1) & (count > 1)
    gain = torch.where(unique, best - torch.where(unique, second, 0.0), 0.0)
    return gain / (std + epsilon) if scale else gain


def baseline_advantages(
    reward: Float[Tensor, " response"], group: Int[Tensor, " response"], mask: Bool[Tensor, "response token"]
) -> Float[Tensor, "response token"]:
    """REINFORCE++-baseline: R - group mean on every valid token, whitened over all valid tokens of the batch."""
    return whiten(spread(group_advantages(reward, group, scale=False), mask), mask)


def discounted_returns(
    token_rewards: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    gamma: float = 1.0,
    holes: Literal["carry", "reset"] = "carry",
) -> Float[Tensor, "response token"]:
    """REINFORCE++'s return G_t = r_t + gamma G_(t+1), 0 at masked positions; `whiten` makes it the advantage.

    holes: at a masked position inside a response the running return is carried through without discount ("carry", verl of August
    2026) or starts again from 0 in front of it ("reset", the January 2026 release, in which a reward at a masked position is lost).
    """
    running = torch.zeros_like(token_rewards[:, 0])
    returns = torch.zeros_like(token_rewards)
    for t in range(token_rewards.shape[1] - 1, -1, -1):
        here = token_rewards[:, t] + gamma * running
        running = torch.where(mask[:, t], here, running if holes == "carry" else 0.0)
        returns[:, t] = torch.where(mask[:, t], here, 0.0)
    return returns


def gae(
    token_rewards: Float[Tensor, "response token"],
    values: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Float[Tensor, "response token"], Float[Tensor, "response token"]]:
    """Generalised advantage estimation: (advantage, return = advantage + value), 0 at masked positions; neither is whitened.

    delta_t = r_t + gamma V_(t+1) - V_t, A_t = sum_l (gamma lam)^l delta_(t+l); masked positions are skipped.
    Source: Schulman et al. 2016, arXiv 1506.02438, Eq. 16.
    """
    token_rewards, values = (torch.where(mask, x, 0.0) for x in (token_rewards, values))
    next_value = running = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantage[:, t] = torch.where(mask[:, t], running, 0.0)
    return advantage, advantage + values


def whiten(values: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
    """(x - mean) / sqrt(unbiased variance + 1e-8) over the valid tokens of the batch, 0 elsewhere. One valid token gives 0."""
    count = mask.sum()
    mean = torch.where(mask, values, 0.0).sum() / count.clamp(min=1)
    deviation = torch.where(mask, values - mean, 0.0)
    variance = (deviation**2).sum() / (count - 1).clamp(min=1)
    return deviation * torch.rsqrt(variance + 1e-8)


def _groups(group: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each response's group, and how many responses it has."""
    _, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
    return index, counts[index]


def _sum(values: Tensor, index: Tensor) -> Tensor:
    """Sum over the group, at each response."""
    groups = int(index.max()) + 1 if len(index) else 0
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, index, values)[index]


def _moments(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, sample std, size) of each response's group; a group of one has mean 0 and std 1."""
    index, count = _groups(group)
    mean = _sum(reward, index) / count
    variance = _sum((reward - mean) ** 2, index) / (count - 1).clamp(min=1)
    return torch.where(count > 1, mean, 0.0), torch.where(count > 1, variance.sqrt(), 1.0), count


# --- reward shaping


def overlong_reward(
    reward: Float[Tensor, " response"], lengths: Num[Tensor, " response"], *, limit: int, buffer: int, factor: float = 1.0
) -> Float[Tensor, " response"]:
    """DAPO's overlong shaping: R + min(-(length - (limit - buffer)) / buffer * factor, 0). Lengths in tokens.

    -factor at `limit`, and it keeps growing beyond. Source: DAPO, arXiv 2503.14476, Eq. 13, without that equation's floor (verl).
    """
    excess = (lengths - (limit - buffer)).to(reward.dtype)
    return reward + torch.clamp(-excess / buffer * factor, max=0.0)


def reward_with_kl(
    token_rewards: Float[Tensor, "response token"],
    log_probs: Float[Tensor, "response token"],
    ref_log_probs: Float[Tensor, "response token"],
    coef: float,
    estimator: str = "k1",
) -> Float[Tensor, "response token"]:
    """Token rewards minus coef times the KL estimate to the reference: the placement where k1 has the right mean gradient."""
    return token_rewards - coef * kl_estimate(log_probs, ref_log_probs, estimator)


def binary_advantages(correct: int, total: int) -> tuple[float, float]:
    """GRPO's advantages (of a correct, of a wrong response) for 0/1 rewards, `correct` of `total` right, epsilon 0: with u = correct / total
    and c = sqrt((total - 1) / total), (c sqrt((1 - u) / u), -c sqrt(u / (1 - u))). (0, 0) if all are equal.

    >>> [round(x, 3) for x in binary_advantages(1, 8)]
    [2.475, -0.354]
    """
    if correct in (0, total):
        return 0.0, 0.0
    share, scale = correct / total, math.sqrt((total - 1) / total)
    return scale * math.sqrt((1 - share) / share), -scale * math.sqrt(share / (1 - share))
