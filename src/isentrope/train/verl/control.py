"""One actor's chain while it trains, and the loss that verl calls for every micro-batch.

verl                                             here
TrainingWorker.set_loss_fn                       Control is built, options are refused by name
engine.train_batch (one optimiser step)          rows are numbered; a forward pass over all micro-batches and ranks surveys the update
ppo_loss -> registered policy loss "isentrope"   `policy_loss` of one micro-batch
after optimiser_step                             controllers move
"""

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from isentrope.control.stages import (
    Chain,
    ChainStats,
    Intervention,
    LossResult,
    Survey,
    TokenWeight,
    advance,
    gradient,
    policy_loss,
    survey,
)  # fmt: skip
from isentrope.control.step import Progress, RowRng, State, Stats, Step, join_steps
from isentrope.errors import UserError
from isentrope.train.state import pack_state, unpack_state
from isentrope.train.verl.batch import ROW, Given, moved, normaliser_of, step_of
from isentrope.train.verl_carried import LOSS, built, objective_of, refuse_links, refuse_options

_GIVEN: contextvars.ContextVar[Given | None] = contextvars.ContextVar("isentrope_given", default=None)


@dataclass(frozen=True)
class RolloutWeights(Intervention):
    """verl's rollout correction: its weight per token multiplies the token loss, after whatever the chain made of it."""

    name = "rollout-is-weights"

    def weight(self, step: Step, stats: Stats | None, state: State) -> TokenWeight:
        return TokenWeight(value=step.signal("current.rollout_is_weights"))


class Control:
    """The chain, its state and the update that is running, of one worker. All ranks hold the same state: they see the same survey.

    Raises UserError for a link or an option that cannot run here.
    """

    def __init__(self, actor: Any):
        settings = actor.policy_loss
        self.chain = built(settings.chain, LOSS)
        refuse_links(self.chain, LOSS)
        refuse_options(actor, self.chain)
        self.objective = objective_of(actor)
        self.seed, self.correct_at = int(settings.seed), float(settings.correct_at)
        self.state = self.chain.init()
        self.step, self.total = 0, 1
        self.stats: ChainStats | None = None
        self.surveyed = False  # an update is running whose survey was made over all its micro-batches and ranks
        self.stepped = True  # the optimiser moved in the update that ended
        self.collecting: list[Step] | None = None
        self.asked = {need.key for need in self.chain.needs}
        self.differentiable = {need.key for need in self.chain.needs if gradient(need.signal)}
        for key, link in zip(self.chain.keys, self.chain.links, strict=True):
            if reason := link.idle_under(self.objective):
                warnings.warn(f"{key} does nothing in this run: {reason}", stacklevel=2)

    @property
    def progress(self) -> Progress:
        return Progress(self.step, max(self.total, self.step, 1))

    @property
    def rng(self) -> RowRng:
        return RowRng(self.seed, self.step)

    @property
    def surveys(self) -> bool:
        return bool(self.chain.having(Survey))

    # --- one optimiser step

    def train_batch(self, original: Callable, engine: Any, data: TensorDict, loss_function: Callable) -> Any:
        """verl's step on one mini-batch, with a survey before it and the controllers after it. In place of the engine's `train_batch`."""
        group, rows = engine.get_data_parallel_group(), len(data)
        data[ROW] = torch.arange(rows) + engine.get_data_parallel_rank() * rows
        self.stats = None
        if self.surveys and not (engine.get_data_parallel_size() == 1 and _one_micro_batch(data)):
            self.stats = self._survey(engine, data, loss_function, group)
        self.surveyed = True
        try:
            output = original(data, loss_function=loss_function)
        finally:
            self.surveyed = False
        if self.stepped:
            self.state = advance(self.chain, self.state, self.stats, self.progress)
        self.step += 1
        return output

    def optimizer_step(self, original: Callable) -> Any:
        """verl's optimiser step, which it leaves out where the gradient is not finite: then no controller may learn from that update either."""
        norm = original()
        self.stepped = bool(torch.isfinite(torch.as_tensor(norm)))
        return norm

    def _survey(self, engine: Any, data: TensorDict, loss_function: Callable, group: Any) -> ChainStats:
        """One forward pass over the mini-batch under the current weights; the loss collects its steps instead of computing."""
        self.collecting = []
        try:
            with torch.no_grad():
                engine.forward_backward_batch(data, loss_function, forward_only=True)
            local = join_steps(self.collecting)
        finally:
            self.collecting = None
        device, parts = local.mask.device, [local]
        if group is not None and torch.distributed.get_world_size(group) > 1:
            gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(gathered, moved(local, "cpu"), group=group)
            parts = [moved(part, device) for part in gathered]
        control, state = self._with_weights(local)
        return survey(join_steps(parts), self.objective, control, state, self.rng)

    # --- one micro-batch

    def loss(self, step: Step) -> LossResult | None:
        """The loss of one micro-batch, or None while an update is being surveyed.

        Raises UserError where the chain surveys an update and this micro-batch is only a part of one that was not surveyed.
        """
        if self.collecting is not None:
            self.collecting.append(step.detached())
            return None
        control, state = self._with_weights(step)
        if self.surveys and self.stats is None:
            if not self.surveyed and not _is_whole(step):
                raise UserError(
                    f"{', '.join(self.chain.keys)} takes statistics over a whole update, and this loss sees one micro-batch of it. Train through verl's "
                    "TrainingWorker, which isentrope.train.verl replaces by one that surveys the update first; was actor_worker_cls replaced again?"
                )
            self.stats = survey(step, self.objective, control, state, self.rng)
        stats = self.stats
        if stats is None and control.links:
            stats = ChainStats((None,) * len(control.links))
        result = policy_loss(step, self.objective, control, stats, state, self.rng)
        if not self.surveyed:
            self.stats = None  # a loss outside of the worker: the next one is another update
        return result

    def _with_weights(self, step: Step) -> tuple[Chain, tuple[State, ...]]:
        if "current.rollout_is_weights" not in step.signals:
            return self.chain, self.state
        return Chain((*self.chain.links, RolloutWeights()), (*self.chain.keys, RolloutWeights.name)), (*self.state, {})

    # --- checkpoints

    def saved(self) -> dict[str, Any]:
        return pack_state({"step": self.step, "state": [dict(state) for state in self.state], "keys": list(self.chain.keys)})

    def load(self, content: Any) -> None:
        """Raises UserError for the state of another chain."""
        found = unpack_state(content)
        if found["keys"] != list(self.chain.keys):
            raise UserError(f"the checkpoint holds the state of the chain {found['keys']}, and {LOSS}.chain is {list(self.chain.keys)}. Resume with the same.")
        self.step, self.state = int(found["step"]), tuple(found["state"])


def _is_whole(step: Step) -> bool:
    """Whether this slice is the whole update: verl's divisors count its own rows and tokens."""
    given = step.normaliser
    rows, tokens = given.rows, given.token_divisor
    return given.world_size == 1 and (rows is None or rows == len(step.mask)) and (tokens is None or int(tokens) == int(step.mask.sum()))


def _one_micro_batch(data: TensorDict) -> bool:
    return not bool(data["use_dynamic_bsz"]) and int(data["micro_batch_size_per_gpu"]) >= len(data)


# --- what verl calls


def carrying(ppo_loss: Callable) -> Callable:
    """verl's `ppo_loss` with the model's outputs and the whole batch within reach of the policy loss that it calls."""

    @functools.wraps(ppo_loss)
    def carried(config, model_output, data, dp_group=None):
        with _within(Given(model_output, data)):
            return ppo_loss(config, model_output, data, dp_group=dp_group)

    return carried


@contextlib.contextmanager
def _within(given: Given) -> Iterator[None]:
    token = _GIVEN.set(given)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def isentrope_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """verl's policy loss `isentrope`: (loss, metrics) of one micro-batch under the chain of its configuration.

    Raises UserError where verl calls it in a way that keeps the model's outputs from it.
    """
    given, control = _GIVEN.get(), control_of(config)
    if given is None:
        raise UserError(
            "the policy loss 'isentrope' was called without the model's outputs. verl's losses.ppo_loss hands them on once isentrope.train.verl is "
            "loaded, before verl.workers.engine_workers is imported: set VERL_USE_EXTERNAL_MODULES=isentrope.train.verl in every process."
        )
    step = step_of(
        given, log_prob, old_log_prob, advantages, response_mask,
        normaliser=normaliser_of(config.global_batch_info, loss_agg_mode), progress=control.progress, correct_at=control.correct_at,
    )  # fmt: skip
    signals = {key: value if key in control.differentiable else value.detach() for key, value in step.signals.items()}
    if rollout_is_weights is not None:
        signals["current.rollout_is_weights"] = rollout_is_weights
    step = replace(step, signals=signals)
    _check_fields(control, step, given.data)
    _tell_of_bfloat16(control, given)
    result = control.loss(step)
    if result is None:
        return (log_prob * 0.0).sum(), {}
    ranks = int(config.global_batch_info["dp_size"]) if loss_agg_mode == "token-sum" else 1
    return result.loss * ranks if ranks > 1 else result.loss, _metrics(result, step, control)


def control_of(config: Any) -> Control:
    """The control of an actor's configuration, built when it is first asked for.

    Raises UserError for a policy loss without a chain.
    """
    settings = config.policy_loss
    if not hasattr(settings, "chain"):
        raise UserError(
            f"{LOSS}.loss_mode=isentrope needs its typed configuration. Add {LOSS}._target_=isentrope.train.verl.PolicyLossConfig and +{LOSS}.chain=[clip-cov]."
        )
    if settings.control is None:
        settings.control = Control(config)
    return settings.control


def _tell_of_bfloat16(control: Control, given: Given) -> None:
    """Once: fused heads give entropies of eight bits."""
    entropy = given.model_output.get("entropy")
    if control.step == 0 and entropy is not None and entropy.dtype == torch.bfloat16 and "current.entropy" in control.asked:
        warnings.warn(
            f"{', '.join(control.chain.keys)} reads entropies that come as bfloat16, a step of 0.4 % of their value: tokens whose entropies are closer than "
            "that are ordered by chance. actor_rollout_ref.model.use_fused_kernels=False gives float32.",
            stacklevel=3,
        )


def _check_fields(control: Control, step: Step, data: TensorDict) -> None:
    """What the chain reads must be in the batch: a neutral value in its place would be a silent other method."""
    for key in sorted(control.asked):
        if key not in step.signals and key not in step.rollouts.signals:
            where = "the model's outputs: calculate_entropy is off in this call" if key.startswith("current.") else "the batch: verl's v1 trainer writes it"
            raise UserError(f"{', '.join(control.chain.keys)} needs {key}, which is not in {where}.")
    if control.chain.links:
        missing = [name for name, there in (("uid", "uid" in data.keys()), ("rm_scores", bool(step.rollouts.correct.isfinite().all()))) if not there]  # noqa: SIM118
        if missing:
            raise UserError(
                f"the batch carries no {' and no '.join(missing)}, which verl's trainer writes for every row; without it a chain would take every response "
                "for one group without a reward. Put it into the batch."
            )


def _metrics(result: LossResult, step: Step, control: Control) -> dict[str, float]:
    """verl's three numbers with verl's meaning, and per link its penalty and the share of trained tokens it touched."""
    mask, ratio, bounds = step.mask, result.observed.ratio.expand(step.mask.shape), control.objective.bounds()
    count = mask.sum().clamp(min=1)
    log_ratio = (step.old_log_probs - step.log_probs.detach()).clamp(-20.0, 20.0)
    held = bounds.clamp(ratio)
    clipped = (-step.advantage * held > -step.advantage * ratio) & mask
    shown = {"actor/ppo_kl": torch.where(mask, log_ratio, 0.0).sum() / count, "actor/pg_clipfrac": clipped.sum() / count}
    if bounds.cap is not None:
        lower = (torch.maximum(-step.advantage * ratio, -step.advantage * held) > -step.advantage * bounds.cap) & (step.advantage < 0) & mask
        shown["actor/pg_clipfrac_lower"] = lower.sum() / count
    shown |= {f"isentrope/{key.removeprefix('link/')}": value for key, value in result.metrics.items() if key.startswith("link/")}
    shown |= {f"isentrope/{key}/touched": touched.sum() / count for key, touched in result.observed.touched.items()}
    return {key: float(value) for key, value in shown.items()}
