"""The catalogue, the pages written from it, and the page for whoever adds the next intervention."""

import importlib.util
import json
import re
import shlex
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from isentrope.control.registry import build, registry
from isentrope.entry import cost
from isentrope.papers import STANDARD, catalogue, describe, pages
from isentrope.ranges import ranges

ROOT = Path(__file__).parents[2]
WANTED = {
    "name", "slug", "title", "source", "stages", "parameters", "ranges", "variants", "needs", "cost", "vllm", "verified", "status", "effect", "recipe",
}  # fmt: skip


@pytest.fixture(scope="module")
def entries():
    return {item["name"]: item for row in catalogue() for item in row["interventions"]}


@dataclass(frozen=True)
class Bounded:
    """Every kind of parameter."""

    share: float = 0.2
    low: float = 1.0
    high: float = 2.0
    odd: float | None = None
    count: int | Literal["all"] = 3
    form: Literal["a", "b", "c", "never"] = "a"
    flag: bool = True
    free: float = 0.5
    hole: float = 3.0
    words: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.share <= 1 or not self.low <= self.high or (self.form == "c" and self.flag) or self.form == "never" or self.hole == 5:
            raise ValueError
        if self.odd is not None and not -0.123 <= self.odd < 7.25:
            raise ValueError
        if self.count != "all" and self.count < 3:
            raise ValueError


def test_ranges_are_what_the_class_accepts():
    found = {name: item.text() for name, item in ranges(Bounded).items()}
    assert found == {
        "share": "(0, 1]", "low": "(-inf, 2]", "high": "[1, inf]", "odd": "[-0.123, 7.25) (about) or null", "count": "all or whole [3, inf)",
        "form": "a | b (c only with other settings)", "flag": "true | false", "free": "any number", "hole": "any number without 5", "words": "tuple[str, ...]",
    }  # fmt: skip
    assert ranges(Bounded)["hole"].gaps == (5.0,)


def test_a_bound_that_moves_moves_the_range():
    """Nothing is declared twice: the range follows the check."""

    @dataclass(frozen=True)
    class Moved(Bounded):
        def __post_init__(self):
            if self.share > 0.5:
                raise ValueError

    assert ranges(Moved)["share"].high == 0.5
    assert ranges(Moved)["share"].low is None


@pytest.mark.parametrize("name", registry())
def test_every_default_lies_in_its_range_and_every_bound_is_as_told(name):
    kind = registry()[name]

    def accepts(**given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                kind(**given)
            except ValueError:
                return False
            return True

    for key, item in ranges(kind).items():
        default = kind().__dict__[key]
        if item.number and isinstance(default, int | float) and not isinstance(default, bool):
            assert item.low is None or item.low <= default
            assert item.high is None or default <= item.high
        elif item.values:
            assert default in item.values
        number = int if item.number == "whole" else float
        for bound, is_open in ((item.low, item.low_open), (item.high, item.high_open)):
            if bound is not None and not item.about:
                assert accepts(**{key: number(bound)}) != is_open


def test_every_entry_tells_everything(entries):
    assert set(entries) == set(registry())
    for item in entries.values():
        assert item.keys() >= WANTED
        assert item["parameters"].keys() == item["ranges"].keys() == set(registry()[item["name"]].__dataclass_fields__)
        assert item["status"] == "done"
        assert set(item["verified"]) <= {"vectors", "identities", "inferred"}
        assert all((item["stages"], item["source"], item["cost"]["text"]))
    json.dumps(list(entries.values()), allow_nan=False)


def test_verified_by_vectors_means_that_cases_were_recorded(entries):
    recorded = {path.stem.partition("__")[0] for path in (ROOT / "tests" / "vectors").glob("*.npz")}
    claimed = {item["slug"] for item in entries.values() if "vectors" in item["verified"]}
    assert {"clip-cov", "siren", "forking-tokens", "cure"} <= claimed <= recorded
    assert entries["ares"]["verified"] == ["vectors"]
    assert entries["ares-branch"]["verified"] == ["identities", "inferred"]  # the recorded outputs of its slug are of the reward


def test_the_cost_is_told_from_stages_and_signals(entries):
    assert entries["aepo-arbitrary"]["cost"]["generated"] is not None
    assert entries["clip-cov"]["cost"]["forwards_per_update"] == 1
    assert entries["canon"]["cost"]["forwards_per_generation"] == 1
    assert entries["dual-clip"]["cost"]["text"].startswith("none")
    assert "hook" in entries["hapo"]["cost"]["text"]
    assert entries["spear"]["cost"]["forwards_to_remember"] == 1
    assert entries["cure"]["cost"]["forwards_over_drafts"] == 1
    assert entries["cure"]["cost"]["forwards_per_generation"] == 0
    assert entries["ares-branch"]["cost"]["forwards_per_generation"] == 1
    assert entries["cure"]["vllm"].startswith("refused")
    assert entries["dynamic-sampling"]["vllm"].startswith("refused")
    assert entries["clip-cov"]["vllm"] == "works"
    assert cost(registry()["dynamic-sampling"](rounds=0))["generated"] is None


def test_every_intervention_says_in_a_sentence_what_it_does_to_entropy(entries):
    for name, item in entries.items():
        assert item["effect"][:1].isupper(), name
        assert item["effect"].endswith("."), name
        assert item["effect"] in describe(next(row for row in catalogue() if name in [one["name"] for one in row["interventions"]]))


def test_there_is_a_page_for_every_paper_that_is_done_and_one_for_the_standard_ones():
    done = {row["slug"] for row in catalogue() if row["interventions"] and row["title"] != STANDARD}
    found = pages()
    assert set(found) == {f"{slug}.md" for slug in done} | {"standard.md", "index.md"}
    for slug in (*done, "standard"):
        assert f"({slug}.md)" in found["index.md"]
    assert all(f"## {name}\n" in "".join(found.values()) for name in registry())


BLOCKS = [
    (name, command, code)
    for name, text in pages().items()
    for command, code in zip(re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL), re.findall(r"```python\n(.*?)```", text, re.DOTALL), strict=True)
]


@pytest.mark.parametrize(("command", "code"), [pytest.param(c, p, id=f"{n}-{i}") for i, (n, c, p) in enumerate(BLOCKS)])
def test_every_recipe_is_a_run_that_would_start(command, code, monkeypatch, tmp_path):
    """The command and the Python of a page resolve, pass the check that precedes every run, and build the embedded setting."""
    from isentrope.config import load
    from isentrope.train import run as module
    from isentrope.train.check import check

    words = shlex.split(command)
    preset = "game" if words[-1] == "runs/aepo-branch" else "control-check"
    assert words[:4] == ["isentrope", "train", "--preset", preset]
    sets = [word for flag, word in pairwise(words) if flag == "--set"]
    monkeypatch.chdir(tmp_path)
    asked = check(load(preset=preset, sets=sets, out=words[words.index("--out") + 1]))
    link = build(asked.control).links[0]
    assert repr(link).replace("[", "(").replace("]", ")").replace(",)", ")") == repr(registry()[link.name]().embedded()).replace(",)", ")")

    started = []
    monkeypatch.setattr(module, "run", started.append)
    exec(compile(code, "page", "exec"), {})
    assert started == [asked]
    assert not list(tmp_path.iterdir())


def test_there_is_a_recipe_for_every_intervention():
    assert len(BLOCKS) == len(registry())


# --- for whoever adds the next one


def test_the_example_of_the_docs_is_complete_and_keeps_the_contract(tmp_path, monkeypatch):
    from isentrope.testing import check_intervention

    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "intervention.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert 30 <= len(code.splitlines()) <= 50
    file = tmp_path / "damp.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("damp", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "damp", module)
    spec.loader.exec_module(module)
    kind = module.Damp
    check_intervention(kind(), slow=False)
    assert ranges(kind)["strength"].text() == "[0, 1]"
    with pytest.raises(ValueError, match="Damp: strength must be a fraction"):
        kind(strength=20)
