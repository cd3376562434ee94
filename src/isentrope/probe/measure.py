"""Every entropy of a model on a text: of each predicted token, each attention head, each layer.

One run of the model per window; the residual stream is looked at while it passes, so that no more than one layer of one window is
held, and [token, vocab] logits never are. Nothing is sampled and nothing is generated: the text is what the model is asked about.
"""

import importlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor

from isentrope.measure import Discriminant, Entropy, ExpectedDiscriminant, LogProb, MaxProb, Rank, Signal, TargetProb, Varentropy
from isentrope.measure.spectrum import StreamingCovariance, effective_rank_of, power_law_exponent, spectral_entropy
from isentrope.probe.attention import AttentionRecord, record_attention
from isentrope.probe.head import LMHead, check_head, head_of
from isentrope.probe.stream import Stream, StreamError, residual_stream, stream_of
from isentrope.probe.text import TextError, Tokens, tokenize
from isentrope.probe.windows import Window, windows_of
from isentrope.provenance import Provenance
from isentrope.train.models import LoadedModel

WINDOW = 2048
"""Tokens that are read at once at most, where the model's context has more."""
LENS_TOKENS = 256
"""Positions that the logit lens decodes: two matrix products with the whole vocabulary per layer and position are the dearest part."""
ALTERNATIVES = 5
"""Most likely tokens that are kept of each position."""
MIN_RANKS = 20
"""Eigenvalues above 0 that alpha's fit, which begins at rank 12, is given at least."""
TRIAL = 16
"""Tokens that the model's architecture is tried on before the text is read."""
LENS = ("lens", "lens_low", "lens_high", "lens_normed", "lens_normed_low", "lens_normed_high", "lens_surprise")
PARTS = ("heads", "layers", "lens")
"""What is measured beside the tokens: attention, the residual stream, and what the logit lens reads of the stream (needs "layers")."""
SIGNALS: tuple[Signal, ...] = (Entropy(), Varentropy(), Discriminant(), ExpectedDiscriminant(), LogProb(grad=False), TargetProb(), MaxProb(), Rank())

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """What was found. `tokens`, `heads`, `layers`, `spectra`: a row per predicted token, per layer and head, per state of the residual
    stream (layer 0: the embedding), per eigenvalue of its covariance; the last three are empty where `missing` says why. `provenance`:
    what each column is, keyed "table.column"."""

    model: str
    source: str
    text: str
    windows: tuple[Window, ...]
    prefix: str
    overlap: int
    tokens: pl.DataFrame
    heads: pl.DataFrame
    layers: pl.DataFrame
    spectra: pl.DataFrame
    vocab: int
    provenance: Mapping[str, Provenance]
    missing: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)


@torch.no_grad()
def measure(
    loaded: LoadedModel, text: str, *, source: str, window: int | None = None, parts: Collection[str] = PARTS, progress: Progress | None = None
) -> Measurement:
    """Measures `text`, which came from `source`, under a model.

    window: tokens read at once; None is the model's context, at most WINDOW. parts: what is measured beside the tokens, of PARTS; the tables
    of the others are empty, and without "lens" its columns are missing. Raises TextError for a text of which no token can be
    predicted or a window that does not fit, UserError for a model whose head is not read here.
    """
    began, say = time.monotonic(), progress or (lambda _: None)
    model = loaded.model.eval()
    tokens = tokenize(loaded.tokenizer, text)
    size = _window_size(loaded, tokens, window)
    overlap = size // 4
    plan = windows_of(len(tokens.ids), size, overlap)
    head = head_of(model)
    trial = torch.tensor([[*tokens.prefix, *tokens.ids][:TRIAL]], device=model.device)
    _check_vocabulary(tokens, model.get_input_embeddings().weight.shape[0])
    check_head(model, head, trial)
    missing: dict[str, str] = {}
    stream = None
    missing |= {part: "not asked for" for part in ("heads", "layers") if part not in parts}
    try:
        stream = stream_of(model, trial) if "layers" in parts else None
        if stream is not None and stream.width != head.weight.shape[1]:
            raise StreamError(f"{type(model).__name__} projects its stream from {stream.width} to {head.weight.shape[1]} components before its LM head")
    except StreamError as error:
        stream, missing["layers"] = None, f"{error}."
    first = 0 if tokens.prefix else 1
    predicted = len(tokens.ids) - first
    every = max(1, math.ceil(predicted / LENS_TOKENS)) if "lens" in parts else None
    reader = _Reader(model, head, tokens, first, stream, every=every)
    with _attention_of(model, trial, missing) if "heads" in parts else nullcontext() as recorded:
        for at, part in enumerate(plan, start=1):
            say(f"window {at} of {len(plan)}: tokens {part.start + 1:,} to {part.stop:,} of {len(tokens.ids):,}")
            reader.read(part)
    say("eigenvalues")
    layers, spectra = reader.layer_tables()
    dtype = str(head.weight.dtype).removeprefix("torch.")
    return Measurement(
        model=loaded.name, source=source, text=text, windows=plan, overlap=overlap if len(plan) > 1 else 0,
        prefix=loaded.tokenizer.decode(list(tokens.prefix)), tokens=reader.token_table(loaded.tokenizer), heads=_head_table(recorded), layers=layers,
        spectra=spectra, vocab=head.vocab, provenance=provenance(dtype, reader.every), missing=missing,
        record=_record(loaded, tokens, head, size, time.monotonic() - began),
    )  # fmt: skip


def provenance(dtype: str, every: int | None) -> dict[str, Provenance]:
    """What the columns are. `every`: the logit lens decodes one predicted token in so many (None: it decodes none)."""
    token = Provenance("exact", mask="predicted", dtype=dtype)
    lens = Provenance("exact", mask="predicted" if every == 1 else f"predicted (1 in {every})", aggregation="token-mean", dtype=dtype)
    head = Provenance("exact", mask="query", aggregation="token-mean", dtype=dtype)
    spectrum = Provenance("plug-in", mask="predicting (with context)", aggregation="spectrum of the covariance", dtype="float64")
    return (
        {f"tokens.{name}": token for name in ("entropy", "varentropy", "S", "N", "log_prob", "p", "max_p", "rank", "top_p")}
        | {f"heads.{name}": head for name in ("entropy", "ceiling", "sinkless")}
        | {f"layers.{name}": lens for name in LENS if every is not None}
        | {f"layers.{name}": spectrum for name in ("effective_rank", "spectral_entropy", "alpha")}
        | {"spectra.eigenvalue": spectrum}
    )


class _Reader:
    """Reads window after window and keeps what was found, on the CPU."""

    def __init__(self, model: Any, head: LMHead, tokens: Tokens, first: int, stream: Stream | None, *, every: int | None):
        self.model, self.head, self.tokens, self.first, self.stream = model, head, tokens, first, stream
        self.every = every
        self.columns: dict[str, list[Tensor]] = {}
        self.window: list[int] = []
        layers = 0 if stream is None else stream.layers + 1
        self.lens: list[list[dict[str, Tensor]]] = [[] for _ in range(layers)]
        self.square = torch.zeros(layers, dtype=torch.float64)
        self.states = 0
        width = head.weight.shape[1]
        self.covariance = [StreamingCovariance(width, device=head.weight.device) for _ in range(layers)]

    def read(self, part: Window) -> None:
        """One run of the model: signals of the tokens that are new in `part`, and what its layers and heads are on the way."""
        prefix, device = self.tokens.prefix, self.model.device
        ids = torch.tensor([[*prefix, *self.tokens.ids[part.start : part.stop]]], device=device)
        target = torch.arange(max(part.fresh, self.first), part.stop)
        at = len(prefix) + target - part.start - 1  # where each is predicted, within this window
        chosen = at[:0] if self.every is None else at[(target - self.first) % self.every == 0]
        settled = at[at > 0]  # the first position has read nothing but itself, and is often a sink of a hundred times the others' norm

        def visit(layer: int, hidden: Tensor) -> None:
            self._layer(layer, hidden[0], chosen, ids[0, chosen + 1], settled)

        with nullcontext() if self.stream is None else residual_stream(self.stream, visit):
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        self.states += len(settled)
        self.window += [part.start] * len(at)
        found = self.head.signals(hidden[at], ids[0, at + 1], SIGNALS)
        found["top_id"], found["top_p"] = self.head.top(hidden[at], ALTERNATIVES)
        for name, values in (found | {"position": target, "context": at + 1}).items():
            self.columns.setdefault(name, []).append(values.cpu())

    def _layer(self, layer: int, hidden: Tensor, chosen: Tensor, target: Tensor, settled: Tensor) -> None:
        assert self.stream is not None
        states = hidden[settled]
        self.square[layer] += states.double().square().mean(-1).sum().cpu()
        self.covariance[layer].update(states[states.isfinite().all(-1)])
        if len(chosen):
            raw = hidden[chosen]
            normed = raw if self.stream.norm is None else self.stream.norm(raw)
            found = self.head.signals(normed, target, [Entropy(), LogProb(grad=False)])
            self.lens[layer].append({"lens": self.head.entropy(raw).cpu(), "lens_normed": found["entropy"].cpu(), "lens_surprise": -found["log_prob"].cpu()})

    # --- tables

    def token_table(self, tokenizer: Any) -> pl.DataFrame:
        found = {name: torch.cat(parts) for name, parts in self.columns.items()}
        positions, ids = found.pop("position").tolist(), found.pop("top_id").tolist()
        spans = [self.tokens.spans[at] for at in positions]
        known: dict[int, str] = {}
        return pl.DataFrame(
            {"position": positions, "token_id": [self.tokens.ids[at] for at in positions], "start": [a for a, _ in spans], "end": [b for _, b in spans],
             "window": self.window} | {name: found.pop(name).tolist() for name in ("context", *(signal.key for signal in SIGNALS))}
            | {"top_id": ids, "top_text": [[_shown(tokenizer, token, known) for token in row] for row in ids], "top_p": found.pop("top_p").tolist()}
        )  # fmt: skip

    def layer_tables(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows, values = [], []
        for layer, parts in enumerate(self.lens):
            row: dict[str, Any] = {"layer": layer, "states": self.states, "decoded": sum(len(part["lens"]) for part in parts)}
            for name in ("lens", "lens_normed", "lens_surprise") if parts else ():
                found = torch.cat([part[name] for part in parts]).double()
                row[name] = found.mean().item()
                if name != "lens_surprise":
                    row[f"{name}_low"], row[f"{name}_high"] = (found.nanquantile(share).item() for share in (0.25, 0.75))
            row["rms"] = math.sqrt(self.square[layer].item() / self.states) if self.states else None
            if self.covariance[layer].count > 1:
                found = self.covariance[layer].eigenvalues().cpu()
                row |= {
                    "effective_rank": effective_rank_of(found).item(),
                    "spectral_entropy": spectral_entropy(found).item(),
                    "alpha": _alpha(found, self.covariance[layer].count),
                }
                values += [(layer, rank, value) for rank, value in enumerate(found.tolist(), start=1)]
            rows.append(row)
        layers = pl.DataFrame(rows, schema_overrides={"alpha": pl.Float64} if rows and "alpha" in rows[0] else None)
        return layers, pl.DataFrame(values, schema={"layer": pl.Int64, "rank": pl.Int64, "eigenvalue": pl.Float64}, orient="row")


def _attention_of(model: Any, trial: Tensor, missing: dict[str, str]) -> AbstractContextManager[AttentionRecord | None]:
    """The recorder, tried on a few tokens; nothing where this model's attention is one that it refuses."""
    try:
        with record_attention(model, sinkless=True) as recorded:
            model.base_model(input_ids=trial, use_cache=False)
        _head_table(recorded)
    except ValueError as error:
        missing["heads"] = str(error)
        return nullcontext()
    return record_attention(model, sinkless=True)


def _head_table(recorded: AttentionRecord | None) -> pl.DataFrame:
    """Means over the queries of all windows."""
    schema = {"layer": pl.Int64, "head": pl.Int64, "entropy": pl.Float64, "ceiling": pl.Float64, "sinkless": pl.Float64}
    if recorded is None:
        return pl.DataFrame(schema=schema)
    found = [table.double().cpu() for table in (recorded.mean_entropy, recorded.mean_ceiling, recorded.mean_sinkless)]
    layers, heads = found[0].shape
    rows = [(layer + 1, head + 1, *(table[layer, head].item() for table in found)) for layer in range(layers) for head in range(heads)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _alpha(eigenvalues: Tensor, states: int) -> float | None:
    """None where the fit's ranks hold too few eigenvalues that are not 0: of n states at most n - 1."""
    kept = eigenvalues[: states - 1]
    kept = kept[kept > 1e-10 * kept[0]]
    return power_law_exponent(kept) if len(kept) >= MIN_RANKS else None


def _shown(tokenizer: Any, token: int, known: dict[int, str]) -> str:
    """A token as text; the white space before a word, which some tokenizers drop from a single token, is put back."""
    if token not in known:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        piece = tokenizer.convert_ids_to_tokens(token)
        known[token] = f" {text.lstrip()}" if isinstance(piece, str) and piece.startswith("▁") else text
    return known[token]


def _window_size(loaded: LoadedModel, tokens: Tokens, window: int | None) -> int:
    """Tokens of the text in a window, its prefix not counted."""
    allowed = loaded.context
    if window is not None and not 8 <= window <= allowed:
        raise TextError(f"--window must be from 8 to {allowed}, the context of the model. Got {window}.")
    if len(tokens.ids) + len(tokens.prefix) < 2:
        raise TextError("--text: the text is a single token of this model, and none comes before it, so nothing is predicted. Give a longer text.")
    return (window or min(allowed, WINDOW)) - len(tokens.prefix)


def _check_vocabulary(tokens: Tokens, rows: int) -> None:
    if max(*tokens.ids, *tokens.prefix, 0) >= rows:
        raise TextError(f"measure: the tokenizer makes token {max(tokens.ids):,} and the model knows {rows:,}: they do not belong together.")


def _record(loaded: LoadedModel, tokens: Tokens, head: LMHead, size: int, seconds: float) -> dict[str, Any]:
    config = loaded.model.config.get_text_config()
    return {
        "isentrope": importlib.import_module("isentrope").__version__, "torch": torch.__version__,
        "transformers": importlib.import_module("transformers").__version__, "architecture": type(loaded.model).__name__,
        "parameters": loaded.model.num_parameters(), "layers": int(config.num_hidden_layers), "width": head.weight.shape[1], "vocabulary": head.vocab,
        "context": loaded.context, "window": size + len(tokens.prefix), "tokens": len(tokens.ids), "threads": torch.get_num_threads(),
        "device": str(loaded.model.device), "seconds": round(seconds, 1),
    }  # fmt: skip
