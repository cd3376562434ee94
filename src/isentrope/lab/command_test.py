"""The verb: what is refused before anything runs, what a dry run shows, what is printed at the end."""

import argparse
import json
import sys

import pytest
import yaml

from isentrope.cli import main
from isentrope.lab import command
from isentrope.lab import plan as plans
from isentrope.lab.results import Results


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No probe of the machine, and a comparison that runs nothing."""
    monkeypatch.setattr(command, "_probe", lambda plan: 60.0)

    def nothing(plan, directory, launcher, **more):
        runs = {arm.name: dict.fromkeys(plan.seeds) for arm in plan.arms}
        return _results(plan, runs)

    monkeypatch.setattr(command, "compare", nothing)


def _results(plan, runs) -> Results:
    from isentrope.lab.results import summarise

    return summarise(plan, runs, {}, {"runs/grpo/seed-0": "it broke"} if plan.steps == 13 else {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grpo", "clip-cvo"], "Did you mean 'clip-cov'?"),
        (["grpo"], "name at least one method beside the baseline"),
        (["clip-cov", "--address", "auto"], "--address is of a Ray cluster; add --launcher ray"),
        (["clip-cov", "--steps", "0"], "--steps must be at least 1. Got 0"),
        (["clip-cov", "--seeds", "0"], "--seeds must be at least 1. Got 0"),
        (["clip-cov", "--sweep", "lr", "--no-match"], "choose one"),
        (["clip-cov", "--set", "trl.learning_rat=1"], "Did you mean 'trl.learning_rate'?"),
        (["reference-kl(against=reference)"], "reference-kl(against=reference): reference-kl needs a reference model"),
        (["clip-cov", "--workers", "0"], "--workers must be at least 1. Got 0"),
        (["--resume", "nowhere"], "nowhere holds no comparison"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(tmp_path, capsys, arguments, said):
    code = main(["compare", *arguments, *([] if "--resume" in arguments else ["--out", str(tmp_path / "out")])])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / plans.FILE).exists()


def test_a_comparison_leaves_its_plan_and_its_configuration(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", "clip-cov", "--seeds", "2", "--steps", "12", "--task", "sums-think", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "clip-cov  not judged" in said
    assert str(out / "compare.html") in said
    plan = plans.load(out)
    assert (plan.seeds, plan.steps, plan.config["evaluate"]["every"], plan.config["task"]["name"]) == ((0, 1), 12, 2, "sums-think")
    assert yaml.safe_load((out / command.BASE).read_text()) == plan.config
    assert main(["compare", "clip-cov", "--out", str(out)]) == 2
    assert f"Go on with it by --resume {out}" in capsys.readouterr().err


def test_failed_runs_are_told_and_the_exit_code_says_so(tmp_path, capsys):
    assert main(["compare", "clip-cov", "--seeds", "2", "--steps", "13", "--out", str(tmp_path / "out")]) == 1
    assert "failed: runs/grpo/seed-0: it broke" in capsys.readouterr().out


def test_resume_takes_the_plan_that_is_there_and_no_other(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", "clip-cov", "--seeds", "2", "--out", str(out)]) == 0
    assert main(["compare", "--resume", str(out)]) == 0
    assert main(["compare", "siren", "--seeds", "3", "--resume", str(out)]) == 2
    assert "methods, --seeds does not go with it" in capsys.readouterr().err


def test_a_directory_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("dear")
    assert main(["compare", "clip-cov", "--out", str(tmp_path)]) == 2
    assert "is not empty (letters.txt)" in capsys.readouterr().err


def test_a_dry_run_shows_arms_settings_and_time_and_writes_nothing(tmp_path, capsys):
    assert main(["compare", "clip-cov", "entropy-bonus", "siren", "--seeds", "6", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "method    clip-cov  [{name: clip-cov, ratio: 0.02}]" in said
    assert "no placebo of entropy-bonus" in said
    assert "6 pilots, 36 runs, 4 runs with a ledger of 120 updates; one run takes at most about 60 s on one thread, all 41 min of core time" in said
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_told_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", "clip-cov", "--launcher", "ray", "--out", str(tmp_path / "out")]) == 2
    assert "isentrope[ray]" in capsys.readouterr().err


def test_make_compares_plan_is_150_runs_of_methods_that_have_placebos():
    """The Makefile's line: a baseline, twelve methods and their placebos, six seeds, 120 updates."""
    names = ["dynamic-sampling", "aepo-arbitrary", "hapo", "ares", "canon", "arm", "clip-cov", "kl-cov", "forking-tokens", "steer", "siren", "entropy-band"]
    options = argparse.Namespace(
        methods=names, config=None, preset=None, sets=[], task=None, seeds=6, steps=120, k=None, sweep=None, no_match=False, no_placebos=False,
        no_ledger=False,
    )  # fmt: skip
    plan = command.asked(options)
    runs = [task for task in plan.tasks() if task.kind == "run"]
    assert len(runs) == 150
    assert not plan.without_placebo
    assert json.loads(json.dumps(plan.config)) == plan.config
