"""Runs claims, one or all, and writes what came out: DIR/SLUG/result.json, DIR/SLUG/report.html, and one table of all.

A result that stands is not computed again while the claim's file and the seeds are the same, so a killed `--all` goes on where it was.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isentrope.errors import UserError
from isentrope.files import write_json_atomic, write_text_atomic
from isentrope.lab.bench import Bench
from isentrope.lab.claim import WORDS, Claim, Findings
from isentrope.lab.claims import claim_of, claims

RESULT = "result.json"
RUNS = "_runs"
Tell = Callable[[str], None]


def reproduce(slugs: Sequence[str] | None, out: Path, *, seeds: int | None = None, watcher: Any = None, tell: Tell = print) -> dict[str, dict[str, Any]]:
    """The results of these claims (None: of all) by slug; what is done already is read.

    One that fails for a reason of the input or the machine does not keep the others from running; the first such error is raised at the
    end. Raises UserError for an unknown slug, and for `seeds` below 1.
    """
    if seeds is not None and seeds < 1:
        raise UserError(f"reproduce: --seeds must be at least 1 (2 for an interval). Got {seeds}.")
    asked = [claim_of(slug) for slug in slugs] if slugs is not None else list(claims().values())
    results, failed = {}, None
    for at, claim in enumerate(asked, start=1):
        place = f"[{at}/{len(asked)}] {claim.slug}"
        done = standing(claim, out, seeds)
        if done is not None:
            tell(f"{place}: {done['verdict']} (done before, in {out / claim.slug})")
            results[claim.slug] = done
            continue
        tell(f"{place}: about {claim.minutes:.2g} minutes on one core")
        try:
            results[claim.slug] = one(claim, out, seeds=seeds, watcher=watcher)
        except UserError as error:
            failed = failed or error
            tell(f"{place}: failed: {error}")
            continue
        tell(f"{place}: {results[claim.slug]['verdict']} ({results[claim.slug]['seconds']:.0f} s of processor time)")
    if failed is not None:
        raise failed
    return results


def one(claim: Claim, out: Path, *, seeds: int | None = None, watcher: Any = None) -> dict[str, Any]:
    """Runs one claim and writes its result and its page."""
    from isentrope.lab import claim_page

    began = time.process_time()  # of this process alone: a machine that is shared tells nothing by the wall clock
    found = claim.measure(Bench(seeds or claim.seeds, out / RUNS, watcher))
    result = record(claim, found, seeds or claim.seeds, time.process_time() - began)
    write_json_atomic(out / claim.slug / RESULT, result)
    write_text_atomic(out / claim.slug / "report.html", claim_page.html(claim, found, result))
    return result


def record(claim: Claim, found: Findings, seeds: int, seconds: float) -> dict[str, Any]:
    """What result.json holds. Ends of an interval that are infinite are null there."""
    verdict = claim.verdict(found)
    return {
        "slug": claim.slug,
        "verdict": verdict.word,
        "expected": [
            {"of": item.key, "low": _finite(item.low), "high": _finite(item.high), "says": item.says, "outcome": outcome}
            for item, outcome in zip(claim.expects, verdict.outcomes, strict=False)
        ],
        "measured": [{name: _finite(value) for name, value in asdict(item).items()} | {"text": str(item)} for item in found.measurements],
        "notes": list(found.notes),
        "reach": claim.reach,
        "claim": {name: _words(claim, name) for name in ("title", "sentence", "figure", "source", "ours", "scale", "untested")},
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "command": command(claim.slug),
        "date": time.strftime("%Y-%m-%d"),
        "isentrope": _version("isentrope"),
        "torch": _version("torch"),
        "fingerprint": claim.fingerprint(),
    }


def standing(claim: Claim, out: Path, seeds: int | None) -> dict[str, Any] | None:
    """The result of this very claim and these seeds that lies in `out`; None where there is none, or a damaged one."""
    path = out / claim.slug / RESULT
    if not (path.is_file() and (path.parent / "report.html").is_file()):
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["fingerprint"] == claim.fingerprint() and found["seeds"] == (seeds or claim.seeds) and found["verdict"] in WORDS
    except (ValueError, KeyError, TypeError):
        return None
    return found if same else None


def command(slug: str) -> str:
    return f"isentrope reproduce {slug}"


def done(out: Path, seeds: int | None = None) -> dict[str, dict[str, Any]]:
    """The results that stand in `out`, by slug; nothing is run."""
    found = {slug: standing(claim, out, seeds) for slug, claim in claims().items()}
    return {slug: result for slug, result in found.items() if result is not None}


# --- the table of the docs


PROVISO = (
    "The rule of a verdict stands in code beside its experiment, but not every experiment was fixed before its first numbers: after trial runs of one to eight",
    "seeds the tasks, rates and seed counts of several were changed, and the expectations of aem-agentic, the budget of invisible-leash and the share of",
    "forking-tokens as well (the first settings of the last two are still shown). The world of aepo-arbitrary is a second one: in the first the targets lay",
    "beyond what right answers leave, and prompts came in one order. Read the verdicts as provisional.",
)  # fmt: skip


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/reproduce.md: the verdicts counted, one row per paper, what has an experiment and no result yet, and the rule."""
    rows = [results[slug] for slug in sorted(results)]
    absent = [slug for slug in claims() if slug not in results]
    counts = ", ".join(f"{sum(row['verdict'] == word for row in rows)} {word}" for word in WORDS)
    minutes = sum(row["seconds"] for row in rows) / 60
    head = "| paper | claim | their figure | ours | scale | verdict |"
    return "\n".join(
        [
            "# Reproduced here", "",
            "For every paper of reinforcement fine-tuning that is implemented: its central claim, made small. This page is written by",
            "`isentrope reproduce --all --table docs/reproduce.md` and never typed (`--done` in place of `--all` runs nothing and tells what stands); a",
            "paper's own page, with a picture, comes from",
            "`isentrope reproduce SLUG`.", "",
            f"{len(rows)} claims: {counts}. {minutes:.0f} minutes of one core.", "",
            *PROVISO, "",
            head, "|---|---|---|---|---|---|", *map(_row, rows), "",
            *([f"With an experiment that has not been run for this page: {', '.join(absent)}.", ""] if absent else []),
            "## What the words mean", "",
            "The rule stands in the code before the numbers (`isentrope.lab.claim`). Every claim names what it expects of its measurements; an",
            "expectation holds or fails where the whole 95 % interval (Student's, over seeds) lies on one side, and is open otherwise.", "",
            "- confirmed: every expectation holds.",
            "- refuted: the central one fails, or nothing holds and something fails. At this scale: a bandit or a model of a million parameters is no",
            "  language model of seven billion.",
            "- partly: the central one holds and another does not, or it is open and another holds.",
            "- out of reach here: every expectation is open, or nothing small can tell; the reason stands below.", "",
            "## One by one", "", *(line for row in rows for line in _entry(row)),
        ]
    )  # fmt: skip


def _row(row: Mapping[str, Any]) -> str:
    """Of the first expectation's measurement; the others stand below the table."""
    decisive = row["expected"][0]["of"] if row["expected"] else None
    first = next((item for item in row["measured"] if item["key"] == decisive), None)
    ours = f"{first['what']}: {first['text']}" if first else "-"
    cells = (f"[{row['slug']}](#{row['slug']})", row["claim"]["sentence"], row["claim"]["figure"], ours, row["claim"]["scale"], row["verdict"])
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _entry(row: Mapping[str, Any]) -> list[str]:
    claim = row["claim"]
    outcomes = [f"- expected that {item['says']}: **{item['outcome']}**" for item in row["expected"]]
    return [
        f"### {row['slug']}", "", f"*{claim['title']}*", "", f"**{row['verdict']}.** {claim['ours']}", "",
        *outcomes, *([f"- {row['reach']}"] if row["reach"] else []), "",
        "| measured | value | over |", "|---|---|---|",
        *(f"| {_cell(item['what'])} | {item['text']} | {item['of']} |" for item in row["measured"]), "",
        *(f"{_cell(note)}\n" for note in row["notes"]),
        f"Their figure: {claim['source']}. Not tested: {claim['untested'] or 'nothing of the sentence above'}.",
        f"`{row['command']}`, {row['seconds']:.0f} s of processor time, {row['date']}.", "",
    ]  # fmt: skip


# --- parts


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _words(claim: Claim, name: str) -> str:
    return str(claim.__dict__[name])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
