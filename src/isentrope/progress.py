"""Live progress: one line that redraws in a terminal, plain lines where the output is a file or a pipe."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

COLUMNS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("entropy/mean", "entropy", "{:.3f} nats"),
    ("length/mean", "length", "{:.1f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("pass@1", "pass@1", "{:.3f}"),
)
"""Column of the tape's step row, its name in the line, its format. `pass@1` keeps its last value between evaluations."""


class Progress:
    """Told of every update; `plain` forces lines (default: whatever the stream is), at most one in `seconds`."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool | None = None, seconds: float = 5.0):
        self.stream = sys.stdout if stream is None else stream
        self.plain = not self.stream.isatty() if plain is None else plain
        self.seconds = seconds
        self.total, self.done = 0, 0
        self._first: int | None = None  # updates that were done before the first one seen here: a resumed run's
        self._began = time.monotonic()
        self._last_line = -math.inf
        self._kept: dict[str, float] = {}
        self._bar = self._task = None

    def start(self, total: int) -> None:
        """Before the first update; `total` updates are planned, none known if it is not positive."""
        self.total, self._began = total, time.monotonic()
        if not self.plain:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            console = Console(file=self.stream)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=total if total > 0 else None)

    def step(self, metrics: Mapping[str, float]) -> None:
        """After an update; `metrics` holds its row of the tape, and `pass@1` when there is a new one."""
        self.done = int(metrics.get("step", self.done + 1))
        self._first = self.done - 1 if self._first is None else self._first
        if _number(metrics.get("pass@1")):
            self._kept["pass@1"] = metrics["pass@1"]
        text = self.describe({**metrics, **self._kept})
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self.seconds or self.done == self.total:
            self._last_line = now
            self._line("  ".join(part for part in (f"step {self._place()}", text, self._remaining()) if part))

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(_printable(text), markup=False, highlight=False)
        else:
            self._line(text)

    def stop(self) -> None:
        """After the last update; the terminal is as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def describe(self, metrics: Mapping[str, float]) -> str:
        """What is known of COLUMNS; NaN and absent values are left out."""
        return "  ".join(f"{name} {pattern.format(metrics[key])}" for key, name, pattern in COLUMNS if _number(metrics.get(key)))

    def _place(self) -> str:
        return f"{self.done}/{self.total}" if self.total > 0 else str(self.done)

    def _remaining(self) -> str:
        made = self.done - (self._first or 0)
        if made <= 0 or self.total <= 0:
            return ""
        left = max(0.0, (time.monotonic() - self._began) / made * (self.total - self.done))
        return f"ETA {int(left // 60)}:{int(left % 60):02d}"

    def _line(self, text: str) -> None:
        print(_printable(text), file=self.stream, flush=True)


def _printable(text: str) -> str:
    """Without control characters: what a model wrote must not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _number(value: float | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
