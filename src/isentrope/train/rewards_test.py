"""The guard: every way in which a reward function can fail is counted, and the run goes on until it cannot."""

import math
import signal
import threading
import time

import numpy
import pytest
import torch

from isentrope.errors import UserError
from isentrope.train.rewards import GuardedReward, RewardError, import_reward, time_limit


def call(function, rows=3, **options):
    guard = GuardedReward(function, **options)
    return guard, guard(prompts=["p"] * rows, completions=["c"] * rows)


def returns(value):
    def reward(prompts, completions, **columns):
        return value

    return reward


def test_good_rewards_pass_through_as_floats():
    guard, got = call(returns([1, 0.5, numpy.float32(0.25)]))
    assert got == [1.0, 0.5, 0.25]
    assert all(type(x) is float for x in got)
    assert not guard.counts
    assert call(returns(torch.tensor([1.0, 0.0, 0.5])))[1] == [1.0, 0.0, 0.5]
    assert call(returns([True, False, True]))[1] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "kind", "want"),
    [
        ([1.0, math.nan, 0.0], "nan", [1.0, None, 0.0]),
        ([1.0, math.inf, 0.0], "nan", [1.0, None, 0.0]),
        ([1.0, None, 0.0], "none", [1.0, None, 0.0]),
        ([1.0, "1", 0.0], "type", [1.0, None, 0.0]),
    ],
)
def test_a_faulty_row_gets_none_and_is_counted(values, kind, want):
    guard, got = call(returns(values))
    assert got == want
    assert guard.counts == {kind: 1}


@pytest.mark.parametrize(("value", "kind"), [([1.0], "length"), (7, "type"), (None, "type")])
def test_a_faulty_call_costs_all_its_rows(value, kind):
    guard, got = call(returns(value))
    assert got == [None] * 3
    assert guard.counts == {kind: 3}


def test_a_raise_is_counted_and_ctrl_c_is_not_caught():
    def bad(**_):
        raise ZeroDivisionError("by zero")

    def stop(**_):
        raise KeyboardInterrupt

    guard, got = call(bad)
    assert got == [None] * 3
    assert guard.counts == {"raised": 3}
    with pytest.raises(KeyboardInterrupt):
        call(stop)


def test_only_the_rows_that_raise_stay_unscored():
    seen = []

    def picky(prompts, completions, answer, trainer_state, **_):
        seen.append((len(prompts), answer, trainer_state))
        if "bad" in completions:
            raise ValueError("bad one")
        return [float(len(c)) for c in completions]

    guard = GuardedReward(picky)
    got = guard(prompts=["p"] * 4, completions=["a", "bad", "ccc", "bad"], answer=[1, 2, 3, 4], trainer_state="state")
    assert got == [1.0, None, 3.0, None]
    assert guard.counts == {"raised": 2}
    assert seen == [(4, [1, 2, 3, 4], "state"), *((1, [number], "state") for number in (1, 2, 3, 4))]
    assert guard(prompts=["p"], completions=["aa"], answer=[1], trainer_state="state") == [2.0]


def test_only_the_rows_that_hang_stay_unscored_within_twice_the_limit():
    def slow(completions, **_):
        if "hang" in completions:
            time.sleep(60)
        return [1.0] * len(completions)

    guard = GuardedReward(slow, timeout=0.4)
    begun = time.perf_counter()
    assert guard(prompts=["p"] * 5, completions=["a", "hang", "b", "hang", "c"]) == [1.0, None, 1.0, None, 1.0]
    assert time.perf_counter() - begun < 2
    assert guard.counts == {"timeout": 2}
    assert "task.timeout, 0.4 s" in guard.last_fault


def test_a_verifier_that_leaves_the_program_is_a_fault_like_any_other():
    guard, got = call(lambda **_: exit(3))
    assert got == [None] * 3
    assert guard.counts == {"raised": 3}


def test_a_number_beyond_float32_is_no_number():
    assert call(returns([1e39, -1e39, 3.4e38]))[1] == [None, None, 3.4e38]


def test_a_function_that_never_ends_is_stopped_even_if_it_catches_exceptions():
    def forever(**_):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    begun = time.perf_counter()
    guard, got = call(forever, timeout=0.1)
    assert time.perf_counter() - begun < 2
    assert got == [None] * 3
    assert guard.counts == {"timeout": 3}


def test_time_limit_puts_back_the_handler_and_the_timer():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(5.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_time_limit_off_the_main_thread_is_no_limit():
    seen = []

    def work():
        with time_limit(0.01):
            time.sleep(0.05)
        seen.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["done"]


def test_after_patience_dead_calls_the_error_names_function_row_and_cause():
    def broken_verifier(**_):
        raise KeyError("answer")

    guard = GuardedReward(broken_verifier, patience=3)
    for _ in range(2):
        guard(prompts=["12+34="], completions=["46"])
    with pytest.raises(RewardError) as error:
        guard(prompts=["12+34="], completions=["46"])
    for part in ("broken_verifier", "3 calls in a row", "KeyError", "'12+34='", "'46'", "{'raised': 3}"):
        assert part in str(error.value)


def test_one_scored_row_resets_patience():
    rewards = iter([[None], [1.0], [None], [1.0]])
    guard = GuardedReward(lambda **_: next(rewards), patience=2, name="sometimes")
    assert [guard(prompts=["p"], completions=["c"]) for _ in range(4)] == [[None], [1.0], [None], [1.0]]
    assert guard.__name__ == "sometimes"


def test_async_functions_are_refused_by_name():
    async def later(**_):
        return []

    with pytest.raises(UserError, match=r"later.*async"):
        GuardedReward(later)


@pytest.mark.parametrize("text", ["1/0", "def f(:", "import sys; sys.exit(3)", "raise RuntimeError('no key')"])
def test_a_reward_module_that_cannot_be_imported(text, tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"task\.reward 'broken_reward:f': importing broken_reward raised \w+"):
        import_reward("broken_reward:f")


def test_import_path():
    assert import_reward("math:sqrt") is math.sqrt
    for path, word in [("math", "pkg.mod:function"), ("no_such_module_x:f", "PYTHONPATH"), ("math:sqroot", "no function 'sqroot'")]:
        with pytest.raises(UserError, match=word):
            import_reward(path)
