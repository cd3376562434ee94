"""What is implemented of the 130 papers: the catalogue that ships with the package, joined with the registry."""

import json
from dataclasses import fields
from importlib.resources import files
from typing import Any

from isentrope.control.registry import registry
from isentrope.control.stages import stages_of

STANDARD = "standard, of no paper of the collection"
"""The title of a row that is one intervention of `control/standard.py`; its slug is the intervention's name."""


def catalogue() -> list[dict[str, Any]]:
    """One row per paper: slug, title, room, status ("done" | "planned"), and its interventions.

    Every intervention has its name, module, stages, source, parameters with defaults, variants, and how it fares under vLLM.
    """
    rows = json.loads(files("isentrope").joinpath("assets", "catalogue.json").read_text(encoding="utf-8"))
    by_slug: dict[str | None, list[dict[str, Any]]] = {}
    for name, cls in registry().items():
        by_slug.setdefault(cls.slug or name, []).append(_intervention(name, cls))
    known = {row["slug"] for row in rows}
    rows += [{"slug": slug, "title": STANDARD, "room": "control"} for slug in by_slug if slug not in known]
    return [{**row, "status": "done" if row["slug"] in by_slug else "planned", "interventions": by_slug.get(row["slug"], [])} for row in rows]


def _intervention(name: str, cls: type) -> dict[str, Any]:
    example = cls()
    return {
        "name": name,
        "module": cls.__module__,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "stages": list(stages_of(example)),
        "source": cls.source,
        "parameters": {item.name: _shown(example.__dict__[item.name]) for item in fields(cls)},
        "needs": [need.key for need in example.needs],
        "replaces": sorted(cls.replaces),
        "vllm": _vllm(stages_of(example)),
    }


def _vllm(stages: tuple[str, ...]) -> str:
    """How it fares with vLLM rollouts, told from its stages alone (the host decides by the same rule)."""
    if "sample" in stages:
        return "refused, because it needs a hook on every decoding step"
    if "extra" in stages:
        return "refused, because extra rollouts at another temperature go through transformers' generate"
    return "works"


def _shown(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return str(value)  # infinities are no JSON
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def listing(rows: list[dict[str, Any]]) -> str:
    """One line per paper, and below them those interventions that have none."""
    papers, standard = ([row for row in rows if (row["title"] == STANDARD) == own] for own in (False, True))
    width = max(len(row["slug"]) for row in rows)
    lines = []
    for row in papers:
        names = ", ".join(item["name"] for item in row["interventions"])
        lines.append(f"{row['status']:8} {row['slug']:{width}}  {names + ': ' if names else ''}{row['title']}")
    lines += ["", f"{STANDARD}:"] if standard else []
    return "\n".join([*lines, *(f"{row['status']:8} {row['slug']:{width}}  {row['interventions'][0]['summary']}" for row in standard)])


def describe(row: dict[str, Any]) -> str:
    """A paper for people."""
    lines = [f"{row['slug']}  ({row['status']})", f"  {row['title']}", f"  room: {row['room']}"]
    for item in row["interventions"]:
        parameters = ", ".join(f"{key}={value!r}" for key, value in item["parameters"].items())
        lines += [
            f"  {item['name']}: {item['summary']}", f"    stages: {', '.join(item['stages'])}", f"    parameters: {parameters or 'none'}",
            f"    source: {item['source']}", f"    module: {item['module']}", f"    vLLM rollouts: {item['vllm']}",
        ]  # fmt: skip
        if "variant" in item["parameters"]:
            lines.append(f"    paper and code differ; default variant: {item['parameters']['variant']!r}. {_differences(item['module'])}")
    return "\n".join(lines)


def _differences(module: str) -> str:
    """The paragraph of the module's docstring that begins with "Paper and code"."""
    import importlib

    for paragraph in (importlib.import_module(module).__doc__ or "").split("\n\n"):
        if paragraph.lstrip().startswith("Paper and code"):
            return " ".join(paragraph.split())
    return "See the module's docstring."
