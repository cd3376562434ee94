"""SPEAR: the schedules, the base and its gates by hand, who makes room, what is kept, and the tool reward."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import spear
from isentrope.control.papers.spear import Spear, group_means, power_of_two, rising
from isentrope.control.stages import policy_loss
from isentrope.control.step import ORIGINS, Progress, Rollouts, RowRng, Step
from isentrope.testing import play, world

LINK = Spear(replayed=2, rise=10, share=0.5)
REPLAY = ORIGINS.index("replay")


def rows(reward: list[float], group: list[int], *, advantage: list[float] | None = None, first: int = 0, origin: int = 0, turn=None) -> Rollouts:
    value = torch.tensor(reward, dtype=torch.float64)
    given = value - 0.5 if advantage is None else torch.tensor(advantage, dtype=torch.float64)
    count = len(reward)
    return Rollouts.of(
        torch.ones(count, 3, dtype=torch.bool), row_id=torch.arange(first, first + count), group=torch.tensor(group), reward=value, correct=value,
        advantage=given[:, None], origin=torch.full((count,), origin), turn=None if turn is None else torch.tensor(turn),
    )  # fmt: skip


BATCH = rows([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])  # group 1 teaches nothing
STORED = rows([1.0, 0.9, 0.8, 0.2, 1.0], [7, 7, 8, 8, 9], first=100, origin=REPLAY)


def state(*means: float, step: int = 10) -> dict:
    return {"means": torch.tensor(means, dtype=torch.float64), "step": step}


# --- schedules


def test_the_schedules():
    assert rising(0, 7) == 0
    assert rising(7, 7) == rising(70, 7) == 1
    assert rising(5, 10) == pytest.approx(0.5)
    assert [rising(k, 50) for k in range(51)] == sorted(rising(k, 50) for k in range(51))
    link = Spear(coef=0.7, rise=10, tools=1.0, tool_horizon=10)
    for step in range(12):  # mu + gamma / c = 1 where both horizons are the same
        paid = link.reward(rows([0.0], [0], turn=[[0, 5, 10]]), state(step=step))
        assert float(paid[0]) + link.gamma(state(step=step)) / 0.7 == pytest.approx(1.0)


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_the_power_of_two(count):
    found = power_of_two(count)
    assert found == (0 if count < 2 else 2 ** int(math.log2(count)))


# --- the replay


def test_the_recalibrated_advantage_and_its_gates():
    """Base 0.5, gamma 1: four of five stored beat it, more than 1.5 N_D = 3. Two are replayed for the two rows of the group of equal rewards."""
    edit = LINK.rows(BATCH, STORED, state(0.1, 0.5, 0.9), RowRng())
    assert sorted(edit.target.tolist()) == [2, 3]
    assert len(set(edit.source.tolist())) == 2
    assert set(edit.source.tolist()) <= {0, 1, 2, 4}
    worth = dict(enumerate([0.5, 0.4, 0.3, -0.3, 0.5]))
    assert edit.advantage.tolist() == pytest.approx([worth[source] for source in edit.source.tolist()])
    assert edit.clear
    half = LINK.rows(BATCH, STORED, state(0.1, 0.5, 0.9, step=5), RowRng())
    assert half.advantage.tolist() == pytest.approx([worth[source] / 2 for source in half.source.tolist()])


def test_a_worth_of_the_other_sign_is_noticed(monkeypatch):
    held = Spear.rows
    monkeypatch.setattr(spear.Spear, "rows", lambda self, *given: replace(held(self, *given), advantage=-held(self, *given).advantage))
    with pytest.raises(AssertionError):
        test_the_recalibrated_advantage_and_its_gates()


@pytest.mark.parametrize(
    ("link", "batch_state", "stored"),
    [
        (LINK, state(0.5), None),  # an empty buffer
        (LINK, state(), STORED),  # no base yet
        (LINK, state(0.5, step=0), STORED),  # gamma 0
        (LINK, state(0.85), STORED),  # three beat the base, and more than 1.5 N_D = 3 must
        (replace(LINK, coef=0.0), state(0.5), STORED),
        (replace(LINK, share=0.0), state(0.5), STORED),
    ],
)
def test_when_nothing_is_replayed(link, batch_state, stored):
    edit = link.rows(BATCH, stored, batch_state, RowRng())
    assert len(edit.target) == len(edit.source) == 0
    assert edit.dropped is None
    assert edit.clear == (link.share == 0)


def test_with_the_base_at_the_mean_the_worth_is_the_reward_less_it():
    """F all equal to r: R - r, whatever the share of it."""
    edit = LINK.rows(BATCH, STORED, state(0.3, 0.3, 0.3), RowRng())
    assert edit.advantage.tolist() == pytest.approx((STORED.reward[edit.source] - 0.3).tolist())


def test_the_decayed_advantage_instead_of_the_base():
    link = replace(LINK, decay=0.25)
    edit = link.rows(BATCH, STORED, state(0.5), RowRng())
    assert edit.advantage.tolist() == pytest.approx((0.25 * STORED.advantage[edit.source, 0]).tolist())


def test_at_most_the_share_makes_room_least_deviation_first():
    batch = rows([1.0, 0.0, 0.6, 0.5, 1.0, 1.0, 0.2, 0.9], [0, 0, 1, 1, 2, 2, 3, 3])
    many = replace(STORED.take(torch.zeros(20, dtype=torch.long)), row_id=100 + torch.arange(20))
    for share, expected in ((0.25, {4, 5}), (0.5, {2, 3, 4, 5})):
        edit = replace(LINK, replayed=8, share=share).rows(batch, many, state(0.5), RowRng())
        assert set(edit.target.tolist()) == expected


def test_the_same_rows_in_any_order():
    plain = LINK.rows(BATCH, STORED, state(0.5), RowRng(seed=4))
    chosen = {(int(BATCH.row_id[t]), int(STORED.row_id[s])) for t, s in zip(plain.target, plain.source, strict=True)}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        batch, stored = BATCH.take(torch.randperm(4, generator=generator)), STORED.take(torch.randperm(5, generator=generator))
        edit = LINK.rows(batch, stored, state(0.5), RowRng(seed=4))
        assert chosen == {(int(batch.row_id[t]), int(stored.row_id[s])) for t, s in zip(edit.target, edit.source, strict=True)}


def test_gamma_times_the_advantage_is_gamma_times_the_loss():
    """The surrogate is homogeneous in A > 0, clipped or not: what stands in for the replay's own weight."""
    log_probs = torch.tensor([[-1.0, -0.2, -2.0]], dtype=torch.float64)
    losses = []
    for gamma in (1.0, 0.3):
        rollouts = Rollouts.of(torch.ones(1, 3, dtype=torch.bool), advantage=torch.tensor([[gamma * 0.8]]), old_log_probs=torch.full((1, 3), -1.0))
        losses.append(float(policy_loss(Step(rollouts, log_probs), LINK.recipe()).loss))
    assert losses[1] == pytest.approx(0.3 * losses[0], rel=1e-6)


# --- what is kept


def test_successes_of_this_policy_are_kept_with_a_tool_call_where_there_are_such():
    batch = rows([1.0, 0.0, 1.0], [0, 0, 0], advantage=[0.5, -0.5, 0.5])
    batch = replace(batch, origin=torch.tensor([0, 0, REPLAY]))
    assert LINK.remember(batch, LINK.init()).tolist() == [True, False, False]
    turns = rows([1.0, 1.0], [0, 0], turn=[[0, 0, 0], [0, 0, 1]])
    assert LINK.remember(turns, LINK.init()).tolist() == [False, True]


def test_the_queue_of_means_forgets_the_oldest():
    link = Spear(baseline=3)
    first = link.collect(BATCH, link.init())
    assert first["means"].tolist() == [0.5, 1.0]
    assert link.base(first) == 0.75
    second = link.collect(rows([0.0, 0.2], [5, 5]), {**first, "step": 4})
    third = link.collect(rows([0.4], [6]), second)
    assert third["means"].tolist() == pytest.approx([1.0, 0.1, 0.4])
    assert third["step"] == 4
    assert link.update(third, None, Progress(9, 10))["step"] == 9


@given(st.permutations(range(4)))
@settings(deadline=None)
def test_the_means_do_not_depend_on_the_order(order):
    mean, deviation, _ = group_means(BATCH.take(torch.tensor(order)))
    assert mean.tolist() == [0.5, 1.0]
    assert deviation.tolist() == [0.5, 0.0]


# --- the tool reward


def test_tool_turns_are_paid_up_to_ten():
    link = Spear(tools=2.0, tool_horizon=10)
    batch = rows([1.0, 0.0, 0.0], [0, 0, 0], turn=[[0, 1, 2], [0, 20, 25], [0, 0, 0]])
    assert link.reward(batch, state(step=0)).tolist() == pytest.approx([1.4, 2.0, 0.0])
    assert link.reward(batch, state(step=10)).tolist() == [1.0, 0.0, 0.0]
    assert link.reward(BATCH, state(step=0)) is BATCH.reward


def test_a_played_update_replays_by_the_ratio_to_the_policy_that_sampled():
    scene = world(2)
    link = Spear().embedded()
    lived = {"means": torch.tensor([0.2], dtype=torch.float64), "step": 20}
    found = play(link, scene, state=lived)
    new = found.rollouts.origin == REPLAY
    assert int(new.sum()) == 4
    assert (found.rollouts.age[new] > 0).all()
    assert (found.gradient[new].abs().sum((1, 2)) > 0).all()


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"Spear: replayed must be at least 1\. Got 0"):
        Spear(replayed=0)
    with pytest.raises(ValueError, match=r"Spear: share must be a fraction in \[0, 1\]\. Got 25"):
        Spear(share=25)
    with pytest.raises(ValueError, match=r"Spear: coef must be at least 0\. Got -1"):
        Spear(coef=-1)
