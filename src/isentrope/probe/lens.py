"""Internal policies: what every layer and module would say if it were decoded at once (the logit lens, read for its entropy).

    H(x) = entropy of softmax(x . E_u^T), nats, full vocabulary          E_u the unembedding, no final norm

`H(c x)` falls from ln V to 0 as c grows, so an entropy without the norm mixes where a state points with how long it is: the norm of
the residual stream, or the entropy after the final norm (`norm`), belongs beside it. Source: BuPO, arXiv 2512.19673, equations 3-5
(sheet `bupo`, method B), whose index l counts layers from 1; the released plotting code decodes the last layer without norm as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.measure import Entropy, token_signals


def lens_entropy(
    hidden: Float[Tensor, "*batch d"], unembedding: Float[Tensor, "vocab d"], *, norm: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "*batch"]:
    """Entropy in nats, in [0, ln vocab], of softmax(norm(hidden) . unembedding^T); detached. `norm` None: none, as the paper has it.

    >>> lens_entropy(torch.zeros(3, 2), torch.ones(8, 2))  # ln 8
    tensor([2.0794, 2.0794, 2.0794])
    """
    hidden = (hidden if norm is None else norm(hidden)).detach()
    target = torch.zeros(hidden.shape[:-1], dtype=torch.long, device=hidden.device)
    return token_signals(hidden, unembedding.detach(), target, [Entropy()], precise=True)["entropy"]


@dataclass(frozen=True)
class Change:
    """Entropy of what a part of the model receives and of what it gives, nats, [layer, *batch]."""

    before: Tensor
    after: Tensor

    @property
    def change(self) -> Tensor:
        """after - before: above 0 it explores, below 0 it converges (the paper's reading)."""
        return self.after - self.before


@dataclass(frozen=True)
class InternalEntropy:
    """Entropies of the internal policies of every block."""

    layer: Change
    attention: Change
    feed_forward: Change


Norms = tuple[Callable[[Tensor], Tensor], ...]


def internal_entropy(
    residual: Float[Tensor, "stream *batch d"],
    attention: Float[Tensor, "layer *batch d"],
    feed_forward: Float[Tensor, "layer *batch d"],
    attention_norms: Norms,
    feed_forward_norms: Norms,
    unembedding: Float[Tensor, "vocab d"],
) -> InternalEntropy:
    """Entropy change of whole layers, attention modules and feed-forward modules, nats.

    residual[l] enters block l, residual[-1] leaves the last one before the final norm. attention, feed_forward: the modules' outputs
    without the residual. A module's input is what it really receives, after the norm of its own. Raises ValueError where the numbers
    of layers do not fit.
    """
    layers = len(residual) - 1
    given = (len(attention), len(feed_forward), len(attention_norms), len(feed_forward_norms))
    if layers < 1 or any(count != layers for count in given):
        raise ValueError(
            f"internal_entropy: residual [{layers + 1}, ...] has the ends of {layers} layers, so attention, feed_forward, attention_norms and "
            f"feed_forward_norms must hold {layers} each. Got {', '.join(map(str, given))}."
        )
    middle = residual[:-1] + attention
    streams = lens_entropy(residual, unembedding)
    received = [torch.stack([norm(state) for norm, state in zip(norms, states, strict=True)]) for norms, states in
                ((attention_norms, residual[:-1]), (feed_forward_norms, middle))]  # fmt: skip
    return InternalEntropy(
        Change(streams[:-1], streams[1:]),
        Change(lens_entropy(received[0], unembedding), lens_entropy(attention, unembedding)),
        Change(lens_entropy(received[1], unembedding), lens_entropy(feed_forward, unembedding)),
    )
