"""The command line as a user meets it: exit codes, sentences, and what is not imported."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isentrope import __version__, cli
from isentrope.errors import DiskError, UserError

STANDARD = "import sys, isentrope.cli; print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'isentrope'}))"


def call(*arguments: str, capsys) -> tuple[int, str, str]:
    try:
        code = cli.main(list(arguments))
    except SystemExit as error:  # argparse leaves by it
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty directory, inside this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(*arguments, capsys=capsys)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300, check=False)


# --- starting


def test_only_the_standard_library_is_imported_at_the_start():
    found = python("-c", STANDARD)
    extra = set(yaml.safe_load(found.stdout)) - set(_at_start())
    assert extra == set()


def test_that_test_can_fail():
    found = python("-c", STANDARD.replace("isentrope.cli", "isentrope.config, isentrope.cli"))
    assert "pydantic" in yaml.safe_load(found.stdout)


def _at_start() -> set[str]:
    """What this interpreter loads before any program (path files of other packages)."""
    return set(yaml.safe_load(python("-c", STANDARD.replace(", isentrope.cli", "")).stdout))


def test_version_and_help_as_processes():
    found = python("-m", "isentrope.cli", "--version")
    assert (found.returncode, found.stdout) == (0, f"isentrope {__version__}\n")
    assert python("-m", "isentrope.cli").returncode == 2


@pytest.mark.parametrize("arguments", [("trian",), ("train", "--sed", "1"), ("report",), ("verify",), ("train", "--seed", "x")])
def test_wrong_usage_is_2(arguments, run):
    code, _, err = run(*arguments)
    assert code == 2
    assert "usage: isentrope" in err


# --- exit codes and their sentences


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--preset", "dmo"), ["unknown preset 'dmo'", "'demo'"]),
        (("train", "--config", "none.yaml"), ["no file none.yaml"]),
        (("train", "--preset", "demo", "--set", "trl.max_step=1"), ["trl.max_step", "'trl.max_steps'"]),
        (("train", "--preset", "demo", "--set", "control=[forking-tokens]", "--set", "trl.top_entropy_quantile=0.2"), ["mean the same", "Keep one"]),
        (("train", "--preset", "demo", "--set", "model=./nowhere"), ["./nowhere", "embedded"]),
        (("train", "--preset", "demo", "--set", "task=smus"), ["'smus'", "'sums'"]),
        (("train", "--resume", "nowhere"), ["nowhere holds no run"]),
        (("train", "--resume", "a", "--out", "b"), ["--out b"]),
        (("train", "--resume", "a", "--dry-run"), ["--dry-run"]),
        (("papers", "clip-coff"), ["'clip-coff'", "'clip-cov'"]),
        (("papers", "kl-coff"), ["'kl-cov'"]),
        (("report", "nowhere"), ["nowhere"]),
        (("verify", "nowhere"), ["nowhere is not a directory"]),
    ],
)
def test_what_the_user_did_is_one_sentence_and_2(arguments, words, run):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("isentrope: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("raised", "code", "words", "traceback"),
    [
        (UserError("so it is"), 2, "isentrope: so it is", False),
        (DiskError("no space for x"), 1, "isentrope: no space for x", False),
        (cli.Interrupted("go on with"), 130, "isentrope: go on with", False),
        (ImportError("cannot import name 'GRPOConfig' from 'trl'", name="trl"), 2, "is installed, and it lacks what this isentrope needs", False),
        (OSError(30, "Read-only file system", "runs"), 1, "the disk is read-only for runs", False),
        (cli.Stopped("step 3: not finite"), 1, "isentrope: step 3: not finite", False),
        (ModuleNotFoundError("No module named 'polars.x'", name="polars.x"), 2, "pip install 'isentrope[cli]'", False),
        (ModuleNotFoundError("No module named 'trl'", name="trl"), 2, "pip install 'isentrope[trl]'", False),
        (ModuleNotFoundError("No module named 'mine'", name="mine"), 1, "a fault of ours", True),
        (OSError(28, "No space left on device", "tape/x"), 1, "no space left on the disk for tape/x", False),
        (OSError(13, "Permission denied"), 1, "Permission denied", True),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero", True),
        (KeyboardInterrupt(), 130, "stopped", False),
    ],
)
def test_exit_codes(raised, code, words, traceback, run, monkeypatch):
    def fails(options):
        raise raised

    monkeypatch.setattr(cli, "_tasks", fails)
    found, _, err = run("tasks")
    assert found == code
    assert words in err
    assert ("Traceback" in err) is traceback


def test_every_missing_extra_names_an_extra_that_exists():
    import tomllib

    project = Path(cli.__file__).parents[2] / "pyproject.toml"
    assert set(cli.EXTRAS.values()) <= tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"].keys()


def test_without_an_extra_the_command_says_which_one():
    blocked = "import sys; sys.modules['yaml'] = None; import isentrope.cli as c; sys.exit(c.main(['train', '--preset', 'demo', '--dry-run']))"
    found = python("-c", blocked)
    assert (found.returncode, found.stderr) == (2, "isentrope: the package 'yaml' is missing. Install it with: pip install 'isentrope[cli]'\n")


# --- resume


@pytest.fixture
def earlier(tmp_path):
    """A directory with the configuration of an earlier run."""
    from isentrope.config import load

    directory = tmp_path / "earlier"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(load(preset="demo", out=str(directory)).model_dump(mode="json")))
    return str(directory)


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--set", "trl.max_steps=3"), "trl.max_steps: 200 -> 3"),
        (("--seed", "4"), "seed: 0 -> 4"),
        (("--preset", "control-check"), "task.name: 'sums' -> 'sums-think'"),
    ],
)
def test_a_resume_with_another_configuration_names_the_differences(flags, difference, earlier, run):
    code, _, err = run("train", "--resume", earlier, *flags)
    assert code == 2
    assert "configured otherwise" in err
    assert difference in err


@pytest.mark.parametrize("flags", [(), ("--preset", "demo"), ("--seed", "0")])
def test_a_resume_with_the_same_configuration_goes_on(flags, earlier, run):
    code, _, err = run("train", "--resume", earlier, *flags)
    assert code == 2  # this one never began, and that is what is wrong with it
    assert "configured otherwise" not in err
    assert "run.json" in err


# --- what commands print


def test_dry_run_shows_configuration_cost_and_first_prompt(run, tmp_path):
    code, out, _ = run("train", "--preset", "demo", "--set", "trl.max_steps=3", "--set", "control=[clip-cov]", "--dry-run")
    assert code == 0
    for words in ("max_steps: 3", "clip-cov", "memory", "time per update", "time in all", "MiB", "first prompt"):
        assert words in out
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_papers_as_json_holds_every_paper_and_every_intervention(run):
    from isentrope.control.registry import registry

    code, out, _ = run("papers", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len({row["slug"] for row in rows}) == len(rows) >= 130
    named = {item["name"] for row in rows for item in row["interventions"]}
    assert named == set(registry())
    assert all((row["status"] == "done") == bool(row["interventions"] or row["evaluated"] or row["recipes"]) for row in rows)


def test_one_paper_for_people_and_for_machines(run):
    _, out, _ = run("papers", "kl-cov")
    for words in ("clip-cov  (done)", "kl-cov:", "stages:", "parameters:", "source:", "arXiv"):
        assert words in out
    rows = json.loads(run("papers", "kl-cov", "--json")[1])
    assert [row["slug"] for row in rows] == ["clip-cov"]
    assert "planned" in run("papers", "nous")[1]
    assert "joins every evaluation" in run("papers", "invisible-leash")[1]


def test_interventions_of_no_paper_have_a_block_of_their_own(run):
    listed, _, standard = run("papers")[1].partition("standard, of no paper of the collection:")
    assert "clip-cov, kl-cov" in listed
    assert [line.split()[1] for line in standard.splitlines() if line] == [
        "clip-higher", "dual-clip", "dynamic-sampling", "entropy-band", "entropy-bonus", "overlong", "reference-kl",
    ]  # fmt: skip
    _, out, _ = run("papers", "entropy-bonus")
    for words in ("entropy-bonus  (done)", "of no paper", "stages: survey, regularise, update", "controller='none'", "isentrope.control.entropy_terms"):
        assert words in out


def test_tasks_lists_presets_and_reasoning_gym(run):
    code, out, _ = run("tasks")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    assert "sums" in names
    assert "reasoning-gym:chain_sum" in names


def test_a_closed_pipe_is_no_error():
    found = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m isentrope.cli papers --json | true"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")


# --- bad input, as a user would give it

REWARDS = """
import os, signal
calls = 0
def good(completions, **_): return [float(len(text) % 2) for text in completions]
def raises(**_): raise ZeroDivisionError("by zero")
def interrupts(completions, trainer_state, **_):
    global calls
    calls += 1
    for _ in range(PRESSED.count(calls)): os.kill(os.getpid(), signal.SIGINT)
    return good(completions)
"""
SMALL = (
    "trl.max_steps=3", "trl.per_device_train_batch_size=8", "trl.max_completion_length=6", "evaluate.prompts=4", "evaluate.samples=2", "report.build=false",
)  # fmt: skip


@pytest.fixture
def train(run, tmp_path, monkeypatch):
    """Trains for three updates on a JSONL task whose rewards stand in `cli_rewards`; (code, stdout, stderr)."""
    (tmp_path / "task.jsonl").write_text("\n".join(json.dumps({"prompt": f"{number}+{number}="}) for number in range(10, 60)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the module changes faster than time stamps of bytecode

    def start(*sets: str, reward: str = "good", pressed: tuple = (), out: str = "out") -> tuple[int, str, str]:
        (tmp_path / "cli_rewards.py").write_text(f"PRESSED = {pressed}{REWARDS}")
        sys.modules.pop("cli_rewards", None)
        given = [*SMALL, "task.jsonl=task.jsonl", f"task.reward=cli_rewards:{reward}", *sets]
        return run("train", "--preset", "demo", "--out", out, *(part for item in given for part in ("--set", item)))

    yield start
    sys.modules.pop("cli_rewards", None)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["model=task.jsonl"], ["'task.jsonl' is a file", "folder"]),
        (["task.jsonl=none.jsonl"], ["no file none.jsonl"]),
        (["task.jsonl=empty.jsonl"], ["empty.jsonl holds no rows"]),
        (["task.jsonl=damaged.jsonl"], ["damaged.jsonl line 2 is not JSON"]),
        (["task.jsonl=long.jsonl"], ["longest prompt has 601 tokens", "reads 128 together"]),
        (["trl.max_completion_length=5000"], ["max_completion_length", "Set trl.max_completion_length to at most"]),
        (["trl.per_device_train_batch_size=4096"], ["training prompts", "one generation takes 512", "lower trl.per_device_train_batch_size"]),
        (["task.reward=cli_rewards:nothing"], ["no function 'nothing'", "good, raises, interrupts"]),
        (["task.reward=broken:f"], ["importing broken raised ZeroDivisionError"]),
        (["model.peft={r: -1}"], ["the trainer refuses these options", "positive"]),
    ],
)
def test_bad_input_is_told_before_training(sets, words, train, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "damaged.jsonl").write_text('{"prompt": "1+1="}\n{"prom')
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"prompt": f"{number}+{'1+' * 298}="}) for number in range(100, 160)))
    (tmp_path / "broken.py").write_text("1/0")
    code, out, err = train(*sets)
    assert (code, out) == (2, "")
    assert err.startswith("isentrope: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not any((tmp_path / "out").glob("*"))  # so the next attempt can have the same --out


def test_an_output_directory_that_is_in_use_or_no_directory(train, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "run.json").touch()
    assert "file cannot be a run directory: File exists" in train(out="file")[2]
    assert "Not a directory" in train(out="file/run")[2]
    assert "mine is not empty (notes). Choose another --out, or empty it." in train(out="mine")[2]
    assert "continue that run with --resume earlier" in train(out="earlier")[2]


def test_a_verifier_that_always_raises_stops_the_run_and_the_tape_says_why(train, tmp_path):
    from isentrope.tape import Tape

    code, _, err = train(reward="raises")
    assert code == 2
    for word in ("reward raises: no row could be scored in 5 calls in a row", "ZeroDivisionError: by zero", "resume the run"):
        assert word in err
    events = Tape.read(tmp_path / "out").events.rows(named=True)
    assert [event["kind"] for event in events] == ["reward-fault", "RewardError"]
    assert Tape.read(tmp_path / "out").steps["step"].to_list() == [1, 2, 3]
    (tmp_path / "cli_rewards.py").write_text("def raises(completions, **_): return [1.0] * len(completions)")
    sys.modules.pop("cli_rewards")
    assert cli.main(["train", "--resume", str(tmp_path / "out")]) == 0  # mended, it goes on


def test_weights_that_are_not_finite_are_never_saved(train, tmp_path):
    code, _, err = train("trl.learning_rate=3e38", "trl.save_steps=1", "evaluate.every=null")
    assert code == 1
    assert "Traceback" not in err
    for word in ("not finite, first in the weights (of model.", "The batch is saved in out/failed-step-", "There is no checkpoint yet"):
        assert word in err
    assert list((tmp_path / "out").glob("failed-step-*.pt"))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_ctrl_c_ends_with_a_checkpoint_and_the_run_goes_on_to_the_same_end(train, tmp_path):
    from isentrope.tape import Tape, same

    assert train(out="straight")[0] == 0
    before = signal.getsignal(signal.SIGINT)
    code, out, err = train(reward="interrupts", pressed=(2,))  # the first call is the first evaluation's
    assert code == 130
    assert "Press Ctrl-C again" in out
    assert err == "isentrope: interrupted, and saved. Go on with: isentrope train --resume out\n"
    assert signal.getsignal(signal.SIGINT) is before
    assert os.listdir(tmp_path / "out" / "checkpoints") == ["step-00000001"]
    assert cli.main(["train", "--resume", "out"]) == 0
    left, right = (Tape.read(tmp_path / name) for name in ("straight", "out"))
    assert [line for line in same(left, right) if "reward/part" not in line and "trl/rewards" not in line] == []  # columns named after the function


def test_ctrl_c_twice_stops_at_once_and_says_how_to_go_on(train):
    code, _, err = train("trl.save_steps=1", reward="interrupts", pressed=(4, 4))
    assert code == 130
    assert err == f"isentrope: stopped at once. The last checkpoint is {Path('out/checkpoints/step-00000002')}. Go on with: isentrope train --resume out\n"
    assert cli.main(["train", "--resume", "out"]) == 0


def test_a_full_disk_is_1_and_the_run_goes_on_when_there_is_room(train, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        code, _, err = train("trl.save_steps=1", out="disk/run")
        assert code == 1
        assert err.startswith("isentrope: checkpoint: disk/run/checkpoints/step-0000000")
        assert "cannot be written: No space left on device" in err
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert cli.main(["train", "--resume", "disk/run"]) == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").write_text("{"), "--resume: earlier/config.yaml is not YAML"),
        (lambda run: (run / "config.yaml").write_text("3"), "--resume: earlier/config.yaml must hold sections"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xff"), "--resume: earlier/config.yaml is not YAML"),
        (lambda run: [(run / "run.json").touch(), (run / "checkpoints" / "step-00000004").mkdir(parents=True)], "MANIFEST.json is missing"),
    ],
)
def test_a_damaged_run_is_not_resumed(spoil, words, earlier, run):
    spoil(Path(earlier))
    code, _, err = run("train", "--resume", "earlier")
    assert code == 2
    assert words in err
