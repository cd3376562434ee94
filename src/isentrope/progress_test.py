"""What a watcher of a run sees, in a terminal and in a file."""

import io
import re

import pytest

from isentrope import progress as module
from isentrope.progress import Progress

ROW = {"step": 1, "reward/mean": 0.25, "entropy/mean": 0.4321, "length/mean": 12.0, "tokens_per_second": 2345.6, "kl/mean": 1.0}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_plain_lines_say_what_is_known(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(10)
    clock[0] += 6
    progress.step(ROW)
    assert lines(stream) == ["step 1/10  reward 0.250  entropy 0.432 nats  length 12.0  tokens/s 2,346  ETA 0:54"]


def test_at_most_one_line_in_so_many_seconds_and_always_the_last(clock):
    stream = io.StringIO()
    progress = Progress(stream, seconds=5)
    progress.start(6)
    for step in range(1, 7):
        clock[0] += 2
        progress.step({"step": step})
    assert [line.split()[1] for line in lines(stream)] == ["1/6", "4/6", "6/6"]


def test_the_time_left_counts_only_what_was_done_here(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(200)
    clock[0] += 10
    progress.step({"step": 101})  # resumed at 100: 99 steps of 10 seconds are left
    assert lines(stream)[0].endswith("ETA 16:30")


def test_pass_at_one_stays_until_the_next_evaluation(clock):
    stream = io.StringIO()
    progress = Progress(stream, seconds=0)
    progress.start(3)
    progress.step({"step": 1, "pass@1": 0.5})
    progress.step({"step": 2, "pass@1": float("nan")})
    progress.step({"step": 3, "pass@1": 0.75})
    assert [re.search(r"pass@1 (\S+)", line)[1] for line in lines(stream)] == ["0.500", "0.500", "0.750"]


def test_what_is_not_a_number_is_left_out():
    assert Progress(io.StringIO()).describe({"reward/mean": float("nan"), "entropy/mean": None, "length/mean": 3}) == "length 3.0"


def test_no_control_character_reaches_a_plain_stream():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.message("a completion wrote \x1b[2J\r\x07 this")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())
    assert lines(stream)[0].startswith("a completion wrote")


def test_an_unknown_total_has_no_time_left(clock):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(-1)
    progress.step({"step": 4})
    assert lines(stream) == ["step 4"]


def test_a_terminal_gets_a_bar_and_messages_as_they_are():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(stream)
    progress.start(4)
    progress.step({**ROW, "step": 2})
    progress.message("[bold]not markup[/bold]")
    progress.stop()
    progress.stop()
    text = stream.getvalue()
    assert "2/4" in text
    assert "[bold]not markup[/bold]" in text
    assert "entropy 0.432 nats" in text
