"""KL estimators by exact enumeration over a small vocabulary, clip windows, and the token losses that no objective names."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.surrogates import (
    Bounds,
    changed_share,
    clip_fractions,
    clipped_loss,
    gmpo_loss,
    importance_ratio,
    kl_estimate,
    masked_mean,
    off_policy_mask,
    sapo_loss,
    value_loss,
    vespo_weight,
)  # fmt: skip

VOCAB = 6


def policies(seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB, generator=random, dtype=torch.float64), torch.randn(VOCAB, generator=random, dtype=torch.float64)


def kl(first, second):
    log_p, log_q = torch.log_softmax(first, -1), torch.log_softmax(second, -1)
    return (log_p.exp() * (log_p - log_q)).sum()


def mean_gradient(logits, ref, estimator, **clamps):
    """E over sampled tokens of the gradient of the estimate, the samples themselves being fixed."""
    leaf = logits.clone().requires_grad_(True)
    estimate = kl_estimate(torch.log_softmax(leaf, -1), torch.log_softmax(ref, -1), estimator, **clamps)
    return torch.autograd.grad((torch.softmax(logits, -1) * estimate).sum(), leaf)[0]


def gradient(function, logits):
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(function(leaf), leaf)[0]


# --- KL, by enumeration


@pytest.mark.parametrize("seed", range(4))
def test_the_means_of_k1_and_k3_are_the_kl_and_that_of_k2_is_not(seed):
    logits, ref = policies(seed)
    p, log_p, log_q = torch.softmax(logits, -1), torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    means = {name: (p * kl_estimate(log_p, log_q, name)).sum() for name in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], kl(logits, ref), rtol=1e-12, atol=0)
    torch.testing.assert_close(means["k3"], kl(logits, ref), rtol=1e-12, atol=0)
    assert abs(float(means["k2"] - kl(logits, ref))) > 1e-2
    assert bool((kl_estimate(log_p, log_q, "k3") >= 0).all())


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_gradients_of_the_estimators_as_losses(seed):
    logits, ref = policies(seed)
    forward = gradient(lambda z: kl(z, ref), logits)
    backward = gradient(lambda z: kl(ref, z), logits)
    assert float((forward - backward).abs().max()) > 1e-2
    assert float(mean_gradient(logits, ref, "k1").abs().max()) < 1e-15
    torch.testing.assert_close(mean_gradient(logits, ref, "k2"), forward, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(mean_gradient(logits, ref, "k3"), backward, rtol=1e-10, atol=1e-14)


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    logits, ref = policies()
    leaf = logits.clone().requires_grad_(True)
    log_p = torch.log_softmax(leaf, -1)
    penalty = kl_estimate(log_p, torch.log_softmax(ref, -1), "k1").detach()
    (slope,) = torch.autograd.grad((log_p.detach().exp() * penalty * log_p).sum(), leaf)
    torch.testing.assert_close(slope, gradient(lambda z: kl(z, ref), logits), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3"])
def test_a_plus_keeps_the_value_and_takes_the_gradient_of_k2(estimator):
    logits, ref = policies()
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    torch.testing.assert_close(kl_estimate(log_p, log_q, estimator + "+"), kl_estimate(log_p, log_q, estimator), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mean_gradient(logits, ref, estimator + "+"), mean_gradient(logits, ref, "k2"), rtol=1e-12, atol=1e-15)


def test_verls_clamps_and_their_gradients():
    leaf = torch.tensor([-30.0, -3.0, -1.0, 0.0, 30.0], dtype=torch.float64, requires_grad=True)
    value = kl_estimate(leaf, torch.zeros_like(leaf), "k3", log_ratio_clamp=20.0, value_clamp=10.0)
    torch.testing.assert_close(value, torch.tensor([10.0, 10.0, math.e - 2, 0.0, 10.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.0, 1 - math.e, 0.0, 0.0], dtype=torch.float64))


def test_the_gradient_of_abs_is_zero_at_zero():
    leaf = torch.zeros(1, requires_grad=True)
    assert not torch.autograd.grad(kl_estimate(leaf, torch.zeros(1), "abs").sum(), leaf)[0].any()


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match=r"must be k1, abs, k2 or k3.*Got 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


# --- bounds and ratios


@pytest.mark.parametrize("low", [None, 0.5, "tensor"])
@pytest.mark.parametrize("high", [None, 1.5, "tensor"])
def test_a_window_of_numbers_and_of_tensors_is_the_same_window(low, high):
    value = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    sides = [torch.full_like(value, number) if side == "tensor" else side for side, number in ((low, 0.5), (high, 1.5))]
    found = Bounds(*sides).clamp(value)
    expected = [0.1 if low is None else 0.5, 1.0, 9.0 if high is None else 1.5]
    assert found.tolist() == expected


def test_a_window_per_token_clips_each_token_by_its_own():
    ratio = torch.tensor([[1.3, 1.3]], dtype=torch.float64)
    bounds = Bounds(0.8, torch.tensor([[1.2, 1.4]], dtype=torch.float64))
    torch.testing.assert_close(clipped_loss(ratio, torch.ones(1, 1, dtype=torch.float64), bounds), torch.tensor([[-1.2, -1.3]], dtype=torch.float64))


@pytest.mark.parametrize("bounds", [Bounds(0.5, 2.0), Bounds(None, 2.0), Bounds(-9.0, 1.2), Bounds(torch.tensor([0.5]), torch.tensor([2.0]))])
def test_the_window_of_the_log_ratio(bounds):
    ratio = torch.tensor([0.01, 0.9, 1.0, 3.0])
    torch.testing.assert_close(bounds.log().clamp(ratio.log()).exp(), bounds.clamp(ratio))


@pytest.mark.parametrize("level", ["token", "sequence", "sequence-token", "sequence-sum"])
def test_ratios_are_one_on_policy_and_under_the_mask(level):
    log_probs = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    width = 1 if level in ("sequence", "sequence-sum") else 4
    assert torch.equal(importance_ratio(log_probs, log_probs, mask, level=level), torch.ones(3, width, dtype=torch.float64))
    off = importance_ratio(torch.where(mask, log_probs + 0.1, math.nan), log_probs, mask, level=level)
    expected = {"token": [0.1, 0.1], "sequence": [0.1, 0.1], "sequence-token": [0.1, 0.1], "sequence-sum": [0.4, 0.2]}[level]
    torch.testing.assert_close(off[:2, 0].log(), torch.tensor(expected, dtype=torch.float64))
    assert off[2, 0] == 1


def test_the_token_form_stops_at_a_sequence_log_ratio_of_ten():
    log_probs = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-9.0] * 3, [-11.0] * 3], dtype=torch.float64)
    ratio = importance_ratio(log_probs, old, torch.ones(2, 3, dtype=torch.bool), level="sequence-token")
    torch.testing.assert_close(ratio[:, 0].log(), torch.tensor([9.0, 10.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(ratio.sum(), log_probs)
    assert bool((slope[0] > 0).all())
    assert not slope[1].any()


# --- token losses


@given(ratio=st.floats(0.05, 20), tau=st.floats(0.3, 5))
@settings(deadline=None, max_examples=30)
def test_the_gate_of_sapo(ratio, tau):
    r = torch.tensor([[ratio]], dtype=torch.float64, requires_grad=True)
    for sign in (1.0, -1.0):
        loss = sapo_loss(r, torch.tensor([[sign]], dtype=torch.float64), tau, tau)
        gate = 4 / tau / (1 + math.exp(-tau * (ratio - 1)))
        assert float(loss.detach()) == pytest.approx(-sign * gate, rel=1e-5)
    at_one = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(sapo_loss(at_one, -torch.ones(1, 1, dtype=torch.float64), tau, tau).sum(), at_one)[0]
    assert float(slope) == pytest.approx(1.0, rel=1e-6)


def test_gmpo_by_hand():
    """A > 0: the logs of the ratios are cut above; A < 0: below. Two tokens, the third is masked."""
    log_ratio = torch.tensor([[0.9, -0.9, 50.0]], dtype=torch.float64)
    mask, bounds = torch.tensor([[True, True, False]]), Bounds(math.exp(-0.4), math.exp(0.4))
    for advantage, mean in ((2.0, (0.4 - 0.9) / 2), (-2.0, (0.9 - 0.4) / 2)):
        found = gmpo_loss(log_ratio.exp(), torch.tensor([[advantage]], dtype=torch.float64), mask, bounds)
        torch.testing.assert_close(found, torch.tensor([[-advantage * math.exp(mean)]], dtype=torch.float64))


def test_vespo_weight_is_one_on_policy_and_falls_on_both_sides():
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    torch.testing.assert_close(vespo_weight(advantage, zeros, zeros, mask), torch.ones(2, 1, dtype=torch.float64))
    drift = 0.1 * torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    found = vespo_weight(advantage, drift, zeros, mask)
    w = math.exp(0.3)
    torch.testing.assert_close(found, torch.tensor([[math.exp(3 + 2 * 0.3 - 3 * w)], [math.exp(2 + 3 * 0.3 - 2 * w)]], dtype=torch.float64))
    assert not found.requires_grad
    assert bool((vespo_weight(advantage, zeros + 400, zeros, mask) == 0).all())


def test_the_off_policy_mask_keeps_what_is_rewarded_or_near():
    mask = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    sampling = torch.tensor([[0.3, 0.3], [0.3, 0.3], [0.1, 9.0], [9.0, 9.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]], dtype=torch.float64)
    found = off_policy_mask(advantage, torch.zeros(4, 2, dtype=torch.float64), sampling, mask, 0.2)
    assert found.squeeze(1).tolist() == [True, False, True, True]


def test_the_value_loss_by_hand():
    value = torch.tensor([[1.0, 1.0, math.nan]], dtype=torch.float64)
    old, returns = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64), torch.tensor([[1.2, 0.0, 0.0]], dtype=torch.float64)
    loss, share = value_loss(value, old, returns, torch.tensor([[True, True, False]]), 0.2)
    assert float(loss) == pytest.approx(0.5 * (0.5**2 + 1.0**2) / 2)
    assert float(share) == 0.5


# --- what is logged


def test_clip_fractions_count_strictly_and_by_hand():
    ratio = torch.tensor([[1.2, 1.5, 0.5, 0.5, 5.0, 1.5]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False]])
    share, lower = clip_fractions(ratio, advantage, mask, Bounds(0.8, 1.2, 3.0))
    assert (float(share), float(lower)) == (pytest.approx(2 / 5), pytest.approx(1 / 5))
    assert float(clip_fractions(ratio, advantage, mask, Bounds(0.8, 1.2))[1]) == 0
    assert float(changed_share(ratio, mask, Bounds(0.8, 1.2))) == pytest.approx(4 / 5)


def test_a_mean_over_nothing_is_zero():
    assert masked_mean(torch.full((2, 2), math.nan), torch.zeros(2, 2, dtype=torch.bool)) == 0
