"""Writes the generated pages of the docs: configuration, interventions, a page per paper, changelog.

    python scripts/build_docs.py
"""

from pathlib import Path

from isentrope.config import Config, presets
from isentrope.papers import NOTHING, STANDARD, UNTOLD, catalogue, pages

DOCS = Path(__file__).parents[1] / "docs"


def configuration() -> str:
    lines = ["# Configuration", "", f"Presets: {', '.join(f'`{name}`' for name in presets())}. `--set key.path=value` takes YAML.", ""]
    top, sections = [], []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and hasattr(kind, "model_fields"):
            sections += [f"## {name}", "", (kind.__doc__ or "").strip(), "", "| key | default | meaning |", "|---|---|---|"]
            instance = getattr(Config(), name)
            for key, item in kind.model_fields.items():
                sections.append(f"| `{name}.{key}` | `{getattr(instance, key)!r}` | {item.description or ''} |")
            sections.append("")
        else:
            top.append(f"| `{name}` | `{getattr(Config(), name)!r}` | {field.description or ''} |")
    return "\n".join([*lines, "| key | default | meaning |", "|---|---|---|", *top, "", *sections])


def interventions() -> str:
    lines = ["# Interventions", "", "Generated from the registry; `isentrope papers --json` gives the same.", ""]
    done = [row for row in catalogue() if row["interventions"]]
    for row in done:
        page = "standard" if row["title"] == STANDARD else row["slug"]
        lines += [f"## {row['slug']}", "", f"*{row['title']}* ([formulas, ranges and the recipe that runs it](papers/{page}.md))", ""]
        for item in row["interventions"]:
            parameters = ", ".join(f"`{key}={value!r}`" for key, value in item["parameters"].items())
            lines += [
                f"**{item['name']}**: {item['summary']}", "", f"- stages: {', '.join(item['stages'])}", f"- parameters: {parameters}",
                f"- needs: {', '.join(item['needs']) or NOTHING}", f"- extra cost: {item['cost']['text']}", f"- vLLM rollouts: {item['vllm']}",
                f"- verified against: {', '.join(item['verified'])}", f"- effect on entropy: {item['effect'] or UNTOLD}", f"- source: {item['source']}", "",
            ]  # fmt: skip
    planned = [row["slug"] for row in catalogue() if row["status"] == "planned"]
    return "\n".join([*lines, f"## Planned ({len(planned)})", "", ", ".join(planned), ""])


def main() -> None:
    (DOCS / "config.md").write_text(configuration(), encoding="utf-8")
    (DOCS / "interventions.md").write_text(interventions(), encoding="utf-8")
    (DOCS / "papers").mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / "papers" / name).write_text(text, encoding="utf-8")
    (DOCS / "changelog.md").write_text((DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main()
