"""Closed forms of the one-step predictions: gradients by autograd, identities, limits. Orders of residuals: theorems_test.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain import theory
from isentrope.explain.world import SoftmaxBandit
from isentrope.measure.distribution import shannon
from isentrope.measure.tokens import Discriminant, ExpectedDiscriminant, token_signals_from_logits


def _logits(seed: int, sharpness: float = 1.0, actions: int = 9) -> torch.Tensor:
    return sharpness * torch.randn(6, actions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


many = given(seed=st.integers(0, 10_000), sharpness=st.sampled_from([0.1, 1.0, 4.0, 10.0]))


@many
@settings(deadline=None, max_examples=40)
def test_the_discriminant_is_the_negative_gradient_of_entropy(seed, sharpness):
    z = _logits(seed, sharpness).requires_grad_(True)
    (slope,) = torch.autograd.grad(shannon(z, logits=True).sum(), z)
    s = theory.discriminant(z.detach().log_softmax(-1))
    torch.testing.assert_close(s, -slope, rtol=0, atol=1e-13)
    assert s.sum(-1).abs().max() < 1e-13


@many
@settings(deadline=None, max_examples=40)
def test_n_is_the_covariance_of_p_and_its_logarithm_and_never_negative(seed, sharpness):
    log_p = _logits(seed, sharpness).log_softmax(-1)
    n = theory.expected_discriminant(log_p)
    torch.testing.assert_close(n, theory.covariance(log_p.exp(), log_p, log_p.exp()), rtol=0, atol=1e-13)
    assert (n >= -1e-15).all()


def test_the_signals_of_a_model_are_the_same_s_and_n():
    z, token = _logits(3), torch.arange(6)
    signals = token_signals_from_logits(z, token, [Discriminant(), ExpectedDiscriminant()])
    log_p = z.log_softmax(-1)
    torch.testing.assert_close(signals["S"], theory.discriminant(log_p)[torch.arange(6), token])
    torch.testing.assert_close(signals["N"], theory.expected_discriminant(log_p))


@many
@settings(deadline=None, max_examples=20)
def test_the_forms_of_theorem_one_agree(seed, sharpness):
    world = SoftmaxBandit.random(torch.Generator().manual_seed(seed), sharpness=sharpness)
    s, a, p = theory.discriminant(world.log_probs), world.advantage, world.probs
    found = theory.vanilla_change(world.log_probs, a)
    torch.testing.assert_close(found, -(p * s * a).sum(-1), rtol=0, atol=1e-13)
    torch.testing.assert_close(found, -theory.covariance(s, a, p), rtol=0, atol=1e-13)
    torch.testing.assert_close(theory.natural_change(world.log_probs, a), -(p * (world.log_probs + world.entropy[:, None]) * a).sum(-1), rtol=0, atol=1e-13)


def test_a_constant_in_the_logits_or_advantage_moves_nothing():
    world = SoftmaxBandit.random(torch.Generator().manual_seed(4))
    constant = torch.randn(8, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for predict in (theory.predicted_change, theory.natural_change):
        torch.testing.assert_close(predict(world.log_probs, world.advantage + constant), predict(world.log_probs, world.advantage))


def test_a_typical_token_is_neutral_to_its_own_logit():
    """S = 0 where ln p = -H, above it where the token is likelier than that: two tokens of opposite S, a uniform policy without any."""
    uniform = torch.full((5,), -math.log(5), dtype=torch.float64)
    assert theory.discriminant(uniform).abs().max() < 1e-16
    assert abs(float(theory.expected_discriminant(uniform))) < 1e-16
    two = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    s = theory.discriminant(two)
    assert s[0] > 0
    assert float(s.sum()) == pytest.approx(0, abs=1e-16)


def test_rewarding_a_rare_token_raises_entropy():
    """No unconditional A dH <= 0: the counterexample of sheet `entrocraft`."""
    log_p = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64).log()
    pushes = [float(theory.token_change(log_p, torch.tensor(k), torch.tensor(1.0, dtype=torch.float64))) for k in range(3)]
    assert pushes[0] < 0
    assert pushes[1] > 0
    assert pushes[2] > 0


@many
@settings(deadline=None, max_examples=20)
def test_a_push_that_does_not_depend_on_the_token_moves_nothing_on_average(seed, sharpness):
    log_p = _logits(seed, sharpness).log_softmax(-1)
    each = torch.stack([theory.token_change(log_p, torch.full((6,), k), torch.ones(6, dtype=torch.float64)) for k in range(9)], dim=-1)
    assert (log_p.exp() * each).sum(-1).abs().max() < 1e-14


@many
@settings(deadline=None, max_examples=20)
def test_probability_change_is_the_sheets_and_autograds(seed, sharpness):
    z, token = _logits(seed, sharpness), torch.randint(9, (6,), generator=torch.Generator().manual_seed(seed))
    log_p = z.log_softmax(-1)
    change, p, rows = theory.probability_change(log_p, token), log_p.exp(), torch.arange(6)
    push = torch.nn.functional.one_hot(token, 9).double() - p
    torch.testing.assert_close(change, torch.func.jvp(lambda x: x.softmax(-1), (z,), (push,))[1], rtol=0, atol=1e-14)
    own, q = p[rows, token][:, None], (p**2).sum(-1, keepdim=True)
    expected = p * (q - own - p)
    expected[rows, token] = (own * (1 - 2 * own + q)).squeeze(-1)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-14)


@many
@settings(deadline=None, max_examples=20)
def test_noise_drift_is_half_the_trace_of_hessian_times_fisher(seed, sharpness):
    z = _logits(seed, sharpness)[0]
    p = z.softmax(-1)
    hessian = torch.func.hessian(lambda x: shannon(x, logits=True))(z)
    fisher = torch.diag(p) - torch.outer(p, p)
    assert float(theory.noise_drift(z.log_softmax(-1))) == pytest.approx(float(torch.trace(hessian @ fisher)) / 2, abs=1e-13)


def test_noise_lowers_an_open_policys_entropy_and_raises_a_closed_ones():
    for size in (2, 5, 50):
        uniform = torch.zeros(size, dtype=torch.float64).log_softmax(-1)
        assert float(theory.noise_drift(uniform)) == pytest.approx(-(1 - 1 / size) / size / 2)
    closed = torch.tensor([0.99, 0.01], dtype=torch.float64).log()
    assert float(theory.noise_drift(closed)) > 0


def test_a_batch_adds_up_in_its_states():
    log_p = _logits(7).log_softmax(-1)
    state, token = torch.tensor([0, 0, 4]), torch.tensor([1, 1, 2])
    push = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    found = theory.batch_change(log_p, state, token, push)
    assert float(found[0]) == pytest.approx(float(theory.token_change(log_p[0], torch.tensor(1), push[0] + push[1])))
    assert found[[1, 2, 3, 5]].abs().max() == 0


def test_drift_from_samples_has_the_mean_of_a_sample_covariance():
    world = SoftmaxBandit.random(torch.Generator().manual_seed(9), states=1, actions=3)
    log_p, a, size = world.log_probs[0], world.advantage[0], 3
    index = torch.cartesian_prod(*[torch.arange(3)] * size)
    mean = (log_p[index].sum(-1).exp() * theory.sampled_drift(-log_p[index], a[index])).sum()
    assert float(mean) == pytest.approx((1 - 1 / size) * float(theory.natural_change(log_p, a)), rel=1e-12)


def test_the_push_norm_is_the_gradients():
    log_p, token = _logits(11).log_softmax(-1), torch.arange(6)
    push = torch.nn.functional.one_hot(token, 9).double() - log_p.exp()
    torch.testing.assert_close(theory.push_norm(log_p, token), push.norm(dim=-1))


def test_impossible_actions_and_certain_policies_have_defined_answers():
    log_p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    a, token = torch.tensor([[1.0, -1.0, torch.nan], [1.0, 2.0, 3.0]], dtype=torch.float64), torch.tensor([0, 0])
    one = torch.ones(2, dtype=torch.float64)
    for value in (theory.discriminant(log_p), theory.natural_change(log_p, a), theory.token_change(log_p, token, one), theory.noise_drift(log_p)):
        assert value.isfinite().all()
    assert float(theory.natural_change(log_p, a)[1]) == 0
    assert math.isnan(float(theory.output_baseline(log_p, token)[1]))
