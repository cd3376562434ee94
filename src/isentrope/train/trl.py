"""The TRL host: a `GRPOTrainer` whose step runs through our stages.

    trainer = IsentropeTrainer(model, reward_funcs=verify, args=GRPOConfig(...), train_dataset=data, control=["clip-cov"])

It writes no trainer: generation, rewards, data order, optimiser, distribution and logging are TRL's. It turns TRL's batch into
`Rollouts` and `Step`, runs the rollout stages before TRL shuffles, surveys an update before its first slice, and calls the pure
`policy_loss`. With an empty chain loss, gradients and weights equal stock TRL bit for bit. What it does not carry it refuses by name.

Checked against TRL 1.16; it relies on these private methods: `_generate_and_score_completions`, `_generate`, `_generate_single_turn`,
`_calculate_rewards`, `_prepare_inputs`, `_compute_loss`, `_get_per_token_logps_and_entropies`, `_tokenize_prompts`, `_step`,
`_buffered_inputs`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from isentrope.control.objectives import Objective
from isentrope.control.requests import Request
from isentrope.control.stages import (
    Chain,
    ChainStats,
    Intervention,
    LossResult,
    Sample,
    Survey,
    advance,
    gradient,
    policy_loss,
    survey,
)  # fmt: skip
from isentrope.control.step import Normaliser, Progress, Rollouts, RowRng, Step, join_steps
from isentrope.errors import UserError
from isentrope.measure.tokens import Entropy, LogProb, Signal
from isentrope.train.batch import as_text, gather_step, is_correct, pack, unpack
from isentrope.train.carried import built, check_host, objective_of, refuse_options, warn_of_idle
from isentrope.train.forks import forking
from isentrope.train.games import GameSpec
from isentrope.train.head import attach_head, completion_signals
from isentrope.train.prepare import prepare
from isentrope.train.regenerate import regeneration
from isentrope.train.rollout import RolloutStages
from isentrope.train.state import pack_state, unpack_state
from isentrope.train.turns import Player, per_token, read_turns, refuse_loops


class Bookkeeper(Protocol):
    """What the host tells around an optimiser step; `isentrope.train.ledger` keeps the entropy ledger by it."""

    def begin(self, trainer: "IsentropeTrainer") -> None: ...
    def slice(self, inputs: Mapping[str, Tensor], step: Step, stats: ChainStats | None) -> None: ...
    def before_step(self, trainer: "IsentropeTrainer") -> None: ...
    def after_step(self, trainer: "IsentropeTrainer") -> None: ...


class Recorder(Protocol):
    """What the host tells of a run; `isentrope.train.recorder` writes it to a tape."""

    signals: tuple[Signal, ...]  # wanted of every trained token; none: TRL's own head stays

    def begin(self) -> None: ...
    def generation(self, trainer: "IsentropeTrainer", prompts: Sequence[str], rollouts: Rollouts) -> None: ...
    def slice(self, trainer: "IsentropeTrainer", step: Step, stats: ChainStats | None, result: LossResult) -> None: ...
    def update(self, trainer: "IsentropeTrainer") -> None: ...
    def measured(self) -> Mapping[str, float]: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: Mapping[str, Any]) -> None: ...


class NonFiniteLoss(RuntimeError):
    """The loss or what leads to it is NaN or infinite; `stage` names where it appeared first, `path` the saved batch."""

    def __init__(self, stage: str, step: int, path: Path | None):
        saved = "" if path is None else f" The batch is saved in {path}."
        super().__init__(f"step {step}: not finite, first in {stage}. Training stopped; checkpoints already written stand.{saved}")
        self.stage, self.path = stage, path


class IsentropeTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with interventions by name.

    control: names, `{"name": ..., parameter: ...}` mappings, instances, or a `Chain`.
    objective: defaults to what `args` says (loss_type, epsilon, beta, ...).
    recorder: told what happens to every token; None records nothing. ledger: told of every optimiser step; None keeps no books.
    correct_at: a response counts as correct when the first reward function gives at least this.
    game: every response is an episode of it (`isentrope.train.turns`), and the data set has a column `seed`.
    All other parameters are TRL's.

    Raises UserError for an option it does not carry, an untested TRL, Unsloth's replaced trainer, or a trainer option that means
    the same as a link of the chain.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        *,
        control: Chain | Sequence[str | Mapping[str, Any] | Intervention] = (),
        objective: Objective | None = None,
        recorder: Recorder | None = None,
        ledger: Bookkeeper | None = None,
        correct_at: float = 1.0,
        game: GameSpec | None = None,
    ):
        check_host()
        chain = control if isinstance(control, Chain) else built(control)
        if args is not None:
            refuse_options(args, chain)
        refuse_loops(chain, {"tools": tools, "rollout_func": rollout_func, "environment_factory": environment_factory})
        super().__init__(
            model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, reward_processing_classes=reward_processing_classes, callbacks=callbacks,
            optimizers=optimizers, quantization_config=quantization_config, peft_config=peft_config,
            tools=tools, rollout_func=rollout_func, environment_factory=environment_factory,
        )  # fmt: skip
        if args is None:
            refuse_options(self.args, chain)
        self.take(chain, objective=objective, recorder=recorder, ledger=ledger, correct_at=correct_at, game=game)

    def take(
        self,
        chain: Chain,
        *,
        objective: Objective | None = None,
        recorder: Recorder | None = None,
        ledger: Bookkeeper | None = None,
        correct_at: float = 1.0,
        game: GameSpec | None = None,
    ) -> None:
        """The second half of the constructor: what a GRPOTrainer that stands needs on top (`isentrope.attach` calls it too)."""
        self.player = None if game is None else Player(game)
        if self.player is not None:
            self.rollout_func = self.player
        self.chain = chain
        self.objective = objective_of(self.args) if objective is None else objective
        warn_of_idle(self.args, chain, self.objective)
        self.recorder = recorder
        self.ledger = ledger
        self.correct_at = correct_at
        self.chain_state = chain.init()
        self.generations = 0  # generation batches made so far; keys the row ids
        self.update_stats: ChainStats | None = None
        self.failure_directory: Path | None = Path(self.args.output_dir)
        self.last_grad_norm = float("nan")
        self.last_learning_rate = float("nan")
        self._slice = 0
        self._rollout_stages = RolloutStages(self) if chain.links else None
        self.regeneration = regeneration(self)
        self.forking = forking(self)
        self._temperatures: list[Tensor] = []
        self.rows: Sequence[Mapping[str, Any]] = ()  # of the data set, being generated
        self._scored: dict[str, Any] = {}
        later = [need.signal for need in chain.needs if need.policy != "draft"]  # those are scored while sampling
        wanted = later + list(recorder.signals if recorder else ())
        inside = [need.signal for need in chain.needs if need.policy == "current" and isinstance(need.signal, Request)]
        self.signals = _signals([signal for signal in wanted if not isinstance(signal, Request)] + inside)
        self.own_head = bool(wanted or chain.needs)
        self._surveys = any(isinstance(link, Survey) for link in chain.links)
        if self._surveys and self.args.gradient_accumulation_steps > self.args.steps_per_generation * self.num_iterations:
            raise UserError(
                f"gradient_accumulation_steps={self.args.gradient_accumulation_steps} exceeds steps_per_generation x num_iterations="
                f"{self.args.steps_per_generation * self.num_iterations}: an update would span several generations, which a survey over the "
                f"update ({', '.join(chain.keys)}) cannot see in advance. Raise trl.steps_per_generation."
            )
        if self.own_head or ledger is not None:
            base = self.accelerator.unwrap_model(self.model)
            attach_head(base.get_base_model() if hasattr(base, "get_base_model") else base, self.temperature)
        self.add_callback(_Clock(self))

    # --- positions and randomness

    @property
    def progress(self) -> Progress:
        return Progress(self.state.global_step, max(self.state.max_steps, 1))

    def rng(self, step: int | None = None) -> RowRng:
        """Keys of this update (or of generation -1 - g when `step` is negative)."""
        return RowRng(self.args.seed, self.state.global_step if step is None else step)

    def first_row(self, rows: int) -> int:
        """The id of the first of this process's `rows` rows of the generation that comes."""
        return (self.generations * self.accelerator.num_processes + self.accelerator.process_index) * rows

    def train(self, *args, **kwargs):
        prepare(self)
        return super().train(*args, **kwargs)

    # --- rollout clock

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = {"rewards": rewards, "prompts": prompts, "completions": completions, "ids": completion_ids_list}
        return rewards

    def _generate(self, prompts):
        found = super()._generate(prompts)
        if self.regeneration is None or not self.model.training:
            return found
        return (*found[:2], self.regeneration.masks(found[1]), *found[3:])  # the third is TRL's tool_mask

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        if self.regeneration is not None and self.model.training:
            return self.regeneration.generate(prompt_ids, num_generations), None
        links = self.chain.having(Sample)
        if not links or not self.model.training:
            with self.sampling({"prompt_ids": prompt_ids}):
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        processor = _Temperature(self, links)
        model = self.accelerator.unwrap_model(self.model)
        generate = model.generate
        model.generate = lambda *a, **k: generate(*a, logits_processor=LogitsProcessorList([processor]), **k)
        try:
            with self.sampling({"prompt_ids": prompt_ids}):
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)
        finally:
            del model.generate
            self._temperatures = processor.used

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if self.regeneration is not None:
            output.pop("tool_mask")  # no turns: `trained_mask` says what was taken over
        rollouts = self._build_rollouts(output)
        if self.regeneration is not None:
            rollouts = self.regeneration.marked(rollouts)
        if self._rollout_stages is not None:
            rollouts, output = self._rollout_stages.run(inputs, rollouts, output)
        if self.recorder is not None:
            self.recorder.generation(self, [as_text(prompt) for prompt in self._scored["prompts"]], rollouts)
        self.generations += 1
        return pack(rollouts, output)

    def touched_rollouts(self) -> Mapping[str, float]:
        """Link -> share of the responses or tokens of this generation whose reward or advantage it changed, or which it dropped."""
        return {} if self._rollout_stages is None else self._rollout_stages.touched

    def _build_rollouts(self, output: Mapping[str, Tensor]) -> Rollouts:
        rows, rank = len(output["prompt_ids"]), self.accelerator.process_index
        row_id = torch.arange(rows, device=self.accelerator.device) + self.first_row(rows)
        parts = self._scored["rewards"][rank * rows : (rank + 1) * rows]
        mask = output["completion_mask"].bool()
        advantages = output["advantages"]
        turns = {"truncated": self.truncated(self._scored["ids"])} | read_turns(output, self.player)
        return Rollouts.of(
            **turns,
            row_id=row_id,
            group=row_id // self.num_generations,
            completion_ids=output["completion_ids"],
            sampling_temperature=self._sampling_temperature(mask),
            reward=self.total_reward(parts),
            reward_parts=parts,
            correct=is_correct(parts, self.correct_at),
            advantage=advantages.unsqueeze(1) if advantages.dim() == 1 else advantages,
            old_log_probs=output.get("old_per_token_logps"),
            ref_log_probs=output.get("ref_per_token_logps"),
            sampling_log_probs=output.get("sampling_per_token_logps"),
            text=tuple(as_text(completion) for completion in self._scored["completions"]),
        )

    def taken_temperatures(self) -> Tensor | None:
        """[response, token] temperatures of the last generation where links chose them, once."""
        taken, self._temperatures = self._temperatures, []
        return torch.stack(taken, dim=1) if taken else None

    def _sampling_temperature(self, mask: Tensor) -> Tensor:
        used = torch.full(mask.shape, float(self.temperature), device=mask.device)
        if self.player is not None:
            chosen = per_token([episode.columns.get("temperature", ()) for episode in self.player.episodes], used)
            used = torch.where(chosen > 0, chosen, used)
        elif (taken := self.taken_temperatures()) is not None:
            chosen = taken[:, : mask.shape[1]].to(mask.device)
            used[:, : chosen.shape[1]] = chosen
        return torch.where(mask, used, float(self.temperature))

    def total_reward(self, parts: Tensor) -> Tensor:
        """[response] weighted sum of the reward functions; NaN where none of them scored the row (as TRL does)."""
        total = (parts * self.reward_weights.to(parts.device).unsqueeze(0)).nansum(dim=1)
        return torch.where(torch.isnan(parts).all(dim=1), torch.nan, total)

    def truncated(self, completion_ids: Sequence[Sequence[int]]) -> Tensor:
        """[response] bool: the completion did not end with an end-of-sequence token."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        return torch.tensor([len(ids) == 0 or ids[-1] not in ends for ids in completion_ids], device=self.accelerator.device)

    # --- update clock

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._surveys and self._slice == 0:
            slices = self._update_slices()
            if len(slices) > 1 or self.accelerator.num_processes > 1:
                self.update_stats = self._survey(slices)
        return inputs

    def _update_slices(self) -> list[dict]:
        """TRL's slices that make up the update now beginning."""
        first, count = self._step, self.current_gradient_accumulation_steps
        return [self._buffered_inputs[(first + offset) % self.args.steps_per_generation] for offset in range(count)]

    def _survey(self, slices: Sequence[Mapping[str, Tensor]]) -> ChainStats:
        with torch.no_grad():
            view = join_steps([self._make_step(self.model_wrapped, inputs)[0] for inputs in slices])
        return survey(gather_step(self.accelerator, view), self.objective, self.chain, self.chain_state, self.rng())

    # --- micro-batch clock

    def _make_step(self, model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Step, Tensor]:
        """The slice under the current weights, and the entropy of every completion token."""
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width = inputs["completion_ids"].size(1)
        if self.own_head:
            mask = inputs["completion_mask"].bool()
            with self.accelerator.autocast():
                found = completion_signals(model, input_ids, attention_mask, mask, self.signals, precise=bool(self.args.cast_lm_head_to_fp32))
            log_probs = found.pop("log_prob")
        else:
            log_probs, entropy, _ = self._get_per_token_logps_and_entropies(model, input_ids, attention_mask, width, compute_entropy=True)
            found = {"entropy": entropy.detach()}
        age = (self._step % (self.args.steps_per_generation * self.num_iterations)) // self.args.gradient_accumulation_steps
        step = Step(
            rollouts=unpack(inputs, age),
            log_probs=log_probs,
            signals={f"current.{key}": value for key, value in found.items()},
            progress=self.progress,
            normaliser=self._normaliser(inputs),
        )
        return step, found["entropy"].detach()

    def _normaliser(self, inputs: Mapping[str, Tensor]) -> Normaliser:
        accumulation = self.current_gradient_accumulation_steps
        divisor = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        divisor = divisor * accumulation / self.args.steps_per_generation
        return Normaliser(
            token_divisor=divisor,
            rows=len(inputs["completion_ids"]) * accumulation * self.accelerator.num_processes,
            accumulation=accumulation,
            world_size=self.accelerator.num_processes,
            horizon=self.max_completion_length,
        )

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        step, entropy = self._make_step(model, inputs)
        if self._surveys and self.update_stats is None:
            self.update_stats = survey(step, self.objective, self.chain, self.chain_state, self.rng())
        stats = self.update_stats if self.chain.links else None
        if stats is None and self.chain.links:
            stats = ChainStats((None,) * len(self.chain.links))
        result = policy_loss(step, self.objective, self.chain, stats, self.chain_state, self.rng())
        if not torch.isfinite(result.loss):
            self._stop_non_finite(step, inputs, result)
        self._log_trl(step, entropy, result)
        for key, value in result.metrics.items():
            if key.startswith("link/"):
                self._metrics["train"][key].append(value.item())
        if self.recorder is not None:
            self.recorder.slice(self, step, stats, result)
        if self.ledger is not None:
            self.ledger.slice(inputs, step, stats)
        self._slice += 1
        return result.loss

    def _log_trl(self, step: Step, entropy: Tensor, result: LossResult) -> None:
        """TRL's metrics under TRL's names, with TRL's meaning: the objective's own window, whatever the chain made of it."""
        metrics, mask, ratio = self._metrics["train"], step.mask, result.observed.ratio
        if result.observed.kl is not None:
            metrics["kl"].append(self._global_mean(result.observed.kl, mask))
        metrics["entropy"].append(self._global_mean(entropy, mask))
        advantage = step.advantage
        if self.loss_type == "cispo":
            metrics["cispo_clip_ratio"].append(self._global_mean(((ratio > self.epsilon_high) & (advantage > 0)).float(), mask))
        elif self.loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
            low = ((ratio < 1 - self.epsilon_low) & (advantage < 0)).float()
            high = ((ratio > 1 + self.epsilon_high) & (advantage > 0)).float()
            metrics["clip_ratio/low_mean"].append(self._global_mean(low, mask))
            metrics["clip_ratio/high_mean"].append(self._global_mean(high, mask))
            metrics["clip_ratio/region_mean"].append(self._global_mean(torch.maximum(low, high), mask))
            metrics["clip_ratio/low_min"].append(_extreme(self.accelerator.gather(_row_mean(low, mask)), torch.amin))
            metrics["clip_ratio/high_max"].append(_extreme(self.accelerator.gather(_row_mean(high, mask)), torch.amax))

    def _global_mean(self, value: Tensor, mask: Tensor) -> float:
        if value.shape[1] == 1:  # one value per sequence
            local = torch.stack([value.sum(), torch.tensor(float(value.shape[0]), device=value.device)])
        else:
            local = torch.stack([torch.where(mask, value, 0.0).sum(), mask.sum().float()])
        total = self.accelerator.reduce(local, reduction="sum")
        return (total[0] / total[1].clamp(min=1.0)).item()

    def _stop_non_finite(self, step: Step, inputs: Mapping[str, Tensor], result: LossResult) -> None:
        self._stop(first_non_finite(step, result), {key: value for key, value in inputs.items() if isinstance(value, Tensor)})

    def _stop(self, stage: str, batch: Any) -> None:
        path = None
        if self.failure_directory is not None:
            path = self.failure_directory / f"failed-step-{self.state.global_step + 1:08d}-rank{self.accelerator.process_index}.pt"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(batch, path)
            except (OSError, RuntimeError):  # a full disk must not hide what went wrong
                with contextlib.suppress(OSError):
                    path.unlink()
                path = None
        raise NonFiniteLoss(stage, self.state.global_step + 1, path)

    @contextlib.contextmanager
    def sampling(self, batch: Any) -> Iterator[None]:
        """Inside, a sampler that meets probabilities which are not finite stops the run as a loss would; `batch` is saved."""
        try:
            yield
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            self.check_weights(batch)
            self._stop("the model's probabilities while sampling (the forward pass; the weights are finite)", batch)

    def check_weights(self, batch: Any) -> None:
        """Stops the run if a weight is not finite."""
        for name, weight in self.accelerator.unwrap_model(self.model).named_parameters():
            if not bool(torch.isfinite(weight).all()):
                self._stop(f"the weights (of {name}; they came so, or the last update made them so)", batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log with what the recorder measured beside it, under `isentrope/`, for every tracker of `report_to`."""
        if "loss" in logs and self.recorder is not None:
            logs.update({f"isentrope/{key}": value for key, value in self.recorder.measured().items()})
        super().log(logs, start_time)

    # --- end of the update

    def end_update(self) -> None:
        """After an optimiser step: the controllers move, the recorder closes its row."""
        if self.recorder is not None:
            self.recorder.update(self)
        self.chain_state = advance(self.chain, self.chain_state, self.update_stats, self.progress)

    def _get_grad_norm(self, model, grad_norm=None):
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.last_grad_norm = float(found) if found is not None else float("nan")
        self.last_learning_rate = float(self._get_learning_rate())
        if found is not None and not math.isfinite(self.last_grad_norm) and self.accelerator.scaler is None:  # fp16's scaler skips such a step
            self._stop("the gradient (backward pass)", [dict(part) for part in self._buffered_inputs])
        return found

    def will_log(self) -> bool:
        """Whether TRL empties its metrics at the end of this update."""
        return bool(self.state.global_step % max(1, int(self.args.logging_steps)) == 0)

    def begin_update(self) -> None:
        if self.recorder is not None:
            self.recorder.begin()
        if self.ledger is not None:
            self.ledger.begin(self)
        self.update_stats = None
        self._slice = 0

    def _get_train_sampler(self, dataset=None):
        self.sampler = ResumableSampler(super()._get_train_sampler(dataset))
        return self.sampler

    # --- resume: what TRL forgets

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        torch.save(pack_state(self.host_state()), folder / host_state_name(self.accelerator.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint) / host_state_name(self.accelerator.process_index)
            if not path.is_file():
                raise UserError(f"{checkpoint} holds no {path.name}: it was not written by isentrope's host, so its resume would drift.")
            self.load_host_state(unpack_state(torch.load(path, weights_only=True, map_location=self.accelerator.device)))

    def host_state(self) -> dict[str, Any]:
        """Everything of ours and TRL's that the stock checkpoint does not hold."""
        return {
            "step": self._step,
            "buffered_inputs": self._buffered_inputs,
            "generations": self.generations,
            "chain_state": [dict(state) for state in self.chain_state],
            "buffers": {} if self._rollout_stages is None else {index: buffer.state() for index, buffer in self._rollout_stages.buffers.items()},
            "sampler": self.sampler.state(),
            "metrics": {key: list(values) for key, values in self._metrics["train"].items()},
            "recorder": None if self.recorder is None else self.recorder.state(),
        }

    def load_host_state(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        self._buffered_inputs = state["buffered_inputs"]
        self.generations = state["generations"]
        self.chain_state = tuple(state["chain_state"])
        if self._rollout_stages is not None:
            for index, buffer in self._rollout_stages.buffers.items():
                buffer.load_state(state["buffers"][index])
        self.sampler.restore(state["sampler"])
        for key, values in state["metrics"].items():
            self._metrics["train"][key] = list(values)
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.load_state(state["recorder"])


class ResumableSampler(torch.utils.data.Sampler):
    """TRL's sampler, remembering its generator as it was when the epoch began, so that a resumed epoch has the same order."""

    def __init__(self, inner: RepeatSampler):
        self.inner = inner
        self._epoch_start = inner.generator.get_state() if inner.shuffle else None

    def __iter__(self):
        if self.inner.shuffle:
            self._epoch_start = self.inner.generator.get_state()
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def state(self) -> Tensor | None:
        return self._epoch_start

    def restore(self, state: Tensor | None) -> None:
        if state is not None:
            self.inner.generator.set_state(state)


class _Clock(TrainerCallback):
    """Tells the trainer where updates begin and end, and the ledger where the optimiser steps."""

    def __init__(self, trainer: IsentropeTrainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begin_update()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.ledger is not None:
            self.trainer.ledger.before_step(self.trainer)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.ledger is not None:
            self.trainer.ledger.after_step(self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_update()


class _Temperature(LogitsProcessor):
    """Applies the chain's sampling temperatures: raw logits are scaled so that TRL's own division by `base` leaves logits / T."""

    def __init__(self, trainer: IsentropeTrainer, links: Sequence[tuple[int, Sample]]):
        self.base, self.links, self.state = float(trainer.temperature), links, trainer.chain_state
        self.used: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        factor = torch.ones(len(scores), device=scores.device)
        for index, link in self.links:
            factor = factor * link.temperature(scores.float(), self.base, self.state[index]) / self.base
        self.used.append(factor * self.base)
        return scores / factor[:, None].to(scores.dtype)


# --- parts


def host_state_name(rank: int) -> str:
    """The file of a checkpoint that holds this rank's host state."""
    return f"isentrope_state_{rank}.pt"


def first_non_finite(step: Step, result: LossResult) -> str:
    """The stage in which a NaN or infinity appears first, in the order of the computation."""
    mask = step.mask
    rollouts = step.rollouts
    candidates: list[tuple[str, Tensor | None]] = [
        ("the reward (stage reward)", torch.where(torch.isnan(rollouts.reward), 0.0, rollouts.reward)),
        ("the advantage (stage advantage)", rollouts.advantage.expand(mask.shape)),
        ("the old log-probs (stage score)", rollouts.old_log_probs),
        ("the reference log-probs (stage score)", rollouts.ref_log_probs),
        ("the model's log-probs (stage policy: the weights or the forward pass)", step.log_probs),
        *((f"the signal {key} (stage policy)", value) for key, value in sorted(step.signals.items())),
        ("the ratio (stage policy)", result.observed.ratio.expand(mask.shape)),
        ("the token weights (stage weight)", result.observed.weight),
    ]
    for name, value in candidates:
        if value is not None and not torch.isfinite(value if value.shape != mask.shape else value[mask]).all():
            return name
    for key, value in result.metrics.items():
        if not torch.isfinite(value):
            return f"{key} (stage regularise)" if key.startswith("link/") else "the surrogate loss (stage clip)"
    return "the sum of the loss terms"


def _signals(wanted: Sequence[Signal]) -> tuple[Signal, ...]:
    """Log-prob with gradient, entropy, and what is wanted; one of each key, with gradient if anyone asks for it."""
    chosen: dict[str, Signal] = {}
    for signal in (LogProb(grad=True), Entropy(), *wanted):
        if signal.key not in chosen or gradient(signal):
            chosen[signal.key] = signal
    return tuple(chosen.values())


def _row_mean(value: Tensor, mask: Tensor) -> Tensor:
    return value.squeeze(1) if value.shape[1] == 1 else torch.where(mask, value, 0.0).sum(-1) / mask.sum(-1)


def _extreme(values: Tensor, reduce: Callable[[Tensor], Tensor]) -> float:
    kept = values[~torch.isnan(values)]
    return float("nan") if kept.numel() == 0 else reduce(kept).item()
