"""Recorded cases of the top-entropy mask of TRL 1.16 (sheet `forking-tokens`)."""

import torch

from isentrope.control.papers.forking_tokens import top_entropy
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "forking-tokens"


@answers(SLUG, "trl-high-entropy-mask*")
def high_entropy_mask(case: Case) -> Outputs:
    mask = case.mask()
    levels = case.param("threshold_quantiles")
    produced = {f"mask_{i}": top_entropy(case["entropy"], mask, level) for i, level in enumerate(levels)}
    if "entropy_with_zeros" in case.inputs:
        produced["mask_zeros"] = top_entropy(case["entropy_with_zeros"], mask, case.param("zeros_quantile", 0.5))
        produced["mask_empty"] = top_entropy(case["entropy"], torch.zeros_like(mask), levels[0])
    return produced
