"""What the recipes on the embedded model share: its task, worked answers as text, an offline run, and figures of the trained model."""

import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any, Literal

import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from transformers import PrinterCallback
from trl import GRPOConfig, SFTConfig

from isentrope.control.recipes.mixture import Mixture, Weights
from isentrope.control.stages import Intervention
from isentrope.train.evaluate import evaluate
from isentrope.train.mixed import MixedTrainer
from isentrope.train.models import LoadedModel, load
from isentrope.train.offline import OfflineTrainer
from isentrope.train.tasks import Task, build
from isentrope.train.worked import STYLES, Quality

PERFECT = Quality(slip=0.0, lost_carry=0.0, miscopy=0.0, guess=0.0, doubt=0.0, check=0.0, turn=0.0)
"""A writer who never errs, doubts, checks or turns."""
LENGTH = 96  # tokens of a worked answer, at most


@cache
def task(name: str = "sums-think") -> Task:
    """A preset task; prompts of its two sides are disjoint."""
    return build(name)


def worked(prompts: Sequence[str], style: str, quality: Quality, seed: int) -> Dataset:
    """Worked answers to additions `12+34=` (or `12+34=<think>`), as columns `prompt` and `completion`."""
    rng = Random(seed)
    rows = []
    for prompt in prompts:
        sum_ = prompt.partition("=")[0]
        a, b = (int(term) for term in sum_.split("+"))
        text = f"{sum_}=" + STYLES[style](a, b, quality, rng)
        rows.append({"prompt": prompt, "completion": text.removeprefix(prompt)})
    return Dataset.from_list(rows)


def options(folder: str, seed: int, steps: int, **changes: Any) -> SFTConfig:
    """Settings of an offline run; `changes` replace them."""
    base: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": 32, "max_steps": steps, "learning_rate": 3e-4, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "seed": seed, "data_seed": seed, "logging_steps": 10, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(), "bf16": False, "max_length": None, "gradient_checkpointing": False,
    }  # fmt: skip
    return SFTConfig(**(base | changes))


def tune(data: Dataset, control: Sequence[Intervention], seed: int, steps: int, **changes: Any) -> tuple[LoadedModel, list[dict[str, float]]]:
    """The embedded model after `steps` updates on the text, and what was logged."""
    loaded = load("embedded")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        disable_progress_bars()
        trainer = OfflineTrainer(
            loaded.model, args=options(folder, seed, steps, **changes), train_dataset=data, processing_class=loaded.tokenizer, control=list(control)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        enable_progress_bars()
    return loaded, [entry for entry in trainer.state.log_history if "loss" in entry]


def mixed(
    text: Dataset, mixture: Mixture, seed: int, steps: int, *, match: Literal["prompt"] | None = None
) -> tuple[LoadedModel, list[Weights], dict[str, Any]]:
    """The embedded model after `steps` updates of GRPO on `sums-think` with the text beside; the weights of every update, the mixture's last state."""
    loaded = load("embedded")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        args = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=16, num_generations=8, max_steps=steps, learning_rate=3e-4, lr_scheduler_type="constant",
            max_completion_length=64, beta=0.0, loss_type="grpo", seed=seed, data_seed=seed, report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, logging_steps=10,
        )  # fmt: skip
        trainer = MixedTrainer(
            model=loaded.model, reward_funcs=list(task().reward_funcs), args=args, train_dataset=task().train, processing_class=loaded.tokenizer,
            offline=text, mixture=mixture, rows=8, match=match,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return loaded, trainer.weight_series, dict(trainer.mixture_state)


def answers(loaded: LoadedModel, name: str = "sums-think", *, prompts: int = 64, samples: int = 8) -> dict[str, float]:
    """pass@1, pass@8 and token entropy (nats) on held-out prompts."""
    found = evaluate(loaded.model, loaded.tokenizer, task(name), prompts=prompts, samples=samples, max_completion_length=LENGTH)
    return {"pass@1": found.value("pass@1"), f"pass@{samples}": found.value(f"pass@{samples}"), "entropy": found.value("entropy")}


@torch.no_grad()
def on_text(loaded: LoadedModel, data: Dataset, size: int = 64) -> dict[str, float]:
    """Cross-entropy and entropy of the completions' tokens under the model, token mean, in nats."""
    loss = entropy = count = 0.0
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    for start in range(0, len(data), size):
        part = data[start : start + size]
        rows = [tokenizer(p + c + tokenizer.eos_token)["input_ids"] for p, c in zip(part["prompt"], part["completion"], strict=True)]
        begins = [len(tokenizer(p)["input_ids"]) for p in part["prompt"]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows], device=model.device)
        place = torch.arange(width, device=ids.device)
        lengths, begin = torch.tensor([len(row) for row in rows], device=ids.device), torch.tensor(begins, device=ids.device)
        inside = (place < lengths[:, None]) & (place >= begin[:, None])
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=(place < lengths[:, None]).long()).logits.float(), -1)[:, :-1]
        mask = inside[:, 1:]
        loss -= float(log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)[mask].sum())
        entropy += float(torch.special.entr(log_p.exp()).sum(-1)[mask].sum())
        count += float(mask.sum())
    return {"text loss": loss / count, "text entropy": entropy / count}
