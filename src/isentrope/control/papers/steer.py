"""STEER: a token weighs less the more its own update would move the entropy, in either direction.

    Omega_t = -(A_t / old p_t) p_t (1 - p_t) (ln p_t + H_t)      rule "omega", nats per unit of step on the logit; I_clip: below
    Omega_t = -(A_t / old p_t) p_t (S_t - N_t)                   rule "exact": dH of a step along the token's whole policy gradient
    exponential: w_t = exp(-k |Omega_t|),   k = -ln(low) / max(max_t |Omega_t|, floor),   in [low, 1]
    linear:      w_t = high - (high - low) (|Omega_t| - min) / (max - min),   (low + high) / 2 where max = min
    loss = sum_t w_t l_t / number of tokens

| paper | here | |
|---|---|---|
| Omega | `own_logit_change`, `exact_change` | without eta; detached, float64 |
| lambda_t | `exponential_weight`, `linear_weight` | |
| lambda_min, lambda_max | `low`, `high` | `high` is of the linear form only |
| 0.02 | `floor` | in the code, not in the paper: keeps weights near 1 where every Omega is tiny |
| I_clip | `passes` | 1 where PPO's term has a gradient |

Paper and code: Omega has the factor I_clip and one policy in ln p + H (`variant="paper"`, the default: a token without gradient moves
nothing and sets no maximum; one policy is what the sheet recommends). The code leaves I_clip out and takes H from the policy that
sampled, p from the one that is trained (`variant="code"`). Both read p (1 - p). The exact rule reads the trained policy in either.
The code takes max and min per micro-batch; here they are the update's unless `scope="micro-batch"`.

Of ours: `quantile` below 1 takes that quantile of |Omega| for the maximum, which one outlier otherwise sets; `rescale` divides by the
mean weight, so that the step does not shrink with it. Omega with its sign, as the paper's derivation has it, is (inferred).
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from isentrope.control.blocks import check_fraction, check_one_of, check_scope, in_row_order, ratio_and_bounds
from isentrope.control.blocks import quantile as quantile_of
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant

_TINY = 1e-8  # probabilities are held in [1e-8, 1 - 1e-8], as released
_HIGH = 1.2


def own_logit_change(
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    entropy: Float[Tensor, "response token"],
) -> Float64[Tensor, "response token"]:
    """Omega of the paper, nats per unit of step: the sampled token's own logit alone responds. 0 where it is not finite; detached."""
    log_p = log_probs.detach().double()
    p = log_p.exp().clamp(_TINY, 1 - _TINY)
    found = -_per_old(advantage, old_log_probs) * p * (1 - p) * (log_p + entropy.detach().double())
    return torch.where(found.isfinite(), found, 0.0)


def exact_change(
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    discriminant: Float[Tensor, "response token"],
    expected: Float[Tensor, "response token"],
) -> Float64[Tensor, "response token"]:
    """dH in nats per unit of step along the policy gradient of this one token, every logit responding: -r A (S - N); detached.

    discriminant: S of the sampled token. expected: N, its mean under the policy. 0 where it is not finite.
    """
    p = log_probs.detach().double().exp().clamp(_TINY, 1.0)
    found = -_per_old(advantage, old_log_probs) * p * (discriminant.detach().double() - expected.detach().double())
    return torch.where(found.isfinite(), found, 0.0)


def _per_old(advantage: Tensor, old_log_probs: Tensor) -> Tensor:
    return advantage.detach().double() / old_log_probs.detach().double().exp().clamp(_TINY, 1.0)


def passes(ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], bounds: Bounds) -> Bool[Tensor, "response #token"]:
    """I_clip: whether PPO's term has a gradient. Not above the window with A > 0, below it with A < 0, or above the dual clip with A < 0."""
    stopped = torch.zeros_like(ratio * advantage, dtype=torch.bool)
    if bounds.high is not None:
        stopped = stopped | ((ratio > bounds.high) & (advantage > 0))
    if bounds.low is not None:
        stopped = stopped | ((ratio < bounds.low) & (advantage < 0))
    if bounds.cap is not None:
        stopped = stopped | ((ratio > bounds.cap) & (advantage < 0))
    return ~stopped


def exponential_weight(
    size: Float64[Tensor, "response token"], mask: Bool[Tensor, "response token"], low: float, floor: float = 0.02, quantile: float = 1.0
) -> Float64[Tensor, "response token"]:
    """exp(ln(low) size / max(largest size, floor)), in [low, 1]; size = |Omega| >= 0. 1 everywhere if the largest and the floor are 0."""
    largest = _largest(size, mask, quantile).clamp(min=floor)
    share = torch.where(largest > 0, size / largest, 0.0)
    # in [0, 1] before the exponential: size may be huge where the quantile is not the maximum
    return torch.exp(math.log(low) * share.clamp(0.0, 1.0)).clamp(low, 1.0)


def linear_weight(
    size: Float64[Tensor, "response token"], mask: Bool[Tensor, "response token"], low: float, high: float, quantile: float = 1.0
) -> Float64[Tensor, "response token"]:
    """From `high` at the smallest size to `low` at the largest; halfway between them where all sizes are equal, or none is counted."""
    largest, smallest = _largest(size, mask, quantile), -_largest(-size, mask, 1.0)
    share = ((size - smallest) / (largest - smallest)).clamp(0.0, 1.0)
    return torch.where(largest > smallest, high - (high - low) * share, (low + high) / 2).clamp(low, high)


def _largest(size: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """The largest counted value, or its quantile; 0 without one."""
    if not bool(mask.any()):
        return size.new_zeros(())
    return size[mask].max() if quantile == 1 else quantile_of(size.flatten(), mask.flatten(), quantile).double()


@dataclass(frozen=True)
class Steer(Intervention):
    """Weights that fall with |predicted entropy change|. A stabiliser: it damps tokens that raise the entropy as well."""

    name = "steer"
    slug = "steer"
    source = "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, arXiv 2510.10150; zz-haooo/STEER core_algos.py"
    effect = "Steadies entropy: what would move it most, up or down, weighs less."

    low: float = 0.8  # weight of the token that moves the entropy most (released scripts); 0.5 to 0.95 are sensible
    high: float = _HIGH  # linear form only: weight of the token that moves it least
    floor: float = 0.02
    quantile: float = 1.0  # of |Omega|, taken for its maximum; 0.999 forgets outliers
    form: Literal["exponential", "linear"] = "exponential"
    rule: Literal["omega", "exact"] = "omega"
    rescale: bool = False  # mean weight 1
    scope: Scope = "update"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_one_of("Steer", "form", self.form, ("exponential", "linear"), 'The default is "exponential".')
        check_one_of("Steer", "rule", self.rule, ("omega", "exact"), 'The paper has "omega"; "exact" needs one more reduction.')
        check_one_of("Steer", "variant", self.variant, ("paper", "code"), 'The default is "paper".')
        check_scope("Steer", self.scope)
        check_fraction("Steer", "low", self.low)
        check_fraction("Steer", "quantile", self.quantile)
        if self.low == 0:
            raise ValueError("Steer: low must be above 0. Got 0: ln(low) has no value. To nearly silence a token write low=0.01.")
        if not self.floor >= 0 or not math.isfinite(self.floor):
            raise ValueError(f"Steer: floor must be a finite number of at least 0. Got {self.floor}. The code takes 0.02, the paper 0.")
        if not self.high >= self.low or not math.isfinite(self.high):
            raise ValueError(f"Steer: high must be a finite number of at least low. Got {self.high}, low is {self.low}.")
        if self.form == "exponential" and self.high != _HIGH:
            warnings.warn('Steer: high does nothing in the exponential form, whose largest weight is 1. Write form="linear".', stacklevel=3)

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.rule == "exact":
            return (Need(Discriminant()), Need(ExpectedDiscriminant()))
        return (Need(Entropy(), "old" if self.variant == "code" else "current"),)

    @property
    def dense(self) -> str:
        return "every token with A != 0 and Omega != 0 gets a weight of its own, 53 to 68 % of the tokens"

    def neutral(self) -> "Steer":
        return replace(self, low=1.0) if self.form == "exponential" else replace(self, low=1.0, high=1.0)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.28], dual clip 10 (released scripts)."""
        return replace(Objective.named("dapo"), dual_clip=10.0)

    def change(self, view: Step) -> Float64[Tensor, "response token"]:
        """Omega of every token under this rule and variant, nats per unit of step."""
        log_probs, old = view.log_probs, view.old_log_probs
        if self.rule == "exact":
            found = exact_change(view.advantage, log_probs, old, view.signal("current.S"), view.signal("current.N"))
        else:
            found = own_logit_change(view.advantage, log_probs, old, view.signal(self.needs[0].key))
        if self.variant == "code":
            return found
        ratio, bounds = ratio_and_bounds(view)
        return torch.where(passes(ratio.detach(), view.advantage, bounds), found, 0.0)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        mask, change = view.mask, self.change(view)
        size = change.abs()
        if self.form == "exponential":
            value = exponential_weight(size, mask, self.low, self.floor, self.quantile)
        else:
            value = linear_weight(size, mask, self.low, self.high, self.quantile)
        row_id, largest = view.rollouts.row_id, _largest(size, mask, self.quantile)
        mean = in_row_order(value, mask, row_id).mean() if bool(mask.any()) else value.new_ones(())
        value = torch.where(mask, value / mean if self.rescale else value, 1.0)
        return Stats(row_id, {"largest": largest, "mean_weight": mean, "change": torch.where(mask, change, 0.0).sum()}, {"weight": value})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.low == 1 and (self.form == "exponential" or self.high == 1):
            return TokenWeight()
        return TokenWeight(value=stats.token("weight", step).to(torch.promote_types(step.log_probs.dtype, torch.float32)))
