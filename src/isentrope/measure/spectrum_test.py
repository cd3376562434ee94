"""Spectra: closed forms, invariances, the sheets' identities, gradients against finite differences, streams against batches."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure import koopman, spectrum
from isentrope.measure.koopman import koopman_matrix, ridge_pseudo_inverse, temporal_infonce
from isentrope.measure.spectrum import (
    StreamingCovariance,
    alpha_req,
    best_conditioned,
    condition_number,
    covariance_eigenvalues,
    effective_rank,
    effective_rank_of,
    fit_power_law,
    gaussian_condition,
    latent_entropy,
    lidar,
    log_volume,
    log_volume_bound,
    power_law_exponent,
    rankme,
    spectral_entropy,
    von_neumann_entropy,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=1):
    return torch.linalg.qr(draw(d, d, seed=seed)).Q


def test_examples_in_the_docstrings():
    for module in (spectrum, koopman):
        assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


# --- eigenvalues


@pytest.mark.parametrize("k", [1, 2, 7])
def test_equal_eigenvalues_are_counted(k):
    values = torch.cat([torch.full((k,), 3.0, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)])
    assert spectral_entropy(values).item() == pytest.approx(math.log(k), abs=1e-14)
    assert spectral_entropy(values, unit="bits").item() == pytest.approx(math.log2(k), abs=1e-14)
    assert effective_rank_of(values).item() == pytest.approx(k)
    assert von_neumann_entropy(rotation(k + 4) @ torch.diag(values) @ rotation(k + 4).mT).item() == pytest.approx(math.log(k), abs=1e-12)


def test_a_spectrum_of_zeros_has_no_shares():
    assert spectral_entropy(torch.zeros(2, 3)).isnan().all()
    assert von_neumann_entropy(torch.zeros(3, 3)).isnan()
    assert rankme(torch.ones(5, 3)).isnan()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda row: sum(row) > 1e-3), st.floats(1e-3, 1e3))
def test_the_entropy_lies_between_0_and_ln_modes_and_has_no_scale(row, factor):
    values = torch.tensor(row, dtype=torch.float64)
    found = spectral_entropy(values).item()
    assert -1e-12 <= found <= math.log(len(row)) + 1e-12
    assert spectral_entropy(values * factor).item() == pytest.approx(found, abs=1e-9)


# --- features


def decaying(samples=400, d=64):
    return draw(samples, d) * torch.arange(1, d + 1, dtype=torch.float64) ** -1.0


def test_rankme_does_not_see_rotation_translation_or_scale():
    x = decaying()
    found = rankme(x).item()
    for other in (x @ rotation(64), x + 7.0, 3.0 * x, x.flip(0)):
        assert rankme(other).item() == pytest.approx(found, rel=1e-10)
    assert rankme(torch.stack([x, 2 * x])).tolist() == pytest.approx([found, found])


def test_rankme_is_the_rank_of_the_covariance_and_is_below_that_of_singular_values():
    x = decaying()
    assert rankme(x).item() == pytest.approx(effective_rank_of(torch.linalg.eigvalsh(x.mT.cov())).item(), rel=1e-10)
    assert rankme(x).item() < rankme(x, power=1).item()
    assert rankme(x, power=1, center=False).item() == pytest.approx(effective_rank(x).item(), rel=1e-12)


def test_a_common_mean_hides_the_rest_unless_it_is_taken_out():
    x = decaying() + 100.0
    assert rankme(x, center=False).item() < 1.01 < 2 < rankme(x).item()


def test_the_rank_cannot_exceed_the_samples_less_one():
    assert rankme(draw(5, 50)).item() <= 4 + 1e-9
    values = covariance_eigenvalues(draw(5, 50))
    assert values.shape == (5,)
    assert values[-1].item() == pytest.approx(0, abs=1e-20)


def test_keep_cuts_before_the_shares_and_one_hot_classes_are_counted():
    x = torch.eye(8, dtype=torch.float64).repeat(4, 1)
    assert rankme(x).item() == pytest.approx(7)
    assert rankme(x, keep=3).item() == pytest.approx(3)
    assert 0 < rankme(x, released=True).item() - 7 < 1e-4


def test_gradient_of_rankme():
    assert torch.autograd.gradcheck(rankme, draw(6, 4).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: rankme(x, power=1, center=False), draw(6, 4).requires_grad_())


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("modes", [100, 500])
def test_a_power_law_gives_its_exponent_back(alpha, modes):
    values = 5.0 * torch.arange(1, modes + 1, dtype=torch.float64) ** -alpha
    law = fit_power_law(values)
    assert law.exponent == pytest.approx(alpha, abs=1e-12)
    assert law.log_scale == pytest.approx(math.log(5.0), abs=1e-11)
    torch.testing.assert_close(law.at(torch.arange(1.0, modes + 1, dtype=torch.float64)).exp(), values)
    assert power_law_exponent(1e-30 * values) == pytest.approx(alpha, abs=1e-12)


def test_the_fit_weighs_by_one_over_the_rank():
    values = torch.rand(60, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).sort(descending=True).values
    ranks = torch.arange(5, 41, dtype=torch.float64)
    x = torch.stack([-ranks.log(), torch.ones_like(ranks)], 1) / ranks.sqrt().unsqueeze(1)
    wanted = torch.linalg.lstsq(x, (values[4:40].log() / ranks.sqrt()).unsqueeze(1)).solution.squeeze(1)
    law = fit_power_law(values, first=5, last=40)
    assert [law.exponent, law.log_scale] == pytest.approx(wanted.tolist(), rel=1e-10)


def test_short_and_cut_spectra():
    values = torch.arange(1, 31, dtype=torch.float64) ** -1.2
    assert power_law_exponent(values) == pytest.approx(1.2, abs=1e-12)
    assert power_law_exponent(torch.cat([values, torch.zeros(40, dtype=torch.float64)])) == pytest.approx(1.2, abs=1e-12)
    assert math.isnan(power_law_exponent(values[:12]))
    x = draw(300, 40) * torch.arange(1, 41, dtype=torch.float64) ** -0.5
    assert alpha_req(x) == pytest.approx(power_law_exponent(torch.linalg.eigvalsh(x.mT.cov()).flip(0)), rel=1e-9)


def test_lidar_counts_what_tells_objects_apart():
    d, noise = 6, 1e-3 * draw(40, 10, 6)
    apart = torch.zeros(40, 1, d, dtype=torch.float64)
    apart[:, 0, :3] = draw(40, 3, seed=3)
    assert lidar(apart + noise, delta=1e-8).item() == pytest.approx(3, abs=0.3)
    assert lidar(5 * (apart + noise), delta=25e-8).item() == pytest.approx(lidar(apart + noise, delta=1e-8).item(), rel=1e-6)
    assert lidar((apart + noise) @ rotation(d), delta=1e-8).item() == pytest.approx(lidar(apart + noise, delta=1e-8).item(), rel=1e-6)


# --- streams


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2), st.integers(0, 5), st.floats(-1e4, 1e4))
def test_a_stream_equals_the_batch_however_it_is_cut(sizes, split, shift):
    x = draw(sum(sizes), 5) + shift
    whole, parts = StreamingCovariance(5).update(x), x.split(sizes)
    first, second = StreamingCovariance(5), StreamingCovariance(5)
    for part in parts[:split]:
        first.update(part)
    for part in parts[split:]:
        second.update(part.unsqueeze(0))
    first.merge(second)
    assert first.count == len(x)
    torch.testing.assert_close(first.covariance(), x.mT.cov().reshape(5, 5), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.covariance(), first.covariance(), rtol=1e-9, atol=1e-9)
    wanted = covariance_eigenvalues(x)
    torch.testing.assert_close(first.eigenvalues()[: len(wanted)], wanted[:5], rtol=1e-8, atol=1e-8)


def test_a_stream_refuses_what_would_spoil_it_and_keeps_what_it_had():
    seen = StreamingCovariance(2).update(draw(10, 2))
    before = seen.covariance().clone()
    with pytest.raises(ValueError, match=r"1 of 3 vectors hold NaN or inf. Select the others first"):
        seen.update(torch.tensor([[1.0, 2.0], [math.nan, 0.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"must have 2 entries. Got 3"):
        seen.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="widths must agree"):
        seen.merge(StreamingCovariance(3))
    with pytest.raises(ValueError, match=r"needs at least two vectors\. Got 1"):
        StreamingCovariance(2).update(torch.zeros(1, 2)).covariance()
    assert torch.equal(seen.covariance(), before)
    assert seen.update(torch.zeros(0, 2)).count == 10


# --- density matrices


def test_the_von_neumann_entropy_of_a_product_is_the_sum():
    a, b = (torch.diag(torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))) for n in (3, 4))
    whole = von_neumann_entropy(torch.kron(rotation(3) @ a @ rotation(3).mT, b))
    assert whole.item() == pytest.approx((von_neumann_entropy(a) + von_neumann_entropy(b)).item(), rel=1e-12)


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0]], ids=str)
def test_gradient_of_the_von_neumann_entropy_is_the_closed_form_also_at_equal_eigenvalues(values):
    turn = rotation(3)
    sigma = (turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.mT).requires_grad_()
    entropy = von_neumann_entropy(sigma)
    (found,) = torch.autograd.grad(entropy, sigma)
    shares = torch.tensor(values, dtype=torch.float64) / sum(values)
    wanted = -(turn @ torch.diag(shares.log()) @ turn.mT + entropy * torch.eye(3, dtype=torch.float64)) / sum(values)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-9, atol=1e-12)
    step = 1e-6 * (draw(3, 3) + draw(3, 3).mT)
    change = (von_neumann_entropy(sigma + step) - von_neumann_entropy(sigma - step)) / 2
    assert change.item() == pytest.approx((found * step).sum().item(), abs=1e-12)


def test_directions_without_variance_have_no_gradient_and_states_on_a_line_no_entropy():
    sigma = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)).requires_grad_()
    (found,) = torch.autograd.grad(von_neumann_entropy(sigma), sigma)
    assert found.isfinite().all()
    line = draw(50, 1) @ draw(1, 6, seed=4)
    assert latent_entropy(line).item() < 1e-5
    assert latent_entropy(draw(5000, 6)).item() == pytest.approx(math.log(6), abs=1e-2)
    x = draw(4, 9, 6)
    assert latent_entropy(x).item() == pytest.approx(von_neumann_entropy(x.reshape(-1, 6).mT.cov()).item(), abs=1e-6)
    assert torch.autograd.gradcheck(latent_entropy, draw(2, 5, 3).requires_grad_())


# --- conditioning


def test_condition_and_volume_do_not_see_scale_rotation_or_transposition():
    w = draw(7, 4)
    for other in (3 * w, rotation(7) @ w, w @ rotation(4), w.mT):
        assert condition_number(other).item() == pytest.approx(condition_number(w).item(), rel=1e-10)
        assert log_volume(other).item() == pytest.approx(log_volume(w).item(), rel=1e-10)
    assert condition_number(rotation(5)).item() == pytest.approx(1)
    assert log_volume(rotation(5)).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 4), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 0.0]))], ids=["zeros", "rank one", "singular"])
def test_a_deficient_matrix_has_no_finite_condition(matrix):
    assert condition_number(matrix) == math.inf
    assert log_volume(matrix) == -math.inf


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=8))
def test_the_bound_is_never_violated(values):
    w = torch.diag(torch.tensor(values, dtype=torch.float64))
    assert log_volume(w).item() <= log_volume_bound(condition_number(w).item(), len(values)) + 1e-9


@pytest.mark.parametrize("condition", [1.0, 3.0, 1e4])
def test_the_bound_is_reached_by_two_values_and_by_a_flat_middle(condition):
    two = torch.diag(torch.tensor([condition, 1.0], dtype=torch.float64))
    assert log_volume(two).item() == pytest.approx(log_volume_bound(condition, 2), abs=1e-12)
    n, low = 5, math.sqrt(2 / (1 + condition**2))  # c^2 / n = 1: the middle is 1, s_1^2 + s_n^2 = 2
    flat = torch.diag(torch.tensor([condition * low, *[1.0] * (n - 2), low], dtype=torch.float64))
    assert log_volume(flat).item() == pytest.approx(log_volume_bound(condition, n), abs=1e-12)


def test_a_higher_condition_can_go_with_a_larger_volume():
    a, b = (torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([3.0, 1.0, 1.0], [3.5, 2.0, 1.0]))
    assert condition_number(a) < condition_number(b)
    volumes = [float(3 * log_volume(x) - 1.5 * math.log(3)) for x in (a, b)]  # of unit Frobenius norm, as the sheet writes it
    assert volumes == pytest.approx([-2.498, -2.326], abs=1e-3)


@pytest.mark.parametrize(("shape", "tolerance"), [((256, 64), 0.1), ((256, 128), 0.1)])
def test_random_matrices_have_the_condition_of_their_shape(shape, tolerance):
    assert condition_number(draw(*shape)).item() == pytest.approx(gaussian_condition(*shape), rel=tolerance)
    assert gaussian_condition(*shape) == gaussian_condition(*shape[::-1])


def test_square_random_matrices_by_their_mean_logarithm():
    logs = condition_number(draw(200, 32, 32)).log()
    assert logs.mean().item() == pytest.approx(math.log(gaussian_condition(32, 32)), abs=3 * logs.std().item() / math.sqrt(200))


def test_the_best_conditioned_come_first_and_the_deficient_never():
    conditions = {"a": 3.0, "b": math.inf, "c": 1.0, "d": 3.0, "e": math.nan}
    assert best_conditioned(conditions, 2) == ["c", "a"]
    assert best_conditioned(conditions, 9) == ["c", "a", "d"]


# --- koopman


def test_infonce_of_neighbours_that_cannot_be_told_is_the_log_of_their_share():
    states = torch.ones(2, 9, 4, dtype=torch.float64)
    assert temporal_infonce(states, neighbours=2, temperature=0.5).item() == pytest.approx(math.log(8 / 4), abs=1e-6)
    assert temporal_infonce(states[:, :4], neighbours=2).item() == 0
    assert torch.autograd.gradcheck(lambda z: temporal_infonce(z, neighbours=1, temperature=0.5), draw(2, 6, 3).requires_grad_())


def test_infonce_is_small_where_time_is_legible():
    angle = torch.linspace(0, math.pi, 30, dtype=torch.float64)
    curve = torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(0)
    assert temporal_infonce(curve, neighbours=1, temperature=0.01) < temporal_infonce(curve[:, torch.randperm(30)], neighbours=1, temperature=0.01)


@pytest.mark.parametrize("length", [4, 12])
def test_the_ridge_estimate_finds_a_linear_map_and_both_forms_agree(length):
    states, map_ = draw(3, length, 6), draw(6, 6, seed=5)
    both = ridge_pseudo_inverse(states, ridge=0.1)
    torch.testing.assert_close((states.mT @ states + 0.1 * torch.eye(6, dtype=torch.float64)) @ both, states.mT.contiguous())
    if length > 6:
        torch.testing.assert_close(koopman_matrix(states, states @ map_, ridge=1e-10), map_, rtol=1e-6, atol=1e-6)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rankme(torch.zeros(1, 3)), "at least two samples"),
        (lambda: rankme(torch.zeros(4, 3), power=3), "power must be 2"),
        (lambda: lidar(torch.zeros(1, 3, 2)), "at least two objects and two views"),
        (lambda: fit_power_law(torch.ones(9), first=5, last=5), "1 <= first < last"),
        (lambda: StreamingCovariance(0), "d must be at least 1"),
        (lambda: latent_entropy(torch.zeros(1, 3)), "at least two states"),
        (lambda: log_volume_bound(0.5, 3), "condition must be at least 1"),
        (lambda: gaussian_condition(0, 3), "sizes must be at least 1"),
        (lambda: temporal_infonce(torch.zeros(1, 9, 2), temperature=0.0), "temperature must be > 0"),
        (lambda: ridge_pseudo_inverse(torch.zeros(1, 9, 2), ridge=0.0), "ridge must be > 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
