"""The judger on simulated agents whose chance of being right is known, and the arithmetic of choosing among runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.lab.judger import EntropyJudger, best_of, early_stop, judged, mean_of, oracle, plurality, within

RIGHT = np.array([[True, False, True], [False, False, True], [False, False, False]])
CHANCE = np.array([[0.2, 0.9, 0.8], [0.1, 0.2, 0.7], [0.5, 0.4, 0.3]])


def agents(questions: int = 160, runs: int = 5, *, weight: float = 1.5, seed: int = 0):
    """Rows of two entropies and noise; P(right) falls with the second, and with how hard the question is, which nothing tells."""
    rng = np.random.default_rng(seed)
    hard, entropy = rng.normal(size=(questions, 1)), rng.normal(size=(questions, runs))
    right = rng.uniform(size=(questions, runs)) < 1 / (1 + np.exp(-(-hard - weight * entropy)))
    rows = [{"mean": rng.normal(), "answer": float(value), "noise": rng.normal()} for value in entropy.flatten()]
    return rows, right, entropy


def test_it_chooses_better_than_chance_and_no_better_than_can_be():
    rows, right, entropy = agents()
    question = np.repeat(np.arange(len(right)), right.shape[1])
    chance = judged(rows, right.flatten().tolist(), question.tolist()).reshape(right.shape)
    found = best_of(chance, right, 5)
    assert mean_of(right, 5) + 0.1 < found <= oracle(right, 5)
    assert within(chance, right) > 0.65
    assert within(-entropy, right) >= within(chance, right) - 0.02  # one feature tells all there is here: a baseline that must stand beside it
    assert within(np.random.default_rng(1).uniform(size=right.shape), right) == pytest.approx(0.5, abs=0.05)


def test_entropies_that_tell_nothing_rank_nothing():
    rows, right, _ = agents(weight=0.0, seed=3)
    question = np.repeat(np.arange(len(right)), right.shape[1])
    chance = judged(rows, right.flatten().tolist(), question.tolist()).reshape(right.shape)
    assert within(chance, right) == pytest.approx(0.5, abs=0.06)


def test_a_question_is_never_in_both_parts():
    """A feature that names the question tells everything if it leaks: the labels are a coin per question."""
    rng = np.random.default_rng(0)
    label = rng.uniform(size=60) < 0.5
    rows = [{"name": float(at)} for at in range(60) for _ in range(4)]
    right = np.repeat(label, 4)
    question = [f"question {at}" for at in range(60) for _ in range(4)]
    apart = judged(rows, right.tolist(), question)
    mixed = judged(rows, right.tolist(), list(range(240)))
    assert ((mixed > 0.5) == right).mean() > 0.95
    assert ((apart > 0.5) == right).mean() < 0.7


def test_choosing_by_hand():
    assert best_of(CHANCE, RIGHT, 3) == pytest.approx(1 / 3)
    assert [best_of(CHANCE, RIGHT, 1), mean_of(RIGHT, 1), oracle(RIGHT, 1)] == pytest.approx([1 / 3] * 3)
    assert mean_of(RIGHT, 3) == pytest.approx(1 / 3)
    assert oracle(RIGHT, 3) == pytest.approx(2 / 3)
    assert early_stop(CHANCE, RIGHT, 0.0) == pytest.approx((1 / 3, 1.0))
    assert early_stop(CHANCE, RIGHT, 0.6) == pytest.approx((1 / 3, (2 + 3 + 3) / 3))
    assert within(CHANCE, RIGHT) == pytest.approx((0 + 0 + 2) / 4)


def test_the_vote_is_a_plurality_of_answers():
    answers = [["4", "5", "4"], ["7", "8", "8"], [None, None, None]]
    right = np.array([[True, False, True], [True, False, False], [False, False, False]])
    assert plurality(answers, right, 3) == pytest.approx(1 / 3)
    assert plurality(answers, right, 1) == pytest.approx(2 / 3)
    tied = [["a", "b"]] * 400
    assert plurality(tied, np.tile([True, False], (400, 1)), 2) == pytest.approx(0.5, abs=0.08)
    assert plurality(tied, np.tile([True, False], (400, 1)), 2, seed=1) == plurality(tied, np.tile([True, False], (400, 1)), 2, seed=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_no_choice_beats_the_oracle_and_the_first_run_is_what_it_is(questions, runs, seed):
    rng = np.random.default_rng(seed)
    right, chance = rng.uniform(size=(questions, runs)) < 0.4, rng.uniform(size=(questions, runs))
    for k in range(1, runs + 1):
        assert best_of(chance, right, k) <= oracle(right, k)
        assert mean_of(right, k) <= oracle(right, k)
    assert best_of(chance, right, 1) == mean_of(right, 1) == early_stop(chance, right, 0.0)[0]


def test_what_is_missing_takes_the_median_and_what_is_always_missing_is_left_out():
    rows = [{"a": float(at), "b": float("nan")} for at in range(20)]
    judger = EntropyJudger(trees=5).fit(rows, [at >= 10 for at in range(20)])
    assert judger.names == ("a",)
    assert judger.chance([{}]) == judger.chance([{"a": 9.5}])
    assert judger.chance([{"a": 19.0}]) > judger.chance([{"a": 0.0}])


def test_what_cannot_be_learned_from_is_refused():
    with pytest.raises(UserError, match="0 of 2 answers"):
        EntropyJudger().fit([{"a": 1.0}, {"a": 2.0}], [False, False])
    with pytest.raises(UserError, match="no row has a feature"):
        EntropyJudger().fit([{"a": float("nan")}, {}], [False, True])
    with pytest.raises(UserError, match="Call fit first"):
        EntropyJudger().chance([{"a": 1.0}])
    with pytest.raises(UserError, match="5 folds need"):
        judged([{"a": 1.0}] * 4, [True, False, True, False], [0, 1, 2, 3])
    with pytest.raises(UserError, match="k must be between 1 and the 3 runs"):
        best_of(CHANCE, RIGHT, 4)
