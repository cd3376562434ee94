"""What a run says of itself in the end."""

import subprocess
import sys

import pytest

from isentrope.config import Config
from isentrope.errors import UserError
from isentrope.tape import Tape, TapeWriter
from isentrope.train.run import owned, run, summarise

STEPS = [
    {"step": step, "seconds": 0.5, "tokens": 10.0, "entropy/mean": 1.0 / step, "reward/mean": step / 40} for step in range(1, 41)
]  # fmt: skip


def evals(step: int, entropy: float, pass1: float) -> list[dict]:
    figures = {"pass@1": pass1, "entropy": entropy}
    return [{"step": step, "metric": name, "value": value, "low": value - 0.01, "high": value + 0.01} for name, value in figures.items()]


def summary(tmp_path, rows: list[dict]) -> dict:
    writer = TapeWriter(tmp_path / "tape")
    writer.append("steps", STEPS)
    if rows:
        writer.append("evals", rows)
    writer.flush(40)
    return summarise(Tape.read(tmp_path), {"pass@1": 0.9, "step": 40})


def test_start_and_end_are_of_the_same_responses(tmp_path):
    found = summary(tmp_path, evals(0, 0.35, 0.3) + evals(20, 0.1, 0.8) + evals(40, 0.02, 0.9))
    assert (found["entropy.start"], found["entropy.end"], found["pass@1.start"], found["pass@1"]) == (0.35, 0.02, 0.3, 0.9)
    assert found["entropy.of"].startswith("held-out")
    assert (found["steps"], found["seconds"], found["pass@1.low"], found["best.step"]) == (40, 20.0, 0.89, 40)


@pytest.mark.parametrize("rows", [[], evals(40, 0.02, 0.9)])
def test_without_two_evaluations_entropy_is_that_of_the_training_responses(tmp_path, rows):
    found = summary(tmp_path, rows)
    assert (found["entropy.start"], found["entropy.end"]) == pytest.approx((0.75, (1 / 39 + 1 / 40) / 2))
    assert found["entropy.of"].startswith("training")
    assert "pass@1.start" not in found


def test_one_process_at_a_time_owns_a_directory_and_a_killed_one_leaves_no_lock(tmp_path):
    hold = f"with owned(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(600)"
    line = f"import time\nfrom pathlib import Path\nfrom isentrope.train.run import owned\n{hold}"
    with subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is in use: another process"), owned(tmp_path):
            pass
        other.kill()
        other.wait()
    with owned(tmp_path):
        pass
    with owned(tmp_path):  # released by the one before
        pass
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"is one process.*IsentropeTrainer under torchrun"):
        run(Config(out=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())
