"""The section of the forecast: what it says agrees with the fit, on finished, young, odd and hostile runs."""

import dataclasses

import polars as pl
import pytest

from isentrope.explain import laws
from isentrope.report import synthetic
from isentrope.report.data import Run, read
from isentrope.report.sections import forecast
from isentrope.report.words import short
from isentrope.train.forecast import pair


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=120, seed=3))


def test_the_law_is_that_of_the_tape(run):
    reward = pair("reward", run.steps, run.evals)
    fitted = laws.law(reward.entropy, reward.performance)
    page = forecast.section(run)
    assert f"−{short(fitted['a'].value)} exp(H) + {short(fitted['b'].value)}" in page.lead
    assert short(laws.ceiling(fitted).high) in page.lead
    law = page.charts["forecast-law"]["series"][1]
    assert law["x"][0] == 0
    assert law["y"][0] == pytest.approx(laws.ceiling(fitted).value)


def test_no_picture_has_two_entropies(run):
    page = forecast.section(run)
    html = page.html()
    assert html.count('class="provenance"') == 2  # training and held-out responses, each with its own
    held_out = page.charts["forecast-held-out"]["series"][0]
    assert max(held_out["x"]) == pytest.approx(run.evals.filter(pl.col("metric") == "entropy")["value"].max(), rel=1e-6)


def test_forecasts_stand_with_what_became_of_them(run):
    page = forecast.section(run)
    names = [series["name"] for series in page.charts["forecast-updates"]["series"]]
    assert names == ["one update", "foretold at 15 %".replace(" %", "\u00a0%"), "foretold at 25\u00a0%", "foretold at 50\u00a0%"]
    assert page.body.count("naive: the last value") >= 3
    reward = pair("reward", run.steps, run.evals)
    missed = {one.method: one.rmse for one in laws.forecasts(reward.step, reward.entropy, reward.performance, shares=(0.5,))}
    assert f"missed the rest by {short(missed[laws.LAW.name], 2)}; the last value missed it by {short(missed[laws.LEVEL.name], 2)}" in page.lead
    assert "happened so far" in page.body


def test_a_run_under_way_says_where_it_will_end(run):
    record = {**run.record, "effective": {"max_steps": 300}}
    young = dataclasses.replace(run, summary={}, record=record)
    page = forecast.section(young)
    assert page.lead.startswith("At update 120 of 300 the law expects mean reward to end near")
    series = page.charts["forecast-updates"]["series"][-1]
    assert (series["name"], series["x"][0], series["x"][-1]) == ("foretold now", 121, 300)
    assert "foretold at 50" not in str([one["name"] for one in page.charts["forecast-updates"]["series"]])  # not passed yet


def test_a_law_that_does_not_hold_is_said_not_to(run):
    upside_down = dataclasses.replace(run, steps=run.steps.with_columns((1 - pl.col("reward/mean")).alias("reward/mean")))
    assert "says nothing about its end" in forecast.section(upside_down).lead


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_young_run_has_a_sentence(run, count):
    page = forecast.section(dataclasses.replace(run, steps=run.steps.head(count), summary={}))
    assert not page.charts
    assert "No law yet of reward against entropy" in page.html()


def test_a_constant_entropy_has_a_sentence(run):
    still = dataclasses.replace(run, steps=run.steps.with_columns(pl.lit(0.3).alias("entropy/mean")))
    assert "hardly differ" in forecast.section(still).html()


def test_a_run_without_max_steps_or_evaluations(run):
    odd = dataclasses.replace(run, summary={}, record={"effective": {"max_steps": "many"}}, evals=run.evals.clear())
    assert "there are 0" in forecast.section(odd).html()


def test_interventions_are_out_of_the_claimed_range(run):
    assert "out of its claimed range" in forecast.section(run).html()
