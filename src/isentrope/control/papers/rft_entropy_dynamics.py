"""Clip_B and Clip_V: tokens of wrong answers whose penalty would lower the entropy most leave the loss.

    S_t = p_t (ln p_t + H_t),   N_t = sum_i p_i S_i      raising the sampled token's logit takes S from H; its policy gradient S - N
    Clip_B drops   A < 0 and S_t - mean S < -mu std S
    Clip_V drops   A <= 0 and D_t > mu std D,   D_t = N_t - S_t; of those with A < 0 at most K, of largest D
    K = max(1, floor(max_share tokens)); both leave the divisor too; population deviations over the valid tokens of the update

| paper | here | |
|---|---|---|
| S_*, Theorem 3.2 | `old.S`, `discriminant` | nats, of the policy that sampled |
| E_{i~p}[S_i], Theorem 3.3 | `old.N` | nats, >= 0 ("nec" in the code) |
| mu | `ClipB.mu`, `ClipV.mu` | in standard deviations; smaller drops more |
| max_frac | `ClipV.max_share` | a fraction of the valid tokens |

A wrong answer's rare token (S < N) that is pushed down sharpens the policy; a sure and right one is never touched by the release.

Paper and code: Clip_B's code multiplies the engine's probability with the entropy that the trainer recomputed (`ClipB(variant="code")`);
the theory has one policy (`variant="paper"`, the default: the mismatch is noise where the policy is nearly certain). Clip_V's code tests
A = 0 as if it were negative: such tokens leave the divisor and the cap does not restore them (`ClipV(variant="code")`, the default, which
the recorded runs have); `variant="fixed"` tests A < 0. The code takes statistics over the generation batch, here they are the update's
unless `scope="micro-batch"`. Clip_V's default mu is 8.5 in the example and 2 in its constructor.

Both defaults may bind nowhere: choose mu by the share that is dropped, 1e-4 to 1e-3; a warning says so after many idle updates.
`ClipV(two_sided=True)`, (inferred): also right answers' tokens with S_t - N_t > mu std D, the others that lower the entropy.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, check_scope, in_row_order, largest, number
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, Progress, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant

_SOURCE = "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, arXiv 2602.03392"
_S, _N, _ENTROPY = Need(Discriminant(), "old"), Need(ExpectedDiscriminant(), "old"), Need(Entropy(), "old")
_FLAT = 1e-12  # a deviation below it drops nothing, as released
_IDLE = 50  # updates in a row in which nothing was dropped


def discriminant(log_probs: Float[Tensor, "*shape"], entropy: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """S = p (ln p + H) in nats, of the sampled token; what raising its logit takes from H (Theorem 3.2). Detached."""
    log_p = log_probs.detach().double()
    return log_p.exp() * (log_p + entropy.detach().double())


def clip_b_drop(
    found: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    mu: float,
    row_id: Int[Tensor, " response"] | None = None,
) -> Bool[Tensor, "response token"]:
    """Valid tokens with A < 0 whose S is more than mu deviations below the mean. None where S does not vary."""
    mean, deviation = _moments(found, mask, row_id)
    if not deviation >= _FLAT or mu == math.inf:
        return torch.zeros_like(mask)
    return mask & (advantage < 0) & (found.double() - mean < -mu * deviation)


def clip_v_drop(
    distance: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    mu: float,
    max_share: float,
    row_id: Int[Tensor, " response"],
    rng: RowRng,
    *,
    zero: bool = True,
    two_sided: bool = False,
) -> Bool[Tensor, "response token"]:
    """Valid tokens that Clip_V drops. distance: D = N - S in nats, as it stands, not centred.

    zero: tokens with A = 0 are tested as well, outside the cap (released). two_sided: tokens with A > 0 are tested for -D.
    """
    deviation = _moments(distance, mask, row_id)[1]
    if not deviation >= _FLAT or mu == math.inf:
        return torch.zeros_like(mask)
    lowers = torch.where(advantage > 0, -distance, distance).double()  # how much less entropy the update leaves
    beyond = mask & (lowers > mu * deviation)
    capped = beyond & ((advantage != 0) if two_sided else (advantage < 0))
    count = max(1, int(max_share * int(mask.sum())))
    dropped = largest(lowers, capped, count, row_id, rng)
    return dropped | (beyond & (advantage == 0)) if zero else dropped


def _moments(value: Tensor, mask: Tensor, row_id: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of the counted values that are finite; 0 without one."""
    counted = in_row_order(value, mask & value.isfinite(), row_id)
    if len(counted) == 0:
        return counted.new_zeros(()), counted.new_zeros(())
    return counted.mean(), counted.std(correction=0)


class _TokenFilter(Intervention):
    """What both have: dropped tokens leave the loss and its divisor, and a count of the updates in which nothing was dropped."""

    slug = "rft-entropy-dynamics"
    mu: float

    def init(self) -> State:
        return {"idle": 0}

    def recipe(self) -> Objective:
        """Token-mean PPO, ratio in [0.8, 1.2], no KL (the released examples; the aggregation is inferred)."""
        return replace(Objective.named("dapo"), epsilon_high=0.2)

    def dropped(self, view: Step, rng: RowRng) -> Bool[Tensor, "response token"]:
        raise NotImplementedError

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        dropped, tokens = self.dropped(view, rng), view.mask.sum()
        scalars = {"dropped": dropped.sum(), "dropped_share": dropped.sum() / tokens.clamp(min=1), "valid": tokens}
        return Stats(view.rollouts.row_id, scalars, {"dropped": dropped})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.mu == math.inf:
            return TokenWeight()
        return TokenWeight(keep=~stats.token("dropped", step), denominator="kept")

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """Warns once, when nothing was dropped for many updates in a row."""
        if stats is None or int(stats.scalars["valid"]) == 0:
            return state
        idle = 0 if int(stats.scalars["dropped"]) else int(number(state, "idle")) + 1
        if idle == _IDLE and self.mu < math.inf:
            who = type(self).__name__
            warnings.warn(
                f"{who}: no token was dropped in {_IDLE} updates in a row, so {self.name} does nothing at mu={self.mu:g}. "
                "Lower mu until it drops 1e-4 to 1e-3 of the tokens.",
                stacklevel=2,
            )
        return {"idle": idle}


@dataclass(frozen=True)
class ClipB(_TokenFilter):
    """Drops tokens of wrong answers whose S is far below the mean of the batch."""

    name = "clip-b"
    source = f"{_SOURCE}, Clip_B; agentscope-ai/Trinity-RFT clipb_advantage.py (Apache-2.0)"
    effect = "Slows the fall of entropy, or raises it: tokens of wrong answers whose penalty lowers it most leave the loss."

    mu: float = 2.5  # deviations below the mean (released example)
    scope: Scope = "update"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_at_least("ClipB", "mu", self.mu, 0, "mu=inf drops nothing.")
        check_scope("ClipB", self.scope)
        check_one_of("ClipB", "variant", self.variant, ("paper", "code"), 'The default is "paper".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_S,) if self.variant == "paper" else (_ENTROPY,)

    def neutral(self) -> "ClipB":
        return replace(self, mu=math.inf)

    def embedded(self) -> "ClipB":
        """A threshold that the embedded model's few uncertain tokens reach."""
        return replace(self, mu=0.5)

    def dropped(self, view: Step, rng: RowRng) -> Bool[Tensor, "response token"]:
        if self.variant == "paper":
            found = view.signal(_S.key).detach()
        else:
            engine = view.rollouts.sampling_log_probs
            log_probs = view.old_log_probs if engine is None else torch.where(view.mask, engine, 0.0)
            found = discriminant(log_probs, view.signal(_ENTROPY.key))
        return clip_b_drop(found, view.advantage, view.mask, self.mu, view.rollouts.row_id)


@dataclass(frozen=True)
class ClipV(_TokenFilter):
    """Drops tokens of wrong answers whose S is far below its mean over the vocabulary, N; at most a small share."""

    name = "clip-v"
    source = f"{_SOURCE}, Clip_V; agentscope-ai/Trinity-RFT clipv_advantage.py, clipv_dp_actor.py (Apache-2.0)"
    effect = "Slows the fall of entropy, or raises it: the tokens that move it furthest leave the loss."

    mu: float = 8.5  # deviations of N - S (released example)
    max_share: float = 1e-4  # of the valid tokens, but at least one token
    two_sided: bool = False
    scope: Scope = "update"
    variant: Literal["code", "fixed"] = "code"

    def __post_init__(self):
        check_at_least("ClipV", "mu", self.mu, 0, "mu=inf drops nothing.")
        check_fraction("ClipV", "max_share", self.max_share)
        check_scope("ClipV", self.scope)
        check_one_of("ClipV", "variant", self.variant, ("code", "fixed"), 'The default is "code".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_S, _N)

    def neutral(self) -> "ClipV":
        return replace(self, mu=math.inf)

    def embedded(self) -> "ClipV":
        """A threshold that the embedded model reaches, and a share that is more than one of its thousand tokens."""
        return replace(self, mu=0.5, max_share=0.1)

    def dropped(self, view: Step, rng: RowRng) -> Bool[Tensor, "response token"]:
        distance = view.signal(_N.key).detach() - view.signal(_S.key).detach()
        return clip_v_drop(
            distance, view.advantage, view.mask, self.mu, self.max_share, view.rollouts.row_id, rng,
            zero=self.variant == "code", two_sided=self.two_sided,
        )  # fmt: skip
