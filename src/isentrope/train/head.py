"""Our LM head on a Hugging Face causal model: per-token signals straight from hidden states, logits never held.

The model's `forward` gains one keyword, `signal_request`; without it the forward is the one that was there before (stock, or the
fused head that TRL installs), so generation and TRL's own passes do not change. Wrapping by DDP or PEFT may come after.
"""

import functools
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from isentrope.control.requests import LayerLogProb, Request
from isentrope.measure.tokens import LogProb, Signal, token_signals
from isentrope.measure.two_heads import DistributionHead, forward_kl
from isentrope.probe.stream import stream_of
from isentrope.train.inside import fulfilled, layer_state, watching


@dataclass(frozen=True)
class SignalRequest:
    """Which signals of which tokens: `target[b, t]` is predicted at the last `target.shape[1]` positions, shifted by one;
    only positions where `mask` is True are computed, the others hold 0."""

    signals: tuple[Signal, ...]
    target: Int[Tensor, "response token"]
    mask: Bool[Tensor, "response token"]
    precise: bool = False
    requests: tuple[Request, ...] = ()  # of the network's inside
    reference: "Reference | None" = None  # adds "base_kl", the KL from this model's distribution to the current one's


@dataclass(frozen=True)
class HeadScale:
    """What a model does to hidden . W^T before the softmax: multiply, then softcap (None: nothing)."""

    scale: float
    softcap: float | None


@dataclass(frozen=True)
class Reference:
    """What another model makes of the same text: its last hidden states, detached, its head and what it does before the softmax."""

    hidden: Float[Tensor, "response position d"]
    head: torch.nn.Module
    scale: HeadScale


def head_scale(model: PreTrainedModel) -> HeadScale:
    """Read off the configuration under the names that today's architectures use (Cohere, Falcon-H1, Granite, MiniCPM3,
    HyperCLOVA X, Gemma 2)."""
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return HeadScale(float(getattr(config, name)), softcap)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return HeadScale(1.0, softcap)
    return HeadScale(float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling), softcap)


def attach_head(model: PreTrainedModel, temperature: float) -> None:
    """Give `model.forward` the keyword `signal_request: SignalRequest`, which makes it return `{signal key: [response, token]}`.

    Entropies and log-probs are of logits / temperature, in nats. Call before wrapping by DDP; on a PEFT model pass its base model.
    """
    before = model.forward
    scale = head_scale(model)
    norm = functools.cache(lambda: stream_of(model, torch.ones(1, 4, dtype=torch.long, device=model.device)).norm)

    @functools.wraps(type(model).forward)
    def forward(self, *args, signal_request: SignalRequest | None = None, **kwargs):
        if signal_request is None:
            return before(*args, **kwargs)
        kwargs["use_cache"] = False
        with watching(self.base_model, signal_request.requests, kwargs) as rows:
            output = self.base_model(*args, **kwargs)
        head = self.get_output_embeddings()
        found = _signals(output.last_hidden_state, head, signal_request, temperature, scale)
        found |= _of_layers(output.hidden_states, head, signal_request, temperature, scale, norm)
        return found | fulfilled(signal_request.requests, self.base_model, output, rows, signal_request.mask)

    model.forward = types.MethodType(forward, model)


def _signals(
    hidden: Float[Tensor, "response position d"], head: torch.nn.Module, request: SignalRequest, temperature: float, scale: HeadScale
) -> dict[str, Tensor]:
    width = request.target.shape[1]
    hidden = hidden[:, -width - 1 : -1].to(head.weight.device)
    weight, bias, mask = head.weight, head.bias, request.mask
    if request.precise or weight.dtype == torch.float32:
        hidden, context = hidden.to(torch.promote_types(hidden.dtype, torch.float32)), torch.autocast(hidden.device.type, enabled=False)
    else:
        context = nullcontext()
    with context:
        found = token_signals(
            hidden[mask], weight, request.target[mask], request.signals,
            bias=bias, temperature=temperature, softcap=scale.softcap, logit_scale=scale.scale, precise=request.precise,
        )  # fmt: skip
        if request.reference is not None:
            found["base_kl"] = _base_kl(hidden[mask], head, scale, request.reference, mask, temperature)
    # masked_scatter keeps the output connected to the model even when no token counts, so backward gives zeros
    return {key: value.new_zeros(mask.shape).masked_scatter(mask, value) for key, value in found.items()}


def _of_layers(
    states: Sequence[Tensor] | None, head: torch.nn.Module, request: SignalRequest, temperature: float, scale: HeadScale,
    norm: Callable[[], Callable[[Tensor], Tensor] | None],
) -> dict[str, Tensor]:  # fmt: skip
    """The log-probs of the internal policies that are requested, by the same head."""
    found = {}
    for asked in request.requests:
        if isinstance(asked, LayerLogProb) and states is not None:
            own = replace(request, signals=(LogProb(grad=asked.grad),), requests=(), reference=None)
            found[asked.key] = _signals(layer_state(asked, states, norm), head, own, temperature, scale)["log_prob"]
    return found


def _base_kl(
    hidden: Float[Tensor, "counted d"], head: torch.nn.Module, scale: HeadScale, reference: Reference, mask: Tensor, temperature: float
) -> Float[Tensor, " counted"]:
    kind = hidden.dtype
    base = reference.hidden[:, -mask.shape[1] - 1 : -1][mask].to(kind)
    return forward_kl(
        DistributionHead(base, reference.head.weight.to(kind), reference.head.bias, reference.scale.scale, reference.scale.softcap),
        DistributionHead(hidden, head.weight, head.bias, scale.scale, scale.softcap),
        temperature=temperature,
    )


def reference_of(model: PreTrainedModel, input_ids: Int[Tensor, "response position"], attention_mask: Int[Tensor, "response position"]) -> Reference:
    """One pass of `model` over the text; call it without gradient."""
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return Reference(output.last_hidden_state.detach(), model.get_output_embeddings(), head_scale(model))


def reference_signals(
    reference: Reference, target: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"], signals: Sequence[Signal]
) -> dict[str, Tensor]:
    """Signals of the reference at temperature 1, `{key: [response, token]}`, 0 outside the mask."""
    return _signals(reference.hidden, reference.head, SignalRequest(tuple(signals), target, mask), 1.0, reference.scale) if signals else {}


def completion_signals(
    model: torch.nn.Module,
    input_ids: Int[Tensor, "response position"],
    attention_mask: Int[Tensor, "response position"],
    mask: Bool[Tensor, "response token"],
    signals: Sequence[Signal],
    *,
    precise: bool = False,
) -> dict[str, Float[Tensor, "response token ..."]]:
    """Signals of the completion (the last `mask.shape[1]` positions) under `model`, whose head `attach_head` has prepared."""
    asked = tuple(signal for signal in signals if isinstance(signal, Request))
    told = tuple(signal for signal in signals if not isinstance(signal, Request))
    request = SignalRequest(told, input_ids[:, -mask.shape[1] :], mask, precise, asked)
    return model(input_ids=input_ids, attention_mask=attention_mask, signal_request=request)
