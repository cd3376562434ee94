"""HICRA: the advantage of planning tokens, those inside a strategic phrase, is moved up by a share of its size.

    A'_t = A_t + alpha |A_t|  for t inside an occurrence of a strategic n-gram,   A_t  elsewhere
    so (1 + alpha) A where A > 0 and (1 - alpha) A where A < 0: success is amplified, failure softened, no sign turns (alpha <= 1)

| paper | here | |
|---|---|---|
| alpha | `alpha` | 0.2; 0.1 to 0.5 are sensible |
| SG | `grams` | n-grams of token ids; `phrase_grams(phrases, tokenizer)` makes them, `frequent_grams` finds candidates |
| A_i | `baseline` | "trainer": what the trainer (and the links before) made; "centred": R_i - mean of the group |
| S_i | `occurrences(...).covered` | from left to right, the longest gram first, occurrences do not overlap |
| semantic entropy of the SG distribution | `strategic_entropy` | nats, 0 to ln #SG; not the entropy of answer clusters |

The paper's formula only centres the reward and its text says group-normalised: both are here, the trainer's own scaling is the default.
Grams are ids because a step has no tokenizer. They belong to one tokenizer, so there is no default list: without grams nothing is touched. A gram
counts where all its tokens are trained (inferred); left to right, longest first, is the sheet's recommendation (inferred). Where a phrase has
no token boundary of its own, mark it by character offsets with `covered_tokens`. The clustering of n-grams by a sentence transformer is
left to the reader: `frequent_grams` takes its result. No training code was released; only the two cases above are the authors'.

The group's advantages now sum to alpha sum |A| over planning tokens >= 0: a bias that pushes likely planning tokens up. It lowers entropy
where they are likely (S_k > N) and raises it where they are rare.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isentrope.control.blocks import check_fraction, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Rollouts, State
from isentrope.measure.counts import count_entropy

Grams = tuple[tuple[int, ...], ...]

# --- strategic grams


def phrase_grams(phrases: Sequence[str], encode: Callable[[str], Sequence[int]]) -> Grams:
    """Token n-grams of the phrases in their written forms: lower case and capitalised, with and without a space in front. Duplicates once.

    encode: text -> ids without special tokens, e.g. `lambda text: tokenizer.encode(text, add_special_tokens=False)`.
    """
    forms = (space + form for phrase in phrases for space in ("", " ") for form in (phrase.lower(), phrase.lower().capitalize()))
    return tuple(dict.fromkeys(tuple(int(token) for token in encode(form)) for form in forms))


def frequent_grams(
    solutions: Sequence[Sequence[int]], *, sizes: Sequence[int] = (3, 4, 5), share: float = 0.2, cluster: Mapping[tuple[int, ...], Hashable] | None = None
) -> Grams:
    """The n-grams of correct solutions whose cluster is in the top `share` by document frequency: how many solutions hold one of its grams.

    cluster: gram -> cluster; absent grams (all, if None) are clusters of their own. At least one cluster is kept; ties at the edge are kept too.
    """
    found = [{tuple(line[at : at + size]) for size in sizes for at in range(len(line) - size + 1)} for line in solutions]
    belongs = {gram: gram if cluster is None else cluster.get(gram, gram) for grams in found for gram in grams}
    frequency = Counter(name for grams in found for name in {belongs[gram] for gram in grams})
    if not frequency:
        return ()
    ranked = sorted(frequency.values(), reverse=True)
    edge = ranked[max(1, round(share * len(ranked))) - 1]
    return tuple(sorted(gram for gram, name in belongs.items() if frequency[name] >= edge))


def covered_tokens(text: str, offsets: Sequence[tuple[int, int]], phrases: Sequence[str]) -> list[bool]:
    """Which tokens of a text, given by (start, end) character offsets, share a character with a phrase; case does not count, longest first."""
    low, ordered, inside, at = text.lower(), sorted((phrase.lower() for phrase in phrases if phrase), key=len, reverse=True), set(), 0
    if len(low) != len(text):  # a letter whose lower case is longer would shift every offset
        low = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    while at < len(low):
        size = next((len(phrase) for phrase in ordered if low.startswith(phrase, at)), 0)
        inside.update(range(at, at + size))
        at += size or 1
    return [any(position in inside for position in range(start, end)) for start, end in offsets]


# --- where they occur


@dataclass(frozen=True)
class Occurrences:
    """start: the index of the gram that begins here, -1 none. covered: the token lies inside an occurrence."""

    start: Int[Tensor, "response token"]
    covered: Bool[Tensor, "response token"]


def occurrences(ids: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"], grams: Grams) -> Occurrences:
    """Occurrences of the grams among the tokens that count, from left to right, the longest gram first, none overlapping another.

    >>> occurrences(torch.tensor([[5, 6, 7, 5]]), torch.ones(1, 4, dtype=torch.bool), ((5,), (5, 6))).start
    tensor([[ 1, -1, -1,  0]])
    """
    index = {gram: at for at, gram in reversed(list(enumerate(grams)))}
    sizes = sorted({len(gram) for gram in grams}, reverse=True)
    start, covered = torch.full_like(ids, -1), torch.zeros_like(mask)
    first = torch.tensor(sorted({gram[0] for gram in grams}), dtype=ids.dtype, device=ids.device)
    candidates = torch.isin(ids, first) & mask
    for row in candidates.any(-1).nonzero().squeeze(1).tolist():
        line = torch.where(mask[row], ids[row], -1).tolist()  # no gram holds a negative id
        after = 0
        for at in candidates[row].nonzero().squeeze(1).tolist():
            gram = next((tuple(line[at : at + size]) for size in sizes if tuple(line[at : at + size]) in index), None)
            if at >= after and gram is not None:
                after = at + len(gram)
                start[row, at], covered[row, at:after] = index[gram], True
    return Occurrences(start, covered)


def gram_counts(found: Occurrences, number: int) -> Int[Tensor, " gram"]:
    """How often each of the `number` grams occurs."""
    return torch.bincount(found.start[found.start >= 0], minlength=number)


def strategic_entropy(counts: Int[Tensor, " gram"], estimator: Literal["plug-in", "miller-madow"] = "plug-in") -> Float[Tensor, ""]:
    """Entropy of the strategic-gram distribution f_g = c_g / sum c, nats: 0 to ln #SG as plug-in; NaN without an occurrence.

    The plug-in grows with the number of occurrences. Responses lengthen in training, so compare steps with "miller-madow" or at equal counts.
    """
    return count_entropy(counts, estimator=estimator)


def execution_entropy(ids: Int[Tensor, "response token"], mask: Bool[Tensor, "response token"], grams: Grams, size: int = 1) -> Float[Tensor, ""]:
    """sum_g f_g H(next n-gram of `size` tokens | g), nats, plug-in: the uncertainty of execution after a plan. NaN where nothing follows."""
    found, pairs = occurrences(ids, mask, grams), Counter()
    for row, at in (found.start >= 0).nonzero().tolist():
        gram = int(found.start[row, at])
        begin = at + len(grams[gram])
        if bool(mask[row, begin : begin + size].all()) and begin + size <= ids.shape[1]:
            pairs[gram, tuple(ids[row, begin : begin + size].tolist())] += 1
    plans = Counter()
    for (gram, _), times in pairs.items():
        plans[gram] += times
    joint, alone = (count_entropy(torch.tensor(list(counter.values()) or [0]), "plug-in") for counter in (pairs, plans))
    return joint - alone


# --- the intervention


def hierarchical_advantage(
    advantage: Float[Tensor, "response #token"], planning: Bool[Tensor, "response token"], alpha: float
) -> Float[Tensor, "response token"]:
    """A + alpha |A| on planning tokens, A elsewhere."""
    return torch.where(planning, advantage + alpha * advantage.abs(), advantage)


@dataclass(frozen=True)
class Hicra(Intervention):
    """The advantage of tokens inside strategic grams grows by a share of its size. alpha=0 with the trainer's baseline changes nothing."""

    name = "hicra"
    slug = "hicra"
    source = "Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning (HICRA), arXiv 2509.03646, two-case form; no code released"

    alpha: float = 0.2
    grams: Grams = ()
    baseline: Literal["trainer", "centred"] = "trainer"

    def __post_init__(self):
        check_fraction("Hicra", "alpha", self.alpha)
        check_one_of("Hicra", "baseline", self.baseline, ("trainer", "centred"), 'The default is "trainer".')
        if isinstance(self.grams, str) or any(isinstance(gram, str | int) for gram in self.grams):
            raise ValueError(
                f"Hicra: grams must be n-grams of token ids, such as [[3198, 11], [40, 13]]. Got {self.grams!r}. "
                "From phrases: phrase_grams(phrases, lambda text: tokenizer.encode(text, add_special_tokens=False))."
            )
        object.__setattr__(self, "grams", tuple(tuple(int(token) for token in gram) for gram in self.grams))  # lists of a YAML file
        if any(not gram or min(gram) < 0 for gram in self.grams):
            raise ValueError(f"Hicra: grams must hold at least one token id each, none negative. Got {self.grams}.")

    def neutral(self) -> "Hicra":
        return replace(self, alpha=0.0, baseline="trainer")

    def embedded(self) -> "Hicra":
        """The planning words of the embedded model (first, start, then, now, wait, check, next, hmm, so), and three ids that its tasks never
        print ('!', '"', '#') but a world of thirteen tokens does."""
        return replace(self, alpha=0.5, grams=((290,), (329,), (300,), (293,), (354,), (367,), (369,), (373,), (264,), (2,), (3,), (4,)))

    def recipe(self) -> Objective:
        """GRPO with clip-higher."""
        return replace(Objective.named("grpo"), epsilon_high=0.28)

    def advantage(self, rollouts: Rollouts, state: State) -> Float[Tensor, "response #token"]:
        base = rollouts.advantage.detach() if self.baseline == "trainer" else centred(rollouts).unsqueeze(1).to(rollouts.advantage.dtype)
        if self.alpha == 0 or not self.grams:
            return base
        mask = rollouts.trained_mask
        planning = occurrences(rollouts.completion_ids, mask, self.grams).covered
        return torch.where(mask, hierarchical_advantage(base, planning, self.alpha), 0.0)


def centred(rollouts: Rollouts) -> Float[Tensor, " response"]:
    """R_i - mean of the group, in float64; a response that no verifier scored (NaN) or that is out of the loss counts in no mean and gets 0."""
    counts = ~rollouts.reward.isnan() & (rollouts.lengths > 0)
    reward = torch.where(counts, rollouts.reward.double(), 0.0)
    same = (rollouts.group[:, None] == rollouts.group[None, :]) & counts[None, :]
    mean = torch.where(same, reward[None, :], 0.0).sum(-1) / same.sum(-1).clamp(min=1)
    return torch.where(counts, reward - mean, 0.0)
