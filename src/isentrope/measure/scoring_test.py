"""Weight of evidence, information value, PSI: the sheet's figures, derivatives, simulation, invariances, edges."""

import math

import numpy
import pytest
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isentrope.measure.distribution import jeffreys, kl
from isentrope.measure.scoring import information_value, pearson_p_value, population_stability, stability_cutoff, weight_of_evidence

G, B = (torch.tensor(row, dtype=torch.float64) for row in ((0.1, 0.2, 0.3, 0.25, 0.15), (0.3, 0.25, 0.2, 0.15, 0.1)))
N_G, N_B = 4000, 800
EXACT = (G * N_G).round().long(), (B * N_B).round().long()
ROWS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=2, max_size=7)


def drawn(shares: torch.Tensor, total: int, times: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(numpy.random.default_rng(seed).multinomial(total, shares.numpy(), times))


def columns(rows) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = zip(*rows, strict=True)
    return torch.tensor(first), torch.tensor(second)


def test_figures_of_the_sheet():
    found = information_value(*EXACT, smoothing=0)
    assert float(found.value) == pytest.approx(0.3427820, abs=5e-8)
    assert float(found.standard_error) == pytest.approx(0.04590, abs=5e-6)
    assert float(found.bias) == pytest.approx(0.0066, abs=5e-5)
    assert not found.near_null
    fixed = 1 / EXACT[0] + 1 / EXACT[1].double()  # the two shortcuts that understate the error: fixed weights, and two independent terms
    apart = (G - B).square()
    assert float((apart * fixed).sum().sqrt()) == pytest.approx(0.02195, abs=5e-6)
    weight = weight_of_evidence(*EXACT, smoothing=0).value
    both = apart * fixed + weight.square() * (G * (1 - G) / N_G + B * (1 - B) / N_B)
    assert float(both.sum().sqrt()) == pytest.approx(0.03096, abs=5e-6)


def test_simulated_error_bias_and_coverage():
    first, second = drawn(G, N_G, 20_000, 1), drawn(B, N_B, 20_000, 2)
    truth = 0.3427820
    for smoothing in (0.0, 0.5, 5.0):
        found = information_value(first, second, smoothing=smoothing)
        assert float(found.value.mean() - truth) == pytest.approx(float(found.bias.mean()), abs=1.5e-3)
        assert float(found.value.std()) == pytest.approx(float(found.standard_error.mean()), rel=0.03)
        low, high = found.interval()
        assert 0.93 <= float(((low <= truth) & (truth <= high)).double().mean()) <= 0.96
    plain = information_value(first, second, smoothing=0)
    assert float(plain.value.mean()) == pytest.approx(0.34916, abs=1.5e-3)
    assert float(plain.value.std()) == pytest.approx(0.04658, abs=1e-3)


def test_simulated_law_without_drift():
    found = population_stability(drawn(G, N_G, 20_000, 3), drawn(G, N_B, 20_000, 4))
    t = found.statistic
    assert (float(t.mean()), float(t.var())) == pytest.approx((4, 8), rel=0.05)
    assert float(t.quantile(0.95)) == pytest.approx(9.488, rel=0.03)
    assert float((found.p_value < 0.05).double().mean()) == pytest.approx(0.05, abs=0.006)
    assert float((found.value > stability_cutoff(5, N_G, N_B)).double().mean()) == pytest.approx(0.05, abs=0.006)
    assert found.near_null.double().mean() > 0.97
    assert bool((found.interval()[0].isnan() == found.near_null).all())
    same = pearson_p_value(drawn(G, 60, 20_000, 5), drawn(G, 40, 20_000, 6))
    assert float((same < 0.05).double().mean()) == pytest.approx(0.05, abs=0.008)


def test_simulated_error_of_the_weights():
    found = weight_of_evidence(drawn(G, N_G, 20_000, 7), drawn(B, N_B, 20_000, 8), smoothing=0.5)
    assert torch.allclose(found.value.std(0), weight_of_evidence(*EXACT, smoothing=0).standard_error, rtol=0.03)
    shift = math.log1p(2.5 / N_B) - math.log1p(2.5 / N_G)  # half a record more in five bins; within a bin, it cancels the bias of the logarithm
    assert torch.allclose(found.value.mean(0), (G / B).log() + shift, atol=2e-3)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_delta_method_is_that_of_jeffreys(rows):
    first, second = columns(rows)
    found = information_value(first, second, smoothing=0)
    g, b = (n / n.sum().double() for n in (first, second))
    assert torch.allclose(found.value, jeffreys(g, b), atol=1e-14)
    assert torch.allclose(found.value, kl(g, b) + kl(b, g), atol=1e-14)
    variance, bias = 0.0, 0.0
    for share, n, j in ((g, first.sum(), lambda x: jeffreys(x, b)), (b, second.sum(), lambda x: jeffreys(g, x))):
        slope, curve = torch.func.grad(j)(share), torch.func.hessian(j)(share)
        covariance = (torch.diag(share) - torch.outer(share, share)) / n
        variance += slope @ covariance @ slope
        bias += (curve * covariance).sum() / 2
    assert float(found.standard_error) == pytest.approx(float(variance) ** 0.5, rel=1e-6, abs=1e-7)
    assert float(found.bias) == pytest.approx(float(bias), rel=1e-10)


@settings(max_examples=50, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.5]))
def test_invariances(rows, smoothing):
    first, second = columns(rows)
    found, swapped = information_value(first, second, smoothing=smoothing), information_value(second, first, smoothing=smoothing)
    more = information_value(torch.cat((first.new_zeros(1), first)).flip(0), torch.cat((second.new_zeros(1), second)).flip(0), smoothing=smoothing)
    for field in ("value", "standard_error", "bias", "statistic", "p_value", "near_null"):
        mine = getattr(found, field).double()
        for other in (swapped, more):
            assert torch.allclose(mine, getattr(other, field).double(), atol=1e-9), field
    assert found.value >= 0
    merged = information_value(torch.cat((first[:1] + first[1:2], first[2:])), torch.cat((second[:1] + second[1:2], second[2:])), smoothing=0)
    assert merged.value <= information_value(first, second, smoothing=0).value + 1e-12
    w, v = weight_of_evidence(first, second, smoothing=smoothing), weight_of_evidence(second, first, smoothing=smoothing)
    assert torch.allclose(w.value, -v.value, atol=1e-12)
    assert torch.allclose(w.standard_error, v.standard_error, atol=1e-12)
    assert information_value(first, first, smoothing=smoothing).p_value == 1


def test_adds_over_independent_features():
    g, h = torch.tensor([[3, 5, 2], [4, 4, 2]]), torch.tensor([[1, 9], [6, 4]])
    joint = [(a.unsqueeze(1) * b).flatten() for a, b in zip(g, h, strict=True)]
    alone = [float(information_value(pair[0], pair[1], smoothing=0).value) for pair in (g, h)]
    assert float(information_value(joint[0], joint[1], smoothing=0).value) == pytest.approx(sum(alone), abs=1e-14)


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_difference_of_two_weights_is_a_log_odds_ratio(rows):
    first, second = columns(rows[:2])
    found = weight_of_evidence(first, second, smoothing=0)
    odds = math.log(rows[0][0] * rows[1][1] / (rows[1][0] * rows[0][1]))
    assert float(found.value[0] - found.value[1]) == pytest.approx(odds, abs=1e-12)
    totals = 2 * (1 / first.sum().double() + 1 / second.sum().double())  # shares of one sample have covariance -g_i g_j / n: of logs, -1/n
    reciprocals = (1 / first.double() + 1 / second.double()).sum()
    assert float(found.standard_error.square().sum() + totals) == pytest.approx(float(reciprocals), rel=1e-12)
    rate, n = first / (first + second).double(), (first + second).double()
    design = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    fisher = design.T @ torch.diag(n * rate * (1 - rate)) @ design  # of a logistic regression on the bin: its coefficient is the same contrast
    assert float(torch.linalg.inv(fisher)[1, 1]) == pytest.approx(float(reciprocals), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=6))
def test_pearson_is_scipys(rows):
    first, second = columns(rows)
    assume(first.sum() and second.sum())
    kept = [row for row in rows if any(row)]
    expected = scipy.stats.chi2_contingency(numpy.array(kept).T, correction=False).pvalue if len(kept) > 1 else 1.0
    assert float(pearson_p_value(first, second)) == pytest.approx(float(expected), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("bins", "level"), [(2, 0.05), (5, 0.01), (20, 0.5), (3, 1e-9)])
def test_cutoff_is_the_quantile(bins, level):
    expected = scipy.stats.chi2.isf(level, bins - 1) * (1 / 700 + 1 / 90)
    assert stability_cutoff(bins, 700, 90, level=level) == pytest.approx(expected, rel=1e-9)


def test_empty_bins_samples_and_batches():
    first, second = torch.tensor([[5, 0, 7], [5, 3, 7], [0, 0, 0]]), torch.tensor([[5, 2, 7], [5, 0, 9], [4, 1, 2]])
    bare, smoothed = (information_value(first, second, smoothing=s) for s in (0, 0.5))
    assert bare.value.tolist()[:2] == bare.standard_error.tolist()[:2] == bare.bias.tolist()[:2] == [math.inf, math.inf]
    assert bare.p_value.isnan().all()
    for field in ("value", "standard_error", "bias", "statistic", "p_value"):
        assert getattr(smoothed, field).isfinite().tolist() == [True, True, False]
        assert torch.equal(getattr(smoothed, field)[1], getattr(information_value(first[1], second[1]), field))
    assert smoothed.value[2].isnan()
    assert pearson_p_value(first, second).isnan().tolist() == [False, False, True]
    weights = weight_of_evidence(torch.tensor([4, 0, 6]), torch.tensor([4, 0, 0]), smoothing=0)
    assert (weights.value[1].item(), weights.standard_error[1].item(), weights.value[2].item()) == (0, math.inf, math.inf)
    assert weight_of_evidence(torch.tensor([0, 0]), torch.tensor([4, 0])).value.isnan().all()


def test_bad_input_is_refused(unchecked):
    n = torch.tensor([3, 4])
    for function, name in ((weight_of_evidence, "weight_of_evidence"), (information_value, "information_value"), (population_stability, "information_value")):
        with pytest.raises(ValueError, match=rf"{name}: counts must not be negative\. Got -1"):
            function(n, torch.tensor([3, -1]))
        with pytest.raises(ValueError, match=rf"{name}: smoothing must be in \[0, inf\)\. Got -0\.5"):
            function(n, n, smoothing=-0.5)
    with pytest.raises(ValueError, match="stability_cutoff: needs bins >= 2"):
        stability_cutoff(1, 10, 10)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\)\. Got 95.*write level=0\.95"):
        information_value(n, n).interval(level=95)
