"""What a latent linear dynamics keeps of its past: temporal InfoNCE and the ridge estimate of the Koopman matrix.

States z [batch time d]. Nats. Sheet `koopman-information` (arXiv 2510.13025, method and released code); the third term, the von Neumann
entropy of the latent covariance, is `spectrum.latent_entropy`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def temporal_infonce(states: Float[Tensor, "batch time d"], *, neighbours: int = 3, temperature: float = 0.1) -> Float[Tensor, ""]:
    """Mean over anchors of -ln(share of exp(cosine / temperature) that the anchor's temporal neighbours hold), nats, >= 0; a loss to minimise.

    Anchors are times k .. T-k-1, k = `neighbours`; positives the times within k, negatives the other times of the same sequence. 0 for T <= 2k.
    Anchors without a negative add 0 and count. Raises ValueError for a temperature that is not positive or k below 1.
    """
    if not temperature > 0 or neighbours < 1:
        raise ValueError(f"temporal_infonce: temperature must be > 0 and neighbours at least 1. Got {temperature} and {neighbours}.")
    length = states.shape[1]
    if length <= 2 * neighbours:
        return states.sum() * 0.0
    unit = torch.nn.functional.normalize(states, dim=-1)
    scores = (unit @ unit.mT / temperature).exp()
    apart = (torch.arange(length).unsqueeze(1) - torch.arange(length)).abs().to(states.device)
    positive, negative = ((apart > 0) & (apart <= neighbours)).to(scores.dtype), (apart > neighbours).to(scores.dtype)
    near, far = (scores * positive).sum(-1), (scores * negative).sum(-1)
    loss = torch.where(negative.any(-1), -(near / (near + far + 1e-8)).log(), 0.0)
    return loss[:, neighbours : length - neighbours].mean()


def ridge_pseudo_inverse(states: Float[Tensor, "batch time d"], *, ridge: float = 0.1) -> Float[Tensor, "batch d time"]:
    """(Z^T Z + ridge I)^-1 Z^T of every sequence, solved in the smaller of its two forms. Raises ValueError for a ridge that is not positive."""
    if not ridge > 0:
        raise ValueError(f"ridge_pseudo_inverse: ridge must be > 0. Got {ridge}.")
    length, d = states.shape[1:]
    eye = torch.eye(min(length, d), dtype=states.dtype, device=states.device)
    if length < d:
        return torch.linalg.solve(states @ states.mT + ridge * eye, states).mT
    return torch.linalg.solve(states.mT @ states + ridge * eye, states.mT)


def koopman_matrix(states: Float[Tensor, "batch time d"], following: Float[Tensor, "batch time d"], *, ridge: float = 0.1) -> Float[Tensor, "d d"]:
    """K with following = states K, the mean over sequences of the ridge estimates (rows are times)."""
    return (ridge_pseudo_inverse(states, ridge=ridge) @ following).mean(0)
