"""A killed run goes on exactly. The fast test kills once per preset; `make test-slow` kills ten times (tests/kill_and_resume.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tests" / "kill_and_resume.py"


def kill(preset: str, kills: int, *more: str) -> str:
    line = [sys.executable, str(SCRIPT), "--preset", preset, "--kills", str(kills), *more]
    done = subprocess.run(line, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("preset", ["demo", "control-check"])
def test_a_killed_run_resumes_exactly(preset):
    assert "1 of 1 resumed exactly" in kill(preset, 1, "--steps", "8")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo", "control-check", "game"])
def test_ten_killed_runs_resume_exactly(preset):
    assert "10 of 10 resumed exactly" in kill(preset, 10)


@pytest.mark.slow
def test_a_killed_run_with_controllers_resumes_exactly():
    chain = "control=[siren, hapo, clip-cov]"
    assert "4 of 4 resumed exactly" in kill("control-check", 4, "--set", chain)


SAMPLED = {
    "cure": "control=[{name: cure, n2: 1, top_k: 5, characters: 1, until: 8}]",  # a generation feeds eight updates: one is cut, the next is plain
    "spear": "control=[{name: spear, replayed: 8, baseline: 64, max_age: 20, rise: 10}]",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_a_killed_run_that_samples_by_itself_or_replays_resumes_exactly(name):
    """Killed after update 5 was saved: between checkpoints, in the middle of the eight updates that one generation feeds."""
    told = kill("control-check", 2, "--steps", "12", "--save", "5", "--after", "5", "--set", SAMPLED[name])
    assert "2 of 2 resumed exactly" in told
    assert "resumed from step 5" in told
