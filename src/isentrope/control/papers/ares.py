"""ARES: the reward follows the number of windows of high entropy, measured against a target for easy, medium and hard prompts.

    tau = mean over responses of the `quantile` of their token entropies;  N = windows of `width` tokens whose mean entropy >= tau
    Delta = N - N*_d;  g: easy max(0, Delta), medium |Delta|, hard max(0, -Delta)
    reward of a wrong response:  R - coef lambda_d g(Delta)      of a correct one: R

| paper | here | |
|---|---|---|
| H_t | signal `old.entropy` | nats, policy that sampled, at its temperature; detached |
| w, q | `width`, `quantile` | 4 and 0.95 (configuration); window MEANS against a quantile of single tokens, as printed |
| buckets | `easy`, `hard` | accuracy of the group >= 6/8, <= 2/8; the code's 2/3 and 1/3 part groups of 8 alike |
| N*_d | state `target_*` | mean count of the bucket; `targets` gives it from outside for the first update |
| lambda_d | `limit` caps it | max(0, (E[N|d] - N*_d) / (Var[N|d] + 1e-3)) |

`variant="paper"` takes the formulas as printed. N*_d is there the mean of the SAME batch, so lambda_d is 0 and the shaping vanishes, always; a
warning says so after ten updates. `variant="fixed"` (default): N*_d is a moving average (`memory`) of EARLIER updates, and lambda_d grows with
the miss on the side that g punishes: too many for easy, too few for hard, either for medium (inferred). Where several updates share one
generation, the average sees a group's accuracy only by the rows that an update holds.

`variant="code"` is the released reward, which pays instead of punishing: every response gets e of `released_shaping`, wrong ones at least
0.3 of the cap. Target: the batch's own rounded mean, so its controller alpha moves by rounding only. tau: 95 % quantile of the means over
the FOLLOWING tokens, median over responses, moving average 0.99 of earlier updates. A window counts where a token of `triggers` stands before it
(none: before any window); the release asks this of the most likely token, which no signal names, and we of the sampled one.

Branching, step 2 of the method, is the link `ares-branch`; the released sampler has none:

    some responses of a group are sampled first; where the mean of H over t .. t + w - 1 exceeds tau, one more response goes on from t
    tau as above, of the EARLIER generations (`memory`; 0 is the last one alone), so the first generation only measures

A run of windows above tau is one trigger, at its first position (inferred): the uncertain tokens lie in the window, and the one at the cut may be
certain. The budget follows the triggers: as many branches as a group has triggers, at most the responses that it still lacks, drawn by key where there
are more (inferred); what is left over is sampled from the prompt. What a branch took over leaves the loss (inferred: the paper does not say who is
credited for it).

Not here: the KL relaxed inside windows, the token bonus of Algorithm 1, the cold start.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number
from isentrope.control.cuts import Branches, Drafts, eligible
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Progress, Rollouts, RowRng, State, Stats, Step
from isentrope.measure.level import masked_quantile, window_threshold, windows
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="old")
_DRAFTED = Need(Entropy(), policy="draft")
BUCKETS = ("easy", "medium", "hard")
"""What the bucket ids 0, 1, 2 stand for; -1 is a group that no verifier judged."""
_CODE_MEMORY, _CODE_RATE, _CODE_MOST = 0.99, 0.05, 2.0
_PATIENCE = 10  # updates before the warning


def difficulty(correct: Float[Tensor, " response"], group: Int[Tensor, " response"], *, easy: float = 0.75, hard: float = 0.25) -> Int[Tensor, " response"]:
    """The bucket of each response's group by its accuracy: 0 at `easy` or above, 2 at `hard` or below, else 1; -1 where all are NaN."""
    index = torch.unique(group, return_inverse=True)[1]
    judged = ~correct.isnan()
    zero = torch.zeros(int(index.max()) + 1 if len(index) else 0, dtype=torch.float64, device=group.device)
    right = zero.index_add(0, index, (judged & (correct > 0)).double())[index]
    count = zero.index_add(0, index, judged.double())[index]
    bucket = torch.where(right >= easy * count - 1e-9, 0, torch.where(right <= hard * count + 1e-9, 2, 1))
    return bucket.masked_fill(count == 0, -1)


def high_threshold(
    entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], *, quantile: float = 0.95, released: int | None = None
) -> Float64[Tensor, ""]:
    """tau in nats: the mean over responses of the quantile of their token entropies; NaN without tokens.

    released: a width; then the median over responses of the quantile of means over that many following tokens.
    """
    if released is None:
        found = window_threshold(entropy, mask=mask, quantile=quantile).double()
        there = found[~found.isnan()].sort().values  # in order: the same sum however rows are permuted
        return there.mean() if len(there) else found.new_full((), torch.nan)
    found = window_threshold(entropy, mask=mask, quantile=quantile, width=released, released=True).double()
    return masked_quantile(found.unsqueeze(0), 0.5, mask=~found.isnan().unsqueeze(0)).squeeze(0)


def high_windows(
    entropy: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    threshold: Float64[Tensor, ""] | float,
    *,
    width: int = 4,
    before: Bool[Tensor, "response token"] | None = None,
) -> Float64[Tensor, " response"]:
    """N: windows of `width` tokens whose mean entropy is at least `threshold` (nats). `before`: only those that FOLLOW one of these tokens."""
    found = windows(entropy, width=width, mask=mask, following=before is not None)
    counted = found.full if before is None else found.full & before
    return (counted & (found.mean >= threshold)).sum(-1).double()


def deviation(bucket: Int[Tensor, " response"], apart: Float64[Tensor, " response"]) -> Float64[Tensor, " response"]:
    """g of Delta = N - N*: max(0, Delta) for easy, |Delta| for medium, max(0, -Delta) for hard; 0 without a bucket."""
    sides = torch.stack([apart.clamp(min=0), apart.abs(), (-apart).clamp(min=0), torch.zeros_like(apart)])
    return sides.gather(0, bucket.remainder(4).unsqueeze(0)).squeeze(0)


def released_shaping(
    bucket: Int[Tensor, " response"],
    correct: Bool[Tensor, " response"],
    count: Float64[Tensor, " response"],
    target: Float64[Tensor, " response"],
    alpha: Float64[Tensor, " response"],
) -> Float64[Tensor, " response"]:
    """e of the released reward: Huber and sigmoid of the count beyond a margin M = max(1, f N*), up to a cap of alpha (1.2 alpha if hard).

    Buckets 0 easy, 1 medium, 2 hard.
    """
    table = torch.tensor([[0.15, 2.0, 2.0, 1.0, 0.6], [0.25, 3.0, 2.5, 1.0, 0.8], [0.35, 4.0, 3.0, 1.2, 1.0]], dtype=torch.float64, device=count.device)
    share, kappa, temperature, most, wrong = table[bucket].unbind(-1)
    apart, margin, cap = count - target, (share * target).clamp(min=1), alpha * most
    above = (apart - margin).clamp(min=0)
    beyond = torch.where(bucket == 1, (apart.abs() - margin).clamp(min=0), above)

    def huber(x: Tensor) -> Tensor:
        return torch.where(x <= kappa, x.square() / (2 * kappa), x - kappa / 2) / (margin + kappa)

    punished = -torch.minimum(cap, cap * huber(beyond))
    short = -torch.minimum(cap, 0.5 * cap * huber((-apart - margin).clamp(min=0)))
    explored = torch.where(apart >= -margin, cap * torch.sigmoid((apart + margin) / temperature), short)
    right = torch.where(bucket == 2, explored, punished)
    return torch.where(correct, right, cap * wrong * torch.sigmoid(above / temperature))


@dataclass(frozen=True)
class Ares(Intervention):
    """Wrong responses lose reward for thinking too much on easy prompts and too little on hard ones, in windows of high entropy."""

    name = "ares"
    slug = "ares"
    source = "ARES: Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457, section 3, Alg. 1; shawn0728/ARES aepo.py (Apache-2.0)"
    effect = "Windows of high entropy are paid on hard prompts and charged on easy ones."

    coef: float = 1.0  # 0 switches it off
    width: int = 4  # tokens of a window
    quantile: float = 0.95
    easy: float = 0.75  # accuracy of a group
    hard: float = 0.25
    memory: float = 0.9  # of the moving average of the targets, per update ("fixed")
    limit: float = 2.0  # of the multiplier ("fixed"), as the code's alpha
    targets: tuple[float, float, float] | None = None  # easy, medium, hard; until an update has measured them ("fixed")
    triggers: tuple[int, ...] = ()  # token ids ("code")
    variant: Literal["fixed", "paper", "code"] = "fixed"

    def __post_init__(self):
        object.__setattr__(self, "triggers", tuple(self.triggers))  # lists of a YAML file
        object.__setattr__(self, "targets", None if self.targets is None else tuple(self.targets))
        check_at_least("Ares", "coef", self.coef, 0, "0 switches it off.")
        check_at_least("Ares", "width", self.width, 1, "It is a number of tokens.")
        check_at_least("Ares", "limit", self.limit, 0, "It caps the multiplier.")
        for parameter in ("quantile", "easy", "hard", "memory"):
            check_fraction("Ares", parameter, self.__dict__[parameter])
        check_one_of("Ares", "variant", self.variant, ("fixed", "paper", "code"), 'The default is "fixed".')
        if not self.hard < self.easy:
            raise ValueError(f"Ares: hard must be below easy. Got hard={self.hard}, easy={self.easy}. The paper takes 0.25 and 0.75.")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """Of the printed rule."""
        if self.variant == "paper" and self.coef:
            reason = "as printed the target is the mean it is compared with, so the multiplier is 0 and no reward ever changes"
            return {"acts_somewhere": reason, "placebo_keeps_the_budget": reason, "bites": reason}
        return {}

    @property
    def dense(self) -> str:
        return "every judged response gets a term, wrong ones at least 0.3 of the cap, 83 to 100 % of the tokens" if self.variant == "code" else ""

    def init(self) -> State:
        """Per bucket the target ("fixed": None before it is measured) or alpha ("code", 0.5), and the threshold in nats ("code")."""
        if self.variant == "paper":
            return {}
        if self.variant == "code":
            return {"threshold": None} | {f"alpha_{name}": 0.5 for name in BUCKETS}
        return {f"target_{name}": None if self.targets is None else float(self.targets[index]) for index, name in enumerate(BUCKETS)}

    def neutral(self) -> "Ares":
        return replace(self, coef=0.0)

    def embedded(self) -> "Ares":
        """Single tokens, since means of four of the embedded model rarely reach a quantile of single ones; targets above the counts found, so that
        the prompts solved at most twice in eight are asked for more."""
        return replace(self, width=1, easy=0.375, targets=(10.0, 10.0, 4.0))

    def recipe(self) -> Objective:
        """GRPO, ratio in [0.8, 1.3], dual clip 3; its KL is a part of its own."""
        return replace(Objective.named("grpo"), epsilon_high=0.3, dual_clip=3.0)

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        before = rollouts.reward.detach()
        if self.coef == 0 or self.variant == "paper":
            return before
        count, bucket = self.counts(rollouts, state), difficulty(rollouts.correct, rollouts.group, easy=self.easy, hard=self.hard)
        right, judged = rollouts.correct > 0, ~rollouts.correct.isnan()
        if self.variant == "code":
            own = torch.zeros_like(count)
            alpha = torch.zeros_like(count)
            for index, name in enumerate(BUCKETS):
                own = torch.where(bucket == index, _mean(count, bucket == index).round(), own)
                alpha = torch.where(bucket == index, number(state, f"alpha_{name}"), alpha)
            shaping = released_shaping(bucket.clamp(min=0), right, count, own, alpha)
            return torch.where(judged, before + self.coef * shaping.to(before.dtype), before)
        term = torch.zeros_like(count)
        for index, name in enumerate(BUCKETS):
            among, target = bucket == index, state[f"target_{name}"]
            if target is not None and bool(among.any()):
                goal = number(state, f"target_{name}")
                term = torch.where(among, self.multiplier(count[among], index, goal) * deviation(bucket, count - goal), term)
        return torch.where(judged & ~right, before - self.coef * term.to(before.dtype), before)

    def multiplier(self, count: Float64[Tensor, " response"], bucket: int, target: float) -> float:
        """lambda_d of a bucket's counts ("fixed"): its mean's miss of the target on the punished side, over the variance, at most `limit`."""
        miss = deviation(torch.tensor([bucket]), _mean(count, torch.ones_like(count, dtype=torch.bool))[None] - target)
        spread = count.sort().values.var(correction=0)
        return min(self.limit, float(miss / (spread + 1e-3)))

    def counts(self, rollouts: Rollouts, state: State) -> Float64[Tensor, " response"]:
        """N of each response."""
        entropy, mask = rollouts.signal(_ENTROPY.key).detach(), rollouts.trained_mask
        if self.variant != "code":
            return high_windows(entropy, mask, high_threshold(entropy, mask, quantile=self.quantile), width=self.width)
        known = state.get("threshold")
        threshold = self.released_threshold(rollouts) if known is None else number(state, "threshold")
        ids = torch.tensor(self.triggers, dtype=torch.long, device=mask.device)
        before = torch.isin(rollouts.completion_ids, ids) & mask if self.triggers else mask
        return high_windows(entropy, mask, threshold, width=self.width, before=before)

    def released_threshold(self, rollouts: Rollouts) -> Float64[Tensor, ""]:
        return high_threshold(rollouts.signal(_ENTROPY.key).detach(), rollouts.trained_mask, quantile=self.quantile, released=self.width)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        """Mean count and number of responses of each bucket, over the rows of the update."""
        rollouts = view.rollouts
        count, bucket = self.counts(rollouts, state), difficulty(rollouts.correct, rollouts.group, easy=self.easy, hard=self.hard)
        found = {f"mean_{name}": _mean(count, bucket == index) for index, name in enumerate(BUCKETS)}
        sizes = {f"size_{name}": (bucket == index).sum() for index, name in enumerate(BUCKETS)}
        return Stats(rollouts.row_id, found | sizes | {"threshold": self.released_threshold(rollouts)})

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """A bucket without responses keeps what it has."""
        if self.variant == "paper" and self.coef and progress.step == _PATIENCE:
            warnings.warn(
                'Ares: variant="paper" changes no reward: its target is the mean it is compared with, so the multiplier is 0. Take "fixed" or "code".',
                stacklevel=2,
            )
        if stats is None or self.variant == "paper":
            return state
        after = dict(state)
        for name in BUCKETS:
            mean = float(stats.scalars[f"mean_{name}"])
            if int(stats.scalars[f"size_{name}"]) == 0:
                continue
            if self.variant == "code":
                miss = (mean - round(mean)) * (-1 if name == "hard" else 1)
                after[f"alpha_{name}"] = min(_CODE_MOST, max(0.0, number(state, f"alpha_{name}") + _CODE_RATE * miss))
            else:
                after[f"target_{name}"] = _average(state[f"target_{name}"], mean, self.memory)
        if self.variant == "code" and not bool(stats.scalars["threshold"].isnan()):
            after["threshold"] = _average(state["threshold"], float(stats.scalars["threshold"]), _CODE_MEMORY)
        return after


@dataclass(frozen=True)
class AresBranch(Intervention):
    """Responses branch where a window of the first ones is more uncertain than windows used to be. first=0 samples all as ever."""

    name = "ares-branch"
    slug = "ares"
    source = "ARES: Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457, section 3, Alg. 1 (the released sampler does not branch)"
    effect = "More responses pass through uncertain windows."
    recorded = False

    first: int = 4  # responses to a prompt that are sampled before any branches
    width: int = 4  # tokens of a window
    quantile: float = 0.95
    memory: float = 0.0  # of the threshold's moving average over generations

    def __post_init__(self):
        check_at_least("AresBranch", "first", self.first, 0, "0 switches it off.")
        check_at_least("AresBranch", "width", self.width, 1, "It is a number of tokens.")
        check_fraction("AresBranch", "quantile", self.quantile)
        check_fraction("AresBranch", "memory", self.memory)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_DRAFTED, _ENTROPY)

    @property
    def late(self) -> int:
        """A generation of the preset `control-check` feeds eight updates, and the first only measures the threshold."""
        return 8

    def init(self) -> State:
        """`threshold`: tau of earlier generations, nats."""
        return {"threshold": None}

    def neutral(self) -> "AresBranch":
        return replace(self, first=0)

    def embedded(self) -> "AresBranch":
        """Half of a group of eight; a quantile that windows of the small model pass."""
        return replace(self, quantile=0.85)

    def recipe(self) -> Objective:
        """A ratio in [0.8, 1.3], dual clip 3."""
        return replace(Objective.named("grpo"), epsilon_high=0.3, dual_clip=3.0)

    def misfit(self, samples: int) -> str:
        if self.first < samples:
            return ""
        return f"first = {self.first} responses are sampled before any branches, and num_generations is {samples}, so none is left. Lower first."

    def drafts(self, samples: int, progress: Progress, state: State) -> int | None:
        return None if self.first == 0 or state["threshold"] is None else self.first

    def branches(self, drafts: Drafts, state: State, rng: RowRng) -> Branches:
        """One branch per trigger, drawn by key where a group has more than it lacks responses; what is left over from the prompt."""
        rollouts = drafts.rollouts
        found = windows(rollouts.signal(_DRAFTED.key), width=self.width, mask=rollouts.trained_mask)
        high = found.full & (found.mean > number(state, "threshold"))
        allowed = eligible(drafts, _any_token) & found.full
        begins = allowed & high & ~torch.nn.functional.pad(high[:, :-1], (1, 0))
        parents, cuts = [], []
        for rows in drafts.groups():
            draft, position = begins[rows].nonzero().unbind(1)
            if len(draft) > drafts.missing:
                chosen = rng.uniform(rollouts.row_id[rows], begins.shape[1])[draft, position].argsort()[: drafts.missing]
                draft, position = draft[chosen], position[chosen]
            spare = draft.new_zeros(drafts.missing - len(draft))
            parents.append(rows[torch.cat([draft, spare])])
            cuts.append(torch.cat([position, spare]))
        return Branches(torch.cat(parents), torch.cat(cuts), allowed)

    def collect(self, rollouts: Rollouts, state: State) -> State:
        """The threshold takes in this generation; what a branch took over counts once."""
        if self.first == 0:
            return state
        now = high_threshold(rollouts.signal(_ENTROPY.key).detach(), rollouts.trained_mask, quantile=self.quantile)
        return state if bool(now.isnan()) else {"threshold": _average(state["threshold"], float(now), self.memory)}


def _any_token(text: str, special: bool) -> bool:
    return True


def _mean(value: Float64[Tensor, " response"], among: Bool[Tensor, " response"]) -> Float64[Tensor, ""]:
    """Of counts, so exact in any order; 0 where none counts."""
    return torch.where(among, value, 0.0).sum() / among.sum().clamp(min=1)


def _average(before: object, now: float, memory: float) -> float:
    return now if before is None else memory * float(before) + (1 - memory) * now  # type: ignore[arg-type]
