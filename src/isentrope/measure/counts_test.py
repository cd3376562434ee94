"""Closed forms of the count estimators, their relations, and what they gain over the plug-in value."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.answers import answer_entropy
from isentrope.measure.counts import CountEstimator, count_cross_entropy, count_divergence, count_entropy

ESTIMATORS = CountEstimator.__args__
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.sampled_from(ESTIMATORS))
def test_zeros_order_and_batch_change_nothing(counts, estimator):
    found = float(count_entropy(tensor(counts), estimator))
    assert math.isfinite(found) or estimator == "shrink"  # its noise needs two draws
    twice = count_entropy(tensor([[0, *counts], [*counts[::-1], 0]]), estimator)
    assert twice.tolist() == pytest.approx([found, found], abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(COUNTS)
def test_the_estimators_are_what_they_say(counts):
    seen = [n for n in counts if n]
    total, k = sum(seen), len(seen)
    plug_in = -sum(n / total * math.log(n / total) for n in seen)
    answers = [str(i) for i, n in enumerate(counts) for _ in range(n)]

    def value(name):
        return float(count_entropy(tensor(counts), name))

    assert value("plug-in") == pytest.approx(plug_in, abs=1e-13) == pytest.approx(answer_entropy(answers), abs=1e-13)
    assert value("miller-madow") == pytest.approx(plug_in + (k - 1) / (2 * total), abs=1e-13)
    assert value("miller-madow") == pytest.approx(answer_entropy(answers, correction="miller-madow"), abs=1e-13)
    products = sum(n / total * sum(math.prod(1 - (n - 1) / (total - j) for j in range(1, v + 1)) / v for v in range(1, total - n + 1)) for n in seen)
    assert value("zhang") == pytest.approx(products, abs=1e-12)
    harmonic = sum((n + 1) * sum(1 / j for j in range(n + 2, total + 3)) for n in seen) / (total + 2)
    assert value("bonachela") == pytest.approx(harmonic, abs=1e-12)
    for name, prior in (("jeffreys", 0.5), ("laplace", 1.0)):
        q = [(n + prior) / (total + prior * (k + 2)) for n in [*seen, 0, 0]]
        spread = float(count_entropy(tensor(counts), name, outcomes=k + 2))
        assert spread == pytest.approx(-sum(v * math.log(v) for v in q), abs=1e-12)


def test_grassberger_sums_the_series_of_his_g():
    """G(n) = psi(n) + (-1)^n integral of x^(n-1) / (1 + x) over [0, 1]: G(1) = -gamma - ln 2, G(n + 2) = G(n) + 2 / (n + 1) for odd n."""
    gamma = 0.5772156649015329

    def g(n):
        return math.log(n) - float(count_entropy(tensor([n]), "grassberger"))

    assert g(1) == pytest.approx(-gamma - math.log(2), abs=1e-13)
    assert g(2) == pytest.approx(2 - gamma - math.log(2), abs=1e-13)
    assert g(3) == pytest.approx(g(2), abs=1e-13)
    assert g(4) == pytest.approx(g(2) + 2 / 3, abs=1e-13)


def exact_mean(estimator: str, probs: list[float], draws: int) -> float:
    """The estimator's mean over every sample."""
    mean = 0.0
    for counts in itertools.product(range(draws + 1), repeat=len(probs)):
        if sum(counts) == draws:
            ways = math.factorial(draws) / math.prod(math.factorial(n) for n in counts)
            mean += ways * math.prod(p**n for p, n in zip(probs, counts, strict=True)) * float(count_entropy(tensor(counts), estimator))
    return mean


def test_corrections_lessen_the_bias_of_eight_answers():
    probs = [0.4, 0.3, 0.2, 0.1]
    truth = -sum(p * math.log(p) for p in probs)
    bias = {name: exact_mean(name, probs, 8) - truth for name in ("plug-in", "miller-madow", "grassberger", "chao-shen", "zhang", "chao-wang-jost")}
    assert bias["plug-in"] < -0.1
    assert all(abs(value) < 0.6 * abs(bias["plug-in"]) for name, value in bias.items() if name != "plug-in")


def test_a_constant_has_no_entropy_where_the_estimator_is_one():
    constant = tensor([40])
    for name in ("plug-in", "miller-madow", "chao-shen", "shrink", "jeffreys", "laplace", "zhang", "chao-wang-jost"):
        assert float(count_entropy(constant, name)) == pytest.approx(0, abs=1e-14)


def test_what_was_not_seen_by_a_sum_in_exact_arithmetic():
    """f1 = 2, f2 = 3 among N: both branches of the tail, and one where the written form drowns in rounding."""
    from fractions import Fraction

    for rest in (5, 40, 150):
        counts = [1, 1, 2, 2, 2, rest]
        total = sum(counts)
        a = Fraction(6, (total - 1) * 2 + 6)
        b = 1 - a
        written = -math.log(a)  # only the logarithm is not rational: compare through its own series
        tail = float(sum(b ** (r - total + 1) / r for r in range(total, total + 400)))
        zhang = float(count_entropy(tensor(counts), "zhang"))
        found = (float(count_entropy(tensor(counts), "chao-wang-jost")) - zhang) * total / 2
        series = float(b) ** (1 - total) * (written - float(sum(b**r / r for r in range(1, total))))
        assert found == pytest.approx(series, rel=1e-9)
        assert tail <= found * (1 + 1e-12)
    many = tensor([1] + [2] * 50 + [900])  # A = 0.09, (1-A)^-1000 = 1e41
    excess = float(count_entropy(many, "chao-wang-jost") - count_entropy(many, "zhang"))
    assert 0 < excess < 1e-4


def test_cross_entropy_and_divergence_and_their_released_forms():
    p, q = tensor([6, 2, 0]), tensor([2, 2, 4])
    cross, divergence = float(count_cross_entropy(p, q)), float(count_divergence(p, q))
    assert cross == pytest.approx(math.log(4), abs=1e-14)
    assert divergence == pytest.approx(cross - float(count_entropy(p, "plug-in")), abs=1e-14)
    assert float(count_divergence(p, p)) == 0
    assert count_cross_entropy(q, p) == math.inf == count_divergence(q, p)
    assert float(count_cross_entropy(q, p, released=True)) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 4, abs=1e-14)
    assert float(count_divergence(q, p, released=True)) == pytest.approx((math.log(1 / 3) + math.log(1)) / 4, abs=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_counts_have_no_entropy(estimator):
    assert count_entropy(tensor([[0, 0], [3, 2]]), estimator).isnan().tolist() == [True, False]


def test_shrinkage_of_one_symbol_seen_evenly_is_uniform():
    assert float(count_entropy(tensor([5, 5, 5]), "shrink")) == pytest.approx(math.log(3), abs=1e-14)
    assert float(count_entropy(tensor([2, 0]), "shrink", outcomes=4)) == pytest.approx(0, abs=1e-14)  # no noise seen, no shrinkage
    assert float(count_entropy(tensor([1, 1]), "shrink", outcomes=4)) == pytest.approx(math.log(4), abs=1e-14)  # all of it


def test_bad_counts_are_refused(unchecked):
    with pytest.raises(ValueError, match="must not be negative"):
        count_entropy(tensor([1, -1]))
    with pytest.raises(ValueError, match="outcomes is of 'shrink'"):
        count_entropy(tensor([1, 1]), "zhang", outcomes=3)
    with pytest.raises(ValueError, match="no estimator 'best'"):
        count_entropy(tensor([1, 1]), "best")


def test_chao_shen_by_hand_with_and_without_a_symbol_seen_twice():
    def summed(q, draws):
        return sum(-v * math.log(v) / (1 - (1 - v) ** draws) for v in q)

    assert float(count_entropy(tensor([1, 1, 3]), "chao-shen")) == pytest.approx(summed([0.6 / 5, 0.6 / 5, 0.6 * 3 / 5], 5), abs=1e-14)
    assert float(count_entropy(tensor([1] * 5), "chao-shen")) == pytest.approx(summed([1 / 25] * 5, 5), abs=1e-14)  # coverage 1/5, not 0
