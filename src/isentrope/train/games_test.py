"""The games: told by their seeds, won by the strategy that their docstring names, and refused with a way out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.train.games import PLACES, Keys, Reply, spec

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


@given(seed=st.integers(0, 10**9), actions=st.lists(st.text(max_size=8), max_size=5))
@settings(deadline=None, max_examples=50)
def test_the_seed_and_the_actions_tell_everything(seed, actions):
    first, second = Keys(), Keys()
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


class Half:
    def reset(self, seed):
        return "go"


def test_what_is_no_game_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"task.game .*Half.* no method 'step'. A game has reset\(seed\)"):
        spec("isentrope.train.games_test:Half")
    with pytest.raises(UserError, match=r"one of keys, or an import path 'pkg.mod:Class'. Got 'chess'"):
        spec("chess")
    with pytest.raises(UserError, match=r"could not be made with task.arguments \{'spam': 1\}: TypeError"):
        spec("keys", arguments={"spam": 1})
    with pytest.raises(UserError, match=r"task.turns must be at least 1. Got 0"):
        spec("keys", turns=0)
    with pytest.raises(UserError, match=r"has no class 'Nothing'"):
        spec("isentrope.train.games:Nothing")
