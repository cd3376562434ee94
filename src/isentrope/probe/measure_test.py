"""A whole measurement of the embedded model: identities between its tables, and against the model asked in the plainest way."""

import json
import math
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from isentrope.errors import UserError
from isentrope.measure import token_signals_from_logits
from isentrope.probe import measure as module
from isentrope.probe.measure import SIGNALS, measure
from isentrope.probe.store import PROVENANCE, TABLES, prepare, save
from isentrope.probe.windows import windows_of
from isentrope.provenance import Provenance
from isentrope.train.models import load

TEXT = "12+30=42\nIf a, then b: <think>3*4=12</think> é 👩\n" * 8


@pytest.fixture(scope="module")
def loaded():
    return load("embedded")


@pytest.fixture(scope="module")
def found(loaded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LENS_TOKENS", 10_000)
        return measure(loaded, TEXT, source="text.txt", window=64)


def test_every_token_but_the_first_is_predicted_as_the_model_does_it(loaded, found):
    ids = loaded.tokenizer(TEXT)["input_ids"]
    assert found.tokens["position"].to_list() == list(range(1, len(ids)))
    assert found.tokens["token_id"].to_list() == ids[1:]
    assert found.windows == windows_of(len(ids), 64, 16)
    assert len(found.windows) > 3
    for part in found.windows:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids[part.start : part.stop]])).logits[0]
        first = max(part.fresh, 1)
        at = torch.arange(first, part.stop) - part.start - 1
        rows = found.tokens.filter(pl.col("position").is_between(first, part.stop - 1))
        wanted = token_signals_from_logits(logits[at], torch.tensor(ids[first : part.stop]), SIGNALS)
        for signal in SIGNALS:
            torch.testing.assert_close(torch.tensor(rows[signal.key].to_list()).double(), wanted[signal.key].double(), rtol=1e-3, atol=1e-4)
        likely = logits[at].softmax(-1).topk(5)
        torch.testing.assert_close(torch.tensor(rows["top_p"].to_list()), likely.values, rtol=1e-3, atol=1e-5)
        assert rows["top_id"].to_list()[0] == likely.indices[0].tolist()
        assert rows["context"].to_list() == (at + 1).tolist()
        assert min(rows["context"]) >= min(first, 16)


def test_texts_of_the_tokens_are_the_file(found):
    assert found.text[0] + "".join(found.text[a:b] for a, b in zip(found.tokens["start"], found.tokens["end"], strict=True)) == TEXT


def test_the_lens_after_the_last_layer_is_the_model_itself(found):
    """With the final norm; at the positions that are decoded, here all."""
    last = found.layers.row(-1, named=True)
    assert last["decoded"] == len(found.tokens)
    assert last["lens_normed"] == pytest.approx(found.tokens["entropy"].mean(), rel=1e-5)
    assert last["lens_surprise"] == pytest.approx(-found.tokens["log_prob"].mean(), rel=1e-5)
    assert last["lens"] != pytest.approx(last["lens_normed"], rel=0.05)
    for row in found.layers.iter_rows(named=True):
        assert 0 <= row["lens_low"] <= row["lens_high"] <= math.log(found.vocab) + 1e-6
        assert 0 <= row["lens"] <= math.log(found.vocab) + 1e-6


def test_a_lens_of_a_few_tokens_says_so(loaded, monkeypatch):
    monkeypatch.setattr(module, "LENS_TOKENS", 20)
    found = measure(loaded, TEXT, source="text.txt")
    every = math.ceil(len(found.tokens) / 20)
    chosen = found.tokens.filter(((pl.col("position") - 1) % every) == 0)
    last = found.layers.row(-1, named=True)
    assert last["decoded"] == len(chosen) <= 20
    assert last["lens_normed"] == pytest.approx(chosen["entropy"].mean(), rel=1e-5)
    assert found.provenance["layers.lens"].mask == f"predicted (1 in {every})"


def test_heads_lie_under_their_ceiling_which_is_that_of_causal_windows(found):
    assert len(found.heads) == 4 * 4
    assert (found.heads["entropy"] <= found.heads["ceiling"] + 1e-5).all()
    assert (found.heads["entropy"] > 0).all()
    seen = [math.log(keys) for part in found.windows for keys in range(1, part.stop - part.start + 1)]
    assert found.heads["ceiling"].to_list() == pytest.approx([sum(seen) / len(seen)] * 16, rel=1e-5)


def test_the_spectrum_is_that_of_the_states_with_context(loaded):
    """One window, so that the states can be had at once; layer 2 from transformers' own list."""
    text = TEXT[:60]
    found = measure(loaded, text, source="text.txt")
    with torch.no_grad():
        states = loaded.model(loaded.tokenizer(text, return_tensors="pt")["input_ids"], output_hidden_states=True).hidden_states[2][0, 1:-1].double()
    wanted = torch.linalg.eigvalsh(torch.cov(states.T)).flip(0).clamp(min=0)
    row = found.layers.row(2, named=True)
    assert row["states"] == len(states)
    assert row["rms"] == pytest.approx(states.square().mean().sqrt().item(), rel=1e-5)
    shares = wanted / wanted.sum()
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    assert row["spectral_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert row["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)
    values = torch.tensor(found.spectra.filter(pl.col("layer") == 2)["eigenvalue"].to_list(), dtype=torch.float64)
    torch.testing.assert_close((values / values.sum())[:20], shares[:20], rtol=1e-3, atol=1e-7)


def test_windows_and_texts_that_cannot_be(loaded):
    with pytest.raises(UserError, match=r"--window must be from 8 to 128, the context of the model\. Got 4096"):
        measure(loaded, TEXT, source="x", window=4096)
    with pytest.raises(UserError, match="Got 4"):
        measure(loaded, TEXT, source="x", window=4)
    with pytest.raises(UserError, match="single token"):
        measure(loaded, "a", source="x")


def test_two_tokens_are_enough(loaded):
    found = measure(loaded, "ab", source="x")
    assert len(found.tokens) == 1
    assert len(found.layers) == 5
    assert found.windows == windows_of(2, 128, 32)


def test_refused_attention_and_an_unknown_stream_leave_the_rest(loaded, monkeypatch):
    monkeypatch.setattr(module, "stream_of", lambda *_: (_ for _ in ()).throw(module.StreamError("no stream")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "record_attention", lambda *_, **__: (_ for _ in ()).throw(ValueError("record_attention: not this one")))
        found = measure(loaded, "1+2=3", source="x")
    assert (len(found.heads), len(found.layers), len(found.spectra)) == (0, 0, 0)
    assert found.missing == {"heads": "record_attention: not this one", "layers": "no stream."}
    assert len(found.tokens) == 4


def test_a_prefix_stands_before_every_window(loaded, monkeypatch):
    tokenizer = loaded.tokenizer
    plain = module.tokenize(tokenizer, TEXT)
    monkeypatch.setattr(module, "tokenize", lambda *_: module.Tokens(plain.ids, plain.spans, (1,)))
    found = measure(loaded, TEXT, source="x", window=64)
    assert found.tokens["position"].to_list() == list(range(len(plain.ids)))
    assert found.windows == windows_of(len(plain.ids), 63, 15)
    with torch.no_grad():
        said = loaded.model(torch.tensor([[1, plain.ids[0]]])).logits[0, 0]
    assert found.tokens["log_prob"][0] == pytest.approx(said.log_softmax(-1)[plain.ids[0]].item(), rel=1e-4)
    assert found.tokens["context"][0] == 1


# --- on disk


def test_tables_carry_their_provenance(found, tmp_path):
    prepare(tmp_path / "new" / "folder")
    save(found, tmp_path / "new" / "folder")
    record = json.loads((tmp_path / "new" / "folder" / "measure.json").read_text())
    assert record["tokens"] == record["predicted"] + 1 == len(found.tokens) + 1
    assert len(record["windows"]) == len(found.windows)
    for name in TABLES:
        path = tmp_path / "new" / "folder" / f"{name}.parquet"
        assert pl.read_parquet(path).equals(getattr(found, name))
        kept = json.loads(pq.read_metadata(path).metadata[PROVENANCE])
        assert kept
        for column, what in kept.items():
            assert Provenance.from_dict(what) == found.provenance[f"{name}.{column}"]
            assert record["provenance"][f"{name}.{column}"] == what
    numbers = {name for name, dtype in found.tokens.schema.items() if dtype == pl.Float64}
    assert numbers <= set(json.loads(pq.read_metadata(tmp_path / "new" / "folder" / "tokens.parquet").metadata[PROVENANCE]))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file, or lies under one"):
            prepare(out)
    with pytest.raises(UserError, match=r"--out: /proc/none cannot be written"):
        prepare(Path("/proc/none"))
