"""KL between two heads against its definition."""

import pytest
import torch
from torch.autograd import gradcheck

from isentrope.measure import two_heads
from isentrope.measure.two_heads import DistributionHead, forward_kl


def heads(tokens=5, vocab=7):
    torch.manual_seed(0)
    make = lambda d: (torch.randn(tokens, d, dtype=torch.float64), torch.randn(vocab, d, dtype=torch.float64))  # noqa: E731
    (base, base_weight), (hidden, weight) = make(3), make(4)
    return base, base_weight, hidden.requires_grad_(True), weight.requires_grad_(True)


@pytest.mark.parametrize("tile", [1, 2, 5, 6])
def test_it_is_the_definition_and_so_is_its_gradient(monkeypatch, tile):
    monkeypatch.setattr(two_heads, "_TILE", tile)
    base, base_weight, hidden, weight = heads()
    bias = torch.randn(7, dtype=torch.float64)
    ours = forward_kl(DistributionHead(base, base_weight, scale=0.5), DistributionHead(hidden, weight, bias, softcap=2.0), temperature=0.7)
    log_b = torch.log_softmax(0.5 * base @ base_weight.T / 0.7, -1)
    log_p = torch.log_softmax(2 * torch.tanh((hidden @ weight.T + bias) / 2) / 0.7, -1)
    theirs = (log_b.exp() * (log_b - log_p)).sum(-1)
    assert torch.allclose(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours.sum(), (hidden, weight)), torch.autograd.grad(theirs.sum(), (hidden, weight)), strict=True):
        assert torch.allclose(a, b)


def test_gradient_by_finite_differences():
    base, base_weight, hidden, weight = heads()
    assert gradcheck(lambda h, w: forward_kl(DistributionHead(base, base_weight), DistributionHead(h, w)), (hidden, weight))


def test_it_is_zero_for_the_same_and_infinite_where_support_is_lost():
    base, base_weight, *_ = heads()
    same = DistributionHead(base, base_weight)
    assert forward_kl(same, same).abs().max() == 0
    gone = torch.zeros(7, dtype=torch.float64)
    gone[3] = -torch.inf
    assert torch.isinf(forward_kl(same, DistributionHead(base, base_weight, gone))).all()
    assert torch.isfinite(forward_kl(DistributionHead(base, base_weight, gone), same)).all()


def test_no_token_and_bad_arguments():
    base, base_weight, hidden, weight = heads()
    assert forward_kl(DistributionHead(base[:0], base_weight), DistributionHead(hidden[:0], weight)).shape == (0,)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        forward_kl(DistributionHead(base, base_weight), DistributionHead(hidden, weight), temperature=0)
    with pytest.raises(ValueError, match="the same tokens and the same vocabulary"):
        forward_kl(DistributionHead(base, base_weight[:3]), DistributionHead(hidden, weight))
