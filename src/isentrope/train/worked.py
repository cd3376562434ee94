"""Worked answers to additions, of several styles and of varied quality: the text from which the embedded base model is made.

A base model that is right only by chance teaches nothing, and one that is always right has nothing to explore. So every style
writes real working with errors at a stated rate: a wrong column sum, a lost carry, a digit miscopied. What follows an error is
consistent with it, as in a pupil's notebook. The styles (prompt `57+68=`):

| style | completion |
|---|---|
| direct | `125` |
| columns | `7+8=15,5+6+1=12:125` (units first, the carry as a third term) |
| tens | `50+60=110,7+8=15:125` |
| think | `<think>first 7+8=15` newline `then 5+6+1=12` newline `so 125</think>125` |

In think style a line may check a sum (`check 8+7=15`), correct it (`wait 7+8=15`), or the writer starts over (`alternatively 50+60=110`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

OPENERS = ("first", "start", "ok", "begin")
JOINERS = ("then", "next", "now", "so")
CLOSERS = ("so", "hence", "thus", "therefore")
DOUBTS = ("wait", "hmm", "but", "no")
CHECKS = ("check", "verify", "indeed", "recall")
TURNS = ("alternatively", "instead", "or", "again")
SKEW = (30, 2, 1, 1)  # how often each verb of a kind is used; the first is the habit, the others keep a choice open
VERBS = OPENERS + JOINERS + CLOSERS + DOUBTS + CHECKS + TURNS


@dataclass(frozen=True)
class Quality:
    """How often a writer errs; every field is a probability in [0, 1] per occasion."""

    slip: float = 0.36  # a sum written wrong
    lost_carry: float = 0.10
    miscopy: float = 0.14  # the final number copied wrong
    guess: float = 0.90  # a direct answer that is wrong
    doubt: float = 0.35  # a wrong sum that the writer notices and corrects, in think style
    check: float = 0.12  # a right sum that the writer checks, in think style
    turn: float = 0.06  # the writer starts over with tens and units, in think style


def _verb(kind: tuple[str, ...], rng: Random) -> str:
    return rng.choices(kind, SKEW)[0]


def _err(value: int, rate: float, rng: Random) -> int:
    """`value`, or with probability `rate` something near it."""
    if rng.random() >= rate:
        return value
    kind = rng.random()
    if kind < 0.55:
        return max(0, value + rng.choice((-1, 1)))
    if kind < 0.70:
        return max(0, value + rng.choice((-10, 10)))
    return rng.randrange(max(19, 2 * value))


def _columns(a: int, b: int, quality: Quality, rng: Random) -> tuple[list[str], list[int], list[int], int]:
    """Units first. Returns the lines without their sums, the true sum of each, the sum written, and the number they spell."""
    width = max(len(str(a)), len(str(b)))
    terms, true, written, carry, tail = [], [], [], 0, ""
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        seen = 0 if rng.random() < quality.lost_carry else carry
        terms.append(f"{x}+{y}" + (f"+{seen}" if seen else ""))
        true.append(x + y + seen)
        written.append(_err(true[-1], quality.slip, rng))
        carry = written[-1] // 10
        if place < width - 1:
            tail = str(written[-1] % 10) + tail
    return terms, true, written, int(str(written[-1]) + tail)


def direct(a: int, b: int, quality: Quality, rng: Random) -> str:
    return str(_err(a + b, quality.guess, rng))


def columns(a: int, b: int, quality: Quality, rng: Random) -> str:
    terms, _, written, total = _columns(a, b, quality, rng)
    return ",".join(f"{t}={w}" for t, w in zip(terms, written, strict=True)) + f":{_err(total, quality.miscopy, rng)}"


def _tens(a: int, b: int, quality: Quality, rng: Random) -> tuple[list[str], int]:
    high = _err(a // 10 * 10 + b // 10 * 10, quality.slip, rng)
    low = _err(a % 10 + b % 10, quality.slip, rng)
    return [f"{a // 10 * 10}+{b // 10 * 10}={high}", f"{a % 10}+{b % 10}={low}"], high + low


def tens(a: int, b: int, quality: Quality, rng: Random) -> str:
    lines, total = _tens(a, b, quality, rng)
    return ",".join(lines) + f":{_err(total, quality.miscopy, rng)}"


def think(a: int, b: int, quality: Quality, rng: Random) -> str:
    """Phases on lines of their own, each opened by a verb; the answer stands after `</think>`."""
    if rng.random() < quality.turn:
        lines, total = _tens(a, b, quality, rng)
        lines = [f"{_verb(TURNS, rng)} {lines[0]}", f"{_verb(JOINERS, rng)} {lines[1]}"]
    else:
        lines, total = _think_columns(a, b, quality, rng)
    final = _err(total, quality.miscopy, rng)
    lines.append(f"{_verb(CLOSERS, rng)} {final}")
    return "<think>" + "\n".join(lines) + f"</think>{_err(final, quality.miscopy / 2, rng)}"


def _think_columns(a: int, b: int, quality: Quality, rng: Random) -> tuple[list[str], int]:
    lines, carry, tail, asides = [], 0, "", 1
    width = max(len(str(a)), len(str(b)))
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        seen = 0 if rng.random() < quality.lost_carry else carry
        terms = f"{x}+{y}" + (f"+{seen}" if seen else "")
        value = _err(x + y + seen, quality.slip, rng)
        lines.append(f"{_verb(OPENERS if place == 0 else JOINERS, rng)} {terms}={value}")
        if asides and value != x + y + seen and rng.random() < quality.doubt:
            value, asides = x + y + seen, 0
            lines.append(f"{_verb(DOUBTS, rng)} {terms}={value}")
        elif asides and value == x + y + seen and rng.random() < quality.check:
            asides = 0
            lines.append(f"{_verb(CHECKS, rng)} {y}+{x}" + (f"+{seen}" if seen else "") + f"={value}")
        carry = value // 10
        tail = (str(value % 10) if place < width - 1 else str(value)) + tail
    return lines, int(tail)


STYLES: dict[str, Callable[[int, int, Quality, Random], str]] = {
    "direct": direct,
    "columns": columns,
    "tens": tens,
    "think": think,
}
