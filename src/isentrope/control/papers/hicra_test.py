"""HICRA: grams found among token ids, the two-case formula, and the entropy of which gram occurs."""

import math
import re
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import hicra
from isentrope.control.papers.hicra import Hicra, amplified, gram_ids, match, strategic_entropy
from isentrope.control.registry import build
from isentrope.control.step import Progress, Rollouts

GRAMS = ((1, 2), (1, 2, 3), (7,))


def rollouts(ids: list[list[int]], advantage: list[float], mask: list[list[bool]] | None = None) -> Rollouts:
    text = torch.ones(len(ids), len(ids[0]), dtype=torch.bool) if mask is None else torch.tensor(mask)
    return Rollouts.of(text, completion_ids=torch.tensor(ids), advantage=torch.tensor(advantage)[:, None])


# --- grams


def test_the_longest_gram_comes_first_and_none_overlap():
    ids = torch.tensor([[1, 2, 3, 1, 2, 7], [0, 1, 2, 1, 2, 3], [7, 7, 1, 0, 2, 3]])
    found = match(ids, torch.ones(ids.shape, dtype=torch.bool), GRAMS)
    assert found.inside.int().tolist() == [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert found.grams == ((1, 2, 3), (1, 2), (7,), (1, 2), (1, 2, 3), (7,), (7,))


def test_a_gram_that_the_mask_cuts_is_none():
    ids = torch.tensor([[1, 2, 3, 7]])
    assert match(ids, torch.tensor([[True, True, False, False]]), GRAMS).inside.tolist() == [[True, True, False, False]]
    assert not match(ids, torch.tensor([[True, False, True, False]]), GRAMS).inside.any()
    assert not match(ids, torch.ones(1, 4, dtype=torch.bool), ()).inside.any()


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_matching_is_that_of_regular_expressions(rows):
    """Digits as letters: an alternation that tries the longest first scans from the left without overlap."""
    grams = ((1, 2), (1, 2, 3), (0,), (3, 3))
    ordered = sorted(("".join(map(str, gram)) for gram in grams), key=len, reverse=True)
    expected = [[found.span() for found in re.finditer("|".join(ordered), "".join(map(str, row)))] for row in rows]
    inside = [[any(start <= at < end for start, end in spans) for at in range(6)] for spans in expected]
    found = match(torch.tensor(rows), torch.ones(len(rows), 6, dtype=torch.bool), grams)
    assert found.inside.tolist() == inside
    assert len(found.grams) == sum(map(len, expected))


def test_phrases_become_ids_in_every_spelling():
    assert gram_ids(["ab"], lambda text: [ord(letter) for letter in text]) == ((97, 98), (32, 97, 98), (65, 98), (32, 65, 98))
    assert gram_ids(["ab", "aB", ""], lambda text: [len(text)] if text.strip() else []) == ((2,), (3,))


# --- the advantage


def two_cases_by_hand() -> None:
    """alpha 0.5: 2 becomes 3 and -2 becomes -1 on planning tokens, 0 stays, all others stay."""
    given = rollouts([[1, 2, 0], [1, 2, 0], [7, 7, 7]], [2.0, -2.0, 0.0])
    found = Hicra(alpha=0.5, grams=GRAMS).advantage(given, {})
    assert found.tolist() == [[3, 3, 2], [-1, -1, -2], [0, 0, 0]]


def test_success_is_amplified_and_failure_softened():
    two_cases_by_hand()


def test_amplifying_failure_instead_is_noticed(monkeypatch):
    monkeypatch.setattr(hicra, "amplified", lambda advantage, planning, alpha: torch.where(planning, advantage * (1 + alpha), advantage))
    with pytest.raises(AssertionError):
        two_cases_by_hand()
    monkeypatch.setattr(hicra, "amplified", lambda advantage, planning, alpha: amplified(advantage, planning, -alpha))
    with pytest.raises(AssertionError):
        two_cases_by_hand()


# below the smallest normal number a quarter of a value can round to 0, which has no sign
@given(st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=8), st.floats(0, 0.99), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_sign_changes_and_the_group_gains_alpha_times_the_size(values, alpha, seed):
    advantage = torch.tensor([values], dtype=torch.float64).T
    planning = torch.rand(len(values), 5, generator=torch.Generator().manual_seed(seed)) < 0.4
    found = amplified(advantage, planning, alpha)
    assert torch.equal(torch.sign(found), torch.sign(advantage).expand(found.shape))
    gain = alpha * torch.where(planning, advantage.abs(), 0.0).sum()
    torch.testing.assert_close(found.sum() - 5 * advantage.sum(), gain, rtol=1e-9, atol=1e-9)
    assert gain >= 0


def test_an_advantage_per_token_is_taken_as_it_is():
    given = rollouts([[1, 2, 0]], [1.0])
    given = replace(given, advantage=torch.tensor([[1.0, -1.0, 4.0]]))
    assert Hicra(alpha=0.5, grams=GRAMS).advantage(given, {}).tolist() == [[1.5, -0.5, 4.0]]


@pytest.mark.parametrize("link", [Hicra(), Hicra(alpha=0.0, grams=GRAMS)], ids=["no grams", "no strength"])
def test_without_grams_or_strength_it_is_the_trainers_advantage(link):
    given = rollouts([[1, 2, 0]], [1.0])
    assert link.advantage(given, {}) is given.advantage


# --- the entropy of grams


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_entropy_is_bounded_and_the_same_of_a_corpus_twice(tokens):
    grams = tuple((token,) for token in range(6))
    ids = torch.tensor([tokens])
    mask = torch.ones(ids.shape, dtype=torch.bool)
    value = strategic_entropy(ids, mask, grams)
    if not (ids < 6).any():
        assert math.isnan(value)
        return
    assert -1e-12 <= value <= math.log(6) + 1e-12
    assert strategic_entropy(ids.repeat(2, 1), mask.repeat(2, 1), grams) == pytest.approx(value, abs=1e-12)
    assert strategic_entropy(ids, mask, grams, correction="miller-madow") >= value


def test_the_entropy_by_hand():
    ids = torch.tensor([[1, 2, 7, 7, 7, 0]])
    mask = torch.ones(ids.shape, dtype=torch.bool)
    assert strategic_entropy(ids, mask, GRAMS) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


# --- parameters


def test_lists_of_a_file_become_a_value_with_a_hash():
    (link,) = build([{"name": "hicra", "grams": [[1, 2], [1, 2, 3], [7]]}]).links
    assert link == Hicra(grams=GRAMS)
    assert hash(link) == hash(Hicra(grams=GRAMS))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 20.0}, r"Hicra: alpha must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write alpha=0\.2\."),
        ({"grams": ((),)}, r"Hicra: grams must hold token ids, at least one per gram\. Got \[\(\)\]\. Make them with .*gram_ids\(phrases, encode\)\."),
        ({"grams": ((1, -2),)}, r"Hicra: grams must hold token ids, at least one per gram\."),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Hicra(**wrong)


def test_a_run_without_grams_is_told_once():
    state = Hicra().init()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(30):
            for silent in (Hicra(grams=GRAMS), Hicra(alpha=0.0)):
                assert silent.update(state, None, Progress(step, 30)) == state
            state = Hicra().update(state, None, Progress(step, 30))
    assert len(seen) == 1
    assert str(seen[0].message).startswith("Hicra: grams is empty, so no token is a planning token and hicra does nothing.")
