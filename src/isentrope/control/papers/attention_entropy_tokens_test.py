"""Attention entropy tokens: both interventions on a batch by hand, their neutral settings, the schedule, and what they refuse."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from isentrope.control.papers import attention_entropy_tokens
from isentrope.control.papers.attention_entropy_tokens import AttentionEntropySubset, AttentionEntropyTokens
from isentrope.control.papers.common_test import some_step
from isentrope.control.placebo import placebo
from isentrope.control.stages import chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, Step

KEY = "old.attention_entropy[middle]"


def line(done: int = 0, relative: tuple[float, ...] = (0.9, 0.1, 0.4, 0.2, 0.6)) -> Step:
    """One response with advantage 1 and ratio 1; the last position is padding."""
    value = torch.tensor([[*relative, float("nan")]])
    mask = ~value.isnan()
    log_probs = torch.zeros(value.shape, requires_grad=True)
    rollouts = Rollouts.of(mask, old_log_probs=torch.zeros(value.shape), advantage=torch.ones(1, 1), signals={KEY: value})
    return Step(rollouts, log_probs, progress=Progress(done, 20))


def slopes(link, step: Step) -> torch.Tensor:
    """-5 dLoss/dlog p of the five tokens: 1 each under DAPO alone."""
    control = chain(link)
    state = control.init()
    result = policy_loss(step, link.recipe(), control, survey(step, link.recipe(), control, state, RowRng()), state, RowRng())
    (found,) = torch.autograd.grad(result.loss, step.log_probs)
    assert float(found[0, 5]) == 0
    return -5 * found[0, :5]


def moves_from_anchors_to_explorers() -> None:
    """Ranks 1, 0, 1/2, 1/4, 3/4 with gamma 1/2."""
    link = AttentionEntropyTokens()
    torch.testing.assert_close(slopes(link, line(0)), torch.tensor([0.5, 1.5, 1.0, 1.25, 0.75]))
    torch.testing.assert_close(slopes(link, line(10)), torch.ones(5))
    torch.testing.assert_close(slopes(link, line(20)), torch.tensor([1.5, 0.5, 1.0, 0.75, 1.25]))


def test_the_emphasis_moves_from_anchors_to_explorers():
    moves_from_anchors_to_explorers()
    bump = [slopes(AttentionEntropyTokens(form="bump"), line(done)) for done in (0, 10, 20)]
    assert [int(found.argmax()) for found in bump] == [1, 2, 0]
    assert [float(found.mean()) for found in bump] == pytest.approx([1, 1, 1])


def test_the_opposite_schedule_is_noticed(monkeypatch):
    weight = attention_entropy_tokens.attention_weight
    monkeypatch.setattr(attention_entropy_tokens, "attention_weight", lambda value, mask, progress, **known: weight(value, mask, 1 - progress, **known))
    with pytest.raises(AssertionError):
        moves_from_anchors_to_explorers()


@pytest.mark.parametrize(("group", "kept"), [("anchors", [0, 1, 0, 1, 0]), ("explorers", [1, 0, 0, 0, 1])])
def test_the_subset_is_one_end_and_the_loss_is_over_the_kept(group, kept):
    found = slopes(AttentionEntropySubset(group=group, share=0.4), line())
    torch.testing.assert_close(found, 2.5 * torch.tensor(kept).float())  # five over two


def test_over_all_subsets_of_one_size_the_mean_gradient_is_that_of_all_tokens():
    """The sheet's random subset: each token is kept by 2 of 5 orders, and what is kept counts 5 / 2."""
    orders = [slopes(AttentionEntropySubset(share=0.4), line(0, order)) for order in permutations((0.9, 0.1, 0.4, 0.2, 0.6))]
    torch.testing.assert_close(torch.stack(orders).mean(0), torch.ones(5))


@pytest.mark.parametrize("link", [AttentionEntropyTokens(gamma=0), AttentionEntropyTokens(form="bump", kappa=0), AttentionEntropySubset(share=1)])
def test_no_strength_is_dapo_bit_for_bit(link):
    step = some_step(link, differentiable=True)
    control = chain(link)
    stats = survey(step, link.recipe(), control, control.init(), RowRng())
    ours, base = policy_loss(step, link.recipe(), control, stats).loss, policy_loss(step, link.recipe()).loss
    assert torch.equal(ours, base)
    assert torch.equal(*(torch.autograd.grad(loss, step.log_probs, retain_graph=True)[0] for loss in (ours, base)))


@pytest.mark.parametrize("link", [AttentionEntropyTokens(), AttentionEntropySubset(share=0.4)])
def test_only_the_order_within_a_response_counts(link):
    relative = (0.9, 0.1, 0.4, 0.2, 0.6)
    assert torch.equal(slopes(link, line(3)), slopes(link, line(3, tuple(value**3 / 2 for value in relative))))


def test_the_layer_and_the_sink_are_asked_for():
    assert [need.key for need in AttentionEntropyTokens(layer=3, sinkless=True).needs] == ["old.attention_entropy[3,sinkless]"]
    with pytest.raises(KeyError, match=r"the signal 'old.attention_entropy\[3\]' is not here"):
        slopes(AttentionEntropySubset(layer=3), line())


def test_its_placebo_asks_for_the_same():
    assert placebo(AttentionEntropyTokens()).needs == AttentionEntropyTokens().needs


@pytest.mark.parametrize(
    ("link", "known", "message"),
    [
        (AttentionEntropyTokens(), {"gamma": 1.0}, r"AttentionEntropyTokens: gamma must lie in \[0, 1\)\. Got 1\.0\. At 1 the last rank"),
        (AttentionEntropyTokens(), {"kappa": -1.0}, r"AttentionEntropyTokens: kappa must be at least 0\. Got -1\.0\."),
        (AttentionEntropyTokens(), {"layer": -1}, r"AttentionEntropyTokens: layer must be at least 0, or None for the middle one\. Got -1\. Layers"),
        (AttentionEntropySubset(), {"share": 20.0}, r"AttentionEntropySubset: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %"),
        (AttentionEntropySubset(), {"share": 0}, r"AttentionEntropySubset: share must be above 0\. Got 0: nothing would be trained\. .*share=1"),
    ],
)
def test_wrong_parameters_are_refused(link, known, message):
    with pytest.raises(ValueError, match=message):
        replace(link, **known)
