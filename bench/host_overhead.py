"""Overhead of the host with an empty chain against stock TRL: the same steps, both trainers in one process, interleaved.

    python bench/host_overhead.py --pairs 120

Learning rate 0 and the same random state at every step, so both sample the same completions; step rows of the tape on, token rows off.
Which of the two goes first alternates (bench/interleaved.py). Prints the median ratio of step times with its 95 % bootstrap interval.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from interleaved import OneStep, Turns, median_interval, rewards, train, trainer
from trl import GRPOTrainer

from isentrope import config as configuration
from isentrope.train.trl import IsentropeTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    config = configuration.load(preset="demo")
    turns, folder = Turns(2), Path(tempfile.mkdtemp())
    kinds = (GRPOTrainer, IsentropeTrainer)
    clocks = [OneStep(turns, who) for who in range(2)]
    steps = options.pairs + options.warmup
    trainers = [trainer(kind, config, folder / kind.__name__, clock, steps=steps) for kind, clock in zip(kinds, clocks, strict=True)]
    train(trainers, turns)
    stock, ours = (np.array(clock.times[options.warmup :]) for clock in clocks)
    same = rewards(trainers[0]) == rewards(trainers[1])
    ratio, low, high = median_interval(ours / stock)
    result = {
        "pairs": len(ours), "stock_seconds_median": float(np.median(stock)), "ours_seconds_median": float(np.median(ours)),
        "ratio_median": ratio, "ratio_low": low, "ratio_high": high, "same_rewards": same, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(f"pairs                  {result['pairs']} (interleaved, learning rate 0, same samples: {same})")
    print(f"stock TRL, median      {result['stock_seconds_median']:.4f} s")
    print(f"isentrope, median      {result['ours_seconds_median']:.4f} s")
    print(f"ratio, median          {ratio:.4f}  [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
