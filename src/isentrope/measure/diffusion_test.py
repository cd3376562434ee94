"""Diffusion spectral entropy: the limits and invariances of the sheet, and information about labels."""

import math

import pytest
import torch

from isentrope.measure.diffusion import (
    adjacency_entropy,
    binned_entropy,
    diffusion_entropy,
    diffusion_information,
    gaussian_kernel,
    matrix_entropy,
    median_distance,
    neighbour_entropy,
    random_subsets,
    scalar_bins,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def clusters(k, each, apart=100.0, spread=0.1):
    return (apart * torch.eye(k, dtype=torch.float64)).repeat_interleave(each, 0) + spread * draw(k * each, k)


def test_the_kernel_has_the_eigenvalues_of_the_random_walk():
    x = draw(40, 3)
    weights = torch.exp(-torch.cdist(x, x).square() / 8)
    walk = torch.linalg.eigvals(weights / weights.sum(1, keepdim=True)).real.sort().values
    found = torch.linalg.eigvalsh(gaussian_kernel(x, 2.0))
    torch.testing.assert_close(found, walk, rtol=0, atol=1e-12)
    assert found[-1].item() == pytest.approx(1)
    assert found[0] > -1e-12


def test_the_anisotropic_operator_is_the_one_of_the_paper_and_zero_is_the_plain_walk():
    x = clusters(2, 15, apart=3.0) * torch.tensor([1.0, 3.0], dtype=torch.float64)
    weights = torch.exp(-torch.cdist(x, x).square() / 2)
    density = weights.sum(1)
    weights = weights / (density.unsqueeze(1) * density)
    walk = torch.linalg.eigvals(weights / weights.sum(1, keepdim=True)).real.sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(gaussian_kernel(x, 1.0, anisotropic=1.0)), walk, rtol=0, atol=1e-12)
    torch.testing.assert_close(gaussian_kernel(x, 1.0, anisotropic=0.0), gaussian_kernel(x, 1.0))
    assert diffusion_entropy(x, 1.0, anisotropic=1.0) != diffusion_entropy(x, 1.0)


@pytest.mark.parametrize(("unit", "scale"), [("nats", 1.0), ("bits", math.log(2))])
def test_limits_of_bandwidth_and_time(unit, scale):
    x = draw(60, 3)
    assert diffusion_entropy(x, 1e-3, unit=unit).item() == pytest.approx(math.log(60) / scale, abs=1e-9)
    assert diffusion_entropy(x, 1e6, unit=unit).item() == pytest.approx(0, abs=1e-6)
    assert diffusion_entropy(clusters(5, 20), 1.0, time=1000, unit=unit).item() == pytest.approx(math.log(5) / scale, abs=1e-9)
    assert diffusion_entropy(torch.ones(9, 2), unit=unit).item() == pytest.approx(0, abs=1e-9)
    assert diffusion_entropy(x[:1], 5.0).item() == pytest.approx(0, abs=1e-12)
    assert diffusion_entropy(x[:0]).isnan()


def test_longer_walks_know_less():
    x = draw(80, 4)
    found = [diffusion_entropy(x, 1.0, time=time).item() for time in (0.5, 1, 2, 5, 20)]
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < found[0] < math.log(80)


def test_rotation_translation_order_and_joint_scale_change_nothing():
    x = draw(50, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1)).Q
    found = diffusion_entropy(x, 1.5).item()
    for other, sigma in ((x @ turn, 1.5), (x + 9, 1.5), (x.flip(0), 1.5), (1e3 * x, 1.5e3)):
        assert diffusion_entropy(other, sigma).item() == pytest.approx(found, abs=1e-9)
    assert diffusion_entropy(7 * x).item() == pytest.approx(diffusion_entropy(x).item(), abs=1e-9)  # the median distance follows
    assert diffusion_entropy(7 * x, 1.5).item() > found  # a fixed bandwidth does not


def test_the_reference_number_of_the_sheet():
    x = torch.rand(1000, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert diffusion_entropy(x, 10.0, unit="bits").item() == pytest.approx(2.30, abs=0.01)


def test_baselines():
    x = draw(60, 3)
    assert adjacency_entropy(x, 2.0).item() == pytest.approx(diffusion_entropy(x, 2.0).item(), abs=1e-12)
    assert adjacency_entropy(clusters(4, 5, spread=0.0), 1.0, kind="gaussian").item() == pytest.approx(math.log(4), abs=1e-9)
    assert neighbour_entropy(clusters(4, 5), 5).item() == pytest.approx(math.log(4), abs=1e-9)
    assert matrix_entropy(torch.zeros(6, 2), 1.0).item() == pytest.approx(math.log(36), abs=1e-12)
    assert matrix_entropy(clusters(4, 5, spread=0.0), 1.0).item() == pytest.approx(math.log(4 * 25), abs=1e-9)


def test_bins():
    x = torch.tensor([[0.0, 5.0], [0.4, 5.0], [0.6, 5.0], [1.0, 5.0]])  # the second dimension is constant
    assert binned_entropy(x).item() == pytest.approx(math.log(2))
    assert binned_entropy(x, 3).item() == pytest.approx(1.5 * math.log(2))  # 1, 2 and 1 rows
    assert binned_entropy(draw(200, 64)).item() == pytest.approx(math.log(200))  # saturated
    assert scalar_bins(torch.tensor([0.0, 0.1, 0.5, 0.99, 1.0]), 2).tolist() == [1, 1, 2, 2, 2]
    assert scalar_bins(torch.ones(3)).tolist() == [1, 1, 1]


def test_labels_that_are_the_clusters_carry_all_of_it_and_shuffled_ones_none():
    x, labels = clusters(5, 20), torch.arange(5).repeat_interleave(20)
    assert diffusion_information(x, labels, 1.0, time=10, unit="bits").item() == pytest.approx(math.log2(5), abs=0.1)
    shuffled = labels[torch.randperm(100, generator=torch.Generator().manual_seed(1))]
    assert abs(diffusion_information(x, shuffled, 1.0, time=10, unit="bits").item()) < 0.1


def test_singletons_add_nothing_and_subsets_are_shared_by_equal_sizes():
    x = draw(30, 2)
    assert diffusion_information(x, torch.arange(30), 1.0).item() == 0
    drawn = random_subsets(torch.tensor([0, 0, 1, 1, 2, 2, 2]), repeats=4)
    assert {size: part.shape for size, part in drawn.items()} == {2: (4, 2), 3: (4, 3)}
    assert all(len(set(line)) == 3 for line in drawn[3].tolist())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diffusion_entropy(torch.zeros(3, 2), 0.0), r"sigma must be > 0\. Got 0\.0\. median_distance"),
        (lambda: diffusion_entropy(torch.zeros(3, 2), time=0.0), "time must be > 0"),
        (lambda: median_distance(torch.zeros(1, 2)), "at least two samples"),
        (lambda: neighbour_entropy(torch.zeros(3, 2), 4), "between 1 and the samples, 3"),
        (lambda: binned_entropy(torch.zeros(0, 2)), "one bin and one sample"),
        (lambda: scalar_bins(torch.zeros(3), 0), "at least one bin"),
        (lambda: diffusion_information(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)), "one class per sample"),
    ],
)
def test_what_cannot_be_is_refused_in_words(unchecked, call, words):
    with pytest.raises(ValueError, match=words):
        call()
