"""Recorded cases of AEPO (arbitrary entropy) as released (sheet `aepo-arbitrary`)."""

import torch

from isentrope.control.papers.aepo_arbitrary import dcpo_advantage, log_space_clip_loss, replacements
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "aepo-arbitrary"


@answers(SLUG, "loss*")
def loss(case: Case) -> Outputs:
    log_probs = case.leaf("logp")
    found = log_space_clip_loss(
        log_probs, case["old_logp"], case["adv"], case.mask(), epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"),
        dual_clip=case.param("dual_clip_c"),
    )  # fmt: skip
    return {
        "loss": found.loss,
        "grad_logp": gradient(found.loss, log_probs)[0],
        "entropy_estimate": found.surprise,
        "clipfrac_high": found.clipped,
        "clipfrac_low": found.dual_clipped,
    }


@answers(SLUG, "replacement*")
def replacement(case: Case) -> Outputs:
    rewards = case["extra_rewards"]
    group = torch.arange(rewards.shape[0]).repeat_interleave(rewards.shape[1])
    found = replacements(
        rewards.flatten(), group, entropy=case.param("entropy"), target=case.param("target"), most=case.param("reinforce_sample_num"),
        threshold=case.param("threshold", 0.05),
    )  # fmt: skip
    return {"kept_index": found.kept, "replaced": found.count}


@answers(SLUG, "dcpo-advantage*")
def dcpo(case: Case) -> Outputs:
    found = dcpo_advantage(
        case["adv"], case.mask("correct"), case["old_logp"], case["old_logp_at_T"], entropy=case.param("entropy"),
        target=case.param("target"), cap=case.param("cap", 0.1),
    )  # fmt: skip
    return {"adv": found}
