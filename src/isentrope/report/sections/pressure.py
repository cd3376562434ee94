"""Which tokens pushed entropy: S against N, coloured by advantage, and the tokens with the largest push."""

import numpy as np
import polars as pl

from isentrope.report.data import Run, has, phases, values, within
from isentrope.report.figure import Section, figure, missing, switch, table
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.words import percent, short, whole

MAX_DOTS = 1200
"""Dots of one phase: the largest pushes, half of them, and a random sample of the rest."""
TABLE_ROWS = 10
_COLUMNS = ("step", "position", "S", "N", "advantage", "push", "entropy", "p", "weight")


def section(run: Run) -> Section:
    id, nav, title = "pressure", "Tokens", "Which tokens pushed entropy?"
    if not has(run.tokens, "S", "N"):
        return Section(id, nav, title, missing("No token rows with S and N on the tape yet (tape.tokens_every says how often they are taken)."))
    lead = element(
        "p",
        "A step that strengthens the sampled token by w · r · A moves the entropy of its state by ", element("em", "dH ≈ −η · w · r · A · (S − N)"),
        ": above the diagonal (S > N) a rewarded token lowers entropy and a punished one raises it; below, the other way round.", class_="lead",
    )  # fmt: skip
    known = phases(run.tokens["step"].to_list())
    options = [(str(at), f"{phase.name}" if len(known) > 1 else phase.title) for at, phase in enumerate(known)]
    chart = {
        "kind": "pressure",
        "x": "N, nats (expected S of the state)",
        "y": "S of the sampled token, nats",
        "phases": [_dots(run, phase) for phase in known],
    }
    shown = "; ".join(f"{phase.name}: {phase.title}" for phase in known)
    note = (
        f"One dot is one sampled token, its area the size of its push. At most {dots(run):,} dots a phase: half are the largest pushes, "
        f"half drawn at random. {shown[:1].upper()}{shown[1:]}."
    )
    provenance = f"S, N: {run.provenance('tokens.S')}"
    picture = figure(
        "pressure-plot", "S against N of the sampled tokens", note, provenance=provenance, tall=True, controls=switch("phase:pressure-plot", options, "When")
    )
    return Section(id, nav, title, join([lead, picture, _tokens(run)]), {"pressure-plot": chart})


def dots(run: Run) -> int:
    """How many dots a phase has at most."""
    return MAX_DOTS // 6 if run.lean else MAX_DOTS


def _dots(run: Run, phase) -> dict:
    rows = within(run.tokens, phase)
    s, n = values(rows, "S"), values(rows, "N")
    rows = rows.filter(pl.Series(np.isfinite(s) & np.isfinite(n)))
    push = np.abs(np.nan_to_num(values(rows, "push")))
    order, most = np.argsort(-push, kind="stable"), dots(run)
    if len(order) > most:
        rest = np.random.default_rng(0).permutation(order[most // 2 :])
        order = np.concatenate([order[: most // 2], rest[: most - most // 2]])
    rows = rows[order]
    found = {name: [float(value) for value in values(rows, name)] for name in _COLUMNS}
    text = rows["text"].to_list() if "text" in rows.columns else [""] * len(rows)
    return {"title": phase.title, "text": [visible(item or "", 40) for item in text], **found}


def _tokens(run: Run) -> Markup:
    """The token texts whose pushes sum to the largest fall and the largest rise."""
    if not has(run.tokens, "push") or "text" not in run.tokens.columns:
        return missing("The tape has no predicted pushes, so there is no table of tokens.")
    rows = run.tokens.filter(pl.col("push").is_not_null() & pl.col("push").is_finite())
    key = ["token_id", "text"] if "token_id" in rows.columns else ["text"]
    wanted = {"entropy": pl.col("entropy"), "advantage": pl.col("advantage")}
    extra = [expression.cast(pl.Float64).fill_nan(None).mean().alias(name) for name, expression in wanted.items() if name in rows.columns]
    sums = rows.group_by(key).agg(pl.col("push").sum().alias("sum"), pl.len().alias("count"), *extra).sort("sum", "text", maintain_order=True)
    total = float(rows["push"].abs().sum())
    if total <= 0:
        return missing("Every predicted push on the tape is zero: all advantages were 0, or the chain removed every token.")
    down, up = sums.filter(pl.col("sum") < 0).head(TABLE_ROWS), sums.filter(pl.col("sum") > 0).reverse().head(TABLE_ROWS)
    top = max(abs(float(value)) for frame in (down, up) for value in frame["sum"].to_list() or [0.0])
    boxes = [_box("Pushed entropy down", down, top, total, "down"), _box("Pushed entropy up", up, top, total, "up")]
    net = float(rows["push"].sum())
    note = (
        f"Summed over the {whole(len(rows))} sampled tokens of the run. Share: of the sum of all absolute pushes. "
        f"Together they push entropy {'down' if net < 0 else 'up'} ({percent(abs(net) / total)} of the absolute sum is left after both directions cancel). "
        "First-order contribution to the change of each token's own state, before the optimiser's preconditioning and momentum."
    )
    provenance = element(
        "p", element("span", "what it is", class_="tag"), " push: ", run.provenance("tokens.push"), "; per unit of learning rate", class_="provenance"
    )
    return join([element("div", join(boxes), class_="pair"), element("p", note, class_="note"), provenance])


def _box(title: str, frame: pl.DataFrame, top: float, total: float, way: str) -> Markup:
    if not len(frame):
        return element("div", element("h3", title), missing("No token did."))
    rows = []
    for row in frame.iter_rows(named=True):
        bar = _bar(abs(row["sum"]) / top, way)
        rows.append(
            [
                token_chip(row["text"]),
                bar,
                percent(abs(row["sum"]) / total),
                whole(row["count"]),
                short(row.get("entropy"), 2),
                short(_settled(row.get("advantage")), 2),
            ]
        )
    return element(
        "div", element("h3", title), table(["token", "push", "share", "count", "mean H, nats", "mean A"], rows, numeric=(2, 3, 4, 5), class_="tokens")
    )


def _settled(mean: float | None) -> float | None:
    """A mean advantage, 0 where only rounding is left of a sum that cancels."""
    return 0.0 if mean is not None and abs(mean) < 1e-9 else mean


def token_chip(text: str | None) -> Markup:
    """A token as people can tell it from its neighbours: spaces and line breaks drawn."""
    shown = visible(text or "", 40).replace(" ", "␣").replace("\n", "↵")
    return element("code", shown or "(empty)", class_="token")


def _bar(share: float, way: str) -> Markup:
    """A bar as SVG: its width is an attribute, so that the page needs no inline style."""
    rect = element("rect", width=f"{100 * share:.1f}", height="10", rx="1.5", class_=way)
    return element("svg", rect, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar", aria_hidden="true")
