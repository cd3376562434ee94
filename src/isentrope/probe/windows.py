"""How a text longer than a model's context is read: in overlapping windows, each with a context of its own.

The first window reads from the beginning. Each later one begins `overlap` tokens before the point where the last one ended, and only
its new tokens are scored. So every token is scored once, from all the text before it within its window, which is at least
min(position, overlap) tokens. Standard library only.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The model reads tokens start <= t < stop; those from `fresh` on are read for the first time, and scored here."""

    start: int
    stop: int
    fresh: int


def windows_of(tokens: int, size: int, overlap: int) -> tuple[Window, ...]:
    """The windows over a text of so many tokens, in the text's order; none for an empty text.

    size: tokens that a window holds. overlap: tokens of old text before a window's new ones, 0 <= overlap < size.
    Raises ValueError for sizes that leave nothing new in a window.

    >>> windows_of(10, 6, 3)
    (Window(start=0, stop=6, fresh=0), Window(start=3, stop=9, fresh=6), Window(start=6, stop=10, fresh=9))
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows_of: needs size >= 1 and 0 <= overlap < size. Got size {size}, overlap {overlap}.")
    found: list[Window] = []
    read = 0
    while read < tokens:
        start = max(0, read - overlap)
        stop = min(start + size, tokens)
        found.append(Window(start, stop, read))
        read = stop
    return tuple(found)
