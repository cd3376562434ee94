"""Where the responses of a group were cut and sampled again from there: how uncertain the policy was at the cuts, and what the second call sampled."""

from typing import Any

import numpy as np

from isentrope.report.data import NOT_RECORDED, Run, has, nan_mean, values
from isentrope.report.figure import figure, line, lines, missing, thinned, thinning_note
from isentrope.report.markup import Markup
from isentrope.report.words import percent

NEVER = "No response was cut: all were sampled from their prompts."


def cuts(run: Run, link: str, at: int) -> tuple[dict[str, Any], Markup]:
    """The picture of link number `at`, which re-generates, and its place on the page."""
    x, share = values(run.steps, "step"), values(run.steps, f"cut/{link}/share")
    cut = share > 0
    if not cut.any():
        return {}, missing(NEVER)
    told = _told(run, link, x[cut], share[cut])
    if not has(run.steps, f"cut/{link}/entropy"):
        return {}, missing(told)
    step, at_cuts, near, usual = thinned(x[cut], *(values(run.steps, f"cut/{link}/{name}")[cut] for name in ("entropy", "near_entropy", "usual_entropy")))
    few = len(step) < 3
    series = [
        line("at the cuts", step, at_cuts, "entropy", width=3, label="at the cuts", marks=few),
        line("the next four tokens", step, near, "entropy", width=1.5, label="next four", marks=few),
        line("all first responses", step, usual, "entropy-2", width=1.5, dash="dot", label="all tokens", marks=few),
    ]
    chart = lines(series, x="update", y="token entropy, nats", unit="nats")
    provenance = run.provenance(f"steps.cut/{link}/entropy")
    if provenance != NOT_RECORDED:
        provenance += "; thin: mean over four tokens from the cut on; dotted: over all tokens"
    body = figure(f"cuts-{at}", "Entropy where responses were cut", told, thinning_note(x[cut]), provenance=provenance)
    return {f"cuts-{at}": chart}, body


def _told(run: Run, link: str, step: np.ndarray, share: np.ndarray) -> str:
    def mean(name: str) -> float | None:
        found = values(run.steps, f"cut/{link}/{name}")
        return nan_mean(found[np.isin(values(run.steps, "step"), step)])

    def count(name: str) -> str:
        value = mean(name)
        return "an unknown number of" if value is None else f"{value:,.0f}"

    branches = f"{percent(nan_mean(share))} of the responses of updates {int(step[0])} to {int(step[-1])} are branches"
    sampled = f"A generation samples {count('first_tokens')} tokens first, scores them, and {count('second_tokens')} after the cuts"
    kept = f"{count('kept_tokens')} are taken over: in the text that is rewarded, not in the loss"
    return f"{branches}; each keeps {percent(mean('kept'))} of its parent. {sampled}; {kept}."
