"""The stages of a policy-gradient step, the chain that runs them, and the pure loss that a host calls.

An intervention is a frozen dataclass of its hyper-parameters with one method for each stage that its paper edits; which stages
it has is read off its methods (the protocols below). Stages run on four clocks:

- before training, once: `select` (which prompts, from what the starting policy makes of them)
- rollout, once per generation and over all ranks: `extra`, `temperature`, `branches`, `forks`, `reward`, `keep`, `advantage`, `rows`, `remember`, `collect`
- update, once per optimiser step over all its slices and ranks, without gradient: `survey`
- micro-batch, with gradient: `policy`, `clip`, `weight`, `regularise`
- end of the update: `update`

Every stage method receives the intervention's own `state` (a flat mapping, `{}` for one that remembers nothing) and returns
new values; nothing is mutated.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.cuts import Branches, Drafts
from isentrope.control.forks import Standing
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.step import Need, Progress, Rollouts, RowRng, State, Stats, Step
from isentrope.measure.tokens import Signal


class Intervention:
    """Base of every intervention: identity and the defaults of what is declared. Subclasses are frozen dataclasses.

    name: the registry key (`clip-cov`). slug: the paper's sheet. source: paper, equation, code.
    effect: on entropy, in one sentence.
    replaces: options of the trainer that mean the same and are refused together with it.
    opposes: names of interventions that undo this one; chaining both warns.
    recorded: whether the recorded official outputs of its slug, where there are some, are of this intervention.
    expected_failures: contract check -> reason, strict (one that passes is a failure).
    """

    name: ClassVar[str]
    slug: ClassVar[str | None] = None
    source: ClassVar[str] = ""
    effect: ClassVar[str] = ""
    replaces: ClassVar[frozenset[str]] = frozenset()
    opposes: ClassVar[frozenset[str]] = frozenset()
    recorded: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[Need, ...]:
        """Signals that the host must provide."""
        return ()

    @property
    def expected_failures(self) -> Mapping[str, str]:
        return {}

    @property
    def dense(self) -> str:
        """Why it acts on nearly every token by design; empty for one that selects. Whether it bites is then told by the gradient alone."""
        return ""

    @property
    def late(self) -> int:
        """Updates of the preset `control-check` before it can act at all: a buffer fills."""
        return 0

    def init(self) -> State:
        """The state before the first update."""
        return {}

    def neutral(self) -> "Intervention":
        """The same intervention with the hyper-parameters that leave its recipe's objective exactly as it is."""
        raise NotImplementedError(f"{type(self).__name__} must say which setting of its own is neutral.")

    def embedded(self) -> "Intervention":
        """The setting that bites on the embedded model (preset `control-check`); default: as constructed."""
        return self

    def recipe(self) -> Objective:
        """The objective that the paper combines this with; the neutral setting equals it."""
        return Objective.named("grpo")

    def idle_under(self, objective: Objective, *, on_policy: bool = False) -> str:
        """Why this can do nothing under an objective, or "". `on_policy`: one update per generation, so every ratio is 1. The host tells it once."""
        return ""


# --- what stages return


@dataclass(frozen=True)
class ProbeRequest:
    """What is sampled before training: `samples` responses to each of `prompts` prompts of the training set, drawn by key (None: to all)."""

    samples: int
    prompts: int | None = None


@dataclass(frozen=True)
class Probed:
    """What the starting policy made of prompts of the training set, in the order of their positions."""

    position: Int[Tensor, " prompt"]
    reward: Float[Tensor, "prompt sample"]
    correct: Float[Tensor, "prompt sample"]  # NaN where no verifier spoke
    length: Int[Tensor, "prompt sample"]  # tokens


@dataclass(frozen=True)
class ExtraRequest:
    """More responses to be sampled before the `rows` stage: for these groups of the batch, `samples` each, at `temperature`.

    They arrive as `Rollouts` of origin "branch", scored by the same reward functions.
    """

    groups: Int[Tensor, " chosen"]  # group ids
    samples: int
    temperature: float


@dataclass(frozen=True)
class RowEdit:
    """Rows of the batch replaced by rows of the extra rollouts, and rows taken out of the loss.

    The number of rows stays; `dropped` rows are fully masked. Token counts are the host's to recompute. For a link that remembers (`Replay`) the
    sources are positions in its buffer, and `clear` empties that.
    """

    target: Int[Tensor, " replaced"]  # positions in the batch
    source: Int[Tensor, " replaced"]  # positions in the extra rollouts
    advantage: Float[Tensor, " replaced"]
    dropped: Int[Tensor, " dropped"] | None = None  # positions in the batch
    clear: bool = False


@dataclass(frozen=True)
class TokenWeight:
    """A multiplier per token of the policy loss. `keep` False removes the token; `denominator` "kept" removes it from the
    divisor too, "all" leaves it there."""

    value: Float[Tensor, "response token"] | None = None
    keep: Bool[Tensor, "response token"] | None = None
    denominator: str = "all"

    def touched(self, mask: Bool[Tensor, "response token"]) -> Bool[Tensor, "response token"]:
        out = torch.zeros_like(mask)
        if self.value is not None:
            out = out | (self.value.detach() != 1)
        if self.keep is not None:
            out = out | ~self.keep
        return out & mask


@dataclass(frozen=True)
class PolicyPair:
    """The policy of the ratio, with gradient, and the one it is compared with: log-probs of the sampled tokens, nats."""

    log_probs: Float[Tensor, "response token"]
    old_log_probs: Float[Tensor, "response token"]


@dataclass(frozen=True)
class Penalty:
    """A term added to the loss: `token` is aggregated like the policy loss; `total` is this slice's part of a sum that
    runs over all slices and ranks of the update. `touched` says on which tokens it acts."""

    token: Float[Tensor, "response token"] | None = None
    total: Float[Tensor, ""] | None = None
    touched: Bool[Tensor, "response token"] | None = None


# --- the stages, each a protocol with one method


@runtime_checkable
class Select(Protocol):
    def probe(self) -> ProbeRequest | None:
        """What the host samples before training; None: nothing is selected."""
        ...

    def select(self, probed: Probed) -> Int[Tensor, " chosen"]:
        """Positions, among those probed, of the prompts that the run trains on."""
        ...


@runtime_checkable
class Extra(Protocol):
    def extra(self, rollouts: Rollouts, progress: Progress, state: State) -> ExtraRequest | None: ...


@runtime_checkable
class Sample(Protocol):
    def temperature(self, logits: Float[Tensor, "response vocab"], base: float, state: State) -> Float[Tensor, " response"]:
        """The temperature of the next token of every response, from the raw logits of this decoding step."""
        ...


@runtime_checkable
class Regenerate(Protocol):
    """Some responses of a group are sampled first and scored (signals of policy "draft"); the others go on from where those are cut.

    All of them form one group. What a branch took over stays in its text, which is rewarded whole, and leaves the loss.
    """

    def misfit(self, samples: int) -> str:
        """Why a group of `samples` responses cannot be made up so; "" where it can."""
        ...

    def drafts(self, samples: int, progress: Progress, state: State) -> int | None:
        """How many of a group's `samples` responses are sampled first; None: all of them, and nothing is cut."""
        ...

    def branches(self, drafts: Drafts, state: State, rng: RowRng) -> Branches: ...


@runtime_checkable
class Fork(Protocol):
    """In a game of several turns: some episodes of a group begin at its prompt, the others where one of them stands after a reply.

    A group that still lacks episodes when none of its own can go on begins another at the prompt.
    """

    shared: str  # "all": what an episode took over is trained in its row too; "once": it leaves the loss there

    def pilot(self) -> bool:
        """Whether one episode of every group is played beforehand, to be measured and thrown away."""
        ...

    def roots(self, samples: int, pilot: Standing | None, state: State) -> int:
        """How many of a group's `samples` episodes begin at its prompt, at least one."""
        ...

    def forks(self, standing: Sequence[Standing], free: int, made: int, state: State, rng: RowRng) -> Sequence[int]:
        """How many more episodes go on from each of these, which are of one group and stand after a reply; `free` are left, `made` were added so far."""
        ...


@runtime_checkable
class Reward(Protocol):
    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]: ...


@runtime_checkable
class Filter(Protocol):
    rounds: int  # how many times dropped groups are sampled again from fresh prompts

    def keep(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]: ...


@runtime_checkable
class Advantage(Protocol):
    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]: ...


@runtime_checkable
class Rows(Protocol):
    def rows(self, rollouts: Rollouts, extra: Rollouts | None, state: State, rng: RowRng) -> RowEdit: ...


@runtime_checkable
class Replay(Protocol):
    """A link with a buffer, which the host keeps: `rows` is given it as the extra rollouts, of origin "replay", with the log-probs of the policy that
    sampled them, the reward and advantage of then, and their age in updates; None while it is empty."""

    capacity: int  # responses in the buffer; the oldest give way
    max_age: int  # updates; what is older is forgotten

    def remember(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        """Which of this generation's responses go into the buffer."""
        ...


@runtime_checkable
class Collect(Protocol):
    def collect(self, rollouts: Rollouts, state: State) -> State:
        """The state after a generation, from all its responses as they were sampled, rewarded and advantaged."""
        ...


@runtime_checkable
class Survey(Protocol):
    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """Statistics of the whole update. `view` holds every row of all slices and ranks, detached, with ratio and bounds."""
        ...


@runtime_checkable
class Policy(Protocol):
    def policy(self, step: Step) -> "Float[Tensor, 'response token'] | PolicyPair":
        """The log-probs that form the ratio; a pair where the policy they are compared with is another one too."""
        ...


@runtime_checkable
class Clip(Protocol):
    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds: ...


@runtime_checkable
class Weight(Protocol):
    def weight(self, step: Step, stats: Stats | None, state: State) -> TokenWeight: ...


@runtime_checkable
class Regularise(Protocol):
    def regularise(self, step: Step, stats: Stats | None, state: State) -> Penalty: ...


@runtime_checkable
class Update(Protocol):
    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """The state after an optimiser step, from what was surveyed in it."""
        ...


ROLLOUT_STAGES: Mapping[str, type] = {
    "select": Select, "extra": Extra, "sample": Sample, "regenerate": Regenerate, "fork": Fork, "reward": Reward, "filter": Filter, "advantage": Advantage,
    "rows": Rows, "replay": Replay, "collect": Collect,
}  # fmt: skip
UPDATE_STAGES: Mapping[str, type] = {
    "survey": Survey, "policy": Policy, "clip": Clip, "weight": Weight, "regularise": Regularise, "update": Update,
}  # fmt: skip
STAGES: Mapping[str, type] = {**ROLLOUT_STAGES, **UPDATE_STAGES}


def stages_of(intervention: Intervention) -> tuple[str, ...]:
    """Names of the stages that this intervention has, in the order in which they run."""
    return tuple(name for name, protocol in STAGES.items() if isinstance(intervention, protocol))


# --- the chain


@dataclass(frozen=True)
class ChainStats:
    """What the links' surveys found, by link, and the share of the update's trained tokens that stays in the divisor
    (None while no link removes tokens from it; `narrowing` are the links that do)."""

    links: tuple[Stats | None, ...]
    kept_share: Float[Tensor, ""] | None = None
    narrowing: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chain:
    """Interventions applied in order. Build it with `chain(...)`, which flattens and checks.

    Clips: the later link wins and a warning says so. Weights multiply and kept tokens intersect. Penalties add.
    At most one link may choose the policy whose log-probs form the ratio, and at most one may re-generate.
    """

    links: tuple[Intervention, ...] = ()
    keys: tuple[str, ...] = ()  # one name per link, made unique

    @property
    def needs(self) -> tuple[Need, ...]:
        wanted = {need.key: need for link in self.links for need in link.needs}
        for link in self.links:
            for need in link.needs:
                if gradient(need.signal):
                    wanted[need.key] = need
        return tuple(wanted.values())

    def init(self) -> tuple[State, ...]:
        return tuple(link.init() for link in self.links)

    def having(self, stage: type) -> list[tuple[int, Intervention]]:
        """(index, link) of the links with this stage."""
        return [(index, link) for index, link in enumerate(self.links) if isinstance(link, stage)]

    def without(self, index: int) -> "Chain":
        """The chain with one link taken out, for attribution."""
        return Chain(self.links[:index] + self.links[index + 1 :], self.keys[:index] + self.keys[index + 1 :])


def gradient(signal: Signal) -> bool:
    """Whether the signal was asked for with its gradient."""
    return bool(signal.__dict__.get("grad", False))


def chain(*links: "Intervention | Chain") -> Chain:
    """One chain of these interventions (chains among them are flattened).

    Raises ValueError if two links choose the policy, or say how a group's responses begin, or a link is no intervention. Warns where one link undoes another.
    """
    flat: list[Intervention] = []
    for link in links:
        if isinstance(link, Chain):
            flat.extend(link.links)
        elif isinstance(link, Intervention):
            flat.append(link)
        else:
            raise ValueError(f"chain: every link must be an Intervention. Got {link!r}. By name: isentrope.control.registry.build([...]).")
    policies = [link.name for link in flat if isinstance(link, Policy)]
    if len(policies) > 1:
        raise ValueError(f"chain: only one link may choose the policy of the ratio. Got {', '.join(policies)}.")
    cutting = [link.name for link in flat if isinstance(link, Regenerate | Fork)]
    if len(cutting) > 1:
        raise ValueError(f"chain: only one link may say how the responses of a group begin. Got {', '.join(cutting)}.")
    clips = [link.name for link in flat if isinstance(link, Clip)]
    if len(clips) > 1:
        warnings.warn(f"chain: {', '.join(clips)} all set the clip bounds; each sees the bounds of the one before, the last wins.", stacklevel=2)
    for first in flat:
        for second in flat:
            if second.name in first.opposes:
                warnings.warn(f"chain: {first.name} undoes {second.name}; drop one of them.", stacklevel=2)
    counts: dict[str, int] = {}
    keys = []
    for link in flat:
        counts[link.name] = counts.get(link.name, 0) + 1
        keys.append(link.name if counts[link.name] == 1 else f"{link.name}#{counts[link.name]}")
    return Chain(tuple(flat), tuple(keys))


# --- the loss


@dataclass(frozen=True)
class Observed:
    """What happened to every token, detached. `weight` is the product of the chain's weights (0 where removed); `clipped`
    marks tokens whose clipped branch was taken; `touched` is keyed by link."""

    ratio: Float[Tensor, "response #token"]
    weight: Float[Tensor, "response token"]
    clipped_low: Bool[Tensor, "response token"]
    clipped_high: Bool[Tensor, "response token"]
    touched: Mapping[str, Bool[Tensor, "response token"]] = field(default_factory=dict)
    kl: Float[Tensor, "response token"] | None = None


@dataclass(frozen=True)
class LossResult:
    """The loss to be differentiated, scalars worth logging (detached), and what happened per token."""

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor]
    observed: Observed


def policy_loss(
    step: Step,
    objective: Objective,
    control: Chain = Chain(),
    stats: ChainStats | None = None,
    state: Sequence[State] | None = None,
    rng: RowRng = RowRng(),
) -> LossResult:
    """The policy-gradient loss of one slice under `objective` and a chain of interventions. Pure; hosts call it, and so may anyone.

    `stats` is what `survey` found over the whole update; without it this slice is taken to be the whole update.
    The losses of all slices and ranks add up (ranks: average) to the loss of the update.
    """
    state = control.init() if state is None else state
    if stats is None and control.links:
        stats = survey(step, objective, control, state, rng)
    given, step = step, _prepare(step, objective, control)
    mask = step.mask
    found = _local_stats(step, control, stats, state, rng)
    touched: dict[str, Tensor] = {key: torch.zeros_like(mask) for key in control.keys}
    for index, _ in control.having(Policy):
        touched[control.keys[index]] |= mask & (step.log_probs.detach() != given.log_probs.detach())

    for index, link in control.having(Clip):
        before, step = step, replace(step, bounds=link.clip(step, found[index], state[index]))
        touched[control.keys[index]] |= _clip_differs(before, step, objective)

    # before the surrogate: autograd then adds the terms of a gradient in TRL's order, which bit equality needs
    kl = None if objective.kl is None else objective.kl_term(step.log_probs, step.rollouts.ref_log_probs, step.ratio)
    token_loss = objective.surrogate(step.ratio, step.advantage, step.log_probs, step.bounds, mask)
    weight, keep, denominator_keep = _weights(step, control, found, state, touched)
    if weight is not None:
        token_loss = token_loss * weight
    if keep is not None:
        token_loss = torch.where(keep, token_loss, torch.zeros_like(token_loss))
    if kl is not None:
        token_loss = token_loss + objective.kl_coef * kl

    if denominator_keep is not None and (stats is None or stats.kept_share is None):
        raise ValueError('policy_loss: a weight with denominator "kept" needs the survey of its update; give that link a survey stage.')
    kept = {} if denominator_keep is None else {"kept": denominator_keep, "kept_share": stats.kept_share}
    loss = objective.aggregate(token_loss, mask, step.normaliser, **kept)
    metrics: dict[str, Tensor] = {"policy_loss": loss.detach()}
    for index, link in control.having(Regularise):
        penalty = link.regularise(step, found[index], state[index])
        term = _penalty(penalty, objective, step)
        loss = loss + term
        metrics[f"link/{control.keys[index]}/penalty"] = term.detach()
        if penalty.touched is not None:
            touched[control.keys[index]] |= penalty.touched & mask

    low, high = _clipped(step)
    shown = torch.ones_like(step.log_probs) if weight is None else weight.detach().expand(mask.shape).clone()
    if keep is not None:
        shown = torch.where(keep, shown, 0.0)
    observed = Observed(step.ratio.detach(), shown, low, high, touched, None if kl is None else kl.detach())
    return LossResult(loss, metrics, observed)


def survey(view: Step, objective: Objective, control: Chain, state: Sequence[State], rng: RowRng) -> ChainStats:
    """Every link's survey of a whole update, in chain order: a link sees the clip bounds that the links before it left.

    Links of scope "micro-batch" are not surveyed here (`policy_loss` does it per slice, as released code did).
    """
    with torch.no_grad():
        view = _prepare(view.detached(), objective, control)
        found: list[Stats | None] = []
        for index, link in enumerate(control.links):
            local = _scope(link) == "micro-batch"
            stats = link.survey(view, state[index], rng.child(index)) if isinstance(link, Survey) else None
            found.append(None if local else stats)
            if isinstance(link, Clip):
                view = replace(view, bounds=link.clip(view, stats, state[index]))
        kept, narrowing = view.mask, set()
        for index, link in control.having(Weight):
            stats = found[index] if found[index] is not None else _own(link, view, state[index], rng.child(index))
            chosen = link.weight(view, stats, state[index])
            if chosen.denominator == "kept" and chosen.keep is not None:
                kept = kept & chosen.keep
                narrowing.add(index)
        share = kept.sum() / view.mask.sum().clamp(min=1) if narrowing else None
    return ChainStats(tuple(found), share, frozenset(narrowing))


def predicted_push(
    step: Step, objective: Objective, control: Chain, stats: ChainStats | None, state: Sequence[State], rng: RowRng
) -> Float[Tensor, "response token"]:
    """First-order contribution of every token to the change of its own state's entropy under one unit of learning rate:
    g (S - N) with g = dLoss/dlog p of the sampled token (so -w r A (S - N) over the divisor, at whatever the chain made of it).

    Needs the signals current.S and current.N. Terms that act through the entropy itself (a regulariser on H) are not in it.
    """
    leaf = step.log_probs.detach().requires_grad_(True)
    signals = {key: value.detach() for key, value in step.signals.items()}
    probe = replace(step, log_probs=leaf, signals=signals)
    loss = policy_loss(probe, objective, control, stats, state, rng).loss
    (slope,) = torch.autograd.grad(loss, leaf, allow_unused=True) if loss.requires_grad else (None,)
    if slope is None:
        return torch.zeros_like(step.log_probs)
    push = slope * (step.signal("current.S") - step.signal("current.N"))
    return torch.where(step.mask, push, 0.0).detach()


def removed_shares(
    step: Step, objective: Objective, control: Chain, stats: ChainStats | None, state: Sequence[State], rng: RowRng
) -> dict[str, tuple[Tensor, Tensor]]:
    """By link: (predicted entropy change without this link, with the whole chain), both summed over the slice's tokens."""
    whole = predicted_push(step, objective, control, stats, state, rng).sum()
    shares = {}
    for index, key in enumerate(control.keys):
        rest = control.without(index)
        left = None
        if stats is not None and rest.links:
            narrowing = stats.narrowing - {index}
            left = ChainStats(stats.links[:index] + stats.links[index + 1 :], stats.kept_share if narrowing else None)
        states = tuple(state[:index]) + tuple(state[index + 1 :])
        shares[key] = (predicted_push(step, objective, rest, left, states, rng).sum(), whole)
    return shares


def advance(control: Chain, state: Sequence[State], stats: ChainStats | None, progress: Progress) -> tuple[State, ...]:
    """The links' states after an optimiser step."""
    after = list(state)
    for index, link in control.having(Update):
        after[index] = link.update(state[index], None if stats is None else stats.links[index], progress)
    return tuple(after)


# --- parts of policy_loss


def _prepare(step: Step, objective: Objective, control: Chain) -> Step:
    """`step` with everything under the mask made harmless, the ratio of the chosen policy, and the objective's own bounds."""
    mask = step.mask
    policies = control.having(Policy)
    log_probs = policies[0][1].policy(step) if policies else step.log_probs
    rollouts = step.rollouts
    old = rollouts.old_log_probs
    if isinstance(log_probs, PolicyPair):
        log_probs, old = log_probs.log_probs, log_probs.old_log_probs
    rollouts = replace(
        rollouts,
        old_log_probs=None if old is None else torch.where(mask, old, 0.0),
        ref_log_probs=None if rollouts.ref_log_probs is None else torch.where(mask, rollouts.ref_log_probs, 0.0),
        advantage=_safe_advantage(rollouts),
        signals=_safe_signals(rollouts.signals, mask),
    )
    step = replace(step, rollouts=rollouts, log_probs=torch.where(mask, log_probs, 0.0), signals=_safe_signals(step.signals, mask))
    ratio = objective.ratio(step.log_probs, step.old_log_probs, mask)
    return replace(step, ratio=ratio, bounds=objective.bounds())


def _safe_signals(signals: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {key: torch.where(mask, value, 0.0) if value.shape == mask.shape else value for key, value in signals.items()}


def _safe_advantage(rollouts: Rollouts) -> Tensor:
    if rollouts.advantage.shape == rollouts.trained_mask.shape:
        return torch.where(rollouts.trained_mask, rollouts.advantage, 0.0)
    return torch.where(rollouts.trained_mask.any(-1, keepdim=True), rollouts.advantage, 0.0)


def _scope(link: Intervention) -> str:
    return str(link.__dict__.get("scope", "update"))


def _own(link: Intervention, step: Step, state: State, rng: RowRng) -> Stats | None:
    return link.survey(step.detached(), state, rng) if isinstance(link, Survey) else None


def _local_stats(step: Step, control: Chain, stats: ChainStats | None, state: Sequence[State], rng: RowRng) -> list[Stats | None]:
    found = list(stats.links) if stats is not None else [None] * len(control.links)
    for index, link in control.having(Survey):
        if found[index] is None and _scope(link) == "micro-batch":
            with torch.no_grad():
                found[index] = _own(link, step, state[index], rng.child(index))
    return found


def _weights(
    step: Step, control: Chain, found: Sequence[Stats | None], state: Sequence[State], touched: dict[str, Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Product of the weights, intersection of the kept tokens, and the tokens that stay in the divisor; None where no link asks."""
    weight = keep = denominator = None
    for index, link in control.having(Weight):
        chosen = link.weight(step, found[index], state[index])
        touched[control.keys[index]] |= chosen.touched(step.mask)
        if chosen.value is not None:
            value = torch.where(step.mask, chosen.value, 1.0)
            weight = value if weight is None else weight * value
        if chosen.keep is not None:
            keep = chosen.keep if keep is None else keep & chosen.keep
            if chosen.denominator == "kept":
                denominator = chosen.keep if denominator is None else denominator & chosen.keep
    return weight, keep, denominator


def _penalty(penalty: Penalty, objective: Objective, step: Step) -> Tensor:
    term = torch.zeros((), dtype=step.log_probs.dtype, device=step.log_probs.device)
    if penalty.token is not None:
        term = term + objective.aggregate(torch.where(step.mask, penalty.token, 0.0), step.mask, step.normaliser)
    if penalty.total is not None:
        term = term + penalty.total * step.normaliser.world_size
    return term


def _clip_differs(before: Step, after: Step, objective: Objective) -> Tensor:
    """Tokens whose surrogate has another slope in the ratio under the new bounds."""
    slopes = []
    for step in (before, after):
        with torch.enable_grad():
            log_probs = step.log_probs.detach().requires_grad_(True)
            ratio = objective.ratio(log_probs, step.old_log_probs.detach(), step.mask)
            loss = objective.surrogate(ratio, step.advantage, log_probs, step.bounds, step.mask).expand(step.mask.shape)
            loss = torch.where(step.mask, loss, torch.zeros_like(loss)).sum()
            (slope,) = torch.autograd.grad(loss, log_probs)
        slopes.append(slope)
    return (slopes[0] != slopes[1]) & step.mask


def _clipped(step: Step) -> tuple[Tensor, Tensor]:
    """Tokens outside the clip window on the side where it bites: (low with A < 0, high with A > 0)."""
    ratio = step.ratio.detach().expand(step.mask.shape)
    advantage = step.advantage.expand(step.mask.shape)
    none = torch.zeros_like(step.mask)
    low = none if step.bounds.low is None else (ratio < step.bounds.low) & (advantage < 0) & step.mask
    high = none if step.bounds.high is None else (ratio > step.bounds.high) & (advantage > 0) & step.mask
    return low, high
