"""Every word on a case that must earn it, and how often verdicts err where the truth is known."""

import math

import numpy as np
import pytest

from isentrope.lab.statistics import ALPHA, Difference, compared
from isentrope.lab.verdict import WORDS, judge, same_path, signed


def difference(mean=0.0, adjusted=1.0, pairs=6, identical=False) -> Difference:
    return Difference(mean, mean - 0.01, mean + 0.01, 0.02, pairs, 20.0, adjusted / 10, adjusted, 0.03, identical)


UP, DOWN, NONE = difference(0.05, 0.01), difference(-0.05, 0.01), difference(0.004)
SAME = {"entropy": NONE, "pass@4": NONE, "maj@16": NONE, "length": NONE}
KEPT = {**SAME, "entropy": difference(0.1, 0.001)}


def outcomes(one, many):
    return {"pass@1": one, "pass@4": many}


@pytest.mark.parametrize(
    ("base", "sham", "matched", "word"),
    [
        ((NONE, NONE), (NONE, NONE), SAME, "no difference found"),
        ((NONE, NONE), (UP, NONE), SAME, "no difference found"),
        ((UP, NONE), (UP, NONE), SAME, "helps"),
        ((NONE, UP), (UP, UP), SAME, "helps"),
        ((UP, NONE), (NONE, UP), SAME, "same as its placebo"),
        ((UP, UP), (DOWN, NONE), SAME, "same as its placebo"),
        ((DOWN, NONE), (NONE, NONE), SAME, "same as its placebo"),
        ((UP, NONE), None, SAME, "helps"),
        ((DOWN, NONE), (DOWN, NONE), SAME, "slower learning only"),
        ((DOWN, NONE), (DOWN, NONE), KEPT, "hurts"),
        ((DOWN, NONE), None, {}, "hurts"),
        ((NONE, DOWN), (NONE, DOWN), SAME, "hurts"),
        ((DOWN, UP), (DOWN, NONE), SAME, "trades"),
        ((difference(pairs=2), NONE), (NONE, NONE), SAME, "not judged"),
        ((difference(identical=True), difference(identical=True)), (NONE, NONE), SAME, "same computation"),
    ],
)
def test_each_word_has_its_case(base, sham, matched, word):
    verdict = judge(outcomes(*base), None if sham is None else outcomes(*sham), matched)
    assert verdict.word == word
    assert verdict.word in WORDS
    assert verdict.because


def test_the_sentence_gives_figures_and_what_could_have_been_seen():
    assert "0.03 pass@1, 0.03 pass@4 would have been seen" in judge(outcomes(NONE, NONE), outcomes(NONE, NONE), SAME).because
    helped = judge(outcomes(UP, NONE), outcomes(UP, NONE), KEPT)
    assert "Against the baseline +0.050 [+0.040, +0.060] pass@1 (corrected p 0.01)" in helped.because
    assert helped.entropy == "Entropy at the same reward is higher: +0.100 [+0.090, +0.110] nats (corrected p 0.001)."
    assert "has no placebo" in judge(outcomes(UP, NONE), None, SAME).because
    assert "too few runs of its placebo" in judge(outcomes(UP, NONE), outcomes(difference(pairs=1), NONE), SAME).because


def test_slower_only_needs_every_comparison_at_matched_reward():
    assert same_path(SAME)
    assert not same_path({})
    assert not same_path({**SAME, "length": difference(pairs=2)})
    assert not same_path(KEPT)
    assert same_path({**SAME, "entropy": Difference(0.1, 0, 0, 0.1, 6, 5.0, 0.04)})  # 0.04 x 4 tests


def test_a_number_that_is_not_known_is_a_dash():
    assert signed(math.nan) == "—"


# --- error and power of the verdicts themselves

METHODS, SEEDS = 12, 6


def words(rng: np.random.Generator, effect: np.ndarray, sham_effect: np.ndarray) -> list[str]:
    """Verdicts of a world of correlated outcomes: pass@1 moves by `effect` for the methods and by `sham_effect` for their placebos."""
    noise = lambda rows: rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 0.25 + 0.1]], size=(rows, SEEDS))  # noqa: E731
    base, method, sham = noise(1), noise(METHODS), noise(METHODS)
    method[..., 0] += effect[:, None]
    sham[..., 0] += sham_effect[:, None]
    groups = [(method - other)[..., at] for at in (0, 1) for other in (base, sham)]
    one_base, one_sham, many_base, many_sham = compared(groups, resamples=1)
    return [judge(outcomes(a, c), outcomes(b, d), SAME).word for a, b, c, d in zip(one_base, one_sham, many_base, many_sham, strict=True)]


def test_where_nothing_does_anything_a_page_says_so_nineteen_times_in_twenty():
    """Bound: 0.05 and two standard errors of 250 pages."""
    rng, nothing = np.random.default_rng(0), np.zeros(METHODS)
    wrong = np.mean([set(words(rng, nothing, nothing)) != {"no difference found"} for _ in range(250)])
    assert wrong <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 250)


def test_where_only_the_budget_acts_hardly_a_page_says_that_a_method_helps():
    """Methods and placebos are better than the baseline by the same large amount: what is found is called the placebo's."""
    rng, large = np.random.default_rng(1), np.full(METHODS, 6.0)
    pages = [words(rng, large, large) for _ in range(150)]
    assert np.mean([word == "same as its placebo" for page in pages for word in page]) > 0.8
    assert np.mean(["helps" in page or "hurts" in page for page in pages]) <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 150)


def test_a_method_that_helps_by_four_deviations_of_a_run_is_found_and_the_rest_are_not_blamed():
    """sqrt(2) x 4 / sqrt(2) = 4 deviations of a single run, 2.8 of a paired difference, six seeds, 48 tests."""
    rng, effect = np.random.default_rng(2), np.zeros(METHODS)
    effect[3] = 4.0
    pages = [words(rng, effect, np.zeros(METHODS)) for _ in range(100)]
    assert np.mean([page[3] == "helps" for page in pages]) > 0.8
    assert np.mean([any(word != "no difference found" for at, word in enumerate(page) if at != 3) for page in pages]) <= 0.1
