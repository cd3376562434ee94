"""The page of a measurement: what stands on it, hostile text in it, and parts that are missing."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from isentrope.probe.measure import Measurement, measure
from isentrope.report import measured
from isentrope.report.markup import visible
from isentrope.train.models import load

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1> <!-- {{x}} \u2028\u202e <b>bold</b>&amp;%{x}\0\x1b[31m 'a' \"b\"\n" * 3


@pytest.fixture(scope="module")
def found() -> Measurement:
    return measure(load("embedded"), "12+30=42\nIf a, then b: 3*4=12 é 👩\n" * 10, source="notes.txt", window=64)


@pytest.fixture(scope="module")
def hostile() -> Measurement:
    found = measure(load("embedded"), HOSTILE, source="<script>window.pwned=1</script>.txt", window=64)
    names = [[HOSTILE[:90] for _ in row] for row in found.tokens["top_text"].to_list()]
    tokens = found.tokens.with_columns(pl.Series("top_text", names))
    return replace(found, tokens=tokens, model="x/<img src=x onerror=window.pwned=1>", prefix="<b>")


def charts(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)[1])


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_every_token_and_its_alternatives_are_on_the_page(found):
    data = charts(measured.html(found))["reading"]
    count = len(found.tokens) + 1
    assert "".join(data["text"]) == visible(found.text)
    assert all(len(data["columns"][name]) == count for name in ("entropy", "varentropy", "S", "p", "rank", "surprise"))
    assert all(data["columns"][name][0] is None for name in data["columns"])
    assert data["columns"]["entropy"][1:] == pytest.approx(found.tokens["entropy"].to_list(), rel=1e-3, abs=1e-12)
    for at in (1, 7, count - 1):
        assert [data["names"][place] for place in data["top"][at]] == [visible(text) for text in found.tokens["top_text"][at - 1]]
        assert data["shares"][at] == pytest.approx(found.tokens["top_p"][at - 1].to_list(), rel=1e-3)
    assert data["cut"] == 0


def test_a_long_text_is_cut_on_the_page_and_says_so(found, monkeypatch):
    monkeypatch.setattr(measured, "MAX_SHOWN", 50)
    text = measured.html(found)
    data = charts(text)["reading"]
    assert len(data["text"]) == len(data["columns"]["p"]) == 50
    assert data["cut"] == len(found.tokens) - 49
    assert "The page shows the first 50 tokens; tokens.parquet holds all" in text


def test_the_page_says_how_the_text_was_read_and_what_each_number_is(found):
    text = measured.html(found)
    assert f"The text was read in {len(found.windows)} windows of at most 64 tokens" in text
    assert "at least 16 tokens before the first one that it predicts" in text
    assert "Nothing comes before the first token, so it is not predicted." in text
    for what in found.provenance.values():
        assert what.describe() in text
    once = measured.html(replace(found, windows=found.windows[:1], prefix="<s>"))
    assert "The text was read at once" in once
    assert "The tokenizer puts &lt;s&gt; before it." in once


def test_maps_and_lines_hold_the_tables(found):
    drawn = charts(measured.html(found))
    heads = found.heads.filter(pl.col("layer") == 3)
    for name in ("entropy", "ceiling", "sinkless"):
        assert drawn["heads"][name][2] == pytest.approx(heads[name].to_list(), rel=1e-3)
    series = {line["name"]: line for line in drawn["lens-entropy"]["series"]}
    assert series["without the final norm"]["y"] == pytest.approx(found.layers["lens"].to_list(), rel=1e-3)
    assert series["with the final norm"]["low"] == pytest.approx(found.layers["lens_normed_low"].to_list(), rel=1e-3)
    assert series["ceiling ln V"]["y"] == pytest.approx([math.log(found.vocab)] * 5, rel=1e-3)


def test_hostile_text_stays_text(hostile):
    text = measured.html(hostile)
    tags = Tags(text).found
    assert tags.count("script") == 3
    assert "img" not in tags
    assert "b" not in tags
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert "<script>window" not in outside
    assert "".join(charts(text)["reading"]["text"]) == visible(HOSTILE)
    assert not re.search("[\u2028\u202e\x00\x1b]", outside)


def test_what_was_not_measured_is_told_with_its_reason(found):
    bare = replace(
        found, heads=found.heads.clear(), layers=pl.DataFrame(), spectra=found.spectra.clear(), missing={"heads": "<no> heads", "layers": "no stream."}
    )
    text = measured.html(bare)
    assert "Not measured: &lt;no&gt; heads" in text
    assert text.count("Not measured: no stream.") == 2
    assert set(charts(text)) == {"reading", "along"}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_numbers_that_are_none(found, value):
    columns = [name for name, dtype in found.tokens.schema.items() if dtype == pl.Float64]
    odd = replace(found, tokens=found.tokens.with_columns(pl.lit(value).alias(name) for name in columns))
    odd = replace(odd, layers=found.layers.with_columns(pl.lit(value).alias(name) for name, dtype in found.layers.schema.items() if dtype == pl.Float64))
    odd = replace(odd, heads=found.heads.with_columns(pl.lit(value).alias(name) for name in ("entropy", "ceiling", "sinkless")))
    charts(measured.html(odd))
    assert measured.figures(odd)


def test_one_token(found):
    charts(measured.html(measure(load("embedded"), "ab", source="x")))


def test_the_page_is_small(found, tmp_path):
    assert measured.build(found, tmp_path).stat().st_size < 5_500_000
