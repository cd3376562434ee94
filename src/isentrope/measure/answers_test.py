"""Closed forms and laws of the answer measures."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.answers import answer_entropy, bootstrap_interval, maj_at_k, pass_at_k

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7)


def test_pass_at_one_is_the_share_of_right_samples():
    assert torch.equal(pass_at_k(torch.tensor([0, 3, 8]), 8, 1), torch.tensor([0.0, 3 / 8, 1.0], dtype=torch.float64))


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_binomial_closed_form_and_grows_with_k(n, data):
    c = data.draw(st.integers(0, n))
    found = [float(pass_at_k(torch.tensor(c), n, k)) for k in range(1, n + 1)]
    assert found == pytest.approx([1 - math.comb(n - c, k) / math.comb(n, k) for k in range(1, n + 1)], abs=1e-12)
    assert found == sorted(found)


def test_pass_at_k_is_unbiased_over_binomial_sample_sets():
    p, n, k = 0.3, 6, 3
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * float(pass_at_k(torch.tensor(c), n, k)) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("c", "k", "word"), [(1, 5, "k must lie"), (1, 0, "k must lie"), (5, 1, "correct must lie")])
def test_pass_at_k_refuses_impossible_counts(c, k, word):
    with pytest.raises(ValueError, match=word):
        pass_at_k(torch.tensor([c]), 4, k)


def enumerated_majority(answers, correct, k):
    """maj@k by listing every draw: the definition itself."""
    total = 0.0
    draws = list(itertools.combinations(range(len(answers)), k))
    for draw in draws:
        votes = Counter(answers[i] for i in draw if answers[i] is not None)
        if votes:
            winners = [a for a, n in votes.items() if n == max(votes.values())]
            for winner in winners:
                judged = [right for a, right in zip(answers, correct, strict=True) if a == winner]
                total += sum(judged) / len(judged) / len(winners)
    return total / len(draws)


@settings(max_examples=60)
@given(ANSWERS, st.data())
def test_maj_at_k_equals_enumeration_of_every_draw(answers, data):
    correct = data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers)))
    for k in range(1, len(answers) + 1):
        assert maj_at_k(answers, correct, k) == pytest.approx(enumerated_majority(answers, correct, k), abs=1e-12)


def test_maj_at_k_by_hand():
    assert maj_at_k(["7", "8"], [True, False], 2) == 0.5  # a tie is broken by a coin
    assert maj_at_k([None, None, "7"], [False, False, True], 3) == 1.0  # silence does not vote
    assert maj_at_k([None, None, "7"], [False, False, True], 1) == pytest.approx(1 / 3)
    assert maj_at_k(["7", "7", "8"], [True, True, False], 1) == pytest.approx(2 / 3)  # one answer: its chance of being right


def test_maj_at_k_of_sixty_four_samples_is_quick_and_near_one_for_a_clear_majority():
    answers = ["x"] * 40 + [str(i) for i in range(24)]
    assert maj_at_k(answers, [a == "x" for a in answers], 16) > 0.999


@given(ANSWERS)
def test_answer_entropy_lies_between_zero_and_the_log_of_the_clusters(answers):
    assert 0.0 <= answer_entropy(answers) <= math.log(len(set(answers))) + 1e-12


def test_answer_entropy_by_hand():
    assert answer_entropy(["a"] * 5) == 0.0
    assert answer_entropy(["a", "b", "c", None]) == pytest.approx(math.log(4))
    assert answer_entropy(["a", "a", "a", "b"]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_bootstrap_interval_matches_the_normal_limit():
    torch.manual_seed(0)
    values = torch.randn(400, dtype=torch.float64)
    found = bootstrap_interval(values, resamples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found.value == pytest.approx(float(values.mean()), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_bootstrap_interval_is_seeded_and_leaves_the_global_generator_alone():
    values = torch.arange(10.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (bootstrap_interval(values, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_bootstrap_interval_of_one_prompt_is_a_point_and_weights_make_a_ratio():
    one = bootstrap_interval(torch.tensor([0.25]))
    assert (one.value, one.low, one.high) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(torch.tensor([1.0, 3.0]), weights=torch.tensor([3.0, 1.0])).value == 1.5


@pytest.mark.parametrize("values", [torch.tensor([]), torch.tensor([float("nan")])])
def test_bootstrap_interval_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values)


def test_bootstrap_interval_says_how_to_write_a_level():
    with pytest.raises(ValueError, match=r"write 0\.95"):
        bootstrap_interval(torch.ones(3), level=95)
