"""The residual stream of a Hugging Face model, layer by layer, while it runs as it always does.

Blocks are found by their number and the final norm by what it does, not by their names: so it works for every decoder that is a row
of blocks. hidden_states of transformers would not do: its last entry is taken after the final norm (sheet `bupo`, pitfalls).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

Visit = Callable[[int, Float[Tensor, "batch token d"]], None]


class StreamError(ValueError):
    """A model that is not a row of blocks around one residual stream."""


@dataclass(frozen=True)
class Stream:
    """Where a model's residual stream can be seen. `norm`: the final norm (and a projection, where there is one); None: there is none."""

    blocks: tuple[nn.Module, ...]
    norm: Callable[[Tensor], Tensor] | None
    width: int = 0

    @property
    def layers(self) -> int:
        return len(self.blocks)


@torch.no_grad()
def stream_of(model: PreTrainedModel, ids: Int[Tensor, "1 token"]) -> Stream:
    """The blocks of a model and its final norm, tried on a few tokens.

    Raises StreamError where no list of blocks as long as the configuration says carries a [batch, token, d] stream.
    """
    base = model.base_model
    count = int(model.config.get_text_config().num_hidden_layers)
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise StreamError(f"{type(model).__name__} has no list of {count} blocks")
    blocks = tuple(lists[0])
    inside = {id(part) for block in blocks for part in block.modules()}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, arguments[0], output))

    hooks = [module.register_forward_hook(note) for module in base.modules() if module is not base and id(module) not in inside]
    seen: dict[int, Tensor] = {}
    try:
        with residual_stream(Stream(blocks, None), seen.__setitem__):
            end = base(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != count + 1:
        raise StreamError(f"{type(model).__name__} does not run its {count} blocks one after the other")
    if any(hidden.shape[:2] != ids.shape or hidden.dim() != 3 for hidden in seen.values()):
        raise StreamError(f"{type(model).__name__} carries no single residual stream [batch, token, d] through its blocks")
    last = seen[count]
    if torch.equal(last, end):
        return Stream(blocks, None, last.shape[-1])
    for first, (module, read, _) in enumerate(calls):  # one module, or a few in a row (a norm and a projection)
        if read.shape != last.shape or not torch.equal(read, last):
            continue
        chain: list[nn.Module] = [module]
        reached = calls[first][2]
        for follower, taken, made in calls[first + 1 :]:
            if not torch.equal(reached, end) and taken is reached:
                chain.append(follower)
                reached = made
        if torch.equal(reached, end):
            return Stream(blocks, nn.Sequential(*chain), last.shape[-1])
    raise StreamError(f"{type(model).__name__} does more than a norm between its last block and its LM head")


@contextmanager
def residual_stream(stream: Stream, visit: Visit) -> Iterator[None]:
    """While it is open, every run of the model calls `visit(l, H_l)`: l = 0 is what enters the first block, l = L what leaves the last
    one, before the final norm."""

    def entering(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        visit(0, (arguments[0] if arguments else named["hidden_states"]).detach())

    def leaving(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, output: visit(layer, (output if isinstance(output, Tensor) else output[0]).detach())

    hooks = [stream.blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    hooks += [block.register_forward_hook(leaving(layer)) for layer, block in enumerate(stream.blocks, start=1)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
