"""Entropy-SFT: its identities, limits and choice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.placebo import placebo
from isentrope.control.recipes.entropy_sft import SUPERVISED, EntropySft, entropy_sft_loss, excess, kept_count
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Rollouts, Step
from isentrope.measure.tokens import Entropy, LogProb, token_signals_from_logits
from isentrope.testing import parametrize_with_checks


def batch(rows=5, width=7, vocab=9, seed=0):
    """Log-probs with gradient, entropies, a ragged mask, and the logits they are of."""
    draw = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, width, vocab, generator=draw, dtype=torch.float64)).requires_grad_(True)
    labels = torch.randint(vocab, (rows, width), generator=draw)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=draw)
    found = token_signals_from_logits(logits, labels, [LogProb(), Entropy()])
    return logits, labels, found["log_prob"], found["entropy"], mask


def test_centred_surprisal_has_mean_zero_under_the_model():
    """E_{y~p}[CE - H] = 0, exactly, by summing over the vocabulary."""
    logits = torch.randn(6, 11, dtype=torch.float64)
    labels = torch.arange(11).expand(6, 11)
    found = token_signals_from_logits(logits.unsqueeze(1).expand(6, 11, 11), labels, [LogProb(), Entropy()])
    mean = (found["log_prob"].exp() * excess(found["log_prob"], found["entropy"], 1.0)).sum(-1)
    assert mean.abs().max() < 1e-12


def test_keeping_all_is_cross_entropy():
    logits, labels, log_probs, entropy, mask = batch()
    loss, kept = entropy_sft_loss(log_probs, entropy, mask, keep=1.0)
    assert torch.equal(kept, mask)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits[mask], labels[mask]))


def test_no_coefficient_keeps_the_largest_losses():
    _, _, log_probs, entropy, mask = batch()
    _, kept = entropy_sft_loss(log_probs, entropy, mask, keep=0.3, entropy_coef=0.0)
    losses = -log_probs.detach()
    assert int(kept.sum()) == int(0.3 * int(mask.sum()))
    assert losses[kept].min() >= losses[mask & ~kept].max()


def test_by_hand():
    """CE 1, 2, 3 and H 0, 2, 3.5 with c = 1: delta 1, 0, -0.5. Two of three stay, the first two: (1 + 2) / 2."""
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    entropy = torch.tensor([[0.0, 2.0, 3.5]])
    loss, kept = entropy_sft_loss(log_probs, entropy, torch.ones(1, 3, dtype=torch.bool), keep=0.7, entropy_coef=1.0)
    assert kept.tolist() == [[True, True, False]]
    assert loss.item() == 1.5
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.5, -0.5, 0.0]]


def test_the_likely_label_of_an_uncertain_token_leaves_before_a_certain_one():
    """p = (0.9, 0.1): CE - 0.8 H is 0.105 - 0.260 for the likely label, 2.303 - 0.260 for the other; a token that is certain has 0."""
    p = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [1.0, 0.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0]])
    found = token_signals_from_logits(p.log(), labels, [LogProb(), Entropy()])
    delta = excess(found["log_prob"], found["entropy"], 0.8)
    assert delta[0].tolist() == pytest.approx([-0.1547, 2.0425, 0.0], abs=1e-4)
    _, kept = entropy_sft_loss(found["log_prob"], found["entropy"], torch.ones(1, 3, dtype=torch.bool), keep=0.7)
    assert kept.tolist() == [[False, True, True]]


def test_the_entropy_has_no_gradient():
    """The gradient in the logits is (p - e_y) / k on kept tokens, 0 elsewhere."""
    logits, labels, log_probs, entropy, mask = batch()
    loss, kept = entropy_sft_loss(log_probs, entropy, mask, keep=0.5)
    (slope,) = torch.autograd.grad(loss, logits)
    expected = (torch.softmax(logits, -1) - torch.nn.functional.one_hot(labels, 9)) * kept.unsqueeze(-1) / kept.sum()
    assert torch.allclose(slope, expected.detach())


@settings(deadline=None, max_examples=30)
@given(keep=st.floats(0.01, 1.0), coef=st.floats(0.0, 3.0), shift=st.floats(-5, 5), seed=st.integers(0, 5))
def test_adding_a_constant_to_delta_changes_nothing(keep, coef, shift, seed):
    _, _, log_probs, entropy, mask = batch(seed=seed)
    _, kept = entropy_sft_loss(log_probs, entropy, mask, keep, coef)
    _, moved = entropy_sft_loss(log_probs + shift, entropy, mask, keep, coef)
    assert int(kept.sum()) == kept_count(int(mask.sum()), keep)
    assert torch.equal(kept, moved)


def step(log_probs, entropy, mask):
    return Step(Rollouts.of(mask, advantage=torch.ones(len(mask), 1, dtype=torch.float64)), log_probs, {"current.entropy": entropy})


def test_the_link_is_the_pure_loss():
    logits, _, log_probs, entropy, mask = batch()
    pure, kept = entropy_sft_loss(log_probs, entropy, mask, 0.4, 0.8)
    result = policy_loss(step(log_probs, entropy, mask), SUPERVISED, chain(EntropySft(0.4, 0.8)))
    assert torch.allclose(result.loss, pure)
    assert torch.equal(result.observed.touched["entropy-sft"], mask & ~kept)
    a, b = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (pure, result.loss))
    assert torch.allclose(a, b)


def test_padding_and_empty_batches_are_harmless():
    _, _, log_probs, entropy, mask = batch()
    wild = torch.where(mask, log_probs, torch.nan), torch.where(mask, entropy, torch.nan)
    assert torch.equal(entropy_sft_loss(*wild, mask)[0], entropy_sft_loss(log_probs, entropy, mask)[0])
    loss, kept = entropy_sft_loss(log_probs, entropy, torch.zeros_like(mask))
    assert loss.item() == 0
    assert not kept.any()
    assert policy_loss(step(*wild, torch.zeros_like(mask)), SUPERVISED, chain(EntropySft())).loss.item() == 0


def test_its_placebo_keeps_as_many_tokens_at_random():
    _, _, log_probs, entropy, mask = batch(rows=20, width=20)
    link = EntropySft(0.5)
    ours, theirs = (policy_loss(step(log_probs, entropy, mask), SUPERVISED, chain(x)).observed.weight == 0 for x in (link, placebo(link)))
    assert int((ours & mask).sum()) == int((theirs & mask).sum())
    assert 0.3 < float((ours & theirs & mask).sum() / (ours & mask).sum()) < 0.7


@pytest.mark.parametrize(("given_", "words"), [({"keep": 0}, "keep must be above 0"), ({"keep": 80}, "write keep=0.8"), ({"entropy_coef": -1}, "at least 0")])
def test_bad_parameters_are_told(given_, words):
    with pytest.raises(ValueError, match=words):
        EntropySft(**given_)


@parametrize_with_checks([EntropySft(keep=0.6)])
def test_contract(intervention, check):
    """The common contract, its run on the embedded model aside: that is `isentrope recipe entropy-sft`."""
    if check.slow:
        pytest.skip("the recipe's own experiment")
    check(intervention)
