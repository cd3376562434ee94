"""What interventions return, made from parts: shaped rewards and advantages, token weights, bounds per token, kept groups.

All results are detached; masks select and never multiply, so anything may stand under them.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_one_of
from isentrope.control.normalisers import unit_mean
from isentrope.control.stages import TokenWeight
from isentrope.control.step import Scope
from isentrope.control.surrogates import Bounds

Recentre = Literal["none", "step", "token", "group"]

# --- rewards and groups


def shape_reward(
    reward: Float[Tensor, " response"], term: Float[Tensor, " response"], on: Bool[Tensor, " response"] | None = None
) -> Float[Tensor, " response"]:
    """reward + term, detached, on the responses `on` (None: all). An unscorable reward (NaN) stays so; a term that is not finite adds 0."""
    term = torch.where(torch.isfinite(term), term, 0.0).detach()
    return (reward + (term if on is None else torch.where(on, term, 0.0))).detach()


def reward_span(reward: Float[Tensor, " response"], group: Int[Tensor, " response"]) -> tuple[Float[Tensor, " response"], Float[Tensor, " response"]]:
    """Lowest and highest scorable reward of each response's group; (inf, -inf) in a group without any."""
    index = torch.unique(group, return_inverse=True)[1]
    groups, scored = int(index.max()) + 1 if len(index) else 0, ~torch.isnan(reward)
    low = torch.full((groups,), torch.inf, dtype=reward.dtype, device=reward.device)
    high = -low
    low = low.scatter_reduce(0, index, torch.where(scored, reward, torch.inf), "amin")
    high = high.scatter_reduce(0, index, torch.where(scored, reward, -torch.inf), "amax")
    return low[index], high[index]


def mixed_groups(reward: Float[Tensor, " response"], group: Int[Tensor, " response"], spread: float = 0.0) -> Bool[Tensor, " response"]:
    """Responses of groups whose rewards span more than `spread`: a group of equal rewards, or of one response, teaches nothing."""
    low, high = reward_span(reward, group)
    return high - low > spread


# --- advantages


def transform_advantage(
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    *,
    weight: Float[Tensor, "response #token"] | float = 1.0,
    shift: Float[Tensor, "response #token"] | float = 0.0,
    recentre: Recentre = "none",
    group: Int[Tensor, " response"] | None = None,
    turn: Int[Tensor, "response token"] | None = None,
    row_id: Int[Tensor, " response"] | None = None,
) -> Float[Tensor, "response #token"]:
    """A' = weight A + shift, then less its mean over the batch; [response, 1] while everything is per response, 0 outside the mask else.

    recentre: "token" subtracts the mean over all trained tokens; "step" the mean over steps, a step being a turn of a response (without
    `turn` the response) that counts once whatever its length, by the mean of its tokens; "group" does so within each group, a step
    being a response.

    Raises ValueError for an unknown `recentre`, and for "group" without `group`.
    """
    check_one_of("transform_advantage", "recentre", recentre, ("none", "step", "token", "group"), "")
    moved = (weight * advantage + shift).detach()
    if recentre == "group" and group is None:
        raise ValueError('transform_advantage: recentre="group" needs `group`, the prompt id of every response. Got None.')
    if recentre != "none":
        moved = moved - _centre(moved.expand(mask.shape), mask, recentre, group, turn, row_id).to(moved.dtype)
    if moved.shape[1] == 1 and mask.shape[1] > 1:
        return torch.where(mask.any(-1, keepdim=True), moved, 0.0)
    return torch.where(mask, moved, 0.0)


def _centre(value: Tensor, mask: Tensor, recentre: Recentre, group: Tensor | None, turn: Tensor | None, row_id: Tensor | None) -> Tensor:
    """[1, 1], or [response, 1] for "group"; float64, rows added in the order of their ids."""
    order = torch.arange(len(mask), device=mask.device) if row_id is None else torch.argsort(row_id)
    wide, counts = torch.where(mask, value.double(), 0.0)[order], mask[order]
    if recentre == "token":
        return (wide.sum() / counts.sum().clamp(min=1)).reshape(1, 1)
    if recentre == "group":
        mean, there = wide.sum(-1) / counts.sum(-1).clamp(min=1), counts.any(-1).double()
        index = torch.unique(group, return_inverse=True)[1][order]
        total = mean.new_zeros(int(index.max()) + 1 if len(index) else 0)
        found = total.index_add(0, index, mean) / total.index_add(0, index, there).clamp(min=1)
        back = torch.empty_like(mean)
        back[order] = found[index]
        return back[:, None]
    row = torch.arange(len(mask), device=mask.device)[:, None]
    step = row.expand(mask.shape) if turn is None else row * (int(turn.max()) + 1) + turn[order]
    at = step[counts]
    total = wide.new_zeros(int(at.max()) + 1 if len(at) else 1)
    tokens = total.index_add(0, at, torch.ones_like(wide[counts]))
    means = total.index_add(0, at, wide[counts]) / tokens.clamp(min=1)
    return (means.sum() / (tokens > 0).sum().clamp(min=1)).reshape(1, 1)


# --- weights and bounds


def token_weight(
    value: Float[Tensor, "response token"] | None,
    mask: Bool[Tensor, "response token"],
    *,
    keep: Bool[Tensor, "response token"] | None = None,
    denominator: Literal["all", "kept"] = "all",
    mean_one: Scope | None = None,
    group: Int[Tensor, " response"] | None = None,
    row_id: Int[Tensor, " response"] | None = None,
) -> TokenWeight:
    """A weight per token and the tokens that stay, detached. `denominator` says whether removed tokens leave the divisor.

    mean_one: the scope in which the weights of the kept tokens are rescaled to mean 1 (None: not at all). Take it in a survey,
    where the rows of the whole update are at hand.

    Raises ValueError for an unknown denominator or scope.
    """
    check_one_of("token_weight", "denominator", denominator, ("all", "kept"), '"all" leaves removed tokens in the divisor.')
    if value is not None:
        counted = mask if keep is None else mask & keep
        value = value.detach() if mean_one is None else unit_mean(value, counted, scope=mean_one, group=group, row_id=row_id)
        value = torch.where(mask, value, 1.0)
    return TokenWeight(value, keep, denominator)


def token_bounds(
    bounds: Bounds,
    ratio: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    *,
    low: Float[Tensor, "response #token"] | float | None = None,
    high: Float[Tensor, "response #token"] | float | None = None,
    where: Bool[Tensor, "response #token"] | None = None,
) -> Bounds:
    """`bounds` with other limits of `ratio` on the tokens `where` (None: all), [response, token] and detached; a side that is not
    given stays as it is, and so do the dual clip and the cap. A side that was open becomes +-infinity where it stays open."""
    sides = {"low": (bounds.low, low, -torch.inf), "high": (bounds.high, high, torch.inf)}
    found: dict[str, float | Tensor | None] = {}
    for name, (old, new, none) in sides.items():
        found[name] = old
        if new is not None:
            before, after = (_wide(side, ratio, mask) for side in (none if old is None else old, new))
            found[name] = torch.where(mask if where is None else mask & where, after, before)
    return Bounds(found["low"], found["high"], bounds.cap, bounds.delta)


def _wide(value: Tensor | float, ratio: Tensor, mask: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=ratio.dtype, device=mask.device).detach().expand(mask.shape)
