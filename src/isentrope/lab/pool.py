"""A launcher is where runs go: here, processes of this machine, one run each.

A worker is a process of its own, so that one that is killed, or runs out of memory, takes no other with it. It has one thread: two
workers of one thread on two cores finish more runs than one of two threads. It reads its driver's pipe and ends with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isentrope.errors import UserError
from isentrope.lab.work import KEEP

THREADS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a worker."""
POLL = 0.2
"""Seconds between two looks at the workers."""


@dataclass(frozen=True)
class Ended:
    """A run that ended: `reason` is None if it is finished; `killed` if the worker died of a signal, so that another try may do better."""

    key: str
    reason: str | None = None
    killed: bool = False


class Launcher(Protocol):
    """Takes runs and tells when they end. `slots` run at a time; `submit` never waits."""

    slots: int

    def submit(self, key: str, directory: Path, *, keep: bool) -> None: ...
    def wait(self, seconds: float) -> list[Ended]: ...
    def close(self) -> None: ...


class Local:
    """Processes of this machine, `workers` at a time (default: one per core that this process may use).

    Raises UserError for workers below 1.
    """

    def __init__(self, workers: int | None = None):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = cores if workers is None else workers
        if self.slots < 1:
            raise UserError(f"compare: --workers must be at least 1. Got {workers}.")
        self._running: dict[str, tuple[subprocess.Popen, Path]] = {}

    def submit(self, key: str, directory: Path, *, keep: bool) -> None:
        log = log_of(directory)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "isentrope.lab.work", str(directory), *([KEEP] if keep else [])]
        with open(log, "ab") as out:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment(), start_new_session=True)
        self._running[key] = (process, log)

    def wait(self, seconds: float) -> list[Ended]:
        """The runs that have ended, as soon as there is one; none after `seconds`."""
        until = time.monotonic() + seconds
        while True:
            ended = [key for key, (process, _) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= until:
                return [self._ended(key) for key in ended]
            time.sleep(POLL)

    def _ended(self, key: str) -> Ended:
        process, log = self._running.pop(key)
        if process.stdin is not None:
            process.stdin.close()
        code = process.returncode
        if code == 0:
            return Ended(key)
        if code < 0:
            with contextlib.suppress(ValueError):
                return Ended(key, f"its worker was killed by {signal.Signals(-code).name}; if nobody did it, memory ran out", killed=True)
        return Ended(key, last_line(log) or f"its worker ended with code {code}")

    def close(self) -> None:
        """Ends the workers that still run; their runs go on from their checkpoints another time."""
        for process, _ in self._running.values():
            process.kill()
        for process, _ in self._running.values():
            process.communicate()  # closes the pipe and waits
        self._running = {}


def environment() -> dict[str, str]:
    """One thread for everything that might take more."""
    return {**os.environ, **THREADS}


def log_of(directory: Path) -> Path:
    """What a worker says, beside the run's directory."""
    return directory.with_name(f"{directory.name}.log")


def last_line(log: Path) -> str | None:
    """The last line with something on it, at most 500 characters."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return None
    return lines[-1].strip()[:500] if lines else None
