"""Entropy-SFT: supervised fine-tuning on the tokens whose loss most exceeds their entropy.

    delta_n = CE_n - c H_n                        CE_n = -ln p(y_n), H_n the entropy of the same softmax; both detached
    loss    = sum_{n kept} CE_n / k               kept: the k = max(1, floor(q N)) largest delta of the N target tokens

For y ~ p the mean of CE - H is 0: with c = 1, delta is a centred surprisal. Tokens that are expected already, or uncertain in a way that the
label does not contradict, are left alone; the entropy itself is not in the loss.

| paper / code | here |
|---|---|
| q, `token_ratio` | `keep` |
| c, `entropy_coef` | `entropy_coef` |

Paper and code: the released trainer chooses within each micro-batch and divides by floor(q x tokens of the accumulated batch), without the
floor of one, so that zero divides there (`scope="micro-batch"` takes its choice; the divisor is the number of kept tokens in both). The
default chooses over the update, which is the same where one micro-batch is the update. The defaults 0.8, 0.8 are those of the released
command; the code's own are 0.2, 1.0. The paper's equation numbers could not be confirmed (sheet `light-if`).

A link of the stages survey and weight: `isentrope.train.offline.OfflineTrainer` runs it on TRL's SFT trainer.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_scope, largest
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy

SUPERVISED = Objective(form="reinforce", epsilon_low=None, epsilon_high=None, aggregation="token-mean")
"""Cross-entropy as the objective of a step: -A log p with A = 1, over all target tokens of the update."""


def excess(log_probs: Float[Tensor, "response token"], entropy: Float[Tensor, "response token"], entropy_coef: float) -> Float[Tensor, "response token"]:
    """delta = CE - c H of every token, detached, in nats."""
    return -log_probs.detach() - entropy_coef * entropy.detach()


def kept_count(tokens: int, keep: float) -> int:
    """max(1, floor(q N)) of N > 0 target tokens, 0 of none."""
    return max(1, int(keep * tokens)) if tokens else 0


@dataclass(frozen=True)
class EntropySft(Intervention):
    """Supervised fine-tuning on the share of tokens whose loss most exceeds their entropy."""

    name = "entropy-sft"
    slug = "light-if"
    source = "Light-IF, arXiv 2508.03178 (Entropy-SFT); Qihoo360/Light-IF 01e9003, coldstart/.../train/sft/custom_entropy_trainer.py (Apache-2.0)"
    effect = "Entropy falls less than under plain fine-tuning: tokens that are expected already are not made more so."

    keep: float = 0.8  # share of the target tokens that stay in the loss
    entropy_coef: float = 0.8  # 0: the tokens of largest loss; 1: centred surprisal
    scope: Scope = "update"

    def __post_init__(self):
        check_fraction("EntropySft", "keep", self.keep)
        if self.keep == 0:
            raise ValueError("EntropySft: keep must be above 0. Got 0: nothing would be trained. To train on every token write keep=1.")
        check_at_least("EntropySft", "entropy_coef", self.entropy_coef, 0.0, "For the tokens of largest loss write entropy_coef=0.")
        check_scope("EntropySft", self.scope)

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.keep == 1 else (Need(Entropy()),)

    def neutral(self) -> "EntropySft":
        """Every token stays: plain supervised fine-tuning."""
        return replace(self, keep=1.0)

    def recipe(self) -> Objective:
        """Cross-entropy, as TRL's SFT trainer takes it."""
        return SUPERVISED

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        return Stats(view.rollouts.row_id, tokens={"kept": self.kept(view, rng)})

    def kept(self, view: Step, rng: RowRng) -> Bool[Tensor, "response token"]:
        """The tokens that stay; where a tie decides, it is drawn."""
        if self.keep == 1:
            return view.mask
        delta = excess(view.log_probs, view.signal("current.entropy"), self.entropy_coef)
        return largest(delta, view.mask, kept_count(int(view.mask.sum()), self.keep), view.rollouts.row_id, rng)

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.keep == 1:
            return TokenWeight()
        return TokenWeight(keep=stats.token("kept", step) & step.mask, denominator="kept")


def entropy_sft_loss(
    log_probs: Float[Tensor, "response token"],
    entropy: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    keep: float = 0.8,
    entropy_coef: float = 0.8,
    *,
    divisor: float | None = None,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "response token"]]:
    """The loss of one batch, in nats, and the kept tokens; 0 without a target token. Pure, for a trainer of one's own.

    divisor: what the sum is divided by (None: the number of kept tokens).
    """
    link = EntropySft(keep, entropy_coef)
    row = torch.arange(len(mask), device=mask.device)
    delta = torch.where(mask, excess(log_probs, entropy, link.entropy_coef), 0.0)
    kept = largest(delta, mask, kept_count(int(mask.sum()), link.keep), row, RowRng())
    total = torch.where(kept, -log_probs, torch.zeros_like(log_probs)).sum()
    return total / (kept.sum().clamp(min=1) if divisor is None else divisor), kept
