"""The measured experiment of every recipe, one file each: `isentrope recipe NAME`.

A module has `ARMS` (name -> what it is, the first is the neutral setting), `FIGURES` (name -> what it is, with its unit) and
`arm(name, seed, steps) -> {figure: value}`, deterministic in its arguments. All arms of a seed start from the same weights and see the same data.
"""

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from isentrope.errors import UserError
from isentrope.files import write_json_atomic
from isentrope.recipes import Recipe, by_name

Rows = dict[str, dict[str, dict[str, float]]]
"""arm -> seed -> figure -> value."""


def find(name: str) -> Recipe:
    """The recipe of this name.

    Raises UserError naming those there are.
    """
    if name not in by_name():
        raise UserError(f"recipe: unknown recipe {name!r}. Recipes: {', '.join(by_name())}.")
    return by_name()[name]


def experiment(recipe: Recipe) -> ModuleType:
    """The module of its experiment."""
    return importlib.import_module(recipe.experiment)


def run(name: str, out: Path, *, seeds: int = 3, steps: int | None = None, show: Callable[[str], object] = print) -> dict[str, Any]:
    """Trains every arm with every seed and writes `out/recipe.json` after each; what stands there already is not computed again.

    Raises UserError for an unknown name, counts below 1, or a directory that holds another experiment.
    """
    recipe = find(name)
    module = experiment(recipe)
    steps = int(module.STEPS) if steps is None else steps
    if seeds < 1 or steps < 1:
        raise UserError(f"recipe: --seeds and --steps must be at least 1. Got {seeds} and {steps}.")
    path = out / "recipe.json"
    told = {"recipe": name, "steps": steps, "arms": dict(module.ARMS), "figures": dict(module.FIGURES)}
    rows: Rows = _before(path, told)
    for seed in range(seeds):
        for arm in module.ARMS:
            if str(seed) in rows.setdefault(arm, {}):
                continue
            rows[arm][str(seed)] = {key: float(value) for key, value in module.arm(arm, seed, steps).items()}
            out.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path, {**told, "rows": rows})
            show(f"{arm} seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in rows[arm][str(seed)].items()))
    return {**told, "rows": rows}


def _before(path: Path, told: Mapping[str, Any]) -> Rows:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {key: found[key] for key in ("recipe", "steps")} == {key: told[key] for key in ("recipe", "steps")}:
            return found["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"recipe: {path} is damaged ({type(error).__name__}). Remove it, or choose another --out.") from error
    raise UserError(f"recipe: {path} holds {found['recipe']} with {found['steps']} steps. Choose another --out.")


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row per arm, mean over seeds, and the paired difference to the first arm with Student's 95 % interval."""
    rows: Rows = result["rows"]
    arms, figures = list(result["arms"]), list(result["figures"])
    first = rows[arms[0]]
    seeds = [seed for seed in first if all(seed in rows[arm] for arm in arms)]
    lines = [f"| arm | {' | '.join(figures)} |", "|---|" + "---|" * len(figures)]
    for arm in arms:
        cells = []
        for figure in figures:
            values = [rows[arm][seed][figure] for seed in seeds if figure in rows[arm][seed]]
            mean = f"{sum(values) / len(values):.4g}" if values else "-"
            gaps = [rows[arm][seed][figure] - first[seed][figure] for seed in seeds if figure in rows[arm][seed] and figure in first[seed]]
            cells.append(mean if arm == arms[0] or not gaps else f"{mean} ({difference(gaps)})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    meaning = [f"- {name}: {text}" for name, text in {**result["arms"], **result["figures"]}.items()]
    head = f"{result['recipe']}: {result['steps']} updates, {len(seeds)} seeds; in brackets the paired difference to {arms[0]} with its 95 % interval."
    return "\n".join([head, "", *lines, "", *meaning])


def difference(gaps: Sequence[float]) -> str:
    """`+0.012 ± 0.003`: the mean and half of Student's 95 % interval; one seed has none."""
    mean = sum(gaps) / len(gaps)
    if len(gaps) < 2 or not all(math.isfinite(gap) for gap in gaps):
        return f"{mean:+.3g}"
    from scipy.stats import t

    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
    return f"{mean:+.3g} ± {float(t.ppf(0.975, len(gaps) - 1)) * spread / math.sqrt(len(gaps)):.2g}"
