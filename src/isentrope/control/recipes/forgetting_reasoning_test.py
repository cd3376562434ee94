"""RECAP: the weights' identities and the published range."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.recipes.forgetting_reasoning import Recap, convergence, instability, objective_weights
from isentrope.control.step import Progress

SCORES = st.lists(st.floats(0, 10), min_size=1, max_size=6)


@settings(deadline=None)
@given(SCORES, st.floats(0.1, 100), st.floats(-5, 5))
def test_weights_have_mean_one_and_ignore_a_constant(scores, temperature, shift):
    score = torch.tensor(scores, dtype=torch.float64)
    found = objective_weights(score, temperature)
    assert float(found.mean()) == pytest.approx(1)
    assert torch.allclose(objective_weights(score + shift, temperature), found)
    assert torch.allclose(objective_weights(torch.full_like(score, 2.0), temperature), torch.ones_like(score))


def test_temperature_from_uniform_to_all_on_one():
    score = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)
    assert torch.equal(objective_weights(score, math.inf), torch.ones(3, dtype=torch.float64))
    assert objective_weights(score, 1e-3).tolist() == pytest.approx([0, 3, 0])


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 100), st.integers(0, 99))
def test_scores_ignore_the_scale_of_a_loss(scale, seed):
    values = torch.rand(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    for f in (convergence, instability):
        assert torch.allclose(f(scale * values[:, 4:], scale * values[:, :4]), f(values[:, 4:], values[:, :4]))


def test_by_hand_and_guards():
    earlier, recent = torch.tensor([[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 3.0], [1.0, 1.0], [90.0, 110.0]])
    assert convergence(recent, earlier).tolist() == [1.0, 1.0, 5.0]
    assert instability(recent, earlier).tolist() == pytest.approx([0.25, 0.0, 10 / 101])
    assert instability(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [0.0]


def test_the_published_settings_are_close_to_uniform():
    """Saturated (c 1, i 0) and volatile (c 1, i 1): 0.90 / 1.10, and 0.95 / 1.05 in the code's variant."""
    assert objective_weights(torch.tensor([1.0, 2.0]), 5.0).tolist() == pytest.approx([0.90, 1.10], abs=0.005)
    assert objective_weights(torch.tensor([0.5, 1.0]), 5.0).tolist() == pytest.approx([0.95, 1.05], abs=0.005)


def play(recap, rewards, losses):
    state, found = recap.init(), []
    for step, (reward, loss) in enumerate(zip(rewards, losses, strict=True)):
        found.append(recap.weights(state))
        state = recap.update(state, {"reward": reward, "offline_loss": loss}, Progress(step, len(rewards)))
    return found, state


def test_uniform_until_the_windows_are_full_then_the_score():
    recap = Recap(window=2, temperature=1.0)
    found, state = play(recap, [0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 2.0, 2.0])
    assert all((item.policy, item.offline) == (0.5, 0.5) for item in found)
    now = recap.weights(state)  # scores 1 and 2
    assert now.policy + now.offline == pytest.approx(1)
    assert now.offline / now.policy == pytest.approx(math.e)
    half = Recap(window=2, temperature=1.0, variant="code")
    now = half.weights(play(half, [0.5] * 4, [1.0, 1.0, 2.0, 2.0])[1])
    assert now.offline / now.policy == pytest.approx(math.exp(0.5))


def test_an_absent_objective_is_not_pushed():
    recap = Recap(window=2)
    _, state = play(recap, [0.5, 0.6, math.nan, 0.7, 0.8], [1.0, math.nan, 2.0, 3.0, 4.0])
    assert torch.allclose(state["values"], torch.tensor([[0.5, 0.4, 0.3, 0.2], [1, 2, 3, 4]], dtype=torch.float64))
    assert state["policy"] != 1


def test_annealing_runs_from_convergence_to_instability():
    recap = Recap(window=2, variant="code", balance=None)
    values = torch.tensor([[1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 1.0, 3.0]])
    assert recap.score(values, Progress(0, 10)).tolist() == [3.0, 1.0]
    assert recap.score(values, Progress(10, 10)).tolist() == [0.0, 0.25]


def test_bad_parameters_are_told():
    for given_, words in (
        ({"window": 1}, "window must be at least 2"),
        ({"temperature": 0}, "temperature=inf"),
        ({"balance": 2}, "balance must be a frac"),
    ):
        with pytest.raises(ValueError, match=words):
            Recap(**given_)
