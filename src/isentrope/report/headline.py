"""The head of the page: what was trained on what, five numbers, a sentence, and what went wrong."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isentrope.report.data import FEW, Run, edges, generated_tokens, has, texts, values
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.sections.learning import metric, pass_counts
from isentrope.report.sections.touch import objective
from isentrope.report.words import NONE, duration, finite, interval, moved, percent, short, whole

MAX_EVENTS = 40
MAX_MESSAGE = 600
ARROW = " → "


@dataclass(frozen=True)
class Tile:
    """One of the numbers that matter: `start` may be missing. `note`: its interval, or what it is."""

    label: str
    end: str
    start: str | None = None
    note: str = ""
    trace: tuple[np.ndarray, np.ndarray] | None = None  # x and y of the small curve
    colour: str = "learn"

    def html(self) -> Markup:
        number = [element("span", self.start, class_="from"), element("span", ARROW, class_="arrow")] if self.start else []
        return element(
            "div", element("div", self.label, class_="tile-label"), element("div", *number, element("span", self.end, class_="to"), class_="tile-number"),
            sparkline(*self.trace, self.colour) if self.trace else None, element("div", self.note, class_="tile-note"), class_="tile",
        )  # fmt: skip


def headline(run: Run) -> Markup:
    """The header element."""
    tiles = element("div", join(tile.html() for tile in tiles_of(run)), class_="tiles")
    return element(
        "header", element("p", join([_what(run), _state(run)]), class_="eyebrow"), element("h1", sentence(run)), _plain(run), tiles, _events(run), id="top",
    )  # fmt: skip


def subject(run: Run) -> str:
    """What was trained on what, in one line: the page's title."""
    chain = "".join(f" + {link}" for link in run.links)
    return f"{name_of(run.record.get('model'), 'unnamed model')} on {name_of(run.record.get('task'), 'unnamed task')}, {objective(run)}{chain}"


def name_of(value: Any, otherwise: str) -> str:
    """The name in a model's or task's record, which is a string or an object with a name."""
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("dataset") or value.get("kind")
    return str(value) if value else otherwise


def sentence(run: Run) -> str:
    """What happened, in one sentence, from the tape alone."""
    pass1, reward, entropy = metric(run, "pass@1"), change(run, "reward/mean"), entropy_change(run)
    parts = []
    if len(pass1) >= 2:
        first, last = float(pass1["value"][0]), float(pass1["value"][-1])
        parts.append(_moved("right answers", "at", first, last, percent))
    elif reward is not None:
        parts.append(_moved("reward", "at", *reward, _two))
    if entropy is not None:
        parts.append(_moved("entropy", "near", *entropy, _two) + " nats")
    if not parts:
        return f"Nothing to tell yet: fewer than {FEW} updates are on the tape."
    text = ", and ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _moved(what: str, near: str, start: float, end: float, said: Callable[[float], str]) -> str:
    way = moved(start, end)
    return f"{what} {way} {near} {said(end)}" if way == "stayed" else f"{what} {way} from {said(start)} to {said(end)}"


def _two(value: float) -> str:
    return short(value, 2)


def change(run: Run, name: str) -> tuple[float, float] | None:
    """Start and end of a column of the step rows (`edges`); None while there are fewer than FEW rows."""
    return edges(values(run.steps, name)) if len(run.steps) >= FEW else None


def entropy_change(run: Run) -> tuple[float, float] | None:
    """Token entropy at the first and the last evaluation, of the same responses as pass@1; of the training responses where there are none."""
    held_out = metric(run, "entropy")
    if len(held_out) >= 2:
        return float(held_out["value"][0]), float(held_out["value"][-1])
    return change(run, "entropy/mean")


def _what(run: Run) -> Markup:
    chain = [join([" + ", element("strong", link)]) for link in run.links] or [" without intervention"]
    return join(
        [
            element("strong", name_of(run.record.get("model"), "unnamed model")),
            " trained on ",
            element("strong", name_of(run.record.get("task"), "unnamed task")),
            _example(run.record.get("task")),
            " with ",
            element("strong", objective(run)),
            *chain,
        ]
    )


def _example(task: Any) -> str | None:
    """The first prompt of a task, where it is recorded and short enough to stand in a line."""
    prompt = task.get("first_prompt") if isinstance(task, Mapping) else None
    return f" ({visible(prompt)})" if isinstance(prompt, str) and 0 < len(prompt.strip()) <= 40 and "\n" not in prompt else None


def _state(run: Run) -> Markup | None:
    if run.finished:
        return None
    return join([" ", element("span", f"not finished: update {run.last_step}" if run.last_step else "not finished: before its first update", class_="pill")])


def _plain(run: Run) -> Markup | None:
    """The same in plain language, for a reader who does not know pass@k or nats."""
    pass1, entropy = metric(run, "pass@1"), entropy_change(run)
    said = []
    if len(pass1):
        right = percent(float(pass1["value"][-1]))
        said.append(f"Asked a question that it was not trained on, the model now answers right {right} of the time at its first try.")
    if entropy is not None:
        before, after = (_choices(value) for value in entropy)
        if moved(*entropy) == "stayed":
            said.append(f"A typical token is as open as a choice among {after} equally likely ones, as it was at the start.")
        else:
            said.append(
                f"Entropy says how open its next token is: a choice among {before} equally likely ones at the start, {after} at the end (exp of the mean)."
            )
    return element("p", " ".join(said), class_="lead") if said else None


def _choices(nats: float) -> str:
    return short(math.exp(min(nats, 50.0)), 2)


def tiles_of(run: Run) -> list[Tile]:
    """The five numbers that matter; a number that is not known yet is a dash."""
    tiles = [_pass_tile(run, 1)]
    larger = [k for k in pass_counts(run) if k > 1]
    if larger:
        tiles.append(_pass_tile(run, larger[-1]))
    tiles.append(_entropy_tile(run))
    if not larger:
        tiles.append(_step_tile(run, "reward", "reward/mean", "mean of the training responses", "learn"))
    tokens = generated_tokens(run)
    effective = run.record.get("effective")
    planned = finite(effective.get("max_steps")) if isinstance(effective, Mapping) else None
    of = f"of {whole(planned)} planned" if planned and planned > run.last_step and not run.finished else ""
    tiles.append(
        Tile("updates", whole(run.last_step), None, ", ".join(part for part in (of, f"{_millions(tokens)} tokens generated" if tokens else "") if part))
    )
    seconds = finite(run.summary.get("seconds"))
    if seconds is None and has(run.steps, "seconds"):
        seconds = float(np.nansum(values(run.steps, "seconds")))
    threads = finite(run.record.get("threads"))
    tiles.append(Tile("time", duration(seconds), None, f"{threads:.0f} thread{'' if threads == 1 else 's'}" if threads else ""))
    return tiles


def _entropy_tile(run: Run) -> Tile:
    held_out = metric(run, "entropy")
    if len(held_out) < 2:
        return _step_tile(run, "entropy", "entropy/mean", "nats per token, training responses", "entropy")
    first, last = (float(held_out["value"][at]) for at in (0, -1))
    trace = (values(held_out, "step"), values(held_out, "value"))
    return Tile("entropy", _two(last), _two(first), "nats per token, held-out responses", trace, "entropy")


def _step_tile(run: Run, label: str, name: str, note: str, colour: str) -> Tile:
    series = values(run.steps, name)
    ends = edges(series)
    if ends is None:
        return Tile(label, NONE, None, "not measured yet")
    return Tile(label, _two(ends[1]), _two(ends[0]) if len(run.steps) >= FEW else None, note, (values(run.steps, "step"), series), colour)


def _pass_tile(run: Run, k: int) -> Tile:
    rows = metric(run, f"pass@{k}")
    if not len(rows):
        return Tile(f"pass@{k}", NONE, None, "not evaluated yet")
    first, last = rows.row(0, named=True), rows.row(-1, named=True)
    low, high = finite(last.get("low")), finite(last.get("high"))
    prompts = finite(last.get("prompts"))
    note = f"95 %: {interval(low, high)}" if low is not None and high is not None else ""
    note += f"{', ' if note else ''}{whole(prompts)} prompts" if prompts else ""
    trace = (values(rows, "step"), values(rows, "value"))
    return Tile(f"pass@{k}", percent(float(last["value"])), percent(float(first["value"])) if len(rows) > 1 else None, note, trace)


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else whole(count)


def sparkline(x: np.ndarray, y: np.ndarray, colour: str) -> Markup | None:
    """A small curve without axes, from 0 to its largest value, drawn as SVG; None with fewer than two points."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 2 or x.max() <= x.min():
        return None
    if len(x) > 60:
        cuts = np.array_split(np.arange(len(x)), 60)
        x, y = np.array([x[cut].mean() for cut in cuts]), np.array([y[cut].mean() for cut in cuts])
    top, bottom = max(float(y.max()), 0.0), min(float(y.min()), 0.0)
    across = 100 * (x - x[0]) / (x[-1] - x[0])
    down = 22 - 20 * (y - bottom) / max(top - bottom, 1e-12)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    area = element("polygon", points=f"0,24 {points} 100,24", class_="under")
    curve = element("polyline", points=points, class_="over")
    return element("svg", area, curve, viewBox="0 0 100 24", preserveAspectRatio="none", class_=f"spark {colour}", aria_hidden="true")


def _events(run: Run) -> Markup | None:
    """Warnings and errors of the run, and what the report itself could not read."""
    rows = list(zip(texts(run.events, "level"), values(run.events, "step"), texts(run.events, "kind"), texts(run.events, "message"), strict=True))
    grave = [row for row in rows if row[0] != "info"]
    shown = [_event(*row) for row in grave[-MAX_EVENTS:]]
    if len(grave) > MAX_EVENTS:
        shown.insert(0, element("li", f"{len(grave) - MAX_EVENTS} earlier warnings are on the tape only."))
    shown += [element("li", element("strong", "report"), " ", visible(problem, MAX_MESSAGE), class_="warning") for problem in run.problems]
    return element("ul", join(shown), class_="events") if shown else None


def _event(level: str, step: float, kind: str, message: str) -> Markup:
    at = f", update {step:.0f}" if math.isfinite(step) else ""
    return element("li", element("strong", f"{level}{at}"), " ", visible(message or kind, MAX_MESSAGE), class_="error" if level == "error" else "warning")
