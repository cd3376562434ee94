"""TextWorld as a game: told by its seed, deaf to commands that leave the story, and refused with a way out. Most of it where the package is installed."""

import importlib.util
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.train.games import spec
from isentrope.train.textworld import APART, KNOWN, LONGEST, TextWorld, heard

installed = pytest.mark.skipif(importlib.util.find_spec("textworld") is None, reason="pip install textworld")
PATH = "isentrope.train.textworld:TextWorld"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each game is made once for all tests here: that is what takes seconds."""
    return str(tmp_path_factory.mktemp("games"))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(UserError, match=r"needs the package textworld .*: pip install textworld"):
        spec(PATH)


@given(st.text(max_size=300))
def test_a_game_hears_one_short_line_of_plain_characters(text):
    command = heard(text)
    if command is not None:
        assert 0 < len(command) <= LONGEST
        assert command.isascii()
        assert set(command) <= {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.' -"}
        assert heard(command) == command


@pytest.mark.parametrize("word", ["save", "SAVE", "go north. save", "look then script", "transcripts", "tw-print state", "Quit", "undo,look", "q."])
def test_no_game_hears_a_command_that_leaves_the_story(word):
    assert heard(word) is None


def test_words_that_only_begin_like_such_a_command_are_heard():
    assert all(len(word) <= KNOWN for word in APART)
    assert heard("saves the quiet twins") == "saves the quiet twins"


@installed
def test_equal_seeds_and_actions_give_equal_replies_and_move_no_other_randomness(folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "textworld"]:
        monkeypatch.delitem(sys.modules, name)  # its import draws from numpy's generator

    def played(seed: int) -> list:
        random.seed(5)
        np.random.seed(5)
        game = TextWorld(level=3, commands=True, folder=folder)
        said = [game.reset(seed), *(game.step(move) for move in ("look", "go north", "dance\\wildly", "go east", "take coin"))]
        assert (random.random(), np.random.random()) == (random.Random(5).random(), np.random.RandomState(5).random())
        return said

    first = played(2)
    assert first == played(2)
    assert first[0] != played(1)[0]
    assert first[0].startswith("It's time to explore the amazing world of TextWorld!")
    assert first[0].endswith("\n\nAnswer with one of these commands alone: go north, inventory, look.")
    assert "not a verb" in first[3].text
    assert [reply.reward for reply in first[1:]] == [0, 0, 0, 0, 1]
    assert [reply.done for reply in first[1:]] == [False, False, False, False, True]


@installed
def test_two_episodes_at_once_do_not_touch_each_other(folder):
    one, other = TextWorld(level=3, folder=folder), TextWorld(level=3, folder=folder)
    assert one.reset(2) == other.reset(2)
    assert one.reset(2).endswith("Answer with one command alone, such as: look.")
    assert one.step("go north").text.startswith("-= Kitchen =-")
    assert other.step("look").text.startswith("-= Spare Room =-")


@installed
def test_what_leaves_the_story_is_answered_without_the_game_and_writes_no_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    game = TextWorld(level=3, folder=folder)
    game.reset(2)
    for action in ("save", "script", "restart", "look. save", "", "\\", "\0"):
        assert game.step(action).text == "That is not a command of this game."
    assert not list(tmp_path.iterdir())
    assert game.step("go north").text.startswith("-= Kitchen =-")


@installed
@pytest.mark.slow
def test_the_whole_score_is_exactly_one(folder):
    """A cooking game of many points, along TextWorld's own walkthrough; each good move pays its part."""
    game = TextWorld("tw-cooking", recipe=2, take=2, go=1, cook=True, cut=True, folder=folder)
    game.reset(4)
    paid, parts = 0.0, set()
    for move in game._env.state.game.metadata["walkthrough"]:
        reply = game.step(move)
        paid += reply.reward
        parts.add(reply.reward)
    assert reply.done
    assert paid == 1.0
    assert len(parts) > 1


@installed
@pytest.mark.slow
def test_a_seed_is_one_game_under_every_hash_seed(tmp_path):
    """Cooking games are generated in the order of hashes; tw-make of its own process fixes it."""
    script = "from isentrope.train.textworld import TextWorld; print(TextWorld('tw-cooking', recipe=2, go=6, folder={folder!r}).reset(4))"

    def said_under(hash_seed: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", script.format(folder=str(tmp_path / hash_seed))]
        return subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True).stdout

    said = said_under("1"), said_under("2")
    assert said[0] == said[1]
    assert "cookbook" in said[0]


@installed
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "tw-chess"}, r"cannot make this game .*kind: tw-chess.*invalid choice: 'tw-chess'"),
        ({"level": "many"}, r"argument --level: invalid int value: 'many'\. See tw-make tw-coin_collector --help"),
    ],
)
def test_what_textworld_cannot_make_is_refused_in_its_words(arguments, said, tmp_path):
    with pytest.raises(UserError, match=said):
        TextWorld(folder=str(tmp_path), **arguments).reset(0)
