"""Numbers as people read them."""

import math
from typing import Any

DASH = "–"
NONE = "—"
NBSP = "\u00a0"


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing, NaN or infinite."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: float | None, digits: int | None = None) -> str:
    """A share in [0, 1] as per cent.

    >>> print(percent(0.894), percent(0.0042), percent(0.00001), percent(None))
    89 % 0.42 % < 0.01 % —
    """
    if value is None:
        return NONE
    scaled = 100 * value
    if digits is None:
        size = abs(scaled)
        if 0 < size < 0.005:
            return f"< 0.01{NBSP}%" if scaled > 0 else f"> −0.01{NBSP}%"
        digits = 0 if size >= 9.95 or size == 0 else 1 if size >= 0.995 else 2
    return f"{scaled:.{digits}f}{NBSP}%".replace("-", "−")


def short(value: float | None, digits: int = 3) -> str:
    """A number at `digits` significant digits, without an exponent where it reads better so.

    >>> short(0.04321), short(1234.5), short(0.00001234)
    ('0.0432', '1,234', '1.23e−05')
    """
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e9:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    if size >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    value = float(f"{value:.{digits}g}")  # first, so that 99.97 is 100 and not 100.0
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def whole(value: float | None) -> str:
    """A count, with thousands set apart."""
    return NONE if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them.

    >>> duration(42.0), duration(252), duration(8000)
    ('42 s', '4.2 min', '2 h 13 min')
    """
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min"


def interval(low: float | None, high: float | None) -> str:
    """Two shares as an interval in per cent, with as many digits as their distance needs.

    >>> print(interval(0.861, 0.927), interval(0.991, 0.996))
    86–93 % 99.1–99.6 %
    """
    if low is None or high is None:
        return NONE
    digits = 0 if high - low >= 0.02 else 1
    bottom, top = f"{100 * low:.{digits}f}", f"{100 * high:.{digits}f}"
    return f"{percent(high)}" if bottom == top else f"{bottom}{DASH}{top}{NBSP}%"


def times(ratio: float) -> str:
    """How many times less, in words: `a ninth of`, `a third of`; `12 %` of where no word is near."""
    words = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 7: "a seventh", 8: "an eighth", 9: "a ninth", 10: "a tenth"}
    for parts, word in words.items():
        if abs(ratio * parts - 1) < 0.07:
            return word
    return percent(ratio)


def moved(start: float, end: float, tolerance: float = 0.05) -> str:
    """Which way a number went: rose, fell or stayed near where it was (within `tolerance` of the larger, relative)."""
    if abs(end - start) <= tolerance * max(abs(start), abs(end)):
        return "stayed"
    return "rose" if end > start else "fell"
