"""Schedules: ends, shapes and what is refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.schedules import SHAPES, Schedule
from isentrope.control.step import Progress


def at(schedule: Schedule, percent: int, accuracy: float | None = None) -> float:
    return schedule.value(Progress(percent, 100), accuracy)


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("constant", 4.0, 4.0), ("linear", 3.25, 2.5), ("cosine", 2.5 + 1.5 * math.cos(math.pi / 4), 2.5), ("exponential", 4 * 0.25**0.25, 2.0)],
)
def test_shapes_by_hand(shape, quarter, half):
    schedule = Schedule(shape, start=4.0, end=1.0)
    assert at(schedule, 0) == 4.0
    assert at(schedule, 25) == pytest.approx(quarter)
    assert at(schedule, 50) == pytest.approx(half)
    assert at(schedule, 100) == pytest.approx(4.0 if shape == "constant" else 1.0)


def test_it_is_held_before_and_after():
    schedule = Schedule("linear", start=1.0, end=0.0, begin=0.25, finish=0.5)
    assert [at(schedule, percent) for percent in (0, 25, 30, 50, 90)] == pytest.approx([1.0, 1.0, 0.8, 0.0, 0.0])
    step = Schedule("linear", start=1.0, end=0.0, begin=0.5, finish=0.5)
    assert [at(step, 49), at(step, 50)] == [1.0, 0.0]


def test_by_accuracy():
    schedule = Schedule("accuracy", start=0.1, end=0.0)
    assert at(schedule, 90, 0.0) == 0.1
    assert at(schedule, 10, 0.75) == pytest.approx(0.025)
    assert at(schedule, 10, None) == at(schedule, 10, float("nan")) == 0.1


@given(shape=st.sampled_from(SHAPES), start=st.floats(0.01, 10), end=st.floats(0.01, 10), step=st.integers(0, 200), accuracy=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_it_stays_between_its_ends(shape, start, end, step, accuracy):
    value = Schedule(shape, start, end).value(Progress(step, 100), accuracy)
    assert min(start, end) * (1 - 1e-9) <= value <= max(start, end) * (1 + 1e-9)


def test_what_is_wrong_is_said():
    with pytest.raises((ValueError, TypeError), match="step"):
        Schedule("step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"exponential needs start and end of one sign.*Got start=1\.0, end=0\.0.*cosine"):
        Schedule("exponential")
    with pytest.raises(ValueError, match=r"begin must not exceed finish\. Got begin=0\.5, finish=0\.2"):
        Schedule("linear", begin=0.5, finish=0.2)
    with pytest.raises(ValueError, match=r"finish must be a fraction.*0\.5"):
        Schedule("linear", finish=50)
