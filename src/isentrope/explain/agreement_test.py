"""Agreement of a prediction with a measurement: the textbook formulas, their invariances, and intervals that cover the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain.agreement import agreement, by_thirds

numbers = st.lists(st.floats(-5, 5), min_size=4, max_size=40)


@settings(deadline=None, max_examples=30)
@given(numbers, st.integers(0, 100))
def test_correlation_and_slope_are_numpys(x, seed):
    x = np.array(x)
    y = 0.7 * x + np.random.default_rng(seed).normal(size=len(x))
    if np.ptp(x) < 1e-3:
        return
    found = agreement(x, y, resamples=50)
    assert found.correlation.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert found.slope.value == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6, abs=1e-9)
    assert found.updates == len(x)


def test_scale_and_shift_change_the_slope_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + 0.2 * rng.normal(size=30)
    plain, scaled = agreement(x, y), agreement(1e-3 * x, y + 5)
    assert scaled.correlation.value == pytest.approx(plain.correlation.value)
    assert (scaled.slope.value, scaled.slope.low) == pytest.approx((1e3 * plain.slope.value, 1e3 * plain.slope.low))


def test_sign_agreement_counts_pairs_and_wilson_holds_it_in_bounds():
    found = agreement(np.array([1.0, -1, 2, 0, -3]), np.array([2.0, -3, -1, 0, -1])).sign_agreement
    assert found.value == 3 / 4  # the pair of zeros says nothing
    z2, n, p = 1.959964**2, 4, 0.75
    assert found.low == pytest.approx((p + z2 / (2 * n) - math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))) / (1 + z2 / n))
    assert agreement(np.ones(3), np.ones(3)).sign_agreement.high == 1.0


def test_intervals_cover_the_truth_of_correlated_noise():
    rng, covered, count = np.random.default_rng(1), 0, 60
    for _ in range(100):
        x = np.cumsum(rng.normal(size=count)) / 3
        noise = np.convolve(rng.normal(size=count + 2), np.ones(3) / 3, "valid")  # neighbours share two thirds of it
        found = agreement(x, 1.5 * x + noise, resamples=300).slope
        covered += found.low <= 1.5 <= found.high
    assert 0.8 <= covered / 100 <= 1.0


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0, 2.0], [1.0, 2.0]), ([1.0] * 5, [1.0, 2, 3, 4, 5]), ([math.nan] * 5, [1.0] * 5)])
def test_too_little_to_say_is_nan_and_no_error(x, y):
    found = agreement(np.array(x), np.array(y))
    assert math.isnan(found.correlation.value)
    assert math.isnan(found.slope.value)


def test_a_measurement_that_never_moves_has_slope_zero_and_no_correlation():
    found = agreement(np.arange(5.0), np.zeros(5))
    assert (found.slope.value, math.isnan(found.correlation.value)) == (0.0, True)


def test_thirds_split_the_updates_in_their_order():
    steps = np.array([9, 1, 5, 3, 7, 11, 13, 15, 17])
    x = np.arange(9.0)[np.argsort(np.argsort(steps))]
    y = np.where(steps <= 5, 2 * x, np.where(steps <= 11, -x, 0.5 * x))
    found = by_thirds(steps, x, y)
    assert [found[name].slope.value for name in ("early", "middle", "late")] == pytest.approx([2.0, -1.0, 0.5])
    assert found["all"].updates == 9
    assert by_thirds(np.array([1]), np.array([1.0]), np.array([1.0]))["late"].updates == 0
