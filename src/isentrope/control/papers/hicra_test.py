"""HICRA: the two cases by hand, matching, the bias of the group, the entropies of grams, and what a mutation breaks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import hicra
from isentrope.control.papers.common_test import some_step
from isentrope.control.papers.hicra import (
    Hicra,
    covered_tokens,
    execution_entropy,
    frequent_grams,
    gram_counts,
    hierarchical_advantage,
    occurrences,
    phrase_grams,
    strategic_entropy,
)  # fmt: skip
from isentrope.control.step import Rollouts

IDS = torch.tensor([[5, 6, 7, 5, 9, 5, 6], [7, 7, 5, 6, 5, 6, 7]])
GRAMS = ((5, 6), (5, 6, 7), (9,))


def full(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones(ids.shape, dtype=torch.bool)


# --- the two cases


def test_the_two_cases_by_hand():
    advantage = torch.tensor([[2.0], [-2.0], [0.0]])
    planning = torch.tensor([[True, False], [True, False], [True, False]])
    assert hierarchical_advantage(advantage, planning, 0.25).tolist() == [[2.5, 2.0], [-1.5, -2.0], [0.0, 0.0]]


def test_the_link_by_hand():
    """Only tokens inside a match move; a match over an untrained token is none."""
    mask = full(IDS)
    mask[0, 1] = False
    rollouts = Rollouts.of(mask, completion_ids=IDS, advantage=torch.tensor([[1.0], [-1.0]]))
    found = Hicra(alpha=0.5, grams=GRAMS).advantage(rollouts, {})
    assert found.tolist() == [[1.0, 0.0, 1.0, 1.0, 1.5, 1.5, 1.5], [-1.0, -1.0, -0.5, -0.5, -0.5, -0.5, -0.5]]


def never_turns_a_sign_and_adds_alpha_times_size(seed: int, alpha: float) -> None:
    link = replace(Hicra(grams=((2,), (3,), (4, 5))), alpha=alpha)
    rollouts = some_step(link, seed).rollouts
    base, found = rollouts.token_advantage(), link.advantage(rollouts, {})
    planning = occurrences(rollouts.completion_ids, rollouts.trained_mask, link.grams).covered
    assert (found * base >= 0).all()
    torch.testing.assert_close((found - base).sum(), alpha * base[planning].abs().sum(), rtol=1e-9, atol=1e-12)
    assert float((found - base).sum()) >= 0


@given(seed=st.integers(0, 100), alpha=st.floats(0.01, 1))
@settings(max_examples=20, deadline=None)
def test_no_sign_turns_and_the_bias_is_alpha_times_the_size(seed, alpha):
    never_turns_a_sign_and_adds_alpha_times_size(seed, alpha)


def test_the_opposite_sign_is_noticed(monkeypatch):
    right = hicra.hierarchical_advantage
    monkeypatch.setattr(hicra, "hierarchical_advantage", lambda advantage, planning, alpha: right(advantage, planning, -alpha))
    with pytest.raises(AssertionError):
        never_turns_a_sign_and_adds_alpha_times_size(0, 0.5)


def test_without_grams_or_alpha_the_trainers_advantage_stays():
    rollouts = some_step(Hicra()).rollouts
    for link in (Hicra(), Hicra(alpha=0.0, grams=GRAMS)):
        assert torch.equal(link.advantage(rollouts, {}), rollouts.advantage)


def test_the_centred_baseline_is_the_reward_less_the_groups_mean():
    """Unscored and empty responses count in no mean."""
    mask = full(IDS[:1]).expand(6, 7).clone()
    mask[5] = False
    reward = torch.tensor([1.0, 0.0, 3.0, 5.0, float("nan"), 9.0])
    group = torch.tensor([0, 0, 1, 1, 1, 1])
    rollouts = Rollouts.of(mask, reward=reward, group=group, advantage=torch.full((6, 1), 7.0))
    assert Hicra(baseline="centred").advantage(rollouts, {}).tolist() == [[0.5], [-0.5], [-1.0], [1.0], [0.0], [0.0]]


# --- matching


def test_the_longest_gram_first_and_none_overlapping():
    found = occurrences(IDS, full(IDS), GRAMS)
    assert found.start.tolist() == [[1, -1, -1, -1, 2, 0, -1], [-1, -1, 0, -1, 1, -1, -1]]
    assert found.covered.tolist() == [[True, True, True, False, True, True, True], [False, False, True, True, True, True, True]]
    assert gram_counts(found, 4).tolist() == [2, 2, 1, 0]
    again = occurrences(torch.tensor([[4, 4, 4]]), full(torch.zeros(1, 3)), ((4, 4),))
    assert again.start.tolist() == [[0, -1, -1]]


@given(seed=st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_the_scan_equals_a_naive_one(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (2, 9), generator=generator)
    mask = torch.rand(2, 9, generator=generator) < 0.8
    grams = ((0, 1), (1,), (0, 1, 2), (2, 2))
    expected = torch.zeros_like(mask)
    for row in range(2):
        at = 0
        while at < 9:
            size = max((len(g) for g in grams if tuple(ids[row, at : at + len(g)].tolist()) == g and bool(mask[row, at : at + len(g)].all())), default=0)
            expected[row, at : at + size] = True
            at += max(size, 1)
    assert torch.equal(occurrences(ids, mask, grams).covered, expected)


def test_phrases_become_grams_in_their_written_forms():
    seen = []
    grams = phrase_grams(["But Wait", "but wait"], lambda text: seen.append(text) or [len(text), ord(text[0])])
    assert set(seen) == {"but wait", "But wait", " but wait", " But wait"}
    assert grams == ((8, ord("b")), (8, ord("B")), (9, ord(" ")))


def test_characters_mark_the_tokens_that_they_reach():
    """Tokens 'So', ', wa', 'it', ' no'. The phrase 'wait' lies in two of them; 'so' ends where the first does."""
    offsets = [(0, 2), (2, 6), (6, 8), (8, 11)]
    assert covered_tokens("So, wait no", offsets, ["wait"]) == [False, True, True, False]
    assert covered_tokens("So, wait no", offsets, ["so", "so, w"]) == [True, True, False, False]
    assert covered_tokens("İ wait", [(0, 1), (1, 6)], ["wait"]) == [False, True]


def test_grams_of_many_solutions():
    """(1, 2) stands in all three solutions, its clustermate (8, 9) in one more place: both are kept as one cluster."""
    solutions = [[1, 2, 5], [1, 2, 6], [1, 2, 7], [8, 9, 9]]
    assert frequent_grams(solutions, sizes=[2], share=0.1) == ((1, 2),)
    assert frequent_grams(solutions, sizes=[2], share=0.1, cluster={(1, 2): "plan", (8, 9): "plan"}) == ((1, 2), (8, 9))
    assert frequent_grams([], sizes=[2]) == ()


# --- entropies


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0))
@settings(max_examples=40, deadline=None)
def test_strategic_entropy_is_bounded_and_blind_to_copies(counts):
    found = strategic_entropy(torch.tensor(counts))
    assert -1e-9 <= float(found) <= math.log(len(counts)) + 1e-9
    torch.testing.assert_close(strategic_entropy(3 * torch.tensor(counts)), found)
    used = sum(count > 0 for count in counts)
    assert float(strategic_entropy(torch.tensor(counts), "miller-madow") - found) == pytest.approx((used - 1) / (2 * sum(counts)), abs=1e-6)


def test_execution_entropy_by_hand():
    """After 5 come 1, 1, 2, after 9 always 1: three quarters times H(2/3, 1/3)."""
    ids = torch.tensor([[5, 1, 5, 1], [5, 2, 9, 1], [0, 0, 0, 5]])
    third = math.log(3) - 2 / 3 * math.log(2)
    assert float(execution_entropy(ids, full(ids), ((5,), (9,)))) == pytest.approx(0.75 * third, abs=1e-6)


# --- parameters


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hicra(alpha=20.0), r"Hicra: alpha must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write alpha=0\.2\."),
        (lambda: Hicra(grams=((),)), r"Hicra: grams must hold at least one token id each"),
        (lambda: Hicra(grams=((-1, 3),)), r"Hicra: grams must hold .* none negative"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_phrases_instead_of_ids_are_refused_with_the_way_out():
    with pytest.raises((ValueError, TypeError), match="grams"):
        Hicra(grams=("wait",))


def test_the_embedded_grams_are_planning_words_of_the_embedded_model():
    transformers = pytest.importorskip("transformers")
    from isentrope.train.models import EMBEDDED

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    words = ["first", "start", "then", "now", "wait", "check", "next", "hmm", "so"]
    grams = tuple(tuple(tokenizer.encode(word, add_special_tokens=False)) for word in words)
    assert Hicra().embedded().grams[:9] == grams
