"""Results of 2507.20150 on random tabular problems: inequalities, constant jumps, tightness."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain.stability import (
    hard_jump,
    margin,
    optimal_actions,
    optimal_values,
    policy_shift_bound,
    smoothing_cost,
    softmax_shift_bound,
    tie_breaker,
)  # fmt: skip

DISCOUNT = 0.8
seeds = given(seed=st.integers(0, 10_000))


def _problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    return reward, torch.rand(5, 4, 5, generator=generator, dtype=torch.float64).log().mul(3).softmax(-1)


def _tied(seed: int, tied: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with `tied` equally good actions in state 0: their rewards and transitions are one."""
    reward, transition = _problem(seed)
    reward[0, :tied], transition[0, :tied] = reward.max() + 1, transition[0, 0]
    return reward, transition


def _shift(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p - q).abs().sum(-1) / 2


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 0.05, 1.0]))
@settings(deadline=None, max_examples=15)
def test_values_solve_bellmans_equation_and_move_no_more_than_the_reward_over_one_minus_discount(seed, temperature):
    reward, transition = _problem(seed)
    change = 0.1 * (2 * torch.rand(5, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) - 1)
    first, second = (optimal_values(r, transition, discount=DISCOUNT, temperature=temperature) for r in (reward, reward + change))
    value = first.amax(-1) if temperature == 0 else temperature * (first / temperature).logsumexp(-1)
    torch.testing.assert_close(first, reward + DISCOUNT * (transition @ value), rtol=0, atol=1e-11)
    assert (first - second).abs().max() <= change.abs().max() / (1 - DISCOUNT) + 1e-12


@seeds
@settings(deadline=None, max_examples=10)
def test_a_margin_protects_the_hard_policy(seed):
    reward, transition = _problem(seed)
    q = optimal_values(reward, transition, discount=DISCOUNT)
    allowed = float(margin(q).min()) * (1 - DISCOUNT) / 2
    change = 0.99 * allowed * (2 * torch.rand(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1).sign()
    assert torch.equal(optimal_values(reward + change, transition, discount=DISCOUNT).argmax(-1), q.argmax(-1))


@given(seed=st.integers(0, 10_000), tied=st.integers(2, 4), size=st.sampled_from([1e-1, 1e-3, 1e-6]))
@settings(deadline=None, max_examples=20)
def test_any_change_however_small_takes_the_whole_policy_to_one_of_the_tied(seed, tied, size):
    reward, transition = _tied(seed, tied)
    q = optimal_values(reward, transition, discount=DISCOUNT)
    assert int(optimal_actions(q)[0].sum()) == tied
    changed = tie_breaker(reward, transition, state=0, action=1, size=size, discount=DISCOUNT)
    assert (changed - reward).abs().max() <= size + 1e-11
    after = optimal_values(changed, transition, discount=DISCOUNT)
    assert optimal_actions(after, tolerance=size / 10)[0].nonzero().flatten().tolist() == [1]
    uniform, now = optimal_actions(q)[0].double() / tied, optimal_actions(after, tolerance=size / 10)[0].double()
    assert float(_shift(uniform, now)) == pytest.approx(hard_jump(tied), abs=1e-15)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-6, 0.01, 0.3]), coef=st.sampled_from([0.05, 0.5, 5.0]))
@settings(deadline=None, max_examples=25)
def test_with_entropy_the_policy_moves_in_proportion(seed, size, coef):
    reward, transition = _tied(seed, 3)
    change = size * (2 * torch.rand(5, 4, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) - 1).sign()
    first, second = (optimal_values(r, transition, discount=DISCOUNT, temperature=coef) for r in (reward, reward + change))
    shift = _shift((first / coef).softmax(-1), (second / coef).softmax(-1))
    sharp = softmax_shift_bound(second - first, coef=coef)
    assert (shift <= sharp + 1e-9).all()
    assert float(sharp.max()) <= policy_shift_bound(size, coef=coef, discount=DISCOUNT) + 1e-9


def test_the_bound_is_met_by_two_actions_to_first_order():
    change = torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    shift = _shift(torch.full((2,), 0.5, dtype=torch.float64), (change / 0.3).softmax(-1))
    assert float(shift) / policy_shift_bound(1e-6, coef=0.3) == pytest.approx(1.0, rel=1e-6)


@given(seed=st.integers(0, 10_000), coef=st.sampled_from([0.01, 0.3, 3.0]))
@settings(deadline=None, max_examples=20)
def test_a_base_policy_does_not_change_the_bound(seed, coef):
    """KL-regularised: pi ~ base exp(R / coef), here with any base."""
    generator = torch.Generator().manual_seed(seed)
    base, reward, change = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    shift = _shift((base + reward / coef).softmax(-1), (base + (reward + change) / coef).softmax(-1))
    assert shift <= softmax_shift_bound(change, coef=coef) + 1e-12


@seeds
@settings(deadline=None, max_examples=20)
def test_smoothing_costs_at_most_coef_ln_actions(seed):
    q = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for coef in (0.05, 1.0):
        lost = q.amax(-1) - ((q / coef).softmax(-1) * q).sum(-1)
        assert (lost >= 0).all()
        assert (lost <= smoothing_cost(7, coef=coef)).all()


def test_bad_parameters_are_refused():
    reward, transition = _problem(0)
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\).*Got 1\.0"):
        optimal_values(reward, transition, discount=1.0)
    with pytest.raises(ValueError, match=r"temperature must be >= 0.*Got -1\.0"):
        optimal_values(reward, transition, discount=0.5, temperature=-1.0)
    with pytest.raises(ValueError, match=r"coef must be > 0.*Got 0\.0"):
        policy_shift_bound(0.1, coef=0.0)
    worst = int(optimal_values(reward, transition, discount=0.5)[0].argmin())
    with pytest.raises(ValueError, match=rf"tie_breaker: action must be optimal in state 0: \[\d\]. Got {worst}"):
        tie_breaker(reward, transition, state=0, action=worst, size=0.1, discount=0.5)
    assert math.isclose(policy_shift_bound(100.0, coef=0.1), 1.0)
