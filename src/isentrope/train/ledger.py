"""The host of the entropy ledger: around the optimiser step of every K-th update it measures what the step did to entropy, and why.

Before the step: the mean entropy of the update's trained tokens, what each theory predicts, its gradient half-way along the update that the
optimiser is about to make, the accounts, and two forward passes along u that give every token its part. After it: the entropy of the same
tokens again. In all two forward and backward passes of the update's tokens and three forward passes. Memory: two copies of the trained weights,
until the step is over.

The training does not notice: no random number is drawn, gradients and optimiser are only read, weights are copied back bit for bit, modules keep
their mode. Everything is float32 (heads with precise products), in evaluation mode, at the temperature that the policy samples with.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.stages import ChainStats, gradient, predicted_push, removed_shares
from isentrope.control.step import Step, join_steps, pad_width
from isentrope.explain.agreement import ledger_figures
from isentrope.explain.ledger import (
    attribute,
    booked,
    clip_factor,
    dot,
    loss_slopes,
    signs,
    tenths,
    token_class,
    token_parts,
    token_theories,
    unsplit,
    update_parts,
    verdicts,
)  # fmt: skip
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, LogProb, Signal
from isentrope.provenance import Provenance
from isentrope.tape import TapeWriter
from isentrope.train.head import completion_signals

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

REACH = 3e-3
"""How far the two passes along u go: so far that mean entropy would move by this share of itself. The parts' error falls with its square until
rounding takes over; on the embedded model their sum misses its account by 0.1 % at 3e-3, 1 % at 1e-2 (update 3 of the preset demo)."""
BEFORE = 24
"""Characters of text before a responsible token that go onto the tape."""


@dataclass
class _Slice:
    """A slice of the update: TRL's tensors, our step as the loss saw it, and what is measured of it."""

    inputs: Mapping[str, Tensor]
    step: Step
    stats: ChainStats | None
    slopes: Mapping[str, Tensor] | None = None
    push: Tensor | None = None
    part: Tensor | None = None


@dataclass
class _Open:
    """A ledger between the two sides of the optimiser step."""

    row: dict[str, Any]
    parameters: list[Tensor]
    before: list[Tensor]
    slope: list[Tensor]  # h, half-way where the update can be foretold
    began: float


class Ledger:
    """Writes the tables `ledger`, `ledger_parts` and `ledger_tokens` of a tape.

    every: updates between two ledgers, the first is of update 1. tokens: most responsible tokens per ledger that are written with their text.
    rows: responses per pass (None: TRL's slice); fewer need less memory. decode: token ids -> text. special: ids of special tokens.
    """

    def __init__(
        self,
        writer: TapeWriter,
        *,
        every: int = 5,
        tokens: int = 20,
        rows: int | None = None,
        decode: Callable[[Sequence[int]], str] = str,
        special: Sequence[int] = (),
        warn: Callable[[str, str], None] = lambda kind, message: None,
    ):
        self.writer, self.every, self.tokens, self.rows = writer, every, tokens, rows
        self.decode, self.special, self.warn = decode, frozenset(special), warn
        self.off = False
        self._due, self._slices, self._open, self._told = False, [], None, set()
        self._text: dict[int, str] = {}

    # --- told by the host

    def begin(self, trainer: "IsentropeTrainer") -> None:
        """An update begins."""
        self._slices: list[_Slice] = []
        self._open: _Open | None = None
        self._due = not self.off and trainer.state.global_step % self.every == 0
        if self._due and (reason := refused(trainer)) is not None:
            self.off, self._due = True, False
            self._say("ledger-off", f"No ledger is kept: {reason}.")

    def slice(self, inputs: Mapping[str, Tensor], step: Step, stats: ChainStats | None) -> None:
        """One slice of the update went through the loss."""
        if self._due:
            self._slices.append(_Slice(inputs, step.detached(), stats))

    def before_step(self, trainer: "IsentropeTrainer") -> None:
        """Gradients are final, the optimiser has not stepped."""
        if not self._due or not self._slices:
            return
        try:
            self._open = self._opened(trainer)
        except torch.OutOfMemoryError as error:
            self._slices, self.off = [], True
            self._say("ledger-off", f"No ledger is kept any more: memory ran out ({str(error).splitlines()[0]}). Set ledger.rows below the batch size.")

    def after_step(self, trainer: "IsentropeTrainer") -> None:
        """The optimiser has stepped: the ledger is closed and written."""
        if self._open is None:
            return
        began, found = time.perf_counter(), self._open
        with measuring(trainer) as forward:
            closing = self._entropy(forward)
        row = found.row
        row["closing"] = closing
        row["measured"] = closing - row["opening"]
        moved = ((slope, after.detach() - before) for slope, after, before in zip(found.slope, found.parameters, found.before, strict=True))
        row["theory/exact"] = sum(dot(slope, change) for slope, change in moved)
        known = [value for key, value in row.items() if key.startswith("account/")]
        row["account/residual"] = row["measured"] - (sum(known) if known else row["theory/exact"])
        self._open = None
        self._write(row)
        self._slices = []
        self.writer.append("ledger", [row | {"seconds": found.began + time.perf_counter() - began}])

    # --- the opening

    def _opened(self, trainer: "IsentropeTrainer") -> _Open:
        began = time.perf_counter()
        optimizer = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
        trained = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        parameters = [parameter for parameter, _ in trained]
        row: dict[str, Any] = {"step": trainer.state.global_step + 1, "tokens": sum(int(part.step.mask.sum()) for part in self._slices)}
        with measuring(trainer) as forward:
            row["opening"], slope = self._opening(trainer, forward, parameters)
            row |= self._theories(trainer, float(trained[0][1]["lr"]) if trained else 0.0)
            reason = unsplit(optimizer)
            before = [parameter.detach().clone() for parameter in parameters]
            if reason is not None:
                self._say("ledger-accounts", f"The ledger keeps no accounts, and its exact theory is of first order: {reason}.")
            else:
                row["clipped"] = clip_factor(trainer.last_grad_norm, float(trainer.args.max_grad_norm or 0.0))
                slope = self._halfway(forward, optimizer, trained, before, slope, row)
                rise = self._accounts(optimizer, trained, slope, row)
                self._attribute(trainer, forward, optimizer, trained, before, slope, rise, row)
        return _Open(row, parameters, before, slope, time.perf_counter() - began)

    def _opening(self, trainer: "IsentropeTrainer", forward: Callable, parameters: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Mean entropy and its gradient; the slices' steps then carry what was measured here."""
        signals = _with(trainer.signals, (LogProb(grad=True), Entropy(grad=True), Discriminant(), ExpectedDiscriminant()))
        slope, found = self._slope(forward, parameters, signals)
        total, tokens = 0.0, self._count()
        for part, values in zip(self._slices, found, strict=True):
            total += float(values["entropy"][part.step.mask].sum(dtype=torch.float64)) / tokens
            log_probs = values.pop("log_prob")
            measured = {f"current.{key}": value for key, value in values.items()}
            part.step = replace(part.step, log_probs=log_probs, signals={**part.step.signals, **measured})
        return total, slope

    def _slope(self, forward: Callable, parameters: list[Tensor], signals: Sequence[Signal]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The gradient of the mean entropy at the weights as they are, and the signals of every slice."""
        slope, found = [torch.zeros_like(parameter) for parameter in parameters], []
        for part in self._slices:
            pieces = []
            for chunk in self._chunks(part):
                values = forward(*chunk, signals)
                mean = torch.where(chunk[2], values["entropy"], 0.0).sum() / self._count()
                for into, more in zip(slope, torch.autograd.grad(mean, parameters, allow_unused=True), strict=True):
                    if more is not None:
                        into += more
                pieces.append({key: value.detach() for key, value in values.items()})
            found.append({key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]})
        return slope, found

    def _halfway(
        self, forward: Callable, optimizer: torch.optim.Optimizer, trained: Sequence, before: Sequence[Tensor], slope: list[Tensor], row: dict
    ) -> list[Tensor]:  # fmt: skip
        """What the gradient at the opening predicts, and the gradient half-way along the update that the optimiser is about to make."""
        predicted = 0.0
        try:
            with torch.no_grad():
                for (parameter, group), start, h in zip(trained, before, slope, strict=True):
                    change = update_parts(optimizer, group, parameter, parameter.grad).change(parameter.grad)
                    predicted += dot(h, change)
                    parameter.copy_(start + 0.5 * change)
            row["theory/first_order"] = predicted
            slope.clear()  # its memory, before the next takes as much
            return self._slope(forward, [parameter for parameter, _ in trained], (Entropy(grad=True),))[0]
        finally:
            _restore([parameter for parameter, _ in trained], before)

    def _theories(self, trainer: "IsentropeTrainer", rate: float) -> dict[str, float]:
        """Predictions of the token theories, and what each link adds to that of the token rule."""
        objective, chain, state, rng = trainer.objective, trainer.chain, trainer.chain_state, trainer.rng()
        differentiated = [signal.key for signal in trainer.signals if gradient(signal)]
        links: dict[str, float] = {}
        for part in self._slices:
            common = (objective, chain, part.stats, state, rng)
            part.push = predicted_push(part.step, *common)
            part.slopes = loss_slopes(part.step, *common, differentiated=differentiated)
            for key, (without, whole) in removed_shares(part.step, *common).items():
                links[f"link/{key}"] = links.get(f"link/{key}", 0.0) + rate * (float(whole) - float(without))
        view = replace(join_steps([part.step for part in self._slices]), bounds=objective.bounds())
        push = torch.cat([pad_width(part.push, view.mask.shape[1]) for part in self._slices])
        return {f"theory/{key}": value for key, value in token_theories(view, rate, push).items()} | links

    def _accounts(self, optimizer: torch.optim.Optimizer, trained: Sequence, slope: Sequence[Tensor], row: dict) -> float:
        """Books the four accounts; returns <h, P h>, what a step of 1 along u adds to the mean entropy."""
        rise, total = 0.0, dict.fromkeys(("this_batch", "momentum", "weight_decay", "gradient_clipping"), 0.0)
        for (parameter, group), h in zip(trained, slope, strict=True):
            parts = update_parts(optimizer, group, parameter, parameter.grad)
            for name, value in booked(h, parameter.grad, parts, row["clipped"]).items():
                total[name] += value
            rise += dot(h, parts.scale * h)
        row |= {f"account/{name}": value for name, value in total.items()}
        return rise

    def _attribute(
        self, trainer: "IsentropeTrainer", forward: Callable, optimizer: torch.optim.Optimizer, trained: Sequence, before: Sequence[Tensor],
        slope: Sequence[Tensor], rise: float, row: dict,
    ) -> None:  # fmt: skip
        """Every token's part of `this_batch`, from two passes along u = P h."""
        if not rise > 0 or not np.isfinite(rise):
            return  # nothing moves entropy, or a weight is not finite
        reach = REACH * row["opening"] / rise
        wanted = tuple(signal for signal in trainer.signals if gradient(signal))
        sides = []
        try:
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    for (parameter, group), start, h in zip(trained, before, slope, strict=True):
                        along = update_parts(optimizer, group, parameter, parameter.grad).scale * h
                        parameter.copy_(start + sign * reach * along)
                    sides.append([self._signals(forward, part, wanted) for part in self._slices])
        finally:
            _restore([parameter for parameter, _ in trained], before)
        for part, ahead, behind in zip(self._slices, *sides, strict=True):
            part.part = torch.where(part.step.mask, token_parts(part.slopes, ahead, behind, reach), 0.0)
        row["attributed"] = float(sum(part.part.sum() for part in self._slices))
        row["raised"] = float(sum(part.part.clamp(min=0).sum() for part in self._slices))
        row["lowered"] = float(sum(part.part.clamp(max=0).sum() for part in self._slices))

    # --- passes

    def _count(self) -> int:
        return max(1, sum(int(part.step.mask.sum()) for part in self._slices))

    def _chunks(self, part: _Slice) -> Iterator[tuple[Tensor, Tensor, Bool[Tensor, "response token"]]]:
        """input ids, attention mask and trained mask, a few responses at a time."""
        inputs = part.inputs
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        rows = len(ids) if self.rows is None else self.rows
        yield from zip(ids.split(rows), attention.split(rows), part.step.mask.split(rows), strict=True)

    def _signals(self, forward: Callable, part: _Slice, signals: Sequence[Signal]) -> dict[str, Float[Tensor, "response token"]]:
        found = [forward(*chunk, signals) for chunk in self._chunks(part)]
        return {key: torch.cat([one[key] for one in found]) for key in found[0]}

    def _entropy(self, forward: Callable) -> float:
        """Mean entropy of the update's trained tokens, in nats."""
        total = 0.0
        with torch.no_grad():
            for part in self._slices:
                total += float(self._signals(forward, part, (Entropy(),))["entropy"][part.step.mask].sum(dtype=torch.float64))
        return total / self._count()

    # --- what goes onto the tape

    def _write(self, row: Mapping[str, Any]) -> None:
        """Parts of the batch's account by kind of token, and the most responsible tokens."""
        if any(part.part is None for part in self._slices):
            return
        numbers, kinds = self._columns()
        sums, shares = {"part": np.asarray(numbers["part"]), "push": np.asarray(numbers["push"])}, []
        for by, names in kinds.items():
            found = attribute(names, sums)
            if by == "text":  # as many as single tokens: all would be the vocabulary
                found = sorted(found, key=lambda share: -abs(share.sums["part"]))[: self.tokens]
            shares += [{"step": row["step"], "by": by, "kind": share.kind, "tokens": share.tokens, **share.sums} for share in found]
        most = np.argsort(-np.abs(sums["part"]), kind="stable")[: self.tokens].tolist()
        tokens = [{"step": row["step"], **{name: values[at] for name, values in numbers.items()}, "before": self._before(numbers, at)} for at in most]
        if shares:
            self.writer.append("ledger_parts", shares)
            self.writer.append("ledger_tokens", tokens)

    def _columns(self) -> tuple[dict[str, list], dict[str, list[str]]]:
        """One value per trained token of the update, slices in their order: what is known of it, and which kind it is of by each division."""
        numbers: dict[str, list] = defaultdict(list)
        kinds: dict[str, list[str]] = defaultdict(list)
        for part in self._slices:
            step, mask, rows = part.step, part.step.mask, part.step.rollouts
            position = mask.nonzero(as_tuple=True)[1].tolist()
            known = {name: step.signals[f"current.{name}"] for name in ("entropy", "S", "N")}
            known |= {"log_prob": step.log_probs, "advantage": rows.token_advantage(), "correct": rows.correct[:, None].expand(mask.shape)}
            known |= {"part": part.part, "push": part.push}
            whole = {"row_id": rows.row_id[:, None].expand(mask.shape), "group": rows.group[:, None].expand(mask.shape), "token_id": rows.completion_ids}
            values = {name: value[mask].double().tolist() for name, value in known.items()} | {name: value[mask].tolist() for name, value in whole.items()}
            texts = [self._decoded(token) for token in values["token_id"]]
            for name, value in (values | {"position": position, "text": texts}).items():
                numbers[name] += value
            kinds["response"] += [str(id) for id in values["row_id"]]
            kinds["advantage"] += signs(values["advantage"])
            kinds["correct"] += verdicts(values["correct"])
            kinds["position"] += tenths(mask)
            kinds["class"] += [token_class(text, token in self.special) for token, text in zip(values["token_id"], texts, strict=True)]
            kinds["text"] += texts
        return numbers, kinds

    def _before(self, numbers: Mapping[str, list], at: int) -> str:
        """The end of the text before a token."""
        for part in self._slices:
            rows = part.step.rollouts
            here = (rows.row_id == numbers["row_id"][at]).nonzero()
            if len(here):
                ids = rows.completion_ids[int(here[0]), : numbers["position"][at]].tolist()
                return self.decode(ids)[-BEFORE:] if ids else ""
        return ""

    def _decoded(self, token: int) -> str:
        if token not in self._text:
            self._text[token] = self.decode([token])
        return self._text[token]

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self.warn(kind, message)


# --- parts


def refused(trainer: "IsentropeTrainer") -> str | None:
    """Why no ledger can be kept of this trainer; None if it can."""
    accelerator = trainer.accelerator
    if accelerator.num_processes > 1:
        return f"training runs in {accelerator.num_processes} processes, and a ledger needs the whole update and all weights in one"
    if accelerator.distributed_type.value in ("DEEPSPEED", "FSDP"):
        return f"{accelerator.distributed_type.value} holds the weights in parts; a ledger needs them whole"
    if accelerator.scaler is not None:
        return "gradients are scaled (fp16); train in float32 or bf16"
    coarse = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad} - {torch.float32, torch.float64}
    if coarse:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in coarse))
        return f"trained weights are {found}, whose rounding hides the update; set model.dtype to auto (float32 weights, bfloat16 products)"
    return None


@contextmanager
def measuring(trainer: "IsentropeTrainer") -> Iterator[Callable[..., dict[str, Tensor]]]:
    """Inside, the model is in evaluation mode; what is given computes signals of it in float32: forward(ids, attention, mask, signals)."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    plain = model.__dict__.get("_original_forward", model)  # accelerate's autocast is wrapped around this
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    kind = trainer.accelerator.device.type

    def forward(ids: Tensor, attention: Tensor, mask: Tensor, signals: Sequence[Signal]) -> dict[str, Tensor]:
        with torch.autocast(kind, enabled=False):
            return completion_signals(plain, ids, attention, mask, signals, precise=True)

    try:
        yield forward
    finally:
        for module, mode in modes:
            module.training = mode


def ledger_summary(ledger: pl.DataFrame, steps: pl.DataFrame) -> dict[str, Any]:
    """The figures of a run's ledgers, and what they cost: seconds, and their share of the updates' time. Empty without ledgers."""
    if not len(ledger):
        return {}
    columns = {name: ledger[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in ledger.columns}
    found: dict[str, Any] = ledger_figures(columns) | {"ledger.seconds": float(ledger["seconds"].sum())}
    if len(steps) and float(steps["seconds"].sum()) > 0:
        found["ledger.time_share"] = found["ledger.seconds"] / float(steps["seconds"].sum())
    return found


def _restore(parameters: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """The weights as they were, bit for bit."""
    with torch.no_grad():
        for parameter, start in zip(parameters, before, strict=True):
            parameter.copy_(start)


def _with(signals: Sequence[Signal], more: Sequence[Signal]) -> tuple[Signal, ...]:
    """Both, each key once; of one key the request in `more`."""
    return tuple(({signal.key: signal for signal in signals} | {signal.key: signal for signal in more}).values())


def provenance(temperature: float) -> dict[str, Provenance]:
    """Provenance of every entropy column that a ledger writes."""
    mean = Provenance("exact", temperature=float(temperature), aggregation="token-mean")
    single = replace(mean, aggregation="none")
    names = ("opening", "closing", "measured", "theory/exact", "theory/first_order", "theory/covariance", "theory/omega", "theory/token_rule", "attributed")
    accounts = ("this_batch", "momentum", "weight_decay", "gradient_clipping", "residual")
    return (
        {f"ledger.{name}": mean for name in names}
        | {f"ledger.account/{name}": mean for name in accounts}
        | {f"ledger_parts.{name}": mean for name in ("part", "push")}
        | {f"ledger_tokens.{name}": single for name in ("entropy", "S", "N")}
        | {f"ledger_tokens.{name}": mean for name in ("part", "push")}
    )
