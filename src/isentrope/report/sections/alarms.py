"""What rang during the run: when each alarm began and ended, its number, its cause and what to set."""

from dataclasses import dataclass

import numpy as np

from isentrope.report.data import Run, has, texts, values
from isentrope.report.figure import Section, figure, line, lines, missing, pairs, thinned, thinning_note
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.words import NONE, whole

ID, NAV, TITLE = "alarms", "Alarms", "Did an alarm ring?"
PREFIX, ACTION = "alarm/", "alarm-action"
MEANING = {
    "collapse": "entropy is being spent",
    "explosion": "entropy grows beyond its opening",
    "few-tokens": "a handful of tokens holds nearly all of the push on entropy",
    "equal-groups": "nearly all groups have equal rewards",
    "narrowing": "entropy and pass@k fall together",
    "touches-nothing": "a link of the chain changes no token",
    "touches-everything": "a link of the chain, or the objective's clip, changes nearly every token",
}
MAX_EPISODES = 40
MAX_TEXT = 600


@dataclass(frozen=True)
class Episode:
    """From the update at which an alarm rang to the one at which it was over (None: not until the end of the tape)."""

    name: str
    about: str
    first: int
    last: int | None
    message: str


def section(run: Run) -> Section:
    found = episodes(run)
    if not found:
        return Section(ID, NAV, TITLE, missing(_none(run)))
    charts, parts = {}, []
    if has(run.steps, "entropy/mean"):
        charts["alarms-line"] = _chart(run, found)
        note = "Bands: from the update at which an alarm rang to the one at which it was over. Line: mean entropy of the training responses."
        step = values(run.steps, "step")
        provenance = run.provenance("steps.entropy/mean")
        parts.append(figure("alarms-line", "Alarms over the run", note, thinning_note(step), provenance=provenance))
    return Section(ID, NAV, TITLE, join([*parts, _episodes(found), _actions(run)]), charts, lead=_lead(found))


def episodes(run: Run) -> list[Episode]:
    """The alarms on the tape by their beginning; an end closes the latest open episode of its kind."""
    kinds, levels, messages = (texts(run.events, name) for name in ("kind", "level", "message"))
    found: list[Episode] = []
    for kind, level, message, step in zip(kinds, levels, messages, values(run.events, "step").tolist(), strict=True):
        if not kind.startswith(PREFIX):
            continue
        name, _, about = kind.removeprefix(PREFIX).partition("/")
        if level != "info":
            found.append(Episode(name, about, int(step), None, message))
            continue
        for at in reversed(range(len(found))):
            one = found[at]
            if (one.name, one.about, one.last) == (name, about, None):
                found[at] = Episode(name, about, one.first, int(step), one.message)
                break
    return found


def _none(run: Run) -> str:
    if "alarms:\n  enabled: false" in run.config:
        return "The alarms were switched off (alarms.enabled)."
    if "\nalarms:\n" not in f"\n{run.config}":
        return "This run was not watched: its configuration says nothing of alarms."
    watched = "; ".join(MEANING.values())
    updates = f"{whole(run.last_step)} updates were" if run.last_step != 1 else "one update was"
    return f"No alarm rang; {updates} watched for: {watched}." if run.last_step else "No alarm yet: no update has finished."


def _lead(found: list[Episode]) -> str:
    names = dict.fromkeys(one.name for one in found)
    still = [one for one in found if one.last is None]
    said = "; ".join(f"{MEANING.get(name, visible(name, 60))}, from update {min(one.first for one in found if one.name == name)}" for name in names)
    text = said[:1].upper() + said[1:] + "."
    return text if len(still) == len(found) else f"{text} {len(found) - len(still)} of {len(found)} were over before the end."


def _chart(run: Run, found: list[Episode]) -> dict:
    step, entropy = thinned(values(run.steps, "step"), values(run.steps, "entropy/mean"))
    top = float(np.nanmax(entropy))
    chart = lines([line("mean entropy", step, entropy, "entropy", width=3, label="entropy")], x="update", y="token entropy, nats", unit="nats", top=1.3 * top)
    spans = [{"first": one.first, "last": one.last or run.last_step, "name": visible(one.name, 40)} for one in found[:MAX_EPISODES]]
    return chart | {"spans": spans}


def _episodes(found: list[Episode]) -> Markup:
    """One by one: what, when, and its three parts."""
    shown = []
    for one in found[:MAX_EPISODES]:
        number, cause, knob = parts(one.message)
        when = f"update {one.first}" + (f" to {one.last}" if one.last is not None else ", not over")
        about = join([" ", element("code", visible(one.about, 60))]) if one.about else None
        rows = [("what", MEANING.get(one.name, NONE)), ("number", visible(number, MAX_TEXT))]
        rows += [("cause", visible(cause, MAX_TEXT)), ("knob", element("code", visible(knob, MAX_TEXT)))] if cause else []
        shown.append(element("div", element("h3", visible(one.name, 40), about, f", {when}"), pairs(rows), class_="episode"))
    if len(found) > MAX_EPISODES:
        shown.append(element("p", f"{len(found) - MAX_EPISODES} later alarms are on the tape only.", class_="note"))
    return join(shown)


def parts(message: str) -> tuple[str, str, str]:
    """Number, cause and knob of an alarm's sentence; what cannot be told apart stays in the first.

    >>> parts("collapse: 0.1 nats. Cause: a, b. Knob: c=1.")
    ('0.1 nats', 'a, b', 'c=1')
    """
    head, found, knob = message.rpartition(". Knob: ")
    if not found:
        return message, "", ""
    number, found, cause = head.partition(". Cause: ")
    return (number.partition(": ")[2] or number, cause, knob.removesuffix(".")) if found else (message, "", "")


def _actions(run: Run) -> Markup | None:
    said = [message for kind, message in zip(texts(run.events, "kind"), texts(run.events, "message"), strict=True) if kind == ACTION]
    return element("ul", join(element("li", visible(one, MAX_TEXT)) for one in said), class_="note") if said else None
