"""AWM: gradients, the noise of the noisy target, invariances."""

import pytest
import torch

from isentrope.control.recipes.awm import Awm, interpolate, noise_of_target, prompt_advantage


def scene(times=3, samples=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    make = lambda rows: torch.randn(rows, 2, 3, generator=draw, dtype=torch.float64)  # noqa: E731
    t = torch.rand(times * samples, generator=draw, dtype=torch.float64) * 0.9 + 0.05
    advantage = torch.tensor([2.0, -1.0, 7.0, 0.5], dtype=torch.float64)
    return make(times * samples).requires_grad_(True), make(samples), make(times * samples), t, advantage


def test_on_policy_the_gradient_is_the_advantage_times_that_of_the_likelihood():
    velocity, x0, noise, t, advantage = scene()
    for link in (Awm(), Awm(weighting="uniform"), Awm(weighting="huber")):
        found = link.loss(velocity, x0, noise, t, advantage)
        assert torch.equal(found.ratio, torch.ones(12, dtype=torch.float64))
        (slope,) = torch.autograd.grad(found.loss, velocity)
        likelihood = link.log_likelihood(velocity, noise - x0.repeat(3, 1, 1), t)
        (own,) = torch.autograd.grad((-link.advantage(advantage).repeat(3) * likelihood).mean(), velocity)
        assert torch.allclose(slope, own)


def test_gradient_of_the_generalised_huber_form():
    """-dl = t (m + 1e-10)^(a - 1) dm."""
    velocity, x0, noise, t, _ = scene()
    target = noise - x0.repeat(3, 1, 1)
    (slope,) = torch.autograd.grad(Awm().log_likelihood(velocity, target, t).sum(), velocity)
    gap = (velocity - target).detach()
    m = gap.flatten(1).square().mean(-1)
    assert torch.allclose(slope, -(t * (m + 1e-10) ** -0.75)[:, None, None] * 2 * gap / 6)


def test_the_likelihood_is_zero_at_the_target_and_finite_there():
    _velocity, x0, noise, t, advantage = scene()
    at = (noise - x0.repeat(3, 1, 1)).requires_grad_(True)
    for weighting in ("uniform", "t", "t2", "huber", "ghuber"):
        link = Awm(weighting=weighting)
        assert torch.allclose(link.log_likelihood(at, at, t), torch.zeros(12, dtype=torch.float64))
        assert torch.isfinite(torch.autograd.grad(link.loss(at, x0, noise, t, advantage).loss, at)[0]).all()


def test_ratios_are_clipped_where_it_hurts():
    """A > 0 gains nothing beyond 1 + c, A < 0 loses nothing below 1 - c."""
    _velocity, x0, noise, t, _ = scene()
    target = noise - x0.repeat(3, 1, 1)
    near, far = target + 0.01, target + 3.0
    link = Awm(weighting="uniform", clip=0.2, advantage_max=5.0)
    for sign, current, old, kept in ((1.0, near, far, False), (1.0, far, near, True), (-1.0, far, near, False), (-1.0, near, far, True)):
        leaf = current.clone().requires_grad_(True)
        found = link.loss(leaf, x0, noise, t, torch.full((4,), sign, dtype=torch.float64), old=old)
        (slope,) = torch.autograd.grad(found.loss, leaf)
        assert (slope.abs().max() > 0) == kept


def test_the_kls_vanish_at_their_references():
    velocity, x0, noise, t, advantage = scene()
    for weight in ("uniform", "elbo"):
        link = Awm(kl_weight=weight)
        found = link.loss(velocity, x0, noise, t, advantage, reference=velocity.detach(), ema=velocity.detach() + 1)
        assert found.kl.item() == 0
        assert found.ema_kl > 0
        assert torch.allclose(found.loss, found.policy + found.ema_kl)


def test_advantages_are_affine_invariant_and_zero_for_equal_rewards():
    reward = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 1.0], dtype=torch.float64)
    prompt = torch.tensor([0, 0, 1, 1, 2, 2])
    found = prompt_advantage(reward, prompt)
    assert torch.allclose(prompt_advantage(7 * reward - 3, prompt, epsilon=7e-4), found)
    assert found[2:4].abs().max() == 0
    assert torch.allclose(prompt_advantage(reward, prompt, scale="group", epsilon=0.0)[:2], torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_the_noisy_target_is_the_clean_one_plus_independent_noise():
    """kappa = 1/3 at sigma_t = 1, sigma_s = 1/2, by 400,000 samples of two-point data; independent of the noisy state."""
    draw = torch.Generator().manual_seed(0)
    n, s, t = 400_000, 0.5, 1.0
    y = torch.randint(2, (n,), generator=draw).double() * 2 - 1
    state = y + s * torch.randn(n, generator=draw, dtype=torch.float64)
    fresh = torch.randn(n, generator=draw, dtype=torch.float64)
    later = state + (t**2 - s**2) ** 0.5 * fresh
    extra = later - t**2 / (t**2 - s**2) ** 0.5 * fresh - y
    assert noise_of_target(s, t) == pytest.approx(1 / 3)
    assert float(extra.var()) == pytest.approx(1 / 3, abs=4 * (2 / n) ** 0.5 / 3)
    assert abs(float(extra.mean())) < 4 * (1 / 3 / n) ** 0.5
    for other in (y, later, later**2):
        assert abs(float(torch.corrcoef(torch.stack([extra, other]))[0, 1])) < 4 / n**0.5
    assert noise_of_target(0.999, 1.0) > 400
    assert noise_of_target(0.0, 1.0) == 0


def test_interpolation_ends():
    _, x0, noise, _, _ = scene(times=1)
    assert torch.equal(interpolate(x0, noise, torch.zeros(4)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(4)), noise)


def test_bad_arguments_are_told():
    velocity, x0, noise, t, advantage = scene()
    with pytest.raises(ValueError, match="power must be above 0"):
        Awm(power=0)
    with pytest.raises(ValueError, match="rows must be times x samples"):
        Awm().loss(velocity[:11], x0, noise[:11], t[:11], advantage)
    with pytest.raises(ValueError, match="sigma_s must be in"):
        noise_of_target(1.0, 1.0)
