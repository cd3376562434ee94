"""ARM: confidence by hand and its corners, the group rules, and the term's push on the entropy of a bandit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.progrpo_arm import Arm, confidence, group_mean
from isentrope.control.step import Rollouts


def batch(correct, log_probs, advantage=None, **known) -> Rollouts:
    log_probs = torch.tensor(log_probs, dtype=torch.float64)
    rows = len(correct)
    advantage = torch.zeros(rows, 1, dtype=torch.float64) if advantage is None else torch.tensor(advantage, dtype=torch.float64)[:, None]
    known = {"correct": torch.tensor(correct), "advantage": advantage, "signals": {"old.p": log_probs.exp()}} | known
    return Rollouts.of(torch.ones(log_probs.shape, dtype=torch.bool), **known)


HALF, TENTH = math.log(0.5), math.log(0.1)


def test_confidence_is_the_geometric_mean_of_the_least_likely_fifth():
    log_probs = torch.log(torch.tensor([[0.9, 0.2, 0.8, 0.5, 0.7, 0.95, 0.6, 0.99, 0.97, 0.3]]))
    mask = torch.ones(1, 10, dtype=torch.bool)
    assert float(confidence(log_probs, mask)) == pytest.approx(math.sqrt(0.2 * 0.3))
    mask[0, 1] = False  # 9 tokens: still two
    assert float(confidence(log_probs, mask)) == pytest.approx(math.sqrt(0.3 * 0.5))
    assert float(confidence(log_probs, mask, 0.0)) == pytest.approx(0.3)
    assert float(confidence(log_probs, mask & False)) == 1


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_confidence_is_in_the_unit_interval_and_blind_to_order(values, share):
    log_probs = torch.tensor([values], dtype=torch.float64)
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    found = float(confidence(log_probs, mask, share))
    assert 0 < found <= 1
    assert found >= math.exp(min(values)) * (1 - 1e-12)
    assert float(confidence(log_probs.flip(-1), mask, share)) == found


def test_certain_tokens_are_inert_until_the_fifth_grows():
    """5 tokens: the least likely one. Up to 5 it stays one; the sixth token makes it two."""
    base = [HALF, TENTH, 0.0]
    short, five, six = (torch.tensor([base + [0.0] * extra], dtype=torch.float64) for extra in (0, 2, 3))
    found = [float(confidence(x, torch.ones_like(x, dtype=torch.bool))) for x in (short, five, six)]
    assert found == pytest.approx([0.1, 0.1, math.sqrt(0.05)])


def test_confidence_does_not_drift_with_length():
    generator = torch.Generator().manual_seed(0)
    means = []
    for length in (20, 2000):
        log_probs = -torch.rand(4000 if length == 20 else 100, length, generator=generator, dtype=torch.float64)
        means.append(float(confidence(log_probs, torch.ones_like(log_probs, dtype=torch.bool)).log().mean()))
    assert means[0] == pytest.approx(means[1], abs=0.02)


def test_equal_rewards_are_parted_by_the_confidence_and_the_unlikely_gains():
    rollouts = batch([1.0, 1.0], [[HALF], [TENTH]])
    for prompt in (None, 0.8):
        found = Arm(alpha=0.5, prompt=prompt).advantage(rollouts, {})[:, 0]
        assert float(found[0] - found[1]) == pytest.approx(0.5 * (0.1 - 0.5))
        assert found[1] > found[0]
    assert Arm(alpha=0.5).advantage(rollouts, {}).sum() == pytest.approx(0)
    assert Arm(alpha=0.5, prompt=0.8).advantage(rollouts, {})[:, 0].tolist() == pytest.approx([0.15, 0.35])


def test_a_group_without_a_correct_response_is_left_alone():
    rollouts = batch([0.0, 0.0, 1.0, 0.0], [[HALF], [TENTH], [HALF], [TENTH]], [0.1, 0.2, 0.3, 0.4], group=torch.tensor([4, 4, 9, 9]))
    found = Arm(alpha=1.0).advantage(rollouts, {})[:, 0]
    assert found[:2].tolist() == [0.1, 0.2]
    assert found[2:].tolist() == pytest.approx([0.3 - 0.2, 0.4 + 0.2])


def test_groups_of_only_correct_responses_are_optional():
    rollouts = batch([1.0, 1.0, 1.0, 0.0], [[HALF], [TENTH], [HALF], [TENTH]], group=torch.tensor([0, 0, 1, 1]))
    assert bool((Arm().term(rollouts) != 0).all())
    assert (Arm(all_correct=False).term(rollouts) != 0).tolist() == [False, False, True, True]


def test_the_reward_decides_where_no_verifier_spoke():
    nan = float("nan")
    rollouts = batch([nan, nan], [[HALF], [TENTH]], reward=torch.tensor([0.0, 1.0]))
    assert bool((Arm().term(rollouts) != 0).all())
    assert not Arm().term(batch([nan, nan], [[HALF], [TENTH]])).any()


def test_a_row_without_tokens_is_in_no_mean():
    rollouts = batch([1.0, 1.0, 1.0], [[HALF], [TENTH], [HALF]])
    rollouts.trained_mask[2] = False
    assert Arm().term(rollouts).tolist() == pytest.approx([-0.2, 0.2, 0.0])
    value, group = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64), torch.tensor([0, 0, 1])
    assert group_mean(value, group, torch.tensor([True, True, False]), torch.arange(3)).tolist() == [2, 2, 0]


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_the_term_pushes_the_entropy_of_a_bandit_up(logits):
    """One token per response, c = pi: the policy gradient of alpha (c_q - pi_a) raises H to first order, and never lowers it."""
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    term = Arm(alpha=1.0, prompt=0.5).term(batch([1.0] * len(logits), log_p.detach()[:, None].tolist()))
    (step,) = torch.autograd.grad((p.detach() * term * log_p).sum(), z, retain_graph=True)
    (slope,) = torch.autograd.grad(-(p * log_p).sum(), z)
    assert float((slope * step).sum()) >= -1e-12


@pytest.mark.parametrize(("wrong", "says"), [({"alpha": -0.1}, "perplexity-shaping"), ({"share": 20.0}, "share=0.2"), ({"prompt": 1.5}, "prompt")])
def test_wrong_parameters_say_the_way_out(wrong, says):
    with pytest.raises(ValueError, match=rf"Arm: .*{says}"):
        Arm(**wrong)


def test_a_term_that_can_outweigh_the_reward_warns():
    with pytest.warns(UserWarning, match="outweigh"):
        Arm(alpha=2.0)
