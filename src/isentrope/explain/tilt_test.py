"""The leash: its slope against autograd and differences, its limits, and what is false about it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain.tilt import entropy_parts, leash, leash_slope
from isentrope.measure.distribution import kl, shannon


def _base(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_q = (2 * torch.randn(3, 8, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return log_q, torch.rand(3, 8, generator=generator, dtype=torch.float64)


@given(seed=st.integers(0, 10_000), beta=st.floats(0, 20))
@settings(deadline=None, max_examples=40)
def test_the_slope_is_the_derivative_and_minus_the_covariance_with_the_tilted_surprisal(seed, beta):
    log_q, reward = _base(seed)
    at = torch.tensor(beta, dtype=torch.float64)
    slope = torch.func.jacfwd(lambda b: shannon(log_q + b * reward, logits=True))(at)
    torch.testing.assert_close(leash_slope(log_q, reward, beta), slope, rtol=0, atol=1e-12)
    log_p = leash(log_q, reward, beta)
    p = log_p.exp()
    covariance = (p * reward * log_p).sum(-1) - (p * reward).sum(-1) * (p * log_p).sum(-1)
    torch.testing.assert_close(leash_slope(log_q, reward, beta), -covariance, rtol=0, atol=1e-12)


def test_it_is_the_best_policy_for_its_distance():
    log_q, reward = _base(1)
    best = leash(log_q, reward, 2.0)

    def value(log_p: torch.Tensor) -> torch.Tensor:
        return (log_p.exp() * reward).sum(-1) - kl(log_p, log_q, logits=True) / 2.0

    for seed in range(20):
        other = (best + 0.3 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)
        assert (value(best) > value(other)).all()


def test_what_the_base_never_does_is_never_learned():
    log_q = torch.tensor([0.5, 0.5, 0.0]).log()
    assert leash(log_q, torch.tensor([0.0, 1.0, 5.0]), 100.0)[2] == -math.inf


def test_entropy_may_rise_above_the_bases():
    """The counterexample of the sheet: one likely wrong answer, two rare right ones."""
    log_q, reward = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log(), torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert float(shannon(log_q, logits=True)) == pytest.approx(0.394, abs=5e-4)
    assert float(shannon(leash(log_q, reward, 50.0), logits=True)) == pytest.approx(math.log(2))
    assert float(leash_slope(log_q, reward, 0.0)) > 0


@given(seed=st.integers(0, 10_000), beta=st.floats(0, 20))
@settings(deadline=None, max_examples=40)
def test_a_reward_of_zero_or_one_moves_only_the_chance_of_being_correct(seed, beta):
    log_q, reward = _base(seed)
    correct = reward > 0.4
    base, after = entropy_parts(log_q, correct), entropy_parts(leash(log_q, correct.double(), beta), correct)
    torch.testing.assert_close(base.whole, shannon(log_q, logits=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(after.correct, base.correct, rtol=0, atol=1e-10)
    torch.testing.assert_close(after.wrong, base.wrong, rtol=0, atol=1e-6)  # 1 - chance is e^-20 of what it was
    assert (after.chance >= base.chance - 1e-15).all()


def test_all_correct_or_none_has_one_part():
    log_q, _ = _base(2)
    parts = entropy_parts(log_q, torch.ones_like(log_q, dtype=torch.bool))
    torch.testing.assert_close(parts.correct, shannon(log_q, logits=True))
    assert float(parts.wrong.abs().max()) == 0
    assert float(parts.between.abs().max()) < 1e-14
