"""Recorded cases of Light-IF's released Entropy-SFT loss (sheet `light-if`)."""

import torch

from isentrope.control.recipes.entropy_sft import entropy_sft_loss
from isentrope.measure.tokens import Entropy, LogProb, token_signals_from_logits
from isentrope.verify.cases import Case, Outputs, answers, gradient


@answers("light-if", "entropy-sft*")
def entropy_sft(case: Case) -> Outputs:
    """`loss_accum` divides by floor(q x tokens of the accumulated batch), as released."""
    logits, labels = case.leaf("logits"), case["labels"][:, 1:]
    mask = labels != -100
    found = token_signals_from_logits(logits[:, :-1], torch.where(mask, labels, 0), [LogProb(), Entropy()])
    keep, coef = case.param("token_ratio"), case.param("entropy_coef")
    loss, kept = entropy_sft_loss(found["log_prob"], found["entropy"], mask, keep, coef)
    produced = {"loss": loss, "grad_logits": gradient(loss, logits)[0], "selected": kept}
    if "loss_accum" in case.outputs:
        divisor = int(keep * case.param("num_items_in_batch"))
        produced["loss_accum"] = entropy_sft_loss(found["log_prob"], found["entropy"], mask, keep, coef, divisor=divisor)[0]
    return produced
