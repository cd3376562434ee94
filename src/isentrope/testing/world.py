"""A small world in which the contract is checked: three tabular softmax policies, responses sampled from one of them, all from a seed.

Every position of every response has a logit vector of its own, so a gradient with respect to the logits shows what a loss does
to each token by itself. The clocks of a host are played without a model: `play` runs the rollout stages, surveys the update,
adds up the losses of its slices and ranks, and lets the controllers move. Entropies and log-probabilities in nats.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.cuts import Branches, Drafts
from isentrope.control.objectives import Objective
from isentrope.control.requests import AttentionEntropy, LayerLogProb, Request
from isentrope.control.stages import (
    Advantage,
    Chain,
    ChainStats,
    Collect,
    Extra,
    ExtraRequest,
    Filter,
    Fork,
    Intervention,
    Probed,
    Regenerate,
    Replay,
    Reward,
    RowEdit,
    Rows,
    Sample,
    advance,
    chain,
    policy_loss,
    survey,
)  # fmt: skip
from isentrope.control.step import ORIGINS, Need, Normaliser, Progress, Rollouts, RowRng, State, Step, concatenate, join_steps, micro_batches, pad_width
from isentrope.measure.tokens import LogProb, token_signals_from_logits
from isentrope.testing.forks import Forked, forked

RNG = RowRng(seed=11, step=4)
"""Keys that a play uses unless told otherwise."""
EXTRA_ROWS = 1 << 40  # row ids of extra samples start here


@dataclass(frozen=True)
class World:
    """Responses and the three policies at their positions: `old` sampled them, `logits` is trained, `ref` is the reference.

    seed: of the extra responses that an intervention may ask for.
    horizon: constant length of Dr.GRPO; does not follow the padding.
    padding: what stands under the mask in every tensor that an intervention is given.
    """

    rollouts: Rollouts
    logits: Float[Tensor, "response token vocab"]
    old: Float[Tensor, "response token vocab"]
    ref: Float[Tensor, "response token vocab"]
    seed: int = 0
    progress: Progress = Progress(3, 20)
    horizon: int = 12
    padding: float = 0.0

    def take(self, rows: Int[Tensor, " chosen"]) -> "World":
        """These rows, in this order."""
        return replace(self, rollouts=self.rollouts.take(rows), logits=self.logits[rows], old=self.old[rows], ref=self.ref[rows])

    def scored(self, needs: Sequence[Need]) -> "World":
        """With the log-probs of the old and reference policy and the "old." signals that `needs` declare, detached."""
        declared = [need.signal for need in needs if need.policy == "old"]
        wanted = [signal for signal in declared if not isinstance(signal, Request)]
        ids = self.rollouts.completion_ids
        mask = self.rollouts.trained_mask
        with torch.no_grad():
            old = token_signals_from_logits(self.old, ids, [LogProb(grad=False), *wanted])
            ref = token_signals_from_logits(self.ref, ids, [LogProb(grad=False)])
        inside = {signal.key: _inside(signal, self.old, ids).detach() for signal in declared if isinstance(signal, Request)}
        padded = {key: torch.where(mask if value.ndim == 2 else mask[..., None], value, self.padding) for key, value in (old | inside).items()}
        rollouts = replace(
            self.rollouts,
            old_log_probs=padded["log_prob"],
            sampling_log_probs=padded["log_prob"],
            ref_log_probs=torch.where(mask, ref["log_prob"], self.padding),
            sampling_temperature=torch.where(mask, self.rollouts.sampling_temperature, self.padding),
            signals={f"old.{signal.key}": padded[signal.key] for signal in declared},
        )
        return replace(self, rollouts=rollouts)

    def step(self, needs: Sequence[Need], logits: Float[Tensor, "response token vocab"] | None = None) -> Step:
        """The whole update as one slice, differentiable in `logits` (default: this world's own, without gradient).

        It carries the signals that `needs` declare and no other, so that reading an undeclared one is an error.
        """
        current = [need.signal for need in needs if need.policy == "current" and need.signal.key != "log_prob"]
        wanted = [signal for signal in current if not isinstance(signal, Request)]
        logits, mask = self.logits if logits is None else logits, self.rollouts.trained_mask
        found = dict(token_signals_from_logits(logits, self.rollouts.completion_ids, [LogProb(), *wanted]))
        found |= {signal.key: _inside(signal, logits, self.rollouts.completion_ids) for signal in current if isinstance(signal, Request)}
        found = {key: torch.where(mask, value, self.padding) for key, value in found.items()}
        signals = {f"current.{key}": value for key, value in found.items() if key != "log_prob" or _asks_log_prob(needs)}
        rollouts, advantage = self.rollouts, self.rollouts.advantage
        counts = mask if advantage.shape == mask.shape else mask.any(-1, keepdim=True)
        rollouts = replace(
            rollouts,
            signals={key: value for key, value in rollouts.signals.items() if value.ndim == 2},  # as a host: states stay on the rollout clock
            advantage=torch.where(counts, advantage, self.padding),
            old_log_probs=torch.where(mask, rollouts.old_log_probs, self.padding),
            ref_log_probs=torch.where(mask, rollouts.ref_log_probs, self.padding),
        )
        return Step(rollouts, found["log_prob"], signals, self.progress, Normaliser(horizon=self.horizon))

    def wider(self, columns: int) -> "World":
        """With more padding on the right."""
        if columns == 0:
            return self
        rollouts, width = self.rollouts, self.old.shape[1]
        values = {name: value for name, value in rollouts.__dict__.items() if isinstance(value, Tensor) and value.shape[1:2] == (width,)}
        rollouts = replace(rollouts, **{name: pad_width(value, width + columns) for name, value in values.items()})
        logits, old, ref = (torch.nn.functional.pad(value, (0, 0, 0, columns), value=0.5) for value in (self.logits, self.old, self.ref))
        return replace(self, rollouts=rollouts, logits=logits, old=old, ref=ref)

    def buffer(self) -> "World":
        """Responses of an earlier policy that a buffer gives back: sixteen to each group, older ones among them, with their advantage of then."""
        groups = torch.unique(self.rollouts.group)
        found = self.extra(ExtraRequest(groups, 16, 1.0))
        rows = found.rollouts
        old = {"origin": torch.full_like(rows.origin, ORIGINS.index("replay")), "age": rows.row_id % 3 + 1, "row_id": rows.row_id + EXTRA_ROWS}
        return replace(found, rollouts=replace(rows, **old, advantage=group_advantage(rows.reward, rows.group)))

    def extra(self, request: ExtraRequest) -> "World":
        """The responses that `request` asks for: the same for a group wherever it stands in the batch. Not yet advantaged."""
        parts = []
        for group in request.groups.tolist():
            generator = torch.Generator().manual_seed(self.seed * 7919 + int(group) + 1)
            part = _responses(generator, 1, request.samples, self.horizon, self.old.shape[2], request.temperature, drift=0.0)
            first = torch.arange(request.samples) + EXTRA_ROWS + int(group) * 1000
            known = {"row_id": first, "group": torch.full_like(first, int(group)), "origin": torch.full_like(first, ORIGINS.index("branch"))}
            parts.append(replace(part, rollouts=replace(part.rollouts, **known, advantage=torch.zeros(request.samples, 1, dtype=self.old.dtype))))
        return join_worlds(parts)


def _inside(request: Request, logits: Float[Tensor, "response token vocab"], ids: Int[Tensor, "response token"]) -> Tensor:
    """What stands for the network's inside: hidden states are the logits themselves, attention entropies a fraction read off one of them, and
    the policy of a block the full one at half its sharpness, so that it has a gradient in the logits."""
    if isinstance(request, LayerLogProb):
        return token_signals_from_logits(logits / 2, ids, [LogProb()])["log_prob"]
    return torch.sigmoid(logits[..., 0]) if isinstance(request, AttentionEntropy) else logits


def _asks_log_prob(needs: Sequence[Need]) -> bool:
    return any(need.key == "current.log_prob" for need in needs)


def world(seed: int = 0, *, groups: int = 4, samples: int = 4, width: int = 12, vocab: int = 13) -> World:
    """Groups of responses with uneven lengths, peaked and flat positions, mixed rewards, text outside the loss, and ratios away from 1.

    Row and group ids are arbitrary, as in the middle of a run. float64.
    """
    generator = torch.Generator().manual_seed(seed)
    found = _responses(generator, groups, samples, width, vocab, temperature=1.0, drift=0.3)
    return replace(found, seed=seed, rollouts=replace(found.rollouts, row_id=found.rollouts.row_id + 1000 * seed))


def _responses(generator: torch.Generator, groups: int, samples: int, width: int, vocab: int, temperature: float, drift: float) -> World:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = groups * samples
    sharpness = torch.exp(0.9 * normal(rows, width, 1) + 0.5)
    old = sharpness * normal(rows, width, vocab)
    probabilities = torch.softmax(old / temperature, dim=-1).reshape(-1, vocab)
    ids = torch.multinomial(probabilities, 1, generator=generator).reshape(rows, width)
    length = torch.randint(max(1, width // 4), width + 1, (rows,), generator=generator)
    length[0] = width
    text = torch.arange(width) < length[:, None]
    tool = torch.zeros_like(text)
    tool[1 % rows, 1 : max(1, width // 4)] = width > 4  # a tool's answer inside a response
    group = torch.arange(groups).repeat_interleave(samples)
    chance = torch.linspace(0.3, 0.8, groups, dtype=torch.float64)[group]
    correct = (torch.rand(rows, generator=generator, dtype=torch.float64) < chance).double()
    style = 0.25 * torch.rand(rows, generator=generator, dtype=torch.float64) * (group % 2)  # a second reward in every other group
    reward = correct + style
    rollouts = Rollouts.of(
        text & ~tool,
        row_id=100 + 3 * torch.randperm(rows, generator=generator),
        group=7 + 5 * group,
        completion_ids=ids,
        completion_mask=text,
        sampling_temperature=torch.full((rows, width), float(temperature), dtype=torch.float64),
        reward=reward,
        reward_parts=torch.stack([correct, style], dim=1),
        correct=correct,
        truncated=(length == width) & (correct == 0),
        advantage=group_advantage(reward, group),
        turn=torch.zeros(rows, width, dtype=torch.long),
        segment=(torch.arange(width) >= width // 2).long().expand(rows, width).clone(),
        answer=tuple(str(int(value)) for value in correct.tolist()),
        text=tuple(" ".join(str(token) for token in line) for line in ids.tolist()),
    )
    logits, ref = old + drift * normal(rows, width, vocab), old + 0.2 * normal(rows, width, vocab)
    return World(rollouts, logits, old, ref)


def group_advantage(reward: Float[Tensor, " response"], group: Int[Tensor, " response"]) -> Float[Tensor, "response 1"]:
    """(reward - group mean) / (group std + 1e-4), sample std, as TRL scales; 0 in a group of one."""
    same = group[:, None] == group[None, :]
    count = same.sum(-1)
    centred = reward - torch.where(same, reward[None, :], 0.0).sum(-1) / count
    square = torch.where(same, centred[None, :] ** 2, 0.0).sum(-1) / (count - 1).clamp(min=1)
    return (centred / (square.sqrt() + 1e-4))[:, None]


def join_worlds(parts: Sequence[World]) -> World:
    """All rows of `parts` in order, padded to the widest."""
    width = max(part.old.shape[1] for part in parts)
    parts = [part.wider(width - part.old.shape[1]) for part in parts]
    return replace(
        parts[0],
        rollouts=concatenate([part.rollouts for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        old=torch.cat([part.old for part in parts]),
        ref=torch.cat([part.ref for part in parts]),
    )


def probed(scene: World) -> Probed:
    """Twelve prompts of all degrees of difficulty, eight responses to each, from the world's seed."""
    generator = torch.Generator().manual_seed(scene.seed)
    chance = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)[torch.randperm(12, generator=generator), None]
    correct = (torch.rand(12, 8, generator=generator, dtype=torch.float64) < chance).double()
    length = torch.randint(1, scene.horizon + 1, (12, 8), generator=generator)
    return Probed(5 + 3 * torch.arange(12), correct, correct, length)


# --- a host's clocks, played


@dataclass(frozen=True)
class Rolled:
    """What the rollout stages decided, for comparison; None where the intervention has no such stage."""

    request: ExtraRequest | None = None
    branches: Branches | None = None
    forks: Forked | None = None
    temperature: Float[Tensor, "response token"] | None = None
    keep: Bool[Tensor, " response"] | None = None
    edit: RowEdit | None = None
    collected: State | None = None


@dataclass(frozen=True)
class Outcome:
    """One played update. `gradient` is of the loss with respect to the logits of `rollouts`' rows, in their order."""

    rollouts: Rollouts
    rolled: Rolled
    stats: ChainStats | None
    loss: Float[Tensor, ""]
    gradient: Float[Tensor, "response token vocab"]
    touched: Bool[Tensor, "response token"]
    state: State

    def by_row(self) -> "Outcome":
        """The same with rows in the order of their ids."""
        order = torch.argsort(self.rollouts.row_id)
        return replace(self, rollouts=self.rollouts.take(order), gradient=self.gradient[order], touched=self.touched[order])


def roll(link: Intervention | None, world: World, state: State, rng: RowRng) -> tuple[World, Rolled]:
    """The rollout clock: drafts and branches, forks, extra samples, temperatures, score, reward, filter (dropped rows leave the loss), advantage, rows."""
    needs = () if link is None else link.needs
    drafted = drafts_of(world, link, state) if isinstance(link, Regenerate) else None
    rolled = Rolled()
    if drafted is not None and isinstance(link, Regenerate):
        rolled = Rolled(branches=link.branches(drafted.seen, state, rng.child(0)))
        world = branched(world, drafted, rolled.branches)
    if isinstance(link, Fork):
        world, found = forked(world, link, state, rng)
        rolled = replace(rolled, forks=found)
    world = world.scored(needs)
    extra = None
    if isinstance(link, Extra):
        rolled = replace(rolled, request=link.extra(world.rollouts, world.progress, state))
        extra = None if rolled.request is None else world.extra(rolled.request).scored(needs)
    if isinstance(link, Sample):
        live = world.rollouts.completion_mask
        raw = torch.where(live[:, :, None], world.old, world.padding)  # a finished response's logits are anything
        chosen = torch.stack([link.temperature(raw[:, token], 1.0, state) for token in range(raw.shape[1])], dim=1)
        rolled = replace(rolled, temperature=torch.where(live, chosen, 1.0))
        world = replace(world, rollouts=replace(world.rollouts, sampling_temperature=rolled.temperature))
    if isinstance(link, Replay):
        extra = world.buffer().scored(needs)
    rollouts = world.rollouts
    if isinstance(link, Reward):
        reward = link.reward(rollouts, state)
        rollouts = replace(rollouts, reward=reward, advantage=group_advantage(reward, rollouts.group))
    if isinstance(link, Filter):
        rolled = replace(rolled, keep=link.keep(rollouts, state))
    if isinstance(link, Advantage):
        rollouts = replace(rollouts, advantage=link.advantage(rollouts, state))
    if rolled.keep is not None:
        rollouts = replace(rollouts, trained_mask=rollouts.trained_mask & rolled.keep[:, None])
    world = replace(world, rollouts=rollouts)
    if isinstance(link, Collect):
        rolled = replace(rolled, collected=link.collect(rollouts, state))
    if isinstance(link, Rows):
        rolled = replace(rolled, edit=link.rows(rollouts, None if extra is None else extra.rollouts, state, rng.child(0)))
        world = edited(world, extra, rolled.edit)
    return world, rolled


@dataclass(frozen=True)
class Drafted:
    """What a link that re-generates is shown, and where in the world the drafts and the other responses stand."""

    seen: Drafts
    first: Int[Tensor, " response"]
    others: Int[Tensor, " branch"]


def fitting(link: Intervention | None) -> int:
    """A number of responses to a prompt that `link` can make up: 4 unless it needs another."""
    return next(samples for samples in (4, 8, 16, *range(2, 65)) if not isinstance(link, Regenerate) or not link.misfit(samples))


def drafts_of(world: World, link: Regenerate, state: State) -> Drafted | None:
    """The first responses of every group in the order of row ids, scored; None where the link cuts nothing, or cannot make up such groups."""
    order = torch.argsort(world.rollouts.row_id)
    groups = [order[world.rollouts.group[order] == value] for value in torch.unique(world.rollouts.group)]
    samples = min(map(len, groups))
    count = None if samples != max(map(len, groups)) or link.misfit(samples) else link.drafts(samples, world.progress, state)
    if count is None:
        return None
    first, others = torch.cat([rows[:count] for rows in groups]), torch.cat([rows[count:] for rows in groups])
    wanted = [Need(need.signal, policy="old") for need in link.needs if need.policy == "draft"]
    rollouts = world.take(first).scored(wanted).rollouts
    signals = {key.replace("old.", "draft.", 1): value for key, value in rollouts.signals.items()}
    texts = {token: f"<{token}>" for token in range(world.old.shape[2])}
    return Drafted(Drafts(replace(rollouts, signals=signals), samples - count, world.old.shape[1], texts), first, others)


def branched(world: World, drafted: Drafted, branches: Branches) -> World:
    """`world` with the other responses begun as `branches` says: what they took over is their parent's and out of the loss, the rest their own."""
    rollouts, others, parent = world.rollouts, drafted.others, drafted.first[branches.parent]
    position = torch.arange(world.old.shape[1])
    kept, fresh = position < branches.cut[:, None], position == branches.cut[:, None]

    def joined(value: Tensor) -> Tensor:
        out = value.clone()
        out[others] = torch.where(kept[..., None] if value.ndim == 3 else kept, value[parent], value[others])
        return out

    text, trained, origin = rollouts.completion_mask.clone(), rollouts.trained_mask.clone(), rollouts.origin.clone()
    text[others] = kept | fresh | text[others]
    trained[others] = ~kept & (fresh | trained[others])
    origin[others] = torch.where(branches.cut > 0, ORIGINS.index("branch"), origin[others])
    ids = joined(rollouts.completion_ids)
    rollouts = replace(rollouts, completion_ids=ids, completion_mask=text, trained_mask=trained, origin=origin)
    return replace(world, rollouts=rollouts, logits=joined(world.logits), old=joined(world.old), ref=joined(world.ref))


def edited(world: World, extra: World | None, edit: RowEdit) -> World:
    """`world` after `edit`: the extra rows come with their own ids and masks and with the advantage that the edit gives them."""
    if extra is not None and len(edit.target):
        rows = torch.arange(len(world.rollouts))
        rows[edit.target] = len(rows) + edit.source
        world = replace(join_worlds([world, extra]).take(rows), padding=world.padding)
    advantage, trained = world.rollouts.advantage.clone(), world.rollouts.trained_mask.clone()
    advantage[edit.target] = edit.advantage[:, None].to(advantage.dtype)
    if edit.dropped is not None:
        trained[edit.dropped] = False
    return replace(world, rollouts=replace(world.rollouts, advantage=advantage, trained_mask=trained))


def play(
    link: Intervention | None,
    world: World,
    *,
    state: State | None = None,
    rng: RowRng = RNG,
    objective: Objective | None = None,
    slices: int = 1,
    ranks: int = 1,
) -> Outcome:
    """One update under `link` (None: the objective alone), cut into `slices` micro-batches on each of `ranks` processes.

    objective: defaults to the link's recipe. Gradients of ranks are averaged, as a data-parallel trainer does.
    """
    control = Chain() if link is None else chain(link)
    state = ({} if link is None else link.init()) if state is None else state
    if objective is None:
        objective = Objective.named("grpo") if link is None else link.recipe()
    world, rolled = roll(link, world, state, rng)
    state = state if rolled.collected is None else rolled.collected
    states = () if link is None else (state,)
    leaf = world.logits.clone().requires_grad_(True)
    step = world.step(control.needs, leaf)
    parts = [part for share in _shares(step, ranks) for part in micro_batches(share, len(share.rollouts) // slices)]
    stats = survey(join_steps(parts), objective, control, states, rng) if control.links else None
    results = [policy_loss(part, objective, control, stats, states, rng) for part in parts]
    loss = sum((result.loss for result in results), torch.zeros((), dtype=leaf.dtype)) / ranks
    gradient = torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else torch.zeros_like(leaf)
    touched = torch.cat([_touched(result.observed.touched.values(), part.mask) for result, part in zip(results, parts, strict=True)])
    after = advance(control, states, stats, world.progress)
    return Outcome(step.rollouts, rolled, stats, loss.detach(), gradient, touched, after[0] if after else {})


def _shares(step: Step, ranks: int) -> list[Step]:
    """The ranks' slices, with the normaliser that TRL gives them: tokens of all ranks over their number."""
    rows = len(step.rollouts)
    normaliser = replace(step.normaliser, token_divisor=step.mask.sum().clamp(min=1) / ranks, rows=rows, world_size=ranks)
    if ranks == 1:
        return [step]
    return [replace(part, normaliser=normaliser) for part in micro_batches(step, rows // ranks)]


def _touched(masks: Iterable[Bool[Tensor, "response token"]], mask: Bool[Tensor, "response token"]) -> Bool[Tensor, "response token"]:
    touched = torch.zeros_like(mask)
    for each in masks:
        touched = touched | each
    return touched


def lived(link: Intervention, *, updates: int = 2, seed: int = 0) -> State:
    """The state after some updates in worlds of their own."""
    state = link.init()
    for index in range(updates):
        state = play(link, world(1000 + 17 * seed + index, samples=fitting(link)), state=state, rng=RowRng(seed=3, step=index)).state
    return state
