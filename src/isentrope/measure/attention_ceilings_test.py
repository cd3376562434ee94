"""Closed forms, the extremal row, and the recorded facts of the sheets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.attention import attention_entropy, visible_keys
from isentrope.measure.attention_ceilings import (
    causal_ceiling,
    effective_keys,
    entropy_lower_bound,
    head_bands,
    head_entropy_penalty,
    matrix_entropy,
    normalised_entropy,
)  # fmt: skip


@pytest.mark.parametrize(("length", "ceiling"), [(128, 3.878), (256, 4.560), (512, 5.247), (1024, 5.936)])
def test_causal_ceiling_is_the_mean_of_uniform_rows(length, ceiling):
    assert causal_ceiling(length) == pytest.approx(ceiling, abs=1e-3)
    uniform = attention_entropy(torch.zeros(1, 1, length, 2, dtype=torch.float64), torch.randn(1, 1, length, 2, dtype=torch.float64), causal=True)
    assert float(uniform.mean()) == pytest.approx(causal_ceiling(length), abs=1e-12)


def test_uniform_attention_is_1_and_one_hot_is_0():
    count = visible_keys(5, 5, causal=True)
    assert torch.allclose(normalised_entropy(count.double().log(), count), torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64))
    assert torch.equal(normalised_entropy(torch.zeros(1, 1, 5), count), torch.zeros(1, 1, 5))
    assert normalised_entropy(torch.zeros(1), torch.tensor([0])).isnan().all()
    torch.testing.assert_close(effective_keys(count.double().log()), count.double())


@pytest.mark.parametrize(("s", "n", "bound"), [(1.0, 3, 0.915597), (3.0, 5, 0.542116), (8.0, 64, 0.176499), (20.0, 64, 2.35e-6)])
def test_lower_bound_at_the_values_of_the_sheet(s, n, bound):
    found = entropy_lower_bound(torch.tensor(s, dtype=torch.float64), torch.tensor(n))
    assert float(found) == pytest.approx(bound, rel=2e-3 if s == 20 else 5e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.floats(0.01, 8.0), st.integers(0, 10_000))
def test_no_row_lies_below_the_bound_and_the_extremal_row_on_it(n, s, seed):
    row = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    row = row - row.mean()
    row = s * row / row.norm()
    bound = entropy_lower_bound(torch.tensor([s], dtype=torch.float64), torch.tensor([n]))
    assert float(torch.special.entr(row.softmax(0)).sum() - bound) >= -1e-12
    extremal = torch.full((n,), -s / math.sqrt(n * (n - 1)), dtype=torch.float64)
    extremal[0] = s * math.sqrt((n - 1) / n)
    assert float(torch.special.entr(extremal.softmax(0)).sum()) == pytest.approx(float(bound), abs=1e-12)


def test_lower_bound_falls_from_the_ceiling_to_zero():
    norms = torch.linspace(0, 2000, 400, dtype=torch.float64)
    found = entropy_lower_bound(norms, torch.tensor([7]))
    assert float(found[0]) == pytest.approx(math.log(7))
    assert (found.diff() <= 0).all()
    assert float(found[-1]) == 0
    assert entropy_lower_bound(norms[:2], torch.tensor([1, 0])).tolist()[0] == 0
    assert entropy_lower_bound(norms[:1], torch.tensor([0])).isnan().all()
    norm = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: entropy_lower_bound(s, torch.tensor([1, 9])), norm)


def test_the_bound_holds_for_the_rows_of_a_head():
    query, key = torch.randn(1, 2, 20, 8, dtype=torch.float64), torch.randn(1, 2, 20, 8, dtype=torch.float64)
    logits = query @ key.mT / math.sqrt(8)
    seen = torch.ones(20, 20, dtype=torch.bool).tril()
    count = visible_keys(20, 20, causal=True)
    centred = (logits - (logits * seen).sum(-1, keepdim=True) / count.unsqueeze(-1)) * seen
    assert (attention_entropy(query, key, causal=True) >= entropy_lower_bound(centred.norm(dim=-1), count) - 1e-12).all()


def test_bands_count_the_ends():
    found = head_bands(torch.tensor([[0.1, 0.9, 1.0], [2.5, 4.0, torch.nan]]))
    assert found.shares == (0.4, 0.2, 0.2, 0.2)
    assert (found.collapsed, found.overloaded, found.heads, found.top) == (2, 1, 5, 4.0)
    assert head_bands(torch.tensor([1.0, 2.0]), top=8.0).overloaded == 0
    with pytest.raises(ValueError, match="at least one number"):
        head_bands(torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="top must be > 0"):
        head_bands(torch.zeros(3))


def test_matrix_entropy_is_exact_at_0_and_skips_nan():
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5], [torch.nan, torch.nan]], requires_grad=True)
    found = matrix_entropy(rows)
    torch.testing.assert_close(found, torch.tensor([0.0, math.log(2), 0.0]))
    assert torch.autograd.grad(found.sum(), rows)[0].isfinite().all()


def test_penalty_has_a_dead_zone_and_the_stated_gradient():
    """dpen/dtheta = -2 ln(context) delta and dpen/dE = 2 delta outside it, 0 inside: the sheet's exact statements, of one head in one layer."""
    scale = math.log(10)
    threshold = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    for value, outside in ((0.5 * scale, False), (0.69 * scale, False), (0.71 * scale, True), (0.2 * scale, True)):
        entropy = torch.full((1, 1, 1, 1), value, dtype=torch.float64, requires_grad=True)
        found = head_entropy_penalty(entropy, threshold, context=10, tolerance=0.2)
        delta = (value - 0.5 * scale) if outside else 0.0
        assert found.item() == pytest.approx(delta**2)
        to_entropy, to_threshold = torch.autograd.grad(found, (entropy, threshold))
        assert float(to_entropy) == pytest.approx(2 * delta)
        assert float(to_threshold) == pytest.approx(-2 * scale * delta)
    assert head_entropy_penalty(entropy, threshold, context=10, side="above").item() == 0


def test_the_released_penalty_sums_over_batch_and_queries():
    entropy = torch.full((2, 3, 4, 5), 2.0, dtype=torch.float64)
    threshold = torch.full((2, 4), 0.1, dtype=torch.float64)
    mean, summed = (head_entropy_penalty(entropy, threshold, context=10, released=released) for released in (False, True))
    assert float(summed) == pytest.approx(3 * 5 * float(mean))


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="length must be at least 1"):
        causal_ceiling(0)
    with pytest.raises(ValueError, match="context must be at least 2"):
        head_entropy_penalty(torch.zeros(1, 1, 1, 1), torch.zeros(1), context=1)
    with pytest.raises(ValueError, match="tolerance must be >= 0"):
        head_entropy_penalty(torch.zeros(1, 1, 1, 1), torch.zeros(1), context=2, tolerance=-1.0)
