"""Each alarm rings where its condition is built in, once an episode, and nowhere else; its state resumes exactly."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.explain.alarms import (
    NAMES,
    Alarm,
    Collapse,
    EqualGroups,
    Explosion,
    FewTokens,
    Monitor,
    Narrowing,
    Push,
    Seen,
    Touch,
    detectors,
    remembered,
    trend,
    turned,
)


def course(values, **more) -> list[Seen]:
    return [Seen(step, {"entropy/mean": value, "learning_rate": 3e-4, **more}) for step, value in enumerate(values, 1)]


def rings(detector, run) -> list[Alarm]:
    return list(Monitor((detector,)).over(run))


def noisy(values, size=0.03, seed=0):
    rng = random.Random(seed)
    return [value * math.exp(rng.gauss(0, size)) for value in values]


# --- episodes


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(1, 4))
def test_beginnings_and_ends_take_turns_and_each_has_held(observations, patience):
    state, turns = {"on": False, "held": 0}, []
    for at, (bad, well) in enumerate(observations):
        state, begins = turned(state, bad, well, patience)
        if begins is not None:
            turns.append(begins)
            assert all((b if begins else w) for b, w in observations[at + 1 - patience : at + 1])
    assert turns == [at % 2 == 0 for at in range(len(turns))]


# --- the trend


def state_of(values) -> dict:
    state = {"opening": [], "recent": []}
    for step, value in enumerate(values, 1):
        state = remembered(state, step, value)
    return state


def test_the_trend_of_an_exponential_is_its_rate():
    state = state_of(0.5 * math.exp(-0.04 * step) for step in range(1, 31))
    found = trend(state)
    assert (found.steady.slope, found.steady.low, found.steady.high) == pytest.approx((-0.04, -0.04, -0.04))
    assert found.now == pytest.approx(0.5 * math.exp(-0.04 * 30))
    first, last = found.reaches(0.05)
    assert first == pytest.approx(math.log(10) / 0.04)
    assert last > first
    assert found.reaches(1.0) == (30, 30)
    assert len(state["recent"]) == 20


def test_the_trend_of_a_power_law_is_its_exponent():
    found = trend(state_of(step**-0.5 for step in range(1, 41)))
    assert found.slackening.slope == pytest.approx(-0.5)
    first, last = found.reaches(0.1)
    assert last == pytest.approx(100, rel=1e-3)
    assert first < 100


def test_a_rise_never_reaches_a_level_below():
    assert trend(state_of(0.2 + 0.01 * step for step in range(1, 31))).reaches(0.1) == (math.inf, math.inf)


# --- collapse and explosion


@pytest.mark.parametrize("values", [[0.5 * math.exp(-0.03 * step) for step in range(1, 101)], [0.5 * (1 + step / 6) ** -0.8 for step in range(1, 101)]])
def test_a_collapse_rings_once_with_the_update_at_which_it_is_spent(values):
    (alarm,) = rings(Collapse(spent=0.25, end=200), course(noisy(values)))
    truth = next(step for step, value in enumerate(values, 1) if value <= 0.25 * sum(values[:5]) / 5)
    first, last = (float(alarm.number.partition(f"{before} ")[2].split()[0]) for before in ("between update", "and"))
    assert alarm.step < truth
    assert first - 3 <= truth <= last + 3
    assert alarm.knobs == ("control=[{name: entropy-bonus, coef: 0.01}]", "trl.learning_rate=0.00015 (now 0.0003)")


@pytest.mark.parametrize(
    "values",
    [
        [0.5] * 200,  # level
        [0.5 * math.exp(-0.002 * step) for step in range(200)],  # slow: not at half
        [0.5 * max(0.45, math.exp(-0.05 * step)) for step in range(200)],  # falls under half, then holds
        [0.5 * math.exp(0.02 * step) for step in range(60)],  # rises
    ],
)
def test_no_collapse(values):
    assert [alarm.step for alarm in rings(Collapse(end=200), course(noisy(values))) if alarm.step > 40] == []


def test_an_episode_ends_and_another_may_begin():
    fall = [0.5 * math.exp(-0.05 * step) for step in range(40)]
    back = [0.07 + 0.012 * step for step in range(40)]
    found = rings(Collapse(end=400), course([*fall, *back, *fall]))
    assert [alarm.over for alarm in found] == [False, True, False]
    assert found[1].sentence().startswith("collapse is over: entropy")


def test_an_explosion_rings_and_ends():
    values = [*([0.4] * 15), *(0.4 + 0.02 * step for step in range(40)), *([0.4] * 40)]
    found = rings(Explosion(), course(noisy(values)))
    assert [alarm.over for alarm in found] == [False, True]
    assert 20 < found[0].step < 40
    assert "times its opening" in found[0].number
    assert found[0].knobs[0].startswith("trl.learning_rate=0.00015")


def test_knobs_turn_the_bonus_that_is_there():
    down = rings(Collapse(end=200, bonus=0.05), course([0.5 * math.exp(-0.05 * step) for step in range(60)]))
    up = rings(Explosion(bonus=0.05), course([0.4 * math.exp(0.05 * step) for step in range(60)]))
    assert down[0].knobs[0] == "control=[{name: entropy-bonus, coef: 0.1}]"
    assert up[0].knobs[0] == "control=[{name: entropy-bonus, coef: 0.025}]"


def test_the_cause_names_the_tokens_that_push_down():
    run = course([0.5 * math.exp(-0.05 * step) for step in range(60)])
    sample = (Push("=", -0.6, 1.0), Push("7", -0.3, 1.0), Push("<b>", -0.1, -1.0), Push("up", 0.9, 1.0))
    run[9] = Seen(10, run[9].row, sample)
    (alarm,) = rings(Collapse(end=200), run)
    assert "update 10, 90% is on rewarded responses; most on '=' 60%, '7' 30%, '<b>' 10%" in alarm.cause
    assert "tape.tokens_every" in rings(Collapse(end=200), course([0.5 * math.exp(-0.05 * step) for step in range(60)]))[0].cause


# --- the others


def test_few_tokens_need_two_samples_and_are_named():
    even = [Push(str(at), 0.01, 1.0) for at in range(100)]
    heavy = [*even[:95], *[Push("7", -1.0, 1.0)] * 4, Push("a", 0.5, 1.0)]
    run = [Seen(1, {}, even), Seen(6, {}, heavy), Seen(7), Seen(11, {}, heavy), Seen(16, {}, heavy), Seen(21, {}, even), Seen(26, {}, even)]
    found = rings(FewTokens(), run)
    assert [(alarm.step, alarm.over) for alarm in found] == [(11, False), (26, True)]
    assert found[0].number == "5 of 100 sampled tokens hold 83% of the predicted push on entropy"
    assert "'7' 74%, 'a' 9%" in found[0].cause


@pytest.mark.parametrize("sample", [[], [Push("a", 1.0, 1.0)] * 20, [Push("a", 0.0, 0.0)] * 80, [Push("a", math.nan, 0.0)] * 80])
def test_too_small_a_sample_says_nothing(sample):
    assert rings(FewTokens(patience=1), [Seen(1, {}, sample)]) == []


@pytest.mark.parametrize(("right", "word"), [(0.98, "too easy"), (0.02, "too hard"), (0.5, "fare alike"), (math.nan, "no response was judged")])
def test_equal_groups_say_why(right, word):
    row = {"reward/zero_std_groups": 1.0, "correct/mean": right}
    found = rings(EqualGroups(), [Seen(step, row) for step in range(1, 12)])
    assert [alarm.step for alarm in found] == [5]
    assert word in found[0].cause


def held_out(step, value, entropy, half=0.03):
    return Seen(step, {}, (), {"pass@1": (0.9, 0.8, 1.0), "pass@16": (value, value - half, value + half), "entropy": (entropy, entropy, entropy)})


def test_narrowing_needs_both_falls_beyond_the_interval():
    begin = [held_out(0, 0.80, 0.5), held_out(20, 0.90, 0.3)]
    assert rings(Narrowing(), [*begin, held_out(40, 0.88, 0.1)]) == []  # within the interval
    assert rings(Narrowing(), [*begin, held_out(40, 0.70, 0.4)]) == []  # entropy did not fall
    (alarm,) = rings(Narrowing(), [*begin, held_out(40, 0.80, 0.1), held_out(60, 0.78, 0.1)])
    assert (alarm.step, alarm.over) == (40, False)
    assert "pass@16 0.800 (95 %: 0.770 to 0.830) against 0.900 at update 20" in alarm.number
    assert [one.over for one in rings(Narrowing(), [*begin, held_out(40, 0.80, 0.1), held_out(60, 0.89, 0.1)])] == [False, True]
    assert rings(Narrowing(), [Seen(0, {}, (), {"pass@1": (0.9, 0.8, 1.0), "entropy": (0.5, 0.5, 0.5)})]) == []  # no k above 1


def test_touch_nothing_and_everything():
    run = [Seen(step, {"touch/clip-cov": 0.0, "ratio/max": 1.0}) for step in range(1, 30)]
    (alarm,) = rings(Touch("clip-cov", everything=False), run)
    assert (alarm.step, alarm.name, alarm.about) == (10, "touches-nothing", "clip-cov")
    assert "every ratio is 1" in alarm.cause
    assert rings(Touch("clip-cov", everything=True), run) == []
    far = [Seen(step, {"clip/low": 0.3, "clip/high": 0.4}) for step in range(1, 30)]
    assert [(one.name, one.about) for one in rings(Touch("", everything=True), far)] == [("touches-everything", "the objective's clip")]
    assert rings(Touch("x", everything=False), [Seen(1, {"touch/y": 0.0})] * 30) == []


# --- all of them


def odd_run(seed: int, count: int = 80) -> list[Seen]:
    rng = random.Random(seed)
    run, level = [], 0.5
    for step in range(count):
        level *= math.exp(rng.gauss(rng.choice([-0.08, 0.0, 0.08]), 0.05))
        row = {
            "entropy/mean": level,
            "reward/zero_std_groups": rng.random(),
            "touch/a": rng.choice([0.0, 0.0, 0.5, 1.0]),
            "clip/low": rng.random(),
            "clip/high": 0.2,
        }
        row |= {rng.choice(list(row)): rng.choice([math.nan, math.inf, None, 0.0])} if rng.random() < 0.2 else {}
        pushes = [Push(rng.choice("abc"), rng.gauss(0, 1) ** 5, rng.gauss(0, 1)) for _ in range(60)] if step % 5 == 0 else ()
        value = rng.random()
        run.append(Seen(step, row, pushes, {"pass@4": (value, value - 0.1, value + 0.1), "entropy": (level, level, level)} if step % 10 == 0 else None))
    return run


@given(st.integers(0, 10_000), st.integers(0, 80))
@settings(deadline=None, max_examples=25)
def test_a_resumed_monitor_goes_on_exactly(seed, cut):
    monitor, run = Monitor(detectors(end=80, masks=("a",))), odd_run(seed)
    straight = list(monitor.over(run))
    state, rung = monitor.init(), []
    for at, seen in enumerate(run):
        if at == cut:
            state = json.loads(json.dumps(state))
        state, alarms = monitor.update(state, seen)
        rung += alarms
    assert rung == straight


def test_updating_changes_no_earlier_state():
    monitor = Monitor(detectors())
    state = monitor.init()
    before = json.dumps(state)
    monitor.update(state, course([0.5])[0])
    assert json.dumps(state) == before


def test_every_name_is_listed_and_every_ring_has_its_three_parts():
    seen = {alarm.name for seed in range(60) for alarm in Monitor(detectors(masks=("a",))).over(odd_run(seed)) if not alarm.over}
    assert seen <= set(NAMES)
    for seed in range(30):
        for alarm in Monitor(detectors(masks=("a",))).over(odd_run(seed)):
            assert alarm.number
            assert alarm.over or (alarm.cause and alarm.knobs), alarm


@pytest.mark.parametrize(
    "row", [{}, {"entropy/mean": None}, {"entropy/mean": math.nan}, {"entropy/mean": 0.0}, {"entropy/mean": "x"}, {"entropy/mean": math.inf}]
)
def test_odd_rows_ring_nothing(row):
    assert list(Monitor(detectors(masks=("a",))).over([Seen(step, row) for step in range(1, 40)])) == []


def test_an_entropy_of_zero_after_a_living_one_is_a_collapse():
    (alarm,) = rings(Collapse(), course([*([0.5] * 10), *([0.0] * 20)]))
    assert alarm.name == "collapse"
