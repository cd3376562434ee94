"""The data that flows through the stages: `Rollouts` (what was sampled, detached) and `Step` (one slice of an update, differentiable).

Shapes use two axes: `response` (rows) and `token` (positions of the completion, right-padded). Masks are bool, True counts.
Log-probabilities and entropies are in nats, of logits divided by the temperature that the record names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.objectives import Bounds
from isentrope.control.requests import Request
from isentrope.measure.tokens import Signal

Scope = Literal["sequence", "group", "update", "rollout", "ema", "micro-batch"]
"""Where a statistic is taken. "micro-batch" exists only to reproduce released code."""
Variant = Literal["paper", "code", "fixed"]
"""Which formula, where a paper and its released code differ."""
State = Mapping[str, Tensor | float | int | bool | str | None]
"""What a controller remembers between updates: a flat mapping that a weights-only loader can read back."""

ORIGINS = ("policy", "branch", "replay", "offline")
"""Where a row came from; `Rollouts.origin` holds the index."""


@dataclass(frozen=True)
class Need:
    """A signal that a stage reads, and of which policy: "old" (the behaviour policy, scored once per rollout), "draft" (the same, of the first
    responses before the others are sampled) or "current".

    Raises ValueError for a request of the network's inside (`control.requests`) from the current policy, unless it allows that.
    """

    signal: Signal
    policy: Literal["old", "draft", "current"] = "current"

    def __post_init__(self):
        if isinstance(self.signal, Request) and self.policy == "current" and not self.signal.of_current:
            raise ValueError(f"Need: {self.signal!r} is scored once per rollout. Got policy={self.policy!r}. Write policy='old'.")

    @property
    def key(self) -> str:
        return f"{self.policy}.{self.signal.key}"


@dataclass(frozen=True)
class Progress:
    """Position in the run: `step` counts optimiser updates already made, `total` is how many the run plans."""

    step: int = 0
    total: int = 1

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / max(1, self.total))


@dataclass(frozen=True)
class Normaliser:
    """What the trainer divides by.

    token_divisor: divisor of a local token sum in "token-mean" (None: this slice's own trained tokens, at least 1).
    rows: rows of the whole update over all ranks (None: the rows of this slice).
    accumulation: slices per update; divides the row-wise modes.
    world_size: ranks whose gradients are averaged afterwards.
    horizon: constant length of Dr.GRPO (None: the padded length).
    """

    token_divisor: Tensor | float | None = None
    rows: int | None = None
    accumulation: float = 1.0
    world_size: int = 1
    horizon: int | None = None


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses and all that is known of them; detached. Build one with `Rollouts.of`, which fills what is absent.

    `advantage` is [response, 1] while it is one number per response and [response, token] once a stage made it finer.
    `signals` is keyed by policy: "old.entropy".
    """

    row_id: Int[Tensor, " response"]  # stable across shuffling, ranks and resume
    group: Int[Tensor, " response"]  # responses to one prompt share it
    origin: Int[Tensor, " response"]  # index into ORIGINS
    age: Int[Tensor, " response"]  # updates since the row was sampled by the policy that is trained
    completion_ids: Int[Tensor, "response token"]
    completion_mask: Bool[Tensor, "response token"]  # text exists
    trained_mask: Bool[Tensor, "response token"]  # tokens in the loss: no tool text, no re-used prefix
    sampling_temperature: Float[Tensor, "response token"]
    reward: Float[Tensor, " response"]
    advantage: Float[Tensor, "response #token"]
    correct: Float[Tensor, " response"]  # NaN where no verifier spoke
    truncated: Bool[Tensor, " response"]
    turn: Int[Tensor, "response token"] | None = None  # 0, 1, ...; a token of the environment has that of the action it answers
    segment: Int[Tensor, "response token"] | None = None
    sampling_log_probs: Float[Tensor, "response token"] | None = None
    old_log_probs: Float[Tensor, "response token"] | None = None
    ref_log_probs: Float[Tensor, "response token"] | None = None
    reward_parts: Float[Tensor, "response part"] | None = None
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    answer: tuple[str | None, ...] | None = None
    text: tuple[str, ...] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "response token"], **known) -> "Rollouts":
        """Rollouts with the given trained mask and fields; absent ones get their neutral value.

        >>> Rollouts.of(torch.ones(2, 3, dtype=torch.bool)).row_id
        tensor([0, 1])
        """
        rows, device = mask.shape[0], mask.device
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        values = {
            "row_id": torch.arange(rows, device=device),
            "group": zeros,
            "origin": zeros,
            "age": zeros,
            "completion_ids": torch.zeros(mask.shape, dtype=torch.long, device=device),
            "completion_mask": mask,
            "trained_mask": mask,
            "sampling_temperature": torch.ones(mask.shape, device=device),
            "reward": torch.zeros(rows, device=device),
            "advantage": torch.zeros(rows, 1, device=device),
            "correct": torch.full((rows,), float("nan"), device=device),
            "truncated": torch.zeros(rows, dtype=torch.bool, device=device),
        }
        return cls(**(values | known))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.row_id.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " response"]:
        """Trained tokens per response."""
        return self.trained_mask.sum(-1)

    def token_advantage(self) -> Float[Tensor, "response token"]:
        """The advantage of every position, 0 outside the trained mask."""
        return torch.where(self.trained_mask, self.advantage.expand(self.trained_mask.shape), 0.0)

    def signal(self, key: str) -> Tensor:
        return _signal(self.signals, key)

    def take(self, rows: Int[Tensor, " chosen"]) -> "Rollouts":
        """These rows, in this order."""
        picked: dict = {}
        for item in fields(self):
            value = _value(self, item.name)
            if isinstance(value, Tensor):
                picked[item.name] = value[rows]
            elif isinstance(value, tuple):
                picked[item.name] = tuple(value[i] for i in rows.tolist())
            elif isinstance(value, Mapping):
                picked[item.name] = {key: tensor[rows] for key, tensor in value.items()}
        return replace(self, **picked)


@dataclass(frozen=True)
class Step:
    """One slice of an update as the loss sees it. `log_probs`, `ratio` and signals may carry gradient; the rollouts do not.

    `ratio` and `bounds` are filled by `policy_loss` before the stages that read them.
    """

    rollouts: Rollouts
    log_probs: Float[Tensor, "response token"]
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Progress = Progress()
    normaliser: Normaliser = Normaliser()
    ratio: Float[Tensor, "response #token"] | None = None
    bounds: Bounds | None = None

    @property
    def mask(self) -> Bool[Tensor, "response token"]:
        return self.rollouts.trained_mask

    @property
    def advantage(self) -> Float[Tensor, "response #token"]:
        return self.rollouts.advantage

    @property
    def old_log_probs(self) -> Float[Tensor, "response token"]:
        """Log-probs that the ratio divides by; on-policy, where the trainer computes none, the current ones without gradient."""
        old = self.rollouts.old_log_probs
        return self.log_probs.detach() if old is None else old

    def signal(self, key: str) -> Tensor:
        """The tensor under "current.<signal>" or "old.<signal>".

        Raises KeyError naming what this step carries.
        """
        return self.rollouts.signal(key) if key.startswith("old.") else _signal(self.signals, key)

    def detached(self) -> "Step":
        """The same numbers without gradient."""
        return replace(
            self,
            log_probs=self.log_probs.detach(),
            signals={key: value.detach() for key, value in self.signals.items()},
            ratio=None if self.ratio is None else self.ratio.detach(),
        )


@dataclass(frozen=True)
class Stats:
    """What a survey of an update found: numbers, and tensors per token or per response that are looked up by row id."""

    row_id: Int[Tensor, " response"]
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)  # [response, token]
    responses: Mapping[str, Tensor] = field(default_factory=dict)  # [response]

    def token(self, name: str, step: Step) -> Tensor:
        """The surveyed [response, token] tensor for the rows of `step`, cut to its width."""
        return self.tokens[name][self._rows(step)][:, : step.mask.shape[1]]

    def response(self, name: str, step: Step) -> Tensor:
        """The surveyed [response] tensor for the rows of `step`."""
        return self.responses[name][self._rows(step)]

    def _rows(self, step: Step) -> Tensor:
        order = torch.argsort(self.row_id)
        wanted = step.rollouts.row_id
        at = torch.searchsorted(self.row_id[order], wanted).clamp(max=len(order) - 1)
        rows = order[at]
        if not torch.equal(self.row_id[rows], wanted):
            missing = sorted(set(wanted.tolist()) - set(self.row_id.tolist()))
            raise KeyError(f"Stats hold no row {missing[:5]}; the survey must see every row of the update.")
        return rows


@dataclass(frozen=True)
class RowRng:
    """Random numbers keyed by (seed, step, stream, row, position): the same for a row however rows are permuted, split,
    padded, spread over ranks, or replayed after a resume. A counter hash (SplitMix64), so no state to save.
    """

    seed: int = 0
    step: int = 0
    stream: int = 0

    def child(self, stream: int) -> "RowRng":
        """An independent stream, one for each link of a chain."""
        return replace(self, stream=self.stream * 1_000_003 + stream + 1)

    def uniform(self, row_id: Int[Tensor, " response"], width: int) -> Float64[Tensor, "response {width}"]:
        """Uniform numbers in [0, 1)."""
        key = _mix(torch.tensor(self.seed, device=row_id.device))
        for part in (self.step, self.stream):
            key = _mix(key ^ _mix(torch.tensor(part, device=row_id.device) + _GOLDEN))
        row = _mix(key ^ _mix(row_id + _GOLDEN))
        position = torch.arange(width, device=row_id.device)
        bits = _mix(row[:, None] + (position[None, :] + 1) * _GOLDEN)
        return ((bits >> 11) & (2**53 - 1)).double() / 2**53


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 with wrap-around; shifts are made logical by masking."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signal(signals: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in signals:
        have = ", ".join(sorted(signals)) or "none"
        raise KeyError(f"the signal {key!r} is not here; this step carries {have}. Declare it in `needs` and the host computes it.")
    return signals[key]


def _value(rollouts: Rollouts, name: str):
    return rollouts.__dict__[name]


def concatenate(parts: list[Rollouts]) -> Rollouts:
    """All rows of `parts` in order, right-padded to the longest; a field absent in any part is absent in the result."""
    width = max(part.trained_mask.shape[1] for part in parts)
    if len(parts) == 1:
        return parts[0]
    joined: dict = {}
    for item in fields(Rollouts):
        values = [_value(part, item.name) for part in parts]
        if any(value is None for value in values):
            joined[item.name] = None
        elif isinstance(values[0], Tensor):
            joined[item.name] = _join(item.name, values, width)
        elif isinstance(values[0], tuple):
            joined[item.name] = tuple(entry for value in values for entry in value)
        else:
            keys = set.intersection(*(set(value) for value in values))
            joined[item.name] = {key: _join(key, [value[key] for value in values], width) for key in sorted(keys)}
    return Rollouts(**joined)


def _join(name: str, values: list[Tensor], width: int) -> Tensor:
    if name == "advantage" and any(value.shape[1] != 1 for value in values):
        values = [value.expand(-1, width) if value.shape[1] == 1 else value for value in values]
    elif name in ("reward_parts", "advantage"):
        return torch.cat(values)
    return torch.cat([pad_width(value, width) if value.ndim > 1 else value for value in values])


def pad_width(value: Tensor, width: int) -> Tensor:
    """[response, token] or [response, token, d] padded on the right to `width` tokens with 0 (False)."""
    return torch.nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (0, width - value.shape[1]))


def join_steps(parts: list[Step]) -> Step:
    """The view of a whole update: its slices as one detached step, with the first slice's progress and normaliser."""
    width = max(part.mask.shape[1] for part in parts)
    keys = set.intersection(*(set(part.signals) for part in parts))
    detached = [part.detached() for part in parts]
    rollouts = concatenate([_with_old(part) for part in detached])
    return Step(
        rollouts=rollouts,
        log_probs=torch.cat([pad_width(part.log_probs, width) for part in detached]),
        signals={key: torch.cat([pad_width(part.signals[key], width) for part in detached]) for key in sorted(keys)},
        progress=parts[0].progress,
        normaliser=replace(parts[0].normaliser, rows=len(rollouts), accumulation=1.0, world_size=1, token_divisor=None),
    )


def _with_old(part: Step) -> Rollouts:
    """Rollouts whose old log-probs are filled: in a joined view "none" would mean something else for each slice."""
    return replace(part.rollouts, old_log_probs=part.old_log_probs)


def micro_batches(step: Step, size: int) -> Iterator[Step]:
    """`step` cut into slices of `size` rows whose losses add up to the loss of the whole, for every aggregation mode."""
    rows = len(step.rollouts)
    if rows % size:
        raise ValueError(f"micro_batches: size must divide the {rows} rows. Got {size}.")
    divisor = step.normaliser.token_divisor
    divisor = step.mask.sum().clamp(min=1.0) if divisor is None else divisor
    normaliser = replace(
        step.normaliser,
        token_divisor=divisor,
        rows=step.normaliser.rows or rows,
        accumulation=step.normaliser.accumulation * rows / size,
        horizon=step.normaliser.horizon or step.mask.shape[1],
    )
    for start in range(0, rows, size):
        chosen = torch.arange(start, start + size, device=step.mask.device)
        yield replace(
            step,
            rollouts=step.rollouts.take(chosen),
            log_probs=step.log_probs[chosen],
            signals={key: value[chosen] for key, value in step.signals.items()},
            normaliser=normaliser,
            ratio=None if step.ratio is None else step.ratio[chosen],
        )
