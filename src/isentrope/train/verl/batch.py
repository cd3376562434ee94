"""From verl's tensors to `Rollouts` and `Step`. verl keeps responses as nested tensors without padding; a loss sees them padded on the right."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict
from torch import Tensor
from verl.workers.utils.padding import no_padding_2_padding

from isentrope.control.step import Normaliser, Progress, Rollouts, Step
from isentrope.errors import UserError
from isentrope.train.verl.logits import CURRENT, OLD

ROW = "isentrope_row"
"""The field that numbers the rows of an update, put in before verl cuts it into micro-batches."""


@dataclass(frozen=True)
class Given:
    """What verl hands its actor loss of one micro-batch, before it selects and pads: outputs of the model and every field of the batch."""

    model_output: Mapping[str, Tensor]
    data: TensorDict


def step_of(
    given: Given,
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    advantages: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    normaliser: Normaliser,
    progress: Progress,
    correct_at: float,
) -> Step:
    """One micro-batch as the loss sees it. The padded tensors are those that verl's `ppo_loss` made; the rest is read from `given`.

    A row's score is the sum of `rm_scores` (or `token_level_scores`); it counts as correct from `correct_at` on. Turns are the runs of trained
    tokens of a response: what stands between two of them came from the environment.
    """
    data, rows = given.data, len(mask)
    scores = response_field(data, "rm_scores", mask)
    scores = response_field(data, "token_level_scores", mask) if scores is None else scores
    known: dict[str, Any] = {}
    if scores is not None:
        known["reward"] = scores.sum(-1)
        known["correct"] = (known["reward"] >= correct_at - 1e-6).float()
    if "uid" in data.keys():  # noqa: SIM118  # a TensorDict's `in` asks something else
        known["group"] = groups(data["uid"], mask.device)
    rollouts = Rollouts.of(
        mask,
        **known,
        row_id=data[ROW].to(mask.device) if ROW in data.keys() else torch.arange(rows, device=mask.device),  # noqa: SIM118
        completion_ids=_padded(data["responses"], mask.shape),
        completion_mask=_lengths(data)[:, None].to(mask.device) > torch.arange(mask.shape[1], device=mask.device),
        sampling_temperature=_temperature(data, mask),
        advantage=advantages,
        old_log_probs=old_log_probs,
        ref_log_probs=response_field(data, "ref_log_prob", mask),
        sampling_log_probs=response_field(data, "rollout_log_probs", mask),
        turn=turns(mask),
        signals=signals_of("old", old_log_probs, response_field(data, "entropy", mask)) | _own(OLD, "old", data, data),
    )
    entropy = given.model_output.get("entropy")
    signals = signals_of("current", log_probs.detach(), None if entropy is None else no_padding_2_padding(entropy, data))
    signals |= _own(CURRENT, "current", given.model_output, data)
    return Step(rollouts=rollouts, log_probs=log_probs, signals=signals, progress=progress, normaliser=normaliser)


def _own(prefix: str, policy: str, fields: Any, data: TensorDict) -> dict[str, Tensor]:
    """The signals that `logits` computed, cut to the response."""
    keys = [key for key in fields.keys() if isinstance(key, str) and key.startswith(prefix)]  # noqa: SIM118
    return {f"{policy}.{key.removeprefix(prefix)}": no_padding_2_padding(fields[key], data) for key in keys}


def signals_of(policy: str, log_probs: Tensor, entropy: Tensor | None) -> dict[str, Tensor]:
    """What follows from log p of the sampled token and H: p, S = p (ln p + H); the entropy keeps its gradient."""
    p = log_probs.exp()
    found = {f"{policy}.log_prob": log_probs, f"{policy}.p": p}
    if entropy is not None:
        found[f"{policy}.entropy"] = entropy.float()  # a fused head gives bfloat16
        found[f"{policy}.S"] = p * (log_probs + entropy.detach().float())
    return found


def turns(mask: Bool[Tensor, "response token"]) -> Int[Tensor, "response token"]:
    """The number, from 0, of the run of trained tokens that a position belongs to or follows.

    >>> turns(torch.tensor([[True, True, False, True]]))
    tensor([[0, 0, 0, 1]])
    """
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return (begins.long().cumsum(-1) - 1).clamp(min=0)


def groups(uids: Any, device: torch.device | str = "cpu") -> Int[Tensor, " response"]:
    """A number for every prompt, the same in every process: a hash of verl's `uid`."""
    values = uids.tolist() if hasattr(uids, "tolist") else list(uids)
    numbers = [int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=7).digest(), "big") for value in values]
    return torch.tensor(numbers, dtype=torch.long, device=device)


def response_field(data: TensorDict, name: str, mask: Tensor) -> Tensor | None:
    """[response, token] of a field that verl keeps per response token, padded with 0; None where the batch has none."""
    if name not in data.keys():  # noqa: SIM118
        return None
    return _padded(data[name], mask.shape).to(mask.device)


def _padded(value: Tensor, shape: Sequence[int]) -> Tensor:
    value = torch.nested.to_padded_tensor(value, 0, output_size=tuple(shape)) if value.is_nested else value
    if tuple(value.shape) != tuple(shape):
        raise UserError(f"verl handed a field of shape {tuple(value.shape)} beside response tokens of shape {tuple(shape)}; it must be one number per token.")
    return value


def _lengths(data: TensorDict) -> Tensor:
    """Tokens of every response, environment text included."""
    if data["responses"].is_nested:
        return data["responses"].offsets().diff()
    return data["attention_mask"][:, data["prompts"].shape[1] :].sum(-1)


def _temperature(data: TensorDict, mask: Tensor) -> Tensor:
    given = data["temperature"] if "temperature" in data.keys() else 1.0  # noqa: SIM118
    one = torch.as_tensor(given, dtype=torch.float32, device=mask.device)
    return (one[:, None] if one.ndim else one).expand(mask.shape).clone()


def normaliser_of(info: Mapping[str, Any], mode: str) -> Normaliser:
    """verl's divisors: tokens and rows of the global mini-batch over its data-parallel ranks, whose gradients are averaged afterwards."""
    ranks, tokens = int(info["dp_size"]), info["batch_num_tokens"]
    if mode == "token-sum":  # the sum over all ranks: `policy_loss` leaves it undivided and the caller multiplies by their number
        ranks = 1
    return Normaliser(
        token_divisor=None if tokens is None else tokens / ranks,
        rows=info["global_batch_size"],
        world_size=ranks,
        horizon=info["loss_scale_factor"],
    )


def moved(value: Any, device: torch.device | str) -> Any:
    """A `Step` or what it holds with every tensor on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: moved(getattr(value, item.name), device) for item in dataclasses.fields(value)})
    return value
