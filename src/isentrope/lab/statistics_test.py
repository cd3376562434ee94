"""Statistics against closed forms and against worlds whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from isentrope.lab import statistics
from isentrope.lab.statistics import ALPHA, FEWEST, POWER, compared, detectable, holm, interval, pooled, prior_of, ranks, shared_freedom

METHODS, SEEDS = 12, 6


def null(rng: np.random.Generator, scale: np.ndarray, base: float = 1.0, seeds: int = SEEDS) -> tuple[np.ndarray, np.ndarray]:
    """Differences to one shared baseline and to placebos of their own, where nothing does anything: (methods x seeds) twice."""
    shape = (len(scale), seeds)
    method, placebo = (rng.normal(size=shape) * scale[:, None] for _ in range(2))
    return method - base * rng.normal(size=seeds), method - placebo


# --- Holm


def test_holm_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_holm_keeps_the_order_and_lies_between_each_p_and_bonferroni(p):
    adjusted = holm(p)
    assert all(min(1.0, one) <= two <= min(1.0, len(p) * one) + 1e-12 for one, two in zip(p, adjusted, strict=True))
    assert [adjusted[at] for at in np.argsort(p, kind="stable")] == sorted(adjusted)
    assert min(adjusted) == min(1.0, len(p) * min(p))


# --- variances


@pytest.mark.parametrize("value", [1e-3, 0.3, 1.0, 20.0])
def test_the_trigamma_inverse_is_one(value):
    assert special.polygamma(1, statistics._trigamma_inverse(value)) == pytest.approx(value, rel=1e-8)


def test_the_prior_of_variances_is_found_again():
    """s^2 ~ s0^2 F(d, d0) with s0^2 = 2, d0 = 8, d = 5."""
    rng = np.random.default_rng(0)
    variances = 2.0 * stats.f.rvs(5, 8, size=20_000, random_state=rng)
    prior, strength = prior_of(variances, np.full(20_000, 5))
    assert prior == pytest.approx(2.0, rel=0.05)
    assert strength == pytest.approx(8.0, rel=0.1)


def test_equal_variances_are_pooled_whole():
    rng = np.random.default_rng(1)
    prior, strength = prior_of(3.0 * rng.chisquare(5, size=20_000) / 5, np.full(20_000, 5))
    assert prior == pytest.approx(3.0, rel=0.03)
    assert strength > 100


def test_rows_that_share_a_reference_have_four_times_the_freedom_of_one():
    """rho = 1/2 between any two, so the mean of rho^2 tends to 1/4; independent rows have d each."""
    rng = np.random.default_rng(2)
    shared = np.median([shared_freedom(null(rng, np.ones(40), seeds=30)[0]) for _ in range(40)])
    assert shared == pytest.approx(4 * 29, rel=0.2)
    apart = np.median([shared_freedom(rng.normal(size=(40, 30))) for _ in range(40)])
    assert apart > 20 * 29


def test_a_deviation_is_never_taken_smaller_than_it_is_and_an_outlier_keeps_its_freedom():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(METHODS, SEEDS))
    values[4] *= 20
    own = values.var(1, ddof=1)
    deviations, freedoms = pooled(values, own, np.full(METHODS, SEEDS - 1))
    assert (deviations >= np.sqrt(own) * (1 - 1e-12)).all()
    assert (deviations > 1.01 * np.sqrt(own)).sum() >= 3
    assert freedoms[4] == SEEDS - 1
    assert (np.delete(freedoms, 4) > SEEDS - 1).all()


def test_two_methods_are_too_few_to_pool():
    values = np.random.default_rng(4).normal(size=(2, SEEDS))
    own = values.var(1, ddof=1)
    deviations, freedoms = pooled(values, own, np.full(2, SEEDS - 1))
    assert deviations.tolist() == np.sqrt(own).tolist()
    assert freedoms.tolist() == [SEEDS - 1, SEEDS - 1]
    (found,) = compared([values], resamples=10)
    assert [item.p for item in found] == pytest.approx(stats.ttest_1samp(values, 0, axis=1).pvalue)


# --- intervals


def test_the_interval_of_many_values_is_that_of_students_t():
    values = np.random.default_rng(5).normal(size=60)
    low, high = interval(values, resamples=40_000)
    half = stats.t.ppf(0.975, 59) * values.std(ddof=1) / math.sqrt(60)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_the_interval_of_six_values_covers_and_a_plain_percentile_one_would_not():
    """Nominal 0.95. Over 1,000 worlds the standard error of a coverage is 0.008."""
    rng = np.random.default_rng(6)
    worlds = rng.normal(size=(1000, SEEDS))
    covered = np.mean([low <= 0 <= high for low, high in (interval(world, seed=at, resamples=1000) for at, world in enumerate(worlds))])
    drawn = rng.integers(SEEDS, size=(1000, SEEDS))
    plain = np.mean([np.quantile(world[drawn].mean(1), 0.025) <= 0 <= np.quantile(world[drawn].mean(1), 0.975) for world in worlds])
    assert 0.90 < covered < 0.97
    assert plain < 0.89


def test_too_few_seeds_have_no_interval():
    assert all(map(math.isnan, interval(np.ones(FEWEST - 1))))


# --- error and power


@pytest.mark.parametrize(
    ("scale", "base"),
    [(np.ones(METHODS), 1.0), (np.ones(METHODS), 2.0), (np.geomspace(0.5, 2, METHODS), 1.0), (np.r_[np.ones(METHODS - 1), 4.0], 1.0), (np.ones(3), 1.0)],
    ids=["equal", "noisy baseline", "unequal", "one wild", "three methods"],
)
def test_a_page_of_nothing_finds_something_once_in_twenty(scale, base):
    """Both references, one Holm family. Bound: 0.05 and two standard errors of 300 worlds."""
    rng = np.random.default_rng(7)
    wrong = np.mean([any(item.adjusted <= ALPHA for group in compared(null(rng, scale, base), resamples=1) for item in group) for _ in range(300)])
    assert wrong <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.parametrize(("freedom", "pairs"), [(5, 6), (20, 6), (7, 8)])
def test_what_is_called_detectable_is_found_four_times_in_five(freedom, pairs):
    level, deviation = 0.05 / 24, 0.7
    shift = detectable(deviation, pairs, freedom, level) * math.sqrt(pairs) / deviation
    rng = np.random.default_rng(8)
    t = (rng.normal(size=200_000) + shift) / np.sqrt(rng.chisquare(freedom, size=200_000) / freedom)
    assert np.mean(t > stats.t.isf(level / 2, freedom)) == pytest.approx(POWER, abs=0.005)


def test_a_difference_of_the_detectable_size_is_found_about_that_often():
    """One of twelve methods is better by what the page of equal noise calls detectable (median over pages)."""
    rng = np.random.default_rng(9)
    size = np.median([item.detectable for _ in range(20) for item in compared(null(rng, np.ones(METHODS)), resamples=1)[0]])
    found = 0
    for _ in range(200):
        base, sham = null(rng, np.ones(METHODS))
        base[0] += size
        found += compared((base, sham), resamples=1)[0][0].found == 1
    assert 0.65 < found / 200 < 0.92


# --- what is missing


def test_missing_runs_single_pairs_and_equal_runs_have_defined_answers():
    values = np.array([[1.0, 2.0, math.nan, 1.5], [math.nan, math.nan, math.nan, 3.0], [math.nan] * 4, [0.0] * 4, [0.5, 0.1, 0.2, 0.7]])
    ((part, single, none, equal, whole),) = compared([values], resamples=10)
    assert (part.mean, part.pairs) == (1.5, 3)
    assert single.pairs == 1
    assert math.isnan(single.p)
    assert single.found == 0
    assert none.pairs == 0
    assert math.isnan(none.mean)
    assert equal.identical
    assert (equal.mean, equal.p, equal.adjusted, equal.found) == (0.0, 1.0, 1.0, 0)
    assert math.isnan(equal.detectable)
    assert whole.adjusted == pytest.approx(min(1.0, 2 * min(whole.p, part.p)) if whole.p < part.p else max(2 * part.p, whole.p))


def test_a_constant_difference_without_any_spread_is_found():
    """Not identical, but without noise: nothing to divide by, and nothing to doubt."""
    ((item,),) = compared([np.full((1, 4), 0.25)], resamples=10)
    assert (item.mean, item.p, item.found) == (0.25, 0.0, 1)


# --- ranks


def test_ranks_with_and_without_overlap():
    clear = np.array([[1.0, 1.1, 0.9], [3.0, 3.1, 2.9], [2.0, 2.1, 1.9]])
    assert ranks(clear, resamples=200) == [(3, 3, 3), (1, 1, 1), (2, 2, 2)]
    mixed = np.array([[0.0, 4.0, 1.0], [1.0, 0.0, 4.1]])
    assert ranks(mixed, resamples=500) == [(2, 1, 2), (1, 1, 2)]


def test_ranks_of_little_say_so():
    one = np.array([[1.0, math.nan], [2.0, 1.0], [0.0, 3.0]])
    assert ranks(one) == [(2, 1, 3), (1, 1, 3), (3, 1, 3)]
    assert ranks(np.full((2, 2), math.nan)) == [(0, 1, 2), (0, 1, 2)]
