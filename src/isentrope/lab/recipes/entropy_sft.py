"""Entropy-SFT on a narrow corpus: the embedded model on worked answers of one style without an error, arms of equal kept tokens.

The sheet's question: does the choice by CE - c H keep more entropy than plain fine-tuning, than random tokens, than the opposite choice?
"""

from dataclasses import dataclass

import torch

from isentrope.control.blocks import largest
from isentrope.control.placebo import placebo
from isentrope.control.recipes.entropy_sft import EntropySft, excess, kept_count
from isentrope.lab.recipes.embedded import PERFECT, answers, on_text, task, tune, worked

STEPS = 100
ARMS = {
    "neutral": "every token in the loss (stock SFT)",
    "entropy-sft": "the released command's 80 %, by CE - 0.8 H",
    "placebo": "80 % of the tokens at random",
    "opposite": "80 %, the smallest CE - 0.8 H",
}
FIGURES = {
    "text loss": "cross-entropy of held-out worked answers, nats per token",
    "text entropy": "entropy on them, nats per token",
    "pass@1": "held-out prompts, 64 x 8 samples at temperature 1",
    "pass@8": "the same samples",
    "entropy": "of those samples, exact, token mean, nats",
}


@dataclass(frozen=True)
class Opposite(EntropySft):
    """The tokens whose loss least exceeds their entropy."""

    name = "entropy-sft-opposite"

    def kept(self, view, rng):
        delta = excess(view.log_probs, view.signal("current.entropy"), self.entropy_coef)
        return largest(-delta, view.mask, kept_count(int(view.mask.sum()), self.keep), view.rollouts.row_id, rng)


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model."""
    ours = EntropySft()
    control = {"neutral": ours.neutral(), "entropy-sft": ours, "placebo": placebo(ours), "opposite": Opposite()}[name]
    data = worked(task().train["prompt"][:3200], "think", PERFECT, seed)
    torch.manual_seed(seed)
    loaded, _ = tune(data, [control], seed, steps)
    held_out = worked(task().validation["prompt"][:256], "think", PERFECT, 1000 + seed)
    return {**on_text(loaded, held_out), **answers(loaded)}
