r"""EMPO: the reward of a response is the share of its group that gave the same answer, so no label is needed.

    p_c = size of the answer's cluster / responses of the group      SE = -sum_c p_c ln p_c
    reward = p_c ("collision") | ln p_c ("shannon") | 1 in a largest cluster, else 0 ("voting")
    groups train only while low < SE < high

| paper | here | |
|---|---|---|
| o_i, its extracted answer | `Rollouts.answer`, else `extract` of the text | equal after trimming and reading plain numbers; "" and None are no answer |
| p(c) | `form="collision"` | what paper and code pay |
| delta_low, delta_high | `low`, `high` | nats; no figure is given. 0 and None: neither unanimous nor all distinct, by counts |
| - | `share` | ours: EMPO's part of the reward, the rest is the task's; 0 switches all off |

What is ascended (derived, not the paper's words): "collision" follows half the gradient of sum_c p_c^2 = exp(-H_2), H_2 the Renyi-2 entropy of the
answers, not their Shannon entropy; the gradient of -SE is that of the reward ln p_c, `form="shannon"`. A response votes for itself:
E[p_c] = ((G - 1) p + 1) / G, which centring by the group undoes. Either keeps the group's first choice, right or wrong: watch pass@k.

Where the two releases differ: an empty answer is paid 0, all of them one cluster (`empty="zero"`, TRL version, default: the same rule as the text),
or is a cluster of its own and paid 1/G (`empty="own"`, verl version). ln has no value at 0, so "shannon" takes "own" always. The TRL version
pays 0 to an all-distinct group when rounding lets it see one (SE < ln G); here counts decide. Of the free-text version, `majority=0.2`
pays 0 where no cluster reaches a fifth; its -0.5 for empty answers and its guard against answers copied from the question are not here.
With equal strings clusters do not depend on order; for any other relation see `isentrope.measure.answers.entailment_clusters`.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Rollouts, State

Form = Literal["collision", "shannon", "voting"]
Extract = Literal["auto", "boxed", "last-number", "whole"]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


# --- answers and clusters


def extract_answer(text: str, how: Extract = "auto") -> str | None:
    r"""The answer that a response gives; None where it gives none.

    "boxed": the content of the last \boxed{}. "last-number". "whole". "auto": the last box, else the last <answer>, else what follows </think>,
    else the last number.

    >>> extract_answer("so \\boxed{\\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    if how == "whole":
        return text.strip() or None
    if how == "last-number":
        found = _NUMBER.findall(text.replace(",", ""))
        return found[-1] if found else None
    boxed = _boxed(text)
    if how == "boxed" or boxed is not None:
        return boxed
    if tagged := re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL):
        return tagged[-1].strip() or None
    _, closed, after = text.rpartition("</think>")
    return (after.strip() or None) if closed else extract_answer(text, "last-number")


def _boxed(text: str) -> str | None:
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for place, letter in enumerate(rest if found else ""):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:place].strip() or None
    return None


def canonical(answer: str | None) -> str | None:
    """The answer without spaces, a plain number without needless zeros; None for none.

    >>> canonical(" 007.50 ")
    '7.5'
    """
    plain = "".join((answer or "").split())
    if not _NUMBER.fullmatch(plain):
        return plain or None
    whole, _, part = plain.lstrip("-").partition(".")
    number = (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")
    return number if number == "0" or not plain.startswith("-") else f"-{number}"


@dataclass(frozen=True)
class Clusters:
    """Responses by their answers: shares in [0, 1], each within its group; float64."""

    share: Float64[Tensor, " response"]  # of the own cluster
    largest: Float64[Tensor, " response"]  # of the group's largest cluster
    entropy: Float64[Tensor, " response"]  # SE of the group, nats
    distinct: Bool[Tensor, " response"]  # no two responses of the group agree


def clusters_of(cluster: Int[Tensor, " response"], group: Int[Tensor, " response"]) -> Clusters:
    """Shares, largest cluster and semantic entropy from a cluster id per response; ids need be unique within a group only."""
    pairs, own = torch.unique(torch.stack([group, cluster]), dim=1, return_inverse=True)
    index = torch.unique(group, return_inverse=True)[1]
    size, members = torch.bincount(own), torch.bincount(index)
    share = size[own].double() / members[index]
    at = torch.unique(pairs[0], return_inverse=True)[1]
    largest = torch.zeros_like(members).scatter_reduce(0, at, size, "amax")
    terms = torch.special.entr(size.double() / members[at])
    entropy = torch.stack([terms[at == each].sort().values.sum() for each in range(len(members))]) if len(members) else share
    return Clusters(share, largest[index].double() / members[index], entropy[index], largest[index] == 1)


def cluster_reward(
    found: Clusters, silent: Bool[Tensor, " response"], *, form: Form = "collision", empty: Literal["zero", "own"] = "zero", majority: float = 0.0
) -> Float64[Tensor, " response"]:
    """The reward of each response; ln p_c in nats, else in [0, 1]. `silent` gave no answer.

    majority: in a group of several clusters of which none has this share all are paid alike, 0.
    """
    if form == "shannon":
        paid = found.share.log()
    else:
        paid = found.share if form == "collision" else (found.share == found.largest).double()
        paid = torch.where(silent, 0.0, paid) if empty == "zero" else paid
    return torch.where((found.largest < majority) & (found.largest < 1), 0.0, paid)


@dataclass(frozen=True)
class Empo(Intervention):
    """Responses are paid by how many of their group gave the same answer; groups that agree or disagree entirely do not train."""

    name = "empo"
    slug = "empo"
    source = "Right Question is Already Half the Answer (EMPO), arXiv 2504.05812; QingyangZhang/EMPO rewards.py, compute_metrics.py (Apache-2.0)"
    effect = "Lowers the entropy of the answers: agreement is paid."

    form: Form = "collision"
    low: float = 0.0  # nats
    high: float | None = None  # nats; None: all but the all-distinct groups
    share: float = 1.0  # of the reward that is EMPO's
    empty: Literal["zero", "own"] = "zero"
    majority: float = 0.0  # 0.2 for free text
    extract: Extract = "auto"
    rounds: int = 0  # how many times dropped groups are sampled again

    def __post_init__(self):
        check_one_of("Empo", "form", self.form, ("collision", "shannon", "voting"), 'The paper pays p, which is "collision".')
        check_one_of("Empo", "empty", self.empty, ("zero", "own"), 'The default is "zero".')
        check_one_of("Empo", "extract", self.extract, ("auto", "boxed", "last-number", "whole"), 'The default is "auto".')
        check_fraction("Empo", "share", self.share)
        check_fraction("Empo", "majority", self.majority)
        check_at_least("Empo", "rounds", self.rounds, 0, "0 masks dropped groups and samples no others.")
        check_at_least("Empo", "low", self.low, 0, "It is an entropy in nats.")
        if self.high is not None and not self.high > self.low:
            raise ValueError(f"Empo: high must be above low. Got low={self.low}, high={self.high}. None keeps all but the all-distinct groups.")

    def neutral(self) -> "Empo":
        return replace(self, share=0.0)

    def embedded(self) -> "Empo":
        """A threshold that the embedded model's uncertain prompts pass: of every 16 some are dropped."""
        return replace(self, high=1.7)

    def recipe(self) -> Objective:
        """GRPO without KL; the latest recipe takes sequence-level ratios (`Objective.named("gspo")`)."""
        return Objective.named("grpo")

    def reward(self, rollouts: Rollouts, state: State) -> Float[Tensor, " response"]:
        before = rollouts.reward.detach()
        if self.share == 0:
            return before
        answers = self._answers(rollouts)
        silent = torch.tensor([answer is None for answer in answers], dtype=torch.bool, device=before.device)
        paid = cluster_reward(self.clusters(rollouts), silent, form=self.form, empty=self.empty, majority=self.majority).to(before.dtype)
        return paid if self.share == 1 else self.share * paid + (1 - self.share) * before

    def keep(self, rollouts: Rollouts, state: State) -> Bool[Tensor, " response"]:
        """Groups with low < SE < high."""
        if self.share == 0:
            return torch.ones_like(rollouts.group, dtype=torch.bool)
        found = self.clusters(rollouts)
        certain = ~found.distinct if self.high is None else found.entropy < self.high
        return (found.entropy > self.low) & certain

    def clusters(self, rollouts: Rollouts) -> Clusters:
        """The groups' clusters; empty answers are one cluster ("zero") or each its own."""
        known: dict[str | None, int] = {}
        ids = [known.setdefault(answer, len(known)) for answer in self._answers(rollouts)]
        if (self.empty == "own" or self.form == "shannon") and None in known:
            ids = [-1 - row if at == known[None] else at for row, at in enumerate(ids)]
        return clusters_of(torch.tensor(ids, dtype=torch.long, device=rollouts.group.device), rollouts.group)

    def _answers(self, rollouts: Rollouts) -> list[str | None]:
        if rollouts.answer is not None:
            return [canonical(answer) for answer in rollouts.answer]
        if rollouts.text is not None:
            return [canonical(extract_answer(text, self.extract)) for text in rollouts.text]
        raise ValueError("Empo: the rollouts carry neither answer nor text. Fill Rollouts.answer with what each response answers.")
