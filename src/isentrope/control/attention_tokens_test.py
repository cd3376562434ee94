"""Attention entropy and token weights: the row that produces a token, the ceiling, the groups, the weight's mean, and its direction."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control import attention_tokens
from isentrope.control.attention_tokens import attention_groups, attention_weight, relative_entropy_of_attention, row_before

FORMS = ("monotone", "bump")


def tokens(seed: int, rows: int = 4, width: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Relative entropies, and a ragged mask with at least one token a row."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return torch.rand(rows, width, generator=generator, dtype=torch.float64), torch.arange(width) < length


def test_the_row_is_the_one_before_the_token():
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    assert row_before(rows, 2).tolist() == [[2.0, 3.0]]
    assert row_before(rows, 4).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    with pytest.raises(ValueError, match=r"row_before: width must leave a position before the first token, at most 4\. Got 5\. Keep the prompt's rows\."):
        row_before(rows, 5)


def test_uniform_attention_is_one_and_a_single_key_is_zero():
    visible = torch.tensor([[1, 2, 5, 900]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = relative_entropy_of_attention(visible.double().log(), visible, mask)
    assert found.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert relative_entropy_of_attention(torch.zeros(1, 4), visible, mask).tolist() == [[0.0] * 4]


def test_it_is_attention_entropy_over_its_ceiling():
    """Of a real attention product: the middle of the range, unchanged when keys are permuted, and the entropy of the mean is the larger."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64)  # heads, keys of one query
    p = torch.softmax(logits, -1)
    entropy = torch.special.entr(p).sum(-1)
    one = torch.ones(1, 1, dtype=torch.bool)
    six = torch.full((1, 1), 6)
    mean = relative_entropy_of_attention(entropy.mean()[None, None], six, one)
    assert 0 < float(mean) < 1
    torch.testing.assert_close(torch.special.entr(p[:, torch.randperm(6, generator=generator)]).sum(-1), entropy)
    assert float(relative_entropy_of_attention(torch.special.entr(p.mean(0)).sum()[None, None], six, one)) >= float(mean)


def test_padding_may_hold_anything():
    value, mask = tokens(1)
    visible = torch.arange(2, 13).expand(4, 11)
    dirty = torch.where(mask, value, float("nan"))
    assert torch.equal(relative_entropy_of_attention(dirty, visible, mask), relative_entropy_of_attention(value * mask, visible, mask))
    for form in FORMS:
        assert torch.equal(attention_weight(dirty, mask, 0.3, form=form), attention_weight(value * mask, mask, 0.3, form=form))
    assert all(torch.equal(a, b) for a, b in zip(attention_groups(dirty, mask), attention_groups(value * mask, mask), strict=True))


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_groups_have_their_share_and_never_cross(seed, share):
    value, mask = tokens(seed)
    low, high = attention_groups(value, mask, share=share)
    count = ((share * mask.sum(-1) + 1e-9).floor().long()).clamp(min=1)
    assert torch.equal(low.sum(-1), count)
    assert torch.equal(high.sum(-1), count)
    for row in range(len(value)):
        assert value[row][low[row]].max() <= value[row][mask[row] & ~low[row]].min() if (mask[row] & ~low[row]).any() else True
        assert value[row][high[row]].min() >= value[row][mask[row] & ~high[row]].max() if (mask[row] & ~high[row]).any() else True


def test_ties_are_broken_by_position():
    low, high = attention_groups(torch.full((1, 5), 0.5), torch.ones(1, 5, dtype=torch.bool), share=0.4)
    assert low.tolist() == [[True, True, False, False, False]]
    assert high.tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10_000), progress=st.floats(0, 1), gamma=st.floats(0, 0.99), kappa=st.floats(0, 50))
@settings(max_examples=40, deadline=None)
def test_the_mean_weight_of_a_response_is_one(form, seed, progress, gamma, kappa):
    value, mask = tokens(seed)
    weight = attention_weight(value, mask, progress, form=form, gamma=gamma, kappa=kappa)
    torch.testing.assert_close((weight * mask).sum(-1), mask.sum(-1).double(), rtol=1e-12, atol=1e-12)
    assert (weight >= 0).all()
    assert (weight[~mask] == 1).all()


def favours_anchors_first() -> None:
    """Three tokens at ranks 0, 1/2, 1 with gamma 1/2."""
    value, mask = torch.tensor([[0.9, 0.1, 0.4]]), torch.ones(1, 3, dtype=torch.bool)
    assert attention_weight(value, mask, 0.0).tolist() == [[0.5, 1.5, 1.0]]
    assert attention_weight(value, mask, 0.5).tolist() == [[1.0, 1.0, 1.0]]
    assert attention_weight(value, mask, 1.0).tolist() == [[1.5, 0.5, 1.0]]


def test_the_weight_moves_from_anchors_to_explorers():
    favours_anchors_first()
    value, mask = torch.tensor([[0.9, 0.1, 0.4]]), torch.ones(1, 3, dtype=torch.bool)
    for progress, best in ((0.0, 1), (0.5, 2), (1.0, 0)):
        assert int(attention_weight(value, mask, progress, form="bump").argmax()) == best
    total = 1 + math.exp(-1) + math.exp(-4)
    assert attention_weight(value, mask, 0.0, form="bump")[0].tolist() == pytest.approx([3 * math.exp(-4) / total, 3 / total, 3 * math.exp(-1) / total])


def test_favouring_explorers_first_is_noticed(monkeypatch):
    ranks = attention_tokens.normalise
    monkeypatch.setattr(attention_tokens, "normalise", lambda *values, **named: 1 - ranks(*values, **named))
    with pytest.raises(AssertionError):
        favours_anchors_first()


@pytest.mark.parametrize("form", FORMS)
def test_no_strength_is_one_to_the_bit_and_equal_tokens_weigh_alike(form):
    value, mask = tokens(3)
    assert torch.equal(attention_weight(value, mask, 0.2, form=form, gamma=0.0, kappa=0.0), torch.ones(4, 11, dtype=torch.float64))
    torch.testing.assert_close(attention_weight(0 * value, mask, 0.2, form=form), torch.ones(4, 11, dtype=torch.float64))
    none = torch.zeros_like(mask)
    assert torch.equal(attention_weight(value, none, 0.2, form=form), torch.ones(4, 11, dtype=torch.float64))


def test_the_weight_sees_ranks_only_and_carries_no_gradient():
    value, mask = tokens(4)
    leaf = value.clone().requires_grad_(True)
    weight = attention_weight(leaf, mask, 0.1)
    assert not weight.requires_grad
    assert torch.equal(weight, attention_weight(value.exp() * 3 - 1, mask, 0.1))


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"progress": 20.0}, r"attention_weight: progress must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %"),
        ({"progress": 0.5, "gamma": 1.0}, r"attention_weight: gamma must lie in \[0, 1\)\. Got 1\.0\. At 1 the last rank would weigh nothing\."),
        ({"progress": 0.5, "kappa": -1.0}, r"attention_weight: kappa must be at least 0\. Got -1\.0\. 0 weighs all tokens alike\."),
    ],
)
def test_wrong_parameters_are_refused(known, message):
    with pytest.raises(ValueError, match=message):
        attention_weight(*tokens(0), **known)
