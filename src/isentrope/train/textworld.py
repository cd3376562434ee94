"""Games of TextWorld (`pip install textworld`, MIT; its interpreter jericho is GPL-2) as games of several turns: rooms, things and a quest in words.

    task: {game: "isentrope.train.textworld:TextWorld", arguments: {kind: tw-coin_collector, level: 1}, turns: 4, turn_tokens: 16, size: 20}

A seed is a game of its own, made by TextWorld's own command `tw-make` in a process of its own: TextWorld generates some kinds in the order of Python's
hashes, which only a new process can fix, and so a seed is one game on every machine. That takes a few seconds, and the game is kept in `folder` for
every later episode and run. The policy reads TextWorld's words without its banner and status line, a line of ours that a command is wanted, and with
`commands` also which. The reward is the share of the score that a move gains; the whole score is 1, exactly.

The interpreter is a C library within our process that treats a backslash as its own command and dies of it, and games understand `save` and `script`,
which write files where the training runs. So a game hears letters, digits and simple punctuation, the first line of what the policy wrote, and of
the commands that leave the story none.
"""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from isentrope.errors import UserError
from isentrope.train.games import Reply

LONGEST = 100
"""Characters of a command; the interpreter has room for 198."""
KNOWN = 9
"""Characters by which a game tells words apart."""
_OUTSIDE = "save restore restart quit q undo script noscript unscript transcript recording replay verify version tw"
APART = frozenset(word[:KNOWN] for word in _OUTSIDE.split())
"""Commands about the game as a program: they write files, end or reset it, ask back, or print what the player must not know."""
STATUS = re.compile(r"\s*>\s*-= [^\n]* =-\s*-?\d+/\d+\s*$|\s*>\s*$")


class TextWorld:
    """One episode of a game of this `kind` of `tw-make`; `options` are its options (`level: 5`, `open: true`).

    commands: whether the texts end with what can be done now. folder: where made games are kept (None: the user's cache).
    Raises UserError without the package, or when TextWorld cannot make such a game.
    """

    def __init__(self, kind: str = "tw-coin_collector", *, commands: bool = False, folder: str | None = None, **options: Any):
        outside = np.random.get_state()  # importing TextWorld draws a number from it
        try:
            self._world = importlib.import_module("textworld")
        except ImportError as error:
            raise UserError(f"game TextWorld needs the package textworld ({error}): pip install textworld") from error
        finally:
            np.random.set_state(outside)
        self.kind, self.commands = kind, commands
        self.options = options or ({"level": 1} if kind == "tw-coin_collector" else {})
        self.folder = Path(folder).expanduser() if folder else _cache()
        self._env: Any = None
        self._paid = 0.0

    def reset(self, seed: int) -> str:
        told = dict.fromkeys(("objective", "description", "score", "max_score", "won", "lost"), True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jericho's, that it has no map of this game
            self._env = self._world.start(str(self._made(seed)), self._world.EnvInfos(**told, admissible_commands=self.commands))
        self._env.seed(1)  # the interpreter's own dice, which would follow the clock
        state, self._paid = self._env.reset(), 0.0
        return self._asked("\n\n".join(part for part in (_plain(state.objective), _plain(state.description)) if part), state, opening=True)

    def step(self, action: str) -> Reply:
        """What the game says to the first line of `action`, and the share of its score that this gained."""
        command = heard(action)
        if command is None:
            return Reply("That is not a command of this game.")
        state, score, done = self._env.step(command)
        reward = score / max(state.max_score, 1) - self._paid
        self._paid += reward
        return Reply(self._asked(_plain(state.feedback), state), done=done, reward=reward)

    def _asked(self, text: str, state: Any, *, opening: bool = False) -> str:
        """TextWorld's words, and ours about what is wanted: nothing in them says that the reader should answer with a command alone."""
        if self.commands:
            return f"{text}\n\nAnswer with one of these commands alone: {', '.join(state.admissible_commands)}."
        return f"{text}\n\nAnswer with one command alone, such as: look." if opening else text

    def _made(self, seed: int) -> Path:
        """The game of this seed, made unless it is there."""
        what = json.dumps([self.kind, self.options, int(seed), self._world.__version__], sort_keys=True)
        game = self.folder / f"{self.kind}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.z8"
        if not game.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as place:  # another rank may make the same one
                self._make(seed, Path(place) / game.name)
                for suffix in (".json", ".z8"):  # in this order: a game is there when its last file is
                    os.replace(Path(place) / game.with_suffix(suffix).name, game.with_suffix(suffix))
        return game

    def _make(self, seed: int, game: Path) -> None:
        maker = shutil.which("tw-make", path=sysconfig.get_path("scripts")) or shutil.which("tw-make")
        if maker is None:
            raise UserError("game TextWorld needs the command tw-make, which pip install textworld puts beside python. It is not on PATH.")
        flags = [part for name, value in self.options.items() for part in _flag(name, value)]
        command = [maker, self.kind, *flags, "--seed", str(int(seed)), "--output", str(game), "--silent"]
        ran = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False)
        if ran.returncode or not game.is_file():
            said = (ran.stderr.strip() or ran.stdout.strip() or "nothing").splitlines()[-1]
            raise UserError(f"TextWorld cannot make this game (task.arguments kind: {self.kind}, {self.options}): {said}. See tw-make {self.kind} --help.")


def heard(action: str) -> str | None:
    r"""The command that a game is given: the first line, of letters, digits and , . ' -; None for one that is no move in the story.

    >>> heard("> Take the \\coin!\nand run"), heard("go north. save")
    ('Take the coin', None)
    """
    line = next((line for line in action.splitlines() if line.strip(" >")), "")
    command = " ".join(re.sub(r"[^A-Za-z0-9,.' -]", " ", line).split())[:LONGEST].strip()
    words = re.findall(r"[a-z0-9]+", command.lower())
    return None if not words or any(word[:KNOWN] in APART for word in words) else command


def _flag(name: str, value: Any) -> list[str]:
    """One option of `tw-make`: a bool is there or not."""
    option = f"--{name.replace('_', '-')}"
    return ([option] if value else []) if isinstance(value, bool) else [option, str(value)]


def _plain(text: str | None) -> str:
    """TextWorld's words without its prompt, status line and empty lines."""
    return re.sub(r"\n\s*\n+", "\n\n", STATUS.sub("", text or "")).strip()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isentrope" / "textworld"
