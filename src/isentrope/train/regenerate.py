"""The stage `regenerate` inside TRL's generation: some responses of every group, one pass that scores them, their cuts, and the rest from there.

TRL asks once for all responses of a generation batch. Here that is two calls of its own generation. What a branch takes over stays in its row, so that
rewards, lengths and truncation see the whole response, and is told to TRL as text that the policy did not write (`tool_mask`): TRL's own way of leaving
tokens out of the loss and out of `num_items_in_batch`, on which every loss type divides. A row is never longer than `trl.max_completion_length`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor
from trl import GRPOTrainer

from isentrope.control.cuts import Branches, Drafts, contexts
from isentrope.control.stages import Regenerate
from isentrope.control.step import ORIGINS, Rollouts
from isentrope.errors import UserError
from isentrope.train.rollout import generating, padded, policy_signals

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

_BRANCH = ORIGINS.index("branch")
COUNTS = ("first_tokens", "second_tokens", "scored_tokens", "kept_tokens")
NEAR = 4  # tokens from a cut on, whose entropy is told beside that of the first of them


@dataclass(frozen=True)
class Responses:
    """Token ids of every row; how many of them it took over (None: nothing was cut); what is told of it, over all ranks (see `_figures`)."""

    ids: list[list[int]]
    kept: list[int] | None = None
    figures: Mapping[str, float] = field(default_factory=lambda: {"share": 0.0})

    def own(self, mask: Bool[Tensor, "response token"]) -> Bool[Tensor, "response token"]:
        """The counted tokens that a row did not take over."""
        if self.kept is None:
            return mask
        return mask & (torch.arange(mask.shape[1], device=mask.device) >= torch.tensor(self.kept, device=mask.device)[:, None])


class Regeneration:
    """Runs the link `index` of a trainer's chain. `last`: the local rows of the last generation batch."""

    def __init__(self, trainer: "IsentropeTrainer", index: int, link: Regenerate):
        self.trainer, self.index, self.link = trainer, index, link
        self.last = Responses([])
        self.wanted = [need.signal for need in trainer.chain.links[index].needs if need.policy == "draft"]
        self._texts: dict[int, str] = {}
        self._special = frozenset(trainer._tokenizer.all_special_ids)

    @property
    def key(self) -> str:
        return self.trainer.chain.keys[self.index]

    @property
    def figures(self) -> Mapping[str, float]:
        return self.last.figures

    def generate(self, prompt_ids: Sequence[list[int]], samples: int) -> list[list[int]]:
        """The responses to a local generation batch, counted in the metrics."""
        self.last = self.responses(prompt_ids, samples, self.trainer.first_row(len(prompt_ids)))
        for name in COUNTS:
            if name in self.last.figures:
                self.trainer._metrics["train"][f"isentrope/regenerate/{name}"].append(self.last.figures[name])
        return self.last.ids

    def responses(self, prompt_ids: Sequence[list[int]], samples: int, first_row: int) -> Responses:
        """`samples` responses to each prompt; rows stand group by group, their ids begin at `first_row`."""
        trainer = self.trainer
        first = self.link.drafts(samples, trainer.progress, trainer.chain_state[self.index])
        if first is None:
            return Responses(self._sampled(list(prompt_ids), samples))
        early = [row for row in range(len(prompt_ids)) if row % samples < first]
        late = [row for row in range(len(prompt_ids)) if row % samples >= first]
        prompts = [prompt_ids[row] for row in early]
        responses = self._sampled(prompts, first)
        drafts = self._scored(early, prompts, responses, samples, first, first_row)
        found = self.link.branches(drafts, trainer.chain_state[self.index], trainer.rng(-1 - trainer.generations).child(self.index))
        self._check(found, drafts, len(late))
        parents, cuts = found.parent.tolist(), found.cut.tolist()
        begun = contexts([prompt_ids[row] for row in late], [responses[parent] for parent in parents], cuts)
        with generating(trainer, max_new_tokens=drafts.longest - min(cuts)):
            rest = self._sampled(begun, samples - first)
        rest = [ids[: drafts.longest - cut] for ids, cut in zip(rest, cuts, strict=True)]
        whole: list[list[int]] = [[] for _ in prompt_ids]
        kept = [0] * len(prompt_ids)
        for row, ids in zip(early, responses, strict=True):
            whole[row] = ids
        for row, parent, cut, ids in zip(late, parents, cuts, rest, strict=True):
            whole[row], kept[row] = [*responses[parent][:cut], *ids], cut
        return Responses(whole, kept, self._figures(drafts, found, sum(map(len, responses)), sum(map(len, rest))))

    def masks(self, completion_ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """1 where the response was sampled, 0 where it was taken over: TRL's `tool_mask`."""
        kept = [0] * len(completion_ids) if self.last.kept is None else self.last.kept
        return [[0] * cut + [1] * (len(ids) - cut) for cut, ids in zip(kept, completion_ids, strict=True)]

    def marked(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with their origin, and what was taken over out of the loss."""
        if self.last.kept is None:
            return rollouts
        kept = torch.tensor(self.last.kept, device=rollouts.row_id.device)
        return replace(rollouts, trained_mask=self.last.own(rollouts.trained_mask), origin=torch.where(kept > 0, _BRANCH, rollouts.origin))

    # --- parts

    def _sampled(self, prompt_ids: list[list[int]], samples: int) -> list[list[int]]:
        with self.trainer.sampling({"prompt_ids": prompt_ids}):
            return GRPOTrainer._generate_single_turn(self.trainer, prompt_ids, None, {}, samples)[0]

    def _scored(self, rows: list[int], prompts: Sequence[list[int]], responses: Sequence[list[int]], samples: int, first: int, first_row: int) -> Drafts:
        """The drafts with their signals, by one pass without gradient; ids of rows and groups are those that the batch will have."""
        trainer = self.trainer
        prompt_ids, prompt_mask = padded(trainer, prompts, left=True)
        ids, mask = padded(trainer, responses, left=False)
        text = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask.long(), "completion_ids": ids, "completion_mask": mask.long()}
        signals = policy_signals(trainer, text, mask, self.wanted)
        place = torch.tensor(rows, device=mask.device)
        rollouts = Rollouts.of(
            mask, row_id=first_row + place, group=first_row // samples + place // samples, completion_ids=ids, truncated=trainer.truncated(responses),
            sampling_temperature=torch.full(mask.shape, float(trainer.temperature), device=mask.device),
            signals={f"draft.{key}": value for key, value in signals.items()},
        )  # fmt: skip
        for token in {token for response in responses for token in response} - self._texts.keys():
            self._texts[token] = trainer.processing_class.decode([token])
        return Drafts(rollouts, samples - first, trainer.max_completion_length, self._texts, self._special)

    def _check(self, found: Branches, drafts: Drafts, missing: int) -> None:
        """What a link answers must be as many branches as are missing, each of its own group, and cut inside a draft."""
        group, lengths = drafts.rollouts.group, drafts.rollouts.lengths
        if len(found.parent) == missing == len(found.cut):
            own = torch.unique_consecutive(group).repeat_interleave(drafts.missing)
            inside = (found.cut >= 0) & (found.cut < lengths[found.parent].clamp(max=drafts.longest))
            if bool((inside | (found.cut == 0)).all()) and torch.equal(group[found.parent], own):
                return
        raise ValueError(
            f"{self.key}: the stage regenerate must name {missing} branches, {drafts.missing} for each group in the order of the drafts, each cut inside a "
            f"draft of its group. Got {len(found.parent)} parents and {len(found.cut)} cuts."
        )

    def _figures(self, drafts: Drafts, found: Branches, first: int, second: int) -> dict[str, float]:
        """Over all ranks: share of responses that are branches; mean share of the parent that they keep; entropy (nats) at the cuts, over the NEAR tokens
        from each on, and over all drafts; tokens sampled by either call, scored, and taken over."""
        trainer, real = self.trainer, found.cut > 0
        parent, cut, mask = found.parent[real], found.cut[real], drafts.rollouts.trained_mask
        entropy = drafts.rollouts.signals.get("draft.entropy")
        none = torch.zeros_like(mask, dtype=torch.float32)
        value = none if entropy is None else torch.where(mask, entropy, 0.0)
        near = cut[:, None] + torch.arange(NEAR, device=mask.device)
        inside = near < drafts.rollouts.lengths[parent][:, None]
        beyond = torch.where(inside, value[parent[:, None], near.clamp(max=mask.shape[1] - 1)], 0.0).sum(-1) / inside.sum(-1).clamp(min=1)
        share = cut / drafts.rollouts.lengths[parent].clamp(min=1)
        told = (real.sum(), share.sum(), value[parent, cut].sum(), beyond.sum(), value.sum(), mask.sum(), found.cut.sum(), first, second, len(real) + len(mask))
        sums = torch.tensor([float(one) for one in told], dtype=torch.float64, device=mask.device)
        branches, kept, at_cuts, nearby, everywhere, scored, taken, first, second, rows = trainer.accelerator.reduce(sums, reduction="sum").tolist()
        entropies = {"entropy": _over(at_cuts, branches), "near_entropy": _over(nearby, branches), "usual_entropy": _over(everywhere, scored)}
        counts = dict(zip(COUNTS, (first, second, scored, taken), strict=True))
        return {"share": branches / rows, "kept": _over(kept, branches), **({} if entropy is None else entropies), **counts}


def _over(total: float, count: float) -> float:
    return total / count if count else math.nan


def regeneration(trainer: "IsentropeTrainer") -> Regeneration | None:
    """The stage of this trainer's chain, if a link has it.

    Raises UserError naming the link for what it does not reach.
    """
    found = trainer.chain.having(Regenerate)
    if not found:
        return None
    index, link = found[0]
    assert isinstance(link, Regenerate)
    refuse(trainer, trainer.chain.keys[index])
    return Regeneration(trainer, index, link)


def refuse(trainer: "IsentropeTrainer", key: str) -> None:
    """Refuse text that is not one answer to one prompt (options are refused in `carried`).

    Raises UserError naming the link and what it does not go with.
    """
    loop = "tools or an environment" if trainer.tools else "a rollout function or a game" if trainer.rollout_func is not None else ""
    if loop:
        raise UserError(f"{key} cuts responses of one turn, and {loop} samples turns of its own. Drop one of them.")
    if trainer._is_vlm:
        raise UserError(f"{key} goes on from a cut response, which is carried for text alone; this model reads images.")
