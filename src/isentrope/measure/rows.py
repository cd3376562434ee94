"""Signals that compare the tokens of a row with each other: rank, nucleus, the k most likely. A tile must hold whole rows for them.

y [token, vocab] are logits relative to the largest, e = exp(y), total = sum e [token], so that p = e / total.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from isentrope.measure.signals import InNucleus, NucleusEntropy, Rank, Signal, TopKEntropy, TopKTail

FLOOR = -1e30  # stands for -inf relative to the top: below every logit, exp of it is 0, and it can be multiplied
KINDS = {Rank: torch.int64, InNucleus: torch.bool}
"""Dtype of those that are no real number."""


def orders(signal: Signal, vocab: int) -> bool:
    """Whether it compares the tokens of a row with each other, so that a tile must hold whole rows."""
    return isinstance(signal, Rank | InNucleus | TopKEntropy | TopKTail) or selects(signal, vocab)


def of_whole_rows(signals: Sequence[Signal], y: Tensor, e: Tensor, own: Tensor, total: Tensor) -> dict[str, Tensor]:
    """Their values by key, [token] each; y and e [token, vocab], the target's y [token, 1], total = sum e [token]."""
    above = y > own if any(isinstance(signal, Rank | InNucleus) for signal in signals) else None
    kept = {k: top_k(e, total, k) for k in {signal.k for signal in signals if isinstance(signal, TopKEntropy | TopKTail)}}
    found = {}
    for signal in signals:
        match signal:
            case NucleusEntropy():
                value = nucleus(e, total, signal).entropy
            case Rank():
                value = above.sum(-1)  # type: ignore[union-attr]
            case InNucleus(top_p):
                value = (torch.where(above, e, 0.0).sum(-1) < top_p * total) & (own.squeeze(-1) > FLOOR)  # type: ignore[arg-type]
            case TopKEntropy(k):
                value = kept[k][0]
            case TopKTail(k):
                value = tail_bound(kept[k][1], (y > FLOOR).sum(-1) - k)
            case _:
                raise AssertionError(f"{signal} sees no whole rows")
        found[signal.key] = value
    return found


def top_k(e: Tensor, total: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of p = e / total: -sum p ln p over the k most likely, and the mass of the others; [token] each."""
    vocab = e.shape[-1]
    if k >= vocab:
        p = e / total.unsqueeze(-1)
        return torch.special.entr(p).sum(-1), torch.zeros_like(total)
    best = e.topk(k, dim=-1).values
    p = best / total.unsqueeze(-1)
    others = e.sum(-1, dtype=torch.float64) - best.sum(-1, dtype=torch.float64)  # in float32 nothing would be left of a small tail
    return torch.special.entr(p).sum(-1), (others.clamp(min=0.0) / total).to(e.dtype)


def tail_bound(mass: Tensor, others: Tensor) -> Tensor:
    """The most that `others` tokens of this mass together can add to the entropy, nats."""
    return torch.where(others > 0, torch.special.entr(mass) + mass * others.clamp(min=1).to(mass.dtype).log(), 0.0)


# --- the nucleus


@dataclass(frozen=True)
class Nucleus:
    """The nucleus of each token: its mass, its entropy, and what is needed to know the members again."""

    mass: Tensor  # sum of p inside, [token]
    entropy: Tensor  # nats, [token]; 0 where it is empty
    edge: Tensor  # e of its least likely member, [token]; inf where it is empty
    share: Tensor  # which part of the tokens that equal the edge are members, [token]


def keeps_all(signal: Signal, vocab: int) -> bool:
    """Whether it is a nucleus entropy whose nucleus is the whole vocabulary: then it is the entropy."""
    return isinstance(signal, NucleusEntropy) and signal.top_p > 1 and (signal.top_k is None or signal.top_k >= vocab)


def selects(signal: Signal, vocab: int) -> TypeGuard[NucleusEntropy]:
    """Whether it is a nucleus entropy that has to rank tokens."""
    return isinstance(signal, NucleusEntropy) and not keeps_all(signal, vocab)


def nucleus(e: Tensor, total: Tensor, signal: NucleusEntropy) -> Nucleus:
    """The nucleus of p = e / total, [token, vocab] and [token]. Ranks ever more of the likeliest tokens, for the rows that need it."""
    tokens, vocab = e.shape
    limit = vocab if signal.top_k is None else min(signal.top_k, vocab)
    found = torch.zeros(4, tokens, dtype=e.dtype, device=e.device)
    left, size = torch.arange(tokens, device=e.device), max(1, vocab // 64)  # up to a 64th, topk keeps a heap and is quick
    while left.numel():
        size = size if size * 8 < limit else limit
        rows, sums = (e, total) if left.numel() == tokens else (e[left], total[left])
        ordered = rows.topk(size, dim=-1).values if size < vocab else rows.sort(dim=-1, descending=True).values
        p = ordered / sums.unsqueeze(-1)
        inside = p.cumsum(-1, dtype=torch.float64) < signal.top_p
        done = ~inside[:, -1] | (size == limit)
        found[:, left[done]] = _members(ordered[done], p[done], inside[done], rows[done])
        left, size = left[~done], size * 8
    return Nucleus(*found)


def _members(ordered: Tensor, p: Tensor, inside: Tensor, e: Tensor) -> Tensor:
    """mass, entropy, edge, share, stacked."""
    p = torch.where(inside, p, 0.0)
    mass, count = p.sum(-1), inside.sum(-1, keepdim=True)
    some = count.squeeze(-1) > 0
    safe = torch.where(some, mass, 1.0)
    entropy = torch.where(some, safe.log() - torch.xlogy(p, p).sum(-1) / safe, 0.0).clamp(min=0.0)
    edge = ordered.gather(-1, (count - 1).clamp(min=0))
    share = ((ordered == edge) & inside).sum(-1) / (e == edge).sum(-1).clamp(min=1)
    return torch.stack([mass, entropy, torch.where(some, edge.squeeze(-1), math.inf), share.to(e.dtype)])


def add_nucleus_slope(slope: Tensor, y: Tensor, e: Tensor, total: Tensor, gradient: Tensor, signal: NucleusEntropy) -> None:
    """slope += gradient x -q (ln q + Hn) over the members, q = p / mass."""
    found = nucleus(e, total, signal)
    some = torch.isfinite(found.edge)
    mass = total * torch.where(some, found.mass, 1.0)
    scale = torch.where(some, -gradient / mass, 0.0).unsqueeze(-1)
    level = (found.entropy - mass.log()).unsqueeze(-1)  # ln q + Hn = y + level
    edge, share = found.edge.unsqueeze(-1), found.share.unsqueeze(-1)
    member = (e > edge).to(e.dtype).add_((e == edge) * share)
    slope.add_(member.mul_(e).mul_(scale).mul_(y + level))
