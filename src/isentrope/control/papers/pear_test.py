"""PEAR: which tokens are which phase, the penalty by hand, its monotony, and that a group of correct answers cancels its scale."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.advantages import trl_advantages
from isentrope.control.papers import pear
from isentrope.control.papers.pear import Pear, PhaseEntropies, closing_tag, phase_entropies
from isentrope.control.step import Rollouts
from isentrope.testing.world import world

TAG = (7, 8)


def rollouts(entropy, reward, *, ids=None, correct=None, mask=None, segment=None) -> Rollouts:
    """Responses with these entropies of the policy that sampled them; correct where the reward is above 0, unless told."""
    entropy, reward = torch.tensor(entropy, dtype=torch.float64), torch.tensor(reward, dtype=torch.float64)
    return Rollouts.of(
        torch.ones(entropy.shape, dtype=torch.bool) if mask is None else torch.tensor(mask),
        reward=reward,
        correct=(reward > 0).double() if correct is None else torch.tensor(correct),
        signals={"old.entropy": entropy},
        **({} if ids is None else {"completion_ids": torch.tensor(ids)}),
        **({} if segment is None else {"segment": torch.tensor(segment)}),
    )


def by_hand() -> Rollouts:
    """Thinking 0.8 and 0.4, the tag at 9 nats, answer 0.1 and 0.3; then the same wrong; then without a tag."""
    entropy = [[0.8, 0.4, 9.0, 0.1, 0.3], [0.8, 0.4, 9.0, 0.1, 0.3], [0.8, 0.4, 0.6, 0.1, 0.3]]
    return rollouts(entropy, [1.0, 0.0, 1.0], ids=[[1, 2, 7, 3, 4], [1, 2, 7, 3, 4], [1, 2, 3, 3, 4]])


# --- phases


def test_the_first_occurrence_of_the_whole_tag_parts_the_phases():
    ids = torch.tensor([[1, 7, 8, 2, 7, 8], [7, 1, 8, 7, 2, 8], [7, 8, 1, 1, 1, 1], [1, 1, 1, 1, 7, 8], [1, 1, 1, 1, 1, 7]])
    whole = torch.ones_like(ids, dtype=torch.bool)
    assert closing_tag(ids, whole, TAG).tolist() == [
        [0, -1, -1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [-1, -1, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1], [0, 0, 0, 0, 0, 0],
    ]  # fmt: skip


def test_a_tag_that_is_not_text_of_the_policy_closes_nothing():
    ids = torch.tensor([[1, 7, 2, 7, 3]])
    mask = torch.tensor([[True, False, True, True, True]])
    assert closing_tag(ids, mask, (7,)).tolist() == [[0, -1, 0, -1, 1]]


def test_the_means_are_of_their_phase_alone():
    found = Pear(close=(7,)).phases(by_hand())
    torch.testing.assert_close(found.think, torch.tensor([0.6, 0.6, 0.44], dtype=torch.float64))
    torch.testing.assert_close(found.answer, torch.tensor([0.2, 0.2, 0.0], dtype=torch.float64))
    assert found.think_tokens.tolist() == [2, 2, 5]
    assert found.answer_tokens.tolist() == [2, 2, 0]


def test_empty_phases_have_entropy_zero():
    batch = rollouts([[5.0, 0.2, 0.4], [0.2, 0.4, 5.0]], [1.0, 1.0], ids=[[7, 1, 1], [1, 1, 7]])
    found = Pear(close=(7,)).phases(batch)
    assert found.think[0] == 0
    assert found.answer[1] == 0
    assert Pear(close=(7,)).reward(batch, {}).tolist() == pytest.approx([1.0, 0.7])


def test_without_ids_of_a_tag_the_segments_are_the_phases():
    batch = rollouts([[0.8, 0.4, 9.0, 0.1, 0.3]], [1.0], segment=[[0, 0, -1, 1, 2]])
    assert Pear().reward(batch, {}).tolist() == pytest.approx([0.6])
    with pytest.raises(ValueError, match=r"Pear: close must hold the token ids of the closing tag .* Got \(\)\. Write close="):
        Pear().reward(replace(batch, segment=None), {})


# --- the reward


def follows_the_formula() -> None:
    """P = 0.6 - 0.2 alpha; without a tag 0.44."""
    for alpha, paid in ((-1.0, 0.2), (0.0, 0.4), (0.5, 0.5), (1.0, 0.6), (2.0, 0.8), (4.0, 1.0)):
        found = Pear(alpha=alpha, close=(7,), variant="paper").reward(by_hand(), {})
        assert found.tolist() == pytest.approx([paid, 0.0, 0.56])


def test_the_reward_by_hand():
    follows_the_formula()


def test_paying_for_uncertain_thinking_is_noticed(monkeypatch):
    monkeypatch.setattr(PhaseEntropies, "penalty", lambda self, alpha=1.0: (alpha * self.answer - self.think).clamp(min=0))
    with pytest.raises(AssertionError):
        follows_the_formula()


def test_confusing_the_phases_is_noticed(monkeypatch):
    whole = pear.phase_entropies

    def swapped(*values):
        found = whole(*values)
        return PhaseEntropies(found.answer, found.think, found.answer_tokens, found.think_tokens)

    monkeypatch.setattr(pear, "phase_entropies", swapped)
    with pytest.raises(AssertionError):
        follows_the_formula()


@pytest.mark.parametrize(("nats", "fixed", "paper"), [(0.5, 0.5, 0.5), (0.95, 0.1, 0.05), (3.0, 0.1, -2.0)])
def test_the_paper_lets_a_correct_answer_fall_below_a_wrong_one_and_the_default_does_not(nats, fixed, paper):
    batch = rollouts([[nats, nats]], [1.0], ids=[[1, 2]])
    assert Pear(close=(7,)).reward(batch, {}).tolist() == pytest.approx([fixed])
    assert Pear(close=(7,), variant="paper").reward(batch, {}).tolist() == pytest.approx([paper])


def test_the_floor_never_raises_a_reward():
    batch = rollouts([[0.5, 0.5], [0.0, 0.0]], [0.05, 0.05], ids=[[1, 2], [1, 2]])
    assert Pear(close=(7,)).reward(batch, {}).tolist() == pytest.approx([0.05, 0.05])


def test_only_correct_answers_are_touched_and_an_unscorable_one_stays_so():
    nan = float("nan")
    batch = rollouts([[0.5]] * 4, [1.0, 0.3, nan, 0.7], ids=[[1]] * 4, correct=[1.0, 0.0, nan, nan])
    found = Pear(close=(7,)).reward(batch, {})
    assert found[[0, 1, 3]].tolist() == pytest.approx([0.5, 0.3, 0.7])
    assert found[2].isnan()


@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 2), more=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_the_reward_falls_with_thinking_entropy_and_rises_with_answer_entropy(seed, alpha, more):
    scene = world(seed % 7).scored(Pear().needs).rollouts
    entropy = scene.signal("old.entropy")
    generator = torch.Generator().manual_seed(seed)
    link = Pear(alpha=alpha, variant=("fixed", "paper")[seed % 2])
    shift = more * torch.rand(entropy.shape, generator=generator, dtype=entropy.dtype)

    def paid(added):
        return link.reward(replace(scene, signals={"old.entropy": entropy + added}), {})

    plain, thinking = paid(0 * shift), scene.segment == 0
    assert (paid(torch.where(thinking, shift, 0.0)) <= plain + 1e-12).all()
    assert (paid(torch.where(thinking, 0.0, shift)) >= plain - 1e-12).all()
    assert (plain <= scene.reward).all()


@given(think=st.floats(0, 5), answer=st.floats(0, 5), alpha=st.floats(0, 2), length=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_penalty_sees_means_not_lengths_and_is_zero_up_to_the_answers_entropy(think, answer, alpha, length):
    values = torch.tensor([[think] * length + [answer] * (7 - length)], dtype=torch.float64)
    phase = torch.tensor([[0] * length + [1] * (7 - length)])
    found = phase_entropies(values, phase, torch.ones(1, 7, dtype=torch.bool))
    assert float(found.penalty(alpha)) == pytest.approx(max(0.0, think - alpha * answer), abs=1e-12)


def test_in_a_group_of_correct_answers_the_scale_of_the_penalty_cancels():
    """The advantages of P, of 5 P and of P / 5 are one: a hair of entropy supplies the whole gradient."""
    values = [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.5, 0.5]]
    found = []
    for coef in (0.2, 1.0, 5.0):
        batch = rollouts(values, [1.0] * 4, ids=[[1, 1]] * 4)
        reward = Pear(close=(7,), coef=coef, variant="paper").reward(batch, {})
        scaled = (reward - reward.mean()) / reward.std()
        torch.testing.assert_close(trl_advantages(reward, 4), scaled, rtol=1e-2, atol=0)
        found.append(scaled)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[1], rtol=1e-12, atol=1e-12)


def test_the_reward_is_detached_and_padding_is_inert():
    batch = by_hand()
    entropy = batch.signal("old.entropy").clone().requires_grad_(True)
    assert not Pear(close=(7,)).reward(replace(batch, signals={"old.entropy": entropy}), {}).requires_grad
    wide = rollouts([[0.8, 0.4, 9.0, 0.1, 0.3, float("nan")]], [1.0], ids=[[1, 2, 7, 3, 4, 7]], mask=[[True] * 5 + [False]])
    assert Pear(close=(7,)).reward(wide, {}).tolist() == pytest.approx([0.6])


# --- parameters


def test_ids_from_yaml_become_hashable():
    assert hash(Pear(close=[7, 8])) == hash(Pear(close=TAG))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pear(coef=-1.0), r"Pear: coef must be at least 0\. Got -1\.0\. 0 switches it off"),
        (lambda: Pear(margin=-0.1), r"Pear: margin must be at least 0\. Got -0\.1\. It is what a correct answer keeps"),
        (lambda: Pear(close=(-1,)), r"Pear: close must be at least 0\. Got -1\. Token ids are not negative\."),
        (lambda: Pear(alpha=float("nan")), r"Pear: alpha must be a number\. Got nan\. The paper takes 1\."),
        (lambda: closing_tag(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), ()), r"closing_tag: close must hold at least one"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="variant"):
        Pear(variant="code")  # type: ignore[arg-type]
