"""Precision and recall of the alarms on seeded runs of the embedded model that do and do not lose, or blow up, their entropy.

    python scripts/alarm_quality.py --runs DIR --minutes 9      trains what is missing, in chunks; again until it says that all stand
    python scripts/alarm_quality.py --runs DIR --only-table     replays the alarms over the tapes and prints the table
    python scripts/alarm_quality.py --over DIR                  the same over all runs below DIR that held out answers at their start and end,
                                                                such as those of `isentrope compare`

The truth is defined without the detectors, and by other responses than those that they see: by the entropy of HELD-OUT responses at the last
evaluation against that at the first. collapsed: at most a quarter of it. exploded: at least one and a half times. The alarms see the training
responses, update by update. A run is a hit when the alarm rang before its end and the truth says so; lead: updates between alarm and end.
"""

import argparse
import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UPDATES = 48
COLLAPSED, EXPLODED = 0.25, 1.5  # held-out entropy at the end, over that at the start
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "low-rate": {"trl": {"learning_rate": 4e-5}},
    "mid-rate": {"trl": {"learning_rate": 1.5e-4}},
    "high-rate": {"trl": {"learning_rate": 1e-2}},
    "clip-higher": {"control": [{"name": "clip-higher"}]},
    "small-bonus": {"control": [{"name": "entropy-bonus", "coef": 0.02}]},
    "bonus": {"control": [{"name": "entropy-bonus", "coef": 0.05}]},
    "large-bonus": {"control": [{"name": "entropy-bonus", "coef": 0.3}]},
}
RUNS = [
    ("plain", 0), ("small-bonus", 0), ("low-rate", 0), ("large-bonus", 0), ("high-rate", 0), ("bonus", 0), ("mid-rate", 0), ("plain", 1), ("low-rate", 1),
    ("large-bonus", 1), ("bonus", 1), ("mid-rate", 1), ("plain", 2), ("high-rate", 1), ("clip-higher", 0), ("small-bonus", 1),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/alarm-quality"))
    parser.add_argument("--minutes", type=float, default=9.0, help="no further run is begun after this long")
    parser.add_argument("--only-table", action="store_true")
    parser.add_argument("--over", type=Path, help="a folder with runs made by anything; trains nothing")
    options = parser.parse_args()
    if options.over is not None:
        print(table([path.parent for path in sorted(options.over.rglob("summary.json")) if (path.parent / "tape" / "evals").is_dir()]))
        return
    if not options.only_table:
        train(options.runs, options.minutes)
    made = [options.runs / f"{name}-{seed}" for name, seed in RUNS]
    print(table([run for run in made if (run / "summary.json").is_file() or (run / "failed").is_file()]))


def train(folder: Path, minutes: float) -> None:
    """Trains the runs that are missing, one after another."""
    from isentrope import config as configuration
    from isentrope.cli import _quiet
    from isentrope.train.check import check
    from isentrope.train.run import run

    _quiet()
    began = time.monotonic()
    for name, seed in RUNS:
        out = folder / f"{name}-{seed}"
        if (out / "summary.json").is_file() or (out / "failed").is_file():
            continue
        if time.monotonic() - began > 60 * minutes:
            print(f"{out}: left for the next call", flush=True)
            return
        settings = configuration.read_preset("demo")
        settings["trl"] |= {
            "max_steps": UPDATES, "learning_rate": 4e-4, "per_device_train_batch_size": 48, "max_completion_length": 32,
            "lr_scheduler_type": "constant", "save_steps": 1000,
        } | SETTINGS[name].get("trl", {})  # fmt: skip
        settings |= {"control": SETTINGS[name].get("control", []), "evaluate": {"every": UPDATES, "prompts": 32, "samples": 4, "batch_size": 256}}
        settings |= {"seed": seed, "out": str(out), "report": {"build": False}, "tape": {"tokens_every": 5}}
        at = time.monotonic()
        shutil.rmtree(out, ignore_errors=True)  # what a killed call left
        try:
            run(check(configuration.validate(settings)))
        except RuntimeError as error:  # a run that blows up may end as such
            out.mkdir(parents=True, exist_ok=True)
            (out / "failed").write_text(str(error), encoding="utf-8")
        print(f"{out}: {time.monotonic() - at:.0f} s", flush=True)
    print("all runs stand", flush=True)


# --- the table


@dataclass(frozen=True)
class Outcome:
    """A run: its truth, and when the alarms that speak of it rang (None: never)."""

    name: str
    ratio: float  # held-out entropy at the end over that at the start
    last: int
    rang: dict[str, int | None]
    foretold: tuple[float, float] | None  # interval of the update at which entropy is spent, as the collapse alarm stated it
    spent: int | None  # the first update of the three in a row at which the training responses' entropy was in fact spent
    others: tuple[str, ...]
    failed: bool  # it ended by an error, so that nothing was held out at its end

    @property
    def truth(self) -> str:
        if self.failed:
            return "ended by an error"
        return "collapsed" if self.ratio <= COLLAPSED else "exploded" if self.ratio >= EXPLODED else "neither"


def table(runs: list[Path]) -> str:
    """Every run with its truth and its alarms, then precision and recall."""
    found = [one for run in runs if (one := outcome(run)) is not None]
    lines = [
        "| run | held-out entropy, end / start | truth | collapse rang | spent: foretold, was | explosion rang | others |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        foretold = "" if one.foretold is None else f"{one.foretold[0]:.0f} to {one.foretold[1]:.0f}, {one.spent or 'not'}"
        rang = {key: "" if at is None else str(at) for key, at in one.rang.items()}
        ratio = f"{one.ratio:.2f}"
        lines.append(f"| {one.name} | {ratio} | {one.truth} | {rang['collapse']} | {foretold} | {rang['explosion']} | {', '.join(one.others)} |")
    lines += ["", "| alarm | hits | false | missed | rightly silent | precision (95 %) | recall (95 %) | lead, updates |", "|---|---|---|---|---|---|---|---|"]
    lines += [quality(found, "collapse", "collapsed"), quality(found, "explosion", "exploded")]
    told = [one for one in found if one.foretold is not None and one.spent is not None]
    held = sum(one.foretold[0] <= one.spent <= one.foretold[1] for one in told if one.foretold is not None and one.spent is not None)
    lines += ["", f"The stated interval of the update at which entropy is spent held it in {held} of {len(told)} runs in which that was foretold and came."]
    return "\n".join(lines)


def outcome(run: Path) -> Outcome | None:
    """None for a run that did not hold out answers at two updates, unless it failed."""
    from isentrope.explain.alarms import OPENING
    from isentrope.tape import Tape
    from isentrope.train.alarms import of_chain, replay

    tape = Tape.read(run)
    evals = tape.evals.filter(tape.evals["metric"] == "entropy").sort("step")
    rung = [alarm for alarm in replay(tape, of_chain((), (), end=len(tape.steps))) if not alarm.over]
    failed = (run / "failed").is_file()
    if len(evals) < 2 and not failed:
        return None
    first = {name: next((alarm for alarm in rung if alarm.name == name), None) for name in ("collapse", "explosion")}
    interval = None if first["collapse"] is None else re.search(r"between update (\d+) .*?(?:and (\d+)|or never)", first["collapse"].number)
    entropy = tape.steps.sort("step")["entropy/mean"].to_list()
    level = 0.25 * sum(entropy[:OPENING]) / OPENING
    spent = next((at + 1 for at in range(len(entropy) - 2) if max(entropy[at : at + 3]) <= level), None)
    name = "/".join(run.parts[-2:]) if run.name.startswith("seed-") else run.name  # as `isentrope compare` lays them
    ratio = math.nan if failed else evals["value"][-1] / evals["value"][0]
    return Outcome(
        name, ratio, len(entropy), {name: None if one is None else one.step for name, one in first.items()},
        None if interval is None else (float(interval[1]), float(interval[2] or math.inf)), spent,
        tuple(f"{alarm.name} {alarm.step}" for alarm in rung if alarm.name not in first), failed,
    )  # fmt: skip


def quality(found: list[Outcome], name: str, truth: str) -> str:
    """A row: how often the alarm and the truth went together, over the runs that have a truth."""
    found = [one for one in found if not one.failed]
    rang, true = ([one.rang[name] is not None for one in found], [one.truth == truth for one in found])
    pairs = list(zip(rang, true, strict=True))
    hits, false, missed, silent = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    leads = sorted(one.last - at for one in found if (at := one.rang[name]) is not None and one.truth == truth)
    lead = f"{leads[len(leads) // 2]} (least {leads[0]})" if leads else ""
    return f"| {name} | {hits} | {false} | {missed} | {silent} | {share(hits, hits + false)} | {share(hits, hits + missed)} | {lead} |"


def share(count: int, of: int) -> str:
    """A share with Wilson's 95 % interval."""
    if not of:
        return "none"
    z, p = 1.96, count / of
    middle, half = (p + z * z / (2 * of)) / (1 + z * z / of), z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return f"{p:.2f} ({max(0.0, middle - half):.2f} to {min(1.0, middle + half):.2f})"


if __name__ == "__main__":
    main()
