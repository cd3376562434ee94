"""TextArena as a game: told by its seed, apart from all other randomness, and refused with a way out. Most of it where the package is installed."""

import importlib.util
import random
import sys

import pytest

from isentrope.errors import UserError
from isentrope.train.arena import TextArena
from isentrope.train.games import Reply, spec

installed = pytest.mark.skipif(importlib.util.find_spec("textarena") is None, reason="pip install textarena")
PATH = "isentrope.train.arena:TextArena"


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(UserError, match=r"needs the package textarena .*: pip install textarena"):
        spec(PATH)


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_game_goes_its_way_and_neither_sees_nor_moves_other_randomness():
    moves = ["[5]", "hm", "[10]", "[3]", "[20]", "[1]"]

    def played(seed: int, between: int) -> list[Reply]:
        game = TextArena("GuessTheNumber-v0", max_turns=4)
        game.reset(seed)
        replies = []
        for move in moves:
            random.seed(between)
            before = random.getstate()
            replies.append(game.step(move))
            assert random.getstate() == before
            if replies[-1].done:
                break
        return replies

    first = played(7, 1)
    assert first == played(7, 2)
    assert first[-1].done
    assert [played(seed, 1) for seed in range(6)] != [first] * 6  # the hidden number is the seed's
    assert first[0].text in ("The target number is higher.", "The target number is lower.")
    assert "invalid move" in first[1].text


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_win_pays_one_and_a_loss_its_part():
    rewards = {}
    for number in range(1, 21):
        game = TextArena("GuessTheNumber-v0", max_turns=0)  # ends with its first turn
        assert "between 1 and 20" in game.reset(3)
        reply = game.step(f"[{number}]")
        assert reply.done
        rewards[number] = reply.reward
    assert sorted(rewards.values())[-1] == 1.0
    assert sum(reward == 1.0 for reward in rewards.values()) == 1
    assert all(0 <= reward <= 1 for reward in rewards.values())


@installed
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_game_for_one_is_refused():
    with pytest.raises(UserError, match=r"must be an environment of TextArena such as GuessTheNumber-v0.* Got 'Chess-v9'"):
        TextArena("Chess-v9")
    with pytest.raises(UserError, match="not a game for one player"):
        TextArena("TicTacToe-v0").reset(0)
