"""AEM (agentic): each turn's advantage times a mean-one factor that falls with the turn's entropy, no bonus and no re-centring.

    h_a = (H_a - min H) / (max H - min H) over the turns of the scope;    alpha_a = exp(-strength h_a) / mean exp(-strength h)
    A'_a = alpha_a A_a,  on the tokens of the turn

| paper | here | |
|---|---|---|
| lambda | `strength` | no value found; 1 as in EMPG (inferred) |
| H(a) | `proxy` | "mean" of the token entropies (the paper's), their "sum", or the sampled "surprisal" -sum ln p |
| response a | a turn (`Rollouts.turn`) | without turns the whole response is one |
| the set that is normalised | `scope` | "sequence": the turns of one response; "group": of one prompt; "rollout": of the batch |

No code was found. Which set the paper normalises over is not certain; "sequence" (default, as the sheet recommends) moves credit only inside a response
and keeps its total weight, and does nothing where a response is one turn. Of equal entropies, or a single turn, alpha = 1.

Why it turns from exploring to settling (exact): where A is independent of the surprisal S, E[alpha A (S - H)] = E[A] Cov(alpha, S), and
Cov(alpha, S) < 0. So entropy rises while the mean advantage over turns is negative (failures have more turns) and falls once it is positive;
re-centring after it would undo that. The mean over tokens orders turns of unequal length otherwise than the sum, which the theory is about.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of, turns
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.control.transforms import transform_advantage
from isentrope.measure.tokens import Entropy, TargetProb

_ENTROPY, _CHOSEN = Need(Entropy(), policy="old"), Need(TargetProb(), policy="old")
_FLAT = 1e-6  # nats; a smaller span says nothing
_LEAST = 1e-30  # probabilities below it count as it
_SCOPES = ("sequence", "group", "rollout")


def modulation(uncertainty: Float64[Tensor, " turn"], scope: Int[Tensor, " turn"], strength: float) -> Float64[Tensor, " turn"]:
    """alpha of every turn: falling in its uncertainty, mean 1 over the turns with the same `scope`; 1 where they do not differ.

    >>> modulation(torch.tensor([0.0, 1.0, 7.0]).double(), torch.tensor([0, 0, 1]), torch.log(torch.tensor(3.0)).item()).round(decimals=4)
    tensor([1.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    index = torch.unique(scope, return_inverse=True)[1]
    inf = torch.full_like(uncertainty, torch.inf)
    low = inf.scatter_reduce(0, index, uncertainty, "amin")[index]
    span = (-inf).scatter_reduce(0, index, uncertainty, "amax")[index] - low
    differ = span >= _FLAT
    alpha = torch.exp(-strength * torch.where(differ, (uncertainty - low) / torch.where(differ, span, 1.0), 0.0))
    zero = torch.zeros_like(alpha)
    mean = zero.index_add(0, index, alpha) / zero.index_add(0, index, torch.ones_like(alpha)).clamp(min=1)
    return alpha / mean[index]


@dataclass(frozen=True)
class AemAgentic(Intervention):
    """Advantages times alpha. strength = 0 leaves them as they are."""

    name = "aem-agentic"
    slug = "aem-agentic"
    source = "AEM: Adaptive Entropy Modulation, arXiv 2605.00425, by a reading of v1; no code found"
    effect = "Raises entropy while failures prevail, lowers it once successes do."
    opposes = frozenset({"aepo-agentic"})

    strength: float = 1.0
    scope: Literal["sequence", "group", "rollout"] = "sequence"
    proxy: Literal["mean", "sum", "surprisal"] = "mean"

    def __post_init__(self):
        check_at_least("AemAgentic", "strength", self.strength, 0, "0 switches it off; to amplify uncertain tokens take aepo-agentic.")
        check_one_of("AemAgentic", "scope", self.scope, _SCOPES, 'The default is "sequence".')
        check_one_of("AemAgentic", "proxy", self.proxy, ("mean", "sum", "surprisal"), 'The paper takes "mean".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_CHOSEN,) if self.proxy == "surprisal" else (_ENTROPY,)

    @property
    def dense(self) -> str:
        return "responses of one turn: within a group each has a factor of its own, 88 to 100 % of the tokens"

    def neutral(self) -> "AemAgentic":
        return replace(self, strength=0.0)

    def embedded(self) -> "AemAgentic":
        """Its responses are one turn, so only turns of different responses can differ."""
        return replace(self, scope="group")

    def recipe(self) -> Objective:
        return Objective.named("grpo")

    def uncertainty(self, rollouts: Rollouts, of: Int[Tensor, "response token"], count: int) -> Float64[Tensor, " turn"]:
        """The proxy of every turn, in nats."""
        mask = rollouts.trained_mask
        order = torch.argsort(rollouts.row_id)
        if self.proxy == "surprisal":
            token = -rollouts.signal(_CHOSEN.key).double().clamp(min=_LEAST).log()
        else:
            token = rollouts.signal(_ENTROPY.key).double()
        index, value = of[order][mask[order]], token[order][mask[order]]
        zero = value.new_zeros(count)
        total = zero.index_add(0, index, value)
        return total / zero.index_add(0, index, torch.ones_like(value)).clamp(min=1) if self.proxy == "mean" else total

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        mask = rollouts.trained_mask
        if self.strength == 0 or not mask.any():
            return rollouts.advantage
        of, row = turns(mask, rollouts.turn, rollouts.row_id)
        scope = {"sequence": row, "group": rollouts.group[row], "rollout": torch.zeros_like(row)}[self.scope]
        alpha = modulation(self.uncertainty(rollouts, of, len(row)), scope, self.strength)
        return transform_advantage(rollouts.advantage, mask, weight=alpha[of].to(rollouts.advantage.dtype))
