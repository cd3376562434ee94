"""Where an episode of several turns is doubled: what a link of the stage `fork` is shown.

An episode is forked after a reply of its environment and before the next action: the copy has the same row of tokens so far and goes on by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Standing:
    """One episode that can go on, or a pilot that has been played to its end.

    row: the id that its row will have. turns: the link's "draft" signal at the tokens of every action so far, [token] each.
    uniform: nats of a next token of which nothing is known, the logarithm of the vocabulary's size.
    run: at how many replies in a row, up to the last but one, this line of play was forked.
    """

    row: int
    turns: tuple[Float64[Tensor, " _"], ...]
    uniform: float
    run: int = 0


def refuse_counts(key: str, counts: Sequence[int], standing: Sequence[Standing], free: int) -> None:
    """Raises ValueError unless `counts` says for each of `standing` how often it is forked, and at most `free` in all."""
    if len(counts) != len(standing) or any(count < 0 for count in counts) or sum(counts) > free:
        raise ValueError(
            f"{key}: the stage fork must say for each of {len(standing)} episodes how many go on from it, {free} at most in all. Got {list(counts)}."
        )
