"""Recorded cases of Clip-Cov and KL-Cov: the authors' repository and verl (sheet `clip-cov`)."""

from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.papers.clip_cov import ClipCov, KLCov, covariance
from isentrope.control.stages import chain, policy_loss, survey
from isentrope.control.step import RowRng, Stats
from isentrope.control.surrogates import masked_mean
from isentrope.verify.cases import Case, Outputs, answers, gradient, step_of

SLUG = "clip-cov"


def _run(case: Case, link: ClipCov | KLCov, objective: Objective) -> tuple[dict[str, Tensor], Stats]:
    """Loss and gradient of a chain of this one link, and what its survey found."""
    log_probs, control = case.leaf("logp"), chain(link)
    step = step_of(case, log_probs)
    stats = survey(step, objective, control, control.init(), RowRng())
    found = stats.links[0]
    if found is None:
        raise LookupError(f"{link.name} surveyed nothing")
    loss = policy_loss(step, objective, control, stats).loss
    return {"loss": loss, "grad_logp": gradient(loss, log_probs)[0]}, found


def _clip_cov(case: Case, ratio: float, low: float, high: float) -> Outputs:
    objective = Objective(epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), aggregation=case.param("agg", "token-mean"))
    produced, stats = _run(case, ClipCov(ratio=ratio, low=low, high=high), objective)
    mask, chosen = case.mask(), stats.tokens["chosen"]
    share = masked_mean(chosen.to(case["logp"].dtype), mask)
    return produced | {"clipfrac": share, "selected": chosen, "cov": covariance(case["logp"], case["adv"], mask)}


def _kl_cov(case: Case, ratio: float) -> Outputs:
    objective = Objective(epsilon_low=None, epsilon_high=None, aggregation=case.param("agg", "token-mean"))
    produced, stats = _run(case, KLCov(ratio=ratio, beta=case.param("ppo_kl_coef")), objective)
    distance = masked_mean((case["logp"] - case["old_logp"]).abs(), case.mask())
    return produced | {"selected": stats.tokens["chosen"], "mean_abs_logratio": distance}


@answers(SLUG, "verl-clip-cov*")
def verl_clip_cov(case: Case) -> Outputs:
    return _clip_cov(case, case.param("clip_cov_ratio"), case.param("cov_lb"), case.param("cov_ub"))


@answers(SLUG, "prime-clip-cov*")
def prime_clip_cov(case: Case) -> Outputs:
    return _clip_cov(case, case.param("clip_ratio"), case.param("lb"), case.param("ub"))


@answers(SLUG, "verl-kl-cov*")
def verl_kl_cov(case: Case) -> Outputs:
    return _kl_cov(case, case.param("kl_cov_ratio_fraction"))


@answers(SLUG, "prime-kl-cov*")
def prime_kl_cov(case: Case) -> Outputs:
    """The authors' repository writes the share in percent."""
    return _kl_cov(case, case.param("k_percent") / 100)
