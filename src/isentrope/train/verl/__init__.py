"""The verl host: interventions inside verl's Ray workers, without a fork of verl.

    VERL_USE_EXTERNAL_MODULES=isentrope.train.verl python -m verl.trainer.main_ppo ... \\
        actor_rollout_ref.actor.policy_loss._target_=isentrope.train.verl.PolicyLossConfig \\
        actor_rollout_ref.actor.policy_loss.loss_mode=isentrope \\
        '+actor_rollout_ref.actor.policy_loss.chain=[clip-cov]'

verl imports this module in every process (the variable above, or the entry point `verl.plugins`, which installing isentrope declares). Loading it

- registers the policy loss `isentrope` and the advantage estimator `isentrope`,
- wraps `losses.ppo_loss` before `engine_workers` imports it, so that the entropy of every token reaches the policy loss,
- makes the actor of every rank a `ControlledWorker`, which surveys an update over all its micro-batches and ranks,
- prints one line. A process without that line runs plain verl.

It writes no trainer: rollouts, rewards, data order, optimiser, distribution, checkpoints and logging are verl's. With an empty chain loss and
gradients equal verl's own for every `loss_agg_mode`. What it does not carry it refuses by name (`isentrope.train.verl_carried.why_not`).
Tested with verl 0.9.1, its v1 trainer, strategies fsdp and fsdp2.
"""

import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any

from isentrope import __version__
from isentrope.train.verl_carried import check_parameters, check_version


def _install() -> None:
    """Everything that loading this module changes in verl. Once per process: a second import finds it in `sys.modules`."""
    check_version()
    from verl.workers.utils import losses

    from isentrope.train.verl.control import carrying, isentrope_loss

    losses.ppo_loss = carrying(losses.ppo_loss)  # first: engine_workers binds the name when it is imported
    check_parameters()
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from isentrope.train.verl.advantage import isentrope_advantage, with_fields
    from isentrope.train.verl.worker import ControlledWorker

    register_policy_loss("isentrope")(isentrope_loss)
    register_adv_est("isentrope")(isentrope_advantage)
    ActorRolloutRefWorker.actor_worker_cls = ControlledWorker
    with_fields()


try:
    _install()
    from verl.trainer.config import AlgoConfig as _AlgoConfig
    from verl.workers.config import PolicyLossConfig as _PolicyLossConfig
except Exception:  # verl only logs at DEBUG what goes wrong in an entry point: a run without its chain would look like one with it
    print(f"isentrope {__version__}: NOT loaded into verl (pid {os.getpid()}): {traceback.format_exc(limit=3)}", file=sys.stderr, flush=True)
    raise


@dataclass
class PolicyLossConfig(_PolicyLossConfig):
    """verl's `actor.policy_loss` with a chain; write it as `_target_`.

    chain: names and mappings with a name, as everywhere in isentrope. objective: verl's loss under the chain, by verl's name.
    seed: of the chain's random choices. correct_at: the score from which a response counts as correct.
    """

    _mutable_fields = _PolicyLossConfig._mutable_fields | {"control"}

    loss_mode: str = "isentrope"
    chain: list = field(default_factory=list)
    objective: str = "vanilla"
    seed: int = 0
    correct_at: float = 1.0
    control: Any = None  # filled by the worker


@dataclass
class AlgoConfig(_AlgoConfig):
    """verl's `algorithm` with a chain of reward and advantage stages, for `adv_estimator: isentrope`; write it as `_target_`."""

    chain: list = field(default_factory=list)
    correct_at: float = 1.0


print(f"isentrope {__version__} loaded into verl (pid {os.getpid()}): policy loss and advantage estimator 'isentrope'", flush=True)
