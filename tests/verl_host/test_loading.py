"""How verl finds the host: the environment variable, the entry point, in a worker of Ray; what a process prints; and verl's own YAML with a chain."""

import os
import subprocess
import sys
from pathlib import Path

import cpu  # noqa: F401
import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

import isentrope.train.verl as host
from isentrope.train.verl.control import Control

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"
LINE = "loaded into verl (pid "

LOOK = """
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.workers import engine_workers
from verl.workers.utils import losses
print("isentrope" in POLICY_LOSS_REGISTRY, "isentrope" in ADV_ESTIMATOR_REGISTRY, engine_workers.ppo_loss is losses.ppo_loss,
      hasattr(losses.ppo_loss, "__wrapped__"), engine_workers.ActorRolloutRefWorker.actor_worker_cls.__name__,
      hasattr(PPOTrainer._compute_advantage, "__wrapped__"))
"""
LOADED = "True True True True ControlledWorker True"


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=kept | {"VERL_USE_EXTERNAL_PLUGINS": "none"} | environment
    )


def test_the_environment_variable_loads_it_in_a_fresh_process():
    found = python(LOOK, VERL_USE_EXTERNAL_MODULES="isentrope.train.verl")
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(LINE) == 1
    assert found.stdout.splitlines()[-1] == LOADED


def test_without_it_verl_is_verl():
    found = python(LOOK)
    assert LINE not in found.stdout
    assert found.stdout.splitlines()[-1] == "False False True False TrainingWorker False"


def test_an_import_by_hand_before_verl_loads_it_once():
    found = python("import isentrope.train.verl\n" + LOOK, VERL_USE_EXTERNAL_MODULES="isentrope.train.verl")
    assert found.stdout.count(LINE) == 1
    assert found.stdout.splitlines()[-1] == LOADED


def test_a_wrong_version_is_refused_by_name_and_nothing_is_changed():
    code = """
import importlib.metadata as m
real = m.version
m.version = lambda name: "0.8.0" if name == "verl" else real(name)
import verl
"""
    found = python(code, VERL_USE_EXTERNAL_MODULES="isentrope.train.verl")
    assert found.returncode != 0
    assert "verl 0.8.0 is not tested with this host; tested: 0.9.1" in found.stderr
    assert "NOT loaded into verl" in found.stderr


def test_an_entry_point_that_fails_is_told_although_verl_only_logs_it():
    """verl catches what an entry point raises; `_load` stands for it here."""
    code = """
import importlib.metadata as m
real, points = m.version, m.entry_points
m.version = lambda name: "0.8.0" if name == "verl" else real(name)
m.entry_points = lambda **k: [m.EntryPoint("isentrope", "isentrope.train.verl", "verl.plugins")] if k.get("group") == "verl.plugins" else points(**k)
import verl
print("alive", verl.__version__)
"""
    found = python(code, VERL_USE_EXTERNAL_PLUGINS="auto")
    assert found.returncode == 0
    assert "alive 0.9.1" in found.stdout
    assert "NOT loaded into verl" in found.stderr
    assert "verl 0.8.0 is not tested" in found.stderr


@pytest.mark.slow
def test_it_is_loaded_in_a_worker_of_ray():
    code = f"""
import ray
ray.init(num_cpus=1, include_dashboard=False, runtime_env={{"env_vars": {{"VERL_USE_EXTERNAL_MODULES": "isentrope.train.verl"}}}})

@ray.remote
def look():
    import contextlib, io
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec({LOOK!r}, {{}})
    return out.getvalue()

print("WORKER", ray.get(look.remote()).strip().replace(chr(10), " | "))
ray.shutdown()
"""
    found = python(code)
    assert found.returncode == 0, found.stderr[-2000:]
    line = next(line for line in found.stdout.splitlines() if line.startswith("WORKER"))
    assert LINE in line
    assert line.endswith(LOADED)


# --- verl's YAML


@pytest.fixture(autouse=True)
def _no_hydra():
    yield
    GlobalHydra.instance().clear()


def test_verls_own_configuration_takes_a_chain_from_the_command_line():
    overrides = [
        "actor_rollout_ref.actor.policy_loss._target_=isentrope.train.verl.PolicyLossConfig",
        "actor_rollout_ref.actor.policy_loss.loss_mode=isentrope",
        "+actor_rollout_ref.actor.policy_loss.chain=[clip-cov,{name:forking-tokens,share:0.25}]",
        "actor_rollout_ref.actor.calculate_entropy=True",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.model.path=MODEL",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor.policy_loss, host.PolicyLossConfig)
    control = Control(actor)
    assert control.chain.keys == ("clip-cov", "forking-tokens")
    assert control.chain.links[1].share == 0.25
    assert control.objective.dual_clip == actor.clip_ratio_c == 3.0


def test_the_example_is_a_whole_configuration():
    with initialize_config_dir(str(EXAMPLES), version_base=None):
        config = compose("chain", overrides=["actor_rollout_ref.model.path=MODEL"])
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    control = Control(actor)
    assert control.chain.keys == ("clip-cov", "forking-tokens")
    algorithm = omega_conf_to_dataclass(config.algorithm)
    assert isinstance(algorithm, host.AlgoConfig)
    assert OmegaConf.to_container(config.algorithm)["chain"] == ["position-shaping"] == list(algorithm.chain)
    assert config.trainer.use_v1
