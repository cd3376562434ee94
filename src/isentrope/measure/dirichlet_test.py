"""Dirichlet moments against samples and quadrature, closed forms, and the fit against the parameters that made the means."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.dirichlet import (
    dirichlet_log_density,
    dirichlet_mean,
    dirichlet_mean_entropy,
    dirichlet_mean_square_surprisal,
    fit_dirichlet,
    inverse_digamma,
)

ALPHA = torch.tensor([[0.4, 1.0, 3.0], [5.0, 5.0, 5.0], [0.2, 0.2, 8.0]], dtype=torch.float64)


def test_moments_against_samples():
    torch.manual_seed(0)
    p = torch.distributions.Dirichlet(ALPHA).sample((200_000,)).clamp(min=1e-300)
    for found, sampled in (
        (dirichlet_mean_entropy(ALPHA), -(p * p.log()).sum(-1)),
        (dirichlet_mean_square_surprisal(ALPHA), (p * p.log().square()).sum(-1)),
    ):
        torch.testing.assert_close(found, sampled.mean(0), rtol=0, atol=5 * float(sampled.std(0).max()) / math.sqrt(200_000))
    torch.testing.assert_close(dirichlet_mean(ALPHA), p.mean(0), rtol=0, atol=5e-3)


def test_the_density_integrates_to_one_and_the_released_one_does_not():
    p = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_p, alpha = torch.stack([p.log(), torch.log1p(-p)], -1), torch.tensor([2.0, 3.5], dtype=torch.float64).expand(100_000, 2)
    assert dirichlet_log_density(log_p, alpha).exp().mean().item() == pytest.approx(1, abs=1e-6)
    assert abs(dirichlet_log_density(log_p, alpha, released=True).exp().mean().item() - 1) > 0.5


def test_the_released_entropy_is_the_differential_one():
    """Minus the mean log-density; torch has it."""
    torch.testing.assert_close(dirichlet_mean_entropy(ALPHA, released=True), torch.distributions.Dirichlet(ALPHA).entropy(), rtol=1e-10, atol=1e-10)


def test_the_mean_entropy_of_a_concentrated_and_of_a_flat_prior():
    assert dirichlet_mean_entropy(torch.full((4,), 1e6, dtype=torch.float64)).item() == pytest.approx(math.log(4), abs=1e-5)
    assert dirichlet_mean_entropy(torch.full((4,), 1e-6, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-5)
    assert dirichlet_mean_entropy(torch.ones(2, dtype=torch.float64)).item() == pytest.approx(0.5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.02, 200.0), min_size=2, max_size=6))
def test_the_fit_returns_what_made_the_means(values):
    alpha = torch.tensor([values], dtype=torch.float64)
    mean = torch.digamma(alpha) - torch.digamma(alpha.sum(-1, keepdim=True))
    torch.testing.assert_close(fit_dirichlet(mean), alpha, rtol=1e-6, atol=1e-9)


def test_the_inverse_of_digamma():
    x = torch.logspace(-6, 6, 50, dtype=torch.float64)
    torch.testing.assert_close(inverse_digamma(torch.digamma(x)), x, rtol=1e-9, atol=0)


def test_means_of_one_and_the_same_p_have_no_fit():
    with pytest.raises(ValueError, match="must be below 1"):
        fit_dirichlet(torch.tensor([0.5, 0.5], dtype=torch.float64).log())
