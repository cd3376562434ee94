"""What TRL, the objective and the interventions refuse, told before a model is loaded."""

import sys
from dataclasses import dataclass

import pytest

from isentrope.config import load
from isentrope.control.stages import Chain, Intervention
from isentrope.errors import UserError
from isentrope.train.check import check, refuse_same_meaning, trl_options


@pytest.mark.parametrize("preset", ["demo", "control-check", "demo-llm", "game", "tool"])
def test_presets_pass(preset):
    assert check(load(preset=preset)).trl == load(preset=preset).trl


def test_values_get_the_declared_types():
    found = trl_options({"max_steps": 1e3, "beta": 0, "run_name": "x", "epsilon_high": None, "scale_rewards": False, "report_to": ["tensorboard"]})
    assert found == {"max_steps": 1000, "beta": 0.0, "run_name": "x", "epsilon_high": None, "scale_rewards": False, "report_to": ["tensorboard"]}
    assert type(found["max_steps"]) is int
    assert type(found["beta"]) is float


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["trl.max_step=12"], ["unknown key trl.max_step", "'trl.max_steps'", "GRPOConfig"]),
        (["trl.prompts=12"], ["unknown key trl.prompts", "'evaluate.prompts'"]),
        (["trl.max_steps=many"], ["trl.max_steps must be int", "'many'"]),
        (["trl.epsilon_high=wide"], ["trl.epsilon_high must be float or None", "'wide'"]),
        (["trl.num_generations=7"], ["trl", "num_generations"]),
        (["trl.loss_type=nonsense"], ["trl", "nonsense"]),
        (["objective.epsilon_hi=0.3"], ["unknown key objective.epsilon_hi", "'objective.epsilon_high'"]),
        (["objective.epsilon_low=-1"], ["objective", "epsilon_low", "-1"]),
        (["control=clip-cof"], ["clip-cof", "'clip-cov'"]),
        (["control={name: clip-cov, ratoi: 0.1}"], ["clip-cov", "'ratoi'", "'ratio'"]),
        (["control={name: clip-cov, ratio: 20.0}"], ["ratio", "20.0"]),
        (["control=forking-tokens", "trl.top_entropy_quantile=0.2"], ["trl.top_entropy_quantile=0.2", "'forking-tokens'", "Keep one", "drop"]),
        (["control=siren", "trl.entropy_coef=0.01"], ["trl.entropy_coef=0.01", "'siren'"]),
        (["control=reference-kl"], ["reference-kl needs a reference model", "trl.beta=1e-6", "against: old"]),
        (["trl.save_strategy=no"], ["trl.save_strategy must be", "Got False", "quote it"]),
        (["trl.temperature=0"], ["trl.temperature must be above 0", "0.0", "1e-3"]),
        (["trl.learning_rate=.nan"], ["trl.learning_rate", "nan"]),
        (["trl.weight_decay=.inf"], ["trl.weight_decay must be finite", "inf"]),
        (["trl.max_steps=0"], ["trl.max_steps must be at least 1", "num_train_epochs"]),
        (["trl.max_completion_length=0"], ["trl.max_completion_length", "at least 1"]),
        (["trl.max_completion_length=null"], ["trl.max_completion_length", "None"]),
        (["trl.per_device_train_batch_size=0"], ["trl.per_device_train_batch_size must be at least 1"]),
        (["trl.report_to=wandbb"], ["unknown tracker 'wandbb'", "wandb"]),
        (["trl.report_to=[tensorboard, neptune]"], ["'neptune' is not installed", "pip install neptune"]),
    ],
)
def test_what_is_wrong_is_named(sets, words):
    with pytest.raises(UserError) as found:
        check(load(preset="demo", sets=sets))
    for word in words:
        assert word in str(found.value)


def test_an_option_at_its_default_is_no_conflict():
    check(load(preset="demo", sets=["control=forking-tokens", "trl.top_entropy_quantile=1.0"]))


def test_the_objective_may_lean_on_the_trainer_options():
    check(load(preset="demo", sets=["trl.beta=0.04", "objective.kl_coef=0.1"]))
    with pytest.raises(UserError, match="kl must name an estimator"):
        check(load(preset="demo", sets=["objective.kl_coef=0.1"]))


def test_conflicts_come_from_the_declaration_alone():
    @dataclass(frozen=True)
    class Mine(Intervention):
        name = "mine"
        replaces = frozenset({"beta"})

    with pytest.raises(UserError, match=r"trl\.beta=0\.1 and the intervention 'mine'"):
        refuse_same_meaning({"beta": 0.1}, Chain((Mine(),), ("mine",)))
    refuse_same_meaning({"beta": 0.0, "epsilon": 0.3}, Chain((Mine(),), ("mine",)))


def test_an_untested_trl_and_unsloth_are_told_before_anything_is_built(monkeypatch):
    monkeypatch.setattr("isentrope.train.carried.version", lambda package: "1.17.2")
    with pytest.raises(UserError, match=r"TRL 1\.17\.2 is not tested.*1\.16"):
        check(load(preset="demo"))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "unsloth", object())
    with pytest.raises(UserError, match="Unsloth is loaded"):
        check(load(preset="demo"))
