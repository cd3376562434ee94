"""What the tape holds of turns: entropy, advantage and weight by turn for every update, and what was said in the sampled episodes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.step import Rollouts, Step
from isentrope.provenance import Provenance
from isentrope.train.turns import Episode

MOST = 64
"""Turns that have columns of their own."""
FIGURES = ("entropy", "advantage", "weight", "pressure")
"""Token means of a turn: nats; the advantage; the product of the chain's weights; the size of advantage times weight."""


def turn_counts(rollouts: Rollouts) -> Tensor:
    """[response] turns that the policy has in each."""
    if rollouts.turn is None:
        return torch.zeros(len(rollouts), dtype=torch.long, device=rollouts.trained_mask.device)
    return torch.where(rollouts.trained_mask, rollouts.turn + 1, 0).amax(-1)


def turn_sums(step: Step, entropy: Float[Tensor, "response token"], weight: Float[Tensor, "response token"], turns: int) -> dict[str, float]:
    """Sums over the trained tokens of each of the first `turns` turns, under `turn-TT/NAME`, with their number of tokens and of responses."""
    turn, mask = step.rollouts.turn, step.mask
    if turn is None:
        return {}
    advantage = step.advantage.expand(mask.shape)
    values = {"entropy": entropy, "advantage": advantage, "weight": weight, "pressure": (advantage * weight).abs()}
    found: dict[str, float] = {}
    for number in range(min(turns, MOST)):
        here = mask & (turn == number)
        found[f"{column(number)}/tokens"] = float(here.sum())
        found[f"{column(number)}/responses"] = float(here.any(-1).sum())
        for name in FIGURES:
            found[f"{column(number)}/{name}"] = float(values[name].detach()[here].double().sum())
    return found


def turn_means(sums: Mapping[str, float]) -> dict[str, float]:
    """The columns of `steps`: token means where `turn_sums` has sums; a turn that nobody reached has none."""
    found = {}
    for key, value in sums.items():
        turn, _, name = key.partition("/")
        tokens = sums.get(f"{turn}/tokens", 0.0)
        if turn.startswith("turn-") and tokens:
            found[key] = value / tokens if name in FIGURES else value
    return found


def turn_rows(rollouts: Rollouts, row: int, episodes: Sequence[Episode], decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """The turns of one response for the table `turns`: what was done, what the environment said, and how the episode ended.

    A response that is not this generation's own episode is read off its tokens; its last reply is then unknown.
    """
    if rollouts.turn is None:
        return []
    text, wrote, turn = rollouts.completion_mask[row], rollouts.trained_mask[row], rollouts.turn[row]
    own = episodes[row] if row < len(episodes) and rollouts.completion_ids[row][text].tolist() == episodes[row].ids else None
    advantage = rollouts.token_advantage()[row]
    rows = []
    for number in range(len(own.actions) if own is not None else int(turn[text].max()) + 1):
        here = text & (turn == number)
        said = here & wrote
        count = int(said.sum())
        rows.append({
            "turn": number,
            "action": own.actions[number] if own is not None else decode(rollouts.completion_ids[row][said].tolist()),
            "reply": own.replies[number] if own is not None else decode(rollouts.completion_ids[row][here & ~wrote].tolist()),
            "tokens": count,
            "advantage": float(advantage[said].sum()) / max(count, 1),
            "ending": None if own is None else own.fault or own.ending,
        })  # fmt: skip
    return rows


def turn_provenance(turns: int, temperature: float, dtype: str) -> dict[str, Provenance]:
    """Provenance of the entropy columns of `turn_means`."""
    mean = Provenance(
        estimator="exact", temperature=float(temperature), truncation=None, policy="current", mask="trained", aggregation="token-mean-by-turn",
        unit="nats", dtype=dtype,
    )  # fmt: skip
    return {f"steps.{column(turn)}/entropy": mean for turn in range(min(turns, MOST))}


def column(turn: int) -> str:
    """The name of a turn in the tape: `turn-00`, `turn-01`, ..."""
    return f"turn-{turn:02d}"
