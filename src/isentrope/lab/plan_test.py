"""What a user types becomes arms, tasks and configurations, or an error that says how to write it."""

import json
from pathlib import Path

import pytest

from isentrope import config as configuration
from isentrope.control.registry import build, registry
from isentrope.errors import UserError
from isentrope.lab import plan as plans
from isentrope.lab.plan import BASELINE, PILOT, PILOT_SEED, Arm, Plan, Task, make, parse, placebo_of, remembers, run_key, spec_of

BASE = configuration.load(preset="compare", sets=["trl.max_steps=40"])


def made(*methods, seeds=3, **more) -> Plan:
    return make(methods, BASE, seeds=seeds, **more)


# --- methods


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("clip-cov", [{"name": "clip-cov"}]),
        ("forking-tokens(share=0.2)", [{"name": "forking-tokens", "share": 0.2}]),
        (" clip-cov + entropy-band( low = 0.2, of='constant' ) ", [{"name": "clip-cov"}, {"name": "entropy-band", "low": 0.2, "of": "constant"}]),
        ("ares(targets=[1.0, 2.0, 3.0],coef=1e-2)", [{"name": "ares", "targets": [1.0, 2.0, 3.0], "coef": 0.01}]),
        ("clip-cov()", [{"name": "clip-cov"}]),
    ],
)
def test_a_method_is_a_chain_of_names_with_parameters(text, links):
    assert parse(text) == links


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip-cvo", r"clip-cvo: unknown intervention 'clip-cvo'\. Did you mean 'clip-cov'\?.*without intervention is called 'grpo'"),
        ("forking-tokens(rho=0.2)", r"forking-tokens has no parameter 'rho'\..*It takes: share"),
        ("clip-cov(", r"'clip-cov\(' is no method\. Write name"),
        ("clip-cov(0.2)", r"'0\.2' is no parameter; write parameter=value"),
        ("clip-cov(ratio=20)", r"clip-cov\(ratio=20\): .*ratio"),
        ("a++b", r"is no method"),
    ],
)
def test_what_is_wrong_with_a_method_is_said(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)


def test_every_registered_setting_of_the_embedded_model_can_stand_in_a_configuration():
    for name, kind in registry().items():
        wanted = kind().embedded()
        assert build(json.loads(json.dumps([spec_of(wanted)]))).links == (wanted,)
        assert build(parse(name, embedded=True)).links == (wanted,)


def test_given_parameters_are_over_the_papers_defaults():
    (link,) = build(parse("clip-cov(low=0.5)", embedded=True)).links
    assert link == registry()["clip-cov"](low=0.5)


# --- placebos


def test_a_placebo_is_link_by_link_and_yoked_where_a_controller_measures():
    sham = placebo_of(Arm("x", "method", tuple(parse("clip-cov+siren"))))
    assert sham.control == ({"name": "placebo", "of": {"name": "clip-cov"}}, {"name": "placebo", "of": {"name": "siren"}})
    assert sham.yoked == (1,)
    assert build(sham.control).keys == ("clip-cov-placebo", "siren-placebo")


def test_counts_of_updates_are_no_controller():
    known = registry()
    assert {name for name in ("clip-cov", "clip-b", "dispo", "canon", "kl-cov") if remembers(known[name]())} == set()
    assert {name for name in ("siren", "spine", "hapo", "aepo-arbitrary") if remembers(known[name]())} == {"siren", "spine", "hapo", "aepo-arbitrary"}


def test_what_treats_all_tokens_alike_has_no_placebo_unless_its_coefficient_is_controlled():
    with pytest.raises(ValueError, match="treats all tokens alike"):
        placebo_of(Arm("x", "method", ({"name": "entropy-bonus"},)))
    controlled = Arm("x", "method", ({"name": "entropy-bonus", "controller": "pi"},))
    assert placebo_of(controlled).yoked == (0,)
    with pytest.raises(ValueError, match="treats all tokens alike"):
        placebo_of(controlled, yoke=False)
    assert made("entropy-bonus", "clip-cov").without_placebo.keys() == {"entropy-bonus"}


# --- the plan


def test_a_plan_begins_with_the_baseline_whoever_is_named_first():
    plan = made("clip-cov", BASELINE, "siren")
    assert [(arm.name, arm.role) for arm in plan.arms] == [
        ("grpo", "baseline"), ("clip-cov", "method"), ("placebo of clip-cov", "placebo"), ("siren", "method"), ("placebo of siren", "placebo"),
    ]  # fmt: skip
    assert plan.steps == 40
    assert [arm.name for arm in made("clip-cov", placebos=False).arms] == ["grpo", "clip-cov"]


def test_tasks_can_be_done_in_an_order_and_a_yoked_placebo_waits_for_the_next_seed():
    plan = made("clip-cov", "siren")
    tasks = {task.key: task for task in plan.tasks()}
    assert len(tasks) == 5 + 5 * 3 + 3
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = [key for key, task in tasks.items() if key not in done and set(task.after) <= done]
        assert ready
        done |= set(ready)
    siren, sham = plan.arm("siren"), plan.arm("placebo of siren")
    assert [tasks[run_key(sham, seed)].after[-1] for seed in range(3)] == [run_key(siren, seed) for seed in (1, 2, 0)]
    assert tasks["runs/grpo/seed-0"].after == ("pilot/grpo",)
    assert tasks["runs/clip-cov/seed-0"].after == ("pilot/grpo", "pilot/clip-cov")


def test_a_sweep_tunes_on_seeds_of_its_own():
    tasks = made("clip-cov", match="lr").tasks()
    tuning = [task for task in tasks if task.kind == "tune"]
    assert len(tuning) == 3 * 3 * 2
    assert {task.seed for task in tuning} == {PILOT_SEED, PILOT_SEED + 1}
    assert {task.seed for task in tasks if task.kind == "run"} == {0, 1, 2}
    assert not [task for task in made("clip-cov", match="none", ledgers=False).tasks() if task.kind != "run"]


def test_the_ledger_is_kept_in_a_run_of_its_own_by_the_baseline_and_every_method(tmp_path):
    plan = made("clip-cov", "siren")
    ledgers = {task.key: task for task in plan.tasks() if task.kind == "ledger"}
    assert list(ledgers) == ["ledger/grpo", "ledger/clip-cov", "ledger/siren"]
    assert ledgers["ledger/siren"].after == ("pilot/grpo", "pilot/siren")
    asked, run = (plans.configuration(plan, task, tmp_path, rate=2.0, records={}) for task in (ledgers["ledger/siren"], Task("runs/siren/seed-0", "siren", 0)))
    assert asked.ledger.every == 1  # of 40 updates
    assert asked.evaluate.every is None
    same = {"ledger": run.ledger, "evaluate": run.evaluate}
    assert asked.model_copy(update=same) == run  # the first seed's run, and nothing but the books and the evaluations
    own = make(["clip-cov"], configuration.load(preset="compare", sets=["ledger.every=10"]), seeds=2)
    assert not [task for task in own.tasks() if task.kind == "ledger"]  # its runs keep them themselves
    assert not [task for task in made("clip-cov", ledgers=False).tasks() if task.kind == "ledger"]


def test_a_plan_of_before_ledgers_keeps_them_too(tmp_path):
    plans.save(made("clip-cov"), tmp_path)
    path = tmp_path / plans.FILE
    saved = json.loads(path.read_text())
    del saved["ledgers"]
    path.write_text(json.dumps(saved))
    assert plans.load(tmp_path) == made("clip-cov")


def test_one_seed_has_nobody_to_replay():
    plan = made("siren", seeds=1)
    assert plan.arm("placebo of siren").yoked == ()


@pytest.mark.parametrize(
    ("methods", "more", "said"),
    [
        ((), {}, r"name at least one method"),
        ((BASELINE,), {}, r"name at least one method"),
        (("clip-cov", "clip-cov"), {}, r"clip-cov stands there twice"),
        (("clip-cov",), {"seeds": 0}, r"--seeds must be at least 1\. Got 0"),
        (("clip-cov",), {"k": 3}, r"--k must be a power of 2 from 2 to evaluate\.samples=16\. Got 3"),
        (("clip-cov(ratio=0.1)", "clip-cov( ratio=0.1)"), {}, r"would share a folder"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(methods, more, said):
    with pytest.raises(UserError, match=said):
        make(methods, BASE, **{"seeds": 2, **more})


def test_a_configuration_with_a_chain_or_without_evaluations_is_refused():
    with pytest.raises(UserError, match=r"has a chain of its own \(clip-cov\)"):
        make(["siren"], configuration.load(preset="compare", sets=["control=[clip-cov]"]), seeds=2)
    with pytest.raises(UserError, match=r"evaluate\.every is null"):
        make(["siren"], configuration.load(preset="compare", sets=["evaluate.every=null"]), seeds=2)


# --- configurations


def test_a_run_differs_from_the_baseline_in_seed_chain_and_rate_alone():
    plan = made("siren")
    base = plans.configuration(plan, Task("a", BASELINE, 2), Path("a"), rate=1.0, records={})
    run = plans.configuration(plan, Task("b", "placebo of siren", 2), Path("b"), rate=0.5, records={0: {"anchor": [None, 0.3]}})
    assert run.control == [{"name": "placebo", "of": plan.arm("siren").control[0], "series": {"anchor": [None, 0.3]}}]
    assert build(run.control).links[0].series == ({"anchor": None}, {"anchor": 0.3})
    found = configuration.differences(base, run)
    assert len(found) == 2
    assert found[0].startswith("control:")
    assert found[1] == "trl.learning_rate: 0.0003 -> 0.00015"
    assert base.tape.update_norm
    assert not base.report.build


def test_a_pilot_is_short_constant_and_unevaluated():
    plan = made("siren")
    config = plans.configuration(plan, Task("p", "siren", PILOT_SEED, "pilot"), Path("p"), rate=1.0, records={})
    assert (config.trl["max_steps"], config.trl["lr_scheduler_type"], config.evaluate.every) == (PILOT, "constant", None)


# --- on the disk


def test_a_plan_is_read_back_as_it_was(tmp_path):
    plan = made("clip-cov", "entropy-bonus", "siren")
    plans.save(plan, tmp_path)
    assert plans.load(tmp_path) == plan
    assert plans.load(tmp_path).tasks() == plan.tasks()


def test_no_plan_and_a_damaged_one_are_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no comparison \(no compare\.json\)"):
        plans.load(tmp_path)
    (tmp_path / plans.FILE).write_text('{"arms": [')
    with pytest.raises(UserError, match=r"compare\.json is damaged.*start the comparison anew"):
        plans.load(tmp_path)
