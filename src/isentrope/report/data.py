"""What a run directory holds, read so that a report can be made of any of it: finished, under way, young or damaged.

A file that is missing or unreadable leaves an empty frame or mapping, and a sentence in `problems`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isentrope.errors import UserError
from isentrope.provenance import Provenance, ProvenanceError
from isentrope.tape import Tape, TapeError

FRAMES = ("steps", "tokens", "samples", "turns", "evals", "events", "answers", "ledger", "ledger_parts", "ledger_tokens")
TEXTS = frozenset(
    {"text", "prompt", "completion", "answer", "answers", "origin", "metric", "level", "kind", "message", "by", "before", "action", "reply", "ending"}
)
WHOLE = frozenset({"step", "row_id", "group", "position", "token_id", "prompts", "samples", "turn"})
FEW = 5
"""Updates below which the report compares no start with an end."""
NOT_RECORDED = "provenance not recorded"


UNLABELLED = frozenset({"empo"})
"""Interventions that pay responses without a label."""


@dataclass(frozen=True)
class Run:
    """A run directory in memory. Frames are sorted by step and have the columns that the run wrote, which may be none."""

    path: Path
    record: Mapping[str, Any]  # run.json
    summary: Mapping[str, Any]  # summary.json, empty while the run is under way
    config: str  # config.yaml as it stands
    steps: pl.DataFrame
    tokens: pl.DataFrame
    samples: pl.DataFrame
    turns: pl.DataFrame
    evals: pl.DataFrame
    events: pl.DataFrame
    answers: pl.DataFrame
    ledger: pl.DataFrame
    ledger_parts: pl.DataFrame
    ledger_tokens: pl.DataFrame
    problems: tuple[str, ...] = ()
    lean: bool = False  # show little of each kind: for the rare run whose texts would make the page too large

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def last_step(self) -> int:
        """The last update that the tape knows; 0 before the first."""
        return max((int(frame["step"].to_numpy().max()) for frame in (self.steps, self.tokens) if len(frame)), default=0)

    @cached_property
    def links(self) -> tuple[str, ...]:
        """Names of the chain's interventions, in chain order; those that only the tape knows come last."""
        control = self.record.get("control")
        named = [str(item.get("name", "?")) for item in control if isinstance(item, Mapping)] if isinstance(control, list) else []
        taped = [name.removeprefix(stem) for stem in ("touch/", "removed/") for name in self.steps.columns if name.startswith(stem)]
        return tuple(dict.fromkeys(named + taped))

    @property
    def attached(self) -> bool:
        """Whether somebody's own script trained it (`isentrope.attach`), and `isentrope train` did not."""
        return self.record.get("attached") is True

    @property
    def unlabelled(self) -> bool:
        """Whether a link paid responses for agreeing, without knowing what is right."""
        return any(name.partition("#")[0] in UNLABELLED for name in self.links)

    def provenance(self, name: str) -> str:
        """The provenance of a tape column (`steps.entropy/mean`) in words, or `NOT_RECORDED`."""
        records = self.record.get("provenance")
        records = records if isinstance(records, Mapping) else {}
        found = records.get(name, records.get(name.partition(".")[2]))
        if not isinstance(found, Mapping):
            return NOT_RECORDED
        try:
            return Provenance.from_dict(found).describe()
        except (ProvenanceError, TypeError, ValueError, KeyError):
            return ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)


def read(run_dir: str | Path) -> Run:
    """The run in `run_dir`. Raises UserError if there is no such directory or no trace of a run in it."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"report: there is no directory {path}. Give the directory of a run, as in `isentrope report runs/demo`.")
    if not (path / "run.json").is_file() and not (path / "tape").is_dir():
        raise UserError(
            f"report: {path} is not the directory of a run: it has neither run.json nor tape/. Give the directory that `isentrope train --out` wrote."
        )
    problems: list[str] = []
    frames, record = _frames(path, problems), _json(path / "run.json", problems)
    return Run(
        path=path, record=record, summary=_json(path / "summary.json", problems, expected=False),
        config=_text(path / "config.yaml", problems, expected=not record.get("attached")),  # somebody's own script has none
        steps=frames["steps"], tokens=frames["tokens"], samples=frames["samples"], turns=frames["turns"], evals=frames["evals"], events=frames["events"],
        answers=frames["answers"], ledger=frames["ledger"], ledger_parts=frames["ledger_parts"], ledger_tokens=frames["ledger_tokens"],
        problems=tuple(problems),
    )  # fmt: skip


def _frames(path: Path, problems: list[str]) -> dict[str, pl.DataFrame]:
    return {name: _frame(path, name, problems) for name in FRAMES}


def _frame(path: Path, name: str, problems: list[str]) -> pl.DataFrame:
    """One table; without its damaged parts where there are some, empty where it cannot be read at all."""
    empty = pl.DataFrame({"step": pl.Series([], dtype=pl.Int64)})
    try:
        return _steps_known(Tape.read(path).table(name))
    except TapeError as error:
        problems.append(f"The table {name} is read without its damaged parts: {error}")
    except pl.exceptions.PolarsError as error:
        problems.append(f"The table {name} could not be read: {error}")
        return empty
    try:
        return _steps_known(Tape.read(path, skip_damaged=True).table(name))
    except (TapeError, pl.exceptions.PolarsError) as error:
        problems.append(f"The table {name} could not be read: {error}")
        return empty


def _steps_known(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that say which update they belong to, every column in its type; what does not fit is null."""
    return frame.with_columns(_typed(frame, name) for name in frame.columns).drop_nulls("step")


def _typed(frame: pl.DataFrame, name: str) -> pl.Expr:
    dtype = frame.schema[name]
    if name in TEXTS:
        return pl.col(name).cast(pl.String, strict=False) if not dtype.is_nested() else pl.lit(None, dtype=pl.String).alias(name)
    if dtype.is_nested() or dtype in (pl.Object, pl.Binary):
        return pl.lit(None, dtype=pl.Float64).alias(name)
    return pl.col(name).cast(pl.Int64 if name in WHOLE else pl.Float64, strict=False)


def _json(path: Path, problems: list[str], expected: bool = True) -> Mapping[str, Any]:
    if not path.is_file():
        if expected:
            problems.append(f"{path.name} is missing.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no object.")
        return {}
    return value


def _text(path: Path, problems: list[str], expected: bool = True) -> str:
    try:
        return path.read_bytes().decode("utf-8", errors="backslashreplace")
    except OSError:
        if expected:
            problems.append(f"{path.name} is missing.")
        return ""


# --- columns


def values(frame: pl.DataFrame, name: str) -> np.ndarray:
    """A numeric column as float64; NaN for what is missing or infinite, and all of it if the frame has no such column."""
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    found = frame[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(found), found, np.nan)


def texts(frame: pl.DataFrame, name: str) -> list[str]:
    """A text column as strings, empty where missing."""
    if name not in frame.columns:
        return [""] * len(frame)
    return ["" if item is None else str(item) for item in frame[name].to_list()]


def has(frame: pl.DataFrame, *names: str) -> bool:
    """Whether every column exists and holds at least one number."""
    return len(frame) > 0 and all(np.isfinite(values(frame, name)).any() for name in names)


def nan_mean(value: np.ndarray) -> float | None:
    """The mean of what is a number, or None."""
    kept = value[np.isfinite(value)]
    return float(kept.mean()) if kept.size else None


def edges(value: np.ndarray) -> tuple[float, float] | None:
    """Means of the first and the last twentieth of a series (at least one row each), as in summary.json; None if it is empty."""
    kept = value[np.isfinite(value)]
    if not kept.size:
        return None
    count = max(1, len(kept) // 20)
    return float(kept[:count].mean()), float(kept[-count:].mean())


def generated_tokens(run: Run) -> float | None:
    """Tokens that the run generated: a generation's tokens stand in the row of every update that uses it, and count once."""
    effective = run.record.get("effective")
    options = effective if isinstance(effective, Mapping) else {}
    generation, passes, accumulation = (
        value if isinstance(value, int) and value > 0 else 1
        for value in (options.get(name) for name in ("steps_per_generation", "num_iterations", "gradient_accumulation_steps"))
    )
    updates = max(1, generation * passes // accumulation)
    tokens = values(run.steps.filter((pl.col("step") - 1) % updates == 0), "tokens")
    return float(np.nansum(tokens)) if np.isfinite(tokens).any() else None


# --- phases of a run


@dataclass(frozen=True)
class Phase:
    """A stretch of a run: `first` to `last` update, both in it."""

    name: str
    first: int
    last: int

    @property
    def title(self) -> str:
        return f"update {self.first}" if self.first == self.last else f"updates {self.first}–{self.last}"


def phases(steps: Sequence[int]) -> tuple[Phase, ...]:
    """Early, middle and late: the first, the middle and the last fifth of the updates that have rows; fewer while there are few."""
    known = sorted(set(steps))
    if not known:
        return ()
    if len(known) == 1:
        return (Phase("so far", known[0], known[0]),)
    size = max(1, len(known) // 5)
    early, late = Phase("early", known[0], known[size - 1]), Phase("late", known[-size], known[-1])
    if len(known) < 3:
        return early, late
    start = (len(known) - size) // 2
    return early, Phase("middle", known[start], known[start + size - 1]), late


def within(frame: pl.DataFrame, phase: Phase) -> pl.DataFrame:
    """The rows of a phase."""
    return frame.filter(pl.col("step").is_between(phase.first, phase.last))
