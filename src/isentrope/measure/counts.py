"""Entropy of a discrete distribution from the counts of a sample, with and without correction of its bias. Pure functions.

Counts n_i of K observed symbols, N = sum n_i, p_i = n_i / N, psi the digamma function; values in nats, float64. A count of 0 is padding: a
symbol that was not seen adds nothing (unless `outcomes` says how many there are). Of 8-16 answers the plug-in value is low by about (K-1)/2N.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

CountEstimator = Literal[
    "plug-in", "miller-madow", "chao-shen", "grassberger", "grassberger-1988", "shrink", "jeffreys", "laplace", "bonachela", "zhang", "chao-wang-jost"
]


def count_entropy(
    counts: Int[Tensor, "*batch symbol"], estimator: CountEstimator = "chao-wang-jost", *, outcomes: int | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy of the distribution that the counts were drawn from, in nats; a row without any count is NaN.

    "plug-in": -sum p ln p, in [0, ln K], always low. "miller-madow": + (K-1)/2N. "chao-shen": coverage C = 1 - f1/N (f1 symbols seen once; one less when all
    are), q = C p: -sum q ln q / (1 - (1-q)^N). "grassberger": ln N - sum p G(n), G(n) = psi(n) + (-1)^n [psi((n+1)/2) - psi(n/2)] / 2 (2003);
    "grassberger-1988": G(n) = psi(n) + (-1)^n / (n+1), the form a common package releases; below 0 for a constant. "zhang": sum p [psi(N) - psi(n)].
    "chao-wang-jost": zhang + an estimate of what was not seen, from f1 and f2. "bonachela": for small N, of a flat prior.
    "shrink": plug-in of James-Stein towards uniform. "jeffreys", "laplace": plug-in of (n + a) / (N + K a), a = 1/2 and 1.
    The last three spread over K = `outcomes` symbols (None: the observed); other estimators refuse it. Errors: ValueError for negative counts.
    Source: Miller 1955; Chao & Shen 2003; Grassberger 1988 and arXiv physics/0307138; Zhang 2012; Chao, Wang & Jost 2013; Bonachela et al. 2008,
    arXiv 0804.4561; Hausser & Strimmer 2009, arXiv 0811.3579; formulas: vectors README, `information-estimators`.

    >>> count_entropy(torch.tensor([2, 2]), "miller-madow")  # ln 2 + 1/8
    tensor(0.8181, dtype=torch.float64)
    """
    if counts.numel() and (counts < 0).any():
        raise ValueError(f"count_entropy: counts must not be negative. Got {int(counts.min())}.")
    n = counts.double()
    total, seen = n.sum(-1, keepdim=True), (counts > 0).sum(-1, keepdim=True)
    if outcomes is not None and (estimator not in ("shrink", "jeffreys", "laplace") or bool((seen > outcomes).any())):
        raise ValueError(f"count_entropy: outcomes is of 'shrink', 'jeffreys', 'laplace', and at least the symbols seen. Got {outcomes}, {estimator!r}.")
    p = n / total  # NaN for a row without counts, and so is every sum below
    plug_in = torch.special.entr(p).sum(-1)
    match estimator:
        case "plug-in":
            return plug_in
        case "miller-madow":
            return plug_in + ((seen - 1) / (2 * total)).squeeze(-1)
        case "chao-shen":
            return _chao_shen(n, total)
        case "grassberger" | "grassberger-1988" | "zhang":
            return _digamma_sum(n, total, p, estimator)
        case "chao-wang-jost":
            rows = [_unseen(row) for row in n.reshape(-1, n.shape[-1])]
            return _digamma_sum(n, total, p, "zhang") + n.new_tensor(rows).reshape(n.shape[:-1])
        case "bonachela":
            terms = (n + 1) * (torch.digamma(total + 3) - torch.digamma(n + 2))
            return torch.where(n > 0, terms, 0).sum(-1) / (total.squeeze(-1) + 2) + 0 * plug_in
        case "shrink" | "jeffreys" | "laplace":
            return _spread(n, total, p, seen if outcomes is None else torch.full_like(seen, outcomes), estimator)
        case _:
            raise ValueError(f"count_entropy: no estimator {estimator!r}. There are {', '.join(CountEstimator.__args__)}.")


def count_cross_entropy(counts: Int[Tensor, "*batch symbol"], other: Int[Tensor, "*batch symbol"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """Plug-in cross-entropy -sum p ln q of two samples over the same symbols, in nats; inf where the other lacks a symbol of the first.

    `released=True`: only symbols that both have are summed, p and q not renormalised (a common package); then it can be too small.
    """
    return -_common(counts, other, lambda p, q: q.log(), released)


def count_divergence(counts: Int[Tensor, "*batch symbol"], other: Int[Tensor, "*batch symbol"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """Plug-in KL divergence sum p ln(p/q) of two samples over the same symbols, in nats, >= 0; inf where the other lacks a symbol of the first.

    `released=True`: only symbols that both have are summed (a common package): too small, even negative, for different supports.
    """
    return _common(counts, other, lambda p, q: p.log() - q.log(), released)


def _common(counts: Tensor, other: Tensor, term, released: bool) -> Tensor:
    p, q = (n.double() / n.double().sum(-1, keepdim=True) for n in (counts, other))
    taken = (counts > 0) & (other > 0) if released else counts > 0
    summed = torch.where(taken, p * term(p.masked_fill(~taken, 1), q.masked_fill(~taken, 1)), 0).sum(-1)
    return summed + 0 * (p.sum(-1) + q.sum(-1))  # NaN for a sample without counts


def _chao_shen(n: Tensor, total: Tensor) -> Tensor:
    once = (n == 1).sum(-1, keepdim=True).double()
    once = torch.where(once == total, once - 1, once)  # all seen once: coverage 0 would leave nothing
    q = (1 - once / total) * n / total
    chance = -torch.expm1(total * torch.log1p(-q))
    return torch.where(n > 0, torch.special.entr(q) / chance, 0 * q).sum(-1)


def _digamma_sum(n: Tensor, total: Tensor, p: Tensor, estimator: str) -> Tensor:
    held = n.clamp(min=1)  # psi has a pole at 0; p is 0 there
    if estimator == "zhang":
        return (p * (torch.digamma(total) - torch.digamma(held))).sum(-1)
    sign = 1 - 2 * (held % 2)
    if estimator == "grassberger":
        alternating = sign * (torch.digamma((held + 1) / 2) - torch.digamma(held / 2)) / 2
    else:
        alternating = sign / (held + 1)
    return (p * (total.log() - torch.digamma(held) - alternating)).sum(-1)


def _spread(n: Tensor, total: Tensor, p: Tensor, symbols: Tensor, estimator: str) -> Tensor:
    """Entropy of the estimate that gives every one of `symbols` outcomes, seen or not, a share."""
    unseen = symbols - (n > 0).sum(-1, keepdim=True)
    if estimator == "shrink":
        apart = torch.where(n > 0, (p - 1 / symbols).square(), 0).sum(-1, keepdim=True) + unseen / symbols.square()
        noise = (p * (1 - p)).sum(-1, keepdim=True) / (total - 1)
        weight = torch.where(apart == 0, 1, (noise / apart).clamp(0, 1))
        q, rest = weight / symbols + (1 - weight) * p, weight / symbols
    else:
        prior = 0.5 if estimator == "jeffreys" else 1.0
        q, rest = (n + prior) / (total + prior * symbols), prior / (total + prior * symbols)
    return (torch.where(n > 0, torch.special.entr(q), 0 * q).sum(-1, keepdim=True) + unseen * torch.special.entr(rest)).squeeze(-1)


def _unseen(n: Tensor) -> float:
    """Chao, Wang and Jost's share of the entropy for symbols not seen: (f1/N) (1-A)^(1-N) [-ln A - sum_{r<N} (1-A)^r / r].

    The bracket is the tail of the logarithm's series; where it is small beside ln A it is summed as that tail, or rounding, magnified by
    (1-A)^(1-N), would be all that is left. 0 without symbols seen once, and where A is 1.
    """
    total, once, twice = float(n.sum()), int((n == 1).sum()), int((n == 2).sum())
    if not once or total < 2:
        return 0.0
    a = 2 * twice / ((total - 1) * once + 2 * twice) if twice else 2 / ((total - 1) * (once - 1) + 2)
    if a >= 1:
        return 0.0
    log_b = math.log1p(-a)
    if a * total < 1:
        r = torch.arange(1, int(total), dtype=torch.float64)
        tail = math.exp((1 - total) * log_b) * (-math.log(a) - float(((r * log_b).exp() / r).sum()))
    else:
        s = torch.arange(int(40 / a) + 1, dtype=torch.float64)
        tail = float((((s + 1) * log_b).exp() / (total + s)).sum())
    return once / total * tail
