"""Per-token signals of a language model, straight from hidden states and the LM head: [token, vocab] logits are never held.

Everything is in nats, of the logits

    z = softcap(logit_scale (hidden . W^T + bias)) / temperature        softcap(x) = cap tanh(x / cap)

The caller names the signals (`signals.py` says what each is); only those are computed. Sources: sheets `rft-entropy-dynamics`
(S, N), `siren` (nucleus entropy), `grpo-family` (TRL's head: the order of scale, softcap and temperature).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isentrope.measure.rows import FLOOR, tail_bound
from isentrope.measure.signals import (
    SIGNALS,
    SIGNALS_WITH_GRAD,
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    Signal,
    SumSquares,
    TargetProb,
    TopKEntropy,
    TopKTail,
    Varentropy,
)  # fmt: skip
from isentrope.measure.tiles import Head, TokenSignals

__all__ = [
    "SIGNALS", "SIGNALS_WITH_GRAD", "Discriminant", "Entropy", "ExpectedDiscriminant", "InNucleus", "LogProb", "MaxProb", "MeanLogit",
    "NucleusEntropy", "Rank", "Signal", "SumSquares", "TargetProb", "TopKEntropy", "TopKTail", "Varentropy", "token_signals",
    "token_signals_from_logits",
]  # fmt: skip


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
    """Signals of every position, `{signal.key: [*batch]}`, in nats; of one key asked for twice, with gradient if either is.

    Gradients reach hidden, weight and bias through the signals whose `grad` is True (first order only); backward recomputes the
    tiles. Positions that receive no gradient are left out of it, so NaN there reaches nobody; a NaN position that does receive
    one makes the weight's gradient NaN.

    Products are taken in the wider dtype of hidden and weight, in autocast's where it is on; with `precise` in float32 at least.
    Everything else is float32, float64 where the products are. 16-bit products are taken relative to the target's logit, which
    leaves the likely tokens almost unrounded. -inf logits (through the bias, without softcap) are legal: p = 0 adds nothing.

    Raises ValueError for shapes that do not fit, a target outside the vocabulary, a signal that is not ours, or a temperature or
    softcap that is not positive. Runs on any device; on a GPU the check of the targets waits for it.

    >>> head, hidden = torch.zeros(8, 2), torch.randn(3, 2)
    >>> token_signals(hidden, head, torch.tensor([0, 1, 2]), [Entropy()])["entropy"]  # ln 8
    tensor([2.0794, 2.0794, 2.0794])
    """
    name = "token_signals"
    _check_temperature(name, temperature)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap must be > 0, or None for none. Got {softcap}.")
    if hidden.shape[:-1] != target.shape:
        raise ValueError(f"{name}: target must have the shape of hidden without its last axis, {list(hidden.shape[:-1])}. Got {list(target.shape)}.")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"{name}: weight must be [vocab, {hidden.shape[-1]}] for hidden {list(hidden.shape)}. Got {list(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias must be [{weight.shape[0]}], one per row of weight, or None. Got {list(bias.shape)}.")
    _check_targets(name, target, weight.shape[0])
    wanted = _distinct(name, signals)
    if not wanted:
        return {}
    head = Head(float(logit_scale), None if softcap is None else float(softcap), float(temperature), _product_dtype(hidden, weight, precise))
    flat = hidden.reshape(-1, hidden.shape[-1])
    values = TokenSignals.apply(flat, weight, bias, target.reshape(-1).long(), head, tuple(wanted.values()))
    return {key: value.reshape(target.shape) for key, value in zip(wanted, values, strict=True)}


def token_signals_from_logits(
    logits: Float[Tensor, "*batch vocab"], target: Int[Tensor, "*batch"], signals: Sequence[Signal], *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The same from logits that are there already, by plain autograd, in float32 or wider: the definition of every signal.

    Raises ValueError as `token_signals` does.

    >>> token_signals_from_logits(torch.zeros(1, 4), torch.tensor([0]), [Entropy(), MaxProb()])
    {'entropy': tensor([1.3863]), 'max_p': tensor([0.2500])}
    """
    name = "token_signals_from_logits"
    _check_temperature(name, temperature)
    if logits.shape[:-1] != target.shape:
        raise ValueError(f"{name}: target must have the shape of logits without its last axis, {list(logits.shape[:-1])}. Got {list(target.shape)}.")
    _check_targets(name, target, logits.shape[-1])
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = logits.to(wide) / temperature
    found = {}
    for key, signal in _distinct(name, signals).items():
        with torch.set_grad_enabled(signal.grad and torch.is_grad_enabled()):
            found[key] = _DEFINITIONS[type(signal)](z, target.long().unsqueeze(-1), signal)
    return found


# --- definitions: of logits z [*batch vocab], the target's index k [*batch 1] and the signal


def _distribution(z: Tensor) -> tuple[Tensor, Tensor]:
    """p, and ln p with 0 where p is 0, so that 0 ln 0 is 0 in value and gradient."""
    log_p = torch.log_softmax(z, dim=-1)
    p = log_p.exp()
    return p, log_p.masked_fill(p == 0, 0.0)


def _log_prob(z: Tensor, k: Tensor, _: Signal) -> Tensor:
    return torch.log_softmax(z, dim=-1).gather(-1, k).squeeze(-1)


def _entropy(z: Tensor, k: Tensor, _: Signal) -> Tensor:
    p, log_p = _distribution(z)
    return -(p * log_p).sum(-1)


def _discriminants(z: Tensor) -> tuple[Tensor, Tensor]:
    p, log_p = _distribution(z)
    return p, p * (log_p - (p * log_p).sum(-1, keepdim=True))


def _rank(z: Tensor, k: Tensor, _: Signal) -> Tensor:
    return torch.where(torch.isfinite(z.logsumexp(-1)), (z > z.gather(-1, k)).sum(-1), z.shape[-1])


def _nucleus_entropy(z: Tensor, k: Tensor, signal: Signal) -> Tensor:
    assert isinstance(signal, NucleusEntropy)
    p, rank = _distribution(z)[0].sort(dim=-1, descending=True)
    inside = p.detach().cumsum(-1, dtype=torch.float64) < signal.top_p
    if signal.top_k is not None:
        inside &= torch.arange(z.shape[-1], device=z.device) < signal.top_k
    lower = torch.where(inside, z.gather(-1, rank), -torch.inf)
    some = inside.any(-1)
    value = _entropy(torch.where(some.unsqueeze(-1), lower, 0.0), k, signal)
    return torch.where(some, value, torch.where(p.isnan().any(-1), torch.nan, 0.0))


def _in_nucleus(z: Tensor, k: Tensor, signal: Signal) -> Tensor:
    assert isinstance(signal, InNucleus)
    p, own = _distribution(z)[0], z.gather(-1, k)
    above = torch.where(z > own, p, 0.0).sum(-1)
    return (above < signal.top_p) & torch.isfinite(own.squeeze(-1) + z.logsumexp(-1))


def _top_k_entropy(z: Tensor, k: Tensor, signal: Signal) -> Tensor:
    assert isinstance(signal, TopKEntropy)
    return torch.special.entr(_distribution(z)[0].sort(dim=-1, descending=True).values[..., : signal.k]).sum(-1)


def _top_k_tail(z: Tensor, k: Tensor, signal: Signal) -> Tensor:
    assert isinstance(signal, TopKTail)
    others = _distribution(z)[0].sort(dim=-1, descending=True).values[..., signal.k :]
    possible = (z > z.amax(-1, keepdim=True) + FLOOR).sum(-1)
    return tail_bound(others.sum(-1), possible - signal.k) + 0 * z.logsumexp(-1)


_DEFINITIONS: dict[type[Signal], Callable[[Tensor, Tensor, Signal], Tensor]] = {
    LogProb: _log_prob,
    Entropy: _entropy,
    Discriminant: lambda z, k, _: _discriminants(z)[1].gather(-1, k).squeeze(-1),
    ExpectedDiscriminant: lambda z, k, _: torch.mul(*_discriminants(z)).sum(-1),
    SumSquares: lambda z, k, _: _distribution(z)[0].square().sum(-1),
    MaxProb: lambda z, k, _: _distribution(z)[0].amax(-1),
    TargetProb: lambda z, k, _: _distribution(z)[0].gather(-1, k).squeeze(-1),
    Varentropy: lambda z, k, _: (_distribution(z)[0] * (_distribution(z)[1] + _entropy(z, k, _).unsqueeze(-1)) ** 2).sum(-1),
    MeanLogit: lambda z, k, _: z.mean(-1) + 0 * z.logsumexp(-1),
    Rank: _rank,
    InNucleus: _in_nucleus,
    NucleusEntropy: _nucleus_entropy,
    TopKEntropy: _top_k_entropy,
    TopKTail: _top_k_tail,
}


# --- arguments


def _check_temperature(name: str, temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"{name}: temperature must be > 0. Got {temperature}. For the greedy limit use MaxProb and Rank.")


def _check_targets(name: str, target: Tensor, vocab: int) -> None:
    if target.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{name}: target must hold token ids in [0, {vocab}). Got {low if low < 0 else high}. "
            "Select the positions that count first (hidden[mask], target[mask]), or give the others any legal id."
        )


def _distinct(name: str, signals: Sequence[Signal]) -> dict[str, Signal]:
    """By key, in the order of the request; with gradient where any of a key asks for it."""
    found: dict[str, Signal] = {}
    for signal in signals:
        if type(signal) not in _DEFINITIONS:
            known = ", ".join(kind.__name__ for kind in SIGNALS)
            raise ValueError(f"{name}: signals must be instances of {known}. Got {signal!r}.")
        if signal.key not in found or signal.grad:
            found[signal.key] = signal
    return found


def _product_dtype(hidden: Tensor, weight: Tensor, precise: bool) -> torch.dtype:
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    kind = hidden.device.type
    if precise:
        return torch.promote_types(wider, torch.float32)
    if wider != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return wider
