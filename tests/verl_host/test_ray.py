"""verl's own training step on Ray with two workers, without the generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_training_step_of_verl_on_two_workers_of_ray_is_that_of_one():
    """TransferQueue carries the batch, the old policy's N for clip-v, the uids and the scores; the estimator reads the old entropies; the update is
    surveyed over both workers. One process with one micro-batch, on the same rows and weights, has the same loss and gradient norm."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-W", "ignore", str(HERE / "step_on_ray.py"), "2"], capture_output=True, text=True, env=environment, timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("STEP ")).removeprefix("STEP "))
    assert found["loss"] == pytest.approx(found["local"]["loss"], abs=2e-6)
    assert found["actor/grad_norm"] == pytest.approx(found["local"]["grad_norm"], rel=2e-5)
    assert {"isentrope_old_N", "uid", "rm_scores", "entropy"} <= set(found["fields"])
    assert found["actor/isentrope/forking-tokens/touched"] == pytest.approx(0.8, abs=0.05)
