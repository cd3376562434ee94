"""Gaussian closed forms, identities and invariances of the sample estimators; the statistical ones at a fixed seed."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope.measure.samples import (
    adaptive_bins,
    adaptive_variance,
    binned_information,
    kde_entropy,
    kde_information,
    kernel_entropy,
    kernel_log_density,
    knn_cross_entropy,
    knn_entropy,
    knn_renyi_entropy,
    ksg_conditional_mutual_information,
    ksg_mutual_information,
)

NORMAL = 0.5 * math.log(2 * math.pi * math.e)  # entropy of N(0, 1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, rho: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, noise = random(2, n, 1, seed=seed)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


# --- nearest neighbours


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_knn_entropy_of_a_gaussian(metric, dim):
    scales = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)[:dim]
    found = float(knn_entropy(random(1500, dim) * scales, metric=metric))
    assert found == pytest.approx(dim * NORMAL + float(scales.log().sum()), abs=0.06)


@pytest.mark.parametrize("metric", ["chebyshev", "euclidean"])
def test_knn_entropy_shifts_by_nothing_and_scales_by_d_ln_a(metric):
    x = random(200, 2)
    before = float(knn_entropy(x, metric=metric))
    assert float(knn_entropy(x + 5, metric=metric)) == pytest.approx(before, abs=1e-10)
    assert float(knn_entropy(x * 4, metric=metric)) == pytest.approx(before + 2 * math.log(4), abs=1e-12)
    assert float(knn_entropy(x[torch.randperm(200, generator=torch.Generator().manual_seed(1))], metric=metric)) == pytest.approx(before, abs=1e-12)


def test_knn_entropy_of_evenly_spaced_points_by_hand():
    """Distance 1 to the neighbour everywhere: psi(n) - psi(1) + ln 2, which nears ln n."""
    x = torch.arange(50, dtype=torch.float64).unsqueeze(1)
    expected = sum(1 / j for j in range(1, 50)) + math.log(2)
    assert float(knn_entropy(x, k=1)) == pytest.approx(expected, abs=1e-13)


def test_layers_and_blocks_change_nothing():
    layers, other = random(3, 60, 2), random(3, 60, 2, seed=1)
    for estimate in (
        lambda a, b, block: knn_entropy(a, block=block),
        lambda a, b, block: knn_cross_entropy(a, b, block=block),
        lambda a, b, block: knn_renyi_entropy(a, 2.0, block=block),
        lambda a, b, block: ksg_mutual_information(a, b, block=block),
        lambda a, b, block: ksg_mutual_information(a, b, variant=2, block=block),
        lambda a, b, block: ksg_conditional_mutual_information(a, b, a + b, block=block),
        lambda a, b, block: kernel_entropy(a, bandwidth=0.5, block=block),
        lambda a, b, block: kernel_entropy(a, bandwidth=0.5, kernel="box", against=b, block=block),
        lambda a, b, block: kde_information(a, 0.3, block=block).lower,
    ):
        whole = estimate(layers, other, 1024)
        assert whole.shape == (3,)
        assert torch.allclose(estimate(layers, other, 7), whole, atol=1e-12)
        assert torch.allclose(torch.stack([estimate(a, b, 1024) for a, b in zip(layers, other, strict=True)]), whole, atol=1e-12)


def test_an_atom_has_entropy_minus_infinity_and_counts_0_in_the_released_form():
    x = torch.tensor([0.0, 0.0, 0.0, 1.0, 3.0], dtype=torch.float64).unsqueeze(1)
    assert knn_entropy(x, k=2) == -math.inf
    psi = torch.digamma(torch.tensor([5.0, 2.0], dtype=torch.float64))
    local = [float(psi[0] - psi[1]) + math.log(2 * eps) for eps in (1.0, 3.0)]
    assert float(knn_entropy(x, k=2, released=True)) == pytest.approx(sum(local) / 5, abs=1e-14)


def test_knn_entropy_has_the_gradient_of_its_finite_differences():
    assert torch.autograd.gradcheck(lambda x: knn_entropy(x, k=2, metric="euclidean"), (random(8, 2).requires_grad_(),))


def test_cross_entropy_of_gaussians_also_of_unequal_sizes():
    x, other = random(1500, 1), 1 + 2 * random(2500, 1, seed=1)
    expected = 0.5 * math.log(2 * math.pi * 4) + (1 + 1) / 8
    assert float(knn_cross_entropy(x, other)) == pytest.approx(expected, abs=0.05)
    assert float(knn_cross_entropy(other, x[:1000]) - knn_entropy(other)) > 0
    assert knn_cross_entropy(x[:3], other[:1], k=1).isfinite()


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0])
def test_renyi_entropy_of_a_gaussian_and_its_tsallis_form(order):
    x = random(1500, 1)
    found = float(knn_renyi_entropy(x, order, k=6))
    expected = NORMAL if order == 1 else 0.5 * math.log(2 * math.pi) + math.log(order) / (2 * (order - 1))
    assert found == pytest.approx(expected, abs=0.08)
    tsallis = float(knn_renyi_entropy(x, order, k=6, tsallis=True))
    assert tsallis == pytest.approx(found if order == 1 else math.expm1((1 - order) * found) / (1 - order), abs=1e-12)


def test_renyi_of_order_one_is_the_limit_and_scales_by_d_ln_a():
    x = random(100, 2)
    near = (knn_renyi_entropy(x, 1 - 1e-5) + knn_renyi_entropy(x, 1 + 1e-5)) / 2
    assert float(near) == pytest.approx(float(knn_renyi_entropy(x, 1)), abs=1e-7)
    assert float(knn_renyi_entropy(3 * x, 2.5)) == pytest.approx(float(knn_renyi_entropy(x, 2.5)) + 2 * math.log(3), abs=1e-12)


def test_an_order_beyond_the_neighbours_is_refused_and_0_in_the_released_form():
    with pytest.raises(ValueError, match="Take more neighbours"):
        knn_renyi_entropy(random(20, 1), 5, k=4)
    assert knn_renyi_entropy(random(20, 1), 5, k=4, released=True) == 0


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("rho", [0.0, 0.6, -0.9])
def test_ksg_information_of_correlated_gaussians(variant, rho):
    x, y = correlated(1200, rho)
    assert float(ksg_mutual_information(x, y, variant=variant)) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.06)


@pytest.mark.parametrize("variant", [1, 2])
def test_ksg_is_symmetric_and_knows_no_common_scale_shift_or_order(variant):
    x, y = correlated(150, 0.7)
    found = float(ksg_mutual_information(x, y, variant=variant))
    assert float(ksg_mutual_information(y, x, variant=variant)) == pytest.approx(found, abs=1e-13)
    assert float(ksg_mutual_information(8 * x + 1, 8 * y - 2, variant=variant)) == pytest.approx(found, abs=1e-12)
    assert float(ksg_mutual_information(x.flip(0), y.flip(0), variant=variant)) == pytest.approx(found, abs=1e-13)


def brute_second_ksg(x: Tensor, y: Tensor, k: int) -> float:
    """Kraskov's second estimator, one point after another."""
    n, total = len(x), 0.0
    for i in range(n):
        dx, dy = ([abs(float(s[j] - s[i])) if j != i else math.inf for j in range(n)] for s in (x, y))
        near = sorted(range(n), key=lambda j, dx=dx, dy=dy: max(dx[j], dy[j]))[:k]
        for d in (dx, dy):
            count = sum(v <= max(d[j] for j in near) for v in d)
            total += float(torch.digamma(torch.tensor(float(count), dtype=torch.float64)))
    psi = torch.digamma(torch.tensor([float(k), float(n)], dtype=torch.float64))
    return float(psi.sum()) - 1 / k - total / n


def test_the_second_estimator_is_kraskovs_and_the_released_one_is_low():
    x, y = correlated(40, 0.7)
    for k in (1, 3):
        assert float(ksg_mutual_information(x, y, k=k, variant=2)) == pytest.approx(brute_second_ksg(x.flatten(), y.flatten(), k), abs=1e-12)
    x, y = correlated(1500, 0.7)
    gap = ksg_mutual_information(x, y, k=1, variant=2) - ksg_mutual_information(x, y, k=1, variant=2, released=True)
    assert 0.8 < float(gap) < 1.3


def test_ksg_of_identical_and_of_constant_variables_in_closed_form():
    x = random(80, 1)
    psi = torch.digamma(torch.tensor([80.0, 4.0], dtype=torch.float64))
    assert float(ksg_mutual_information(x, x)) == pytest.approx(float(psi[0] - psi[1]), abs=1e-13)
    assert float(ksg_mutual_information(x, torch.zeros_like(x))) == pytest.approx(0, abs=1e-13)


def test_conditional_information_is_0_for_a_common_cause_and_all_of_it_for_an_unrelated_one():
    z, a, b = random(3, 1500, 1)
    assert float(ksg_conditional_mutual_information(z + 0.5 * a, z + 0.5 * b, z)) == pytest.approx(0, abs=0.06)
    x, y = correlated(1500, 0.8)
    assert float(ksg_conditional_mutual_information(x, y, random(1500, 1, seed=9))) == pytest.approx(-0.5 * math.log(0.36), abs=0.12)


def test_too_few_samples_are_refused_by_name():
    with pytest.raises(ValueError, match=r"knn_entropy: needs more samples than neighbours\. Got 4 samples, k=4"):
        knn_entropy(random(4, 1))
    with pytest.raises(ValueError, match="k must be at least 1"):
        ksg_mutual_information(random(4, 1), random(4, 1), k=0)
    with pytest.raises(ValueError, match="variant must be 1 or 2, released=True of 2 alone"):
        ksg_mutual_information(random(9, 1), random(9, 1), released=True)


# --- kernels


def test_kernel_densities_by_hand():
    x = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    box = kernel_log_density(torch.tensor([[0.5], [1.0], [9.0]], dtype=torch.float64), x, bandwidth=2.0, kernel="box")
    assert box.exp().tolist() == pytest.approx([2 / 6, 2 / 6, 0])
    gaussian = float(kernel_log_density(x[:1], x, bandwidth=0.5).exp())
    spread = 0.25 * 7  # bandwidth^2 times the sample variance
    expected = sum(math.exp(-(v**2) / (2 * spread)) for v in (0, 1, 5)) / 3 / math.sqrt(2 * math.pi * spread)
    assert gaussian == pytest.approx(expected, abs=1e-14)


def test_the_gaussian_kernel_integrates_to_one_and_follows_linear_maps():
    x, linear = random(30, 2), torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    side = torch.linspace(-9, 9, 121, dtype=torch.float64)
    density = kernel_log_density(torch.cartesian_prod(side, side), x, bandwidth=0.6).exp()
    assert float(density.sum()) * 0.15**2 == pytest.approx(1, abs=1e-6)
    before = float(kernel_entropy(x, bandwidth=0.6))
    assert float(kernel_entropy(x @ linear, bandwidth=0.6)) == pytest.approx(before + math.log(6), abs=1e-11)


def test_kernel_entropies_of_a_gaussian_and_a_point_that_no_box_reaches():
    x = random(1500, 1)
    assert float(kernel_entropy(x, bandwidth=0.2)) == pytest.approx(NORMAL, abs=0.05)
    assert float(kernel_entropy(x, bandwidth=0.3, kernel="box")) == pytest.approx(NORMAL, abs=0.05)
    far = torch.cat((x, x.new_tensor([[90.0]])))
    assert kernel_entropy(far, bandwidth=1.0, kernel="box", against=x) == math.inf
    kept = kernel_entropy(far, bandwidth=1.0, kernel="box", against=x, released=True)
    assert float(kept) == pytest.approx(float(kernel_entropy(x, bandwidth=1.0, kernel="box")), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 3), st.floats(-6, 6), st.integers(0, 99))
def test_kde_bounds_lie_in_order(n, dim, log_variance, seed):
    t = random(n, dim, seed=seed)
    found = kde_information(t, math.exp(log_variance))
    assert -1e-12 <= float(found.lower) <= float(found.upper) + 1e-12 <= math.log(n) + 1e-11
    labels = torch.arange(n) % 2
    about = kde_information(t, math.exp(log_variance), labels=labels)
    assert float(about.upper) <= math.log(2) + 1e-12  # no more than the label holds, whatever the noise
    assert kde_information(t, math.exp(log_variance), labels=torch.zeros(n, dtype=torch.int64)).upper.abs() < 1e-12


def test_kde_bounds_in_their_limits():
    t = random(50, 2)
    silent, loud = kde_information(t, 1e-9), kde_information(t, 1e9)
    assert float(silent.lower) == pytest.approx(math.log(50), abs=1e-12)
    assert float(silent.upper) == pytest.approx(math.log(50), abs=1e-12)
    assert float(loud.upper) == pytest.approx(0, abs=1e-7)
    assert float(kde_information(t, 1e-9, labels=torch.arange(50) % 2).lower) == pytest.approx(math.log(2), abs=1e-12)


def test_kde_entropy_encloses_that_of_a_mixture_of_two():
    """Two Gaussians a distance apart, the entropy by quadrature."""
    grid = torch.linspace(-14, 14, 20001, dtype=torch.float64)
    for gap in (0.5, 2.0, 5.0):
        density = sum(torch.exp(-((grid - c) ** 2) / 2) / math.sqrt(2 * math.pi) for c in (-gap / 2, gap / 2)) / 2
        truth = float(torch.special.entr(density).sum() * (grid[1] - grid[0]))
        found = kde_entropy(torch.tensor([[-gap / 2], [gap / 2]], dtype=torch.float64), 1.0)
        assert float(found.lower) - 1e-9 <= truth <= float(found.upper) + 1e-9


def test_only_the_quadratic_rule_knows_no_scale():
    """Sheet adaptive-mi, the scale test: a fixed variance saturates at ln n, a linear one drifts, the quadratic one stands."""
    t = random(200, 3).relu()
    by_rule = {"fixed": lambda x: 0.05, "linear": lambda x: 0.05 * float(x.max()), "quadratic": lambda x: adaptive_variance(x, share=0.01)}
    found = {name: [float(kde_information(t * a, rule(t * a)).upper) for a in (1, 10, 100)] for name, rule in by_rule.items()}
    assert found["quadratic"] == pytest.approx([found["quadratic"][0]] * 3, abs=1e-11)
    for name in ("fixed", "linear"):
        assert found[name][0] < found[name][1] - 0.05
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found[name]))


def test_kde_takes_a_variance_per_layer_knows_no_order_and_has_its_gradient():
    layers, v = random(2, 12, 2), torch.tensor([0.2, 0.7], dtype=torch.float64)
    both = kde_information(layers, v)
    assert float(both.lower[1]) == pytest.approx(float(kde_information(layers[1], 0.7).lower), abs=1e-13)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kde_information(layers[:, order].flip(-1), v).upper, both.upper, atol=1e-13)
    assert torch.autograd.gradcheck(lambda t: kde_information(t, 0.5).upper, (random(5, 2).requires_grad_(),))
    with pytest.raises(ValueError, match="A layer of zeros has no adaptive one"):
        kde_information(torch.zeros(3, 2), adaptive_variance(torch.zeros(3, 2)))


# --- bins


def released_edges(values: Tensor, bins: int, low: float) -> list[float]:
    """The rule as the sheet writes it."""
    u = sorted(set(values.flatten().tolist()) - {low})
    return [low] + [u[len(u) * k // bins] for k in range(bins)] + [u[-1]] if u else [low]


def test_adaptive_bins_are_those_of_the_written_edges():
    t = random(40, 3).relu()
    edges = released_edges(t, 6, 0.0)
    expected = [[sum(e <= v for e in edges) - 1 for v in row] for row in t.tolist()]
    assert adaptive_bins(t, bins=6).tolist() == expected
    assert (adaptive_bins(t, bins=6)[t == 0] == 0).all()
    assert int((adaptive_bins(t, bins=6) == adaptive_bins(t, bins=6).max()).sum()) == 1  # the largest value by itself
    assert (adaptive_bins(torch.zeros(4, 2)) == 0).all()


def test_adaptive_bins_know_no_increasing_map_that_fixes_low():
    t = random(60, 2).relu()
    for image in (100 * t, t**3, torch.expm1(t)):
        assert torch.equal(adaptive_bins(image, bins=8), adaptive_bins(t, bins=8))
    centred = random(60, 2).tanh()
    assert torch.equal(adaptive_bins(centred.atanh(), bins=8, low=-99.0), adaptive_bins(centred, bins=8, low=-1.000001))


def test_equal_mass_bins_hold_equal_counts():
    t = random(40, 3)
    assert adaptive_bins(t, bins=6, rule="mass").flatten().bincount().tolist() == [20] * 6
    assert (adaptive_bins(t[:1, :1], bins=6, rule="mass") >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore:binned_information")
def test_binned_information_lies_in_order_and_knows_no_order(n, dim, bins, seed):
    t, labels = random(n, dim, seed=seed).relu(), torch.arange(n) % 3
    found = binned_information(t, bins=bins, labels=labels)
    assert -1e-12 <= float(found.label) <= float(found.input) + 1e-12 <= math.log(n) + 1e-11
    assert float(found.label) <= math.log(3) + 1e-12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = binned_information(t[order].flip(-1), bins=bins, labels=labels[order])
    assert float(moved.input) == pytest.approx(float(found.input), abs=1e-12)
    assert float(moved.label) == pytest.approx(float(found.label), abs=1e-12)


def test_binned_information_of_a_layer_that_is_its_label():
    labels = torch.arange(12) % 3
    found = binned_information((1.0 + labels.double()).unsqueeze(1), labels=labels)
    assert float(found.input) == pytest.approx(math.log(3), abs=1e-14)
    assert float(found.label) == pytest.approx(math.log(3), abs=1e-14)
    assert float(found.distinct) == 0.25
    both = binned_information(torch.stack((labels.double(), torch.zeros(12))).unsqueeze(-1), labels=None)
    assert both.label is None
    assert both.input.tolist() == pytest.approx([math.log(3), 0.0], abs=1e-14)


def test_a_layer_of_distinct_rows_is_warned_of():
    """Sheet adaptive-mi: 5 ReLU units, 1000 Gaussian inputs, 30 bins are close to the cap of log2 1000 = 9.97 bits."""
    layer = (random(1000, 5) @ random(5, 5, seed=1)).relu()
    with pytest.warns(UserWarning, match="Take fewer bins"):
        found = binned_information(layer[:, :1].abs().expand(-1, 3) + random(1000, 3, seed=2).abs(), bins=200)
    assert float(found.distinct) > 0.95
    assert 9.3 < float(binned_information(layer).input) / math.log(2) < math.log2(1000)


def test_words_that_are_none_of_ours_are_refused(unchecked):
    x = random(9, 1)
    with pytest.raises(ValueError, match=r"metric must be 'chebyshev' or 'euclidean'\. Got 'cosine'"):
        knn_entropy(x, metric="cosine")
    with pytest.raises(ValueError, match=r"kernel must be 'box' or 'gaussian'\. Got 'cone'"):
        kernel_entropy(x, bandwidth=1.0, kernel="cone")
    with pytest.raises(ValueError, match="bins must be at least 1 and rule 'distinct' or 'mass'"):
        adaptive_bins(x, rule="width")
