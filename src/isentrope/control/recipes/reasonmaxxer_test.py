"""ReasonMaxxer: gradients in closed form, limits, the choice of data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.recipes.entropy_sft import SUPERVISED
from isentrope.control.recipes.reasonmaxxer import ReasonMaxxer, clarity, decision_positions, pool, signed_advantage
from isentrope.control.stages import chain, policy_loss, survey
from isentrope.control.step import Rollouts, RowRng, Step, micro_batches
from isentrope.measure.tokens import Entropy, token_signals_from_logits
from isentrope.testing import parametrize_with_checks

ROWS, WIDTH, VOCAB = 6, 5, 7


def scene(seed=0, moved=0.0):
    """Base and current logits, labels, a step with advantages of both signs and one 0."""
    draw = torch.Generator().manual_seed(seed)
    base = 2 * torch.randn(ROWS, WIDTH, VOCAB, generator=draw, dtype=torch.float64)
    logits = (base + moved * torch.randn(ROWS, WIDTH, VOCAB, generator=draw, dtype=torch.float64)).requires_grad_(True)
    labels = torch.randint(VOCAB, (ROWS, WIDTH), generator=draw)
    mask = torch.arange(WIDTH) < torch.tensor([5, 4, 3, 5, 1, 2])[:, None]
    log_b, log_p = torch.log_softmax(base, -1), torch.log_softmax(logits, -1)
    signals = {"current.base_kl": (log_b.exp() * (log_b - log_p)).sum(-1)}
    advantage = torch.tensor([1.0, -1.0, 3.0, -4.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    rollouts = Rollouts.of(mask, advantage=advantage, signals={"old.entropy": token_signals_from_logits(base, labels, [Entropy()])["entropy"]})
    return base, logits, labels, Step(rollouts, log_p.gather(-1, labels[..., None]).squeeze(-1), signals)


def loss_of(step, link):
    return policy_loss(step, SUPERVISED, chain(link)).loss


def test_the_gradient_is_minus_reinforce_on_the_decision_positions():
    """dL_dec/dz = A (p - e_x) / n on D, 0 elsewhere, A clipped to 2.5."""
    _, logits, labels, step = scene(moved=0.3)
    (slope,) = torch.autograd.grad(loss_of(step, ReasonMaxxer(0.8, 1.4, kl_coef=0)), logits)
    entropy = step.rollouts.signals["old.entropy"]
    clipped = step.advantage.clamp(-2.5, 2.5)
    decisions = step.mask & torch.where(step.advantage > 0, entropy > 0.8, entropy > 1.4) & (step.advantage != 0)
    assert 0 < int(decisions.sum()) < int(step.mask.sum()) - 2
    expected = clipped[..., None] * (torch.softmax(logits, -1) - torch.nn.functional.one_hot(labels, VOCAB)) * decisions[..., None] / decisions.sum()
    assert torch.allclose(slope, expected.detach())


def test_the_kl_pulls_all_other_positions_to_the_base():
    """d(lambda L_KL)/dz = lambda (p - p_base) / n outside D: 0 at the start."""
    link = ReasonMaxxer(0.8, 1.4, kl_coef=0.5)
    for moved in (0.0, 0.4):
        base, logits, _, step = scene(moved=moved)
        without = torch.autograd.grad(loss_of(step, ReasonMaxxer(0.8, 1.4, kl_coef=0)), logits, retain_graph=True)[0]
        slope = torch.autograd.grad(loss_of(step, link), logits)[0] - without
        decisions = decision_positions(step.rollouts.signals["old.entropy"], step.advantage, step.mask, 0.8, 1.4)
        others = step.mask & ~decisions
        expected = 0.5 * (torch.softmax(logits, -1) - torch.softmax(base, -1)) * others[..., None] / others.sum()
        assert torch.allclose(slope, expected.detach(), atol=1e-12)
        assert (slope.abs().max() > 1e-3) == (moved > 0)


def test_fullseq_is_the_neutral_setting_where_no_advantage_is_zero():
    _, _, _, step = scene()
    plain = -(torch.where(step.mask, step.advantage * step.log_probs, 0.0)).sum() / step.mask.sum()
    assert torch.allclose(loss_of(step, ReasonMaxxer().neutral()), plain)
    gated = ReasonMaxxer(-0.0, 0.0, kl_coef=0, advantage_clip=None)
    counted = step.mask & (step.advantage != 0)
    assert torch.allclose(loss_of(step, gated), plain * step.mask.sum() / counted.sum())


@settings(deadline=None, max_examples=25)
@given(low=st.floats(0, 2), more=st.floats(0, 1))
def test_decisions_shrink_as_the_threshold_rises(low, more):
    _, _, _, step = scene()
    entropy = step.rollouts.signals["old.entropy"]
    wide, narrow = (decision_positions(entropy, step.advantage, step.mask, tau, tau) for tau in (low, low + more))
    assert not (narrow & ~wide).any()
    assert not (wide & (step.advantage == 0)).any()


def test_negative_tokens_can_be_scaled_and_floored():
    _, logits, _, step = scene()
    of = lambda **more: torch.autograd.grad(loss_of(step, ReasonMaxxer(0.1, 0.1, kl_coef=0, **more)), logits, retain_graph=True)[0]  # noqa: E731
    whole, half, floored = of(), of(negative_coef=0.5), of(floor=1.0)
    negative = step.advantage.squeeze(1) < 0
    assert torch.allclose(half[negative], whole[negative] / 2)
    assert torch.equal(half[~negative], whole[~negative])
    assert floored[negative].abs().max() == 0
    assert torch.equal(floored[~negative], whole[~negative])


def test_slices_add_up_to_the_update():
    _, _logits, _, step = scene(moved=0.4)
    link = chain(ReasonMaxxer(0.8, 1.4, kl_coef=0.3))
    whole = policy_loss(step, SUPERVISED, link).loss
    stats = survey(step, SUPERVISED, link, link.init(), RowRng())
    parts = [policy_loss(part, SUPERVISED, link, stats).loss for part in micro_batches(step, 2)]
    assert torch.allclose(torch.stack(parts).sum(), whole)


def test_advantages_sum_to_zero_and_are_zero_where_all_are_equal():
    reward, group = torch.tensor([1.0, 0, 0, 1, 1, 1, 0.0]), torch.tensor([5, 5, 5, 5, 2, 2, 9])
    found = signed_advantage(reward, group)
    assert found.tolist() == [1, -1, -1, 1, 0, 0, 0]


def test_the_pool_takes_even_problems_and_short_answers():
    correct = [True, False, True, True, True, False, True, True, True, False]
    group = [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]  # rates 1/2, 1, 2/3, 2/3
    assert pool(correct, group, [9, 1, 1, 1, 5, 4, 3, 1, 1, 1], problems=2, share=0.8) == [1, 4, 5, 6]
    assert pool([True, True], [0, 0], [1, 1]) == []


def test_clarity_by_hand():
    decisions = torch.tensor([[True, False, True, False], [True, True, False, False]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert clarity(torch.tensor([-2.0, 0.5]), decisions, mask).tolist() == [1.0, 0.5]


def test_bad_parameters_are_told():
    with pytest.raises(ValueError, match="tau_positive must be at least 0"):
        ReasonMaxxer(tau_positive=-1)
    with pytest.raises(ValueError, match="kl_coef must be at least 0"):
        ReasonMaxxer(kl_coef=float("nan"))


@parametrize_with_checks([ReasonMaxxer().embedded()])
def test_contract(intervention, check):
    if check.slow:
        pytest.skip("the recipe's own experiment")
    check(intervention)
