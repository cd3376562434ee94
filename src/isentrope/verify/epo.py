"""Recorded cases of EPO's released loss (sheet `epo`): a plain entropy bonus, and a penalty without gradient."""

from dataclasses import replace

import torch

from isentrope.control.objectives import Objective
from isentrope.control.papers.epo import released_penalty, released_phase
from isentrope.control.stages import policy_loss
from isentrope.verify.cases import Case, Outputs, answers, gradient, step_of

SLUG = "epo"


@answers(SLUG, "released-loss*")
def released_loss(case: Case) -> Outputs:
    """Every row is one turn, whose reference is the history's mean at its number."""
    log_probs, entropy, mask = case.leaf("logp"), case.leaf("entropy"), case.mask()
    reference = case["history_epochs_by_step"].mean(0)[case["rollout_step"].long()][:, None]
    penalty = released_penalty(entropy, reference, case.param("kappa_l"), case.param("kappa_r"), case.param("alpha"), case.param("mask_mode"))
    weight = released_phase(case.param("epoch"), case.param("max_epochs"))
    eps = case.param("eps")
    objective = replace(Objective.named("dapo"), aggregation=case.param("agg"), epsilon_low=eps, epsilon_high=eps, dual_clip=case.param("dual_clip_c"))
    step = step_of(case, log_probs)
    term = -case.param("entropy_coeff") * (entropy - case.param("smooth_coeff") * weight * penalty)
    loss = policy_loss(step, objective).loss + objective.aggregate(torch.where(mask, term, 0.0), mask, step.normaliser)
    slopes = gradient(loss, entropy, log_probs)
    return {
        "penalty": penalty,
        "phase_weight": weight,
        "loss": loss,
        "grad_entropy": slopes[0],
        "grad_logp": slopes[1],
        "inside_share": (penalty == 0).double().mean(),
    }


@answers(SLUG, "released-phase-weight*")
def phase_weight(case: Case) -> Outputs:
    return {"weight": torch.tensor([released_phase(int(epoch), case.param("max_epochs")) for epoch in case["epoch"]], dtype=torch.float64)}
