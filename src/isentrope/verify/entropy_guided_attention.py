"""Recorded cases of the authors' entropy regularisation (sheet `entropy-guided-attention`): the released reduction, and ln(a + 1e-9)."""

import torch

from isentrope.measure.attention_ceilings import head_entropy_penalty, matrix_entropy
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "entropy-guided-attention"
EPSILON = 1e-9


@answers(SLUG, "loss-*")
def loss(case: Case) -> Outputs:
    attention, threshold = case.leaf("attention"), case.leaf("threshold")
    entropy = matrix_entropy(attention, epsilon=EPSILON)
    context = case.params.get("context_size") or attention.shape[-1]
    margin = case.param("tolerance_margin_factor")
    value = case.param("loss_coeff") * head_entropy_penalty(entropy, threshold, context=context, tolerance=margin, released=True)
    produced = {"loss": value, "head_entropy": entropy.mean((1, 3))}
    slopes = dict(zip(("grad_attention", "grad_threshold"), gradient(value, attention, threshold), strict=True))
    return {name: found.detach() for name, found in (produced | slopes).items() if name in case.outputs and isinstance(found, torch.Tensor)}
