"""Differential entropy and mutual information from samples: nearest neighbours, kernels, adaptive bins. Pure functions.

The last axes are [sample, dim]; leading axes are layers, taken together. Computed in float64, in nats, a block of `block` samples at a time:
memory grows with block * n, not n^2. Symbols: n samples in d dimensions, eps_i the distance from sample i to its k-th neighbour
without itself, c_d = 1 for the Chebyshev metric (boxes) and the volume of the unit ball / 2^d for the Euclidean one, psi the digamma function.

For a deterministic network the true information between input and layer is infinite or H(X): every finite value is a property of the noise or
the bins imposed. Report the estimator and its scale with the number (sheet `adaptive-mi`, pitfall 1).
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isentrope.measure.symbols import symbol_entropy

Metric = Literal["chebyshev", "euclidean"]
Kernel = Literal["box", "gaussian"]
BLOCK = 1024
DISTINCT_LIMIT = 0.95  # above this share of distinct rows a plug-in entropy says ln n and no more


# --- nearest neighbours


def knn_entropy(
    samples: Float[Tensor, "*layer sample dim"], *, k: int = 4, metric: Metric = "chebyshev", released: bool = False, block: int = BLOCK
) -> Float[Tensor, "*layer"]:
    """Kozachenko-Leonenko differential entropy, in nats: psi(n) - psi(k) + ln c_d + (d/n) sum_i ln(2 eps_i).

    Consistent; shifts leave it, a linear map by A adds ln |det A| only in the limit (a scaling by a > 0 adds d ln a exactly). More than k equal samples make it
    -inf, as they should: the distribution has an atom. `released=True`: those points count 0, psi and ln c_d included. Differentiable where finite.
    Raises ValueError unless 1 <= k < n. Source: Kraskov et al. 2004, arXiv cond-mat/0305641, Eq. 20; vectors README, `information-estimators`.
    """
    x = _points("knn_entropy", samples, k)
    n, d = x.shape[-2:]
    log_eps = _neighbour_distance(x, x, k, metric, itself=True, block=block).log()
    local = math.log(2) * d + d * log_eps + _psi(n) - _psi(k) + _log_volume(d, metric)
    return (torch.where(log_eps == -torch.inf, 0, local) if released else local).mean(-1)


def knn_cross_entropy(
    samples: Float[Tensor, "*layer sample dim"],
    other: Float[Tensor, "*layer reference dim"],
    *,
    k: int = 4,
    metric: Metric = "chebyshev",
    block: int = BLOCK,
) -> Float[Tensor, "*layer"]:
    """Cross-entropy of the samples' distribution against the other's, in nats: psi(m) - psi(k) + ln c_d + (d/n) sum_i ln(2 eps_i), to the k-th of m.

    Less `knn_entropy` it estimates the KL divergence. A common package divides the sum by m, not n: wrong for unequal sizes.
    Raises ValueError unless 1 <= k <= m. Source: as `knn_entropy`; Perez-Cruz 2008 (KL from neighbours).
    """
    x, y = _points("knn_cross_entropy", samples, 0), _points("knn_cross_entropy", other, k - 1)
    d = x.shape[-1]
    eps = _neighbour_distance(x, y, k, metric, itself=False, block=block)
    return _psi(y.shape[-2]) - _psi(k) + _log_volume(d, metric) + d * (2 * eps).log().mean(-1)


def knn_renyi_entropy(
    samples: Float[Tensor, "*layer sample dim"], order: float, *, k: int = 4, tsallis: bool = False, released: bool = False, block: int = BLOCK
) -> Float[Tensor, "*layer"]:
    """Renyi (or Tsallis) differential entropy of an order q < k + 1, in nats (Tsallis: without unit), Euclidean neighbours.

    I = mean [(n-1) C V_d eps^d]^(1-q), C = (Gamma(k) / Gamma(k+1-q))^(1/(1-q)); Renyi ln I / (1-q), Tsallis (1-I) / (q-1); q = 1: the mean of
    ln((n-1) e^-psi(k) V_d eps^d). I has no finite estimate for q >= k + 1: ValueError, or 0 with `released=True` at q = k + 1.
    Source: Leonenko, Pronzato & Savani 2008, arXiv 0810.5302; vectors README, `information-estimators`.
    """
    x = _points("knn_renyi_entropy", samples, k)
    if released and order == k + 1:
        return x.new_zeros(x.shape[:-2])
    if not 0 < order < k + 1:
        raise ValueError(f"knn_renyi_entropy: order must lie in (0, k + 1). Got order={order}, k={k}. Take more neighbours: k > order - 1.")
    n, d = x.shape[-2:]
    log_ball = _log_volume(d, "euclidean") + d * math.log(2)
    spread = math.log(n - 1) + log_ball + d * _neighbour_distance(x, x, k, "euclidean", itself=True, block=block).log()
    if order == 1:
        return spread.mean(-1) - _psi(k)
    log_mean = ((1 - order) * spread).logsumexp(-1) - math.log(n) + math.lgamma(k) - math.lgamma(k + 1 - order)
    return -log_mean.expm1() / (order - 1) if tsallis else log_mean / (1 - order)


def ksg_mutual_information(
    x: Float[Tensor, "*layer sample xdim"],
    y: Float[Tensor, "*layer sample ydim"],
    *,
    k: int = 4,
    variant: Literal[1, 2] = 1,
    released: bool = False,
    block: int = BLOCK,
) -> Float[Tensor, "*layer"]:
    """Mutual information of two samples by Kraskov, Stoegbauer and Grassberger, in nats; Chebyshev metric. No gradient.

    1: psi(k) + psi(n) - mean[psi(n_x + 1) + psi(n_y + 1)], n_x the others strictly nearer in x than the k-th joint neighbour.
    2: psi(k) - 1/k + psi(n) - mean[psi(n_x) + psi(n_y)], n_x the others not farther in x than the farthest IN X of the k joint neighbours.
    `released=True` (variant 2): a common package takes the joint distance for both and counts the point itself: low by about 1/k (k = 1: -0.8 for 0.34).
    Both estimators are near 0, not exactly, for independent samples and can be negative. Invariant to monotone maps of x or y only in the limit;
    to a common scaling exactly. Raises ValueError unless 1 <= k < n. Source: Kraskov et al. 2004, arXiv cond-mat/0305641, Eq. 8 and 9.
    """
    if variant not in (1, 2) or (released and variant == 1):
        raise ValueError(f"ksg_mutual_information: variant must be 1 or 2, released=True of 2 alone. Got variant={variant}, released={released}.")
    a, b = _pair("ksg_mutual_information", x, y, k)
    n, terms = a.shape[-2], []
    for rows in _blocks(n, block):
        near = torch.stack((_distances(a, a, rows, "chebyshev", itself=True), _distances(b, b, rows, "chebyshev", itself=True)))
        joint = near.amax(0)
        if variant == 1 or released:
            eps = joint.topk(k, -1, largest=False).values[..., -1:].unsqueeze(0)
        else:
            neighbours = joint.topk(k, -1, largest=False).indices
            eps = near.gather(-1, neighbours.expand(2, *neighbours.shape)).amax(-1, keepdim=True)
        inside = near < eps if variant == 1 else near <= eps
        count = inside.sum(-1) + (1 if variant == 1 or released else 0)
        terms.append(torch.digamma(count.double()).sum(0))
    return _psi(k) - (0 if variant == 1 else 1 / k) + _psi(n) - torch.cat(terms, -1).mean(-1)


def ksg_conditional_mutual_information(
    x: Float[Tensor, "*layer sample xdim"],
    y: Float[Tensor, "*layer sample ydim"],
    z: Float[Tensor, "*layer sample zdim"],
    *,
    k: int = 4,
    block: int = BLOCK,
) -> Float[Tensor, "*layer"]:
    """I(x; y | z), in nats: psi(k) + mean[psi(n_z + 1) - psi(n_xz + 1) - psi(n_yz + 1)], counts strictly nearer than the k-th joint neighbour; Chebyshev.

    No gradient. Source: Frenzel & Pompe 2007 (Phys. Rev. Lett. 99, 204101); vectors README, `information-estimators`.
    """
    a, b = _pair("ksg_conditional_mutual_information", x, y, k)
    c, terms = z.detach().double(), []
    for rows in _blocks(a.shape[-2], block):
        da, db, dc = (_distances(part, part, rows, "chebyshev", itself=True) for part in (a, b, c))
        dac, dbc = da.maximum(dc), db.maximum(dc)
        eps = dac.maximum(dbc).topk(k, -1, largest=False).values[..., -1:]
        inside = [torch.digamma((near < eps).sum(-1).double() + 1) for near in (dc, dac, dbc)]
        terms.append(inside[0] - inside[1] - inside[2])
    return _psi(k) + torch.cat(terms, -1).mean(-1)


# --- kernels


def kernel_log_density(
    points: Float[Tensor, "*layer point dim"],
    samples: Float[Tensor, "*layer sample dim"],
    *,
    bandwidth: float,
    kernel: Kernel = "gaussian",
    block: int = BLOCK,
) -> Float[Tensor, "*layer point"]:
    """ln of the kernel density of the samples at the points, in nats; -inf where a box holds no sample.

    "box": a cube of full side `bandwidth` around the point, its border included. "gaussian": the covariance is bandwidth^2 times that of the samples
    (n - 1 in its denominator). A point that is itself a sample is counted. Source: vectors README, `information-estimators`.
    """
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"kernel_log_density: bandwidth must be positive and finite. Got {bandwidth}.")
    if kernel not in ("box", "gaussian"):
        raise ValueError(f"kernel_log_density: kernel must be 'box' or 'gaussian'. Got {kernel!r}.")
    at, x = _points("kernel_log_density", points, 0), _points("kernel_log_density", samples, 1 if kernel == "gaussian" else 0)
    n, d = x.shape[-2:]
    if kernel == "box":
        counts = [(_distances(at, x, rows, "chebyshev") <= bandwidth / 2).sum(-1) for rows in _blocks(at.shape[-2], block)]
        return torch.cat(counts, -1).double().log() - math.log(n) - d * math.log(bandwidth)
    centred = x - x.mean(-2, keepdim=True)
    root = bandwidth * torch.linalg.cholesky(centred.mT @ centred / (n - 1))  # of the kernel's covariance
    whitened, at = (torch.linalg.solve_triangular(root.mT, part, upper=True, left=False) for part in (x, at))
    sums = [(-_distances(at, whitened, rows, "euclidean").square() / 2).logsumexp(-1) for rows in _blocks(at.shape[-2], block)]
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    return torch.cat(sums, -1) - math.log(n) - d / 2 * math.log(2 * math.pi) - log_det


def kernel_entropy(
    samples: Float[Tensor, "*layer sample dim"],
    *,
    bandwidth: float,
    kernel: Kernel = "gaussian",
    against: Float[Tensor, "*layer reference dim"] | None = None,
    released: bool = False,
    block: int = BLOCK,
) -> Float[Tensor, "*layer"]:
    """Resubstitution entropy, in nats: -mean_i ln f(x_i), f the kernel density of the samples themselves or of `against` (then a cross-entropy).

    Each sample counts in its own density, which biases it low. Where the density is 0 (a box against other samples) the
    cross-entropy is inf; `released=True` drops those points and divides by the rest.
    """
    log_density = kernel_log_density(samples, samples if against is None else against, bandwidth=bandwidth, kernel=kernel, block=block)
    if not released:
        return -log_density.mean(-1)
    seen = log_density > -torch.inf
    return -torch.where(seen, log_density, 0).sum(-1) / seen.sum(-1)


@dataclass(frozen=True)
class Bounds:
    """A lower and an upper bound of one quantity per layer, in nats."""

    lower: Float[Tensor, "*layer"]
    upper: Float[Tensor, "*layer"]


def kde_information(
    samples: Float[Tensor, "*layer sample dim"],
    variance: Float[Tensor, "*layer"] | float,
    *,
    labels: Int[Tensor, " sample"] | None = None,
    block: int = BLOCK,
) -> Bounds:
    """Bounds on I(T; X) for T = samples + N(0, variance I), X uniform over the n samples, in nats; with labels the difference of bounds for I(T; Y).

    I = -mean_i ln mean_j exp(-|t_i - t_j|^2 / (s v)), s = 2 (upper, KL) and 8 (lower, Bhattacharyya); 0 <= lower <= upper <= ln n; ln n as v -> 0, 0
    as v -> inf. With labels: I(all) - sum_y p(y) I(class y), bound by bound: the two fields then are estimates and need not enclose the truth.
    Scaling samples by a and the variance by a^2 changes nothing (`adaptive_variance`). Differentiable.
    Source: Kolchinsky & Tracey 2017, arXiv 1706.02419; sheet `adaptive-mi` (arXiv 1902.09037).
    """
    t = _points("kde_information", samples, 0)
    v = torch.as_tensor(variance, dtype=torch.float64, device=t.device)
    if not ((v > 0) & v.isfinite()).all():
        raise ValueError(f"kde_information: variance must be positive and finite. Got {v.tolist()}. A layer of zeros has no adaptive one.")
    found = []
    for scale in (8.0, 2.0):
        whole, within = [], []
        for rows in _blocks(t.shape[-2], block):
            exponent = -_distances(t, t, rows, "euclidean").square() / (scale * v[..., None, None])
            whole.append(exponent.logsumexp(-1) - math.log(t.shape[-2]))
            if labels is not None:
                same = labels[rows].unsqueeze(-1) == labels
                within.append(exponent.masked_fill(~same, -torch.inf).logsumexp(-1) - same.sum(-1).double().log())
        information = -torch.cat(whole, -1).mean(-1)
        found.append(information + torch.cat(within, -1).mean(-1) if labels is not None else information)
    return Bounds(*found)


def kde_entropy(samples: Float[Tensor, "*layer sample dim"], variance: Float[Tensor, "*layer"] | float, *, block: int = BLOCK) -> Bounds:
    """Bounds on the differential entropy of the mixture of n Gaussians N(t_i, variance I), in nats: those of `kde_information` + (d/2) ln(2 pi e v).

    Source: Kolchinsky & Tracey 2017, arXiv 1706.02419.
    """
    found = kde_information(samples, variance, block=block)
    noise = samples.shape[-1] / 2 * (math.log(2 * math.pi * math.e) + torch.as_tensor(variance, dtype=torch.float64, device=samples.device).log())
    return Bounds(found.lower + noise, found.upper + noise)


def adaptive_variance(samples: Float[Tensor, "*layer sample dim"], *, share: float = 1e-3) -> Float[Tensor, "*layer"]:
    """Kernel variance share * (max |t|)^2 per layer, in the samples' unit squared: the rule under which a common scale changes no bound.

    The paper's constant of proportionality is not known; the sheet advises 1e-4 .. 1e-2. Source: sheet `adaptive-mi`, hyper-parameters (inferred).
    """
    if not share > 0:
        raise ValueError(f"adaptive_variance: share must be positive. Got {share}.")
    return share * samples.double().abs().amax((-1, -2)).square()


# --- bins


@dataclass(frozen=True)
class BinnedInformation:
    """Per layer, in nats: I(T; X) = H(T), and I(T; Y) with labels (else None). `distinct`: share of distinct rows; near 1 the first says ln n, no more."""

    input: Float[Tensor, "*layer"]
    label: Float[Tensor, "*layer"] | None
    distinct: Float[Tensor, "*layer"]


def adaptive_bins(
    samples: Float[Tensor, "sample dim"], *, bins: int = 30, low: float | None = 0.0, rule: Literal["distinct", "mass"] = "distinct"
) -> Int[Tensor, "sample dim"]:
    """The bin of each activation, edges shared by all units of the layer and adapted to its values.

    "distinct" (EBAB): edges low, u[floor(j |u| / bins)] for j < bins, u[-1], where u are the sorted distinct values other than `low` (0 for ReLU, whose
    exact zeros get a bin of their own; just below the least value for tanh or ELU; None: no such edge). The largest value is a bin by itself.
    "mass": edges halfway between neighbours at equal counts of ALL values (`low` is not used). Any strictly increasing map that fixes `low` changes no bin of
    "distinct". Source: sheet `adaptive-mi`, method (arXiv 1902.09037; the edges of the released code).
    """
    if bins < 1 or rule not in ("distinct", "mass"):
        raise ValueError(f"adaptive_bins: bins must be at least 1 and rule 'distinct' or 'mass'. Got bins={bins}, rule={rule!r}.")
    values = samples.detach().double()
    if rule == "mass":
        ranked = values.flatten().sort().values
        cuts = torch.arange(1, bins, device=values.device) * ranked.numel() // bins
        cuts = cuts[cuts > 0]
        return torch.bucketize(values, (ranked[cuts - 1] + ranked[cuts]) / 2, right=True)
    distinct = values.unique()
    edge = values.new_empty(0) if low is None else values.new_tensor([low])
    if low is not None:
        distinct = distinct[distinct != low]
    if distinct.numel():
        inner = torch.arange(bins, device=values.device) * distinct.numel() // bins
        edge = torch.cat((edge, distinct[inner], distinct[-1:]))
    return torch.bucketize(values, edge.contiguous(), right=True) - 1


def binned_information(
    samples: Float[Tensor, "*layer sample dim"],
    *,
    bins: int = 30,
    low: float | None = 0.0,
    labels: Int[Tensor, " sample"] | None = None,
    rule: Literal["distinct", "mass"] = "distinct",
) -> BinnedInformation:
    """I(T; X) and I(T; Y) of a deterministic layer by adaptive bins, in nats: plug-in entropies of distinct binned ROWS; all inputs taken as distinct.

    H(T) and H(T) - sum_y p(y) H(T | y), with the layer's edges for every class; 0 <= I(T; Y) <= I(T; X) <= ln n. Permuting samples or units changes nothing.
    Warns when more than 95 % of a layer's rows are distinct: then the number is ln n of any layer. Source: sheet `adaptive-mi`, method.
    """
    layers = samples.reshape(-1, *samples.shape[-2:])
    n, found = samples.shape[-2], []
    for layer in layers:
        symbols = adaptive_bins(layer, bins=bins, low=low, rule=rule)
        within = torch.zeros((), dtype=torch.float64, device=samples.device)
        if labels is not None:
            for name in labels.unique():
                within = within + (labels == name).double().mean() * symbol_entropy(symbols[labels == name])
        whole = symbol_entropy(symbols)
        found.append(torch.stack((whole, whole - within, whole.new_tensor(symbols.unique(dim=0).shape[0] / n))))
    table = torch.stack(found).unflatten(0, samples.shape[:-2]) if samples.ndim > 2 else found[0]
    if (table[..., 2] > DISTINCT_LIMIT).any():
        warnings.warn(f"binned_information: more than {DISTINCT_LIMIT:.0%} of the rows are distinct, I(T; X) says ln n. Take fewer bins.", stacklevel=2)
    return BinnedInformation(table[..., 0], table[..., 1] if labels is not None else None, table[..., 2])


def _psi(count: int) -> float:
    return float(torch.digamma(torch.tensor(count, dtype=torch.float64)))


def _log_volume(dims: int, metric: Metric) -> float:
    """ln c_d: volume of the unit ball over 2^d."""
    if metric == "chebyshev":
        return 0.0
    if metric != "euclidean":
        raise ValueError(f"samples: metric must be 'chebyshev' or 'euclidean'. Got {metric!r}.")
    return dims / 2 * math.log(math.pi) - math.lgamma(dims / 2 + 1) - dims * math.log(2)


def _points(who: str, samples: Tensor, k: int) -> Tensor:
    if not (0 <= k < samples.shape[-2]):
        raise ValueError(f"{who}: needs more samples than neighbours. Got {samples.shape[-2]} samples, k={k}. Draw more, or lower k.")
    return samples.double()


def _pair(who: str, x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"{who}: k must be at least 1. Got {k}.")
    return _points(who, x.detach(), k), y.detach().double()


def _blocks(n: int, block: int) -> Iterator[slice]:
    if block < 1:
        raise ValueError(f"samples: block must be at least 1 sample. Got {block}.")
    return (slice(start, min(start + block, n)) for start in range(0, n, block))


def _distances(x: Tensor, y: Tensor, rows: slice, metric: Metric, *, itself: bool = False) -> Tensor:
    """From these rows of x to all of y. `itself`: y is x, and the distance to itself is inf. Not by products, whose rounding would part equal points."""
    far = torch.cdist(x[..., rows, :], y, p=math.inf if metric == "chebyshev" else 2.0, compute_mode="donot_use_mm_for_euclid_dist")
    if not itself:
        return far
    index = torch.arange(y.shape[-2], device=x.device)
    return far.masked_fill(index[rows].unsqueeze(-1) == index, torch.inf)


def _neighbour_distance(x: Tensor, y: Tensor, k: int, metric: Metric, *, itself: bool, block: int) -> Tensor:
    if k < 1:
        raise ValueError(f"samples: k must be at least 1. Got {k}.")
    return torch.cat([_distances(x, y, rows, metric, itself=itself).topk(k, -1, largest=False).values[..., -1] for rows in _blocks(x.shape[-2], block)], -1)
