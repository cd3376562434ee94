"""Identities of the discrete and of the many-variable entropies."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope.measure.symbols import (
    aligned_counts,
    co_information,
    dual_total_correlation,
    extropy,
    joint_information,
    ordinal_patterns,
    residual_entropy,
    subset_entropy,
    symbol_entropy,
    symbol_information,
    total_correlation,
    transfer_entropy,
    tse_complexity,
)

LN2 = math.log(2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed))


def joint(*shape: int, seed: int = 0) -> Tensor:
    weights = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return weights / weights.sum()


def parity() -> Tensor:
    table = torch.zeros(2, 2, 2, dtype=torch.float64)
    for a, b in itertools.product(range(2), repeat=2):
        table[a, b, a ^ b] = 0.25
    return table


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=20))
def test_symbol_entropy_is_that_of_the_frequencies_and_of_no_names(values):
    shares = [values.count(v) / len(values) for v in set(values)]
    symbols = torch.tensor(values)
    assert float(symbol_entropy(symbols)) == pytest.approx(-sum(f * math.log(f) for f in shares), abs=1e-12)
    assert float(symbol_entropy(torch.stack((symbols, -3 * symbols), 1))) == pytest.approx(float(symbol_entropy(symbols)), abs=1e-12)


def test_aligned_counts_of_two_samples():
    first, second = aligned_counts(torch.tensor([4, 4, -2]), torch.tensor([9, -2, -2, -2]))
    assert (first.tolist(), second.tolist()) == ([1, 2, 0], [3, 0, 1])
    assert aligned_counts(torch.tensor([1]), torch.zeros(0, dtype=torch.int64))[1].tolist() == [0]


def test_no_symbols_are_refused():
    with pytest.raises(ValueError, match="needs at least one symbol"):
        symbol_entropy(torch.zeros(0, dtype=torch.int64))


def test_information_is_symmetric_its_own_entropy_and_obeys_the_chain_rule():
    x, y, z = drawn(3, 90)
    assert float(symbol_information(x, x)) == pytest.approx(float(symbol_entropy(x)), abs=1e-14)
    assert float(symbol_information(x, y)) == pytest.approx(float(symbol_information(y, x)), abs=1e-14)
    chain = symbol_information(x, z) + symbol_information(x, y, given=z)
    assert float(symbol_information(x, torch.stack((y, z), 1))) == pytest.approx(float(chain), abs=1e-13)
    assert float(symbol_information(x, y, given=z)) >= -1e-13


def test_transfer_entropy_flows_one_way():
    source = drawn(4000)
    target = torch.cat((source[:1], source[:-1]))  # one step behind
    assert float(transfer_entropy(source, target)) == pytest.approx(float(symbol_entropy(source)), abs=0.02)
    assert float(transfer_entropy(target, source)) == pytest.approx(0, abs=0.01)
    with pytest.raises(ValueError, match="history must lie in"):
        transfer_entropy(source[:3], target[:3], history=3)


def test_ordinal_patterns_of_monotone_alternating_and_mapped_series():
    assert symbol_entropy(ordinal_patterns(torch.arange(30.0), size=4, lag=2)) == 0
    zigzag = torch.tensor([0.0, 1.0] * 10) + torch.arange(20.0) * 0.01
    assert float(symbol_entropy(ordinal_patterns(zigzag, size=2))) == pytest.approx(-(10 / 19) * math.log(10 / 19) - (9 / 19) * math.log(9 / 19), abs=1e-12)
    series = torch.randn(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ordinal_patterns(series.exp()), ordinal_patterns(series))
    assert len(ordinal_patterns(series, size=3, lag=5)) == 190
    assert float(symbol_entropy(ordinal_patterns(series))) <= math.log(6)
    with pytest.raises(ValueError, match="ordinal_patterns: size must be at least 2"):
        ordinal_patterns(series[:3], size=4)


def test_parity_of_three_in_closed_form():
    table = parity()
    found = {f.__name__: float(f(table)) / LN2 for f in (co_information, total_correlation, dual_total_correlation, residual_entropy, tse_complexity)}
    assert found == {
        "co_information": pytest.approx(-1),
        "total_correlation": pytest.approx(1),
        "dual_total_correlation": pytest.approx(2),
        "residual_entropy": pytest.approx(0, abs=1e-14),
        "tse_complexity": pytest.approx(1),
    }
    assert float(joint_information(table, (0,), (1,))) == pytest.approx(0, abs=1e-14)
    assert float(joint_information(table, (0,), (1,), given=(2,))) == pytest.approx(LN2, abs=1e-14)


def test_independent_variables_share_nothing():
    a, b, c = joint(3), joint(4, seed=1), joint(2, seed=2)
    table = torch.einsum("i,j,k->ijk", a, b, c)
    for measure in (co_information, total_correlation, dual_total_correlation):
        assert float(measure(table)) == pytest.approx(0, abs=1e-13)
    assert float(residual_entropy(table)) == pytest.approx(float(subset_entropy(table, (0, 1, 2))), abs=1e-13)


def test_identities_of_three_variables():
    table = joint(3, 2, 4)
    third = joint_information(table, (0,), (1,)) - joint_information(table, (0,), (1,), given=(2,))
    assert float(co_information(table)) == pytest.approx(float(third), abs=1e-13)
    assert float(co_information(table)) == pytest.approx(float(total_correlation(table) - dual_total_correlation(table)), abs=1e-13)
    assert float(total_correlation(table)) == pytest.approx(float(joint_information(table, (0,), (1,)) + joint_information(table, (0, 1), (2,))), abs=1e-13)
    pair = joint(3, 4)
    for measure in (co_information, total_correlation, dual_total_correlation):
        assert float(measure(pair)) == pytest.approx(float(joint_information(pair, (0,), (1,))), abs=1e-13)
    assert float(tse_complexity(table)) == pytest.approx(float(tse_complexity(table.permute(2, 0, 1))), abs=1e-13)


def test_extropy_of_two_outcomes_is_entropy_and_of_certainty_none():
    assert float(extropy(torch.tensor([0.3, 0.7], dtype=torch.float64))) == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7), abs=1e-15)
    assert float(extropy(torch.tensor([1.0, 0.0]))) == 0
    assert float(extropy(torch.full((5,), 0.2))) == pytest.approx(4 * math.log(5 / 4), abs=1e-6)
