"""Which interventions each host carries, and how far the hosts are from the pure function: writes docs/conformance.md.

    make test-verl                            once: the verl host needs an environment of its own
    python scripts/conformance_table.py       runs the conformance tests of both hosts, about two minutes each

The tests' own measurements stand in the table: the largest difference of the loss, and of the gradient of all parameters relative to its norm, over two
updates. Without .venv-verl the column of verl says so.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from isentrope.control.registry import registry
from isentrope.control.stages import stages_of
from isentrope.train.verl_carried import LOSS, TESTED_VERL, side, why_not

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "conformance.md"
VERL = ROOT / ".venv-verl" / "bin" / "python"
Measured = dict[str, tuple[float, float]]
HEAD = f"""# One method on two trainers

`python scripts/conformance_table.py`. Two batches of the embedded model's responses are recorded with loss and gradient of the pure `policy_loss` under
every chain below (`scripts/record_conformance.py`). Each host must come to the same from the same batches, through its trainer's own buffers, slices,
engine and loss: TRL in four gradient-accumulation slices, after its shuffle; verl {TESTED_VERL[0]} through its worker, its FSDP2 engine and its
`ppo_loss`, in four micro-batches. The second update also sees what the first left in the state of a link. Columns: the largest difference of the loss
in two updates, and of the gradient of all parameters relative to its norm. The tests allow 2e-6 and 2e-5.

"""
BEFORE = """
## What verl runs before its loss

Stages `reward` and `advantage` run in verl's advantage estimator, on the whole batch of a training step. The estimator's numbers are compared with the
pure stages in `tests/verl_host/test_advantage.py`. TRL's own GRPO advantage divides by the deviation + 1e-4, verl's by the deviation + 1e-6, so base
advantages differ in the fourth digit where rewards are 0 and 1; that is theirs and stays.

| intervention | stages |
|---|---|
"""
REFUSED = """
## What verl cannot carry, and why

| intervention | what it needs |
|---|---|
"""


def measured(python: Path, *arguments: str) -> Measured:
    """{case: (largest difference of the loss, of the gradient)} as a run of the tests recorded it.

    Raises RuntimeError if a test failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run = subprocess.run(
            [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}", *arguments],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        if run.returncode:
            raise RuntimeError(f"{python}: {' '.join(arguments)} failed:\n{run.stdout[-3000:]}")
        found: Measured = {}
        for case in ElementTree.parse(report).iter("testcase"):
            values: dict[str, list[float]] = {"loss": [], "gradient": []}
            for item in case.iter("property"):
                values[item.attrib["name"]].append(float(item.attrib["value"]))
            found[case.attrib["name"].partition("[")[2][:-1]] = max(values["loss"]), max(values["gradient"])
        return found


def shown(found: Measured | None, case: str) -> str:
    return "not measured here" if found is None or case not in found else f"{found[case][0]:.0e} / {found[case][1]:.0e}"


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests")]
    from conformance.recorded import cases

    trl = measured(Path(sys.executable), "-n0", "-m", "slow or not slow", "tests/test_conformance_trl.py")
    verl = measured(VERL, "-c", "tests/verl_host/pytest.ini", "tests/verl_host/test_conformance.py") if VERL.is_file() else None
    lines = ["| chain | TRL | verl |", "|---|---|---|", *(f"| `{case.name}` | {shown(trl, case.name)} | {shown(verl, case.name)} |" for case in cases())]
    kinds = {name: kind() for name, kind in registry().items()}
    before = [f"| `{name}` | {', '.join(stages_of(link))} |" for name, link in kinds.items() if not why_not(link) and side(link) != LOSS]
    refused = [f"| `{name}` | {'; '.join(why_not(link))} |" for name, link in kinds.items() if why_not(link)]
    DOCS.write_text(HEAD + "\n".join(lines) + "\n" + BEFORE + "\n".join(before) + "\n" + REFUSED + "\n".join(refused) + "\n")
    print(f"{DOCS.relative_to(ROOT)}: {len(lines) - 2} chains, {len(before)} before the loss, {len(refused)} refused")


if __name__ == "__main__":
    main()
