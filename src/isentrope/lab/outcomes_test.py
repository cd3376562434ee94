"""Matched step and matched reward on curves that can be worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.lab.outcomes import MIN_RANGE, Outcome, common, knots, matched

STEPS = np.arange(0, 121, 20.0)


def run(reward, entropy=None, step=STEPS, **train) -> Outcome:
    reward = np.asarray(reward, dtype=float)
    entropy = 1 - reward if entropy is None else np.asarray(entropy, dtype=float)
    return Outcome(np.asarray(step, dtype=float), {"pass@1": reward, "entropy": entropy}, {name: np.asarray(value) for name, value in train.items()}, {})


def test_matched_step_is_the_mean_of_the_last_third():
    one = run([0, 1, 2, 3, 4, 5, 6])
    assert one.late("pass@1") == 5.0  # of updates 80, 100, 120
    assert math.isnan(one.late("maj@16"))


def test_falling_neighbours_are_pooled_with_their_steps_and_metrics():
    found = knots(run([0.1, 0.5, 0.3, 0.6, 0.6, 0.7, 0.2], entropy=[7, 6, 5, 4, 3, 2, 1]), "entropy")
    assert found["pass@1"] == pytest.approx([0.1, 0.4, 0.525])
    assert found["step"] == pytest.approx([0, 30, 90])
    assert found["entropy"] == pytest.approx([7, 5.5, 2.5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
@settings(deadline=None)
def test_knots_rise_and_keep_the_mean(rewards):
    step = np.arange(len(rewards), dtype=float)
    found = knots(run(rewards, step=step), "entropy")
    assert (np.diff(found["pass@1"]) > 0).all()
    assert (np.diff(found["step"]) > 0).all()
    assert min(rewards) - 1e-9 <= found["pass@1"][0]
    assert found["pass@1"][-1] <= max(rewards) + 1e-9


def test_pools_of_equal_means_are_one_although_their_sums_round_differently():
    """Counts of right answers of 48, from a run: its last pools have the same mean up to the last bit."""
    one = run(np.array([13, 18, 19, 17, 18, 16, 16, 16, 16, 17, 17]) / 48, step=np.arange(11))
    other = run(np.array([13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]) / 48, step=np.arange(11))
    assert knots(one)["pass@1"] == pytest.approx([13 / 48, 17 / 48])
    assert math.isfinite(matched(one, other, "entropy"))


@given(st.lists(st.integers(0, 48), min_size=2, max_size=12))
@settings(deadline=None)
def test_every_curve_of_counts_can_be_compared_or_is_told_not_to_be(counts):
    one, other = run(np.array(counts) / 48, step=np.arange(len(counts))), run(np.linspace(0.1, 0.9, 7))
    low, _ = common(one, other)
    assert math.isnan(matched(one, other, "entropy")) == math.isnan(low)


def test_a_slower_learner_on_the_same_path_differs_at_matched_step_and_not_at_matched_reward():
    fast, slow = run(np.linspace(0.2, 0.8, 7)), run(np.linspace(0.2, 0.5, 7))
    assert slow.late("entropy") > fast.late("entropy") + 0.1
    assert matched(slow, fast, "entropy") == pytest.approx(0, abs=1e-12)
    assert common(slow, fast) == pytest.approx((0.35, 0.5))
    assert matched(slow, fast, "step") == pytest.approx(np.mean((np.linspace(0.35, 0.5, 65) - 0.2) * (400 - 200)))


def test_a_bent_path_is_the_same_path_however_the_evaluations_fall_on_it():
    """entropy = (1 - reward)^2, one run at twice the other's spacing in reward: straight lines would differ by up to spacing^2 / 4 = 0.01."""
    dense, sparse = np.linspace(0.2, 0.5, 7), np.linspace(0.2, 0.8, 4)
    one, other = run(dense, (1 - dense) ** 2), run(sparse, (1 - sparse) ** 2, step=np.arange(4) * 40.0)
    assert abs(matched(one, other, "entropy")) < 4e-4


def test_another_path_differs_at_matched_reward_by_what_it_differs():
    base = run(np.linspace(0.2, 0.8, 7))
    other = run(np.linspace(0.2, 0.7, 7), entropy=1.05 - np.linspace(0.2, 0.7, 7))
    assert matched(other, base, "entropy") == pytest.approx(0.05)
    assert matched(base, other, "entropy") == pytest.approx(-0.05)


def test_runs_without_a_reward_in_common_compare_nothing():
    base, low = run(np.linspace(0.4, 0.8, 7)), run(np.linspace(0.1, 0.4 + 0.9 * MIN_RANGE, 7))
    assert math.isnan(matched(low, base, "entropy"))
    assert all(map(math.isnan, common(low, base)))
    flat = run(np.full(7, 0.5))
    assert math.isnan(matched(flat, base, "entropy"))
    assert math.isnan(matched(base, base, "maj@16"))


def test_the_stride_is_per_unit_of_learning_rate():
    one = run([0, 1], step=[0, 4], **{"update/norm": [9.0, 1.0, 0.5, 0.0], "learning_rate": [1.0, 0.5, 0.25, 0.0]})
    assert one.stride() == pytest.approx((9 + 2 + 2) / 3)
    assert one.stride(skip=1) == pytest.approx(2.0)
    assert one.path() == 10.5
    assert math.isnan(run([0, 1], step=[0, 4]).stride())
