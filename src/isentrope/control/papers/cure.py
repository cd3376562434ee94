"""CURE: some answers are sampled, cut just before one of their most uncertain tokens, and the rest of each is sampled again.

    H_t     entropy of the policy that samples, over the whole vocabulary, at position t of a first answer (one pass without gradient)
    C_i     the K positions of largest H_t among those admitted: not 0, no special token, a text of at least two characters without its blanks
    k_i     drawn uniformly from C_i; 0 where that is empty                 (kind="random": K positions drawn from those admitted)
    branch  prompt, y_<k_i, and what is sampled after it: token k_i is drawn anew     group of a prompt: n1 answers and n1 n2 branches

| paper / script | here | |
|---|---|---|
| n1, n2 | `n1`, `n2` | 4 and 3; n1 + n1 n2 must be trl.num_generations |
| critical_top_k | `top_k` | K = 20 |
| type | `kind` | "entropy" or the ablation "random", which keeps all filters |
| - | `characters` | of a token's text; the script's filter asks for more than one. `admits` is the predicate |
| stage 1, stage 2 | `until` | updates of stage 1; then plain. 300 is the number of the checkpoint that the second script starts from (inferred) |

The branches' advantages come from the group's mean like the others'. What a branch took over is rewarded as part of its answer and leaves the loss and
its divisor: given that prefix the rest is an unbiased score-function term, so any baseline of the group may stand there; the prefix gets no credit.

Code and here: the script writes prompt and prefix into a buffer of 1500 tokens and keeps the FIRST of them, so late cuts silently become earlier ones,
and a branch may use the whole response budget after its prefix, which its length penalty does not see. Here the prefix belongs to the response: all of
it is at most trl.max_completion_length, lengths and penalties see all of it, and a cut that would leave fewer than `room` tokens is not admitted.
The printed objective was not seen; the method is that of the code. DAPO's filter is the link `dynamic-sampling` beside this one: groups that
it has sampled again are cut like the others.
"""

from dataclasses import dataclass, replace
from typing import Literal

from isentrope.control.blocks import check_at_least, check_one_of
from isentrope.control.cuts import Branches, Drafts, drawn, eligible, leading
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Progress, RowRng, State
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), policy="draft")


@dataclass(frozen=True)
class Cure(Intervention):
    """Answers are cut before an uncertain token and sampled again from there, for the first `until` updates. until=0 cuts none."""

    name = "cure"
    slug = "cure"
    source = "CURE, arXiv 2508.11016; bytedance/CURE recipe/CURE_First_Stage (Apache-2.0)"
    effect = "Holds entropy where answers part: the most uncertain tokens are sampled more often."

    n1: int = 4  # answers to a prompt that are sampled first
    n2: int = 3  # branches of each
    top_k: int = 20  # most uncertain positions, of which one is drawn
    kind: Literal["entropy", "random"] = "entropy"
    until: int | None = 300  # updates; None is the whole run
    characters: int = 2  # least length of the text of a token that may be cut, without blanks at its ends
    room: int = 1  # tokens that a cut must leave to the longest response

    def __post_init__(self):
        for parameter in ("n1", "n2", "top_k", "room"):
            check_at_least("Cure", parameter, self.__dict__[parameter], 1, "It is a number of answers, branches or tokens.")
        check_at_least("Cure", "until", 0 if self.until is None else self.until, 0, "Updates; 0 cuts nothing, None is the whole run.")
        check_at_least("Cure", "characters", self.characters, 0, "0 admits tokens of blanks alone.")
        check_one_of("Cure", "kind", self.kind, ("entropy", "random"), 'The default is "entropy".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    def neutral(self) -> "Cure":
        return replace(self, until=0)

    def embedded(self) -> "Cure":
        """Groups of eight, half of them branches; cuts before single characters too, as the small model's sums are mostly digits."""
        return replace(self, n2=1, top_k=5, characters=1)

    def recipe(self) -> Objective:
        """DAPO with a ratio in [0.8, 1.28], dual clip 10, no KL."""
        return replace(Objective.named("dapo"), epsilon_high=0.28, dual_clip=10.0)

    def misfit(self, samples: int) -> str:
        need = self.n1 * (1 + self.n2)
        if self.until == 0 or samples == need:
            return ""
        return f"n1 + n1 n2 = {self.n1} + {self.n1 * self.n2} = {need} responses form a group, and num_generations is {samples}. Set both alike."

    def admits(self, text: str, special: bool) -> bool:
        """Whether a draft may be cut before a token of this text."""
        return not special and len(text.strip()) >= self.characters

    def drafts(self, samples: int, progress: Progress, state: State) -> int | None:
        return self.n1 if self.until is None or progress.step < self.until else None

    def branches(self, drafts: Drafts, state: State, rng: RowRng) -> Branches:
        """n2 branches of every draft, all from one cut."""
        entropy, row_id = drafts.rollouts.signal(_ENTROPY.key), drafts.rollouts.row_id
        allowed = eligible(drafts, self.admits, room=self.room)
        key = entropy if self.kind == "entropy" else rng.child(1).uniform(row_id, entropy.shape[1])
        cut = drawn(leading(key, allowed, self.top_k), rng.uniform(row_id, 1).squeeze(1))
        row = cut.new_tensor(range(len(cut))).repeat_interleave(self.n2)
        return Branches(row, cut[row], allowed)
