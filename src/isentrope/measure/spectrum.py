"""Spectra of features and matrices: how many directions are in use. One core: eigenvalues -> shares q_i = l_i / sum l -> Shannon entropy.

Entropies in nats (or bits), ranks and exponents are pure numbers. float32 or wider inside and out; differentiable unless said otherwise. A
spectrum of zeros has no shares: NaN.

Features [sample d] are centred and enter as the eigenvalues of their covariance, s^2 / (samples - 1): a mean that all samples share is one
direction of large size that says nothing about their variety, and without centring it hides the rest. The original RankMe takes singular
values of uncentred features (`center=False, power=1`), which gives a number several times as large; say which one you report, and compare
only at equal sample counts and lengths, for the rank cannot exceed samples - 1.

Sources: sheets `representation-geometry` (arXiv 2509.23024 and its code), `koopman-information` (arXiv 2510.13025), `kappatune` (arXiv 2506.16289).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.measure.distribution import Unit, shannon

EPSILON = 1e-7  # what the released codes add to every share


def spectral_entropy(eigenvalues: Float[Tensor, "*batch mode"], *, unit: Unit = "nats") -> Float[Tensor, "*batch"]:
    """Shannon entropy of |l| / sum |l|, in nats (or bits), in [0, ln modes]; NaN for zeros alone. Of a density matrix's: von Neumann's.

    >>> spectral_entropy(torch.tensor([2.0, 2.0, 0.0]))
    tensor(0.6931)
    """
    return shannon(_shares(eigenvalues), unit=unit)


def effective_rank_of(eigenvalues: Float[Tensor, "*batch mode"]) -> Float[Tensor, "*batch"]:
    """exp of the spectral entropy, in [1, modes]: how many equal eigenvalues have that entropy."""
    return spectral_entropy(eigenvalues).exp()


def effective_rank(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch"]:
    """exp of the entropy of the singular values themselves, in [1, min(rows, columns)]. Source: Roy & Vetterli 2007.

    >>> effective_rank(torch.eye(5))
    tensor(5.)
    """
    return effective_rank_of(torch.linalg.svdvals(_wide(matrix)))


def _shares(eigenvalues: Tensor) -> Tensor:
    size = _wide(eigenvalues).abs()
    return size / size.sum(-1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- features


def covariance_eigenvalues(features: Float[Tensor, "*batch sample d"], *, center: bool = True) -> Float[Tensor, "*batch mode"]:
    """Eigenvalues of the covariance (divisor samples - 1; the raw second moment with `center=False`), largest first, min(samples, d) of them.

    From singular values of the features, which keeps digits that the covariance itself loses. Raises ValueError for fewer than two samples.
    """
    if features.shape[-2] < 2:
        raise ValueError(f"covariance_eigenvalues: at least two samples are needed. Got features {list(features.shape)}, [sample d].")
    return _singular_values(features, center).square() / (features.shape[-2] - 1)


def _singular_values(features: Tensor, center: bool) -> Tensor:
    x = _wide(features)
    return torch.linalg.svdvals(x - x.mean(-2, keepdim=True) if center else x)


def rankme(
    features: Float[Tensor, "*batch sample d"], *, center: bool = True, power: int = 2, keep: int | None = None, released: bool = False
) -> Float[Tensor, "*batch"]:
    """exp of the entropy of the spectrum's shares, in [1, min(samples - 1, d)]; NaN for identical features.

    power      2: eigenvalues of the covariance (the paper's code); 1: singular values (the original RankMe).
    keep       Only the largest so many, before the shares are taken (the code keeps 2048; it matters where d is larger). None: all.
    released   + 1e-7 on every share, as in the released code: the shares then sum to more than 1.

    Source: `representation-geometry`, method. Raises ValueError for fewer than two samples, or another power.
    """
    if power not in (1, 2):
        raise ValueError(f"rankme: power must be 2 (eigenvalues of the covariance) or 1 (singular values). Got {power}.")
    values = covariance_eigenvalues(features, center=center)
    q = _shares((values if power == 2 else values.sqrt())[..., :keep])
    return shannon(q).exp() if not released else (-torch.xlogy(q + EPSILON, q + EPSILON)).sum(-1).exp()


def lidar(views: Float[Tensor, "object view d"], *, delta: float = 1e-4, released: bool = False) -> Float[Tensor, ""]:
    """Effective rank of what tells objects apart: of Sw^-1/2 Sb Sw^-1/2, in [1, min(objects - 1, d)].

    Sb: scatter of the object means over objects - 1. Sw: scatter of the views around them over objects (views - 1), plus `delta` on the diagonal.
    released: the matrix is treated as a data set of d samples, which ranks roughly the squared eigenvalues (a fault of the released code).
    Source: `representation-geometry`, pitfalls. Raises ValueError for fewer than two objects or views.
    """
    objects, each, d = views.shape
    if objects < 2 or each < 2:
        raise ValueError(f"lidar: at least two objects and two views of each are needed. Got {list(views.shape)}, [object view d].")
    x = _wide(views)
    means = x.mean(1)
    between, within = means - means.mean(0), (x - means.unsqueeze(1)).reshape(-1, d)
    values, vectors = torch.linalg.eigh(within.mT @ within / (objects * (each - 1)) + delta * torch.eye(d, dtype=x.dtype, device=x.device))
    whiten = vectors * values.rsqrt() @ vectors.mT
    if released:
        return rankme(whiten @ (between.mT @ between / (objects - 1)) @ whiten, released=True)
    return effective_rank_of(torch.linalg.svdvals(between @ whiten).square())


@dataclass(frozen=True)
class PowerLaw:
    """ln l_i = log_scale - exponent ln i, fitted over ranks `first` to `last` (1 is the largest eigenvalue)."""

    exponent: float
    log_scale: float
    first: int
    last: int

    def at(self, ranks: Float[Tensor, " rank"]) -> Float[Tensor, " rank"]:
        """ln of the fitted eigenvalue at each rank."""
        return self.log_scale - self.exponent * ranks.log()


def fit_power_law(eigenvalues: Float[Tensor, " mode"], *, first: int = 12, last: int = 100) -> PowerLaw:
    """The power law through ranks `first` to `last`, both included, by least squares of logarithms with weights 1 / rank. Not differentiable.

    eigenvalues: largest first. Ranks beyond the spectrum, and eigenvalues that are not above 0, are left out; with fewer than two left the
    exponent is NaN. The paper's scripts for language models fit 12..100, its library 11..100. Source: `representation-geometry`, alpha-ReQ.
    Raises ValueError for a range below 1 or empty.
    """
    if not 1 <= first < last:
        raise ValueError(f"fit_power_law: ranks must satisfy 1 <= first < last. Got first={first}, last={last}.")
    values = eigenvalues.detach().double()[first - 1 : last]
    ranks = torch.arange(first, first + len(values), dtype=torch.float64, device=values.device)
    ranks, values = ranks[values > 0], values[values > 0]
    if len(values) < 2:
        return PowerLaw(math.nan, math.nan, first, last)
    x, y, weight = ranks.log(), values.log(), 1 / ranks
    x_mean, y_mean = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean).square()).sum()
    return PowerLaw(-float(slope), float(y_mean - slope * x_mean), first, last)


def power_law_exponent(eigenvalues: Float[Tensor, " mode"], *, first: int = 12, last: int = 100) -> float:
    """alpha of l_i ~ i^-alpha over these ranks (`fit_power_law`): large is a fast decay, few directions.

    >>> round(power_law_exponent(torch.arange(1.0, 201.0) ** -1.5), 6)
    1.5
    """
    return fit_power_law(eigenvalues, first=first, last=last).exponent


def alpha_req(features: Float[Tensor, "sample d"], *, first: int = 12, last: int = 100) -> float:
    """alpha of the centred covariance's spectrum. Source: `representation-geometry`, alpha-ReQ."""
    return power_law_exponent(covariance_eigenvalues(features), first=first, last=last)


class StreamingCovariance:
    """Covariance of vectors that come in batches, in O(d^2) memory, float64; equal to that of all of them at once (Chan et al. 1979).

    >>> seen = StreamingCovariance(3)
    >>> seen.update(torch.randn(1000, 3)).update(torch.randn(10, 3)).count
    1010
    """

    def __init__(self, d: int, *, device: torch.device | str = "cpu"):
        if d < 1:
            raise ValueError(f"StreamingCovariance: d must be at least 1. Got {d}.")
        self.count = 0
        self.mean = torch.zeros(d, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(d, d, dtype=torch.float64, device=device)

    def update(self, x: Float[Tensor, "*sample d"]) -> "StreamingCovariance":
        """Takes in more vectors; returns itself. Raises ValueError for another width or a number that is not finite, and keeps what it had."""
        x = x.detach().reshape(-1, x.shape[-1]).to(self.mean.dtype)
        if x.shape[1] != len(self.mean):
            raise ValueError(f"StreamingCovariance: vectors must have {len(self.mean)} entries. Got {x.shape[1]}.")
        if not len(x):
            return self
        if bad := int((~x.isfinite()).any(-1).sum()):
            raise ValueError(f"StreamingCovariance: {bad} of {len(x)} vectors hold NaN or inf. Select the others first: x[x.isfinite().all(-1)].")
        mean = x.mean(0)
        apart = x - mean
        return self._join(len(x), mean, apart.mT @ apart)

    def merge(self, other: "StreamingCovariance") -> "StreamingCovariance":
        """Takes in everything that the other has seen; returns itself. Raises ValueError for another width."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"StreamingCovariance: widths must agree. Got {len(self.mean)} and {len(other.mean)}.")
        return self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> "StreamingCovariance":
        if count:
            total, apart = self.count + count, mean - self.mean
            self.scatter += scatter + torch.outer(apart, apart) * (self.count * count / total)
            self.mean = self.mean + apart * (count / total)
            self.count = total
        return self

    def covariance(self) -> Float[Tensor, "d d"]:
        """Divisor count - 1. Raises ValueError before the second vector."""
        if self.count < 2:
            raise ValueError(f"StreamingCovariance: a covariance needs at least two vectors. Got {self.count}.")
        return self.scatter / (self.count - 1)

    def eigenvalues(self) -> Float[Tensor, " d"]:
        """Largest first; what rounding makes negative is 0."""
        return torch.linalg.eigvalsh(self.covariance()).flip(-1).clamp(min=0.0)


# --- density matrices


def von_neumann_entropy(covariance: Float[Tensor, "*batch d d"], *, unit: Unit = "nats") -> Float[Tensor, "*batch"]:
    """S(rho) = -tr rho ln rho of rho = covariance / trace, in nats (or bits), in [0, ln d]; exp of it is the effective dimension.

    Gradient dS/dcovariance = -(ln rho + S) / trace, also where eigenvalues coincide; directions whose share is below the dtype's rounding have
    none (it is infinite at 0). The covariance is taken to be symmetric. NaN where the trace is 0. Source: `koopman-information`, method.
    """
    values = torch.linalg.eigvalsh(_wide(covariance))
    shares = values / values.sum(-1, keepdim=True)
    least = torch.finfo(shares.dtype).eps * shares.shape[-1]
    return shannon(torch.where(shares < least, 0.0, shares) + 0 * shares.detach(), unit=unit)


def latent_entropy(states: Float[Tensor, "*sample d"], *, epsilon: float = 1e-8) -> Float[Tensor, ""]:
    """Von Neumann entropy of the states' centred covariance as the paper's code takes it: + `epsilon` on the diagonal, shares clamped at `epsilon`.

    In [0, ln d], nats. Clamped shares get no gradient. Maximise it to keep modes alive: subtract it from a loss that is minimised (the
    released training adds it, which does the opposite). Raises ValueError for fewer than two states. Source: `koopman-information`.
    """
    x = _wide(states).reshape(-1, states.shape[-1])
    if len(x) < 2:
        raise ValueError(f"latent_entropy: at least two states are needed. Got {list(states.shape)}.")
    x = x - x.mean(0)
    sigma = x.mT @ x / (len(x) - 1) + epsilon * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    shares = torch.linalg.eigvalsh(sigma / sigma.trace()).clamp(min=epsilon)
    return torch.special.entr(shares).sum()


# --- conditioning of matrices


def condition_number(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch"]:
    """s_1 / s_r, r = min(rows, columns), in [1, inf]; inf where the rank is deficient up to rounding, zeros included.

    Unchanged by a factor, by rotations and by transposition. It bounds how much volume a map keeps (`log_volume_bound`) and does not order maps
    by it (`log_volume` does); and it follows the aspect ratio, so compare with `gaussian_condition` of the same shape. Source: `kappatune`.
    """
    values = torch.linalg.svdvals(_wide(matrix))
    return torch.where(_full_rank(values, matrix), values[..., 0] / values[..., -1], math.inf)


def log_volume(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch"]:
    """(1/r) sum ln(s_i sqrt(r) / |W|_F), in (-inf, 0], nats per dimension: how much less entropy a Gaussian keeps than under an isometry of that norm.

    0 for an isometry, -inf where the rank is deficient. Unchanged by a factor and rotations. Source: `kappatune`, honest small check.
    """
    values = torch.linalg.svdvals(_wide(matrix))
    spread = values / values.square().mean(-1, keepdim=True).sqrt()
    return torch.where(_full_rank(values, matrix), spread.log().mean(-1), -math.inf)


def _full_rank(values: Tensor, matrix: Tensor) -> Tensor:
    return values[..., -1] > values[..., 0] * max(matrix.shape[-2:]) * torch.finfo(values.dtype).eps


def log_volume_bound(condition: float, r: int) -> float:
    """The largest log-volume of r singular values of this condition number: ln(2 k / (1 + k^2)) / r. Source: `kappatune`, derived there.

    Raises ValueError for a condition below 1 or r below 2.
    """
    if not condition >= 1 or r < 2:
        raise ValueError(f"log_volume_bound: condition must be at least 1 and r at least 2. Got {condition} and {r}.")
    return (math.log(2) - math.log(condition) - math.log1p(condition**-2)) / r if condition < math.inf else -math.inf


def gaussian_condition(rows: int, columns: int) -> float:
    """The condition number that independent Gaussian entries of this shape have, for large shapes: a matrix with nothing learnt.

    (1 + sqrt q) / (1 - sqrt q), q the aspect ratio; exp(ln n + 1.537) if square (Edelman 1988). Raises ValueError for a size below 1.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"gaussian_condition: sizes must be at least 1. Got {rows} and {columns}.")
    if rows == columns:
        return rows * math.exp(1.537) if rows > 1 else 1.0
    root = math.sqrt(min(rows, columns) / max(rows, columns))
    return (1 + root) / (1 - root)


def best_conditioned(conditions: Mapping[str, float], count: int) -> list[str]:
    """The names of the `count` smallest finite condition numbers, smallest first, ties in the order given. Source: `kappatune`, selection."""
    return sorted((name for name, value in conditions.items() if math.isfinite(value)), key=conditions.__getitem__)[:count]
