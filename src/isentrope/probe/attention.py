"""Attention entropies of a whole Hugging Face model while it runs as it always does.

Inside `record_attention(model)` the model's attention implementation is one of ours, registered with transformers' `AttentionInterface` and
`AttentionMaskInterface`: it computes the entropies of the rows from the very queries, keys and mask that it then hands to the model's own
implementation, whose result it returns. Outputs, gradients and caches of the model are unchanged; on exit everything is as before.

A query counts when its token is no padding (by the model's 2-D `attention_mask`, if it is given one) and when it sees a key.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isentrope.measure.attention import attention_entropy, visible_keys

SUPPORTED = ("sdpa", "eager")


@dataclass(frozen=True)
class AttentionRows:
    """One forward of one layer, [batch heads queries], nats. NaN where the query does not count (and, sinkless, where it sees one key only)."""

    entropy: Tensor
    ceiling: Tensor
    sinkless: Tensor | None


@dataclass
class _Layer:
    """Sums over the counted queries of all forwards, per head, in float64."""

    entropy: Tensor
    ceiling: Tensor
    count: Tensor
    sinkless: Tensor
    sinkless_count: Tensor
    rows: list[AttentionRows] = field(default_factory=list)


class AttentionRecord:
    """What was seen so far; every mean is over all counted queries of all forwards of the block, in nats, NaN where none counted.

    Layers stand in the order of the model's modules; those that did not run are left out.
    """

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._layers: dict[int, _Layer] = {}

    @property
    def mean_entropy(self) -> Float[Tensor, "layers heads"]:
        """Mean row entropy. float32."""
        return self._table("mean_entropy", lambda layer: layer.entropy / layer.count)

    @property
    def mean_ceiling(self) -> Float[Tensor, "layers heads"]:
        """Mean of ln of the keys that the query sees (and the sink logit, where the model has one): uniform attention has it as its entropy. float32."""
        return self._table("mean_ceiling", lambda layer: layer.ceiling / layer.count)

    @property
    def mean_sinkless(self) -> Float[Tensor, "layers heads"]:
        """Mean entropy of the rows renormalised without the first position that is no padding; of the queries that see another. float32."""
        if any((layer.rows and layer.rows[0].sinkless is None) or layer.sinkless_count.isnan().any() for layer in self._layers.values()):
            raise ValueError("mean_sinkless was not recorded. Ask for it: record_attention(model, sinkless=True).")
        return self._table("mean_sinkless", lambda layer: layer.sinkless / layer.sinkless_count)

    @property
    def counted(self) -> Int[Tensor, "layers heads"]:
        """How many queries the means are over."""
        return self._table("counted", lambda layer: layer.count).long()

    @property
    def rows(self) -> tuple[tuple[AttentionRows, ...], ...]:
        """Per layer and forward, with per_query=True; empty tuples otherwise."""
        return tuple(tuple(layer.rows) for layer in self._in_order("rows"))

    def _in_order(self, what: str) -> list[_Layer]:
        if not self._layers:
            raise ValueError(
                f"{what}: no attention was recorded. Run the model inside the block, with record_attention(model) as recorded: model(ids); "
                "a model that does not dispatch through transformers' AttentionInterface cannot be recorded."
            )
        return [self._layers[key] for key in self._order if key in self._layers]

    def _table(self, what: str, value: Callable[[_Layer], Tensor]) -> Tensor:
        layers = [value(layer) for layer in self._in_order(what)]
        heads = [len(layer) for layer in layers]
        if len(set(heads)) > 1:
            raise ValueError(f"{what}: the layers have different numbers of heads, {heads}. Use per_query=True and read rows.")
        return torch.stack(layers).float()

    def _add(self, module: nn.Module, entropy: Tensor, ceiling: Tensor, sinkless: Tensor | None, keep: bool) -> None:
        if id(module) not in self._layers:
            zero = torch.zeros(entropy.shape[1], dtype=torch.float64, device=entropy.device)
            self._layers[id(module)] = _Layer(zero, zero, zero, zero, zero if sinkless is not None else zero + torch.nan)
        layer = self._layers[id(module)]
        layer.entropy, layer.count = layer.entropy + _total(entropy), layer.count + _number(entropy)
        layer.ceiling = layer.ceiling + _total(ceiling)
        if sinkless is not None:
            layer.sinkless, layer.sinkless_count = layer.sinkless + _total(sinkless), layer.sinkless_count + _number(sinkless)
        if keep:
            layer.rows.append(AttentionRows(entropy, ceiling, sinkless))


@contextmanager
def record_attention(model: Any, *, per_query: bool = False, sinkless: bool = False, layers: Collection[int] | None = None) -> Iterator[AttentionRecord]:
    """Records the attention entropy of every layer and head of a transformers model for as long as the block lasts.

    per_query   keeps every row as well (`rows`): as much memory as the attention output has in one head dimension.
    sinkless    a second pass for the rows without the first visible position, the usual attention sink.
    layers      only these, by the `layer_idx` that transformers gives the attention module; the others cost nothing.

    Any model of transformers 5 that dispatches its attention through `AttentionInterface`, loaded with attn_implementation "sdpa" or
    "eager": softcap (Gemma 2), sliding windows (Gemma 3, Mistral) and sink logits (gpt-oss: an outcome beside the keys) included. Entropies are of
    the softmax before attention dropout. Not within torch.compile.

    Raises ValueError for another implementation, a model that is not dispatched, a position bias (T5), or a block inside a block of the same model.

    >>> with record_attention(model) as recorded:  # doctest: +SKIP
    ...     model(ids)
    >>> recorded.mean_entropy / recorded.mean_ceiling  # [layers heads], 1 is uniform
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    record = AttentionRecord([id(module) for module in model.modules()])
    padding = _Padding()
    configs = _configs(model)
    before = [(config, config._attn_implementation_internal) for config in configs]
    names = {was: f"isentrope-{was}-{uuid4().hex}" for _, was in before}
    handles = [model.register_forward_pre_hook(padding.note, with_kwargs=True), model.register_forward_hook(padding.forget, always_call=True)]
    try:
        for was, name in names.items():
            AttentionInterface.register(name, _recording(was, record, padding, per_query, sinkless, layers))
            AttentionMaskInterface.register(name, AttentionMaskInterface()[was])
        for config, was in before:
            config._attn_implementation_internal = names[was]
        yield record
    finally:
        for handle in handles:
            handle.remove()
        for config, was in before:
            config._attn_implementation_internal = was
        for name in names.values():
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def _configs(model: Any) -> list[Any]:
    """Every configuration that an attention module of the model could ask for its implementation."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(getattr(module, "config", None), "_attn_implementation_internal")}
    if not found:
        raise ValueError(f"record_attention: model must be a transformers model. Got {type(model).__name__}.")
    for config in found.values():
        was = config._attn_implementation_internal
        if was is not None and was.startswith("isentrope-"):
            raise ValueError("record_attention: the model is being recorded already. End the outer block first.")
        if was not in SUPPORTED:
            raise ValueError(
                f"record_attention: the attention implementation must be one of {', '.join(SUPPORTED)}. Got {was}. "
                "Load the model with attn_implementation='sdpa'."
            )
        if was == "eager" and getattr(config, "reorder_and_upcast_attn", False):
            raise ValueError("record_attention: reorder_and_upcast_attn passes by the attention interface. Set config.reorder_and_upcast_attn = False.")
    return list(found.values())


class _Padding:
    """The 2-D attention mask of the forward that runs."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def note(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", given[1] if len(given) > 1 else None)
        self.mask = mask.detach() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def forget(self, *_: Any) -> None:
        self.mask = None

    def counts(self, query: Tensor) -> Tensor | None:
        """[batch, queries] of the queries that are no padding: the last columns of the mask, which covers the cache too."""
        batch, queries = query.shape[0], query.shape[2]
        if self.mask is None or self.mask.shape[0] != batch or self.mask.shape[1] < queries:
            return None
        return self.mask[:, -queries:].to(query.device) != 0


def _recording(was: str, record: AttentionRecord, padding: _Padding, per_query: bool, sinkless: bool, layers: Collection[int] | None) -> Callable[..., Any]:
    """An attention function for the interface: notes the entropies, then does what the model did before."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        if layers is None or module.layer_idx in layers:
            with torch.no_grad():
                record._add(module, *_rows(was, module, query, key, attention_mask, padding.counts(query), sinkless, kwargs), keep=per_query)
        return _own(was, module)(module, query, key, value, attention_mask, **kwargs)

    return attend


def _own(was: str, module: nn.Module) -> Callable[..., Any]:
    """What the module would have called: eager attention is a function of the file that defines the module."""
    from transformers import AttentionInterface

    if was != "eager":
        return AttentionInterface()[was]
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(f"record_attention: no eager_attention_forward stands beside {type(module).__name__}. Load the model with attn_implementation='sdpa'.")


def _rows(
    was: str, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, counts: Tensor | None, sinkless: bool, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Entropy, ceiling and sinkless entropy, [batch heads queries]; NaN where the query does not count."""
    if options.get("position_bias") is not None:
        raise ValueError(f"record_attention: {type(module).__name__} adds a position bias, which is not recorded. Call attention_entropy with mask=bias.")
    query, key = query.detach(), key.detach()
    queries, causal = query.shape[2], False
    if mask is None and was == "sdpa" and queries > 1:
        causal = options.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        key = key[:, :, :queries] if causal else key  # a static cache's keys beyond the queries are of the future
    elif mask is not None:
        mask = mask.detach()[..., : key.shape[2]]
    sinks = options.get("s_aux")
    given = {"scale": options.get("scaling"), "causal": causal, "mask": mask, "softcap": options.get("softcap"), "sinks": sinks}
    entropy = attention_entropy(query, key, **given)
    seen = visible_keys(queries, key.shape[2], causal=causal, mask=mask, device=query.device) + (sinks is not None)
    ceiling = seen.to(entropy.dtype).log().expand_as(entropy)
    skip = entropy.isnan() if counts is None else entropy.isnan() | ~counts.unsqueeze(1)
    rest = _sinkless(query, key, given).masked_fill(skip, torch.nan) if sinkless else None
    return entropy.masked_fill(skip, torch.nan), ceiling.masked_fill(skip, torch.nan), rest


def _sinkless(query: Tensor, key: Tensor, given: dict[str, Any]) -> Tensor:
    """The same without the first position that any query sees: after left padding that is not position 0."""
    mask = given["mask"]
    if mask is None:
        return attention_entropy(query, key, **given, without_first=True)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    visible = seen.any(1).any(1).expand(query.shape[0], key.shape[2])
    return attention_entropy(query, key, **given, visible=visible, without_first=True)


def _total(values: Tensor) -> Tensor:
    """Per head, of the numbers that are not NaN."""
    return values.double().nansum((0, 2))


def _number(values: Tensor) -> Tensor:
    return (~values.isnan()).double().sum((0, 2))
