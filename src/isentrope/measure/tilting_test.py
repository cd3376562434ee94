"""Exponential tilting: the identities of the sheet `maxent-statmech`, in float64, and what the solver promises."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.distribution import boltzmann, kl, shannon
from isentrope.measure.tilting import solve_tilt, tilt

SEEDS = st.integers(0, 10**6)
DIE = torch.arange(1, 7, dtype=torch.float64).unsqueeze(-1)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """7 states, 3 features, a normalised prior, and means that some law has."""
    features, log_prior = drawn(seed, 7, 3), drawn(seed + 1, 7).log_softmax(-1)
    return features, log_prior, drawn(seed + 2, 7).softmax(-1) @ features


def test_the_die_of_jaynes():
    found = solve_tilt(DIE, torch.tensor([4.5]))
    assert float(found.multipliers) == pytest.approx(-0.371049, abs=5e-7)
    assert found.tilted.probs.tolist() == pytest.approx([0.05435, 0.07877, 0.11416, 0.16545, 0.23977, 0.34749], abs=5e-6)
    entropy = float(shannon(found.tilted.probs))
    assert entropy == pytest.approx(1.613581, abs=5e-7)
    assert float(found.tilted.log_z + 4.5 * found.multipliers) == pytest.approx(entropy, abs=1e-12)  # 2a, counting measure
    assert float(solve_tilt(DIE, torch.tensor([3.5])).multipliers) == pytest.approx(0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_solution_and_pythagoras(seed):
    features, log_prior, target = problem(seed)
    found = solve_tilt(features, target, log_prior)
    p, prior = found.tilted.probs, log_prior.exp()
    assert torch.allclose(p @ features, target, atol=1e-10)
    assert torch.allclose(found.tilted.mean, target, atol=1e-10)
    least = kl(p, prior)
    assert torch.allclose(least, -(found.tilted.log_z + found.multipliers @ target), atol=1e-10)  # 2a
    q = drawn(seed + 2, 7).softmax(-1)  # another law with these means
    assert torch.allclose(kl(q, prior), kl(q, p) + least, atol=1e-9)  # 2d
    assert least <= kl(q, prior) + 1e-12


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_derivatives(seed):
    features, log_prior, target = problem(seed)
    at = drawn(seed + 3, 3)
    there = tilt(features, at, log_prior)
    slope = torch.func.grad(lambda x: tilt(features, x, log_prior).log_z)(at)
    curve = torch.func.hessian(lambda x: tilt(features, x, log_prior).log_z)(at)
    response = torch.func.jacrev(lambda x: tilt(features, x, log_prior).mean)(at)
    assert torch.allclose(slope, -there.mean, atol=1e-10)  # 2b
    assert torch.allclose(curve, there.covariance, atol=1e-10)
    assert torch.allclose(response, -there.covariance, atol=1e-10)  # 2c
    assert torch.allclose(there.covariance, there.covariance.T, atol=1e-12)  # Maxwell
    assert torch.linalg.eigvalsh(there.covariance).min() >= -1e-12
    h = 1e-5
    steps = torch.eye(3, dtype=torch.float64) * h
    finite = torch.stack([(tilt(features, at + d, log_prior).log_z - tilt(features, at - d, log_prior).log_z) / (2 * h) for d in steps])
    assert torch.allclose(finite, -there.mean, atol=1e-5)
    goal = target.clone().requires_grad_()
    found = solve_tilt(features, goal, log_prior)
    surprise = -kl(found.tilted.probs, log_prior.exp())  # relative entropy S*
    assert torch.allclose(torch.autograd.grad(surprise, goal)[0], found.multipliers, atol=1e-6, rtol=1e-6)  # 2b: dS*/dF = lambda


def test_the_slope_of_the_solution():
    features, log_prior, target = problem(5)
    leaves = tuple(x.clone().requires_grad_() for x in (features, target, log_prior))
    assert torch.autograd.gradcheck(lambda *x: solve_tilt(*x, tolerance=1e-13).multipliers, leaves)
    assert torch.autograd.gradcheck(lambda *x: solve_tilt(*x, tolerance=1e-13).tilted.log_z, leaves)
    found = solve_tilt(features, leaves[1], log_prior)
    slope = torch.stack([torch.autograd.grad(found.multipliers[i], leaves[1], retain_graph=True)[0] for i in range(3)])
    assert torch.allclose(slope, -torch.linalg.inv(found.tilted.covariance), rtol=1e-8)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_units_origin_and_measure_of_the_features(seed):
    features, log_prior, target = problem(seed)
    scale, shift = torch.tensor([1e-6, 3.0, 1e6], dtype=torch.float64), torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    base = solve_tilt(features, target, log_prior)
    moved = solve_tilt(features * scale + shift, target * scale + shift, log_prior + 7)
    assert torch.allclose(moved.multipliers * scale, base.multipliers, rtol=1e-5, atol=1e-7)
    assert torch.allclose(moved.tilted.probs, base.tilted.probs, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_adding_information_in_sequence(seed):
    features, log_prior, target = problem(seed)
    whole = solve_tilt(features, target, log_prior)
    first = solve_tilt(features[:, :1], target[:1], log_prior)
    joint = solve_tilt(features, target, first.tilted.log_probs)  # the earlier constraint imposed again: the same law, by multipliers that drifted
    assert torch.allclose(joint.tilted.probs, whole.tilted.probs, atol=1e-8)
    assert torch.allclose(joint.multipliers[:1] + first.multipliers, whole.multipliers[:1], atol=1e-5)
    assert torch.allclose(joint.tilted.log_z + first.tilted.log_z, whole.tilted.log_z, atol=1e-5)
    later = solve_tilt(features[:, 1:], target[1:], first.tilted.log_probs).tilted.probs  # not imposed again: another law, whose first mean drifted
    assert float(later @ features[:, 0] - target[0]) != pytest.approx(0, abs=1e-9)
    assert torch.allclose(solve_tilt(features, later @ features, log_prior).tilted.probs, later, atol=1e-8)
    assert kl(later, first.tilted.probs) <= kl(whole.tilted.probs, first.tilted.probs) + 1e-12


def test_coarse_graining():
    features, log_prior, _ = problem(11)
    multipliers, group = drawn(12, 3), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    fine = tilt(features, multipliers, log_prior)
    weights = log_prior - features @ multipliers
    effective = torch.stack([-weights[group == y].logsumexp(0) for y in range(3)])  # the potential of mean force
    coarse = torch.stack([fine.probs[group == y].sum() for y in range(3)])
    assert torch.allclose(coarse, tilt(effective.unsqueeze(-1), torch.ones(1, dtype=torch.float64)).probs, atol=1e-12)
    within = torch.stack([shannon(fine.probs[group == y] / coarse[y]) for y in range(3)])
    assert torch.allclose(shannon(fine.probs), shannon(coarse) + coarse @ within, atol=1e-12)


@pytest.mark.parametrize(("states", "copies"), [(3, 4), (5, 2)])
def test_labels_that_are_dropped_lose_the_counting_entropy(states, copies):
    labelled = torch.tensor(list(itertools.product(range(states), repeat=copies)))
    occupation = torch.nn.functional.one_hot(labelled, states).sum(1)
    pairs = (occupation * (occupation - 1) / 2).double()  # copies that share a state repel each other: exchangeable, not independent
    law = tilt(torch.cat((occupation.double(), pairs.sum(-1, keepdim=True)), -1), drawn(13, states + 1)).probs
    kinds, which = occupation.unique(dim=0, return_inverse=True)
    counted = torch.zeros(len(kinds), dtype=torch.float64).index_add(0, which, law)
    assert torch.allclose(shannon(law), shannon(counted) + counted @ boltzmann(kinds), atol=1e-12)
    alone = (occupation <= 1).all(-1)
    if alone.any():
        assert torch.allclose(boltzmann(occupation[alone]), torch.tensor(math.lgamma(copies + 1), dtype=torch.float64), atol=1e-12)  # ln N!


def test_softmax_policies_and_their_regularised_objective():
    reward, log_prior = drawn(14, 6), drawn(15, 6).log_softmax(-1)
    for temperature in (0.3, 2.0):
        policy = tilt(reward.unsqueeze(-1), torch.tensor([-1 / temperature], dtype=torch.float64), log_prior)
        assert torch.allclose(policy.probs, (log_prior + reward / temperature).softmax(-1), atol=1e-14)
        best = temperature * policy.log_z
        assert torch.allclose(policy.probs @ reward - temperature * kl(policy.probs, log_prior.exp()), best, atol=1e-12)
        other = drawn(16, 6).softmax(-1)
        assert torch.allclose(other @ reward - temperature * kl(other, log_prior.exp()), best - temperature * kl(other, policy.probs), atol=1e-12)


def test_batches_and_impossible_outcomes():
    features, log_prior, target = (torch.stack(rows) for rows in zip(*(problem(seed) for seed in (21, 31, 41)), strict=True))
    together = solve_tilt(features, target, log_prior)
    for row in range(3):
        alone = solve_tilt(features[row], target[row], log_prior[row])
        assert torch.allclose(together.multipliers[row], alone.multipliers, atol=1e-9)
    shared = solve_tilt(features[0], torch.stack((target[0], features[0].mean(0))))
    assert shared.multipliers.shape == (2, 3)
    more = torch.cat((features, torch.full((3, 1, 3), math.nan)), 1)
    leaf = torch.cat((log_prior, torch.full((3, 1), -math.inf)), 1).requires_grad_()
    held = solve_tilt(more, target, leaf)
    assert torch.allclose(held.multipliers, together.multipliers, atol=1e-9)
    assert (held.tilted.probs[:, -1] == 0).all()
    slope = torch.autograd.grad(held.multipliers.sum(), leaf)[0]
    assert slope.isfinite().all()
    assert (slope[:, -1] == 0).all()
    nothing = tilt(features[0], drawn(1, 3), torch.full((7,), -math.inf))
    assert bool(nothing.log_z.isnan())
    assert bool(nothing.mean.isnan().all())


def test_features_that_repeat_each_other():
    twice = torch.cat((DIE, 2 * DIE + 1, torch.ones_like(DIE)), -1)
    found = solve_tilt(twice, torch.tensor([4.5, 10.0, 1.0]))
    assert torch.allclose(found.tilted.probs, solve_tilt(DIE, torch.tensor([4.5])).tilted.probs, atol=1e-9)
    assert not solve_tilt(twice, torch.tensor([4.5, 10.5, 1.0]), must_reach=False).reached
    assert not solve_tilt(twice, torch.tensor([4.5, 10.0, 1.1]), must_reach=False).reached


@pytest.mark.parametrize("mean", [1.0, 1 + 1e-9, 1.001, 5.999, 6.0])
def test_targets_near_the_edge(mean):
    found = solve_tilt(DIE, torch.tensor([mean], dtype=torch.float64))
    assert bool(found.reached)
    assert float(found.tilted.mean) == pytest.approx(mean, abs=1e-9)
    assert found.multipliers.isfinite().all()


@pytest.mark.parametrize(("outcomes", "features", "sharpness"), [(7, 3, 8), (50, 10, 3), (8, 7, 1), (10, 4, 30)])
def test_means_of_sharp_laws_are_reached(outcomes, features, sharpness):
    f, log_prior = drawn(51, 60, outcomes, features), 3 * drawn(52, 60, outcomes)
    target = ((sharpness * drawn(53, 60, outcomes)).softmax(-1).unsqueeze(-1) * f).sum(-2)
    found = solve_tilt(f, target, log_prior)
    assert torch.allclose(found.tilted.mean, target, atol=1e-8)
    assert not found.impossible.any()


@pytest.mark.parametrize("mean", [0.0, 1e-3, 50_000.0, 99_998.7])
def test_a_wide_feature(mean):
    levels = torch.arange(100_000, dtype=torch.float64).unsqueeze(-1)
    found = solve_tilt(levels, torch.tensor([mean], dtype=torch.float64))
    assert float(found.tilted.mean) == pytest.approx(mean, abs=1e-4)
    if mean == 1e-3:  # few outcomes matter: a geometric law, mean = 1 / (exp(lambda) - 1)
        assert float(found.multipliers) == pytest.approx(math.log1p(1 / mean), rel=1e-3)


def test_what_no_law_can_have_is_said():
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for target in ([1.2, 0.5], [-0.1, -0.1], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"solve_tilt: target must be a mean.*1 of 1 rows.*convex hull.*must_reach=False"):
            solve_tilt(square, torch.tensor(target))
    found = solve_tilt(square, torch.tensor([[0.2, 0.7], [1.2, 0.5]]), must_reach=False)
    assert found.reached.tolist() == [True, False]
    assert found.impossible.tolist() == [False, True]
    assert float(found.residual[1]) > 0.1
    assert ((square.double() - torch.tensor([1.2, 0.5], dtype=torch.float64)) @ found.multipliers[1] > 0).all()  # the proof
    odds = torch.tensor([0.8 / 0.2, 0.3 / 0.7], dtype=torch.float64).log()  # coordinates of a square are independent
    assert torch.allclose(found.multipliers[0], odds, atol=1e-6)
    with pytest.raises(ValueError, match=r"tolerance must be in \(0, 1\)"):
        solve_tilt(square, torch.tensor([0.5, 0.5]), tolerance=0.0)


def test_large_energies_do_not_overflow():
    found = tilt(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), torch.tensor([-1e4], dtype=torch.float64))
    assert float(found.log_z) == pytest.approx(3e4, rel=1e-15)
    assert found.probs.tolist() == [0, 0, 1]
