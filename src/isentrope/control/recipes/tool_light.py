"""Tool-Light: preference pairs from chains that branch where a step begins in doubt, for DPO.

    E_n  = mean of the entropies (of the 50 likeliest tokens) of a step's first n tokens,  n in {10, 20, 30, 40, 50}
    a step's score is max_n E_n, and it is cut after that n; the 3 steps of highest score are continued 3 times each

A step is the text between two tool results (or any units that a chain is made of). Chains to one question then make pairs: right ones of few calls
and low entropy over wrong ones, or over right ones of more calls.

| paper / code | here |
|---|---|
| top-logprobs 50 | the signal `TopKEntropy(50)`, at most the full entropy |
| prefixes 10..50 | `prefixes` |
| branch points, branches | `points`, `branches`: at most 1 + points x branches chains |

Paper and code: the criteria of pairs stand in the paper alone, which was not at hand: `preference_pairs` is (inferred) from its summary. The released
code counts tokens by encoding the text again, which drifts; here positions are those of the token ids. A step shorter than n has its whole mean for
that n; of equal means the shortest prefix wins, which the maximum favours anyway.

The loss is DPO's own (sigmoid, beta 0.1), so stock `trl.DPOTrainer` trains on the pairs: there is nothing to replace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isentrope.control.blocks import check_at_least


@dataclass(frozen=True)
class BranchPoint:
    """A place to cut a chain: `position` tokens of it stay; `step` is the step's index, `score` its largest prefix mean in nats."""

    position: int
    step: int
    score: float


def step_score(entropy: Sequence[float], prefixes: Sequence[int]) -> tuple[float, int]:
    """The largest mean entropy over the first n tokens, and the smallest n (at most the length) that has it.

    Raises ValueError for a step without tokens.

    >>> step_score([3.0, 1.0, 2.0], (1, 2, 5))
    (3.0, 1)
    """
    if not entropy:
        raise ValueError("step_score: a step must have a token.")
    found = [(sum(entropy[:n]) / len(entropy[:n]), min(n, len(entropy))) for n in sorted(prefixes)]
    return max(found, key=lambda item: (item[0], -item[1]))


@dataclass(frozen=True)
class Brancher:
    """Where to branch, and how often. Shared by whatever cuts chains at scored steps."""

    prefixes: tuple[int, ...] = (10, 20, 30, 40, 50)
    points: int = 3
    branches: int = 3

    def __post_init__(self):
        if not self.prefixes or min(self.prefixes) < 1:
            raise ValueError(f"Brancher: prefixes must be counts of tokens, each at least 1. Got {self.prefixes}.")
        check_at_least("Brancher", "points", self.points, 1, "For the main chain alone sample without branching.")
        check_at_least("Brancher", "branches", self.branches, 1, "For the main chain alone sample without branching.")

    def choose(self, entropy: Sequence[float], starts: Sequence[int]) -> list[BranchPoint]:
        """The branch points of a chain by falling score (ties: the earlier step). `starts`: the position of every step's first token, rising."""
        ends = [*starts[1:], len(entropy)]
        found = []
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if end > start:
                score, length = step_score(entropy[start:end], self.prefixes)
                found.append(BranchPoint(start + length, index, score))
        return sorted(found, key=lambda point: (-point.score, point.step))[: self.points]


@dataclass(frozen=True)
class Sampled:
    """A chain to a question: whether its answer is right, its tool calls (or steps), and its mean entropy in nats."""

    text: str
    correct: bool
    calls: int
    entropy: float


def preference_pairs(chains: Sequence[Sampled], *, limit: int = 4, wrong_of: Literal["most", "fewest"] = "most") -> list[tuple[str, str]]:
    """(chosen, rejected) texts of one question, at most `limit` and each text once a side; none without a right chain (inferred).

    Chosen: right, fewest calls, then lowest entropy. Rejected: wrong ones of most calls and highest entropy first (`wrong_of`: of fewest calls, where a
    call is needed more often than it is wasted; the paper's second stage balances the two), then right ones with more calls than the chosen one.
    """
    right = sorted(dict.fromkeys(chain for chain in chains if chain.correct), key=lambda chain: (chain.calls, chain.entropy, chain.text))
    sign = -1 if wrong_of == "most" else 1
    wrong = sorted(dict.fromkeys(chain for chain in chains if not chain.correct), key=lambda chain: (sign * chain.calls, -chain.entropy, chain.text))
    pairs, used = [], set()
    for chosen in right:
        redundant = [chain for chain in reversed(right) if chain.calls > chosen.calls]
        rejected = next((chain for chain in (*wrong, *redundant) if chain.text not in used and chain.text != chosen.text), None)
        if rejected is None or len(pairs) == limit:
            break
        used.add(rejected.text)
        pairs.append((chosen.text, rejected.text))
    return pairs
