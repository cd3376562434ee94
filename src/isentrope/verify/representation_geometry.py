"""Recorded cases of RankMe, alpha-ReQ and LiDAR: the reptrix library and the paper's scripts (sheet `representation-geometry`)."""

import torch
from torch import Tensor

from isentrope.measure.spectrum import PowerLaw, covariance_eigenvalues, fit_power_law, lidar, rankme
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "representation-geometry"


def _window(case: Case, name: str, default: str) -> tuple[int, int]:
    """Ranks from "0-based A..B"."""
    low, _, high = str(case.param(name, default)).removeprefix("0-based ").partition("..")
    return int(low) + 1, int(high) + 1


def _r_squared(values: Tensor, law: PowerLaw, last: int) -> Tensor:
    """Of the fit, unweighted, from one rank after the first fitted one (a quirk of the released code)."""
    ranks = torch.arange(law.first + 1, last + 1, dtype=torch.float64)
    seen = values[law.first : last].log()
    return 1 - (seen - law.at(ranks)).square().sum() / (seen - seen.mean()).square().sum()


@answers(SLUG, "rankme-alpha")
def rankme_alpha(case: Case) -> Outputs:
    x = case["X"].double()
    values = covariance_eigenvalues(x)
    shares = values / values.sum()
    law = fit_power_law(shares, first=_window(case, "window_default", "0-based 10..99")[0], last=_window(case, "window_default", "0-based 10..99")[1])
    first, last = _window(case, "window_lm", "0-based 11..99")
    ranks = torch.arange(1, len(shares) + 1, dtype=torch.float64)
    return {
        "rankme": rankme(x, released=True), "rankme_few_samples": rankme(x[:40], released=True), "rankme_top20": rankme(x, keep=20, released=True),
        "alpha": law.exponent, "fit": law.at(ranks).exp(), "alpha_lm": fit_power_law(shares, first=first, last=last).exponent,
        "r2": _r_squared(shares, law, 500 if len(shares) >= 512 else len(shares) - 10), "r2_100": _r_squared(shares, law, 100),
    }  # fmt: skip


@answers(SLUG, "lidar")
def lidar_(case: Case) -> Outputs:
    return {"lidar": lidar(case["A"].double().flatten(2), delta=case.param("delta"), released=True)}


@answers(SLUG, "degenerate")
def degenerate(case: Case) -> Outputs:
    return {name: rankme(case[f"X_{name}"].double(), released=True) for name in ("rank_one", "onehot")}
