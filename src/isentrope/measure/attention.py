r"""Entropy of every row of attention, without ever holding [query, key].

For one query the logits are s_j = scale q . k_j (+ bias) over the keys that it sees, p = softmax(s). Because E_p[s] = scale q . E_p[k],

    H = ln sum_j exp(s_j) - E_p[s] = lse - scale q . attention(q, K, values = K)

so a fused attention kernel that returns its log-sum-exp gives H of every head and query in O(queries + keys) memory. The gradient comes
from the same kernel: dH/ds_j = -p_j (s_j - E_p[s]), which is what the kernel's backward returns for values = K and an output gradient of
-scale q (its gradient of the values, and that of lse, cancel against each other). H does not change when one vector is subtracted from
all keys; the mean key is, so that keys with a large common part cost no digits.

A softcap, a finite bias or a sink logit breaks the first equation: such rows are computed exactly, tile by tile of queries, O(keys) memory.
On a device other than the CPU all rows are computed that way.

Sources: DESIGN section 6 (derived there); sheets `sigma-reparam` (row entropy over visible keys), `attention-entropy-tokens` (the row
without its sink token). `attention_ceilings.py` says what the numbers can be compared with.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

MASK_ELEMENTS = 2**22  # of the mask of one tile of queries: 16 MB in float32
GROUP_ELEMENTS = 2**22  # of the queries that one call of the kernel takes: it returns as many
LOGIT_ELEMENTS = 2**21  # of the logits of one explicit tile


def attention_entropy(
    query: Float[Tensor, "batch heads queries d"],
    key: Float[Tensor, "batch kv_heads keys d"],
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    visible: Bool[Tensor, "batch keys"] | None = None,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | Float[Tensor, "#batch #heads #queries #keys"] | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    without_first: bool = False,
) -> Float[Tensor, "batch heads queries"]:
    """Entropy of every row of attention, in nats: of softmax(scale q . k + mask) over the keys that the query sees.

    Range [0, ln seen keys]. float32, or float64 for such inputs (bfloat16 is widened first: nothing is rounded to it). A row that sees
    no key is NaN and passes no gradient. Differentiable, first order, in query and key (and in a bias or sinks); backward recomputes.

    scale          None: 1 / sqrt(d).
    heads          A multiple of kv_heads: consecutive query heads share a key head.
    causal         Query i sees keys up to its own position; the queries are the last positions of the keys.
    window         Keys at a distance below it are seen (its own position is one of them); None: all.
    visible        False for padding, on whichever side. What stands there may be anything, NaN included.
    mask           bool, True is seen; or additive. Of an additive one, -inf and what lies below half the lowest finite number of its dtype
                   is not seen; other numbers are a bias of the logit.
    softcap        The scaled logit becomes softcap tanh(logit / softcap) before the mask.
    sinks          One more logit per head that every row has (gpt-oss): an outcome beside the keys, so that the range is [0, ln(keys + 1)].
    without_first  The row renormalised over the seen keys without the first visible position, where models put their sink.

    Raises ValueError for shapes that do not fit, a window below 1, or a scale or softcap that is not positive.

    >>> attention_entropy(torch.zeros(1, 1, 3, 2), torch.randn(1, 1, 3, 2), causal=True)  # uniform over 1, 2, 3 keys
    tensor([[[0.0000, 0.6931, 1.0986]]])
    """
    _check(query, key, scale, window, visible, mask, softcap, sinks)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    if without_first:
        visible = _without_first(visible, key)
    if visible is not None:
        key = torch.where(visible[:, None, :, None], key, 0.0)
    sight = Sight(query.shape[2], key.shape[2], causal, window, visible, mask)
    if softcap is None and sinks is None and query.device.type == "cpu" and not sight.biased():
        return _Fused.apply(query, key, scale, sight)
    return _explicit(query, key, scale, sight, softcap, sinks)


@dataclass(frozen=True)
class Sight:
    """Who sees whom: the rules of `attention_entropy`, one tile of queries at a time."""

    queries: int
    keys: int
    causal: bool
    window: int | None
    visible: Tensor | None
    mask: Tensor | None

    @property
    def simple(self) -> bool:
        """The kernel's own rule is enough: everything, or causal with as many queries as keys."""
        reaches = self.window is None or self.window >= self.keys
        return self.visible is None and self.mask is None and reaches and (not self.causal or self.queries == self.keys)

    def biased(self) -> bool:
        """The mask is additive and holds a finite number that is neither 0 nor the lowest."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return False
        return any(bool(((part != 0) & _seen(part)).any()) for part in self.mask.split(max(1, MASK_ELEMENTS // max(self.mask.shape[-1], 1)), dim=-2))

    def tiles(self, rows: int) -> Iterator[tuple[slice, slice]]:
        """Slices of queries, and of the keys that they could see by position."""
        rows = max(1, rows if self.window is None else min(rows, max(self.window, 128)))
        shift = self.keys - self.queries
        for start in range(0, self.queries, rows):
            stop = min(start + rows, self.queries)
            ahead = 0 if self.causal else self.keys if self.window is None else self.window - 1
            low = 0 if self.window is None else max(0, start + shift - self.window + 1)
            yield slice(start, stop), slice(min(low, self.keys), max(0, min(self.keys, stop + shift + ahead)))

    def seen(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """[batch | 1, heads | 1, rows, columns], True where the query sees the key."""
        i = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1) + (self.keys - self.queries)
        apart = i - torch.arange(columns.start, columns.stop, device=device)
        seen = apart >= 0 if self.causal else torch.ones_like(apart, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (apart.abs() < self.window)
        seen = seen[None, None]
        if self.visible is not None:
            seen = seen & self.visible[:, None, None, columns]
        part = self.part(rows, columns)
        return seen if part is None else seen & _seen(part)

    def part(self, rows: slice, columns: slice) -> Tensor | None:
        """The mask's tile."""
        if self.mask is None:
            return None
        return self.mask[..., rows if self.mask.shape[-2] > 1 else slice(None), columns if self.mask.shape[-1] > 1 else slice(None)]

    def breadth(self) -> int:
        """How many masks of [queries, keys] there are."""
        batch = 1 if self.visible is None else self.visible.shape[0]
        return batch if self.mask is None else max(batch, self.mask.shape[0]) * self.mask.shape[1]


def visible_keys(
    queries: int,
    keys: int,
    *,
    causal: bool = False,
    window: int | None = None,
    visible: Bool[Tensor, "batch keys"] | None = None,
    mask: Bool[Tensor, "_ _ #queries #keys"] | Float[Tensor, "_ _ #queries #keys"] | None = None,
    without_first: bool = False,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "_ _ queries"]:
    """How many keys each query sees, [batch or 1, heads or 1, queries]: the logarithm is the ceiling of its entropy, in nats.

    Arguments as of `attention_entropy` (without_first needs no `visible` there, and here takes position 0 for the first). Only the axes of
    `visible` and `mask` are expanded: without them the first two are 1. O(keys) memory beyond the arguments.

    >>> visible_keys(4, 4, causal=True, window=2)
    tensor([[[1, 2, 2, 2]]])
    """
    device = torch.device(device) if visible is None and mask is None else (visible if visible is not None else mask).device  # type: ignore[union-attr]
    if without_first:
        visible = _drop_first(torch.ones(1, keys, dtype=torch.bool, device=device) if visible is None else visible)
    sight = Sight(queries, keys, causal, window, visible, mask)
    rows = MASK_ELEMENTS // max(1, sight.breadth() * keys)
    return torch.cat([sight.seen(some, columns, device).sum(-1) for some, columns in sight.tiles(rows)], dim=-1)


# --- through the fused kernel


class _Fused(torch.autograd.Function):
    """Entropies through the CPU's fused attention; backward calls its forward again, for the output is as large as the queries."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, scale: float, sight: Sight) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.scale, ctx.sight = scale, sight
        found = query.new_full(query.shape[:-1], torch.nan, dtype=_wide(query, key))
        for heads, shared in _groups(query, key):
            q, k = _prepared(query, key, heads, shared)
            for rows, columns, mask, none in _calls(sight, heads, query):
                if columns.stop > columns.start:
                    row = q[:, :, rows]
                    expected, log_sum = _attend(row, k[:, :, columns], mask, sight, scale)
                    value = (log_sum - scale * torch.linalg.vecdot(row, expected)).clamp_min(0.0)
                    found[:, heads, rows] = value if none is None else value.masked_fill(none, torch.nan)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        scale, sight = ctx.scale, ctx.sight
        to_query, to_key = torch.zeros_like(query), torch.zeros_like(key)
        for heads, shared in _groups(query, key):
            q, k = _prepared(query, key, heads, shared)
            sum_query, sum_key = torch.zeros_like(q), torch.zeros_like(k)
            for rows, columns, mask, none in _calls(sight, heads, query):
                if columns.stop > columns.start:
                    given = slope[:, heads, rows] if none is None else slope[:, heads, rows].masked_fill(none, 0.0)
                    row, seen = torch.where((given == 0).unsqueeze(-1), 0.0, q[:, :, rows]), k[:, :, columns]  # NaN in a row that does not count reaches nobody
                    at_query, at_key = _attend_backward(-scale * given.unsqueeze(-1) * row, row, seen, mask, sight, scale)
                    sum_query[:, :, rows] += at_query
                    sum_key[:, :, columns] += at_key
            to_query[:, heads] = sum_query.to(query.dtype)
            to_key[:, shared] = sum_key.unflatten(1, (shared.stop - shared.start, -1)).sum(2).to(key.dtype)
        return to_query, to_key, None, None


def _groups(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Query heads and the key heads that they share, few enough that a call stays small."""
    each = query.shape[1] // key.shape[1]
    step = max(1, GROUP_ELEMENTS // max(1, query[:, :each].numel()))
    for start in range(0, key.shape[1], step):
        stop = min(start + step, key.shape[1])
        yield slice(start * each, stop * each), slice(start, stop)


def _prepared(query: Tensor, key: Tensor, heads: slice, shared: slice) -> tuple[Tensor, Tensor]:
    """Wide queries and keys, the keys less their mean and one for every query head."""
    wide = _wide(query, key)
    k = key[:, shared].to(wide)
    k = k - k.mean(2, keepdim=True)
    return query[:, heads].to(wide), k.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


def _calls(sight: Sight, heads: slice, query: Tensor) -> Iterator[tuple[slice, slice, Tensor | None, Tensor | None]]:
    """Queries, keys, additive mask and the rows that see no key, per call of the kernel."""
    if sight.simple:
        yield slice(0, sight.queries), slice(0, sight.keys), None, None
        return
    wide = _wide(query, query)
    for rows, columns in sight.tiles(MASK_ELEMENTS // max(1, sight.breadth() * sight.keys)):
        seen = sight.seen(rows, columns, query.device)
        if seen.shape[1] > 1:
            seen = seen[:, heads]
        none = ~seen.any(-1)
        # A row that sees nothing sees everything instead: its value is replaced and its slope is 0.
        yield rows, columns, torch.where(seen | none.unsqueeze(-1), 0.0, -torch.inf).to(wide), none


def _attend(q: Tensor, k: Tensor, mask: Tensor | None, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
    """E_p[k] and the log-sum-exp of the logits."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, mask is None and sight.causal, attn_mask=mask, scale=scale)


def _attend_backward(slope: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
    expected, log_sum = _attend(q, k, mask, sight, scale)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return backward(slope, q, k, k, expected, log_sum, 0.0, mask is None and sight.causal, attn_mask=mask, scale=scale)[:2]


# --- explicitly, a tile of queries at a time


def _explicit(query: Tensor, key: Tensor, scale: float, sight: Sight, softcap: float | None, sinks: Tensor | None) -> Tensor:
    rows = LOGIT_ELEMENTS // max(1, query.shape[0] * query.shape[1] * sight.keys)
    parts = []
    for some, columns in sight.tiles(rows):
        tile = (query[:, :, some], key[:, :, columns], sight.seen(some, columns, query.device), sight.part(some, columns), scale, softcap, sinks)
        parts.append(checkpoint(_tile_entropy, *tile, use_reentrant=False) if torch.is_grad_enabled() else _tile_entropy(*tile))
    return torch.cat(parts, dim=2) if parts else query.new_zeros(query.shape[:-1], dtype=_wide(query, key))


def _tile_entropy(query: Tensor, key: Tensor, seen: Tensor, bias: Tensor | None, scale: float, softcap: float | None, sinks: Tensor | None) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        wide = _wide(query, key)
        logits = scale * query.to(wide) @ key.to(wide).repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None and bias.dtype != torch.bool:
        logits = logits + bias.to(wide).masked_fill(~_seen(bias), 0.0)
    none = ~seen.any(-1)
    seen = seen | none.unsqueeze(-1)  # finite numbers to differentiate through; the value is replaced below
    logits = logits.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sink = sinks.to(wide)[None, :, None, None].expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], dim=-1)
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    found = (p * -log_p.masked_fill(p == 0, 0.0)).sum(-1)
    return found.masked_fill(none, torch.nan)


# --- small things


def _seen(mask: Tensor) -> Tensor:
    """Of a mask, True where it lets see. Models write -inf as the lowest finite number, and sometimes add two of them."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _wide(query: Tensor, key: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32


def _without_first(visible: Tensor | None, key: Tensor) -> Tensor:
    return _drop_first(torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device) if visible is None else visible)


def _drop_first(visible: Tensor) -> Tensor:
    return visible & (visible.cumsum(-1) > 1)


def _check(
    query: Tensor,
    key: Tensor,
    scale: float | None,
    window: int | None,
    visible: Tensor | None,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    name = "attention_entropy"
    if query.dim() != 4 or key.dim() != 4 or query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{name}: query must be [batch, heads, queries, d] and key [batch, kv_heads, keys, d] with the same batch and d. "
            f"Got {list(query.shape)} and {list(key.shape)}."
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"{name}: heads of query must be a multiple of those of key. Got {query.shape[1]} and {key.shape[1]}.")
    if scale is not None and not scale > 0:
        raise ValueError(f"{name}: scale must be > 0, or None for 1 / sqrt(d). Got {scale}.")
    if window is not None and window < 1:
        raise ValueError(f"{name}: window must be at least 1 (1 sees its own position only), or None for no window. Got {window}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap must be > 0, or None for none. Got {softcap}.")
    batch, heads, queries, keys = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    if visible is not None and list(visible.shape) != [batch, keys]:
        raise ValueError(f"{name}: visible must be [batch, keys] = {[batch, keys]}. Got {list(visible.shape)}.")
    if mask is not None and (mask.dim() != 4 or any(n not in (1, m) for n, m in zip(mask.shape, (batch, heads, queries, keys), strict=True))):
        raise ValueError(f"{name}: mask must have four axes that broadcast to {[batch, heads, queries, keys]}. Got {list(mask.shape)}.")
    if sinks is not None and list(sinks.shape) != [heads]:
        raise ValueError(f"{name}: sinks must hold one logit per query head, [{heads}]. Got {list(sinks.shape)}.")
