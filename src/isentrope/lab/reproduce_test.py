"""The engine on made-up claims: what is written, what is not computed twice, what a fault leaves, what stands in table and page."""

import json

import pytest

from isentrope.cli import main
from isentrope.errors import UserError
from isentrope.lab import claims as room
from isentrope.lab import reproduce as engine
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.pictures import curves


def made(slug: str, values, *, calls: list | None = None, error: Exception | None = None) -> Claim:
    def measure(bench):
        if calls is not None:
            calls.append(bench.seeds)
        if error is not None:
            raise error
        picture = Picture("<b>t</b>", curves({"A": (range(3), [[1.0, 2.0, float("nan")], [2.0, 2.0, 1.0]])}, x="x", y="y"))
        return Findings((over("gap", "a | gap <i>", values, "nats"),), (picture,), ("A note.",))

    return Claim(slug, "Title <script>", "S.", "F", "W", "O.", "C", 0.1, measure, (Expect("gap", "the gap is positive", low=0.0),), seeds=2)


@pytest.fixture
def two(monkeypatch):
    calls: list[int] = []
    known = {"one": made("one", [1.0, 1.1], calls=calls), "two": made("two", [-1.0, 1.0], calls=calls)}
    monkeypatch.setattr(room, "claims", lambda: known)
    monkeypatch.setattr(engine, "claims", lambda: known)
    return known, calls


def test_results_are_written_and_not_computed_twice(two, tmp_path):
    said: list[str] = []
    results = engine.reproduce(None, tmp_path, tell=said.append)
    assert {slug: item["verdict"] for slug, item in results.items()} == {"one": "confirmed", "two": "out of reach here"}
    assert two[1] == [2, 2]
    assert engine.reproduce(None, tmp_path, tell=said.append) == results
    assert two[1] == [2, 2]
    assert "done before" in said[-1]
    engine.reproduce(["one"], tmp_path, seeds=3, tell=said.append)
    assert two[1] == [2, 2, 3]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"verdict": "confirmed"}'])
def test_a_damaged_result_is_computed_again(two, tmp_path, damage):
    engine.reproduce(["one"], tmp_path, tell=lambda line: None)
    (tmp_path / "one" / engine.RESULT).write_text(damage)
    assert engine.reproduce(["one"], tmp_path, tell=lambda line: None)["one"]["verdict"] == "confirmed"
    assert two[1] == [2, 2]


def test_a_result_of_another_version_of_the_claim_is_not_taken(two, tmp_path):
    engine.reproduce(["one"], tmp_path, tell=lambda line: None)
    path = tmp_path / "one" / engine.RESULT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0"}))
    assert engine.standing(two[0]["one"], tmp_path, None) is None


def test_one_that_fails_leaves_the_others_their_results(two, tmp_path):
    two[0]["fails"] = made("fails", [1.0], error=UserError("the disk went away"))
    two[0]["last"] = made("last", [1.0, 1.0001])
    said: list[str] = []
    with pytest.raises(UserError, match="the disk went away"):
        engine.reproduce(None, tmp_path, tell=said.append)
    assert (tmp_path / "last" / engine.RESULT).is_file()
    assert not (tmp_path / "fails").exists()
    assert any("fails: failed: the disk went away" in line for line in said)


def test_seeds_below_one_are_refused_and_one_decides_nothing(two, tmp_path):
    with pytest.raises(UserError, match=r"--seeds must be at least 1.*Got 0"):
        engine.reproduce(["one"], tmp_path, seeds=0)
    two[0]["single"] = made("single", [1.0])
    result = engine.reproduce(["single"], tmp_path, tell=lambda line: None)["single"]
    assert result["verdict"] == "out of reach here"
    assert result["measured"][0]["low"] is None
    assert json.loads((tmp_path / "single" / engine.RESULT).read_text()) == result


def test_the_page_holds_the_verdict_and_escapes(two, tmp_path):
    engine.reproduce(["one"], tmp_path, tell=lambda line: None)
    page = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "Title &lt;script&gt;" in page
    assert "a | gap &lt;i&gt;" in page
    assert "Confirmed" in page
    assert "isentrope reproduce one" in page


def test_the_table_has_a_row_and_an_entry_for_each(two, tmp_path):
    text = engine.table(engine.reproduce(None, tmp_path, tell=lambda line: None))
    assert "2 claims: 1 confirmed, 0 partly, 0 refuted, 1 out of reach here" in text
    assert text.count("\n### ") == 2
    row = next(line for line in text.splitlines() if line.startswith("| [one]"))
    assert row.endswith("| confirmed |")
    assert "a \\| gap" in row  # a bar in a cell would end it


def test_what_is_done_is_told_without_running_anything(two, tmp_path):
    engine.reproduce(["one"], tmp_path, tell=lambda line: None)
    calls = list(two[1])
    found = engine.done(tmp_path)
    assert set(found) == {"one"}
    assert two[1] == calls
    assert "not been run for this page: two." in engine.table(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce"], "name papers"),
        (["reproduce", "siren", "--all"], "not both"),
        (["reproduce", "--done", "--all"], "not both"),
        (["reproduce", "sirenn"], "Did you mean 'siren'"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
