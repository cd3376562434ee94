"""Placebos: an intervention's budget without its cause.

`placebo(x)` is an intervention with the stages of `x` that touches as many tokens, rows or prompts, with the same factors, but not the
ones that `x` would choose. Whatever effect is left is the effect of touching that many. By stage:

| stage | what stays | what is drawn at random |
|---|---|---|
| select | number of prompts | which of those that were probed |
| extra, rows | number of groups asked for, of rows replaced and dropped, their advantages | which; sampled at the batch's own temperature |
| replay | number of responses kept in the buffer | which |
| sample | the temperatures of a decoding step | which response gets which |
| regenerate | which drafts are cut how often; branches of one cut share one | where, among the positions at which a cut was allowed |
| fork | how many episodes begin at the prompt, how many are copied after a reply | of which of those that stand there |
| reward, advantage | the shaping terms of a group | which response (token) of the group gets which |
| filter | number of groups (rows) dropped | which |
| clip, weight | bounds, factors and kept tokens, among tokens of one sign of the advantage | which token |
| regularise | the coefficients (slopes) | which token |
| update | the controller, or with `series` another seed's recorded one | - |

Random choices are keyed by row id, so they are the same over micro-batches, ranks and after a resume. A link that acts on all tokens
alike (one constant bound or factor) is its own placebo here; compare it with a yoked series instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.cuts import Branches, Drafts, drawn, leading
from isentrope.control.forks import Standing
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import (
    Clip,
    ExtraRequest,
    Intervention,
    Penalty,
    Probed,
    ProbeRequest,
    Regularise,
    RowEdit,
    Survey,
    TokenWeight,
    Weight,
    stages_of,
)  # fmt: skip
from isentrope.control.step import Need, Progress, Rollouts, RowRng, State, Stats, Step

_STREAM = 104_729  # streams of the placebos' own draws start here
_MARK = "placebo/"  # what the placebo adds to its inner link's Stats


@dataclass(frozen=True)
class Placebo(Intervention):
    """Base of every placebo. `seed` chooses among placebos of one intervention; `series[k]` is the state that is yoked after k
    updates (None: the inner controller runs)."""

    inner: Intervention
    seed: int = 0
    series: tuple[State, ...] | None = field(default=None, hash=False)  # mappings have no hash; equality still sees them

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.inner.name}-placebo"

    @property
    def slug(self) -> str | None:  # type: ignore[override]
        return self.inner.slug

    @property
    def source(self) -> str:  # type: ignore[override]
        return f"placebo of: {self.inner.source}"

    @property
    def replaces(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.replaces

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.inner.needs

    def init(self) -> State:
        return self.inner.init() if self.series is None else self.series[0]

    def neutral(self) -> Intervention:
        return replace(self, inner=self.inner.neutral())

    def embedded(self) -> Intervention:
        return replace(self, inner=self.inner.embedded())

    def recipe(self) -> Objective:
        return self.inner.recipe()

    def keys(self, rng: RowRng) -> RowRng:
        """The placebo's own random numbers, apart from those of the inner link."""
        return rng.child(_STREAM + self.seed)


def placebo(intervention: Intervention, *, seed: int = 0, series: tuple[State, ...] | None = None) -> Placebo:
    """The placebo of `intervention`: same stages, same budget, no cause.

    Raises ValueError for a placebo, an intervention without stages, or one that chooses the policy of the ratio (nothing there can
    be permuted).
    """
    if isinstance(intervention, Placebo):
        raise ValueError(f"placebo: {intervention.name} is a placebo already. For another one, change its seed.")
    stages = stages_of(intervention)
    missing = [stage for stage in stages if stage not in _STAGES]
    if missing or not stages:
        what = f"the stage {', '.join(missing)}" if missing else "no stage"
        raise ValueError(f"placebo: {type(intervention).__name__} has {what}, which has no budget to permute. Placebos exist for: {', '.join(_STAGES)}.")
    surveyed = {"survey"} if {"clip", "weight", "regularise"} & set(stages) else set()
    return _kind(tuple(stage for stage in _STAGES if stage in {*stages, *surveyed}))(intervention, seed, series)


@cache
def _kind(stages: tuple[str, ...]) -> type[Placebo]:
    """The class with exactly these stages: which stages an intervention has is read off its methods."""
    return type("Placebo", (*(_STAGES[stage] for stage in stages), Placebo), {"__doc__": Placebo.__doc__})


# --- permutations keyed by row


def permutation(
    row_id: Int[Tensor, " response"],
    mask: Bool[Tensor, "response token"],
    stratum: Int[Tensor, "response #token"],
    rng: RowRng,
) -> Int[Tensor, "response token"]:
    """For every position the flat index of the position whose value it receives: a random permutation of the masked-in positions
    within each stratum, all others fixed. The same for the same rows, however they are ordered or padded."""
    width = mask.shape[1]
    chosen = mask.flatten().nonzero().squeeze(1)
    strata = stratum.expand(mask.shape).flatten()[chosen]
    rank = torch.argsort(torch.argsort(row_id))
    place = (rank[:, None] * width + torch.arange(width, device=mask.device)).flatten()[chosen]
    key = rng.uniform(row_id, width).flatten()[chosen]
    source = torch.arange(mask.numel(), device=mask.device)
    source[_sorted(chosen, strata, place)] = _sorted(chosen, strata, key)
    return source.reshape(mask.shape)


def _sorted(chosen: Tensor, strata: Tensor, key: Tensor) -> Tensor:
    """`chosen` ordered by stratum, then by key."""
    by_key = torch.argsort(key)
    return chosen[by_key][torch.argsort(strata[by_key], stable=True)]


def moved(value: Tensor, source: Int[Tensor, "response token"]) -> Tensor:
    """`value` ([response, token], or [response, 1] for all tokens) taken from the positions `source`."""
    return value.expand(source.shape).flatten()[source]


def _moved_rows(value: Tensor, row_id: Tensor, group: Tensor, rng: RowRng) -> Tensor:
    """A [response] value permuted among the responses of each group."""
    everything = torch.ones_like(row_id, dtype=torch.bool)[:, None]
    return moved(value[:, None], permutation(row_id, everything, group[:, None], rng)).squeeze(1)


def _rollout_rng(rollouts: Rollouts) -> RowRng:
    """Keys for stages that are handed none: of the rollout's rows, so another rollout draws anew and a resumed one the same."""
    return RowRng(step=int(rollouts.row_id.sum()))


def _ranks(rng: RowRng, ids: Int[Tensor, " item"]) -> Int[Tensor, " item"]:
    """Items in a random order keyed by their ids."""
    return torch.argsort(rng.uniform(ids, 1).squeeze(1))


# --- one part per stage


class _Select:
    def probe(self) -> ProbeRequest | None:
        return self.inner.probe()

    def select(self, probed: Probed) -> Int[Tensor, " chosen"]:
        return probed.position[_ranks(self.keys(RowRng()), probed.position)][: len(self.inner.select(probed))]


class _Extra:
    def extra(self, rollouts: Rollouts, progress: Progress, state: State) -> ExtraRequest | None:
        request = self.inner.extra(rollouts, progress, state)
        if request is None:
            return None
        groups = torch.unique(rollouts.group)
        chosen = groups[_ranks(self.keys(_rollout_rng(rollouts)), groups)][: len(request.groups)]
        own = rollouts.sampling_temperature[rollouts.trained_mask]
        return replace(request, groups=chosen, temperature=float(own.mean()) if len(own) else request.temperature)


class _Sample:
    def temperature(self, logits: Float[Tensor, "response vocab"], base: float, state: State) -> Float[Tensor, " response"]:
        """Rows have no ids while they are being sampled, so the logits' own bits key them."""
        chosen = self.inner.temperature(logits, base, state)
        bits = _content(logits)
        own = torch.ones_like(bits)
        return _moved_rows(chosen, bits, own, self.keys(RowRng()))


def _content(logits: Float[Tensor, "response vocab"]) -> Int[Tensor, " response"]:
    """An integer per row that depends on its logits bit by bit and on nothing else."""
    bits = logits.detach().double().view(torch.int64)
    odd = 2 * torch.arange(logits.shape[1], device=logits.device) + 1
    return (bits * odd * 0x9E3779B97F4A7C1 ^ (bits >> 29)).sum(-1)


class _Regenerate:
    def misfit(self, samples: int) -> str:
        return self.inner.misfit(samples)

    def drafts(self, samples: int, progress: Progress, state: State) -> int | None:
        return self.inner.drafts(samples, progress, state)

    def branches(self, drafts: Drafts, state: State, rng: RowRng) -> Branches:
        found, row_id = self.inner.branches(drafts, state, rng), drafts.rollouts.row_id
        width = found.allowed.shape[1]
        places = leading(torch.zeros_like(found.allowed, dtype=torch.float32), found.allowed, width)[found.parent]
        keys = self.keys(rng).uniform(row_id, width)[found.parent, found.cut]  # of the cut, so that its branches stay together
        return replace(found, cut=torch.where(found.cut > 0, drawn(places, keys), 0))


class _Fork:
    @property
    def shared(self) -> str:
        return self.inner.shared

    def pilot(self) -> bool:
        return self.inner.pilot()

    def roots(self, samples: int, pilot: Standing | None, state: State) -> int:
        return self.inner.roots(samples, pilot, state)

    def forks(self, standing: Sequence[Standing], free: int, made: int, state: State, rng: RowRng) -> Sequence[int]:
        counts, turn = self.inner.forks(standing, free, made, state, rng), len(standing[0].turns)
        order = self.keys(rng).uniform(torch.tensor([line.row for line in standing]), turn)[:, turn - 1].argsort()
        return [counts[place] for place in order.tolist()]


class _Reward:
    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        term = self.inner.reward(rollouts, state) - rollouts.reward
        return rollouts.reward + _moved_rows(term, rollouts.row_id, rollouts.group, self.keys(_rollout_rng(rollouts)))


class _Filter:
    @property
    def rounds(self) -> int:
        return self.inner.rounds

    def keep(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        keep = self.inner.keep(rollouts, state)
        rng, group = self.keys(_rollout_rng(rollouts)), rollouts.group
        ids, where = torch.unique(group, return_inverse=True)
        kept = torch.zeros_like(ids).index_add(0, where, keep.long())
        if not bool(((kept == 0) | (kept == torch.bincount(where, minlength=len(ids)))).all()):  # drops single responses
            return _moved_rows(keep, rollouts.row_id, torch.zeros_like(group), rng)
        dropped = torch.zeros_like(ids, dtype=torch.bool)
        dropped[_ranks(rng, ids)[: int((kept == 0).sum())]] = True
        return ~dropped[where]


class _Advantage:
    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        shaped, rng = self.inner.advantage(rollouts, state), self.keys(_rollout_rng(rollouts))
        if shaped.shape[1] == 1 and rollouts.advantage.shape[1] == 1:
            term = (shaped - rollouts.advantage).squeeze(1)
            return rollouts.advantage + _moved_rows(term, rollouts.row_id, rollouts.group, rng)[:, None]
        mask = rollouts.trained_mask
        term = torch.where(mask, shaped - rollouts.advantage, 0.0)
        source = permutation(rollouts.row_id, mask, rollouts.group[:, None], rng)
        return torch.where(mask, rollouts.advantage + moved(term, source), 0.0)


class _Rows:
    def rows(self, rollouts: Rollouts, extra: Rollouts | None, state: State, rng: RowRng) -> RowEdit:
        edit, keys = self.inner.rows(rollouts, extra, state, rng), self.keys(rng)
        count = len(edit.target)
        batch = _ranks(keys, rollouts.row_id)
        source = edit.source if extra is None else _ranks(keys, extra.row_id)[:count]
        dropped = None if edit.dropped is None else batch[count : count + len(edit.dropped)]
        return RowEdit(batch[:count], source, edit.advantage, dropped, edit.clear)


class _Replay:
    @property
    def capacity(self) -> int:
        return self.inner.capacity

    @property
    def max_age(self) -> int:
        return self.inner.max_age

    def remember(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        """As many as the inner link remembers, of all."""
        kept = torch.zeros_like(rollouts.truncated)
        kept[_ranks(self.keys(_rollout_rng(rollouts)), rollouts.row_id)[: int(self.inner.remember(rollouts, state).sum())]] = True
        return kept


class _Collect:
    def collect(self, rollouts: Rollouts, state: State) -> State:
        return self.inner.collect(rollouts, state)


class _Survey:
    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """The inner survey, and the inner link's bounds, factors and coefficients already permuted."""
        inner, row_id = self.inner, view.rollouts.row_id
        stats = inner.survey(view, state, rng) if isinstance(inner, Survey) else None
        sign = torch.sign(torch.where(view.mask, view.advantage, 0.0)).long()
        source = permutation(row_id, view.mask, sign, self.keys(rng))
        tokens = {} if stats is None else {name: stats.token(name, view) for name in stats.tokens}
        scalars = {} if stats is None else dict(stats.scalars)
        responses = {} if stats is None else {name: stats.response(name, view) for name in stats.responses}
        if isinstance(inner, Clip):
            view = replace(view, bounds=inner.clip(view, stats, state))
            tokens |= {f"{_MARK}{name}": moved(value, source) for name, value in _tensors(view.bounds).items()}
        if isinstance(inner, Weight):
            chosen = inner.weight(view, stats, state)
            if chosen.value is not None:
                tokens[f"{_MARK}value"] = moved(torch.where(view.mask, chosen.value, 1.0), source)
            if chosen.keep is not None:
                tokens[f"{_MARK}keep"] = moved(chosen.keep, source)
        if isinstance(inner, Regularise):
            anywhere = permutation(row_id, view.mask, torch.zeros_like(sign), self.keys(rng))
            found = {} if stats is None else {name: moved(stats.token(name, view), anywhere) for name in stats.tokens}
            if not found:
                scalars[f"{_MARK}total"], found = _slopes(inner, view, stats, state, anywhere)
            tokens |= {f"{_MARK}coef/{name}": value for name, value in found.items()}
        return Stats(row_id, scalars, tokens, responses)


class _Clip:
    def clip(self, step: Step, stats: Stats, state: State) -> Bounds:
        bounds = self.inner.clip(step, _inner(self, stats), state)
        return replace(bounds, **{name: stats.token(f"{_MARK}{name}", step) for name in _tensors(bounds)})


class _Weight:
    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        chosen = self.inner.weight(step, _inner(self, stats), state)
        value, keep = (stats.token(f"{_MARK}{name}", step) if f"{_MARK}{name}" in stats.tokens else None for name in ("value", "keep"))
        return TokenWeight(value, keep, chosen.denominator)


class _Regularise:
    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        """With selections per token in the inner Stats: the inner penalty on random tokens. Otherwise its slopes, on random tokens."""
        own = _inner(self, stats)
        if own is not None and own.tokens:
            marked = {name: stats.tokens[f"{_MARK}coef/{name}"] for name in own.tokens}
            return self.inner.regularise(step, replace(own, tokens=marked), state)
        token = torch.zeros_like(step.log_probs)
        total = stats.scalars[f"{_MARK}total"] * len(step.rollouts) / len(stats.row_id)
        for name, value in differentiable(step).items():
            moving = torch.where(step.mask, value - value.detach(), 0.0)
            token = token + stats.token(f"{_MARK}coef/token/{name}", step) * moving
            total = total + (stats.token(f"{_MARK}coef/total/{name}", step) * moving).sum()
        token = token + stats.token(f"{_MARK}coef/value", step)
        return Penalty(token, total, stats.token(f"{_MARK}coef/touched", step))


class _Update:
    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        if self.series is not None:
            return self.series[min(progress.step, len(self.series) - 1)]
        return self.inner.update(state, None if stats is None else _inner(self, stats), progress)


_STAGES: Mapping[str, type] = {
    "select": _Select, "extra": _Extra, "sample": _Sample, "regenerate": _Regenerate, "fork": _Fork, "reward": _Reward, "filter": _Filter,
    "advantage": _Advantage, "rows": _Rows, "replay": _Replay, "collect": _Collect,
    "survey": _Survey, "clip": _Clip, "weight": _Weight, "regularise": _Regularise, "update": _Update,
}  # fmt: skip


def _inner(link: Placebo, stats: Stats) -> Stats | None:
    """What the inner link's own survey found; None if it has none."""
    if not isinstance(link.inner, Survey):
        return None
    return replace(
        stats,
        scalars={name: value for name, value in stats.scalars.items() if not name.startswith(_MARK)},
        tokens={name: value for name, value in stats.tokens.items() if not name.startswith(_MARK)},
    )


def _tensors(bounds: Bounds) -> dict[str, Tensor]:
    """The bounds that differ by token."""
    values = {item.name: bounds.__dict__[item.name] for item in fields(bounds)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 2}


def differentiable(step: Step) -> dict[str, Tensor]:
    """What a penalty may be a function of, by name: log-probs and the per-token signals of the current policy."""
    return {"log_probs": step.log_probs} | {name: value for name, value in step.signals.items() if value.shape == step.mask.shape}


def _slopes(inner: Regularise, view: Step, stats: Stats | None, state: State, source: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The penalty's total, and permuted by `source` its value per token, the tokens it acts on, and its slopes."""
    with torch.enable_grad():
        leaves = {name: value.detach().clone().requires_grad_(True) for name, value in differentiable(view).items()}
        probe = replace(view, log_probs=leaves["log_probs"], signals={**view.signals, **{k: v for k, v in leaves.items() if k != "log_probs"}})
        penalty = inner.regularise(replace(probe, ratio=_ratio(probe)), stats, state)
        token, total = _sum(penalty.token, view.mask), penalty.total
    found = {f"token/{name}": moved(value, source) for name, value in _gradients(token, leaves).items()}
    found |= {f"total/{name}": moved(value, source) for name, value in _gradients(total, leaves).items()}
    nothing = torch.zeros_like(view.log_probs)
    value = nothing if penalty.token is None else torch.where(view.mask, penalty.token.detach(), 0.0)
    acting = torch.zeros_like(view.mask) if penalty.touched is None else penalty.touched
    found |= {"value": moved(value, source), "touched": moved(acting, source)}
    return nothing.sum() if total is None else total.detach(), found


def _ratio(step: Step) -> Tensor:
    """The step's ratio, connected to its log-probs (per token, or per response as the mean log-ratio's)."""
    moving = torch.where(step.mask, step.log_probs - step.log_probs.detach(), 0.0)
    if step.ratio.shape[1] == 1 and step.mask.shape[1] > 1:
        moving = (moving.sum(-1) / step.rollouts.lengths.clamp(min=1))[:, None]
    return step.ratio.detach() * torch.exp(moving)


def _sum(value: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if value is None else torch.where(mask, value, 0.0).sum()


def _gradients(value: Tensor | None, leaves: Mapping[str, Tensor]) -> dict[str, Float64[Tensor, "response token"] | Tensor]:
    if value is None or not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaf) if slope is None else slope for (name, leaf), slope in zip(leaves.items(), found, strict=True)}
