"""The parts that sections are made of: a section, a figure with its caption, a table, and the specification of a line chart.

A chart's specification is plain data. The page's script draws it with Plotly; nothing in it is ever read as HTML.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isentrope.report.markup import Markup, element, join

MAX_POINTS = 700
"""Points of one line; longer series are averaged in equal bins of updates, and the caption says so."""


@dataclass(frozen=True)
class Section:
    """A part of the page. `nav` is its name in the bar at the top; `charts` maps a figure's id to its specification."""

    id: str
    nav: str
    title: str
    body: Markup
    charts: dict[str, Any] = field(default_factory=dict)
    lead: str | Markup = ""

    def html(self) -> Markup:
        heading = element("h2", self.title)
        lead = element("p", self.lead, class_="lead") if self.lead else None
        return element("section", join([heading, lead, self.body]), id=self.id)


def figure(id: str, title: str, *notes: str | Markup | None, provenance: str | None = None, tall: bool = False, controls: Markup | None = None) -> Markup:
    """A picture with its title above and, below it, how to read it and what its numbers are."""
    plot = element("div", class_="plot tall" if tall else "plot", id=id, data_chart=id, role="img", aria_label=title)
    captions = [element("p", note) for note in notes if note]
    if provenance:
        captions.append(element("p", element("span", "what it is", class_="tag"), " ", provenance, class_="provenance"))
    return element("figure", element("div", element("h3", title), controls, class_="figure-head"), plot, element("figcaption", join(captions)))


def missing(sentence: str) -> Markup:
    """What stands where a picture would, with the reason why there is none."""
    return element("p", sentence, class_="missing")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, numeric: Iterable[int] = (), class_: str = "") -> Markup:
    """A table in a frame that scrolls sideways on a narrow screen. `numeric`: columns set flush right."""
    numeric = frozenset(numeric)
    line = lambda name, cells: element("tr", join(element(name, cell, class_="num" if at in numeric else None) for at, cell in enumerate(cells)))  # noqa: E731
    body = element("tbody", join(line("td", row) for row in rows))
    # A region that scrolls must be reachable by keyboard.
    return element(
        "div",
        element("table", element("thead", line("th", head)), body, class_=class_ or None),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="table",
    )


def pairs(rows: Iterable[tuple[Any, Any]]) -> Markup:
    """A two-column table of names and values."""
    body = join(element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows)
    return element("div", element("table", element("tbody", body), class_="pairs"), class_="scroll", tabindex="0", role="region", aria_label="table")


def switch(name: str, options: Sequence[tuple[str, str]], label: str) -> Markup:
    """A row of buttons of which one is on (the first, at the start). `options`: value and text."""
    buttons = join(
        element("button", text, type="button", data_value=value, aria_pressed="true" if at == 0 else "false") for at, (value, text) in enumerate(options)
    )
    return element("div", element("span", label, class_="switch-label"), buttons, class_="switch", data_switch=name, role="group", aria_label=label)


def line(
    name: str, x: np.ndarray, y: np.ndarray, colour: str, *, low: np.ndarray | None = None, high: np.ndarray | None = None,
    band: str = "", width: float = 2, dash: str = "solid", label: str | None = None, marks: bool = False, faint: bool = False, points: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One line, with a band where `low` and `high` are given (`band` names it). `label`: what stands at the line's end.

    `colour` is a role of the palette. faint: drawn pale, as raw data behind a smoothed line. points: marks alone, for a cloud.
    """
    spec: dict[str, Any] = {
        "name": name,
        "x": _list(x),
        "y": _list(y),
        "colour": colour,
        "width": width,
        "dash": dash,
        "label": label,
        "marks": marks,
        "faint": faint,
        "points": points,
    }
    if low is not None and high is not None:
        spec |= {"low": _list(low), "high": _list(high), "band": band}
    return spec


def lines(
    series: Sequence[dict[str, Any]], *, x: str, y: str, unit: str, zero: bool = True, top: float | None = None, rule: float | None = None
) -> dict[str, Any]:
    """A line chart. x, y: titles of the axes with their units. unit: how values read ("percent", "nats", "number").

    zero: the y axis starts at 0. top: where it ends at least. rule: a level that is drawn across.
    """
    return {"kind": "lines", "series": list(series), "x": x, "y": y, "unit": unit, "zero": zero, "top": top, "rule": rule}


def thinned(x: np.ndarray, *series: np.ndarray) -> tuple[np.ndarray, ...]:
    """x and series averaged over equal bins where they are longer than MAX_POINTS; as they are where not."""
    if len(x) <= MAX_POINTS:
        return (x, *series)
    cuts = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(cuts, len(x)))
    return (np.round(np.add.reduceat(x, cuts) / counts), *(_binned(values, cuts) for values in series))


def _binned(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    valid = np.isfinite(values)
    counts = np.add.reduceat(valid.astype(float), cuts)
    sums = np.add.reduceat(np.where(valid, values, 0.0), cuts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def thinning_note(x: np.ndarray) -> str | None:
    return f"{len(x):,} updates, averaged in {MAX_POINTS} bins." if len(x) > MAX_POINTS else None


def _list(values: np.ndarray) -> list[float]:
    return [float(value) for value in values]
