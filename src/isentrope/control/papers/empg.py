"""EMPG: the advantage of an agent's step grows with its certainty relative to the batch, plus a bonus when the next step is certain.

    H_s = mean token entropy of step s (behaviour policy)          h_s = (H_s - min H) / (max H - min H), over all steps of the batch
    g_s = exp(-k h_s) / mean exp(-k h)                             f_s = exp(-k' h_next), 0 for the last step of a response
    A'_s = A g_s + zeta f_s,  less its mean over the steps         so mean g = 1, max g / min g = e^k, sum_s A'_s = 0

| paper | here | |
|---|---|---|
| k, k' | `sharpness`, `clarity` | of the scaling and of the bonus |
| zeta | `bonus` | advantage per unit of clarity of the next step |
| step | a turn of a response (`Rollouts.turn`) | without turns the response is one step |

There is no repository: the formulas are the project page's and two restatements'. As published f is positive for every step but the last, which
gets 0: after centring, a longer episode is paid for being long even at constant entropy. `variant="fixed"` (default, as the sheet recommends) centres
f over the steps that have a successor; `variant="paper"` does not. The bonus ignores correctness in both: a failing response is paid for
becoming predictable.

Where fewer than two steps exist or the entropies span less than 1e-6 nats there is nothing to compare: g = 1 and f = 0 (the page's 1e-8 in the
divisor is left out, so the transform is the same in nats and bits). One value per step: a token-mean loss weighs long steps more, as published.
EMPG damps uncertain steps, the advantage of `aepo-agentic` amplifies uncertain tokens; chaining both warns.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of, turns
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.control.transforms import transform_advantage
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="old")
_FLAT = 1e-6  # nats; a smaller span of step entropies says nothing


@dataclass(frozen=True)
class Steps:
    """The steps of a batch, by row id and then by turn. `of`: the step of every position, 0 where none."""

    of: Int[Tensor, "response token"]
    entropy: Float64[Tensor, " step"]  # nats, mean over the step's trained tokens
    followed: Bool[Tensor, " step"]  # the same response has a later step


def steps(
    entropy: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    turn: Int[Tensor, "response token"] | None,
    row_id: Int[Tensor, " response"],
) -> Steps:
    """Turns with trained tokens (without `turn`: responses) and their mean entropy, detached."""
    of, row = turns(mask, turn, row_id)
    index = of[mask]
    total = torch.zeros(len(row), dtype=torch.float64, device=mask.device)
    count = total.index_add(0, index, torch.ones_like(index, dtype=torch.float64))
    mean = total.index_add(0, index, entropy.detach()[mask].double()) / count.clamp(min=1)
    followed = torch.zeros(len(row), dtype=torch.bool, device=mask.device)
    followed[:-1] = row[1:] == row[:-1]
    return Steps(of, mean, followed)


def scaling(entropy: Float64[Tensor, " step"], sharpness: float) -> Float64[Tensor, " step"]:
    """g: exp(-sharpness h) over its mean, h the entropies brought to [0, 1]; all 1 where they do not differ.

    >>> scaling(torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0)
    tensor([1., 1.], dtype=torch.float64)
    """
    if _flat(entropy):
        return torch.ones_like(entropy)
    g = torch.exp(-sharpness * _unit(entropy))
    return g / g.mean()


def clarity_of_next(entropy: Float64[Tensor, " step"], followed: Bool[Tensor, " step"], clarity: float, centred: bool) -> Float64[Tensor, " step"]:
    """f: exp(-clarity h) of the following step, 0 without one; `centred` over the steps that have one. All 0 where entropies do not differ."""
    if _flat(entropy) or not followed.any():
        return torch.zeros_like(entropy)
    f = torch.exp(-clarity * _unit(entropy).roll(-1))
    return torch.where(followed, f - f[followed].mean() if centred else f, 0.0)


def expected_score_energy(sum_squares: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """E |d ln p_k / dz|^2 = 1 - sum p^2 = 1 - exp(-H_2): the coupling of step size and Renyi-2 entropy that EMPG wants undone, in [0, 1)."""
    return 1 - sum_squares


def _flat(entropy: Tensor) -> bool:
    return len(entropy) < 2 or float(entropy.max() - entropy.min()) < _FLAT


def _unit(entropy: Tensor) -> Tensor:
    return (entropy - entropy.min()) / (entropy.max() - entropy.min())


@dataclass(frozen=True)
class Empg(Intervention):
    """Scaling and bonus of every step. sharpness = 0, bonus = 0 and recentre=False leave the advantage as it is."""

    name = "empg"
    slug = "empg"
    source = "EMPG, arXiv 2509.09265, Eq. 7-12 by the pseudo-code of its project page; no repository"
    effect = "Either way: certain steps count more."
    opposes = frozenset({"aepo-agentic"})

    sharpness: float = 1.0
    clarity: float = 1.0
    bonus: float = 0.1
    recentre: bool = True
    variant: Literal["fixed", "paper"] = "fixed"

    def __post_init__(self):
        for parameter in ("sharpness", "clarity"):
            check_at_least("Empg", parameter, self.__dict__[parameter], 0, "The page takes 1; to amplify uncertain tokens take aepo-agentic.")
        check_at_least("Empg", "bonus", self.bonus, 0, "The page takes 0.1.")
        check_one_of("Empg", "variant", self.variant, ("fixed", "paper"), 'The default is "fixed".')
        if self.bonus > 1:
            warnings.warn(f"Empg: bonus={self.bonus} outweighs a standardised advantage; published values lie in 0.02 to 0.2.", stacklevel=2)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def dense(self) -> str:
        return "the mean over all steps is subtracted from every step"

    def neutral(self) -> "Empg":
        return replace(self, sharpness=0.0, bonus=0.0, recentre=False)

    def recipe(self) -> Objective:
        """GRPO; the paper's best results add it to DAPO."""
        return Objective.named("grpo")

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.sharpness == 0 and self.bonus == 0 and not self.recentre:
            return rollouts.advantage
        mask, dtype = rollouts.trained_mask, rollouts.advantage.dtype
        if not mask.any():
            return rollouts.advantage
        found = steps(rollouts.signal(_ENTROPY.key), mask, rollouts.turn, rollouts.row_id)
        g = scaling(found.entropy, self.sharpness)
        f = clarity_of_next(found.entropy, found.followed, self.clarity, self.variant == "fixed")
        return transform_advantage(
            rollouts.advantage, mask, weight=g[found.of].to(dtype), shift=(self.bonus * f)[found.of].to(dtype),
            recentre="step" if self.recentre else "none", turn=rollouts.turn, row_id=rollouts.row_id,
        )  # fmt: skip
