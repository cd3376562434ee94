"""What the verl host costs: one update of verl's real FSDP worker under verl's own loss and under ours. Runs in verl's environment.

    make test-verl                                            once, for .venv-verl
    .venv-verl/bin/python bench/verl_step.py                  two cores, fsdp2, the embedded model
    .venv-verl/bin/python bench/verl_step.py --strategy fsdp  needs a GPU: FSDP1 refuses CPU parameters with sync_module_states

Rows alternate, so that a machine that is busy with something else slows all of them. Columns: median milliseconds of one update; ratio to verl's
vanilla loss in the same round; whether the weights after the last update equal verl's.

On two busy cores (one thread each), `bench/verl_step.py --rounds 12`, 2026-11-21:

                           ms   ratio  equal
    verl vanilla        555.7    1.00  True
    empty chain         584.4    1.06  True
    clip-cov            879.7    1.51  False
    forking-tokens      848.9    1.50  False
    siren               928.9    1.71  False

The responses are short, so the share of the loss itself is large. Expected on a GPU, not run there: `empty chain` equal True; with a survey about
1.3 to 1.5, because it is one forward pass more and a forward pass is a third of an update; a chain without a survey (clip-higher) near 1.0.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "verl_host")]
import small  # noqa: E402
import torch  # noqa: E402

ARMS = {
    "verl vanilla": {"loss_loss_mode": "vanilla"},
    "empty chain": {"chain": []},
    "clip-cov": {"chain": ["clip-cov"]},
    "forking-tokens": {"chain": ["forking-tokens"]},
    "siren": {"chain": ["siren"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="fsdp2", choices=["fsdp", "fsdp2"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    asked = parser.parse_args()
    small.one_process()
    made = {name: small.worker(small.actor_config(strategy=asked.strategy, **arm), micro=asked.micro, strategy=asked.strategy) for name, arm in ARMS.items()}
    spent: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(asked.rounds + 1):
        for name, worker in made.items():
            data = small.batch(asked.rows, seed=turn)
            begun = time.perf_counter()
            worker.train_mini_batch(data)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first is warm-up
                spent[name].append(1e3 * (time.perf_counter() - begun))
    theirs = small.weights(made["verl vanilla"])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} thread(s)"
    print(f"{device}, {asked.strategy}, {asked.rows} rows in micro-batches of {asked.micro}, {asked.rounds} rounds")
    print(f"{'':16s} {'ms':>8s} {'ratio':>7s}  equal")
    for name, worker in made.items():
        ratio = statistics.median(ours / base for ours, base in zip(spent[name], spent["verl vanilla"], strict=True))
        equal = all(torch.equal(value, theirs[key]) for key, value in small.weights(worker).items())
        print(f"{name:16s} {statistics.median(spent[name]):8.1f} {ratio:7.2f}  {equal}")


if __name__ == "__main__":
    main()
