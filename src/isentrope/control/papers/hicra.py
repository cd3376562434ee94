"""HICRA: tokens of planning phrases ("strategic grams") gain more from success and lose less from failure.

    A'_t = A_t + alpha |A_t|   where t lies inside a strategic gram, else A_t;   so (1 + alpha) A above 0 and (1 - alpha) A below

| paper | here | |
|---|---|---|
| SG | `grams` | token ids of every phrase, as `gram_ids` writes them with one's tokenizer |
| S_i | `Matches.inside` | longest gram first, from the left, without overlap |
| alpha | `alpha` | 0.2 |
| semantic entropy | `strategic_entropy` | -sum_g f_g ln f_g over occurrences, nats; not that of answer clusters |

Where A is not 0 on average over planning tokens the group's sum grows by alpha sum |A|: an optimism that pushes likely planning tokens up
(entropy falls) and raises rare ones. The paper's A is R - mean by its formula and divided by the deviation by its words: that is the trainer's
`scale_rewards` (none, group), whose advantage this takes as it finds it.

Phrases are found among token ids, because that aligns them with tokens exactly; the paper matches text. (Inferred): the order of matching, and
that a phrase counts with and without a space before it and a capital. A phrase whose last letters the tokenizer merges with what follows is
missed. No training code is published; this is checked against the two-case formula. Not here: how the paper finds its phrases (clusters of
n-grams of correct solutions by sentence embeddings, top fifth by document frequency), the entropy of what follows a gram, relative perplexity.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_fraction, number
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Progress, Rollouts, State, Stats
from isentrope.measure.answers import answer_entropy

Grams = Sequence[Sequence[int]]
_IDLE = 10


@dataclass(frozen=True)
class Matches:
    """Tokens inside a gram, and the gram of every occurrence, responses one after the other."""

    inside: Bool[Tensor, "response token"]
    grams: tuple[tuple[int, ...], ...]


def gram_ids(phrases: Sequence[str], encode: Callable[[str], Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Token ids of every phrase, as written and with a capital, each with and without a space before it; doubles left out.

    encode: text to ids without special tokens, e.g. lambda text: tokenizer.encode(text, add_special_tokens=False).
    """
    written = [space + form for phrase in phrases for form in (phrase, phrase[:1].upper() + phrase[1:]) for space in ("", " ")]
    found = dict.fromkeys(tuple(int(token) for token in encode(text)) for text in written)
    return tuple(gram for gram in found if gram)


def match(ids: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"], grams: Grams) -> Matches:
    """Occurrences of the grams in the counted tokens of every response, longest first from the left, without overlap."""
    known = {tuple(gram) for gram in grams}
    lengths = sorted({len(gram) for gram in known}, reverse=True)
    inside, found = torch.zeros(mask.shape, dtype=torch.bool), []
    for row, (tokens, counts) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        at = 0
        while at < len(tokens):
            size = next((n for n in lengths if tuple(tokens[at : at + n]) in known and all(counts[at : at + n])), 0)
            if size:
                inside[row, at : at + size] = True
                found.append(tuple(tokens[at : at + size]))
            at += max(1, size)
    return Matches(inside.to(mask.device), tuple(found))


def strategic_entropy(
    ids: Int[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    grams: Grams,
    *,
    correction: Literal["none", "miller-madow"] = "none",
) -> float:
    """Entropy in nats of which strategic gram occurs, over all occurrences; in [0, ln grams]; NaN without any.

    Plug-in values grow with the number of occurrences, so with response length: compare steps with `correction="miller-madow"`.
    """
    found = match(ids, mask, grams).grams
    return answer_entropy(found, correction=correction) if found else float("nan")


def amplified(advantage: Float[Tensor, "response #token"], planning: Bool[Tensor, "response token"], alpha: float) -> Float[Tensor, "response token"]:
    """A + alpha |A| on planning tokens, A elsewhere."""
    return torch.where(planning, advantage + alpha * advantage.abs(), advantage)


@dataclass(frozen=True)
class Hicra(Intervention):
    """Amplifies the advantage of planning tokens. Without `grams` there are none, and nothing is changed."""

    name = "hicra"
    slug = "hicra"
    source = "Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning, arXiv 2509.03646, section 3; no training code published"
    effect = "Either way: planning tokens are pushed further; likely ones lower entropy, rare ones raise it."

    alpha: float = 0.2  # 0.1 to 0.5 are sensible; below 1 no sign changes
    grams: Grams = ()  # token ids, see gram_ids

    def __post_init__(self):
        check_fraction("Hicra", "alpha", self.alpha)
        if any(isinstance(gram, str) or not len(gram) or any(token < 0 for token in gram) for gram in self.grams):
            raise ValueError(
                f"Hicra: grams must hold token ids, at least one per gram. Got {list(self.grams)[:3]}. Make them with "
                "isentrope.control.papers.hicra.gram_ids(phrases, encode)."
            )
        object.__setattr__(self, "grams", tuple(tuple(gram) for gram in self.grams))  # lists, from YAML, have no hash

    def init(self) -> State:
        """`idle`: updates so far without grams."""
        return {"idle": 0}

    def neutral(self) -> "Hicra":
        return replace(self, alpha=0.0)

    def embedded(self) -> "Hicra":
        """The embedded model's own planning words (first, then, check, hence, so, each with its space), and some ids of the small world."""
        return replace(self, grams=((290, 222), (300, 222), (367, 222), (368, 222), (264, 222), (3,), (4, 5)))

    def recipe(self) -> Objective:
        """GRPO with clip-higher: ratio in [0.8, 1.28]."""
        return replace(Objective.named("grpo"), epsilon_high=0.28)

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        if self.alpha == 0 or not self.grams:
            return rollouts.advantage
        planning = match(rollouts.completion_ids, rollouts.completion_mask, self.grams).inside
        return amplified(rollouts.advantage, planning, self.alpha)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """Warns once, when a tenth update had no grams to look for."""
        if self.grams or self.alpha == 0:
            return state
        idle = int(number(state, "idle")) + 1
        if idle == _IDLE:
            warnings.warn(
                "Hicra: grams is empty, so no token is a planning token and hicra does nothing. Give it the token ids of planning phrases: "
                "isentrope.control.papers.hicra.gram_ids(phrases, encode).",
                stacklevel=2,
            )
        return {"idle": idle}
