"""The engine of `tokens.py`: softmax statistics of hidden . W^T in tiles, so that [token, vocab] logits are never held.

Forward: one product per tile and online sums over e = exp(y), y = z - max so far. Backward: the product again, its gradient in
closed form, two products more. With total = sum e and L = ln total, so that p = e / total and ln p = y - L:

    d(log p_k)/dz = [k] - p        dH/dz = -p (ln p + H)        d(sum p^2)/dz = 2 p (p - sum p^2)

and the slope of a tile is e (a + b y + c e), with one a, b, c per token, plus the target's own term.

A 16-bit product rounds its result to 8 bits (bfloat16): an error of up to 0.06 at a logit of 20. Rounding is relative, so the tile
computes z - r instead, with r the target's own logit: tokens as likely as the target come out exact, errors grow with the
distance from it, where p is small. r is a constant of the softmax, so neither values nor gradients see it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isentrope.measure.rows import FLOOR, KINDS, add_nucleus_slope, keeps_all, of_whole_rows, orders, selects
from isentrope.measure.signals import LogProb, NucleusEntropy, Signal, SumSquares

TILE = 1 << 20  # logits per tile: three float32 buffers of 4 MiB stay in the last-level cache
ROWS = 1024  # tokens per tile, where there are that many
WHOLE_ROWS = 1 << 20  # logits per tile of signals that rank a whole row
SLOPES = 1 << 22  # 16-bit slopes gathered before a product, so that few partial products are rounded

_HALF = (torch.bfloat16, torch.float16)
_NEEDS = {  # which sums a signal is made of
    "entropy": {"ey"},
    "S": {"ey"},
    "N": {"ey", "ee", "eey"},
    "sum_p2": {"ee"},
    "varentropy": {"ey", "eyy"},
    "mean_logit": {"z"},
}


@dataclass(frozen=True)
class Head:
    """What stands between hidden . W^T + bias and the softmax, and the dtype of the products."""

    scale: float
    softcap: float | None
    temperature: float
    product: torch.dtype

    @property
    def exact(self) -> torch.dtype:
        """The dtype of everything but the products."""
        return torch.float64 if self.product == torch.float64 else torch.float32

    @property
    def slope(self) -> float:
        """Derivative of the logit with respect to the product (of tanh's argument's share, under a softcap)."""
        return self.scale / self.temperature


@dataclass(frozen=True)
class Grid:
    """Tokens and vocabulary entries per tile."""

    rows: int
    columns: int

    @staticmethod
    def of(rows: int, vocab: int, *, whole_rows: bool) -> "Grid":
        if whole_rows:
            return Grid(max(1, min(rows, WHOLE_ROWS // vocab)), vocab)
        columns = min(vocab, TILE // max(1, min(rows, ROWS)))
        return Grid(max(1, min(rows, TILE // columns)), columns)


def spans(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


class Tiles:
    """Logits tile by tile, in one buffer that every tile overwrites."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: Head, grid: Grid):
        self.hidden, self.weight, self.target, self.head, self.grid = hidden.to(head.product), weight, target, head, grid
        # the product leaves with this factor: all of scale and temperature, or the argument of tanh
        self.factor = head.slope if head.softcap is None else head.scale / head.softcap
        self.bias = None if bias is None else bias.to(head.exact)
        # -inf, and what overflows once multiplied (a mask may well be written as the lowest finite number)
        self.holds_minus_inf = self.bias is not None and head.softcap is None and bool((self.bias * self.factor < FLOOR).any())
        self.reference = self._target_products() if head.product in _HALF else None
        size = grid.rows * grid.columns
        self._z, self._e, self._w = (torch.empty(size, dtype=head.exact, device=hidden.device) for _ in range(3))
        self._half = torch.empty(size, dtype=head.product, device=hidden.device) if self.reference is not None else None
        self._zero = torch.zeros(1, dtype=head.product, device=hidden.device)

    def _target_products(self) -> Tensor:
        """factor x hidden . W_target, rounded: what 16-bit products are taken relative to; [token, 1]."""
        found = torch.empty(self.hidden.shape[0], 1, dtype=self.head.product, device=self.hidden.device)
        for rows in spans(self.hidden.shape[0], ROWS):
            own = self.weight[self.target[rows]].to(self.head.product).float()
            found[rows, 0] = (own * self.hidden[rows].float()).sum(-1).mul_(self.factor).to(found.dtype)
        return found

    def shift(self, rows: slice) -> Tensor | float:
        """What the logits of these tokens are short of, [token]."""
        return 0.0 if self.reference is None or self.head.softcap is not None else self.reference[rows, 0].to(self.head.exact)

    def buffers(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Three tiles of the exact dtype; `logits` writes the first."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        size = shape[0] * shape[1]
        return self._z[:size].view(shape), self._e[:size].view(shape), self._w[:size].view(shape)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """z - shift of a tile; with a softcap `capped` holds tanh of the same tile until the next call."""
        z, _, tanh = self.buffers(rows, columns)
        hidden, weight = self.hidden[rows], self.weight[columns].to(self.head.product).T
        bias = None if self.bias is None else self.bias[columns]
        if self.reference is not None:
            half = self._half[: z.numel()].view(z.shape)  # type: ignore[index]
            torch.addmm(self.reference[rows], hidden, weight, beta=-1, alpha=self.factor, out=half)
            z.copy_(half)
            if self.head.softcap is not None:
                z.add_(self.reference[rows])
            if bias is not None:
                z.add_(bias, alpha=self.factor)
        elif bias is not None:
            torch.addmm(bias, hidden, weight, beta=self.factor, alpha=self.factor, out=z)
        elif self.factor != 1.0:
            torch.addmm(self._zero, hidden, weight, beta=0, alpha=self.factor, out=z)
        else:
            torch.mm(hidden, weight, out=z)
        if self.head.softcap is None:
            return z
        torch.tanh(z, out=tanh)
        return torch.mul(tanh, self.head.softcap / self.head.temperature, out=z)

    def own(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Where in the tile each token's target stands, [token, 1], and whether it stands there at all, [token]."""
        at = self.target[rows] - columns.start
        width = columns.stop - columns.start
        return at.clamp(0, width - 1).unsqueeze(-1), (at >= 0) & (at < width)


# --- forward


class Sums:
    """Online sums over the vocabulary of every token, relative to the largest logit so far."""

    def __init__(self, tokens: int, needed: set[str], dtype: torch.dtype, device: torch.device):
        def zeros() -> Tensor:
            return torch.zeros(tokens, dtype=dtype, device=device)

        self.top = torch.full((tokens,), -math.inf, dtype=dtype, device=device)
        self.own = zeros()  # the target's logit
        self.parts = {name: zeros() for name in ("e", *sorted(needed))}

    def add(self, tiles: Tiles, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Take in a tile; returns y and e of it."""
        z = tiles.logits(rows, columns)
        at, here = tiles.own(rows, columns)
        self.own[rows] = torch.where(here, z.gather(-1, at).squeeze(-1), self.own[rows])
        if "z" in self.parts:
            self.parts["z"][rows] += z.sum(-1)
        self._raise_top(rows, torch.maximum(self.top[rows], z.amax(-1)))
        y = z.sub_(self.base(rows).unsqueeze(-1))
        _, e, spare = tiles.buffers(rows, columns)
        torch.exp(y, out=e)
        if tiles.holds_minus_inf:
            y.clamp_(min=FLOOR)  # e is 0 there, and 0 x (-inf) must be 0
        self.parts["e"][rows] += e.sum(-1)
        if "ey" in self.parts:
            torch.mul(e, y, out=spare)
            self.parts["ey"][rows] += spare.sum(-1)
        if "eyy" in self.parts:
            self.parts["eyy"][rows] += torch.linalg.vecdot(spare, y)
        if "ee" in self.parts:
            self.parts["ee"][rows] += torch.linalg.vector_norm(e, dim=-1).square_()
        if "eey" in self.parts:
            self.parts["eey"][rows] += spare.mul_(e).sum(-1)
        return y, e

    def base(self, rows: slice) -> Tensor:
        """The largest logit so far, 0 where there is none above -inf."""
        top = self.top[rows]
        return torch.where(top == -math.inf, 0.0, top)

    def _raise_top(self, rows: slice, top: Tensor) -> None:
        """Sums under a higher maximum: y falls by d, e shrinks by exp(-d)."""
        old = self.top[rows]
        fall = torch.where(old == -math.inf, 0.0, old - top)  # before the first finite logit the sums are 0
        shrink = fall.exp()
        parts = {name: part[rows] for name, part in self.parts.items()}
        if "eyy" in parts:
            parts["eyy"].add_(fall * (2 * parts["ey"] + fall * parts["e"])).mul_(shrink)
        if "ey" in parts:
            parts["ey"].add_(fall * parts["e"]).mul_(shrink)
        if "eey" in parts:
            parts["eey"].add_(fall * parts["ee"]).mul_(shrink * shrink)
        if "ee" in parts:
            parts["ee"].mul_(shrink * shrink)
        parts["e"].mul_(shrink)
        self.top[rows] = top

    def finish(self, shift: Tensor | float, vocab: int) -> dict[str, Tensor]:
        """Every value that these sums give, and `base`, `total` for the backward."""
        everything = slice(None)
        total = torch.where(torch.isfinite(self.top), self.parts["e"], math.nan)
        log_total, base = total.log(), self.base(everything)
        log_prob = (self.own - base) - log_total
        p = log_prob.exp()
        found = {"base": base, "total": total, "log_prob": log_prob, "p": p, "max_p": total.reciprocal()}
        if "ee" in self.parts:
            found["sum_p2"] = self.parts["ee"] / total**2
        if "ey" in self.parts:
            mean = self.parts["ey"] / total
            found["entropy"] = entropy = (log_total - mean).clamp(min=0.0)
            found["S"] = torch.where(p == 0, 0.0, p * (log_prob + entropy))
            if "eey" in self.parts:  # sum p^2 (ln p + H) with ln p = y - ln total
                found["N"] = (self.parts["eey"] / total**2 + (entropy - log_total) * found["sum_p2"]).clamp(min=0.0)
            if "eyy" in self.parts:
                found["varentropy"] = (self.parts["eyy"] / total - mean**2).clamp(min=0.0)
        if "z" in self.parts:
            found["mean_logit"] = torch.where(torch.isnan(total), math.nan, self.parts["z"] / vocab + shift)
        return found


def measure(tiles: Tiles, signals: Sequence[Signal]) -> dict[str, Tensor]:
    """All values in one pass over the tiles."""
    tokens, vocab, grid = tiles.hidden.shape[0], tiles.weight.shape[0], tiles.grid
    ordered = [signal for signal in signals if orders(signal, vocab)]
    needed = set().union(*(_NEEDS.get("entropy" if keeps_all(signal, vocab) else signal.key, set()) for signal in signals))
    sums = Sums(tokens, needed, tiles.head.exact, tiles.hidden.device)
    values = {signal.key: torch.empty_like(sums.top, dtype=KINDS.get(type(signal))) for signal in ordered}
    for columns in spans(vocab, grid.columns):
        for rows in spans(tokens, grid.rows):
            y, e = sums.add(tiles, rows, columns)
            if ordered:
                own = (sums.own[rows] - sums.base(rows)).unsqueeze(-1)
                own = own.clamp(min=FLOOR) if tiles.holds_minus_inf else own
                for key, value in of_whole_rows(ordered, y, e, own, sums.parts["e"][rows]).items():
                    values[key][rows] = value
    found = sums.finish(tiles.shift(slice(None)), vocab)
    nowhere = torch.isnan(found["total"])
    values |= {signal.key: found["entropy"] for signal in signals if keeps_all(signal, vocab)}
    nothing = {torch.int64: vocab, torch.bool: False}
    return found | {key: value.masked_fill(nowhere, nothing.get(value.dtype, math.nan)) for key, value in values.items()}


# --- autograd


class TokenSignals(torch.autograd.Function):
    """Values of every signal, in the order given; gradients of those whose `grad` is True."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: Head, signals: tuple[Signal, ...]):
        ctx.set_materialize_grads(False)
        whole_rows = any(orders(signal, weight.shape[0]) for signal in signals)
        with torch.autocast(hidden.device.type, enabled=False):
            grid = Grid.of(hidden.shape[0], weight.shape[0], whole_rows=whole_rows)
            found = measure(Tiles(hidden, weight, bias, target, head, grid), signals)
        ctx.head, ctx.signals = head, signals
        ctx.save_for_backward(hidden, weight, bias, target, found["base"], found["total"], found.get("entropy"), found.get("sum_p2"))
        values = tuple(found[signal.key] for signal in signals)
        ctx.mark_non_differentiable(*(value for signal, value in zip(signals, values, strict=True) if not signal.grad))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        hidden, weight, bias, target, base, total, entropy, squares = ctx.saved_tensors
        given = {signal: g for signal, g in zip(ctx.signals, gradients, strict=True) if signal.grad and g is not None}
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            # a token without gradient is left out: quicker, and nothing that it holds (NaN under a mask) can reach the others
            active = torch.zeros_like(base, dtype=torch.bool)
            for g in given.values():
                active |= g != 0
            all_active = bool(active.all())
            chosen = slice(None) if all_active else active.nonzero().squeeze(-1)
            rows = [None if value is None else value[chosen] for value in (base, total, entropy, squares)]
            slopes = Slopes.of({signal: g[chosen] for signal, g in given.items()}, rows, weight.shape[0])
            grad_hidden, *others = pull_back(hidden[chosen], weight, bias, target[chosen], ctx.head, slopes, wanted)
            if grad_hidden is not None:
                grad_hidden = grad_hidden.to(hidden.dtype)
                if not all_active:
                    grad_hidden = torch.zeros_like(hidden).index_copy_(0, chosen, grad_hidden)
        found = (grad_hidden, *others)
        if torch.is_grad_enabled():  # create_graph=True
            sources = [x for x in (hidden, weight, bias, *given.values()) if x is not None and x.requires_grad]
            found = tuple(None if g is None else FirstOrder.apply(g, *sources) for g in found)
        return *found, None, None, None


class FirstOrder(torch.autograd.Function):
    """A gradient that depends on `sources` and says so when it is differentiated, instead of passing for a constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor):
        raise RuntimeError("token_signals: its gradients cannot be differentiated again. Use token_signals_from_logits where second order is needed.")


@dataclass(frozen=True)
class Slopes:
    """The gradient of a tile of logits as e (a + b y + c e) + own [target] + nuclei; each [token, 1] or absent."""

    base: Tensor
    total: Tensor
    a: Tensor | None
    b: Tensor | None
    c: Tensor | None
    own: Tensor | None
    nuclei: tuple[tuple[NucleusEntropy, Tensor], ...]

    @staticmethod
    def of(given: dict[Signal, Tensor], rows: Sequence[Any], vocab: int) -> "Slopes":
        """From the gradient of each signal and, of each token, base, total, H and sum p^2 (the last two where they were asked for)."""
        base, total, entropy, squares = rows
        a = b = c = own = None
        nuclei = []
        for signal, g in given.items():
            if selects(signal, vocab):
                nuclei.append((signal, g))
            elif isinstance(signal, LogProb):  # g ([k] - p)
                own, a = g, _plus(a, -g / total)
            elif isinstance(signal, SumSquares):  # 2 g p (p - sum p^2)
                c, a = 2 * g / total**2, _plus(a, -2 * g * squares / total)
            else:  # -g p (y - L + H)
                b, a = _plus(b, -g / total), _plus(a, -g / total * (entropy - total.log()))
        return Slopes(base, total, *(None if x is None else x.unsqueeze(-1) for x in (a, b, c, own)), nuclei=tuple(nuclei))

    def of_tile(self, tiles: Tiles, rows: slice, columns: slice) -> Tensor:
        """The gradient with respect to factor x product + bias of a tile, as a tile of the exact dtype."""
        y = tiles.logits(rows, columns).sub_(self.base[rows].unsqueeze(-1))
        _, e, spare = tiles.buffers(rows, columns)
        torch.exp(y, out=e)
        if tiles.holds_minus_inf:
            y.clamp_(min=FLOOR)
        bend = None if tiles.head.softcap is None else 1 - spare * spare
        extra = torch.zeros_like(e) if self.nuclei else None
        for signal, g in self.nuclei:
            add_nucleus_slope(extra, y, e, self.total[rows], g[rows], signal)  # type: ignore[arg-type]
        slope = y
        if self.b is not None:
            slope.mul_(self.b[rows])
            if self.c is not None:
                slope.addcmul_(e, self.c[rows])
            slope.add_(self.a[rows]).mul_(e)  # type: ignore[index]
        elif self.c is not None:
            torch.mul(e, self.c[rows], out=slope).add_(self.a[rows]).mul_(e)  # type: ignore[index]
        elif self.a is not None:
            torch.mul(e, self.a[rows], out=slope)
        else:
            slope.zero_()
        if extra is not None:
            slope.add_(extra)
        if self.own is not None:
            at, here = tiles.own(rows, columns)
            slope.scatter_add_(-1, at, torch.where(here.unsqueeze(-1), self.own[rows], 0.0))
        if bend is not None:
            slope.mul_(bend)
        return slope if tiles.head.slope == 1.0 else slope.mul_(tiles.head.slope)


def _plus(sum_: Tensor | None, term: Tensor) -> Tensor:
    return term if sum_ is None else sum_ + term


def pull_back(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: Head, slopes: Slopes, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (exact dtype), weight and bias (their own), from the slopes of every tile."""
    tokens, vocab = hidden.shape[0], weight.shape[0]
    grid = Grid.of(tokens, vocab, whole_rows=bool(slopes.nuclei))
    tiles = Tiles(hidden, weight, bias, target, head, grid)
    half = head.product in _HALF
    widest = SLOPES // max(grid.rows, weight.shape[1]) // grid.columns * grid.columns  # neither the slopes nor the weight's gradient of a block is larger
    block = min(vocab, max(grid.columns, widest)) if half else grid.columns
    gathered = torch.empty(grid.rows * block, dtype=head.product, device=hidden.device) if half else None
    grad_hidden = torch.zeros(hidden.shape, dtype=head.exact, device=hidden.device) if wanted[0] else None
    grad_weight = None if not wanted[1] else torch.empty_like(weight) if tokens else torch.zeros_like(weight)  # the first row tile writes it
    grad_bias = torch.zeros(vocab, dtype=head.exact, device=hidden.device) if wanted[2] else None
    for wide in spans(vocab, block):
        collected = None  # the weight's gradient over several row tiles, where the product cannot be added in place
        for rows in spans(tokens, grid.rows):
            slope = _block(slopes, tiles, rows, wide, gathered, grad_bias)
            if grad_hidden is not None:
                _accumulate(grad_hidden[rows], slope, tiles.weight[wide].to(head.product))
            if grad_weight is not None:
                if grad_weight.dtype == head.product == head.exact:
                    part = grad_weight[wide]
                    torch.addmm(part, slope.T, tiles.hidden[rows], beta=0 if rows.start == 0 else 1, out=part)
                elif tokens <= grid.rows and grad_weight.dtype == head.product:
                    torch.mm(slope.T, tiles.hidden[rows], out=grad_weight[wide])
                else:
                    if collected is None:
                        collected = torch.zeros(wide.stop - wide.start, weight.shape[1], dtype=head.exact, device=weight.device)
                    _accumulate(collected, slope.T, tiles.hidden[rows])
        if collected is not None:
            grad_weight[wide] = collected  # type: ignore[index]
    return grad_hidden, grad_weight, None if grad_bias is None or bias is None else grad_bias.to(bias.dtype)


def _block(slopes: Slopes, tiles: Tiles, rows: slice, wide: slice, gathered: Tensor | None, grad_bias: Tensor | None) -> Tensor:
    """The slopes of these tokens and entries: one tile, or several side by side in `gathered`. The bias's gradient takes its part."""

    def one(columns: slice) -> Tensor:
        tile = slopes.of_tile(tiles, rows, columns)
        if grad_bias is not None:
            grad_bias[columns] += tile.sum(0)
        return tile

    if gathered is None:
        return one(wide)
    width = wide.stop - wide.start
    block = gathered[: (rows.stop - rows.start) * width].view(-1, width)
    for columns in spans(width, tiles.grid.columns):
        block[:, columns] = one(slice(wide.start + columns.start, wide.start + columns.stop))
    return block


def _accumulate(sum_: Tensor, left: Tensor, right: Tensor) -> None:
    """sum_ += left @ right, in the product's dtype where it is that of the sum, rounded once otherwise."""
    if left.dtype == sum_.dtype:
        sum_.addmm_(left, right)
    else:
        sum_.add_(left @ right)
