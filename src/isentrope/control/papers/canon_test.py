"""CANON: the closed form, the exact statements of its sheet, the schedules' corners, recorded outputs."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.canon import Canon, conditional_advantage, cosine_inter
from isentrope.control.papers.common_test import recorded
from isentrope.control.step import Progress, Rollouts


def batch(size: int, groups: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randint(0, 2, (size * groups,), generator=generator).double()
    return reward, torch.randn(size * groups, generator=generator, dtype=torch.float64), torch.arange(groups).repeat_interleave(size)


def parts(reward, metric, group, value):
    """(R - m, s, gap) of one group, by hand."""
    rows = group == value
    order = torch.argsort(metric[rows])
    sign = torch.ones(len(order), dtype=torch.float64)
    sign[order[: len(order) // 2]] = -1
    r = reward[rows]
    return r - r.mean(), sign, r[sign > 0].mean() - r[sign < 0].mean()


@given(st.floats(0, 1), st.sampled_from([2, 4, 8]), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_an_even_group_has_the_closed_form_and_sums_to_zero(inter, size, seed):
    reward, metric, group = batch(size, seed=seed)
    found = conditional_advantage(reward, metric, group, inter)
    for value in group.unique():
        centred, sign, gap = parts(reward, metric, group, value)
        torch.testing.assert_close(found[group == value], centred + (inter - 0.5) * sign * gap, rtol=0, atol=1e-12)
        assert abs(float(found[group == value].sum())) < 1e-12


def test_four_responses_by_hand_and_not_by_the_other_sign():
    reward, metric, group = torch.tensor([1.0, 0, 1, 1]), torch.tensor([1.0, 2, 3, 4]), torch.zeros(4, dtype=torch.long)
    across = conditional_advantage(reward, metric, group, 1.0)
    within = conditional_advantage(reward, metric, group, 0.0)
    assert across.tolist() == [0.0, -1.0, 0.5, 0.5]
    assert within.tolist() == [0.5, -0.5, 0.0, 0.0]
    assert not torch.equal(across, within)


def test_a_half_is_the_mean_reward_baseline_whatever_the_metric():
    reward, metric, group = batch(8)
    plain = reward - reward.reshape(3, 8).mean(1).repeat_interleave(8)
    for shown in (metric, -metric, metric**2):
        torch.testing.assert_close(conditional_advantage(reward, shown, group, 0.5), plain, rtol=0, atol=1e-12)


def test_reversing_the_metric_changes_nothing_in_an_even_group():
    reward, metric, group = batch(8, seed=3)
    found = [conditional_advantage(reward, shown, group, 0.9) for shown in (metric, -metric)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_the_better_half_is_amplified_twice():
    """Mean advantage of the better half: the gap across halves, half of it in Dr.GRPO."""
    reward, metric, group = torch.tensor([0.0, 1, 1, 1]), torch.arange(4.0), torch.zeros(4, dtype=torch.long)
    across, plain = (conditional_advantage(reward, metric, group, share)[2:].mean() for share in (1.0, 0.5))
    assert float(across) == 2 * float(plain) > 0


def test_over_all_splits_it_is_dr_grpo_stretched_and_noise_of_the_gap():
    """A split that ignores the reward: E[gap] = 0 and E[A] = (R - m) (1 + (2 inter - 1) / (G - 1)), as the own reward is in its half."""
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64)
    centred, found, gaps = reward - reward.mean(), [], []
    for low in combinations(range(8), 4):
        metric = torch.ones(8)
        metric[list(low)] = 0
        found.append(conditional_advantage(reward, metric, torch.zeros(8, dtype=torch.long), 0.9))
        gaps.append(float(reward[metric > 0].mean() - reward[metric == 0].mean()))
    assert sum(gaps) == pytest.approx(0)
    torch.testing.assert_close(torch.stack(found).mean(0), centred * (1 + 0.8 / 7), rtol=0, atol=1e-12)
    noise = (torch.stack(found) - centred).square().mean()
    assert float(noise) == pytest.approx(0.4**2 * sum(gap**2 for gap in gaps) / len(gaps))


def test_an_odd_group_is_off_by_one_constant():
    reward, metric, group = batch(7, groups=1, seed=2)
    off = conditional_advantage(reward, metric, group, 0.5) - (reward - reward.mean())
    assert float(off.std()) < 1e-12
    assert float(off[0].abs()) > 1e-3


def test_equal_rewards_give_nothing_and_alpha_below_one_disfavours_its_half():
    metric, group = torch.arange(4.0), torch.zeros(4, dtype=torch.long)
    ones = torch.ones(4)
    assert not conditional_advantage(ones, metric, group, 0.7).any()
    for designated, half in (("low", slice(0, 2)), ("high", slice(2, 4))):
        found = conditional_advantage(ones, metric, group, 1.0, alpha=0.9, designated=designated)
        assert float(found[half].max()) == pytest.approx(-0.1)
        assert float(found.sum()) == pytest.approx(0)


def test_ties_and_the_arbitrary_split_go_by_row_id():
    reward, group = torch.tensor([1.0, 0, 1, 1]), torch.zeros(4, dtype=torch.long)
    ids = torch.tensor([9, 2, 4, 7])
    found = conditional_advantage(reward, torch.zeros(4), group, 1.0, row_id=ids)
    assert torch.equal(found, conditional_advantage(reward, ids.double(), group, 1.0))


def test_a_group_of_one_and_rows_that_do_not_count():
    one, group = torch.tensor([3.0]), torch.zeros(1, dtype=torch.long)
    assert float(conditional_advantage(one, one, group, 1.0)) == 0
    assert float(conditional_advantage(one, one, group, 1.0, single="raw")) == 3
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[3] = False
    rollouts = Rollouts.of(mask, reward=torch.tensor([1.0, 0.0, float("nan"), 1.0]), signals={"old.entropy": torch.rand(4, 3)})
    found = Canon().advantage(rollouts, {"updates": 0})
    assert found[:, 0].tolist()[2:] == [0, 0]
    assert sorted(found[:2, 0].tolist()) == [-1, 1]


def test_schedules_at_their_corners():
    falling, rising = ([1 - cosine_inter(step, form) for step in (0, 29, 30, 50, 69, 70)] for form in (True, False))
    assert falling == pytest.approx([0.02, 0.6, 0.6, 0.3, 0.3 * (1 + math.cos(math.pi * 39 / 40)), 0.6])
    assert rising[:4] == pytest.approx([29 / 30, 0.0, 0.0, 0.3])
    reward = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert Canon(schedule="accuracy").mix(reward, 0) == 0.75
    assert Canon(schedule="one-minus-accuracy").mix(reward, 0) == 0.25
    assert Canon().update({"updates": 4}, None, Progress()) == {"updates": 5}


@pytest.mark.parametrize("name", ["advantage", "advantage-degenerate"])
def test_recorded_halves(name):
    """At the scale of the rewards: the released numbers are divided by the maximum length, which would hide an error."""
    case = recorded(f"canon__{name}")
    given, mask, divisor = case.given, case.given["mask"], case.params["max_length_divisor"]
    rollouts = Rollouts.of(mask, reward=given["token_rewards"].sum(-1), group=given["group"], signals={"old.entropy": given["entropy"]})
    for inter in case.params["lambdas"]:
        found = Canon(inter=inter, variant="code").advantage(rollouts, {"updates": 0}).expand(mask.shape)
        theirs = case.found[f"entropy_lam{round(100 * inter)}"] * divisor
        torch.testing.assert_close(found[mask].double(), theirs[mask], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"inter": 50.0}, "inter=0.5"), ({"alpha": -1.0}, "at least 0"), ({"cycle": 0}, "at least 1"), ({"warmup": -1}, "at least 0")],
)  # fmt: skip
def test_wrong_parameters_say_the_way_out(wrong, says):
    with pytest.raises(ValueError, match=rf"Canon: .*{says}"):
        Canon(**wrong)
