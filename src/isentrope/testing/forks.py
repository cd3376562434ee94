"""The stage `fork` in the small world: a response is a talk of actions of three tokens, and some go on from others after one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from isentrope.control.forks import Standing, refuse_counts
from isentrope.control.stages import ExtraRequest, Fork
from isentrope.control.step import ORIGINS, Need, RowRng, State

if TYPE_CHECKING:
    from isentrope.testing.world import World

ACTION = 3
"""Tokens of an action."""


@dataclass(frozen=True)
class Forked:
    """By group: how many begin at the prompt, and what the link said at every reply."""

    roots: tuple[int, ...]
    counts: tuple[tuple[tuple[int, ...], ...], ...]
    rows: Bool[Tensor, " response"]  # which are copies


def forked(scene: "World", link: Fork, state: State, rng: RowRng) -> tuple["World", Forked]:
    """`scene` with its groups made up as `link` says, each in the order of its row ids; a copy goes on with its own tokens."""
    order = torch.argsort(scene.rollouts.row_id)
    roots, counts = [], []
    copies = torch.zeros_like(scene.rollouts.truncated)
    for value in torch.unique(scene.rollouts.group):
        rows = order[scene.rollouts.group[order] == value].tolist()
        pilot = _standing(scene.extra(ExtraRequest(value[None], 1, 1.0)), link, [0])[0] if link.pilot() else None
        filled = rows[: link.roots(len(rows), pilot, state)]
        roots.append(len(filled))
        begun, made = len(filled), 0
        counts.append(())
        for reply in range(ACTION, scene.old.shape[1], ACTION):
            going = [row for row in filled if bool(scene.rollouts.completion_mask[row, reply])]
            free = len(rows) - begun - made
            if not going or not free:
                continue
            standing = _standing(scene, link, going, reply)
            asked = [int(count) for count in link.forks(standing, free, made, state, rng.child(0))]
            refuse_counts("the link", asked, standing, free)
            counts[-1] = (*counts[-1], tuple(asked))
            for parent, count in zip(going, asked, strict=True):
                for _ in range(count):
                    row = rows[begun + made]
                    scene = _copied(scene, row, parent, reply, link.shared)
                    copies[row], made = True, made + 1
                    filled = [*filled, row]
    return scene, Forked(tuple(roots), tuple(counts), copies)


def _standing(scene: "World", link: Fork, rows: Sequence[int], reply: int | None = None) -> list[Standing]:
    """These rows up to a reply (None: to their end)."""
    (need,) = (need for need in link.needs if need.policy == "draft")  # type: ignore[attr-defined]
    found = scene.scored([Need(need.signal, policy="old")]).rollouts
    values, mask, width = found.signals[f"old.{need.signal.key}"], found.trained_mask, scene.old.shape[1]
    out = []
    for row in rows:
        ends = [end for end in range(ACTION, width + ACTION, ACTION) if end <= (width + ACTION if reply is None else reply)]
        turns = tuple(values[row, end - ACTION : end][mask[row, end - ACTION : end]].double() for end in ends if reply or bool(mask[row, end - ACTION]))
        out.append(Standing(int(found.row_id[row]), turns or (values.new_zeros(0).double(),), float(torch.tensor(scene.old.shape[2]).log())))
    return out


def _copied(scene: "World", row: int, parent: int, reply: int, shared: str) -> "World":
    rollouts, kept = scene.rollouts, torch.arange(scene.old.shape[1]) < reply
    fresh = torch.arange(scene.old.shape[1]) == reply

    def joined(value: Tensor) -> Tensor:
        out = value.clone()
        out[row] = torch.where(kept[:, None] if value.ndim == 3 else kept, value[parent], value[row])
        return out

    text, trained, origin = rollouts.completion_mask.clone(), rollouts.trained_mask.clone(), rollouts.origin.clone()
    text[row] = kept | fresh | text[row]
    trained[row] = torch.where(kept, trained[parent] & (shared == "all"), fresh | trained[row])
    origin[row] = ORIGINS.index("branch")
    rollouts = replace(rollouts, completion_ids=joined(rollouts.completion_ids), completion_mask=text, trained_mask=trained, origin=origin)
    return replace(scene, rollouts=rollouts, logits=joined(scene.logits), old=joined(scene.old), ref=joined(scene.ref))

