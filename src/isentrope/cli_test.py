"""The command line as a user meets it: exit codes, sentences, and what is not imported."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from isentrope import __version__, cli
from isentrope.errors import UserError

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
    from pathlib import Path

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
    assert all((row["status"] == "done") == bool(row["interventions"]) for row in rows)


def test_one_paper_for_people_and_for_machines(run):
    _, out, _ = run("papers", "kl-cov")
    for words in ("clip-cov  (done)", "kl-cov:", "stages:", "parameters:", "source:", "arXiv"):
        assert words in out
    rows = json.loads(run("papers", "kl-cov", "--json")[1])
    assert [row["slug"] for row in rows] == ["clip-cov"]
    assert "planned" in run("papers", "invisible-leash")[1]


def test_tasks_lists_presets_and_reasoning_gym(run):
    code, out, _ = run("tasks")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    assert "sums" in names
    assert "reasoning-gym:chain_sum" in names


def test_a_closed_pipe_is_no_error():
    found = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m isentrope.cli papers --json | head -c 10"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
