"""Closed forms, limits, identities and gradients of entropies and divergences."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure import distribution as d

ENTROPIES = [d.shannon, d.min_entropy, d.varentropy, *[lambda x, a=a, **k: d.renyi(x, a, **k) for a in (0.5, 1.001, 2.0)]]
NAMES = d.Divergence.__args__


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(x) -> float:
    return float(x)


def test_closed_forms():
    p = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    assert value(d.shannon(p, unit="bits")) == pytest.approx(1.5, abs=1e-15)
    assert value(d.renyi(p, 0)) == pytest.approx(math.log(3), abs=1e-15)
    assert value(d.renyi(p, 2)) == pytest.approx(-math.log(3 / 8), abs=1e-15)
    assert value(d.renyi(p, math.inf, unit="bits")) == value(d.min_entropy(p, unit="bits")) == pytest.approx(1, abs=1e-15)
    assert value(d.tsallis(p, 2)) == pytest.approx(5 / 8, abs=1e-15)
    assert value(d.tsallis(p, 0)) == pytest.approx(2, abs=1e-15)
    assert value(d.varentropy(p, unit="bits")) == pytest.approx(0.25, abs=1e-15)
    q = torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=torch.float64)
    assert value(d.kl(p, q, unit="bits")) == pytest.approx(0.25, abs=1e-15)
    assert value(d.cross_entropy(p, q, unit="bits")) == pytest.approx(1.75, abs=1e-15)
    assert value(d.jeffreys(p, q, unit="bits")) == pytest.approx(0.5, abs=1e-15)
    assert value(d.total_variation(p, q)) == pytest.approx(0.25, abs=1e-15)
    assert value(d.hellinger(p, q)) ** 2 == pytest.approx(0.75 - math.sqrt(0.5), abs=1e-15)
    assert value(d.f_divergence(p, q, "pearson")) == pytest.approx(0.25 + 0.125, abs=1e-15)
    assert value(d.f_divergence(p, q, "neyman")) == pytest.approx(0.125 + 0.25, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_identities(seed, size):
    z, w = drawn(seed, 2, 3, size)
    p, q = z.softmax(-1), w.softmax(-1)
    h = d.shannon(p)
    assert torch.allclose(d.cross_entropy(p, q), h + d.kl(p, q), atol=1e-12)
    assert torch.allclose(d.jeffreys(p, q), d.kl(p, q) + d.reverse_kl(p, q), atol=1e-12)
    assert torch.allclose(d.reverse_kl(p, q), d.kl(q, p), atol=1e-12)
    assert torch.allclose(d.js(p, q), d.shannon((p + q) / 2) - (h + d.shannon(q)) / 2, atol=1e-12)
    assert torch.allclose(d.tsallis(p, 3.0), (1 - (-2 * d.renyi(p, 3.0)).exp()) / 2, atol=1e-12)
    assert (d.total_variation(p, q) <= (d.kl(p, q) / 2).sqrt() + 1e-12).all()  # Pinsker
    squared = d.hellinger(p, q) ** 2
    assert ((squared <= d.total_variation(p, q) + 1e-12) & (d.total_variation(p, q) <= (2 * squared).sqrt() + 1e-12)).all()
    orders = [d.renyi(p, a) for a in (0, 0.3, 0.995, 1, 1.005, 2, 10, math.inf)]
    assert all((low <= high + 1e-12).all() for high, low in itertools.pairwise(orders))
    slope = (d.renyi(p, 1 + 1e-6) - d.renyi(p, 1 - 1e-6)) / 2e-6  # dR/d(order) at 1 is -varentropy / 2
    assert torch.allclose(slope, -d.varentropy(p) / 2, atol=1e-6)
    for name in NAMES:
        assert torch.allclose(d.f_divergence(p, q, name), d.f_divergence(z, w, name, logits=True), atol=1e-11)
        assert torch.allclose(d.f_divergence(p, p, name), torch.zeros(3, dtype=torch.float64), atol=1e-15)
        assert (d.f_divergence(p, q, name) >= 0).all()
    assert torch.allclose(d.renyi(z.T, 2.0, dim=0, logits=True), d.renyi(p, 2.0), atol=1e-12)


@pytest.mark.parametrize("edge", [1 - d.NEAR_ONE, 1 + d.NEAR_ONE])
def test_no_step_where_the_form_changes(edge):
    p = drawn(1, 5, 9).softmax(-1)
    for f in (d.renyi, d.tsallis):
        assert torch.allclose(f(p, edge - 1e-9), f(p, edge + 1e-9), atol=1e-8)
        assert torch.allclose(f(p.float(), 1 + 1e-5).double(), d.shannon(p), atol=1e-4)


@pytest.mark.parametrize("entropy", [*ENTROPIES, lambda x, **k: d.tsallis(x, 0.5, **k), lambda x, **k: d.tsallis(x, 1.001, **k)])
def test_gradients_of_entropies(entropy):
    z = drawn(2, 2, 5)
    assert torch.autograd.gradcheck(lambda x: entropy(x, logits=True), (z.clone().requires_grad_(),))
    z[:, 1] = -math.inf
    x = z.clone().requires_grad_()
    found = torch.autograd.grad(entropy(x, logits=True).sum(), x)[0]
    assert torch.isfinite(found).all()
    assert (found[:, 1] == 0).all()
    p = z.softmax(-1).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(entropy(p).sum(), p)[0]).all()
    kept = z[:, [0, 2, 3, 4]]
    assert torch.allclose(entropy(z, logits=True), entropy(kept, logits=True), atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_divergences(name):
    z, w = drawn(3, 2, 2, 5)
    both = (z.clone().requires_grad_(), w.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: d.f_divergence(x, y, name, logits=True), both)
    z[:, 1] = w[:, 1] = z[:, 2] = w[:, 3] = -math.inf  # of both, and of either
    for logits in (True, False):
        x, y = (v.clone().requires_grad_() if logits else v.softmax(-1).requires_grad_() for v in (z, w))
        found = d.f_divergence(x, y, name, logits=logits)
        assert found.isinf().all() == (name in ("kl", "reverse-kl", "jeffreys", "pearson", "neyman"))
        assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(found.sum(), (x, y)))


def test_disjoint_supports():
    p, q = torch.eye(2, dtype=torch.float64)
    assert value(d.js(p, q, unit="bits")) == value(d.total_variation(p, q)) == value(d.hellinger(p, q)) == pytest.approx(1, abs=1e-15)
    x = p.clone().requires_grad_()
    assert torch.autograd.grad(d.hellinger(x, p), x)[0].tolist() == [0, 0]


def test_low_precision_is_widened_and_a_row_of_nothing_is_nan():
    assert d.shannon(torch.zeros(8, dtype=torch.bfloat16), logits=True).dtype == torch.float32
    nothing = torch.full((3,), -math.inf)
    assert all(entropy(nothing, logits=True).isnan() for entropy in ENTROPIES)


COUNTS = [12, 5, 8, 1, 20]


def test_counting_entropy_of_the_sheet():
    n = torch.tensor(COUNTS)
    coarse, within = d.grouped(n, torch.tensor([0, 0, 1, 1, 1]))
    assert value(d.boltzmann(n)) == pytest.approx(55.237649, abs=1e-6)
    assert value(coarse + within) == pytest.approx(value(d.boltzmann(n)), abs=1e-12)
    assert 46 * value(d.shannon(n / n.sum().double())) == pytest.approx(61.70, abs=5e-3)
    assert 46 * math.log(5) == pytest.approx(74.03, abs=5e-3)
    assert value(d.boltzmann(torch.ones(9, dtype=torch.int64))) == pytest.approx(math.lgamma(10), abs=1e-12)
    assert value(d.boltzmann(torch.tensor([9, 0]))) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=2, max_size=8))
def test_counting_identities(pairs):
    n, group = (torch.tensor(column) for column in zip(*pairs, strict=True))
    s, total = value(d.boltzmann(n)), int(n.sum())
    assert value(sum(d.grouped(n, group))) == pytest.approx(s, abs=1e-10)
    assert value(d.boltzmann(n.flip(0))) == pytest.approx(s, abs=1e-11)
    if total:
        assert -1e-12 <= s <= total * value(d.shannon(n / total.__float__())) * (1 + 1e-6) + 1e-9
    a, b = int(n[0]), int(n[1])
    merged = torch.cat((torch.tensor([a + b]), n[2:]))
    assert s - value(d.boltzmann(merged)) == pytest.approx(math.log(math.comb(a + b, a)), abs=1e-10)


def test_counting_entropy_tends_to_shannon():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    n = (p * 10_000).round().long()
    stirling = 10_000 * value(d.shannon(p)) - 0.5 * ((2 * math.pi * n).log().sum() - math.log(2 * math.pi * 10_000))
    assert value(d.boltzmann(n)) == pytest.approx(float(stirling), abs=1e-3)


def test_bad_input_is_refused(unchecked):
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"renyi: order must be in \[0, inf\]\. Got -1"):
        d.renyi(p, -1)
    with pytest.raises(ValueError, match=r"tsallis: order must be in \[0, inf\)\. Got inf"):
        d.tsallis(p, math.inf)
    with pytest.raises(ValueError, match=r"unit must be 'nats' or 'bits'\. Got 'hartley'"):
        d.shannon(p, unit="hartley")
    with pytest.raises(ValueError, match="no divergence 'wasserstein'"):
        d.f_divergence(p, p, "wasserstein")
    with pytest.raises(ValueError, match=r"must not be negative\. Got -2"):
        d.boltzmann(torch.tensor([1, -2]))
    with pytest.raises(ValueError, match="from 0 on"):
        d.grouped(torch.tensor([1, 2]), torch.tensor([0, -1]))
