"""Driven paths against enumeration and finite differences, and the information loss of a step: the sheet `maxent-statmech`, float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.distribution import kl, shannon
from isentrope.measure.paths import information_loss, tilt_paths, tilt_steps
from isentrope.measure.tilting import tilt

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(seed: int, states: int = 5, steps: int = 4):
    return drawn(seed, states).softmax(0), drawn(seed + 1, states, states).softmax(-1), drawn(seed + 2, steps, states, states), drawn(seed + 3, steps)


def enumerated(start, transition, features, multipliers):
    """The same law over a list of all paths."""
    states, steps = len(start), len(features)
    paths = torch.tensor(list(itertools.product(range(states), repeat=steps + 1)))
    log_prior = start.log()[paths[:, 0]] + sum(transition.log()[paths[:, t], paths[:, t + 1]] for t in range(steps))
    f = torch.stack([features[t][paths[:, t], paths[:, t + 1]] for t in range(steps)], -1)
    return paths, f, log_prior


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_paths_are_those_of_enumeration(seed):
    case = problem(seed)
    found = tilt_paths(*case)
    paths, f, log_prior = enumerated(*case)
    listed = tilt(f, case[3], log_prior)
    assert torch.allclose(found.log_z, listed.log_z, atol=1e-10)
    assert torch.allclose(found.mean, listed.mean, atol=1e-10)
    assert torch.allclose(found.response, -listed.covariance, atol=1e-10)
    chain = found.start[paths[:, 0]] * torch.stack([found.transitions[t][paths[:, t], paths[:, t + 1]] for t in range(4)]).prod(0)
    assert torch.allclose(chain, listed.probs, atol=1e-12)
    assert torch.allclose(found.transitions.sum(-1), torch.ones(4, 5, dtype=torch.float64), atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_slopes_and_responses(seed):
    start, transition, features, multipliers = problem(seed)
    leaf = multipliers.clone().requires_grad_()
    slope = torch.autograd.grad(tilt_paths(start, transition, features, leaf).log_z, leaf)[0]
    assert torch.allclose(slope, -tilt_paths(start, transition, features, multipliers).mean, atol=1e-10)
    h = 1e-5
    for drive in (tilt_paths, tilt_steps):
        found = drive(start, transition, features, multipliers)
        nudges = torch.eye(4, dtype=torch.float64) * h
        moved = [
            (drive(start, transition, features, multipliers + d).mean - drive(start, transition, features, multipliers - d).mean) / (2 * h) for d in nudges
        ]
        assert torch.allclose(torch.stack(moved, -1), found.response, atol=1e-5)
    causal = tilt_steps(start, transition, features, multipliers)
    assert (causal.response.triu(1) == 0).all()
    assert torch.allclose(causal.start, start, atol=1e-15)
    assert causal.log_z is None
    assert (tilt_paths(start, transition, features, multipliers).response.triu(1) != 0).any()  # the joint tilt sees the future


def test_without_a_drive_it_is_the_chain():
    start, transition, features, _ = problem(3)
    for drive in (tilt_paths, tilt_steps):
        found = drive(start, transition, features, torch.zeros(4))
        assert torch.allclose(found.start, start, atol=1e-14)
        assert torch.allclose(found.transitions, transition.expand(4, 5, 5), atol=1e-14)
    assert float(tilt_paths(start, transition, features, torch.zeros(4)).log_z) == pytest.approx(0, abs=1e-14)


def test_a_driven_ring():
    """Three states, current along the ring, a sinusoidal drive of 200 steps: predicted currents against a finite change of amplitude."""
    turn = torch.roll(torch.eye(3, dtype=torch.float64), 1, 1)
    transition, current = 0.4 * torch.eye(3, dtype=torch.float64) + 0.3 * turn + 0.3 * turn.T, (turn - turn.T).expand(200, 3, 3)
    wave = torch.sin(0.3 * torch.arange(200, dtype=torch.float64))
    for drive in (tilt_paths, tilt_steps):
        there, h = drive(torch.full((3,), 1 / 3), transition, current, 0.5 * wave), 1e-4
        up, down = (drive(torch.full((3,), 1 / 3), transition, current, (0.5 + d) * wave).mean for d in (h, -h))
        assert torch.allclose((up - down) / (2 * h), there.response @ wave, atol=1e-6)
        assert float(there.mean @ wave) < 0  # weights are exp(-lambda f): the current runs against the multiplier
        weights = 0.3 * torch.tensor([0.5, -0.5]).double().exp()  # on a ring every state is alike: both forms coincide, in closed form
        alone = drive(torch.full((3,), 1 / 3), transition, current[:1], torch.tensor([-0.5])).mean
        assert float(alone) == pytest.approx(float((weights[0] - weights[1]) / (0.4 + weights.sum())), abs=1e-12)


def test_long_paths_do_not_overflow_and_impossible_steps_stay_so():
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    f = torch.where(transition > 0, torch.eye(3, dtype=torch.float64), math.nan).expand(300, 3, 3)
    for drive in (tilt_paths, tilt_steps):
        found = drive(torch.tensor([1.0, 0.0, 0.0]), transition, f, torch.full((300,), 50.0))
        assert found.mean.isfinite().all()
        assert found.response.isfinite().all()
        assert (found.transitions[:, 1, 0] == 0).all()
        assert found.start.tolist() == [1, 0, 0]
    free = tilt_paths(torch.tensor([1.0, 0.0, 0.0]), transition, f, torch.full((300,), 50.0)).log_z
    assert float(free) < -14_000
    none = tilt_paths(torch.tensor([0.2, 0.8, 0.0]), transition, f[:0], torch.zeros(0))
    assert (none.mean.shape, none.response.shape, float(none.log_z)) == ((0,), (0, 0), pytest.approx(0, abs=1e-15))


def test_gradients_by_the_chain_itself():
    start, transition, features, multipliers = (x.requires_grad_() for x in problem(4, states=3, steps=2))

    def free(start, transition, features):  # perturbed chances are chances again
        return tilt_paths(start / start.sum(), transition / transition.sum(-1, keepdim=True), features, multipliers.detach()).log_z

    assert torch.autograd.gradcheck(free, (start, transition, features))
    sure, cycle = torch.eye(3, dtype=torch.float64)[0].requires_grad_(), torch.roll(torch.eye(3, dtype=torch.float64), 1, 1).requires_grad_()
    for drive in (tilt_paths, tilt_steps):
        found = drive(sure, cycle, features, multipliers)
        assert all(slope.isfinite().all() for slope in torch.autograd.grad(found.mean.sum() + found.response.sum(), (sure, cycle, features)))
    lost = information_loss(sure, cycle + 0 * cycle).entropy_change
    assert lost == 0


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_information_loss_is_a_divergence_in_two_parts(seed):
    p, w = drawn(seed, 3, 5).softmax(-1), drawn(seed + 1, 3, 5, 5).softmax(-1)
    found = information_loss(p, w)
    after = (p.unsqueeze(-2) @ w).squeeze(-2)
    forward, backward = p.unsqueeze(-1) * w, (after.unsqueeze(-1) * w).mT
    assert torch.allclose(found.value, kl(forward.flatten(-2), backward.flatten(-2)), atol=1e-10)
    assert torch.allclose(found.entropy_change, shannon(after) - shannon(p), atol=1e-12)
    assert (found.value >= -1e-12).all()


def test_when_no_information_is_lost():
    energy = drawn(7, 5)
    rest = (-energy).softmax(0)
    moves = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(8)).triu(1) / 10
    moves = (moves + moves.T) * (rest / rest.unsqueeze(1)).clamp(max=1)  # Metropolis: detailed balance
    w = moves + torch.diag(1 - moves.sum(-1))
    assert float(information_loss(rest, w).value) == pytest.approx(0, abs=1e-14)
    swap = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(information_loss(torch.tensor([0.5, 0.2, 0.3]), swap).value) == pytest.approx(0, abs=1e-7)
    hot = torch.full((5,), 0.2, dtype=torch.float64)
    relaxing = information_loss(hot, w)
    assert float(relaxing.value) > 1e-3
    assert float(relaxing.entropy_change) < 0  # a hot start cools: the entropy falls, and heat pays for it
    cold = information_loss(torch.nn.functional.one_hot(energy.argmin(), 5).double(), w)
    assert float(cold.heat) < 0 < float(cold.value)  # refuted: the heat term alone is no second law
    assert information_loss(torch.tensor([1.0, 0.0, 0.0]), torch.roll(torch.eye(3), 1, 1)).value == math.inf
    assert information_loss(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).value == 0  # what never happens costs nothing


def test_bad_chances_are_refused(unchecked):
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="tilt_paths: transition must hold chances"):
        tilt_paths(half, torch.eye(2) * 2, torch.zeros(1, 2, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="tilt_steps: start must hold chances"):
        tilt_steps(-half, torch.eye(2), torch.zeros(1, 2, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"information_loss: state must hold chances.*Got a least row sum of 0\.5"):
        information_loss(half / 2, torch.eye(2))
