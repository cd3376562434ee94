"""DISPO: the ratio is a clipped weight, not a clipped loss, with a window of its own for right and for wrong answers.

    w_t = clip(r_t, 1 - right_low, 1 + right_high)  where A > 0
          clip(r_t, 1 - wrong_low, 1 + wrong_high)  where A < 0
    J = mean_t sg(w_t) A_t ln p_t, maximised over all tokens: the gradient is w A grad ln p, never 0 for being clipped

| regime | paper | here | loosened | too loose or too tight |
|---|---|---|---|---|
| A > 0, r > 1 | eps^+_high | `right_high` | explores | slow degradation |
| A > 0, r < 1 | eps^+_low | `right_low` | less of the pull back to likely tokens | slow degradation |
| A < 0, r > 1 | eps^-_high | `wrong_high` | unlearns harder | too tight: sudden repetition |
| A < 0, r < 1 | eps^-_low | `wrong_low` | the push fades with r | too tight: answers vanish |

Here the objective's own clip is taken out and the token's loss multiplied by sg(w / r). The gradient is then DISPO's whether the objective
writes r A (`grpo`, `dapo`, `dr_grpo` of TRL) or sg(r) A ln p (`cispo`, the recipe, where the value is DISPO's too). Equal windows are
CISPO; [0, inf] in both is the importance-weighted policy gradient (`neutral`). A = 0 has no gradient, and no weight.

No code was found and the body of the paper not read, so there is no other variant: formula and regimes as in two secondary notes, the
defaults as in one of them, attributed to the paper (inferred). Right and wrong are the signs of A (`split="advantage"`); with rewards
of several parts `split="correct"` asks the verifier, and A where none spoke. Where the ratio is 1, in the first update of a rollout, every
setting is the same; if it is in every update, a warning says so. A window up to 101 makes heavy tails: keep TRL's gradient norm clipped.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number, ratio_and_bounds
from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Progress, RowRng, State, Stats, Step


def four_regimes(
    ratio: Float[Tensor, "response #token"],
    right: Bool[Tensor, "response #token"],
    *,
    right_low: float,
    right_high: float,
    wrong_low: float,
    wrong_high: float,
) -> Float[Tensor, "response #token"]:
    """The ratio held in [1 - right_low, 1 + right_high] where right, else in [1 - wrong_low, 1 + wrong_high]; detached."""
    ratio = ratio.detach()
    return torch.where(right, ratio.clamp(1 - right_low, 1 + right_high), ratio.clamp(1 - wrong_low, 1 + wrong_high))


@dataclass(frozen=True)
class Dispo(Intervention):
    """Importance weights clipped in four regimes; replaces the objective's clip."""

    name = "dispo"
    slug = "dispo"
    source = "DISPO: Enhancing Training Efficiency and Stability in RL for LLM Mathematical Reasoning, arXiv 2602.00983; no code found"
    effect = "Raises entropy as the window of right answers opens above 1; the other regimes as they are set."

    right_low: float = 0.2  # windows [0.8, 11] and [0, 101]
    right_high: float = 10.0
    wrong_low: float = 1.0
    wrong_high: float = 100.0
    split: Literal["advantage", "correct"] = "advantage"

    def __post_init__(self):
        for parameter in ("right_low", "wrong_low"):
            check_fraction("Dispo", parameter, self.__dict__[parameter])
        for parameter in ("right_high", "wrong_high"):
            check_at_least("Dispo", parameter, self.__dict__[parameter], 0, f"The window ends at 1 + {parameter}; inf leaves it open.")
        check_one_of("Dispo", "split", self.split, ("advantage", "correct"), 'The default is "advantage".')

    def init(self) -> State:
        """`on_policy`: consecutive updates in which every ratio was exactly 1."""
        return {"on_policy": 0}

    def neutral(self) -> "Dispo":
        return replace(self, right_low=1.0, right_high=math.inf, wrong_low=1.0, wrong_high=math.inf)

    def recipe(self) -> Objective:
        """Token-mean sg(r) A ln p, log-ratio inside +-20 nats."""
        return replace(Objective.named("cispo"), epsilon_cap=None)

    def right(self, step: Step) -> Bool[Tensor, "response #token"]:
        """Where the window of right answers applies."""
        positive = step.advantage > 0
        if self.split == "advantage":
            return positive
        correct = step.rollouts.correct.unsqueeze(1)
        return torch.where(correct.isnan(), positive, correct > 0)

    def held(self, step: Step) -> Float[Tensor, "response #token"]:
        """w of every token."""
        windows = {"right_low": self.right_low, "right_high": self.right_high, "wrong_low": self.wrong_low, "wrong_high": self.wrong_high}
        return four_regimes(ratio_and_bounds(step)[0], self.right(step), **windows)

    def clip(self, step: Step, stats: Stats | None, state: State) -> Bounds:
        return Bounds()

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """How many tokens each side of each window holds."""
        mask, ratio, held = view.mask & (view.advantage != 0), ratio_and_bounds(view)[0], self.held(view)
        right = self.right(view)
        counts = {}
        for side, chosen in (("right", right), ("wrong", ~right)):
            counts[f"{side}/low"] = (mask & chosen & (held > ratio)).sum()
            counts[f"{side}/high"] = (mask & chosen & (held < ratio)).sum()
        moved = ((ratio != 1) & view.mask).any()
        return Stats(view.rollouts.row_id, counts | {"on_policy": view.mask.any() & ~moved})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self == self.neutral():
            return TokenWeight()
        ratio, held = ratio_and_bounds(step)[0].detach(), self.held(step)
        changed = (held != ratio) & (step.advantage != 0)
        value = torch.where(changed, held / ratio, torch.ones_like(ratio))
        return TokenWeight(value=value.expand(step.mask.shape))

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """Warns once, when a second update in a row had no ratio other than 1."""
        if stats is None:
            return state
        count = int(number(state, "on_policy")) + 1 if bool(stats.scalars["on_policy"]) else 0
        if count == 2:
            warnings.warn(
                "Dispo: every ratio was 1 in two updates in a row, where all windows are the same, so dispo does nothing. It needs "
                "several updates per rollout: in TRL raise num_iterations, or steps_per_generation above gradient_accumulation_steps.",
                stacklevel=2,
            )
        return {"on_policy": count}
