"""What each intervention touched: its share of the tokens, and the share of the predicted entropy change that it removed."""

from collections.abc import Mapping

import numpy as np

from isentrope.report.data import Run, has, nan_mean, values
from isentrope.report.figure import Section, figure, line, lines, missing, table, thinned, thinning_note
from isentrope.report.markup import Markup, element, join
from isentrope.report.sections.cuts import cuts
from isentrope.report.sections.forks import forks
from isentrope.report.words import percent, short

MAX_LINKS = 8
SPREAD = 3.0
"""Shares removed beyond ±SPREAD (where the predicted change nearly cancels) are cut off in the picture."""


def section(run: Run) -> Section:
    id, nav, title = "interventions", "Interventions", "What did the interventions touch?"
    if not run.links:
        return Section(
            id, nav, title, missing(f"No intervention: plain objective ({objective(run)}). The chain is empty, so every token of the loss kept its gradient.")
        )
    charts, parts, rows = {}, [], []
    for at, link in enumerate(run.links[:MAX_LINKS]):
        found, body = _link(run, link, at)
        charts |= found
        parts.append(body)
    for link in run.links:
        touched, removed = values(run.steps, f"touch/{link}"), values(run.steps, f"removed/{link}")
        rows.append([element("code", link), percent(nan_mean(touched)), _signed(_median(removed)), _active(touched), _parameters(run, link)])
    head = ["intervention", "touched, mean", "removed, median", "updates that it touched", "parameters"]
    more = missing(f"{len(run.links) - MAX_LINKS} more interventions stand in the table only.") if len(run.links) > MAX_LINKS else None
    lead = element(
        "p", "Touched: share of the trained tokens that the intervention changed, or of the responses that it paid otherwise, replaced, cut, doubled, dropped. "
        "Removed: what the predicted entropy change, −Σ w r A (S − N), loses by it, as a share of the change without it; below zero it added. What acts "
        "before the loss, on rewards, advantages and rows, is part of that change already and shows as 0.", class_="lead",
    )  # fmt: skip
    return Section(id, nav, title, join([lead, table(head, rows, numeric=(1, 2, 3)), *parts, more]), charts)


def objective(run: Run) -> str:
    """The objective's name as papers write it: as recorded, else the trainer's loss type."""
    found, effective = run.record.get("objective"), run.record.get("effective")
    name = found.get("name") if isinstance(found, Mapping) else found
    if not name and isinstance(effective, Mapping):
        name = effective.get("loss_type")
    if not name:
        return "an objective that is not recorded"
    return {"dr_grpo": "Dr. GRPO", "reinforce": "REINFORCE"}.get(str(name), str(name).upper())


def _link(run: Run, link: str, at: int) -> tuple[dict, Markup]:
    charts, parts = {}, []
    x = values(run.steps, "step")
    cutting, forking = has(run.steps, f"cut/{link}/share"), has(run.steps, f"fork/{link}/share")
    title, of = ("Responses that are branches", "responses") if cutting else ("Tokens touched", "trained tokens")
    title, of = ("Episodes that are copies", "episodes") if forking else (title, of)
    if has(run.steps, f"touch/{link}"):
        step, touched = thinned(x, values(run.steps, f"touch/{link}"))
        charts[f"touch-{at}"] = lines(
            [line("touched", step, touched, "learn", width=2, label="touched", marks=len(step) < 3)], x="update", y=f"{of} touched, %", unit="percent"
        )
        parts.append(figure(f"touch-{at}", title, f"Share of the {of} of each update.", thinning_note(x)))
    else:
        parts.append(missing("Touched: not on the tape yet."))
    if cutting or forking:  # it acts on what is sampled, so there is no predicted change that it would remove
        drawn, where = (cuts if cutting else forks)(run, link, at)
        charts |= drawn
        parts.append(where)
    elif has(run.steps, f"removed/{link}"):
        removed = values(run.steps, f"removed/{link}")
        kept = np.isfinite(removed)
        step, share = x[kept], np.clip(removed[kept], -SPREAD, SPREAD)
        window = max(1, min(9, len(step) // 4) | 1)
        smooth = np.array([np.median(share[max(0, row - window // 2) : row + window // 2 + 1]) for row in range(len(share))])
        step, share, smooth = thinned(step, share, smooth)
        series = [
            line("one update", step, share, "entropy", width=1, faint=True),
            line(f"median of {window}", step, smooth, "entropy", width=2.5, label="removed", marks=len(step) < 3),
        ]
        charts[f"removed-{at}"] = lines(series, x="update", y="predicted change removed, %", unit="percent", zero=False, rule=0.0)
        cut = f"{int((np.abs(removed[kept]) > SPREAD).sum())} updates beyond ±{SPREAD:.0%} cut off." if (np.abs(removed[kept]) > SPREAD).any() else None
        provenance = f"S − N: {run.provenance('tokens.S')}; all trained tokens of the update"
        parts.append(figure(f"removed-{at}", "Predicted entropy change removed", cut, provenance=provenance))
    else:
        parts.append(missing("Removed: not on the tape yet (it is taken with the token rows)."))
    return charts, element("div", element("h3", element("code", link), class_="link-name"), element("div", join(parts), class_="pair"), class_="link")


def _median(value: np.ndarray) -> float | None:
    kept = value[np.isfinite(value)]
    return float(np.median(kept)) if kept.size else None


def _signed(value: float | None) -> str:
    return percent(value) if value is None or value <= 0 else f"+{percent(value)}"


def _active(touched: np.ndarray) -> str:
    kept = touched[np.isfinite(touched)]
    return f"{int((kept > 0).sum())} of {kept.size}" if kept.size else "—"


def _parameters(run: Run, link: str) -> str:
    control = run.record.get("control")
    for item in control if isinstance(control, list) else []:
        if isinstance(item, Mapping) and item.get("name") == link:
            return ", ".join(f"{key} {short(value) if isinstance(value, float) else value}" for key, value in item.items() if key != "name")
    return ""
