"""Every script in examples/ runs as it stands, on its tiny model."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, out: Path, *more: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--out", str(out), *more], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"attach_peft.py", "watch_sft.py"}


def test_an_own_script_gains_a_chain(tmp_path):
    from isentrope.tape import Tape

    said = run("attach_peft.py", tmp_path, "--steps", "4")
    assert f"isentrope report {tmp_path / 'tape'}" in said
    steps = Tape.read(tmp_path / "tape").steps
    assert steps["step"].to_list() == [1, 2, 3, 4]
    assert {"touch/clip-cov", "touch/siren"} <= set(steps.columns)


def test_an_sft_run_is_measured(tmp_path):
    lines = [line for line in run("watch_sft.py", tmp_path, "--steps", "20").splitlines() if line.startswith("step")]
    entropies = [float(line.split("token entropy ")[1].split()[0]) for line in lines]
    assert [int(line[5:8]) for line in lines] == [0, 10, 20]
    assert entropies[-1] != entropies[0]
    assert all(value > 0 for value in entropies)
