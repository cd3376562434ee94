"""Advantages: closed forms for binary rewards, identities between estimators, invariances, and the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control import advantages as adv
from isentrope.control.coefficients import AdaptiveEntropyCoef, AdaptiveKL

NAN = float("nan")


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def scene(seed=0, groups=(4, 1, 6, 3), width=5):
    random = torch.Generator().manual_seed(seed)
    group = torch.cat([torch.full((size,), 7 * index, dtype=torch.long) for index, size in enumerate(groups)])
    reward = torch.randn(len(group), generator=random, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (len(group),), generator=random)
    return reward, group, torch.arange(width) < lengths[:, None]


# --- closed forms


@pytest.mark.parametrize("total", [2, 3, 8, 16])
def test_grpo_on_binary_rewards(total):
    group = torch.zeros(total, dtype=torch.long)
    for correct in range(total + 1):
        reward = doubles(*[1.0] * correct, *[0.0] * (total - correct))
        right, wrong = adv.binary_advantages(correct, total)
        expected = torch.where(reward > 0, right, wrong).double()
        torch.testing.assert_close(adv.group_advantages(reward, group, epsilon=0.0).nan_to_num(), expected, rtol=1e-6, atol=1e-12)
        found = adv.trl_advantages(reward, total, epsilon=1e-300)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
        assert correct * right + (total - correct) * wrong == pytest.approx(0, abs=1e-9)


def test_one_correct_of_eight():
    found = adv.group_advantages(doubles(1, 0, 0, 0, 0, 0, 0, 0), torch.zeros(8, dtype=torch.long))
    assert [round(float(value), 3) for value in found[:2]] == [2.475, -0.354]


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_rloo_is_the_centred_reward_scaled(seed):
    reward, group, _ = scene(seed)
    sizes = (group[:, None] == group).sum(-1)
    centred, rloo = adv.group_advantages(reward, group, scale=False), adv.rloo_advantages(reward, group)
    many = sizes > 1
    torch.testing.assert_close(rloo[many], (sizes / (sizes - 1).clamp(min=1) * centred)[many], rtol=1e-6, atol=1e-12)
    by_hand = torch.stack([reward[i] - reward[(group == group[i]) & (torch.arange(len(reward)) != i)].mean() for i in range(len(reward)) if many[i]])
    torch.testing.assert_close(rloo[many], by_hand, rtol=1e-6, atol=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_both_conventions_agree_where_both_apply(seed):
    reward, group, _ = scene(seed, groups=(5, 5, 5))
    torch.testing.assert_close(adv.trl_advantages(reward, 5, epsilon=1e-6), adv.group_advantages(reward, group), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(adv.trl_advantages(reward, 5, scale="none"), adv.group_advantages(reward, group, scale=False), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(adv.leave_one_out_advantages(reward, 5), adv.rloo_advantages(reward, group), rtol=1e-6, atol=1e-9)


# --- invariances


@given(seed=st.integers(0, 10_000), shift=st.floats(-10, 10), factor=st.floats(0.1, 10))
@settings(deadline=None, max_examples=25)
def test_a_shift_of_a_groups_rewards_changes_nothing_and_a_scale_is_divided_out(seed, shift, factor):
    reward, group, mask = scene(seed, groups=(4, 6, 3))
    moved = reward + shift * (1 + group)
    for found in (
        lambda r: adv.group_advantages(r, group), lambda r: adv.group_advantages(r, group, scale=False), lambda r: adv.rloo_advantages(r, group),
        lambda r: adv.opo_advantages(r, mask.sum(-1), group), lambda r: adv.pass_at_k_advantages(r, group),
        lambda r: adv.baseline_advantages(r, group, mask),
    ):  # fmt: skip
        torch.testing.assert_close(found(moved), found(reward), rtol=1e-5, atol=1e-7)
    scaled, plain = (adv.group_advantages(r, group, epsilon=0.0) for r in (factor * reward, reward))
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


def test_permuting_responses_permutes_advantages():
    reward, group, mask = scene()
    order = torch.randperm(len(reward), generator=torch.Generator().manual_seed(1))
    for found in (adv.group_advantages, adv.rloo_advantages, adv.gpg_advantages, adv.pass_at_k_advantages):
        torch.testing.assert_close(found(reward[order], group[order]), found(reward, group)[order], rtol=1e-9, atol=1e-12)
    lengths = mask.sum(-1)
    torch.testing.assert_close(adv.opo_advantages(reward[order], lengths[order], group[order]), adv.opo_advantages(reward, lengths, group)[order])


def test_the_length_weighted_sum_of_opo_is_zero_in_every_group():
    reward, group, mask = scene(groups=(4, 6, 3))
    weighted = adv.opo_advantages(reward, mask.sum(-1), group) * mask.sum(-1)
    for value in group.unique():
        assert abs(float(weighted[group == value].sum())) < 1e-12


def test_whitening_gives_mean_zero_and_variance_one():
    reward, _, mask = scene()
    found = adv.whiten(adv.spread(reward, mask), mask)
    assert abs(float(found[mask].mean())) < 1e-12
    assert float(found[mask].var()) == pytest.approx(1, abs=1e-7)
    assert not found[~mask].any()


# --- by hand


def test_pass_at_k_rewards_only_the_best_by_its_lead():
    reward, group = doubles(3, 1, 2, 5, 5, 0, 4), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    assert adv.pass_at_k_advantages(reward, group, scale=False).tolist() == [1, 0, 0, 0, 0, 0, 0]
    scaled = adv.pass_at_k_advantages(reward, group)
    assert float(scaled[0]) == pytest.approx(1 / (1 + 1e-6))


def test_gpg_scales_by_the_share_of_non_zero_rewards():
    reward, group = doubles(1, 0, 0, 1, 2), torch.tensor([0, 0, 1, 1, 2])
    expected = [5 / 3 * value / 2 for value in (0.5, -0.5, -0.5, 0.5, 2)]
    assert adv.gpg_advantages(reward, group, f_norm=2.0).tolist() == pytest.approx(expected)


def test_returns_with_a_hole():
    """r = 1 at the first and the last token, a tool token between two tokens of text."""
    rewards, mask = doubles(1, 0, 9, 0, 1).unsqueeze(0), torch.tensor([[True, True, False, True, True]])
    carried = adv.discounted_returns(rewards, mask, gamma=0.5)
    assert carried.tolist() == [[1 + 0.5 * 0.25, 0.25, 0, 0.5, 1]]
    reset = adv.discounted_returns(rewards, mask, gamma=0.5, holes="reset")
    assert reset.tolist() == [[1, 0, 0, 0.5, 1]]


def test_gae_ends():
    """lam = 1, gamma = 1: reward to come minus value. lam = 0: the one-step error. A masked token is as if it were not there."""
    random = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, generator=random, dtype=torch.float64)
    mask = torch.ones(3, 6, dtype=torch.bool)
    advantage, returns = adv.gae(rewards, values, mask)
    torch.testing.assert_close(returns, rewards.flip(-1).cumsum(-1).flip(-1))
    torch.testing.assert_close(advantage, returns - values)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    torch.testing.assert_close(adv.gae(rewards, values, mask, gamma=0.9, lam=0.0)[0], rewards + 0.9 * following - values)
    holes = mask.clone()
    holes[:, 3] = False
    keep = [0, 1, 2, 4, 5]
    spoilt_rewards, spoilt_values = rewards.clone(), values.clone()
    spoilt_rewards[:, 3], spoilt_values[:, 3] = NAN, NAN
    found = adv.gae(spoilt_rewards, spoilt_values, holes, gamma=0.9, lam=0.8)[0]
    torch.testing.assert_close(found[:, keep], adv.gae(rewards[:, keep], values[:, keep], mask[:, keep], gamma=0.9, lam=0.8)[0])
    assert not found[:, 3].any()


def test_overlong_falls_by_the_factor_over_the_buffer_and_on():
    lengths = torch.tensor([10, 80, 90, 100, 120])
    found = adv.overlong_reward(doubles(1, 1, 1, 1, 1), lengths, limit=100, buffer=20, factor=2.0)
    assert found.tolist() == pytest.approx([1, 1, 0, -1, -3])


# --- unscorable and degenerate


def test_an_unscorable_response_is_as_if_it_were_not_there():
    with_nan, without = doubles(1, NAN, 0, 0.5, 2, 1, NAN, 0), doubles(1, 0, 0.5, 2, 1, 0)
    left = torch.tensor([0, 2, 3, 4, 5, 7])
    for scale in ("group", "batch", "none"):
        found = adv.trl_advantages(with_nan, 4, scale=scale)
        assert found[[1, 6]].tolist() == [0, 0]
        torch.testing.assert_close(found[left], adv.trl_advantages(without, 3, scale=scale), rtol=1e-6, atol=1e-9)
    for whiten in (False, True):
        found = adv.leave_one_out_advantages(with_nan, 4, whiten=whiten)
        torch.testing.assert_close(found[left], adv.leave_one_out_advantages(without, 3, whiten=whiten), rtol=1e-6, atol=1e-9)


def test_a_missing_part_counts_as_zero_and_all_missing_is_unscorable():
    parts = torch.stack([doubles(1, NAN, NAN), doubles(2, 3, NAN)], dim=1)
    found = adv.total_reward(parts, doubles(1, 0.5))
    assert found[:2].tolist() == [2, 1.5]
    assert bool(found[2].isnan())


def test_decoupled_equals_grpo_over_the_batch_for_one_reward_and_ignores_its_scale():
    reward, _, _ = scene(groups=(4, 4, 4))
    parts = torch.stack([reward, torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)], dim=1)
    found = adv.decoupled_advantages(parts, doubles(1, 0.5), 4, epsilon=1e-12)
    scaled = adv.decoupled_advantages(parts * doubles(1, 100), doubles(1, 0.5), 4, epsilon=1e-12)
    torch.testing.assert_close(found, scaled, rtol=1e-5, atol=1e-7)
    assert abs(float(found.mean())) < 1e-7
    assert float(found.std()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("reward", [[0.0] * 4, [1.0] * 4, [0.1] * 4, [NAN] * 4, [NAN, NAN, NAN, 2.0]])
def test_groups_without_contrast_give_zero(reward):
    reward = doubles(*reward)
    for scale in ("group", "batch", "none"):
        assert float(adv.trl_advantages(reward, 4, scale=scale).abs().max()) < 1e-9
    for whiten in (False, True):
        assert float(adv.leave_one_out_advantages(reward, 4, whiten=whiten).abs().max()) < 1e-9
    assert float(adv.decoupled_advantages(reward.unsqueeze(1), doubles(1.0), 4).abs().max()) < 1e-9


def test_a_group_of_one():
    reward, group = doubles(0.7), torch.tensor([3])
    assert adv.group_advantages(reward, group).tolist() == pytest.approx([0.7 / (1 + 1e-6)])
    assert adv.group_advantages(reward, group, scale=False).tolist() == [0.7]
    assert adv.rloo_advantages(reward, group).tolist() == [0]
    assert adv.rloo_advantages(reward, group, single="raw").tolist() == [0.7]
    assert adv.opo_advantages(reward, torch.tensor([4]), group).tolist() == [0.7]
    assert adv.pass_at_k_advantages(reward, group).tolist() == [0]
    assert adv.trl_advantages(reward, 1).tolist() == [0]
    assert adv.leave_one_out_advantages(reward, 1).tolist() == [0]


def test_masked_rows_and_short_batches_are_finite():
    reward, group, mask = scene()
    for masked in (torch.zeros_like(mask), torch.cat([mask[:1], torch.zeros_like(mask[1:])])):
        for found in (
            adv.spread(adv.opo_advantages(reward, masked.sum(-1), group), masked), adv.baseline_advantages(reward, group, masked),
            adv.whiten(adv.discounted_returns(mask.double(), masked), masked), adv.gae(mask.double(), mask.double(), masked)[0],
        ):  # fmt: skip
            assert bool(found.isfinite().all())
            assert not found[~masked].any()
    one = torch.zeros_like(mask)
    one[0, 0] = True
    assert adv.whiten(adv.spread(reward, one), one).abs().max() < 1e-4


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"num_generations must divide the 5 rows\. Got 4"):
        adv.trl_advantages(torch.zeros(5), 4)
    with pytest.raises(ValueError, match=r"scale must be group, batch or none\. Got 'both'"):
        adv.trl_advantages(torch.zeros(4), 4, scale="both")


# --- coefficients


def test_the_kl_coefficient_moves_toward_the_target():
    controller = AdaptiveKL(initial=0.01, target=0.1, horizon=100)
    state = controller.init()
    assert controller.update(state, 0.1, 50)["coef"] == 0.01
    assert controller.update(state, 0.11, 50)["coef"] == pytest.approx(0.01 * 1.05)
    assert controller.update(state, 5.0, 50)["coef"] == pytest.approx(0.01 * 1.1)
    assert controller.update(state, 0.0, 50)["coef"] == pytest.approx(0.01 * 0.9)


def test_the_entropy_coefficient_acts_only_below_the_target_and_stays_in_its_range():
    controller = AdaptiveEntropyCoef(target=0.2, delta=0.3, high=0.5)
    state = controller.init()
    assert controller.applied(state) == 0
    coefs = []
    for entropy in (0.1, 0.1, 0.2, 0.9, 0.1, 0.9, 0.9):
        state = controller.update(state, entropy)
        coefs.append((state["coef"], controller.applied(state)))
    assert coefs == [(0.3, 0.3), (0.5, 0.5), (0.5, 0.5), (pytest.approx(0.2), 0), (pytest.approx(0.5), pytest.approx(0.5)), (pytest.approx(0.2), 0), (0, 0)]
    assert controller.init()["entropy"] is None
