"""Numbers as people read them: the examples of the docstrings, and the edges."""

import doctest

import pytest

from isentrope.report import markup, words


@pytest.mark.parametrize("module", [words, markup])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.0994, "9.9 %"),
        (0.0996, "10 %"),
        (0.05, "5.0 %"),
        (-0.2, "−20 %"),
        (0.00031, "0.03 %"),
        (1e-6, "< 0.01 %"),
        (-1e-6, "> −0.01 %"),
        (None, "—"),
    ],
)
def test_percent(value, said):
    assert words.percent(value) == said.replace(" %", "\u00a0%")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (1.0, "1.00"), (-0.25, "−0.250"), (99.97, "100"), (999.96, "1000"), (4686.4, "4,686"), (float("nan"), "—"), (None, "—"), (float("inf"), "—")],
)
def test_short(value, said):
    assert words.short(value) == said


def test_an_interval_of_one_number_is_one_number():
    assert words.interval(0.99999, 1.0) == "100\u00a0%"
    assert words.interval(None, 1.0) == "—"


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "half"), (0.111, "a ninth"), (0.34, "a third"), (0.021, "2.1 %"), (0.8, "80 %")])
def test_times(ratio, word):
    assert words.times(ratio) == word.replace(" %", "\u00a0%")


def test_moved():
    assert [words.moved(1.0, end) for end in (1.04, 1.2, 0.8)] == ["stayed", "rose", "fell"]
    assert words.moved(0.0, 0.0) == "stayed"


@pytest.mark.parametrize(("value", "kept"), [(True, None), ("1", None), (float("nan"), None), (None, None), (2, 2.0)])
def test_finite(value, kept):
    assert words.finite(value) == kept
