"""What mixing a second stream of text into a policy-gradient step needs: a weight for each objective, and the loss of the text's rows.

`isentrope.train.mixed.MixedTrainer` computes both losses of an update, asks for their weights, and tells afterwards what it saw.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.step import Progress, State, Step


@dataclass(frozen=True)
class Weights:
    """Factors of the two losses; constants for the gradient."""

    policy: float = 1.0
    offline: float = 0.0


class Mixture:
    """Base of what mixes. Subclasses are frozen dataclasses; what they remember is an explicit flat state."""

    @abstractmethod
    def weights(self, state: State) -> Weights:
        """For the update now beginning."""

    def offline_loss(self, step: Step, state: State) -> Float[Tensor, ""]:
        """Of the rows of origin "offline", whose `correct` is the accuracy of the policy's group on their prompt (NaN: unknown).

        Cross-entropy over all trained tokens, in nats; 0 of none.
        """
        return nll(step).sum() / step.mask.sum().clamp(min=1)

    def init(self) -> State:
        """The state before the first update."""
        return {}

    def update(self, state: State, seen: Mapping[str, float], progress: Progress) -> State:
        """The state after an update in which the host saw: policy_loss, offline_loss (cross-entropy), online_entropy, offline_entropy, reward."""
        return state


def nll(step: Step) -> Float[Tensor, "response token"]:
    """-ln p of every trained token, 0 elsewhere, in nats."""
    return torch.where(step.mask, -step.log_probs, 0.0)


@dataclass(frozen=True)
class Constant(Mixture):
    """The same weights throughout: (1, 0) is the policy's loss alone, (1/2, 1/2) plain replay."""

    policy: float = 1.0
    offline: float = 0.0

    def weights(self, state: State) -> Weights:
        return Weights(self.policy, self.offline)


@dataclass(frozen=True)
class Yoked(Mixture):
    """The placebo of a controller: its rows' loss, with weights that were recorded elsewhere. `series[k]` is that of update k, the last one stays."""

    inner: Mixture
    series: tuple[Weights, ...]

    def __post_init__(self):
        if not self.series:
            raise ValueError("Yoked: series must hold the weights of at least one update. Got none.")

    def init(self) -> State:
        return {"updates": 0}

    def weights(self, state: State) -> Weights:
        return self.series[min(int(state["updates"] or 0), len(self.series) - 1)]

    def offline_loss(self, step: Step, state: State) -> Float[Tensor, ""]:
        return self.inner.offline_loss(step, self.inner.init())

    def update(self, state: State, seen: Mapping[str, float], progress: Progress) -> State:
        return {"updates": int(state["updates"] or 0) + 1}
