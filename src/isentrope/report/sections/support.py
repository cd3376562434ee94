"""The run's end against its start, prompt by prompt: what it can and could answer, and where in its answers entropy went."""

from typing import Any

import numpy as np
import polars as pl

from isentrope.report.data import Run
from isentrope.report.figure import Section, figure, line, lines, missing, table
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.words import NONE, finite, percent, short, whole
from isentrope.train.shift import Context, Ends, Majority, Turned, ends, majorities, profile, support_figures, turned

MAX_PROMPTS, MAX_TEXT = 12, 160
ID, NAV, TITLE = "support", "Support", "What did it gain, what did it lose?"
RATES = (
    ("srr", "kept, of what the base solved", "SRR"),
    ("ndr", "new, of what it solves now", "NDR"),
    ("nscr", "net change, of what either solves", "NSCR"),
)


def section(run: Run) -> Section:
    found = ends(run.answers)
    if found is None:
        said = (
            "No comparison with the base model: it needs the held-out prompts one by one (the tape's table answers), before the first update and later, "
            "and this run has not recorded both."
        )
        return Section(ID, NAV, TITLE, missing(said))
    figures = {name.removeprefix("support."): value for name, value in support_figures(run.answers).items()}
    contexts = profile(run.answers)
    chart, picture = _by_tenth(run, found, contexts)
    body = join([element("div", join([_support(figures), picture]), class_="pair"), _majorities(run, found), _contexts(found, contexts), _prompts(run, found)])
    return Section(ID, NAV, TITLE, body, {} if chart is None else {"entropy-tenths": chart}, lead=_lead(found, figures))


def _lead(found: Ends, figures: dict[str, Any]) -> str:
    base = figures["preserved"] + figures["shrunk"]
    return (
        f"Before training the model solved {whole(base)} of {whole(figures['prompts'])} held-out prompts (at least one right answer in {_tries(found)}). At "
        f"update {found.steps[1]} it solves {whole(figures['preserved'])} of these still, {whole(figures['expanded'])} that it did not solve before, "
        f"and has lost {whole(figures['shrunk'])}; {whole(figures['out'])} were solved neither before nor now."
    )


def _tries(found: Ends) -> str:
    return "one try" if found.samples == 1 else f"{whole(found.samples)} tries"


def _support(figures: dict[str, Any]) -> Markup:
    rows = [[what, element("code", name), percent(finite(figures[key])), _bounds(figures, key)] for key, what, name in RATES]
    return element(
        "div", element("h3", "Support: prompts solved, base against now"), table(["share of prompts", "", "value", "95 % interval"], rows, numeric=(2, 3)),
        element("div", *(element("p", said) for said in _cannot(figures)), class_="note"),
    )  # fmt: skip


def _bounds(figures: dict[str, Any], key: str) -> str:
    low, high = finite(figures[f"{key}.low"]), finite(figures[f"{key}.high"])
    return NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"


def _cannot(figures: dict[str, Any]) -> list[str]:
    """What the figures do not show at this number of samples and prompts."""
    samples, mass = figures["samples"], figures["detectable_mass"]
    few = "fewer than 0.01" if figures["by_chance"] < 0.01 else short(figures["by_chance"], 2)
    tries = "one try" if samples == 1 else f"{whole(samples)} tries"
    said = [
        f"What this cannot say: a prompt whose chance of a right answer is {percent(mass)} goes unsolved in {tries} "
        "one time in twenty, a rarer one more often. Lost may mean rarer, and new may have been there all along; "
        "the published comparisons draw thousands of answers.",
        f"If nothing had changed, and each prompt's answers fell to start and end by chance, {few} of these prompts would be lost on average, "
        "and as many gained.",
    ]
    base = figures["preserved"] + figures["shrunk"]
    if base and figures["shrunk"] == 0:
        bound = 1 - 0.05 ** (1 / base)
        said.append(f"None was lost among {whole(base)}: the interval has no width, yet up to {percent(bound)} of such prompts could be (95 %).")
    said.append("Intervals: bootstrap over the prompts. One run, one seed, this task's prompts.")
    return said


# --- majorities


def _majorities(run: Run, found: Ends) -> Markup | None:
    """Open where the run was paid for agreement: there a wrong majority is the danger."""
    rows = majorities(run.answers)
    if not rows:
        return None
    said = [
        [
            row.first, whole(row.prompts), percent(row.start), percent(row.end),
            NONE if row.low is None else f"{percent(row.end - row.start)} ({percent(row.low)} to {percent(row.high)})",
            whole(row.right), whole(row.wrong),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["first majority", "prompts", "right answers, start", "right answers, now", "change (95 %)", "majority right now", "wrong now"]
    paid = "A reward of agreement pays a wrong majority as it pays a right one. " if run.unlabelled else ""
    note = f"{paid}Majority: the most frequent of {found.samples} answers to a held-out prompt. Intervals: bootstrap over the prompts."
    body = join(
        [
            *(element("p", sentence) for sentence in _what_became(rows, found.samples, paid=run.unlabelled)),
            table(head, said, numeric=(1, 2, 3, 4, 5, 6)),
            _lost_majorities(turned(run.answers), found.samples, 4 if run.lean else 8),
            element("p", note, class_="note"),
        ]
    )
    return element("details", element("summary", "What became of the first majority"), body, open=run.unlabelled)


def _what_became(rows: list[Majority], samples: int, *, paid: bool) -> list[str]:
    """Wrong majorities of the start and right ones, each with what they are now; where agreement was paid, whether it hardened into error."""
    right, wrong = (next((row for row in rows if row.first == name), None) for name in ("right", "wrong"))
    said = "No prompt had a wrong majority at the start."
    if wrong is not None:
        said = (
            f"The most frequent of {samples} answers was wrong for {whole(wrong.prompts)} prompts at the start; at the end it is right for "
            f"{whole(wrong.right)} of them and wrong for {whole(wrong.wrong)}."
        )
    if right is not None:
        said += f" It was right for {whole(right.prompts)}, and at the end it is wrong for {whole(right.wrong)} of these."
    if not paid:
        return [said]
    before, now = (0 if wrong is None else wrong.prompts), sum(row.wrong for row in rows)
    word = "agreement hardened into error" if now > before else "agreement mended errors" if now < before else "agreement left as many errors"
    return [said, f"Wrong majorities in all: {whole(before)} at the start, {whole(now)} now. For these prompts {word}."]


def _lost_majorities(rows: list[Turned], samples: int, limit: int) -> Markup | None:
    """What the model agreed on where its right majority was lost."""
    if not rows:
        return None

    shown = []
    for row in rows[:limit]:
        then, now = (element("code", visible(answer, MAX_TEXT)) for answer in (row.then, row.now))
        shown.append([element("code", visible(row.prompt, MAX_TEXT)), then, whole(row.counts[0]), now, whole(row.counts[1])])
    more = f", {limit} of {len(rows)}" if len(rows) > limit else ""
    head = ["prompt", "right majority, start", f"of {samples}", "wrong majority, now", f"of {samples}"]
    return join([element("h3", f"Right majorities that were lost{more}"), table(head, shown, numeric=(2, 4))])


# --- entropy by context


def _by_tenth(run: Run, found: Ends, contexts: list[Context]) -> tuple[dict | None, Markup]:
    places = [context for context in contexts if context.kind == "tenth"]
    if not places:
        return None, missing("Entropy by context: no entropies beside the held-out answers on the tape.")
    x, nan = np.array([float(context.name) for context in places]), float("nan")
    start, end = (np.array([nan if value is None else value for value in column]) for column in zip(*((c.start, c.end) for c in places), strict=True))
    names = (f"update {found.steps[0]}", f"update {found.steps[1]}")
    series = [
        line(names[0], x, start, "entropy-1", label="start", width=2.5, marks=True),
        line(names[1], x, end, "entropy-3", label="end", width=2.5, marks=True),
    ]
    chart = lines(series, x="tenth of the response", y="token entropy, nats", unit="nats")
    notes = (
        "Mean token entropy in each tenth of the held-out responses (by relative position), first against last evaluation.",
        "The responses at the end are others than at the start: a fall says that what the model now writes there is more certain, not that the same text is.",
    )
    return chart, figure("entropy-tenths", "Entropy by place in the response", *notes, provenance=run.provenance("answers.entropy"))


def _contexts(found: Ends, contexts: list[Context]) -> Markup | None:
    if not contexts:
        return None
    names = {"prompts": "prompts: ", "responses": "responses judged ", "tenth": "tenth "}
    rows = [
        [
            names[context.kind] + visible(context.name, MAX_TEXT),
            whole(context.prompts),
            *(whole(count) for count in context.tokens),
            short(context.start),
            short(context.end),
            NONE if context.low is None else f"{short(context.change)} ({short(context.low)} to {short(context.high)})",
        ]
        for context in contexts
    ]
    note = (
        "A context is a class of prompts, the responses judged right or wrong, or a tenth of the response. Classes of prompts are the task's own "
        "(its column kind) or go by how often the start answered them right; then a part of the change is chance, because the same answers chose the class. "
        "Intervals: bootstrap over prompts. Entropy also falls where the model only learned a fixed form, so a fall is not yet confidence in the answer."
    )
    head = ["context", "prompts", "tokens, start", "tokens, end", "start, nats", "end, nats", "change (95 %)"]
    said = table(head, rows, numeric=(1, 2, 3, 4, 5, 6))
    return element(
        "details", element("summary", f"Entropy by context, update {found.steps[0]} against {found.steps[1]}"), said, element("p", note, class_="note")
    )


# --- the prompts


def _prompts(run: Run, found: Ends) -> Markup | None:
    """The prompts that changed sides, with their right answers before and now."""
    if "prompt" not in found.end.columns:
        return None
    base, tuned = found.correct()
    limit, rows = 4 if run.lean else MAX_PROMPTS, []
    prompts = found.end["prompt"].cast(pl.String, strict=False).to_list()
    for name, inside in (("lost", (base > 0) & (tuned == 0)), ("new", (base == 0) & (tuned > 0))):
        at = np.flatnonzero(inside)
        at = at[np.argsort(-(base + tuned)[at], kind="stable")]
        rows += [[name, element("code", visible(prompts[index] or "", MAX_TEXT)), whole(int(base[index])), whole(int(tuned[index]))] for index in at[:limit]]
        if len(at) > limit:
            rows.append([name, f"and {len(at) - limit} more on the tape", "", ""])
    if not rows:
        return None
    head = ["", "prompt", f"right of {found.samples} at the start", f"right of {found.samples} now"]
    return element("details", element("summary", "The prompts that it lost, and the new ones"), table(head, rows, numeric=(2, 3)))
