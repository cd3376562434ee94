"""Runs a plan to its end, or goes on with one: `compare(plan, directory, launcher)`.

    DIR/compare.json                 the plan
    DIR/pilot/ARM, DIR/tune/ARM/...  runs that only set learning rates
    DIR/ledger/ARM/                  the first seed's run again, with the entropy ledger and without evaluations
    DIR/runs/ARM/seed-S/             one ordinary run directory per arm and seed; seed-S.asked.yaml and seed-S.log beside it
    DIR/results.json                 what was found so far
    DIR/compare.html                 the page, fresh after every run

A run is finished when its summary.json stands; then nothing of it is computed again. All else is done again by a resumed driver: a run
with a checkpoint goes on from it, one without begins anew, one that failed is tried once more.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from isentrope.control.registry import build
from isentrope.errors import DiskError
from isentrope.files import write_text_atomic
from isentrope.lab import outcomes
from isentrope.lab import plan as plans
from isentrope.lab.outcomes import Outcome
from isentrope.lab.plan import BASELINE, SWEEP, Plan, Task, run_key
from isentrope.lab.pool import Ended, Launcher
from isentrope.lab.results import Results, summarise
from isentrope.lab.work import SUMMARY, asked_file

ROOM = 200 * 2**20
"""Bytes that must be free before another run begins: its checkpoints, its tape, the page."""
TRIES = 3
"""How often a run is started whose worker is killed."""
Tell = Callable[[str], None]
Page = Callable[[Results, Path], Path]


class Comparison:
    """A plan at work in a directory. What is known lies on the disk; this holds what was read of it."""

    def __init__(self, plan: Plan, directory: Path):
        self.plan, self.directory = plan, directory
        self.tasks = {task.key: task for task in plan.tasks()}
        self.failed: dict[str, str] = {}
        self._outcomes: dict[str, Outcome] = {}
        for key in self.tasks:
            self.note(key)

    def note(self, key: str) -> bool:
        """Whether the run is finished; it is then read, once. One whose tape cannot be read is a failed one."""
        if key not in self._outcomes and (self.directory / key / SUMMARY).is_file():
            try:
                self._outcomes[key] = outcomes.read(self.directory / key)
            except Exception as error:
                self.failed[key] = f"it is finished, but cannot be read: {error}"
            if self.done(key) and self.tasks[key].kind == "pilot" and not self._stride(key) > 0:
                del self._outcomes[key]
                self.failed[key] = "no update of the pilot moved the weights, so no learning rate can match the baseline's step"
        return key in self._outcomes

    def done(self, key: str) -> bool:
        return key in self._outcomes

    def outcome(self, arm: str, seed: int) -> Outcome | None:
        return self._outcomes.get(run_key(self.plan.arm(arm), seed))

    def waiting(self, running: set[str]) -> tuple[list[Task], list[Task]]:
        """(tasks that can begin, tasks that wait for others), in the plan's order. What waits for a failed run fails with it."""
        ready, blocked = [], []
        for task in self.tasks.values():
            if task.key in running or self.done(task.key) or task.key in self.failed:
                continue
            lost = [key for key in task.after if key in self.failed]
            if lost:
                self.failed[task.key] = f"it needs {lost[0]}, which failed: {self.failed[lost[0]]}"
            else:
                (ready if all(map(self.done, task.after)) else blocked).append(task)
        return ready, blocked

    def ask(self, task: Task) -> Path:
        """Writes the configuration of the run beside where it will lie; returns its directory."""
        directory = self.directory / task.key
        config = plans.configuration(self.plan, task, directory, rate=self.rate(task), records=self._records(task))
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_text_atomic(asked_file(directory), text)
        return directory

    def rate(self, task: Task) -> float:
        """Times the base learning rate."""
        return self.rates().get(task.arm, 1.0) if task.kind in ("run", "ledger") else task.rate

    def rates(self) -> dict[str, float]:
        """Arm -> times the base learning rate, of the arms whose tuning is done."""
        if self.plan.match == "step":
            strides = {task.arm: self._stride(key) for key, task in self.tasks.items() if task.kind == "pilot" and self.done(key)}
            base = strides.get(BASELINE)
            return {} if base is None else {arm: base / stride for arm, stride in strides.items()}
        return {arm.name: best for arm in self.plan.arms if (best := self._best_rate(arm.name)) is not None}

    def _stride(self, key: str) -> float:
        """Mean step per unit of learning rate over the second half of a pilot."""
        return self._outcomes[key].stride(skip=min(plans.PILOT, self.plan.steps) // 2)

    def _best_rate(self, arm: str) -> float | None:
        found: dict[float, list[float]] = {}
        for key, task in self.tasks.items():
            if task.kind == "tune" and task.arm == arm and self.done(key):
                found.setdefault(task.rate, []).append(self._outcomes[key].late("pass@1"))
        if not found:
            return None
        return max(sorted(found, key=SWEEP.index), key=lambda rate: sum(found[rate]) / len(found[rate]))

    def _records(self, task: Task) -> Mapping[int, Mapping[str, list[float | None]]]:
        """For every yoked link what its controller remembered in the run that it replays; nothing where that has no numbers."""
        arm = self.plan.arm(task.arm)
        if not arm.yoked:
            return {}
        source, keys = task.after[-1], build(self.plan.arm(str(arm.of)).control).keys
        found = {at: outcomes.states(self.directory / source, keys[at]) for at in arm.yoked}
        return {at: record for at, record in found.items() if record}

    def results(self) -> Results:
        runs = {arm.name: {seed: self.outcome(arm.name, seed) for seed in self.plan.seeds} for arm in self.plan.arms}
        kept = {arm.name: self._outcomes[key] for arm in self.plan.arms if (key := plans.ledger_key(arm)) in self._outcomes}
        return summarise(self.plan, runs, self.rates(), self.failed, kept)


def compare(
    plan: Plan, directory: Path, launcher: Launcher, *, write: Page, keep: bool = False, tell: Tell = print, first_guess: float | None = None
) -> Results:
    """Runs what is not finished, writes the page after every run, and returns what was found.

    write: writes results.json and the page. first_guess: seconds of one run, for the estimate before one has ended. A run that fails
    is listed with its reason and the others go on. Raises DiskError when the disk is full, after the running ones have ended.
    """
    state, clock = Comparison(plan, directory), _Clock(launcher.slots, first_guess)
    running: dict[str, int] = {}
    tries: dict[str, int] = {}
    full = ""
    left = len([key for key in state.tasks if not state.done(key)])
    tell(f"{len(state.tasks) - left} of {len(state.tasks)} runs are finished. {clock.left(state)}")
    _show(state, write, tell)
    try:
        while True:
            ready, _ = state.waiting(set(running))
            if not ready and not running:
                break
            while ready and len(running) < launcher.slots and not full:
                full = _short_of_room(directory)
                task = ready.pop(0)
                if not full:
                    launcher.submit(task.key, state.ask(task), keep=keep)
                    running[task.key], tries[task.key] = 1, tries.get(task.key, 0) + 1
                    clock.begin(task.key)
            if full and not running:
                raise DiskError(f"compare: {full} Make room and go on with: isentrope compare --resume {directory}")
            for ended in launcher.wait(1.0):
                del running[ended.key]
                clock.end(ended.key, state)
                full = full or _full(ended)
                if not full:
                    _conclude(state, ended, tries, tell)
                tell(f"{_said(state, ended)} {clock.left(state)}")
                _show(state, write, tell)
    finally:
        launcher.close()
    results = state.results()
    write(results, directory)
    return results


def _show(state: Comparison, write: Page, tell: Tell) -> None:
    """The page of what there is. Hours of runs do not stop for a page that cannot be written now; the last one, at the end, must be."""
    try:
        write(state.results(), state.directory)
    except Exception as error:
        tell(f"warning: the page could not be written: {type(error).__name__}: {error}. The runs go on.")


def _conclude(state: Comparison, ended: Ended, tries: Mapping[str, int], tell: Tell) -> None:
    if ended.killed and tries[ended.key] < TRIES:
        tell(f"{ended.key}: {ended.reason}. It goes on from its last checkpoint.")
    elif ended.reason is not None:
        state.failed[ended.key] = ended.reason
    elif not state.note(ended.key):
        state.failed.setdefault(ended.key, "its worker ended without an error and left no summary.json")


def _said(state: Comparison, ended: Ended) -> str:
    done = sum(map(state.done, state.tasks))
    what = "finished" if state.done(ended.key) else f"failed: {state.failed[ended.key]}" if ended.key in state.failed else "to be tried again"
    return f"[{done}/{len(state.tasks)}] {ended.key}: {what}."


def _short_of_room(directory: Path) -> str:
    free = shutil.disk_usage(directory).free
    return f"{free / 2**20:.0f} MiB are free where {directory} lies, and a run may need {ROOM / 2**20:.0f}." if free < ROOM else ""


def _full(ended: Ended) -> str:
    reason = ended.reason or ""
    return f"{ended.key}: {reason}" if any(word in reason for word in ("No space left", "no space left", "Disk quota exceeded")) else ""


class _Clock:
    """How long the rest will take: the mean time of the runs that ended here, by updates, over the number of workers."""

    def __init__(self, slots: int, first_guess: float | None):
        self.slots, self.guess = slots, first_guess
        self._began: dict[str, float] = {}
        self._seconds, self._updates = 0.0, 0.0

    def begin(self, key: str) -> None:
        self._began[key] = time.monotonic()

    def end(self, key: str, state: Comparison) -> None:
        if state.note(key):
            self._seconds += time.monotonic() - self._began[key]
            self._updates += _updates(state, key)

    def left(self, state: Comparison) -> str:
        """A sentence on the time to the end."""
        keys = [key for key in state.tasks if not state.done(key) and key not in state.failed]
        if not keys:
            return "Nothing is left to run."
        updates = sum(_updates(state, key) for key in keys)
        if self._updates:
            return f"{len(keys)} runs are left, about {told(updates * self._seconds / self._updates / self.slots)} with {self.slots} at a time."
        if self.guess is None:
            return f"{len(keys)} runs are left, {self.slots} at a time."
        return (
            f"{len(keys)} runs are left, at most about {told(updates * self.guess / state.plan.steps / self.slots)} with {self.slots} at a time (by a probe)."
        )


def _updates(state: Comparison, key: str) -> float:
    """Updates of a run, and four for its start."""
    task = state.tasks[key]
    return (min(plans.PILOT, state.plan.steps) if task.kind == "pilot" else state.plan.steps) + 4.0


def told(seconds: float) -> str:
    """A duration for people.

    >>> told(40), told(5400), told(9000)
    ('40 s', '90 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds <= 5400 else f"{seconds / 3600:.1f} h"
