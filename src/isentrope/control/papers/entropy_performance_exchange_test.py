"""Perplexity and position shaping: by hand, what they keep, where they push the entropy, and the two diagnostics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.entropy_performance_exchange import (
    PerplexityShaping,
    PositionShaping,
    log_perplexity,
    plateau_start,
    position_bonus,
    relative_perplexity,
    score_norm,
)  # fmt: skip
from isentrope.control.step import Rollouts


def batch(size: int = 8, groups: int = 2, width: int = 6, seed: int = 0) -> Rollouts:
    generator, rows = torch.Generator().manual_seed(seed), size * groups
    log_probs = -2 * torch.rand(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator)
    advantage = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return Rollouts.of(mask, group=torch.arange(groups).repeat_interleave(size), advantage=advantage, signals={"old.p": log_probs.exp()})


# --- perplexity


def test_log_perplexity_by_hand():
    log_probs = torch.log(torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.5, 0.5]], dtype=torch.float64))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert log_perplexity(log_probs, mask).tolist() == pytest.approx([1.5 * math.log(2), 0.0])


def test_two_responses_by_hand():
    """One z-score of +-1/sqrt 2: the likely response gains what the unlikely one loses."""
    log_probs = torch.log(torch.tensor([[0.5], [0.25]], dtype=torch.float64))
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    rollouts = Rollouts.of(torch.ones(2, 1, dtype=torch.bool), advantage=advantage, signals={"old.p": log_probs.exp()})
    found = PerplexityShaping(alpha=0.5).advantage(rollouts, {})
    assert found[:, 0].tolist() == pytest.approx([1 + 0.5 / math.sqrt(2), -(1 - 0.5 / math.sqrt(2))])


@given(st.floats(0, 0.4), st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_signs_stay_and_the_mean_factor_of_a_group_is_one(alpha, seed):
    rollouts = batch(seed=seed)
    link = PerplexityShaping(alpha=alpha)  # |w| <= 7 / sqrt 8 in a group of eight, so alpha |w| < 1
    factor = link.factor(rollouts)
    assert factor.reshape(2, 8).mean(1).tolist() == pytest.approx([1.0, 1.0])
    assert torch.equal(link.advantage(rollouts, {}).sign(), rollouts.advantage.sign())
    perplexity = log_perplexity(rollouts.signal("old.p").log(), rollouts.trained_mask)
    for rows in (slice(0, 8), slice(8, 16)):
        assert bool((factor[rows][torch.argsort(perplexity[rows])].diff() <= 1e-12).all())


def test_a_strong_alpha_never_turns_a_sign():
    rollouts = batch()
    factor = PerplexityShaping(alpha=5.0).factor(rollouts)
    assert float(factor.min()) == 0
    assert float(factor.max()) > 1


def test_small_groups_are_compared_with_the_batch():
    value, group = torch.rand(8, dtype=torch.float64), torch.arange(8) // 4
    known = {"counts": torch.ones(8, dtype=torch.bool), "group": group, "row_id": torch.arange(8)}
    whole = relative_perplexity(value, **known)
    torch.testing.assert_close(whole, (value - value.mean()) / value.std())
    own = relative_perplexity(value, **known, smallest=4)
    torch.testing.assert_close(own[:4], (value[:4] - value[:4].mean()) / value[:4].std())
    assert torch.equal(relative_perplexity(value, **known, scope="rollout", smallest=4), whole)


def test_equal_perplexities_change_nothing():
    rollouts = batch()
    rollouts.signal("old.p").fill_(0.3)
    assert torch.equal(PerplexityShaping(alpha=1.0).advantage(rollouts, {}), rollouts.advantage)


def test_it_takes_entropy_away_from_a_bandit_with_two_good_modes():
    """Two right arms of unequal probability and one wrong: to first order the shaped gradient lowers H more than the plain one."""
    z = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    advantage = torch.tensor([[1.0], [1.0], [-1.5]], dtype=torch.float64)
    rollouts = Rollouts.of(torch.ones(3, 1, dtype=torch.bool), advantage=advantage, signals={"old.p": log_p.detach().exp()[:, None]})
    (slope,) = torch.autograd.grad(-(p * log_p).sum(), z, retain_graph=True)

    def push(alpha: float) -> float:
        shaped = PerplexityShaping(alpha=alpha).advantage(rollouts, {})[:2, 0]
        (step,) = torch.autograd.grad((p.detach()[:2] * shaped * log_p[:2]).sum(), z, retain_graph=True)
        return float((slope * step).sum())

    assert push(0.3) < push(0.0) < 0


# --- position


def test_the_bonus_by_hand_and_over_a_gap():
    mask = torch.tensor([[True, False, True, True, True]])
    found = position_bonus(mask, 2.0, 4.0, 0.5)
    by_hand = [2 / (1 + math.exp(-4 * (t / 4 - 0.5))) for t in (1, 2, 3, 4)]
    assert found[mask].tolist() == pytest.approx(by_hand)
    assert float(found[0, 1]) == 0
    assert float(found[0, 2]) == 1.0  # the middle


def test_late_tokens_get_more_credit_and_more_blame_and_zero_stays():
    advantage = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64)
    found = PositionShaping(gamma=0.5).advantage(Rollouts.of(torch.ones(3, 5, dtype=torch.bool), advantage=advantage), {})
    assert bool((found[0].diff() > 0).all())
    assert float(found[0, 0]) > 1
    assert torch.equal(found[1], -found[0])
    assert not found[2].any()


# --- diagnostics


def test_the_proxy_is_the_norm_of_the_score():
    z = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    log_p, chosen = torch.log_softmax(z, -1), torch.tensor([0, 3, 6, 2, 2])
    (score,) = torch.autograd.grad(log_p[torch.arange(5), chosen].sum(), z)
    p = log_p.detach().exp()
    torch.testing.assert_close(score_norm(p[torch.arange(5), chosen], p.square().sum(-1)), score.norm(dim=-1))


def test_the_plateau_begins_at_the_knee():
    rising, flat = torch.linspace(3, 1, 21), torch.ones(30)
    assert plateau_start(torch.cat([rising[:-1], flat])) in (20, 21)
    with pytest.raises(ValueError, match=r"at least 4 values.*Got 3"):
        plateau_start(torch.ones(3))


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [(PerplexityShaping, {"alpha": -1.0}, "take arm"), (PerplexityShaping, {"smallest": 1}, "two responses"),
     (PositionShaping, {"gamma": -1.0}, "switches it off"), (PositionShaping, {"centre": 50.0}, "centre=0.5"),
     (PositionShaping, {"slope": -1.0}, "steepness")],
)  # fmt: skip
def test_wrong_parameters_say_the_way_out(kind, wrong, says):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: .*{says}"):
        kind(**wrong)
