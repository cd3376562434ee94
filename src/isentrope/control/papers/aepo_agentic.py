"""AEPO (agentic): tokens above the clip window keep a gradient, and uncertain tokens weigh more. Three other methods are called AEPO.

    loss_t = -min( r A', clip(r, 1 - eps_low, (1 + eps_high) / sg(r) r) A' )      the value is PPO's clip, the gradient is not:
             A' > 0, r > 1 + eps_high: (1 + eps_high) A' grad ln p;   everywhere else PPO's own (0 below with A' < 0, or above the dual clip)
    A'_t   = A (1 + alpha Hs_t),   Hs = (H_t - mean H) / std H over the valid tokens, detached; a deviation of 0 counts as 1

| paper | here | |
|---|---|---|
| delta, eps_l, eps_h | the objective's ratio and window | 0.2 and 0.2, dual clip 3 |
| gradient-preserving clip | `balanced_clip` | of every token above the window; the paper speaks of uncertain ones |
| alpha_H | `alpha` | 0.2, fixed in the code |
| Hs | `standardised_entropy` | of the policy that is trained; sample deviation |

Here the upper bound leaves the clip, and a token above it with A' > 0 is multiplied by sg((1 + eps_high) / r): value and gradient are
AEPO's under any objective that writes r A. Paper and code: the release takes mean and deviation per micro-batch; here they are the
update's unless `scope="micro-batch"`. One public port reverses an entropy gate and thereby removes the gradient it should keep; there
is none here, as in the recorded function, which is of a public fork (commit unknown) because the official snapshot on hand is older.

Part A and B of the paper, the split of the sampling budget by an entropy gap and branching at tool calls, need a multi-turn host and are
not in this file. A' has the other sign than A where Hs < -1 / alpha, 5 deviations at 0.2: there the factor is 0 here. Tokens amplified here
are damped by `empg` and `aem-agentic`, which look at whole steps.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_fraction, check_scope, in_row_order, ratio_and_bounds
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy())


def standardised_entropy(
    entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], row_id: Int[Tensor, " response"] | None = None
) -> Float64[Tensor, "response token"]:
    """Hs: nats from the mean of the valid tokens, over their sample deviation (1 where that is 0 or has no value); 0 outside the mask."""
    counted = in_row_order(entropy, mask, row_id)
    if len(counted) == 0:
        return torch.zeros_like(entropy, dtype=torch.float64)
    deviation = counted.std() if len(counted) > 1 else counted.new_ones(())
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return torch.where(mask, (entropy.detach().double() - counted.mean()) / deviation, 0.0)


def preserved(
    ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], high: float | Float[Tensor, "response #token"]
) -> Float[Tensor, "response #token"]:
    """sg(high / r) for tokens above the window with A > 0, else 1: what an unclipped r A is multiplied by to have the value high A."""
    ratio = ratio.detach()
    return torch.where((ratio > high) & (advantage > 0), high / ratio, torch.ones_like(ratio * advantage))


@dataclass(frozen=True)
class AepoAgentic(Intervention):
    """Gradient-preserving upper clip and entropy-aware advantage; alpha=0 and balanced_clip=False switch them off."""

    name = "aepo-agentic"
    slug = "aepo-agentic"
    source = "Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545; RUC-NLPIR/ARPO core_algos.py (public fork)"
    effect = "Raises entropy: uncertain tokens count more, and keep a gradient where the clip would take it."
    opposes = frozenset({"empg", "aem-agentic"})

    alpha: float = 0.2  # per standard deviation of the entropy (code)
    balanced_clip: bool = True
    scope: Scope = "update"

    def __post_init__(self):
        check_fraction("AepoAgentic", "alpha", self.alpha)
        check_scope("AepoAgentic", self.scope)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,) if self.alpha else ()

    def neutral(self) -> "AepoAgentic":
        return replace(self, alpha=0.0, balanced_clip=False)

    @property
    def dense(self) -> str:
        return "every token with A != 0 has an entropy-aware advantage of its own, 82 to 100 % of the tokens"

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2], dual clip 3, no KL (released scripts)."""
        return replace(Objective.named("dapo"), epsilon_high=0.2, dual_clip=3.0)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """Hs, and the upper bound that the links before this one left."""
        row_id, mask, high = view.rollouts.row_id, view.mask, ratio_and_bounds(view)[1].high
        tokens = {}
        if self.alpha:
            tokens["hs"] = standardised_entropy(view.signal(_ENTROPY.key), mask, row_id)
        if self.balanced_clip and high is not None:
            tokens["high"] = torch.as_tensor(high, dtype=torch.float64, device=mask.device).expand(mask.shape)
        return Stats(row_id, {name: value[mask].mean() if bool(mask.any()) else value.new_zeros(()) for name, value in tokens.items()}, tokens)

    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds:
        _, bounds = ratio_and_bounds(step)
        return replace(bounds, high=None) if self.balanced_clip else bounds

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        wide = torch.promote_types(step.log_probs.dtype, torch.float32)
        value = torch.ones_like(step.log_probs.detach(), dtype=wide)
        if "hs" in stats.tokens:
            factor = (1 + self.alpha * stats.token("hs", step)).clamp(min=0.0)
            value = torch.where(step.advantage != 0, factor, 1.0).to(wide)
        if "high" in stats.tokens:
            value = value * preserved(ratio_and_bounds(step)[0], step.advantage, stats.token("high", step)).to(wide)
        return TokenWeight(value=value) if stats.tokens else TokenWeight()
