"""What turns a model's hidden states into a distribution over the next token: its LM head, with bias, scale and softcap as it has them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from isentrope.errors import UserError
from isentrope.measure import Entropy, Signal, token_signals
from isentrope.train.head import head_scale

CHUNK = 64
"""Positions whose logits are held at one time: 64 x 262,144 (the largest vocabulary in use) float32 numbers are 64 MiB."""


@dataclass(frozen=True)
class LMHead:
    """z = softcap(scale (h . W^T + bias)), the logits of a hidden state h."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None
    scale: float
    softcap: float | None

    @property
    def vocab(self) -> int:
        return self.weight.shape[0]

    def signals(self, hidden: Float[Tensor, "token d"], target: Int[Tensor, " token"], signals: Sequence[Signal]) -> dict[str, Tensor]:
        """`token_signals` of this head at temperature 1, with float32 products."""
        return token_signals(hidden, self.weight, target, signals, bias=self.bias, softcap=self.softcap, logit_scale=self.scale, precise=True)

    def entropy(self, hidden: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
        """H of softmax(z), nats."""
        return self.signals(hidden, torch.zeros(len(hidden), dtype=torch.long, device=hidden.device), [Entropy()])["entropy"]

    def logits(self, hidden: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
        z = torch.nn.functional.linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float()) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def top(self, hidden: Float[Tensor, "token d"], count: int) -> tuple[Int[Tensor, "token top"], Float[Tensor, "token top"]]:
        """The most likely tokens and their probabilities, falling; the logits of CHUNK positions are held at one time."""
        ids, shares = [], []
        for part in hidden.split(CHUNK):
            z = self.logits(part)
            best, at = z.topk(min(count, self.vocab), dim=-1)
            ids.append(at)
            shares.append((best - z.logsumexp(-1, keepdim=True)).exp())
        return torch.cat(ids), torch.cat(shares)


def head_of(model: PreTrainedModel) -> LMHead:
    """The head of a causal LM, as `head_scale` reads it.

    Raises UserError for a model that has none.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise UserError(f"measure: {type(model).__name__} has no LM head that turns hidden states into logits. Give a causal language model.")
    scale = head_scale(model)
    return LMHead(layer.weight.detach(), None if getattr(layer, "bias", None) is None else layer.bias.detach(), scale.scale, scale.softcap)


@torch.no_grad()
def check_head(model: PreTrainedModel, head: LMHead, ids: Int[Tensor, "1 token"]) -> None:
    """UserError where `head` of the model's hidden states is not what the model itself computes: an architecture with a head of its own."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = head.logits(hidden[0]).log_softmax(-1)
    theirs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    if theirs.isnan().any():
        raise UserError("measure: the model's own logits are not numbers (NaN) on the first tokens of the text; its weights are damaged.")
    off = (ours.exp() - theirs.exp()).abs().max().item() if ours.shape == theirs.shape else float("inf")
    if not off <= 1e-3:
        raise UserError(
            f"measure: {type(model).__name__} computes its logits in a way that is not read here: probabilities differ by {off:.2g}. "
            "Read are LM heads with bias, logit scale and softcap; name the model in an issue."
        )
