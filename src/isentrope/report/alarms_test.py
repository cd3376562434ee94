"""The section of the alarms tells the events of the tape, of odd and hostile tapes too."""

import dataclasses

import polars as pl
import pytest

from isentrope.explain.alarms import NAMES, Alarm
from isentrope.report import synthetic
from isentrope.report.data import Run, read
from isentrope.report.page import html
from isentrope.report.sections import alarms

COLLAPSE = Alarm("collapse", 21, "entropy 0.1 nats", "most on '=' 30%", ("control=[{name: entropy-bonus, coef: 0.01}]", "trl.learning_rate=1e-4"))
OVER = Alarm("collapse", 40, "entropy 0.3 nats", over=True)
CLIP = Alarm("touches-nothing", 10, "it touches 0.00% of the tokens", "every ratio is 1", ("trl.num_iterations=2",), about="clip-cov")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=60, seed=3))


def events(run: Run, *rung: Alarm, more: list[dict] | None = None) -> Run:
    rows = [
        {
            "step": one.step,
            "level": "info" if one.over else "warning",
            "kind": "/".join(p for p in ("alarm", one.name, one.about) if p),
            "message": one.sentence(),
        }
        for one in rung
    ]
    schema = {"step": pl.Int64, "level": pl.String, "kind": pl.String, "message": pl.String}
    return dataclasses.replace(run, events=pl.DataFrame([*rows, *(more or [])], schema=schema))


def test_an_episode_has_its_beginning_its_end_and_its_parts(run):
    found = alarms.episodes(events(run, CLIP, COLLAPSE, OVER))
    assert [(one.name, one.about, one.first, one.last) for one in found] == [("touches-nothing", "clip-cov", 10, None), ("collapse", "", 21, 40)]
    assert alarms.parts(COLLAPSE.sentence()) == (COLLAPSE.number, COLLAPSE.cause, " or ".join(COLLAPSE.knobs))
    assert alarms.parts(CLIP.sentence())[0] == CLIP.number


def test_the_page_shows_them(run):
    page = alarms.section(events(run, CLIP, COLLAPSE, OVER, more=[{"step": 21, "level": "warning", "kind": "alarm-action", "message": "The run stops."}]))
    assert page.charts["alarms-line"]["spans"] == [
        {"first": 10, "last": 60, "name": "touches-nothing"},
        {"first": 21, "last": 40, "name": "collapse"},
    ]
    assert "control=[{name: entropy-bonus, coef: 0.01}]" in page.body
    assert "The run stops." in page.body
    assert "from update 21" in page.lead
    assert "1 of 2 were over before the end" in page.lead


def test_no_alarm_says_what_was_watched(run):
    on = dataclasses.replace(run, config="seed: 0\nalarms:\n  enabled: true\n")
    assert "No alarm rang; 60 updates were watched" in alarms.section(events(on)).html()
    assert "was not watched" in alarms.section(events(run)).html()
    off = dataclasses.replace(run, config="alarms:\n  enabled: false\n")
    assert "switched off" in alarms.section(events(off)).html()


def test_every_alarm_has_a_meaning():
    assert set(alarms.MEANING) == set(NAMES)


def test_hostile_events_stay_text(run):
    rows = [{"step": 5, "level": "warning", "kind": f"alarm/{text}/{text}", "message": f"{text}. Cause: {text}. Knob: {text}."} for text in synthetic.HOSTILE]
    text = html(events(run, more=rows))
    assert "<script>window" not in text
    assert "<img" not in text


def test_an_end_without_a_beginning_is_nothing(run):
    assert alarms.episodes(events(run, OVER)) == []


def test_alarms_without_step_rows_have_their_table(run):
    page = alarms.section(events(dataclasses.replace(run, steps=run.steps.clear()), COLLAPSE))
    assert not page.charts
    assert "entropy 0.1 nats" in page.body
