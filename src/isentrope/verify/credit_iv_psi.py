"""Recorded cases of fastwoe 0.3.0 and 0.1.8 (sheet `credit-iv-psi`). Its smoothing, rounding and shortcuts are here; `measure.scoring` has none of them.

Its sign is ln(event odds in the bin / prior odds): first sample = events. The 0.1.8 error (`iv_se_old_release`) adds (b-g)^2 Var(W) and W^2 Var(b-g) as if
weights and shares were drawn independently, 1.5 times too small. Its Var(W) is the usual 1/n_gj + 1/n_bj, not the multinomial form of the sheet's item 3,
although item 5 reads so: recorded outputs agree with the former to 1e-15 and miss the latter by 1e-3.
"""

import torch
from torch import Tensor

from isentrope.measure.scoring import information_value, pearson_p_value
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "credit-iv-psi"


@answers(SLUG, "woe-iv*")
def woe_iv(case: Case) -> Outputs:
    place, y = case["category"].unique(return_inverse=True)[1], case["y"] != 0
    records = place.bincount()
    events = place[y].bincount(minlength=len(records))
    others = records - events
    n, n_b, n_g = records.double(), events.sum().double(), others.sum().double()  # an integer times a 0-dim float64 would be float32
    prior = n_b / n.sum()
    smooth = (events.double() + 1e-5 * prior) / (n + 1e-5)
    woe, rate = smooth.logit() - prior.logit(), (smooth * 1e6).round() / 1e6
    b, g = rate * n / n_b, (1 - rate) * n / n_g
    inside = (rate > 0) & (rate < 1)
    iv = torch.where(inside, (b - g) * woe, 0.0).sum()
    raw = events.double() / n
    ruled = torch.where(raw == 0, 3 / n, torch.where(raw == 1, 1 - 3 / n, raw))  # rule of three
    of_weight = 1 / (ruled * (1 - ruled) * n)  # 1/n_gj + 1/n_bj where both classes are there
    of_share = b * (1 - b) / n_b + g * (1 - g) / n_g
    shortcut = ((b - g).square() * of_weight + torch.where(inside, woe.square() * of_share, 0.0)).sum().sqrt()
    se = information_value(events, others, smoothing=0).standard_error
    found = {"count": n, "event_rate": rate, "woe": woe, "woe_se": of_weight.sqrt(), "woe_transform": woe, "iv": iv, "iv_old_release": iv}
    return found | {"iv_se": se, "iv_ci": _clipped(iv, se, case), "iv_pvalue": pearson_p_value(events, others), "iv_se_old_release": shortcut}


def _clipped(iv: Tensor, se: Tensor, case: Case) -> Tensor:
    alpha = torch.tensor(case.param("alpha", 0.05), dtype=torch.float64)
    reach = torch.special.ndtri(1 - alpha / 2) * se
    return torch.stack(((iv - reach).clamp(min=0), iv + reach))
