"""Which values an intervention's hyper-parameters may take, found by asking the class: what `__post_init__` accepts and what it refuses.

Nothing is declared twice, so nothing can disagree. A range holds with every other parameter at its default; `high` of a window that starts
at `low` therefore begins at the default of `low`.
"""

import math
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Union

_FAR = 10**9
_GRID = (-100, -10, -2, -1, 0, 1, 2, 3, 4, 5, 8, 10, 16, 20, 50, 100, 1000)
_FRACTIONS = (-0.5, 0.1, 0.25, 0.5, 0.75, 0.9, 1.5)


@dataclass(frozen=True)
class Range:
    """What one parameter accepts: a list of values, an interval of numbers, or both (`1 .. 5 or None`).

    low, high: the bounds; None where none is enforced. *_open: the bound itself is refused. infinite: so is an infinity not.
    about: a bound is rounded to six digits. gaps: numbers inside the bounds that are refused.
    conditional: values that are refused while the other parameters have their defaults, and accepted under another setting.
    other: the type, where it is neither numbers nor a list of values.
    """

    values: tuple[Any, ...] = ()
    number: Literal["whole", "real"] | None = None
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    infinite: bool = False
    about: bool = False
    gaps: tuple[float, ...] = ()
    other: str | None = None
    conditional: tuple[Any, ...] = ()

    def text(self) -> str:
        """For people: `[0, 1]`, `whole [1, inf)`, `paper | code`, `(0, 1] or null`."""
        words = [" | ".join(_word(value) for value in self.values if value is not None)]
        words += [self._interval()] if self.number else []
        words += [self.other] if self.other else []
        return " or ".join(filter(None, [*words, "null" if None in self.values else ""])) + (
            f" ({', '.join(map(_word, self.conditional))} only with other settings)" if self.conditional else ""
        )

    def _interval(self) -> str:
        whole = "whole " if self.number == "whole" else ""
        gaps = f" without {', '.join(f'{gap:g}' for gap in self.gaps)}" if self.gaps else ""
        if self.low is None and self.high is None:
            return f"any {whole}number{gaps}"
        end = "]" if self.infinite else ")"
        left = "(-inf" if self.low is None else f"{'(' if self.low_open else '['}{self.low:g}"
        right = f"inf{end}" if self.high is None else f"{self.high:g}{')' if self.high_open else ']'}"
        return f"{whole}{left}, {right}{gaps}{' (about)' if self.about else ''}"

    def data(self) -> dict[str, Any]:
        """For machines."""
        found: dict[str, Any] = {"text": self.text()}
        if self.values:
            found["values"] = list(self.values)
        if self.conditional:
            found["conditional"] = list(self.conditional)
        if self.number:
            found |= {
                "number": self.number, "low": self.low, "high": self.high, "low_open": self.low_open, "high_open": self.high_open,
                "infinite": self.infinite, "about": self.about, "gaps": list(self.gaps),
            }  # fmt: skip
        return found | ({"type": self.other} if self.other else {})


def ranges(kind: type) -> dict[str, Range]:
    """Parameter -> range, for a dataclass whose `__post_init__` refuses with ValueError or TypeError what it cannot take."""
    hints = typing.get_type_hints(kind)
    default = kind()
    numbers = {float(value) for value in vars(default).values() if isinstance(value, int | float) and math.isfinite(value)}
    others = _others(kind, hints)
    return {item.name: _range(_asks(kind, item.name, others), hints[item.name], default.__dict__[item.name], sorted(numbers)) for item in fields(kind)}


def _others(kind: type, hints: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of other parameters under which a refused value is asked again: each named value alone, and those of `embedded()`."""
    found = [{item.name: value} for item in fields(kind) for value in _named(hints[item.name])]
    if hasattr(kind, "embedded"):
        chosen, default = kind().embedded(), kind()
        found.append({item.name: chosen.__dict__[item.name] for item in fields(kind) if chosen.__dict__[item.name] != default.__dict__[item.name]})
    return found


def _named(hint: Any) -> list[Any]:
    """The values that a type names: of its Literals, of bool, and None."""
    parts = _parts(hint)
    values = [value for part in parts if typing.get_origin(part) is Literal for value in typing.get_args(part)]
    return values + ([True, False] if bool in parts else []) + ([None] if type(None) in parts else [])


def _parts(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (Union, types.UnionType) else [hint]


def _asks(kind: type, name: str, others: Sequence[Mapping[str, Any]]) -> "Asked":
    def accepts(value: Any, **given: Any) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                kind(**{**given, name: value})
            except (ValueError, TypeError, ArithmeticError):
                return False
        return True

    return Asked(accepts, lambda value: any(accepts(value, **given) for given in others))


@dataclass(frozen=True)
class Asked:
    """Whether one parameter may have a value: while the others have their defaults, and under some other setting."""

    accepts: Callable[[Any], bool]
    sometimes: Callable[[Any], bool]


def _range(asked: Asked, hint: Any, default: Any, known: Sequence[float]) -> Range:
    accepts, parts, values = asked.accepts, _parts(hint), _named(hint)
    allowed = tuple(value for value in values if accepts(value))
    refused = tuple(value for value in values if value not in allowed and asked.sometimes(value))
    if float in parts or int in parts:
        return _numbers(accepts, "real" if float in parts else "whole", default, known, Range(allowed, conditional=refused))
    other = [part for part in parts if typing.get_origin(part) is not Literal and part not in (bool, type(None))]
    names = [part.__name__ if isinstance(part, type) and not typing.get_args(part) else str(part).replace("collections.abc.", "") for part in other]
    return Range(allowed, other=" or ".join(names) or None, conditional=refused)


def _numbers(accepts: Callable[[Any], bool], number: Literal["whole", "real"], default: Any, known: Sequence[float], found: Range) -> Range:
    """The interval around the default (or the first accepted number) in which everything that was asked is accepted."""
    ask = (lambda value: accepts(int(value))) if number == "whole" else (lambda value: accepts(float(value)))
    grid = sorted({float(value) for value in (*_GRID, *(() if number == "whole" else _FRACTIONS))} | {v for v in known if number == "real" or v == int(v)})
    is_number = isinstance(default, int | float) and not isinstance(default, bool) and math.isfinite(default)
    start = float(default) if is_number else next((value for value in grid if ask(value)), None)
    if start is None:
        return found
    low, low_open, rough_low = _bound(ask, start, -1, grid, number)
    high, high_open, rough_high = _bound(ask, start, 1, grid, number)
    inside = [v for v in grid if (low is None or v > low) and (high is None or v < high)]
    infinite = number == "real" and ((high is None and ask(math.inf)) or (low is None and ask(-math.inf)))
    gaps = tuple(v for v in inside if not ask(v))
    return replace(
        found, number=number, low=low, high=high, low_open=low_open, high_open=high_open, infinite=infinite, about=rough_low or rough_high, gaps=gaps
    )


def _bound(ask: Callable[[float], bool], start: float, sign: int, grid: Sequence[float], number: str) -> tuple[float | None, bool, bool]:
    """(bound, whether it is open, whether it is rounded) on one side of an accepted number; None where nothing is refused."""
    if ask(sign * _FAR):
        return None, False, False
    for value in sorted((v for v in grid if sign * (v - start) >= 0), key=lambda v: sign * v):
        step = 1.0 if number == "whole" else 1e-7 * max(1.0, abs(value))
        if ask(value) and not ask(value + sign * step):
            return value, False, False
        if number == "real" and not ask(value) and ask(value - sign * step):
            return value, True, False
    inner, outer = start, float(sign * _FAR)
    for _ in range(80):
        middle = (inner + outer) / 2 if number == "real" else float((int(inner) + int(outer)) // 2)
        if middle in (inner, outer):
            break
        inner, outer = (middle, outer) if ask(middle) else (inner, middle)
    if number == "whole":
        return inner, False, False
    rounded = float(f"{inner:.6g}")
    return rounded, not ask(rounded), True


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
