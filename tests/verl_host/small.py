"""A training worker of verl on the embedded model, and batches for it."""

import os
import socket
from functools import partial
from pathlib import Path

import cpu  # noqa: F401  # first: verl looks for its platform when it is imported
import torch
import verl.workers.config as configs
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

import isentrope
import isentrope.train.verl as host

MODEL = str(Path(isentrope.__file__).parent / "assets" / "base-model")


def one_process() -> None:
    """A process group of one rank. verl would make it itself, of `cpu:gloo,<device>:...`, which names the processor twice here."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", rank=0, world_size=1)


def actor_config(chain=(), **options):
    """verl's actor configuration with a chain; options of the actor, or of its policy loss after `loss_`."""
    loss = {
        key.removeprefix("loss_"): options.pop(key) for key in list(options) if key.startswith("loss_") and key not in ("loss_agg_mode", "loss_scale_factor")
    }
    if loss.get("loss_mode", "isentrope") == "isentrope":
        policy_loss = host.PolicyLossConfig(chain=chain if isinstance(chain, str) else list(chain), **loss)
    else:
        policy_loss = configs.PolicyLossConfig(**loss)
    settings = {"ppo_micro_batch_size_per_gpu": 4, "rollout_n": 4, "strategy": "fsdp2", "calculate_entropy": True, "policy_loss": policy_loss} | options
    return configs.FSDPActorConfig(**settings)


def worker(config, *, micro: int = 4, strategy: str = "fsdp2", learning_rate: float = 1e-3, dynamic: bool = False, steps: int = 10, packed: bool = False):
    """A training worker on the embedded model whose loss is verl's `ppo_loss` under `config`."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers import engine_workers

    engine = configs.FSDPEngineConfig(
        strategy=strategy, use_torch_compile=False, model_dtype="fp32", mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        micro_batch_size_per_gpu=micro, max_token_len_per_gpu=64, infer_micro_batch_size_per_gpu=micro, infer_max_token_len_per_gpu=64,
        use_dynamic_bsz=dynamic, use_orig_params=strategy == "fsdp",
    )  # fmt: skip
    model = configs.HFModelConfig(
        path=MODEL, use_remove_padding=packed, enable_gradient_checkpointing=False, override_config={"attn_implementation": "eager"},
    )  # fmt: skip
    settings = configs.TrainingWorkerConfig(
        model_type="language_model", model_config=model, engine_config=engine,
        optimizer_config=configs.FSDPOptimizerConfig(lr=learning_rate, lr_warmup_steps_ratio=0.0, total_training_steps=steps, weight_decay=0.0),
        checkpoint_config=CheckpointConfig(save_contents=["model", "optimizer", "extra"], load_contents=["model", "optimizer", "extra"]),
    )  # fmt: skip
    made = engine_workers.ActorRolloutRefWorker.actor_worker_cls(config=settings)
    made.reset()
    made.set_loss_fn(partial(engine_workers.ppo_loss, config=config))
    return made


def batch(rows: int = 8, *, seed: int = 0, mini: int | None = None, temperature: float = 1.0) -> TensorDict:
    """Prompts and responses of the embedded model's alphabet, as verl's v1 trainer hands them to an update, old log-probs near the model's."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (rows,), generator=draw)
    prompts = [torch.randint(3, 60, (5,), generator=draw) for _ in range(rows)]
    responses = [torch.randint(3, 60, (int(n),), generator=draw) for n in lengths]
    reward = (torch.rand(rows, generator=draw) < 0.5).float()

    def per_token(make):
        return torch.nested.as_nested_tensor([make(i, int(n)) for i, n in enumerate(lengths)], layout=torch.jagged)

    scores = per_token(lambda i, n: torch.nn.functional.pad(reward[i : i + 1], (n - 1, 0)))
    centred = reward - reward.view(-1, 4).mean(-1).repeat_interleave(4)
    tensors = {
        "prompts": torch.nested.as_nested_tensor(prompts, layout=torch.jagged),
        "responses": torch.nested.as_nested_tensor(responses, layout=torch.jagged),
        "input_ids": torch.nested.as_nested_tensor([torch.cat(pair) for pair in zip(prompts, responses, strict=True)], layout=torch.jagged),
        "position_ids": torch.nested.as_nested_tensor([torch.arange(5 + int(n)) for n in lengths], layout=torch.jagged),
        "response_mask": per_token(lambda i, n: torch.ones(n, dtype=torch.long)),
        "loss_mask": per_token(lambda i, n: torch.ones(n, dtype=torch.long)),
        "old_log_probs": per_token(lambda i, n: -3.0 + 0.1 * torch.randn(n, generator=draw)),
        "entropy": per_token(lambda i, n: 2.0 + torch.rand(n, generator=draw)),
        "advantages": per_token(lambda i, n: torch.full((n,), float(centred[i]))),
        "rm_scores": scores,
    }  # fmt: skip
    size = rows if mini is None else mini
    return tu.get_tensordict(
        {**tensors, "uid": [f"prompt {i // 4}" for i in range(rows)]},
        non_tensor_dict={
            "temperature": temperature, "global_batch_size": size, "mini_batch_size": size, "calculate_entropy": True, "epochs": 1,
            "seed": 42, "dataloader_kwargs": {"shuffle": False}, "pad_token_id": 0,
        },
    )  # fmt: skip


def watch_gradients(made) -> list[dict[str, torch.Tensor]]:
    """A list that gains the whole gradient of every update, as it is before verl clips its norm."""
    seen: list[dict[str, torch.Tensor]] = []
    step = made.engine.optimizer_step

    def watched():
        seen.append({name: _whole(parameter.grad).clone() for name, parameter in made.engine.module.named_parameters()})
        return step()

    made.engine.optimizer_step = watched
    return seen


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def weights(made) -> dict[str, torch.Tensor]:
    """The worker's parameters, whole."""
    return {name: _whole(value).detach().clone() for name, value in made.engine.module.named_parameters()}


__all__ = ["MODEL", "actor_config", "batch", "one_process", "watch_gradients", "weights", "worker"]
