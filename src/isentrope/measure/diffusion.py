"""Diffusion spectral entropy of a set of vectors, and what it says about labels; the adjacency, matrix and binned entropies beside it.

Vectors x [sample d] are the nodes of a graph with Gaussian weights G_ij = exp(-|x_i - x_j|^2 / 2 sigma^2), q_i = sum_j G_ij. The eigenvalues of
K = G_ij / sqrt(q_i q_j) are those of the random walk diag(q)^-1 G; raised to the time t and normalised they are the shares whose Shannon
entropy is the DSE. It grows with the number of samples and with the bandwidth against the scale of x: compare at equal counts, and
with sigma fixed to a share of the median distance where weights may grow. Nats by default (the released code has bits); nothing is differentiated.

Source: sheet `diffusion-spectral-entropy` (arXiv 2312.04823, definitions IV.1 and IV.2; released code). `released=True` adds the machine epsilon
to every probability, inside and outside the logarithm, as that code does.
"""

from typing import Literal

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from isentrope.measure.distribution import Unit, shannon
from isentrope.measure.spectrum import spectral_entropy

Adjacency = Literal["gaussian", "normalised"]


def median_distance(x: Float[Tensor, "sample d"]) -> Float[Tensor, ""]:
    """The median distance of two different samples: a bandwidth that follows the scale of x. Raises ValueError for fewer than two samples."""
    if len(x) < 2:
        raise ValueError(f"median_distance: at least two samples are needed. Got {len(x)}.")
    return torch.nn.functional.pdist(x.detach().double()).median()


def gaussian_kernel(x: Float[Tensor, "sample d"], sigma: float, *, anisotropic: float | None = None) -> Float[Tensor, "sample sample"]:
    """K, symmetric, float64: its largest eigenvalue is 1 and none is below 0.

    anisotropic: the density exponent a of the paper's text, which divides G by (q_i q_j)^a before the walk is taken; None and 0 are the plain
    random walk, which is what the released code computes. Raises ValueError for a sigma that is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"gaussian_kernel: sigma must be > 0. Got {sigma}. median_distance(x) follows the scale of x.")
    x = x.detach().double()
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.exp(-apart.square() / (2 * sigma**2))
    if anisotropic:
        density = weights.sum(1) ** anisotropic
        weights = weights / density.unsqueeze(1) / density
    degree = weights.sum(1).rsqrt()
    return weights * degree.unsqueeze(1) * degree


def diffusion_entropy(
    x: Float[Tensor, "sample d"],
    sigma: float | None = None,
    *,
    time: float = 1.0,
    anisotropic: float | None = None,
    unit: Unit = "nats",
    released: bool = False,
) -> Float[Tensor, ""]:
    """DSE in [0, ln samples], nats (or bits): ln k for k far-apart clusters at large times, 0 at a huge bandwidth, ln samples at a tiny one.

    sigma: the bandwidth; None takes the median distance (the code's own default is 10, whatever the scale). O(samples^2) memory and O(samples^3) time:
    draw a subset of a few thousand first. Unchanged by rotation, translation, order, and a common factor of x and sigma. No samples: NaN.
    Raises ValueError for a sigma or time that is not positive.
    """
    if not time > 0:
        raise ValueError(f"diffusion_entropy: time must be > 0. Got {time}.")
    if len(x) == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    if sigma is None:
        sigma = float(median_distance(x)) if len(x) > 1 else 1.0
        sigma = sigma or 1.0  # identical samples: any bandwidth
    values = torch.linalg.eigvalsh(gaussian_kernel(x, sigma, anisotropic=anisotropic))
    return _entropy(values.abs() ** time, unit, released)


def _entropy(sizes: Tensor, unit: Unit, released: bool) -> Tensor:
    """Entropy of the sizes' shares."""
    if not released:
        return spectral_entropy(sizes, unit=unit)
    shares = sizes / sizes.sum() + torch.finfo(sizes.dtype).eps
    return -(shares * (shares.log() if unit == "nats" else shares.log2())).sum()


def adjacency_entropy(
    x: Float[Tensor, "sample d"], sigma: float, *, kind: Adjacency = "normalised", unit: Unit = "nats", released: bool = False
) -> Float[Tensor, ""]:
    """Entropy of the spectrum of the weights G themselves ("gaussian") or of K ("normalised", the DSE at time 1); a baseline of the paper."""
    kernel = gaussian_kernel(x, sigma)
    if kind == "gaussian":
        x = x.detach().double()
        kernel = torch.exp(-torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * sigma**2))
    return _entropy(torch.linalg.eigvalsh(kernel).abs(), unit, released)


def neighbour_entropy(x: Float[Tensor, "sample d"], neighbours: int = 10, *, unit: Unit = "nats", released: bool = False) -> Float[Tensor, ""]:
    """Entropy of the spectrum of the graph of nearest neighbours, itself among them, not symmetrised: of the moduli of its eigenvalues.

    Samples at the distance of the last neighbour all count. Many eigenvalues are defective, so the fifth digit already depends on the solver:
    this is NumPy's, as in the released code. Raises ValueError unless 1 <= neighbours <= samples.
    """
    if not 1 <= neighbours <= len(x):
        raise ValueError(f"neighbour_entropy: neighbours must be between 1 and the samples, {len(x)}. Got {neighbours}.")
    x = x.detach().double()
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    near = (apart <= apart.kthvalue(neighbours, dim=1, keepdim=True).values).double()
    sizes = numpy.abs(numpy.linalg.eigvals(near.cpu().numpy()))
    return _entropy(torch.from_numpy(sizes), unit, released)


def matrix_entropy(x: Float[Tensor, "sample d"], sigma: float, *, unit: Unit = "nats", released: bool = False) -> Float[Tensor, ""]:
    """Entropy of the entries of the row-stochastic diag(rowsum K)^-1 K over their total; a baseline of the paper."""
    kernel = gaussian_kernel(x, sigma)
    return _entropy((kernel / kernel.sum(1, keepdim=True)).flatten(), unit, released)


def binned_entropy(x: Float[Tensor, "sample d"], bins: int = 2, *, unit: Unit = "nats") -> Float[Tensor, ""]:
    """Plug-in entropy of the rows after cutting each dimension's range into equal bins, in [0, ln samples]; a constant dimension is one bin.

    The classic estimate that saturates at ln samples in many dimensions. Raises ValueError for no samples or fewer than one bin.
    """
    if bins < 1 or len(x) == 0:
        raise ValueError(f"binned_entropy: at least one bin and one sample are needed. Got {bins} bins and {len(x)} samples.")
    x = x.detach().double()
    low, high = x.amin(0), x.amax(0)
    span = torch.where(high > low, high - low, 1.0)
    cells = ((x - low) / span * bins).floor().clamp(max=bins - 1)
    counts = torch.unique(cells, dim=0, return_counts=True)[1].double()
    return shannon(counts / counts.sum(), unit=unit)


# --- information about labels


def scalar_bins(values: Float[Tensor, " sample"], bins: int = 10) -> Int[Tensor, " sample"]:
    """Equal-width bins of a scalar over its range, numbered from 1; a constant is all in the first. Raises ValueError for fewer than one bin."""
    if bins < 1:
        raise ValueError(f"scalar_bins: at least one bin is needed. Got {bins}.")
    low, high = values.amin(), values.amax()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=values.device)[1:-1]
    share = (values.double() - low) / torch.where(high > low, high - low, 1.0)
    return torch.bucketize(share, edges, right=True) + 1


def random_subsets(classes: Int[Tensor, " sample"], *, repeats: int = 5, seed: int = 0) -> dict[int, Int[Tensor, "repeat member"]]:
    """For every class size, `repeats` sets of as many samples drawn without replacement from all of them; the same for equal sizes."""
    found = {}
    for size in sorted(set(torch.unique(classes, return_counts=True)[1].tolist())):
        generator = torch.Generator().manual_seed(seed)
        found[size] = torch.stack([torch.randperm(len(classes), generator=generator)[:size] for _ in range(repeats)])
    return found


def diffusion_information(
    x: Float[Tensor, "sample d"],
    classes: Int[Tensor, " sample"],
    sigma: float | None = None,
    *,
    time: float = 1.0,
    neighbours: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    subsets: dict[int, Int[Tensor, "repeat member"]] | None = None,
    unit: Unit = "nats",
    released: bool = False,
) -> Float[Tensor, ""]:
    """DSMI: sum_y n_y / N (mean DSE of random subsets of n_y samples - DSE of class y), nats (or bits); about 0 for labels that say nothing.

    Size-matched, because the DSE grows with the number of samples; an estimate, which can fall below 0. A class of one sample adds 0.
    sigma: None takes the median distance of all samples. neighbours: the neighbour graph's entropy instead of the DSE (sigma and time unused).
    subsets: by class size, instead of `repeats` drawn from `seed`. Raises ValueError where classes do not fit.
    """
    if classes.shape != x.shape[:1] or len(x) < 2:
        raise ValueError(f"diffusion_information: needs one class per sample and two samples. Got x {list(x.shape)} and classes {list(classes.shape)}.")
    sigma = float(median_distance(x)) or 1.0 if sigma is None else sigma
    subsets = random_subsets(classes, repeats=repeats, seed=seed) if subsets is None else subsets

    def entropy(part: Tensor) -> Tensor:
        if neighbours is not None:
            return neighbour_entropy(part, min(neighbours, len(part)), unit=unit, released=released)
        return diffusion_entropy(part, sigma, time=time, unit=unit, released=released)

    expected = {size: torch.stack([entropy(x[rows]) for rows in drawn]).mean() for size, drawn in subsets.items()}
    total = torch.zeros((), dtype=torch.float64)
    for label in torch.unique(classes):
        members = x[classes == label]
        if len(members) > 1:
            total = total + len(members) / len(x) * (expected[len(members)] - entropy(members))
    return total
