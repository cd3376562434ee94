"""Laws of paths of a Markov chain: tilted by a feature of each step, with their linear response, and the information that one step loses.

Path tilting: P(path) = P0(path) exp(-sum_t lambda_t f_t(x_t, x_t+1)) / Z, where P0 = start . W . W ... ; ln Z is the process free energy, and
dE[f_t]/dlambda_s = -Cov(f_t, f_s) at any distance from equilibrium, since the covariance is that of the driven paths. Paths are never enumerated: backward
weights turn the tilt into a chain with steps of its own. float64, chances normalised again; 0 is an impossible start or step.
Source: Rogers, Beck & Rempe, arXiv 1105.5662; sheet `maxent-statmech`, items 5 and 6 (the discrete formulas are (inferred) there, and verified).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class DrivenPaths:
    """A driven chain: its start and steps, the mean of each step's feature, and how the means answer to the multipliers."""

    start: Float[Tensor, " state"]
    transitions: Float[Tensor, "step state state"]  # [t, i, j]: chance of j after i
    mean: Float[Tensor, " step"]  # E[f_t]
    response: Float[Tensor, "step step"]  # [t, s] = dE[f_t]/dlambda_s
    log_z: Float[Tensor, ""] | None  # process free energy, nats, whose slope by lambda is -mean; None for `tilt_steps`, which has none


@dataclass(frozen=True)
class InformationLoss:
    """What one step loses, nats: value = entropy_change + heat >= 0."""

    value: Float[Tensor, "*batch"]
    entropy_change: Float[Tensor, "*batch"]  # H(after) - H(before)
    heat: Float[Tensor, "*batch"]  # sum p_i W_ij ln(W_ij / W_ji): beta times the heat where W obeys local detailed balance; alone it can be negative


def tilt_paths(
    start: Float[Tensor, " state"], transition: Float[Tensor, "state state"], features: Float[Tensor, "step state state"], multipliers: Float[Tensor, " step"]
) -> DrivenPaths:
    """The law of whole paths nearest to the chain's for given means of f_t: ln Z in nats, driven chain, means and response = -Cov(f_t, f_s).

    Not causal: the response is symmetric, so that E[f_0] depends on later multipliers; `tilt_steps` is the causal form. Raises ValueError for chances that are
    negative or do not sum to 1. Memory O(steps (states^2 + steps)). Source: sheet `maxent-statmech`, item 6.

    >>> chain = torch.full((2, 2), 0.5)
    >>> tilt_paths(torch.tensor([1.0, 0.0]), chain, torch.ones(3, 2, 2), torch.ones(3)).log_z  # every path pays 3
    tensor(-3., dtype=torch.float64)
    """
    p, weights, f = _weighed("tilt_paths", start, transition, features, multipliers)
    to_go, steps = torch.zeros_like(p), []
    for weight in weights.flip(0):
        ahead = weight + to_go
        to_go = ahead.logsumexp(-1)
        steps.append(ahead.softmax(-1))
    first = _log(p) + to_go
    chain = torch.stack(steps[::-1]) if steps else weights
    begin, steps_f, mean = _followed(first.softmax(0), chain, f)
    covariance = _correlation(begin, chain, steps_f - mean[:, None, None], steps_f - mean[:, None, None])
    lower = covariance.tril()
    return DrivenPaths(first.softmax(0), chain, mean, -(lower + lower.tril(-1).T), first.logsumexp(0))


def tilt_steps(
    start: Float[Tensor, " state"], transition: Float[Tensor, "state state"], features: Float[Tensor, "step state state"], multipliers: Float[Tensor, " step"]
) -> DrivenPaths:
    """The causal form of `tilt_paths`: each row of each step is tilted and normalised alone, and the start stays; no ln Z.

    The response is one-sided: response[t, s] = -E[f_t (f_s - E[f_s | x_s])] for s <= t and 0 for s > t. Raises ValueError as `tilt_paths` does.
    Source: sheet `maxent-statmech`, pitfalls.
    """
    p, weights, f = _weighed("tilt_steps", start, transition, features, multipliers)
    chain = weights.softmax(-1)
    begin, steps_f, mean = _followed(p, chain, f)
    surprise = steps_f - (chain * steps_f).sum(-1, keepdim=True)
    return DrivenPaths(p, chain, mean, -_correlation(begin, chain, surprise, steps_f - mean[:, None, None]).tril(), None)


def information_loss(state: Float[Tensor, "*#batch state"], transition: Float[Tensor, "*#batch state state"]) -> InformationLoss:
    """KL of the joint p_i W_ij of one step from the retrodiction p'_j W_ji, p' = pW, in nats, >= 0, in its two parts; even variables only.

    0 if and only if p_i W_ij = p'_j W_ji for all pairs (detailed balance at rest); inf where a step that happens cannot happen backwards.
    Raises ValueError for chances that are negative or do not sum to 1. Source: sheet `maxent-statmech`, item 5.

    >>> information_loss(torch.tensor([1.0, 0.0]), torch.full((2, 2), 0.5)).value  # all that was known: ln 2
    tensor(0.6931, dtype=torch.float64)
    """
    p, w = _chances("information_loss", "state", state), _chances("information_loss", "transition", transition)
    after = (p.unsqueeze(-2) @ w).squeeze(-2)
    change = torch.special.entr(after).sum(-1) - torch.special.entr(p).sum(-1)
    flow, both = p.unsqueeze(-1) * w, (w > 0) & (w.mT > 0)
    ratio = torch.where(both, w, 1.0).log() - torch.where(both, w.mT, 1.0).log()
    heat = (flow * ratio + torch.where((flow > 0) & ~both, math.inf, 0.0)).sum((-2, -1))
    return InformationLoss(change + heat, change, heat)


def _followed(start: Tensor, chain: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The law of the state before each step, features with 0 where a step is impossible, and their means."""
    where, laws = start, []
    for step in chain:
        laws.append(where)
        where = where @ step
    before = torch.stack(laws) if laws else start.new_zeros(0, len(start))
    f = torch.where(chain > 0, f, 0.0)
    return before, f, (before.unsqueeze(-1) * chain * f).sum((-2, -1))


def _correlation(before: Tensor, chain: Tensor, earlier: Tensor, later: Tensor) -> Tensor:
    """[t, s] = E[later_t earlier_s] for s <= t, by carrying each step's feature along the chain."""
    carried, rows = before.new_zeros(len(chain), before.shape[-1]), []
    for t, step in enumerate(chain):
        row = carried @ (step * later[t]).sum(-1)  # 0 for steps still to come
        now = (before[t].unsqueeze(-1) * step * earlier[t] * later[t]).sum()
        carried = carried @ step
        own = (before[t].unsqueeze(-1) * step * earlier[t]).sum(0)
        here = torch.arange(len(chain)) == t
        carried, row = torch.where(here.unsqueeze(-1), own, carried), torch.where(here, now, row)
        rows.append(row)
    return torch.stack(rows) if rows else before.new_zeros(0, 0)


def _weighed(who: str, start: Tensor, transition: Tensor, features: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start, ln of the tilted weights of each step, features; float64."""
    p, w = _chances(who, "start", start), _chances(who, "transition", transition)
    f = torch.where(w > 0, features.double(), 0.0)
    return p, _log(w) - multipliers.double()[:, None, None] * f, f


def _log(p: Tensor) -> Tensor:
    """ln p, -inf where p is 0, with no slope there that would be NaN."""
    return torch.where(p > 0, torch.where(p > 0, p, 1.0).log(), -math.inf)


def _chances(who: str, what: str, p: Tensor) -> Tensor:
    """Float64, with sums of 1 to that precision."""
    p = p.double()
    total = p.sum(-1, keepdim=True)
    if not bool((p >= 0).all() & ((total - 1).abs() < 1e-5).all()):
        raise ValueError(f"{who}: {what} must hold chances that are not negative and sum to 1 in each row. Got a least row sum of {float(total.min()):.6g}.")
    return p / total
