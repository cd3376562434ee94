"""RECAP: weights over whole objectives from how fast each converges and how unsteady it is, with general data replayed beside the task.

    c_k = mu_k / mu~_k,    i_k = sigma_k / (mu_k + mu~_k)         mu, sigma: of the last W values of objective k; mu~: mean of the W before
    s_k = c_k + i_k,       lambda = K softmax(s / T),              L = (1/K) sum_k lambda_k L_k        lambda_k = 1 before 2 W values

c < 1 improves, c > 1 gets worse, and a diverging objective gets more weight. No entropy is in it: a controller over objectives.

| paper / code | here |
|---|---|
| W, T | `window`, `temperature` |
| alpha of the code | `balance`: s = a c + (1 - a) i; None anneals a = 1 - progress |

Paper and code: the paper adds c + i, the code halves that with a = 0.5 (`variant="code"`), a factor 2 in the effective temperature. At the published
T = 5 a saturated and a volatile objective get 0.90 and 1.10 (paper), 0.95 and 1.05 (code): close to uniform. The population standard deviation, and
what happens to an objective that is absent (its value is not pushed, its score stays), are (inferred). Guards are ours: c = 1 and i = 0 where their
denominators vanish, both held inside [0, 5]. Of the policy's objective 1 - reward is watched, which is bounded and positive where its surrogate loss is not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.recipes.mixture import Mixture, Weights
from isentrope.control.step import Progress, State

_TINY, _MOST = 1e-8, 5.0


def convergence(recent: Float[Tensor, "objective window"], earlier: Float[Tensor, "objective window"]) -> Float[Tensor, " objective"]:
    """c = mu / mu~, in [0, 5]; 1 where mu~ vanishes."""
    mean, before = recent.mean(-1), earlier.mean(-1)
    return torch.where(before.abs() < _TINY, 1.0, mean / before).clamp(0, _MOST)


def instability(recent: Float[Tensor, "objective window"], earlier: Float[Tensor, "objective window"]) -> Float[Tensor, " objective"]:
    """i = sigma / (mu + mu~), population sigma, in [0, 5]; 0 where the sum vanishes."""
    total = recent.mean(-1) + earlier.mean(-1)
    return torch.where(total.abs() < _TINY, 0.0, recent.std(-1, correction=0) / total).clamp(0, _MOST)


def objective_weights(score: Float[Tensor, " objective"], temperature: float) -> Float[Tensor, " objective"]:
    """lambda = K softmax(s / T): positive, of mean 1; all 1 at T = inf."""
    return len(score) * torch.softmax(score / temperature, -1)


@dataclass(frozen=True)
class Recap(Mixture):
    """Weights of the policy's objective and of the replayed text's."""

    window: int = 10
    temperature: float = 5.0
    balance: float | None = 0.5  # of the code's variant
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_at_least("Recap", "window", self.window, 2, "One value has no spread.")
        check_one_of("Recap", "variant", self.variant, ("paper", "code"), 'The default is "paper".')
        if self.balance is not None:
            check_fraction("Recap", "balance", self.balance)
        if not self.temperature > 0:
            raise ValueError(f"Recap: temperature must be above 0. Got {self.temperature}. Uniform weights are temperature=inf.")

    def init(self) -> State:
        empty = torch.full((2, 2 * self.window), math.nan, dtype=torch.float64)
        return {"values": empty, "policy": 1.0, "offline": 1.0}

    def score(self, values: Float[Tensor, "objective history"], progress: Progress) -> Float[Tensor, " objective"]:
        """s of every objective from its last 2 W values, the newest last."""
        earlier, recent = values.chunk(2, -1)
        c, i = convergence(recent, earlier), instability(recent, earlier)
        if self.variant == "paper":
            return c + i
        share = 1 - progress.fraction if self.balance is None else self.balance
        return share * c + (1 - share) * i

    def weights(self, state: State) -> Weights:
        return Weights(float(state["policy"]) / 2, float(state["offline"]) / 2)  # type: ignore[arg-type]

    def update(self, state: State, seen: Mapping[str, float], progress: Progress) -> State:
        values = state["values"]
        assert isinstance(values, Tensor)
        values = values.clone()
        for row, value in enumerate((1 - seen["reward"], seen["offline_loss"])):
            if not math.isnan(value):
                values[row] = torch.cat([values[row, 1:], values.new_tensor([value])])
        if values.isnan().any():
            return {**state, "values": values}
        policy, offline = objective_weights(self.score(values, progress), self.temperature).tolist()
        return {"values": values, "policy": policy, "offline": offline}
