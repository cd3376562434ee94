"""Dirichlet distributions over probabilities: what entropy p has on average, how likely a p is, and the parameters that fit mean logarithms.

alpha [*batch outcome], all > 0, a0 = sum alpha; psi is the digamma, psi_1 the trigamma function. Nats, float64 inside for float64 inputs.

Source: Wolpert & Wolf 1995 (moments), Minka 2000 (fit). The released helpers of entropix (vectors README, `entropix`) have three faults, which
`released=True` reproduces: the normaliser of the density with the wrong sign, the differential entropy of the Dirichlet under the name of the mean
Shannon entropy, and a varentropy that is neither the mean varentropy nor the mean of sum p ln^2 p.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def dirichlet_log_density(log_p: Float[Tensor, "*batch outcome"], alpha: Float[Tensor, "*batch outcome"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """ln density of p: sum (alpha - 1) ln p + ln Gamma(a0) - sum ln Gamma(alpha)."""
    normaliser = torch.lgamma(alpha.sum(-1)) - torch.lgamma(alpha).sum(-1)
    return ((alpha - 1) * log_p).sum(-1) + (-normaliser if released else normaliser)


def dirichlet_mean(alpha: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch outcome"]:
    """E[p] = alpha / a0."""
    return alpha / alpha.sum(-1, keepdim=True)


def dirichlet_mean_entropy(alpha: Float[Tensor, "*batch outcome"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """E[H(p)] = psi(a0 + 1) - sum (alpha / a0) psi(alpha + 1), nats, in [0, ln outcomes]. `released`: the Dirichlet's differential entropy."""
    total = alpha.sum(-1)
    if not released:
        return torch.digamma(total + 1) - (dirichlet_mean(alpha) * torch.digamma(alpha + 1)).sum(-1)
    volume = torch.lgamma(alpha).sum(-1) - torch.lgamma(total)
    return volume + (total - alpha.shape[-1]) * torch.digamma(total) - ((alpha - 1) * torch.digamma(alpha)).sum(-1)


def dirichlet_mean_square_surprisal(alpha: Float[Tensor, "*batch outcome"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """E[sum p ln^2 p] = sum (alpha / a0) [(psi(alpha + 1) - psi(a0 + 1))^2 + psi_1(alpha + 1) - psi_1(a0 + 1)], nats^2.

    `released`: sum (alpha / a0) (psi(alpha)^2 + psi_1(alpha)), there called the expected varentropy.
    """
    mean, total = dirichlet_mean(alpha), alpha.sum(-1, keepdim=True)
    if released:
        return (mean * (torch.digamma(alpha).square() + torch.polygamma(1, alpha))).sum(-1)
    log = torch.digamma(alpha + 1) - torch.digamma(total + 1)
    return (mean * (log.square() + torch.polygamma(1, alpha + 1) - torch.polygamma(1, total + 1))).sum(-1)


def fit_dirichlet(mean_log_p: Float[Tensor, "*batch outcome"], *, steps: int = 500, tolerance: float = 1e-12) -> Float[Tensor, "*batch outcome"]:
    """alpha with E[ln p] = psi(alpha) - psi(a0) equal to `mean_log_p`; not differentiable. Maximum likelihood, for means of ln p over samples.

    One unknown: given psi(a0), every alpha is psi^-1 of a number, so the root of ln sum psi^-1(mean + psi(a0)) - ln a0 in ln a0 is bisected.
    Raises ValueError where sum exp(mean_log_p) >= 1, which no Dirichlet has.
    """
    target = mean_log_p.detach().double()
    if bool((target.exp().sum(-1) >= 1 - 1e-12).any()):
        raise ValueError("fit_dirichlet: sum exp(mean ln p) must be below 1 (Jensen); at 1 all samples are the same p. Average ln p over different samples.")
    low, high = torch.full_like(target[..., :1], -40.0), torch.full_like(target[..., :1], 60.0)
    for _ in range(steps):
        middle = (low + high) / 2
        short = inverse_digamma(target + torch.digamma(middle.exp())).sum(-1, keepdim=True) < middle.exp()  # the sum falls below a0 beyond the root
        low, high = torch.where(short, low, middle), torch.where(short, middle, high)
        if float((high - low).max()) < tolerance:
            break
    return inverse_digamma(target + torch.digamma(((low + high) / 2).exp())).to(mean_log_p.dtype)


def inverse_digamma(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x > 0 with psi(x) = y, by Newton from Minka's start. Source: Minka 2000, appendix C."""
    x = torch.where(y >= -2.22, y.clamp(max=80).exp() + 0.5, -1 / (y - torch.digamma(torch.ones_like(y))).clamp(max=-1e-9))
    for _ in range(8):
        x = (x - (torch.digamma(x) - y) / torch.polygamma(1, x)).clamp(min=1e-300)
    return x
