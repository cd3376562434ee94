"""Divergence of two language models' next-token distributions, straight from hidden states: [token, vocab] logits are held a tile at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_TILE = 1024  # tokens whose logits are held at once


@dataclass(frozen=True)
class DistributionHead:
    """softmax(softcap(scale (hidden . W^T + bias)) / temperature) of every token, before the temperature."""

    hidden: Float[Tensor, "token d"]
    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, tokens: slice) -> Float[Tensor, "tile vocab"]:
        z = torch.nn.functional.linear(self.hidden[tokens], self.weight, self.bias) * self.scale
        z = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
        return z if z.dtype == torch.float64 else z.float()


def forward_kl(base: DistributionHead, current: DistributionHead, *, temperature: float = 1.0) -> Float[Tensor, " token"]:
    """KL(base || current) = sum_v p_base ln(p_base / p_current) of every token, in nats, exact over the vocabulary; >= 0.

    Differentiable in `current` alone: dKL/dz_current = (p_current - p_base) / temperature. Backward recomputes the tiles.
    Raises ValueError for a temperature that is not positive, or heads over different tokens or vocabularies.

    >>> head = DistributionHead(torch.ones(2, 3), torch.zeros(5, 3))
    >>> forward_kl(head, head)
    tensor([0., 0.])
    """
    if not temperature > 0:
        raise ValueError(f"forward_kl: temperature must be > 0. Got {temperature}.")
    if len(base.hidden) != len(current.hidden) or len(base.weight) != len(current.weight):
        shapes = f"{list(base.hidden.shape)} x {list(base.weight.shape)} and {list(current.hidden.shape)} x {list(current.weight.shape)}"
        raise ValueError(f"forward_kl: both heads must have the same tokens and the same vocabulary. Got {shapes}.")

    def tile(hidden: Tensor, weight: Tensor, tokens: slice) -> Tensor:
        own = DistributionHead(hidden, weight, current.bias, current.scale, current.softcap)
        log_p = torch.log_softmax(own.logits(slice(None)) / temperature, -1)
        with torch.no_grad():
            log_base = torch.log_softmax(base.logits(tokens) / temperature, -1)
            p = log_base.exp()
        gap = torch.where(p > 0, log_base - log_p, 0.0)
        return (p * gap).sum(-1)

    parts = []
    for start in range(0, len(current.hidden), _TILE):
        tokens = slice(start, start + _TILE)
        parts.append(checkpoint(tile, current.hidden[tokens], current.weight, tokens, use_reentrant=False))
    return torch.cat(parts) if parts else current.hidden.sum(-1).float()
