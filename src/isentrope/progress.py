"""Live progress: one line that redraws in a terminal, plain lines where the output is a file or a pipe."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

COLUMNS = (("reward/mean", "reward", "{:.3f}"), ("entropy/mean", "entropy", "{:.3f} nats"), ("length/mean", "length", "{:.1f}"))


class Progress:
    """Told of every update; `plain` forces lines (default: whatever the stream is)."""

    def __init__(self, stream: TextIO | None = None, *, plain: bool | None = None, seconds: float = 5.0):
        self.stream = sys.stdout if stream is None else stream
        self.plain = not self.stream.isatty() if plain is None else plain
        self.seconds = seconds
        self.total, self.done, self.first = 0, 0, None
        self._last_line = -math.inf
        self._bar = self._task = None

    def start(self, total: int) -> None:
        self.total, self._began = total, time.monotonic()
        if not self.plain:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            console = Console(file=self.stream)
            self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=total)

    def step(self, metrics: Mapping[str, float]) -> None:
        """After an update; `metrics` holds its row of the tape."""
        self.done = int(metrics.get("step", self.done + 1))
        self.first = self.done - 1 if self.first is None else self.first
        text = self.describe(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self.seconds or self.done >= self.total:
            self._last_line = now
            self._line(f"step {self.done}/{self.total}  {text}  {self._remaining()}")

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._line(text)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Reward, entropy, length and tokens per second, as far as they are known."""
        parts = [f"{name} {pattern.format(metrics[key])}" for key, name, pattern in COLUMNS if _number(metrics.get(key))]
        if _number(metrics.get("tokens_per_second")):
            parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        return "  ".join(parts)

    def _remaining(self) -> str:
        made = self.done - (self.first or 0)
        if made <= 0:
            return ""
        left = (time.monotonic() - self._began) / made * (self.total - self.done)
        return f"ETA {int(left // 60)}:{int(left % 60):02d}"

    def _line(self, text: str) -> None:
        clean = "".join(character if character.isprintable() else " " for character in text)
        print(clean, file=self.stream, flush=True)


def _number(value: float | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
