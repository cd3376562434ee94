"""The turn columns of the tape: token means by turn that add up to the whole, and the words of sampled episodes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.step import Rollouts, Step
from isentrope.train.games import Keys
from isentrope.train.turn_figures import turn_counts, turn_means, turn_rows, turn_sums
from isentrope.train.turns import Episode

TURN = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 2, 2]])
WROTE = torch.tensor([[True, True, False, True, False, False], [True, False, True, False, True, True]])
TEXT = torch.tensor([[True] * 5 + [False], [True] * 6])


def rollouts(**more) -> Rollouts:
    return Rollouts.of(WROTE, completion_mask=TEXT, turn=TURN, completion_ids=torch.arange(12).view(2, 6), **more)


def test_a_case_by_hand():
    known = rollouts(advantage=torch.tensor([[2.0], [-1.0]]))
    entropy = torch.where(WROTE, torch.arange(12).view(2, 6).float(), torch.nan)
    weight = torch.where(WROTE, 0.5, torch.nan)
    found = turn_means(turn_sums(Step(known, entropy), entropy, weight, turns=4))
    assert found["turn-00/entropy"] == pytest.approx((0 + 1 + 6) / 3)
    assert found["turn-00/advantage"] == pytest.approx((2 + 2 - 1) / 3)
    assert found["turn-00/pressure"] == pytest.approx(2.5 / 3)
    assert (found["turn-00/tokens"], found["turn-00/responses"]) == (3, 2)
    assert found["turn-01/entropy"] == pytest.approx((3 + 8) / 2)
    assert found["turn-02/advantage"] == pytest.approx(-1.0)
    assert found["turn-02/weight"] == pytest.approx(0.5)
    assert (found["turn-02/tokens"], found["turn-02/responses"]) == (2, 1)
    assert not any(name.startswith("turn-03") for name in found)
    assert turn_counts(known).tolist() == [2, 3]


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_turns_add_up_to_the_whole_and_slices_to_the_update(seed, turns):
    made = torch.Generator().manual_seed(seed)
    turn = torch.randint(0, turns, (4, 9), generator=made).sort(dim=1).values
    mask = torch.rand(4, 9, generator=made) < 0.6
    entropy, advantage = torch.rand(4, 9, generator=made), torch.randn(4, 9, generator=made)
    known = Rollouts.of(mask, turn=turn, advantage=advantage)
    sums = turn_sums(Step(known, entropy), entropy, torch.ones(4, 9), turns)
    assert sum(value for key, value in sums.items() if key.endswith("/entropy")) == pytest.approx(float(entropy[mask].sum()), abs=1e-4)
    assert sum(value for key, value in sums.items() if key.endswith("/tokens")) == float(mask.sum())
    parts = [turn_sums(Step(known.take(rows), entropy[rows]), entropy[rows], torch.ones(2, 9), turns) for rows in torch.arange(4).view(2, 2)]
    for key, value in sums.items():
        assert sum(part[key] for part in parts) == pytest.approx(value, abs=1e-5)


def test_without_turns_there_are_no_columns():
    plain = Rollouts.of(WROTE)
    assert turn_sums(Step(plain, WROTE.float()), WROTE.float(), WROTE.float(), 3) == {}
    assert turn_counts(plain).tolist() == [0, 0]
    assert turn_rows(plain, 0, (), str) == []


def test_an_own_episode_is_told_by_what_was_said_and_another_by_its_tokens():
    known = rollouts(advantage=torch.tensor([[2.0], [-1.0]]), origin=torch.tensor([0, 2]))
    ids = known.completion_ids[0][known.completion_mask[0]].tolist()
    episode = Episode(Keys(), [1], ids=ids, actions=["17", "20"], replies=["more\n", "found\n"], ending="end")
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    first = turn_rows(known, 0, [episode, episode], decode)
    assert [(row["action"], row["reply"], row["tokens"], row["advantage"], row["ending"]) for row in first] == [
        ("17", "more\n", 2, 2.0, "end"), ("20", "found\n", 1, 2.0, "end"),
    ]  # fmt: skip
    replayed = turn_rows(known, 1, [episode, episode], decode)
    assert [(row["turn"], row["action"], row["reply"], row["ending"]) for row in replayed] == [(0, "6", "7", None), (1, "8", "9", None), (2, "10 11", "", None)]
    faulty = Episode(Keys(), [1], ids=ids, actions=["17"], replies=[""], ending="fault", fault="step raised ValueError: x")
    assert turn_rows(known, 0, [faulty], decode)[0]["ending"] == "step raised ValueError: x"
