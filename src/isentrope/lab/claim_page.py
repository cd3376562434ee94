"""The page of one claim: what was said, what came out here, the verdict and its rule, a picture, and how to run it again."""

from collections.abc import Mapping
from typing import Any

from isentrope.lab.claim import Claim, Findings
from isentrope.report.figure import Section, figure, pairs, table
from isentrope.report.markup import Markup, element, join
from isentrope.report.page import document

TONE = {"confirmed": "good", "refuted": "bad", "partly": "warn", "out of reach here": "muted"}
STYLE = "\n".join(f".verdict.{tone}{{color:var(--{tone})}}" for tone in sorted(set(TONE.values()))) + "\n.verdict{font-size:1.6em;font-weight:650}"


def html(claim: Claim, found: Findings, result: Mapping[str, Any]) -> str:
    """The whole page as text. Raises UserError if plotly is missing."""
    made = f"Made by isentrope {result['isentrope']} on {result['date']} in {result['seconds']:.0f} s of processor time."
    foot = f"{made} The file requests nothing; entropies are in nats."
    return document(f"{claim.slug} · reproduced", _head(claim, result), [_outcome(claim, found, result), _said(claim, result)], foot, style=STYLE)


def _head(claim: Claim, result: Mapping[str, Any]) -> Markup:
    word = result["verdict"]
    return element(
        "header",
        join([
            element("h1", f"{claim.slug}: {claim.title}"),
            element("p", f"“{claim.sentence}”", class_="lead"),
            element("p", word[0].upper() + word[1:], class_=f"verdict {TONE[word]}"),
        ]),
        id="top",
    )  # fmt: skip


def _outcome(claim: Claim, found: Findings, result: Mapping[str, Any]) -> Section:
    known = found.by_key()
    decided = [(f"Expected: {item['says']}", str(known[item["of"]]), item["outcome"]) for item in result["expected"]]
    parts = [table(("what the claim expects", "measured, 95 % interval", "outcome"), decided)] if decided else []
    parts += [element("p", line) for line in claim.rule()]
    charts = {}
    for at, picture in enumerate(found.pictures):
        charts[f"picture-{at}"] = dict(picture.chart)
        parts.append(figure(f"picture-{at}", picture.title, picture.note))
    parts.append(table(("measured", "value, 95 % interval", "over"), [(item.what, str(item), item.of) for item in found.measurements]))
    parts += [element("p", note) for note in found.notes]
    return Section("outcome", "Outcome", "What came out here", join(parts), charts, lead=claim.ours)


def _said(claim: Claim, result: Mapping[str, Any]) -> Section:
    rows = [
        ("their figure", claim.figure), ("where it stands", claim.source), ("our scale", claim.scale), ("seeds", result["seeds"]),
        ("not tested", claim.untested or "nothing of the sentence above"), ("run it again", element("code", result["command"])),
    ]  # fmt: skip
    return Section("claim", "The claim", "What was said, and how it was tested", pairs(rows))
