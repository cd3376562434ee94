"""What the papers share: quantiles over counted values, an order that no shuffling changes, the upper share and the turns of responses, what a step and
a state hold, and the wording of wrong parameters."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.step import RowRng, State, Step
from isentrope.control.surrogates import Bounds


def quantile(value: Float[Tensor, "*batch item"], mask: Bool[Tensor, "*batch item"], level: float) -> Float[Tensor, "*batch"]:
    """The `level` quantile of the counted items along the last axis, linearly interpolated, in float32; NaN where none counts.

    Equals `torch.quantile` of the counted values bit for bit (its order of operations), without its limit of 2^24 values.
    """
    ordered = torch.where(mask, value.float(), float("inf")).sort(dim=-1).values
    count = mask.sum(-1, keepdim=True)
    rank = torch.tensor(level, dtype=torch.float32, device=value.device) * (count - 1).clamp(min=0)
    below = rank.long()
    low, high = ordered.gather(-1, below), ordered.gather(-1, rank.ceil().long())
    found = torch.lerp(low, high, rank - below)
    return torch.where(count > 0, found, float("nan")).squeeze(-1)


def in_row_order(
    value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], row_id: Int[Tensor, " response"] | None = None
) -> Float64[Tensor, " counted"]:
    """The counted values in float64, rows in the order of their ids (None: as they stand).

    A sum over them is then the same number, to the last bit, however rows are permuted, padded, or spread over slices and ranks.
    """
    value = value.detach().double()
    if row_id is None:
        return value[mask]
    order = torch.argsort(row_id)
    return value[order][mask[order]]


def choose(
    among: Bool[Tensor, "response token"], count: int, keys: Float64[Tensor, "response token"]
) -> Bool[Tensor, "response token"]:
    """`count` of the positions `among` (all, if there are fewer), those of the smallest keys.

    With keys of `RowRng.uniform` it is a uniform draw without replacement, the same under permutation, splitting and more ranks.
    """
    at = among.flatten().nonzero().squeeze(1)
    chosen = torch.zeros_like(among).flatten()
    chosen[at[torch.argsort(keys.flatten()[at])[:count]]] = True
    return chosen.reshape(among.shape)


def largest(
    value: Float[Tensor, "response token"], among: Bool[Tensor, "response token"], count: int, row_id: Int[Tensor, " response"], rng: RowRng
) -> Bool[Tensor, "response token"]:
    """The `count` positions `among` (all, if there are fewer) of the largest value. Where a tie decides, it is drawn by keys of `rng`."""
    if not 0 < count < int(among.sum()):
        return among & (count > 0)
    edge = value[among].sort(descending=True).values[count - 1]
    above, tied = among & (value > edge), among & (value == edge)
    left = count - int(above.sum())
    if int(tied.sum()) == left:
        return above | tied
    return above | choose(tied, left, rng.uniform(row_id, among.shape[1]))


def upper_share(
    value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], share: float
) -> Bool[Tensor, "response token"]:
    """The ceil(share T) counted tokens of the largest value in each response, at least one; ties with the last of them are in. Detached.

    Invariant to monotone transforms of the value.
    """
    ordered = torch.where(mask, value.detach(), -torch.inf).sort(dim=-1, descending=True).values
    count = torch.ceil(share * mask.sum(-1, keepdim=True).double() - 1e-9).long().clamp(min=1)
    return mask & (value.detach() >= ordered.gather(-1, count - 1))


def turns(
    mask: Bool[Tensor, "response token"], turn: Int[Tensor, "response token"] | None, row_id: Int[Tensor, " response"]
) -> tuple[Int[Tensor, "response token"], Int[Tensor, " turn"]]:
    """(turn of every position, 0 where none; row of every turn): turns with counted tokens, by row id and then in order.

    Without `turn` a response is one.
    """
    rank, order = torch.argsort(torch.argsort(row_id)), torch.argsort(row_id)
    row = rank[:, None].expand(mask.shape)[mask]
    pairs, index = torch.unique(torch.stack([row, torch.zeros_like(row) if turn is None else turn[mask]]), dim=1, return_inverse=True)
    of = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    of[mask] = index
    return of, order[pairs[0]]


# --- what a link is given


def ratio_and_bounds(step: Step) -> tuple[Float[Tensor, "response #token"], Bounds]:
    """The ratio and the clip window of a step, which `policy_loss` and `survey` fill before a link sees it.

    Raises ValueError for a step that went through neither.
    """
    if step.ratio is None or step.bounds is None:
        raise ValueError("this step has no ratio and bounds yet: hand it to policy_loss or survey, or fill both with the objective's.")
    return step.ratio, step.bounds


def number(state: State, name: str) -> float:
    """The number `name` of a state.

    Raises ValueError where the state holds none under it.
    """
    value = state[name]
    if value is None or isinstance(value, str):
        raise ValueError(f"state[{name!r}] must be a number. Got {value!r}.")
    return float(value)


# --- parameters


def check_fraction(who: str, parameter: str, value: float) -> None:
    """Raises ValueError unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        way_out = f" If you meant {value:g} %, write {parameter}={value / 100:g}." if 1 < value <= 100 else ""
        raise ValueError(f"{who}: {parameter} must be a fraction in [0, 1]. Got {value}.{way_out}")


def check_at_least(who: str, parameter: str, value: float, least: float, way_out: str) -> None:
    """Raises ValueError unless `value` >= `least` (a NaN is refused)."""
    if not value >= least:
        raise ValueError(f"{who}: {parameter} must be at least {least:g}. Got {value}. {way_out}")


def check_one_of(who: str, parameter: str, value: object, allowed: tuple[str, ...], way_out: str) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{who}: {parameter} must be one of {', '.join(allowed)}. Got {value!r}. {way_out}")


def check_scope(who: str, scope: str) -> None:
    """Raises ValueError unless `scope` is "update" or "micro-batch"."""
    check_one_of(who, "scope", scope, ("update", "micro-batch"), 'Statistics are taken over the update; "micro-batch" only reproduces released code.')
