"""Every measure of a model on a text, again and again while any transformers Trainer trains it: SFT, DPO, reward models, GRPO.

    trainer = SFTTrainer(...)
    trainer.add_callback(EntropyCallback("some text that the training does not see", every=100, log=trainer.log))
    trainer.train()

The training itself does not notice: nothing is drawn from a random generator, and the model goes back to the mode that it was in.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import polars as pl
import torch
from transformers import PreTrainedModel, TrainerCallback

from isentrope.errors import UserError
from isentrope.probe.measure import PARTS, Measurement, measure
from isentrope.train.models import LoadedModel

Log = Callable[[dict[str, float]], Any]


class EntropyCallback(TrainerCallback):
    """Measures the model on `text` before the first update, every `every` updates and after the last.

    text: read whole, at most `window` tokens at once. parts: what is measured beside the tokens, of "heads", "layers" and "lens" (the
    dearest). log: `trainer.log`, so that trackers see the figures; without it they stand in `trainer.state.log_history` alone. Figures,
    nats where an entropy:

        isentrope/entropy, varentropy, surprise      means over the predicted tokens (surprise: minus the log-prob of the text's token)
        isentrope/heads/entropy, lowest, focused     mean over heads, the lowest head, share of heads below a tenth of their ceiling ln(visible)
        isentrope/layers/effective_rank, lowest      of the residual stream, exp of the entropy of its spectrum: last layer, lowest layer
        isentrope/seconds, cost                      of this measurement; share of the time since training began that all of them took

    `measurements` keeps the whole of the last one, with a row per token, head and layer. Raises UserError for `every` below 1, an empty
    text or an unknown part; and at the start of the training for a model that it cannot read (no transformers causal LM, weights
    sharded by FSDP or DeepSpeed ZeRO-3, no tokenizer).
    """

    def __init__(self, text: str, *, every: int = 100, window: int | None = 1024, parts: Collection[str] = ("heads", "layers"), log: Log | None = None):
        if every < 1:
            raise UserError(f"EntropyCallback: every must be at least 1 update. Got {every}.")
        if not text.strip():
            raise UserError("EntropyCallback: text is empty, so there is nothing to measure the model on. Give a few hundred words that it is not trained on.")
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise UserError(f"EntropyCallback: parts must be of {', '.join(PARTS)}. Got {', '.join(unknown)}.")
        self.text, self.every, self.window, self.parts, self.log = text, every, window, tuple(parts), log
        self.last: Measurement | None = None
        self.spent = 0.0
        self._began = time.perf_counter()
        self._measured_at: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.spent, self._began, self._measured_at = 0.0, time.perf_counter(), None
        if args.fsdp or args.deepspeed:
            raise UserError(
                "EntropyCallback: the weights are sharded (FSDP or DeepSpeed), and a model is measured whole here. Measure a checkpoint: isentrope measure."
            )
        self._measure(state, kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self._measure(state, kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        self._measure(state, kwargs)

    def _measure(self, state: Any, kwargs: dict[str, Any]) -> None:
        if self._measured_at == state.global_step or not state.is_world_process_zero:
            return
        began = time.perf_counter()
        loaded = _loaded(kwargs.get("model"), kwargs.get("processing_class"))
        modes = [(module, module.training) for module in loaded.model.modules()]
        try:
            with torch.no_grad():
                window = None if self.window is None else min(self.window, loaded.context)
                self.last = measure(loaded, self.text, source="text", window=window, parts=self.parts)
        finally:
            for module, training in modes:
                module.training = training
        seconds = time.perf_counter() - began
        self.spent += seconds
        figures = figures_of(self.last) | {"isentrope/seconds": seconds, "isentrope/cost": self.spent / (time.perf_counter() - self._began)}
        self._measured_at = state.global_step
        if self.log is not None:
            self.log(figures)
        else:
            state.log_history.append({**figures, "step": state.global_step, "epoch": state.epoch})


def figures_of(found: Measurement) -> dict[str, float]:
    """The figures of a measurement, under the names that `EntropyCallback` tells."""
    tokens, heads, layers = found.tokens, found.heads, found.layers
    figures = {f"isentrope/{name}": float(tokens[name].mean()) for name in ("entropy", "varentropy")}
    figures["isentrope/surprise"] = -float(tokens["log_prob"].mean())
    if len(heads):
        figures["isentrope/heads/entropy"] = float(heads["entropy"].mean())
        figures["isentrope/heads/lowest"] = float(heads["entropy"].min())
        figures["isentrope/heads/focused"] = float((heads["entropy"] < 0.1 * heads["ceiling"]).mean())
    if "effective_rank" in layers.columns:
        figures["isentrope/layers/effective_rank"] = float(layers.sort("layer")["effective_rank"][-1])
        figures["isentrope/layers/lowest"] = float(layers["effective_rank"].min())
    if "lens" in layers.columns:
        deepest = layers.sort("layer").filter(pl.col("lens_normed").is_not_null())
        figures["isentrope/layers/lens"] = float(deepest["lens_normed"].mean())
    return figures


def _loaded(model: Any, tokenizer: Any) -> LoadedModel:
    while hasattr(model, "module") and not isinstance(model, PreTrainedModel):  # DDP
        model = model.module
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT: the layers with their adapters
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise UserError(f"EntropyCallback reads a transformers causal language model. Got {type(model).__name__}.")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
    if tokenizer is None:
        raise UserError("EntropyCallback needs the trainer's processing_class (its tokenizer), to read its text.")
    context = int(model.config.get_text_config().max_position_embeddings)
    return LoadedModel(model, tokenizer, model.config._name_or_path, chat=tokenizer.chat_template is not None, context=context)
