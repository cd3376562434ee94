"""Kill a real training process at random moments and go on with it; the end must equal the uninterrupted run, bit for bit.

    python tests/kill_and_resume.py --preset control-check --steps 12 --kills 10

Every trial starts a fresh run, kills it with SIGKILL at a random moment (also inside a save), resumes it to the end and compares
weights, optimiser-made figures and tape (wall-clock columns aside) with one uninterrupted run. Exit code 1 if any trial differs.
With `--after 5` the moment is up to two seconds after update 5 was saved, however busy the machine: between two checkpoints.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from isentrope.tape import Tape, same


def command(preset: str, out: Path, steps: int, save: int, extra: list[str]) -> list[str]:
    sets = [f"trl.max_steps={steps}", f"trl.save_steps={save}", "evaluate.every=6", "evaluate.prompts=16", "evaluate.samples=4", "report.build=false", *extra]
    arguments = [part for item in sets for part in ("--set", item)]
    return [sys.executable, "-m", "isentrope.cli", "train", "--preset", preset, "--out", str(out), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def complete(line: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=1200)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return time.monotonic() - began


def wait_for_start(process: subprocess.Popen, out: Path) -> None:
    """Until the run has begun (its directory says so)."""
    while process.poll() is None and not (out / "run.json").is_file():
        time.sleep(0.05)


def kill_at(line: list[str], out: Path, seconds: float, after: int | None = None) -> int:
    """Starts the run, kills it `seconds` after it began (or has saved the update `after`); returns the last update that a checkpoint holds (0: none)."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True)
    wait_for_start(process, out)
    while after is not None and process.poll() is None and not any(int(path.name.split("-")[1]) >= after for path in (out / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    held = [int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*")]
    return max(held, default=0)


def differences(left: Path, right: Path) -> list[str]:
    """What differs between two finished runs."""
    found = []
    for name in ("final", "best"):
        a, b = (load_file(folder / "model" / name / "model.safetensors") for folder in (left, right))
        found += [f"model/{name}: {key}" for key in a if not torch.equal(a[key], b[key])]
    return found + same(Tape.read(left), Tape.read(right))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="control-check")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--after", type=int, help="an update that is saved; kill shortly after that")
    parser.add_argument("--set", action="append", default=[], dest="extra")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="isentrope-kill-"))
    straight = folder / "straight"
    process = subprocess.Popen(command(options.preset, straight, options.steps, options.save, options.extra), stdout=subprocess.DEVNULL, env=environment())
    wait_for_start(process, straight)
    began = time.monotonic()
    if process.wait():
        print("the uninterrupted run failed")
        return 1
    span = time.monotonic() - began
    chance, failures = random.Random(options.seed), 0
    for trial in range(options.kills):
        out = folder / f"trial-{trial}"
        moment = chance.uniform(0.05, 0.95) * (span if options.after is None else 2.0)
        held = kill_at(command(options.preset, out, options.steps, options.save, options.extra), out, moment, options.after)
        complete([sys.executable, "-m", "isentrope.cli", "train", "--resume", str(out)])
        differing = differences(straight, out)
        failures += bool(differing)
        verdict = "equal" if not differing else "DIFFERS: " + "; ".join(differing[:3])
        began = f"its start of {span:.1f} s" if options.after is None else f"update {options.after} was saved"
        print(f"{options.preset} trial {trial}: killed {moment:5.1f} s after {began}, resumed from step {held}: {verdict}", flush=True)
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(f"{options.kills - failures} of {options.kills} resumed exactly")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
