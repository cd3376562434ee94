import errno
import json
import math
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isentrope import files, tape
from isentrope.provenance import Provenance
from isentrope.tape import COLUMNS, TABLES, WALL_CLOCK, Tape, TapeError, TapeWriter, parts, same

MEAN = Provenance("exact", aggregation="token-mean")
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, rows: dict[str, list[dict]], flush_at: set[int] = frozenset()) -> Tape:
    """A tape of the given rows, flushed after the given steps and at the end."""
    writer = TapeWriter(folder / "tape")
    for step in range(1 + max(row["step"] for table in rows.values() for row in table)):
        for table, found in rows.items():
            writer.append(table, [row for row in found if row["step"] == step])
        if step in flush_at:
            writer.flush(step)
    writer.flush()
    return Tape.read(folder)


def numbered(count: int) -> dict[str, list[dict]]:
    return {
        "steps": [{"step": step, "loss": 1 / step, "seconds": random.random()} for step in range(1, count + 1)],
        "tokens": [{"step": step, "position": place, "text": f"t{place}"} for step in range(1, count + 1, 2) for place in range(3)],
        "events": [{"step": 3, "level": "info", "kind": "note", "message": "three"}],
    }


# --- what is written is what is read


def test_a_row_comes_back(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    row = {"step": 1, "loss": 0.1, "reward/mean": float("nan"), "ratio/max": float("inf"), "tokens": 3, "link/x/on": True, "note": "é", "nil": None}
    writer.append("steps", [row])
    assert writer.buffered["steps"] == 1
    (path,) = writer.flush(1)
    assert path == tmp_path / "tape" / "steps" / "part-00000001.parquet"
    assert writer.buffered["steps"] == 0
    (found,) = Tape.read(tmp_path).steps.rows(named=True)
    assert math.isnan(found.pop("reward/mean"))
    row.pop("reward/mean")
    assert found == row
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in row.items()}


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(width=64))
columns = st.one_of(st.lists(scalars, min_size=1, max_size=5), st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=5))


@quick
@given(values=columns)
def test_any_column_round_trips(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    writer = TapeWriter(folder / "tape")
    writer.append("steps", {"step": list(range(len(values))), "x": values})
    writer.flush()
    found = Tape.read(folder).steps["x"].to_list()
    assert len(found) == len(values)
    for value, back in zip(values, found, strict=True):
        if value is None or isinstance(value, str):
            text = value if value is None else value.encode(errors="backslashreplace").decode()
            assert back == text
        elif math.isnan(value):
            assert math.isnan(back)
        else:
            assert back == (float(value) if isinstance(back, float) else value)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2.5, None], pl.Float64), ([True, 2], pl.Int64), ([None, True], pl.Boolean), ([np.float32(1), 2.0], pl.Float64),
        ([np.int64(1), np.bool_(True)], pl.Int64), (["a", None], pl.String), ((1, 2), pl.Int64), (range(2), pl.Int64),
        (np.array([1, 2], dtype=np.uint8), pl.Int64), (np.array([1, 2], dtype=np.float16), pl.Float32), (np.array([1.0, 2.0]), pl.Float64),
        (np.array([True, False]), pl.Boolean), (np.array(["a", "b"]), pl.String), (np.array([1, None], dtype=object), pl.Int64),
        (torch.tensor([1.0, 2.0]), pl.Float32), (torch.tensor([True, False]), pl.Boolean), (torch.tensor([1, 2]), pl.Int64),
    ],
)  # fmt: skip
def test_columns_keep_their_kind(tmp_path, values, dtype):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("tokens", {"step": 1, "x": values})
    writer.flush()
    found = Tape.read(tmp_path).tokens
    assert found["x"].dtype == dtype
    assert found["x"].to_list() == [value if value is None or isinstance(value, str) else value + 0 for value in list(values)]
    assert found["step"].to_list() == [1] * len(values)


def test_arrays_are_copied(tmp_path):
    writer, array, listed = TapeWriter(tmp_path / "tape"), np.array([1.0, 2.0]), [1, 2]
    writer.append("tokens", {"step": 1, "a": array, "t": torch.from_numpy(array), "l": listed})
    array[:], listed[:] = 9, [9, 9]
    writer.flush()
    found = Tape.read(tmp_path).tokens
    assert found["a"].to_list() == found["t"].to_list() == found["l"].to_list() == [1, 2]


def test_columns_and_rows_mean_the_same(tmp_path):
    rows = [{"step": 4, "row_id": 7, "text": "a"}, {"step": 4, "row_id": 8}]
    for name, given_rows in (("rows", rows), ("columns", {"step": 4, "row_id": np.array([7, 8]), "text": ["a", None]})):
        writer = TapeWriter(tmp_path / name / "tape")
        writer.append("tokens", given_rows)
        writer.append("tokens", [])
        writer.flush()
    assert same(Tape.read(tmp_path / "rows"), Tape.read(tmp_path / "columns")) == []
    assert Tape.read(tmp_path / "rows").tokens.rows() == [(4, 7, "a"), (4, 8, None)]


def test_parts_of_different_columns_and_widths_are_united(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    for step, row in enumerate(({"x": 1}, {"x": 2.5, "answer": None}, {"answer": "42"}, {"x": True, "y": None})):
        writer.append("samples", [{"step": step, **row}])
        writer.flush(step)
    found = Tape.read(tmp_path).samples
    assert found["x"].to_list() == [1.0, 2.5, None, 1.0]
    assert found["answer"].to_list() == [None, None, "42", None]
    assert found["answer"].dtype == pl.String
    assert found["y"].to_list() == [None] * 4


def test_a_column_of_nothing_has_its_declared_type(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("samples", {"step": [1, 2], "answer": [None, None], "correct": None, "mine": None})
    writer.flush()
    assert Tape.read(tmp_path).samples.schema == {"step": pl.Int64, "answer": pl.String, "correct": pl.Float64, "mine": pl.Null}


def test_absent_tables_are_empty_and_have_their_known_columns(tmp_path):
    written(tmp_path, {"events": [{"step": 1, "message": "x"}]})
    found = Tape.read(tmp_path)
    for table in TABLES:
        assert found.table(table).height == (1 if table == "events" else 0)
        assert table == "events" or found.table(table).schema == COLUMNS[table]
    assert found.steps.columns[:1] == ["step"]


def test_duckdb_reads_the_parts_as_they_are(tmp_path):
    writer = TapeWriter(tmp_path / "tape", provenance={"steps.entropy/mean": MEAN})
    for step, row in enumerate(({"x": 1, "nil": None}, {"x": 2.5, "answer": "a", "nil": 1.5})):
        writer.append("steps", [{"step": step, "entropy/mean": 0.5, "flag": True, **row}])
        writer.flush(step)
    pattern = str(tmp_path / "tape" / "steps" / "*.parquet")
    rows = duckdb.sql(f"SELECT step, x, answer, flag, nil FROM read_parquet('{pattern}', union_by_name = true) ORDER BY step").fetchall()
    assert rows == [(0, 1.0, None, True, None), (1, 2.5, "a", True, 1.5)]
    found = duckdb.sql(f"SELECT value FROM parquet_kv_metadata('{pattern}') WHERE key = 'isentrope.provenance'").fetchall()
    assert [json.loads(value) for (value,) in found] == [{"entropy/mean": MEAN.to_dict()}] * 2


# --- what is refused


@pytest.mark.parametrize(
    ("table", "rows", "words"),
    [
        ("step", [{"step": 1}], "unknown table 'step'; tables are steps, tokens, samples, turns, evals, events, answers, ledger"),
        ("step", [{"step": 1}], "ledger_parts, ledger_tokens. Did you mean 'steps'?"),
        ("steps", [{"loss": 1.0}], "every row of steps needs a whole 'step' >= 0. Got columns loss"),
        ("steps", [{"step": 1.5}], "Got step 1.5"),
        ("steps", [{"step": -1}], "Got step -1"),
        ("steps", [{"step": 1}, {"loss": 1.0}], "Got 1 rows without"),
        ("tokens", {"step": [1, 2], "p": [0.1]}, "columns of tokens must be equally long. Got step 2, p 1"),
        ("tokens", {"step": 1, "p": np.zeros((2, 2))}, "tokens.p must be one value, or one per row. Got an array of shape (2, 2)"),
        ("tokens", {"step": 1, "p": torch.ones(2, requires_grad=True)}, "For a tensor pass value.detach().float().cpu()"),
        ("tokens", {"step": 1, "p": torch.ones(2, dtype=torch.bfloat16)}, "tokens.p got a Tensor"),
        ("steps", [{"step": 1, "x": [1, 2]}], "steps.x must hold numbers and bools, or text; None where there is nothing. Got list"),
        ("steps", [{"step": 1, "x": b"raw"}], "Got bytes"),
        ("steps", [{"step": 1, "x": {"a": 1}}], "Got dict"),
        ("steps", [{"step": 1, "x": 1}, {"step": 2, "x": "a"}], "steps.x must hold numbers and bools, or text"),
        ("steps", [{"step": 1, "x": 2**63}], "steps.x holds a whole number beyond 64 bits"),
        ("steps", {"step": [1], "x": np.array([2**63], dtype=np.uint64)}, "whole numbers are of 64 bits with a sign"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_by_name_and_nothing_is_kept(tmp_path, table, rows, words):
    writer = TapeWriter(tmp_path / "tape")
    with pytest.raises(TapeError) as error:
        writer.append(table, rows)
    assert words in str(error.value)
    assert not any(writer.buffered.values())
    assert not (tmp_path / "tape").exists()


def test_text_where_numbers_were_is_refused(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("samples", [{"step": 1, "answer": None, "reward": 1.0}])
    writer.append("samples", [{"step": 2, "answer": "4", "reward": None}])
    with pytest.raises(TapeError, match=r"samples\.answer held text before\. Got numbers"):
        writer.append("samples", [{"step": 3, "answer": 4}])
    assert writer.buffered["samples"] == 2


def test_there_is_no_tape(tmp_path):
    with pytest.raises(TapeError, match=r"holds no tape\. A run directory has a folder tape/"):
        Tape.read(tmp_path)
    with pytest.raises(TapeError, match="holds no tape"):
        Tape.read(tmp_path / "absent")
    written(tmp_path, numbered(3))
    assert Tape.read(tmp_path / "tape") == Tape.read(str(tmp_path)) == Tape.read(tmp_path)
    with pytest.raises(TapeError, match=r"unknown table 'token'.*Did you mean 'tokens'"):
        Tape.read(tmp_path).table("token")


# --- parts and their order


def test_parts_are_named_by_step_and_read_in_the_order_of_appending(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    for mark in range(12):  # twelve parts of one step: -10 comes after -9
        writer.append("events", [{"step": 5, "message": str(mark)}])
        writer.flush(5)
    writer.append("events", [{"step": 4, "message": "late"}])  # a late row: its part must not come before
    writer.flush(4)
    names = [path.name for path in parts(tmp_path / "tape" / "events")]
    assert names == ["part-00000005.parquet"] + [f"part-00000005-{copy}.parquet" for copy in range(1, 13)]
    assert Tape.read(tmp_path).events["message"].to_list() == ["late", *map(str, range(12))]  # sorted by step, then as appended


def test_a_part_is_named_by_its_last_row_if_that_is_later(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("steps", [{"step": 8}, {"step": 123456789}])
    assert [path.name for path in writer.flush(3)] == ["part-123456789.parquet"]
    assert Tape.read(tmp_path).parts("steps") == [tmp_path / "tape" / "steps" / "part-123456789.parquet"]


@quick
@given(cut=st.integers(0, 13), flushes=st.sets(st.integers(0, 12)), later=st.sets(st.integers(0, 12)))
def test_truncating_and_writing_again_gives_the_same_tape(tmp_path_factory, cut, flushes, later):
    """What a resume does: whatever the cut into parts, the tape ends as that of the uninterrupted run."""
    folder, rows = tmp_path_factory.mktemp("run"), numbered(12)
    straight = written(folder / "straight", rows)
    written(folder / "killed", rows, flushes)
    for table in TABLES:
        before = {path: path.read_bytes() for path in parts(folder / "killed" / "tape" / table)}
        kept = [path for path in before if tape._number(path) <= cut]
        writer = TapeWriter(folder / "killed" / "tape") if table == "steps" else writer
        if table == "steps":
            dropped = writer.truncate_after(cut)
        assert all(path.read_bytes() == before[path] for path in kept)
    assert dropped == sum(row["step"] > cut for table in rows.values() for row in table)
    left = Tape.read(folder / "killed")
    assert all(left.table(table)["step"].to_list() == sorted(row["step"] for row in rows[table] if row["step"] <= cut) for table in rows)
    assert all(tape._number(path) <= cut for table in TABLES for path in left.parts(table))
    for step in range(cut + 1, 13):
        for table, found in rows.items():
            writer.append(table, [row for row in found if row["step"] == step])
        if step in later:
            writer.flush(step)
    writer.flush()
    assert same(straight, Tape.read(folder / "killed"), ignore=()) == []


def test_truncating_drops_buffered_rows_too(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("tokens", {"step": [1, 2, 3]})
    writer.append("events", [{"step": 3, "kind": "x"}])
    assert writer.truncate_after(2) == 2
    assert writer.buffered == {
        "steps": 0,
        "tokens": 2,
        "samples": 0,
        "turns": 0,
        "evals": 0,
        "events": 0,
        "answers": 0,
        "ledger": 0,
        "ledger_parts": 0,
        "ledger_tokens": 0,
    }
    assert writer.flush() == [tmp_path / "tape" / "tokens" / "part-00000002.parquet"]


def test_a_new_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    written(tmp_path, numbered(2))
    stale = tmp_path / "tape" / "steps" / ".part-00000003.parquet.99.new"
    mine = tmp_path / "tape" / "steps" / "notes.txt"
    stale.write_bytes(b"PAR1")
    mine.write_text("mine")
    assert Tape.read(tmp_path).steps.height == 2
    TapeWriter(tmp_path / "tape")
    assert not stale.exists()
    assert mine.exists()


# --- provenance


def test_provenance_travels_with_every_part_and_with_run_json(tmp_path):
    token = replace(MEAN, aggregation="none")
    writer = TapeWriter(tmp_path / "tape", provenance={"steps.entropy/mean": MEAN, "tokens.entropy": token, "evals.entropy": MEAN, "steps.N/mean": MEAN})
    writer.append("steps", {"step": [1, 2], "entropy/mean": 0.5})
    writer.append("tokens", {"step": 1, "entropy": [0.5, 0.25]})
    writer.append("evals", [{"step": 1, "metric": "entropy", "value": 0.5}])
    writer.flush(2)
    assert Tape.read(tmp_path).provenance == {"steps.entropy/mean": MEAN, "tokens.entropy": token, "evals.entropy": MEAN}
    writer.truncate_after(1)  # rewritten parts keep it
    assert Tape.read(tmp_path).provenance["steps.entropy/mean"] == MEAN
    files.write_json_atomic(tmp_path / "run.json", {"provenance": {"steps.S/mean": MEAN.to_dict()}})
    assert set(Tape.read(tmp_path).provenance) == {"steps.entropy/mean", "tokens.entropy", "evals.entropy", "steps.S/mean"}


def test_records_that_disagree_are_an_error_that_names_column_and_field(tmp_path):
    for step, temperature in enumerate((1.0, 0.7)):
        writer = TapeWriter(tmp_path / "tape", provenance={"steps.entropy/mean": replace(MEAN, temperature=temperature)})
        writer.append("steps", [{"step": step, "entropy/mean": 0.5}])
        writer.flush(step)
    with pytest.raises(TapeError, match=r"part-00000001\.parquet.*disagree about steps\.entropy/mean.*temperature 1\.0 against 0\.7"):
        Tape.read(tmp_path).provenance  # noqa: B018
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(TapeError, match=r"run\.json cannot be read"):
        Tape.read(tmp_path).provenance  # noqa: B018


# --- damage


@pytest.fixture
def damaged(tmp_path):
    written(tmp_path, numbered(12), {4, 8})
    return tmp_path / "tape" / "steps" / "part-00000008.parquet"


@pytest.mark.parametrize("harm", [lambda raw: b"", lambda raw: raw[:-20], lambda raw: raw[: len(raw) // 2], lambda raw: b"x" * 300, lambda raw: raw + b"\0"])
def test_a_damaged_part_is_named_and_can_be_left_out(tmp_path, damaged, harm):
    damaged.write_bytes(harm(damaged.read_bytes()))
    whole = Tape.read(tmp_path)
    assert whole.tokens.height == 18  # other tables are as they were
    with pytest.raises(TapeError) as error:
        whole.steps  # noqa: B018
    assert str(damaged) in str(error.value)
    assert "skip_damaged=True" in str(error.value)
    left = Tape.read(tmp_path, skip_damaged=True)
    assert left.steps["step"].to_list() == [1, 2, 3, 4, 9, 10, 11, 12]
    assert [path for path, _ in left.damaged] == [damaged]
    with pytest.raises(TapeError, match=r"part-00000008\.parquet is damaged or truncated.*Move it away"):
        TapeWriter(tmp_path / "tape").truncate_after(5)


def test_no_flipped_bit_goes_unseen(tmp_path, damaged):
    """Every other byte of a part, changed: an error, or the rows as they were."""
    clean, raw, noise = Tape.read(tmp_path), damaged.read_bytes(), random.Random(0)
    assert clean.steps.height == 12
    outcomes = {"error": 0, "equal": 0}
    for at in range(0, len(raw), 2):
        damaged.write_bytes(raw[:at] + bytes([raw[at] ^ noise.randrange(1, 256)]) + raw[at + 1 :])
        changed = Tape.read(tmp_path)
        try:
            changed.steps  # noqa: B018
        except TapeError:
            outcomes["error"] += 1
        else:
            assert same(clean, changed, ignore=()) == [], at
            outcomes["equal"] += 1
    assert outcomes["error"] > outcomes["equal"]


def test_a_foreign_part_is_read_and_one_without_steps_is_damage(tmp_path):
    written(tmp_path, numbered(3))
    pl.DataFrame({"step": [4], "loss": pl.Series([0.5], dtype=pl.Float32)}).write_parquet(tmp_path / "tape" / "steps" / "part-00000004.parquet")
    assert Tape.read(tmp_path).steps["loss"].to_list()[-1] == 0.5
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "tape" / "steps" / "part-00000005.parquet")
    with pytest.raises(TapeError, match=r"part-00000005\.parquet is damaged.*no column 'step', only x"):
        Tape.read(tmp_path).steps  # noqa: B018


# --- equality


def test_same_sees_every_bit_and_leaves_clocks_aside(tmp_path):
    def made(name, **change):
        row = {"step": 1, "loss": 0.0, "nan": float("nan"), "seconds": random.random(), "trl/train_runtime": random.random(), "n": 1, "text": "a"}
        return written(tmp_path / name, {"steps": [row | change]})

    plain = made("plain")
    assert same(plain, made("equal")) == []
    assert same(plain, made("loss", loss=-0.0)) == ["steps.loss: 1 of 1 rows differ, first row 0 (step 1): 0.0 against -0.0"]
    assert same(plain, made("ulp", loss=5e-324))[0].endswith("0.0 against 5e-324")
    assert same(plain, made("null", nan=None)) == ["steps.nan is Float64 against Null"]
    assert same(plain, made("text", text="b")) == ["steps.text: 1 of 1 rows differ, first row 0 (step 1): 'a' against 'b'"]
    assert same(plain, made("whole", n=2)) == ["steps.n: 1 of 1 rows differ, first row 0 (step 1): 1 against 2"]
    assert same(plain, made("more", extra=1)) == ["steps.extra is only in the second tape"]
    assert [line.partition(":")[0] for line in same(plain, plain, ignore=())] == []
    assert any("seconds" in line for line in same(plain, made("clock"), ignore=()))
    longer = written(tmp_path / "longer", {"steps": [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}]})
    assert "steps: 1 rows against 2" in same(plain, longer)


def test_same_tells_null_from_zero(tmp_path):
    a = written(tmp_path / "a", {"steps": [{"step": 1, "x": 0.0}, {"step": 2, "x": 1.0}]})
    b = written(tmp_path / "b", {"steps": [{"step": 1, "x": None}, {"step": 2, "x": 1.0}]})
    assert same(a, b) == ["steps.x: 1 of 2 rows differ, first row 0 (step 1): 0.0 against None"]


def test_wall_clock_columns_are_those_that_a_run_writes():
    assert {"seconds", "tokens_per_second"} <= set(COLUMNS["steps"]) & WALL_CLOCK


# --- a full disk


def test_full_disk_keeps_rows_in_memory_and_parts_whole(tmp_path, monkeypatch):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("steps", [{"step": 1, "loss": 1.0}])
    writer.flush(1)
    before = Tape.read(tmp_path).steps
    writer.append("steps", [{"step": 2, "loss": 2.0}])
    writer.append("tokens", {"step": [2, 2], "p": [0.5, 0.25]})
    real, full = tape.write_bytes_atomic, [True]

    def refuse_tokens(path, content):
        if full[0] and "tokens" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr(tape, "write_bytes_atomic", refuse_tokens)
    with pytest.raises(TapeError, match=r"tokens/part-00000002\.parquet cannot be written: No space left on device"):
        writer.flush(2)
    assert writer.buffered == {
        "steps": 0,
        "tokens": 2,
        "samples": 0,
        "turns": 0,
        "evals": 0,
        "events": 0,
        "answers": 0,
        "ledger": 0,
        "ledger_parts": 0,
        "ledger_tokens": 0,
    }
    found = Tape.read(tmp_path)
    assert found.steps.head(1).equals(before)
    assert found.tokens.height == 0
    full[0] = False
    writer.flush(2)
    assert Tape.read(tmp_path).tokens["p"].to_list() == [0.5, 0.25]
    assert Tape.read(tmp_path).steps["step"].to_list() == [1, 2]  # steps were not written twice


def test_a_sync_that_fails_after_the_rename_writes_no_row_twice(tmp_path, monkeypatch):
    writer = TapeWriter(tmp_path / "tape")
    writer.append("steps", [{"step": 1}])

    def fail(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "sync_folder", fail)
    with pytest.raises(TapeError, match="Input/output error"):
        writer.flush(1)
    monkeypatch.undo()
    writer.flush(1)
    assert Tape.read(tmp_path).steps["step"].to_list() == [1]


@pytest.fixture
def tiny_disk(tmp_path, request):
    """A file system of 64 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(mount)], check=True))  # noqa: PT021 jaxtyping wraps a generator
    return mount


def test_a_disk_that_is_really_full(tiny_disk):
    writer, chance, step = TapeWriter(tiny_disk / "tape"), np.random.default_rng(0), 0
    with pytest.raises(TapeError, match=r"steps/part-\d+\.parquet cannot be written: No space left on device"):  # noqa: PT012
        for step in range(1, 100):
            writer.append("steps", {"step": step, "noise": chance.random(500)})
            writer.flush(step)
    assert 2 < step < 99
    assert writer.buffered["steps"] == 500
    assert Tape.read(tiny_disk).steps["step"].unique(maintain_order=True).to_list() == list(range(1, step))
    assert not list((tiny_disk / "tape" / "steps").glob(".*"))  # nothing half written takes up room
    Tape.read(tiny_disk).parts("steps")[0].unlink()
    writer.flush(step)
    assert Tape.read(tiny_disk).steps["step"].unique(maintain_order=True).to_list() == list(range(2, step + 1))


# --- a killed writer

CRASH = """
import os, sys
from pathlib import Path
from isentrope import files, tape

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
CALLS = ("fsync", "replace", "rename", "unlink", "mkdir")

def die_at(n):
    left = [n]
    def counted(real):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)  # no cleanup: as good as SIGKILL
            return real(*arguments, **keywords)
        return call
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))

for n in range(limit):  # every trial in a process of its own, dying before its n-th change of the file system
    child = os.fork()
    if child == 0:
        writer = tape.TapeWriter(folder / str(n) / "tape")
        die_at(n)
        for step in range(1, 7):
            writer.append("steps", [{"step": step}])
            if step % 2 == 0:
                writer.flush(step)
        writer.truncate_after(3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_dying_before_any_change_of_the_file_system_leaves_whole_parts(tmp_path):
    limit = 30
    run = subprocess.run([sys.executable, "-c", CRASH, tmp_path, str(limit)], capture_output=True, text=True, check=True, env=os.environ)
    codes = [int(line) for line in run.stdout.split()]
    assert set(codes) == {0, 9}
    assert codes[-1] == 0  # the last trial was not interrupted: every point was tried
    seen = set()
    for n in range(limit):
        if not (tmp_path / str(n) / "tape").is_dir():
            seen.add(())
            continue
        found = tuple(Tape.read(tmp_path / str(n)).steps["step"].to_list())
        seen.add(found)
        TapeWriter(tmp_path / str(n) / "tape").truncate_after(1)
        assert Tape.read(tmp_path / str(n)).steps["step"].to_list() == list(found[:1])
        assert not list((tmp_path / str(n)).rglob("*.new"))
    assert seen == {(), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6)}  # always a beginning


LOOP = """
import sys
from isentrope.tape import TapeWriter
writer = TapeWriter(sys.argv[1])
for step in range(1, 100000):
    writer.append("tokens", {"step": step, "p": [0.5] * 2000, "text": ["x" * 20] * 2000})
    writer.flush(step)
    print(step, flush=True)
"""


def test_a_writer_killed_at_random_moments_leaves_what_it_had_flushed(tmp_path):
    chance = random.Random(0)
    for trial in range(3):
        folder = tmp_path / str(trial)
        with subprocess.Popen([sys.executable, "-c", LOOP, folder / "tape"], stdout=subprocess.PIPE, text=True) as process:
            stop = threading.Timer(60, process.kill)
            stop.start()
            lines = [process.stdout.readline() for _ in range(chance.randrange(3, 9))]
            process.kill()
            more = process.stdout.read().split()
            stop.cancel()
        said = int(more[-1]) if more else int(lines[-1])
        found = Tape.read(folder).tokens.group_by("step", maintain_order=True).len()
        assert found["len"].to_list() == [2000] * len(found)
        assert found["step"].to_list() == list(range(1, len(found) + 1))
        assert len(found) in (said, said + 1)  # what it said that it had flushed is there
