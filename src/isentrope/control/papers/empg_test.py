"""EMPG: one batch by hand, the exact statements of its sheet on synthetic turns, and the score's energy against autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.empg import Empg, clarity_of_next, expected_score_energy, scaling, steps
from isentrope.control.step import Rollouts

TURNS = torch.tensor([[0, 0, 1, 1, 1, 2], [5, 5, 9, 9, 9, 9], [3, 3, 3, 3, 3, 3]])


def batch(entropy: torch.Tensor | None = None, advantage=(1.0, -1.0, 0.5)) -> Rollouts:
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 5], mask[0, 3] = False, False
    entropy = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if entropy is None else entropy
    known = {"advantage": torch.tensor(advantage, dtype=torch.float64)[:, None], "signals": {"old.entropy": entropy}}
    return Rollouts.of(mask, row_id=torch.tensor([30, 10, 20]), turn=TURNS, **known)


def by_step(value: torch.Tensor, rollouts: Rollouts) -> list[float]:
    """One number per (row, turn), which must be constant on it."""
    found = []
    for row in range(3):
        for turn in rollouts.turn[row].unique().tolist():
            here = value[row][(rollouts.turn[row] == turn) & rollouts.trained_mask[row]]
            assert bool((here == here[0]).all())
            found.append(float(here[0]))
    return found


def test_steps_are_turns_of_a_row_with_their_mean_entropy():
    rollouts = batch(torch.arange(18.0).reshape(3, 6))
    found = steps(rollouts.signal("old.entropy"), rollouts.trained_mask, rollouts.turn, rollouts.row_id)
    assert found.entropy.tolist() == [6.5, 9.0, 14.5, 0.5, 3.0, 5.0]  # rows 10, 20, 30; the masked positions are out
    assert found.followed.tolist() == [True, False, False, True, True, False]
    assert found.of[0].tolist() == [3, 3, 4, 0, 4, 5]
    whole = steps(rollouts.signal("old.entropy"), rollouts.trained_mask, None, rollouts.row_id)
    assert len(whole.entropy) == 3
    assert not whole.followed.any()


def test_by_hand():
    """Two responses of two turns, entropies 0, 1 and 1, 0; A = 1 and -1; k = k' = ln 2, zeta = 1/2."""
    entropy = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    rollouts = Rollouts.of(
        torch.ones(2, 2, dtype=torch.bool), turn=torch.tensor([[0, 1], [0, 1]]),
        advantage=torch.tensor([[1.0], [-1.0]], dtype=torch.float64), signals={"old.entropy": entropy},
    )  # fmt: skip
    link = Empg(sharpness=math.log(2), clarity=math.log(2), bonus=0.5, variant="paper")
    # g = 4/3 certain, 2/3 uncertain; f = 1/2 before the uncertain step, 1 before the certain one; mean of A g + f / 2 is 3/16
    torch.testing.assert_close(link.advantage(rollouts, {}), torch.tensor([[4 / 3 + 1 / 4, 2 / 3], [-2 / 3 + 1 / 2, -4 / 3]], dtype=torch.float64) - 3 / 16)


@given(st.floats(0, 4), st.lists(st.floats(0, 5), min_size=2, max_size=12, unique=True).filter(lambda x: max(x) - min(x) > 1e-3))
@settings(max_examples=25, deadline=None)
def test_g_has_mean_one_and_ratio_e_to_the_k_and_falls(sharpness, values):
    entropy = torch.tensor(values, dtype=torch.float64)
    g = scaling(entropy, sharpness)
    assert float(g.mean()) == pytest.approx(1)
    assert float(g.max() / g.min()) == pytest.approx(math.exp(sharpness))
    assert bool((g[torch.argsort(entropy)].diff() <= 1e-12).all())
    torch.testing.assert_close(scaling(entropy / math.log(2) + 3, sharpness), g, rtol=1e-9, atol=1e-12)


def test_all_of_it_is_the_same_in_bits():
    rollouts = batch()
    link = Empg(sharpness=2.0)
    bits = batch(rollouts.signal("old.entropy") / math.log(2))
    torch.testing.assert_close(link.advantage(rollouts, {}), link.advantage(bits, {}))


@pytest.mark.parametrize("variant", ["fixed", "paper"])
def test_steps_sum_to_zero(variant):
    rollouts = batch()
    assert sum(by_step(Empg(variant=variant).advantage(rollouts, {}), rollouts)) == pytest.approx(0, abs=1e-12)


def test_without_scaling_and_bonus_it_is_the_advantage_less_its_mean_over_steps():
    rollouts = batch()
    found = by_step(Empg(sharpness=0, bonus=0).advantage(rollouts, {}), rollouts)
    mean = (3 * 1.0 - 2 * 1.0 + 0.5) / 6
    assert found == pytest.approx([1 - mean, 1 - mean, 1 - mean, -1 - mean, -1 - mean, 0.5 - mean])


def test_certain_steps_are_pushed_up_and_punished_more():
    entropy = torch.tensor([[0.1, 2.0], [0.1, 2.0]], dtype=torch.float64)
    known = {"advantage": torch.tensor([[1.0], [-1.0]], dtype=torch.float64), "signals": {"old.entropy": entropy}}
    rollouts = Rollouts.of(torch.ones(2, 2, dtype=torch.bool), turn=torch.tensor([[0, 1], [0, 1]]), **known)
    found = Empg(bonus=0).advantage(rollouts, {})
    assert found[0, 0] > 1 > found[0, 1] > 0
    assert found[1, 0] < -1 < found[1, 1] < 0


def test_published_bonus_pays_for_length_and_ours_does_not():
    """Nearly constant entropy, A = 0: every step but the last gains from the published bonus."""
    flat = 1 + 1e-3 * torch.rand(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat[0, 0] = 1.5  # one outlier spans the range, all others are alike
    rollouts = batch(flat, advantage=(0.0, 0.0, 0.0))
    paper = by_step(Empg(variant="paper").advantage(rollouts, {}), rollouts)
    fixed = by_step(Empg().advantage(rollouts, {}), rollouts)
    assert min(paper[0], paper[1], paper[3]) > 0 > max(paper[2], paper[4], paper[5])
    assert max(map(abs, fixed)) < 1e-3


def test_what_cannot_be_compared_is_left_alone():
    one = torch.tensor([1.0], dtype=torch.float64)
    assert scaling(one, 3.0).tolist() == [1.0]
    assert scaling(torch.full((4,), 0.7, dtype=torch.float64), 3.0).tolist() == [1.0] * 4
    assert not clarity_of_next(torch.full((4,), 0.7, dtype=torch.float64), torch.ones(4, dtype=torch.bool), 1.0, False).any()


def test_no_gradient_reaches_entropy_or_advantage():
    entropy = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    assert not Empg().advantage(batch(entropy), {}).requires_grad


def test_the_energy_of_the_score_is_one_minus_the_collision_probability():
    logits = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    p = torch.softmax(logits, -1)
    total = torch.zeros((), dtype=torch.float64)
    for k in range(7):
        leaf = logits.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(torch.log_softmax(leaf, -1)[k], leaf)
        total = total + p[k] * slope.square().sum()
    torch.testing.assert_close(expected_score_energy(p.square().sum()), total)


@pytest.mark.parametrize(("wrong", "says"), [({"sharpness": -1.0}, "aepo-agentic"), ({"clarity": float("nan")}, "at least 0"), ({"bonus": -0.1}, "0.1")])
def test_wrong_parameters_say_the_way_out(wrong, says):
    with pytest.raises(ValueError, match=rf"Empg: .*{says}"):
        Empg(**wrong)


def test_a_bonus_that_outweighs_the_advantage_warns():
    with pytest.warns(UserWarning, match="outweighs"):
        Empg(bonus=2.0)
