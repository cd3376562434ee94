"""Signals that follow from neither log-prob nor entropy: computed where verl's FSDP engine holds the logits, and handed on beside its own outputs."""

import functools
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu

from isentrope.measure.signals import Signal
from isentrope.measure.tokens import token_signals_from_logits

CURRENT = "isentrope_current_"
"""Before a signal's key: of the policy that is trained, among the model's outputs."""
OLD = "isentrope_old_"
"""Before a signal's key: of the old policy, in the batch. verl's v1 trainer stores whatever the pass for the old log-probs gives back."""


def with_signals(engine: Any, current: tuple[Signal, ...], old: tuple[Signal, ...]) -> None:
    """Give the engine's outputs these signals: `current` where a loss is computed, `old` in the pass that scores the old policy."""
    original = engine.prepare_model_outputs

    @functools.wraps(original)
    def prepare(output, output_args, micro_batch, logits_processor_func):
        scores_old = logits_processor_func is None and tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False)
        prefix, wanted = (OLD, old if scores_old else ()) if logits_processor_func is None else (CURRENT, current)
        found = _signals(engine, output.logits, output_args, micro_batch, wanted) if wanted else {}
        return original(output, output_args, micro_batch, logits_processor_func) | {prefix + key: value for key, value in found.items()}

    engine.prepare_model_outputs = prepare


def _signals(engine: Any, logits: Tensor, output_args: dict, micro_batch: TensorDict, wanted: tuple[Signal, ...]) -> dict[str, Tensor]:
    """{key: nested [response, prompt and response tokens]}, of the next token at every position, of logits / temperature, in float32."""
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    offsets = micro_batch["input_ids"].offsets()
    packed = "temperature_rmpad" in output_args
    if packed:
        logits, temperature = logits.squeeze(0), output_args["temperature_rmpad"]
    else:
        lengths = offsets.diff()
        logits = torch.cat([row[:n] for row, n in zip(logits, lengths.tolist(), strict=True)])
        temperature = output_args["temperature"].repeat_interleave(lengths)
    found = token_signals_from_logits(logits.float() / temperature[:, None], output_args["input_ids_rmpad_rolled"], wanted)
    if packed:
        found = {key: engine._gather_and_unpad_packed(value, output_args["pad_size"]) for key, value in found.items()}
    return {key: torch.nested.nested_tensor_from_jagged(value, offsets) for key, value in found.items()}
