"""Recorded cases of STEER's released code (sheet `steer`)."""

from dataclasses import replace

import torch

from isentrope.control.objectives import Objective
from isentrope.control.papers.steer import Steer
from isentrope.control.stages import chain, policy_loss
from isentrope.control.surrogates import masked_mean
from isentrope.verify.cases import Case, Outputs, answers, gradient, step_of

SLUG = "steer"


@answers(SLUG, "exp*", "linear*")
def weighted_loss(case: Case) -> Outputs:
    """The file's one entropy stands for that of the policy that sampled, as in the code. Weights at masked positions are 0 there."""
    high = {"high": case.param("weight_max"), "form": "linear"} if case.params.get("linear") else {}
    link = Steer(low=case.param("weight_min"), floor=case.param("floor"), variant="code", **high)
    objective = Objective(
        epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), dual_clip=case.param("dual_clip_c"),
        aggregation=case.param("agg", "token-mean"),
    )  # fmt: skip
    log_probs, mask = case.leaf("logp"), case.mask()
    step = step_of(case, log_probs)
    step = replace(step, rollouts=replace(step.rollouts, signals={"old.entropy": case["entropy"]}))
    result = policy_loss(step, objective, chain(link))
    seen = result.observed
    shares = {side: masked_mean(clipped.to(log_probs.dtype), mask) for side, clipped in (("high", seen.clipped_high), ("low", seen.clipped_low))}
    return {
        "weight": torch.where(mask, seen.weight, 0.0),
        "loss": result.loss,
        "grad_logp": gradient(result.loss, log_probs)[0],
        "clipfrac_high": shares["high"],
        "clipfrac_low": shares["low"],
    }
