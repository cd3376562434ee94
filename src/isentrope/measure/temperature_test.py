"""Entropy against temperature: derivatives by finite differences, the search against closed forms, and where no temperature reaches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.distribution import shannon
from isentrope.measure.temperature import entropy_curvature, entropy_slope, released_search, temperature_for_entropy


def draw(seed=0, rows=4, outcomes=9):
    return 2 * torch.randn(rows, outcomes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def entropy(logits, heat):
    return shannon(logits / heat.unsqueeze(-1), logits=True)


def test_both_derivatives_by_finite_differences():
    logits, heat, h = draw(), torch.tensor([0.3, 0.8, 1.5, 4.0], dtype=torch.float64), 1e-4
    up, here, down = (entropy(logits, heat + step) for step in (h, 0, -h))
    torch.testing.assert_close(entropy_slope(logits, heat), (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(entropy_curvature(logits, heat), (up - 2 * here + down) / h**2, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(entropy_curvature(logits, heat, released=True), entropy_curvature(logits, heat))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 99), st.floats(0.05, 0.98))
def test_the_temperature_found_has_the_entropy_asked_for(seed, share):
    logits = draw(seed)
    target = torch.full((4,), share * math.log(9), dtype=torch.float64)
    torch.testing.assert_close(entropy(logits, temperature_for_entropy(logits, target)), target, rtol=1e-7, atol=1e-7)


def test_two_outcomes_in_closed_form_and_impossible_ones():
    p = torch.tensor([0.9], dtype=torch.float64)
    target = torch.special.entr(p) + torch.special.entr(1 - p)
    logits = torch.tensor([[3.0, 0.0, -math.inf]], dtype=torch.float64)
    assert temperature_for_entropy(logits, target).item() == pytest.approx(3 / math.log(9), rel=1e-9)
    assert entropy_slope(logits, torch.ones(1, dtype=torch.float64)).isfinite().all()


def test_entropies_out_of_reach_are_at_the_ends():
    flat, tied = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0]])
    assert temperature_for_entropy(flat, torch.tensor([0.5])).item() == pytest.approx(1e-6, rel=1e-4)
    assert temperature_for_entropy(tied, torch.tensor([0.5])).item() == pytest.approx(1e-6, rel=1e-4)  # at least ln 2
    assert temperature_for_entropy(tied, torch.tensor([1.2])).item() == pytest.approx(1e6, rel=1e-4)


def test_the_released_search_arrives_where_its_steps_suffice_and_walks_by_a_tenth_where_none_is_defined():
    logits, target = draw(), torch.full((4,), 1.0, dtype=torch.float64)
    torch.testing.assert_close(released_search(logits, target, steps=30).double(), temperature_for_entropy(logits, target), rtol=1e-4, atol=1e-4)
    assert released_search(torch.zeros(1, 5), torch.ones(1)).item() == pytest.approx(0.9**10, rel=1e-5)


def test_a_temperature_must_be_positive():
    with pytest.raises(ValueError, match=r"temperature must be > 0\. Got 0\.0"):
        entropy_slope(draw(), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
