"""What it wrote: sampled completions, token by token, early and late, right and wrong."""

import polars as pl

from isentrope.report.data import Phase, Run, phases, texts, values, within
from isentrope.report.figure import Section, missing, switch
from isentrope.report.markup import element, join, visible
from isentrope.report.words import finite

PER_CELL = 4
"""Samples of each phase (early, late) and outcome (right, wrong)."""
MAX_TOKENS = 400
MAX_TOKEN = 60
"""Characters of one token."""
MAX_PROMPT = 2_000
MAX_COMPLETION = 6_000
_SIGNALS = ("entropy", "S", "N", "p", "log_prob", "advantage", "weight", "push")


def section(run: Run) -> Section:
    id, nav, title = "samples", "Samples", "What did it write?"
    if not {"step", "completion"} <= set(run.samples.columns) or not len(run.samples):
        return Section(id, nav, title, missing("No sampled completions on the tape yet."))
    found = chosen(run)
    scales = {"entropy": _top(run, "entropy"), "advantage": _top(run, "advantage"), "push": _top(run, "push")}
    data = {"kind": "samples", "links": list(run.links), "scales": scales, "items": [_sample(run, phase, row) for phase, row in found]}
    names = list(dict.fromkeys(phase.name for phase, _ in found))
    switches = [
        switch("when", [(name, name) for name in names] if len(names) > 1 else [("all", "all")], "When"),
        switch("outcome", [("all", "all"), ("right", "right"), ("wrong", "wrong")], "Answer"),
        switch("colour", [("entropy", "entropy"), ("advantage", "advantage"), ("weight", "weight"), ("push", "push")], "Colour"),
    ]
    key = element("div", id="samples-key", class_="key")
    note = element(
        "p",
        "Hover over a token, tap it, or step through a completion with the arrow keys. S, N, entropy in nats; "
        "push: predicted change of entropy per unit of learning rate.",
        class_="note",
    )
    provenance = element("p", element("span", "what it is", class_="tag"), " entropy: ", run.provenance("tokens.entropy"), class_="provenance")
    return Section(
        id,
        nav,
        title,
        join([element("div", join(switches), class_="controls"), key, element("div", id="samples-list"), note, provenance]),
        {"samples-list": data},
    )


def chosen(run: Run) -> list[tuple[Phase, dict]]:
    """Samples of the first and the last fifth, at most PER_CELL of each outcome, spread over groups; those with token rows come first."""
    detailed = set(run.tokens["row_id"].to_list()) if "row_id" in run.tokens.columns else set()
    known, count = phases(run.samples["step"].to_list()), 1 if run.lean else PER_CELL
    found: list[tuple[Phase, dict]] = []
    for phase in dict.fromkeys((known[0], known[-1])):
        rows = within(run.samples, phase).to_dicts()
        rows = rows if phase.name == "early" else rows[::-1]
        for right in (True, False):
            cell = [row for row in rows if _right(row) is right]
            found += [(phase, row) for row in _spread(sorted(cell, key=lambda row: row.get("row_id") not in detailed), count)]
        if not any(item is phase for item, _ in found):  # no outcome known
            found += [(phase, row) for row in _spread(rows, count)]
    return found


def _spread(rows: list[dict], count: int) -> list[dict]:
    """The first `count` rows, of different groups as far as there are so many."""
    seen: set = set()
    fresh, again = [], []
    for row in rows:
        (again if row.get("group") in seen else fresh).append(row)
        seen.add(row.get("group"))
    return (fresh + again)[:count]


def _right(row: dict) -> bool | None:
    value = row.get("correct")
    value = float(value) if isinstance(value, bool) else finite(value)
    return None if value is None else value >= 0.5


def _sample(run: Run, phase: Phase, row: dict) -> dict:
    right = _right(row)
    figures = {name: finite(row.get(name)) for name in ("step", "reward", "length", "advantage", "entropy")}
    tokens = _tokens(run, row)
    return figures | {
        "phase": phase.name,
        "outcome": "unknown" if right is None else "right" if right else "wrong",
        "truncated": bool(row.get("truncated")),
        "origin": str(row.get("origin") or "policy"),
        "answer": visible(str(row.get("answer") or ""), 200),
        "prompt": visible(str(row.get("prompt") or ""), MAX_PROMPT),
        "completion": None if tokens else visible(str(row.get("completion") or ""), MAX_COMPLETION),
        "tokens": tokens,
    }


def _tokens(run: Run, row: dict) -> dict | None:
    """The token rows of a sample, as columns; None where the tape has none. A response may be on the tape of several updates: the first counts."""
    if not {"row_id", "step", "position"} <= set(run.tokens.columns) or row.get("row_id") is None:
        return None
    rows = run.tokens.filter((pl.col("row_id") == row["row_id"]) & (pl.col("step") >= row["step"]) & pl.col("position").is_not_null())
    if not len(rows):
        return None
    rows = rows.filter(pl.col("step") == pl.col("step").min()).unique("position", keep="first").sort("position")
    cut, rows = max(0, len(rows) - MAX_TOKENS), rows.head(MAX_TOKENS)
    touched = {str(at): (values(rows, f"link/{link}") == 1).astype(int).tolist() for at, link in enumerate(run.links) if f"link/{link}" in rows.columns}
    columns = {name: [float(value) for value in values(rows, name)] for name in _SIGNALS if name in rows.columns}
    return {
        "text": [visible(text, MAX_TOKEN) for text in texts(rows, "text")],
        "position": rows["position"].to_list(),
        "columns": columns,
        "touched": touched,
        "cut": cut,
    }


def _top(run: Run, name: str) -> float | None:
    """The 99 % quantile of a token column's size: where its colour scale ends."""
    found = abs(pl.Series(values(run.tokens, name)).drop_nans())
    top = found.quantile(0.99) if len(found) else None
    return float(top) if top else None
