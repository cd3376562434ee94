"""The driver with a launcher that writes runs instead of training them: order, resume, failures, a full disk, the estimate."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from isentrope import config as configuration
from isentrope.errors import DiskError
from isentrope.lab import page
from isentrope.lab.compare import Comparison, compare, told
from isentrope.lab.plan import Plan, make
from isentrope.lab.pool import Ended
from isentrope.lab.synthetic import finished_run
from isentrope.lab.work import SUMMARY, asked_file

BASE = configuration.load(preset="compare", sets=["trl.max_steps=40", "evaluate.every=10"])


class Written:
    """A launcher whose runs are written at once. dies: key -> how often its worker is killed first. fails: key -> reason."""

    def __init__(self, slots=2, dies=None, fails=None, norms=None):
        self.slots, self.dies, self.fails, self.norms = slots, dict(dies or {}), dict(fails or {}), norms or {}
        self.begun: list[str] = []
        self.waiting: list[tuple[str, Path]] = []
        self.most = 0
        self.closed = False

    def submit(self, key, directory, *, keep):
        self.begun.append(key)
        self.waiting.append((key, directory))
        self.most = max(self.most, len(self.waiting))

    def wait(self, seconds):
        key, directory = self.waiting.pop(0)
        if self.dies.get(key, 0):
            self.dies[key] -= 1
            return [Ended(key, "its worker was killed by SIGKILL", killed=True)]
        if key in self.fails:
            return [Ended(key, self.fails[key])]
        asked = configuration.load(asked_file(directory))
        arm = key.split("/")[1]
        state = {"state/siren/anchor": [None] + [0.1 * (asked.seed + 1)] * 39} if arm == "siren" else None
        norm = self.norms.get(arm, 0.1) * asked.trl["learning_rate"] / 3e-4
        finished_run(directory, seed=asked.seed, steps=asked.trl["max_steps"], every=10, norm=norm, rate=asked.trl["learning_rate"], state=state)
        return [Ended(key)]

    def close(self):
        self.closed = True


def planned(*methods, seeds=2, **more) -> Plan:
    return make(methods, BASE, seeds=seeds, **more)


def ran(plan, directory, launcher, **more):
    said: list[str] = []
    results = compare(plan, directory, launcher, write=lambda results, where: where / "page", tell=said.append, **more)
    return results, said


def test_every_run_is_made_once_with_at_most_as_many_as_there_are_slots(tmp_path):
    launcher, plan = Written(slots=2), planned("clip-cov", "siren", seeds=3)
    results, said = ran(plan, tmp_path, launcher, first_guess=60.0)
    assert sorted(launcher.begun) == sorted(task.key for task in plan.tasks())
    assert launcher.most == 2
    assert launcher.closed
    assert results.finished() == 15
    assert not results.failed
    assert "23 runs are left, at most about" in said[0]
    assert said[-1].endswith("Nothing is left to run.")


def test_what_is_finished_is_not_computed_again(tmp_path):
    plan = planned("clip-cov")
    ran(plan, tmp_path, Written())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(SUMMARY)}
    gone = tmp_path / "runs" / "clip-cov" / "seed-1"
    shutil.rmtree(gone)
    again = Written()
    results, _ = ran(plan, tmp_path, again)
    assert again.begun == ["runs/clip-cov/seed-1"]
    assert results.finished() == 6
    assert {path: path.stat().st_mtime_ns for path in before if gone not in path.parents} == {
        path: time for path, time in before.items() if gone not in path.parents
    }


def test_a_pilot_sets_the_rate_so_that_the_mean_step_is_the_baselines(tmp_path):
    plan = planned("clip-cov")
    results, _ = ran(plan, tmp_path, Written(norms={"grpo": 0.1, "clip-cov": 0.05, "placebo-of-clip-cov": 0.2}))
    assert results.rates["clip-cov"] == pytest.approx(2.0, rel=0.03)
    assert results.rates["placebo of clip-cov"] == pytest.approx(0.5, rel=0.03)
    asked = yaml.safe_load((tmp_path / "runs/clip-cov/seed-0.asked.yaml").read_text())
    assert asked["trl"]["learning_rate"] == pytest.approx(3e-4 * results.rates["clip-cov"])
    assert results.runs["clip-cov"][0].path() == pytest.approx(results.runs["grpo"][0].path(), rel=0.03)


def test_runs_shorter_than_a_pilot_are_matched_too(tmp_path):
    plan = make(["clip-cov"], configuration.load(preset="compare", sets=["trl.max_steps=10", "evaluate.every=10"]), seeds=1, placebos=False)
    results, _ = ran(plan, tmp_path, Written(norms={"clip-cov": 0.05}))
    assert results.rates["clip-cov"] == pytest.approx(2.0, rel=0.05)


def test_a_pilot_that_does_not_move_fails_its_arm_instead_of_leaving_it_unmatched(tmp_path):
    results, _ = ran(planned("clip-cov", seeds=1, placebos=False), tmp_path, Written(norms={"clip-cov": 0.0}))
    assert "no update of the pilot moved the weights" in results.failed["pilot/clip-cov"]
    assert "it needs pilot/clip-cov" in results.failed["runs/clip-cov/seed-0"]
    assert results.finished() == 1


def test_a_yoked_placebo_replays_the_next_seeds_record(tmp_path):
    plan = planned("siren")
    ran(plan, tmp_path, Written())
    records = [configuration.load(tmp_path / f"runs/placebo-of-siren/seed-{seed}.asked.yaml").control[0]["series"]["anchor"] for seed in (0, 1)]
    assert [record[0] for record in records] == [None, None]
    assert [record[1] for record in records] == pytest.approx([0.2, 0.1])
    assert len(records[0]) == 40


def test_a_sweep_takes_the_rate_with_the_best_reward(tmp_path):
    plan = planned("clip-cov", match="lr", placebos=False)
    state = Comparison(plan, tmp_path)
    for key, task in state.tasks.items():
        if task.kind == "tune":
            best = 2.0 if task.arm == "clip-cov" else 0.5
            finished_run(tmp_path / key, seed=task.seed, steps=40, every=10, ceiling=0.9 if task.rate == best else 0.5)
    assert Comparison(plan, tmp_path).rates() == {"grpo": 0.5, "clip-cov": 2.0}


def test_a_killed_worker_is_tried_again_and_a_third_death_is_a_failure(tmp_path):
    launcher = Written(dies={"runs/grpo/seed-0": 2, "runs/clip-cov/seed-1": 3})
    results, said = ran(planned("clip-cov"), tmp_path, launcher)
    assert launcher.begun.count("runs/grpo/seed-0") == 3
    assert list(results.failed) == ["runs/clip-cov/seed-1"]
    assert "SIGKILL" in results.failed["runs/clip-cov/seed-1"]
    assert sum("goes on from its last checkpoint" in line for line in said) == 4
    assert results.finished() == 5


def test_a_failed_run_is_listed_and_takes_what_needs_it_along_while_others_go_on(tmp_path):
    launcher = Written(fails={"runs/siren/seed-1": "the loss is not finite", "pilot/clip-cov": "it broke"})
    results, _ = ran(planned("siren", "clip-cov"), tmp_path, launcher)
    assert results.failed["runs/siren/seed-1"] == "the loss is not finite"
    assert results.failed["runs/placebo-of-siren/seed-0"] == "it needs runs/siren/seed-1, which failed: the loss is not finite"
    assert results.failed["runs/clip-cov/seed-0"] == "it needs pilot/clip-cov, which failed: it broke"
    assert results.finished() == 2 + 1 + 1 + 2
    again = Written()
    results, _ = ran(planned("siren", "clip-cov"), tmp_path, again)
    late = {f"runs/{name}" for name in ("siren/seed-1", "placebo-of-siren/seed-0", "clip-cov/seed-0", "clip-cov/seed-1")}
    assert set(again.begun) == late | {"pilot/clip-cov", "ledger/clip-cov"}
    assert not results.failed


def test_a_full_disk_stops_with_the_way_out_and_loses_nothing(tmp_path):
    launcher = Written(fails={"runs/grpo/seed-1": "OSError: [Errno 28] No space left on device"})
    with pytest.raises(DiskError, match=r"No space left.*Make room and go on with: isentrope compare --resume"):
        ran(planned("clip-cov"), tmp_path, launcher)
    assert launcher.closed
    assert (tmp_path / "runs/grpo/seed-0" / SUMMARY).is_file()
    results, _ = ran(planned("clip-cov"), tmp_path, Written())
    assert results.finished() == 6


def test_no_run_begins_without_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5 * 2**20))
    launcher = Written()
    with pytest.raises(DiskError, match=r"5 MiB are free"):
        ran(planned("clip-cov"), tmp_path, launcher)
    assert launcher.begun == []


def test_a_finished_run_whose_tape_is_damaged_is_a_failed_one(tmp_path):
    plan = planned("clip-cov")
    ran(plan, tmp_path, Written())
    part = next((tmp_path / "runs/clip-cov/seed-0/tape/evals").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:200])
    results, _ = ran(plan, tmp_path, Written())
    assert list(results.failed) == ["runs/clip-cov/seed-0"]
    assert "cannot be read" in results.failed["runs/clip-cov/seed-0"]
    assert results.finished() == 5


def test_a_page_that_cannot_be_written_stops_no_run(tmp_path):
    said, times = [], iter(range(100))

    def write(results, directory):
        if next(times) < 5:
            raise ValueError("no page")
        return directory

    results = compare(planned("clip-cov"), tmp_path, Written(), write=write, tell=said.append)
    assert results.finished() == 6
    assert sum("the page could not be written: ValueError: no page. The runs go on." in line for line in said) == 5


def test_an_interrupted_driver_closes_its_workers(tmp_path):
    launcher = Written()
    launcher.wait = lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ran(planned("clip-cov"), tmp_path, launcher)
    assert launcher.closed


def test_durations_are_told_in_their_unit():
    assert [told(value) for value in (5, 89, 91, 5400, 5401, 10800)] == ["5 s", "89 s", "2 min", "90 min", "1.5 h", "3.0 h"]


def test_the_page_and_its_numbers_are_written_after_every_run(tmp_path):
    written = []

    def write(results, directory):
        written.append(results.finished())
        return page.write(results, directory)

    compare(planned("clip-cov", seeds=1), tmp_path, Written(slots=1), write=write, tell=lambda text: None)
    assert written == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3]
    data = json.loads((tmp_path / page.DATA).read_text())
    assert data["verdicts"]["clip-cov"]["word"] == "not judged"
    assert (tmp_path / page.NAME).stat().st_size < 8_000_000
