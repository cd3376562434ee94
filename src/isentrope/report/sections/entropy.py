"""Where entropy went: over updates with its quantiles, and by position in the completion."""

import numpy as np
import polars as pl

from isentrope.report.data import FEW, NOT_RECORDED, Run, edges, has, phases, values, within
from isentrope.report.figure import Section, figure, line, lines, missing, switch, thinned, thinning_note
from isentrope.report.markup import element, join
from isentrope.report.words import finite, moved, short, times

MAX_POSITIONS = 80
MAX_COLUMNS = 80
MIN_TOKENS = 3
"""Tokens that a mean by position rests on at least."""


def section(run: Run) -> Section:
    if not has(run.steps, "entropy/mean"):
        return Section(
            "entropy",
            "Entropy",
            "Where did entropy go?",
            missing("No entropy on the tape yet: no update has finished, or step rows are switched off (tape.steps)."),
        )
    x = values(run.steps, "step")
    names = ("mean", "q05", "q25", "q50", "q75", "q95")
    step, mean, q05, q25, q50, q75, q95 = thinned(x, *(values(run.steps, f"entropy/{name}") for name in names))
    series = []
    if has(run.steps, "entropy/q05", "entropy/q95"):
        series.append(line("middle 90 %", step, q50, "entropy", low=q05, high=q95, band="middle 90 % of tokens", width=0))
    if has(run.steps, "entropy/q25", "entropy/q75"):
        series.append(line("middle 50 %", step, q50, "entropy", low=q25, high=q75, band="middle 50 % of tokens", width=0))
    if has(run.steps, "entropy/q50"):
        series.append(line("median token", step, q50, "entropy-2", width=1.5, dash="dot", label="median"))
    series.append(line("mean", step, mean, "entropy", width=3, label="mean", marks=len(step) < 3))
    chart = lines(series, x="update", y="token entropy, nats", unit="nats")
    notes = ["Thick: mean over the trained tokens of each update. Bands: the middle 50 % and 90 % of these tokens; dotted: the median."]
    provenance = run.provenance("steps.entropy/mean")
    if provenance != NOT_RECORDED:
        provenance += "; bands and median: quantiles over the same tokens"
    body = figure("entropy-steps", "Token entropy over updates", *notes, thinning_note(x), provenance=provenance, tall=True, controls=_scale_switch())
    return Section("entropy", "Entropy", "Where did entropy go?", body, {"entropy-steps": chart}, lead=_lead(x, values(run.steps, "entropy/mean")))


def _scale_switch():
    return switch("scale:entropy-steps", (("linear", "linear"), ("log", "logarithmic")), "Scale")


def _lead(step: np.ndarray, mean: np.ndarray) -> str:
    ends = edges(mean)
    if ends is None or len(mean) < FEW:
        return ""
    start, end = ends
    way = moved(start, end)
    if way == "stayed":
        return f"Mean token entropy of the training responses stayed near {short(end)} nats."
    text = f"Mean token entropy of the training responses {way} from {short(start)} to {short(end)} nats (first and last twentieth of the updates)"
    if way == "rose":
        return text + "."
    text += f", {times(end / start)} of its start"
    half = np.flatnonzero(_running(mean) <= (start + end) / 2)
    return text + (f"; half of the fall was over by update {int(step[half[0]])}." if half.size else ".")


def _running(y: np.ndarray, window: int = 5) -> np.ndarray:
    """Centred running mean that skips what is missing."""
    valid = np.isfinite(y).astype(float)
    kernel = np.ones(min(window, len(y)))
    sums, counts = np.convolve(np.nan_to_num(y), kernel, "same"), np.convolve(valid, kernel, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


# --- by position


def by_position(run: Run) -> Section:
    id, nav, title = "position", "Position", "Where in the answer?"
    if not has(run.tokens, "step", "position", "entropy"):
        return Section(id, nav, title, missing("No token rows on the tape yet (tape.tokens_every says how often they are taken)."))
    tokens = run.tokens.filter(pl.col("entropy").is_not_nan() & pl.col("entropy").is_not_null() & pl.col("position").is_not_null())
    width = max(1, -(-(int(tokens["position"].to_numpy().max()) + 1) // MAX_POSITIONS))
    tokens = tokens.with_columns((pl.col("position") // width * width).alias("bin"))
    series, known = [], phases(tokens["step"].to_list())
    colours = {1: (3,), 2: (1, 3), 3: (1, 2, 3)}[len(known)]
    for at, phase in zip(colours, known, strict=True):
        rows = within(tokens, phase).group_by("bin").agg(pl.col("entropy").mean(), pl.len().alias("tokens")).filter(pl.col("tokens") >= MIN_TOKENS).sort("bin")
        if len(rows):
            series.append(
                line(
                    f"{phase.name}, {phase.title}",
                    values(rows, "bin"),
                    values(rows, "entropy"),
                    f"entropy-{at}",
                    label=phase.name,
                    width=2.5,
                    marks=len(rows) < 3,
                )
            )
    charts = {"entropy-position": lines(series, x="position in the completion, tokens", y="token entropy, nats", unit="nats")}
    provenance = run.provenance("tokens.entropy")
    note = (
        f"Mean over the sampled tokens at each position{f' (bins of {width})' if width > 1 else ''}, where there are at least {MIN_TOKENS}. "
        + "; ".join(f"{phase.name}: {phase.title}" for phase in known)
        + "."
    )
    parts = [figure("entropy-position", "Entropy by position", note, provenance=provenance)]
    if tokens["step"].n_unique() >= 4:
        charts["entropy-map"] = _map(tokens, width)
        parts.append(
            figure(
                "entropy-map",
                "The same over the whole run",
                "Each column is one update, or a few; blank is where no completion reaches.",
                provenance=provenance,
            )
        )
    return Section(id, nav, title, element("div", join(parts), class_="pair"), charts, lead=_where(tokens, known))


def _map(tokens: pl.DataFrame, width: int) -> dict:
    """Mean entropy by update (columns, at most MAX_COLUMNS) and position (rows)."""
    steps = np.unique(tokens["step"].to_numpy())
    columns = [group for group in np.array_split(steps, min(len(steps), MAX_COLUMNS)) if len(group)]
    index = {int(step): at for at, group in enumerate(columns) for step in group}
    rows = tokens.with_columns(pl.col("step").replace_strict(index).alias("column")).group_by("column", "bin").agg(pl.col("entropy").mean())
    grid = np.full((int(tokens["bin"].to_numpy().max()) // width + 1, len(columns)), np.nan)
    grid[rows["bin"].to_numpy() // width, rows["column"].to_numpy()] = rows["entropy"].to_numpy()
    top = float(np.nanquantile(grid, 0.99))
    return {
        "kind": "map", "x": "update", "y": "position, tokens", "z": "token entropy, nats", "steps": [int(group[-1]) for group in columns],
        "positions": [at * width for at in range(len(grid))], "values": [[float(value) for value in row] for row in grid], "top": top,
    }  # fmt: skip


def _where(tokens: pl.DataFrame, known) -> str:
    """Which tokens keep the entropy at the end: the share of it that the most uncertain tenth of the tokens holds."""
    late = within(tokens, known[-1])["entropy"].sort(descending=True).to_numpy()
    total = finite(float(late.sum())) if late.size else None
    if total is None or total <= 0 or late.size < 20:
        return ""
    share = float(late[: max(1, late.size // 10)].sum() / total)
    return f"Entropy sits on few tokens: in {known[-1].title} the most uncertain tenth of the sampled tokens held {share:.0%} of it.".replace("%", "\u00a0%")
