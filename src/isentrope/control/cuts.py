"""Where a response is cut so that others go on from there: what a link of the stage `regenerate` is shown, what it answers, and how it chooses.

A position t is cut "just before" its token: the tokens 0 .. t - 1 are kept, token t is sampled anew. A cut at 0 keeps nothing, and what is sampled then
is a response like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.step import Rollouts


@dataclass(frozen=True)
class Drafts:
    """The first responses to each prompt, scored, before the others are sampled.

    rollouts: group by group, with the signals "draft.*"; nothing is rewarded yet.
    missing: responses that every group still lacks.
    longest: tokens that a response may have.
    texts: of every token id that occurs. special: the ids of special tokens.
    """

    rollouts: Rollouts
    missing: int
    longest: int
    texts: Mapping[int, str]
    special: frozenset[int] = frozenset()

    def groups(self) -> list[Int[Tensor, " response"]]:
        """Positions of the drafts of each group, groups in the order in which they stand."""
        group = self.rollouts.group
        first = {int(value): at for at, value in reversed(list(enumerate(group.tolist())))}
        return [(group == value).nonzero().squeeze(1) for value, _ in sorted(first.items(), key=lambda item: item[1])]


@dataclass(frozen=True)
class Branches:
    """How the responses begin that are still to be sampled: `missing` for each group, groups in the order of the drafts.

    parent: position among the drafts. cut: how many of its tokens are kept.
    allowed: positions at which a draft could have been cut, which a random cut is drawn from.
    """

    parent: Int[Tensor, " branch"]
    cut: Int[Tensor, " branch"]
    allowed: Bool[Tensor, "response token"]


def eligible(drafts: Drafts, admits: Callable[[str, bool], bool], *, room: int = 1) -> Bool[Tensor, "response token"]:
    """Positions before whose token a draft may be cut: not 0, a token that `admits(text, special)`, and at least `room` tokens left to the longest."""
    mask = drafts.rollouts.trained_mask
    good = [token for token, text in drafts.texts.items() if admits(text, token in drafts.special)]
    position = torch.arange(mask.shape[1], device=mask.device)
    found = mask & torch.isin(drafts.rollouts.completion_ids, torch.tensor(good, dtype=torch.long, device=mask.device))
    return found & (position > 0) & (position <= drafts.longest - room)


def leading(key: Float[Tensor, "response token"], among: Bool[Tensor, "response token"], count: int) -> Int[Tensor, "response candidate"]:
    """The `count` positions of the largest key `among`, in the order of falling key (earlier ones first in a tie); -1 where there are fewer."""
    order = torch.where(among, key, -torch.inf).argsort(dim=-1, descending=True, stable=True)[:, :count]
    there = torch.arange(order.shape[1], device=key.device) < among.sum(-1, keepdim=True)
    return torch.where(there, order, -1)


def drawn(candidates: Int[Tensor, "response candidate"], uniform: Float64[Tensor, " response"]) -> Int[Tensor, " response"]:
    """One of each row's candidates (those not -1, which come first), uniformly by a number in [0, 1); 0 where there is none."""
    count = (candidates >= 0).sum(-1)
    pick = torch.minimum((uniform * count).long(), (count - 1).clamp(min=0))
    return torch.where(count > 0, candidates.gather(-1, pick[:, None]).squeeze(-1), 0)


def contexts(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], cuts: Sequence[int], *, buffer: int | None = None) -> list[list[int]]:
    """What each branch goes on from: its prompt and the first `cut` tokens of its parent.

    buffer: as CURE releases it, only the first `buffer` tokens are kept, so a late cut silently becomes an earlier one.
    """
    return [[*prompt, *response[:cut]][:buffer] for prompt, response, cut in zip(prompts, responses, cuts, strict=True)]
