"""Controllers: by hand, anti-windup, the dead zone, closed loops that reach their target."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.coefficients import AdaptiveEntropyCoef
from isentrope.control.controllers import PI, BandController, Controller


def test_pi_by_hand():
    controller = PI(target=1.0, gain_p=0.1, gain_i=0.01, initial=0.05)
    state = controller.update(controller.init(), 0.5)
    assert state == {"coef": pytest.approx(0.05 + 0.05 + 0.005), "integral": 0.5}
    assert controller.update(state, 0.75) == {"coef": pytest.approx(0.05 + 0.025 + 0.0075), "integral": 0.75}


def test_the_dead_zone_ignores_small_errors_without_a_jump_at_its_edge():
    controller = PI(target=1.0, gain_p=1.0, gain_i=0.0, dead_zone=0.1, low=-1.0)
    assert [controller.error(measured) for measured in (0.95, 1.05, 0.9, 1.1)] == pytest.approx([0.0, 0.0, 0.0, 0.0])
    assert controller.error(0.7) == pytest.approx(0.2)
    assert controller.error(1.3) == pytest.approx(-0.2)
    assert controller.update(controller.init(), 1.3)["coef"] == pytest.approx(-0.2)


def test_the_sum_does_not_wind_up_at_a_limit():
    controller = PI(target=1.0, gain_p=0.0, gain_i=0.1, high=0.2)
    state = controller.init()
    for _ in range(100):
        state = controller.update(state, 0.0)
    assert state == {"coef": pytest.approx(0.2), "integral": pytest.approx(2.0)}
    left = controller.update(state, 1.5)
    assert left["coef"] == pytest.approx(0.15)  # the first error of the other sign leaves the limit


def test_the_band_moves_outside_only():
    controller = BandController(floor=0.4, ceiling=0.6, delta=0.1, high=0.15)
    state, found = controller.init(), []
    for measured in (0.3, 0.5, 0.3, 0.7, 0.6, 0.9, 0.9):
        state = controller.update(state, measured)
        found.append(state["coef"])
    assert found == pytest.approx([0.1, 0.1, 0.15, 0.05, 0.05, 0.0, 0.0])


CONTROLLERS = [PI(0.5, gain_p=0.2, gain_i=0.1), BandController(0.45, 0.55, delta=0.01), AdaptiveEntropyCoef(0.5, 0.01)]


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda one: type(one).__name__)
def test_a_plant_that_follows_its_coefficient_is_held(controller: Controller):
    """Entropy decays to 0.2 by itself and a coefficient lifts it: it ends within 0.1 of 0.5."""
    state, entropy, tail = controller.init(), 1.0, []
    for step in range(600):
        entropy += 0.2 * (0.2 + 2.0 * controller.applied(state) - entropy)
        state = controller.update(state, entropy)
        tail += [entropy] if step >= 400 else []
    assert sum(tail) / len(tail) == pytest.approx(0.5, abs=0.1)


@given(measured=st.lists(st.floats(0, 12), max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_coefficient_stays_in_its_range_and_states_are_plain_floats(measured):
    for controller in CONTROLLERS:
        state = controller.init()
        for value in measured:
            state = controller.update(state, value)
            assert 0 <= controller.applied(state) <= 1
            assert all(type(entry) is float for entry in state.values())


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda one: type(one).__name__)
def test_a_measurement_that_is_nan_changes_nothing(controller: Controller):
    state = controller.update(controller.init(), 0.1)
    assert controller.update(state, math.nan) == state


def test_trl_applies_nothing_before_the_first_measurement():
    assert AdaptiveEntropyCoef(initial=0.3).applied(AdaptiveEntropyCoef(initial=0.3).init()) == 0.0


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"PI: gain_p must be at least 0\. Got -1"):
        PI(1.0, gain_p=-1)
    with pytest.raises(ValueError, match=r"PI: high must be at least 0\.5\. Got 0\.1"):
        PI(1.0, low=0.5, high=0.1)
    with pytest.raises(ValueError, match=r"BandController: ceiling must be at least 0\.6"):
        BandController(0.6, 0.4)
