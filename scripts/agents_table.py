"""The interventions for agents on the embedded games of several turns, three seeds each: writes docs/agents.md.

    python scripts/agents_table.py --out runs/agents        # about a minute of one core a run, 33 runs; what is finished there is only read

`keys` (preset `game`): look for a note behind four places and open a door with it. `reckon` (preset `tool`): sums and products with a real calculator, where a
turn is a call or the answer. Every arm has the same start, prompts and 40 updates, in the setting that its paper gives or that bites on the embedded model
(`embedded()`), with an evaluation before and at the end on the held-out games. In brackets the difference to GRPO of the same seed, with Student's 95 %
interval over three seeds, uncorrected for the number of arms: it sees large differences only.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isentrope.control.registry import registry
from isentrope.lab.plan import spec_of
from isentrope.lab.recipes import difference
from isentrope.tape import Tape

AEPO = ("aepo-branch", "aepo-agentic")
ARMS: dict[str, dict[str, tuple[str, ...]]] = {
    "game": {
        "grpo": (), "empg": ("empg",), "epo": ("epo",), "aem-agentic": ("aem-agentic",), "aepo-agentic": ("aepo-agentic",),
        "aepo-branch": ("aepo-branch",), "aepo-branch, aepo-agentic": AEPO, "spear": ("spear",),
    },
    "tool": {"grpo": (), "earl": ("earl",), "aepo-branch, aepo-agentic": AEPO},
}  # fmt: skip
SEEDS = range(3)
DOCS = Path(__file__).parents[1] / "docs" / "agents.md"
FIGURES = {"pass@1": "pass@1", "entropy": "entropy, nats", "turns": "turns", "sampled": "tokens sampled an update", "touched": "touched"}


def command(preset: str, links: Sequence[str], seed: int, out: Path) -> list[str]:
    control = [spec_of(registry()[name]().embedded()) for name in links]
    sets = [item for one in (f"control={json.dumps(control)}", f"seed={seed}", "evaluate.every=40") for item in ("--set", one)]
    return [str(Path(sys.executable).with_name("isentrope")), "train", "--preset", preset, *sets, "--out", str(out)]


def figures(out: Path, links: Sequence[str]) -> dict[str, float]:
    """Of a finished run: held-out pass@1 and entropy at the end, and means over the last ten updates (over all, for what was touched and sampled)."""
    summary, steps = json.loads((out / "summary.json").read_text()), Tape.read(out).steps
    late = steps.tail(10)
    columns = [f"fork/aepo-branch/{name}" for name in ("sampled_tokens", "pilot_tokens")] if "aepo-branch" in links else [
        name for name in steps.columns if name.startswith("turn-") and name.endswith("/tokens")
    ]  # fmt: skip
    sampled = sum(float(steps[name].fill_null(0.0).mean()) for name in columns)
    touched = [float(steps[f"touch/{name}"].mean()) for name in links if f"touch/{name}" in steps.columns]
    return {
        "pass@1": summary["pass@1"], "entropy": summary["entropy.end"], "turns": float(late["turns/mean"].mean()), "sampled": float(sampled),
        "touched": max(touched, default=0.0), "start": summary["pass@1.start"],
    }  # fmt: skip


def table(preset: str, found: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"| arm | {' | '.join(FIGURES.values())} |", "|---|" + "---|" * len(FIGURES)]
    for arm, runs in found.items():
        cells = []
        for name in FIGURES:
            mean = sum(run[name] for run in runs) / len(runs)
            text = f"{mean:.1%}" if name == "touched" else f"{mean:,.0f}" if name == "sampled" else f"{mean:.3f}"
            if name in ("pass@1", "entropy", "turns") and arm != "grpo":
                text += f" ({difference([run[name] - base[name] for run, base in zip(runs, found['grpo'], strict=True)])})"
            cells.append(text)
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    start = found["grpo"][0]["start"]
    return f"## Preset `{preset}`\n\nBefore training pass@1 is {start:.3f}.\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/agents"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    runs = {
        (preset, arm, seed): (options.out / preset / arm.replace(", ", "+") / f"seed-{seed}", links)
        for seed in SEEDS for preset, arms in ARMS.items() for arm, links in arms.items()
    }  # fmt: skip

    def made(job: tuple[str, Sequence[str], int, Path]) -> None:
        preset, links, seed, out = job
        if not (out / "summary.json").is_file():
            subprocess.run(command(preset, links, seed, out), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        print(f"{out}: {figures(out, links)}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(made, [(preset, links, seed, out) for (preset, _, seed), (out, links) in runs.items()]))
    parts = []
    for preset, arms in ARMS.items():
        found = {arm: [figures(*runs[preset, arm, seed]) for seed in SEEDS] for arm in arms}
        parts.append(table(preset, found))
    intro = __doc__.split("\n\n", 2)[2].strip()  # type: ignore[union-attr]
    meaning = (
        "pass@1 and entropy are of the held-out games at the end (exact entropy of the policy's tokens, token mean); turns are of the last ten updates; tokens "
        "sampled are the policy's, pilots included and what copies took over not; touched is the share of tokens, episodes or rows that a link changed."
    )
    notes = options.docs.read_text(encoding="utf-8").partition("## What was seen")[2] if options.docs.is_file() else "\n"
    page = f"# Interventions for agents\n\n`python scripts/agents_table.py`. {intro}\n\n{meaning}\n\n" + "\n".join(parts) + "\n## What was seen" + notes
    options.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
