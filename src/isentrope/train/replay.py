"""The buffers of links that replay (`control.stages.Replay`): responses with their prompts, the log-probs of the policy that sampled them, and their age.

Every rank holds the same buffer. It is saved with the host's state, so a resumed run replays what the other would have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from isentrope.control.step import ORIGINS, Rollouts, concatenate

_REPLAY = ORIGINS.index("replay")


@dataclass(frozen=True)
class Sampled:
    """Responses beside the batch, gathered over ranks: what is known of them, and their prompts [response, position], left-padded."""

    rollouts: Rollouts
    prompt_ids: Tensor
    prompt_mask: Tensor


class ReplayBuffer:
    """At most `capacity` responses, none older than `max_age` updates; the oldest give way."""

    def __init__(self, capacity: int, max_age: int):
        self.capacity, self.max_age = capacity, max_age
        self._held: Sampled | None = None
        self._born = torch.zeros(0, dtype=torch.long)  # updates made when the response was sampled

    def __len__(self) -> int:
        return len(self._born)

    def offered(self, step: int) -> Sampled | None:
        """What is young enough at update `step`, as rows of origin "replay" with their age; None where nothing is. The rest is forgotten."""
        self._keep((step - self._born <= self.max_age).nonzero().squeeze(1))
        if self._held is None:
            return None
        rollouts, device = self._held.rollouts, self._held.rollouts.row_id.device
        age = (step - self._born).to(device)
        return replace(self._held, rollouts=replace(rollouts, age=age, origin=torch.full_like(rollouts.origin, _REPLAY)))

    def add(self, sampled: Sampled, step: int) -> None:
        """Responses that were sampled at update `step`. Signals and references are of their generation and not kept."""
        if len(sampled.rollouts) == 0:
            return
        advantage = _per_response(sampled.rollouts)
        fresh = replace(sampled, rollouts=replace(sampled.rollouts, signals={}, answer=None, ref_log_probs=None, advantage=advantage))
        self._held = fresh if self._held is None else joined([self._held, fresh])
        self._born = torch.cat([self._born, torch.full((len(sampled.rollouts),), step)])
        self._keep(torch.arange(max(0, len(self) - self.capacity), len(self)))

    def clear(self) -> None:
        self._held, self._born = None, torch.zeros(0, dtype=torch.long)

    def _keep(self, rows: Tensor) -> None:
        if self._held is None or len(rows) == len(self):
            return
        if len(rows) == 0:
            self.clear()
            return
        self._born, at = self._born[rows], rows.to(self._held.rollouts.row_id.device)
        self._held = Sampled(self._held.rollouts.take(at), self._held.prompt_ids[at], self._held.prompt_mask[at])

    def state(self) -> dict[str, Any]:
        if self._held is None:
            return {"born": self._born, "held": None}
        held = {"prompt_ids": self._held.prompt_ids, "prompt_mask": self._held.prompt_mask}
        return {"born": self._born, "held": held | {"rollouts": {item.name: self._held.rollouts.__dict__[item.name] for item in fields(Rollouts)}}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        held = state["held"]
        self._born = state["born"].cpu()
        self._held = None if held is None else Sampled(Rollouts(**held["rollouts"]), held["prompt_ids"], held["prompt_mask"])


def joined(parts: list[Sampled]) -> Sampled:
    """All rows in order, prompts padded on the left to the longest, text on the right."""
    width = max(part.prompt_ids.shape[1] for part in parts)
    return Sampled(
        concatenate([part.rollouts for part in parts]),
        torch.cat([_left(part.prompt_ids, width, 0) for part in parts]),
        torch.cat([_left(part.prompt_mask.to(torch.long), width, 0) for part in parts]),
    )


def _per_response(rollouts: Rollouts) -> Tensor:
    """[response, 1]; where the advantage differs by token, its mean over the trained ones."""
    if rollouts.advantage.shape[1] == 1:
        return rollouts.advantage
    total = torch.where(rollouts.trained_mask, rollouts.advantage, 0.0).sum(-1, keepdim=True)
    return total / rollouts.lengths.clamp(min=1)[:, None]


def _left(value: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(value, (width - value.shape[1], 0), value=fill)
