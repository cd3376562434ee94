"""One small intervention per stage: what the contract and the placebos are themselves tested on, and templates for one's own.

None of them comes from a paper. Each passes the whole contract but for the run on the embedded model.
"""

from dataclasses import dataclass, replace

import torch

from isentrope.control.cuts import Branches, eligible
from isentrope.control.stages import ExtraRequest, Intervention, Penalty, RowEdit, TokenWeight
from isentrope.control.step import Need, Stats
from isentrope.measure.tokens import Entropy

_SOURCE = "an example, of no paper"


def mean_where(value, mask):
    """Mean of the counted values, 0 where none counts; accumulated in float32 or wider."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return torch.where(mask, value, 0.0).sum(dtype=wide) / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class KeepUncertain(Intervention):
    """Weight: tokens whose entropy is below the update's mean times `level` leave the loss and its divisor."""

    name = "keep-uncertain"
    source = _SOURCE
    level: float = 1.0  # 0 keeps everything

    @property
    def needs(self):
        return (Need(Entropy()),)

    def neutral(self):
        return replace(self, level=0.0)

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, {"mean": mean_where(view.signal("current.entropy"), view.mask)})

    def weight(self, step, stats, state):
        return TokenWeight(keep=step.signal("current.entropy") >= self.level * stats.scalars["mean"], denominator="kept")


@dataclass(frozen=True)
class DropAtRandom(Intervention):
    """Weight: a keyed random share of the tokens leaves the loss, the divisor stays."""

    name = "drop-at-random"
    source = _SOURCE
    share: float = 0.2

    def neutral(self):
        return replace(self, share=0.0)

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, tokens={"keep": rng.uniform(view.rollouts.row_id, view.mask.shape[1]) >= self.share})

    def weight(self, step, stats, state):
        return TokenWeight(keep=stats.token("keep", step))


@dataclass(frozen=True)
class WidenUncertain(Intervention):
    """Clip: the upper bound grows with the entropy of the position."""

    name = "widen-uncertain"
    source = _SOURCE
    coef: float = 0.5

    @property
    def needs(self):
        return (Need(Entropy()),)

    def neutral(self):
        return replace(self, coef=0.0)

    def clip(self, step, stats, state):
        return replace(step.bounds, high=step.bounds.high + self.coef * step.signal("current.entropy"))


@dataclass(frozen=True)
class LiftChosen(Intervention):
    """Regularise, tokens chosen by a survey: an entropy bonus on the least certain tokens of the update with a positive advantage."""

    name = "lift-chosen"
    source = _SOURCE
    coef: float = 0.1
    share: float = 0.1

    @property
    def needs(self):
        return (Need(Entropy(grad=True)),)

    def neutral(self):
        return replace(self, coef=0.0)

    def survey(self, view, state, rng):
        entropy = torch.where(view.mask & (view.advantage > 0), view.signal("current.entropy"), -1.0)
        count = int(self.share * view.mask.sum())
        order = torch.argsort(entropy.flatten(), descending=True)[:count]
        chosen = torch.zeros_like(view.mask).flatten()
        chosen[order] = True
        return Stats(view.rollouts.row_id, tokens={"chosen": chosen.reshape(view.mask.shape) & view.mask})

    def regularise(self, step, stats, state):
        chosen = stats.token("chosen", step)
        return Penalty(token=-self.coef * torch.where(chosen, step.signal("current.entropy"), 0.0), touched=chosen)


@dataclass(frozen=True)
class HoldLevel(Intervention):
    """Regularise and update: a squared pull of the update's mean entropy of uncertain tokens towards the first one seen."""

    name = "hold-level"
    source = _SOURCE
    coef: float = 0.5
    floor: float = 1.0  # nats; only positions above it count

    @property
    def needs(self):
        return (Need(Entropy(grad=True)),)

    def neutral(self):
        return replace(self, coef=0.0)

    def init(self):
        return {"target": None}

    def _counted(self, step):
        return step.mask & (step.signal("current.entropy") > self.floor)

    def survey(self, view, state, rng):
        counted = self._counted(view)
        mean = mean_where(view.signal("current.entropy"), counted)
        return Stats(view.rollouts.row_id, {"mean": mean, "count": counted.sum().clamp(min=1)})

    def regularise(self, step, stats, state):
        counted, mean = self._counted(step), stats.scalars["mean"]
        apart = mean - (1.2 if state["target"] is None else state["target"])
        total = 2 * self.coef * apart * torch.where(counted, step.signal("current.entropy"), 0.0).sum() / stats.scalars["count"]
        return Penalty(total=total, touched=counted)

    def update(self, state, stats, progress):
        return {"target": float(stats.scalars["mean"])} if state["target"] is None else dict(state)


@dataclass(frozen=True)
class CoolUncertain(Intervention):
    """Sample: flat positions are sampled cooler."""

    name = "cool-uncertain"
    source = _SOURCE
    coef: float = 0.1

    def neutral(self):
        return replace(self, coef=0.0)

    def temperature(self, logits, base, state):
        log_p = torch.log_softmax(logits / base, dim=-1)
        return base * (1 - self.coef * torch.tanh(-(log_p.exp() * log_p).sum(-1)))


@dataclass(frozen=True)
class CutAtRandom(Intervention):
    """Regenerate: half of every group goes on from a random position of the other half."""

    name = "cut-at-random"
    source = _SOURCE
    share: float = 0.5  # 0 cuts nothing

    def neutral(self):
        return replace(self, share=0.0)

    def misfit(self, samples):
        return "" if samples % 2 == 0 else f"halves of a group need an even number of responses. Got {samples}."

    def drafts(self, samples, progress, state):
        return samples // 2 if self.share else None

    def branches(self, drafts, state, rng):
        allowed = eligible(drafts, lambda text, special: not special)
        keys = torch.where(allowed, rng.uniform(drafts.rollouts.row_id, allowed.shape[1]), -1.0)
        parent = torch.arange(len(keys))
        return Branches(parent, torch.where(allowed.any(-1), keys.argmax(-1), 0), allowed)


@dataclass(frozen=True)
class ShorterIsBetter(Intervention):
    """Reward: minus `coef` per trained token, relative to the padded length."""

    name = "shorter-is-better"
    source = _SOURCE
    coef: float = 0.5

    def neutral(self):
        return replace(self, coef=0.0)

    def reward(self, rollouts, state):
        return rollouts.reward - self.coef * rollouts.lengths / 100


@dataclass(frozen=True)
class DropEqual(Intervention):
    """Filter: groups whose rewards span no more than `spread` leave the loss."""

    name = "drop-equal"
    source = _SOURCE
    spread: float = 0.98
    rounds: int = 0

    def neutral(self):
        return replace(self, spread=-1.0)

    def keep(self, rollouts, state):
        same = rollouts.group[:, None] == rollouts.group[None, :]
        high = torch.where(same, rollouts.reward, float("-inf")).amax(-1)
        low = torch.where(same, rollouts.reward, float("inf")).amin(-1)
        return high - low > self.spread


@dataclass(frozen=True)
class CreditUncertain(Intervention):
    """Advantage: a token's advantage grows with the old entropy of its position relative to its response's mean."""

    name = "credit-uncertain"
    source = _SOURCE
    coef: float = 0.3

    @property
    def needs(self):
        return (Need(Entropy(), policy="old"),)

    def neutral(self):
        return replace(self, coef=0.0)

    def advantage(self, rollouts, state):
        mask = rollouts.trained_mask
        entropy = torch.where(mask, rollouts.signal("old.entropy"), 0.0)
        mean = entropy.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(mask, rollouts.advantage * (1 + self.coef * torch.tanh(entropy - mean)), 0.0)


@dataclass(frozen=True)
class ReplayCorrect(Intervention):
    """Extra, rows and update: the worst rows are replaced by correct ones sampled hotter, in every update but the first."""

    name = "replay-correct"
    source = _SOURCE
    count: int = 2

    def neutral(self):
        return replace(self, count=0)

    def init(self):
        return {"updates": 0}

    def extra(self, rollouts, progress, state):
        if self.count == 0:
            return None
        return ExtraRequest(torch.unique(rollouts.group)[:2], samples=4, temperature=1.2)

    def rows(self, rollouts, extra, state, rng):
        none = torch.zeros(0, dtype=torch.long)
        if extra is None:
            return RowEdit(none, none, torch.zeros(0))
        good = torch.nonzero(extra.correct > 0).squeeze(1)
        good = good[torch.argsort(rng.uniform(extra.row_id[good], 1).squeeze(1))][: self.count]
        by_id = torch.argsort(rollouts.row_id)
        worst = by_id[torch.argsort(rollouts.reward[by_id], stable=True)][: len(good)]
        return RowEdit(worst, good, torch.ones(len(worst), dtype=rollouts.advantage.dtype))

    def update(self, state, stats, progress):
        return {"updates": state["updates"] + 1}


EXAMPLES: tuple[Intervention, ...] = (
    KeepUncertain(), DropAtRandom(), WidenUncertain(), LiftChosen(), HoldLevel(), CoolUncertain(), CutAtRandom(), ShorterIsBetter(), DropEqual(),
    CreditUncertain(), ReplayCorrect(),
)  # fmt: skip
"""Every stage but `policy` occurs."""
