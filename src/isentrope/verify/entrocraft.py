"""Recorded cases of Entrocraft's released advantage rule and of its two baselines (sheet `entrocraft`)."""

import torch

from isentrope.control.advantages import group_advantages, spread
from isentrope.control.papers.entrocraft import Entrocraft, integral_weighted, positive_weighted, released_advantage, side_of
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "entrocraft"


@answers(SLUG, "band-advantage*")
def band_advantage(case: Case) -> Outputs:
    mask, score = case.mask(), case["token_rewards"].sum(-1)
    inside = group_advantages(score, case["group"].long())
    (low, low_end), (high, high_end) = case.param("lower"), case.param("upper")
    found = {}
    for schedule in ("linear", "cosine"):
        link = Entrocraft(low, high, low_end, high_end, schedule, variant="code")
        bands = [link.band({"step": step, "total": case.param("total_steps")}) for step in case.param("steps")]
        sides = [side_of(entropy, *band) for entropy in case.param("entropies") for band in bands]
        found[schedule] = torch.stack([spread(released_advantage(score, inside, side), mask) for side in sides])
    return found


@answers(SLUG, "baselines*")
def baselines(case: Case) -> Outputs:
    mask, score = case.mask(), case["token_rewards"].sum(-1)
    gains = {"gain_p": case.param("gain_p"), "gain_i": case.param("gain_i")}
    weighted, integral = integral_weighted(score, case.param("entropy"), case.param("target"), case.param("integral_in", 0.0), **gains)
    return {"w_reinforce": spread(positive_weighted(score, case.param("pos_weight")), mask), "entropic": spread(weighted, mask), "integral_out": integral}
