"""Where episodes of a game were doubled: how uncertain the actions before were, and what of a group's tokens was sampled once for several episodes."""

from typing import Any

from isentrope.report.data import NOT_RECORDED, Run, nan_mean, values
from isentrope.report.figure import figure, line, lines, missing, thinned, thinning_note
from isentrope.report.markup import Markup
from isentrope.report.words import percent

NEVER = "No episode was doubled: all began at their prompts."


def forks(run: Run, link: str, at: int) -> tuple[dict[str, Any], Markup]:
    """The picture of link number `at`, which forks, and its place on the page."""
    x, share = values(run.steps, "step"), values(run.steps, f"fork/{link}/share")
    if not (share > 0).any():
        return {}, missing(NEVER)
    step, before, usual = thinned(x, *(values(run.steps, f"fork/{link}/{name}") for name in ("entropy", "usual_entropy")))
    few = len(step) < 3
    series = [
        line("before a fork", step, before, "entropy", width=3, label="before a fork", marks=few),
        line("before any reply", step, usual, "entropy-2", width=1.5, dash="dot", label="before any reply", marks=few),
    ]
    provenance = run.provenance(f"steps.fork/{link}/entropy")
    body = figure(
        f"forks-{at}", "Entropy of the actions after which episodes were doubled", _told(run, link), thinning_note(x),
        provenance="" if provenance == NOT_RECORDED else f"{provenance}; dotted: of all actions after which one could have been",
    )  # fmt: skip
    return {f"forks-{at}": lines(series, x="update", y="entropy of an action, nats", unit="nats")}, body


def _told(run: Run, link: str) -> str:
    def mean(name: str) -> float | None:
        return nan_mean(values(run.steps, f"fork/{link}/{name}"))

    def count(name: str) -> str:
        value = mean(name)
        return "an unknown number of" if value is None else f"{value:,.0f}"

    roots = mean("roots")
    begun = "" if roots is None else f"; {roots:.1f} of a group begin at the prompt before any is doubled"
    return (
        f"{percent(mean('share'))} of the episodes are copies{begun}. A copy takes over {percent(mean('kept'))} of its row. A generation samples "
        f"{count('sampled_tokens')} tokens, {count('kept_tokens')} stand in a copy too, and {count('pilot_tokens')} are of pilots that are thrown away."
    )
