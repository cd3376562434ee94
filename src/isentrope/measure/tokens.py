"""Per-token signals of a language model, from logits or straight from hidden states and the LM head, logits never held.

For p = softmax(z): H = -sum_i p_i ln p_i, S_i = p_i (ln p_i + H), N = sum_i p_i S_i = Cov_p(p, ln p) >= 0 (DESIGN section 2); then
dH/dz_i = -S_i and sum_i S_i = 0. Everything is in nats, of logits = softcap((hidden . W^T + bias) x scale) / temperature.
The caller names the signals; only those are computed. Sources: sheets `rft-entropy-dynamics` (S, N), `siren` (nucleus entropy).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """A number per token. `key` names it in results. Those with a field `grad` carry gradient when it is True; the rest never do."""

    @property
    def key(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class LogProb(Signal):
    """ln p of the target, nats, <= 0 (-inf where the target's logit is -inf)."""

    grad: bool = True

    @property
    def key(self) -> str:
        return "log_prob"


@dataclass(frozen=True)
class Entropy(Signal):
    """H, nats, in [0, ln vocab]."""

    grad: bool = False

    @property
    def key(self) -> str:
        return "entropy"


@dataclass(frozen=True)
class SumSquares(Signal):
    """sum_i p_i^2 in (0, 1]; Renyi-2 entropy is its negative logarithm."""

    grad: bool = False

    @property
    def key(self) -> str:
        return "sum_p2"


@dataclass(frozen=True)
class Discriminant(Signal):
    """S of the target, p (ln p + H): what raising its logit takes from H (dH/dz = -S). 0 where p is 0."""

    @property
    def key(self) -> str:
        return "S"


@dataclass(frozen=True)
class ExpectedDiscriminant(Signal):
    """N = sum_i p_i S_i >= 0, the mean of S under the policy itself."""

    @property
    def key(self) -> str:
        return "N"


@dataclass(frozen=True)
class TargetProb(Signal):
    """p of the target."""

    @property
    def key(self) -> str:
        return "p"


@dataclass(frozen=True)
class MaxProb(Signal):
    """The largest probability."""

    @property
    def key(self) -> str:
        return "max_p"


@dataclass(frozen=True)
class MeanLogit(Signal):
    """Mean of the logits over the vocabulary, after scale, softcap and temperature: drift that the softmax does not see."""

    @property
    def key(self) -> str:
        return "mean_logit"


@dataclass(frozen=True)
class Varentropy(Signal):
    """Variance of -ln p under p, nats^2."""

    @property
    def key(self) -> str:
        return "varentropy"


@dataclass(frozen=True)
class Rank(Signal):
    """How many tokens are strictly more likely than the target (0: it is the most likely)."""

    @property
    def key(self) -> str:
        return "rank"


@dataclass(frozen=True)
class NucleusEntropy(Signal):
    """Entropy of p renormalised on its nucleus: the ranks before the first whose inclusive cumulative mass reaches `top_p`.

    The token that crosses is left out, so a position with a token above `top_p` has an empty nucleus and entropy 0 with zero gradient;
    top_p > 1 keeps every token. `top_k`: only the k largest logits enter (None, or at least the vocabulary: all). Nats. The gradient
    goes through the renormalised p, not through the membership. Source: `siren` sheet, step 1 (released form).
    """

    top_p: float = 0.8
    top_k: int | None = None
    grad: bool = False

    @property
    def key(self) -> str:
        return f"nucleus_entropy[{self.top_p:g}]" if self.top_k is None else f"nucleus_entropy[{self.top_p:g},{self.top_k}]"


SIGNALS_WITH_GRAD = (LogProb, Entropy, SumSquares, NucleusEntropy)
"""Signals that can carry a gradient."""

_SORTED = (Rank, NucleusEntropy)  # need whole rows: computed in a pass of their own
_TINY = 1e-12  # the released constant inside SIREN's renormalisation and logarithm


def token_signals(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "vocab d"],
    target: Int[Tensor, "*batch"],
    signals: Sequence[Signal],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    precise: bool = False,
) -> dict[str, Tensor]:
    """Signals of every position from its hidden state and the LM head, in tiles; `{signal.key: [*batch]}`.

    Gradients reach hidden, weight and bias through the signals whose `grad` is True; backward recomputes the tiles. Statistics are
    float32 (float64 for float64 input); with bf16 input the products are bf16 unless `precise`. -inf logits (through the bias) are
    legal; a position whose logits are all -inf is NaN.

    Raises ValueError for an unknown signal, a temperature that is not positive, or shapes that do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"token_signals: temperature must be > 0. Got {temperature}.")
    if precise and hidden.dtype in (torch.bfloat16, torch.float16):
        hidden, weight, bias = hidden.float(), weight.float(), None if bias is None else bias.float()
    flat, ids = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
    head = _Head(float(temperature), None if softcap is None else float(softcap), float(logit_scale))
    streamed = [signal for signal in signals if not isinstance(signal, _SORTED)]
    found: dict[str, Tensor] = {}
    if streamed:
        names = tuple(signal.key for signal in streamed)
        if unknown := [name for name in names if name not in _STREAMED]:
            raise ValueError(f"token_signals: unknown signal {', '.join(unknown)}. Known: {', '.join(_STREAMED)}, rank, nucleus_entropy.")
        wanted = tuple(bool(signal.__dict__.get("grad", False)) for signal in streamed)
        values = _Streamed.apply(flat, weight, bias, ids, head, names)
        found |= {name: value if keep else value.detach() for name, value, keep in zip(names, values, wanted, strict=True)}
    for signal in signals:
        if isinstance(signal, Rank):
            found[signal.key] = _by_rows(flat.detach(), weight.detach(), None if bias is None else bias.detach(), head, lambda z, ids: _rank(z, ids), ids)
        elif isinstance(signal, NucleusEntropy):
            found[signal.key] = _Rows.apply(flat, weight, bias, head, signal) if signal.grad else _by_rows(
                flat.detach(), weight.detach(), None if bias is None else bias.detach(), head, lambda z, ids, s=signal: _nucleus(z, s), ids
            )  # fmt: skip
    return {signal.key: found[signal.key].reshape(target.shape) for signal in signals}


def token_signals_from_logits(
    logits: Float[Tensor, "*batch vocab"], target: Int[Tensor, "*batch"], signals: Sequence[Signal], *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The same signals from logits, by plain autograd: the definition that the tiled form is tested against.

    >>> token_signals_from_logits(torch.zeros(1, 4), torch.tensor([0]), [Entropy(), ExpectedDiscriminant()])["entropy"]
    tensor([1.3863])
    """
    if not temperature > 0:
        raise ValueError(f"token_signals_from_logits: temperature must be > 0. Got {temperature}.")
    z = (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits) / temperature
    log_p = torch.log_softmax(z, dim=-1)
    p = log_p.exp()
    safe = log_p.masked_fill(p == 0, 0.0)  # 0 ln 0 = 0, also in the gradient
    log_prob = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    entropy = -(p * safe).sum(-1)
    at_target, safe_target = p.gather(-1, target.unsqueeze(-1)).squeeze(-1), safe.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    values: dict[str, Callable[[], Tensor]] = {
        "log_prob": lambda: log_prob,
        "entropy": lambda: entropy,
        "sum_p2": lambda: (p * p).sum(-1),
        "S": lambda: at_target * (safe_target + entropy),
        "N": lambda: (p * p * (safe + entropy.unsqueeze(-1))).sum(-1),
        "p": lambda: at_target,
        "max_p": lambda: p.amax(-1),
        "mean_logit": lambda: z.mean(-1),
        "varentropy": lambda: (p * (safe + entropy.unsqueeze(-1)) ** 2).sum(-1),
    }
    found = {}
    for signal in signals:
        if isinstance(signal, Rank):
            value = _rank(z, target)
        elif isinstance(signal, NucleusEntropy):
            value = _nucleus(z, signal)
        elif signal.key in values:
            value = values[signal.key]()
        else:
            raise ValueError(f"token_signals_from_logits: unknown signal {signal.key!r}. Known: {', '.join(values)}, rank, nucleus_entropy.")
        found[signal.key] = value if signal.__dict__.get("grad", False) else value.detach()
    return found


# --- the head and its tiles


@dataclass(frozen=True)
class _Head:
    temperature: float
    softcap: float | None
    scale: float

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of a tile in the accumulation dtype, and tanh of the softcap for the backward."""
        raw = torch.nn.functional.linear(hidden, weight, bias)
        raw = raw if raw.dtype == torch.float64 else raw.float()
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is None:
            return raw if self.temperature == 1.0 else raw / self.temperature, None
        bent = torch.tanh(raw / self.softcap)
        return bent * (self.softcap / self.temperature), bent

    def pull_back(self, gradient: Tensor, bent: Tensor | None) -> Tensor:
        """The gradient of the raw product from that of the logits."""
        factor = self.scale / self.temperature
        if bent is not None:
            gradient = gradient * (1 - bent * bent)
        return gradient if factor == 1.0 else gradient * factor


def _tiles(rows: int, vocab: int) -> tuple[int, int]:
    """Rows and columns of a tile: about a million logits, so that it stays in cache while several passes go over it."""
    columns = vocab if vocab <= 8192 else 4096
    return max(32, min(rows, (1 << 20) // columns)) if rows else 1, columns


_STREAMED = ("log_prob", "entropy", "sum_p2", "S", "N", "p", "max_p", "mean_logit", "varentropy")


class _Streamed(torch.autograd.Function):
    """All signals that need only sums over the vocabulary, online in one pass; backward recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, head: _Head, names: tuple[str, ...]):
        rows, vocab = hidden.shape[0], weight.shape[0]
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        outputs = {name: torch.empty(rows, dtype=dtype, device=hidden.device) for name in names}
        lse, entropy, squares = (torch.empty(rows, dtype=dtype, device=hidden.device) for _ in range(3))
        need = set(names)
        height, width = _tiles(rows, vocab)
        for top in range(0, rows, height):
            part = slice(top, min(top + height, rows))
            sums = _sums(hidden[part], weight, bias, ids[part], head, width, dtype, need)
            found = _finish(sums, need)
            lse[part], entropy[part], squares[part] = found["lse"], found["entropy"], found["sum_p2"]
            for name in names:
                outputs[name][part] = found[name]
        ctx.save_for_backward(hidden, weight, bias, ids, lse, entropy, squares)
        ctx.head, ctx.names = head, names
        ctx.mark_non_differentiable(*(outputs[name] for name in names if name not in ("log_prob", "entropy", "sum_p2")))
        return tuple(outputs[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        hidden, weight, bias, ids, lse, entropy, squares = ctx.saved_tensors
        head: _Head = ctx.head
        given = {name: gradient for name, gradient in zip(ctx.names, gradients, strict=True) if gradient is not None}
        g_log, g_entropy, g_squares = given.get("log_prob"), given.get("entropy"), given.get("sum_p2")
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=lse.dtype) if need_bias else None
        height, width = _tiles(hidden.shape[0], weight.shape[0])
        for top in range(0, hidden.shape[0], height):
            part = slice(top, min(top + height, hidden.shape[0]))
            for left in range(0, weight.shape[0], width):
                columns = slice(left, min(left + width, weight.shape[0]))
                z, bent = head.logits(hidden[part], weight[columns], None if bias is None else bias[columns])
                z = z.sub_(lse[part, None]) if bent is None and z.is_floating_point() and z._base is None else z - lse[part, None]
                p = z.exp()
                slope = torch.zeros_like(p)
                if g_entropy is not None:  # -g p (ln p + H); 0 where p = 0
                    slope -= g_entropy[part, None] * (z.clamp(min=-1e30) + entropy[part, None])
                if g_squares is not None:
                    slope += 2 * g_squares[part, None] * (p - squares[part, None])
                if g_log is not None:
                    slope -= g_log[part, None]
                slope *= p
                if g_log is not None:
                    here = (ids[part] >= columns.start) & (ids[part] < columns.stop)
                    at = here.nonzero().squeeze(1)
                    slope[at, ids[part][at] - columns.start] += g_log[part][at]
                slope = head.pull_back(slope, bent)
                cast = slope.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[part] += cast @ weight[columns]
                if grad_weight is not None:
                    grad_weight[columns] += cast.T @ hidden[part]
                if grad_bias is not None:
                    grad_bias[columns] += slope.sum(0)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None, None, None,
        )  # fmt: skip


def _sums(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, head: _Head, width: int, dtype: torch.dtype, need: set[str]) -> dict[str, Tensor]:
    """Online sums over the vocabulary, of e = exp(z - m) and y = z - m with the running maximum m."""
    rows, vocab = hidden.shape[0], weight.shape[0]
    m = torch.full((rows,), -math.inf, dtype=dtype, device=hidden.device)
    sums = {name: torch.zeros(rows, dtype=dtype, device=hidden.device) for name in ("e", "ey", "eyy", "ee", "eey", "z", "mean_logit")}
    for left in range(0, vocab, width):
        right = min(left + width, vocab)
        z, _ = head.logits(hidden, weight[left:right], None if bias is None else bias[left:right])
        here = (ids >= left) & (ids < right)
        at = here.nonzero().squeeze(1)
        sums["z"][at] = z[at, ids[at] - left]
        if "mean_logit" in need:
            sums["mean_logit"] += z.sum(-1) / vocab
        higher = torch.maximum(m, z.amax(-1))
        shift = torch.where(higher == -math.inf, 0.0, m - higher)  # what the old sums are multiplied by, as a logarithm
        _rescale(sums, shift)
        m = higher
        y = z - m[:, None]
        e = y.exp()
        sums["e"] += e.sum(-1)
        y = y.clamp_(min=-1e4)  # e is 0 there: 0 x (-inf) must be 0
        ey = e * y
        sums["ey"] += ey.sum(-1)
        if "varentropy" in need:
            sums["eyy"] += (ey * y).sum(-1)
        if need & {"sum_p2", "N"}:
            sums["ee"] += (e * e).sum(-1)
        if "N" in need:
            sums["eey"] += (e * ey).sum(-1)
    sums["m"] = m
    return sums


def _rescale(sums: dict[str, Tensor], shift: Tensor) -> None:
    """The sums under a maximum that rose: y falls by `shift` (<= 0), e shrinks by exp(shift)."""
    factor = shift.exp()
    finite = torch.where(torch.isfinite(shift), shift, 0.0)
    e, ey, eyy, ee, eey = (sums[name] for name in ("e", "ey", "eyy", "ee", "eey"))
    sums["eyy"] = factor * (eyy + 2 * finite * ey + finite**2 * e)
    sums["ey"] = factor * (ey + finite * e)
    sums["e"] = factor * e
    sums["eey"] = factor**2 * (eey + finite * ee)
    sums["ee"] = factor**2 * ee


def _finish(sums: dict[str, Tensor], need: set[str]) -> dict[str, Tensor]:
    total = sums["e"]
    log_total = total.log()
    lse = sums["m"] + log_total
    mean = sums["ey"] / total
    found = {"lse": lse, "entropy": (log_total - mean).clamp(min=0.0), "sum_p2": sums["ee"] / total**2}
    found["entropy"] = torch.where(torch.isnan(lse) | (lse == -math.inf), torch.nan, found["entropy"])
    log_prob = sums["z"] - lse
    p = log_prob.exp()
    found |= {"log_prob": log_prob, "p": p, "max_p": 1 / total}
    found["S"] = p * (log_prob.clamp(min=-1e4) + found["entropy"])
    found["mean_logit"] = sums["mean_logit"]
    if "N" in need:  # sum p^2 (ln p + H), ln p = y - ln total
        found["N"] = (sums["eey"] / total**2 + (found["entropy"] - log_total) * found["sum_p2"]).clamp(min=0.0)
    if "varentropy" in need:
        found["varentropy"] = (sums["eyy"] / total - mean**2).clamp(min=0.0)
    return found


# --- signals that need whole rows


def _rank(z: Tensor, ids: Tensor) -> Tensor:
    return (z > z.gather(-1, ids.unsqueeze(-1))).sum(-1)


def _nucleus(z: Float[Tensor, "*batch vocab"], signal: NucleusEntropy) -> Float[Tensor, "*batch"]:
    p = torch.softmax(z, dim=-1)
    kept = p if signal.top_k is None or signal.top_k >= z.shape[-1] else p.gather(-1, z.topk(signal.top_k, dim=-1).indices)
    ordered, _ = kept.sort(dim=-1, descending=True)
    inside = ordered.detach().cumsum(-1) < signal.top_p
    chosen = torch.where(inside, ordered, 0.0)
    q = chosen / (chosen.sum(-1, keepdim=True) + _TINY)
    return -(q * torch.log(q + _TINY)).sum(-1)


def _rows_per_chunk(vocab: int) -> int:
    return max(1, (1 << 21) // vocab)


def _by_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, head: _Head, measure: Callable[[Tensor, Tensor], Tensor], ids: Tensor) -> Tensor:
    """A measure of whole rows of logits, a few rows at a time, without gradient."""
    size = _rows_per_chunk(weight.shape[0])
    with torch.no_grad():
        parts = [
            measure(head.logits(hidden[top : top + size], weight, bias)[0], ids[top : top + size])
            for top in range(0, max(1, hidden.shape[0]), size)
        ]
    return torch.cat(parts)


class _Rows(torch.autograd.Function):
    """Nucleus entropy with gradient: chunks of rows, recomputed in backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: _Head, signal: NucleusEntropy):
        ctx.save_for_backward(hidden, weight, bias)
        ctx.head, ctx.signal = head, signal
        return _by_rows(hidden, weight, bias, head, lambda z, ids: _nucleus(z, signal), torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        hidden, weight, bias = ctx.saved_tensors
        (gradient,) = gradients
        inputs = [hidden, weight] + ([] if bias is None else [bias])
        totals = [torch.zeros_like(value, dtype=gradient.dtype) for value in inputs]
        size = _rows_per_chunk(weight.shape[0])
        for top in range(0, hidden.shape[0], size):
            rows = slice(top, min(top + size, hidden.shape[0]))
            with torch.enable_grad():
                leaves = [hidden[rows].detach().requires_grad_(True)] + [value.detach().requires_grad_(True) for value in inputs[1:]]
                z, _ = ctx.head.logits(leaves[0], leaves[1], leaves[2] if bias is not None else None)
                parts = torch.autograd.grad(_nucleus(z, ctx.signal), leaves, gradient[rows])
            totals[0][rows] += parts[0]
            for total, part in zip(totals[1:], parts[1:], strict=True):
                total += part
        grads = [total.to(value.dtype) for total, value in zip(totals, inputs, strict=True)]
        return grads[0], grads[1], grads[2] if bias is not None else None, None, None
