"""From tokens to larger levels: window, segment or phase, turn, response, group; normalisers with a scope; summaries of an entropy vector.

A level is an integer per item: `ids[i]` names the pool that item i falls into, -1 none. One function, `pool`, therefore leads from tokens to
segments, phases, turns and responses, and from responses to groups. A mask is bool and True means "counts"; what does not count may hold
anything, NaN included, and changes nothing, neither values nor gradients. Values keep their unit and are computed in float32 or wider.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Pooling = Literal["mean", "sum", "max", "min", "std", "count"]
Scale = Literal["min-max", "z", "rank", "quantile"]
Scope = Literal["response", "group", "batch"]


@dataclass(frozen=True)
class Windows:
    """Means over windows, in the values' unit; NaN where `full` is False: there the window leaves the text."""

    mean: Float[Tensor, "*batch token"]
    full: Bool[Tensor, "*batch token"]


def windows(values: Float[Tensor, "*batch token"], *, width: int, mask: Bool[Tensor, "*batch token"] | None = None, following: bool = False) -> Windows:
    """Mean over the `width` tokens from each token on (t .. t + width - 1), in the values' unit; `following`: over those after it (t + 1 .. t + width).

    A window is full when all its tokens count. The window of a constant is that constant; width 1 returns the values. Differentiable.
    Raises ValueError for a width below 1. Source: sheet `ares`, symbols (arXiv 2510.08457); `following` is the released code's window.

    >>> windows(torch.tensor([1.0, 3.0, 5.0]), width=2).mean
    tensor([2., 4., nan])
    """
    if width < 1:
        raise ValueError(f"windows: width must be at least 1 token. Got {width}.")
    counted = _counted(values, mask)
    kept = _kept(values, counted)
    if not values.shape[-1]:
        return Windows(kept, counted)
    extra = width - 1 + following
    kept, inside = (torch.nn.functional.pad(kept, (0, extra)), torch.nn.functional.pad(counted, (0, extra)))
    if following:
        kept, inside = kept[..., 1:], inside[..., 1:]
    full = inside.unfold(-1, width, 1).all(-1) & counted
    means = kept.unfold(-1, width, 1).mean(-1)
    return Windows(means.masked_fill(~full, torch.nan), full)


def window_threshold(
    values: Float[Tensor, "response token"],
    *,
    mask: Bool[Tensor, "response token"] | None = None,
    quantile: float = 0.95,
    width: int | None = None,
    released: bool = False,
) -> Float[Tensor, " response"]:
    """What counts as high, per response: the `quantile` of its TOKEN values, in their unit. The paper then averages over responses.

    `released=True`: the quantile of means over the `width` FOLLOWING tokens; a position without a full window holds the mean of those that have one,
    or the first token's own value when none has (the authors take the median over responses). Quantiles interpolate linearly. An affine map of the
    values (positive slope) maps the threshold. A response without tokens: NaN. Source: sheet `ares`, method 1 and pitfall 5.
    """
    if released != (width is not None):
        raise ValueError(f"window_threshold: width belongs to released=True, and to it alone. Got released={released}, width={width}.")
    counted = _counted(values, mask)
    kept = _kept(values, counted)
    if width is not None:
        found = windows(kept, width=width, mask=counted, following=True)
        first = kept.gather(-1, counted.long().argmax(-1, keepdim=True)).squeeze(-1)
        usual = torch.where(found.full.any(-1), reduce(found.mean, mask=found.full), first)
        kept = torch.where(found.full, found.mean, usual.unsqueeze(-1))
    return masked_quantile(kept, quantile, mask=counted)


def segments(starts: Bool[Tensor, "*batch token"], *, mask: Bool[Tensor, "*batch token"] | None = None) -> Int[Tensor, "*batch token"]:
    """The segment of each token, from 0; -1 outside the mask. A segment begins at each True of `starts` that counts, and at the first token.

    >>> segments(torch.tensor([False, False, True, False]))
    tensor([0, 0, 1, 1])
    """
    counted = torch.ones_like(starts) if mask is None else mask
    first = counted & (counted.cumsum(-1) == 1)
    return (((starts & counted) | first).cumsum(-1) - 1).masked_fill(~counted, -1)


def turns(mask: Bool[Tensor, "*batch token"]) -> Int[Tensor, "*batch token"]:
    """The turn of each token, from 0: a run of tokens that count, parted by those that do not (tool or environment text); -1 there.

    >>> turns(torch.tensor([True, True, False, True]))
    tensor([ 0,  0, -1,  1])
    """
    before = torch.nn.functional.pad(mask[..., :-1], (1, 0))
    return segments(mask & ~before, mask=mask)


def phases(closes: Bool[Tensor, "*batch token"], *, mask: Bool[Tensor, "*batch token"] | None = None) -> Int[Tensor, "*batch token"]:
    """0 before the first token of `closes` that counts (thinking), 1 after it (answer), -1 on it and outside the mask.

    A response that never closes is all thinking: also its last token, which the sheet's "k = T" would leave out.
    Source: sheet `pear`, method 1 (arXiv 2510.08026).

    >>> phases(torch.tensor([False, False, True, False]))
    tensor([ 0,  0, -1,  1])
    """
    counted = torch.ones_like(closes) if mask is None else mask
    seen = (closes & counted).cumsum(-1)
    tag = (seen == 1) & closes & counted
    return (seen > 0).long().masked_fill(tag | ~counted, -1)


def pool(
    values: Float[Tensor, "*batch item"],
    ids: Int[Tensor, "*batch item"],
    *,
    pools: int,
    how: Pooling = "mean",
    mask: Bool[Tensor, "*batch item"] | None = None,
    empty: float = float("nan"),
) -> Float[Tensor, "*batch pool"]:
    """One value per pool of items, in the values' unit ("count": how many items). `empty` fills the pools without items ("count": 0).

    Items of id -1 or outside `mask` fall into none. "std" is of the population (divides by n). Differentiable (std of equal items: gradient 0).
    Raises ValueError for ids outside [-1, pools).

    >>> pool(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 2]), pools=3, empty=0.0)
    tensor([2., 0., 8.])
    """
    if how not in ("mean", "sum", "max", "min", "std", "count"):
        raise ValueError(f"pool: how must be 'mean', 'sum', 'max', 'min', 'std' or 'count'. Got {how!r}.")
    if ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < pools:
        raise ValueError(f"pool: ids must lie in [-1, pools={pools}). Got {int(ids.min())} to {int(ids.max())}.")
    counted = _counted(values, mask) & (ids >= 0)
    kept, index = _kept(values, counted), torch.where(counted, ids, pools).long()  # the last, dropped pool takes what does not count
    zero = kept.new_zeros((*kept.shape[:-1], pools + 1))
    number = zero.scatter_add(-1, index, counted.to(kept.dtype))[..., :pools]
    if how == "count":
        return number
    if how in ("max", "min"):
        found = zero.scatter_reduce(-1, index, kept, f"a{how}", include_self=False)[..., :pools]
        return found.masked_fill(number == 0, empty)
    found = zero.scatter_add(-1, index, kept)
    if how != "sum":
        share = torch.nn.functional.pad(number.clamp(min=1), (0, 1), value=1.0)
        found = found / share
        if how == "std":
            apart = torch.where(counted, kept - found.gather(-1, index), 0)
            variance = zero.scatter_add(-1, index, apart.square()) / share
            still = variance == 0  # the root has no slope there; 0 serves
            found = torch.where(still, 0, torch.where(still, 1, variance).sqrt())
    return found[..., :pools].masked_fill(number == 0, empty)


def reduce(
    values: Float[Tensor, "*batch item"], *, how: Pooling = "mean", mask: Bool[Tensor, "*batch item"] | None = None, empty: float = float("nan")
) -> Float[Tensor, "*batch"]:
    """One value per row, in the values' unit: token to response. As `pool` with a single pool."""
    ids = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    return pool(values, ids, pools=1, how=how, mask=mask, empty=empty).squeeze(-1)


def masked_quantile(values: Float[Tensor, "*batch item"], quantile: float, *, mask: Bool[Tensor, "*batch item"] | None = None) -> Float[Tensor, "*batch"]:
    """The quantile of each row's items that count, linearly interpolated, in the values' unit; NaN for a row of none. Differentiable.

    Raises ValueError for a quantile outside [0, 1].

    >>> masked_quantile(torch.tensor([0.0, 1.0, 2.0, 9.0]), 0.25, mask=torch.tensor([True, True, True, False]))
    tensor(0.5000)
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"masked_quantile: quantile must be a fraction in [0, 1]. Got {quantile}. For 95 % write 0.95.")
    counted = _counted(values, mask)
    wide = values if values.dtype == torch.float64 else values.float()
    if values.shape[-1] == 0:
        return wide.new_full(values.shape[:-1], torch.nan)
    number = counted.sum(-1, keepdim=True)
    ranked = wide.masked_fill(~counted, torch.inf).sort(-1).values
    return _interpolate(ranked, (number - 1).clamp(min=0), quantile).squeeze(-1).masked_fill(number.squeeze(-1) == 0, torch.nan)


def normalise(
    values: Float[Tensor, "response token"],
    scale: Scale,
    *,
    scope: Scope,
    mask: Bool[Tensor, "response token"] | None = None,
    group: Int[Tensor, " response"] | None = None,
    quantiles: tuple[float, float] = (0.05, 0.95),
) -> Float[Tensor, "response token"]:
    """Values without unit, on a scale taken over one response, over one group of responses (`group`: any integers), or over all tokens given.

    "min-max": (x - min) / (max - min), in [0, 1]; all equal: 0. "z": (x - mean) / std of the population; all equal: 0. "rank": mean 0-based rank
    (ties share) / (n - 1), in [0, 1]; all equal or one alone: 1/2; no gradient. "quantile": between the two `quantiles`, clipped to [0, 1]; where these are
    equal: 0 up to them, 1 above. Positions outside the mask are 0. The first three give the same after any increasing affine map of the
    values, "rank" after any increasing map. Raises ValueError when scope "group" comes without `group`, or another with it.
    """
    if scope not in ("response", "group", "batch") or scale not in ("min-max", "z", "rank", "quantile"):
        raise ValueError(
            f"normalise: scope must be 'response', 'group' or 'batch', scale 'min-max', 'z', 'rank' or 'quantile'. Got scope={scope!r}, scale={scale!r}."
        )
    if (scope == "group") != (group is not None):
        raise ValueError(
            f"normalise: group belongs to scope='group', and to it alone. Got scope={scope!r} and group {'given' if group is not None else 'None'}."
        )
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"normalise: quantiles must be two fractions in [0, 1], the lower first. Got {quantiles}.")
    counted = _counted(values, mask)
    kept = _kept(values, counted)
    place, parts = torch.arange(kept.numel(), device=kept.device).view_as(kept), []
    for rows in _scopes(kept, scope, group):
        inside = counted[rows]
        if inside.any():
            parts.append((place[rows][inside], _scaled(kept[rows][inside], scale, quantiles)))
    found = torch.zeros_like(kept).flatten()
    if parts:
        index, scaled = (torch.cat(part) for part in zip(*parts, strict=True))
        found = found.index_put((index,), scaled)
    return found.view_as(kept)


@dataclass(frozen=True)
class Summary:
    """What a vector of entropies looks like, per row; all but `count` in the values' unit (`var` in its square).

    Source: sheet `multi-agent-entropy`, B (arXiv 2602.04234). Shape features (D) divide: a zero denominator gives 0, as there.
    """

    count: Float[Tensor, "*batch"]
    total: Float[Tensor, "*batch"]
    mean: Float[Tensor, "*batch"]
    std: Float[Tensor, "*batch"]
    min: Float[Tensor, "*batch"]
    q1: Float[Tensor, "*batch"]
    median: Float[Tensor, "*batch"]
    q3: Float[Tensor, "*batch"]
    max: Float[Tensor, "*batch"]

    @property
    def var(self) -> Tensor:
        """Variance of the population."""
        return self.std.square()

    @property
    def range(self) -> Tensor:
        """Largest less smallest."""
        return self.max - self.min

    @property
    def iqr(self) -> Tensor:
        """Interquartile range."""
        return self.q3 - self.q1

    @property
    def iqr_over_mean(self) -> Tensor:
        return _over(self.iqr, self.mean)

    @property
    def iqr_over_range(self) -> Tensor:
        return _over(self.iqr, self.range)

    @property
    def bowley(self) -> Tensor:
        """Bowley's skew, (q3 + q1 - 2 median) / IQR, in [-1, 1]; positive: the upper half is the wider."""
        return _over(self.q3 + self.q1 - 2 * self.median, self.iqr)

    @property
    def median_over_mean(self) -> Tensor:
        return _over(self.median, self.mean)

    @property
    def tail(self) -> Tensor:
        """Weight of the upper tail, (max - q3) / IQR."""
        return _over(self.max - self.q3, self.iqr)

    @property
    def cv(self) -> Tensor:
        """Coefficient of variation, std / mean."""
        return _over(self.std, self.mean)

    @property
    def stability(self) -> Tensor:
        """1 - std / mean; 0 where the mean is 0."""
        return torch.where(self.mean == 0, 0, 1 - self.cv)


def summarise(values: Float[Tensor, "*batch item"], *, mask: Bool[Tensor, "*batch item"] | None = None) -> Summary:
    """The Summary of each row's items that count; a row of none has count and total 0 and NaN elsewhere. Differentiable where `pool` is.

    Linear percentiles. Scaling the values by c > 0 scales every field but `count` (var by c^2) and leaves the shape features.
    """
    counted = _counted(values, mask)
    kept = _kept(values, counted)
    q1, median, q3 = (masked_quantile(kept, q, mask=counted) for q in (0.25, 0.5, 0.75))
    count, mean, std, low, high = (reduce(kept, how=how, mask=counted) for how in ("count", "mean", "std", "min", "max"))
    return Summary(count, reduce(kept, how="sum", mask=counted, empty=0.0), mean, std, low, q1, median, q3, high)


def over_calls(summary: Summary, *, mask: Bool[Tensor, "*batch call"] | None = None) -> Summary:
    """The Summary of several calls as one sample: `total` and `count` are sums over calls, every other field the MEAN of the calls' fields.

    So `max` is the mean of maxima, and `mean` is not total / count. Source: sheet `multi-agent-entropy`, C.
    """
    counted = summary.count > 0
    counted = counted if mask is None else counted & mask
    total, count = (reduce(value, how="sum", mask=counted, empty=0.0) for value in (summary.total, summary.count))
    fields = {name: reduce(getattr(summary, name), mask=counted) for name in ("mean", "std", "min", "q1", "median", "q3", "max")}
    return Summary(count=count, total=total, **fields)


@dataclass(frozen=True)
class Trend:
    """How a series runs from its first to its last item that counts; the series' unit, `ratio` and `sign` without. Source: sheet `multi-agent-entropy`, F."""

    difference: Float[Tensor, "*batch"]
    ratio: Float[Tensor, "*batch"]
    slope: Float[Tensor, "*batch"]
    volatility: Float[Tensor, "*batch"]

    @property
    def sign(self) -> Tensor:
        return self.difference.sign()


def trend(values: Float[Tensor, "*batch item"], *, mask: Bool[Tensor, "*batch item"] | None = None) -> Trend:
    """last - first, last / first (0 where first is 0), (last - first) / max(n - 1, 1) with n items that count, and the population std; none: NaN."""
    counted = _counted(values, mask)
    kept, number = _kept(values, counted), counted.sum(-1)
    place = counted.cumsum(-1)
    first, last = (
        torch.where(counted & (place == end.unsqueeze(-1)), kept, 0).sum(-1).masked_fill(number == 0, torch.nan) for end in (torch.ones_like(number), number)
    )
    return Trend(last - first, _over(last, first), (last - first) / (number - 1).clamp(min=1), reduce(kept, how="std", mask=counted))


def _counted(values: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(values.shape, dtype=torch.bool, device=values.device) if mask is None else mask


def _kept(values: Tensor, counted: Tensor) -> Tensor:
    """float32 or wider, 0 where it does not count, whatever stood there."""
    return (values if values.dtype == torch.float64 else values.float()).masked_fill(~counted, 0)


def _over(part: Tensor, whole: Tensor) -> Tensor:
    zero = whole == 0
    return torch.where(zero, 0, part / torch.where(zero, 1, whole))


def _interpolate(ranked: Tensor, last: Tensor, quantile: float) -> Tensor:
    """Quantile along sorted rows of which positions 0 .. last count. In float64: a float32 position is off by one past 2^24 items."""
    place = last.double() * quantile
    below = place.floor().long()
    above = (below + 1).minimum(last)
    low, high = ranked.gather(-1, below), ranked.gather(-1, above)
    part = (place - below).to(ranked.dtype)
    return torch.where(low == high, low, low + part * (high - low))  # equal infinities have no difference


def _scopes(values: Tensor, scope: Scope, group: Tensor | None) -> list[Tensor]:
    """Row indices of each scope."""
    rows = torch.arange(values.shape[0], device=values.device)
    if scope == "response":
        return list(rows.unsqueeze(1))
    if scope == "batch" or group is None:
        return [rows]
    return [rows[group == name] for name in group.unique()]


def _scaled(values: Tensor, scale: Scale, quantiles: tuple[float, float]) -> Tensor:
    """The values of one scope, on the scale."""
    if scale == "min-max":
        return _over(values - values.min(), values.max() - values.min())
    if scale == "z":
        apart = values - values.mean()
        if values.min() == values.max():
            return torch.zeros_like(values)  # the mean of equal values rounds, and so would their deviation from it
        return apart / apart.square().mean().sqrt()
    if scale == "rank":
        return _ranks(values)
    low, high = (masked_quantile(values, q) for q in quantiles)
    if low == high:
        return (values > high).to(values.dtype)
    return ((values - low) / (high - low)).clamp(0, 1)


def _ranks(values: Tensor) -> Tensor:
    if values.numel() == 1:
        return torch.full_like(values, 0.5)
    _, index, ties = values.detach().unique(return_inverse=True, return_counts=True)
    below = ties.cumsum(0) - ties
    return ((below + (ties - 1) / 2)[index] / (values.numel() - 1)).to(values.dtype)
