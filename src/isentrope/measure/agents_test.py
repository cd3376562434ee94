"""Features of several agents on numbers that can be worked out by hand, and what scaling every entropy does to them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.agents import AGGREGATED, OVER_AGENTS, Call, call_statistics, question_features, round_of

A1, B1, C1 = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0]), torch.tensor([1.0])
A2, B2, C2 = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.5])
CALLS = [Call(name, number, values) for number, three in ((1, (A1, B1, C1)), (2, (A2, B2, C2))) for name, values in zip("abc", three, strict=True)]


def test_one_call_by_hand():
    assert call_statistics(A1) == pytest.approx(
        {"total": 10, "max": 4, "min": 0, "mean": 2, "median": 2, "std": math.sqrt(2), "var": 2, "q1": 1, "q3": 3, "tokens": 5, "per_token": 2}
    )


def test_two_rounds_of_three_agents_by_hand():
    found = question_features(CALLS)
    assert found["sample/total"] == pytest.approx(10 + 4 + 1 + 0 + 4 + 0.5)
    assert found["sample/tokens"] == 13
    assert found["sample/per_token"] == pytest.approx(19.5 / 13)
    assert found["sample/max"] == pytest.approx((4 + 2 + 1 + 0 + 3 + 0.5) / 6)  # a mean of maxima
    assert found["sample/mean"] == pytest.approx((2 + 2 + 1 + 0 + 2 + 0.5) / 6)
    assert found["sample/range"] == pytest.approx(found["sample/max"] - (0 + 2 + 1 + 0 + 1 + 0.5) / 6)
    assert found["round-1/max_agent_total"] == 10
    assert found["round-1/median_agent_mean"] == 2
    assert found["round-1/q1_agent_mean"] == 1.5  # of 1, 2, 2
    assert found["round-1/mean_bowley"] == pytest.approx((2 + 1.5 - 4) / 0.5)
    assert found["round-2/mean_spread"] == 2
    assert found["round-2/total_spread"] == 4
    assert found["round-2/var_agent_mean"] == pytest.approx(torch.tensor([0.0, 2.0, 0.5]).var(correction=0).item())
    assert found["change/total/difference"] == pytest.approx(4.5 - 15)
    assert found["change/total/ratio"] == pytest.approx(4.5 / 15)
    assert found["change/tokens/slope"] == -3
    assert found["change/per_token/sign"] == -1
    assert found["change/total/volatility"] == pytest.approx((15 - 4.5) / 2)
    assert found["change/spread/difference"] == pytest.approx(2 - 1)
    assert sum(name.startswith("round-1/") for name in found) == len(OVER_AGENTS) * len(AGGREGATED) + 4 == 76


def test_against_one_agent_and_the_answers_tokens():
    base = [Call("one", 1, torch.tensor([1.0, 2.0]))]
    found = question_features(CALLS, base=base, answer=torch.tensor([0.5, 1.5]), base_answer=torch.tensor([0.25]))
    assert found["base/total_ratio"] == pytest.approx(19.5 / 3)
    assert found["base/total_reduction"] == pytest.approx(3 - 19.5)
    assert found["base/per_token_difference"] == pytest.approx(1.5 - 1.5)
    assert found["answer/mean"] == 1
    assert found["answer/ratio"] == 4
    assert found["answer/change"] == found["answer/difference"] == 0.75
    assert "answer/ratio" not in question_features(CALLS, answer=torch.tensor([0.5]))
    assert question_features(CALLS, answer=torch.zeros(0)) == question_features(CALLS)


def test_an_orchestrator_apart_counts_in_the_sample_and_not_among_a_rounds_agents():
    more = [*CALLS, Call("orchestrator", 2, torch.tensor([9.0]))]
    alone, apart = question_features(CALLS), question_features(more, apart={"orchestrator"})
    assert {name: value for name, value in apart.items() if name.startswith(("round-", "change/"))} == {
        name: value for name, value in alone.items() if name.startswith(("round-", "change/"))
    }
    assert apart["sample/total"] == alone["sample/total"] + 9
    with pytest.raises(ValueError, match="round 3 nobody speaks but orchestrator"):
        question_features([*CALLS, Call("orchestrator", 3, torch.tensor([9.0]))], apart={"orchestrator"})


entropies = st.lists(st.floats(0.01, 8.0), min_size=1, max_size=6).map(lambda values: torch.tensor(values, dtype=torch.float64))
SCALED = ("total", "max", "min", "mean", "median", "std", "q1", "q3", "range", "iqr")
UNSCALED = ("cv", "bowley", "stability", "median_over_mean", "iqr_over_mean", "iqr_over_range", "tail", "tokens")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), entropies), min_size=1, max_size=6), st.floats(0.1, 10.0))
def test_scaling_every_entropy_scales_places_and_leaves_shapes(calls, factor):
    plain = question_features([Call(*call) for call in calls])
    scaled = question_features([Call(name, number, factor * values) for name, number, values in calls])
    assert plain.keys() == scaled.keys()
    assert all(math.isfinite(value) for value in plain.values())
    near = {"rel": 1e-6, "abs": 1e-9}
    for name in SCALED:
        assert scaled[f"sample/{name}"] == pytest.approx(factor * plain[f"sample/{name}"], **near)
    assert scaled["sample/var"] == pytest.approx(factor**2 * plain["sample/var"], **near)
    if plain["sample/iqr"] > 1e-6:  # below, a ratio of rounding errors
        for name in UNSCALED:
            assert scaled[f"sample/{name}"] == pytest.approx(plain[f"sample/{name}"], **near)
    for number in {call[1] for call in calls}:
        assert scaled[f"round-{number}/mean_cv"] == pytest.approx(plain[f"round-{number}/mean_cv"], **near)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), entropies), min_size=1, max_size=6), st.randoms())
def test_the_order_of_calls_and_of_tokens_is_nothing(calls, random):
    plain = question_features([Call(*call) for call in calls])
    random.shuffle(calls)
    mixed = question_features([Call(name, number, values[random.sample(range(len(values)), len(values))]) for name, number, values in calls])
    assert mixed == plain


def test_a_sum_that_rounds_does_not_decide_the_sign_of_a_change():
    """Of 0.1, 0.2, 0.3 a running sum gives 0.6 in one order and 0.6000000000000001 in another."""
    calls = [Call("a", 1, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)), Call("a", 2, torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64))]
    found = question_features(calls)
    for name in ("total", "mean", "per_token"):
        assert found[f"change/{name}/sign"] == 0.0
        assert found[f"change/{name}/difference"] == 0.0


def test_one_agent_with_one_token_has_every_feature_and_no_division_by_nothing():
    found = question_features([Call("one", 1, torch.tensor([0.0]))])
    assert found.keys() == set(question_features([Call(*call) for call in (("a", 1, A1), ("b", 1, B1))]))
    assert set(found.values()) == {0.0, 1.0}  # one token, and nothing else


def test_a_silent_or_impossible_call_is_refused():
    for values in (torch.zeros(0), torch.tensor([float("nan")]), torch.tensor([-0.1]), torch.tensor([float("inf")])):
        with pytest.raises(ValueError, match="at least one token, with finite entropies"):
            call_statistics(values)
    with pytest.raises(ValueError, match="there is no call"):
        question_features([])
    with pytest.raises(ValueError, match="counts calls from 1"):
        round_of(0, "debate")
