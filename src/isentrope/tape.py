"""The tape: what a run leaves behind, as Parquet parts that are either whole or absent.

    DIR/tape/TABLE/part-SSSSSSSS.parquet     rows of TABLE up to step SSSSSSSS; a second part of one step is part-SSSSSSSS-1, ...

Tables: steps (one row per update), tokens and samples (a keyed sample), turns (of the samples that have several), evals, events, answers
(one row per held-out prompt and evaluation), ledger (one row per ledger), ledger_parts and ledger_tokens (who moved entropy); their columns
stand in `COLUMNS`, and a run may add others.
A part is written under a hidden name, synced and renamed, so a killed process leaves no half part, and a full disk leaves the parts as
they were and the rows in memory. Every page carries a checksum, and every part the provenance of its columns.
DuckDB reads the parts as they are: `SELECT * FROM read_parquet('DIR/tape/steps/*.parquet', union_by_name = true)`.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from isentrope.errors import DiskError, UserError
from isentrope.files import sync_folder, write_bytes_atomic, write_json_atomic, write_text_atomic
from isentrope.provenance import Provenance, ProvenanceError, combine

try:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise ImportError(f"isentrope.tape needs {missing.name}: pip install 'isentrope[cli]'", name=missing.name) from missing

_WHOLE, _REAL, _TEXT, _FLAG = pl.Int64, pl.Float64, pl.String, pl.Boolean
COLUMNS: dict[str, dict[str, Any]] = {
    "steps": {"step": _WHOLE} | dict.fromkeys(
        ("seconds", "tokens", "tokens_per_second", "learning_rate", "loss", "grad_norm", "reward/mean", "reward/std", "reward/zero_std_groups",
         "correct/mean", "entropy/mean", "entropy/q05", "entropy/q25", "entropy/q50", "entropy/q75", "entropy/q95", "N/mean", "S/mean",
         "length/mean", "truncated/share", "kl/mean", "clip/low", "clip/high", "ratio/mean", "ratio/max"), _REAL),
    "tokens": dict.fromkeys(("step", "row_id", "group", "position", "token_id"), _WHOLE) | {"text": _TEXT} | dict.fromkeys(
        ("log_prob", "entropy", "S", "N", "p", "max_p", "ratio", "advantage", "weight", "push", "correct"), _REAL),
    "samples": {
        "step": _WHOLE, "row_id": _WHOLE, "group": _WHOLE, "prompt": _TEXT, "completion": _TEXT, "reward": _REAL, "correct": _REAL,
        "truncated": _FLAG, "answer": _TEXT, "length": _WHOLE, "advantage": _REAL, "entropy": _REAL, "origin": _TEXT},
    "turns": {
        "step": _WHOLE, "row_id": _WHOLE, "group": _WHOLE, "turn": _WHOLE, "tokens": _WHOLE, "action": _TEXT, "reply": _TEXT, "ending": _TEXT,
        "advantage": _REAL, "reward": _REAL, "correct": _REAL},
    "evals": {"step": _WHOLE, "metric": _TEXT, "value": _REAL, "low": _REAL, "high": _REAL, "prompts": _WHOLE, "samples": _WHOLE},
    "events": {"step": _WHOLE, "level": _TEXT, "kind": _TEXT, "message": _TEXT},
    "answers": {
        "step": _WHOLE, "group": _WHOLE, "prompt": _TEXT, "kind": _TEXT, "samples": _WHOLE, "correct": _WHOLE, "answers": _TEXT,
        "tokens": _WHOLE, "entropy": _REAL} | {f"{name}/{part}": dtype for name, dtype in (("tokens", _WHOLE), ("entropy", _REAL))
        for part in ("right", "wrong", *(f"tenth-{place:02d}" for place in range(1, 11)))},
    "ledger": {"step": _WHOLE, "tokens": _WHOLE} | dict.fromkeys(
        ("opening", "closing", "measured", "theory/exact", "theory/first_order", "theory/token_rule", "theory/omega", "theory/covariance",
         "account/this_batch", "account/momentum", "account/weight_decay", "account/gradient_clipping", "account/residual",
         "attributed", "raised", "lowered", "clipped", "seconds"), _REAL),
    "ledger_parts": {"step": _WHOLE, "by": _TEXT, "kind": _TEXT, "tokens": _WHOLE, "part": _REAL, "push": _REAL},
    "ledger_tokens": dict.fromkeys(("step", "row_id", "group", "position", "token_id"), _WHOLE) | {"text": _TEXT, "before": _TEXT}
        | dict.fromkeys(("log_prob", "entropy", "S", "N", "advantage", "correct", "part", "push"), _REAL),
}  # fmt: skip
"""The columns that every reader may ask for, by table; the dtype is what an empty column has. Entropies are in nats."""
TABLES = tuple(COLUMNS)
WALL_CLOCK = frozenset({"seconds", "tokens_per_second", "trl/step_time", "trl/*_runtime", "trl/*_per_second", "trl/profiling/*"})
"""Columns (shell patterns) that differ between two otherwise equal runs."""
_PART = re.compile(r"part-(\d{8,})(?:-(\d+))?\.parquet")
_PROVENANCE, _SEAL = b"isentrope.provenance", b"isentrope.seal"

__all__ = [
    "COLUMNS", "TABLES", "WALL_CLOCK", "Tape", "TapeError", "TapeWriter", "parts", "same",
    "sync_folder", "write_bytes_atomic", "write_json_atomic", "write_text_atomic",
]  # fmt: skip


class TapeError(UserError, RuntimeError):
    """A tape that cannot be read or written; the message names the file."""


class TapeDiskError(DiskError, TapeError):
    """A part that the disk refuses."""


# --- writing


class TapeWriter:
    """Buffers rows and writes them as parts. One writer per tape (the main process); it removes what a killed one left half written.

    directory: the folder of the tape, DIR/tape; made when the first part is written.
    provenance: what each entropy column is, keyed "table.column" ("evals.METRIC" for evals); goes into every part. May be replaced
        before rows are flushed.
    """

    def __init__(self, directory: Path | str, *, provenance: Mapping[str, Provenance] | None = None):
        self.directory = Path(directory)
        self.provenance: Mapping[str, Provenance] = dict(provenance or {})
        self._rows: dict[str, list[pl.DataFrame]] = {table: [] for table in TABLES}
        self._kinds: dict[str, dict[str, str]] = {table: {} for table in TABLES}
        for table in TABLES:
            for stale in (self.directory / table).glob(".part-*.new"):
                stale.unlink(missing_ok=True)

    @property
    def buffered(self) -> dict[str, int]:
        """Rows in memory, by table."""
        return {table: sum(map(len, frames)) for table, frames in self._rows.items()}

    def append(self, table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Copies rows into memory until `flush`: a list of rows, or columns (much cheaper for many rows).

        A column is a list, an array or a CPU tensor; a single value stands for all rows. Values are numbers, bools, text or None.
        Raises TapeError naming table and column for an unknown table, a row without a whole `step`, columns of unequal length, a value
        of another kind, or text where numbers were.
        """
        if table not in COLUMNS:
            raise TapeError(f"tape: unknown table {table!r}; tables are {', '.join(TABLES)}.{_near(table, TABLES)}")
        frame = _frame(table, rows)
        if not len(frame):
            return
        steps = frame["step"] if "step" in frame.columns else None
        if steps is None or steps.dtype != pl.Int64 or steps.null_count() or steps.to_numpy().min() < 0:
            raise TapeError(f"tape: every row of {table} needs a whole 'step' >= 0. Got {_kind_of_step(steps, frame.columns)}.")
        self._check_kinds(table, frame)
        self._rows[table].append(frame)

    def flush(self, step: int | None = None) -> list[Path]:
        """Writes what is buffered as one part per table and returns their paths. `step`: the last finished one (None: the rows' own).

        A part's number is never below that of the part before it, so parts in the order of their names are rows in the order of
        appending. Raises TapeError naming the path when the disk refuses; the rows of that table and of later ones stay buffered.
        """
        written = []
        for table, frames in self._rows.items():
            if frames:
                frame = pl.concat(frames, how="diagonal_relaxed")
                last = max(step or 0, int(frame["step"].to_numpy().max()))
                folder = self.directory / table
                path = _free_name(folder, max([last, *(_number(part) for part in parts(folder))]))
                _guarded(path, lambda path=path, frame=frame, table=table: self._write_new(path, frame, table))
                written.append(path)
                frames.clear()
        return written

    def truncate_after(self, step: int) -> int:
        """Drops every row of a later step, buffered or on disk: what a resumed run will write again. Returns how many.

        Rows that a run appends at step s must be appended before the checkpoint of s is taken, for these are kept. Whole parts go,
        parts on the edge are rewritten; killed half-way, it can simply be called again. Raises TapeError for a damaged part.
        """
        dropped = 0
        for table in TABLES:
            frames = [frame.filter(pl.col("step") <= step) for frame in self._rows[table]]
            dropped += sum(map(len, self._rows[table])) - sum(map(len, frames))
            self._rows[table] = [frame for frame in frames if len(frame)]
            dropped += self._cut(self.directory / table, step)
        return dropped

    def _cut(self, folder: Path, step: int) -> int:
        """Cuts the parts of a table; from the end, so that what stands is a beginning of the tape at every moment."""
        found = [(path, *_read(path)) for path in parts(folder) if _number(path) > step]
        kept = [(path, frame.filter(pl.col("step") <= step), provenance) for path, frame, provenance in found]
        sizes = {path: len(frame) for path, frame, _ in found}
        for path, frame, provenance in reversed(kept):
            if not len(frame):
                _guarded(path, lambda path=path: path.unlink(missing_ok=True))
            elif len(frame) < sizes[path]:
                content = _parquet(frame, provenance)
                _guarded(path, lambda path=path, content=content: write_bytes_atomic(path, content))
        for path, frame, _ in kept:
            if len(frame):
                renamed = _free_name(folder, step)
                _guarded(renamed, lambda path=path, renamed=renamed: os.rename(path, renamed))
        if found:
            sync_folder(folder)
        return sum(sizes.values()) - sum(len(frame) for _, frame, _ in kept)

    def _write_new(self, path: Path, frame: pl.DataFrame, table: str) -> None:
        declared = [name for name, dtype in frame.schema.items() if dtype == pl.Null and name in COLUMNS[table]]
        frame = frame.with_columns(pl.col(name).cast(COLUMNS[table][name]) for name in declared)
        named = {key.partition(".")[2]: value.to_dict() for key, value in self.provenance.items() if key.partition(".")[0] == table}
        kept = {name: value for name, value in named.items() if name in frame.columns or table == "evals"}
        try:
            write_bytes_atomic(path, _parquet(frame, kept))
        except OSError:
            path.unlink(missing_ok=True)  # the rename was made and only its sync failed: the rows stay in memory, so not here too
            raise

    def _check_kinds(self, table: str, frame: pl.DataFrame) -> None:
        known = self._kinds[table]
        for name, dtype in frame.schema.items():
            if dtype != pl.Null:
                kind = "text" if dtype == pl.String else "numbers"
                if known.setdefault(name, kind) != kind:
                    raise TapeError(f"tape: column {table}.{name} held {known[name]} before. Got {kind}; give it one kind, or another name.")


def _frame(table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pl.DataFrame:
    """Rows or columns as a frame that shares no memory with them."""
    if isinstance(rows, Mapping):
        columns = dict(rows)
    else:
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
    series = {name: _series(f"{table}.{name}", values) for name, values in columns.items()}
    lengths = {name: len(values) for name, (values, single) in series.items() if not single}
    if len(set(lengths.values())) > 1:
        raise TapeError(f"tape: columns of {table} must be equally long. Got {', '.join(f'{name} {size}' for name, size in lengths.items())}.")
    height = next(iter(lengths.values()), 1 if series else 0)
    return pl.DataFrame([_repeat(values, height, single).alias(name) for name, (values, single) in series.items()])


def _repeat(values: pl.Series, height: int, single: bool) -> pl.Series:
    return values.new_from_index(0, height) if single and height != 1 else values


def _series(where: str, values: Any) -> tuple[pl.Series, bool]:
    """A column as Boolean, Int64, Float32, Float64, String or Null, and whether a single value was given."""
    if values is None or isinstance(values, str | bytes | bool | int | float | np.generic):
        return _mixed(where, [values]), True
    if not isinstance(values, Sequence):
        try:
            values = np.asarray(values)
        except (TypeError, RuntimeError, ValueError) as error:
            raise TapeError(f"tape: {where} got a {type(values).__name__} ({error}). For a tensor pass value.detach().float().cpu().") from error
        if values.ndim > 1:
            raise TapeError(f"tape: {where} must be one value, or one per row. Got an array of shape {values.shape}.")
        if values.ndim == 0 or values.dtype.kind not in "biuf":
            return _mixed(where, np.atleast_1d(values).tolist()), values.ndim == 0
        if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
            raise TapeError(f"tape: {where} holds {values.max()}; whole numbers are of 64 bits with a sign.")
        dtype = np.dtype({"b": np.bool_, "i": np.int64, "u": np.int64}.get(values.dtype.kind, np.float64 if values.itemsize > 4 else np.float32))
        return pl.Series(values.astype(dtype, copy=True)), False
    try:
        series = pl.Series(values)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return _mixed(where, values), False
    plain = series.dtype in (pl.Boolean, pl.Int64, pl.Float64, pl.String, pl.Null)
    return (series if plain else _mixed(where, values)), False


def _mixed(where: str, values: Sequence[Any]) -> pl.Series:
    """Values of several Python types as one column: bool < whole < real, or text."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str}:
        texts = [None if value is None else value.encode("utf-8", errors="backslashreplace").decode() for value in values]
        return pl.Series(texts, dtype=pl.String if kinds else pl.Null)
    if kinds <= {bool, int, float}:
        target = float if float in kinds else int if int in kinds else bool
        dtype = {float: pl.Float64, int: pl.Int64, bool: pl.Boolean}[target]
        try:
            return pl.Series([None if value is None else target(value) for value in values], dtype=dtype)
        except (TypeError, OverflowError) as error:
            raise TapeError(f"tape: {where} holds a whole number beyond 64 bits.") from error
    got = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise TapeError(f"tape: {where} must hold numbers and bools, or text; None where there is nothing. Got {got}.")


def _kind_of_step(steps: pl.Series | None, columns: Iterable[str]) -> str:
    if steps is None:
        return f"columns {', '.join(columns)}"
    return f"{steps.null_count()} rows without" if steps.null_count() else f"step {steps[0]!r}"


def _parquet(frame: pl.DataFrame, provenance: Mapping[str, Any]) -> bytes:
    table = frame.rechunk().to_arrow()
    records = json.dumps(dict(provenance)).encode()
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_PROVENANCE: records, _SEAL: _seal(frame, records)})
    return sink.getvalue()


def _seal(frame: pl.DataFrame, records: bytes) -> bytes:
    """A hash of what Parquet's page checksums leave out: names and types of columns, number of rows, provenance."""
    outline = [list(frame.columns), [str(dtype) for dtype in frame.dtypes], len(frame), records.decode()]
    return hashlib.sha256(json.dumps(outline).encode()).hexdigest().encode()


def _guarded(path: Path, action: Callable[[], object]) -> None:
    """Runs `action`; what the disk refuses becomes a TapeError that names `path`."""
    try:
        action()
    except OSError as error:
        reason = error.strerror or str(error)
        raise TapeDiskError(
            f"tape: {path} cannot be written: {reason}. The parts on disk are whole and what was not written is still in memory; "
            "make room and flush again, or resume the run later."
        ) from error


# --- reading


@dataclasses.dataclass(frozen=True)
class Tape:
    """A run's tables as Polars frames; a table is read when it is first asked for, and is empty (with its known columns) if absent.

    Rows stand in the order of their steps, and within a step in the order in which they were appended. Columns that a part lacks are
    null there; numbers of two widths become the wider, numbers and text become text.
    """

    directory: Path
    skip_damaged: bool = False

    @classmethod
    def read(cls, directory: Path | str, *, skip_damaged: bool = False) -> "Tape":
        """The tape of a run directory, or of the folder `tape` in it.

        Raises TapeError if there is none. A damaged part raises TapeError when its table is first used, unless `skip_damaged`;
        then `damaged` lists it.
        """
        directory = Path(directory)
        if directory.name == "tape" and any((directory / table).is_dir() for table in TABLES):
            directory = directory.parent
        if not (directory / "tape").is_dir() and not (directory / "run.json").is_file():
            raise TapeError(f"{directory} holds no tape. A run directory has a folder tape/ with Parquet parts, as `isentrope train --out` makes.")
        return cls(directory, skip_damaged)

    @property
    def steps(self) -> pl.DataFrame:
        """One row per update."""
        return self.table("steps")

    @property
    def tokens(self) -> pl.DataFrame:
        """One row per sampled token."""
        return self.table("tokens")

    @property
    def samples(self) -> pl.DataFrame:
        """One row per sampled response."""
        return self.table("samples")

    @property
    def evals(self) -> pl.DataFrame:
        """One row per evaluation and metric."""
        return self.table("evals")

    @property
    def events(self) -> pl.DataFrame:
        """What happened beside the numbers."""
        return self.table("events")

    @property
    def answers(self) -> pl.DataFrame:
        """One row per held-out prompt and evaluation."""
        return self.table("answers")

    @cached_property
    def provenance(self) -> dict[str, Provenance]:
        """What each entropy column is, keyed "table.column": from run.json and from the parts.

        Raises TapeError that names the column if two records say different things.
        """
        found: dict[str, Provenance] = {}
        for source, records in self._provenance_records():
            for key, record in records.items():
                try:
                    one = Provenance.from_dict(record)
                    found[key] = combine(found[key], one) if key in found else one
                except (ProvenanceError, TypeError) as error:
                    raise TapeError(f"tape: {source} and what came before it disagree about {key}: {error}") from error
        return found

    @property
    def damaged(self) -> tuple[tuple[Path, str], ...]:
        """Every part that cannot be read, with the reason. Reads all tables."""
        return tuple(fault for table in TABLES for fault in self._loaded(table)[2])

    def parts(self, table: str) -> list[Path]:
        """The files of a table, oldest first."""
        return parts(self.directory / "tape" / table)

    def table(self, name: str) -> pl.DataFrame:
        """A table by name. Raises TapeError for an unknown one, and for a damaged part unless `skip_damaged`."""
        if name not in COLUMNS:
            raise TapeError(f"tape: unknown table {name!r}; tables are {', '.join(TABLES)}.{_near(name, TABLES)}")
        frame, _, faults = self._loaded(name)
        if faults and not self.skip_damaged:
            path, reason = faults[0]
            raise TapeError(f"tape: {path} is damaged or truncated ({reason}). Tape.read(DIR, skip_damaged=True) leaves such parts out.")
        return frame

    @cached_property
    def _tables(self) -> dict[str, tuple[pl.DataFrame, list, list[tuple[Path, str]]]]:
        return {}

    def _loaded(self, name: str) -> tuple[pl.DataFrame, list[tuple[Path, Mapping]], list[tuple[Path, str]]]:
        """Frame, provenance records and faults of a table, read once."""
        if name not in self._tables:
            frames, records, faults = [], [], []
            for path in self.parts(name):
                try:
                    frame, provenance = _read(path)
                except TapeError as error:
                    faults.append((path, str(error.__cause__ or error)))
                    continue
                frames.append(frame)
                records.append((path, provenance))
            self._tables[name] = (_united(name, frames), records, faults)
        return self._tables[name]

    def _provenance_records(self) -> Iterable[tuple[Path, Mapping[str, Any]]]:
        path = self.directory / "run.json"
        try:
            yield path, json.loads(path.read_text(encoding="utf-8")).get("provenance", {}) if path.is_file() else {}
        except (OSError, ValueError, AttributeError) as error:
            raise TapeError(f"tape: {path} cannot be read: {_line(error)}") from error
        for table in TABLES:
            for part, records in self._loaded(table)[1]:
                yield part, {f"{table}.{name}": record for name, record in records.items()}


def parts(folder: Path) -> list[Path]:
    """The parts in a table's folder, oldest first."""
    if not folder.is_dir():
        return []
    found = ((path, _PART.fullmatch(path.name)) for path in folder.iterdir())
    return [path for _, _, path in sorted((int(match[1]), int(match[2] or 0), path) for path, match in found if match)]


def same(left: Tape, right: Tape, ignore: Iterable[str] = WALL_CLOCK) -> list[str]:
    """Where two tapes differ, one line per column, wall-clock columns aside (shell patterns); empty if equal bit for bit.

    Any NaN equals any NaN; -0.0 differs from 0.0; the order of columns and the cut into parts do not matter.
    """
    found, patterns = [], tuple(ignore)
    for name in TABLES:
        a, b = (_without(tape.table(name), patterns) for tape in (left, right))
        for column in sorted(set(a.columns) ^ set(b.columns)):
            found.append(f"{name}.{column} is only in the {'first' if column in a.columns else 'second'} tape")
        if len(a) != len(b):
            found.append(f"{name}: {len(a)} rows against {len(b)}")
            continue
        for column in (column for column in a.columns if column in b.columns):
            if a[column].dtype != b[column].dtype:
                found.append(f"{name}.{column} is {a[column].dtype} against {b[column].dtype}")
                continue
            rows = np.flatnonzero(_differ(a[column], b[column]))
            if len(rows):
                at = int(rows[0])
                where = f"row {at} (step {a['step'][at]})" if "step" in a.columns else f"row {at}"
                found.append(f"{name}.{column}: {len(rows)} of {len(a)} rows differ, first {where}: {a[column][at]!r} against {b[column][at]!r}")
    return found


def _without(frame: pl.DataFrame, patterns: Sequence[str]) -> pl.DataFrame:
    return frame.drop([column for column in frame.columns if any(fnmatchcase(column, pattern) for pattern in patterns)])


def _differ(a: pl.Series, b: pl.Series) -> np.ndarray:
    nulls = a.is_null().to_numpy() != b.is_null().to_numpy()
    if not a.dtype.is_float():
        return nulls | a.ne_missing(b).to_numpy()
    x, y = (series.fill_null(0.0).to_numpy() for series in (a, b))
    bits = np.int32 if x.itemsize == 4 else np.int64
    return nulls | ((x.view(bits) != y.view(bits)) & ~(np.isnan(x) & np.isnan(y)))


def _united(name: str, frames: list[pl.DataFrame]) -> pl.DataFrame:
    if not frames:
        return pl.DataFrame(schema=COLUMNS[name])
    try:
        return pl.concat(frames, how="diagonal_relaxed").sort("step", maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise TapeError(f"tape: the parts of {name} do not fit together: {_line(error)}") from error


def _read(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows of a part and the provenance of its columns, every page checked."""
    try:
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
        table = file.read(use_threads=False)
        table.validate(full=True)
        frame = pl.from_arrow(table.replace_schema_metadata(None))
        if not isinstance(frame, pl.DataFrame) or "step" not in frame.columns:
            raise ValueError(f"it has no column 'step', only {', '.join(table.column_names) or 'none'}")
        metadata = file.metadata.metadata or {}
        records = metadata.get(_PROVENANCE, b"{}")
        if _SEAL in metadata and metadata[_SEAL] != _seal(frame, records):
            raise ValueError("its columns, number of rows or provenance were changed")
        provenance = json.loads(records)
    except (OSError, ValueError, TypeError, MemoryError, pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = ValueError(_line(error))
        raise TapeError(f"tape: {path} is damaged or truncated ({reason}). Move it away to go on without its rows.") from reason
    return frame, provenance


def _number(path: Path) -> int:
    match = _PART.fullmatch(path.name)
    return int(match[1]) if match else 0


def _free_name(folder: Path, number: int) -> Path:
    """The name of a part that comes after all parts of that number."""
    taken = [int(match[2] or 0) for path in parts(folder) if (match := _PART.fullmatch(path.name)) and int(match[1]) == number]
    return folder / (f"part-{number:08d}-{max(taken) + 1}.parquet" if taken else f"part-{number:08d}.parquet")


def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
