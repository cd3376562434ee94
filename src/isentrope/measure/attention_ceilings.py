r"""What an attention entropy can be compared with: ceilings, a lower bound, scales, and how many heads lie at either end.

Raw row entropy grows with position, because the ceiling ln n of a row that sees n keys does. Under a causal mask the largest possible
mean over T rows is (1/T) sum_t ln t = ln(T!) / T, not ln T: at T = 128, 3.878 and not 4.852 nats. Divide by the ceiling of the very rows.

    b(s, n) = ln(1 + (n-1) beta) + s sqrt(n (n-1)) beta / (1 + (n-1) beta),   beta = exp(-s sqrt(n / (n-1)))

is the smallest entropy of a row of n logits whose norm is at most s; the norm of the centred row makes it sharpest.

Sources: sheets `sigma-reparam` (b: Theorem 3.1 of arXiv 2303.06296; n seen keys and centred norms: derived there),
`attention-entropy-tokens` (normalising), `entropy-guided-attention` (bands and penalty: arXiv 2501.03489, sections 2-5, Algorithm 1).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def causal_ceiling(length: int) -> float:
    """ln(length!) / length, nats: the largest mean row entropy of causal attention over `length` positions.

    Raises ValueError for a length below 1.

    >>> round(causal_ceiling(128), 3)
    3.878
    """
    if length < 1:
        raise ValueError(f"causal_ceiling: length must be at least 1. Got {length}.")
    return math.lgamma(length + 1) / length


def normalised_entropy(entropy: Float[Tensor, "*rows"], visible: Int[Tensor, "*#rows"]) -> Float[Tensor, "*rows"]:
    """H / ln n, in [0, 1]: 1 is uniform over the n seen keys. 0 where n is 1; NaN where it is 0.

    `visible` from `visible_keys`. Differentiable in the entropy. Source: sheet `attention-entropy-tokens`, method 3.
    """
    ceiling = visible.to(entropy.dtype).log()
    ratio = torch.where(visible > 1, entropy, 0.0) / torch.where(visible > 1, ceiling, 1.0)
    return torch.where(visible > 0, ratio, torch.nan)


def effective_keys(entropy: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """exp(H): how many keys a uniform row of the same entropy has, in [1, n]. Source: sheet `attention-entropy-tokens`, diagnostics."""
    return entropy.exp()


def entropy_lower_bound(norm: Float[Tensor, "*#rows"], visible: Int[Tensor, "*#rows"]) -> Float[Tensor, "*#rows"]:
    """b(s, n), nats: no row of n logits with ||l - mean(l)|| <= s has less entropy, and one has exactly that.

    Falls with s from ln n to 0. 0 where n is 1, NaN where it is 0 or s is negative. Take means of b over rows, not b of mean norms.
    Differentiable in the norm. Source: `sigma-reparam`, Theorem 3.1.

    >>> entropy_lower_bound(torch.tensor([1.0, 8.0]), torch.tensor([3, 64]))
    tensor([0.9156, 0.1765])
    """
    n = visible.to(norm.dtype)
    others = torch.where(visible > 1, n - 1, 1.0)
    gap = norm * torch.sqrt(torch.where(visible > 1, n, 1.0) / others)  # between the extremal row's one large logit and the rest
    rest = others * torch.exp(-gap)  # their mass over that of the large one: s sqrt(n (n-1)) beta = gap rest
    bound = torch.log1p(rest) + gap * rest / (1 + rest)
    bound = torch.where(visible > 1, bound, 0.0)
    return torch.where((visible > 0) & (norm >= 0), bound, torch.nan)


@dataclass(frozen=True)
class HeadBands:
    """Shares of heads whose entropy lies in each quarter of `top`, lowest first; the last includes its upper end."""

    shares: tuple[float, float, float, float]
    collapsed: int  # heads in the lowest quarter
    overloaded: int  # heads in the highest
    heads: int
    top: float  # nats


def head_bands(entropy: Float[Tensor, "*heads"], *, top: float | None = None) -> HeadBands:
    """Counts heads near 0 ("collapse") and near the top ("overload"), given their mean entropies in nats.

    top   None: the largest of them, as the paper has it, which calls the topmost head of any model overloaded; better the ceiling, e.g.
          `causal_ceiling(length)`, for then the count says how many heads are nearly uniform.

    Heads that are NaN are left out. Raises ValueError if none is left, or top is not positive. Source: sheet `entropy-guided-attention`, 1-3.
    """
    values = entropy.detach().flatten()
    values = values[~values.isnan()]
    if values.numel() == 0:
        raise ValueError("head_bands: entropy must hold at least one number that is not NaN. Got none.")
    largest = float(values.max()) if top is None else float(top)
    if not largest > 0:
        raise ValueError(f"head_bands: top must be > 0. Got {largest}. Where every head has entropy 0, name the ceiling: top=causal_ceiling(length).")
    band = (values * 4 / largest).floor().clamp(0, 3).long()
    counts = torch.bincount(band, minlength=4).tolist()
    total = values.numel()
    shares = (counts[0] / total, counts[1] / total, counts[2] / total, counts[3] / total)
    return HeadBands(shares, counts[0], counts[3], total, largest)


def matrix_entropy(attention: Float[Tensor, "*rows keys"], *, epsilon: float = 0.0) -> Float[Tensor, "*rows"]:
    """-sum_j a_j ln(a_j + epsilon), nats, of attention that is there already; a NaN entry adds nothing, so a row of NaN is 0.

    `epsilon` 0 is exact (0 ln 0 = 0); released code has 1e-9. Differentiable; entries that are 0 (at epsilon 0) or NaN receive no gradient.
    """
    some = attention.isfinite() & ((attention > 0) | (epsilon > 0))
    a = torch.where(some, attention, 1.0)
    return -torch.where(some, a * torch.log(a + epsilon), 0.0).sum(-1)


def head_entropy_penalty(
    entropy: Float[Tensor, "layers batch heads queries"],
    threshold: Float[Tensor, "*#layers heads"],
    *,
    context: int,
    tolerance: float = 0.2,
    side: Literal["both", "above"] = "both",
    released: bool = False,
) -> Float[Tensor, ""]:
    """Mean over layers and heads of (E - threshold ln context)^2 where the deviation exceeds tolerance ln context, nats^2.

    E is the head's mean over batch and queries that are not NaN. `threshold` and `tolerance` are fractions of ln context; "above" leaves
    heads below their threshold alone. `released`: the deviation of every single query, summed over batch and queries, as the authors' code
    does, so that its weight 1e-5 is tied to batch x queries; NaN counts as entropy 0 there. Differentiable in entropy and threshold.
    Raises ValueError for a context below 2 or a negative tolerance. Source: sheet `entropy-guided-attention`, Algorithm 1.
    """
    if context < 2:
        raise ValueError(f"head_entropy_penalty: context must be at least 2 (ln 1 = 0 is no scale). Got {context}.")
    if not tolerance >= 0:
        raise ValueError(f"head_entropy_penalty: tolerance must be >= 0, a fraction of ln context. Got {tolerance}.")
    scale = math.log(context)
    value = entropy.nan_to_num(0.0) if released else entropy.nanmean((1, 3), keepdim=True)
    delta = value - threshold.unsqueeze(-1).unsqueeze(-3) * scale
    beyond = (delta.abs() if side == "both" else delta) > tolerance * scale
    penalty = torch.where(beyond, delta.square(), 0.0)
    return penalty.sum((1, 3)).mean()
