"""Between TRL's dictionaries and ours: packing `Rollouts` into a generation batch that TRL shuffles and slices, and gathering over ranks.

TRL keeps any tensor whose first dimension is rows when it shuffles and splits a generation batch, so what is ours rides along
under keys that begin with "isentrope/".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from isentrope.control.step import Rollouts, Step, pad_width

OURS = "isentrope/"
SIGNAL = OURS + "signal/"
_ROW_FIELDS = (
    "row_id", "group", "origin", "age", "reward", "correct", "truncated", "sampling_temperature", "reward_parts", "turn", "segment",
)  # fmt: skip


def loss_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    """[response, token] bool: tokens in the loss. Rows that a stage dropped are out of it."""
    mask = inputs["completion_mask"].bool()
    if OURS + "trained" in inputs:
        mask = mask & inputs[OURS + "trained"]
    return mask


def pack(rollouts: Rollouts, inputs: dict) -> dict:
    """TRL's generation batch with our fields added."""
    packed = dict(inputs)
    for name in _ROW_FIELDS:
        value = rollouts.__dict__[name]
        if value is not None:
            packed[OURS + name] = value
    if not torch.equal(rollouts.trained_mask, inputs["completion_mask"].bool()):
        packed[OURS + "trained"] = rollouts.trained_mask
    for key, value in rollouts.signals.items():
        packed[SIGNAL + key] = value
    return packed


def unpack(inputs: Mapping[str, Tensor], age: int) -> Rollouts:
    """The rollouts of one slice as the loss sees them. `age`: updates made since they were sampled."""
    known = {name: inputs[OURS + name] for name in _ROW_FIELDS if OURS + name in inputs}
    known["age"] = torch.full_like(known["row_id"], age) + known["age"]
    advantages = inputs["advantages"]
    completion_mask = inputs["completion_mask"].bool()
    return Rollouts.of(
        loss_mask(inputs),
        **known,
        completion_ids=inputs["completion_ids"],
        completion_mask=completion_mask,
        advantage=advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
        old_log_probs=inputs.get("old_per_token_logps"),
        ref_log_probs=inputs.get("ref_per_token_logps"),
        sampling_log_probs=inputs.get("sampling_per_token_logps"),
        signals={key.removeprefix(SIGNAL): value for key, value in inputs.items() if key.startswith(SIGNAL)},
    )


def gather_rollouts(accelerator: Accelerator, rollouts: Rollouts) -> Rollouts:
    """All ranks' rows in rank order, on every rank, padded to the longest; one process: the same object."""
    if accelerator.num_processes == 1:
        return rollouts
    local = rollouts.trained_mask.shape[1]
    width = _common_width(accelerator, local)
    per_token = _common_width(accelerator, rollouts.advantage.shape[1]) > 1
    if per_token:
        rollouts = replace(rollouts, advantage=rollouts.advantage.expand(-1, local))
    whole = {"reward_parts"} if per_token else {"reward_parts", "advantage"}  # second axis is not the token axis
    gathered: dict = {}
    for name, value in rollouts.__dict__.items():
        if isinstance(value, Tensor):
            gathered[name] = _gather(accelerator, value, None if name in whole else width)
        elif isinstance(value, tuple):
            gathered[name] = tuple(gather_object(list(value)))
        elif isinstance(value, Mapping):
            gathered[name] = {key: _gather(accelerator, tensor, width) for key, tensor in sorted(value.items())}
    return replace(rollouts, **gathered)


def cut_width(rollouts: Rollouts, width: int) -> Rollouts:
    """The first `width` tokens of every row; what is one value per row stays."""
    whole = {"reward_parts"} if rollouts.advantage.shape[1] > 1 else {"reward_parts", "advantage"}  # second axis is not the token axis
    cut = {name: value[:, :width] for name, value in rollouts.__dict__.items() if isinstance(value, Tensor) and value.ndim > 1 and name not in whole}
    return replace(rollouts, **cut, signals={key: value[:, :width] for key, value in rollouts.signals.items()})


def gather_step(accelerator: Accelerator, step: Step) -> Step:
    """The view of an update over all ranks; one process: the same object."""
    if accelerator.num_processes == 1:
        return step
    width = _common_width(accelerator, step.mask.shape[1])
    return replace(
        step,
        rollouts=gather_rollouts(accelerator, replace(step.rollouts, text=None, answer=None)),
        log_probs=_gather(accelerator, step.log_probs, width),
        signals={key: _gather(accelerator, value, width) for key, value in sorted(step.signals.items())},
    )


def is_correct(parts: Tensor, correct_at: float = 1.0) -> Tensor:
    """[response] 1.0 where the first reward function gave at least `correct_at`, NaN where it gave none."""
    first = parts[:, 0]
    return torch.where(torch.isnan(first), torch.nan, (first >= correct_at - 1e-6).float())


def as_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt or completion as text: messages are joined as `role: content` lines."""
    if isinstance(value, str):
        return value
    if len(value) == 1 and value[0].get("role") == "assistant":
        return str(value[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)


def _common_width(accelerator: Accelerator, width: int) -> int:
    return int(accelerator.gather(torch.tensor([width], device=accelerator.device)).max())


def _gather(accelerator: Accelerator, value: Tensor, width: int | None) -> Tensor:
    if value.ndim > 1 and width is not None:
        value = pad_width(value, width)
    if value.dtype == torch.bool:
        return accelerator.gather(value.to(torch.uint8).contiguous()).bool()
    return accelerator.gather(value.contiguous())
