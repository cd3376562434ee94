"""A guard around every reward function: what it raises, returns wrongly or never returns is counted, and the run goes on.

TRL's contract is kept: called with keyword lists `prompts, completions, ...`, a list of floats comes back, None where a row cannot
be scored. The time limit uses the interval timer of Unix on the main thread. It stops Python code, also code that catches
`Exception` or sleeps. It cannot stop one long call into C that never returns to the interpreter (a catastrophic regular expression,
a huge integer power): the limit then acts as soon as that call returns. Off the main thread there is no limit.
"""

import contextlib
import importlib
import inspect
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from isentrope.errors import UserError

Reward = Callable[..., list[float | None]]
LARGEST = 3.4028234663852886e38  # of float32, in which TRL holds rewards
FAULTS = ("raised", "timeout", "length", "nan", "none", "type")


class RewardError(UserError, RuntimeError):
    """A reward function fails again and again; the message names it and the row."""


class OutOfTime(BaseException):
    """A time limit rings. Not an Exception, so that a verifier's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise inside the block after `seconds` of wall time; None, or any thread but the main one, is no limit."""
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class _Fault:
    kind: str
    cause: str


class GuardedReward:
    """A reward function that never ends the run by accident.

    A call that raises or runs out of time is repeated row by row, so that only the rows at fault stay unscored: together the rows
    have `timeout` seconds again, and each at most half of what is left. (A function that compares the rows of a batch sees single
    rows there; let it handle its own errors.)

    `counts` holds the number of faulty rows per kind (`FAULTS`); a faulty row gets None. After `patience` calls in a row of which
    no row could be scored, RewardError names the function, the row and the last cause.
    """

    def __init__(self, function: Reward, *, name: str | None = None, timeout: float | None = 10.0, patience: int = 5):
        if inspect.iscoroutinefunction(function):
            raise UserError(f"reward {_name(function)}: async functions are not carried. Write a plain function that returns a list.")
        self.function, self.timeout, self.patience = function, timeout, patience
        self.__name__ = name or _name(function)
        self.counts: Counter[str] = Counter()
        self.dead_calls = 0
        self.last_fault = ""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        rewards = self._scored(prompts, completions, columns)
        if rewards and all(reward is None for reward in rewards):
            self.dead_calls += 1
        else:
            self.dead_calls = 0
        if self.dead_calls >= self.patience:
            raise RewardError(
                f"reward {self.__name__}: no row could be scored in {self.dead_calls} calls in a row. Last cause: {self.last_fault}. "
                f"First row of the last call: prompt {_short(prompts[0])}, completion {_short(completions[0])}. "
                f"Faults so far: {dict(self.counts)}. Call the function on this row by hand, or raise task.timeout if it is slow; then resume the run."
            )
        return rewards

    def _scored(self, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
        rows = len(completions)
        values = self._called(prompts, completions, columns, self.timeout)
        if not isinstance(values, _Fault):
            return [self._one(value) for value in values]
        if rows == 1 or values.kind not in ("raised", "timeout"):
            return [self._fault(values.kind, values.cause, rows)] * rows
        return self._row_by_row(prompts, completions, columns)

    def _row_by_row(self, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
        rows, found = len(completions), []
        end = None if self.timeout is None else time.monotonic() + self.timeout
        for row in range(rows):
            own = {key: [value[row]] if isinstance(value, list | tuple) and len(value) == rows else value for key, value in columns.items()}
            left = None if end is None else max(1e-3, (end - time.monotonic()) / 2)
            values = self._called([prompts[row]], [completions[row]], own, left)
            found.append(self._fault(values.kind, values.cause) if isinstance(values, _Fault) else self._one(values[0]))
        return found

    def _called(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any], seconds: float | None) -> list[Any] | _Fault:
        """As many values as rows, or why not."""
        try:
            with time_limit(seconds):
                values = self.function(prompts=prompts, completions=completions, **columns)
        except OutOfTime:
            return _Fault("timeout", f"it did not end within task.timeout, {self.timeout:g} s")
        except (Exception, SystemExit) as error:  # whatever a user's function raises is data here
            return _Fault("raised", f"it raised {type(error).__name__}: {error}")
        try:
            values = list(values)
        except TypeError:
            return _Fault("type", f"it returned {type(values).__name__}, not a list")
        if len(values) != len(completions):
            return _Fault("length", f"it returned {len(values)} values for {len(completions)} rows")
        return values

    def _one(self, value: Any) -> float | None:
        if value is None:
            return self._fault("none", "it returned None")
        if hasattr(value, "item"):  # a tensor or numpy scalar
            with contextlib.suppress(Exception):
                value = value.item()
        if not isinstance(value, Real):
            return self._fault("type", f"it returned {type(value).__name__} {_short(value)}, not a number")
        if not math.isfinite(value) or abs(value) > LARGEST:
            return self._fault("nan", f"it returned {value}, no number that float32 holds")
        return float(value)

    def _fault(self, kind: str, cause: str, rows: int = 1) -> None:
        self.counts[kind] += rows
        self.last_fault = cause


def import_reward(path: str) -> Reward:
    """The function behind `pkg.mod:function`; UserError says what was not found and how to write it."""
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise UserError(f"task.reward must be an import path 'pkg.mod:function'. Got {path!r}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"task.reward {path!r}: {error}. Put its folder on PYTHONPATH, or install the package.") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise UserError(f"task.reward {path!r}: importing {module_name} raised {type(error).__name__}: {error}. Mend the module.") from error
    function = vars(module).get(name)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"task.reward {path!r}: {module_name} has no function {name!r}. It has: {', '.join(known) or 'none'}.")
    return function


def _name(function: Any) -> str:
    return vars(function).get("__name__") or getattr(function, "__name__", type(function).__name__)


def _short(value: Any, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"
