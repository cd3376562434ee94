"""The offline host: TRL's `SFTTrainer` whose loss runs through our stages.

    trainer = OfflineTrainer(model, args=SFTConfig(...), train_dataset=data, control=[EntropySft(keep=0.8)])

A batch of supervised text is a `Step` of rows of origin "offline" whose advantage is 1, and whose objective is -A log p: cross-entropy.
Links of the stages survey, weight, regularise and update act on it as they do on a policy-gradient step; the dataset may bring an
advantage of its own per row (column `advantage`). All else is TRL's: tokenisation, collation, data order, optimiser, distribution,
logging, checkpoints, and the loss of an evaluation, which stays plain cross-entropy. With an empty chain, or one that is neutral, loss,
gradients and weights equal stock TRL's bit for bit. What it does not carry it refuses by name.

Signals come straight from hidden states (`measure.tokens`): logits are never held. Signals of policy "old" are those of the model as
training found it, the base, which a link may also be held to (`Anchored`). Checked against TRL 1.16.

`DPOTrainer` needs no host: no recipe here changes its loss (`tool-light` makes its pairs).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from isentrope.control.recipes.entropy_sft import SUPERVISED
from isentrope.control.stages import Chain, ChainStats, Intervention, Survey, advance, policy_loss, stages_of, survey
from isentrope.control.step import ORIGINS, Normaliser, Progress, Rollouts, RowRng, Step, join_steps
from isentrope.errors import UserError
from isentrope.measure.tokens import Entropy, LogProb, Rank, Signal
from isentrope.train.carried import TESTED_TRL, built
from isentrope.train.head import Reference, SignalRequest, attach_head, reference_of, reference_signals
from isentrope.train.state import pack_state, unpack_state

CARRIED = {"advantage": torch.float32, "group": torch.long}
"""Columns of the dataset that reach the loss, one number per row."""
STAGES = ("survey", "weight", "regularise", "update")
"""What a link may do here. The others need a policy that samples, or a ratio."""
_OURS = "isentrope/"
_STATE = "isentrope-offline.pt"


@runtime_checkable
class Anchored(Protocol):
    """A link that reads the signal "current.base_kl": KL(base || current) of every token, exact over the vocabulary, with gradient."""

    anchored: bool


class OfflineTrainer(SFTTrainer):
    """TRL's SFTTrainer with links on its loss.

    control: names, `{"name": ..., parameter: ...}` mappings, instances, or a `Chain`; links with stages beside `STAGES` are refused.
    All other parameters are TRL's. `args.gradient_accumulation_steps` slices are one update: a survey sees all of them.

    Raises UserError for an option that it does not carry, an untested TRL, several processes, or a link that does not fit.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: Any = None,
        *,
        control: Chain | Sequence[str | Mapping[str, Any] | Intervention] = (),
    ):
        found = version("trl")
        if not any(found == tested or found.startswith(tested + ".") for tested in TESTED_TRL):
            raise UserError(f"TRL {found} is not tested with this host; tested: {', '.join(TESTED_TRL)}. pip install 'trl==1.16.0'.")
        chain = control if isinstance(control, Chain) else built(control)
        check_links(chain)
        if args is not None:
            refuse_options(args)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processing_class,
            callbacks=callbacks, optimizers=optimizers, peft_config=peft_config,
        )  # fmt: skip
        refuse_options(self.args)
        if self.accelerator.num_processes > 1 and chain.having(Survey):
            raise UserError(f"{', '.join(chain.keys)} surveys the update, which this host sees on one process only. Got {self.accelerator.num_processes}.")
        self.chain = chain
        self.chain_state = chain.init()
        self.update_stats: ChainStats | None = None
        self._slices: list[dict[str, Any]] = []
        self._surveys = bool(chain.having(Survey))
        self._signals = {policy: tuple(need.signal for need in chain.needs if need.policy == policy) for policy in ("current", "old")}
        self._anchored = any(isinstance(link, Anchored) and link.anchored for link in chain.links)
        self.own_head = bool(chain.needs) or self._anchored
        self._base: torch.nn.Module | None = None
        if self.own_head:
            attach_head(self._causal(), 1.0)
        if (self._anchored or self._signals["old"]) and not hasattr(self.model, "disable_adapter"):
            self._base = deepcopy(self._causal()).eval().requires_grad_(False)
        self.data_collator = _Carrying(self.data_collator)
        self.add_callback(_Clock(self))

    def _causal(self) -> Any:
        """The Hugging Face model below DDP and PEFT."""
        base = self.accelerator.unwrap_model(self.model)
        return base.get_base_model() if hasattr(base, "get_base_model") else base

    def _set_signature_columns_if_needed(self):
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            self._signature_columns = [*self._signature_columns, *CARRIED]

    # --- update clock

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        slices, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        first = 0
        for inputs in slices:  # rows of one update have ids of their own
            rows = len(inputs["input_ids"])
            inputs[_OURS + "row_id"] = torch.arange(first, first + rows)
            first += rows
        self._slices, self.update_stats = slices, None
        return slices, items

    def _survey(self, items: Tensor | int | None) -> ChainStats:
        """What the links find over all slices of the update, under the current weights."""
        steps = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self._slices:
                steps.append(self._make_step(self.model_wrapped, self._prepare_inputs(inputs), items)[0])
        return survey(join_steps(steps), SUPERVISED, self.chain, self.chain_state, self.rng())

    def rng(self) -> RowRng:
        """Keys of this update."""
        return RowRng(self.args.seed, self.state.global_step)

    # --- micro-batch clock

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        stock = {key: value for key, value in inputs.items() if not key.startswith(_OURS)}
        if return_outputs or not self.model.training:
            return super().compute_loss(model, stock, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if self._surveys and self.update_stats is None and len(self._slices) > 1:
            self.update_stats = self._survey(num_items_in_batch)
        step, top1 = self._make_step(model, inputs, num_items_in_batch)
        if self._surveys and self.update_stats is None:
            self.update_stats = survey(step, SUPERVISED, self.chain, self.chain_state, self.rng())
        stats = self.update_stats if self.chain.links else None
        if stats is None and self.chain.links:
            stats = ChainStats((None,) * len(self.chain.links))
        result = policy_loss(step, SUPERVISED, self.chain, stats, self.chain_state, self.rng())
        self._log(step, top1, stock)
        for key, touched in result.observed.touched.items():
            self._metrics["train"][f"link/{key}/touched"].append((touched.sum() / step.mask.sum().clamp(min=1)).item())
        loss = result.loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return loss

    def _make_step(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], items: Tensor | int | None) -> tuple[Step, Tensor]:
        """The slice under the current weights, and [response, token] whether a target is the most likely token."""
        labels = inputs["labels"]
        mask = labels[:, 1:] != -100
        old: dict[str, Tensor] = {}
        if self.own_head:
            found, old = self._own_signals(model, inputs, mask)
            log_probs, top1 = found.pop("log_prob"), found["rank"] == 0
        else:
            told = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False, fused_lm_head=True)
            log_probs, top1, found = told.log_probs, told.is_top1, {"entropy": told.entropy.detach()}
        rows = len(labels)
        advantage = inputs.get(_OURS + "advantage")
        rollouts = Rollouts.of(
            mask,
            row_id=inputs[_OURS + "row_id"],
            group=inputs.get(_OURS + "group", torch.zeros(rows, dtype=torch.long, device=labels.device)),
            origin=torch.full((rows,), ORIGINS.index("offline"), device=labels.device),
            completion_ids=torch.where(mask, labels[:, 1:], 0),
            advantage=torch.ones(rows, 1, device=labels.device) if advantage is None else advantage.unsqueeze(1),
            signals={f"old.{key}": value for key, value in old.items()},
        )
        divisor = mask.sum() if items is None else torch.as_tensor(items)
        normaliser = Normaliser(token_divisor=divisor.clamp(min=1), accumulation=self.current_gradient_accumulation_steps)
        signals = {f"current.{key}": value for key, value in found.items()}
        progress = Progress(self.state.global_step, max(self.state.max_steps, 1))
        return Step(rollouts, log_probs, signals, progress=progress, normaliser=normaliser), top1

    def _own_signals(self, model: torch.nn.Module, inputs: Mapping[str, Tensor], mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Signals of the current weights, and of the base where a link asks for them."""
        ids, attention = inputs["input_ids"], inputs["attention_mask"]
        reference: Reference | None = None
        old: dict[str, Tensor] = {}
        if self._anchored or self._signals["old"]:
            with torch.no_grad(), self.base() as base:
                reference = reference_of(base, ids, attention)
                old = reference_signals(reference, ids[:, 1:], mask, self._signals["old"])
        wanted: tuple[Signal, ...] = (LogProb(), Entropy(), Rank(), *self._signals["current"])
        request = SignalRequest(wanted, torch.where(mask, ids[:, 1:], 0), mask, reference=reference if self._anchored else None)
        return model(input_ids=ids, attention_mask=attention, signal_request=request), old

    @contextmanager
    def base(self) -> Iterator[Any]:
        """The model as training found it: a frozen copy, or the adapted one without its adapters."""
        if self._base is not None:
            yield self._base
            return
        adapted: Any = self.accelerator.unwrap_model(self.model)
        training = adapted.training
        with adapted.disable_adapter() if hasattr(adapted, "disable_adapter") else nullcontext():
            adapted.eval()
            try:
                yield self._causal()
            finally:
                adapted.train(training)

    def _log(self, step: Step, top1: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """TRL's metrics under TRL's names, with TRL's meaning: over every target token, whatever the chain made of it."""
        mask, metrics = step.mask, self._metrics["train"]
        entropy = torch.where(mask, step.signal("current.entropy").detach(), 0.0).sum()
        counts = torch.stack([entropy, (top1 & mask).sum().float(), mask.sum().float(), inputs["attention_mask"].sum().float()])
        total = self.accelerator.reduce(counts, reduction="sum")
        metrics["entropy"].append((total[0] / total[2].clamp(min=1)).item())
        metrics["mean_token_accuracy"].append((total[1] / total[2].clamp(min=1)).item())
        self._total_train_tokens += int(total[3]) // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]

    # --- end of the update

    def end_update(self) -> None:
        """After an optimiser step: the links' states move."""
        self.chain_state = advance(self.chain, self.chain_state, self.update_stats, Progress(self.state.global_step, max(self.state.max_steps, 1)))

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        base = None if self._base is None else dict(self._base.state_dict())  # a resumed trainer is built on weights that may have moved
        torch.save(pack_state({"chain": [dict(state) for state in self.chain_state], "base": base}), folder / _STATE)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.chain.links:
            return
        path = Path(checkpoint) / _STATE
        if not path.is_file():
            raise UserError(f"{checkpoint} holds no {_STATE}: it was not written by isentrope's offline host, so its resume would drift.")
        saved = unpack_state(torch.load(path, weights_only=True, map_location=self.accelerator.device))
        self.chain_state = tuple(saved["chain"])
        if self._base is not None:
            self._base.load_state_dict(saved["base"])


class _Clock(TrainerCallback):
    def __init__(self, trainer: OfflineTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.end_update()
        return control


class _Carrying:
    """TRL's collator, with the carried columns beside what it makes."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        kept = {name: [example[name] for example in examples] for name in CARRIED if name in examples[0]}
        plain = [{key: value for key, value in example.items() if key not in CARRIED} for example in examples]
        return {**self.inner(plain), **{_OURS + name: torch.tensor(values, dtype=CARRIED[name]) for name, values in kept.items()}}


REFUSED = (
    ("packing", lambda a: a.packing, "rows would lose their bounds, and with them row-wise weights"),
    ("padding_free", lambda a: a.padding_free, "rows would lose their bounds, and with them row-wise weights"),
    ("loss_type", lambda a: a.loss_type != "nll", "carried: nll; a weight per token is a link"),
    ("label_smoothing_factor", lambda a: a.label_smoothing_factor > 0, "it needs whole logits"),
    ("use_liger_kernel", lambda a: bool(getattr(a, "use_liger_kernel", False)), "it replaces model.forward"),
    ("activation_offloading", lambda a: a.activation_offloading, "not tested here"),
)  # fmt: skip


def refuse_options(args: SFTConfig) -> None:
    """Raises UserError naming an option that this host does not carry, its value and the way out."""
    for option, active, way_out in REFUSED:
        if active(args):
            raise UserError(f"SFTConfig.{option}={getattr(args, option)!r} is not carried by isentrope's offline host ({way_out}).")


def check_links(chain: Chain) -> None:
    """Raises UserError for a link with a stage that has no meaning on supervised text."""
    for key, link in zip(chain.keys, chain.links, strict=True):
        wrong = [stage for stage in stages_of(link) if stage not in STAGES]
        if wrong:
            raise UserError(f"{key} has the stage {', '.join(wrong)}, which supervised text does not have. Stages here: {', '.join(STAGES)}.")
