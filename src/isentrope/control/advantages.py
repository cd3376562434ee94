"""Advantages from rewards, and the rewards and coefficients around them. Pure functions; sheet `grpo-family`, sections 2, 5, 6, 7.

verl's outcome estimators take a score per response and a group id (ids need be neither sorted nor contiguous) and give a number per
response; the caller writes it on the valid tokens. TRL's take rewards with NaN where a function gave none, groups consecutive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.objectives import masked_mean

Outcome = Literal["grpo", "dr_grpo", "rloo", "rloo_vectorized", "opo", "gpg", "passk"]


def on_tokens(advantage: Float[Tensor, " response"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
    """The advantage of a response on each of its valid tokens, 0 elsewhere."""
    return torch.where(mask, advantage.unsqueeze(1), 0.0)


def outcome_advantage(
    score: Float[Tensor, " response"],
    group: Int[Tensor, " response"],
    kind: Outcome = "grpo",
    *,
    lengths: Float[Tensor, " response"] | None = None,
    epsilon: float = 1e-6,
    f_norm: float = 1.0,
) -> Float[Tensor, " response"]:
    """Group advantages as verl computes them; standard deviations have ddof 1.

    grpo: (R - mean) / (std + eps), a group of one: R / (1 + eps). dr_grpo: R - mean, a group of one: R. rloo: R - mean of the others, a
    group of one: R (rloo_vectorized: 0). opo: R - length-weighted mean (`lengths` in tokens). gpg: B / #nonzero rewards x (R - mean) /
    f_norm. passk: best response R_max - R_second over (std + eps), the others 0.

    Raises ValueError for passk with a group of one, or opo without lengths.
    """
    out = torch.zeros_like(score)
    nonzero = (score != 0).sum().clamp(min=1)
    for rows in _groups(group):
        r, size = score[rows], len(rows)
        mean = r.mean() if size > 1 else torch.zeros_like(r[0])
        if kind == "grpo":
            out[rows] = (r - mean) / ((r.std() if size > 1 else torch.ones_like(mean)) + epsilon)
        elif kind == "dr_grpo":
            out[rows] = r - mean
        elif kind in ("rloo", "rloo_vectorized"):
            alone = r if kind == "rloo" else torch.zeros_like(r)
            out[rows] = (r - mean) * size / (size - 1) if size > 1 else alone
        elif kind == "opo":
            if lengths is None:
                raise ValueError("outcome_advantage: opo needs lengths (valid tokens per response).")
            weight = lengths[rows].to(r.dtype)
            baseline = (weight * r).sum() / weight.sum().clamp(min=1e-12) if size > 1 else torch.zeros_like(mean)
            out[rows] = r - baseline
        elif kind == "gpg":
            out[rows] = (len(score) / nonzero) * (r - mean) / f_norm
        else:
            if size < 2:
                raise ValueError("outcome_advantage: passk needs at least two responses per group. Got a group of one.")
            top = torch.topk(r, 2)
            out[rows[top.indices[0]]] = (top.values[0] - top.values[1]) / (r.std() + epsilon)
    return out


def whiten(value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
    """(x - mean) / sqrt(var + 1e-8) over the valid tokens, unbiased variance; one valid token or none: centred only."""
    count = mask.sum()
    mean = masked_mean(value, mask)
    variance = masked_mean((value - mean) ** 2, mask)
    variance = variance * count / (count - 1) if count > 1 else torch.zeros_like(variance)
    return (value - mean) * torch.rsqrt(variance + 1e-8)


def reinforce_pp(
    token_reward: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], *, gamma: float = 1.0, release: Literal["2026-08", "2026-01"] = "2026-08"
) -> tuple[Float[Tensor, "response token"], Float[Tensor, "response token"]]:
    """REINFORCE++: (whitened advantage, discounted return). In August 2026 the running return is carried through masked positions
    undiscounted; the January release writes it there and resets it to 0 afterwards."""
    returns = torch.zeros_like(token_reward)
    running = torch.zeros_like(token_reward[:, 0])
    valid = mask.to(token_reward.dtype)
    for t in reversed(range(token_reward.shape[1])):
        if release == "2026-08":
            running = torch.where(mask[:, t], token_reward[:, t] + gamma * running, running)
            returns[:, t] = torch.where(mask[:, t], running, 0.0)
        else:
            running = token_reward[:, t] + gamma * running
            returns[:, t] = running
            running = running * valid[:, t]
    return torch.where(mask, whiten(returns, mask), 0.0), returns


def reinforce_pp_baseline(
    score: Float[Tensor, " response"], group: Int[Tensor, " response"], mask: Bool[Tensor, "response token"]
) -> Float[Tensor, "response token"]:
    """Group-mean centred scores on the tokens, whitened over all valid tokens of the batch; a group of one keeps its raw score."""
    centred = outcome_advantage(score, group, "dr_grpo")
    return torch.where(mask, whiten(on_tokens(centred, mask), mask), 0.0)


def gae(
    token_reward: Float[Tensor, "response token"], value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Float[Tensor, "response token"], Float[Tensor, "response token"]]:
    """Generalised advantage estimation over the valid positions (masked ones are skipped and repeat the carried value):
    (whitened advantage, return = raw advantage + value)."""
    next_value = torch.zeros_like(value[:, 0])
    running = torch.zeros_like(next_value)
    columns = []
    for t in reversed(range(value.shape[1])):
        delta = token_reward[:, t] + gamma * next_value - value[:, t]
        here = delta + gamma * lam * running
        next_value = torch.where(mask[:, t], value[:, t], next_value)
        running = torch.where(mask[:, t], here, running)
        columns.append(running)
    advantage = torch.stack(columns[::-1], dim=1)
    return whiten(advantage, mask), advantage + value


# --- TRL


def trl_advantages(
    reward: Float[Tensor, " response"], group_size: int, *, scale: Literal["group", "batch", "none"] = "group", epsilon: float = 1e-4
) -> Float[Tensor, " response"]:
    """TRL's (R - group mean) / (std + eps), consecutive groups; NaN rewards (unscorable) get 0 and leave the means and stds."""
    grouped = reward.view(-1, group_size)
    centred = reward - torch.nanmean(grouped, dim=1).repeat_interleave(group_size)
    if scale == "group":
        centred = centred / (_nanstd(grouped, 1).repeat_interleave(group_size) + epsilon)
    elif scale == "batch":
        centred = centred / (_nanstd(reward.unsqueeze(0), 1).expand_as(reward) + epsilon)
    return torch.nan_to_num(centred, nan=0.0)


def trl_total(rewards: Float[Tensor, "response part"], weights: Float[Tensor, " part"]) -> Float[Tensor, " response"]:
    """Weighted sum of the reward functions; a missing part counts 0 while another is present, NaN if all are missing."""
    total = (rewards * weights).nansum(dim=1)
    return torch.where(torch.isnan(rewards).all(dim=1), torch.nan, total)


def trl_decoupled(
    rewards: Float[Tensor, "response part"], weights: Float[Tensor, " part"], group_size: int, *, epsilon: float = 1e-4
) -> Float[Tensor, " response"]:
    """GDPO (TRL's normalise_then_sum): every part z-scored in its group, weighted sum, z-scored over the scorable rows of the batch."""
    grouped = rewards.view(-1, group_size, rewards.shape[1])
    parts = (grouped - torch.nanmean(grouped, dim=1, keepdim=True)) / (_nanstd(grouped, 1).unsqueeze(1) + epsilon)
    total = (parts.reshape(rewards.shape) * weights).nansum(dim=1)
    total = torch.where(torch.isnan(rewards).all(dim=1), torch.nan, total)
    return torch.nan_to_num((total - torch.nanmean(total)) / (_nanstd(total.unsqueeze(0), 1) + epsilon), nan=0.0)


def trl_rloo(reward: Float[Tensor, " response"], group_size: int, *, normalise: bool = False, epsilon: float = 1e-4) -> Float[Tensor, " response"]:
    """Leave-one-out over the scorable rows of a group; optionally z-scored over the scorable rows of the batch."""
    grouped = reward.view(-1, group_size)
    scorable = ~torch.isnan(grouped)
    count = scorable.sum(1, keepdim=True)
    others = (grouped.nansum(1, keepdim=True) - grouped.nan_to_num(0.0)) / (count - 1).clamp(min=1)
    advantage = torch.where(scorable & (count > 1), grouped - others, torch.where(scorable, 0.0, torch.nan)).view(-1)
    if normalise:
        advantage = (advantage - torch.nanmean(advantage)) / (_nanstd(advantage.unsqueeze(0), 1) + epsilon)
    return torch.nan_to_num(advantage, nan=0.0)


# --- rewards and coefficients


def kl_in_reward(
    token_reward: Float[Tensor, "response token"], log_probs: Float[Tensor, "response token"], ref_log_probs: Float[Tensor, "response token"], coef: float
) -> Float[Tensor, "response token"]:
    """Token rewards minus coef x k1."""
    return token_reward - coef * (log_probs - ref_log_probs)


def overlong_penalty(length: Float[Tensor, " response"], maximum: float, buffer: float, factor: float = 1.0) -> Float[Tensor, " response"]:
    """DAPO's soft penalty min(-(L - (L_max - L_c)) / L_c x factor, 0); it keeps growing beyond L_max."""
    return torch.clamp(-(length - (maximum - buffer)) / buffer * factor, max=0.0)


def adaptive_kl(coef: float, kl: float, samples: float, *, target: float = 0.1, horizon: float = 10_000) -> float:
    """The KL coefficient after an update: coef x (1 + clip(kl / target - 1, +-0.2) x samples / horizon)."""
    return coef * (1 + max(-0.2, min(0.2, kl / target - 1)) * samples / horizon)


@dataclass(frozen=True)
class AdaptiveEntropy:
    """TRL's controller of the entropy coefficient (Skywork-OR1): +- delta by whether the last window's entropy is at most the target."""

    target: float = 0.2
    delta: float = 0.005
    low: float = 0.0
    high: float = 1.0

    def applied(self, coef: float, last_entropy: float) -> float:
        """The coefficient that this window applies; before the first window `last_entropy` is infinite."""
        return coef if last_entropy <= self.target else 0.0

    def update(self, coef: float, entropy: float) -> float:
        """The coefficient after a window of this entropy (nats, token mean over all ranks)."""
        return min(coef + self.delta, self.high) if entropy <= self.target else max(coef - self.delta, self.low)


# --- parts


def _groups(group: Int[Tensor, " response"]) -> Sequence[Tensor]:
    return [(group == value).nonzero().squeeze(1) for value in group.unique()]


def _nanstd(value: Tensor, dim: int) -> Tensor:
    """Standard deviation (ddof 1) without the NaN entries; 0 where fewer than two are left."""
    count = (~torch.isnan(value)).sum(dim)
    mean = torch.nanmean(value, dim=dim, keepdim=True)
    squares = ((value - mean) ** 2).nansum(dim)
    return torch.where(count > 1, torch.sqrt(squares / (count - 1).clamp(min=1)), 0.0)
