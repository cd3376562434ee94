"""What a stage may ask of the network's inside, beyond what one position's logits tell: `Need(HiddenStates(), policy="old")`.

Requests are of the behaviour policy only: the host fills them in its one scoring pass without gradient, detached. The row of a response token
is that of the position which PRODUCES it, one before its own.
"""

from dataclasses import dataclass

from isentrope.measure.signals import Signal


@dataclass(frozen=True)
class Request(Signal):
    """Of the inside of the network, per response token. What has a feature axis is handed to the rollout stages (`advantage`, ...) only: a slice
    of the update does not carry it."""


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
