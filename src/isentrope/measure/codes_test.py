"""Identities of effective features and of activation codes; recorded outputs are in tests/vectors (`isentrope verify`)."""

import itertools
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isentrope.measure.codes import (
    activation_codes,
    chance_collisions,
    channel_codes,
    channel_samples,
    class_distances,
    cluster_accuracy,
    code_indices,
    colliding_pairs,
    effective_features,
    feature_entropy,
    feature_mass,
    nearest_code_accuracy,
    probe_line,
    redundancy_ratio,
    region_diameter,
    sparse_code_loss,
    tied_code,
    unit_entropy,
    varying_units,
)
from isentrope.measure.distribution import renyi
from isentrope.measure.symbols import symbol_entropy, symbol_information


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).bool()


def close(a, b, **kwargs) -> None:
    torch.testing.assert_close(torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64), **kwargs)


masses = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(lambda m: torch.tensor(m, dtype=torch.float64))


# --- effective features


@pytest.mark.parametrize("k", [1, 2, 7, 24])
def test_equal_masses_count_themselves_and_dead_features_nothing(k):
    mass = torch.zeros(24, dtype=torch.float64)
    mass[:k] = 0.3
    close(effective_features(mass), float(k))


@settings(max_examples=60, deadline=None)
@given(masses, st.floats(1e-3, 1e3), st.data())
def test_effective_features_is_the_hill_number_of_order_one(mass, scale, data):
    count = effective_features(mass)
    p = mass / mass.sum()
    assert 1 - 1e-12 <= float(count) <= len(mass) * (1 + 1e-12)
    assert float(count) >= float(renyi(p, 2.0).exp()) * (1 - 1e-9)
    close(effective_features(scale * mass), count)
    close(effective_features(mass.flip(0)), count)
    i = data.draw(st.integers(0, len(mass) - 1))
    split = torch.cat((mass, mass[i : i + 1] / 2))
    split[i] /= 2
    close(effective_features(split), count * 2 ** p[i])


def test_a_dead_dictionary_has_no_feature():
    mass = torch.stack((torch.zeros(5), torch.ones(5))).double()
    assert effective_features(mass).tolist() == pytest.approx([0, 5])
    assert feature_entropy(mass).tolist() == pytest.approx([-math.inf, math.log(5)])
    assert effective_features(mass, released="dropout")[0] == 0
    assert effective_features(mass, released="adversarial")[0].isnan()
    assert effective_features(mass, released="pythia")[0].isnan()


def test_the_three_epsilons_by_hand():
    one = torch.tensor([2.0, 0.0], dtype=torch.float64)
    q = torch.tensor([1 + 1e-10, 1e-10], dtype=torch.float64) / (1 + 2e-10)
    close(feature_entropy(one, released="adversarial"), -(q * q.log()).sum(), rtol=1e-9, atol=0)
    close(feature_entropy(one, released="dropout"), -1e-10, rtol=1e-6, atol=0)
    close(feature_entropy(one, released="pythia"), -1e-12 * math.log(1e-12) - 1e-12, rtol=1e-3, atol=0)
    assert float(feature_entropy(one)) == 0


def test_mass_ignores_what_is_masked_and_averages_over_a_stream():
    codes = normal(2, 6, 4)
    mask = torch.tensor([[True, True, False, True, False, True], [True, False, True, True, True, False]])
    spoiled = torch.where(mask.unsqueeze(-1), codes, torch.nan)
    for layer in range(2):
        close(feature_mass(spoiled, mask=mask)[layer], codes[layer][mask[layer]].abs().mean(0))
    close(feature_mass(codes), (feature_mass(codes[:, :3]) + feature_mass(codes[:, 3:])) / 2)
    assert feature_mass(codes, mask=torch.zeros_like(mask)).isnan().all()


def test_effective_features_gradient():
    mass = (normal(3, 6).abs() + 0.1).requires_grad_(True)
    assert torch.autograd.gradcheck(effective_features, (mass,))
    some = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    assert torch.autograd.grad(effective_features(some), some)[0].isfinite().all()


def test_bfloat16_codes_are_counted_in_float32():
    codes = normal(50, 16, seed=1).relu().bfloat16()
    assert feature_mass(codes).dtype == torch.float32
    close(effective_features(feature_mass(codes)), effective_features(feature_mass(codes.double())), rtol=1e-5, atol=0)


def test_tied_code_and_both_forms_of_its_loss():
    x, w, b = normal(9, 3), normal(12, 3, seed=1), normal(12, seed=2)
    code = tied_code(x, w, b)
    for i in range(9):
        z = [max(0.0, float(sum(w[j, n] * x[i, n] for n in range(3)) + b[j])) for j in range(12)]
        close(code.features[i], z)
        close(code.reconstruction[i], sum(z[j] * w[j] for j in range(12)))
    paper = sparse_code_loss(x, code, l1_coef=0.1 * 3 / 12, variant="paper")
    close(sparse_code_loss(x, code, l1_coef=0.1), paper / 3)


def test_every_position_is_a_sample():
    images = normal(2, 3, 4, 5)
    samples = channel_samples(images)
    assert samples.shape == (40, 3)
    close(samples[1 * 20 + 2 * 5 + 3], images[1, :, 2, 3])
    close(channel_samples(images[:, :, 0, 0]), images[:, :, 0, 0])


def test_what_no_mass_is(unchecked):
    with pytest.raises(ValueError, match=r"feature_entropy: mass must not be negative\. Got -2.*feature_mass"):
        effective_features(torch.tensor([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"feature_entropy: released must be .* Got True"):
        effective_features(torch.ones(2), released=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sparse_code_loss: variant must be 'code' or 'paper'. Got 'sum'"):
        sparse_code_loss(torch.ones(1, 2), tied_code(torch.ones(1, 2), torch.ones(3, 2), torch.ones(3)), variant="sum")  # type: ignore[arg-type]


# --- activation codes


def network(widths: list[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(normal(a, b, seed=seed + i), normal(b, seed=seed + 50 + i)) for i, (a, b) in enumerate(itertools.pairwise(widths))]


def forward(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """What the ReLU layers give, and the output."""
    hidden = []
    for w, b in layers[:-1]:
        x = torch.relu(x @ w + b)
        hidden.append(x)
    return hidden, x @ layers[-1][0] + layers[-1][1]


def test_a_code_is_strictly_positive_values_side_by_side():
    codes = activation_codes([torch.tensor([[0.0, -0.0], [1e-30, -1.0]]), torch.tensor([[[3.0], [torch.nan]], [[-1.0], [2.0]]])])
    assert codes.tolist() == [[False, False, True, False], [True, False, False, True]]


def test_codes_survive_a_rescaling_of_units_and_ratios_a_permutation():
    hidden, _ = forward(normal(80, 3), network([3, 5, 4, 2]))
    codes = activation_codes(hidden)
    assert torch.equal(activation_codes([h * torch.linspace(0.1, 9, h.shape[1]) for h in hidden]), codes)
    shuffled = codes[:, torch.tensor([4, 1, 8, 0, 2, 3, 7, 6, 5])]
    assert redundancy_ratio(shuffled) == redundancy_ratio(codes)
    assert torch.equal(code_indices(shuffled).bincount().sort().values, code_indices(codes).bincount().sort().values)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 10**6))
def test_redundancy_counts_distinct_codes(n, width, seed):
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(5, width, generator=generator) < 0.5
    codes = patterns[torch.randint(0, 5, (n,), generator=generator)]
    rows = [tuple(row) for row in codes.tolist()]
    assert float(redundancy_ratio(codes)) == pytest.approx(1 - len(set(rows)) / n, abs=1e-15)
    index = code_indices(codes).tolist()
    assert all((rows[i] == rows[j]) == (index[i] == index[j]) for i in range(n) for j in range(n))
    assert int(colliding_pairs(codes)) == sum(rows[i] == rows[j] for i, j in itertools.combinations(range(n), 2))
    assert sorted(set(index)) == list(range(len(set(rows))))


@pytest.mark.parametrize("width", [61, 62, 63, 124, 125])
def test_codes_that_differ_in_their_last_bit_alone(width):
    codes = torch.ones(3, width, dtype=torch.bool)
    codes[1, -1] = codes[2, 0] = False
    assert code_indices(codes).unique().numel() == 3


def test_constant_units_say_nothing_and_further_units_only_part():
    codes = torch.cat((bits(60, 4), torch.ones(60, 2).bool(), torch.zeros(60, 1).bool()), 1)
    keep = varying_units(codes)
    assert keep.tolist() == [True] * 4 + [False] * 3
    assert redundancy_ratio(codes[:, keep]) == redundancy_ratio(codes)
    ratios = [float(redundancy_ratio(codes[:, :width])) for width in range(8)]
    assert ratios[0] == pytest.approx(1 - 1 / 60)
    assert ratios == sorted(ratios, reverse=True)


def test_equal_codes_see_one_affine_map():
    layers = network([3, 4, 4, 2], seed=7)
    x = normal(300, 3)
    hidden, output = forward(x, layers)
    codes = activation_codes(hidden)
    checked = 0
    for code in codes.unique(dim=0):
        w, b = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for (weight, bias), on in zip(layers, (code[:4], code[4:], torch.ones(2)), strict=True):
            w, b = w @ weight * on, (b @ weight + bias) * on
        rows = (codes == code).all(1)
        close(x[rows] @ w + b, output[rows], atol=1e-12, rtol=1e-12)
        checked += int(rows.sum())
    assert checked == 300


def test_chance_collisions_is_the_mean_over_all_tables():
    n, width = 3, 2
    tables = [torch.tensor(t).reshape(n, width).bool() for t in itertools.product((0, 1), repeat=n * width)]
    assert sum(int(colliding_pairs(t)) for t in tables) / len(tables) == chance_collisions(n, width)


def test_entropies_of_codes_and_their_saturation():
    codes, labels = bits(40, 3), torch.arange(40) % 4
    index = code_indices(codes)
    assert float(symbol_entropy(index)) <= float(unit_entropy(codes)) <= 3 * math.log(2)
    every = torch.tensor(list(itertools.product((0, 1), repeat=5))).bool()
    assert redundancy_ratio(every) == 0
    close(symbol_entropy(code_indices(every)), math.log(32))
    close(unit_entropy(every), 5 * math.log(2))
    close(symbol_information(code_indices(every), labels[:32]), math.log(4))


def test_class_distances_are_those_of_all_pairs():
    codes, labels = bits(25, 6), torch.randint(-2, 2, (25,), generator=torch.Generator().manual_seed(3))
    apart: dict[bool, list[int]] = {True: [], False: []}
    for i, j in itertools.combinations(range(25), 2):
        apart[bool(labels[i] == labels[j])].append(int((codes[i] != codes[j]).sum()))
    found = class_distances(codes, labels)
    close(found.within, numpy.mean(apart[True]))
    close(found.between, numpy.mean(apart[False]))
    assert class_distances(codes, torch.zeros(25, dtype=torch.int64)).between.isnan()
    assert class_distances(codes, torch.arange(25)).within.isnan()


def test_nearest_codes_vote():
    codes = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1]]).bool()
    labels = torch.tensor([5, 5, 9, 9, 9])
    test, truth = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0]]).bool(), torch.tensor([5, 9, 5])
    assert nearest_code_accuracy(codes, labels, test, truth, k=1) == 1
    assert nearest_code_accuracy(codes, labels, test, truth, k=5) == pytest.approx(1 / 3)  # all vote: 9
    # two from [0, 1, 0]: [0, 0, 0] and [1, 1, 0] at distance 1, one vote each: the smaller label
    assert nearest_code_accuracy(codes, labels, test[2:], truth[2:], k=2) == 1
    assert nearest_code_accuracy(codes.double(), labels, test.double(), truth, k=2) == nearest_code_accuracy(codes, labels, test, truth, k=2)


def test_nearest_codes_are_those_of_all_distances():
    codes, test = bits(70, 9), bits(600, 9, seed=1)  # more than a block
    labels, truth = bits(70, seed=2).long(), bits(600, seed=3).long()
    distance = (test.unsqueeze(1) != codes).sum(2).numpy()
    nearest = numpy.argsort(distance, axis=1, kind="stable")[:, :9]
    voted = labels.numpy()[nearest].mean(1) > 0.5
    close(nearest_code_accuracy(codes, labels, test, truth), (voted == truth.numpy()).mean())


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 60), st.integers(0, 10**6))
def test_cluster_accuracy_against_an_independent_assignment(clusters, classes, n, seed):
    generator = torch.Generator().manual_seed(seed)
    found, labels = torch.randint(0, clusters, (n,), generator=generator), torch.randint(0, classes, (n,), generator=generator)
    table = numpy.zeros((clusters, classes), dtype=int)
    numpy.add.at(table, (found.numpy(), labels.numpy()), 1)
    rows, columns = linear_sum_assignment(-table)
    accuracy = cluster_accuracy(found, labels)
    assert float(accuracy) == pytest.approx(table[rows, columns].sum() / n, abs=1e-15)
    assert float(cluster_accuracy(found, labels, released=True)) == pytest.approx(table.max(1).sum() / n, abs=1e-15)
    assert cluster_accuracy(7 - 3 * found, labels) == accuracy == cluster_accuracy(labels, found)


def test_the_released_matching_lets_clusters_share_a_label():
    clusters, labels = torch.arange(6), torch.tensor([1, 1, 1, 2, 2, 2])
    assert cluster_accuracy(clusters, labels, released=True) == 1
    assert cluster_accuracy(clusters, labels) == pytest.approx(2 / 6)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 10**6))
def test_relabelling_clusters_one_after_the_other_gives_the_released_value_in_any_order(order, seed):
    generator = torch.Generator().manual_seed(seed)
    found, labels = torch.randint(0, 5, (2, 30), generator=generator)
    settled = found.clone()  # raw ids until a cluster is settled, then its label + 100
    for cluster in order:
        mistakes = [int((torch.where(settled == cluster, label, settled) != labels).sum()) for label in range(5)]
        settled[settled == cluster] = 100 + mistakes.index(min(mistakes))
    close(cluster_accuracy(found, labels, released=True), (settled - 100 == labels).double().mean())


def test_probe_line_and_the_diameter_of_a_region():
    sample, centre = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([4.0, 6.0], dtype=torch.float64)
    points = probe_line(sample, centre)
    assert points.shape == (200, 2)
    close(points[0], [1 - 5 * 0.6, 2 - 5 * 0.8])
    close(points[100], [1 + 0.05 * 0.6, 2 + 0.05 * 0.8])
    # one unit, on where the way to the centre passes -1.02, another beyond 2.98: 20 probes behind, 59 ahead
    along = (points - sample) @ torch.tensor([0.6, 0.8], dtype=torch.float64)
    probes = activation_codes([torch.stack((along + 1.02, along - 2.98), 1)])
    close(region_diameter(torch.tensor([True, False]), probes), 0.05 * (20 + 59))


def test_probes_of_one_code_are_consecutive():
    layers = network([3, 6, 6, 2], seed=3)
    for seed in range(20):
        sample, centre = normal(3, seed=seed), normal(3, seed=100 + seed)
        line = torch.cat((probe_line(sample, centre)[:100], sample.unsqueeze(0), probe_line(sample, centre)[100:]))
        codes = activation_codes(forward(line, layers)[0])
        same = (codes == codes[100]).all(1)
        inside = same.nonzero().squeeze(1)
        assert int(inside[-1] - inside[0]) + 1 == len(inside)
        close(region_diameter(codes[100], torch.cat((codes[:100], codes[101:]))), 0.05 * (len(inside) - 1))


def test_channel_codes_are_sums_over_the_span_of_the_layer():
    maps, flat = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]], [[[5.0, 0.0]], [[1.0, 0.0]]]]), torch.ones(2, 1)
    close(channel_codes([maps, flat]), [[0.6, 0.0, 1.0], [1.0, 0.2, 1.0]], rtol=1e-6, atol=1e-6)
    close(channel_codes([8 * maps]), channel_codes([maps]))


def test_errors_name_the_parameter_and_the_way_out(unchecked):
    empty, index = torch.zeros(0, 3).bool(), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"activation_codes: layers must be at least one.*Got \[\]"):
        activation_codes([])
    with pytest.raises(ValueError, match=r"channel_codes: layers .*equally many samples. Got \[\(2, 1\), \(3, 1\)\]"):
        channel_codes([torch.ones(2, 1), torch.ones(3, 1)])
    for name, call in (
        ("redundancy_ratio", lambda: redundancy_ratio(empty)),
        ("unit_entropy", lambda: unit_entropy(empty)),
        ("cluster_accuracy", lambda: cluster_accuracy(index, index)),
    ):
        with pytest.raises(ValueError, match=f"{name}: needs at least one sample. Got none"):
            call()
    with pytest.raises(ValueError, match=r"nearest_code_accuracy: k must lie in \[1, 2\].*Got k=9"):
        nearest_code_accuracy(bits(2, 3), torch.zeros(2, dtype=torch.int64), bits(1, 3), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"probe_line: sample and centre must differ.*Choose another centre"):
        probe_line(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"probe_line: reach must be positive.*Got reach=-1"):
        probe_line(torch.ones(3), torch.zeros(3), reach=-1.0)
