"""Recorded cases of the classical estimators of two packages (no sheet; formulas in the vectors' README). Multivariate values are in bits."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from isentrope.measure.counts import CountEstimator, count_cross_entropy, count_divergence, count_entropy
from isentrope.measure.samples import (
    Kernel,
    kernel_entropy,
    knn_cross_entropy,
    knn_entropy,
    knn_renyi_entropy,
    ksg_conditional_mutual_information,
    ksg_mutual_information,
)
from isentrope.measure.symbols import (
    aligned_counts,
    co_information,
    dual_total_correlation,
    extropy,
    joint_information,
    ordinal_patterns,
    residual_entropy,
    subset_entropy,
    symbol_entropy,
    symbol_information,
    total_correlation,
    transfer_entropy,
    tse_complexity,
)
from isentrope.verify.cases import Case, Outputs, Unreadable, answers

SLUG = "information-estimators"


def _column(case: Case, name: str) -> Tensor:
    values = case[name]
    return values if values.ndim > 1 else values.unsqueeze(-1)


@answers(SLUG, "continuous-degenerate*")
def degenerate(case: Case) -> Outputs:
    ties, x, k = _column(case, "ties"), _column(case, "x"), case.param("k")
    ties_by_k = {name: knn_entropy(ties, k=int(name.rpartition("_k")[2]), released=True) for name in case.outputs if name.startswith("kl_entropy_ties_k")}
    return ties_by_k | {
        "ksg_identical": ksg_mutual_information(x, x, k=k),
        "ksg_independent_constant": ksg_mutual_information(x, torch.zeros_like(x), k=k),
    }


@answers(SLUG, "continuous")
def continuous(case: Case) -> Outputs:
    x, y, z, u2, q = (_column(case, name) for name in ("x", "y", "z", "u2", "q"))
    k = case.param("k")
    produced: dict[str, Tensor] = {
        "kl_entropy_u2_euclid": knn_entropy(u2, k=k, metric="euclidean"),
        "kl_entropy_x_bits": knn_entropy(x, k=k) / math.log(2),
        "ksg_cmi": ksg_conditional_mutual_information(x, y, z, k=k),
        "renyi_order_k_plus_1": knn_renyi_entropy(x, k + 1, k=k, released=True),
        "renyi_mi_xy": _information(lambda part: knn_renyi_entropy(part, 1.5, k=k), x, y),
        "metric_cross": knn_cross_entropy(x, q, k=k),
        "metric_kl": knn_cross_entropy(x, q, k=k) - knn_entropy(x, k=k),
    }
    for name in case.outputs:
        head, _, order = name.partition("_")
        if head in ("renyi", "tsallis") and name not in produced:
            produced[name] = knn_renyi_entropy(x, float(order), k=k, tsallis=head == "tsallis")
        stem, by_k, near = name.rpartition("_k")
        if by_k and near.isdigit():
            produced[name] = _by_neighbours(stem, int(near), x, y, u2)
    return produced | _kernel(case.param("bandwidth"), x, y, q)


def _by_neighbours(stem: str, k: int, x: Tensor, y: Tensor, u2: Tensor) -> Tensor:
    if stem.startswith("ksg"):
        second = stem.startswith("ksg2")
        return ksg_mutual_information(x, y, k=k, variant=2 if second else 1, released=second)
    return knn_entropy(u2 if stem.endswith("u2") else x, k=k)


def _kernel(bandwidth: float, x: Tensor, y: Tensor, q: Tensor) -> dict[str, Tensor]:
    produced = {}
    kinds: tuple[Kernel, ...] = ("box", "gaussian")
    for kernel in kinds:

        def entropy(part: Tensor, kernel: Kernel = kernel) -> Tensor:
            return kernel_entropy(part, bandwidth=bandwidth, kernel=kernel)

        cross = kernel_entropy(x, bandwidth=bandwidth, kernel=kernel, against=q, released=True)
        produced |= {
            f"kernel_{kernel}_x": entropy(x),
            f"kernel_{kernel}_mi": _information(entropy, x, y),
            f"kernel_{kernel}_cross": cross,
            f"kernel_{kernel}_kl": cross - entropy(x),
            f"kernel_{kernel}_js": entropy(torch.cat((x, q))) - (entropy(x) + entropy(q)) / 2,
        }
    return produced


def _information(entropy: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return entropy(x) + entropy(y) - entropy(torch.cat((x, y), -1))


@answers(SLUG, "ordinal*")
def ordinal(case: Case) -> Outputs:
    first, second = case["s"], case["s2"]
    produced: dict[str, Tensor] = {
        "ordinal_mi": symbol_information(ordinal_patterns(first), ordinal_patterns(second)),
        "ordinal_js": _jensen_shannon(ordinal_patterns(first), ordinal_patterns(second)),
        "ordinal_monotone": symbol_entropy(ordinal_patterns(torch.arange(50, dtype=torch.float64))),
    }
    for name in case.outputs:
        parts = name.split("_")
        if len(parts) == 3:
            produced[name] = symbol_entropy(ordinal_patterns(first, size=int(parts[1][1:]), lag=int(parts[2][1:])))
    return produced


def _jensen_shannon(x: Tensor, y: Tensor) -> Tensor:
    """Of the frequencies of two samples."""
    p, q = (counts.double() / counts.sum() for counts in aligned_counts(x, y))
    return torch.special.entr((p + q) / 2).sum() - (torch.special.entr(p).sum() + torch.special.entr(q).sum()) / 2


ESTIMATORS: Mapping[str, CountEstimator] = {
    "discrete": "plug-in",
    "miller_madow": "miller-madow",
    "chao_shen": "chao-shen",
    "grassberger": "grassberger-1988",
    "shrink": "shrink",
    "bayes_jeffrey": "jeffreys",
    "bayes_laplace": "laplace",
    "bonachela": "bonachela",
    "zhang": "zhang",
    "chao_wang_jost": "chao-wang-jost",
}


@answers(SLUG, "discrete*")
def discrete(case: Case) -> Outputs:
    x, y, z = case["x"], case["y"], case["z"]
    counts, other = aligned_counts(x, y)
    produced: dict[str, Tensor] = {
        f"{name}_{key}": count_entropy(case[name].unique(return_counts=True)[1], estimator)
        for name in ("x", "constant", "distinct")
        for key, estimator in ESTIMATORS.items()
    }
    return produced | {
        "x_discrete_bits": symbol_entropy(x) / math.log(2),
        "joint_xy": symbol_entropy(torch.stack((x, y), 1)),
        "mi_xy": symbol_information(x, y),
        "cmi_xy_z": symbol_information(x, y, given=z),
        "te_x_to_y": transfer_entropy(x, y),
        "cross_xy": count_cross_entropy(counts, other, released=True),
        "kl_xy": count_divergence(counts, other, released=True),
        "js_xy": _jensen_shannon(x, y),
        "js_disjoint": _jensen_shannon(x, x - x.min() + x.max() + 1),  # any two samples without a common symbol
    }


@answers(SLUG, "multivariate*")
def multivariate(case: Case) -> Outputs:
    p, q = case["P"], case["Q"]
    if case.param("base") != 2:
        raise Unreadable(f"multivariate values are known in base 2 alone, not {case.param('base')!r}")
    whole = tuple(range(p.ndim))
    flat, other = p.flatten(), q.flatten()
    cross = -torch.xlogy(flat, other).sum()
    entropy = subset_entropy(p, whole)
    nats: Mapping[str, Tensor] = {
        "H": entropy,
        "H_0": subset_entropy(p, (0,)),
        "H_0_given_1": subset_entropy(p, (0, 1)) - subset_entropy(p, (1,)),
        "I_0_1": joint_information(p, (0,), (1,)),
        "I_0_1_given_2": joint_information(p, (0,), (1,), given=(2,)),
        "coinformation": co_information(p),
        "total_correlation": total_correlation(p),
        "dual_total_correlation": dual_total_correlation(p),
        "residual_entropy": residual_entropy(p),
        "tse": tse_complexity(p),
        "renyi_0.5": 2 * flat.sqrt().sum().log(),
        "renyi_2.0": -flat.square().sum().log(),
        "renyi_inf": -flat.max().log(),
        "extropy": extropy(flat),
        "kl": cross - entropy,
        "cross_entropy": cross,
        "js": torch.special.entr((flat + other) / 2).sum() - (entropy + torch.special.entr(other).sum()) / 2,
    }
    without_unit = {"tsallis_0.5": (flat.sqrt().sum() - 1) / 0.5, "tsallis_2.0": 1 - flat.square().sum(), "perplexity": entropy.exp()}
    return {name: value / math.log(2) for name, value in nats.items()} | without_unit
