"""The rule of a verdict on made-up numbers: of the engine, and of every claim that is registered."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from isentrope.errors import UserError
from isentrope.lab.claim import WORDS, Claim, Expect, Findings, Measurement, decide, exact, number, over
from isentrope.lab.claims import claim_of, claims
from isentrope.papers import catalogue

AWAITED: frozenset[str] = frozenset()
"""Papers that are done and have no experiment yet. Strict: one that has got its experiment must leave this list."""

SAYS = {"holds": 1.0, "fails": -1.0, "open": 0.0}


def claim(*expects: Expect, reach: str = "") -> Claim:
    return Claim("made-up", "T", "S.", "F", "W", "O", "C", 0.1, lambda bench: Findings(()), expects, reach)


def of(key: str, low: float, high: float) -> Measurement:
    return Measurement(key, key, (low + high) / 2, low, high, "", "5 seeds")


def made_up(item: Expect, outcome: str) -> Measurement:
    """A measurement on which `item` comes out so."""
    low, high = max(item.low, -1e6), min(item.high, 1e6)
    inside, width = (low + high) / 2, (high - low) / 4
    if outcome == "holds":
        return of(item.key, inside - width / 2, inside + width / 2)
    if outcome == "open":
        return of(item.key, low - width, low + width) if math.isfinite(item.low) else of(item.key, high - width, high + width)
    return of(item.key, low - 2 * width, low - width) if math.isfinite(item.low) else of(item.key, high + width, high + 2 * width)


# --- measurements


def test_students_interval_of_three():
    found = over("k", "w", [1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t(0.975, 2) of the tables, standard deviation 1
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert found.of == "3 seeds"


def test_one_repetition_excludes_nothing_and_none_is_refused():
    found = over("k", "w", [0.7])
    assert found.value == 0.7
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert claim(Expect("k", "it is positive", low=0.0)).verdict(Findings((found,))).word == "out of reach here"
    with pytest.raises(UserError, match="--seeds 2"):
        over("k", "w", [])


def test_what_is_no_number_decides_nothing():
    for found in (over("k", "w", [1.0, float("nan")]), exact("k", "w", float("nan"))):
        assert Expect("k", "it is positive", low=0.0).outcome(found) == "open"


@given(some.lists(some.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_an_interval_holds_its_mean_and_moves_with_its_data(values):
    found, moved = over("k", "w", values), over("k", "w", np.array(values) + 5.0)
    assert found.low <= found.value <= found.high
    assert moved.low == pytest.approx(found.low + 5.0, abs=1e-6)
    assert moved.high == pytest.approx(found.high + 5.0, abs=1e-6)


def test_numbers_as_they_are_read():
    assert [number(value) for value in (0.0, -0.5, 12345.6, math.inf, 3.2e-7)] == ["0", "−0.5", "12346", "∞", "3.20e-07"]
    assert str(exact("k", "w", 0.25, "nats")) == "0.25 nats"
    assert str(of("k", -1.0, 2.0)) == "0.5 [−1, 2]"


# --- the rule


def test_the_rule():
    table = {
        ("holds",): "confirmed", ("fails",): "refuted", ("open",): "out of reach here", ("holds", "holds"): "confirmed", ("holds", "open"): "partly",
        ("holds", "fails"): "partly", ("fails", "holds"): "refuted", ("open", "holds"): "partly", ("open", "open"): "out of reach here",
        ("open", "fails"): "refuted",
    }  # fmt: skip
    assert {outcomes: decide(outcomes) for outcomes in table} == table


def test_an_expectation_is_about_the_whole_interval():
    item = Expect("k", "it is positive", low=0.0)
    assert [item.outcome(of("k", *ends)) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == ["holds", "fails", "open"]
    band = Expect("k", "it is small", low=-1.0, high=1.0)
    assert [band.outcome(of("k", *ends)) for ends in ((-0.9, 0.9), (1.1, 2), (-1, 1), (-3, -2))] == ["holds", "fails", "open", "fails"]
    assert item.outcome(exact("k", "w", 0.0)) == "fails"


def test_a_claim_says_what_decides_or_why_nothing_can():
    with pytest.raises(ValueError, match="made-up"):
        claim()
    with pytest.raises(ValueError, match="made-up"):
        claim(Expect("k", "x", low=0.0), reach="too large")
    assert claim(reach="It needs a larger model.").verdict(Findings(())).word == "out of reach here"


def test_what_was_expected_must_be_measured():
    with pytest.raises(KeyError, match="missing"):
        claim(Expect("missing", "x", low=0.0)).verdict(Findings(()))
    with pytest.raises(ValueError, match="key of its own"):
        Findings((exact("k", "w", 1.0), exact("k", "w", 2.0)))
    with pytest.raises(ValueError, match="low must lie below high"):
        Expect("k", "x", low=1.0, high=1.0)


# --- every claim


@pytest.mark.parametrize("slug", list(claims()))
def test_every_verdict_of_a_claim_can_be_had(slug):
    found = claims()[slug]
    if found.reach:
        assert found.verdict(Findings(())).word == "out of reach here"
        return
    words = {}
    for central in SAYS:
        for others in SAYS:
            outcomes = [central, *([others] * (len(found.expects) - 1))]
            made = Findings(tuple(made_up(item, outcome) for item, outcome in zip(found.expects, outcomes, strict=True)))
            verdict = found.verdict(made)
            assert verdict.outcomes == tuple(outcomes), (slug, outcomes)
            words[verdict.word] = outcomes
    reachable = set(WORDS) if len(found.expects) > 1 else set(WORDS) - {"partly"}
    assert set(words) == reachable


@pytest.mark.parametrize("slug", list(claims()))
def test_a_claim_is_told_in_full(slug):
    found = claims()[slug]
    assert found.slug == slug
    assert 0 < found.minutes < 10
    assert found.seeds >= 1
    assert all(text.strip() for text in (found.title, found.sentence, found.figure, found.source, found.ours, found.scale))
    assert found.sentence.endswith(".")
    assert found.ours.endswith(".")
    assert len({item.key for item in found.expects}) == len(found.expects)
    assert not any(item.says.endswith(".") for item in found.expects)
    assert slug in {row["slug"] for row in catalogue()} | {"grpo-family"}  # a sheet of its own, of no single paper


def test_every_paper_of_reinforcement_learning_has_its_experiment():
    done = {row["slug"] for row in catalogue() if row["status"] == "done" and row["title"] != "standard, of no paper of the collection"}
    here = set(claims())
    assert not done - here - AWAITED, "these papers are done and have no experiment: write lab/claims/SLUG.py"
    assert not AWAITED & here, "these have got their experiment: take them off AWAITED"


def test_an_unknown_slug_names_the_nearest():
    slug = next(iter(claims()))
    with pytest.raises(UserError, match=f"Did you mean '{slug}'"):
        claim_of(slug + "x")
