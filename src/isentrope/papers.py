"""What is implemented of the 130 papers: the catalogue that ships with the package, joined with the registry."""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any

from isentrope.control.registry import registry
from isentrope.control.stages import Intervention, stages_of
from isentrope.entry import cost, inferred, recipe, shown, verified, vllm
from isentrope.ranges import ranges
from isentrope.recipes import Recipe
from isentrope.recipes import by_slug as recipes_of

STANDARD = "standard, of no paper of the collection"
"""The title of a row that is one intervention of `control/standard.py`; its slug is the intervention's name."""
NOTHING = "nothing beyond log-probs"
UNTOLD = "not told"
EVALUATED = {
    "invisible-leash": "joins every evaluation: isentrope.measure.answers.support; `support.*` in a run's summary.json, and its report",
    "safe-rl-reasoning": "joins every evaluation: isentrope.train.shift; the entropy profile by context in a run's report",
    "multi-agent-entropy": "measure: isentrope.measure.agents, the features; isentrope.lab.judger and isentrope.lab.transcripts, the choice among runs",
    "policy-cliff": "theory: isentrope.explain.stability, how far an optimal policy can move when its reward moves a little",
}
"""Papers whose part here is no intervention but joins every evaluation, is a measure of its own, or theory: slug -> where it stands."""


def catalogue() -> list[dict[str, Any]]:
    """One row per paper: slug, title, room, status ("done" | "planned"), and its interventions.

    Of every intervention: name, slug, title, status, module, summary, stages, source, parameters with defaults, ranges (what the class
    accepts with the others at their defaults), variants, signals that it needs, options that it replaces, cost, how it fares with vLLM
    rollouts, what it was verified against, what of it is inferred, its effect on entropy in a sentence, and a recipe.
    `recipes` are those that are no stage of a policy-gradient step (`isentrope.recipes`): module, host, and the command that runs each.
    """
    rows = json.loads(files("isentrope").joinpath("assets", "catalogue.json").read_text(encoding="utf-8"))
    by_slug: dict[str | None, list[dict[str, Any]]] = {}
    titles = {row["slug"]: row["title"] for row in rows}
    for name, cls in registry().items():
        by_slug.setdefault(cls.slug or name, []).append(_intervention(name, cls, titles))
    known = {row["slug"] for row in rows}
    rows += [{"slug": slug, "title": STANDARD, "room": "control"} for slug in by_slug if slug not in known]
    return [
        {
            **row, "status": "done" if row["slug"] in by_slug or row["slug"] in EVALUATED or recipes_of(row["slug"]) else "planned",
            "interventions": by_slug.get(row["slug"], []), "evaluated": EVALUATED.get(row["slug"]),
            "recipes": [_recipe(recipe) for recipe in recipes_of(row["slug"])],
        }
        for row in rows
    ]  # fmt: skip


def _intervention(name: str, cls: type[Intervention], titles: Mapping[str, str]) -> dict[str, Any]:
    example = cls()
    needs = [need.key for need in example.needs]
    allowed = ranges(cls)
    marked = inferred(cls)
    return {
        "name": name,
        "slug": cls.slug or name,
        "title": titles.get(cls.slug or name, STANDARD),
        "status": "done",
        "module": cls.__module__,
        "summary": _first_sentence(cls),
        "stages": list(stages_of(example)),
        "source": cls.source,
        "parameters": {item.name: shown(example.__dict__[item.name]) for item in fields(cls)},  # type: ignore[arg-type]  # a dataclass
        "ranges": {key: shown(allowed[key].data()) for key in allowed},
        "variants": list(allowed["variant"].values) if "variant" in allowed else [],
        "needs": needs,
        "replaces": sorted(cls.replaces),
        "cost": cost(example),
        "vllm": vllm(example),
        "verified": verified(cls.slug if cls.recorded else None, marked),
        "inferred": marked,
        "effect": cls.effect,
        "recipe": shown(recipe(example)),
    }


def _recipe(found: Recipe) -> dict[str, Any]:
    """A recipe with what its formulas were verified against."""
    text = importlib.import_module(found.module).__doc__ or ""
    return {**found.data(), "verified": verified(found.slug, ["(inferred)"] if "(inferred)" in text else [])}


def _first_sentence(cls: type) -> str:
    """Of the class's docstring, however many lines it takes."""
    return re.split(r"(?<=[.])\s+(?=[A-Za-z`])", " ".join((cls.__doc__ or "").split("\n\n")[0].split()))[0]


def listing(rows: list[dict[str, Any]]) -> str:
    """One line per paper, and below them those interventions that have none."""
    papers, standard = ([row for row in rows if (row["title"] == STANDARD) == own] for own in (False, True))
    width = max(len(row["slug"]) for row in rows)
    lines = []
    for row in papers:
        names = ", ".join(item["name"] for item in (*row["interventions"], *row["recipes"]))
        lines.append(f"{row['status']:8} {row['slug']:{width}}  {names + ': ' if names else ''}{row['title']}")
    lines += ["", f"{STANDARD}:"] if standard else []
    return "\n".join([*lines, *(f"{row['status']:8} {row['slug']:{width}}  {row['interventions'][0]['summary']}" for row in standard)])


def describe(row: dict[str, Any]) -> str:
    """A paper for people."""
    lines = [f"{row['slug']}  ({row['status']})", f"  {row['title']}", f"  room: {row['room']}"]
    lines += [f"  {row['evaluated']}"] if row["evaluated"] else []
    for item in row["recipes"]:
        lines += [
            f"  {item['name']}: {item['summary']}", f"    host: {item['host']}", f"    source: {item['source']}", f"    module: {item['module']}",
            f"    verified against: {', '.join(item['verified'])}", f"    run it: {item['command']}",
        ]  # fmt: skip
    for item in row["interventions"]:
        parameters = ", ".join(f"{key}={value!r} ({item['ranges'][key]['text']})" for key, value in item["parameters"].items())
        lines += [
            f"  {item['name']}: {item['summary']}", f"    stages: {', '.join(item['stages'])}", f"    parameters: {parameters or 'none'}",
            f"    source: {item['source']}", f"    module: {item['module']}", f"    needs: {', '.join(item['needs']) or NOTHING}",
            f"    extra cost: {item['cost']['text']}", f"    vLLM rollouts: {item['vllm']}", f"    verified against: {', '.join(item['verified'])}",
            f"    entropy: {item['effect'] or UNTOLD}", f"    run it: {item['recipe']['command']}",
        ]  # fmt: skip
        if "variant" in item["parameters"]:
            lines.append(f"    paper and code differ; default variant: {item['parameters']['variant']!r}. {_differences(item['module'])}")
    return "\n".join(lines)


def _differences(module: str) -> str:
    """The paragraph of the module's docstring that begins with "Paper and code"."""
    for paragraph in (importlib.import_module(module).__doc__ or "").split("\n\n"):
        if paragraph.lstrip().startswith("Paper and code"):
            return " ".join(paragraph.split())
    return "See the module's docstring."


# --- pages of the docs


def pages() -> dict[str, str]:
    """File name -> text: a page for every paper that is done, `standard.md` for what has none, `index.md` for all of them."""
    done = [row for row in catalogue() if row["interventions"]]
    papers, standard = ([row for row in done if (row["title"] == STANDARD) == own] for own in (False, True))
    listed = [f"- [{row['slug']}]({row['slug']}.md): {row['title']}" for row in papers]
    index = ["# Paper by paper", "", "A page per paper that is done, with the recipe that runs it. At a glance: [Interventions](../interventions.md).", ""]
    found = {f"{row['slug']}.md": page(row["slug"], row["title"], row["interventions"]) for row in papers}
    found["standard.md"] = page("Standard", "Interventions that belong to no paper of the collection.", [row["interventions"][0] for row in standard])
    return {**found, "index.md": "\n".join([*index, *listed, f"- [standard](standard.md): {', '.join(row['slug'] for row in standard)}", ""])}


def page(heading: str, title: str, interventions: list[dict[str, Any]]) -> str:
    """One page in Markdown: every intervention with its parameters, facts, and the recipe as a command and as Python."""
    lines = [f"# {heading}", "", f"*{title}*", ""]
    for item in interventions:
        lines += [f"## {item['name']}", "", item["summary"], "", *_table(item), *_facts(item), *_runs(item)]
    if any(item["ranges"] for item in interventions):
        lines += ["A range is what the class accepts while every other parameter has its default; it was found by asking the class.", ""]
    for module in dict.fromkeys(item["module"] for item in interventions):
        lines += [f"## Formulas of `{module}`", "", "```text", (importlib.import_module(module).__doc__ or "").strip(), "```", ""]
    return "\n".join(lines)


def _table(item: dict[str, Any]) -> list[str]:
    if not item["parameters"]:
        return []
    rows = [f"| `{key}` | `{value!r}` | {item['ranges'][key]['text'].replace(' | ', ', ')} |" for key, value in item["parameters"].items()]
    return ["| parameter | default | accepts |", "|---|---|---|", *rows, ""]


def _facts(item: dict[str, Any]) -> list[str]:
    replaced = [f"- replaces `trl.{option}`" for option in item["replaces"]]
    return [
        f"- stages: {', '.join(item['stages'])}", f"- needs: {', '.join(item['needs']) or NOTHING}", f"- extra cost: {item['cost']['text']}",
        f"- vLLM rollouts: {item['vllm']}", f"- verified against: {', '.join(item['verified'])}", f"- effect on entropy: {item['effect'] or UNTOLD}",
        *replaced, f"- source: {item['source']}", "",
    ]  # fmt: skip


def _runs(item: dict[str, Any]) -> list[str]:
    """The recipe. Its settings are those that bite on the embedded model, not the paper's."""
    sets = ",\n    ".join(repr(text) for text in item["recipe"]["sets"])
    return [
        f"On the embedded model (preset `{item['recipe']['preset']}`), with settings that bite there and the objective that the paper combines it with:", "",
        "```sh", item["recipe"]["command"], "```", "", "```python", "from isentrope.config import load", "from isentrope.train.check import check",
        "from isentrope.train.run import run", "",
        f'config = load(preset="{item["recipe"]["preset"]}", out="runs/{item["name"]}", sets=[', f"    {sets},", "])", "run(check(config))", "```", "",
    ]  # fmt: skip
