"""Windows: every token once, with the context that is promised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.probe.windows import Window, windows_of


@settings(max_examples=300, deadline=None)
@given(tokens=st.integers(0, 400), size=st.integers(1, 60), data=st.data())
def test_every_token_is_scored_once_with_its_context(tokens, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = windows_of(tokens, size, overlap)
    assert [t for window in found for t in range(window.fresh, window.stop)] == list(range(tokens))
    for window in found:
        assert window.stop - window.start <= size
        assert all(t - window.start >= min(t, overlap) for t in range(window.fresh, window.stop))
    assert all(window.stop - window.start == size for window in found[:-1])


def test_a_short_text_is_one_window_and_an_empty_one_none():
    assert windows_of(5, 8, 4) == (Window(0, 5, 0),)
    assert windows_of(8, 8, 4) == (Window(0, 8, 0),)
    assert windows_of(0, 8, 4) == ()


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1), (4, 9)])
def test_windows_that_would_never_end_are_refused(size, overlap):
    with pytest.raises(ValueError, match=f"size {size}, overlap {overlap}"):
        windows_of(10, size, overlap)
