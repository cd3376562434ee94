"""Trainers in one process that take their steps in turn, so that whatever else the machine does meets them all alike.

Learning rate 0 and the same random state at the beginning of the n-th step of each: all sample the same completions, step by step.
Each trainer runs in its own thread and holds the turn for exactly one step; which of them goes first rotates.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from isentrope.config import Config
from isentrope.measure.tokens import Signal
from isentrope.tape import TapeWriter
from isentrope.train import models, tasks
from isentrope.train.recorder import TapeRecorder
from isentrope.train.trl import IsentropeTrainer


class Turns:
    """`count` threads take steps in rounds, each round beginning with the next of them: for two, a b, b a, a b, ..."""

    def __init__(self, count: int):
        self.count = count
        self.condition = threading.Condition()
        self.ready: set[int] = set()  # no step before all have begun: beginning draws random numbers
        self.taken = 0
        self.failed = False

    def _whose(self) -> int:
        round_, place = divmod(self.taken, self.count)
        return (place + round_) % self.count

    def wait(self, who: int) -> None:
        with self.condition:
            self.ready.add(who)
            self.condition.notify_all()
            self.condition.wait_for(lambda: self.failed or (len(self.ready) == self.count and self._whose() == who))
            if self.failed:
                raise RuntimeError("another trainer failed; its error stands above")

    def done(self) -> None:
        with self.condition:
            self.taken += 1
            self.condition.notify_all()

    def fail(self) -> None:
        with self.condition:
            self.failed = True
            self.condition.notify_all()


class OneStep(TrainerCallback):
    """Takes one step per turn and times it by `clock`. `after` runs within the turn, off the clock."""

    def __init__(self, turns: Turns, who: int, after: Callable[[], None] | None = None, clock: Callable[[], float] = time.perf_counter):
        self.turns, self.who, self.after, self.clock = turns, who, after, clock
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.turns.wait(self.who)
        random.seed(len(self.times)), np.random.seed(len(self.times)), torch.manual_seed(len(self.times))
        self.began = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(self.clock() - self.began)
        if self.after is not None:
            self.after()
        self.turns.done()


def trainer(cls: type[GRPOTrainer], config: Config, folder: Path, clock: OneStep, *, steps: int, signals: tuple[Signal, ...] = (), **more: Any) -> GRPOTrainer:
    """A trainer on the run's own task and model that learns nothing; ours with step rows of the tape on, token rows off, and these signals recorded."""
    loaded = models.load(config.model.name)
    task = tasks.build(config.task, chat=loaded.chat)
    fields = dict(config.trl) | {
        "output_dir": str(folder), "max_steps": steps, "learning_rate": 0.0, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "bf16": False, "seed": 0,
    }  # fmt: skip
    if issubclass(cls, IsentropeTrainer):
        more["recorder"] = TapeRecorder(TapeWriter(folder / "tape"), tokens_every=None)
        more["recorder"].signals = signals
    made = cls(
        model=loaded.model, reward_funcs=list(task.reward_funcs), args=GRPOConfig(**fields), train_dataset=task.train,
        processing_class=loaded.tokenizer, callbacks=[clock], **more,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def train(trainers: Sequence[GRPOTrainer], turns: Turns) -> None:
    """All of them to their end, in turn."""

    def work(one: GRPOTrainer) -> None:
        try:
            one.train()
        except BaseException:
            turns.fail()
            raise

    threads = [threading.Thread(target=work, args=(one,)) for one in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rewards(one: GRPOTrainer) -> list[float]:
    """Mean reward of every logged step."""
    return [entry["reward"] for entry in one.state.log_history if "reward" in entry]


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(np.asarray(values), size=(10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)
