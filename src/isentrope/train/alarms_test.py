"""The alarms of a run: what they watch, what they do, and that a tape replays to what rang."""

import json
import re

import pytest

from isentrope import config as configuration
from isentrope.config import AlarmName, Config
from isentrope.control.registry import build
from isentrope.control.standard import EntropyBonus
from isentrope.errors import UserError
from isentrope.explain.alarms import NAMES, Push, Seen, Touch
from isentrope.tape import Tape, same
from isentrope.train.alarms import Alarms, of_chain, replay
from isentrope.train.run import Silent, run


def falling(count: int = 60, rate: float = -0.05) -> list[Seen]:
    return [Seen(step, {"entropy/mean": 0.5 * 2.718281828 ** (rate * step), "learning_rate": 3e-4}) for step in range(1, count + 1)]


def alarms(control=(), **more) -> tuple[Alarms, list[tuple[str, str, str]]]:
    told: list[tuple[str, str, str]] = []
    return Alarms(build(list(control)), lambda *said: told.append(said), **more), told


def test_the_configuration_names_every_alarm():
    assert set(AlarmName.__args__) == set(NAMES)


def test_an_alarm_is_told_once_with_its_level():
    watch, told = alarms(end=200)
    for seen in falling():
        assert not watch.see(seen)
    assert [(kind, level) for kind, _, level in told] == [("alarm/collapse", "warning")]


def test_stop_stops_and_says_so():
    watch, told = alarms(end=200, act={"collapse": "stop"})
    stopped = next(seen.step for seen in falling() if watch.see(seen))
    assert watch.stopped == {"by": "collapse", "step": stopped}
    assert f"stops after update {stopped}" in told[-1][1]


@pytest.mark.parametrize(("rate", "name", "factor"), [(-0.05, "collapse", 2.0), (0.05, "explosion", 0.5)])
def test_bonus_moves_the_coefficient_of_the_chain(rate, name, factor):
    watch, told = alarms([{"name": "entropy-bonus", "coef": 0.03}, "clip-cov"], end=200, act={name: "bonus"})
    before = watch.controlled()
    assert before.links[0].coef == 0.03
    for seen in falling(rate=rate):
        watch.see(seen)
    after = watch.controlled()
    assert after.links[0] == EntropyBonus(coef=0.03 * factor)
    assert after.links[1:] == before.links[1:]
    assert after.keys == before.keys
    assert told[-1][0] == "alarm-action"


def test_a_resumed_run_has_the_same_coefficient_and_memory():
    settings = {"end": 200, "act": {"collapse": "bonus"}}
    one, _ = alarms(["entropy-bonus"], **settings)
    for seen in falling():
        one.see(seen)
    two, told = alarms(["entropy-bonus"], **settings)
    two.load_state(json.loads(json.dumps(one.state())))
    assert two.state() == one.state()
    assert two.controlled() == one.controlled()
    for seen in falling()[-5:]:
        two.see(seen)
    assert told == []  # the episode goes on


@pytest.mark.parametrize(
    ("control", "act", "words"),
    [
        ([], {"collapse": "bonus"}, "the chain has none"),
        ([{"name": "entropy-bonus", "controller": "pi"}], {"collapse": "bonus"}, "without schedule or controller"),
        (["entropy-bonus"], {"few-tokens": "bonus"}, 'take "stop"'),
    ],
)
def test_a_bonus_that_cannot_be_moved_is_refused(control, act, words):
    with pytest.raises(UserError, match=re.escape(words)):
        alarms(control, act=act)


def test_what_a_configuration_may_ask():
    assert configuration.validate({"alarms": {"act": {"collapse": "stop"}}}).alarms.act == {"collapse": "stop"}
    for wrong in ({"act": {"colapse": "stop"}}, {"act": {"collapse": "explode"}}, {"spent": 0.7}, {"enable": True}):
        with pytest.raises(UserError, match="alarms"):
            configuration.validate({"alarms": wrong})


def test_only_links_that_choose_tokens_are_watched_for_what_they_touch():
    chain = build(["clip-cov", "entropy-bonus", "pear", "overlong"])
    watched = {detector.link for detector in of_chain(chain.links, chain.keys) if isinstance(detector, Touch)}
    assert watched == {"", "clip-cov"}


def test_every_knob_that_can_be_set_is_accepted():
    """The alarms' knobs as `--set` takes them, up to the remark in brackets."""
    watch, told = alarms(["clip-cov"], end=200)
    sample = [Push("a", -1.0, 1.0)] * 3 + [Push("b", -1e-6, 1.0)] * 60
    row = {
        "reward/zero_std_groups": 1.0,
        "correct/mean": 1.0,
        "touch/clip-cov": 0.0,
        "ratio/max": 1.0,
        "clip/low": 0.5,
        "clip/high": 0.2,
        "learning_rate": 3e-4,
    }
    good, bad = ({"pass@8": (v, v - 0.01, v + 0.01), "entropy": (e, e, e)} for v, e in ((0.9, 0.5), (0.5, 0.1)))
    for rate in (-0.05, 0.05):
        for seen in falling(rate=rate):
            watch.see(Seen(seen.step, {**row, **seen.row}, sample, good if seen.step < 3 else bad if seen.step == 30 else None))
        watch.memory = watch.monitor.init()
    kinds = {kind.split("/")[1] for kind, _, _ in told if kind != "alarm-action"}
    assert kinds == set(NAMES)
    for _, message, level in told:
        for knob in message.rpartition("Knob: ")[2].removesuffix(".").split(" or ") if level == "warning" else ():
            item = knob.partition(" (")[0]
            if "=" in item:
                configuration.load(preset="demo", sets=[item])
            else:
                assert item.startswith(("control: ", "trl.learning_rate"))


# --- in a run

SMALL = {
    "preset": "demo", "model": "embedded", "task": "sums", "evaluate": {"every": 4, "prompts": 4, "samples": 2}, "report": {"build": False},
    "trl": {
        "max_steps": 16, "per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 8, "learning_rate": 3e-3, "save_steps": 4,
        "lr_scheduler_type": "constant", "steps_per_generation": 1, "logging_steps": 1,
    },
    "tape": {"tokens_every": 2},
}  # fmt: skip


def small(out, **more) -> Config:
    return configuration.validate({**SMALL, "out": str(out), **more})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    return run(small(out, alarms={"act": dict.fromkeys(NAMES, "stop")}))


def test_a_stopped_run_ends_as_a_whole_one(stopped):
    summary, tape = stopped.summary, Tape.read(stopped.directory)
    last = summary["stopped.step"]
    assert summary["steps"] == last < 16
    assert summary["stopped.by"].removeprefix("alarm ") in NAMES
    assert tape.evals["step"].max() == last
    assert (stopped.directory / "model" / "final" / "model.safetensors").is_file()
    assert (stopped.directory / "checkpoints" / f"step-{last:08d}").is_dir()
    assert tape.events["kind"].to_list().count("alarm-action") == 1


def test_the_tape_replays_to_what_rang(stopped):
    tape = Tape.read(stopped.directory)
    again = [alarm.sentence() for alarm in replay(tape, of_chain((), (), end=16))]
    assert again == [message for kind, message in tape.events.select("kind", "message").iter_rows() if kind.startswith("alarm/")]
    assert again


def test_a_stopped_run_stays_stopped_when_it_is_resumed(stopped):
    again = run(small(stopped.directory, alarms={"act": dict.fromkeys(NAMES, "stop")}), resume=stopped.directory)
    assert again.summary["stopped.step"] == stopped.summary["stopped.step"]
    assert again.summary["steps"] == stopped.summary["steps"]


class Broken(Silent):
    """Progress that ends the run after an update, as a killed process would."""

    def __init__(self, at: int):
        self.at = at

    def step(self, metrics):
        if metrics["step"] == self.at:
            raise KeyboardInterrupt


def test_a_broken_run_resumes_with_its_alarms_and_what_they_did(tmp_path):
    more = {"control": [{"name": "entropy-bonus", "coef": 0.001}], "alarms": {"act": {"collapse": "bonus", "explosion": "bonus"}}}
    run(small(tmp_path / "straight", **more))
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path / "broken", **more), progress=Broken(14))
    run(small(tmp_path / "broken", **more), resume=tmp_path / "broken")
    straight, broken = Tape.read(tmp_path / "straight"), Tape.read(tmp_path / "broken")
    assert "alarm-action" in straight.events["kind"].to_list()
    assert same(straight, broken) == []
