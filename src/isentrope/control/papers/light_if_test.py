"""Light-IF: recorded outputs, the weights by hand, where gradient flows, bounds of the weights, and the length reward."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import light_if
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.light_if import LengthReward, Tea, cosine_length_reward, covariance_weights
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Rollouts, RowRng, Step

DAPO = Objective.named("dapo")
KEY = "current.entropy"
LINK = Tea(scale=10.0, cap=5.0)


def term_of(link: Tea, step: Step) -> torch.Tensor:
    return policy_loss(step, DAPO, chain(link)).loss - policy_loss(step, DAPO).loss


def recorded_step(case) -> tuple[Step, torch.Tensor, torch.Tensor]:
    log_probs, entropy = (case.given[key].clone().requires_grad_(True) for key in ("logp", "entropy"))
    rollouts = Rollouts.of(case.given["mask"], advantage=case.given["adv"], old_log_probs=case.given["logp"])
    return Step(rollouts, log_probs, {KEY: entropy}), log_probs, entropy


# --- recorded outputs


@pytest.mark.parametrize("name", ["tea-weights", "tea-weights-capped", "tea-weights-full-mask-row"])
@pytest.mark.parametrize("variant", ["fixed", "code"])
def test_the_link_is_the_released_term(name, variant):
    """Its value under both variants; the entropy's gradient is that of constant weights under both; the log-probs' only under "code"."""
    case = recorded(f"light-if__{name}")
    step, log_probs, entropy = recorded_step(case)
    link = Tea(case.params["cov_alpha"], case.params["clip_cov_ub"], variant=variant)
    term = -term_of(link, step)
    case.close(term, "entropy_term")
    slopes = torch.autograd.grad(term, [log_probs, entropy])
    if "grad_entropy" in case.found:
        case.close(slopes[1], "grad_entropy")
        case.close(slopes[0] if variant == "code" else case.found["grad_logp"], "grad_logp")
    assert all(slope.isfinite().all() for slope in slopes)
    assert variant == "code" or not slopes[0].any()


# --- by hand


def test_the_weights_by_hand():
    """Softmax of (0, ln 3, 0) is (1, 3, 1) / 5; times 10, capped at 5, and nothing for a response without tokens."""
    covariance = torch.tensor([[0.0, math.log(3), 0.0, 99.0], [7.0, 7.0, 7.0, 7.0], [9.0] * 4])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])
    expected = torch.tensor([[2.0, 5.0, 2.0, 0.0], [5.0, 5.0, 0.0, 0.0], [0.0] * 4])
    torch.testing.assert_close(covariance_weights(covariance, mask, 10.0, 5.0), expected)


def test_the_covariance_by_hand():
    """A = (1, -1), ln p = (-1, -3): means 0 and -2, so both products are 1 and the weights are equal; with A the other way they still are.
    With two tokens more of A = 0 (mean stays 0, mean ln p -2): 1, 1, 0, 0."""
    log_probs = torch.tensor([[-1.0, -3.0, -2.0, -2.0]], dtype=torch.float64, requires_grad=True)
    entropy = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    rollouts = Rollouts.of(torch.ones(1, 4, dtype=torch.bool), advantage=advantage, old_log_probs=log_probs.detach())
    step = Step(rollouts, log_probs, {KEY: entropy})
    slope = torch.autograd.grad(term_of(replace(LINK, scale=1.0), step), entropy)[0]
    e = math.e
    torch.testing.assert_close(slope, -torch.tensor([[e, e, 1, 1]], dtype=torch.float64) / (2 * e + 2) / 4)


def test_a_covariance_of_the_other_sign_is_noticed(monkeypatch):
    straight = light_if.covariance_weights
    monkeypatch.setattr(light_if, "covariance_weights", lambda covariance, *rest: straight(-covariance, *rest))
    with pytest.raises(AssertionError):
        test_the_covariance_by_hand()
    with pytest.raises(AssertionError):
        test_the_link_is_the_released_term("tea-weights", "fixed")


# --- exact statements


@given(st.integers(0, 10_000), st.floats(0.1, 20), st.floats(0.1, 20), st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_response_has_at_most_scale_and_a_token_at_most_cap(seed, scale, cap, spread):
    generator = torch.Generator().manual_seed(seed)
    covariance = spread * torch.randn(4, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 7, generator=generator) < 0.7
    weight = covariance_weights(covariance, mask, scale, cap)
    assert (weight.sum(-1) <= scale * (1 + 1e-9)).all()
    assert (weight <= cap).all()
    assert not weight[~mask].any()
    free = covariance_weights(covariance, mask, scale, math.inf)
    torch.testing.assert_close(free.sum(-1), scale * mask.any(-1).double())
    torch.testing.assert_close(covariance_weights(covariance + 1000.0, mask, scale, cap), weight)


def test_a_flat_covariance_gives_every_token_scale_over_length():
    mask = torch.arange(8) < torch.tensor([[8], [2], [1]])
    weight = covariance_weights(torch.full((3, 8), 3.0), mask, 4.0, 100.0)
    torch.testing.assert_close(weight, torch.where(mask, torch.tensor([[0.5], [2.0], [4.0]]), 0.0))


def test_a_constant_added_to_the_advantage_or_the_log_probs_changes_nothing():
    step = some_step(LINK)
    weight = LINK.survey(step, {}, RowRng()).tokens["weight"]
    moved = replace(step, rollouts=replace(step.rollouts, advantage=step.advantage + 2.5), log_probs=step.log_probs - 3.0)
    torch.testing.assert_close(LINK.survey(moved, {}, RowRng()).tokens["weight"], weight)


@pytest.mark.parametrize("variant", ["fixed", "code"])
def test_slices_add_up_in_any_order(variant):
    link = replace(LINK, variant=variant)
    step = some_step(link, differentiable=True)
    whole = policy_loss(step, link.recipe(), chain(link)).loss
    for size in (1, 4):
        parts = in_slices(link, shuffled(step, size), size)[1]
        torch.testing.assert_close(sum(part.loss for part in parts), whole, rtol=1e-9, atol=1e-12)


def test_per_micro_batch_the_means_are_those_of_the_slice():
    step, local = some_step(LINK), replace(LINK, scope="micro-batch")
    whole, parts = (sum(part.loss for part in in_slices(link, step, 4)[1]) for link in (LINK, local))
    assert abs(float(whole - parts)) > 1e-6


# --- the length reward


def test_the_length_reward_is_the_released_one():
    case = recorded("light-if__length-reward")
    case.close(cosine_length_reward(case.given["score"].double(), case.given["length"], case.params["max_length"]), "reward")


def test_the_length_reward_by_hand():
    """At half the limit f is 1/2: 2 s f = s, and -1/2 below the threshold; nothing at length 0, -2 at the limit."""
    score, length = torch.tensor([1.0, 0.2, 0.19, 1.0, 1.0, 0.0]), torch.tensor([5, 5, 5, 0, 10, 25])
    torch.testing.assert_close(cosine_length_reward(score, length, 10), torch.tensor([1.0, 0.2, -0.5, 0.0, -2.0, -2.0]))


def test_the_link_adds_it_and_asks_for_the_closing_text():
    mask = torch.arange(10) < torch.tensor([[5], [5], [10]])
    rollouts = Rollouts.of(mask, reward=torch.tensor([1.0, 0.0, 1.0]), text=("so </think> 4", "so </think>", "so"))
    torch.testing.assert_close(LengthReward(0.5, 10).reward(rollouts, {}), torch.tensor([1.5, -0.25, 0.0]))
    torch.testing.assert_close(LengthReward(0.5, 10, "</think>").reward(rollouts, {}), torch.tensor([1.5, -0.25, 1.0]))
    with pytest.raises(ValueError, match=r"LengthReward: closing looks into the text.*Write closing=None"):
        LengthReward(closing="</think>").reward(replace(rollouts, text=None), {})


# --- parameters


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"Tea: scale must be at least 0\. Got -1"):
        Tea(scale=-1)
    with pytest.raises(ValueError, match=r"Tea: cap must be at least 0\. Got nan"):
        Tea(cap=float("nan"))
    with pytest.raises(ValueError, match=r"LengthReward: limit must be at least 1\. Got 0"):
        LengthReward(limit=0)
