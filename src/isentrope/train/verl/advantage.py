"""verl's advantage estimator `isentrope`: GRPO's advantage with the reward and advantage stages of a chain, on the whole batch of a training step.

    algorithm._target_=isentrope.train.verl.AlgoConfig algorithm.adv_estimator=isentrope '+algorithm.chain=[position-shaping]'

verl hands an estimator rewards, mask and prompt ids. What else a stage reads (responses, old log-probs, the old policy's entropy) is fetched from
verl's TransferQueue by `with_fields`, around the v1 trainer's `_compute_advantage`; verl's own tensors are not touched.
"""

import contextvars
import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from isentrope.control.stages import Advantage, Chain, Reward, advance
from isentrope.control.step import Progress, Rollouts, State
from isentrope.errors import UserError
from isentrope.train.verl.batch import groups, response_field, signals_of, turns
from isentrope.train.verl_carried import ALGORITHM, built, refuse_links


@dataclass(frozen=True)
class Fetched:
    """What the trainer knows beside verl's arguments: fields of the batch, optimiser steps made and planned, the longest response it samples."""

    data: TensorDict
    updates: int = 0
    planned: int = 1
    limit: int | None = None
    text: tuple[str, ...] | None = None


_FETCHED: contextvars.ContextVar[Fetched | None] = contextvars.ContextVar("isentrope_fetched", default=None)


def isentrope_advantage(token_level_rewards: Tensor, response_mask: Tensor, config: Any = None, index: Any = None, **_: Any) -> tuple[Tensor, Tensor]:
    """(advantages, returns), both [response, token] and 0 outside the mask. With an empty chain verl's GRPO advantage, bit for bit.

    Raises UserError for a link that cannot run here, or one that reads what the batch does not carry.
    """
    chain, mask = _chain(config), response_mask.bool()
    fetched = _FETCHED.get()
    scale = bool(config.get("norm_adv_by_std_in_grpo", True))
    base, _ = compute_grpo_outcome_advantage(token_level_rewards, response_mask, index=index, norm_adv_by_std_in_grpo=scale)
    if not chain.links:
        return base, base
    rollouts = _rollouts(token_level_rewards, mask, index, fetched, float(config.get("correct_at", 1.0)))
    state = _state(chain, fetched)
    _check_needs(chain, rollouts)
    for at, link in chain.having(Reward):
        assert isinstance(link, Reward)
        rollouts = replace(rollouts, reward=link.reward(rollouts, state[at]))
    if chain.having(Reward):
        shaped = torch.zeros_like(token_level_rewards)
        shaped[:, 0] = rollouts.reward  # verl takes the sum of a row
        base, _ = compute_grpo_outcome_advantage(shaped, response_mask, index=index, norm_adv_by_std_in_grpo=scale)
    rollouts = replace(rollouts, advantage=_per_response(base, mask))
    for at, link in chain.having(Advantage):
        assert isinstance(link, Advantage)
        rollouts = replace(rollouts, advantage=link.advantage(rollouts, state[at]))
    advantage = rollouts.token_advantage()
    return advantage, advantage


@functools.lru_cache(maxsize=8)
def _built(text: str) -> Chain:
    chain = built(json.loads(text), ALGORITHM)
    refuse_links(chain, ALGORITHM)
    return chain


def _chain(config: Any) -> Chain:
    """The chain of the configuration; built once."""
    given = None if config is None else config.get("chain", None)
    if given is None:
        raise UserError(
            f"{ALGORITHM}.adv_estimator=isentrope needs a chain. Add {ALGORITHM}._target_=isentrope.train.verl.AlgoConfig and "
            f"+{ALGORITHM}.chain=[position-shaping]; [] is verl's GRPO."
        )
    return _built(json.dumps(OmegaConf.to_container(given) if OmegaConf.is_config(given) else list(given)))


def _rollouts(rewards: Tensor, mask: Tensor, index: Any, fetched: Fetched | None, correct_at: float) -> Rollouts:
    reward = rewards.sum(-1)
    known: dict[str, Any] = {"reward": reward, "correct": (reward >= correct_at - 1e-6).float(), "turn": turns(mask)}
    if index is not None:
        known["group"] = groups(index, mask.device)
    if fetched is None:
        return Rollouts.of(mask, **known)
    data = fetched.data
    old = response_field(data, "old_log_probs", mask)
    responses = response_field(data, "responses", mask)
    if responses is not None:
        lengths = data["responses"].offsets().diff().to(mask.device) if data["responses"].is_nested else mask.sum(-1)
        known["completion_ids"] = responses
        known["completion_mask"] = lengths[:, None] > torch.arange(mask.shape[1], device=mask.device)
        if fetched.limit is not None:
            known["truncated"] = lengths >= fetched.limit
    if old is not None:
        known["old_log_probs"] = old
        known["signals"] = signals_of("old", old, response_field(data, "entropy", mask))
    return Rollouts.of(mask, **known, sampling_log_probs=response_field(data, "rollout_log_probs", mask), text=fetched.text)


def _per_response(advantage: Tensor, mask: Tensor) -> Tensor:
    """[response, 1]: verl's estimator writes one number per response on every token of it."""
    first = mask.long().argmax(-1, keepdim=True)
    return torch.where(mask.any(-1, keepdim=True), advantage.gather(1, first), 0.0)


def _check_needs(chain: Chain, rollouts: Rollouts) -> None:
    for need in chain.needs:
        if need.key not in rollouts.signals:
            raise UserError(
                f"{ALGORITHM}.chain: {', '.join(chain.keys)} needs {need.key}, which verl's trainer did not hand on. The v1 trainer does "
                "(trainer.use_v1=True) unless algorithm.rollout_correction.bypass_mode is on, which skips the pass that computes it."
            )


_REPLAYED: dict[int, tuple[int, tuple[State, ...]]] = {}


def _state(chain: Chain, fetched: Fetched | None) -> tuple[State, ...]:
    """The links' states after the updates made so far. They follow from that number alone, so nothing has to be saved with a checkpoint.

    Raises UserError where a link has a state and the trainer does not say how many updates were made.
    """
    if not any(state for state in chain.init()):
        return chain.init()
    if fetched is None:
        raise UserError(f"{ALGORITHM}.chain: {', '.join(chain.keys)} counts optimiser steps, which only verl's v1 trainer tells. Use trainer.use_v1=True.")
    done, state = _REPLAYED.get(id(chain), (0, chain.init()))
    if done > fetched.updates:
        done, state = 0, chain.init()
    for step in range(done, fetched.updates):
        state = advance(chain, state, None, Progress(step, max(fetched.planned, 1)))
    _REPLAYED[id(chain)] = (fetched.updates, state)
    return state


# --- around verl's trainer


def with_fields() -> None:
    """Wraps the v1 trainer's `_compute_advantage`, so that the estimator finds what its stages read. Without TransferQueue there is no v1 trainer."""
    if importlib.util.find_spec("transfer_queue") is None:
        return
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    original = PPOTrainer._compute_advantage

    @functools.wraps(original)
    def wrapped(self, batch, metrics):
        algorithm = self.config.algorithm
        if algorithm.adv_estimator != "isentrope" or not _chain(algorithm).links:
            return original(self, batch, metrics)
        token = _FETCHED.set(_fetch(self, batch))
        try:
            return original(self, batch, metrics)
        finally:
            _FETCHED.reset(token)

    PPOTrainer._compute_advantage = wrapped


def _fetch(trainer: Any, batch: Any) -> Fetched:
    import transfer_queue as tq

    fields = ["responses", "old_log_probs", "rollout_log_probs", "entropy"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    actor, rollout = trainer.config.actor_rollout_ref.actor, trainer.config.actor_rollout_ref.rollout
    per_step = max(1, len(batch) // (actor.ppo_mini_batch_size * rollout.n)) * actor.ppo_epochs
    text = None
    if "responses" in data.keys():  # noqa: SIM118
        text = tuple(trainer.tokenizer.batch_decode([row.tolist() for row in data["responses"].unbind()], skip_special_tokens=True))
    steps: Mapping[str, int] = {"updates": (trainer.global_steps - 1) * per_step, "planned": trainer.total_training_steps * per_step}
    return Fetched(data, **steps, limit=int(trainer.config.data.max_response_length), text=text)
