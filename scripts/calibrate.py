"""Plain GRPO of stock TRL at the settings of a shipped preset: what a run of it will show.

    python scripts/calibrate.py --preset demo --seeds 0 1 2 [--model DIR] [--set key=value ...]
    python scripts/calibrate.py --preset demo --steps 0 --prompts 256        # the base model alone

Prints one line per evaluation (held-out prompts) and one per seed. TRL's own trainer and loss; nothing of isentrope's host.
"""

import argparse
import json
import time
import warnings

import torch
import yaml
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from isentrope import config as configuration
from isentrope.train.evaluate import evaluate
from isentrope.train.models import load
from isentrope.train.tasks import Task, build

SHOWN = ("pass@1", "pass@16", "maj@16", "answer_entropy", "entropy", "length", "truncated")


class Evaluate(TrainerCallback):
    """Evaluation on held-out prompts every so many steps, one printed line each."""

    def __init__(self, trainer: GRPOTrainer, task: Task, every: int, length: int, samples: int, prompts: int):
        self.trainer, self.task, self.every, self.length, self.samples, self.prompts = (
            trainer,
            task,
            every,
            length,
            samples,
            prompts,
        )
        self.rows: list[dict[str, float]] = []
        self.clipped: list[float] = []  # share of tokens outside the clip range, per update
        self.begun, self.evaluating = time.perf_counter(), 0.0

    def now(self, step: int) -> None:
        before = time.perf_counter()
        result = evaluate(
            self.trainer.model,
            self.trainer.processing_class,
            self.task,
            prompts=self.prompts,
            samples=self.samples,
            temperature=1.0,
            max_completion_length=self.length,
            seed=1,
            batch_size=1024,
        )
        self.evaluating += time.perf_counter() - before
        found = {row["metric"]: row["value"] for row in result.rows}
        self.rows.append(found)
        line = "  ".join(f"{key} {found[key]:.3f}" for key in SHOWN if key in found)
        print(
            f"  step {step:4d}  {line}  {time.perf_counter() - self.begun:6.1f} s ({self.evaluating:.1f} s evaluating)",
            flush=True,
        )

    def on_step_end(self, args, state, control, **kwargs):
        if self.every and state.global_step % self.every == 0:
            self.now(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "clip_ratio/region_mean" in (logs or {}):
            self.clipped.append(float(logs["clip_ratio/region_mean"]))
        if "clip_ratio/region_mean" in (logs or {}) and state.global_step % 10 == 0:
            keys = ("reward", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "grad_norm", "step_time")
            print("    ", state.global_step, {key: round(float(logs[key]), 4) for key in keys if key in logs}, flush=True)


def run(seed: int, model_name: str, task: Task, trl: dict, every: int, evaluation: dict) -> Evaluate:
    set_seed(seed)
    loaded = load(model_name)
    config = GRPOConfig(output_dir="/tmp/calibrate", report_to="none", disable_tqdm=True, seed=seed, **trl)
    config.logging_steps = 1
    trainer = GRPOTrainer(
        model=loaded.model,
        reward_funcs=list(task.reward_funcs),
        args=config,
        train_dataset=task.train,
        processing_class=loaded.tokenizer,
    )
    for name in ("ProgressCallback", "PrinterCallback"):
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]:
            trainer.remove_callback(callback)
    watch = Evaluate(trainer, task, every, config.max_completion_length, **evaluation)
    trainer.add_callback(watch)
    print(f"seed {seed}", flush=True)
    watch.now(0)
    if config.max_steps > 0:
        trainer.train()
        if not every or config.max_steps % every:
            watch.now(config.max_steps)
        touched = sum(share > 0 for share in watch.clipped)
        mean = sum(watch.clipped) / len(watch.clipped)
        print(f"  clipped tokens: mean share {mean:.4f}, largest {max(watch.clipped):.4f}, in {touched} of {len(watch.clipped)} updates")
    return watch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments.add_argument("--steps", type=int)
    arguments.add_argument("--model")
    arguments.add_argument("--preset", default="demo")
    arguments.add_argument("--every", type=int, default=50)
    arguments.add_argument("--prompts", type=int, default=64)
    arguments.add_argument("--samples", type=int, default=16)
    arguments.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="a field of TRL's GRPOConfig")
    given = arguments.parse_args()
    warnings.filterwarnings("ignore")
    preset = configuration.load(preset=given.preset)
    trl = {"bf16": False, "use_cpu": not torch.cuda.is_available(), "save_strategy": "no", **preset.trl}
    trl.pop("save_steps", None)
    trl.update({key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in given.set)})
    if given.steps is not None:
        trl["max_steps"] = given.steps
    task = build(preset.task)
    evaluation = {"prompts": given.prompts, "samples": given.samples}
    print(json.dumps({"task": task.describe(), "trl": trl, "threads": torch.get_num_threads()}), flush=True)
    for seed in given.seeds:
        watch = run(seed, given.model or preset.model.name, task, trl, given.every, evaluation)
        first, last = watch.rows[0], watch.rows[-1]
        print(
            f"seed {seed}: pass@1 {first['pass@1']:.3f} -> {last['pass@1']:.3f}, entropy {first['entropy']:.3f} -> {last['entropy']:.3f} "
            f"(ratio {last['entropy'] / first['entropy']:.3f}), {time.perf_counter() - watch.begun:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
