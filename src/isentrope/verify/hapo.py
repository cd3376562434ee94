"""Recorded cases of HAPO's released code (sheet `hapo`). What the release does with the sign of h is `variant="code"`."""

from dataclasses import replace

import torch

from isentrope.control.advantages import spread
from isentrope.control.objectives import Objective
from isentrope.control.papers.hapo import Hapo, adaptive_temperature, clip_widths, entropy_signal, group_advantage, redistribution
from isentrope.control.stages import chain, policy_loss
from isentrope.control.surrogates import Bounds, clip_fractions
from isentrope.verify.cases import Case, Compared, Outputs, answers, gradient, step_of

SLUG = "hapo"


@answers(SLUG, "adaptive-clip-and-advantage*")
def clip_and_advantage(case: Case) -> Outputs:
    low, high = clip_widths(case["h"], case.param("eps_low"), case.param("eps_high"), case.param("clip_alpha"))
    factor = redistribution(case["h"], case["ratio"], low, high, case.param("adv_beta"))
    return {"width_low": low, "width_high": high, "adv_out": case["adv"] * factor}


@answers(SLUG, "adaptive-temperature*")
def temperature(case: Case) -> Outputs:
    logits, base, tau = case["logits"], case["T0"], case.param("tau")
    state = {"pivot": case.param("pivot_value"), "sigma": case.param("sigma"), "scale_pos": case.param("scale_pos")}
    scale = abs(case.param("scale_neg"))
    link = Hapo(tau=tau)
    first = [link.temperature(row.unsqueeze(0), float(warmth), link.init()) for row, warmth in zip(logits, base, strict=True)]
    return {
        "temp": adaptive_temperature(logits, base, tau, **state, scale_neg=scale),
        "temp_as_released": adaptive_temperature(logits, base, tau, **state, scale_neg=-scale),
        "temp_first_step": torch.cat(first),
    }


@answers(SLUG, "entropy-signal-as-released*")
def signal(case: Case) -> Outputs:
    found = entropy_signal(case["entropy"], case.mask(), case.param("pivot"), released=True)
    return {"h": found.h, "pivot_value": found.pivot, "sigma": found.sigma, "scale_pos": found.scale_pos, "scale_neg": found.scale_neg}


@answers(SLUG, "group-advantage*")
def advantage(case: Case) -> Outputs:
    """Compared on valid positions: the release leaves (0 - mean) / (std + epsilon) at the others."""
    mask, reward = case.mask(), case["token_rewards"].sum(-1)
    produced = {}
    for name, scale in (("adv", True), ("adv_nostd", False)):
        found = group_advantage(reward, mask.sum(-1), case["group"], scale=scale, epsilon=case.param("epsilon"))
        produced[name] = Compared(spread(found, mask), mask)
    return produced


@answers(SLUG, "loss-as-released*")
def loss(case: Case) -> Outputs:
    low, high, cap = case.param("eps_low"), case.param("eps_high"), case.param("dual_clip_c")
    alpha = case.param("clip_alpha") if case.param("adaptive_clip") else 0.0
    beta = case.param("adv_beta") if case.param("adaptive_advantage") else 0.0
    objective = Objective(epsilon_low=low, epsilon_high=high, dual_clip=cap, aggregation=case.param("agg", "token-mean"))
    link = Hapo(pivot=case.param("pivot"), tau=0.0, alpha=alpha, beta=beta, token_average=False, variant="code")
    log_probs, mask = case.leaf("logp"), case.mask()
    step = replace(step_of(case, log_probs), signals={"current.entropy": case["entropy"]})
    value = policy_loss(step, objective, chain(link)).loss
    h = entropy_signal(case["entropy"], mask, case.param("pivot"), released=True).h
    wide = clip_widths(h, low, high, alpha)
    ratio = objective.ratio(case["logp"], case["old_logp"], mask)
    advantage = case["adv"] * redistribution(h, ratio, *wide, beta)
    share, _ = clip_fractions(ratio, advantage, mask, Bounds(1 - wide[0], 1 + wide[1]))
    return {"loss": value, "grad_logp": gradient(value, log_probs)[0], "clipfrac": share}
