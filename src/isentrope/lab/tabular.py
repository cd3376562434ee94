"""A language model small enough to be known exactly, trained by the library's own stages: where most claims are put to the test.

The policy is a table: the logits of a token depend on the prompt, its position and the token before it, with one part shared by all
prompts. Every entropy and expected reward is a sum that is carried out, an update costs milliseconds, and interventions act through the
same `survey` and `policy_loss` as in a trainer: what differs from one is the size.

    z(token | prompt q, position t, previous v) = shared[t, v] + own[q, t, v]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from isentrope.control.cuts import Drafts
from isentrope.control.objectives import Objective
from isentrope.control.stages import (
    Advantage,
    Chain,
    Collect,
    Extra,
    Filter,
    Fork,
    Intervention,
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
from isentrope.control.step import ORIGINS, Normaliser, Progress, Rollouts, RowRng, State, Step, concatenate
from isentrope.measure.tokens import LogProb, token_signals_from_logits
from isentrope.train.replay import ReplayBuffer, Sampled

Stage = TypeVar("Stage")
Pay = Callable[[Int64[Tensor, " response"], Int64[Tensor, "response token"]], Float64[Tensor, " response"]]
"""Prompts and responses -> rewards; a response is correct where its reward is above 1/2."""


@dataclass(frozen=True)
class Task:
    """Prompts, what is paid, and the policy at the start.

    end: the token that ends a response (None: all have full length). sharing: how strongly the shared part of the table speaks; 0 makes
    prompts independent. turn: the turn that each position belongs to. answer: the positions that say the answer (None: all).
    """

    shared: Float64[Tensor, "token vocab vocab"]
    own: Float64[Tensor, "prompt token vocab vocab"]
    pay: Pay
    end: int | None = None
    sharing: float = 1.0
    turn: tuple[int, ...] | None = None
    answer: tuple[int, ...] | None = None

    @property
    def prompts(self) -> int:
        return self.own.shape[0]

    @property
    def length(self) -> int:
        return self.own.shape[1]

    @property
    def vocab(self) -> int:
        return self.own.shape[3]

    def logits(self) -> Float64[Tensor, "prompt token vocab vocab"]:
        return self.sharing * self.shared + self.own


def task(pay: Pay, seed: int, *, prompts: int = 8, length: int = 4, vocab: int = 5, sharpness: float = 1.0, forced: Sequence[int] = (), **known) -> Task:
    """Normal logits of this sharpness; at the positions `forced` one token has nearly all of the probability, as syntax has in text."""
    generator = torch.Generator().manual_seed(10_007 * seed + 1)
    own = sharpness * torch.randn(prompts, length, vocab, vocab, generator=generator, dtype=torch.float64)
    for at in forced:
        likely = torch.randint(vocab, (prompts, 1, 1), generator=generator).expand(-1, vocab, 1)
        own[:, at] = (0.2 * own[:, at]).scatter_add(-1, likely, torch.full((prompts, vocab, 1), 5.0, dtype=torch.float64))
    return Task(torch.zeros(length, vocab, vocab, dtype=torch.float64), own, pay, **known)


# --- what is known exactly


@dataclass(frozen=True)
class Exact:
    """The policy as it is. entropy: nats, mean over the tokens of its own responses. answers: pi(response | prompt) for every response.

    by_prompt, lengths: entropy and length of each prompt's own responses.
    """

    reward: float
    entropy: float
    response_entropy: float
    chance: Float64[Tensor, " prompt"]  # of a correct response
    answers: Float64[Tensor, "prompt answer"]
    length: float
    by_prompt: Float64[Tensor, " prompt"]
    lengths: Float64[Tensor, " prompt"]

    def passed(self, k: int) -> float:
        """pass@k, exact."""
        return float((1 - (1 - self.chance).clamp(0, 1) ** k).mean())


def responses(length: int, vocab: int) -> Int64[Tensor, "answer token"]:
    """Every response of full length."""
    each = torch.arange(vocab**length)
    return torch.stack([each // vocab**at % vocab for at in reversed(range(length))], dim=-1)


def live(ids: Int64[Tensor, "response token"], end: int | None) -> Tensor:
    """Tokens up to the first `end`, that one included."""
    if end is None:
        return torch.ones_like(ids, dtype=torch.bool)
    ended = (ids == end).long().cumsum(-1) - (ids == end).long()
    return ended == 0


def exact(world: Task) -> Exact:
    """By enumerating all responses: vocab^length of them."""
    ids = responses(world.length, world.vocab)
    if world.end is not None:  # what follows the end is no text: one representative each
        ids = ids[((ids == 0) | live(ids, world.end)).all(-1)]
    mask = live(ids, world.end)
    log_p = world.logits().log_softmax(-1)
    before = torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids[:, :-1]], dim=1)
    at = torch.arange(world.length)
    answers = torch.where(mask, log_p[:, at, before, ids], 0.0).sum(-1).exp()
    token_entropy = torch.where(mask, -(log_p.exp() * log_p).sum(-1)[:, at, before], 0.0)
    every = torch.arange(world.prompts).repeat_interleave(len(ids))
    paid = world.pay(every, ids.repeat(world.prompts, 1)).view(world.prompts, len(ids))
    tokens, entropy = (answers * mask.sum(-1)).sum(-1), (answers * token_entropy.sum(-1)).sum(-1)
    return Exact(
        reward=float((answers * paid).sum(-1).mean()),
        entropy=float(entropy.sum() / tokens.sum()),
        response_entropy=float(-(answers * answers.clamp(min=1e-300).log()).sum(-1).mean()),
        chance=(answers * (paid > 0.5)).sum(-1), answers=answers, length=float(tokens.mean()), by_prompt=entropy / tokens,
        lengths=tokens,
    )  # fmt: skip


# --- training


@dataclass(frozen=True)
class Settings:
    """How it is trained. samples: responses per prompt. inner: optimiser steps per generation. only: the prompts trained on (None: all).

    shuffled: every generation takes the prompts in a new order, which matters to a method that acts on the first of them.
    every: updates between exact evaluations.
    """

    updates: int = 120
    samples: int = 8
    rate: float = 2.0
    inner: int = 1
    only: tuple[int, ...] | None = None
    shuffled: bool = False
    temperature: float = 1.0
    every: int = 4


@dataclass(frozen=True)
class History:
    """Exact figures along a training, and the policy at its end. `table` holds one array per figure: reward, entropy and response_entropy
    (nats), length, pass@1, pass@8 at each evaluation; chance, by_prompt and lengths hold a column per prompt."""

    world: Task
    table: dict[str, np.ndarray]
    states: tuple[State, ...] = field(default=())

    def __getitem__(self, name: str) -> np.ndarray:
        return self.table[name]

    def at(self, level: float, name: str = "entropy") -> float:
        """`name` where the expected reward first reaches `level`, between evaluations by a straight line; NaN if it never does."""
        reward, value = self.table["reward"], self.table[name]
        after = int(np.argmax(reward >= level))
        if not (reward >= level).any():
            return float("nan")
        if after == 0:
            return float(value[0])
        share = (level - reward[after - 1]) / (reward[after] - reward[after - 1])
        return float(value[after - 1] + share * (value[after] - value[after - 1]))


def matched(base: History, other: History, name: str = "entropy", levels: int = 9) -> float:
    """Mean difference (other less base) of a figure at equal expected reward, over the rewards that both pass. NaN if there are none."""
    low = max(base["reward"][0], other["reward"][0])
    high = min(base["reward"].max(), other["reward"].max())
    if not low < high:
        return float("nan")
    gaps = np.array([other.at(level, name) - base.at(level, name) for level in np.linspace(low, high, levels + 2)[1:-1]])
    return float(np.nanmean(gaps))


def train(
    world: Task, link: Intervention | Sequence[Intervention] = (), *, seed: int, objective: Objective | None = None, settings: Settings = Settings()
) -> History:
    """Plain stochastic gradient descent on the table under `link` (none: the objective alone).

    objective: of the first link's recipe by default. Everything random follows from `seed`. Raises ValueError for a link that forks: nothing has turns here.
    """
    links = (link,) if isinstance(link, Intervention) else tuple(link)
    control = chain(*links)
    if forking := [one.name for _, one in control.having(Fork)]:
        raise ValueError(f"train: {forking[0]} forks episodes of several turns, and a table has single responses. Train it on a game.")
    objective = objective or (links[0].recipe() if links else Objective.named("grpo"))
    generator = torch.Generator().manual_seed(7919 * seed + 3)
    states, rows = control.init(), []
    memory = Memory.of(control)
    for update in range(settings.updates):
        progress = Progress(update, settings.updates)
        if update % settings.every == 0:
            rows.append((update, exact(world)))
        rng = RowRng(seed=seed, step=update)
        rollouts, prompt = rolled(world, control, states, settings, progress, generator, rng, memory)
        states = memory.collected(states)
        for _ in range(settings.inner):
            world, states = updated(world, rollouts, prompt, control, states, objective, progress, rng, settings.rate)
    rows.append((settings.updates, exact(world)))
    table = {"update": np.array([at for at, _ in rows], dtype=float)}
    for name in ("reward", "entropy", "response_entropy", "length"):
        table[name] = np.array([found.__dict__[name] for _, found in rows])
    table["pass@1"], table["pass@8"] = (np.array([found.passed(k) for _, found in rows]) for k in (1, 8))
    for name in ("chance", "by_prompt", "lengths"):
        table[name] = np.stack([found.__dict__[name].numpy() for _, found in rows])
    return History(world, table, tuple(states))


def sampled(
    world: Task, prompt: Int64[Tensor, " response"], generator: torch.Generator, temperature: float = 1.0, heat: Sequence[tuple[Sample, State]] = (),
    begun: tuple[Int64[Tensor, "response token"], Int64[Tensor, " response"]] | None = None,
) -> Int64[Tensor, "response token"]:  # fmt: skip
    """One response to each of these prompts. heat: links that choose the temperature of every token, with their states. begun: responses, and how
    many tokens of each are kept."""
    logits = world.logits()
    before, ids = torch.zeros_like(prompt), []
    for at in range(world.length):
        raw, scale = logits[prompt, at, before], torch.full((len(prompt),), temperature, dtype=torch.float64)
        for link, state in heat:
            scale = scale * link.temperature(raw, temperature, state) / temperature
        before = torch.multinomial((raw / scale[:, None]).softmax(-1), 1, generator=generator).squeeze(-1)
        if begun is not None:
            before = torch.where(begun[1] > at, begun[0][:, at], before)
        ids.append(before)
    found = torch.stack(ids, dim=1)
    return torch.where(live(found, world.end), found, 0)


def row_logits(world: Task, prompt: Int64[Tensor, " response"], ids: Int64[Tensor, "response token"]) -> Float64[Tensor, "response token vocab"]:
    """The logits that every token of these responses was chosen from."""
    before = torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids[:, :-1]], dim=1)
    return world.logits()[prompt[:, None], torch.arange(world.length), before]


def scored(world: Task, prompt: Tensor, ids: Tensor, control: Chain, first: int, group: Tensor, origin: str = "policy") -> Rollouts:
    """Rollouts with rewards and the signals of the behaviour policy that the chain declares."""
    mask = live(ids, world.end)
    wanted = [need.signal for need in control.needs if need.policy == "old"]
    with torch.no_grad():
        found = token_signals_from_logits(row_logits(world, prompt, ids), ids, [LogProb(grad=False), *wanted])
    reward = world.pay(prompt, ids)
    rows = len(ids)
    said = tuple(" ".join(map(str, line)) for line in ids.tolist())
    answer = said if world.answer is None else tuple(" ".join(map(str, line)) for line in ids[:, list(world.answer)].tolist())
    return Rollouts.of(
        mask, row_id=first + torch.arange(rows), group=group, completion_ids=ids, reward=reward, reward_parts=reward[:, None],
        origin=torch.full((rows,), ORIGINS.index(origin)), correct=(reward > 0.5).double(), old_log_probs=found["log_prob"],
        sampling_log_probs=found["log_prob"], sampling_temperature=torch.ones(mask.shape, dtype=torch.float64),
        advantage=torch.zeros(rows, 1, dtype=torch.float64), signals={f"old.{signal.key}": found[signal.key] for signal in wanted},
        answer=answer, text=said, turn=None if world.turn is None else torch.tensor(world.turn).expand(mask.shape).clone(),
    )  # fmt: skip


def rolled(
    world: Task, control: Chain, states: Sequence[State], settings: Settings, progress: Progress, generator: torch.Generator, rng: RowRng,
    memory: "Memory | None" = None,
) -> tuple[Rollouts, Tensor]:  # fmt: skip
    """The rollout clock: sample, score, reward, filter, advantage, rows; and the prompt of every row. memory: what links keep between generations."""
    memory = memory or Memory.of(control)
    chosen = torch.arange(world.prompts) if settings.only is None else torch.tensor(settings.only)
    known, groups = torch.arange(world.prompts), chosen  # the prompt of every group: by itself, unless they are shuffled
    if settings.shuffled:
        known, groups = chosen[torch.randperm(len(chosen), generator=generator)], torch.arange(len(chosen))
    group = groups.repeat_interleave(settings.samples)
    prompt = known[group]
    heat = [(link, states[index]) for index, link in _having(control, Sample)]
    ids = sampled(world, prompt, generator, settings.temperature, heat)
    ids, kept = _regenerated(world, ids, group, known, control, states, progress, generator, rng)
    rollouts = scored(world, prompt, ids, control, progress.step * len(prompt), group)
    rollouts = replace(
        rollouts, trained_mask=rollouts.trained_mask & (torch.arange(world.length) >= kept[:, None]),
        origin=torch.where(kept > 0, ORIGINS.index("branch"), rollouts.origin),
    )  # fmt: skip
    extras = {}
    for index, link in _having(control, Extra):
        request = link.extra(rollouts, progress, states[index])
        if request is not None:
            asked = request.groups.repeat_interleave(request.samples)
            ids = sampled(world, known[asked], generator, request.temperature)
            extra = scored(world, known[asked], ids, control, 1 << 40, asked, "branch")
            extras[index] = replace(extra, advantage=group_advantage(extra.reward, extra.group))
    for index, link in _having(control, Reward):
        rollouts = replace(rollouts, reward=link.reward(rollouts, states[index]))
    rollouts = replace(rollouts, advantage=group_advantage(rollouts.reward, rollouts.group))
    for index, link in _having(control, Filter):
        rollouts = replace(rollouts, trained_mask=rollouts.trained_mask & link.keep(rollouts, states[index])[:, None])
    for index, link in _having(control, Advantage):
        rollouts = replace(rollouts, advantage=link.advantage(rollouts, states[index]))
    as_sampled = rollouts
    for index, link in _having(control, Rows):
        extra = extras.get(index) or memory.offered(index, progress.step)
        edit = link.rows(rollouts, extra, states[index], rng.child(index))
        if edit.clear:
            memory.buffers[index].clear()
        rollouts = _edited(rollouts, extra, edit)
    memory.take(as_sampled, states, progress.step)
    return rollouts, known[rollouts.group]


@dataclass
class Memory:
    """What the links of a chain keep between generations: buffers of those that replay, and the last generation for those that collect."""

    control: Chain
    buffers: dict[int, ReplayBuffer]
    last: Rollouts | None = None

    @classmethod
    def of(cls, control: Chain) -> "Memory":
        return cls(control, {index: ReplayBuffer(link.capacity, link.max_age) for index, link in _having(control, Replay)})

    def offered(self, index: int, step: int) -> Rollouts | None:
        held = self.buffers[index].offered(step) if index in self.buffers else None
        return None if held is None else held.rollouts

    def take(self, rollouts: Rollouts, states: Sequence[State], step: int) -> None:
        """A generation as it was sampled, rewarded and advantaged."""
        self.last, none = rollouts, torch.zeros(len(rollouts), 0, dtype=torch.long)
        for index, link in _having(self.control, Replay):
            wanted = link.remember(rollouts, states[index]).nonzero().squeeze(1)
            self.buffers[index].add(Sampled(rollouts.take(wanted), none[wanted], none[wanted]), step)

    def collected(self, states: Sequence[State]) -> tuple[State, ...]:
        """The states after that generation."""
        if self.last is None:
            return tuple(states)
        collecting = dict(_having(self.control, Collect))
        return tuple(collecting[index].collect(self.last, state) if index in collecting else state for index, state in enumerate(states))


def _regenerated(
    world: Task, ids: Tensor, group: Tensor, known: Tensor, control: Chain, states: Sequence[State], progress: Progress, generator: torch.Generator, rng: RowRng
) -> tuple[Tensor, Tensor]:
    """The responses after the stage `regenerate`, and how many tokens each has taken over from a draft."""
    kept = torch.zeros_like(group)
    for index, link in _having(control, Regenerate):
        samples = int((group == group[0]).sum())
        first = link.drafts(samples, progress, states[index])
        if first is None:
            continue
        late = torch.arange(len(group)) % samples >= first
        own = known[group[~late]]
        wanted = [need.signal for need in control.links[index].needs if need.policy == "draft"]
        found = token_signals_from_logits(row_logits(world, own, ids[~late]), ids[~late], [LogProb(grad=False), *wanted])
        rollouts = Rollouts.of(
            live(ids[~late], world.end), row_id=progress.step * len(group) + (~late).nonzero().squeeze(1), group=group[~late], completion_ids=ids[~late],
            signals={f"draft.{signal.key}": found[signal.key] for signal in wanted},
        )  # fmt: skip
        texts = {token: f"token{token}" for token in range(world.vocab)}
        branches = link.branches(Drafts(rollouts, samples - first, world.length, texts), states[index], rng.child(index))
        begun = (ids[~late][branches.parent], branches.cut)
        ids, kept = ids.clone(), kept.clone()
        ids[late], kept[late] = sampled(world, known[group[late]], generator, begun=begun), branches.cut
    return ids, kept


def _having(control: Chain, stage: type[Stage]) -> list[tuple[int, Stage]]:
    return [(index, link) for index, link in enumerate(control.links) if isinstance(link, stage)]


def _edited(rollouts: Rollouts, extra: Rollouts | None, edit: RowEdit) -> Rollouts:
    if extra is not None and len(edit.target):
        rows = torch.arange(len(rollouts))
        rows[edit.target] = len(rows) + edit.source
        rollouts = concatenate([rollouts, extra]).take(rows)
    advantage, trained = rollouts.advantage.clone(), rollouts.trained_mask.clone()
    advantage[edit.target] = edit.advantage[:, None].to(advantage.dtype)
    if edit.dropped is not None:
        trained[edit.dropped] = False
    return replace(rollouts, advantage=advantage, trained_mask=trained)


def group_advantage(reward: Tensor, group: Tensor) -> Tensor:
    """(reward - group mean) / (group std + 1e-4), sample std, as TRL scales; [response, 1]."""
    same = (group[:, None] == group[None, :]).double()
    count = same.sum(-1)
    centred = reward - same @ reward / count
    square = same @ centred**2 / (count - 1).clamp(min=1)
    return (centred / (square.sqrt() + 1e-4))[:, None]


def updated(
    world: Task, rollouts: Rollouts, prompt: Tensor, control: Chain, states: Sequence[State], objective: Objective, progress: Progress, rng: RowRng, rate: float
) -> tuple[Task, tuple[State, ...]]:  # fmt: skip
    """One optimiser step of the table on these rollouts: survey, loss, gradient, controllers."""
    leaves = (world.shared.clone().requires_grad_(True), world.own.clone().requires_grad_(True))
    step = _step(replace(world, shared=leaves[0], own=leaves[1]), rollouts, prompt, control, progress)
    stats = survey(step, objective, control, states, rng) if control.links else None
    loss = policy_loss(step, objective, control, stats, states, rng).loss
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else (None, None)
    shared, own = (leaf.detach() if slope is None else (leaf - rate * slope).detach() for leaf, slope in zip(leaves, gradients, strict=True))
    return replace(world, shared=shared, own=own), advance(control, states, stats, progress)


def _step(world: Task, rollouts: Rollouts, prompt: Tensor, control: Chain, progress: Progress) -> Step:
    wanted = [need.signal for need in control.needs if need.policy == "current" and need.signal.key != "log_prob"]
    found = token_signals_from_logits(row_logits(world, prompt, rollouts.completion_ids), rollouts.completion_ids, [LogProb(), *wanted])
    signals = {f"current.{name}": value for name, value in found.items()}
    return Step(rollouts, found["log_prob"], signals, progress, Normaliser(horizon=world.length))
