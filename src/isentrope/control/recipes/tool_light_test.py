"""Tool-Light: branch points and pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.recipes.tool_light import Brancher, BranchPoint, Sampled, preference_pairs, step_score
from isentrope.measure.tokens import Entropy, TopKEntropy, token_signals_from_logits


def test_the_score_by_hand():
    assert step_score([1.0, 3.0, 2.0, 0.0], (1, 2, 3, 4)) == (2.0, 2)  # means 1, 2, 2, 1.5: the shorter of the two
    assert step_score([1.0, 3.0], (2, 10, 20)) == (2.0, 2)  # shorter than n: the same value again
    with pytest.raises(ValueError, match="must have a token"):
        step_score([], (1,))


def test_branch_points_by_hand():
    """Steps (0,0), (4,0), (), (1,1,1): scores 0, 4 cut after one, none, 1 cut after one."""
    entropy = [0.0, 0.0, 4.0, 0.0, 1.0, 1.0, 1.0]
    found = Brancher(prefixes=(1, 2), points=2).choose(entropy, [0, 2, 4, 4])
    assert found == [BranchPoint(3, 1, 4.0), BranchPoint(5, 3, 1.0)]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 5), min_size=1, max_size=60), min_size=1, max_size=8), st.floats(0.1, 10))
def test_at_most_as_many_chains_as_stated_and_no_unit_matters(steps, unit):
    entropy = [value for step in steps for value in step]
    starts = [sum(map(len, steps[:index])) for index in range(len(steps))]
    brancher = Brancher()
    found = brancher.choose(entropy, starts)
    assert 1 + len(found) * brancher.branches <= 10
    assert [point.score for point in found] == sorted((point.score for point in found), reverse=True)
    assert all(starts[point.step] < point.position <= starts[point.step] + min(50, len(steps[point.step])) for point in found)
    power = 2.0 ** round(unit)  # exact, so that ties stay ties
    assert [(p.position, p.step) for p in brancher.choose([power * value for value in entropy], starts)] == [(p.position, p.step) for p in found]


def test_truncated_entropy_is_at_most_the_full_one_and_rises_with_k():
    logits, label = 3 * torch.randn(20, 80, dtype=torch.float64), torch.zeros(20, dtype=torch.long)
    cut = [next(iter(token_signals_from_logits(logits, label, [TopKEntropy(k=k)]).values())) for k in (1, 10, 50, 80)]
    full = token_signals_from_logits(logits, label, [Entropy()])["entropy"]
    assert all((low <= high + 1e-12).all() for low, high in zip(cut, [*cut[1:], full], strict=True))
    assert torch.allclose(cut[-1], full)


def chain(text, correct, calls=1, entropy=0.5):
    return Sampled(text, correct, calls, entropy)


def test_pairs_by_hand():
    chains = [chain("long", True, 3), chain("short", True, 1), chain("sure", True, 1, 0.1), chain("bad", False, 2), chain("worse", False, 4)]
    assert preference_pairs(chains) == [("sure", "worse"), ("short", "bad")]
    assert preference_pairs(chains, limit=1) == [("sure", "worse")]
    assert preference_pairs(chains, wrong_of="fewest") == [("sure", "bad"), ("short", "worse")]
    assert preference_pairs(chains[:3]) == [("sure", "long")]  # a redundant call, where nothing is wrong
    assert preference_pairs([chain("a", True), chain("b", True)]) == []
    assert preference_pairs([chain("a", False)]) == []
    assert preference_pairs([]) == []
    assert preference_pairs([chain("a", True), chain("b", False), chain("b", False)]) == [("a", "b")]


def test_bad_parameters_are_told():
    with pytest.raises(ValueError, match="prefixes must be counts"):
        Brancher(prefixes=())
    with pytest.raises(ValueError, match="points must be at least 1"):
        Brancher(points=0)
