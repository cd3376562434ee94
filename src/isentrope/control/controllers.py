"""Controllers: a coefficient that follows a measured quantity, so that it meets a target or stays in a band.

A controller is a frozen dataclass; what it remembers is an explicit flat state of plain floats. `init()` is the state before the first
update, `applied(state)` the coefficient of the coming update, `update(state, measured)` the state after an update. `measured` is what the
coefficient raises (entropy, in nats); a measurement that is NaN changes nothing. TRL's adaptive coefficient is
`coefficients.AdaptiveEntropyCoef`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from isentrope.control.blocks import check_at_least

Memory = Mapping[str, float]
"""Flat; every value a plain float."""


@runtime_checkable
class Controller(Protocol):
    """What an intervention with a coefficient may be steered by; its state is its own."""

    def init(self) -> Mapping[str, Any]: ...
    def applied(self, state: Any) -> float: ...
    def update(self, state: Any, measured: float, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class PI:
    """Proportional-integral: coef = initial + gain_p e + gain_i (sum of e), held in [low, high], with e = target - measured.

    dead_zone: errors up to it count as 0 and larger ones are reduced by it, so nothing jumps at its edge. Anti-windup: while the
    coefficient stands at a limit, an error that would push it further is not added to the sum, so it leaves the limit at the first
    error of the other sign. An integral gain of 0 is a proportional controller.
    """

    target: float
    gain_p: float = 0.01
    gain_i: float = 0.001
    dead_zone: float = 0.0
    low: float = 0.0
    high: float = 1.0
    initial: float = 0.0

    def __post_init__(self):
        check_at_least("PI", "gain_p", self.gain_p, 0, "Gains are of the error target - measured.")
        check_at_least("PI", "gain_i", self.gain_i, 0, "Gains are of the error target - measured.")
        check_at_least("PI", "dead_zone", self.dead_zone, 0, "0 reacts to every error.")
        _check_range("PI", self.low, self.high)

    def init(self) -> Memory:
        return {"coef": min(max(self.initial, self.low), self.high), "integral": 0.0}

    def applied(self, state: Memory) -> float:
        return state["coef"]

    def update(self, state: Memory, measured: float) -> Memory:
        if measured != measured:
            return state
        error = self.error(measured)
        integral = state["integral"] + error
        wanted = self._wanted(error, integral)
        if (wanted > self.high and error > 0) or (wanted < self.low and error < 0):
            integral = state["integral"]
            wanted = self._wanted(error, integral)
        return {"coef": min(max(wanted, self.low), self.high), "integral": integral}

    def error(self, measured: float) -> float:
        """target - measured, less the dead zone."""
        error = self.target - measured
        beyond = max(abs(error) - self.dead_zone, 0.0)
        return beyond if error > 0 else -beyond

    def _wanted(self, error: float, integral: float) -> float:
        return self.initial + self.gain_p * error + self.gain_i * integral


@dataclass(frozen=True)
class BandController:
    """Up by `delta` while the measured quantity is below `floor`, down by it above `ceiling`, unmoved between; held in [low, high]."""

    floor: float
    ceiling: float
    delta: float = 0.005
    low: float = 0.0
    high: float = 1.0
    initial: float = 0.0

    def __post_init__(self):
        check_at_least("BandController", "ceiling", self.ceiling, self.floor, f"The band is floor..ceiling; floor is {self.floor}.")
        check_at_least("BandController", "delta", self.delta, 0, "0 never moves.")
        _check_range("BandController", self.low, self.high)

    def init(self) -> Memory:
        return {"coef": min(max(self.initial, self.low), self.high)}

    def applied(self, state: Memory) -> float:
        return state["coef"]

    def update(self, state: Memory, measured: float) -> Memory:
        step = self.delta * ((measured < self.floor) - (measured > self.ceiling))
        return {"coef": min(max(state["coef"] + step, self.low), self.high)}


def _check_range(who: str, low: float, high: float) -> None:
    check_at_least(who, "high", high, low, f"The coefficient stays in low..high; low is {low}.")
