"""RED: the two ends of the shift, the weight, and what the controller remembers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.recipes.mixture import Constant, Weights, Yoked
from isentrope.control.recipes.red import Red, accuracy_factor, entropy_weight, shifted_ratio
from isentrope.control.step import Progress, Rollouts, Step

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def step(accuracy=(0.0, 1.0, 0.5)):
    log_probs = torch.tensor([[-0.5, -2.0, -1.0], [-3.0, torch.nan, 7.0], [torch.nan, 0.0, 0.0]], dtype=torch.float64).requires_grad_(True)
    return log_probs, Step(Rollouts.of(MASK, correct=torch.tensor(accuracy, dtype=torch.float64)), log_probs)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1), st.floats(-5, 0))
def test_rho_has_the_value_and_the_gradient_of_p_to_the_e(e, log_p):
    leaf = torch.tensor([[log_p]], dtype=torch.float64, requires_grad=True)
    rho = shifted_ratio(leaf, torch.tensor([e], dtype=torch.float64))
    (slope,) = torch.autograd.grad(rho.sum(), leaf)
    assert rho.item() == pytest.approx(math.exp(e * log_p))
    assert slope.item() == pytest.approx(math.exp(e * log_p))


def test_no_accuracy_is_imitation_with_rows_of_equal_weight():
    """e = 0: the gradient of the mean over rows of their mean cross-entropy; NaN accuracy is the same."""
    for accuracy in ((0.0, 0.0, 0.0), (math.nan,) * 3):
        log_probs, scene = step(accuracy)
        (slope,) = torch.autograd.grad(Red().offline_loss(scene, Red().init()), log_probs)
        expected = -torch.tensor([[1 / 9, 1 / 9, 1 / 9], [1 / 3, 0, 0], [0, 0, 0]], dtype=torch.float64)
        assert torch.allclose(slope, expected)


def test_full_accuracy_moves_only_what_is_likely():
    log_probs, scene = step((1.0, 1.0, 1.0))
    (slope,) = torch.autograd.grad(Red().offline_loss(scene, Red().init()), log_probs)
    assert torch.allclose(slope[0], -log_probs.detach()[0].exp() / 9)


def test_the_weight_lies_in_its_bounds():
    assert [entropy_weight(off, on, 5.0) for off, on in ((1, 1), (2, 1), (100, 1), (1, 100), (1, 0), (0, 0))] == pytest.approx([1, 2, 5, 1, 5, 1], rel=1e-6)
    assert accuracy_factor(torch.tensor([0.0, 0.5, 1.0]), 5.0).tolist() == pytest.approx([5, 1, 0.2])


def test_in_the_codes_variant_a_high_accuracy_never_goes_below_one():
    _log_probs, scene = step((1.0, 1.0, 1.0))
    plain = Red().offline_loss(step((0.0, 0.0, 0.0))[1], Red().init())
    ours = Red(variant="code")
    assert ours.offline_loss(scene, ours.init()).item() == pytest.approx(plain.item())
    state = {**ours.init(), "change_online": 1.0, "change_offline": 4.0}
    assert ours.offline_loss(step((0.25, 0.25, 0.25))[1], state).item() == pytest.approx(4 * 5**0.5 * plain.item())
    assert ours.offline_loss(step((0.0, 0.0, 0.0))[1], state).item() == pytest.approx(20 * plain.item())
    assert ours.weights(state) == Weights(1.0, 0.1)


def seen(online, offline):
    return {"online_entropy": online, "offline_entropy": offline, "policy_loss": 0.0, "offline_loss": 1.0, "reward": 0.5}


def test_the_controller_by_hand():
    """decay 1/2: averages 1, 0.75, 0.625 and 2, 1, 1; changes 0.25 then 0.1875, and 1 then 0.5."""
    red, state = Red(decay=0.5), Red(decay=0.5).init()
    assert red.ratio(state) == 1
    state = red.update(state, seen(1.0, 2.0), Progress())
    assert red.ratio(state) == 1
    state = red.update(state, seen(0.5, 0.0), Progress())
    assert (state["change_online"], state["change_offline"]) == (0.25, 1.0)
    assert red.weights(state).offline == pytest.approx(0.4)
    state = red.update(state, seen(0.5, 1.0), Progress())
    assert (state["change_online"], state["change_offline"]) == (0.1875, 0.5)
    assert red.ratio(state) == pytest.approx(0.5 / 0.1875)
    assert (state["updates"], state["bound"]) == (3, 1)
    assert red.update(state, seen(math.nan, 1.0), Progress())["online"] == state["online"]


def test_no_row_is_no_loss():
    empty = Step(Rollouts.of(torch.zeros(0, 3, dtype=torch.bool)), torch.zeros(0, 3, requires_grad=True))
    assert Red().offline_loss(empty, Red().init()).item() == 0


def test_a_yoked_mixture_replays_weights_with_the_same_loss():
    yoked = Yoked(Red(), (Weights(1.0, 0.1), Weights(1.0, 0.3)))
    state, found = yoked.init(), []
    for _ in range(3):
        found.append(yoked.weights(state).offline)
        state = yoked.update(state, {}, Progress())
    assert found == [0.1, 0.3, 0.3]
    assert torch.equal(yoked.offline_loss(step()[1], state), Red().offline_loss(step()[1], Red().init()))
    with pytest.raises(ValueError, match="at least one update"):
        Yoked(Red(), ())


def test_plain_replay_is_the_mean_cross_entropy():
    _, scene = step()
    assert Constant(0.5, 0.5).offline_loss(scene, {}).item() == pytest.approx((0.5 + 2 + 1 + 3) / 4)


def test_bad_parameters_are_told():
    for given_, words in (
        ({"w_max": 0.5}, "w_max must be at least 1"),
        ({"decay": 2}, "decay must be a fraction"),
        ({"epsilon": 0}, "epsilon must be"),
    ):
        with pytest.raises(ValueError, match=words):
            Red(**given_)
