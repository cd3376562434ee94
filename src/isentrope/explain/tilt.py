r"""The leash of a reward: entropy along pi_beta ~ q exp(beta R), the optimum of KL-regularised reinforcement learning, and what can be lost on the way.

    pi_beta = argmax E_pi R - KL(pi || q) / beta        dH/dbeta = -Cov(R, ln q) - beta Var(R), moments under pi_beta
    H(pi) = h(c) + c H(pi | correct) + (1 - c) H(pi | wrong),  c = pi(correct), h the binary entropy

A natural policy gradient with step eta gives exactly q exp(eta A) / Z: t of its steps with one reward are the tilt at beta = t eta. For a reward that is 0 or 1
the two conditional entropies never move, so that H tends to H(q | correct), which may lie above H(q): that entropy falls holds only where the slope says so.
Source: 2507.14843; sheet `invisible-leash`, exact facts. Tilting itself: `measure.tilting`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.explain.theory import covariance
from isentrope.measure.distribution import shannon
from isentrope.measure.tilting import tilt


@dataclass(frozen=True)
class EntropyParts:
    """Entropy split by whether the outcome is correct, nats: whole = between + chance * correct + (1 - chance) * wrong."""

    chance: Float[Tensor, "*batch"]  # mass of what is correct
    between: Float[Tensor, "*batch"]  # binary entropy of it
    correct: Float[Tensor, "*batch"]  # within what is correct; 0 if it has no mass
    wrong: Float[Tensor, "*batch"]

    @property
    def whole(self) -> Float[Tensor, "*batch"]:
        """H, nats."""
        return self.between + self.chance * self.correct + (1 - self.chance) * self.wrong


def leash(log_q: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], beta: float) -> Float[Tensor, "*batch outcome"]:
    """ln pi_beta, nats, float64; beta >= 0 per unit of reward; -inf in log_q stays: what the base never does is never learned.

    >>> leash(torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]), 1.0).exp()
    tensor([0.7311, 0.2689], dtype=torch.float64)
    """
    multiplier = torch.tensor([-beta], dtype=torch.float64, device=log_q.device)
    return tilt(reward[..., None], multiplier, log_q).log_probs


def leash_slope(log_q: Float[Tensor, "*batch outcome"], reward: Float[Tensor, "*batch outcome"], beta: float) -> Float[Tensor, "*batch"]:
    """dH(pi_beta)/dbeta = -Cov(R, ln q) - beta Var(R) under pi_beta, nats per unit of beta, float64. Equals -Cov(R, ln pi_beta)."""
    probs, reward = leash(log_q, reward, beta).exp(), reward.double()
    return -covariance(log_q.double(), reward, probs) - beta * covariance(reward, reward, probs)


def entropy_parts(log_probs: Float[Tensor, "*batch outcome"], correct: Bool[Tensor, "*batch outcome"]) -> EntropyParts:
    """The entropy of a policy by whether the outcome is correct, nats."""
    p = log_probs.exp()
    masses, within = [], []
    for part in (correct, ~correct):
        share = torch.where(part, p, 0.0)
        mass = share.sum(-1)
        masses.append(mass)
        within.append(shannon(share / torch.where(mass > 0, mass, 1.0)[..., None]))
    return EntropyParts(masses[0], shannon(torch.stack(masses, dim=-1)), within[0], within[1])
