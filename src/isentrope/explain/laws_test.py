"""The law is recovered where it holds, forecasts are judged by what happened, stages by known knees, degenerate input by its sentence."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.entropy_performance_exchange import plateau_start
from isentrope.explain import laws
from isentrope.explain.fitting_test import ar1


def run(seed: int = 0, count: int = 200, noise: float = 0.02, rho: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A run on the law R = -0.3 exp(H) + 1.2 whose entropy falls exponentially, with correlated errors."""
    rng, step = np.random.default_rng(seed), np.arange(1.0, count + 1)
    entropy = 0.05 + 0.8 * np.exp(-step / 40)
    return step, entropy, -0.3 * np.exp(entropy) + 1.2 + noise * ar1(rng, count, rho)


def test_the_law_is_found_exactly_without_noise():
    _, entropy, reward = run(noise=0.0)
    found = laws.law(entropy, reward)
    assert found.parameters == pytest.approx([0.3, 1.2], abs=1e-9)
    assert laws.ceiling(found).value == pytest.approx(0.9, abs=1e-9)
    assert found.r_squared == pytest.approx(1)


def test_the_intervals_of_the_law_hold_the_truth():
    a, top = [], []
    for seed in range(60):
        _, entropy, reward = run(seed)
        found = laws.law(entropy, reward, seed=seed)
        one, end = found["a"], laws.ceiling(found)
        a.append(one.low <= 0.3 <= one.high)
        top.append(end.low <= 0.9 <= end.high)
    assert 0.85 <= np.mean(a) <= 1
    assert 0.85 <= np.mean(top) <= 1


# --- extrapolation


def by_method(found):
    return {(one.method, one.share): one for one in found}


def test_five_methods_at_every_share():
    found = laws.forecasts(*run())
    assert len(found) == 15
    assert {one.share for one in found} == {0.15, 0.25, 0.5}
    assert [one.knows for one in found[:5]] == ["entropy", "entropy", "update", "update", "nothing"]
    assert all(one.until == 200 * one.share and one.step[0] == one.until + 1 for one in found)


def test_where_the_law_holds_it_beats_the_last_value_and_its_interval_holds():
    covered, law_errors, last_errors, straight_errors = [], [], [], []
    for seed in range(12):
        found = by_method(laws.forecasts(*run(seed, noise=0.01), shares=(0.25,), seed=seed))
        law, last, straight = (found[form.name, 0.25] for form in (laws.LAW, laws.LEVEL, laws.LINEAR))
        covered.append(law.coverage)
        law_errors.append(law.rmse)
        last_errors.append(last.rmse)
        straight_errors.append(straight.rmse)
    assert np.mean(law_errors) < 0.5 * np.mean(last_errors)
    assert np.mean(law_errors) < np.mean(straight_errors)
    assert np.mean(covered) > 0.85


def test_a_forecast_in_earnest_does_not_see_the_later_entropies():
    step, entropy, reward = run()
    other = entropy.copy()
    other[100:] = 3.0
    one, two = (by_method(laws.forecasts(step, h, reward, shares=(0.5,)))[laws.BLIND, 0.5] for h in (entropy, other))
    assert np.array_equal(one.band.value, two.band.value)
    assert np.array_equal(one.band.low, two.band.low)
    told = [by_method(laws.forecasts(step, h, reward, shares=(0.5,)))[laws.LAW.name, 0.5].band.value for h in (entropy, other)]
    assert not np.array_equal(*told)


def test_the_naive_forecast_is_the_mean_of_the_last_tenth_seen():
    step, entropy, reward = run()
    last = by_method(laws.forecasts(step, entropy, reward))[laws.LEVEL.name, 0.5]
    assert last.band.value == pytest.approx(np.full(100, reward[90:100].mean()))
    assert last.rmse == pytest.approx(np.sqrt(np.mean((reward[100:] - reward[90:100].mean()) ** 2)))
    assert last.bias == pytest.approx(reward[90:100].mean() - reward[100:].mean())
    assert last.end_happened == pytest.approx(reward[-5:].mean())


def test_a_run_under_way_has_the_shares_that_it_has_passed():
    step, entropy, reward = run(count=60)
    assert {one.share for one in laws.forecasts(step, entropy, reward, total=200)} == {0.15, 0.25}
    assert laws.forecasts(step[:20], entropy[:20], reward[:20], total=200) == []


def test_ahead_of_all_that_is_known():
    step, entropy, reward = run(count=120, noise=0.005)
    found = laws.ahead(step, entropy, reward, np.array([200.0, 400.0]))
    truth = -0.3 * np.exp(0.05 + 0.8 * np.exp(-np.array([200.0, 400.0]) / 40)) + 1.2
    assert found.problem is None
    assert np.isnan(found.happened).all()
    assert found.band.value == pytest.approx(truth, abs=0.02)
    assert (found.band.low <= truth).all()
    assert (truth <= found.band.high).all()


def test_no_forecast_goes_below_an_entropy_of_zero():
    step = np.arange(1.0, 41)
    entropy = 0.5 - 0.012 * step  # straight: its continuation passes 0 at once
    found = laws.ahead(step, entropy, -0.3 * np.exp(entropy) + 1.2, np.array([500.0]))
    assert found.band.value[0] <= 0.9 + 1e-9


# --- stages


@given(st.integers(8, 60), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_knee_is_that_of_the_two_straight_lines_of_the_paper_module(count, seed):
    y = np.random.default_rng(seed).normal(size=count)
    assert laws._cuts(np.arange(float(count)), y[None])[0] == plateau_start(torch.tensor(y))


def test_a_knee_is_found_with_its_interval():
    rng, step = np.random.default_rng(0), np.arange(1.0, 201)
    found = laws.stages(step, np.where(step < 60, 1 - step / 75, 0.2) + 0.02 * rng.normal(size=200))
    assert found.stage == "plateau"
    assert found.plateau.low <= 60 <= found.plateau.high
    assert found.plateau.high - found.plateau.low < 12
    assert found.slopes[0] == pytest.approx(-1 / 75, rel=0.1)
    assert abs(found.slopes[1]) < 1e-3


def test_a_line_with_correlated_errors_has_no_knee():
    step = np.arange(1.0, 101)
    called = [laws.stages(step, 2 - 0.01 * step + 0.1 * ar1(np.random.default_rng(seed), 100, 0.6), seed=seed, draws=200).chance < 0.05 for seed in range(40)]
    assert np.mean(called) <= 0.15


def test_a_fall_that_becomes_steeper_is_still_rising():
    step = np.arange(1.0, 101)
    found = laws.stages(step, np.where(step < 50, 1.0, 1 - 0.01 * (step - 50)) + 1e-3 * np.sin(step))
    assert (found.stage, found.chance < 0.05) == ("rising", True)
    assert math.isnan(found.plateau.value)


# --- degenerate input


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_points(count):
    step, entropy, reward = run(count=count) if count else (np.zeros(0),) * 3
    assert "points are needed" in laws.law(entropy, reward).problem
    assert "points are needed" in laws.stages(step, entropy).problem
    assert "points are needed" in laws.ahead(step, entropy, reward, np.array([10.0])).problem
    assert all("points are needed" in one.problem for one in laws.forecasts(step, entropy, reward, shares=(0.5,)))


def test_a_constant_entropy_says_so():
    step = np.arange(1.0, 51)
    reward = step / 50
    assert "hardly differ" in laws.law(np.full(50, 0.4), reward).problem
    assert laws.stages(step, np.full(50, 0.4)).problem == "entropy did not move"
    found = by_method(laws.forecasts(step, np.full(50, 0.4), reward, shares=(0.5,)))
    assert "hardly differ" in found[laws.LAW.name, 0.5].problem
    assert math.isnan(found[laws.LAW.name, 0.5].rmse)
    assert math.isnan(found[laws.LAW.name, 0.5].coverage)
    assert found[laws.SATURATING.name, 0.5].problem is None


def test_what_is_not_finite_is_left_out():
    step, entropy, reward = run()
    entropy[10], reward[20], step[30] = math.nan, math.inf, math.nan
    assert len(laws.law(entropy, reward).y) == 198
    assert laws.stages(step, entropy).problem is None
    assert np.isfinite(laws.forecasts(step, entropy, reward)[0].rmse)


@given(st.lists(st.tuples(st.floats(-1, 60), st.floats(-1e3, 1e3) | st.just(math.nan)), max_size=25))
@settings(deadline=None, max_examples=25)
def test_any_run_has_an_answer(points):
    entropy, reward = (np.array([point[at] for point in points], dtype=float) for at in (0, 1))
    step = np.arange(1.0, len(points) + 1)
    laws.stages(step, entropy, draws=20)
    for one in laws.forecasts(step, entropy, reward):
        assert (one.problem is None) == bool(np.isfinite(one.band.value).all())
