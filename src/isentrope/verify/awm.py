"""Recorded cases of the released AWM training script (sheet `awm`)."""

from isentrope.control.recipes.awm import Awm, Weighting, prompt_advantage
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "awm"
_NAMES: dict[str, Weighting] = {"Uniform": "uniform", "t": "t", "t**2": "t2", "huber": "huber", "ghuber": "ghuber"}


@answers(SLUG, "group-advantage*")
def advantage(case: Case) -> Outputs:
    reward, prompt, epsilon = case["reward"], case["prompt"], case.param("eps")
    return {f"adv_{scale}": prompt_advantage(reward, prompt, scale=scale, epsilon=epsilon) for scale in ("global", "group")}


@answers(SLUG, "loss-*")
def loss(case: Case) -> Outputs:
    link = Awm(
        weighting=_NAMES[case.param("weighting")], power=case.param("ghuber_power"), per_time=case.param("loss_type") == "exp_first",
        kl_weight=case.param("kl_weight").lower(), advantage_clip=case.param("adv_clip_max"), advantage_max=case.param("advantage_max"),
        clip=case.param("clip_range"), kl_coef=case.param("beta"), ema_coef=case.param("ema_beta"),
    )  # fmt: skip
    velocity = case.leaf("v")
    found = link.loss(velocity, case["x0"], case["noise"], case["t"], case["adv"], old=case["v_old"], reference=case["v_ref"], ema=case["v_ema"])
    return {
        "log_likelihood": found.log_likelihood, "ratio": found.ratio, "policy_loss": found.policy, "kl": found.kl, "ema_kl": found.ema_kl,
        "loss": found.loss, "grad_v": gradient(found.loss, velocity)[0],
    }  # fmt: skip
