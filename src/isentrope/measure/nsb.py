"""Entropy of a discrete distribution from very few draws, with an interval: the Nemenman-Shafee-Bialek posterior.

p ~ Dirichlet(b, ..., b) over K outcomes; one b fixes the entropy almost before the data are seen, so b is mixed with the density dxi/db of
the mean entropy xi(b) = psi(K b + 1) - psi(b + 1), which makes every entropy from 0 to ln K about equally likely beforehand. Given b the posterior
is Dirichlet(n_i + b), whose mean entropy is in closed form; the mixture over b is integrated on a grid. Nats, float64.

Of 8-16 answers it is the estimator whose interval means what it says (`nsb_test.py` measures its coverage); `counts.py` has point estimates that need no K.

Source: Nemenman, Shafee & Bialek 2002 (arXiv physics/0108025), eqs. 4-11; moments: Wolpert & Wolf 1995.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

GRID = 400  # values of b: of their log from tiny to huge concentration
LOW, HIGH = 1e-6, 1e4  # of b K


@dataclass(frozen=True)
class EntropyEstimate:
    """Posterior mean and equal-tailed interval of the entropy, nats; all NaN for a row without counts."""

    mean: Float[Tensor, "*batch"]
    low: Float[Tensor, "*batch"]
    high: Float[Tensor, "*batch"]


def nsb_entropy(counts: Int[Tensor, "*batch symbol"], *, outcomes: int | None = None, level: float = 0.95, draws: int = 1000, seed: int = 0) -> EntropyEstimate:
    """Posterior of the entropy of what the counts were drawn from, nats, in [0, ln outcomes]. A count of 0 is padding unless `outcomes` says otherwise.

    outcomes  How many there are at all (None: of each row Chao's estimate of them, seen + once (once - 1) / 2 (twice + 1), rounded up,
              where once and twice count the symbols seen so often; a guess, and the interval is given it).
    level     Of the interval, which is of `draws` samples of the posterior, drawn from `seed`.

    Raises ValueError for negative counts, fewer outcomes than were seen, or a level outside (0, 1).
    """
    if counts.numel() and bool((counts < 0).any()):
        raise ValueError(f"nsb_entropy: counts must not be negative. Got {int(counts.min())}.")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"nsb_entropy: level must be in (0, 1) and draws at least 1. Got {level} and {draws}.")
    seen = int((counts > 0).sum(-1).max()) if counts.numel() else 0
    if outcomes is not None and outcomes < max(seen, 1):
        raise ValueError(f"nsb_entropy: outcomes must be at least the symbols seen. Got {outcomes}, seen {seen}.")
    generator = torch.Generator().manual_seed(seed)
    rows = [_posterior(row[row > 0].double().cpu(), outcomes, level, draws, generator) for row in counts.reshape(-1, counts.shape[-1])]
    table = torch.tensor(rows, dtype=torch.float64).reshape(*counts.shape[:-1], 3)
    return EntropyEstimate(*table.unbind(-1))


def _posterior(n: Tensor, outcomes: int | None, level: float, draws: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Mean, low and high of one row's positive counts."""
    if not len(n):
        return torch.nan, torch.nan, torch.nan
    once, twice = int((n == 1).sum()), int((n == 2).sum())
    k = outcomes if outcomes is not None else len(n) + -(-once * (once - 1) // (2 * (twice + 1)))
    if k == 1:
        return 0.0, 0.0, 0.0
    b, weight = _concentrations(n, k)
    mean = float((weight * _mean_entropy(n, k, b)).sum())
    chosen = b[torch.multinomial(weight, draws, replacement=True, generator=generator)]
    sampled = _sampled(n, k, chosen, generator)
    low, high = sampled.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return mean, low, high


def _concentrations(n: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The grid of b and its posterior weights, which sum to 1."""
    b = torch.logspace(torch.log10(torch.tensor(LOW)), torch.log10(torch.tensor(HIGH)), GRID, dtype=torch.float64) / k
    slope = k * torch.polygamma(1, k * b + 1) - torch.polygamma(1, b + 1)  # dxi / db; the grid is even in ln b, hence the factor b
    evidence = torch.lgamma(k * b) - torch.lgamma(n.sum() + k * b) + (torch.lgamma(n + b.unsqueeze(1)) - torch.lgamma(b.unsqueeze(1))).sum(1)
    return b, torch.softmax(evidence + slope.clamp(min=0).log() + b.log(), 0)


def _mean_entropy(n: Tensor, k: int, b: Tensor) -> Tensor:
    """Mean entropy of Dirichlet(n + b) over the k outcomes, for each b."""
    total, each = n.sum() + k * b, n + b.unsqueeze(1)
    inside = (each * torch.digamma(each + 1)).sum(1) + (k - len(n)) * b * torch.digamma(b + 1)
    return torch.digamma(total + 1) - inside / total


def _sampled(n: Tensor, k: int, b: Tensor, generator: torch.Generator) -> Tensor:
    """Entropies of one p ~ Dirichlet(n + b) per b. ln of Gamma(a) is drawn as ln Gamma(a + 1) + ln(u) / a, which does not underflow for small a."""
    alpha = torch.cat([n + b.unsqueeze(1), b.unsqueeze(1).expand(-1, k - len(n))], 1)
    uniform = torch.rand(alpha.shape, dtype=torch.float64, generator=generator).clamp(min=1e-300)
    log_p = torch._standard_gamma(alpha + 1, generator=generator).log() + uniform.log() / alpha
    p = torch.softmax(log_p, 1)
    return torch.special.entr(p).sum(1)
