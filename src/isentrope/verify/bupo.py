"""Recorded entropies of internal policies (sheet `bupo`): the released plotting code on a tiny random model."""

from functools import partial

import torch

from isentrope.probe.lens import internal_entropy
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "bupo"


@answers(SLUG, "module-entropy*")
def module_entropy(case: Case) -> Outputs:
    eps = case.param("rms_eps", 1e-6)
    gains = [tuple(partial(_rms_norm, eps=eps, gain=gain) for gain in case[name]) for name in ("gain_attn_norm", "gain_ffn_norm")]
    found = internal_entropy(case["residual"], case["attn_out"], case["ffn_out"], gains[0], gains[1], case["unembed"])
    parts = {"attention": found.attention, "ffn": found.feed_forward, "layer": found.layer}
    return {f"{part}_{end}": value for part, of in parts.items() for end, value in (("in", of.before), ("out", of.after), ("change", of.change))}


def _rms_norm(state: torch.Tensor, *, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """Qwen2's norm as it was recorded: the root mean square in float32, whatever the dtype around it."""
    wide = state.float()
    return gain * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(state.dtype)
