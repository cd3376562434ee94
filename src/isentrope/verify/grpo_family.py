"""Recorded cases of the baselines: TRL 1.16 and verl (sheet `grpo-family`)."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from isentrope.control import advantages
from isentrope.control.coefficients import AdaptiveEntropyCoef, AdaptiveKL
from isentrope.control.objectives import Objective, aggregate
from isentrope.control.papers.forking_tokens import ForkingTokens, top_entropy
from isentrope.control.stages import Chain, chain, policy_loss
from isentrope.control.step import Normaliser
from isentrope.control.surrogates import (
    Bounds,
    changed_share,
    clip_fractions,
    clipped_loss,
    importance_ratio,
    kl_estimate,
    masked_mean,
    off_policy_mask,
    reinforce_loss,
    value_loss,
    vespo_weight,
)  # fmt: skip
from isentrope.measure.tokens import Entropy, LogProb, MeanLogit, Rank, SumSquares, token_signals, token_signals_from_logits
from isentrope.verify.cases import Case, Compared, Outputs, answers, gradient, step_of

SLUG = "grpo-family"
ROW_EPSILON = 1e-8  # verl's constant in a row's divisor


def loss_and_gradient(case: Case, objective: Objective) -> dict[str, Tensor]:
    """`loss` and `grad_logp` of the empty chain under an objective."""
    log_probs = case.leaf("logp")
    loss = policy_loss(step_of(case, log_probs), objective).loss
    return {"loss": loss, "grad_logp": gradient(loss, log_probs)[0]}


def ratio_of(case: Case, objective: Objective) -> Tensor:
    return objective.ratio(case["logp"], case["old_logp"], case.mask())


# --- verl: losses


@answers(SLUG, "verl-ppo-dualclip*")
def ppo_dual_clip(case: Case) -> Outputs:
    objective = Objective(
        epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), dual_clip=case.param("dual_clip_c"),
        log_ratio_clamp=20.0, empty_rows="exclude",
    )  # fmt: skip
    produced: dict[str, Tensor] = {}
    for mode in ("token-mean", "seq-mean-token-mean"):
        for key, value in loss_and_gradient(case, replace(objective, aggregation=mode)).items():
            produced[f"{key}_{mode.replace('-', '_')}"] = value
    ratio = ratio_of(case, objective)
    share, lower = clip_fractions(ratio, case["adv"], case.mask(), objective.bounds())
    return produced | {"clipfrac": share, "clipfrac_lower": lower, "kl": masked_mean(-torch.log(ratio), case.mask())}


@answers(SLUG, "verl-cispo*")
def cispo(case: Case) -> Outputs:
    objective = Objective(form="cispo", epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), log_ratio_clamp=20.0)
    share = changed_share(ratio_of(case, objective), case.mask(), objective.bounds())
    return loss_and_gradient(case, objective) | {"clipfrac": share}


@answers(SLUG, "verl-gspo*")
def gspo(case: Case) -> Outputs:
    return loss_and_gradient(case, Objective(
        level="sequence-token", epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"),
        aggregation="seq-mean-token-mean", empty_rows="exclude",
    ))  # fmt: skip


@answers(SLUG, "verl-gmpo*")
def gmpo(case: Case) -> Outputs:
    return loss_and_gradient(case, Objective(
        form="gmpo", epsilon_low=case.param("eps_low"), epsilon_high=case.param("eps_high"), aggregation="seq-mean-token-mean",
    ))  # fmt: skip


@answers(SLUG, "verl-sapo*")
def sapo(case: Case) -> Outputs:
    return loss_and_gradient(case, Objective(
        form="sapo", epsilon_low=None, epsilon_high=None, tau_positive=case.param("tau_pos"), tau_negative=case.param("tau_neg"),
        log_ratio_clamp=20.0, aggregation="seq-mean-token-mean", empty_rows="exclude",
    ))  # fmt: skip


@answers(SLUG, "verl-gpg-loss*")
def gpg(case: Case) -> Outputs:
    return loss_and_gradient(case, Objective.named("gpg"))


@answers(SLUG, "verl-value-loss*")
def value(case: Case) -> Outputs:
    leaf = case.leaf("v")
    loss, share = value_loss(leaf, case["v_old"], case["ret"], case.mask(), case.param("clip"))
    return {"loss": loss, "clipfrac": share, "grad_v": gradient(loss, leaf)[0]}


# --- verl: aggregation, KL, rewards


@answers(SLUG, "verl-agg*")
def aggregation(case: Case) -> Outputs:
    mask, horizon = case.mask(), case.param("loss_scale_factor_C")
    ranks = case.param("dp_size_global", 1)
    tokens, rows = case.param("batch_num_tokens_global") / ranks, case.param("global_batch_size_global") / ranks
    forms = {
        "token_mean": {"mode": "token-mean"},
        "token_sum": {"mode": "token-sum"},
        "seq_mean_token_sum": {"mode": "seq-mean-token-sum"},
        "seq_mean_token_sum_norm": {"mode": "seq-mean-token-sum-norm"},
        "seq_mean_token_mean": {"mode": "seq-mean-token-mean"},
        "seq_mean_token_sum_norm_C": {"mode": "seq-mean-token-sum-norm", "horizon": horizon},
        "jan2026_seq_mean_token_sum_norm": {"mode": "token-sum-norm"},
        "token_mean_global": {"mode": "token-mean", "token_divisor": tokens},
        "seq_mean_token_mean_global": {"mode": "seq-mean-token-mean", "row_divisor": rows},
    }
    produced: dict[str, Tensor] = {}
    for name, form in forms.items():
        token_loss = case.leaf("loss")
        loss = aggregate(token_loss, mask, empty_rows="exclude", epsilon=ROW_EPSILON, **form)
        produced[name], produced[f"grad_{name}"] = loss, gradient(loss, token_loss)[0]
    return produced


@answers(SLUG, "verl-kl-estimators*")
def kl_estimators(case: Case) -> Outputs:
    produced: dict[str, Tensor] = {}
    for name in ("k1", "abs", "k2", "k3", "k1plus", "absplus", "k3plus"):
        log_probs = case.leaf("logp")
        estimate = kl_estimate(
            log_probs, case["ref_logp"], name.replace("plus", "+"), log_ratio_clamp=case.param("clamp_log_ratio"),
            value_clamp=case.param("clamp_value"),
        )  # fmt: skip
        produced[name], produced[f"grad_{name}"] = estimate, gradient(estimate.sum(), log_probs)[0]
    return produced


@answers(SLUG, "verl-kl-in-reward*")
def kl_in_reward(case: Case) -> Outputs:
    return {"reward": advantages.reward_with_kl(case["reward"], case["logp"], case["ref_logp"], case.param("coef"))}


@answers(SLUG, "verl-adaptive-kl*")
def adaptive_kl(case: Case) -> Outputs:
    controller = AdaptiveKL(case.param("init"), case.param("target"), case.param("horizon"))
    state, coefs = controller.init(), []
    for kl, samples in zip(case["kl"].tolist(), case["n_steps"].tolist(), strict=True):
        state = controller.update(state, kl, samples)
        coefs.append(state["coef"])
    return {"coef": torch.tensor(coefs, dtype=torch.float64)}


@answers(SLUG, "verl-overlong*")
def overlong(case: Case) -> Outputs:
    limit, buffer = case.param("L_max"), case.param("L_buffer")
    shaped = advantages.overlong_reward(case["reward"], case["length"], limit=limit, buffer=buffer, factor=case.param("factor"))
    return {"reward": shaped}


# --- verl: advantages


@answers(SLUG, "verl-advantages*")
def outcome_advantages(case: Case) -> Outputs:
    mask, group, reward = case.mask(), case["group"], case["token_rewards"].sum(-1)
    epsilon = case.param("epsilon_grpo_passk", case.param("epsilon_other", 1e-6))
    per_response = {
        "grpo": advantages.group_advantages(reward, group, epsilon=epsilon),
        "grpo_nostd": advantages.group_advantages(reward, group, scale=False),
        "rloo": advantages.rloo_advantages(reward, group, single="raw"),
        "rloo_vectorized": advantages.rloo_advantages(reward, group, single="zero"),
        "opo": advantages.opo_advantages(reward, mask.sum(-1), group),
        "gpg": advantages.gpg_advantages(reward, group, f_norm=case.param("f_norm", 1.0)),
        "passk": advantages.pass_at_k_advantages(reward, group, epsilon=epsilon),
    }
    produced = {name: advantages.spread(advantage, mask) for name, advantage in per_response.items()}
    return produced | {"rfpp_baseline": advantages.baseline_advantages(reward, group, mask)}


@answers(SLUG, "verl-reinforce-pp*")
def reinforce_pp(case: Case) -> Outputs:
    mask, produced = case.mask(), {}
    releases: tuple[tuple[str, Literal["carry", "reset"]], ...] = (("", "carry"), ("jan2026_", "reset"))
    for gamma in case.param("gamma"):
        for release, holes in releases:
            returns = advantages.discounted_returns(case["token_rewards"], mask, gamma=gamma, holes=holes)
            whitened = advantages.whiten(returns, mask)
            for key in {f"g{round(100 * gamma)}", f"g{int(100 * gamma)}"}:  # "g<100*gamma>", rounded or cut
                # the January release leaves returns at masked positions that nothing reads
                produced[f"{release}ret_{key}"] = Compared(returns, mask) if release else returns
                produced[f"{release}adv_{key}"] = whitened
    return produced


@answers(SLUG, "verl-gae*")
def gae(case: Case) -> Outputs:
    mask = case.mask()
    advantage, returns = advantages.gae(case["token_rewards"], case["values"], mask, gamma=case.param("gamma"), lam=case.param("lam"))
    return {"adv": Compared(advantages.whiten(advantage, mask), mask), "returns": Compared(returns, mask)}


# --- verl and TRL: token signals


@answers(SLUG, "verl-entropy", "verl-entropy-chunked")
def entropy(case: Case) -> Outputs:
    """The tiled form on an identity head, so that the logits are those of the file."""
    logits = case["logits"].clone().requires_grad_(True)
    head, target = torch.eye(logits.shape[-1], dtype=logits.dtype), torch.zeros(logits.shape[:-1], dtype=torch.long)
    found = token_signals(logits, head, target, [Entropy(grad=True), SumSquares()], precise=True)
    produced = {"entropy": found["entropy"], "sum_p2": found["sum_p2"]}
    if "w" in case.inputs:
        produced["grad_logits"] = gradient((case["w"] * found["entropy"]).sum(), logits)[0]
    return produced


@answers(SLUG, "trl-logits*")
def logits(case: Case) -> Outputs:
    leaf, rows, temperature = case.leaf("logits"), case.mask("row_mask"), case.param("temperature")
    signals = [LogProb(grad=True), Entropy(grad=True)]
    plain = token_signals_from_logits(leaf, case["index"], signals)
    warm = token_signals_from_logits(leaf, case["index"], signals, temperature=temperature)
    log_probs, entropies = (torch.where(rows, warm[key], 0.0) for key in ("log_prob", "entropy"))
    top = case["index_topk"]
    several = token_signals_from_logits(leaf.unsqueeze(-2).expand(*top.shape, leaf.shape[-1]), top, [LogProb()])
    return {
        "logp": plain["log_prob"],
        "entropy": plain["entropy"],
        "logp_topk": several["log_prob"],
        "logp_tau": log_probs,
        "entropy_tau": entropies,
        "grad_logits_logp": torch.autograd.grad((case["w"] * plain["log_prob"]).sum(), leaf, retain_graph=True)[0],
        "grad_logits_entropy": torch.autograd.grad((case["w"] * plain["entropy"]).sum(), leaf)[0],
        "grad_logits_tau": torch.autograd.grad((case["w"] * log_probs + case["w2"] * entropies).sum(), leaf)[0],
    }


@answers(SLUG, "trl-fused-head*")
def fused_head(case: Case) -> Outputs:
    temperature, softcap, scale = (case.param(name) for name in ("temperature", "softcap", "logit_scale"))
    variants = {"plain": {}, "softcap": {"softcap": softcap}, "scale_bias": {"logit_scale": scale, "bias": case.leaf("bias")}}
    produced: dict[str, Tensor] = {}
    for name, options in variants.items():
        hidden, weight, bias = case.leaf("hidden"), case.leaf("weight"), options.get("bias")
        signals = [LogProb(grad=True), Entropy(grad=True), SumSquares(), MeanLogit(), Rank()]
        found = token_signals(hidden, weight, case["labels"], signals, temperature=temperature, precise=True, **options)
        produced |= {
            f"log_probs_{name}": found["log_prob"],
            f"entropy_{name}": found["entropy"],
            f"log_sum_sq_probs_{name}": found["sum_p2"].log(),
            f"mean_logits_{name}": found["mean_logit"],
            f"is_top1_{name}": found["rank"] == 0,
        }
        leaves = [hidden, weight] if bias is None else [hidden, weight, bias]
        slopes = gradient((case["w"] * found["log_prob"] + case["w2"] * found["entropy"]).sum(), *leaves)
        produced |= {f"grad_{leaf}_{name}": slope for leaf, slope in zip(("hidden", "weight", "bias"), slopes, strict=False)}
    return produced


# --- TRL


@answers(SLUG, "trl-advantages*")
def trl_advantages(case: Case) -> Outputs:
    parts, weights, size, epsilon = case["rewards_per_func"], case["weights"], case.param("G"), case.param("eps", 1e-4)
    reward = advantages.total_reward(parts, weights)
    produced = {
        f"sum_{scale}": advantages.trl_advantages(reward, size, scale=scale, epsilon=epsilon) for scale in ("group", "batch", "none")
    }
    return produced | {
        "norm_group": advantages.decoupled_advantages(parts, weights, size, epsilon=epsilon),
        "rloo": advantages.leave_one_out_advantages(reward, size),
        "rloo_normalized": advantages.leave_one_out_advantages(reward, size, whiten=True, epsilon=epsilon),
    }


@answers(SLUG, "trl-adaptive-entropy-coef*")
def adaptive_entropy_coef(case: Case) -> Outputs:
    controller = AdaptiveEntropyCoef(
        target=case.param("target"), delta=case.param("delta"), low=case.param("coef_min", 0.0), high=case.param("coef_max", 1.0),
        initial=case.param("coef_init", 0.0), initial_entropy=float(case.param("initial_last_entropy", "inf")),
    )  # fmt: skip
    state, applied, after = controller.init(), [], []
    for entropy, mask in zip(case["entropy"], case.mask(), strict=True):
        applied.append(controller.applied(state))
        state = controller.update(state, float(masked_mean(entropy, mask)))
        after.append(state["coef"])
    return {"applied": torch.tensor(applied, dtype=torch.float64), "coef_after": torch.tensor(after, dtype=torch.float64)}


@answers(SLUG, "trl-rloo-loss*")
def rloo_loss(case: Case) -> Outputs:
    """The file holds the sum of the old log-probs; it is spread evenly over the row, which leaves that sum."""
    log_probs, mask = case.leaf("logp"), case.mask()
    old = torch.where(mask, (case["old_logp_sum"] / mask.sum(-1).clamp(min=1)).unsqueeze(-1), 0.0)
    ratio = importance_ratio(log_probs, old, mask, level="sequence-sum")
    loss = clipped_loss(ratio, case["adv"].unsqueeze(-1), Bounds(1 - case.param("eps_low"), 1 + case.param("eps_high"))).mean()
    return {"loss": loss, "grad_logp": gradient(loss, log_probs)[0]}


@answers(SLUG, "trl-losses*")
def trl_losses(case: Case) -> Outputs:
    ppo = {"epsilon": case.param("eps_low"), "epsilon_high": case.param("eps_high")}
    beta = case.param("beta")
    objectives = {
        **{name: Objective.trl(name, **ppo) for name in ("grpo", "bnpo", "dr_grpo", "dapo")},
        "dapo_delta": Objective.trl("dapo", delta=case.param("delta"), **ppo),
        "cispo": Objective.trl("cispo", epsilon_high=case.param("cispo_cap")),
        "sapo": Objective.trl("sapo", sapo_temperature_pos=case.param("sapo_tau_pos"), sapo_temperature_neg=case.param("sapo_tau_neg")),
        "gspo": Objective.trl("grpo", importance_sampling_level="sequence", **ppo),
        "luspo": replace(Objective.trl("grpo", importance_sampling_level="sequence", **ppo), aggregation="luspo"),
        "grpo_k3": Objective.trl("grpo", beta=beta, use_bias_correction_kl=False, **ppo),
        "grpo_k3_bias_corrected": Objective.trl("grpo", beta=beta, use_bias_correction_kl=True, **ppo),
    }
    produced: dict[str, Tensor] = {}
    for name, objective in objectives.items():
        log_probs = case.leaf("logp")
        loss = policy_loss(step_of(case, log_probs, normaliser=_trl_normaliser(case), reference=True), objective).loss
        produced[f"loss_{name}"], produced[f"grad_logp_{name}"] = loss, gradient(loss, log_probs)[0]
    for name, loss_of in (("vespo", _vespo), ("dapo_off_policy_mask", _off_policy)):
        log_probs = case.leaf("logp")
        loss = loss_of(case, log_probs)
        produced[f"loss_{name}"], produced[f"grad_logp_{name}"] = loss, gradient(loss, log_probs)[0]
    return produced | _trl_entropy_losses(case)


def _trl_normaliser(case: Case) -> Normaliser:
    accumulation, ranks = case.param("accumulation", 1), case.param("processes", 1)
    return Normaliser(
        token_divisor=torch.tensor(max(float(case.param("num_items_in_batch")), 1.0), dtype=torch.float64) / ranks,
        accumulation=accumulation, world_size=ranks, horizon=case.param("max_completion_length"),
    )  # fmt: skip


def _token_mean(case: Case, token_loss: Tensor) -> Tensor:
    return Objective.trl("dapo").aggregate(token_loss, case.mask(), _trl_normaliser(case))


def _dapo_token_loss(case: Case, log_probs: Tensor) -> Tensor:
    objective = Objective.trl("dapo", epsilon=case.param("eps_low"), epsilon_high=case.param("eps_high"))
    ratio = objective.ratio(log_probs, case["old_logp"], case.mask())
    return objective.surrogate(ratio, case["adv_seq"].unsqueeze(1), log_probs, objective.bounds(), case.mask())


def _vespo(case: Case, log_probs: Tensor) -> Tensor:
    scales, advantage = case.param("vespo"), case["adv_seq"].unsqueeze(1)
    weight = vespo_weight(
        advantage, log_probs, case["old_logp"], case.mask(), k=(float(scales["k_pos"]), float(scales["k_neg"])),
        lam=(float(scales["lambda_pos"]), float(scales["lambda_neg"])),
    )  # fmt: skip
    return _token_mean(case, weight * reinforce_loss(log_probs, advantage))


def _off_policy(case: Case, log_probs: Tensor) -> Tensor:
    kept = off_policy_mask(case["adv_seq"].unsqueeze(1), log_probs, case["old_logp"], case.mask(), case.param("off_policy_threshold"))
    return _token_mean(case, torch.where(kept, _dapo_token_loss(case, log_probs), 0.0))


def _trl_entropy_losses(case: Case) -> dict[str, Tensor]:
    """The losses that know the token entropy: top-entropy mask (a KL term is not masked), entropy bonus, both."""
    ppo = {"epsilon": case.param("eps_low"), "epsilon_high": case.param("eps_high")}
    share, coef, mask = case.param("top_entropy_fraction"), case.param("entropy_coef"), case.mask()
    masked = chain(ForkingTokens(share=share, variant="code"))
    kept = top_entropy(case["entropy"], mask, 1 - share)
    with_kl = Objective.trl("dapo", beta=case.param("beta"), use_bias_correction_kl=False, **ppo)
    produced: dict[str, Tensor] = {}
    for name, objective, control, bonus in (
        ("top_entropy", with_kl, masked, None),
        ("entropy_bonus", Objective.trl("dapo", **ppo), Chain(), mask),
        ("top_entropy_bonus", Objective.trl("dapo", **ppo), masked, kept),
    ):
        log_probs, entropy = case.leaf("logp"), case.leaf("entropy")
        step = step_of(case, log_probs, normaliser=_trl_normaliser(case), reference=True)
        loss = policy_loss(replace(step, signals={"current.entropy": entropy}), objective, control).loss
        if bonus is not None:
            loss = loss - coef * masked_mean(entropy, bonus) / case.param("accumulation", 1)
        slopes = gradient(loss, log_probs, entropy)
        produced |= {f"loss_dapo_{name}": loss, f"grad_logp_dapo_{name}": slopes[0], f"grad_entropy_dapo_{name}": slopes[1]}
    return produced
