"""Least squares with intervals: exact recoveries, published data, coverage under correlated errors, degenerate input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain.fitting import Band, Form, correlation, fit, redrawn

LINE = Form("c x + d", ("c", "d"), lambda x, theta: np.stack([x, np.ones(len(x))], axis=1))
POWER = Form("c + d x^-alpha", ("c", "d"), lambda x, theta: np.stack([np.ones(len(x)), x ** -theta[0]], axis=1), ("alpha",), lambda x: np.array([[0.05, 3.0]]))
TWO = Form("c exp(-t/u) + d exp(-t/v)", ("c", "d"), lambda x, theta: np.exp(-x[:, None] / theta), ("u", "v"), lambda x: np.array([[0.5, 8.0], [10.0, 100.0]]))


def ar1(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """An AR(1) series of standard deviation 1."""
    noise, found = rng.normal(size=count), np.empty(count)
    found[0] = noise[0]
    for at in range(1, count):
        found[at] = rho * found[at - 1] + math.sqrt(1 - rho**2) * noise[at]
    return found


@given(st.floats(-5, 5), st.floats(-5, 5))
@settings(deadline=None, max_examples=25)
def test_points_on_a_line_give_the_line(c, d):
    x = np.linspace(0, 3, 12)
    found = fit(LINE, x, c * x + d, draws=20)
    assert found.parameters == pytest.approx([c, d], abs=1e-9)
    assert found["c"].low == pytest.approx(c, abs=1e-9)
    assert found["d"].high == pytest.approx(d, abs=1e-9)


def test_a_shape_is_found_to_the_precision_of_the_search():
    x = np.arange(1.0, 60)
    found = fit(POWER, x, 2 + 3 * x**-0.7, draws=20)
    assert found.parameters == pytest.approx([2, 3, 0.7], rel=1e-3)
    assert found["alpha"].low == pytest.approx(0.7, rel=1e-3)
    assert found.r_squared > 1 - 1e-9


def test_two_shapes_at_once():
    t = np.arange(0.0, 80)
    found = fit(TWO, t, np.exp(-t / 3) + 2 * np.exp(-t / 40), draws=5)
    assert found.parameters == pytest.approx([1, 2, 3, 40], rel=0.02)


def test_a_law_of_several_columns():
    """L0 + A S1^-alpha - C S2 (sheet lr-annealing-law) with the parameters of its fit, recovered from two schedules."""
    rates = (2e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(2000) / 2000)), np.full(2000, 2e-4))
    columns = []
    for rate in rates:
        fading = np.zeros(2000)
        for at in range(1, 2000):
            fading[at] = 0.99 * fading[at - 1] + rate[at - 1] - rate[at]
        columns.append(np.stack([10 * rate.cumsum(), fading.cumsum()], axis=1)[100::100])
    x = np.concatenate(columns)
    annealing = Form(
        "L0 + A S1^-alpha - C S2", ("L0", "A", "C"), lambda x, theta: np.stack([np.ones(len(x)), x[:, 0] ** -theta[0], -x[:, 1]], axis=1),
        ("alpha",), lambda x: np.array([[0.05, 2.0]]),
    )  # fmt: skip
    found = fit(annealing, x, 2.6278 + 0.4297 * x[:, 0] ** -0.4108 - 0.5498 * x[:, 1], draws=20)
    assert found.parameters == pytest.approx([2.6278, 0.4297, 0.5498, 0.4108], rel=1e-3)


# --- intervals


def coverage(rho: float, *, runs: int = 150, count: int = 80) -> tuple[float, float]:
    """How often the interval of a slope holds it under AR(1) errors, and how often one that takes them as independent does."""
    x, held, pretended = np.linspace(0, 1, count), [], []
    for seed in range(runs):
        y = 2 * x + ar1(np.random.default_rng(seed), count, rho)
        found = fit(LINE, x, y, seed=seed, draws=200)
        rng = np.random.default_rng(seed)
        again = (y - found.residuals)[:, None] + math.sqrt(count / (count - 2)) * found.residuals[rng.integers(0, count, (count, 200))]
        low, high = np.quantile(np.polyfit(x, again, 1)[0], (0.025, 0.975))
        held.append(found["c"].low <= 2 <= found["c"].high)
        pretended.append(low <= 2 <= high)
    return float(np.mean(held)), float(np.mean(pretended))


def test_intervals_hold_with_independent_errors():
    assert 0.89 <= coverage(0.0)[0] <= 0.99


def test_intervals_that_follow_the_correlation_hold_far_more_often():
    held, pretended = coverage(0.6)
    assert pretended < 0.75  # half as wide as they should be
    assert 0.86 <= held <= 0.99


def test_a_band_with_noise_holds_single_observations():
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = np.linspace(0, 1, 40)
        found = fit(LINE, x, 1 - x + 0.1 * rng.normal(size=40), seed=seed, draws=200)
        band = found.band(np.array([0.25, 0.75]), noise=True)
        new = 1 - np.array([0.25, 0.75]) + 0.1 * rng.normal(size=2)
        held += [*((band.low <= new) & (new <= band.high))]
    assert 0.88 <= np.mean(held) <= 0.995


def test_the_band_of_the_mean_is_narrower_than_that_of_an_observation():
    x = np.linspace(0, 1, 40)
    found = fit(LINE, x, x + 0.1 * np.random.default_rng(0).normal(size=40))
    mean, single = found.band(x), found.band(x, noise=True)
    assert ((mean.high - mean.low) < (single.high - single.low)).all()


def test_redrawn_errors_are_as_large_and_as_correlated_as_those_seen():
    seen = 0.3 * ar1(np.random.default_rng(1), 3000, 0.5)
    again = redrawn(seen, 2, 40, np.random.default_rng(0))
    assert again.std() == pytest.approx(0.3, rel=0.05)
    assert np.mean([correlation(one) for one in again]) == pytest.approx(0.5, abs=0.03)


def test_the_correction_takes_away_most_of_the_bias_of_the_correlation():
    raw, corrected = [], []
    for seed in range(200):
        y, t = ar1(np.random.default_rng(seed), 50, 0.5), np.arange(50.0)
        residuals = y - np.polyval(np.polyfit(t, y, 1), t)
        raw.append(correlation(residuals))
        corrected.append(correlation(residuals, 2))
    assert np.mean(raw) < 0.43
    assert np.mean(corrected) == pytest.approx(0.5, abs=0.03)


# --- degenerate input


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], "5 points are needed to fit 2 parameters; there are 3"),
        ([], [], "there are 0"),
        ([0.5] * 20, np.linspace(0, 1, 20), "hardly differ"),
        ([math.nan] * 20, np.linspace(0, 1, 20), "there are 0"),
        ([1, 2, 3, math.inf, 5, 6], [1, math.nan, 3, 4, 5, 6], "there are 4"),
    ],
)
def test_no_answer_is_said(x, y, word):
    found = fit(LINE, np.array(x), np.array(y))
    assert word in found.problem
    assert math.isnan(found["c"].value)
    assert math.isnan(found["c"].low)
    assert math.isnan(found.rmse)
    assert math.isnan(found.r_squared)
    band = found.band(np.array([1.0, 2.0]))
    assert isinstance(band, Band)
    assert np.isnan(band.value).all()


def test_values_that_are_not_finite_are_left_out():
    x, y = np.arange(20.0), 3 * np.arange(20.0)
    y[4], x[7] = math.nan, math.inf
    found = fit(LINE, x, y, draws=10)
    assert len(found.y) == 18
    assert found["c"].value == pytest.approx(3)


def test_a_constant_y_has_a_flat_law_and_no_r_squared():
    found = fit(LINE, np.arange(9.0), np.full(9, 0.5), draws=10)
    assert found["c"].value == pytest.approx(0, abs=1e-12)
    assert math.isnan(found.r_squared)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equally many points"):
        fit(LINE, np.arange(3.0), np.arange(4.0))


@given(st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True)), max_size=30))
@settings(deadline=None, max_examples=60)
def test_any_input_has_an_answer(points):
    x, y = (np.clip(np.array([point[at] for point in points], dtype=float), -1e6, 1e6) for at in (0, 1))
    found = fit(LINE, x, y, draws=10)
    assert (found.problem is None) == bool(np.isfinite(found.parameters).all())


def test_the_same_seed_gives_the_same_intervals():
    x, y = np.linspace(0, 1, 30), np.random.default_rng(0).normal(size=30)
    assert np.array_equal(fit(LINE, x, y, seed=4).draws, fit(LINE, x, y, seed=4).draws)
    assert not np.array_equal(fit(LINE, x, y, seed=4).draws, fit(LINE, x, y, seed=5).draws)
