"""Token or response values brought to one scale, within a scope that is said: min-max, z-score, rank, quantiles.

Values are [response, token] with the mask of the tokens that count; for one value per response pass `value[:, None]` and
`mask.any(-1, keepdim=True)`. Results are detached, float64 inside and of the value's type outside, 0 where the mask does not count.
Rows enter every sum in the order of their ids, so no shuffling changes a bit.

Scopes: "sequence" (each response by itself), "group", "update" and "rollout" (all rows given: a survey's view, or the rollouts), "ema"
(a running location and scale that the intervention keeps in its state: `Running`).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_fraction, check_one_of, number
from isentrope.control.step import Scope, State

Kind = Literal["min-max", "z", "rank", "quantile"]
MIDDLE = {"min-max": 0.5, "z": 0.0, "rank": 0.5, "quantile": 0.5}
"""What every value of a scope becomes where all of them are equal, or only one counts."""
_FLAT = 1e-12  # a scale below this share of the largest value is rounding


def normalise(
    value: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    kind: Kind,
    *,
    scope: Scope = "update",
    group: Int[Tensor, " response"] | None = None,
    row_id: Int[Tensor, " response"] | None = None,
    levels: tuple[float, float] = (0.05, 0.95),
) -> Float[Tensor, "response token"]:
    """The counted values on one scale within their scope.

    min-max: (x - min) / (max - min). z: (x - mean) / sample standard deviation. rank: share of the others that are smaller, ties at
    their average, in [0, 1]. quantile: (x - q_low) / (q_high - q_low) at `levels`, held in [0, 1]. Equal values become `MIDDLE[kind]`.

    Raises ValueError for an unknown kind or scope, and for "group" without `group`.

    >>> normalise(torch.tensor([[1.0, 3.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool), "rank")
    tensor([[0.0000, 1.0000, 0.5000]])
    """
    check_one_of("normalise", "kind", kind, tuple(MIDDLE), "")
    flat, of, place = counted(value, mask, scope, group, row_id)
    if kind == "rank":
        found = _rank(flat, of)
    else:
        location, scale = _location_and_scale(flat, of, kind, levels)
        found = _scaled(flat, location[of], scale[of], kind)
    return _spread(found, place, value)


def counted(
    value: Tensor, mask: Bool[Tensor, "response token"], scope: Scope, group: Tensor | None, row_id: Tensor | None
) -> tuple[Float64[Tensor, " counted"], Int[Tensor, " counted"], Int[Tensor, " counted"]]:
    """The counted values with rows in the order of their ids, the index of each one's scope, and its flat position in `value`."""
    rows, width = mask.shape
    order = torch.arange(rows, device=mask.device) if row_id is None else torch.argsort(row_id)
    ordered = mask[order]
    position = (order[:, None] * width + torch.arange(width, device=mask.device))[ordered]
    index = _scope_index(rows, scope, group, mask.device)[order][:, None].expand(ordered.shape)[ordered]
    return value.detach().double().flatten()[position], index, position


def _scope_index(rows: int, scope: Scope, group: Tensor | None, device: torch.device) -> Int[Tensor, " response"]:
    check_one_of("normalise", "scope", scope, ("sequence", "group", "update", "rollout"), 'For "ema" keep a `Running` in the state.')
    if scope == "sequence":
        return torch.arange(rows, device=device)
    if scope == "group":
        if group is None:
            raise ValueError('normalise: scope "group" needs `group`, the prompt id of every response. Got None.')
        return torch.unique(group, return_inverse=True)[1]
    return torch.zeros(rows, dtype=torch.long, device=device)


def _location_and_scale(
    value: Float64[Tensor, " counted"], of: Int[Tensor, " counted"], kind: Kind, levels: tuple[float, float]
) -> tuple[Float64[Tensor, " scope"], Float64[Tensor, " scope"]]:
    """Per scope; the scale of equal values is 0."""
    scopes = int(of.max()) + 1 if len(of) else 1
    zero = value.new_zeros(scopes)
    count = zero.index_add(0, of, torch.ones_like(value))
    largest = zero.scatter_reduce(0, of, value.abs(), "amax")
    if kind == "z":
        location = zero.index_add(0, of, value) / count.clamp(min=1)
        square = zero.index_add(0, of, (value - location[of]) ** 2)
        scale = (square / (count - 1).clamp(min=1)).sqrt()
    elif kind == "min-max":
        location = torch.full_like(zero, torch.inf).scatter_reduce(0, of, value, "amin")
        scale = torch.full_like(zero, -torch.inf).scatter_reduce(0, of, value, "amax") - location
    else:
        location, top = (_quantile(value, of, count, level) for level in levels)
        scale = top - location
    scale = torch.where(scale > _FLAT * largest, scale, 0.0)
    return torch.where(count > 0, location, 0.0), torch.where(count > 0, scale, 0.0)


def _by_scope(value: Tensor, of: Tensor) -> Int[Tensor, " counted"]:
    """The order by scope, then by value."""
    by_value = torch.argsort(value, stable=True)
    return by_value[torch.argsort(of[by_value], stable=True)]


def _quantile(value: Tensor, of: Tensor, count: Tensor, level: float) -> Tensor:
    """Linearly interpolated, per scope; 0 where none counts."""
    if not len(value):
        return torch.zeros_like(count)
    ordered = value[_by_scope(value, of)]
    first, at = count.cumsum(0) - count, level * (count - 1).clamp(min=0)
    low, high = ((first + edge).long().clamp(max=len(value) - 1) for edge in (at.floor(), at.ceil()))
    return torch.lerp(ordered[low], ordered[high], at - at.floor())


def _rank(value: Tensor, of: Tensor) -> Tensor:
    """Average rank over the number of others."""
    order = _by_scope(value, of)
    ordered, scope = value[order], of[order]
    new = torch.ones_like(scope, dtype=torch.bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (scope[1:] != scope[:-1])
    tie = new.cumsum(0) - 1
    size = torch.bincount(tie).double()
    average = (size.cumsum(0) - size + (size - 1) / 2)[tie]
    members = torch.bincount(of) if len(of) else of
    first = (members.cumsum(0) - members)[scope].double()
    others = (members[scope] - 1).double()
    found = torch.empty_like(value)
    found[order] = torch.where(others > 0, (average - first) / others.clamp(min=1), MIDDLE["rank"])
    return found


def _scaled(value: Tensor, location: Tensor, scale: Tensor, kind: Kind) -> Tensor:
    found = torch.where(scale > 0, (value - location) / torch.where(scale > 0, scale, 1.0), MIDDLE[kind])
    return found.clamp(0.0, 1.0) if kind == "quantile" else found


def _spread(found: Tensor, position: Tensor, like: Tensor) -> Tensor:
    kind = like.dtype if like.is_floating_point() else torch.float32
    out = torch.zeros(like.numel(), dtype=kind, device=like.device)
    out[position] = found.to(kind)
    return out.reshape(like.shape)


def unit_mean(
    value: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    scope: Scope = "update",
    group: Int[Tensor, " response"] | None = None,
    row_id: Int[Tensor, " response"] | None = None,
) -> Float[Tensor, "response token"]:
    """Non-negative weights rescaled so that their mean over the counted tokens of the scope is 1; detached, 1 outside the mask.

    A scope whose weights are all 0 keeps weight 1 everywhere: it has nothing to prefer.
    """
    flat, of, place = counted(value, mask, scope, group, row_id)
    scopes = int(of.max()) + 1 if len(of) else 1
    zero = flat.new_zeros(scopes)
    mean = zero.index_add(0, of, flat) / zero.index_add(0, of, torch.ones_like(flat)).clamp(min=1)
    found = torch.where(mean[of] > 0, flat / torch.where(mean > 0, mean, 1.0)[of], 1.0)
    return torch.where(mask, _spread(found, place, value), 1.0)


@dataclass(frozen=True)
class Running:
    """Location and scale as exponential averages over updates, for scope "ema": `ema <- decay ema + (1 - decay) measured`.

    The first measurement is taken whole. Ranks have no location, so `kind` is min-max, z or quantile.
    """

    kind: Literal["min-max", "z", "quantile"] = "z"
    decay: float = 0.9
    levels: tuple[float, float] = (0.05, 0.95)

    def __post_init__(self):
        check_one_of("Running", "kind", self.kind, ("min-max", "z", "quantile"), "A rank has no running location; take it over the update.")
        check_fraction("Running", "decay", self.decay)

    def init(self) -> State:
        """The state before the first update."""
        return {"location": None, "scale": None}

    def measure(
        self, value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], row_id: Int[Tensor, " response"] | None = None
    ) -> dict[str, Tensor]:
        """Location and scale of this update, for the scalars of a `Stats`; NaN where nothing counts."""
        flat, of, _ = counted(value, mask, "update", None, row_id)
        location, scale = _location_and_scale(flat, of, self.kind, self.levels)
        absent = torch.tensor(float("nan"), dtype=torch.float64, device=value.device)
        return {"location": location[0] if len(flat) else absent, "scale": scale[0] if len(flat) else absent}

    def update(self, state: State, location: float, scale: float) -> State:
        """The state after an update that measured these; unchanged by NaN."""
        if location != location:
            return state
        if state["location"] is None:
            return {"location": location, "scale": scale}
        keep = self.decay
        return {
            "location": keep * number(state, "location") + (1 - keep) * location,
            "scale": keep * number(state, "scale") + (1 - keep) * scale,
        }

    def apply(self, state: State, value: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
        """The counted values by the state's location and scale, 0 elsewhere; `MIDDLE[kind]` before the first measurement."""
        location, scale = (0.0, 0.0) if state["location"] is None else (number(state, "location"), number(state, "scale"))
        wide = torch.where(mask, value.detach().double(), 0.0)
        found = _scaled(wide, torch.full_like(wide, location), torch.full_like(wide, scale), self.kind)
        return torch.where(mask, found, 0.0).to(value.dtype)
