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

A' has the other sign than A where Hs < -1 / alpha, 5 deviations at 0.2: there the factor is 0 here. Tokens amplified here
are damped by `empg` and `aem-agentic`, which look at whole steps.

Parts A and B, how a group of k episodes is sampled, are the link `aepo-branch`. e_t is the entropy of action t, over ln V:

    m = floor(k sigma(beta (e_root - e_tool))) + 1, at most k, begin at the prompt; e_root and e_tool are of a pilot that is thrown away
    after a reply, a line of play is doubled if P_t >= tau (`paper`: > tau), while the group lacks episodes:
        P_t = clip((u + gamma (e_t - e_0)) max(0, 1 - penalty l), 0, 1)

| paper | here | |
|---|---|---|
| k, beam | `num_generations`, `beam` | beam - 1 copies at a reply, each with a draw of its own |
| e_t | `first` | `code`: SUM over the first 20 tokens of the ten likeliest tokens' -p ln p. `paper`: mean of their full entropies |
| e_tool | the pilot's actions | `paper`: those after a reply. `code`: all of them, the first too |
| u | `variant` | `code`: uniform in [0, 1), so even a certain step branches half of the time. `paper`: 0.5 (inferred) |
| l | `penalty` | `paper`: forks of this line in a row. `code`: all episodes added to the prompt so far |
| shared tokens | `shared` | "all": trained in every row that has them, as released. "once": they leave the loss of the copy |

`code` is the default because the paper's a and gamma are not known. The release keeps e_0 by row number and never forgets it, so from the second
batch on it is another prompt's, and a copy's is that of its first own step; here it is that of the line's first action. e_root is of a
separate draw there and of the pilot's first action here. `dynamic=False` (the released scripts) begins `share` of the episodes at the prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, check_scope, in_row_order, ratio_and_bounds
from isentrope.control.forks import Standing
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy, TopKEntropy

_ENTROPY = Need(Entropy())
_DRAFTED = {"paper": Need(Entropy(), policy="draft"), "code": Need(TopKEntropy(k=10), policy="draft")}


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


def root_share(root: float, tools: float, *, beta: float = 0.5) -> float:
    """sigma(beta (e_root - e_tool)): the share of a group's episodes that begin at the prompt, half where both are equally uncertain."""
    return 1 / (1 + math.exp(-beta * (root - tools)))


@dataclass(frozen=True)
class AepoBranch(Intervention):
    """Episodes of a game branch at uncertain steps, in a budget split by a pilot. Not dynamic with share=1 begins all at the prompt, as ever."""

    name = "aepo-branch"
    slug = "aepo-agentic"
    source = "Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545, parts A and B; rollout of RUC-NLPIR/ARPO (public forks)"
    effect = "More episodes pass through uncertain steps."
    recorded = False

    dynamic: bool = True
    share: float = 0.5  # of a group that begins at the prompt where it is not dynamic (scripts: 8 of 16)
    beta: float = 0.5  # of the entropy gap in the budget
    tau: float = 0.5  # at least so much, and a line is doubled
    gamma: float = 0.2  # of the change of entropy
    penalty: float = 0.05  # per fork
    beam: int = 2
    first: int = 20  # tokens of an action that are looked at
    shared: Literal["all", "once"] = "all"
    variant: Literal["paper", "code"] = "code"

    def __post_init__(self):
        check_fraction("AepoBranch", "share", self.share)
        check_fraction("AepoBranch", "tau", self.tau)
        check_at_least("AepoBranch", "penalty", self.penalty, 0, "It lowers the chance of a fork.")
        check_at_least("AepoBranch", "beam", self.beam, 2, "It counts the line itself; 2 doubles it.")
        check_at_least("AepoBranch", "first", self.first, 1, "It is a number of tokens.")
        check_one_of("AepoBranch", "shared", self.shared, ("all", "once"), '"once" takes what a copy took over out of its loss.')
        check_one_of("AepoBranch", "variant", self.variant, ("paper", "code"), "It says how steps are measured and drawn.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_DRAFTED[self.variant],)

    def neutral(self) -> "AepoBranch":
        return replace(self, dynamic=False, share=1.0)

    def recipe(self) -> Objective:
        return AepoAgentic().recipe()

    def pilot(self) -> bool:
        return self.dynamic

    def roots(self, samples: int, pilot: Standing | None, state: State) -> int:
        if not self.dynamic or pilot is None:
            return max(1, math.ceil(self.share * samples))
        steps = self._entropies(pilot)
        after = steps if self.variant == "code" else steps[1:] or steps
        return min(samples, int(samples * root_share(steps[0], sum(after) / len(after), beta=self.beta)) + 1)

    def forks(self, standing: Sequence[Standing], free: int, made: int, state: State, rng: RowRng) -> Sequence[int]:
        """Lines are asked in their order, so the first ones have the places where there are few."""
        counts = []
        for line in standing:
            asked = min(self.beam - 1, free - sum(counts))
            counts.append(sum(self._branches(line, made, draw) for draw in self._draws(line, rng)[:asked]))
        return counts

    def _branches(self, line: Standing, made: int, draw: float) -> bool:
        steps = self._entropies(line)
        penalised = max(0.0, 1 - self.penalty * (made if self.variant == "code" else line.run))
        chance = min(1.0, max(0.0, (draw + self.gamma * (steps[-1] - steps[0])) * penalised))
        return chance >= self.tau if self.variant == "code" else chance > self.tau

    def _draws(self, line: Standing, rng: RowRng) -> list[float]:
        """u of every copy that may be made at this reply."""
        copies, turn = self.beam - 1, len(line.turns)
        if self.variant == "paper":
            return [0.5] * copies
        return rng.uniform(torch.tensor([line.row]), copies * turn)[0, copies * (turn - 1) :].tolist()

    def _entropies(self, line: Standing) -> list[float]:
        """e_t of every action; 0 for one without a token."""
        firsts = [values[: self.first] for values in line.turns]
        sums = [float(values.sum()) / line.uniform for values in firsts]
        return sums if self.variant == "code" else [total / max(1, len(values)) for total, values in zip(sums, firsts, strict=True)]
