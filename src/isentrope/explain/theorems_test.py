"""Every theorem misses what its order says, and no more; a mutation of the formula is caught by the same measurement."""

from dataclasses import replace

import pytest

from isentrope.explain.theorems import STEP, THEOREMS, Theorem

ORDERED = [theorem for theorem in THEOREMS if theorem.order is not None]
IDENTITIES = [theorem for theorem in THEOREMS if theorem.order is None]


@pytest.mark.parametrize("theorem", ORDERED, ids=lambda theorem: theorem.name)
def test_halving_the_step_divides_the_residual_by_two_to_the_order(theorem: Theorem):
    low, high = {1: (1.75, 2.25), 2: (3.5, 4.5), 3: (7.0, 9.0)}[theorem.order]
    for step in (STEP, STEP / 4):
        assert low < theorem.factor(step) < high


@pytest.mark.parametrize("theorem", IDENTITIES, ids=lambda theorem: theorem.name)
def test_an_identity_misses_only_rounding(theorem: Theorem):
    assert theorem.size() < 1e-12


@pytest.mark.parametrize("theorem", [theorem for theorem in ORDERED if theorem.order == 2], ids=lambda theorem: theorem.name)
def test_a_prediction_that_is_one_per_cent_off_has_a_residual_of_first_order(theorem: Theorem):
    """The measurement has teeth: with a term of one per cent of a typical slope the factor is no longer four at a small step."""
    wrong = replace(theorem, residual=lambda step: theorem.residual(step) + 0.01 * step * (theorem.size(1.0) / theorem.residual(1.0).numel() ** 0.5))
    assert wrong.factor(1e-4) < 3.0


def test_an_identity_has_no_factor():
    with pytest.raises(ValueError, match=r"factor is for a residual with an order.*identity.*size"):
        IDENTITIES[0].factor()
