"""The figures of the law agree with the tape, pair by pair, and their absence has a reason."""

import json

import numpy as np
import polars as pl
import pytest

from isentrope.explain import laws
from isentrope.train.forecast import ENTROPY, KEYS, MOST, OF, PAIRS, law_figures, pair


def tape(count: int = 120, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng, step = np.random.default_rng(seed), np.arange(1, count + 1)
    entropy = 0.1 + 0.6 * np.exp(-step / 30)
    reward = -0.4 * np.exp(entropy) + 1.3 + 0.01 * rng.normal(size=count)
    steps = pl.DataFrame({"step": step, "entropy/mean": entropy, "reward/mean": reward})
    rows = [
        {"step": at, "metric": metric, "value": value}
        for at in range(0, count + 1, 10)
        for metric, value in (("entropy", 0.1 + 0.5 * np.exp(-at / 30)), ("pass@1", -0.3 * np.exp(0.1 + 0.5 * np.exp(-at / 30)) + 1.1))
    ]
    return steps, pl.DataFrame(rows)


def test_each_pair_takes_the_entropy_of_its_own_responses():
    steps, evals = tape()
    reward, held_out = pair("reward", steps, evals), pair("pass@1", steps, evals)
    assert reward.entropy == pytest.approx(steps["entropy/mean"].to_numpy())
    assert held_out.entropy == pytest.approx(0.1 + 0.5 * np.exp(-np.arange(0, 121, 10) / 30))
    assert held_out.step.tolist() == list(range(0, 121, 10))
    assert set(OF) == set(ENTROPY) == set(PAIRS)


def test_an_evaluation_without_one_of_the_two_is_left_out():
    steps, evals = tape()
    assert len(pair("pass@1", steps, evals.filter((pl.col("metric") == "pass@1") | (pl.col("step") != 50))).step) == 12


def test_figures_are_those_of_the_fit():
    found = law_figures(*tape())
    fitted = laws.law(*(pair("reward", *tape()).entropy, pair("reward", *tape()).performance))
    assert found["law.reward.a"] == fitted["a"].value == pytest.approx(0.4, abs=0.05)
    assert found["law.reward.a.low"] < 0.4 < found["law.reward.a.high"]
    assert found["law.reward.ceiling"] == pytest.approx(0.9, abs=0.05)
    assert found["law.pass@1.a"] == pytest.approx(0.3, abs=1e-6)
    assert found["law.pass@1.points"] == 13
    assert 0 <= found["law.reward.exp.50.coverage"] <= 1
    assert found["law.reward.exp.25.rmse"] < found["law.reward.last.25.rmse"]
    assert found["law.reward.ahead.15.end.low"] <= found["law.reward.ahead.15.end"] <= found["law.reward.ahead.15.end.high"]
    assert found["law.stage"] == "plateau"
    json.dumps(found, allow_nan=False)


def test_every_method_has_a_key():
    steps, evals = tape()
    data = pair("reward", steps, evals)
    assert {one.method for one in laws.forecasts(data.step, data.entropy, data.performance)} == set(KEYS)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_young_run_has_a_reason_instead_of_figures(count):
    steps, evals = tape()
    found = law_figures(steps.head(count), evals.head(0))
    assert "law.reward.a" not in found
    assert ("points are needed" in found["law.reward.problem"]) if count else not found


def test_a_tape_without_the_columns_has_no_figures():
    assert law_figures(pl.DataFrame({"step": [1, 2]}), pl.DataFrame({"step": [1]}))["law.reward.points"] == 0


def test_a_constant_entropy_says_so():
    steps, evals = tape()
    found = law_figures(steps.with_columns(pl.lit(0.3).alias("entropy/mean")), evals)
    assert "hardly differ" in found["law.reward.problem"]
    assert "law.stage" not in found
    assert "law.pass@1.a" in found


def test_a_long_run_is_averaged_in_bins():
    steps, evals = tape(3 * MOST)
    data = pair("reward", steps, evals)
    assert len(data.step) == MOST
    assert data.step[:2].tolist() == [2.0, 5.0]
    assert data.performance[7] == pytest.approx(steps["reward/mean"][21:24].mean())
