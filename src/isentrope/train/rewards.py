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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

from isentrope.errors import UserError

Reward = Callable[..., list[float | None]]
FAULTS = ("raised", "timeout", "length", "nan", "none", "type")


class RewardError(UserError, RuntimeError):
    """A reward function fails again and again; the message names it and the row."""


class _OutOfTime(BaseException):
    """Not an Exception, so that a verifier's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise inside the block after `seconds` of wall time; None, or any thread but the main one, is no limit."""
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


class GuardedReward:
    """A reward function that never ends the run by accident.

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
                f"Faults so far: {dict(self.counts)}. Call the function on this row by hand, or raise task.timeout if it is slow."
            )
        return rewards

    def _scored(self, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
        rows = len(completions)
        try:
            with time_limit(self.timeout):
                values = self.function(prompts=prompts, completions=completions, **columns)
        except _OutOfTime:
            return self._all("timeout", f"it ran longer than {self.timeout} s", rows)
        except Exception as error:  # whatever a user's function raises is data here
            return self._all("raised", f"it raised {type(error).__name__}: {error}", rows)
        try:
            values = list(values)
        except TypeError:
            return self._all("type", f"it returned {type(values).__name__}, not a list", rows)
        if len(values) != rows:
            return self._all("length", f"it returned {len(values)} values for {rows} rows", rows)
        return [self._one(value) for value in values]

    def _one(self, value: Any) -> float | None:
        if value is None:
            return self._fault("none", "it returned None")
        if hasattr(value, "item"):  # a tensor or numpy scalar
            with contextlib.suppress(Exception):
                value = value.item()
        if not isinstance(value, Real):
            return self._fault("type", f"it returned {type(value).__name__} {_short(value)}, not a number")
        if not math.isfinite(value):
            return self._fault("nan", f"it returned {value}")
        return float(value)

    def _fault(self, kind: str, cause: str, rows: int = 1) -> None:
        self.counts[kind] += rows
        self.last_fault = cause

    def _all(self, kind: str, cause: str, rows: int) -> list[float | None]:
        self._fault(kind, cause, rows)
        return [None] * rows


def import_reward(path: str) -> Reward:
    """The function behind `pkg.mod:function`; UserError says what was not found and how to write it."""
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise UserError(f"task.reward must be an import path 'pkg.mod:function'. Got {path!r}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"task.reward {path!r}: {error}. Put its folder on PYTHONPATH, or install the package.") from error
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
