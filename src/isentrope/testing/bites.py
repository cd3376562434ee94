"""Does it bite: an intervention on the embedded model, live inside TRL, under the preset `control-check`.

For every update it is counted which share of tokens, rows or prompts each kind of stage changed, and how far the gradient of the
model's weights moved from what the objective alone would have given on the same sampled batch.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.control.stages import ChainStats, Fork, Intervention, LossResult, policy_loss, stages_of
from isentrope.control.step import Rollouts, Step

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

LOW, HIGH = 0.005, 0.5  # shares that count as a bite
MOVED = 1e-3  # relative distance of the gradient
_ON_GRADIENT = frozenset({"reward", "filter", "advantage", "rows", "clip", "weight", "regularise", "policy"})


@dataclass(frozen=True)
class Bite:
    """One update. `shares` by kind: "tokens" (clip, weight, regularise), "advantage", "temperature" (shares of trained tokens), "rows"
    (replaced, dropped), "prompts" (filtered). `distance`: of the gradient from the objective's own, relative to the latter's norm."""

    step: int
    shares: Mapping[str, float]
    distance: float

    def touches(self, most: float = HIGH) -> bool:
        """Some kind of share is neither nothing nor above `most`."""
        return any(LOW <= share <= most for share in self.shares.values())


class BiteRecorder:
    """A host's recorder that keeps a `Bite` per update."""

    signals = ()

    def __init__(self, key: str):
        self.key = key
        self.bites: list[Bite] = []
        self._batch: dict[str, float] = {}
        self._base: dict[int, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._touched = self._tokens = 0.0
        self._ours: list[Tensor] = []
        self._theirs: list[Tensor] = []

    def begin(self) -> None: ...

    def generation(self, trainer: "IsentropeTrainer", prompts: Sequence[str], rollouts: Rollouts) -> None:
        """Compares the batch with what the trainer alone would have made of it."""
        from isentrope.control.advantages import trl_advantages

        original = trainer.total_reward(trainer._scored["rewards"])  # before rows were replaced; one process
        base = trl_advantages(original, trainer.num_generations, scale=trainer.scale_rewards)
        new = rollouts.origin != 0
        base = torch.where(new, 0.0, base)  # a row that was put in is nothing to the objective alone
        self._base = dict(zip(rollouts.row_id.tolist(), base.tolist(), strict=True))
        mask, text = rollouts.trained_mask, rollouts.completion_mask
        counted = mask & ~new[:, None]
        differs = (rollouts.advantage.expand(mask.shape) - base[:, None]).abs() > 1e-6
        heated = (rollouts.sampling_temperature != float(trainer.temperature)) & text & ~new[:, None]
        dropped = text.any(-1) & ~mask.any(-1)
        by_prompt = dropped.view(-1, trainer.num_generations).all(-1)
        self._batch = {
            "advantage": float((differs & counted).sum() / counted.sum().clamp(min=1)),
            "temperature": float(heated.sum() / text.sum().clamp(min=1)),
            "rows": float((new | dropped).float().mean()),
            "prompts": float(by_prompt.float().mean()),
        }

    def slice(self, trainer: "IsentropeTrainer", step: Step, stats: ChainStats | None, result: LossResult) -> None:
        """Adds up touched tokens, and both gradients of the weights."""
        self._touched += float(result.observed.touched[self.key].sum())
        self._tokens += float(step.mask.sum())
        alone = self.alone(step)
        weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        _add(self._ours, torch.autograd.grad(result.loss, weights, retain_graph=True, allow_unused=True))
        _add(self._theirs, torch.autograd.grad(policy_loss(alone, trainer.objective).loss, weights, retain_graph=True, allow_unused=True))

    def alone(self, step: Step) -> Step:
        """The same slice as the objective alone would have been given it."""
        rollouts = step.rollouts
        base = torch.tensor([self._base[row] for row in rollouts.row_id.tolist()], dtype=torch.float32, device=step.mask.device)
        return replace(step, rollouts=replace(rollouts, advantage=base[:, None], trained_mask=rollouts.completion_mask))

    def update(self, trainer: "IsentropeTrainer") -> None:
        """Closes the row of this update."""
        shares = self._batch | {"tokens": self._touched / max(self._tokens, 1.0)}
        apart = sum(float((a - b).double().square().sum()) for a, b in zip(self._ours, self._theirs, strict=True)) ** 0.5
        size = sum(float(b.double().square().sum()) for b in self._theirs) ** 0.5
        self.bites.append(Bite(trainer.state.global_step, shares, apart / size if size else float(apart > 0)))
        self._clear()

    def measured(self) -> Mapping[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...


def _add(total: list[Tensor], parts: Sequence[Tensor | None]) -> None:
    found = [torch.zeros(()) if part is None else part.detach() for part in parts]
    total[:] = found if not total else [a + b for a, b in zip(total, found, strict=True)]


def check_bites(intervention: Intervention, *, seed: int = 0, steps: int = 20, least: int = 15) -> list[Bite]:
    """Train the embedded model for `steps` updates of the preset `control-check` (`game`, for a link that forks episodes) under the intervention's
    embedded setting.

    In at least `least` of them it must touch between 0.5 % and 50 % of tokens (or rows, or prompts), and, where a stage of it acts on
    the loss, move the gradient by more than 1e-3 of its norm. One that is `dense` by design has no upper share.

    Raises ContractError with the figures of every update; SkipTest naming the extra if trl is not installed.
    """
    bites = bite(intervention.embedded(), seed=seed, steps=steps + intervention.late)[intervention.late :]
    on_gradient = bool(_ON_GRADIENT & set(stages_of(intervention)))
    most = 1.0 if intervention.dense else HIGH
    good = [one for one in bites if one.touches(most) and (one.distance > MOVED or not on_gradient)]
    if len(good) < least:
        from isentrope.testing.checks import ContractError

        rows = "\n".join(
            f"  step {one.step}: " + ", ".join(f"{kind} {share:.2%}" for kind, share in one.shares.items()) + f", gradient {one.distance:.2e}" for one in bites
        )
        raise ContractError(f"bites in {len(good)} of {len(bites)} updates, {least} are needed (a share in {LOW:.1%}..{most:.0%}):\n{rows}\n")
    return bites


def bite(intervention: Intervention, *, seed: int = 0, steps: int = 20, recorder: BiteRecorder | None = None) -> list[Bite]:
    """The updates of a run of `control-check` (or `game`), measured (by `recorder`, if given).

    Raises SkipTest naming the extra if trl is not installed.
    """
    try:
        from transformers.trainer_callback import PrinterCallback

        from isentrope.config import load
        from isentrope.train import models, tasks
        from isentrope.train.run import trainer_arguments
        from isentrope.train.trl import IsentropeTrainer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"check_bites trains the embedded model inside TRL and needs it: pip install 'isentrope[trl]' ({error.name}).") from error
    recorder = BiteRecorder(intervention.name) if recorder is None else recorder
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        preset = "game" if isinstance(intervention, Fork) else "control-check"
        config = load(preset=preset, seed=seed, sets=[f"trl.max_steps={steps}", "trl.save_strategy='no'"])
        loaded = models.load(config.model.name, dtype=config.model.dtype)
        task = tasks.build(config.task, chat=loaded.chat)
        trainer = IsentropeTrainer(
            model=loaded.model, reward_funcs=list(task.reward_funcs), args=trainer_arguments(config, Path(folder)),
            train_dataset=task.train, processing_class=loaded.tokenizer, control=[intervention], recorder=recorder,
            game=task.game,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return recorder.bites
