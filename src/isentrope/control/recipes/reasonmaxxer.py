"""ReasonMaxxer: a signed cross-entropy on the uncertain positions of the base model's own answers, and a KL to the base everywhere else.

    A_ij  = (r_ij - mean_i) / max(std_i, 1e-8)                 over the answers j to problem i, population std; clipped to [-2.5, 2.5]
    D_j   = {t : H_t > tau_pos} of a right answer, {t : H_t > tau_neg} of a wrong one        H of the base, temperature 1, nats
    L     = sum_j sum_{t in D_j} A_j CE_t / |D with A != 0|  +  lambda mean_{t not in D} KL(base || current)

At the start the gradient is minus that of REINFORCE at ratio 1 on D, and that of the KL is 0. No ratio, no clip: a wrong answer's tokens are
pushed down without bound, which lambda, the clip of A, `floor` and stopping early must hold.

| paper / code | here |
|---|---|
| tau_pos, tau_neg | `tau_positive`, `tau_negative` (strict inequality) |
| lambda | `kl_coef` |
| beta_neg | `negative_coef`, scales A < 0 |
| adv clip | `advantage_clip` |
| probability floor | `floor`: a wrong answer's token less likely than this is left alone |

Paper and code: only the code's numbers and abstract were at hand, so A (where RL acts) is (inferred), as the sheet says. The release divides by the
decision positions of a micro-batch of one answer, so that every answer weighs the same (`scope="micro-batch"` with batches of one); the default
divides over the update. Its KL also covers prompt positions; ours covers the trained tokens. Not carried: its "delta hinge", and separate
divisors of the two signs. "fullseq" is `neutral()`, "correct_sft" is `negative_coef=0`.

A link of the stages survey, weight and regularise, for `isentrope.train.offline.OfflineTrainer`; A comes as the column `advantage`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_scope
from isentrope.control.objectives import Objective
from isentrope.control.recipes.entropy_sft import SUPERVISED
from isentrope.control.stages import Intervention, Penalty, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy


def signed_advantage(reward: Float[Tensor, " response"], group: Int[Tensor, " response"]) -> Float[Tensor, " response"]:
    """(r - mean) / max(std, 1e-8) over the answers of a group, population std; 0 where all are equal."""
    out = torch.zeros_like(reward)
    for key in group.unique():
        rows = group == key
        own = reward[rows]
        out[rows] = (own - own.mean()) / own.std(correction=0).clamp(min=1e-8)
    return out


def decision_positions(
    entropy: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    tau_positive: float,
    tau_negative: float,
) -> Bool[Tensor, "response token"]:
    """D: positions of the base's entropy above the threshold of their sign (nats, strictly); none where A is 0."""
    threshold = torch.where(advantage > 0, tau_positive, tau_negative)
    return mask & (entropy > threshold) & (advantage != 0)


def clarity(
    advantage: Float[Tensor, " response"], decisions: Bool[Tensor, "response token"], mask: Bool[Tensor, "response token"]
) -> Float[Tensor, " response"]:
    """|A| |D| / length: training takes the answers once in this order, falling."""
    return advantage.abs() * decisions.sum(-1) / mask.sum(-1).clamp(min=1)


def pool(correct: Sequence[bool], group: Sequence[int], length: Sequence[int], *, problems: int = 50, share: float = 0.8) -> list[int]:
    """The answers to train on: of problems with a right and a wrong one those with pass rate nearest 1/2, then the shortest `share` of all.

    Ties go to the lower group, then the lower position. Indices rise.
    """
    rates = {}
    for key in sorted(set(group)):
        own = [right for right, other in zip(correct, group, strict=True) if other == key]
        if 0 < sum(own) < len(own):
            rates[key] = abs(sum(own) / len(own) - 0.5)
    chosen = set(sorted(rates, key=lambda key: (rates[key], key))[:problems])
    rows = [index for index, key in enumerate(group) if key in chosen]
    return sorted(sorted(rows, key=lambda index: (length[index], index))[: int(share * len(rows))])


@dataclass(frozen=True)
class ReasonMaxxer(Intervention):
    """Signed cross-entropy on the base's uncertain positions, a KL to the base on all others."""

    name = "reasonmaxxer"
    slug = "reasonmaxxer"
    source = "Rethinking RL for LLM Reasoning, arXiv 2605.06241; scripts in ansz42/ReasonMaxxer (MIT): train_reasonmaxxer, prepare_training_data"
    effect = "Entropy falls where right and wrong answers part and is held by the KL elsewhere."

    tau_positive: float | None = 0.8  # nats; None: every position
    tau_negative: float | None = 1.4
    kl_coef: float = 0.1
    advantage_clip: float | None = 2.5
    negative_coef: float = 1.0
    floor: float | None = None  # a probability
    scope: Scope = "update"

    def __post_init__(self):
        who = "ReasonMaxxer"
        for name in ("tau_positive", "tau_negative", "advantage_clip", "floor"):
            if self.__dict__[name] is not None:
                check_at_least(who, name, self.__dict__[name], 0.0, "Off is None.")
        check_at_least(who, "kl_coef", self.kl_coef, 0.0, "Off is 0.")
        check_at_least(who, "negative_coef", self.negative_coef, 0.0, "Wrong answers are left out with 0.")
        check_scope(who, self.scope)

    @property
    def anchored(self) -> bool:
        """Whether the host must give the KL to the base."""
        return self.kl_coef > 0

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.tau_positive is None and self.tau_negative is None else (Need(Entropy(), "old"),)

    def neutral(self) -> "ReasonMaxxer":
        """Every token, no KL, A as it comes: with no advantages plain supervised fine-tuning."""
        return replace(self, tau_positive=None, tau_negative=None, kl_coef=0.0, advantage_clip=None, negative_coef=1.0, floor=None)

    def embedded(self) -> "ReasonMaxxer":
        """Thresholds for a model whose tokens have little entropy, without the base, which a policy-gradient host does not hold."""
        return replace(self, tau_positive=0.2, tau_negative=0.4, kl_coef=0.0)

    def recipe(self) -> Objective:
        """-A log p over the trained tokens."""
        return SUPERVISED

    def decisions(self, view: Step, rng: RowRng) -> Bool[Tensor, "response token"]:
        """D of the whole update."""
        advantage = view.advantage.expand(view.mask.shape)
        if not self.needs:
            return view.mask & (advantage != 0)
        low = [-torch.inf if tau is None else tau for tau in (self.tau_positive, self.tau_negative)]
        return decision_positions(view.signal("old.entropy"), advantage, view.mask, *low)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        decisions = self.decisions(view, rng)
        return Stats(view.rollouts.row_id, {"others": (view.mask & ~decisions).sum()}, {"decisions": decisions})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self == self.neutral():
            return TokenWeight()
        advantage, keep = step.advantage.expand(step.mask.shape), stats.token("decisions", step) & step.mask
        limit = torch.inf if self.advantage_clip is None else self.advantage_clip
        safe = torch.where(advantage == 0, 1.0, advantage)
        value = safe.clamp(-limit, limit) / safe * torch.where(advantage < 0, self.negative_coef, 1.0)
        if self.floor is not None:
            value = torch.where((advantage < 0) & (step.log_probs.detach().exp() < self.floor), 0.0, value)
        return TokenWeight(value.detach().to(step.log_probs.dtype), keep, denominator="kept")

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        """lambda x this slice's part of the mean KL outside D."""
        if not self.anchored:
            return Penalty()
        others = step.mask & ~stats.token("decisions", step)
        total = torch.where(others, step.signal("current.base_kl"), 0.0).sum() / stats.scalars["others"].clamp(min=1)
        return Penalty(total=self.kl_coef * total, touched=others)
