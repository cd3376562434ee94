"""The games: told by their seeds, won by halving, and refused with a way out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.errors import UserError
from isentrope.train.games import Guess, last_integer, spec


def bounds(opening: str) -> tuple[int, int]:
    low, high = opening.rstrip(":").split("-")
    return int(low), int(high)


def test_every_seed_is_a_game_of_its_own_and_together_they_are_all():
    openings = []
    for seed in range(76 * 15):
        game = Guess()
        low, high = bounds(game.reset(seed))
        assert 10 <= low <= game.hidden <= high == low + 14 <= 99
        openings.append((low, game.hidden))
    assert len(set(openings)) == len(openings) == 76 * 15


@given(seed=st.integers(0, 10**9), actions=st.lists(st.text(max_size=8), max_size=5))
@settings(deadline=None, max_examples=50)
def test_the_seed_and_the_actions_tell_everything(seed, actions):
    first, second = Guess(), Guess()
    assert first.reset(seed) == second.reset(seed)
    assert [first.step(action) for action in actions] == [second.step(action) for action in actions]


def test_halving_wins_every_game_in_four_turns_and_its_reward_comes_at_the_end():
    for seed in range(76 * 15):
        game = Guess()
        low, high = bounds(game.reset(seed))
        for _ in range(4):
            reply = game.step(str((low + high) // 2))
            if reply.done:
                break
            assert reply.reward == 0.0
            low, high = ((low + high) // 2 + 1, high) if reply.text == "more\n" else (low, (low + high) // 2 - 1)
        assert reply.reward == 1.0, seed


def test_a_lost_game_ends_with_its_last_turn_and_pays_nothing():
    game = Guess()
    low, high = bounds(game.reset(5))
    wrong = low if game.hidden != low else high
    replies = [game.step(text) for text in ("", f"{wrong}", f"{wrong}" * 5, f"{wrong}")]
    assert [reply.done for reply in replies] == [False] * 3 + [True]
    assert sum(reply.reward for reply in replies) == 0.0
    assert [reply.text == "a number\n" for reply in replies] == [True, False, True, False]


def test_the_last_whole_number_counts():
    assert last_integer("first 12, then 34!") == 34
    assert last_integer("") is None
    assert last_integer("٣") is None  # digits of ASCII only
    assert last_integer("9" * 5000) is None


class Half:
    def reset(self, seed):
        return "go"


def test_what_is_no_game_is_refused_with_a_way_out():
    with pytest.raises(UserError, match=r"task.game .*Half.* no method 'step'. A game has reset\(seed\)"):
        spec("isentrope.train.games_test:Half")
    with pytest.raises(UserError, match=r"one of guess, or an import path 'pkg.mod:Class'. Got 'chess'"):
        spec("chess")
    with pytest.raises(UserError, match=r"could not be made with task.arguments \{'spam': 1\}: TypeError"):
        spec("guess", arguments={"spam": 1})
    with pytest.raises(UserError, match=r"span must be between 2 and 90 two-digit numbers. Got 1"):
        spec("guess", arguments={"span": 1})
    with pytest.raises(UserError, match=r"task.turns must be at least 1. Got 0"):
        spec("guess", turns=0)
    with pytest.raises(UserError, match=r"has no class 'Nothing'"):
        spec("isentrope.train.games:Nothing")
