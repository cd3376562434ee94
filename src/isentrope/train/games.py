"""Text games: what a policy plays in several turns, a text in and a text out, and the two that small embedded models learn on two cores.

A game is made anew for every episode, begins with `reset(seed)` and is fully told by that seed: equal seeds and equal actions give equal replies. So
nothing of it is ever saved; episodes live within one generation, and a resumed run plays what the other would have.

    keys    a note with the two digits of a door's lock lies behind one of four places. An action looks behind a place (`b`) or tries a code (`73`).
            1 if the door opens in the given turns, else 0, and nothing on the way: who looks behind each place at most once opens it in five.
    reckon  a sum or product of two or three numbers (`47*38+25:`), and a calculator that takes one operation at a time. An action is a call (`47*38`), which
            is answered with the value, or the answer (`=1811`), which ends the game: 1 if it is right, else 0. A call costs a turn, of four; some sums
            are easy enough to do without.
"""

import importlib
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from isentrope.errors import UserError
from isentrope.train.tools import calculator


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


PLACES = "abcd"


class Keys:
    """Find the note behind one of four places and open the door with its two digits. The first 400 seeds are all games, each once.

    >>> game = Keys()
    >>> game.reset(3), game.place, game.code
    ('abcd:', 'd', '41')
    >>> game.step("c").text, game.step("run").text, game.step("d").text, game.step("41")
    ('none\\n', 'what\\n', '41\\n', Reply(text='open\\n', done=True, reward=1.0))
    """

    def __init__(self, turns: int = 5):
        self.turns = turns
        self.place, self.code, self.made = "", "", 0

    def reset(self, seed: int) -> str:
        games = len(PLACES) * 100
        place, code = divmod(seed * _stride(games) % games, 100)  # neighbouring seeds are unlike games
        self.place, self.code, self.made = PLACES[place], f"{code:02d}", 0
        return f"{PLACES}:"

    def step(self, action: str) -> Reply:
        """What is behind a place, or whether a code opens the door; a turn is used in any case."""
        self.made += 1
        said, last = action.strip(), self.made >= self.turns
        if said == self.code:
            return Reply("open\n", done=True, reward=1.0)
        if len(said) == 1 and said in PLACES:
            return Reply(f"{self.code if said == self.place else 'none'}\n", done=last)
        return Reply("shut\n" if re.fullmatch(r"[0-9]{2}", said) else "what\n", done=last)


class Reckon:
    """Work out a sum or product with a calculator for one operation at a time.

    >>> game = Reckon()
    >>> game.reset(2), game.value
    ('38*22+51:', 887)
    >>> game.step("38*22").text, game.step("38*22+51").text, game.step("836+51").text, game.step("=887")
    ('836\\n', 'what\\n', '887\\n', Reply(text='right\\n', done=True, reward=1.0))
    """

    FORMS = ("s+s", "d+d", "d*d", "d+d+d", "d*d+d")
    """Kinds of tasks, equally often: s is a number of one digit, d of two. The first can be done without the calculator."""

    def __init__(self, turns: int = 4):
        self.turns = turns
        self.value, self.made = 0, 0

    def reset(self, seed: int) -> str:
        draw = random.Random(seed)
        form = self.FORMS[seed % len(self.FORMS)]
        text = re.sub("[sd]", lambda kind: str(draw.randint(1, 9) if kind[0] == "s" else draw.randint(10, 99)), form)
        self.value, self.made = int(calculator(text)), 0
        return f"{text}:"

    def step(self, action: str) -> Reply:
        """The value of one operation, or whether the answer is right; a turn is used in any case."""
        self.made += 1
        said, last = action.strip(), self.made >= self.turns
        if re.fullmatch(r"=[0-9]{1,9}", said):
            right = int(said[1:]) == self.value
            return Reply("right\n" if right else "wrong\n", done=True, reward=float(right))
        if re.fullmatch(r"[1-9][0-9]{0,8}[+*][1-9][0-9]{0,8}", said):
            return Reply(f"{calculator(said)}\n", done=last)
        return Reply("what\n", done=last)


GAMES: Mapping[str, Callable[..., Game]] = {"keys": Keys, "reckon": Reckon}
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
