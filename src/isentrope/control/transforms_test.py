"""Shaped rewards and advantages, weights, bounds and groups: by hand, and at the edges."""

import pytest
import torch

from isentrope.control.surrogates import Bounds
from isentrope.control.transforms import mixed_groups, shape_reward, token_bounds, token_weight, transform_advantage

NAN = float("nan")
MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, False, False]])
GROUP = torch.tensor([3, 3, 8, 8])
ADVANTAGE = torch.tensor([[1.0], [-1.0], [2.0], [NAN]], dtype=torch.float64)


# --- rewards and groups


def test_a_reward_is_shaped_where_asked_and_stays_unscorable():
    reward = torch.tensor([1.0, 0.0, NAN, 1.0])
    found = shape_reward(reward, torch.tensor([-0.5, -0.5, -0.5, NAN]), torch.tensor([True, False, True, True]))
    assert found[:2].tolist() == [0.5, 0.0]
    assert found[2].isnan()
    assert found[3] == 1.0
    assert not shape_reward(reward, torch.ones(4, requires_grad=True)).requires_grad


def test_only_mixed_groups_are_kept():
    reward = torch.tensor([0.0, 1.0, 1.0, 1.0, NAN, 0.5, NAN, NAN, 7.0])
    group = torch.tensor([5, 5, 2, 2, 2, 9, 1, 1, 4])
    assert mixed_groups(reward, group).tolist() == [True, True] + [False] * 7
    assert mixed_groups(reward, group, 1.0).sum() == 0


# --- advantages


def test_weight_and_shift_per_response():
    found = transform_advantage(ADVANTAGE, MASK, weight=2.0, shift=0.5)
    assert found.tolist() == [[2.5], [-1.5], [4.5], [0.0]]


def test_weight_per_token():
    weight = torch.tensor([[1.0, 2.0, NAN]], dtype=torch.float64).expand(4, 3)
    found = transform_advantage(ADVANTAGE, MASK & ~weight.isnan(), weight=weight)
    assert found.tolist() == [[1.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_recentring_counts_tokens_steps_or_responses_of_the_group():
    token = transform_advantage(ADVANTAGE, MASK, recentre="token").squeeze(1)
    torch.testing.assert_close(token[:3], ADVANTAGE[:3, 0] - (2 - 1 + 6) / 6)
    step = transform_advantage(ADVANTAGE, MASK, recentre="step").squeeze(1)
    torch.testing.assert_close(step[:3], ADVANTAGE[:3, 0] - 2 / 3)
    group = transform_advantage(ADVANTAGE, MASK, recentre="group", group=GROUP).squeeze(1)
    assert group.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert token[3] == step[3] == 0


def test_a_step_is_a_turn_where_turns_are_known():
    """Turn means 1, 1 (row 0), -1, then 2 and 5 (row 2: tokens 2, 2 | 5): five steps, mean 8 / 5."""
    value = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [2.0, 2.0, 5.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]])
    found = transform_advantage(value, MASK, recentre="step", turn=turn)
    torch.testing.assert_close(found, torch.where(MASK, value - 8 / 5, 0.0))


def test_recentred_advantages_have_mean_zero_in_any_order():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    order, row_id = torch.tensor([2, 0, 3, 1]), torch.tensor([9, 4, 7, 1])
    for recentre in ("step", "token", "group"):
        found = transform_advantage(value, MASK, recentre=recentre, group=GROUP, row_id=row_id)
        moved = transform_advantage(value[order], MASK[order], recentre=recentre, group=GROUP[order], row_id=row_id[order])
        assert torch.equal(moved, found[order])
    assert transform_advantage(value, MASK, recentre="token").sum().abs() < 1e-12


def test_nothing_trained_is_nothing():
    found = transform_advantage(ADVANTAGE, ~MASK & MASK, recentre="step")
    assert found.tolist() == [[0.0]] * 4


# --- weights and bounds


def test_weights_are_detached_and_of_mean_one_over_what_is_kept():
    value = torch.tensor([[1.0, 9.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 9.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = token_weight(value, MASK, keep=value < 5, denominator="kept", mean_one="update")
    kept = MASK & (value < 5)
    assert found.value is not None
    assert not found.value.requires_grad
    assert float(found.value[kept].mean()) == pytest.approx(1.0)
    assert found.denominator == "kept"
    assert bool((found.value[~MASK] == 1).all())
    plain = token_weight(value, MASK)
    assert plain.value is not None
    assert torch.equal(plain.value[MASK], value.detach()[MASK])


def test_bounds_per_token_leave_the_other_side_and_the_caps():
    ratio, where = torch.ones(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    where[0] = True
    found = token_bounds(Bounds(0.8, None, cap=3.0), ratio, MASK, high=1.5, where=where)
    assert found.low == 0.8
    assert found.cap == 3.0
    assert isinstance(found.high, torch.Tensor)
    assert found.high.tolist()[0] == [1.5, 1.5, torch.inf]
    assert bool((found.high[1:] == torch.inf).all())
    wide = found.clamp(torch.full((4, 3), 2.0))
    assert wide[0].tolist() == [1.5, 1.5, 2.0]


def test_what_is_wrong_is_said():
    with pytest.raises((ValueError, TypeError), match="batch"):
        transform_advantage(ADVANTAGE, MASK, recentre="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs `group`"):
        transform_advantage(ADVANTAGE, MASK, recentre="group")
    with pytest.raises((ValueError, TypeError), match="some"):
        token_weight(None, MASK, denominator="some")  # type: ignore[arg-type]
