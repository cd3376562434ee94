"""The page of a comparison: one self-contained file, written afresh after every run, that says of each method what was found.

Names of methods are what a user typed and reasons of failure are what a program said: both are escaped like everything else.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isentrope.files import write_bytes_atomic, write_json_atomic
from isentrope.lab import tables
from isentrope.lab.plan import BASELINE, Arm, Plan, run_key
from isentrope.lab.results import Results, as_data
from isentrope.lab.statistics import POWER
from isentrope.lab.tables import word
from isentrope.lab.verdict import MIN_PAIRS, WORDS
from isentrope.lab.work import ASKED
from isentrope.report.figure import Section, figure, line, lines, missing
from isentrope.report.markup import Markup, element, join
from isentrope.report.page import asset, document

NAME = "compare.html"
DATA = "results.json"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SAID = {
    "helps": ("helps", "help"),
    "hurts": ("hurts", "hurt"),
    "slower learning only": ("only learns more slowly", "only learn more slowly"),
    "trades": ("trades one thing for another", "trade one thing for another"),
    "same as its placebo": ("does what its placebo does", "do what their placebos do"),
    "no difference found": ("shows no difference", "show no difference"),
    "same computation": ("changes nothing", "change nothing"),
}
"""Verdict -> how the title says it of one method, and of several."""


def write(results: Results, directory: Path) -> Path:
    """Writes results.json and compare.html into `directory`; returns the page's path."""
    write_json_atomic(directory / DATA, as_data(results))
    write_bytes_atomic(directory / NAME, html(results, directory).encode("utf-8", errors="backslashreplace"))
    return directory / NAME


def html(results: Results, directory: Path) -> str:
    """The whole page as text."""
    sections = [
        tables.verdicts(results), _front(results), _methods(results), tables.numbers(results), tables.fairness(results), tables.ledger(results),
        _again(results, directory),
    ]  # fmt: skip
    foot = "Made by isentrope from the tapes of these runs. The file requests nothing; entropies are in nats."
    shown = [section for section in sections if section is not None]
    return document(f"{title(results)} · isentrope", _head(results), shown, foot, style=asset("compare.css"), drawers=asset("compare.js"))


# --- the top


def _head(results: Results) -> Markup:
    plan = results.plan
    task = plan.config["task"].get("name") or plan.config["task"].get("reasoning_gym") or "own task"
    total = sum(len(runs) for runs in results.runs.values())
    open_runs = total - results.finished() - len([key for key in results.failed if key.startswith("runs/")])
    what = join([
        element("strong", str(plan.config["model"]["name"])), " on ", element("strong", str(task)),
        f", {plan.steps} updates, {_many(len(plan.seeds), 'seed')}: {_many(len(plan.methods), 'method')} against plain GRPO and placebos",
        element("span", f"not finished: {results.finished()} of {total} runs", class_="pill") if open_runs > 0 else None,
    ])  # fmt: skip
    failures = [element("li", element("strong", key), " ", reason, class_="error") for key, reason in results.failed.items()]
    parts = [element("p", what, class_="eyebrow"), element("h1", title(results)), element("p", _lead(results), class_="lead")]
    return element("header", *parts, element("ul", join(failures), class_="events") if failures else None, id="top")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def title(results: Results) -> str:
    """What was found, in one sentence."""
    judged = [(name, verdict.word) for name, verdict in results.verdicts.items() if verdict.word != "not judged"]
    if not judged:
        return "Nothing can be judged yet"
    if len(judged) == 1:
        name, found = judged[0]
        return f"{name} {SAID[found][0]}."
    words = [found for _, found in judged]
    said = ", ".join(f"{_count(words.count(one))} {SAID[one][words.count(one) > 1]}" for one in WORDS if one in words)
    return f"Of {_count(len(judged))} methods, {said}."


def _count(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def _lead(results: Results) -> str:
    seen = {metric: [results.step[name, metric].detectable for name in results.verdicts] for metric in results.judged}
    known = {metric: [value for value in values if not math.isnan(value)] for metric, values in seen.items()}
    smallest = " and ".join(f"{np.median(values):.2g} in {metric}" for metric, values in known.items() if values)
    if not smallest:
        return f"A verdict needs at least {MIN_PAIRS} seeds of a method and of the baseline."
    return f"The smallest difference that this comparison could have seen (with a chance of {100 * POWER:.0f} %, at the corrected level): about {smallest}."


# --- pictures


def _front(results: Results) -> Section:
    points = [point for arm in results.plan.arms if (point := _point(results, arm)) is not None]
    if not points:
        return Section("front", "Front", "Entropy and reward", missing("No run is finished yet."))
    chart = {
        "kind": "front", "points": points, "front": pareto([(point["x"], point["y"]) for point in points]),
        "x": "entropy, nats per token of held-out responses", "y": "pass@1, %",
    }  # fmt: skip
    body = figure(
        "front-chart",
        "Every arm at matched step",
        "Diamond: the baseline. Filled: methods. Rings: their placebos. Bars: lowest and highest seed. The dotted line joins the arms that no "
        "other beats in both.",
        "Entropy is no aim of its own: an arm to the right at the same height keeps more of it for the same reward at this step. One that is to "
        "the right and lower may only have learned less; the tables at the same reward tell these apart.",
        tall=True,
        provenance=f"mean over seeds, and over the evaluations in the last third of {results.plan.steps} updates; exact entropy, current policy, token mean",
    )
    return Section("front", "Front", "Entropy and reward", body, {"front-chart": chart})


def _point(results: Results, arm: Arm) -> dict[str, Any] | None:
    reward, entropy = (_spread(results.late(arm.name, metric)) for metric in ("pass@1", "entropy"))
    if reward is None or entropy is None:
        return None
    seeds = int(np.isfinite(results.late(arm.name, "pass@1")).sum())
    return {
        "name": arm.name, "role": arm.role, "x": entropy[0], "y": reward[0], "xs": entropy[1], "ys": reward[1], "seeds": seeds,
        "note": "in brackets: lowest and highest seed" if seeds > 1 else "",
    }  # fmt: skip


def _spread(values: np.ndarray) -> tuple[float, tuple[float, float] | None] | None:
    there = values[np.isfinite(values)]
    if not len(there):
        return None
    return float(there.mean()), (float(there.min()), float(there.max())) if len(there) > 1 else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other equals or beats in both coordinates (larger is better), by rising x.

    >>> pareto([(0.0, 3.0), (1.0, 2.0), (0.5, 1.0), (2.0, 0.0)])
    [0, 1, 3]
    """
    beaten = lambda at: any(x >= points[at][0] and y >= points[at][1] and (x, y) != points[at] for x, y in points)  # noqa: E731
    return sorted((at for at in range(len(points)) if not beaten(at)), key=lambda at: points[at][0])


PICTURES = (("pass@1", "Reward", "pass@1, %", "percent", "learn"), ("entropy", "Entropy", "entropy, nats", "nats", "entropy"))
"""Metric, title, axis, unit and colour of a method's two pictures."""


def _methods(results: Results) -> Section:
    charts, parts = {}, []
    for place, arm in enumerate(results.plan.methods):
        verdict, plots = results.verdicts[arm.name], []
        for metric, heading, axis, unit, colour in PICTURES:
            chart = _curves(results, arm, metric, axis, unit, colour)
            plots.append(missing("Not evaluated yet.") if chart is None else figure(f"curve-{place}-{unit}", heading, _finished(results, arm)))
            charts |= {} if chart is None else {f"curve-{place}-{unit}": chart}
        without = results.plan.without_placebo.get(arm.name)
        setting = element("pre", yaml.safe_dump([dict(spec) for spec in arm.control], sort_keys=False).strip(), class_="config")
        heading = element("h3", arm.name, " ", word(verdict.word))
        said = element("p", f"{verdict.because} {verdict.entropy}".strip())
        why = element("p", f"No placebo: {without}.") if without else None
        parts.append(element("div", heading, said, why, element("div", join(plots), class_="pair"), _folded("Setting", setting), class_="method"))
    lead = "Coloured: the method. Grey: the baseline. Grey and dotted: the placebo. Bands: lowest to highest seed."
    return Section("methods", "Methods", "Method by method", join(parts), charts, lead)


def _finished(results: Results, arm: Arm) -> str:
    sham = results.plan.placebo(arm.name)
    names = {"method": arm.name, "placebo": sham.name if sham else None, "baseline": BASELINE}
    counts = [f"{label} {sum(run is not None for run in results.runs[name].values())}" for label, name in names.items() if name]
    return f"Held-out responses. Seeds finished: {', '.join(counts)}."


def _curves(results: Results, arm: Arm, metric: str, axis: str, unit: str, colour: str) -> dict[str, Any] | None:
    sham = results.plan.placebo(arm.name)
    series = []
    for label, name, role, dash in (
        ("baseline", BASELINE, "muted", "solid"), ("placebo", sham.name if sham else "", "muted", "dot"), ("method", arm.name, colour, "solid"),
    ):  # fmt: skip
        runs = [run for run in results.runs.get(name, {}).values() if run is not None and metric in run.evals]
        if not runs:
            continue
        stacked = np.stack([run.evals[metric] for run in runs if len(run.step) == len(runs[0].step)])
        banded = len(stacked) > 1 and label != "placebo"
        band: dict[str, Any] = {"low": stacked.min(0), "high": stacked.max(0), "band": "lowest to highest seed"} if banded else {}
        series.append(line(label, runs[0].step, stacked.mean(0), role, dash=dash, label=label, marks=True, **band))
    return lines(series, x="update", y=axis, unit=unit) if series else None


# --- again


def _again(results: Results, directory: Path) -> Section:
    plan = results.plan
    body = join([
        element("pre", shlex.join(_whole(plan, directory)), class_="command"),
        element("p", "Goes on with this comparison after a kill; finished runs are not computed again:", class_="note"),
        element("pre", shlex.join(["isentrope", "compare", "--resume", str(directory)]), class_="command"),
        _folded("Every run by itself", element("pre", "\n".join(_commands(plan, directory)), class_="all")),
        _folded("Configuration of the baseline", element("pre", yaml.safe_dump(plan.config, sort_keys=False), class_="config")),
        element("p", f"Plan: compare.json. Numbers of this page: {DATA}. Below runs/ lie the run directories.", class_="note"),
    ])  # fmt: skip
    return Section("again", "Again", "Run it again", body)


def _folded(summary: str, body: Markup) -> Markup:
    return element("details", element("summary", summary), body)


def _whole(plan: Plan, directory: Path) -> list[str]:
    names = [arm.name for arm in plan.arms if arm.role != "placebo"]
    flags = {"step": [], "lr": ["--sweep", "lr"], "none": ["--no-match"]}[plan.match]
    flags += [] if any(arm.role == "placebo" for arm in plan.arms) or plan.without_placebo else ["--no-placebos"]
    flags += [] if plan.ledgers else ["--no-ledger"]
    own = ["--config", str(directory / "base.yaml"), "--seeds", str(len(plan.seeds)), "--k", str(plan.k)]
    return ["isentrope", "compare", *names, *own, *flags, "--out", "AGAIN"]


def _commands(plan: Plan, directory: Path) -> Iterator[str]:
    for arm in plan.arms:
        for seed in plan.seeds:
            asked = f"{run_key(arm, seed)}.{ASKED}"
            yield shlex.join(["isentrope", "train", "--config", str(directory / asked), "--out", f"AGAIN/{arm.folder}-{seed}"])
