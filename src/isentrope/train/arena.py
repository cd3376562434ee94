"""Single-player games of TextArena (`pip install textarena`, MIT) as games of several turns.

    task: {game: "isentrope.train.arena:TextArena", arguments: {env: "GuessTheNumber-v0", max_turns: 6}, turns: 8, turn_tokens: 32}

The policy reads TextArena's own words: its prompt first, then what the game says after every move, without the wrappers that would repeat the
history, because here the whole episode stands in the row. The reward is TextArena's, which for many games has a part for coming near: 1 is a win.
TextArena draws from Python's global generator. Each episode therefore has a state of its own, put in place around every call and taken out again, so
that neither other episodes nor the training see it and a seed tells the game.
"""

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isentrope.errors import UserError
from isentrope.train.games import Reply


class TextArena:
    """One episode of the environment `env`; `arguments` go to it (`max_turns`, ...).

    Raises UserError without the package, for an unknown environment, or for one that is not for one player.
    """

    def __init__(self, env: str = "GuessTheNumber-v0", **arguments: Any):
        try:
            self._arena = importlib.import_module("textarena")
        except ModuleNotFoundError as error:
            raise UserError(f"game TextArena needs the package textarena ({error}): pip install textarena") from error
        known = self._arena.envs.registration.ENV_REGISTRY
        name = env if env.endswith("-raw") or f"{env}-raw" not in known else f"{env}-raw"
        if name not in known:
            raise UserError(f"task.arguments.env must be an environment of TextArena such as GuessTheNumber-v0, Mastermind-v0 or Wordle-v0. Got {env!r}.")
        self._random = random.Random(0).getstate()
        with self._own_randomness():
            self._env = self._arena.make(name, **arguments)

    def reset(self, seed: int) -> str:
        self._random = random.Random(seed).getstate()
        with self._own_randomness():
            try:
                self._env.reset(num_players=1, seed=seed)
            except AssertionError as error:
                raise UserError(f"{self._env.env_id} is not a game for one player, which is what an episode has here: {error}") from error
        return self._said()

    def step(self, action: str) -> Reply:
        with self._own_randomness():
            done, _ = self._env.step(action=action)
        if not done:
            return Reply(self._said())
        rewards, about = self._env.close()
        return Reply(str(about[0].get("reason") or ""), done=True, reward=float(rewards[0]))

    def _said(self) -> str:
        """What the game said since the last time; the policy's own words are in its row already."""
        _, heard = self._env.get_observation()
        own = self._arena.ObservationType.PLAYER_ACTION
        return "\n".join(str(message) for _, message, kind in heard if kind != own)

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        outside = random.getstate()
        random.setstate(self._random)
        try:
            yield
        finally:
            self._random = random.getstate()
            random.setstate(outside)
