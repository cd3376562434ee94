"""What the page says of cut responses, from a tape made by hand."""

import polars as pl
import pytest

from isentrope.report.data import Run
from isentrope.report.sections.cuts import NEVER, cuts


def run(**columns) -> Run:
    steps = pl.DataFrame({"step": [1, 2, 3, 4], **{f"cut/cure/{name}": values for name, values in columns.items()}})
    made = object.__new__(Run)
    object.__setattr__(made, "steps", steps)
    object.__setattr__(made, "record", {})
    return made


CUT = {
    "share": [0.5, 0.5, 0.25, 0.0], "kept": [0.4, 0.6, 0.5, None], "entropy": [1.5, 1.25, 1.0, None], "usual_entropy": [0.5, 0.25, 0.25, None],
    "near_entropy": [1.0, 0.75, 0.5, None],
    "first_tokens": [1000.0, 1000.0, 1300.0, None], "second_tokens": [400.0, 500.0, 600.0, None], "kept_tokens": [600.0, 500.0, 400.0, None],
}  # fmt: skip


def test_figures_are_of_the_updates_whose_responses_were_cut():
    charts, body = cuts(run(**CUT), "cure", 2)
    at_cuts, near, usual = charts["cuts-2"]["series"]
    assert (at_cuts["x"], at_cuts["y"]) == ([1, 2, 3], [1.5, 1.25, 1.0])
    assert near["y"] == [1.0, 0.75, 0.5]
    assert usual["y"] == [0.5, 0.25, 0.25]
    text = str(body).replace("\u00a0", " ")
    assert "42 % of the responses of updates 1 to 3 are branches; each keeps 50 % of its parent." in text
    assert "A generation samples 1,100 tokens first, scores them, and 500 after the cuts; 500 are taken over" in text


def test_a_run_without_a_cut_says_so():
    assert NEVER in str(cuts(run(share=[0.0] * 4), "cure", 0)[1])


@pytest.mark.parametrize("name", ["<b>x</b>"])
def test_a_links_name_is_escaped(name):
    made = run(**CUT)
    object.__setattr__(made, "steps", made.steps.rename({column: column.replace("cure", name) for column in made.steps.columns}))
    assert "<b>" not in str(cuts(made, name, 0)[1])
