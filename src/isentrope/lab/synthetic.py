"""Runs that were never run: directories with a tape and a summary whose curves follow a stated law, for tests and for looking at the page.

pass@1 rises from 0.3 towards `ceiling` with rate `speed`; entropy is a function of pass@1 plus `lift` nats. A slower arm with the same
ceiling and no lift is on the baseline's path.
"""

import json
import math
from pathlib import Path

import numpy as np

from isentrope.tape import TapeWriter


def finished_run(
    directory: Path, *, seed: int, steps: int = 120, every: int = 20, ceiling: float = 0.9, speed: float = 0.03, lift: float = 0.0, noise: float = 0.01,
    samples: int = 16, norm: float = 0.1, rate: float = 3e-4, state: dict[str, list[float | None]] | None = None, touch: float | None = None,
) -> None:  # fmt: skip
    """Writes tape and summary.json. state: column of a controller's state -> its values."""
    rng = np.random.default_rng([seed, abs(hash((ceiling, speed, lift))) % 2**32])
    writer = TapeWriter(directory / "tape")
    at = np.arange(0, steps + 1, every)
    reward = np.clip(ceiling - (ceiling - 0.3) * np.exp(-speed * at) + noise * rng.normal(size=len(at)), 0, 1)
    path = 0.4 * (1 - reward) + lift * (at > 0) + 0.3 * noise * rng.normal(size=len(at))
    more = {f"pass@{2**j}": 1 - (1 - reward) ** (0.8 * 2**j) for j in range(1, int(math.log2(samples)) + 1)}
    metrics = {"pass@1": reward, **more, f"maj@{samples}": np.clip(reward + 0.08, 0, 1), "entropy": path, "length": 18 + rng.normal(size=len(at))}
    rows = [
        {"step": int(step), "metric": name, "value": float(values[place]), "low": 0.0, "high": 1.0, "prompts": 64, "samples": samples}
        for place, step in enumerate(at)
        for name, values in metrics.items()
    ]
    writer.append("evals", rows)
    updates = np.arange(1, steps + 1)
    norms = (norm * (1 + 0.02 * rng.normal(size=steps))).tolist()
    table = {
        "step": updates.tolist(), "seconds": [0.7] * steps, "tokens": [1000.0] * steps, "learning_rate": [rate] * steps, "update/norm": norms,
        "entropy/mean": np.interp(updates, at, path).tolist(), "reward/mean": np.interp(updates, at, reward).tolist(),
    }  # fmt: skip
    table |= {name: values[:steps] for name, values in (state or {}).items()}
    if touch is not None:
        table["touch/link"] = [touch] * steps
    writer.append("steps", table)
    writer.flush(steps)
    (directory / "summary.json").write_text(json.dumps({"steps": steps, "seconds": 0.7 * steps, "pass@1": float(reward[-1])}))
