"""The comparison with the base model says what the tape holds, and what it cannot say."""

import dataclasses
import json

import polars as pl
import pytest

from isentrope.report import synthetic
from isentrope.report.data import Run, read
from isentrope.report.sections import learning, support
from isentrope.report.words import percent, whole
from isentrope.train.shift import ends, majorities, profile, support_figures, turned


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=60, seed=3))


def flat(base: int, tuned: int, samples: int = 4, prompts: int = 20) -> pl.DataFrame:
    rows = [
        {"step": step, "group": at, "prompt": "<b>p</b>", "samples": samples, "correct": right}
        for step, right in ((0, base), (9, tuned))
        for at in range(prompts)
    ]
    return pl.DataFrame(rows)


def test_the_section_tells_the_tape(run):
    html, figures = support.section(run).html(), support_figures(run.answers)
    assert figures["support.shrunk"] > 0
    assert figures["support.expanded"] > 0
    for name in ("preserved", "expanded", "shrunk", "out"):
        assert f" {whole(figures[f'support.{name}'])}" in html
    for name in ("srr", "ndr", "nscr"):
        value, low, high = (figures[f"support.{name}{part}"] for part in ("", ".low", ".high"))
        assert f"{percent(value)}</td>" in html
        assert f"{percent(low)} to {percent(high)}" in html
    assert f"{percent(figures['support.detectable_mass'])} goes unsolved in 16 tries one time in twenty" in html
    assert html.count('class="provenance"') == 1


def test_the_picture_is_the_profile(run):
    (spec,) = support.section(run).charts.values()
    places = [context for context in profile(run.answers) if context.kind == "tenth"]
    assert [series["y"] for series in spec["series"]] == [[context.start for context in places], [context.end for context in places]]
    assert spec["series"][0]["x"] == [float(place) for place in range(1, 11)]


def test_prompts_that_changed_sides_are_listed(run):
    html = support.section(run).html()
    found = ends(run.answers)
    assert found is not None
    base, tuned = found.correct()
    lost = found.end.filter(pl.Series((base > 0) & (tuned == 0)))["prompt"].to_list()
    assert 0 < len(lost) <= support.MAX_PROMPTS
    assert all(f"<td>lost</td><td><code>{text}</code>" in html for text in lost)


def test_the_first_majority_is_open_where_nobody_told_what_is_right(run):
    wrong = next(row for row in majorities(run.answers) if row.first == "wrong")
    labelled = support.section(run).html()
    assert f"was wrong for {whole(wrong.prompts)} prompts at the start; at the end it is right for {whole(wrong.right)} of them" in labelled
    assert "<details><summary>What became of the first majority" in labelled
    assert "pays a wrong majority" not in labelled
    unlabelled = support.section(dataclasses.replace(run, record={"control": [{"name": "empo"}]})).html()
    assert '<details open="open"><summary>What became of the first majority' in unlabelled or "<details open><summary>What became" in unlabelled
    assert "pays a wrong majority as it pays a right one" in unlabelled
    assert "first majority" not in support.section(dataclasses.replace(run, answers=flat(2, 3))).html()


def agreed(step: int, told: list[tuple[float, list]]) -> list[dict]:
    """Rows of `answers`: whether the majority is right, and the answers with their counts out of 4."""
    return [
        {"step": step, "group": at, "prompt": f"<b>{at}</b>", "samples": 4, "correct": 4 * int(right), "majority": right, "answers": json.dumps(answers)}
        for at, (right, answers) in enumerate(told)
    ]


HARDENED = pl.DataFrame(
    agreed(0, [(1.0, [["7", 2], [None, 2]]), (1.0, [["8", 3]]), (0.0, [["9", 2]]), (1.0, [["5", 2]])])
    + agreed(9, [(0.0, [[None, 2], ["<i>", 2]]), (0.0, [["6", 4]]), (0.0, [["9", 4]]), (1.0, [["5", 4]])])
)


def test_right_majorities_that_were_lost_by_hand():
    assert [(row.prompt, row.then, row.now, row.counts) for row in turned(HARDENED)] == [
        ("<b>1</b>", "8", "6", (3, 4)),  # the most agreed upon first
        ("<b>0</b>", "7", "<i>", (2, 2)),  # silence is no answer
    ]
    assert turned(HARDENED.drop("answers")) == []
    assert turned(HARDENED.with_columns(pl.lit("no json").alias("answers"))) == []


def test_agreement_that_hardens_into_error_is_said_with_its_prompts(run):
    paid = dataclasses.replace(run, answers=HARDENED, record={"control": [{"name": "empo"}]})
    html = support.section(paid).html()
    assert "It was right for 3, and at the end it is wrong for 2 of these." in html
    assert "Wrong majorities in all: 1 at the start, 3 now. For these prompts agreement hardened into error." in html
    assert '<code>&lt;b&gt;1&lt;/b&gt;</code></td><td><code>8</code></td><td class="num">3</td><td><code>6</code></td><td class="num">4</td>' in html
    assert "<i>" not in html
    labelled = support.section(dataclasses.replace(paid, record={})).html()
    assert "hardened" not in labelled
    assert "wrong for 2 of these" in labelled


def test_a_reward_of_agreement_is_named_and_drawn_beside_what_is_right(run):
    steps = run.steps.with_columns((pl.col("reward/mean") * 0.5).alias("correct/mean"))
    labelled, unlabelled = (learning.section(dataclasses.replace(run, steps=steps, record=record)) for record in ({}, {"control": [{"name": "empo"}]}))
    assert "agreement" not in labelled.html()
    assert "This reward is agreement among the answers to a prompt" in unlabelled.html()
    assert len(labelled.charts["reward"]["series"]) == 2
    nobody = learning.section(dataclasses.replace(run, steps=steps.with_columns(pl.lit(0.0).alias("correct/mean")), record={"control": [{"name": "empo"}]}))
    assert len(nobody.charts["reward"]["series"]) == 2
    assert "the training did not see" not in nobody.html()
    reward, right = unlabelled.charts["reward"]["series"][1:]
    assert right["y"] == pytest.approx([value / 2 for value in reward["y"]], rel=1e-4)


def test_an_old_run_without_the_table_is_told_so(run):
    said = support.section(dataclasses.replace(run, answers=pl.DataFrame({"step": pl.Series([], dtype=pl.Int64)}))).html()
    assert "No comparison with the base model" in said


def test_nothing_lost_is_not_nothing_to_lose(run):
    html = support.section(dataclasses.replace(run, answers=flat(2, 3))).html()
    assert "None was lost among 20" in html
    assert "up to 14\u00a0% of such prompts" in html
    assert "no entropies beside the held-out answers" in html


def test_undefined_rates_are_dashes_and_prompts_are_text(run):
    never = support.section(dataclasses.replace(run, answers=flat(0, 0))).html()
    assert never.count("—</td>") >= 6
    assert "None was lost" not in never
    lost = support.section(dataclasses.replace(run, answers=flat(2, 0), lean=True)).html()
    assert "&lt;b&gt;p&lt;/b&gt;" in lost
    assert "and 16 more on the tape" in lost
