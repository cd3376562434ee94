"""The tape: what a run leaves behind, as Parquet parts that are either whole or absent.

    DIR/tape/TABLE/part-SSSSSSSS.parquet     rows of TABLE up to step SSSSSSSS

Tables: steps (one row per update), tokens and samples (a keyed sample), evals, events. A part is written under a temporary name and
renamed, so a killed process leaves no half part; a full disk leaves the rows in memory and the parts on disk as they were.
DuckDB reads the parts as they are: `SELECT * FROM 'DIR/tape/steps/*.parquet'`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from isentrope.errors import UserError
from isentrope.provenance import Provenance

TABLES = ("steps", "tokens", "samples", "evals", "events")
WALL_CLOCK = frozenset({"seconds", "tokens_per_second", "trl/step_time"})
"""Columns that differ between two otherwise equal runs."""
_PART = re.compile(r"part-(\d{8,})(?:-(\d+))?\.parquet$")


class TapeError(UserError, RuntimeError):
    """A tape that cannot be read or written; the message names the file."""


# --- small files


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Writes beside the target, syncs, renames: the file is the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """JSON with NaN and infinities as null, which every reader understands."""
    write_text_atomic(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


# --- writing


class TapeWriter:
    """Buffers rows and writes them as parts."""

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        self._rows: dict[str, list[pl.DataFrame]] = {table: [] for table in TABLES}

    def append(self, table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> None:
        """Rows (or columns) of a table; in memory until `flush`.

        Raises TapeError for an unknown table or rows without a step.
        """
        if table not in TABLES:
            raise TapeError(f"tape: unknown table {table!r}. Tables: {', '.join(TABLES)}.")
        frame = pl.DataFrame(rows, infer_schema_length=None) if isinstance(rows, Mapping) else pl.from_dicts(list(rows), infer_schema_length=None)
        if "step" not in frame.columns:
            raise TapeError(f"tape: every row of {table} needs a step. Got columns {', '.join(frame.columns)}.")
        if len(frame):
            self._rows[table].append(frame)

    def flush(self, step: int) -> None:
        """Writes what is buffered as one part per table, named by `step`.

        Raises TapeError naming the path when the disk refuses; the rows stay buffered.
        """
        for table, frames in self._rows.items():
            if frames:
                self._write(table, pl.concat(frames, how="diagonal_relaxed"), step)
                frames.clear()

    def truncate_after(self, step: int) -> None:
        """Drops every row of a later step, buffered or on disk: what a resumed run will write again."""
        for table in TABLES:
            self._rows[table] = [frame.filter(pl.col("step") <= step) for frame in self._rows[table]]
            self._rows[table] = [frame for frame in self._rows[table] if len(frame)]
            for path in parts(self.directory / table):
                frame = _read(path)
                kept = frame.filter(pl.col("step") <= step)
                if not len(kept):
                    path.unlink()
                elif len(kept) < len(frame):
                    _save(kept, path)

    def _write(self, table: str, frame: pl.DataFrame, step: int) -> None:
        folder = self.directory / table
        path, copy = folder / f"part-{step:08d}.parquet", 0
        while path.exists():
            copy += 1
            path = folder / f"part-{step:08d}-{copy:03d}.parquet"
        _save(frame, path)


def _save(frame: pl.DataFrame, path: Path) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(fresh)
        with open(fresh, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync_folder(path.parent)
    except (OSError, pl.exceptions.PolarsError) as error:
        fresh.unlink(missing_ok=True)
        raise TapeError(f"tape: {path} cannot be written ({error}). What was written before stands; these rows are still in memory.") from error


# --- reading


@dataclass(frozen=True)
class Tape:
    """A run's tables as Polars frames, in the order of their steps; an absent table is an empty frame."""

    directory: Path
    skip_damaged: bool = False

    @classmethod
    def read(cls, directory: Path | str, *, skip_damaged: bool = False) -> "Tape":
        """The tape of a run directory.

        Raises TapeError if there is none; a damaged part raises when its table is first used, unless `skip_damaged`.
        """
        directory = Path(directory)
        if not (directory / "tape").is_dir() and not (directory / "run.json").is_file():
            raise TapeError(f"{directory} holds no tape. A run directory has a folder tape/ with Parquet parts.")
        return cls(directory, skip_damaged)

    @cached_property
    def steps(self) -> pl.DataFrame:
        return self.table("steps")

    @cached_property
    def tokens(self) -> pl.DataFrame:
        return self.table("tokens")

    @cached_property
    def samples(self) -> pl.DataFrame:
        return self.table("samples")

    @cached_property
    def evals(self) -> pl.DataFrame:
        return self.table("evals")

    @cached_property
    def events(self) -> pl.DataFrame:
        return self.table("events")

    @cached_property
    def provenance(self) -> dict[str, Provenance]:
        """What each entropy column is, keyed `table.column`."""
        path = self.directory / "run.json"
        recorded = json.loads(path.read_text(encoding="utf-8")).get("provenance", {}) if path.is_file() else {}
        return {key: Provenance.from_dict(value) for key, value in recorded.items()}

    def table(self, name: str) -> pl.DataFrame:
        """All parts of a table; columns that a part lacks are null there."""
        frames = []
        for path in parts(self.directory / "tape" / name):
            try:
                frames.append(_read(path))
            except TapeError:
                if not self.skip_damaged:
                    raise
        if not frames:
            return pl.DataFrame({"step": pl.Series([], dtype=pl.Int64)})
        return pl.concat(frames, how="diagonal_relaxed").sort("step", maintain_order=True)


def parts(folder: Path) -> list[Path]:
    """The parts of a table, oldest first."""
    if not folder.is_dir():
        return []
    found = [(path, _PART.match(path.name)) for path in folder.iterdir()]
    return [path for path, match in sorted((pair for pair in found if pair[1]), key=lambda pair: (int(pair[1][1]), int(pair[1][2] or 0)))]


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TapeError(f"tape: {path} is damaged or truncated ({reason}). Tape.read(DIR, skip_damaged=True) leaves such parts out.") from error


def same(left: Tape, right: Tape, ignore: Iterable[str] = WALL_CLOCK) -> list[str]:
    """Where two tapes differ, wall-clock columns aside; empty if they are equal bit for bit (NaN equals NaN)."""
    found = []
    for name in TABLES:
        a, b = (tape.table(name).drop(set(ignore), strict=False) for tape in (left, right))
        if set(a.columns) != set(b.columns):
            found.append(f"{name}: columns {sorted(set(a.columns) ^ set(b.columns))}")
        elif len(a) != len(b):
            found.append(f"{name}: {len(a)} rows against {len(b)}")
        else:
            for column in a.columns:
                if not a[column].equals(b[column], null_equal=True):
                    found.append(f"{name}.{column}")
    return found
