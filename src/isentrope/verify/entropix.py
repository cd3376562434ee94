"""Recorded cases of entropix' sampling helpers, with their faults where the vectors README names one."""

import torch
from torch import Tensor

from isentrope.measure.dirichlet import (
    dirichlet_log_density,
    dirichlet_mean,
    dirichlet_mean_entropy,
    dirichlet_mean_square_surprisal,
    fit_dirichlet,
)
from isentrope.measure.distribution import kl, shannon, varentropy
from isentrope.measure.temperature import entropy_curvature, entropy_slope, released_search
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "entropix"


def _floored(logits: Tensor, floor: float, epsilon: float) -> Tensor:
    """Log-probabilities as released: epsilon added inside the log-sum-exp, what lies below the floor set to ln epsilon, not renormalised."""
    shifted = logits - logits.amax(-1, keepdim=True)
    log_p = shifted - torch.log((shifted + epsilon).exp().sum(-1, keepdim=True))
    return torch.where(log_p < floor, torch.tensor(epsilon, dtype=logits.dtype).log(), log_p)


@answers(SLUG, "entropy-varentropy")
def entropy_varentropy(case: Case) -> Outputs:
    logits = case["logits"]
    floored = _floored(logits, case.param("noise_floor"), case.param("eps"))
    entropy = -(floored.exp() * floored).sum(-1)
    spread = (floored.exp() * (floored + entropy.unsqueeze(-1)).square()).sum(-1)
    return {
        "logp_floored": floored, "entropy_floored": entropy, "varentropy_floored": spread, "entropy": shannon(logits, logits=True),
        "varentropy": varentropy(logits, logits=True), "kl": kl(logits, case["logq"], logits=True),
    }  # fmt: skip


@answers(SLUG, "temperature")
def temperature(case: Case) -> Outputs:
    logits, heat = case["logits"], case["T"]
    return {
        "entropy": shannon(logits / heat.unsqueeze(-1), logits=True), "dH_dT": entropy_slope(logits, heat),
        "released_second_derivative": entropy_curvature(logits, heat, released=True),
        "tuned_T": released_search(
            logits, case["target"], steps=int(case.param("iterations")), tolerance=case.param("tol"), start=case.param("T_init"), rate=case.param("fallback_lr")
        ),
    }  # fmt: skip


@answers(SLUG, "dirichlet")
def dirichlet(case: Case) -> Outputs:
    alpha = case["alpha"]
    return {
        "loglik_released": dirichlet_log_density(case["logp"], alpha, released=True), "expectation": dirichlet_mean(alpha),
        "expected_entropy_released": dirichlet_mean_entropy(alpha, released=True),
        "expected_varentropy_released": dirichlet_mean_square_surprisal(alpha, released=True),
    }  # fmt: skip


@answers(SLUG, "dirichlet-fit")
def dirichlet_fit(case: Case) -> Outputs:
    return {"alpha_fit": fit_dirichlet(case["mean_logp"])}
