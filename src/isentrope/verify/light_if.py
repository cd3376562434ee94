"""Recorded cases of Light-IF's released entropy term (TEA) and length reward (sheet `light-if`)."""

import torch

from isentrope.control.papers.light_if import Tea, cosine_length_reward
from isentrope.control.step import Rollouts, RowRng, Step
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "light-if"


@answers(SLUG, "tea-weights*")
def tea_weights(case: Case) -> Outputs:
    """The file is one micro-batch; the gradient through the weights is the released one."""
    log_probs, entropy, mask = case.leaf("logp"), case.leaf("entropy"), case.mask()
    link = Tea(case.param("cov_alpha"), case.param("clip_cov_ub"), variant="code")
    step = Step(Rollouts.of(mask, advantage=case["adv"]), log_probs, {"current.entropy": entropy})
    stats = link.survey(step.detached(), {}, RowRng())
    weight = link.weights(step, stats.scalars)
    taken = link.regularise(step, stats, {}).token
    assert taken is not None
    term = -link.recipe().aggregate(torch.where(mask, taken, 0.0), mask, step.normaliser)
    slopes = gradient(term, log_probs, entropy)
    return {"entropy_term": term, "mean_weight": weight[mask].mean(), "grad_logp": slopes[0], "grad_entropy": slopes[1]}


@answers(SLUG, "length-reward*")
def length_reward(case: Case) -> Outputs:
    return {"reward": cosine_length_reward(case["score"].double(), case["length"], case.param("max_length", 8192))}
