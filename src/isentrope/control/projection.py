"""ResRL's token weights: a token of a wrong answer counts by how far its hidden state lies from the subspace of the right answers' states.

    X = LN(h) over the trained tokens of the right answers to a prompt, mu their mean, V the top k right singular vectors of X - mu
    r = (I - V V^T) (LN(h) - mu),   e = |r|^2 / d   for each trained token of a wrong answer
    w = least + (1 - least) clip((e - lo) / (hi - lo), 0, 1),   lo and hi quantiles of e within the group

Two token losses through one output head have gradients whose inner product is <delta, delta'> <x, x'>: only the part of x' inside the span of the right
answers' states can interfere with them, and e measures the part outside.

The states are the caller's: of the position before the token, entering the last block (no final norm), detached; the intervention is
`control.papers.resrl`. The release draws a random subspace (randomised PCA
with exactly k directions), which depends on the draw where no gap follows the k-th singular value; here the singular vectors are exact. It groups inside
a micro-batch, whose rows the trainer has usually scattered; here rows are grouped wherever they stand.
Source: ResRL, arXiv 2605.00380; 1229095296/ResRL dp_actor.py, naive.py (Apache-2.0).
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import choose
from isentrope.control.step import RowRng

_FLAT = 1e-5  # a smaller span of residuals says nothing
_FEWEST = 4  # right tokens


def layer_norm(hidden: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch d"]:
    """(h - mean) / sqrt(variance + 1e-5) over the features, no affine; detached, float64."""
    hidden = hidden.detach().double()
    centred = hidden - hidden.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def residual_energy(states: Float64[Tensor, "state d"], reference: Float64[Tensor, "row d"], rank: int) -> Float64[Tensor, " state"]:
    """|r|^2 / d of each state: what is left of it off the reference rows' mean and `rank` principal directions (at most rows - 1)."""
    mean = reference.mean(0)
    directions = torch.linalg.svd(reference - mean, full_matrices=False).Vh[: min(rank, len(reference) - 1, reference.shape[1])]
    centred = states - mean
    return (centred - (centred @ directions.T) @ directions).square().mean(-1)


def residual_weights(energy: Float64[Tensor, " state"], low: float = 0.2, high: float = 0.8, least: float = 0.1) -> Float64[Tensor, " state"]:
    """From `least` at the `low` quantile of the energies to 1 at the `high` one; (least + 1) / 2 everywhere where the two are less than 1e-5 apart.

    >>> residual_weights(torch.tensor([0.0, 1.0, 2.0]).double(), 0.0, 1.0, 0.5)
    tensor([0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    bottom, top = torch.quantile(energy, low), torch.quantile(energy, high)
    if float(top - bottom) < _FLAT:
        return torch.full_like(energy, (least + 1) / 2)
    return least + (1 - least) * ((energy - bottom) / (top - bottom)).clamp(0, 1)


def projection_weights(
    hidden: Float[Tensor, "response token d"],
    mask: Bool[Tensor, "response token"],
    positive: Bool[Tensor, " response"],
    group: Int[Tensor, " response"],
    *,
    rank: int = 64,
    low: float = 0.2,
    high: float = 0.8,
    least: float = 0.1,
    max_rows: int = 4096,
    row_id: Int[Tensor, " response"] | None = None,
    rng: RowRng = RowRng(),
) -> Float64[Tensor, "response token"]:
    """The weight of every token: below 1 only on trained tokens of wrong answers; 1 throughout a group without a right answer, without a wrong
    one, or with fewer than 4 trained tokens of right ones. Of more than `max_rows` of these, as many are drawn by keys of `rng`."""
    row_id = torch.arange(len(mask), device=mask.device) if row_id is None else row_id
    order = torch.argsort(row_id)  # what follows adds rows in this order
    mask, positive, group, ids = mask[order], positive[order], group[order], row_id[order]
    states = torch.where(mask[..., None], hidden[order], torch.zeros_like(hidden))
    weights = torch.ones(mask.shape, dtype=torch.float64, device=mask.device)
    for value in group.unique():
        here = (group == value)[:, None] & mask
        right, wrong = here & positive[:, None], here & ~positive[:, None]
        if int(right.sum()) < _FEWEST or not wrong.any():
            continue
        if int(right.sum()) > max_rows:
            right = choose(right, max_rows, rng.uniform(ids, mask.shape[1]))
        energy = residual_energy(layer_norm(states[wrong]), layer_norm(states[right]), rank)
        weights[wrong] = residual_weights(energy, low, high, least)
    back = torch.empty_like(weights)
    back[order] = weights
    return back


def reweighted(
    advantage: Float[Tensor, "response #token"], weights: Float64[Tensor, "response token"], positive: Bool[Tensor, " response"], scale: float = 0.1
) -> Float[Tensor, "response token"]:
    """`scale` A on right answers, w A on wrong ones. scale = 1 and weights of 1 leave A as it is."""
    return (torch.where(positive[:, None], scale, weights) * advantage).to(advantage.dtype)


def length_factor(
    reward: Float[Tensor, " response"], lengths: Int[Tensor, " response"], *, start: int = 3500, limit: int = 4096, end: float = 0.7
) -> Float[Tensor, " response"]:
    """Positive rewards times a factor that falls from 1 at `start` tokens to `end` at `limit` and stays there; others as they are."""
    share = ((lengths.to(reward.dtype) - start) / (limit - start)).clamp(0, 1)
    return torch.where(reward > 0, reward * (1 - (1 - end) * share), reward)
