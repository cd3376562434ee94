"""Reading a run directory: whole, young, damaged; series, phases."""

import json

import numpy as np
import polars as pl
import pytest

from isentrope.errors import UserError
from isentrope.report import synthetic
from isentrope.report.data import NOT_RECORDED, edges, generated_tokens, has, phases, read, values


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no directory .*nowhere.* Give the directory of a run"):
        read(tmp_path / "nowhere")


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither run\.json nor tape/"):
        read(tmp_path)


def test_a_whole_run(tmp_path):
    run = read(synthetic.write(tmp_path, updates=20, seed=1))
    assert run.finished
    assert run.problems == ()
    assert run.last_step == 20
    assert run.links == ("clip-cov", "forking-tokens")
    assert run.steps["step"].to_list() == list(range(1, 21))
    assert run.provenance("steps.entropy/mean") == "exact, temperature 1, current policy, trained tokens, token-mean, nats, float32"
    assert run.provenance("steps.unknown") == NOT_RECORDED


def test_provenance_that_is_malformed_is_said_as_it_stands(tmp_path):
    synthetic.write(tmp_path, updates=5)
    record = json.loads((tmp_path / "run.json").read_text())
    record["provenance"] = {"steps.entropy/mean": {"estimator": "guess", "unit": "nats", "truncation": None}, "steps.S/mean": 3}
    (tmp_path / "run.json").write_text(json.dumps(record))
    run = read(tmp_path)
    assert run.provenance("steps.entropy/mean") == "estimator guess, unit nats"
    assert run.provenance("steps.S/mean") == NOT_RECORDED


def test_a_damaged_part_is_left_out_and_said(tmp_path):
    synthetic.write(tmp_path, updates=10)
    (tmp_path / "tape" / "steps" / "part-00000020.parquet").write_bytes(b"PAR1 torn")
    run = read(tmp_path)
    assert len(run.steps) == 10
    assert any("steps" in problem and "damaged" in problem for problem in run.problems)


def test_damaged_json_is_said(tmp_path):
    synthetic.write(tmp_path, updates=5)
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "summary.json").write_text("[]")
    run = read(tmp_path)
    assert not run.finished
    assert [problem.split()[0] for problem in run.problems] == ["run.json", "summary.json"]


def test_columns_of_the_wrong_type_become_missing(tmp_path):
    synthetic.part(tmp_path, "steps", pl.DataFrame({"step": [1, 2], "entropy/mean": ["a", "0.5"], "loss": [[1.0], [2.0]]}), 2)
    synthetic.part(tmp_path, "samples", pl.DataFrame({"step": [1], "completion": [7], "prompt": [["x"]]}), 2)
    run = read(tmp_path)
    assert np.array_equal(values(run.steps, "entropy/mean"), [np.nan, 0.5], equal_nan=True)
    assert not has(run.steps, "loss")
    assert run.samples["completion"].to_list() == ["7"]
    assert run.samples["prompt"].to_list() == [None]


def test_values_are_finite_or_nan():
    frame = pl.DataFrame({"a": [1.0, None, float("inf"), float("nan")]})
    assert np.array_equal(values(frame, "a"), [1.0, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.isnan(values(frame, "absent")).all()


def test_edges_are_the_first_and_last_twentieth():
    assert edges(np.arange(100.0)) == (2.0, 97.0)
    assert edges(np.array([np.nan, 3.0])) == (3.0, 3.0)
    assert edges(np.array([np.nan])) is None


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([], []),
        ([7, 7], ["so far: update 7"]),
        ([1, 5], ["early: update 1", "late: update 5"]),
        (range(1, 101), ["early: updates 1–20", "middle: updates 41–60", "late: updates 81–100"]),
    ],
)
def test_phases(steps, named):
    assert [f"{phase.name}: {phase.title}" for phase in phases(list(steps))] == named


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 60.0),
        ({"steps_per_generation": 4, "num_iterations": 2}, 10.0),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 30.0),
        ({"steps_per_generation": None}, 60.0),
    ],
)
def test_the_tokens_of_a_generation_count_once(options, count, tmp_path):
    synthetic.part(tmp_path, "steps", pl.DataFrame({"step": range(1, 7), "tokens": [10.0] * 6}), 6)
    (tmp_path / "run.json").write_text(json.dumps({"effective": options}))
    assert generated_tokens(read(tmp_path)) == count
