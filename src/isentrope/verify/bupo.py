"""Recorded entropies of internal policies, of the released plotting code on a tiny random model, and the released loss on one (sheet `bupo`)."""

from dataclasses import replace
from functools import partial

import torch

from isentrope.control.papers.bupo import Bupo
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Rollouts, Step
from isentrope.measure.tokens import LogProb, token_signals
from isentrope.probe.lens import internal_entropy
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "bupo"


@answers(SLUG, "module-entropy*")
def module_entropy(case: Case) -> Outputs:
    eps = case.param("rms_eps", 1e-6)
    gains = [tuple(partial(_rms_norm, eps=eps, gain=gain) for gain in case[name]) for name in ("gain_attn_norm", "gain_ffn_norm")]
    found = internal_entropy(case["residual"], case["attn_out"], case["ffn_out"], gains[0], gains[1], case["unembed"])
    parts = {"attention": found.attention, "ffn": found.feed_forward, "layer": found.layer}
    return {f"{part}_{end}": value for part, of in parts.items() for end, value in (("in", of.before), ("out", of.after), ("change", of.change))}


@answers(SLUG, "ipa-loss*")
def ipa_loss(case: Case) -> Outputs:
    """The model's own log-probs play no part; 0 stands for them."""
    hidden, unembed, mask = case.leaf("hidden"), case.leaf("unembed"), case.mask()
    found = token_signals(hidden, unembed, case["token_ids"].long(), [LogProb()], temperature=case.param("temperature"), precise=True)["log_prob"]
    link, eps = Bupo(updates=1), case.param("eps")
    current, old = (need.key for need in link.needs)
    objective = replace(link.recipe(), epsilon_low=eps, epsilon_high=eps, dual_clip=case.param("dual_clip_c"), aggregation=case.param("agg"))
    none = torch.zeros_like(case["old_logp"])
    rollouts = Rollouts.of(mask, advantage=case["adv"], old_log_probs=none, signals={old: case["old_logp"]})
    loss = policy_loss(Step(rollouts, none, {current: found}), objective, chain(link)).loss
    slopes = gradient(loss, hidden, unembed)
    return {"logp": found, "loss": loss, "grad_hidden": slopes[0], "grad_unembed": slopes[1]}


def _rms_norm(state: torch.Tensor, *, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Qwen2's norm as it was recorded: the root mean square in float32, whatever the dtype around it."""
    wide = state.float()
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(state.dtype)
