"""The games: told by their seeds, won by the strategy that their docstring names, and refused with a way out."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.train.games import PLACES, Keys, Reckon, Reply, spec

GAMES = 4 * 100


def test_every_seed_is_a_game_of_its_own_and_together_they_are_all():
    seen = set()
    for seed in range(GAMES):
        game = Keys()
        assert game.reset(seed) == "abcd:"
        assert game.place in PLACES
        seen.add((game.place, game.code))
    assert len(seen) == GAMES
    assert Keys().reset(GAMES + 5) == Keys().reset(5)


@pytest.mark.parametrize("game", [Keys, Reckon])
@given(seed=st.integers(0, 10**9), actions=st.lists(st.text(max_size=8) | st.text("=0123456789+*", max_size=8), max_size=4))
@settings(deadline=None, max_examples=50)
def test_the_seed_and_the_actions_tell_everything(game, seed, actions):
    first, second = game(), game()
    assert first.reset(seed) == second.reset(seed)
    assert [first.step(action) for action in actions] == [second.step(action) for action in actions]


@pytest.mark.parametrize("order", ["abcd", "dbca"])
def test_who_looks_behind_each_place_at_most_once_opens_the_door_in_five_turns(order):
    for seed in range(GAMES):
        game = Keys()
        game.reset(seed)
        for place in order:
            reply = game.step(place)
            assert (reply.done, reply.reward) == (False, 0.0)
            if reply.text != "none\n":
                break
        assert place == game.place
        assert game.step(reply.text.strip()) == Reply("open\n", done=True, reward=1.0)


def test_a_lost_game_ends_with_its_last_turn_and_pays_nothing():
    game = Keys()
    game.reset(3)  # 41 behind d
    replies = [game.step(text) for text in ("", "14", "ab", "d", "411")]
    assert [reply.text for reply in replies] == ["what\n", "shut\n", "what\n", "41\n", "what\n"]
    assert [reply.done for reply in replies] == [False] * 4 + [True]
    assert sum(reply.reward for reply in replies) == 0.0


# --- reckon


def reckoned(seed: int) -> list[Reply]:
    """The replies to one call for every sign, in order, and the answer."""
    game = Reckon()
    numbers, signs = re.findall("[0-9]+", opening := game.reset(seed)), re.findall("[+*]", opening)
    replies, value = [], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        replies.append(game.step(f"{value}{sign}{number}"))
        value = replies[-1].text.strip()
    return [*replies, game.step(f"={value}")]


@pytest.mark.parametrize("seed", range(40))
def test_a_call_for_every_sign_gives_the_answer_with_a_turn_to_spare(seed):
    replies = reckoned(seed)
    assert replies[-1] == Reply("right\n", done=True, reward=1.0)
    assert not any(reply.done or reply.reward for reply in replies[:-1])
    assert len(replies) <= Reckon().turns - 1
    assert int(replies[-2].text) == eval(Reckon().reset(seed)[:-1])


def test_its_tasks_are_of_five_kinds_and_many():
    openings = [Reckon().reset(seed) for seed in range(2000)]
    assert len(set(openings)) > 1400  # sums of two digits are 81 in all
    assert [re.sub("[0-9]", "d", text) for text in openings[:5]] == ["d+d:", "dd+dd:", "dd*dd:", "dd+dd+dd:", "dd*dd+dd:"]


def test_what_is_neither_a_call_nor_an_answer_costs_a_turn_too():
    game = Reckon()
    assert game.reset(1) == "27+82:"
    texts = ["27+82+1", "27 + 82", "07+8", "27-82", "=", "=-109", "=109 ", ""]
    for text in texts:
        game.reset(1)
        assert game.step(text).text == ("right\n" if text == "=109 " else "what\n")
    game.reset(1)
    replies = [game.step(text) for text in ("1+1", "2*3", "", "27+82")]
    assert [reply.text for reply in replies] == ["2\n", "6\n", "what\n", "109\n"]
    assert [reply.done for reply in replies] == [False] * 3 + [True]
    assert sum(reply.reward for reply in replies) == 0.0
    assert Reckon().step("=1") == Reply("wrong\n", done=True)


class Half:
    def reset(self, seed):
        return "go"


def test_what_is_no_game_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"task.game .*Half.* no method 'step'. A game has reset\(seed\)"):
        spec("isentrope.train.games_test:Half")
    with pytest.raises(UserError, match=r"one of keys, reckon, or an import path 'pkg.mod:Class'. Got 'chess'"):
        spec("chess")
    with pytest.raises(UserError, match=r"could not be made with task.arguments \{'spam': 1\}: TypeError"):
        spec("keys", arguments={"spam": 1})
    with pytest.raises(UserError, match=r"task.turns must be at least 1. Got 0"):
        spec("keys", turns=0)
    with pytest.raises(UserError, match=r"has no class 'Nothing'"):
        spec("isentrope.train.games:Nothing")
