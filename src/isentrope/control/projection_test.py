"""ResRL's weights: the lemma behind them, residuals in their corners, invariances, the rules of a group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.projection import layer_norm, length_factor, projection_weights, residual_energy, residual_weights, reweighted
from isentrope.control.step import RowRng


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int = 0):
    """(hidden, mask, positive, group): two mixed groups of four, one of right answers only."""
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[::3, 4] = False
    positive = torch.tensor([True, False, True, False] * 2 + [True] * 4)
    return normal(12, 5, 8, seed=seed), mask, positive, torch.tensor([3, 3, 3, 3, 1, 1, 1, 1, 2, 2, 2, 2])


def test_head_gradients_interfere_through_errors_and_states():
    """<grad_W l1, grad_W l2> = <d1, d2> <x1, x2> for z = W x."""
    head, x = normal(6, 4).requires_grad_(True), normal(2, 4, seed=1)
    slopes, errors = [], []
    for state, target in zip(x, (2, 5), strict=True):
        z = head @ state
        loss = -torch.log_softmax(z, -1)[target]
        slope, error = torch.autograd.grad(loss, (head, z))
        slopes.append(slope)
        errors.append(error)
    torch.testing.assert_close((slopes[0] * slopes[1]).sum(), (errors[0] @ errors[1]) * (x[0] @ x[1]))


def test_inside_the_subspace_nothing_is_left_and_outside_all_of_it():
    basis = torch.eye(6, dtype=torch.float64)
    rows = torch.cat([basis[:2], -basis[:2]])
    states = torch.stack([0.3 * basis[0] - 2 * basis[1], basis[4], basis[0] + 3 * basis[5]])
    assert residual_energy(states, rows, 2).tolist() == pytest.approx([0, 1 / 6, 9 / 6])


def test_residuals_fall_with_the_rank_and_vanish_on_the_rows_themselves():
    rows, states = normal(7, 10), normal(20, 10, seed=1)
    energies = torch.stack([residual_energy(states, rows, rank) for rank in range(1, 9)])
    assert bool((energies.diff(dim=0) <= 1e-12).all())
    assert torch.equal(energies[5], energies[7])  # seven rows span six directions
    assert float(residual_energy(rows, rows, 64).max()) < 1e-20


@given(st.lists(st.floats(0, 10), min_size=2, max_size=20), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_weights_stay_in_their_interval_and_rise_with_the_residual(values, least):
    energy = torch.tensor(values, dtype=torch.float64)
    found = residual_weights(energy, least=least)
    assert least - 1e-12 <= float(found.min())
    assert float(found.max()) <= 1 + 1e-12
    assert bool((found[torch.argsort(energy)].diff() >= -1e-12).all())


def test_equal_residuals_get_the_middle():
    assert residual_weights(torch.full((5,), 0.3, dtype=torch.float64)).tolist() == pytest.approx([0.55] * 5)


def test_only_wrong_answers_beside_right_ones_are_weighted():
    hidden, mask, positive, group = batch()
    found = projection_weights(hidden, mask, positive, group, rank=2)
    concerned = mask & ~positive[:, None] & (group != 2)[:, None]
    assert bool((found[~concerned] == 1).all())
    assert float(found[concerned].min()) == pytest.approx(0.1)
    assert float((found[concerned] == 1).double().mean()) >= 0.2
    few = mask.clone()
    few[[0, 2, 4, 6]] = torch.tensor([True, False, False, False, False])  # two right tokens per group
    assert bool((projection_weights(hidden, few, positive, group, rank=2) == 1).all())


def test_scale_rotation_order_and_padding_do_not_matter():
    hidden, mask, positive, group = batch()
    plain = projection_weights(hidden, mask, positive, group, rank=3)
    torch.testing.assert_close(projection_weights(1000 * hidden, mask, positive, group, rank=3), plain, rtol=0, atol=1e-3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = projection_weights(hidden[order], mask[order], positive[order], group[order], rank=3, row_id=order)
    assert torch.equal(moved, plain[order])
    dirty = torch.where(mask[..., None], hidden, torch.nan)
    assert torch.equal(projection_weights(dirty, mask, positive, group, rank=3), plain)
    turn = torch.linalg.qr(normal(8, 8, seed=5)).Q
    states, rows = layer_norm(hidden[1]), layer_norm(hidden[0])
    torch.testing.assert_close(residual_energy(states @ turn, rows @ turn, 2), residual_energy(states, rows, 2))


def test_too_many_rows_are_drawn_by_keys():
    hidden, mask, positive, group = batch()
    first, again, other = (projection_weights(hidden, mask, positive, group, rank=3, max_rows=5, rng=RowRng(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_gradient_reaches_the_states():
    hidden, mask, positive, group = batch()
    assert not projection_weights(hidden.requires_grad_(True), mask, positive, group, rank=2).requires_grad


def test_the_reweighted_advantage():
    weights = torch.tensor([[1.0, 1.0], [0.1, 0.5]], dtype=torch.float64)
    positive, advantage = torch.tensor([True, False]), torch.tensor([[2.0], [-1.0]])
    torch.testing.assert_close(reweighted(advantage, weights, positive), torch.tensor([[0.2, 0.2], [-0.1, -0.5]]))
    assert torch.equal(reweighted(advantage, torch.ones(2, 2, dtype=torch.float64), positive, 1.0), advantage.expand(2, 2))


def test_the_length_factor_at_its_corners():
    reward, lengths = torch.tensor([1.0, 2.0, 1.0, 1.0, -1.0, 0.0]), torch.tensor([10, 3500, 3798, 9000, 9000, 4096])
    assert length_factor(reward, lengths).tolist() == pytest.approx([1.0, 2.0, 0.85, 0.7, -1.0, 0.0])
