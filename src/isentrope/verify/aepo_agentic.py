"""Recorded cases of the update of AEPO, agentic (sheet `aepo-agentic`)."""

from dataclasses import replace

from isentrope.control.objectives import Objective
from isentrope.control.papers.aepo_agentic import AepoAgentic, standardised_entropy
from isentrope.control.stages import chain, policy_loss
from isentrope.control.surrogates import clip_fractions
from isentrope.verify.cases import Case, Outputs, answers, gradient, step_of

SLUG = "aepo-agentic"


@answers(SLUG, "advantage-only*", "clip-only*", "both*", "constant-entropy*")
def balanced_loss(case: Case) -> Outputs:
    link = AepoAgentic(case.param("alpha_H") if case.param("balanced_advantage") else 0.0, case.param("balanced_clip"))
    objective = Objective(
        epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), dual_clip=case.param("dual_clip_c"),
        aggregation=case.param("agg", "token-mean"),
    )  # fmt: skip
    log_probs, mask = case.leaf("logp"), case.mask()
    step = replace(step_of(case, log_probs), signals={"current.entropy": case["entropy"]})
    loss = policy_loss(step, objective, chain(link)).loss
    advantage = case["adv"] * (1 + link.alpha * standardised_entropy(case["entropy"], mask))
    ratio = objective.ratio(case["logp"], case["old_logp"], mask)
    share, lower = clip_fractions(ratio, advantage, mask, objective.bounds())
    return {"loss": loss, "grad_logp": gradient(loss, log_probs)[0], "clipfrac": share, "clipfrac_lower": lower}
