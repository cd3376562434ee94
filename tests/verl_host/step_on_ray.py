"""One training step of verl on Ray with a chain, everything but the generation: TransferQueue, two workers, the pass for the old log-probs, the
estimator, the update. Runs verl's own v1 trainer methods on verl's own `ActorRolloutRefWorker`s, on processors with gloo.

    python tests/verl_host/step_on_ray.py RANKS        prints one line of JSON
"""

import json
import os
import sys
import tempfile

import cpu  # noqa: F401
import ray
import small
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import ActorRolloutRefWorker

LOSS_CHAIN = "[{name:clip-v,mu:0.1},forking-tokens]"  # one reads a signal of the old policy that verl has to carry for us, one surveys
ALGORITHM_CHAIN = "[empg]"  # reads the old policy's entropy


class Worker(ActorRolloutRefWorker):
    """verl's worker in a process group of gloo alone: verl would name the processor twice, once as the accelerator."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))


class Trainer(PPOTrainer):
    """verl's trainer without its rollout servers."""

    def __init__(self, config, workers):
        self.config, self.actor_rollout_wg, self.global_steps, self.total_training_steps = config, workers, 1, 10
        self.tokenizer = _Texts()


Trainer.__abstractmethods__ = frozenset()


class _Texts:
    def batch_decode(self, rows, **options):
        return [" ".join(map(str, row)) for row in rows]


def configuration():
    overrides = [
        "algorithm._target_=isentrope.train.verl.AlgoConfig", "algorithm.adv_estimator=isentrope", f"+algorithm.chain={ALGORITHM_CHAIN}",
        "actor_rollout_ref.actor.policy_loss._target_=isentrope.train.verl.PolicyLossConfig", "actor_rollout_ref.actor.policy_loss.loss_mode=isentrope",
        f"+actor_rollout_ref.actor.policy_loss.chain={LOSS_CHAIN}", "actor_rollout_ref.actor.calculate_entropy=True",
        "actor_rollout_ref.actor.strategy=fsdp2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.actor.use_torch_compile=False", "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
        "actor_rollout_ref.actor.optim.lr=1e-3", "actor_rollout_ref.actor.optim.total_training_steps=10",
        f"actor_rollout_ref.model.path={small.MODEL}", "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False", "+actor_rollout_ref.model.override_config={attn_implementation:eager}",
        "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.rollout.temperature=0.9",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4", "actor_rollout_ref.rollout.calculate_log_probs=False", "data.max_response_length=11",
        "transfer_queue.enable=True", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]  # fmt: skip
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def main(ranks: int) -> None:
    config = configuration()
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda",
        "VERL_USE_EXTERNAL_MODULES": "cpu,isentrope.train.verl",  # the platform before what asks for one
    }  # fmt: skip
    ray.init(num_cpus=24, include_dashboard=False, runtime_env={"env_vars": environment}, _temp_dir=tempfile.mkdtemp(prefix="ray"))
    tq.init(config.transfer_queue)
    pool = RayResourcePool([ranks], use_gpu=False, max_colocate_count=1)
    workers = RayWorkerGroup(
        resource_pool=pool, ray_cls_with_init=RayClassWithInitArgs(cls=ray.remote(Worker), config=config.actor_rollout_ref, role="actor"), device_name="cpu"
    )
    workers.init_model()
    trainer = Trainer(config, workers)
    data, metrics = small.batch(8, temperature=0.9), {}
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(data["uid"])]
    fields = data.select("prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask", "rm_scores", "uid")  # what a rollout leaves
    tags = [{"seq_len": int(n), "is_padding": False} for n in data["input_ids"].offsets().diff()]
    batch = tq.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=tags)
    batch.extra_info["temperature"] = config.actor_rollout_ref.rollout.temperature
    batch = trainer._compute_advantage(trainer._compute_old_log_prob(batch, metrics), metrics)
    stored = tq.kv_batch_get(keys=keys, partition_id="train")
    trainer._update_actor(batch, metrics)
    found = {"ranks": ranks, "fields": sorted(stored.keys()), "loss": metrics["actor/loss"], "local": alone(config, stored)}
    found |= {key: float(value) for key, value in metrics.items() if "isentrope" in key or key == "actor/grad_norm"}
    print("STEP " + json.dumps(found), flush=True)
    tq.close()
    ray.shutdown()


def alone(config, stored) -> dict[str, float]:
    """The same rows in one process and one micro-batch, on the same weights."""
    small.one_process()
    made = small.worker(omega_conf_to_dataclass(config.actor_rollout_ref.actor), micro=8)
    options = {"temperature": 0.9, "global_batch_size": 8, "mini_batch_size": 8, "calculate_entropy": True, "epochs": 1, "seed": 42}
    tu.assign_non_tensor(stored, **options, dataloader_kwargs={"shuffle": False})
    shown = tu.get(made.train_mini_batch(stored), "metrics")
    return {"loss": float(sum(shown["loss"])), "grad_norm": float(shown["grad_norm"][0])}


if __name__ == "__main__":
    main(int(sys.argv[1]))
