"""Why entropy moved: the ledger as a bookkeeper keeps it, which theory predicted the change, and whose doing it was."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from isentrope.explain.agreement import THIRDS, Agreement, Figure, by_thirds
from isentrope.explain.ledger import ACCOUNTS, CLASSES, THEORIES
from isentrope.report.data import Run, has, values
from isentrope.report.figure import Section, figure, line, lines, missing, switch, table, thinned, thinning_note
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.sections.pressure import token_chip
from isentrope.report.words import NONE, interval, percent, short, whole

ID, NAV, TITLE = "ledger", "Ledger", "Why did entropy move?"
TABLE_ROWS = 12
NAMES = {
    "this_batch": "this batch", "momentum": "momentum of earlier batches", "weight_decay": "weight decay", "gradient_clipping": "gradient clipping",
    "residual": "residual (higher orders)",
}  # fmt: skip
TITLES = {
    "exact": "exact: ⟨∇H half-way, Δθ⟩",
    "first_order": "first order: ⟨∇H, Δθ⟩",
    "token_rule": "token rule: −w r A (S − N)",
    "omega": "omega (STEER)",
    "covariance": "covariance (Clip-Cov)",
}
DIVISIONS = {
    "advantage": ("By the sign of the advantage", {"A > 0": "A > 0", "A < 0": "A < 0", "A = 0": "A = 0"}),
    "correct": ("By the verdict on the response", {"right": "right", "wrong": "wrong", "not judged": "not judged"}),
    "position": ("By place in the response", {f"tenth-{at:02d}": ("1st", "2nd", "3rd")[at - 1] if at < 4 else f"{at}th" for at in range(1, 11)}),
    "class": ("By kind of token", {name: name for name in CLASSES}),
}
COLOURS = {"measured": "ink", "this_batch": "entropy", "momentum": "learn", "residual": "minus"}


def section(run: Run) -> Section:
    rows = run.ledger.sort("step")
    if not has(rows, "measured", "theory/exact"):
        return Section(ID, NAV, TITLE, missing("No ledger on the tape: ledger.every says how often one is kept (null: never), the first is of update 1."))
    agreed = {
        name: by_thirds(values(rows, "step"), values(rows, f"theory/{name}"), values(rows, "measured")) for name in THEORIES if has(rows, f"theory/{name}")
    }
    charts: dict = {}
    parts = [_books(run, rows), _pictures(run, rows, agreed, charts), _theories(agreed), _attribution(run, rows, charts), _tokens(run), _links(run, rows)]
    return Section(ID, NAV, TITLE, join(part for part in parts if part is not None), charts, lead=_lead(rows, agreed["exact"]["all"]))


def _thirds(rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The ledgers of the first, second and last third of the run, in order; empty ones left out."""
    found = {name: rows[at.tolist()] for name, at in zip(THIRDS, np.array_split(np.arange(len(rows)), 3), strict=True)}
    return {name: frame for name, frame in found.items() if len(frame)}


def _lead(rows: pl.DataFrame, exact: Agreement) -> str:
    measured = values(rows, "measured")
    steps = values(rows, "step")
    every = f"every {int(np.median(np.diff(steps)))}th update" if len(rows) > 2 else "an update"
    said = [f"A ledger of {every} ({len(rows)} in all): entropy of the same tokens, before the optimiser's step and after it."]
    total = float(np.nansum(measured))
    if has(rows, "account/this_batch") and total:
        share = {name: float(np.nansum(values(rows, f"account/{name}"))) / total for name in ACCOUNTS}
        said.append(
            f"Of the change that was measured, the update's own batch made {percent(share['this_batch'])}, momentum of earlier batches "
            f"{percent(share['momentum'])}; what no account explains is {percent(share['residual'])}."
        )
    if np.isfinite(exact.correlation.value):
        said.append(f"The entropy's gradient along the real update foretold it with correlation {_range(exact.correlation)} and slope {_range(exact.slope)}.")
    return " ".join(said)


def _range(found: Figure) -> str:
    if not np.isfinite(found.value):
        return NONE
    return f"{short(found.value)} ({short(found.low)} to {short(found.high)})" if np.isfinite(found.low) else short(found.value)


# --- the books


def _books(run: Run, rows: pl.DataFrame) -> Markup:
    """Opening entropy, contributions, closing entropy: means per update, which balance because means add up."""
    columns = {"whole run": rows, **_thirds(rows)} if len(rows) >= 3 else {"so far": rows}
    known = [name for name in ACCOUNTS if has(rows, f"account/{name}")]
    total = _mean(rows, "measured")

    def entry(title: str | Markup, name: str, part: bool = True) -> list:
        found = _mean(rows, name)
        shown = [_signed(_mean(frame, name)) if part else short(_mean(frame, name), 4) for frame in columns.values()]
        return [title, *shown, (percent(found / total + 0.0) if total and found is not None else NONE) if part else ""]

    body = [entry(element("strong", "opening entropy"), "opening", part=False)]
    if len(known) == 1:
        body.append(entry("the optimiser's update as a whole", "theory/exact"))
    body += [entry(NAMES[name], f"account/{name}") for name in known]
    body += [entry("change that was measured", "measured"), entry(element("strong", "closing entropy"), "closing", part=False)]
    head = ["nats per update, mean", *columns, "of the change"]
    note = (
        "Each column balances: the contributions add up to the change. An account is the entropy's gradient, taken half-way, along that part of the "
        "optimiser's update. Under Adam a batch acts through momentum for many updates more, so its own update shows only a part of what it does."
    )
    if len(known) == 1:
        note = "This optimiser's update cannot be split, so there is one account and the residual."
    stamp = element("p", element("span", "what it is", class_="tag"), f" entropy: {run.provenance('ledger.opening')}", class_="provenance")
    return join([table(head, body, numeric=range(1, len(columns) + 2), class_="books"), element("p", note, class_="note"), stamp])


def _mean(frame: pl.DataFrame, name: str) -> float | None:
    return float(np.nanmean(values(frame, name))) if has(frame, name) else None


def _signed(value: float | None) -> str:
    return NONE if value is None else f"+{short(value)}" if value > 0 else short(value)


def _pictures(run: Run, rows: pl.DataFrame, agreed: Mapping[str, Mapping[str, Agreement]], charts: dict) -> Markup:
    x = values(rows, "step")
    names = ["measured", *(f"account/{name}" for name in ("this_batch", "momentum", "residual") if has(rows, f"account/{name}"))]
    step, *series = thinned(x, *(values(rows, name) for name in names))
    shown = []
    for name, y in zip(names, series, strict=True):
        key = name.removeprefix("account/")
        label = {"this_batch": "this batch", "measured": "measured"}.get(key, key)
        shown.append(line(NAMES.get(key, key), step, y, COLOURS[key], width=3 if key == "measured" else 2, label=label, marks=len(step) < 3))
    charts["ledger-updates"] = lines(shown, x="update", y="change of mean entropy, nats", unit="nats", zero=False, rule=0.0)
    over = figure(
        "ledger-updates", "What moved entropy, update by update", "Below zero: entropy fell.", thinning_note(x), provenance=run.provenance("ledger.measured")
    )
    third = np.repeat(np.array(THIRDS), [len(part) for part in np.array_split(x, 3)]).tolist()
    measured = values(rows, "measured")
    theories = []
    for name in [name for name in TITLES if name in agreed]:
        predicted, slope = values(rows, f"theory/{name}"), agreed[name]["all"].slope.value
        kept = np.isfinite(predicted) & np.isfinite(measured)
        intercept = float(measured[kept].mean() - slope * predicted[kept].mean()) if kept.any() and np.isfinite(slope) else None
        theories.append({
            "title": TITLES[name], "own": name in ("exact", "first_order"), "predicted": [float(value) for value in predicted],
            "slope": float(slope) if np.isfinite(slope) else None, "intercept": intercept,
        })  # fmt: skip
    charts["ledger-agreement"] = {
        "kind": "agreement", "x": "predicted by {theory}, nats", "y": "measured change, nats", "theories": theories, "third": third,
        "step": [int(value) for value in x], "measured": [float(value) for value in measured], "opening": [float(value) for value in values(rows, "opening")],
    }  # fmt: skip
    controls = element(
        "div",
        switch("theory:ledger-agreement", [(str(at), name.replace("_", " ")) for at, name in enumerate(n for n in TITLES if n in agreed)], "Theory"),
        switch("range:ledger-agreement", (("all", "all"), ("small", "smaller half")), "Show"),
        class_="switches",
    )
    note = (
        "One dot is one update; the line is the least-squares fit. The first two are in nats, so their dots should lie on the diagonal; the others know one "
        "token's state alone, and only their direction counts."
    )
    scatter = figure("ledger-agreement", "Predicted against measured", note, tall=True, controls=controls)
    return join([over, scatter])


def _theories(agreed: Mapping[str, Mapping[str, Agreement]]) -> Markup:
    names = [name for name in TITLES if name in agreed]
    over, thirds = [], []
    for name in names:
        found = agreed[name]["all"]
        over.append([TITLES[name], _range(found.correlation), _share_range(found.sign_agreement), _range(found.slope)])
        thirds.append(
            [name.replace("_", " "), *(_range(agreed[name][third].correlation) for third in THIRDS), *(_slope(agreed[name][third]) for third in THIRDS)]
        )
    note = (
        "Measured against predicted over the updates with a ledger; 95 % intervals in brackets (blocks of neighbouring updates resampled; Wilson for signs). "
        "Slope: nats measured per nat predicted. Of the token theories it says how much more a network with shared weights moves under its optimiser than "
        "states with logits of their own under plain gradient descent. Where the change has become tiny, as in the last third, figures carry no bar."
    )
    return join([
        table(["theory", "correlation", "same sign", "slope"], over, numeric=range(1, 4)),
        table(["by thirds", *(f"correlation, {third}" for third in THIRDS), *(f"slope, {third}" for third in THIRDS)], thirds, numeric=range(1, 7)),
        element("p", note, class_="note"),
    ])  # fmt: skip


def _share_range(found: Figure) -> str:
    return f"{percent(found.value)} ({interval(found.low, found.high)})" if np.isfinite(found.value) else NONE


def _slope(found: Agreement) -> str:
    return short(found.slope.value) if np.isfinite(found.slope.value) else NONE


# --- whose doing


def _attribution(run: Run, rows: pl.DataFrame, charts: dict) -> Markup:
    parts = run.ledger_parts
    if not has(parts, "part"):
        return missing("The parts of single tokens are not on the tape: no account of this batch was kept.")
    account = float(np.nansum(values(rows, "attributed")))
    boxes = []
    for by, (title, kinds) in DIVISIONS.items():
        found = parts.filter(pl.col("by") == by).group_by("kind").agg(pl.col("part").sum(), pl.col("tokens").sum())
        known = {row["kind"]: row for row in found.iter_rows(named=True)}
        tokens = sum(row["tokens"] or 0 for row in known.values())
        chosen = [(label, known[kind]) for kind, label in kinds.items() if kind in known and known[kind]["tokens"]]
        if not chosen or not tokens:
            continue
        charts[f"ledger-{by}"] = {
            "kind": "bars", "x": "part of the batch's account, nats, summed over the ledgers", "label": [label for label, _ in chosen],
            "value": [float(row["part"]) for _, row in chosen], "share": [float(row["part"]) / account if account else None for _, row in chosen],
            "tokens": [row["tokens"] / tokens for _, row in chosen],
        }  # fmt: skip
        boxes.append(figure(f"ledger-{by}", title, None))
    error = _error(rows)
    note = (
        "The account of this batch is a sum over the update's tokens: the part of each is the derivative of its own loss along u = P∇H, P the optimiser's "
        f"scaling of this gradient. Left: lowered entropy; right: raised it.{error}{_responses(parts)}"
    )
    return join([element("h3", "Whose doing was it?", class_="sub"), element("p", note, class_="note"), element("div", join(boxes), class_="pair")])


def _error(rows: pl.DataFrame) -> str:
    if not has(rows, "attributed", "account/this_batch", "raised", "lowered"):
        return ""
    gap = np.abs(values(rows, "attributed") - values(rows, "account/this_batch"))
    gross = float(np.nansum(values(rows, "raised") - values(rows, "lowered")))
    up, down = float(np.nansum(values(rows, "raised"))), float(np.nansum(values(rows, "lowered")))
    missed = percent(float(np.nansum(gap)) / gross) if gross else NONE
    return f" Tokens that raised entropy sum to +{short(up)} nats, the others to {short(down)}; the parts miss the accounts by {missed} of both together."


def _responses(parts: pl.DataFrame) -> str:
    found = parts.filter(pl.col("by") == "response").with_columns(pl.col("part").abs().alias("size")).sort("step", "size", descending=[False, True])
    if not len(found) or not float(found["size"].sum()):
        return ""
    top = found.group_by("step", maintain_order=True).agg(pl.col("size").head(pl.len() // 10 + 1).sum().alias("top"), pl.col("size").sum().alias("all"))
    return f" The tenth of the responses with the largest parts holds {percent(float(top['top'].sum()) / float(top['all'].sum()))} of all responses' parts."


def _tokens(run: Run) -> Markup | None:
    rows = run.ledger_tokens
    if not has(rows, "part"):
        return None
    thirds = np.array_split(np.unique(values(run.ledger, "step")).astype(int), 3)
    sized = [rows.filter(pl.col("step").is_in(steps.tolist())).with_columns(pl.col("part").abs().alias("size")) for steps in thirds if len(steps)]
    most = pl.concat([frame.sort("size", descending=True).head(TABLE_ROWS // 3) for frame in sized])
    single = []
    for row in most.iter_rows(named=True):
        correct = row.get("correct")
        verdict = NONE if correct is None or correct != correct else "right" if correct > 0 else "wrong"
        before = element("code", visible(row.get("before") or "", 40).replace("\n", "↵"), class_="before")
        single.append(
            [
                join([before, token_chip(row.get("text"))]),
                _signed(row["part"]),
                whole(row["step"]),
                _signed(row.get("advantage")),
                verdict,
                short(row.get("entropy"), 2),
            ]
        )
    texts = run.ledger_parts.filter(pl.col("by") == "text").group_by("kind").agg(pl.col("part").sum(), pl.col("tokens").sum())
    texts = texts.with_columns(pl.col("part").abs().alias("size")).sort("size", descending=True).head(TABLE_ROWS)
    kinds = [[token_chip(row["kind"]), whole(row["tokens"]), _signed(row["part"])] for row in texts.iter_rows(named=True)]
    return element(
        "div",
        element(
            "div",
            element("h3", "The most responsible tokens of each third"),
            table(["text before, token", "part, nats", "update", "A", "verdict", "H, nats"], single, numeric=(1, 2, 3, 5), class_="whose"),
        ),
        element("div", element("h3", "The same by text, over all ledgers"), table(["token", "times", "part, nats"], kinds, numeric=(1, 2), class_="whose")),
        class_="pair",
    )


def _links(run: Run, rows: pl.DataFrame) -> Markup | None:
    """What each intervention removed or added, by the token rule."""
    names = [name for name in rows.columns if name.startswith("link/")]
    if not names:
        return None
    whole_rule = float(np.nansum(values(rows, "theory/token_rule")))
    body = []
    for name in names:
        added = float(np.nansum(values(rows, name)))
        without = whole_rule - added
        body.append(
            [element("code", name.removeprefix("link/")), _signed(without), _signed(added), _signed(whole_rule), percent(-added / without) if without else NONE]
        )
    head = ["intervention", "predicted without it", "it added", "with the whole chain", "removed"]
    note = (
        "Nats of the token rule, summed over the ledgers, in its own scale (see its slope): what it predicts for the update with the intervention less what it "
        "predicts without. Removed: the share of the predicted change that the intervention takes away; below zero it added to it."
    )
    return join([element("h3", "By intervention", class_="sub"), table(head, body, numeric=(1, 2, 3, 4)), element("p", note, class_="note")])
