"""SPINE: per response only the tokens of highest entropy are trained, and a band of their own quantiles holds their entropy.

    S_i: the ceil(share T_i) valid tokens of response i of highest H_t, ties with the last of them included
    loss = sum_{t in S} l_t / |S| + band_coef sum_{t in S} ( max(0, H_t - high_i) + max(0, low_i - H_t) ) / |S|
    low_i, high_i: the `low` and `high` quantiles of H over S_i; S_i and both are constants to the gradient, H_t in the hinge is not

| paper (v1) | here | |
|---|---|---|
| top 20 % | `share` | of the valid tokens of a response |
| lambda_band | `band_coef` | per nat; not given, 0.01 to 0.1 (inferred) |
| H_low, H_high | `low`, `high` | quantiles; 0.10 and 0.50 |
| S_i | `blocks.upper_share` | by the entropy of the policy that is trained |

The paper takes the band from the very tokens it holds (`thresholds="response"`, the default): at every step half of them are above it and
a tenth below, so that it is a standing pressure downwards that never switches off, not a band. `thresholds="frozen"` holds the mean of the
first update's quantiles, `"ema"` an average that follows them with `decay`; either is a band, and does nothing before its first update.

No code was readable. (Inferred): the clip of 0.2, the divisor of the band, how ties and fractions of a token are counted. The second version of
the paper has other rules of selection, unpublished. Not here: the majority vote that the paper takes for a reward, and its KL to the starting
model over S alone: the trainer's `beta` adds one over all tokens, which the divisor |S| makes 1 / share larger.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number, quantile, upper_share
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Penalty, TokenWeight
from isentrope.control.step import Need, Progress, RowRng, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENDS = ("low", "high")


@dataclass(frozen=True)
class Spine(Intervention):
    """Trains the uncertain tokens of every response and holds their entropy. share=1 and band_coef=0 switch both off."""

    name = "spine"
    slug = "spine"
    source = "SPINE: Token-Selective Test-Time RL with Entropy-Band Regularization, arXiv 2511.17938 (v1, by secondary sheets)"
    effect = "Holds the entropy of uncertain tokens inside a band."

    share: float = 0.2
    band_coef: float = 0.01
    low: float = 0.1
    high: float = 0.5
    thresholds: Literal["response", "frozen", "ema"] = "response"
    decay: float = 0.99  # of "ema", per update

    def __post_init__(self):
        for parameter in ("share", "low", "high", "decay"):
            check_fraction("Spine", parameter, self.__dict__[parameter])
        if self.share == 0:
            raise ValueError("Spine: share must be above 0. Got 0: nothing would be trained. To train on everything write share=1.")
        check_at_least("Spine", "high", self.high, self.low, f"The band is low..high; low is {self.low}.")
        check_at_least("Spine", "band_coef", self.band_coef, 0, "0 switches the band off.")
        check_one_of("Spine", "thresholds", self.thresholds, ("response", "frozen", "ema"), 'The default is "response".')
        if self.band_coef and self.low == 0 and self.high == 1 and self.thresholds == "response":
            warnings.warn("Spine: no token is outside the quantiles 0 and 1 of its own response, so the band does nothing.", stacklevel=3)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(Entropy(grad=self.band_coef > 0)),)

    def init(self) -> State:
        """The band of "frozen" and "ema" in nats; None before the first update."""
        return dict.fromkeys(_ENDS)

    def neutral(self) -> "Spine":
        return replace(self, share=1.0, band_coef=0.0)

    def embedded(self) -> "Spine":
        """Removes three tenths of the tokens and holds a fifth of the others."""
        return replace(self, share=0.7, high=0.9)

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2]."""
        return replace(Objective.named("dapo"), epsilon_high=0.2)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """The forking sets, and of each of their tokens which side of the band it is on (1 above, -1 below) and where that side is."""
        entropy = view.signal(self.needs[0].key).detach()
        keep = upper_share(entropy, view.mask, self.share)
        some, own = keep.any(-1), [quantile(entropy, keep, level).nan_to_num(nan=0.0) for level in (self.low, self.high)]
        order = torch.argsort(view.rollouts.row_id)  # so that a mean is the same number in any order
        scalars = {name: value.double()[order][some[order]].sum() / some.sum().clamp(min=1) for name, value in zip(_ENDS, own, strict=True)}
        low, high = (value[:, None].to(entropy.dtype) for value in own)
        if self.thresholds != "response":
            low, high = (entropy.new_full((1, 1), -inf if state["low"] is None else number(state, name)) for name in _ENDS)
            high = high if state["low"] is not None else -low
        side = torch.where(keep, (entropy > high).to(entropy.dtype) - (entropy < low).to(entropy.dtype), 0.0)
        bound = torch.where(side > 0, high, low).masked_fill(side == 0, 0.0)
        return Stats(view.rollouts.row_id, scalars | {"kept": keep.sum()}, {"keep": keep, "side": side, "bound": bound})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.share == 1:
            return TokenWeight()
        return TokenWeight(keep=stats.token("keep", step), denominator="kept")

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        """The hinges on the sides that the survey found: of the same weights, so their value and gradient are those of the band."""
        if self.band_coef == 0:
            return Penalty()
        entropy, side = step.signal(self.needs[0].key), stats.token("side", step)
        outside = side * (entropy - stats.token("bound", step))
        return Penalty(total=self.band_coef * outside.sum() / stats.scalars["kept"].clamp(min=1), touched=side != 0)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        if stats is None or self.thresholds == "response" or int(stats.scalars["kept"]) == 0:
            return state
        return {name: self._moved(state, name, stats.scalars) for name in _ENDS}

    def _moved(self, state: State, name: str, found: Mapping[str, Tensor]) -> float:
        now = float(found[name])
        if state[name] is None:
            return now
        before = number(state, name)
        return before if self.thresholds == "frozen" else self.decay * before + (1 - self.decay) * now
