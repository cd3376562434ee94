"""Coefficients that follow a measured quantity: the adaptive KL coefficient of PPO and TRL's adaptive entropy coefficient.

Both are controllers in the sense of `stages`: hyper-parameters on a frozen dataclass, what they remember in an explicit flat state.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AdaptiveKL:
    """KL coefficient that moves toward a target KL: coef <- coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon).

    initial: coefficient of the first update. target: nats. horizon: samples over which an error of 20 % moves the coefficient by
    20 %. Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """

    initial: float = 0.001
    target: float = 0.1
    horizon: float = 10000

    def init(self) -> Mapping[str, float]:
        """The state before the first update."""
        return {"coef": self.initial}

    def update(self, state: Mapping[str, float], kl: float, samples: int) -> Mapping[str, float]:
        """The state after an update that measured `kl` (nats) on `samples` responses."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return {"coef": state["coef"] * (1 + error * samples / self.horizon)}


@dataclass(frozen=True)
class AdaptiveEntropyCoef:
    """TRL's adaptive coefficient of an entropy bonus (after Skywork-OR1, arXiv 2505.22312).

    After every update the coefficient goes up by `delta` if the mean token entropy was at most `target` (nats), else down by it, inside
    [low, high]. It is applied only while the last measured entropy is at most the target; before the first measurement it is not.
    """

    target: float = 0.2
    delta: float = 0.005
    low: float = 0.0
    high: float = 1.0
    initial: float = 0.0
    initial_entropy: float | None = None  # nats; None: not measured yet

    def init(self) -> Mapping[str, float | None]:
        """The state before the first update."""
        return {"coef": self.initial, "entropy": self.initial_entropy}

    def applied(self, state: Mapping[str, float | None]) -> float:
        """The coefficient of the coming update's bonus."""
        entropy = state["entropy"]
        return (state["coef"] or 0.0) if entropy is not None and entropy <= self.target else 0.0

    def update(self, state: Mapping[str, float | None], entropy: float) -> Mapping[str, float | None]:
        """The state after an update whose mean token entropy was `entropy` nats; NaN changes nothing."""
        if entropy != entropy:
            return state
        coef = state["coef"] or 0.0
        if entropy <= self.target:
            return {"coef": min(coef + self.delta, self.high), "entropy": entropy}
        return {"coef": max(coef - self.delta, self.low), "entropy": entropy}
