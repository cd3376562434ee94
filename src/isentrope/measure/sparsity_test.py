"""Identities of the relative error of dropped neurons, its threshold, and the laws of the activation ratio (sheet `sparsing-law`)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope.measure.sparsity import (
    ReluLaw,
    SiluLaw,
    activation_frequency,
    activation_ratio,
    cett,
    cett_threshold,
    kept_by_magnitude,
    kept_neurons,
    kept_top_k,
    neuron_norms,
    perplexity_cett,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(seed: int = 0, tokens: int = 40, neurons: int = 24, model: int = 6) -> tuple[Tensor, Tensor]:
    """A gated layer's hidden values, skewed as after a gate, and its output matrix."""
    return normal(tokens, neurons, seed=seed) * normal(tokens, neurons, seed=seed + 1).exp(), normal(model, neurons, seed=seed + 2)


def test_norms_are_those_of_the_neurons_outputs():
    hidden, weight = layer()
    for token, neuron in ((0, 0), (3, 7), (39, 23)):
        torch.testing.assert_close(neuron_norms(hidden, weight)[token, neuron], (weight[:, neuron] * hidden[token, neuron]).norm())


def test_cett_is_nothing_below_the_least_norm_and_one_above_the_greatest():
    hidden, weight = layer()
    norms = neuron_norms(hidden, weight)
    assert float(cett(hidden, weight, float(norms.min()) * (1 - 1e-9))) == 0
    assert float(cett(hidden, weight, -1.0)) == 0
    assert float(cett(hidden, weight, norms.max())) == pytest.approx(1, abs=1e-14)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_cett_obeys_the_triangle_inequality(seed, quantile):
    hidden, weight = layer(seed)
    norms = neuron_norms(hidden, weight)
    threshold = norms.flatten().quantile(quantile)
    bound = (torch.where(norms <= threshold, norms, 0).sum(1) / (hidden @ weight.mT).norm(dim=1)).mean()
    assert float(cett(hidden, weight, threshold)) <= float(bound) * (1 + 1e-12)


def test_cett_by_hand():
    """Two orthogonal neurons: dropping the smaller of outputs 3 and 4 leaves an error of 3/5; of 6 and 8, above the threshold, nothing is dropped."""
    hidden, weight = torch.tensor([[3.0, -4.0], [6.0, 8.0]]), torch.eye(2)
    assert float(cett(hidden, weight, 3.5)) == pytest.approx(0.3)
    assert float(cett(hidden, weight, 3.5, mask=torch.tensor([True, False]))) == pytest.approx(0.6)
    assert kept_neurons(hidden, weight, 3.5).tolist() == [[False, True], [True, True]]


def test_cett_passes_one_where_the_dropped_cancel_the_kept():
    """Not monotone token by token: outputs 10, -9, -0.5 sum to 0.5; dropping -9 and -0.5 errs by 19 times the output, dropping all by 1."""
    hidden, weight = torch.tensor([[10.0, -9.0, -0.5]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    assert float(cett(hidden, weight, 9.5)) == pytest.approx(19)
    assert float(cett(hidden, weight, 10.0)) == pytest.approx(1)


def test_cett_rises_with_the_threshold_on_average():
    steps = torch.linspace(0, 0.95, 12, dtype=torch.float64)
    mean = torch.zeros(12, dtype=torch.float64)
    for seed in range(20):
        hidden, weight = layer(seed, model=16)
        mean += torch.stack([cett(hidden, weight, t) for t in neuron_norms(hidden, weight).flatten().quantile(steps)])
    assert (mean.diff() > 0).all()


def test_tokens_without_output_are_finite():
    weight = torch.tensor([[1.0, 1.0]])
    assert float(cett(torch.zeros(2, 2), weight, 1.0)) == 0
    cancelled = cett(torch.tensor([[1.0, -1.0], [2.0, 1.0]]), weight, 1.0)
    assert float(cancelled) == pytest.approx((0 + 1 / 3) / 2)  # both of the first are dropped: no error at all
    exact = torch.tensor([[1.0, 1.0, -2.0]], dtype=torch.float64)  # dropping the two errs by 2, the output is 0, known to 4 eps
    assert float(cett(exact, torch.ones(1, 3, dtype=torch.float64), 1.0)) == pytest.approx(2 / (4 * torch.finfo(torch.float64).eps))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(-8, 8), st.floats(0.02, 0.9))
def test_the_kept_neurons_know_neither_scale_nor_order(seed, power, target):
    hidden, weight = layer(seed)
    threshold = cett_threshold(hidden, weight, target)
    kept = kept_neurons(hidden, weight, threshold)
    a, order = 2.0**power, torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    assert cett_threshold(a * hidden, weight / a, target) == threshold
    assert torch.equal(kept_neurons(a * hidden, weight / a, threshold), kept)
    torch.testing.assert_close(cett_threshold(hidden[:, order], weight[:, order], target), threshold, rtol=1e-3, atol=0)
    assert torch.equal(kept_neurons(hidden[:, order], weight[:, order], threshold), kept[:, order])
    torch.testing.assert_close(cett_threshold(a * hidden, weight, target), a * threshold, rtol=1e-12, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.5))
def test_the_threshold_is_a_crossing(seed, target):
    hidden, weight = layer(seed)
    norms = neuron_norms(hidden, weight)
    step = (norms.flatten().quantile(0.99) - norms.min()) / 65535
    threshold = cett_threshold(hidden, weight, target)
    assert float(cett(hidden, weight, threshold)) <= target < float(cett(hidden, weight, threshold + 1.001 * step))
    assert cett_threshold(hidden, weight, target, released=True) == threshold


def test_padding_has_no_say_in_the_threshold():
    hidden, weight = layer()
    mask = torch.arange(40) % 3 != 0
    spoiled = torch.where(mask.unsqueeze(1), hidden, torch.nan)
    assert cett_threshold(spoiled, weight, 0.2, mask=mask) == cett_threshold(hidden[mask], weight, 0.2)
    assert cett(spoiled, weight, 1.0, mask=mask) == cett(hidden[mask], weight, 1.0)


def test_a_target_out_of_reach_is_clamped_to_the_least_and_released_picks_the_greatest():
    hidden, weight = layer()
    norms = neuron_norms(hidden, weight)
    least, greatest = norms.min(), norms.flatten().quantile(0.99)
    assert cett_threshold(hidden, weight, 0.0) == least
    assert kept_neurons(hidden, weight, least).all()
    torch.testing.assert_close(cett_threshold(hidden, weight, 0.0, released=True), greatest)
    flat = torch.ones(3, 4, dtype=torch.float64)  # all norms equal: the least candidate drops everything
    assert cett_threshold(flat, flat, 0.5) == neuron_norms(flat, flat).min()


def test_a_target_never_passed_takes_the_greatest_and_released_the_last_but_one():
    hidden, weight = layer()
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    norms = neuron_norms(hidden, weight)
    expected = norms.min() + (norms.flatten()[:: norms.numel() // 5].quantile(0.5) - norms.min()) * grid
    assert cett(hidden, weight, expected[-1]) < 0.9
    torch.testing.assert_close(cett_threshold(hidden, weight, 0.9, candidates=5, quantile=0.5), expected[-1])
    torch.testing.assert_close(cett_threshold(hidden, weight, 0.9, candidates=5, quantile=0.5, released=True), expected[-2])


def test_bfloat16_is_searched_in_float32():
    hidden, weight = (x.bfloat16() for x in layer())
    threshold = cett_threshold(hidden, weight, 0.2)
    assert threshold.dtype == torch.float32
    torch.testing.assert_close(threshold.double(), cett_threshold(hidden.double(), weight.double(), 0.2), rtol=1e-3, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 0.3), st.floats(0.05, 5))
def test_perplexity_cett_inverts_a_rising_ratio(rise, slope):
    found = perplexity_cett(lambda c: math.exp(slope * c), rise=rise)
    assert found == pytest.approx(min(1.0, math.log1p(rise) / slope), abs=1e-6)


def test_baselines_by_hand():
    gate = torch.tensor([[0.0, -3.0, 1.0, 2.0], [0.0, 0.0, 5.0, -4.0]])
    assert kept_by_magnitude(gate, 2.0).tolist() == [[False, True, False, True], [False, False, True, True]]
    assert kept_by_magnitude(gate, 0.0).tolist() == (gate != 0).tolist()
    assert kept_top_k(gate, 0.25).tolist() == [[False, True, False, False], [False, False, True, False]]
    assert kept_top_k(gate, 0.25, released=True).tolist() == [[False] * 4, [False, False, True, True]]
    assert kept_top_k(gate, 1.0).tolist() == (gate != 0).tolist()
    assert not kept_top_k(gate, 0.0).any()
    assert int(kept_top_k(torch.arange(1.0, 101.0).unsqueeze(0), 0.55).sum()) == 55  # 0.55 * 100 > 55
    row = torch.arange(1.0, 11.0).unsqueeze(0)
    assert (int(kept_top_k(row, 0.9).sum()), int(kept_top_k(row, 0.9, released=True).sum())) == (9, 10)


def test_ratios_are_means_over_the_tokens_that_count():
    kept = normal(3, 8, 5) > 0
    mask = torch.arange(8) < 6
    torch.testing.assert_close(activation_frequency(kept, mask=mask), kept[:, :6].float().mean(1))
    torch.testing.assert_close(activation_ratio(kept, mask=mask), kept[:, :6].float().mean((1, 2)))
    torch.testing.assert_close(activation_ratio(kept), kept.float().mean((1, 2)))
    assert activation_ratio(kept, mask=torch.zeros(8, dtype=torch.bool)).isnan().all()


def test_laws_at_their_limits_and_at_100_billion_tokens():
    small, large = ReluLaw(alpha=0.101, b=-0.0151, c=3.20, limit=0.0614), ReluLaw(alpha=1.33, b=-3.89, c=9.03e-4, limit=0.0782)
    ends = torch.tensor([0.0, math.inf], dtype=torch.float64)
    assert small(ends).tolist() == pytest.approx([math.exp(-0.0151) + 0.0614, 0.0614])
    gated = SiluLaw(alpha=0.479, c=0.102, limit=0.409)
    assert gated(ends).tolist() == [-math.inf, 0.409]
    hundred = torch.tensor(100.0, dtype=torch.float64)
    values = [float(law(hundred)) for law in (small, large, gated, SiluLaw(alpha=0.967, c=0.538, limit=0.382))]
    assert values == pytest.approx([0.0674, 0.0917, 0.398, 0.376], abs=5e-4)
    tokens = torch.linspace(1, 300, 50, dtype=torch.float64)
    assert (small(tokens).diff() < 0).all()
    assert (gated(tokens).diff() > 0).all()


def test_errors_name_the_parameter_and_the_way_out(unchecked):
    hidden, weight = layer()
    with pytest.raises(ValueError, match=r"cett_threshold: target must be a fraction in \[0, 1\].*Got target=20"):
        cett_threshold(hidden, weight, 20.0)
    with pytest.raises(ValueError, match=r"cett: needs at least one token that counts. Got none of 40"):
        cett(hidden, weight, 1.0, mask=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"perplexity_cett: rise must be positive.*Got rise=0.*For 1 % write rise=0.01"):
        perplexity_cett(lambda c: 1.0, rise=0)
    with pytest.raises(ValueError, match=r"kept_top_k: share must be a fraction in \[0, 1\]. Got 20\.0\. For 20 % write 0\.2"):
        kept_top_k(hidden, 20.0)
