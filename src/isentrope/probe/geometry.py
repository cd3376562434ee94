"""How many directions a stream of states fills: the spectrum of their covariance, gathered in O(d^2) memory, and its summaries.

p_i = s_i / sum_j s_j, s_i the eigenvalues of the centred covariance: entropy -sum p ln p in nats, effective rank exp of it (RankMe as
`representation-geometry` takes it: eigenvalues, not singular values), exponent alpha of s_i ~ i^-alpha (alpha-ReQ). Source: arXiv
2509.23024 and its code (sheet `representation-geometry`); the constant 1e-7 that the code adds to every p_i is left out.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

FIT = (11, 100)
"""Ranks of alpha's fit, counted from 1: what `reptrix` takes as its default, 0-based 10..99."""


class StreamingCovariance:
    """Covariance of [token, d] states that come in parts, in float64: means are merged exactly, so a large common offset costs no digits."""

    def __init__(self, d: int):
        self.count = 0
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.scatter = torch.zeros(d, d, dtype=torch.float64)

    def update(self, x: Float[Tensor, "token d"]) -> None:
        """Adds states; an empty part adds nothing."""
        if not len(x):
            return
        states = x.detach().to("cpu", torch.float64)
        centre = states.mean(0)
        states = states - centre
        total, gap = self.count + len(states), centre - self.mean
        self.scatter += states.T @ states + torch.outer(gap, gap) * (self.count * len(states) / total)
        self.mean += gap * (len(states) / total)
        self.count = total

    def eigenvalues(self) -> Float[Tensor, " d"]:
        """Of scatter / (count - 1), falling, none below 0. Raises ValueError for fewer than two states; NaN where a state was not finite."""
        if self.count < 2:
            raise ValueError(f"StreamingCovariance: needs at least two states. Got {self.count}; update it with more.")
        if not self.scatter.isfinite().all():
            return torch.full_like(self.mean, torch.nan)
        return torch.linalg.eigvalsh(self.scatter / (self.count - 1)).flip(0).clamp(min=0)


def spectral_entropy(eigenvalues: Float[Tensor, " d"]) -> float:
    """Entropy of eigenvalues / their sum, nats, in [0, ln d]; NaN where all are 0.

    >>> round(spectral_entropy(torch.ones(8)), 4)  # ln 8
    2.0794
    """
    shares = eigenvalues.double() / eigenvalues.double().sum()
    return -torch.special.xlogy(shares, shares).sum().item()


def effective_rank(eigenvalues: Float[Tensor, " d"]) -> float:
    """exp(spectral_entropy), in [1, d]; k for k equal eigenvalues."""
    return math.exp(spectral_entropy(eigenvalues))


def decay_exponent(eigenvalues: Float[Tensor, " d"]) -> float | None:
    """alpha of s_i ~ i^-alpha by least squares of ln s_i on ln i with weights 1 / i, over ranks FIT; larger is faster decay.

    None where fewer than three of these ranks hold an eigenvalue above 1e-10 of the largest (below is rounding).
    """
    first, last = FIT
    top = eigenvalues[:last].double()
    kept = torch.arange(1, len(top) + 1) >= first
    kept &= top > 1e-10 * top[0]
    if int(kept.sum()) < 3:
        return None
    rank = torch.arange(1, len(top) + 1, dtype=torch.float64)[kept]
    x, y, w = -rank.log(), top[kept].log(), 1 / rank
    x, y = x - (w * x).sum() / w.sum(), y - (w * y).sum() / w.sum()
    return ((w * x * y).sum() / (w * x * x).sum()).item()
