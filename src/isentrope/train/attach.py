"""One line into somebody's own TRL script: a trainer that stands gains a chain of interventions, and a tape if asked.

    trainer = GRPOTrainer(model, reward_funcs=mine, args=..., train_dataset=..., peft_config=...)   # as it was
    isentrope.attach(trainer, ["clip-cov", {"name": "siren", "beta": 0.01}], tape="runs/mine")
    trainer.train()                                                                                # as it was

The object stays the same one; its class becomes a child of `IsentropeTrainer` and of its own class, so that what a subclass adds still
runs. What a subclass replaces of the parts that carry our stages is refused by name. A `compute_loss` that adds to what it is given goes on;
one that computes a loss of its own is found out at its first call.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from isentrope.control.objectives import Objective
from isentrope.control.stages import Chain, Intervention
from isentrope.errors import UserError
from isentrope.tape import Tape, TapeWriter, write_json_atomic
from isentrope.train.carried import built, check_host, refuse_options
from isentrope.train.recorder import TapeRecorder, provenance
from isentrope.train.run import MARK, described, fresh_directory, summarise
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.turns import refuse_loops

Any_GRPOTrainer = TypeVar("Any_GRPOTrainer", bound=GRPOTrainer)

REPLACED = ("_compute_loss", "_get_per_token_logps_and_entropies", "_prepare_inputs", "_generate_and_score_completions")
"""What our stages run in: a subclass with its own version of one of these computes another loss than the one that we would."""


def attach(
    trainer: Any_GRPOTrainer,
    control: Chain | Sequence[str | Mapping[str, Any] | Intervention] = (),
    *,
    objective: Objective | None = None,
    tape: str | Path | None = None,
    tokens_every: int | None = 5,
    correct_at: float = 1.0,
) -> Any_GRPOTrainer:
    """Gives a GRPOTrainer that has not begun to train a chain of interventions; returns the same object.

    control: as in `IsentropeTrainer`. objective: what the trainer's own options say, by default. tape: a new directory for everything
    that is measured (`isentrope report DIR` makes its page; a resumed training may name the one it began). tokens_every: updates
    between two samples of tokens on the tape. correct_at: a response counts as correct when the first reward function gives at least this.

    Raises UserError for a trainer that is no GRPOTrainer, is training, carries a chain already or computes its loss in its own way; for
    options that the host does not carry (docs/trl.md); and for a directory that is not empty and holds no tape of an attached trainer. The
    trainer is then as it was.
    """
    check_host()
    _check(trainer)
    chain = control if isinstance(control, Chain) else built(control)
    refuse_options(trainer.args, chain)
    refuse_loops(chain, {"tools": trainer.tools, "rollout_func": trainer.rollout_func, "environment_factory": trainer.environment_factories})
    notes = None if tape is None else _Tape(Path(tape), trainer, tokens_every)
    stock = type(trainer)
    ours = IsentropeTrainer if _where(stock, "compute_loss") is None else _Through
    trainer.__class__ = type(f"Isentrope{stock.__name__}", (ours, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})
    assert isinstance(trainer, IsentropeTrainer)
    try:
        trainer.take(chain, objective=objective, recorder=None if notes is None else notes.recorder, correct_at=correct_at)
    except BaseException:
        trainer.__class__ = stock
        raise
    trainer._buffered_inputs = None  # a trainer that has trained before holds rollouts without our columns; it generates again
    if notes is not None:
        trainer.add_callback(notes)
    return trainer


def _check(trainer: Any) -> None:
    if isinstance(trainer, IsentropeTrainer):
        raise UserError(f"attach: {type(trainer).__name__} carries a chain already ({', '.join(trainer.chain.keys) or 'empty'}). Give all links in one call.")
    if not isinstance(trainer, GRPOTrainer):
        own = f"For measuring alone, EntropyCallback joins any transformers Trainer. Got {type(trainer).__name__}."
        kind = own if isinstance(trainer, Trainer) else f"Got {type(trainer).__name__}."
        raise UserError(f"attach: interventions act inside trl.GRPOTrainer and its subclasses. {kind}")
    if trainer.is_in_train:
        raise UserError("attach: this trainer is training. Attach before trainer.train().")
    for name in REPLACED:
        if (where := _where(type(trainer), name)) is not None:
            raise UserError(
                f"attach: {where.__module__}.{where.__name__} has its own {name}, which would no longer run: the stages of a chain live there. "
                f"Take that method out, or write what it does as an intervention (docs/interventions.md)."
            )


def _where(trainer: type, name: str) -> type | None:
    """The subclass of GRPOTrainer that has its own version of this method; None where it is TRL's."""
    where = next(kind for kind in trainer.__mro__ if name in vars(kind))
    return None if issubclass(GRPOTrainer, where) else where


class _Through(IsentropeTrainer):
    """In front of somebody's own `compute_loss`: sees that it passes through ours, where the stages of the chain are."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self._passed = False
        loss = super().compute_loss(*args, **kwargs)
        if not self._passed:
            raise UserError(
                f"attach: {type(self).__name__.removeprefix('Isentrope')}.compute_loss computes a loss of its own, in which no stage of a chain runs. "
                "Let it call super().compute_loss(...) and add to that, or write what it does as an intervention (docs/interventions.md)."
            )
        return loss

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._passed = True
        return super()._compute_loss(model, inputs)


class _Tape(TrainerCallback):
    """The tape of an attached trainer: what it is at the start, its rows at every save and at the end."""

    def __init__(self, directory: Path, trainer: GRPOTrainer, tokens_every: int | None):
        self.directory, self.trainer = directory, trainer
        self._claim()
        self.writer = TapeWriter(directory / "tape")
        decode = trainer.processing_class.decode
        self.recorder = TapeRecorder(self.writer, tokens_every=tokens_every, decode=lambda token: decode([token]), warn=self.warn)

    def _claim(self) -> None:
        """An empty directory, or the one of an attached trainer: resuming goes on with its tape."""
        with suppress(OSError, ValueError):
            if json.loads((self.directory / MARK).read_text(encoding="utf-8")).get("attached"):
                return
        fresh_directory(self.directory)

    def warn(self, kind: str, message: str, level: str = "warning") -> None:
        self.writer.append("events", [{"step": self.trainer.state.global_step, "level": level, "kind": kind, "message": message}])

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if state.global_step == 0 and any((self.directory / "tape" / "steps").glob("*.parquet")):
            raise UserError(
                f"attach: {self.directory} holds the tape of an earlier training, and this one begins at update 0. Choose another tape, or resume: "
                f"trainer.train(resume_from_checkpoint=True)."
            )
        self.writer.truncate_after(state.global_step)  # rows after the checkpoint that is resumed are written again
        write_json_atomic(self.directory / MARK, self._record())

    def on_save(self, args, state, control, **kwargs):
        self.writer.flush(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.writer.flush(state.global_step)
        if state.is_world_process_zero:
            write_json_atomic(self.directory / "summary.json", summarise(Tape.read(self.directory), {}))

    def _record(self) -> dict[str, Any]:
        trainer = self.trainer
        assert isinstance(trainer, IsentropeTrainer)
        weights = next(trainer.accelerator.unwrap_model(trainer.model).parameters())
        dtype = "bfloat16" if trainer.args.bf16 else str(weights.dtype).removeprefix("torch.")
        data = type(trainer.train_dataset).__name__
        return described(trainer) | {
            "attached": True,
            "seed": trainer.args.seed,
            "model": getattr(trainer.model.config, "_name_or_path", "") or type(trainer.model).__name__,
            "task": {"name": "own", "data": data, "rewards": list(trainer.reward_func_names)},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "provenance": {key: value.to_dict() for key, value in provenance(trainer.args.temperature, dtype, trainer.own_head).items()},
        }
