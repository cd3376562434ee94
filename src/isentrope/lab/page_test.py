"""The page says what the results say, escapes what it shows, and stands at every stage of a comparison."""

import json
import re

import pytest

from isentrope import config as configuration
from isentrope.lab import page
from isentrope.lab.compare import Comparison
from isentrope.lab.plan import make
from isentrope.lab.synthetic import finished_run
from isentrope.report.page import plotly
from isentrope.tape import TapeWriter

METHODS = ("clip-cov", "kl-cov", "forking-tokens", "steer", "entropy-bonus")
LAWS = {"clip-cov": {"ceiling": 0.94}, "kl-cov": {"speed": 0.016}, "steer": {"ceiling": 0.94}, "entropy-bonus": {"lift": 0.06}}
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Six seeds of five methods whose truth is stated in LAWS; of steer alone the placebo does the same. One run failed."""
    folder = tmp_path_factory.mktemp("compared")
    plan = make(METHODS, configuration.load(preset="compare"), seeds=6, match="none")
    for key, task in {task.key: task for task in plan.tasks()}.items():
        arm = plan.arm(task.arm)
        if key == "runs/forking-tokens/seed-3":
            continue
        law = LAWS.get(arm.of or arm.name, {}) if arm.role != "placebo" or arm.of == "steer" else {}
        finished_run(folder / key, seed=task.seed + 100 * plan.arms.index(arm), **law)
    state = Comparison(plan, folder)
    state.failed["runs/forking-tokens/seed-3"] = f"step 4: not finite {EVIL}"
    return state.results(), folder


def test_each_method_gets_the_verdict_of_its_truth(finished):
    results, _ = finished
    assert {name: verdict.word for name, verdict in results.verdicts.items()} == {
        "clip-cov": "helps", "kl-cov": "slower learning only", "forking-tokens": "no difference found", "steer": "same as its placebo",
        "entropy-bonus": "no difference found",
    }  # fmt: skip
    assert page.title(results) == "Of five methods, one helps, one only learns more slowly, one does what its placebo does, two show no difference."
    assert "is higher: +0.0" in results.verdicts["entropy-bonus"].entropy


def test_the_page_is_one_file_that_asks_for_nothing_and_says_it_all(finished):
    results, folder = finished
    text = page.html(results, folder).replace(plotly(), "")
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert page.title(results) in text
    for name, verdict in results.verdicts.items():
        assert verdict.word in text
        assert name in text
    assert text.count("isentrope train --config") == 10 * 6
    assert "isentrope compare --resume" in text
    assert "--no-match" in text
    assert "not finished: " not in text


def test_what_a_program_said_is_escaped(finished):
    results, folder = finished
    text = page.html(results, folder)
    assert EVIL not in text
    assert "step 4: not finite &lt;script&gt;" in text


def test_the_numbers_of_the_page_stand_in_a_file(finished):
    results, folder = finished
    assert page.write(results, folder) == folder / page.NAME
    data = json.loads((folder / page.DATA).read_text())
    assert data["verdicts"]["kl-cov"]["word"] == "slower learning only"
    assert data["finished"] == 59
    assert len(data["arms"]["grpo"]["pass@1"]) == 6
    assert data["arms"]["forking-tokens"]["pass@1"][3] is None
    row = next(row for row in data["matched_step"]["to_baseline"] if (row["method"], row["metric"]) == ("clip-cov", "pass@1"))
    assert row["found"] == 1
    assert row["low"] < row["mean"] < row["high"]


def test_a_missing_seed_is_left_out_of_its_pairs(finished):
    results, _ = finished
    assert results.step["forking-tokens", "pass@1"].pairs == 5
    assert results.step["clip-cov", "pass@1"].pairs == 6


def test_a_comparison_that_has_just_begun_has_a_page(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare"), seeds=2, match="none")
    text = page.html(Comparison(plan, tmp_path).results(), tmp_path)
    assert "Nothing can be judged yet" in text
    assert "not finished: 0 of 6 runs" in text
    finished_run(tmp_path / "runs/grpo/seed-0", seed=0)
    assert "not finished: 1 of 6 runs" in page.html(Comparison(plan, tmp_path).results(), tmp_path)


def test_one_seed_and_one_method_are_not_judged(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare"), seeds=1, match="none")
    for task in plan.tasks():
        finished_run(tmp_path / task.key, seed=plan.arms.index(plan.arm(task.arm)))
    results = Comparison(plan, tmp_path).results()
    assert results.verdicts["clip-cov"].word == "not judged"
    assert "1 seed in common" in results.verdicts["clip-cov"].because
    assert page.html(results, tmp_path)


def test_runs_equal_to_the_baselines_are_the_same_computation(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare"), seeds=3, match="none", placebos=False)
    for task in plan.tasks():
        finished_run(tmp_path / task.key, seed=task.seed)
    results = Comparison(plan, tmp_path).results()
    assert results.verdicts["clip-cov"].word == "same computation"
    assert page.title(results) == "clip-cov changes nothing."


def test_the_ledger_stands_by_arm_and_its_accounts_add_up(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare"), seeds=1, match="none", placebos=False)
    for task in plan.tasks():
        finished_run(tmp_path / task.key, seed=0)
    assert "Why entropy moved" not in page.html(Comparison(plan, tmp_path).results(), tmp_path)
    run = tmp_path / "ledger/clip-cov"
    writer = TapeWriter(run / "tape")
    account = {"account/this_batch": [-0.01, -0.02], "account/momentum": [-0.03, -0.04], "account/residual": [0.001, 0.002]}
    writer.append("ledger", {"step": [1, 6], "measured": [-0.039, -0.058], **account})
    writer.flush(120)
    (run / "summary.json").write_text(json.dumps({"ledger.exact.correlation": 0.973, "ledger.exact.slope": 0.91}))
    text = page.html(Comparison(plan, tmp_path).results(), tmp_path)
    assert "Why entropy moved" in text
    assert "0.97, 0.91" in text
    assert all(number in text for number in ("−0.0970", "−0.0300", "−0.0700", "+0.0030"))  # the change, and the accounts that add up to it
    assert "weight decay" not in text.split("Why entropy moved")[1].split("</table>")[0]  # no such account was kept


def test_a_ledger_that_the_runs_kept_themselves_is_their_mean(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare", sets=["ledger.every=10"]), seeds=2, match="none", placebos=False)
    for task in plan.tasks():
        finished_run(tmp_path / task.key, seed=task.seed)
    for seed, slope in enumerate((0.9, 1.0)):
        path = tmp_path / f"runs/grpo/seed-{seed}/summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ledger.exact.correlation": 0.973, "ledger.exact.slope": slope}))
    assert "0.97, 0.95" in page.html(Comparison(plan, tmp_path).results(), tmp_path)
