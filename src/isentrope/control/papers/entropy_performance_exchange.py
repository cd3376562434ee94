"""Entropy-performance exchange: larger advantages for responses of low perplexity, or for late tokens; and where the plateau begins.

    perplexity: A'_i = A_i max(0, 1 - alpha w_i),   w_i = z-score of -(1/T_i) sum_t ln old p_t, nats per token
    position:   A'_t = A_t + sign(A_t) gamma sigmoid(slope (u_t - centre)),   u_t = t / T_i, t = 1..T_i over the trained tokens

| paper | here | |
|---|---|---|
| alpha | `PerplexityShaping.alpha` | 0.01 to 0.1 is a start (inferred) |
| w_ppl | over the responses to one prompt | over the batch in groups of fewer than `smallest` (inferred; the scope is not known) |
| gamma, d, u_0 | `PositionShaping.gamma`, `slope`, `centre` | the sigmoid and its numbers are (inferred); the outer form is the paper's |
| proxy of a token's gradient | `score_norm` | exact for the logits of one token |
| rising and plateau stage | `plateau_start` | by eye in the paper; two straight lines here (inferred) |

No code was found, and the outer formulas come from a summary of the sister paper 2508.07534. Both keep the sign of every advantage (the first because its
factor is held at 0 or above) and neither keeps a group's mean at 0. Long responses have a lower perplexity on average, so the first also favours length.
Low perplexity means probable tokens, whose reward takes entropy away: the opposite of `arm`; chaining both warns.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.normalisers import normalise
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.control.transforms import transform_advantage
from isentrope.measure.tokens import TargetProb

_CHOSEN = Need(TargetProb(), policy="old")  # old log-probs may be absent on-policy; this is always scored
_LEAST = 1e-30  # probabilities below it count as it
_SOURCE = "Decomposing the Entropy-Performance Exchange, arXiv 2508.02260, by a summary of 2508.07534; no code found"

# --- formulas


def log_perplexity(log_probs: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]) -> Float64[Tensor, " response"]:
    """-(1/T) sum_t ln p_t in nats per token, >= 0; 0 for a response without tokens. Detached."""
    return -torch.where(mask, log_probs.detach().double(), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def relative_perplexity(
    log_perplexity: Float64[Tensor, " response"],
    counts: Bool[Tensor, " response"],
    group: Int[Tensor, " response"],
    row_id: Int[Tensor, " response"],
    *,
    scope: Literal["group", "rollout"] = "group",
    smallest: int = 8,
) -> Float64[Tensor, " response"]:
    """z-score over the counted responses of the group, or of the batch (scope "rollout", and groups of fewer than `smallest`); 0 where all are
    equal, and on responses that do not count."""
    value, mask = log_perplexity[:, None], counts[:, None]
    whole = normalise(value, mask, "z", scope="rollout", row_id=row_id).squeeze(1)
    if scope == "rollout":
        return whole
    index = torch.unique(group, return_inverse=True)[1]
    size = torch.zeros(len(group), dtype=torch.long, device=group.device).index_add(0, index, counts.long())[index]
    return torch.where(size >= smallest, normalise(value, mask, "z", scope="group", group=group, row_id=row_id).squeeze(1), whole)


def position_bonus(mask: Bool[Tensor, "response token"], gamma: float, slope: float, centre: float) -> Float64[Tensor, "response token"]:
    """gamma sigmoid(slope (t / T - centre)), in (0, gamma), rising with the position among the trained tokens; 0 outside them."""
    place = mask.cumsum(-1).double() / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, gamma * torch.sigmoid(slope * (place - centre)), 0.0)


def score_norm(p: Float[Tensor, "*batch"], sum_squares: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """|d ln p_k / dz| = sqrt(1 - 2 p_k + sum_j p_j^2), in [0, sqrt 2): how hard the sampled token pulls at the logits of its position."""
    return (1 - 2 * p + sum_squares).clamp(min=0).sqrt()


def plateau_start(entropy: Float[Tensor, " step"]) -> int:
    """The index at which the second of two straight lines, fitted by least squares, begins: the end of the rising stage.

    Each line has at least two points. Raises ValueError for fewer than four values.

    >>> plateau_start(torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0]))
    3
    """
    if len(entropy) < 4:
        raise ValueError(f"plateau_start: entropy must hold at least 4 values, two for each line. Got {len(entropy)}.")
    values = entropy.detach().double()
    errors = [float(_line_error(values[:cut]) + _line_error(values[cut:])) for cut in range(2, len(values) - 1)]
    return 2 + min(range(len(errors)), key=lambda i: (round(errors[i], 12), i))


def _line_error(values: Float64[Tensor, " step"]) -> Float64[Tensor, ""]:
    x = torch.arange(len(values), dtype=torch.float64, device=values.device)
    x, y = x - x.mean(), values - values.mean()
    return (y - (x @ y) / (x @ x) * x).square().sum()


# --- interventions


@dataclass(frozen=True)
class PerplexityShaping(Intervention):
    """Advantages times 1 - alpha w. alpha = 0 leaves them as they are."""

    name = "perplexity-shaping"
    slug = "entropy-performance-exchange"
    source = _SOURCE
    effect = "Either way: responses that the policy finds likely count more."
    opposes = frozenset({"arm"})

    alpha: float = 0.1
    scope: Literal["group", "rollout"] = "group"
    smallest: int = 8

    def __post_init__(self):
        check_at_least("PerplexityShaping", "alpha", self.alpha, 0, "0 switches it off; to favour unlikely responses take arm.")
        check_one_of("PerplexityShaping", "scope", self.scope, ("group", "rollout"), 'The default is "group".')
        check_at_least("PerplexityShaping", "smallest", self.smallest, 2, "A z-score needs two responses.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_CHOSEN,)

    @property
    def dense(self) -> str:
        return "every response with A != 0 gets a factor of its own, 88 to 100 % of the tokens"

    def neutral(self) -> "PerplexityShaping":
        return replace(self, alpha=0.0)

    def recipe(self) -> Objective:
        return Objective.named("grpo")

    def factor(self, rollouts: Rollouts) -> Float64[Tensor, " response"]:
        """max(0, 1 - alpha w)."""
        mask = rollouts.trained_mask
        value = log_perplexity(rollouts.signal(_CHOSEN.key).double().clamp(min=_LEAST).log(), mask)
        w = relative_perplexity(value, mask.any(-1), rollouts.group, rollouts.row_id, scope=self.scope, smallest=self.smallest)
        return (1 - self.alpha * w).clamp(min=0)

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.alpha == 0:
            return rollouts.advantage
        factor = self.factor(rollouts).to(rollouts.advantage.dtype)[:, None]
        return transform_advantage(rollouts.advantage, rollouts.trained_mask, weight=factor)


@dataclass(frozen=True)
class PositionShaping(Intervention):
    """More credit, or blame, for late tokens. gamma = 0 leaves the advantage as it is."""

    name = "position-shaping"
    slug = "entropy-performance-exchange"
    source = _SOURCE
    effect = "Either way: late tokens count more."

    gamma: float = 0.1
    slope: float = 4.0
    centre: float = 0.5

    def __post_init__(self):
        check_at_least("PositionShaping", "gamma", self.gamma, 0, "0 switches it off.")
        check_at_least("PositionShaping", "slope", self.slope, 0, "It is the steepness of the sigmoid, per relative length.")
        check_fraction("PositionShaping", "centre", self.centre)

    def neutral(self) -> "PositionShaping":
        return replace(self, gamma=0.0)

    def embedded(self) -> "PositionShaping":
        """A step in place of the slow sigmoid: the last two fifths get the bonus, the others less than 1e-6."""
        return replace(self, slope=400.0, centre=0.6)

    def recipe(self) -> Objective:
        return Objective.named("grpo")

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.gamma == 0:
            return rollouts.advantage
        mask, advantage = rollouts.trained_mask, rollouts.token_advantage()
        bonus = position_bonus(mask, self.gamma, self.slope, self.centre).to(advantage.dtype)
        return transform_advantage(advantage, mask, shift=torch.sign(advantage) * bonus)
