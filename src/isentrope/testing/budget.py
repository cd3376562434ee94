"""What an intervention decides at each of its stages, on given inputs: how much (the budget) and for whom (the choice)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isentrope.control.placebo import differentiable
from isentrope.control.stages import (
    Advantage,
    Clip,
    Extra,
    Filter,
    Fork,
    Intervention,
    Regenerate,
    Regularise,
    Replay,
    Reward,
    Rows,
    Sample,
    Select,
    Survey,
    Weight,
)  # fmt: skip
from isentrope.control.step import State, Step
from isentrope.testing.forks import forked
from isentrope.testing.world import RNG, World, drafts_of, probed


@dataclass(frozen=True)
class Decision:
    """budget: does not depend on who is chosen. choice: it does. chooses: another choice with this budget was possible."""

    budget: Tensor
    choice: Tensor
    chooses: bool


def decisions(link: Intervention, scene: World, state: State, asked: Intervention | None = None) -> dict[str, Decision]:
    """By stage, each on the scene's own inputs, so that stages can be compared one by one.

    asked: the intervention whose extra samples the `rows` stage is given (default: `link` itself).
    """
    found = _on_drafts(link, scene, state) if isinstance(link, Regenerate) else {}
    found |= _on_replies(link, scene, state) if isinstance(link, Fork) else {}
    scene = scene.scored(link.needs)
    return found | _on_rollouts(link, scene, state, link if asked is None else asked) | _on_update(link, scene.step(link.needs), state)


def _on_drafts(link: Regenerate, scene: World, state: State) -> dict[str, Decision]:
    drafted = drafts_of(scene, link, state)
    if drafted is None:
        return {}
    found = link.branches(drafted.seen, state, RNG.child(0))
    real = found.cut > 0
    free = (found.allowed.sum(-1)[found.parent[real]] > 1).any()
    return {"regenerate": Decision(torch.cat([real.sum()[None], found.parent]), torch.cat([found.parent, found.cut]), bool(free))}


def _on_replies(link: Fork, scene: World, state: State) -> dict[str, Decision]:
    """The first reply of every group after which one is forked: up to there, a link and its placebo are shown the same."""
    _, found = forked(scene, link, state, RNG)
    firsts = [counts for counts in (next(filter(any, told), None) for told in found.counts) if counts is not None]
    sums = torch.tensor([sum(counts) for counts in firsts] + list(found.roots))
    flat = torch.tensor([count for counts in firsts for count in counts])
    return {"fork": Decision(sums, flat, any(0 < sum(counts) < len(counts) for counts in firsts))}


def _on_rollouts(link: Intervention, scene: World, state: State, asked: Intervention) -> dict[str, Decision]:
    rollouts, found = scene.rollouts, {}
    if isinstance(link, Select) and link.probe() is not None:
        tried = probed(scene)
        chosen = link.select(tried)
        found["select"] = Decision(torch.tensor([len(chosen)]), chosen, 0 < len(chosen) < len(tried.position))
    if isinstance(link, Extra):
        request = link.extra(rollouts, scene.progress, state)
        groups = torch.zeros(0) if request is None else request.groups
        budget = torch.tensor([len(groups), 0 if request is None else request.samples])
        found["extra"] = Decision(budget, groups, 0 < len(groups) < len(rollouts.group.unique()))
    if isinstance(link, Sample):
        chosen = torch.stack([link.temperature(scene.old[:, token], 1.0, state) for token in range(scene.old.shape[1])], dim=1)
        found["sample"] = Decision(chosen.sort(dim=0).values, chosen, bool((chosen != chosen[:1]).any()))
    if isinstance(link, Reward):
        found["reward"] = _within((link.reward(rollouts, state) - rollouts.reward), rollouts.group)
    if isinstance(link, Filter):
        keep = link.keep(rollouts, state)
        found["filter"] = Decision(keep.sum()[None], keep, 0 < int(keep.sum()) < len(keep))
    if isinstance(link, Advantage):
        term = link.advantage(rollouts, state) - rollouts.advantage
        mask, group = rollouts.trained_mask, rollouts.group
        by_token = term.shape[1] > 1
        found["advantage"] = _within(term[mask], group[:, None].expand(mask.shape)[mask]) if by_token else _within(term.squeeze(1), group)
    if isinstance(link, Replay):
        kept = link.remember(rollouts, state)
        found["replay"] = Decision(kept.sum()[None], kept, 0 < int(kept.sum()) < len(kept))
    if isinstance(link, Rows):
        request = asked.extra(rollouts, scene.progress, state) if isinstance(asked, Extra) else None
        extra = scene.buffer() if isinstance(asked, Replay) else None if request is None else scene.extra(request)
        edit = link.rows(rollouts, None if extra is None else extra.scored(link.needs).rollouts, state, RNG.child(0))
        dropped = edit.target[:0] if edit.dropped is None else edit.dropped
        counts = torch.tensor([len(edit.target), len(dropped)], dtype=edit.advantage.dtype)
        budget = torch.cat([counts, edit.advantage.sort().values])
        found["rows"] = Decision(budget, torch.cat([edit.target, edit.source, dropped]), len(edit.target) + len(dropped) > 0)
    return found


def _on_update(link: Intervention, step: Step, state: State) -> dict[str, Decision]:
    objective, mask, found = link.recipe(), step.mask, {}
    view = replace(step, ratio=objective.ratio(step.log_probs, step.old_log_probs, mask), bounds=objective.bounds())
    stats = link.survey(view, state, RNG.child(0)) if isinstance(link, Survey) else None
    sign = torch.sign(view.advantage).expand(mask.shape)[mask]
    if isinstance(link, Clip):
        view = replace(view, bounds=link.clip(view, stats, state))
        sides = [value for value in view.bounds.__dict__.values() if isinstance(value, Tensor) and value.ndim == 2]
        sides = [side.expand(mask.shape)[mask] for side in sides]
        found["clip"] = _joint(sides, sign)
    if isinstance(link, Weight):
        chosen = link.weight(view, stats, state)
        parts = [part for part in (chosen.value, chosen.keep) if part is not None]
        found["weight"] = _joint([part.expand(mask.shape)[mask].double() for part in parts], sign)
    if isinstance(link, Regularise):
        found["regularise"] = _penalised(link, view, stats, state)
    return found


def _penalised(link: Regularise, view: Step, stats, state: State) -> Decision:
    """Budget: how many tokens the penalty acts on. Choice: its slopes, token by token."""
    leaves = {name: value.detach().clone().requires_grad_(True) for name, value in differentiable(view).items()}
    signals = {**view.signals, **{name: leaf for name, leaf in leaves.items() if name != "log_probs"}}
    penalty = link.regularise(replace(view, log_probs=leaves["log_probs"], signals=signals), stats, state)
    value = view.log_probs.new_zeros(())
    value = value if penalty.token is None else value + torch.where(view.mask, penalty.token, 0.0).sum()
    value = value if penalty.total is None else value + penalty.total
    slopes = [torch.zeros_like(leaf) for leaf in leaves.values()]
    if value.requires_grad:
        slopes = [
            torch.zeros_like(leaf) if slope is None else slope
            for leaf, slope in zip(leaves.values(), torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True)
        ]
    slope = torch.stack(slopes)[:, view.mask]
    acting = (slope != 0).any(0) if penalty.touched is None else penalty.touched[view.mask]
    return Decision(acting.sum()[None], slope, bool((slope != slope[:, :1]).any()))


def _within(value: Tensor, stratum: Tensor) -> Decision:
    return _joint([value], stratum)


def _joint(values: list[Tensor], stratum: Tensor) -> Decision:
    """Values per item whose budget is the multiset of their tuples in each stratum."""
    if not values:
        return Decision(torch.zeros(0), torch.zeros(0), False)
    order = torch.arange(len(stratum))
    for key in (*reversed(values), stratum):
        order = order[torch.argsort(key[order], stable=True)]
    together = torch.stack(values)
    first = torch.stack([(stratum[:, None] == stratum[None, :]).long().argmax(1)]).squeeze(0)
    return Decision(together[:, order], together, bool((together != together[:, first]).any()))
