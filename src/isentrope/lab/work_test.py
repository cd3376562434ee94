"""Real workers: a run in a process of its own, one that is killed, one whose driver is, and a driver on Ray killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from isentrope import config as configuration
from isentrope.errors import UserError
from isentrope.lab.pool import Local, environment, last_line, log_of
from isentrope.lab.work import SUMMARY, asked_file

TINY = (
    "trl.max_steps=6", "trl.save_steps=2", "trl.per_device_train_batch_size=16", "evaluate.every=3", "evaluate.prompts=4", "evaluate.samples=2",
    "tape.tokens_every=null", "report.build=false",
)  # fmt: skip


def asked(directory: Path, *sets: str) -> Path:
    config = configuration.load(preset="compare", sets=[*TINY, *sets], out=str(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    asked_file(directory).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return directory


def waited(launcher: Local, seconds: float = 1200.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ended := launcher.wait(1.0):
            return ended
    raise AssertionError("no run ended")


# --- the pool, with a process that is no run


@pytest.fixture
def echo(monkeypatch):
    """Workers that run the given Python instead of a training run."""

    def use(code: str) -> None:
        real = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", lambda command, **more: real([sys.executable, "-c", code], **more))

    return use


@pytest.mark.parametrize(
    ("code", "reason", "killed"),
    [
        ("pass", None, False),
        ("import sys; print('first'); print('the loss is not finite', file=sys.stderr); sys.exit(1)", "the loss is not finite", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "its worker was killed by SIGKILL; if nobody did it, memory ran out", True),
        ("import sys; sys.exit(7)", "its worker ended with code 7", False),
    ],
)
def test_how_a_worker_ended_is_told(tmp_path, echo, code, reason, killed):
    echo(code)
    launcher = Local(1)
    launcher.submit("a", tmp_path / "runs" / "a", keep=False)
    (ended,) = waited(launcher)
    assert (ended.key, ended.reason, ended.killed) == ("a", reason, killed)
    assert launcher.wait(0.0) == []


def test_closing_ends_the_workers(tmp_path, echo):
    echo("import time; time.sleep(600)")
    launcher = Local(2)
    launcher.submit("a", tmp_path / "a", keep=False)
    (process, _) = launcher._running["a"]
    launcher.close()
    assert process.poll() == -signal.SIGKILL


def test_a_worker_ends_when_its_driver_does(tmp_path):
    """The driver is killed so that it can tell nobody; the worker notices by the end of its pipe."""
    worker = "import time; from isentrope.lab.work import ends_with_its_driver; ends_with_its_driver(); open('alive', 'w'); time.sleep(600)"
    driver = (
        f"import subprocess, sys, time; worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdin=subprocess.PIPE); "
        "print(worker.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    until = time.monotonic() + 60
    while not (tmp_path / "alive").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_workers_have_one_thread_and_must_be_some():
    assert {environment()[name] for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")} == {"1"}
    assert Local().slots >= 1
    with pytest.raises(UserError, match=r"--workers must be at least 1\. Got 0"):
        Local(0)


def test_the_last_line_of_a_log(tmp_path):
    log = log_of(tmp_path / "seed-0")
    assert log == tmp_path / "seed-0.log"
    assert last_line(log) is None
    log.write_bytes(b"one\n\xff two \n\n")
    assert last_line(log) == "\ufffd two"


# --- real runs


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint_to_the_same_end(tmp_path):
    straight, killed = asked(tmp_path / "straight"), asked(tmp_path / "killed")
    launcher = Local(1)
    launcher.submit("straight", straight, keep=False)
    assert waited(launcher)[0].reason is None
    launcher.submit("killed", killed, keep=False)
    while not list((killed / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    launcher._running["killed"][0].kill()
    (ended,) = waited(launcher)
    assert ended.killed
    launcher.submit("killed", killed, keep=False)
    assert waited(launcher)[0].reason is None
    one, two = (json.loads((run / SUMMARY).read_text()) for run in (straight, killed))
    assert json.loads((killed / "run.json").read_text())["recovered_from"]
    assert {key: value for key, value in one.items() if key != "seconds"} == {key: value for key, value in two.items() if key != "seconds"}
    assert not (killed / "checkpoints").exists()
    assert not (killed / "model").exists()


@pytest.mark.slow
def test_a_run_that_cannot_be_is_told_by_its_reason(tmp_path):
    directory = asked(tmp_path / "run", "trl.per_device_train_batch_size=7")
    launcher = Local(1)
    launcher.submit("a", directory, keep=False)
    (ended,) = waited(launcher)
    assert "generation_batch_size (28) must be divisible by num_generations (8)" in (ended.reason or "")
    assert not ended.killed


def _finished(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.glob("runs/*/*/summary.json")}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_a_killed_driver_resumes_and_computes_nothing_twice(tmp_path, launcher):
    """SIGKILL in the middle of a comparison; --resume ends it, what was finished is not touched, and the page says so."""
    if launcher == "ray":
        pytest.importorskip("ray")
    out, base = tmp_path / "out", [sys.executable, "-m", "isentrope.cli", "compare"]
    sets = [part for item in TINY if not item.startswith("report") for part in ("--set", item)]
    how = ["--launcher", launcher, "--workers", "1"]
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(
            [*base, "grpo", "clip-cov", *sets, "--seeds", "2", "--k", "2", "--no-match", "--no-placebos", "--out", str(out), *how],
            stdout=log, stderr=log, env=environment(), start_new_session=True,
        )  # fmt: skip
        while driver.poll() is None and not (len(_finished(out)) == 1 and list(out.glob("runs/*/*/run.json"))[1:]):
            time.sleep(0.05)
        assert driver.poll() is None, (tmp_path / "log").read_text()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    before = _finished(out)
    assert len(before) in (1, 2)
    done = subprocess.run([*base, "--resume", str(out), *how], capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    after = _finished(out)
    assert len(after) == 4
    assert {path: after[path] for path in before} == before
    assert f"{len(before)} of 4 runs are finished" in done.stdout
    assert json.loads((out / "results.json").read_text())["finished"] == 4
    assert "not finished" not in (out / "compare.html").read_text()[:20_000]
