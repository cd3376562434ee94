"""The ledger's section: its books balance, its figures are the tape's, and hostile or missing tables do it no harm."""

import dataclasses
import re

import numpy as np
import polars as pl
import pytest

from isentrope.explain.agreement import by_thirds
from isentrope.report import page, synthetic
from isentrope.report.data import Run, read
from isentrope.report.sections import ledger


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return read(synthetic.write(tmp_path_factory.mktemp("run"), updates=60, seed=3))


def cells(html: str, title: str) -> list[float]:
    """The numbers of the table row that begins with `title`."""
    row = re.search(rf"<tr><td>(?:<strong>)?{re.escape(title)}(?:</strong>)?</td>(.*?)</tr>", html)
    assert row is not None, title
    found = [re.sub(r"<.*?>", "", cell).replace("−", "-").replace(",", "").rstrip("\u00a0%") for cell in re.findall(r"<td.*?</td>", row[1])]
    return [float(value) for value in found if value]


def test_the_books_balance_in_every_column(run):
    html = ledger.section(run).html()
    opening, closing = cells(html, "opening entropy"), cells(html, "closing entropy")
    change = np.sum([cells(html, title)[:4] for title in ledger.NAMES.values()], axis=0)
    assert change == pytest.approx(cells(html, "change that was measured")[:4], rel=0.02)
    assert np.array(opening) + change == pytest.approx(np.array(closing), rel=2e-3)
    shares = [cells(html, title)[4] for title in ledger.NAMES.values()]
    assert sum(shares) == pytest.approx(100, abs=1.5)


def test_pictures_show_the_tape(run):
    charts = ledger.section(run).charts
    rows = run.ledger.sort("step")
    assert charts["ledger-agreement"]["measured"] == rows["measured"].to_list()
    exact = charts["ledger-agreement"]["theories"][0]
    assert exact["own"]
    assert exact["slope"] == pytest.approx(by_thirds(rows["step"].to_numpy(), rows["theory/exact"].to_numpy(), rows["measured"].to_numpy())["all"].slope.value)
    assert exact["intercept"] + exact["slope"] * rows["theory/exact"].mean() == pytest.approx(rows["measured"].mean())
    assert charts["ledger-agreement"]["third"] == ["early"] * 4 + ["middle"] * 4 + ["late"] * 4
    parts = run.ledger_parts
    for by in ("advantage", "correct", "position", "class"):
        chart = charts[f"ledger-{by}"]
        assert sum(chart["value"]) == pytest.approx(rows["account/this_batch"].sum(), rel=1e-6)
        assert sum(chart["tokens"]) == pytest.approx(1)
        assert len(chart["label"]) == parts.filter(pl.col("by") == by)["kind"].n_unique()


def test_links_say_what_they_added(run):
    html = ledger.section(run).html()
    rule, added = run.ledger["theory/token_rule"].sum(), run.ledger["link/clip-cov"].sum()
    row = re.search(r"<code>clip-cov</code></td>(.*?)</tr>", html)
    assert row is not None
    assert ledger._signed(added) in row[1]
    assert ledger._signed(rule - added) in row[1]


def test_without_ledgers_the_section_says_how_to_get_them(run):
    empty = dataclasses.replace(run, ledger=run.ledger.clear())
    found = ledger.section(empty)
    assert "ledger.every" in found.html()
    assert not found.charts


def test_one_account_where_the_optimiser_cannot_be_split(run):
    kept = [name for name in run.ledger.columns if not name.startswith("account/") or name == "account/residual"]
    bare = dataclasses.replace(
        run, ledger=run.ledger.select(kept).drop("attributed"), ledger_parts=run.ledger_parts.clear(), ledger_tokens=run.ledger_tokens.clear()
    )
    html = ledger.section(bare).html()
    assert "the optimiser&#x27;s update as a whole" in html
    assert "no account of this batch" in html


@pytest.mark.parametrize("rows", [1, 2])
def test_a_young_run_has_books_without_thirds(run, rows):
    html = ledger.section(dataclasses.replace(run, ledger=run.ledger.head(rows))).html()
    assert "so far" in html
    assert "early</th>" not in html.split("</table>")[0]


def test_hostile_texts_are_escaped(tmp_path):
    text = page.html(read(synthetic.write(tmp_path, updates=30, hostile=True)))
    section = text[text.index('<section id="ledger"') : text.index('<section id="pressure"')]
    assert "pwned" in section
    for attack in ("<script>window", "<img src=x", "<svg onload", "javascript:window.pwned=1'>x</a>"):
        assert attack not in section
