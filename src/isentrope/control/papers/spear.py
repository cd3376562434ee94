"""SPEAR: the policy imitates its own earlier successes, little at first and then more, measured against what it gets by now.

    kept:     responses with A > 0 of the last `max_age` updates                 A: the advantage of their time
    base      P50 of the mean rewards of the last `baseline` groups, whatever their prompt
    A~        R - base                                                           only A~ > 0 is replayed (or A~ = decay A)
    gamma_s   coef (1 - cos(pi s / rise)) / 2 up to s = rise, then coef          the weight of a replayed response
    reward    R + tools (1 + cos(pi s / tool_horizon)) / 2 min(1, 0.1 n)         n: tool turns; 0 after the horizon

| paper / scripts | here | |
|---|---|---|
| N_D | `replayed` | 2048 (ALFWorld), 32 (AIME); replay starts when more than 1.5 N_D of the kept beat the base |
| N_F | `baseline` | groups; 10240, 32 |
| a | `max_age` | 5 to 10; here in updates of the optimiser |
| c, T_sil | `coef`, `rise` | 1; 100 to 300 steps |
| T_dec | `tool_horizon` | 100 to 200 steps; of the multi-turn tasks, nothing where responses have one turn |
| w | `decay` | instead of the base |

min(N_D, the largest power of two) of them, drawn uniformly, are replayed, and the buffer is emptied. They enter with the log-probs of the
policy that sampled them, so the clip of the ratio is what holds them, and their age is on the tape.

Not carried: the optimiser step of its own that the original takes for the replay. Here replayed rows stand in the on-policy update in the place
of rows of the groups whose rewards differ least (of which the paper's recipe leaves a quarter out), at most the share `share` of a
generation (inferred), and gamma_s multiplies their advantage, which is the same as a weight on their loss. The covariance clipping of the
replay is the link `clip-cov` beside this one, over all tokens of the update (one of the two released code bases does that too). Kept
responses need no tool call where a task has none. The base is blind to difficulty, so easy prompts dominate what is replayed; a base by prompt is
not offered, as rollouts carry no name of their prompt. The exact typesetting of the paper's equations was not seen: forms (inferred) from the code.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, RowEdit
from isentrope.control.step import Progress, Rollouts, RowRng, State, Stats

_TRIGGER = 1.5  # times N_D
_PER_TURN = 0.1  # tool reward of a turn


def rising(step: int, horizon: int) -> float:
    """(1 - cos(pi s / T)) / 2 up to s = T, then 1."""
    return 1.0 if step >= horizon else (1 - math.cos(math.pi * step / horizon)) / 2


def power_of_two(count: int) -> int:
    """The largest power of two that is at most `count`; 0 for a count below 2, as released."""
    return 0 if count < 2 else 1 << (count.bit_length() - 1)


def group_means(rollouts: Rollouts) -> tuple[Float64[Tensor, " group"], Float64[Tensor, " group"], Int[Tensor, " response"]]:
    """Mean and (population) deviation of the rewards of every group in the order of their ids, and each response's index among them."""
    index = torch.unique(rollouts.group, return_inverse=True)[1]
    order = torch.argsort(rollouts.row_id)  # so that a sum is the same number in any order
    value, at = rollouts.reward.double().nan_to_num()[order], index[order]
    count = torch.bincount(at)
    mean = torch.zeros(len(count), dtype=torch.float64, device=value.device).index_add(0, at, value) / count
    square = torch.zeros_like(mean).index_add(0, at, (value - mean[at]) ** 2) / count
    return mean, square.sqrt(), index


@dataclass(frozen=True)
class Spear(Intervention):
    """Replays successes of earlier updates that beat what is usual by now, in the place of rows that teach little. coef=0 replays none."""

    name = "spear"
    slug = "spear"
    source = "SPEAR, arXiv 2509.22601; TencentYoutuResearch/SPEAR ray_trainer_hybrid.py, dp_actor.py, core_algos.py, recipe/spear (read, not used)"
    effect = "Raises entropy early by tool reward, and lowers it later as successes are imitated."

    replayed: int = 2048
    baseline: int = 10_240
    max_age: int = 10
    coef: float = 1.0
    rise: int = 200
    decay: float | None = None
    share: float = 0.25
    tools: float = 1.0
    tool_horizon: int = 200

    def __post_init__(self):
        for parameter in ("replayed", "baseline", "max_age", "rise", "tool_horizon"):
            check_at_least("Spear", parameter, self.__dict__[parameter], 1, "It is a number of responses, groups or updates.")
        for parameter in ("coef", "tools"):
            check_at_least("Spear", parameter, self.__dict__[parameter], 0, "0 switches it off.")
        for parameter in ("share", "decay"):
            check_fraction("Spear", parameter, 0.0 if self.__dict__[parameter] is None else self.__dict__[parameter])

    @property
    def late(self) -> int:
        """A generation of the preset `control-check` feeds eight updates, and the first finds the buffer empty."""
        return 8

    @property
    def capacity(self) -> int:
        """Of the buffer: twice N_D, so that what beats the base can pass 1.5 N_D (inferred; the released buffer is bounded by age alone)."""
        return 2 * self.replayed

    def init(self) -> State:
        """`means`: of the rewards of the last groups; `step`: updates made."""
        return {"means": torch.zeros(0, dtype=torch.float64), "step": 0}

    def neutral(self) -> "Spear":
        return replace(self, coef=0.0, tools=0.0)

    def embedded(self) -> "Spear":
        """A buffer that one generation of the small model fills, and a short rise."""
        return replace(self, replayed=8, baseline=64, max_age=20, rise=10)

    def recipe(self) -> Objective:
        """Dr.GRPO with a ratio in [0.8, 1.28], no KL; the paper's advantages are not divided by the deviation (trl.scale_rewards=none)."""
        return replace(Objective.named("dr_grpo"), epsilon_high=0.28)

    def gamma(self, state: State) -> float:
        """gamma_s."""
        return self.coef * rising(int(state["step"] or 0), self.rise)

    def base(self, state: State) -> float | None:
        """P50 of the groups' means; None before there is one."""
        means = state["means"]
        return float(means.quantile(0.5)) if isinstance(means, Tensor) and len(means) else None

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        """R and what tool turns earn: right and wrong answers alike."""
        if self.tools == 0 or rollouts.turn is None:
            return rollouts.reward
        turns = torch.where(rollouts.completion_mask, rollouts.turn, 0).amax(-1)
        paid = self.tools * (1 - rising(int(state["step"] or 0), self.tool_horizon))
        return rollouts.reward + paid * (_PER_TURN * turns.to(rollouts.reward.dtype)).clamp(max=1.0)

    def rows(self, rollouts: Rollouts, extra: Rollouts | None, state: State, rng: RowRng) -> RowEdit:
        """Replayed rows in the place of rows of the groups whose rewards differ least."""
        device, gamma, base = rollouts.row_id.device, self.gamma(state), self.base(state)
        none = torch.zeros(0, dtype=torch.long, device=device)
        nothing = RowEdit(none, none, rollouts.advantage.new_zeros(0))
        if extra is None or gamma == 0 or base is None:
            return nothing
        counts = extra.trained_mask.any(-1)
        above = counts & (extra.reward > base)
        if int(above.sum()) <= _TRIGGER * self.replayed:
            return nothing
        worth = extra.reward - base if self.decay is None else self.decay * extra.advantage.squeeze(1)
        good = (counts & (worth > 0)).nonzero().squeeze(1)
        targets = self._targets(rollouts, rng.child(1))
        count = min(self.replayed, power_of_two(len(good)), len(targets))
        good = good[torch.argsort(rng.uniform(extra.row_id[good], 1).squeeze(1))][:count]
        return RowEdit(targets[:count], good, gamma * worth[good].to(rollouts.advantage.dtype), clear=True)

    def _targets(self, rollouts: Rollouts, rng: RowRng) -> Int[Tensor, " row"]:
        """At most `share` of the rows, those of the groups of least deviation first, at random within a deviation."""
        _, deviation, index = group_means(rollouts)
        shuffled = torch.argsort(rng.uniform(rollouts.row_id, 1).squeeze(1))
        order = shuffled[torch.argsort(deviation[index][shuffled], stable=True)]
        return order[: int(self.share * len(rollouts))]

    def remember(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        """Responses of this policy with A > 0; with a tool call, where there are such."""
        advantage = rollouts.token_advantage().sum(-1)
        kept = (advantage > 0) & (rollouts.origin == 0)
        if rollouts.turn is not None and self.coef > 0 and bool((rollouts.turn[rollouts.completion_mask] > 0).any()):
            kept = kept & (torch.where(rollouts.completion_mask, rollouts.turn, 0).amax(-1) > 0)
        return kept

    def collect(self, rollouts: Rollouts, state: State) -> State:
        """The groups' means enter the queue, the oldest leave it."""
        means = torch.as_tensor(state["means"])
        fresh = group_means(rollouts)[0].to(means.device)
        return {**state, "means": torch.cat([means, fresh])[-self.baseline :]}

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        return {**state, "step": progress.step}
