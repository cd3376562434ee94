"""CANON: the baseline of a response is the mean reward of the other (or its own) half of its group, halves taken by entropy or length.

    C+ = upper half of the group by the metric (stable rank), C- = the first floor(G/2);  m+, m- their mean rewards, s = +1 on C+, -1 on C-
    across:  R - m- on C+,  R - m+ on C-          within:  R - m+ on C+,  R - m- on C-
    A = inter * across + (1 - inter) * within   =   (R - m) + (inter - 1/2) s (m+ - m-)   for even G; sum_o A = 0

So above 1/2 the better half is preferred whatever it is, below it the worse half; at 1/2 it is Dr.GRPO. Not divided by a deviation.

| paper | here | |
|---|---|---|
| mu (code: _lambda) | `inter` | share of the comparison across halves |
| alpha, C+ or C- that is weighted | `alpha`, low entropy or long | across: alpha R - m_E on the designated half D, R - alpha m_D on the other |
| c_o | `metric` | mean token entropy of the behaviour policy (nats), length, or "arbitrary": by row id, the authors' random control |
| schedules of mu | `schedule` | "accuracy": mu = mean reward; cosine of the code, `warmup` updates, then cycles of `cycle` |

Paper and code: the paper calls a mu that falls with accuracy First-Inter-Later-Intra; the code's active line sets mu to the accuracy, the other
direction. Both are here by what they do ("accuracy", "one-minus-accuracy"). A group of one gets its raw reward in the code
(`variant="code"`); here it gets 0 (`variant="fixed"`, default), as a response without a comparison teaches nothing. The cosine schedules are the
code's; the code also divides every advantage by the maximum length, which is the loss's constant divisor and is left to the objective.
Ties of the metric go by row id. A response without tokens or reward belongs to no half and gets 0 (inferred).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Progress, Rollouts, State, Stats
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="old")
Metric = Literal["entropy", "length", "arbitrary"]
Schedule = Literal["off", "constant", "accuracy", "one-minus-accuracy", "cosine-falling", "cosine-rising"]
_METRICS = ("entropy", "length", "arbitrary")
_SCHEDULES = ("off", "constant", "accuracy", "one-minus-accuracy", "cosine-falling", "cosine-rising")


def conditional_advantage(
    reward: Float[Tensor, " response"],
    metric: Float[Tensor, " response"],
    group: Int[Tensor, " response"],
    inter: float,
    *,
    alpha: float = 1.0,
    designated: Literal["low", "high"] = "low",
    single: Literal["raw", "zero"] = "zero",
    counts: Bool[Tensor, " response"] | None = None,
    row_id: Int[Tensor, " response"] | None = None,
) -> Float[Tensor, " response"]:
    """CANON's advantage of every response, in float64; 0 where it does not count. alpha weighs the half `designated` in the comparison across.

    single: what a group of one gets, its raw reward as a member of the upper half (released) or 0. Ties of the metric go by row id.

    >>> conditional_advantage(torch.tensor([1.0, 0, 1, 1]), torch.tensor([1.0, 2, 3, 4]), torch.zeros(4, dtype=torch.long), 1.0)
    tensor([ 0.0000, -1.0000,  0.5000,  0.5000], dtype=torch.float64)
    """
    out = torch.zeros_like(reward, dtype=torch.float64)
    counts = torch.ones_like(reward, dtype=torch.bool) if counts is None else counts
    by_id = torch.arange(len(reward), device=reward.device) if row_id is None else torch.argsort(row_id)
    for value in group.unique():
        rows = by_id[((group == value) & counts)[by_id]]
        if len(rows) < 2:
            share = 1 + inter * (alpha - 1) if designated == "high" else 1.0  # it stands in the upper half
            out[rows] = share * reward[rows].double() if single == "raw" else 0.0
            continue
        rows = rows[torch.argsort(metric[rows], stable=True)]
        low, high = reward[rows[: len(rows) // 2]].double(), reward[rows[len(rows) // 2 :]].double()
        m_low, m_high = low.mean(), high.mean()
        w_low, w_high = (alpha, 1.0) if designated == "low" else (1.0, alpha)
        across = torch.cat([w_low * low - w_high * m_high, w_high * high - w_low * m_low])
        within = torch.cat([low - m_low, high - m_high])
        out[rows] = inter * across + (1 - inter) * within
    return out


def cosine_inter(step: int, falling: bool, warmup: int = 30, cycle: int = 40) -> float:
    """mu of the released schedules after `step` updates. falling: the share within halves rises to 0.6 in the warm-up and falls to 0 in each
    cycle; else it falls from 1 to 0 in the warm-up and rises to 0.6."""
    if step < warmup:
        return 1 - (0.6 * (step + 1) / warmup if falling else 1 - (step + 1) / warmup)
    phase = math.cos(math.pi * ((step - warmup) % cycle) / cycle)
    return 1 - 0.3 * (1 + (phase if falling else -phase))


@dataclass(frozen=True)
class Canon(Intervention):
    """The baseline from the halves of a group; replaces the trainer's advantage. schedule="off" leaves that as it is."""

    name = "canon"
    slug = "canon"
    source = "CANON, arXiv 2509.23962, Eq. 1-9; biuboomc/CANON core_algos.py (dr_entropy_token_budget, dr_length_on_mean, cosine)"
    effect = "Up or down by `inter`: across the halves the better one is preferred whatever its entropy."

    inter: float = 1.0
    alpha: float = 1.0
    metric: Metric = "entropy"
    schedule: Schedule = "constant"
    warmup: int = 30
    cycle: int = 40
    variant: Literal["fixed", "code"] = "fixed"

    def __post_init__(self):
        check_fraction("Canon", "inter", self.inter)
        check_at_least("Canon", "alpha", self.alpha, 0, "1 weighs both halves alike; the paper shortens with 0.9.")
        check_one_of("Canon", "metric", self.metric, _METRICS, 'The paper\'s default is "entropy".')
        check_one_of("Canon", "schedule", self.schedule, _SCHEDULES, '"constant" keeps `inter`, "off" the trainer\'s own advantage.')
        check_at_least("Canon", "warmup", self.warmup, 0, "It counts updates.")
        check_at_least("Canon", "cycle", self.cycle, 1, "It counts updates.")
        check_one_of("Canon", "variant", self.variant, ("fixed", "code"), 'The default is "fixed".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,) if self.metric == "entropy" and self.schedule != "off" else ()

    @property
    def dense(self) -> str:
        return "every response of a group with unequal rewards gets another baseline, 88 to 94 % of the tokens"

    def init(self) -> State:
        return {"updates": 0}

    def neutral(self) -> "Canon":
        return replace(self, schedule="off")

    def recipe(self) -> Objective:
        """Dr.GRPO's constant divisor with DAPO's upper bound, no KL."""
        return replace(Objective.named("dr_grpo"), epsilon_high=0.28)

    def mix(self, reward: Float[Tensor, " response"], updates: int) -> float:
        """mu of this batch; `reward` of the responses that count."""
        if self.schedule in ("accuracy", "one-minus-accuracy"):
            accuracy = float(reward.double().sort().values.mean().clamp(0, 1)) if len(reward) else 0.5
            return accuracy if self.schedule == "accuracy" else 1 - accuracy
        if self.schedule in ("cosine-falling", "cosine-rising"):
            return cosine_inter(updates, self.schedule == "cosine-falling", self.warmup, self.cycle)
        return self.inter

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.schedule == "off":
            return rollouts.advantage
        counts = (rollouts.lengths > 0) & ~rollouts.reward.isnan()
        found = conditional_advantage(
            rollouts.reward, self._metric(rollouts), rollouts.group, self.mix(rollouts.reward[counts], int(number(state, "updates"))),
            alpha=self.alpha, designated="high" if self.metric == "length" else "low", single="raw" if self.variant == "code" else "zero",
            counts=counts, row_id=rollouts.row_id,
        )  # fmt: skip
        return found.to(rollouts.advantage.dtype).unsqueeze(1)

    def _metric(self, rollouts: Rollouts) -> Float[Tensor, " response"]:
        mask = rollouts.trained_mask
        if self.metric == "entropy":
            return torch.where(mask, rollouts.signal(_ENTROPY.key), 0.0).double().sum(-1) / mask.sum(-1).clamp(min=1)
        return rollouts.lengths.double() if self.metric == "length" else torch.zeros_like(rollouts.reward, dtype=torch.float64)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        return {"updates": int(number(state, "updates")) + 1}
