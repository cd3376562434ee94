"""What a stage may ask of the network's inside, beyond what one position's logits tell: `Need(HiddenStates(), policy="old")`.

Requests are of the behaviour policy, which the host fills in its one scoring pass without gradient, detached; `LayerLogProb` also of the current
one, with gradient. The row of a response token is that of the position which PRODUCES it, one before its own.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from isentrope.measure.signals import Signal


@dataclass(frozen=True)
class Request(Signal):
    """Of the inside of the network, per response token. What has a feature axis is handed to the rollout stages (`advantage`, ...) only: a slice
    of the update does not carry it. `of_current`: it may be asked of the current policy too."""

    of_current: ClassVar[bool] = False


@dataclass(frozen=True)
class HiddenStates(Request):
    """The residual stream, [response, token, d]: after block `layer`, 0 the embeddings, negative counted from the end.

    -1 is what the output head reads (after the final norm), -2 what enters the last block. In the dtype of the model's forward.
    """

    layer: int = -2
    name = "hidden"

    @property
    def key(self) -> str:
        return f"{self.name}[{self.layer}]"


@dataclass(frozen=True)
class AttentionEntropy(Request):
    """Entropy of the attention row over its ceiling, the log of the visible keys, mean over heads, [response, token]: 0 one key, 1 all alike.

    layer: counted from 0; None: the middle one, floor(layers / 2).
    sinkless: of the row renormalised without the first visible position, over the log of the others.
    Where one key is visible the value is 0.
    """

    layer: int | None = None
    sinkless: bool = False
    name = "attention_entropy"

    @property
    def key(self) -> str:
        return f"{self.name}[{'middle' if self.layer is None else self.layer}{',sinkless' if self.sinkless else ''}]"


@dataclass(frozen=True)
class LayerLogProb(Request):
    """ln of the internal policy of a block for the sampled token, nats, [response, token]: softmax of (h . W^T) / T with h what block `layer` leaves.

    layer: counted from 1, as the paper does. W, its bias, scale and softcap are the model's own head, T the sampling temperature.
    norm: "none" decodes the stream as it is, "final" through the model's final norm first. The last block's is the full policy's own
    log-prob, norm and all, whatever `norm` says: transformers hands its output after the norm.
    Gradient (of the current policy): the blocks up to `layer`, the embeddings and the head; exactly none above, and none of the final norm.
    """

    layer: int
    norm: Literal["none", "final"] = "none"
    grad: bool = True
    name = "layer_log_prob"
    of_current = True

    def __post_init__(self):
        if self.layer < 1:
            raise ValueError(f"LayerLogProb: layer must be at least 1, blocks are counted from 1. Got {self.layer}.")

    @property
    def key(self) -> str:
        return f"{self.name}[{self.layer}{',norm' if self.norm == 'final' else ''}]"
