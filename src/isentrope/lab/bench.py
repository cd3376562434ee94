"""What an experiment is given: its seeds, and training runs of the embedded model that are made once and kept.

A run lies under the key of its resolved configuration, so that two claims that compare with the same baseline share its runs, and
a killed `isentrope reproduce` goes on where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isentrope.errors import UserError

SHORT = (
    "trl.max_steps=60", "trl.lr_scheduler_type=constant", "trl.per_device_train_batch_size=64", "trl.save_steps=1000",
    "evaluate.every=60", "evaluate.prompts=64", "evaluate.samples=16", "tape.tokens_every=null", "report.build=false",
)  # fmt: skip
"""Changes to the preset `demo` that make a run of half a minute: 60 updates of 8 groups, held-out answers before and after."""


@dataclass(frozen=True)
class Curves:
    """A finished run: one entry per update, and its final figures.

    entropy: nats (current policy, exact, token mean over the training responses). reward: its mean over the batch.
    """

    directory: Path
    step: np.ndarray
    reward: np.ndarray
    entropy: np.ndarray
    length: np.ndarray
    columns: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]


class Bench:
    """The workplace of one claim.

    seeds: how many repetitions. runs: where training runs are kept. watcher: live progress (`isentrope.progress.Progress`), None for silence.
    """

    def __init__(self, seeds: int, runs: Path, watcher: Any = None):
        self.seeds, self.runs, self.watcher = seeds, runs, watcher

    def tell(self, line: str) -> None:
        if self.watcher is not None:
            self.watcher.message(line)

    def train(self, control: Sequence[Mapping[str, Any] | str] = (), *, seed: int, sets: Sequence[str] = (), preset: str = "demo") -> Curves:
        """A run of the embedded model with these interventions, made if it is not there, gone on with if it was interrupted.

        sets: changes beside SHORT, as `--set` takes them. Raises UserError if the run fails or was interrupted.
        """
        from isentrope.config import load
        from isentrope.files import write_json_atomic
        from isentrope.train.check import check
        from isentrope.train.run import MARK, run

        links = json.dumps([{"name": item} if isinstance(item, str) else dict(item) for item in control])
        base = SHORT if preset == "demo" else tuple(item for item in SHORT if not item.startswith("trl."))
        asked = load(preset=preset, sets=[*base, f"control={links}", *sets], seed=seed)
        directory = self.runs / key(asked.model_dump(mode="json"))
        if not (directory / "done.json").is_file():
            self.tell(f"training {', '.join(item['name'] for item in asked.control) or 'the baseline'}, seed {seed}")
            config = check(asked.model_copy(update={"out": str(directory)}))
            begun = (directory / MARK).is_file()
            if directory.is_dir() and not begun:
                shutil.rmtree(directory)
            result = run(config, resume=directory if begun else None, progress=self.watcher)
            if result.interrupted:
                raise UserError(f"{directory} was interrupted, and saved. The same command goes on with it.")
            write_json_atomic(directory / "done.json", result.summary)
            shutil.rmtree(directory / "model", ignore_errors=True)  # 8 MiB a run that no claim reads
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        return curves(directory)


def key(config: Mapping[str, Any]) -> str:
    """Of a resolved configuration, wherever it runs."""
    plain = {name: value for name, value in config.items() if name not in ("out", "preset")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def curves(directory: Path) -> Curves:
    """Of a run's tape."""
    from isentrope.tape import Tape

    steps = Tape.read(directory).steps.sort("step")
    columns = {name: steps[name].to_numpy() for name in steps.columns if steps[name].dtype.is_numeric()}
    summary = json.loads((directory / "done.json").read_text(encoding="utf-8"))
    return Curves(directory, columns["step"], columns["reward/mean"], columns["entropy/mean"], columns["length/mean"], columns, summary)


# --- two runs at the same reward


def smoothed(values: np.ndarray, width: int = 9) -> np.ndarray:
    """The mean over a window of `width` updates, narrower at the ends."""
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def at_reward(reward: np.ndarray, value: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """`value` where the smoothed reward first reaches each of `levels`, between updates by a straight line; NaN where it never does."""
    reward, value = smoothed(reward), smoothed(value)
    top = np.maximum.accumulate(reward)
    found = np.full(len(levels), np.nan)
    for at, level in enumerate(levels):
        if not top[0] <= level <= top[-1]:
            continue
        after = int(np.searchsorted(top, level))
        if after == 0:
            found[at] = value[0]
            continue
        share = (level - top[after - 1]) / (top[after] - top[after - 1])
        found[at] = value[after - 1] + share * (value[after] - value[after - 1])
    return found


def matched_gap(base: Curves, other: Curves, column: str = "entropy/mean", levels: int = 9) -> float:
    """Mean difference (other less base) of a column where both runs first reach the same reward, over the rewards that both pass.

    In the column's unit. NaN if their rewards do not overlap.
    """
    one, two = smoothed(base.reward), smoothed(other.reward)
    low, high = max(one[0], two[0]), min(one.max(), two.max())
    if not low < high:
        return float("nan")
    asked = np.linspace(low, high, levels + 2)[1:-1]
    gap = at_reward(other.reward, other.columns[column], asked) - at_reward(base.reward, base.columns[column], asked)
    return float(np.nanmean(gap)) if np.isfinite(gap).any() else float("nan")
