"""The data of an update: what may be permuted, cut, joined and padded without any number changing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.stages import policy_loss
from isentrope.control.step import Need, Normaliser, Progress, Rollouts, RowRng, Stats, Step, concatenate, join_steps, micro_batches, pad_width
from isentrope.measure.tokens import Entropy

ids = st.lists(st.integers(0, 2**42), min_size=1, max_size=20, unique=True)


# --- RowRng


def splitmix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) in unbounded integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@given(st.integers(-5, 2**40), st.integers(-(2**30), 2**30), st.integers(0, 2**42), st.integers(0, 9))
def test_row_rng_is_the_counter_hash_it_says(seed, step, row, position):
    golden = 0x9E3779B97F4A7C15
    key = splitmix(seed % 2**64)
    for part in (step, 0):
        key = splitmix(key ^ splitmix((part + golden) % 2**64))
    start = splitmix(key ^ splitmix((row + golden) % 2**64))
    expected = (splitmix((start + (position + 1) * golden) % 2**64) >> 11) / 2**53
    assert RowRng(seed, step).uniform(torch.tensor([row]), position + 1)[0, position].item() == expected


@given(ids, st.integers(1, 6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_row_has_its_numbers_wherever_it_stands_and_however_wide(rows, width, more, shuffle):
    row_id = torch.tensor(rows)
    whole = RowRng(3, 4, 5).uniform(row_id, width + more)
    order = torch.tensor(shuffle.sample(range(len(rows)), len(rows)))
    assert torch.equal(RowRng(3, 4, 5).uniform(row_id[order], width), whole[order][:, :width])
    assert torch.equal(RowRng(3, 4, 5).uniform(row_id[:1], width), whole[:1, :width])


def test_uniform_in_the_unit_interval_by_chi_square_over_rows_positions_steps_and_streams():
    rows = torch.arange(4000)
    for rng, width in ((RowRng(), 25), (RowRng(1, -7), 25), (RowRng(0, 3).child(2), 25), (RowRng(2**40), 1)):
        drawn = rng.uniform(rows, width)
        assert drawn.dtype == torch.float64
        assert drawn.min() >= 0
        assert drawn.max() < 1
        counts = torch.histc(drawn, bins=50, min=0, max=1)
        expected = drawn.numel() / 50
        chi = ((counts - expected) ** 2 / expected).sum()  # 49 degrees of freedom: mean 49, standard deviation 9.9
        assert 49 - 5 * 9.9 < chi < 49 + 5 * 9.9
    drawn = torch.stack([RowRng(0, step).uniform(torch.zeros(1, dtype=torch.long), 1)[0, 0] for step in range(2000)])
    assert abs(float(drawn.mean()) - 0.5) < 5 * (1 / 12 / 2000) ** 0.5  # successive steps of one row are as good as rows of one step


def test_seeds_steps_streams_rows_and_positions_are_uncorrelated():
    rows = torch.arange(5000)
    base = RowRng(7, 11).uniform(rows, 4)
    others = {
        "seed": RowRng(8, 11).uniform(rows, 4),
        "step": RowRng(7, 12).uniform(rows, 4),
        "swapped": RowRng(11, 7).uniform(rows, 4),
        "stream": RowRng(7, 11).child(0).uniform(rows, 4),
        "grandchild": RowRng(7, 11).child(0).child(0).uniform(rows, 4),
        "next row": RowRng(7, 11).uniform(rows + 1, 4),
        "next position": RowRng(7, 11).uniform(rows, 5)[:, 1:],
        "row and position exchanged": RowRng(7, 11).uniform(rows, 4).flip(1),
    }
    for name, other in others.items():
        assert not torch.equal(base, other), name
        correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 5 / base.numel() ** 0.5, name


def test_children_of_different_links_differ_and_those_of_one_link_agree():
    rows = torch.arange(3)
    drawn = [RowRng(1, 2).child(link).uniform(rows, 2) for link in range(50)]
    assert torch.equal(drawn[7], RowRng(1, 2).child(7).uniform(rows, 2))
    assert len({tuple(value.flatten().tolist()) for value in drawn}) == 50


# --- rollouts


def rollouts(rows: int = 4, width: int = 5, start: int = 0, **known) -> Rollouts:
    mask = torch.arange(width) < torch.arange(rows)[:, None] % width + 1
    return Rollouts.of(
        mask, row_id=torch.arange(rows) + start, reward=torch.arange(rows).double() + start, text=tuple(f"row {start + i}" for i in range(rows)), **known
    )


def step_of(rolled: Rollouts, **known) -> Step:
    generator = torch.Generator().manual_seed(int(rolled.row_id[0]))
    shape = rolled.trained_mask.shape
    log_probs = -torch.rand(shape, generator=generator, dtype=torch.float64)
    old = log_probs + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantage = torch.randn(len(rolled), 1, generator=generator, dtype=torch.float64)
    entropy = torch.rand(shape, generator=generator, dtype=torch.float64)
    rolled = replace(rolled, old_log_probs=old, advantage=advantage)
    return Step(rolled, log_probs, {"current.entropy": entropy}, **known)


def test_lengths_and_token_advantages_count_trained_tokens_only():
    rolled = rollouts(advantage=torch.full((4, 1), 2.0))
    assert rolled.lengths.tolist() == [1, 2, 3, 4]
    assert rolled.token_advantage().sum(1).tolist() == [2, 4, 6, 8]
    fine = replace(rolled, advantage=torch.full((4, 5), float("nan")).masked_fill(rolled.trained_mask, 1.0))
    assert fine.token_advantage().sum().item() == 10


@given(st.permutations(range(4)))
def test_take_takes_every_field_in_the_order_given(order):
    rolled = rollouts(signals={"old.entropy": torch.arange(20.0).reshape(4, 5)}, turn=torch.arange(20).reshape(4, 5))
    taken = rolled.take(torch.tensor(order))
    assert taken.row_id.tolist() == list(order)
    assert taken.reward.tolist() == list(order)
    assert taken.text == tuple(f"row {i}" for i in order)
    assert taken.signals["old.entropy"][:, 0].tolist() == [5.0 * i for i in order]
    assert taken.turn[:, 0].tolist() == [5 * i for i in order]
    assert taken.ref_log_probs is None


def test_concatenate_pads_on_the_right_and_undoes_what_take_cut():
    narrow, wide = rollouts(2, 3), rollouts(3, 5, start=2)
    joined = concatenate([narrow, wide])
    assert joined.row_id.tolist() == [0, 1, 2, 3, 4]
    assert joined.trained_mask.shape == (5, 5)
    assert torch.equal(joined.lengths, torch.cat([narrow.lengths, wide.lengths]))
    assert torch.equal(joined.trained_mask[:2], pad_width(narrow.trained_mask, 5))
    assert not joined.trained_mask[:2, 3:].any()
    assert joined.text == (*narrow.text, *wide.text)
    assert torch.equal(joined.take(torch.arange(2, 5)).trained_mask, wide.trained_mask)
    assert concatenate([wide]) is wide


def test_concatenate_keeps_what_all_parts_have_and_makes_advantages_alike():
    one = rollouts(2, 3, advantage=torch.tensor([[1.0], [2.0]]), signals={"old.entropy": torch.ones(2, 3), "old.S": torch.ones(2, 3)})
    two = rollouts(2, 4, start=2, advantage=torch.arange(8.0).reshape(2, 4), signals={"old.entropy": torch.ones(2, 4)}, turn=torch.zeros(2, 4).long())
    joined = concatenate([one, two])
    assert set(joined.signals) == {"old.entropy"}
    assert joined.turn is None
    assert joined.advantage.tolist() == [[1, 1, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3], [4, 5, 6, 7]]
    per_row = concatenate([one, replace(two, advantage=torch.zeros(2, 1))])
    assert per_row.advantage.shape == (4, 1)


# --- steps


def test_a_signal_that_is_not_there_is_named_with_what_is():
    step = step_of(rollouts(signals={"old.entropy": torch.ones(4, 5)}))
    assert torch.equal(step.signal("old.entropy"), torch.ones(4, 5))
    assert step.signal(Need(Entropy()).key) is step.signals["current.entropy"]
    assert Need(Entropy(), policy="old").key == "old.entropy"
    with pytest.raises(KeyError, match=r"current\.S.*not here.*current\.entropy.*needs"):
        step.signal("current.S")
    with pytest.raises(KeyError, match=r"old\.N.*old\.entropy"):
        step.signal("old.N")


def test_old_log_probs_are_the_current_ones_without_gradient_where_the_trainer_has_none():
    step = step_of(rollouts())
    step = replace(step, log_probs=step.log_probs.requires_grad_(True), rollouts=replace(step.rollouts, old_log_probs=None))
    assert torch.equal(step.old_log_probs, step.log_probs)
    assert not step.old_log_probs.requires_grad


def test_detached_carries_no_gradient():
    step = step_of(rollouts())
    leaf = step.log_probs.clone().requires_grad_(True)
    step = replace(step, log_probs=leaf, signals={"current.entropy": 2 * leaf}, ratio=leaf.exp()).detached()
    assert not any(value.requires_grad for value in (step.log_probs, step.ratio, *step.signals.values()))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_micro_batches_joined_are_the_step(size):
    step = step_of(rollouts(6, 4))
    joined = join_steps(list(micro_batches(step, size)))
    assert torch.equal(joined.log_probs, step.log_probs)
    assert torch.equal(joined.mask, step.mask)
    assert torch.equal(joined.signals["current.entropy"], step.signals["current.entropy"])
    assert torch.equal(joined.rollouts.row_id, step.rollouts.row_id)
    assert torch.equal(joined.old_log_probs, step.old_log_probs)
    assert joined.normaliser.rows == 6
    assert joined.normaliser.accumulation == 1
    assert joined.normaliser.token_divisor is None


def test_a_joined_view_on_policy_holds_each_slices_own_log_probs_as_old():
    step = step_of(rollouts(4, 4))
    step = replace(step, rollouts=replace(step.rollouts, old_log_probs=None))
    assert torch.equal(join_steps(list(micro_batches(step, 2))).old_log_probs, step.log_probs)


def test_slices_of_unequal_width_join_to_the_widest():
    parts = [step_of(rollouts(2, 3)), step_of(rollouts(2, 5, start=2))]
    joined = join_steps(parts)
    assert joined.log_probs.shape == (4, 5)
    assert not joined.mask[:2, 3:].any()
    assert torch.equal(joined.log_probs[:2, :3], parts[0].log_probs)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo", "cispo"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_losses_of_micro_batches_add_up_to_the_loss_of_the_whole(name, size):
    step = step_of(rollouts(6, 4))
    objective = Objective.named(name)
    whole = policy_loss(step, objective).loss
    parts = sum(policy_loss(part, objective).loss for part in micro_batches(step, size))
    assert abs(float(whole)) > 1e-3
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_micro_batches_of_micro_batches_still_add_up(name):
    step = step_of(rollouts(8, 4))
    objective = Objective.named(name)
    nested = sum(policy_loss(inner, objective).loss for outer in micro_batches(step, 4) for inner in micro_batches(outer, 2))
    torch.testing.assert_close(nested, policy_loss(step, objective).loss, rtol=1e-12, atol=1e-14)


def test_micro_batches_refuse_a_size_that_leaves_a_rest():
    with pytest.raises(ValueError, match=r"size must divide the 4 rows\. Got 3"):
        list(micro_batches(step_of(rollouts()), 3))


def test_the_token_divisor_of_the_trainer_is_kept():
    step = step_of(rollouts(), normaliser=Normaliser(token_divisor=77.0))
    assert all(part.normaliser.token_divisor == 77.0 for part in micro_batches(step, 2))


# --- stats


def test_stats_are_looked_up_by_row_id_and_cut_to_the_width_of_the_slice():
    row_id = torch.tensor([30, 10, 20])
    stats = Stats(row_id, {}, {"x": row_id[:, None].double() * torch.ones(3, 6)}, {"y": row_id.double()})
    step = step_of(rollouts(2, 4))
    step = replace(step, rollouts=replace(step.rollouts, row_id=torch.tensor([20, 30])))
    assert torch.equal(stats.token("x", step), torch.tensor([[20.0] * 4, [30.0] * 4], dtype=torch.float64))
    assert stats.response("y", step).tolist() == [20, 30]


@pytest.mark.parametrize("missing", [5, 25, 99])
def test_a_row_that_was_not_surveyed_is_an_error_that_names_it(missing):
    stats = Stats(torch.tensor([30, 10, 20]), responses={"y": torch.zeros(3)})
    step = step_of(rollouts(2, 4))
    step = replace(step, rollouts=replace(step.rollouts, row_id=torch.tensor([20, missing])))
    with pytest.raises(KeyError, match=rf"\[{missing}\].*every row of the update"):
        stats.response("y", step)


def test_progress_is_a_fraction_of_the_plan():
    assert [Progress(step, 4).fraction for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert Progress(3, 0).fraction == 1
