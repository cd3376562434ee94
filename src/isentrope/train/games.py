"""Text games: what a policy plays in several turns, a text in and a text out, and the one that the embedded model learns on two cores.

A game is made anew for every episode, begins with `reset(seed)` and is fully told by that seed: equal seeds and equal actions give equal replies. So
nothing of it is ever saved; episodes live within one generation, and a resumed run plays what the other would have.

    guess   a whole number is hidden between two bounds, which the policy is told at the start; after every guess it hears `more` or `less`.
            1 if it finds the number in the given turns, else 0, and nothing on the way. Halving finds each of 15 numbers in four turns.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from isentrope.errors import UserError


@dataclass(frozen=True)
class Reply:
    """What a game answers to an action. The rewards of an episode add up. With `done` the episode is over and the policy does not read the text."""

    text: str
    done: bool = False
    reward: float = 0.0


class Game(Protocol):
    """One episode of a text game. What `step` raises ends this episode alone, unscored."""

    def reset(self, seed: int) -> str:
        """What the policy reads first; the whole hidden state follows from the seed."""
        ...

    def step(self, action: str) -> Reply:
        """The answer to what the policy wrote, of which nothing is certain; it may be empty."""
        ...


@dataclass(frozen=True)
class GameSpec:
    """How episodes of a game are made and bounded.

    game: makes the game of one episode. turns: actions at most. turn_tokens: tokens of one action at most. timeout: seconds that one call of the game
    may take (None: no limit).
    """

    name: str
    game: Callable[[], Game]
    turns: int = 8
    turn_tokens: int = 32
    timeout: float | None = 10.0
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Guess:
    """Find the hidden one of `span` neighbouring two-digit numbers in `turns` guesses. The first (91 - span) * span seeds are all games, each once.

    >>> game = Guess()
    >>> game.reset(0), game.hidden
    ('10-24:', 10)
    >>> game.step("17").text, game.step("perhaps").text, game.step("10")
    ('less\\n', 'a number\\n', Reply(text='found\\n', done=True, reward=1.0))
    """

    def __init__(self, span: int = 15, turns: int = 4):
        if not 2 <= span <= 90:
            raise UserError(f"guess: span must be between 2 and 90 two-digit numbers. Got {span}. 15 can be found in four turns.")
        self.span, self.turns = span, turns
        self.hidden = self.made = 0

    def reset(self, seed: int) -> str:
        games = (91 - self.span) * self.span
        start, place = divmod(seed * _stride(games) % games, self.span)  # neighbouring seeds are unlike games
        self.hidden, self.made = 10 + start + place, 0
        return f"{10 + start}-{9 + start + self.span}:"

    def step(self, action: str) -> Reply:
        """`found`, or whether the hidden number is `more` or `less` than the last whole number of the action; a turn is used in any case."""
        self.made += 1
        guess, last = last_integer(action), self.made >= self.turns
        if guess == self.hidden:
            return Reply("found\n", done=True, reward=1.0)
        if guess is None:
            return Reply("a number\n", done=last)
        return Reply("more\n" if guess < self.hidden else "less\n", done=last)


GAMES: Mapping[str, Callable[..., Game]] = {"guess": Guess}
"""Games by name; others by import path, `pkg.mod:Class`."""


def spec(
    game: str, *, arguments: Mapping[str, Any] | None = None, turns: int = 8, turn_tokens: int = 32, timeout: float | None = 10.0, name: str | None = None
) -> GameSpec:
    """A game by name or import path with the arguments of its constructor, made once to see that it can be.

    Raises UserError naming the game, what was refused and the way out.
    """
    for parameter, value in (("turns", turns), ("turn_tokens", turn_tokens)):
        if value < 1:
            raise UserError(f"task.{parameter} must be at least 1. Got {value}.")
    given, maker = dict(arguments or {}), GAMES[game] if game in GAMES else _imported(game)
    try:
        made = maker(**given)
    except UserError:
        raise
    except Exception as error:  # whatever a user's class raises is data here
        raise UserError(f"task.game {game!r} could not be made with task.arguments {given}: {type(error).__name__}: {error}.") from error
    missing = [method for method in ("reset", "step") if not callable(getattr(made, method, None))]
    if missing:
        raise UserError(f"task.game {game!r} has no method {missing[0]!r}. A game has reset(seed) -> str and step(action) -> Reply (isentrope.train.games).")
    return GameSpec(name or game, lambda: maker(**given), turns, turn_tokens, timeout, given)


def last_integer(text: str) -> int | None:
    """The last whole number of a text, of at most nine digits; None where there is none."""
    found = re.findall(r"(?<!\d)\d{1,9}(?!\d)", text, flags=re.ASCII)
    return int(found[-1]) if found else None


def _stride(count: int) -> int:
    """A step near the golden section of `count` that visits every residue."""
    step = max(1, round(count * 0.618034))
    while math.gcd(step, count) != 1:
        step += 1
    return step


def _imported(path: str) -> Callable[..., Game]:
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"task.game must be one of {', '.join(GAMES)}, or an import path 'pkg.mod:Class'. Got {path!r}.")
    try:
        found = vars(importlib.import_module(module)).get(name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(f"task.game {path!r}: importing {module} raised {type(error).__name__}: {error}. Put its folder on PYTHONPATH, or mend it.") from error
    if not callable(found):
        raise UserError(f"task.game {path!r}: {module} has no class {name!r}.")
    return found
