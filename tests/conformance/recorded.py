"""The recorded batches and what the pure function makes of them: read by the tests of both hosts, each in its own environment.

Written by `python scripts/record_conformance.py`. Imports neither TRL nor verl.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent
UPDATES, ROWS, TEMPERATURE, SEED = 2, 8, 0.9, 0
PROJECTIONS = 8


@dataclass(frozen=True)
class Case:
    """A chain as it stands in YAML, and its gradient and loss in every update."""

    name: str
    chain: list[dict]
    expected: dict[str, Tensor]


def batches() -> list[dict[str, Tensor]]:
    """One mapping per update, padded on the right: prompts [row, 5], responses, masks and numbers per token [row, token], reward and group [row]."""
    found = load_file(FOLDER / "batch.safetensors")
    return [{key.partition("/")[2]: value for key, value in found.items() if key.startswith(f"{update}/")} for update in range(UPDATES)]


def cases() -> list[Case]:
    found = load_file(FOLDER / "expected.safetensors")
    listed = json.loads((FOLDER / "cases.json").read_text())
    return [Case(name, chain, {key.partition("#")[2]: found[key] for key in found if key.startswith(name + "#")}) for name, chain in listed.items()]


def fingerprint(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is kept of a gradient of all parameters: that of the last norm, whole; the norm of the whole; and eight projections of the whole on
    waves over its 857,216 entries, so that an entry which differs anywhere shows."""
    flat = torch.cat([gradient[name].detach().double().flatten() for name in sorted(gradient)])
    position = torch.arange(len(flat), dtype=torch.float64)
    waves = torch.stack([(torch.cos(position * (0.5 + 0.37 * wave)) * flat).sum() for wave in range(PROJECTIONS)])
    return {"last_norm": gradient["model.norm.weight"].detach().float(), "norm": flat.norm(), "waves": waves}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor], update: int) -> float:
    """The largest difference of two fingerprints, relative to the norm of the expected gradient."""
    scale = float(expected[f"{update}/norm"])
    return max(float((found[key].double() - expected[f"{update}/{key}"].double()).abs().max()) for key in found) / scale
