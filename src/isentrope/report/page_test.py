"""The page as a file: its size, its policy, hostile text in it, and runs of which little is known."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import polars as pl
import pytest

from isentrope.errors import UserError
from isentrope.report import build, page, synthetic
from isentrope.report.sections import SECTIONS

TABLES = ("steps", "tokens", "samples", "evals", "events", "answers", "ledger", "ledger_parts", "ledger_tokens")


class Page(HTMLParser):
    """Elements of a page, and what stands in its scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open in self.inside:
            self.inside[self.open][-1] += data


def rewritten(run_dir, change) -> None:
    """Every table of a run through `change(frame)`."""
    for name in TABLES:
        (path,) = (run_dir / "tape" / name).glob("part-*.parquet")
        change(pl.read_parquet(path)).write_parquet(path)


def empty(run_dir):
    (run_dir / "run.json").write_text("{}")


def no_tape_yet(run_dir):
    (run_dir / "tape").mkdir()


def one_update(run_dir):
    synthetic.write(run_dir, updates=1, finished=False)


def only_steps(run_dir):
    synthetic.write(run_dir, updates=3, finished=False, links=())
    for name in TABLES[1:]:
        shutil.rmtree(run_dir / "tape" / name)


def numbers(value):
    def make(run_dir):
        synthetic.write(run_dir, updates=20)
        rewritten(run_dir, lambda frame: frame.with_columns(pl.lit(value).alias(name) for name, dtype in frame.schema.items() if dtype == pl.Float64))

    return make


def everything(value):
    def make(run_dir):
        synthetic.write(run_dir, updates=20)
        rewritten(run_dir, lambda frame: frame.with_columns(pl.lit(value).alias(name) for name in frame.columns if name != "step"))

    return make


def only_step_columns(run_dir):
    for name in TABLES:
        synthetic.part(run_dir, name, pl.DataFrame({"step": [1, 2]}), 2)


def no_step_columns(run_dir):
    for name in TABLES:
        synthetic.part(run_dir, name, pl.DataFrame({"other": [1, 2]}), 2)


def odd_record(run_dir):
    synthetic.write(run_dir, updates=6)
    odd = {
        "control": [3, {}],
        "provenance": [1],
        "effective": 3,
        "objective": None,
        "versions": [],
        "model": {"name": None},
        "task": ["a"],
        "threads": "two",
        "recovered_from": 5,
    }
    (run_dir / "run.json").write_text(json.dumps(odd))


CASES = {
    "empty": empty,
    "no tape yet": no_tape_yet,
    "one update": one_update,
    "only steps": only_steps,
    "NaN": numbers(float("nan")),
    "infinity": numbers(float("inf")),
    "null": everything(None),
    "text everywhere": everything("x"),
    "zero": everything(0),
    "only step columns": only_step_columns,
    "no step columns": no_step_columns,
    "odd record": odd_record,
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_known_makes_a_page(case, tmp_path):
    CASES[case](tmp_path)
    text = build(tmp_path).read_text(encoding="utf-8")
    ids = {attributes.get("id") for tag, attributes in Page(text).tags if tag == "section"}
    assert ids == {"learning", "entropy", "position", "support", "forecast", "alarms", "ledger", "pressure", "interventions", "samples", "record"}
    assert len(SECTIONS) == len(ids) + 1  # the turns are of runs that have several


@pytest.mark.parametrize(
    ("case", "sentences"),
    [
        (
            "empty",
            [
                "Nothing to tell yet",
                "no evaluation yet",
                "No entropy on the tape yet",
                "No token rows",
                "No intervention",
                "No sampled completions",
                "No comparison with the base model",
                "config.yaml is missing",
            ],
        ),
        ("one update", ["not finished: update 1", "What did it write?"]),
        (
            "only steps",
            ["Nothing to tell yet: fewer than 5 updates", "no evaluation yet", "No token rows on the tape yet", "No sampled completions on the tape yet"],
        ),
        ("no step columns", ["The table steps is read without its damaged parts"]),
    ],
)
def test_what_is_missing_is_said(case, sentences, tmp_path):
    CASES[case](tmp_path)
    text = build(tmp_path).read_text(encoding="utf-8")
    body = text[: text.index('<script type="application/json"')]
    for sentence in sentences:
        assert sentence in body


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    return build(synthetic.write(tmp_path_factory.mktemp("hostile"), updates=40, hostile=True)).read_text(encoding="utf-8")


def test_hostile_text_makes_no_element_and_no_handler(hostile):
    found = Page(hostile)
    assert [attributes.get("type") for tag, attributes in found.tags if tag == "script"] == ["application/json", None, None]
    assert not [tag for tag, _ in found.tags if tag in {"img", "iframe", "object", "embed", "form", "base", "b"}]
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:image/svg+xml")), (tag, attributes)
    assert hostile.count("pwned") > 100  # it is all there, as text
    head = hostile[: hostile.index("<script>")]
    assert "<script>window.pwned" not in head
    assert "\u2028" not in head
    assert "\u202e" not in hostile


def test_the_data_are_json_with_the_text_in_them(hostile):
    data = json.loads(Page(hostile).inside["script"][0])
    texts = {text for item in data["samples-list"]["items"] for text in item["tokens"]["text"]}
    assert synthetic.HOSTILE[0] in texts
    assert "a⟨U+2028⟩b⟨U+2029⟩c" in texts
    assert "␀␇␛[31m\ufffd" in texts


def test_the_policy_lets_our_scripts_and_styles_run_and_nothing_else(hostile):
    found = Page(hostile)
    (policy,) = [attributes["content"] for tag, attributes in found.tags if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";") if part.strip())
    assert parts["default-src"] == "'none'"
    assert parts["base-uri"] == parts["form-action"] == "'none'"
    assert parts["img-src"] == "data:"
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in found.inside["script"][1:]]
    assert parts["script-src"].split() == hashes
    assert "unsafe" not in parts["script-src"] + parts["style-src"] + parts["style-src-elem"]


def test_a_page_of_a_large_run_keeps_to_its_size(tmp_path):
    synthetic.write(tmp_path, updates=4000, tokens_every=80)
    size = build(tmp_path).stat().st_size
    assert size <= page.MAX_BYTES
    assert size - len(page.plotly()) < 1_000_000


def test_texts_that_swell_are_shown_less_of(tmp_path):
    synthetic.write(tmp_path, updates=100, tokens_every=5)
    swollen = "\u202e" * 60  # twelve bytes a character once it can be seen
    rewritten(
        tmp_path,
        lambda frame: frame.with_columns(
            pl.lit(swollen * (1 if name == "text" else 100)).alias(name) for name in frame.columns if name in {"text", "completion", "prompt"}
        ),
    )
    (tokens,) = (tmp_path / "tape" / "tokens").glob("*.parquet")
    frame = pl.read_parquet(tokens)
    longer = pl.concat([frame.with_columns(pl.col("position") + 40 * copy) for copy in range(12)])
    longer.write_parquet(tokens)
    path = build(tmp_path)
    assert path.stat().st_size <= page.MAX_BYTES
    assert "What did it write?" in path.read_text(encoding="utf-8")


def test_the_page_is_replaced_whole_and_the_same_run_gives_the_same_page(tmp_path):
    synthetic.write(tmp_path, updates=20)
    first = build(tmp_path).read_bytes()
    assert build(str(tmp_path)).read_bytes() == first
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_address_but_namespaces_stands_in_what_we_wrote(hostile):
    ours = hostile.replace(page.plotly(), "")
    assert set(re.findall(r"https?://[\w./]+", ours)) == set()


def test_missing_plotly_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"plotly.*pip install 'isentrope\[report\]'"):
        page.plotly()
