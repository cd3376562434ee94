r"""Token weights from how widely the policy attends: anchors (narrow), explorers (wide), and a weight that moves from the one to the other.

    e_t = E_t / ln n_t      u_t = rank of e_t in its response, in [0, 1]      c = progress of the run
    "monotone":  w_t = 1 + gamma (2 c - 1)(2 u_t - 1)      "bump":  w_t = exp(-kappa (u_t - c)^2);      then mean of w_t = 1 over the response

| paper | here | |
|---|---|---|
| E_t, attention entropy of one middle layer | `entropy` | nats, mean over heads; of the query that PRODUCES the token (`row_before`), detached |
| n_t, visible keys | `visible` | under a sliding window the keys inside it |
| anchors, explorers | `attention_groups` | lowest and highest `share` of a response's tokens, 0.2 |

Of arXiv 2605.07660 ("Not All Tokens Learn Alike") only the abstract, the outline and notes of third parties were readable: that entropies are
divided by the log of the visible length, that one middle layer is read, that subsets of 20 % are compared, and that a soft weight moves from low to
high entropy. Row, mean over heads, ranks, both weights and their constants are (inferred).

The intervention is `control.papers.attention_entropy_tokens`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.normalisers import normalise


def row_before(rows: Float[Tensor, "response position"], width: int) -> Float[Tensor, "response {width}"]:
    """Of values per query position, those of the queries that produce the last `width` tokens: each one position earlier.

    Raises ValueError without a position before the first of them.
    """
    if not 0 <= width < rows.shape[1]:
        raise ValueError(f"row_before: width must leave a position before the first token, at most {rows.shape[1] - 1}. Got {width}. Keep the prompt's rows.")
    return rows[:, rows.shape[1] - 1 - width : -1]


def relative_entropy_of_attention(
    entropy: Float[Tensor, "response token"], visible: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"]
) -> Float64[Tensor, "response token"]:
    """e_t = E_t / ln n_t, a fraction: 0 one key attended, 1 all alike; 0 where one key is visible and outside the mask. Detached.

    Without this division entropy grows with the position and the split is late against early.
    """
    counted = mask & (visible > 1)
    ceiling = torch.where(counted, visible, 2).double().log()
    return torch.where(counted, entropy.detach().double(), 0.0).div(ceiling).clamp(0.0, 1.0)


def attention_groups(
    relative: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], *, share: float = 0.2
) -> tuple[Bool[Tensor, "response token"], Bool[Tensor, "response token"]]:
    """(anchors, explorers): the lowest and the highest `share` of each response's tokens, at least one of each; ties by position.

    Of equal tokens the earlier is the more of an anchor. A response of one token has it in both.
    """
    check_fraction("attention_groups", "share", share)
    order = torch.where(mask, relative.detach().double(), torch.inf).argsort(dim=-1, stable=True)
    place = order.argsort(dim=-1)
    length = mask.sum(-1, keepdim=True)
    count = (share * length + 1e-9).floor().long().clamp(min=1)
    return (place < count) & mask, (place >= length - count) & mask


def attention_weight(
    relative: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    progress: float,
    *,
    form: Literal["monotone", "bump"] = "monotone",
    gamma: float = 0.5,
    kappa: float = 4.0,
) -> Float64[Tensor, "response token"]:
    """The soft weight of every token, of mean 1 over each response, 1 outside the mask; detached.

    progress: 0 favours anchors, 1 explorers; "monotone" is uniform at 1/2. gamma in [0, 1) or kappa >= 0 is the strength; 0 gives 1 exactly.
    Equal entropies share their mean rank, so a response of equal tokens keeps weight 1.
    """
    check_one_of("attention_weight", "form", form, ("monotone", "bump"), 'The default is "monotone".')
    check_fraction("attention_weight", "progress", progress)
    check_at_least("attention_weight", "kappa", kappa, 0, "0 weighs all tokens alike.")
    if not 0 <= gamma < 1:
        raise ValueError(f"attention_weight: gamma must lie in [0, 1). Got {gamma}. At 1 the last rank would weigh nothing.")
    if (gamma if form == "monotone" else kappa) == 0:
        return torch.ones_like(relative, dtype=torch.float64)
    rank = normalise(relative.detach(), mask, "rank", scope="sequence").double()
    raw = 1 + gamma * (2 * progress - 1) * (2 * rank - 1) if form == "monotone" else torch.exp(-kappa * (rank - progress).square())
    total = torch.where(mask, raw, 0.0).sum(-1, keepdim=True)
    mean = total / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, raw / torch.where(mean > 0, mean, 1.0), 1.0)
