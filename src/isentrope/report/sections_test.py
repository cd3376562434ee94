"""What the sections say agrees with the tape."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isentrope.report import figure, headline, synthetic, words
from isentrope.report.data import Run, read
from isentrope.report.sections import entropy, learning, pressure, record, samples, touch


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=60, seed=3))


# --- series


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.sampled_from([1, 3, 7]))
def test_a_smoothed_series_is_the_mean_of_its_window_inside_its_band(y, window):
    y = np.array(y)
    mean, low, high = learning.smoothed(y, window)
    for at in range(len(y)):
        inside = y[max(0, at - window // 2) : at + window // 2 + 1]
        assert mean[at] == pytest.approx(inside.mean(), abs=1e-12)
        assert inside.min() - 1e-12 <= low[at] <= high[at] <= inside.max() + 1e-12


def test_the_band_of_a_smoothed_series_covers_the_truth():
    rng, covered = np.random.default_rng(0), []
    for seed in range(40):
        _, low, high = learning.smoothed(rng.normal(2.0, 1.0, 60), 25, seed)
        covered.append(low[30] <= 2.0 <= high[30])
    assert 0.8 <= np.mean(covered) <= 1.0


@given(st.integers(1, 3000))
def test_thinning_keeps_the_mean_and_the_order(count):
    x, y = np.arange(1.0, count + 1), np.random.default_rng(count).normal(size=count)
    short_x, short_y = figure.thinned(x, y)
    assert len(short_x) == min(count, figure.MAX_POINTS)
    assert (np.diff(short_x) > 0).all()
    if count % figure.MAX_POINTS == 0 or count <= figure.MAX_POINTS:
        assert short_y.mean() == pytest.approx(y.mean())


def test_thinning_skips_what_is_missing():
    x, y = np.arange(1400.0), np.full(1400, np.nan)
    y[::2] = 5.0
    assert (figure.thinned(x, y)[1] == 5.0).all()


# --- headline


def test_the_sentence_tells_the_tape(run):
    rows = learning.metric(run, "pass@1")["value"]
    start, *_, end = learning.metric(run, "entropy")["value"]
    said = headline.sentence(run)
    assert said.startswith(f"Right answers rose from {words.percent(rows[0])} to {words.percent(rows[-1])}, and entropy fell from {start:.2f}")
    assert headline.short(end, 2) in said


def test_without_evaluations_entropy_is_that_of_the_training_responses(run):
    alone = dataclasses.replace(run, evals=run.evals.clear())
    start, end = run.steps["entropy/mean"][:3].mean(), run.steps["entropy/mean"][-3:].mean()
    assert headline.entropy_change(alone) == pytest.approx((start, end))
    assert [tile.note for tile in headline.tiles_of(alone) if tile.label == "entropy"] == ["nats per token, training responses"]


def test_five_tiles(run):
    assert [tile.label for tile in headline.tiles_of(run)] == ["pass@1", "pass@16", "entropy", "updates", "time"]


def test_subject_names_model_task_objective_and_chain(run):
    assert headline.subject(run) == "embedded on two-digit addition, GRPO + clip-cov + forking-tokens"


@pytest.mark.parametrize(("value", "name"), [("m", "m"), ({"name": "n"}, "n"), (None, "?"), ({}, "?"), ({"dataset": "d"}, "d")])
def test_names(value, name):
    assert headline.name_of(value, "?") == name


# --- entropy


def test_entropy_by_position_is_the_mean_of_the_phase(run):
    spec = entropy.by_position(run).charts["entropy-position"]
    early = run.tokens.filter(pl.col("step") <= run.tokens["step"].unique().sort()[len(run.tokens["step"].unique()) // 5 - 1])
    for position, value in zip(spec["series"][0]["x"], spec["series"][0]["y"], strict=True):
        assert value == pytest.approx(early.filter(pl.col("position") == position)["entropy"].mean())


def test_every_entropy_picture_states_its_provenance(run):
    said = "exact, temperature 1, current policy, trained tokens"
    html = [entropy.section(run).html(), entropy.by_position(run).html(), pressure.section(run).html()]
    assert [page.count('class="provenance"') for page in html] == [1, 2, 2]
    assert all(said in page for page in html)


# --- tokens


def test_dots_are_the_largest_pushes_and_some_of_the_rest(run, monkeypatch):
    monkeypatch.setattr(pressure, "MAX_DOTS", 40)
    phase = pressure.phases(run.tokens["step"].to_list())[0]
    rows = pressure.within(run.tokens, phase)
    dots = pressure._dots(run, phase)
    push = np.sort(np.abs(rows["push"].to_numpy()))[::-1]
    assert len(dots["push"]) == 40
    assert np.abs(dots["push"][:20]) == pytest.approx(push[:20])
    assert len({(step, position, p) for step, position, p in zip(dots["step"], dots["position"], dots["p"], strict=True)}) == 40


def test_the_tables_of_tokens_sum_pushes(run):
    html = pressure._tokens(run)
    sums = run.tokens.group_by("token_id", "text").agg(pl.col("push").sum()).sort("push")
    worst = sums.row(0, named=True)
    down = html[: html.index("Pushed entropy up")]
    assert str(pressure.token_chip(worst["text"])) in down
    share = abs(worst["push"]) / run.tokens["push"].abs().sum()
    assert pressure.percent(share) in down


def test_pushes_of_zero_are_said_to_be_zero(run):
    still = dataclasses.replace(run, tokens=run.tokens.with_columns(pl.lit(0.0).alias("push")))
    assert "Every predicted push on the tape is zero" in pressure._tokens(still)


def test_token_chips_show_spaces_and_breaks():
    assert pressure.token_chip(" a\n") == '<code class="token">␣a↵</code>'
    assert "(empty)" in pressure.token_chip("")


# --- interventions


def test_an_empty_chain_is_said_in_words(tmp_path):
    run = read(synthetic.write(tmp_path, updates=5, links=()))
    html = touch.section(run).html()
    assert "No intervention: plain objective (GRPO)" in html
    assert touch.section(run).charts == {}


def test_each_link_has_its_two_pictures_and_its_means(run):
    section = touch.section(run)
    assert set(section.charts) == {"touch-0", "removed-0", "touch-1", "removed-1"}
    assert section.charts["touch-0"]["series"][0]["y"] == pytest.approx(run.steps["touch/clip-cov"].to_list())
    assert touch.percent(run.steps["touch/forking-tokens"].mean()) in section.html()


# --- samples


def test_samples_are_early_and_late_right_and_wrong(run):
    found = [(phase.name, row["correct"]) for phase, row in samples.chosen(run)]
    assert {("early", 1.0), ("early", 0.0), ("late", 1.0)} <= set(found)
    assert max(found.count(item) for item in set(found)) <= samples.PER_CELL


def test_samples_join_their_token_rows(run):
    items = samples.section(run).charts["samples-list"]["items"]
    for item, (_, row) in zip(items, samples.chosen(run), strict=True):
        assert "".join(item["tokens"]["text"]) == row["completion"]
        assert item["tokens"]["position"] == list(range(len(item["tokens"]["text"])))
        assert np.mean(item["tokens"]["columns"]["entropy"]) == pytest.approx(row["entropy"])


def test_samples_without_token_rows_show_their_text(run):
    bare = dataclasses.replace(run, tokens=run.tokens.clear())
    item = samples.section(bare).charts["samples-list"]["items"][0]
    assert item["tokens"] is None
    assert item["completion"]


# --- the record


def test_secrets_are_hidden(run):
    html = record.section(run).html()
    assert "hf_secret" not in html
    assert html.count(record.HIDDEN) == 2
    assert "learning_rate: 0.0002" in html


def test_the_command_is_quoted(tmp_path):
    run = read(synthetic.write(tmp_path / "a b;c", updates=5, links=()))
    assert "--config &#x27;" in record.section(run).html()
    assert "a b;c/config.yaml&#x27; --out NEW_DIRECTORY --seed 0" in record.section(run).html()


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"objective": {"name": "dapo"}}, "DAPO"),
        ({"objective": {"form": "ppo"}, "effective": {"loss_type": "dr_grpo"}}, "Dr. GRPO"),
        ({"objective": "grpo"}, "GRPO"),
        ({}, "an objective that is not recorded"),
    ],
)
def test_the_objective_has_a_name(run, record, name):
    assert touch.objective(dataclasses.replace(run, record=record)) == name
