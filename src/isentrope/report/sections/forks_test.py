"""What the page says of doubled episodes, from a tape made by hand."""

import polars as pl

from isentrope.report.data import Run
from isentrope.report.sections.forks import NEVER, forks


def run(name: str = "aepo-branch", **columns) -> Run:
    steps = pl.DataFrame({"step": [1, 2, 3, 4], **{f"fork/{name}/{key}": values for key, values in columns.items()}})
    made = object.__new__(Run)
    object.__setattr__(made, "steps", steps)
    object.__setattr__(made, "record", {})
    return made


FORKED = {
    "share": [0.5, 0.5, 0.25, 0.25], "kept": [0.4, 0.6, 0.5, None], "roots": [4.0, 4.0, 5.0, 5.0], "entropy": [1.5, 1.25, 1.0, None],
    "usual_entropy": [0.5, 0.25, 0.25, 0.5], "sampled_tokens": [1000.0, 1000.0, 1300.0, 1100.0], "kept_tokens": [400.0, 500.0, 600.0, 500.0],
    "pilot_tokens": [100.0, 100.0, 100.0, 140.0],
}  # fmt: skip


def test_figures_are_those_of_the_tape():
    charts, body = forks(run(**FORKED), "aepo-branch", 1)
    before, usual = charts["forks-1"]["series"]
    assert before["y"][:3] == [1.5, 1.25, 1.0]
    assert usual["y"] == [0.5, 0.25, 0.25, 0.5]
    text = str(body).replace("\u00a0", " ")
    assert "38 % of the episodes are copies; 4.5 of a group begin at the prompt before any is doubled. A copy takes over 50 % of its row." in text
    assert "A generation samples 1,100 tokens, 500 stand in a copy too, and 110 are of pilots" in text


def test_a_run_without_a_fork_says_so():
    assert NEVER in str(forks(run(share=[0.0] * 4), "aepo-branch", 0)[1])


def test_a_links_name_is_escaped():
    assert "<b>" not in str(forks(run("<b>x</b>", **FORKED), "<b>x</b>", 0)[1])
