"""The page of `isentrope measure`: a text in the colours of its entropies, and what heads and layers were about it.

Text, token names and file names are untrusted: they go through `element` and `script_json` like everything in a report.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isentrope.files import write_bytes_atomic
from isentrope.probe.measure import Measurement
from isentrope.provenance import Provenance
from isentrope.report.figure import Section, figure, line, lines, missing, pairs, switch, table
from isentrope.report.headline import Tile
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.page import asset, document
from isentrope.report.words import duration, finite, percent, short, whole

NAME = "measure.html"
MAX_SHOWN = 5_000
"""Tokens of the text that the page shows; the Parquet table holds all."""
MAX_TOKEN = 60
BINS = 120
_LAYER = "layer, 0 = embedding"
_COLOURS = {"entropy": "entropy", "surprise": "surprise", "varentropy": "varentropy", "S": "S"}


def build(found: Measurement, out: Path) -> Path:
    """Writes `out/measure.html`, one file that requests nothing, and returns its path. Raises UserError if plotly is missing."""
    path = out / NAME
    write_bytes_atomic(path, html(found).encode("utf-8", errors="backslashreplace"))
    return path


def html(found: Measurement) -> str:
    """The whole page as text."""
    sections = [_text(found), _attention(found), _lens(found), _geometry(found), _record(found)]
    foot = f"Made by isentrope {found.record.get('isentrope', '')}. The file requests nothing; entropies are in nats."
    title = f"{_model(found)} on {found.source} · isentrope"
    return document(title, _headline(found), sections, foot, style=asset("measured.css"), drawers=asset("measured.js"))


# --- head


def _headline(found: Measurement) -> Markup:
    tokens, entropy, surprise = found.tokens, _mean(found.tokens, "entropy"), _surprise(found)
    eyebrow = [element("strong", _model(found)), " reads ", element("strong", found.source), f", {whole(found.record.get('tokens'))} tokens"]
    if entropy is None or surprise is None:
        said, lead = "The model gives no numbers on this text.", "Entropies are NaN or infinite; its weights or the text are at fault."
    else:
        said = f"Each next token is as open as a choice among {_choices(entropy)}; the text came as a surprise of {short(surprise, 3)} nats."
        lead = _calibration(entropy, surprise)
    along = np.arange(len(tokens), dtype=float)
    rank = tokens["rank"].to_numpy() if len(tokens) else np.zeros(0)
    share, effective = _share(found), _last(found.layers, "effective_rank")
    tiles = [
        Tile("mean entropy", short(entropy, 3), None, "nats per predicted token", (along, tokens["entropy"].to_numpy()), "entropy"),
        Tile("mean surprise", short(surprise, 3), None, f"nats; perplexity {short(math.exp(min(surprise, 50)), 3)}" if surprise is not None else "nats",
             (along, -tokens["log_prob"].to_numpy()), "learn"),
        Tile("first guess right", percent(float((rank == 0).mean())), None, "most likely token is the text's"),
        Tile("attention entropy", percent(share), None, "of its ceiling, mean of all heads" if share is not None else "not measured"),
        Tile("effective rank", short(effective, 3), None, f"last layer, of {whole(found.record.get('width'))}" if effective is not None else "not measured"),
    ]  # fmt: skip
    return element(
        "header", element("p", join(eyebrow), class_="eyebrow"), element("h1", said), element("p", lead, class_="lead"),
        element("div", join(tile.html() for tile in tiles), class_="tiles five"), id="top",
    )  # fmt: skip


def figures(found: Measurement) -> list[tuple[str, str]]:
    """The numbers that matter, as lines for a terminal."""
    seconds, share, rank = finite(found.record.get("seconds")), _share(found), _last(found.layers, "effective_rank")
    return [
        ("tokens", f"{whole(len(found.tokens))} predicted of {whole(finite(found.record.get('tokens')))}, in {whole(len(found.windows))} windows"),
        ("entropy", f"{short(_mean(found.tokens, 'entropy'))} nats ({found.provenance['tokens.entropy'].describe()}; mean)"),
        ("surprise", f"{short(_surprise(found))} nats"),
        ("attention entropy", f"{percent(share)} of its ceiling" if share is not None else f"not measured: {found.missing.get('heads', '-')}"),
        ("effective rank", f"{short(rank)} of {whole(finite(found.record.get('width')))}, last layer" if rank is not None else "not measured"),
        ("time", duration(seconds)),
    ]  # fmt: skip


def _calibration(entropy: float, surprise: float) -> str:
    """What the distance of the two means: equal for text that the model itself would write."""
    both = f"The model expects {short(entropy, 3)} nats of surprise per token (its mean entropy) and gets {short(surprise, 3)}: "
    gap = surprise - entropy
    if abs(gap) <= 0.05 * max(entropy, surprise):
        return both + "the text is about as surprising as it expects text to be."
    return both + ("the text is more surprising than it expects, so it is too sure of itself here." if gap > 0 else "the text is easier than it expects.")


def _choices(nats: float) -> str:
    count = math.exp(min(nats, 50.0))
    return f"{short(count, 2)} equally likely ones" if count >= 1.05 else "hardly more than one"


# --- the text


def _text(found: Measurement) -> Section:
    tokens, first = found.tokens, len(found.tokens) < int(found.record.get("tokens", 0))
    shown = tokens.head(MAX_SHOWN - first)
    blank: list[Any] = [None] if first else []
    names = dict.fromkeys(name for row in shown["top_text"].to_list() for name in row)
    index = {name: at for at, name in enumerate(names)}
    pieces = [found.text[: tokens["start"][0]]] * first + [found.text[a:b] for a, b in zip(shown["start"], shown["end"], strict=True)]
    columns: dict[str, list[Any]] = {name: blank + shown[name].to_list() for name in ("entropy", "varentropy", "S", "p", "rank")}
    columns["surprise"] = blank + (-shown["log_prob"]).to_list()
    data = {
        "kind": "reading",
        "text": [visible(text, MAX_TOKEN) for text in pieces],
        "position": [0] * first + shown["position"].to_list(), "columns": columns, "names": [visible(name, MAX_TOKEN) for name in names],
        "top": [[]] * first + [[index[name] for name in row] for row in shown["top_text"].to_list()],
        "shares": [[]] * first + shown["top_p"].to_list(), "scales": {name: _top(columns[name]) for name in _COLOURS}, "vocabulary": found.vocab,
        "cut": len(tokens) - len(shown),
    }  # fmt: skip
    controls = element("div", switch("colour:reading", [(name, name) for name in _COLOURS], "Colour"), class_="controls")
    hint = "Hover over a token, tap it, or step through the text with the arrow keys: its entropy and what the model held most likely in its place. "
    hint += "S = p (ln p + H): raising this token takes so much from the entropy. Colours end at the 99 % quantile."
    cut = f"The page shows the first {whole(len(shown) + first)} tokens; tokens.parquet holds all {whole(len(tokens))}." if data["cut"] else None
    notes = [element("p", note, class_="note") for note in (hint, _windowing(found), cut) if note]
    chart, along = _along(found)
    body = join(
        [controls, element("div", id="reading-key", class_="key"), element("div", id="reading", class_="completion reading"), *notes,
         _is("entropy, S, surprise", found.provenance["tokens.entropy"]), along]
    )  # fmt: skip
    return Section("text", "Text", "What was open, token by token?", body, {"reading": data, "along": chart})


def _windowing(found: Measurement) -> str:
    """How the text was cut, in words."""
    size, count = int(found.record.get("window", 0)), len(found.windows)
    before = f"The tokenizer puts {visible(found.prefix, 40)} before it. " if found.prefix else "Nothing comes before the first token, so it is not predicted. "
    if count == 1:
        return f"The text was read at once, every token with all the text before it. {before}"
    again = " (which is put before each window)" if found.prefix else ""
    return (
        f"The text was read in {whole(count)} windows of at most {whole(size)} tokens, each with a context of its own{again}: a window begins at least "
        f"{whole(found.overlap)} tokens before the first one that it predicts, so each is predicted from at least that much of the "
        f"text before it, and the first ones from all there is. {before}"
    )


def _along(found: Measurement) -> tuple[dict[str, Any], Markup]:
    tokens = found.tokens
    x, entropy, surprise = _binned(tokens["position"].to_numpy() + 1.0, tokens["entropy"].to_numpy(), -tokens["log_prob"].to_numpy())
    chart = lines(
        [line("surprise", x, surprise, "learn", label="surprise", width=1.6), line("entropy", x, entropy, "entropy", label="entropy", width=2.4)],
        x="token", y="nats per token", unit="nats",
    )  # fmt: skip
    step = math.ceil(len(tokens) / BINS)
    note = "Where the two part, the model is surer (surprise above) or less sure (below) than the text deserves."
    what = found.provenance["tokens.entropy"]
    what = replace(what, aggregation=f"mean of {step} tokens in a row") if step > 1 else what
    return chart, figure("along", "Entropy and surprise along the text", note, provenance=what.describe())


# --- heads


def _attention(found: Measurement) -> Section:
    id, nav, title = "attention", "Attention", "How widely does each head look?"
    if not len(found.heads):
        return Section(id, nav, title, missing(f"Not measured: {found.missing.get('heads', 'the model has no attention heads that are read here.')}"))
    layers, heads = int(found.heads["layer"].to_numpy().max()), int(found.heads["head"].to_numpy().max())
    entropy, ceiling, sinkless = (found.heads[name].to_numpy().reshape(layers, heads) for name in ("entropy", "ceiling", "sinkless"))
    spec = {"kind": "heads", "x": "head", "y": "layer", "top": _largest(ceiling)}
    spec |= {"entropy": entropy.tolist(), "ceiling": ceiling.tolist(), "sinkless": sinkless.tolist()}
    controls = switch("as:heads", [("share", "share of ceiling"), ("nats", "nats"), ("sinkless", "without sink")], "Show")
    what = found.provenance["heads.entropy"].describe()
    note = "Mean over queries of the entropy of a head's attention. Its ceiling, ln of the keys that a query sees, is what even attention would have; pale heads look at few tokens. Without sink: renormalised without the first token, where idle heads rest."  # noqa: E501
    charts = {"heads": spec, "heads-by-layer": _by_layer(entropy, ceiling)}
    between = "Line: mean of a layer's heads; band: from its most focused head to its broadest."
    body = [figure("heads", "Attention entropy by layer and head", note, provenance=what, tall=True, controls=controls),
            figure("heads-by-layer", "Attention entropy by layer", between, provenance=what, tall=True)]  # fmt: skip
    return Section(id, nav, title, element("div", join(body), class_="pair"), charts)


def _by_layer(entropy: np.ndarray, ceiling: np.ndarray) -> dict[str, Any]:
    x = np.arange(1.0, len(entropy) + 1)
    return lines(
        [line("ceiling", x, ceiling.mean(1), "middle", label="ceiling", dash="dot", width=1.6),
         line("mean of the heads", x, entropy.mean(1), "entropy", low=entropy.min(1), high=entropy.max(1), band="heads", label="heads", marks=True)],
        x="layer", y="nats", unit="nats",
    )  # fmt: skip


# --- layers


def _lens(found: Measurement) -> Section:
    id, nav, title = "lens", "Logit lens", "When does the model make up its mind?"
    if not len(found.layers):
        return Section(id, nav, title, missing(f"Not measured: {found.missing.get('layers', 'the residual stream of this model is not read here.')}"))
    rows, x = found.layers, found.layers["layer"].to_numpy().astype(float)
    get = lambda name: rows[name].to_numpy().astype(float)  # noqa: E731
    half = "middle half of the tokens"
    bands = {name: {"low": get(f"{name}_low"), "high": get(f"{name}_high"), "band": half, "marks": True} for name in ("lens", "lens_normed")}
    series = [
        line("ceiling ln V", x, np.full(len(x), math.log(found.vocab)), "middle", label="ln V", dash="dot", width=1.6),
        line("without the final norm", x, get("lens"), "plus", label="no norm", **bands["lens"]),
        line("with the final norm", x, get("lens_normed"), "entropy", label="final norm", **bands["lens_normed"]),
    ]
    cost = get("lens_surprise")
    first = int(len(cost) > 2 and cost[0] > 2 * _largest(cost[1:]))  # an embedding that says its own token again would flatten the picture
    decoded = int(rows["decoded"].to_numpy().max())
    note = (
        "Entropy of the next token if the model had to speak after this layer: its residual stream decoded by the unembedding, with the model's final norm "
        "and without it (as BuPO decodes, arXiv 2512.19673). Without the norm a longer residual looks surer, whatever it points at: "
        "read it beside its size, below. The last point with the norm is the model itself."
    )
    charts = {
        "lens-entropy": lines(series, x=_LAYER, y="nats", unit="nats"),
        "lens-surprise": lines([line("surprise of the text", x[first:], cost[first:], "learn", marks=True)], x=_LAYER, y="nats", unit="nats"),
        "lens-size": lines([line("root mean square", x, get("rms"), "plus", marks=True)], x=_LAYER, y="root mean square", unit="number"),
    }
    what = f"{found.provenance['layers.lens'].describe()}; {whole(decoded)} of {whole(len(found.tokens))} tokens"
    surprise = "What the text's next token costs at each layer, with the final norm: where it falls, the layers add knowledge."
    surprise += f" The embedding itself ({short(cost[0])} nats) is left out of the picture." if first else ""
    size = "Root mean square of the residual stream's components, mean over tokens that have context."
    below = figure("lens-surprise", "Surprise by layer", surprise, provenance=what), figure("lens-size", "Size of the residual stream", size)
    body = [figure("lens-entropy", "Logit-lens entropy by layer", note, provenance=what, tall=True), element("div", *below, class_="pair")]
    return Section(id, nav, title, join(body), charts)


def _geometry(found: Measurement) -> Section:
    id, nav, title = "geometry", "Geometry", "How many directions are in use?"
    if "effective_rank" not in found.layers.columns:
        return Section(id, nav, title, missing(f"Not measured: {found.missing.get('layers', 'fewer than two tokens have context.')}"))
    rows, x = found.layers, found.layers["layer"].to_numpy().astype(float)
    rank, alpha = (rows[name].to_numpy().astype(float) for name in ("effective_rank", "alpha"))
    states, width = int(rows["states"][0]), whole(found.record.get("width"))
    what = found.provenance["layers.effective_rank"].describe()
    few = f"Only {whole(states)} states were seen: more text would raise it." if states <= 4 * int(found.record.get("width", 0)) else None
    charts = {
        "rank": lines([line("effective rank", x, rank, "entropy", marks=True)], x=_LAYER, y=f"directions, of {width}", unit="number"),
        "alpha": lines([line("alpha", x, alpha, "learn", marks=True)], x=_LAYER, y="exponent of the eigenvalues", unit="number"),
    }
    body = [
        figure("rank", "Effective rank", "exp of the entropy of the eigenvalues of the centred covariance (RankMe of eigenvalues): how many directions the "
               "states of a layer fill.", few, provenance=what),
        figure("alpha", "Decay of the spectrum", "α of eigenvalue ∝ rank^−α (alpha-ReQ): larger where few directions carry most of the variance.",
               None if np.isfinite(alpha).any() else "Too few eigenvalues above 0 for a fit.", provenance=what),
    ]  # fmt: skip
    lead = "Over the residual stream after each layer, before the final norm, at tokens that have context; the first of a window is left out, which many models make a sink of enormous size."  # noqa: E501
    return Section(id, nav, title, element("div", join(body), class_="pair"), charts, lead)


# --- record


def _record(found: Measurement) -> Section:
    record = found.record
    size = f"{whole(finite(record.get('parameters')))} parameters, {record.get('layers')} layers, width {record.get('width')}, vocabulary {whole(found.vocab)}"
    rows = [
        ("model", found.model), ("architecture", f"{record.get('architecture')}, {size}"), ("text", found.source),
        ("tokens", f"{whole(finite(record.get('tokens')))}, of which {whole(len(found.tokens))} predicted"), ("reading", _windowing(found)),
        ("device", f"{record.get('device')}, {record.get('threads')} threads, {duration(finite(record.get('seconds')))}"),
        ("versions", f"isentrope {record.get('isentrope')}, torch {record.get('torch')}, transformers {record.get('transformers')}"),
        ("files", "tokens.parquet, heads.parquet, layers.parquet, spectra.parquet, measure.json"),
    ]  # fmt: skip
    kinds: dict[str, list[str]] = {}
    for key, what in found.provenance.items():
        kinds.setdefault(what.describe(), []).append(key)
    numbers = table(["columns", "what they are"], [(", ".join(keys), what) for what, keys in kinds.items()])
    return Section("record", "Record", "What was done", join([pairs(rows), element("h3", "What each number is"), numbers]))


def _is(name: str, what: Provenance) -> Markup:
    return element("p", element("span", "what it is", class_="tag"), f" {name}: {what.describe()}", class_="provenance")


def _model(found: Measurement) -> str:
    return found.model.rstrip("/").rpartition("/")[2] or found.model


def _mean(frame: pl.DataFrame, name: str) -> float | None:
    return finite(float(frame[name].to_numpy().mean())) if len(frame) else None


def _surprise(found: Measurement) -> float | None:
    mean = _mean(found.tokens, "log_prob")
    return None if mean is None else -mean


def _share(found: Measurement) -> float | None:
    """Mean over heads of entropy / ceiling."""
    entropy, ceiling = found.heads["entropy"].to_numpy(), found.heads["ceiling"].to_numpy()
    kept = (ceiling > 0) & np.isfinite(entropy)
    return float((entropy[kept] / ceiling[kept]).mean()) if kept.any() else None


def _last(frame: pl.DataFrame, name: str) -> float | None:
    return finite(frame[name].to_list()[-1]) if len(frame) and name in frame.columns else None


def _top(column: list[Any]) -> float | None:
    """The 99 % quantile of a column's size: where its colour ends."""
    found = [abs(value) for value in column if value is not None and math.isfinite(value)]
    return float(np.quantile(found, 0.99)) or None if found else None


def _largest(values: np.ndarray) -> float:
    found = values[np.isfinite(values)]
    return float(found.max()) if found.size else 0.0


def _binned(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means of equal runs of rows, at most BINS of them."""
    step = math.ceil(len(columns[0]) / BINS)
    cuts = np.arange(0, len(columns[0]), max(1, step))
    return tuple(np.add.reduceat(column, cuts) / np.diff(np.append(cuts, len(column))) for column in columns)
