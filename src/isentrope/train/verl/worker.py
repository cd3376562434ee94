"""verl's training worker with a chain: the actor of every rank is one of these once `isentrope.train.verl` is loaded."""

import functools
from pathlib import Path
from typing import Any

import torch
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils import losses

from isentrope.errors import UserError
from isentrope.train.verl.control import Control, control_of
from isentrope.train.verl.logits import with_signals
from isentrope.train.verl_carried import LOSS, from_logits


class ControlledWorker(TrainingWorker):
    """verl's `TrainingWorker`; with the policy loss `isentrope` it surveys every update, moves the controllers and saves their state.

    With any other loss, and for critics and references, it is verl's.
    """

    control: Control | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_loss_fn(self, loss_fn):
        super().set_loss_fn(loss_fn)
        if self.control is not None:
            raise UserError("this worker has its chain already; verl sets a loss once.")
        self.control = _control_in(loss_fn)
        if self.control is not None:
            self.engine.train_batch = functools.partial(self.control.train_batch, self.engine.train_batch, self.engine)
            self.engine.optimizer_step = functools.partial(self.control.optimizer_step, self.engine.optimizer_step)
            current, old = (from_logits(self.control.chain, policy) for policy in ("current", "old"))
            if current or old:
                with_signals(self.engine, current, old)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"), blocking=False)
    def train_mini_batch(self, data):
        if self.control is not None:
            self.control.total = self._planned_updates(data)
        return super().train_mini_batch(data)

    def _planned_updates(self, data) -> int:
        """Optimiser steps of the whole run: those of this training step times verl's `optim.total_training_steps`; 1 where that is unknown."""
        steps = int(self.optimizer_config.total_training_steps or -1)
        cut = tu.get(data, key="num_mini_batch", default=None)
        size = tu.get(data, key="mini_batch_size", default=None)
        per_step = cut if size is None else data.shape[0] * self.engine.get_data_parallel_size() // size
        return max(1, steps * int(per_step) * int(tu.get(data, key="epochs", default=1)))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.control is not None:
            torch.save(self.control.saved(), Path(local_path) / state_name(self.rank))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        path = None if local_path is None else Path(local_path) / state_name(self.rank)
        content = None
        if self.control is not None and path is not None:
            if not path.is_file():
                raise UserError(f"{local_path} holds no {path.name}: it was not written under {LOSS}.loss_mode=isentrope, so the chain would start anew.")
            content = torch.load(path, weights_only=True)  # before verl may delete what it has loaded
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if self.control is not None and content is not None:
            self.control.load(content)


def state_name(rank: int) -> str:
    """The file of a checkpoint that holds the chain's state on this rank."""
    return f"isentrope_state_rank_{rank}.pt"


def _control_in(loss_fn: Any) -> Control | None:
    """The control of the actor configuration that a loss function is bound to; None for any other loss.

    Raises UserError for a wrapper of the policy loss that is not verl's `ppo_loss`.
    """
    config = loss_fn.keywords.get("config") if isinstance(loss_fn, functools.partial) else None
    settings = getattr(config, "policy_loss", None)
    if settings is None or settings.get("loss_mode") != "isentrope":
        return None
    if loss_fn.func is not losses.ppo_loss:
        name = getattr(loss_fn.func, "__name__", repr(loss_fn.func))
        raise UserError(f"verl binds the policy loss to {name}, and a chain is carried through ppo_loss only. Switch distillation off, or drop the chain.")
    return control_of(config)
