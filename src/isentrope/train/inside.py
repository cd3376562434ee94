"""What is requested of the network's inside (`control.requests`), taken from the forward that the host makes anyway."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.attention_tokens import relative_entropy_of_attention, row_before
from isentrope.control.requests import AttentionEntropy, HiddenStates, LayerLogProb, Request
from isentrope.errors import UserError
from isentrope.probe.attention import AttentionRows, record_attention

Rows = dict[int, AttentionRows]
"""Rows of attention by layer."""


@contextmanager
def watching(model: Any, requests: Sequence[Request], options: MutableMapping[str, Any]) -> Iterator[Rows]:
    """Around one forward of `model` (a transformers base model): sets the forward's `options`; the rows are there when the block ends."""
    rows: Rows = {}
    if any(isinstance(request, HiddenStates | LayerLogProb) for request in requests):
        options["output_hidden_states"] = True
    asked = [request for request in requests if isinstance(request, AttentionEntropy)]
    if not asked:
        yield rows
        return
    layers = sorted({_layer(request, model) for request in asked})
    with record_attention(model, per_query=True, sinkless=any(one.sinkless for one in asked), layers=layers) as record:
        yield rows
    rows.update({layer: found[0] for layer, found in zip(layers, record.rows, strict=True)})


def fulfilled(requests: Sequence[Request], model: Any, output: Any, rows: Rows, mask: Bool[Tensor, "response token"]) -> dict[str, Tensor]:
    """By key, detached, of the positions that produce the tokens; 0 outside the mask. What needs the head (`layer_state`) is left to it."""
    found: dict[str, Tensor] = {}
    for request in requests:
        if isinstance(request, HiddenStates):
            found[request.key] = _states(request, output.hidden_states, mask)
        elif isinstance(request, AttentionEntropy):
            found[request.key] = _attention(request, rows[_layer(request, model)], mask)
        elif not isinstance(request, LayerLogProb):
            raise UserError(f"this host cannot fill {request!r}; it fills HiddenStates, AttentionEntropy and LayerLogProb.")
    return found


def layer_state(request: LayerLogProb, states: Sequence[Tensor], norm: Callable[[], Callable[[Tensor], Tensor] | None]) -> Float[Tensor, "response position d"]:
    """What the internal policy of `request` decodes, with its gradient. `norm` finds the model's final norm, asked only where one is wanted."""
    last = len(states) - 1
    if request.layer > last:
        raise UserError(f"LayerLogProb: layer must lie in 1..{last}, the number of blocks of this model. Got {request.layer}.")
    hidden = states[request.layer]
    final = norm() if request.norm == "final" and request.layer < last else None
    return hidden if final is None else final(hidden)


def _states(request: HiddenStates, states: Sequence[Tensor], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token d"]:
    if not -len(states) <= request.layer < len(states):
        raise UserError(f"HiddenStates: layer must lie in {-len(states)}..{len(states) - 1}, 0 the embeddings. Got {request.layer}.")
    hidden = states[request.layer].detach()[:, -mask.shape[1] - 1 : -1].to(mask.device)
    return torch.where(mask[..., None], hidden, torch.zeros_like(hidden))


def _attention(request: AttentionEntropy, rows: AttentionRows, mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response token"]:
    width = mask.shape[1]
    entropy = rows.sinkless if request.sinkless and rows.sinkless is not None else rows.entropy
    visible = row_before(rows.ceiling.mean(1), width).exp().nan_to_num().round().long() - int(request.sinkless)
    entropy, visible = row_before(entropy.mean(1), width).to(mask.device), visible.to(mask.device)
    return relative_entropy_of_attention(entropy, visible, mask).float()


def _layer(request: AttentionEntropy, model: Any) -> int:
    count = int(model.config.get_text_config().num_hidden_layers)
    layer = count // 2 if request.layer is None else request.layer
    if not 0 <= layer < count:
        raise UserError(f"AttentionEntropy: layer must lie in 0..{count - 1}, or be None for the middle one. Got {request.layer}.")
    return layer
