"""Before training: the starting policy is tried on prompts, once, and the chain's select stages say which of them the run trains on.

What was found is kept in `prepared.json` of the run directory, so that a resumed run trains on the same prompts without sampling again. The
draws have their own seed and the global generators are put back: whether the file was there makes no difference to what follows.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.control.stages import Probed, ProbeRequest, Select
from isentrope.control.step import RowRng
from isentrope.errors import UserError
from isentrope.files import write_json_atomic
from isentrope.train.state import rng_state, set_rng_state

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

FILE = "prepared.json"
_STREAM = -(1 << 40)  # keys of the drawn prompts: of no update and of no generation


def prepare(trainer: "IsentropeTrainer") -> None:
    """Restricts `trainer.train_dataset` to what the chain selects; nothing where no link selects.

    A selection smaller than a generation batch is repeated, each prompt equally often, so that every batch is full.

    Raises UserError for a dataset without positions, or a selection that is empty.
    """
    links = [(index, link) for index, link in trainer.chain.having(Select) if isinstance(link, Select) and link.probe() is not None]
    if not links:
        return
    if not hasattr(trainer.train_dataset, "select"):
        raise UserError(f"{_names(trainer, links)} chooses among prompts, which a streamed dataset does not let it do. Load it as a datasets.Dataset.")
    path = Path(trainer.args.output_dir) / FILE
    asked = [link.probe() for _, link in links]
    settings = _settings(trainer, [request for request in asked if request is not None])
    known = _read(path, settings)
    probed = _probe(trainer, settings) if known is None else known
    chosen = probed.position
    for _, link in links:
        rows = torch.isin(probed.position, chosen)
        try:
            chosen = link.select(Probed(probed.position[rows], probed.reward[rows], probed.correct[rows], probed.length[rows]))
        except ValueError as error:
            raise UserError(str(error)) from error
    if len(chosen) == 0:
        raise UserError(f"{_names(trainer, links)} selected none of the {len(probed.position)} prompts that were tried. See {path}.")
    if trainer.accelerator.is_main_process:
        values = {name: probed.__dict__[name].tolist() for name in ("position", "reward", "correct", "length")}
        write_json_atomic(path, {"settings": settings, "chosen": chosen.tolist(), **values})
    size = trainer.accelerator.num_processes * trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation // trainer.num_generations
    trainer.train_dataset = trainer.train_dataset.select(chosen.tolist() * math.ceil(size / len(chosen)))


def _names(trainer: "IsentropeTrainer", links: Sequence[tuple[int, Any]]) -> str:
    return ", ".join(trainer.chain.keys[index] for index, _ in links)


def _settings(trainer: "IsentropeTrainer", asked: Sequence[ProbeRequest]) -> dict[str, Any]:
    """What the probed numbers depend on; a file written under others is not used. The largest request serves all links."""
    rows = len(trainer.train_dataset)
    prompts = max(rows if request.prompts is None else min(rows, request.prompts) for request in asked)
    return {
        "samples": max(request.samples for request in asked), "prompts": prompts, "dataset": rows, "seed": int(trainer.args.seed),
        "temperature": float(trainer.temperature), "max_completion_length": int(trainer.max_completion_length),
    }  # fmt: skip


def _read(path: Path, settings: dict[str, Any]) -> Probed | None:
    """What the file holds, None where it is not there, damaged, or of other settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            return None
        reward, correct = (torch.tensor([[math.nan if item is None else item for item in row] for row in found[key]]) for key in ("reward", "correct"))
        return Probed(torch.tensor(found["position"]), reward, correct, torch.tensor(found["length"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _probe(trainer: "IsentropeTrainer", settings: dict[str, Any]) -> Probed:
    """Samples at the trainer's temperature, in blocks of a generation batch, by all ranks together."""
    keys = RowRng(int(trainer.args.seed), _STREAM).uniform(torch.arange(settings["dataset"]), 1).squeeze(1)
    position = torch.argsort(keys)[: settings["prompts"]].sort().values
    samples, stages = settings["samples"], trainer._rollout_stages
    assert stages is not None  # a chain with links has them
    block = max(1, trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation * trainer.accelerator.num_processes // samples)
    before, parts = rng_state(), []
    try:
        torch.manual_seed(int(trainer.args.seed) + 1_000_003 * (1 + trainer.accelerator.process_index))
        for start in range(0, len(position), block):
            some = position[start : start + block]
            rows = [dict(trainer.train_dataset[int(at)]) for at in some for _ in range(samples)]
            group = torch.arange(len(some), device=trainer.accelerator.device).repeat_interleave(samples)
            parts.append(stages.sampled(rows, group, float(trainer.temperature), samples, counted="isentrope/probe_tokens").rollouts)
    finally:
        set_rng_state(before)
    trainer._metrics["train"]["isentrope/probe_tokens"] = [sum(trainer._metrics["train"]["isentrope/probe_tokens"])]
    return Probed(position, *(_table(parts, name, samples) for name in ("reward", "correct", "lengths")))


def _table(parts: Sequence[Any], name: str, samples: int) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts]).cpu().reshape(-1, samples)
