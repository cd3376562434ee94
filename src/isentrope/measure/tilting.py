"""Exponential tilting P ~ pi exp(-lambda . f): ln Z, its derivatives, and the multipliers that give features prescribed means.

Of all laws with those means P is nearest to pi in KL(P || pi), which is -(ln Z + lambda . F); with the counting measure for pi, its entropy is the largest,
ln Z + lambda . F. The sign is that of physics: a softmax policy is f = reward with lambda = -1/temperature. float64; -inf in `log_prior` is legal and
means that the outcome is impossible, whatever its features. Source: Jaynes 1957; Rogers, Beck & Rempe, arXiv 1105.5662; sheet `maxent-statmech`, 1-2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS = 200  # of the solver: 40 suffice far from the edge of what is possible, 100 for means of laws with nearly all weight on one outcome
RIDGE = 1e-12  # sheet: share of the largest eigenvalue that every direction of the covariance has at least
RANK = 1e-13  # eigenvalues below this share of the largest are rounding: features that say the same


@dataclass(frozen=True)
class Tilted:
    """The tilted law and the derivatives of A = ln Z by lambda: dA = -mean, d2A = covariance. Nats; differentiable."""

    log_z: Float[Tensor, "*batch"]
    log_probs: Float[Tensor, "*batch outcome"]
    mean: Float[Tensor, "*batch feature"]  # E[f]
    covariance: Float[Tensor, "*batch feature feature"]  # Cov(f) = -dE[f]/dlambda

    @property
    def probs(self) -> Float[Tensor, "*batch outcome"]:
        """P of each outcome."""
        return self.log_probs.exp()


@dataclass(frozen=True)
class Solved:
    """Multipliers for prescribed means, nats per unit of the feature, with the law they give."""

    multipliers: Float[Tensor, "*batch feature"]
    tilted: Tilted
    residual: Float[Tensor, "*batch"]  # max |E[f] - target|, each feature in units of the widest gap between target and possible outcome
    reached: Bool[Tensor, "*batch"]
    impossible: Bool[Tensor, "*batch"]  # proved: `multipliers` is the normal of a plane with the target on one side and every possible outcome on the other


def tilt(
    features: Float[Tensor, "*#batch outcome feature"],
    multipliers: Float[Tensor, "*#batch feature"],
    log_prior: Float[Tensor, "*#batch outcome"] | None = None,
) -> Tilted:
    """P = pi exp(-lambda . f) / Z with ln Z in nats, the mean and covariance of the features under it.

    `log_prior` is ln pi, a measure that need not sum to 1; None counts outcomes (ln Z at lambda = 0 is ln of their number). A row without a possible
    outcome is NaN. Differentiable in all three. Source: sheet `maxent-statmech`, items 1, 2b, 2c.

    >>> tilt(torch.tensor([[0.0], [1.0]]), torch.zeros(1)).log_z  # ln 2
    tensor(0.6931, dtype=torch.float64)
    """
    f, log_prior = _possible(features, log_prior)
    energy = log_prior - (f * multipliers.double().unsqueeze(-2)).sum(-1)
    log_z = energy.logsumexp(-1)
    log_probs = energy.log_softmax(-1)
    probs = log_probs.exp()
    mean = (probs.unsqueeze(-1) * f).sum(-2)
    apart = f - mean.unsqueeze(-2)
    covariance = (probs.unsqueeze(-1) * apart).mT @ apart
    return Tilted(log_z.masked_fill(mean.isnan().any(-1), math.nan), log_probs, mean, covariance)


def solve_tilt(
    features: Float[Tensor, "*#batch outcome feature"],
    target: Float[Tensor, "*#batch feature"],
    log_prior: Float[Tensor, "*#batch outcome"] | None = None,
    *,
    tolerance: float = 1e-10,
    must_reach: bool = True,
) -> Solved:
    """The multipliers, nats per unit of feature, whose tilted law has E[f] = target; several features at once, the least norm where some repeat each other.

    Damped Newton steps on the convex ln Z + lambda . target, features in units of their widest gap to the target, which is also the unit of `tolerance`;
    a target on the edge of the convex hull is met to the tolerance. Where the sheet caps |lambda| at 1e3, a plane that parts the target from the outcomes
    stops the search, since rare outcomes need larger multipliers. Differentiable once, by the implicit function: dlambda/dtarget = -Cov^-1.
    Raises ValueError where the target is not reached, as outside that hull; with must_reach=False such rows come back with reached=False.
    Source: sheet `maxent-statmech`, item 1.

    >>> die = torch.arange(1.0, 7.0).unsqueeze(-1)
    >>> solve_tilt(die, torch.tensor([4.5])).multipliers  # Jaynes 1963
    tensor([-0.3710], dtype=torch.float64)
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"solve_tilt: tolerance must be in (0, 1). Got {tolerance}.")
    f, prior = _possible(features, log_prior)
    batch = torch.broadcast_shapes(f.shape[:-2], prior.shape[:-1], target.shape[:-1])
    goal = target.double().expand(*batch, f.shape[-1])
    gap = torch.where((prior > -math.inf).unsqueeze(-1), f - goal.unsqueeze(-2), 0.0)
    widest = gap.detach().abs().amax(-2, keepdim=True)
    gap = gap / torch.where(widest > 0, widest, 1.0)
    prior = prior.expand(gap.shape[:-1])
    scaled, residual, impossible = _newton(gap.detach(), prior.detach(), tolerance)
    reached = residual <= tolerance
    if must_reach and not reached.all():
        raise ValueError(
            f"solve_tilt: target must be a mean that possible outcomes can have; {int((~reached).sum())} of {reached.numel()} rows do not reach it, "
            f"{int(impossible.sum())} of them proved to lie outside the outcomes' convex hull. Got means off by up to "
            f"{float(residual.nan_to_num(math.inf).max()):.3g} of a feature's range. must_reach=False returns these rows with reached=False."
        )
    if gap.requires_grad or prior.requires_grad:  # one more Newton step, of size 0, carries the slope
        there = tilt(gap, scaled, prior)
        scaled = scaled + (_inverse(there.covariance.detach()) @ there.mean.unsqueeze(-1)).squeeze(-1)
    multipliers = scaled / torch.where(widest > 0, widest, 1.0).squeeze(-2)
    return Solved(multipliers, tilt(features, multipliers, log_prior), residual, reached, impossible)


def _newton(gap: Tensor, prior: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise ln Z(lambda) of features whose target is 0, by Newton steps whose damping, in units of the slope, follows their success."""
    multipliers = torch.zeros_like(gap[..., 0, :])
    now = tilt(gap, multipliers, prior)
    damping = torch.full_like(now.log_z, 1e-3)
    for _ in range(STEPS):
        size = now.mean.abs().amax(-1)
        impossible = _parted(gap, prior, multipliers)
        active = (size > tolerance / 100) & ~impossible  # quadratic at the end: two digits more cost one step
        if not active.any():
            break
        spread, axes = torch.linalg.eigh(now.covariance.nan_to_num(0.0))
        spread = spread.clamp(min=0) + RIDGE * spread[..., -1:].clamp(min=1e-300) + (damping * size).nan_to_num(1.0).unsqueeze(-1)
        step = (axes @ ((axes.mT @ now.mean.unsqueeze(-1)) / spread.unsqueeze(-1))).squeeze(-1)
        trial = tilt(gap, multipliers + step, prior)
        rounding = 1e-15 * (1 + now.log_z.abs() + multipliers.abs().sum(-1))
        fell = active & (trial.log_z <= now.log_z - 1e-4 * (step * now.mean).sum(-1) + rounding)
        damping = torch.where(fell, damping / 8, damping * 4).clamp(1e-12, 1e6)
        multipliers = torch.where(fell.unsqueeze(-1), multipliers + step, multipliers)
        now = tilt(gap, multipliers, prior)
    return multipliers, now.mean.abs().amax(-1), _parted(gap, prior, multipliers)


def _parted(gap: Tensor, prior: Tensor, multipliers: Tensor) -> Tensor:
    """Whether all possible outcomes lie on one side of the plane through the target: then no mean of theirs is the target."""
    side = (gap * multipliers.unsqueeze(-2)).sum(-1).masked_fill(prior == -math.inf, math.inf)
    return side.amin(-1) > 1e-12 * multipliers.abs().sum(-1)


def _inverse(covariance: Tensor) -> Tensor:
    """The pseudo-inverse; a row of NaN is 0, since no step is known there."""
    known = covariance.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.linalg.pinv(torch.where(known, covariance, 0.0), rtol=RANK, hermitian=True)


def _possible(features: Tensor, log_prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features with 0 for impossible outcomes, and ln pi; float64."""
    f = features.double()
    if log_prior is None:
        return f, torch.zeros_like(f[..., 0])
    prior = log_prior.double()
    return torch.where((prior == -math.inf).unsqueeze(-1), 0.0, f), prior
