"""Overhead of the host with an empty chain against stock TRL: the same steps, both trainers in one process, interleaved.

    python bench/host_overhead.py --pairs 120

Learning rate 0 and the same seeds, so both sample the same completions at every step; step rows of the tape on, token rows off.
Each trainer runs in its own thread and holds the turn for exactly one step; the random state travels with the turn, and which of
the two goes first alternates. Prints the median ratio of step times with its 95 % bootstrap interval.
"""

import argparse
import json
import random
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from isentrope import config as configuration
from isentrope.tape import TapeWriter
from isentrope.train import models, tasks
from isentrope.train.checkpoint import rng_state, set_rng_state
from isentrope.train.recorder import TapeRecorder
from isentrope.train.trl import IsentropeTrainer


class Turns:
    """Two threads take steps in the order a b, b a, a b, ...: each pair holds one step of both."""

    def __init__(self):
        self.condition = threading.Condition()
        self.taken = 0
        self.finished: set[int] = set()

    def whose(self) -> int:
        pair, place = divmod(self.taken, 2)
        first = pair % 2
        return first if place == 0 else 1 - first

    def wait(self, who: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.whose() == who or (1 - who) in self.finished)

    def done(self) -> None:
        with self.condition:
            self.taken += 1
            self.condition.notify_all()

    def finish(self, who: int) -> None:
        with self.condition:
            self.finished.add(who)
            self.condition.notify_all()


class OneStep(TrainerCallback):
    """Times one step per turn; the random state is this trainer's own."""

    def __init__(self, turns: Turns, who: int, seed: int):
        self.turns, self.who, self.times = turns, who, []
        self.rng = None
        self.seed = seed

    def on_step_begin(self, args, state, control, **kwargs):
        self.turns.wait(self.who)
        if self.rng is None:
            random.seed(self.seed), np.random.seed(self.seed), torch.manual_seed(self.seed)
        else:
            set_rng_state(self.rng)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter() - self.began)
        self.rng = rng_state()
        self.turns.done()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    config = configuration.load(preset="demo")
    turns, folder = Turns(), Path(tempfile.mkdtemp())
    trainers, clocks = [], []
    for who, cls in enumerate((GRPOTrainer, IsentropeTrainer)):
        loaded = models.load(config.model.name)
        task = tasks.build(config.task, chat=loaded.chat)
        fields = dict(config.trl) | {
            "output_dir": str(folder / cls.__name__), "max_steps": options.pairs + options.warmup, "learning_rate": 0.0, "logging_steps": 1,
            "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False, "seed": 0,
        }  # fmt: skip
        clock = OneStep(turns, who, seed=0)
        more = {"recorder": TapeRecorder(TapeWriter(folder / "tape"), tokens_every=None)} if cls is IsentropeTrainer else {}
        trainer = cls(
            model=loaded.model, reward_funcs=list(task.reward_funcs), args=GRPOConfig(**fields), train_dataset=task.train,
            processing_class=loaded.tokenizer, callbacks=[clock], **more,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainers.append(trainer)
        clocks.append(clock)
    threads = []
    for who, trainer in enumerate(trainers):

        def work(who=who, trainer=trainer):
            try:
                trainer.train()
            finally:
                turns.finish(who)

        threads.append(threading.Thread(target=work))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stock, ours = (np.array(clock.times[options.warmup :]) for clock in clocks)
    same = [entry.get("reward") for entry in trainers[0].state.log_history if "reward" in entry] == [
        entry.get("reward") for entry in trainers[1].state.log_history if "reward" in entry
    ]
    ratio = ours / stock
    draws = np.random.default_rng(0).choice(ratio, size=(10_000, len(ratio)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    result = {
        "pairs": len(ratio), "stock_seconds_median": float(np.median(stock)), "ours_seconds_median": float(np.median(ours)),
        "ratio_median": float(np.median(ratio)), "ratio_low": float(low), "ratio_high": float(high), "same_rewards": same,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(f"pairs                  {result['pairs']} (interleaved, learning rate 0, same samples: {same})")
    print(f"stock TRL, median      {result['stock_seconds_median']:.4f} s")
    print(f"isentrope, median      {result['ours_seconds_median']:.4f} s")
    print(f"ratio, median          {result['ratio_median']:.4f}  [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
