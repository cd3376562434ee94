"""What a layer's code says: effective features of sparse codes, on/off patterns of ReLU units. Pure functions.

Two readings of activations z[sample, unit]. By mass: p_i ~ mean |z_i|, and exp H(p) features are in use (sheet `superposition-compression`). By
sign: the pattern z > 0 is a binary code, which samples share or do not (sheet `activation-hash`). Padding and first tokens dominate sums: mask them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.measure.distribution import shannon

Eps = Literal["adversarial", "dropout", "pythia"]
WORD = 62  # bits packed into one int64
BLOCK = 256  # samples whose distances to all others are held at once


# --- effective features of a sparse code


@dataclass(frozen=True)
class SparseCode:
    """Features and reconstruction of a tied sparse autoencoder, in the units of the samples."""

    features: Float[Tensor, "*batch feature"]
    reconstruction: Float[Tensor, "*batch neuron"]


def tied_code(samples: Float[Tensor, "*batch neuron"], weight: Float[Tensor, "feature neuron"], bias: Float[Tensor, " feature"]) -> SparseCode:
    """z = ReLU(W x + b) and x' = W^T z, in the units of the samples: one dictionary both ways, no decoder bias. Differentiable.

    Source: arXiv 2512.13568; sheet `superposition-compression`, step 2.
    """
    features = torch.relu(samples @ weight.mT + bias)
    return SparseCode(features, features @ weight)


def sparse_code_loss(
    samples: Float[Tensor, "*batch neuron"], code: SparseCode, *, l1_coef: float = 0.1, variant: Literal["code", "paper"] = "code"
) -> Float[Tensor, ""]:
    """Squared error + l1_coef * |z|, in squared units of the samples; the mean over samples.

    "code": each term is a mean over its own entries, and `l1_coef` 0.1 belongs to this form; "paper": each is a sum over them (Eq. 5), whose
    coefficient for the same minimum is l1_coef * neurons / features. Raises ValueError for another variant. Source: arXiv 2512.13568, Eq. 5.
    """
    if variant not in ("code", "paper"):
        raise ValueError(f"sparse_code_loss: variant must be 'code' or 'paper'. Got {variant!r}.")
    error, size = _wide(samples - code.reconstruction).square(), _wide(code.features).abs()
    if variant == "paper":
        error, size = error.sum(-1), size.sum(-1)
    return error.mean() + l1_coef * size.mean()


def channel_samples(activations: Float[Tensor, "batch channel *position"]) -> Float[Tensor, "sample channel"]:
    """Every position of every image as a sample of its channels, in the units given. Source: sheet `superposition-compression`, step 1."""
    return activations.movedim(1, -1).flatten(0, -2)


def feature_mass(codes: Float[Tensor, "*layer sample feature"], *, mask: Bool[Tensor, "*layer sample"] | None = None) -> Float[Tensor, "*layer feature"]:
    """Mean |z_i| over the samples that count, in the units of the code: feature i's share of the mass before normalising (Eq. 6).

    Means over equally many samples average to that of the whole, so a stream needs one vector. NaN where no sample counts.
    Source: arXiv 2512.13568, Eq. 6.
    """
    size = _wide(codes).abs()
    if mask is None:
        return size.mean(-2)
    return torch.where(mask.unsqueeze(-1), size, 0).sum(-2) / mask.sum(-1, keepdim=True)


def feature_entropy(mass: Float[Tensor, "*layer feature"], *, released: Eps | None = None) -> Float[Tensor, "*layer"]:
    """Entropy of the features' shares of the mass, in nats, in [0, ln features]; -inf, ln of no feature, for a dictionary that is dead.

    `released`: the authors' three ways of keeping off ln 0. "adversarial" adds 1e-10 to the shares and renormalises, NaN if dead;
    "dropout" adds 1e-10 inside the logarithm; "pythia" adds 1e-12 to the shares in both places, not renormalised, NaN if dead.
    Differentiable. Raises ValueError for a negative mass or another `released`. Source: arXiv 2512.13568, Eq. 7; sheet `superposition-compression`, step 4.

    >>> feature_entropy(torch.tensor([3.0, 3.0, 0.0]))  # ln 2
    tensor(0.6931)
    """
    if released not in (None, "adversarial", "dropout", "pythia"):
        raise ValueError(f"feature_entropy: released must be 'adversarial', 'dropout', 'pythia' or None. Got {released!r}.")
    if (mass < 0).any():
        raise ValueError(f"feature_entropy: mass must not be negative. Got {float(mass.min()):.3g}. Take feature_mass of the codes, or norms.")
    m = _wide(mass)
    total = m.sum(-1, keepdim=True)
    dead = total == 0
    p = m / torch.where(dead, 1, total)
    if released == "adversarial":
        p = p + 1e-10
        p = p / p.sum(-1, keepdim=True)
    if released == "dropout":
        entropy = -(p * (p + 1e-10).log()).sum(-1)
    else:
        entropy = shannon(p + 1e-12 if released == "pythia" else p)
    return torch.where(dead.squeeze(-1), torch.nan if released in ("adversarial", "pythia") else -torch.inf, entropy)


def effective_features(mass: Float[Tensor, "*layer feature"], *, released: Eps | None = None) -> Float[Tensor, "*layer"]:
    """F = exp of `feature_entropy`, in features, in [1, active features]; 0 for a dictionary that is dead.

    The Hill number of order 1: at least exp of Renyi-2, unmoved by a common scale or an order of features; a feature split into equal halves
    multiplies it by 2^p_i. F / neurons is the paper's psi; psi > 1 it calls superposition, an interpretation: F is a perplexity and says nothing
    of linear independence, and it grows with the number of samples. Compare under one recipe and one set of samples. With the feature norms
    of a toy model's weights as mass it is the paper's ground truth. Differentiable; raises as `feature_entropy`. Source: arXiv 2512.13568, Eq. 7 and 8.

    >>> effective_features(torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0]))
    tensor(4.)
    """
    return feature_entropy(mass, released=released).exp()


# --- on/off patterns of ReLU units


@dataclass(frozen=True)
class ClassDistances:
    """Mean Hamming distance, in bits of the code, over pairs of samples of one class and over pairs of two classes; NaN without such a pair."""

    within: Float[Tensor, ""]
    between: Float[Tensor, ""]


def activation_codes(layers: Sequence[Float[Tensor, "sample ..."]]) -> Bool[Tensor, "sample unit"]:
    """1 where a unit is on (> 0, strictly), all layers side by side; without unit.

    Give values after ReLU or, for GELU and SiLU, before the activation; of a gated layer the gate's (inferred). Leave the output layer out.
    Unchanged by a positive factor on any unit. Raises ValueError without layers or for unequal numbers of samples.
    Source: arXiv 2101.05490; sheet `activation-hash`, step 1.
    """
    if not layers or len({len(layer) for layer in layers}) > 1:
        raise ValueError(f"activation_codes: layers must be at least one, of equally many samples. Got {[tuple(layer.shape) for layer in layers]}.")
    return torch.cat([(layer > 0).flatten(1) for layer in layers], 1)


def channel_codes(layers: Sequence[Float[Tensor, "sample _ ..."]]) -> Float[Tensor, "sample unit"]:
    """The authors' code for large networks, NOT binary, without unit: each channel summed over its positions, each layer over its (max - min).

    Layers are [sample, channel, position ...]. A constant layer is divided by 1. Raises as `activation_codes`.
    Source: sheet `activation-hash`, step 1 (the ImageNet scripts).
    """
    if not layers or len({len(layer) for layer in layers}) > 1:
        raise ValueError(f"channel_codes: layers must be at least one, of equally many samples. Got {[tuple(layer.shape) for layer in layers]}.")
    sums = [_wide(layer).flatten(2).sum(-1) if layer.ndim > 2 else _wide(layer) for layer in layers]
    spans = [part.max() - part.min() for part in sums]
    return torch.cat([part / torch.where(span == 0, 1, span) for part, span in zip(sums, spans, strict=True)], 1)


def varying_units(codes: Bool[Tensor, "sample unit"]) -> Bool[Tensor, " unit"]:
    """Which units are on for some samples and off for others; possibly none. `codes[:, varying_units(codes)]` drops what says nothing.

    Dropping changes no equality of the samples it was taken on. The authors take it over training and test samples together, which lets the
    test samples choose columns: take the training samples alone, unless you reproduce them. Source: sheet `activation-hash`, step 2.
    """
    return codes.any(0) & ~codes.all(0)


def code_indices(codes: Bool[Tensor, "sample unit"]) -> Int[Tensor, " sample"]:
    """A number 0, 1, ... for each sample, equal exactly where the codes are; a code of width 0 is one code.

    `symbol_entropy` of it is H(c) in nats, `symbol_information` with the labels I(c; Y): with no code shared they are ln n and H(Y), and say no
    more (`unit_entropy`, `class_distances` then do). Source: sheet `activation-hash`, entropy view (inferred).
    """
    if not codes.shape[1]:
        return codes.new_zeros(len(codes), dtype=torch.int64)
    bits = torch.arange(WORD, device=codes.device)
    words = [(part.long() << bits[: part.shape[1]]).sum(1) for part in codes.split(WORD, 1)]
    return torch.stack(words, 1).unique(dim=0, return_inverse=True)[1]


def redundancy_ratio(codes: Bool[Tensor, "sample unit"]) -> Float[Tensor, ""]:
    """(samples - distinct codes) / samples, a fraction in [0, 1 - 1/samples]; float64.

    0: every sample has a code of its own. Further units of the same network can only lower it. It grows with the number of samples: compare at
    equal ones, and beside an untrained network, where it is often 0 already. Raises ValueError without samples. Source: arXiv 2101.05490; sheet, step 3.

    >>> redundancy_ratio(torch.tensor([[True], [True], [False]]))
    tensor(0.3333, dtype=torch.float64)
    """
    _some("redundancy_ratio", codes)
    return 1 - (code_indices(codes).max() + 1).double() / len(codes)


def colliding_pairs(codes: Bool[Tensor, "sample unit"]) -> Int[Tensor, ""]:
    """Number of pairs of samples that share a code. Fair independent bits have n (n-1) / 2 * 2^-units on average (`chance_collisions`)."""
    shared = code_indices(codes).bincount()
    return (shared * (shared - 1) // 2).sum()


def chance_collisions(samples: int, units: int) -> float:
    """Expected `colliding_pairs` of independent fair bits, in pairs: n (n-1) / 2 * 2^-units. Source: sheet `activation-hash`, honest small check."""
    return samples * (samples - 1) / 2 * 2.0**-units


def unit_entropy(codes: Bool[Tensor, "sample unit"]) -> Float[Tensor, ""]:
    """Sum over units of the entropy of being on, in nats, in [0, units * ln 2], at least H(c); float64. It does not saturate where H(c) is ln n.

    Raises ValueError without samples. Source: sheet `activation-hash`, entropy view (inferred).
    """
    _some("unit_entropy", codes)
    on = codes.double().mean(0)
    return (torch.special.entr(on) + torch.special.entr(1 - on)).sum()


def class_distances(codes: Bool[Tensor, "sample unit"], labels: Int[Tensor, " sample"]) -> ClassDistances:
    """Mean Hamming distance within and between classes, in bits of the code; float64. From counts per unit: no pair is visited.

    Source: sheet `activation-hash`, entropy view (inferred).
    """
    names, place = labels.unique(return_inverse=True)
    on = torch.zeros(len(names), codes.shape[1], dtype=torch.float64, device=codes.device).index_add_(0, place, codes.double())
    size = place.bincount(minlength=len(names)).double()
    apart, pairs = (on * (size.unsqueeze(1) - on)).sum(), (size * (size - 1)).sum() / 2
    all_apart, all_pairs = (on.sum(0) * (len(codes) - on.sum(0))).sum(), len(codes) * (len(codes) - 1) / 2
    return ClassDistances(apart / pairs, (all_apart - apart) / (all_pairs - pairs))


def nearest_code_accuracy(
    codes: Bool[Tensor, "sample unit"] | Float[Tensor, "sample unit"],
    labels: Int[Tensor, " sample"],
    test_codes: Bool[Tensor, "test unit"] | Float[Tensor, "test unit"],
    test_labels: Int[Tensor, " test"],
    *,
    k: int = 9,
) -> Float[Tensor, ""]:
    """Share of test samples whose label is the most frequent among the k nearest training codes, a fraction in [0, 1]; float64.

    Euclidean distance; between bits its square is the Hamming distance. Ties go to the earlier sample, then to the smaller label.
    Report it beside an untrained network's, which may be as high. Raises ValueError unless 1 <= k <= samples, or without test samples.
    Source: arXiv 2101.05490; sheet `activation-hash`, step 4.
    """
    if not 1 <= k <= len(codes) or not len(test_codes):
        raise ValueError(f"nearest_code_accuracy: k must lie in [1, {len(codes)}], the samples, with some test. Got k={k}, {len(test_codes)} test samples.")
    names, place = labels.unique(return_inverse=True)
    known, right = codes.double(), []
    votes_of = torch.nn.functional.one_hot(place, len(names)).float()
    for part, truth in zip(test_codes.split(BLOCK), test_labels.split(BLOCK), strict=True):
        x = part.double()
        distance = x.square().sum(1, keepdim=True) + known.square().sum(1) - 2 * x @ known.mT
        farthest = distance.kthvalue(k, dim=1, keepdim=True).values
        nearer, tied = distance < farthest, distance == farthest
        chosen = nearer | (tied & (tied.cumsum(1) <= k - nearer.sum(1, keepdim=True)))
        right.append(names[(chosen.float() @ votes_of).argmax(1)] == truth)
    return torch.cat(right).double().mean()


def cluster_accuracy(clusters: Int[Tensor, " sample"], labels: Int[Tensor, " sample"], *, released: bool = False) -> Float[Tensor, ""]:
    """Share of samples whose cluster stands for their label under the best one-to-one matching, a fraction in [0, 1]; float64.

    A cluster beyond the number of labels matches none. `released=True`: every cluster takes the label it holds most, whether another has it or
    not, as the authors' small-scale script does (purity): never lower, and 1 for clusters of one sample each. That script relabels clusters one
    after the other, but out of the way of those to come, so their order changes nothing.
    Raises ValueError without samples. Source: arXiv 2101.05490; sheet `activation-hash`, step 4 and pitfall 1.

    >>> cluster_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 7, 5]))
    tensor(0.7500, dtype=torch.float64)
    """
    _some("cluster_accuracy", labels)
    (rows, row), (columns, column) = clusters.unique(return_inverse=True), labels.unique(return_inverse=True)
    table = (row * len(columns) + column).bincount(minlength=len(rows) * len(columns)).reshape(len(rows), len(columns))
    matched = int(table.amax(1).sum()) if released else _best_matching(table.cpu().numpy())
    return torch.tensor(matched / len(labels), dtype=torch.float64, device=labels.device)


def probe_line(sample: Float[Tensor, " dim"], centre: Float[Tensor, " dim"], *, reach: float = 5.0, steps: int = 100) -> Float[Tensor, "point dim"]:
    """2 * steps points sample + a u, u the unit vector to the centre, a = -reach .. -reach/steps and reach/steps .. reach; units of the sample.

    Raises ValueError if the two coincide, or unless reach > 0 and steps >= 1. Source: sheet `activation-hash`, step 5.
    """
    if not reach > 0 or steps < 1:
        raise ValueError(f"probe_line: reach must be positive and steps at least 1. Got reach={reach}, steps={steps}.")
    way = centre - sample
    length = torch.linalg.vector_norm(way)
    if not length > 0:
        raise ValueError("probe_line: sample and centre must differ. Got a distance of 0 or NaN. Choose another centre.")
    ahead = torch.arange(1, steps + 1, dtype=sample.dtype, device=sample.device) * (reach / steps)
    return sample + torch.cat((-ahead.flip(0), ahead)).unsqueeze(1) * (way / length)


def region_diameter(code: Bool[Tensor, " unit"], probes: Bool[Tensor, "point unit"], *, step: float = 0.05) -> Float[Tensor, ""]:
    """step * number of probes that share the sample's code, a length in the units of the input; float64, in [0, step * points].

    `probes` are the codes of `probe_line`, `step` its reach / steps. A ReLU network's region is convex, so those probes are consecutive.
    Compare codes of all units: drop no column. Source: sheet `activation-hash`, step 5.
    """
    return step * (probes == code).all(1).double().sum()


# --- parts


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _some(who: str, samples: Tensor) -> None:
    if not len(samples):
        raise ValueError(f"{who}: needs at least one sample. Got none.")


def _best_matching(table: numpy.ndarray) -> int:
    """Largest sum of entries of which no two share a row or a column: shortest augmenting paths, one row after the other (Kuhn, Munkres)."""
    size = max(table.shape)
    cost = numpy.zeros((size, size))
    cost[: table.shape[0], : table.shape[1]] = -table
    by_row, by_column = numpy.zeros(size), numpy.zeros(size)  # dual prices: cost - both >= 0, and 0 where matched
    owner = numpy.full(size, -1)
    for start in range(size):
        far, previous, done = numpy.full(size, numpy.inf), numpy.full(size, -1), numpy.zeros(size, dtype=bool)
        row, column, reached = start, -1, 0.0
        while row >= 0:
            through = reached + cost[row] - by_row[row] - by_column
            better = ~done & (through < far)
            far[better], previous[better] = through[better], column
            column = int(numpy.where(done, numpy.inf, far).argmin())
            reached, row = far[column], owner[column]
            done[column] = True
        settled = done & (owner >= 0)
        by_row[owner[settled]] += reached - far[settled]
        by_row[start] += reached
        by_column[done] -= reached - far[done]
        while column >= 0:
            before = previous[column]
            owner[column] = start if before < 0 else owner[before]
            column = before
    return sum(int(table[row, column]) for column, row in enumerate(owner[: table.shape[1]]) if row < table.shape[0])
