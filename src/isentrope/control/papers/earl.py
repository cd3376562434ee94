"""EARL: the policy gradient passes only through the uncertain tokens of each response, by a threshold of the response's own.

    m_t = [ H_t >= tau_i ],   tau_i: the ceil(share T_i)-th largest H of response i;   and H_t >= least, if that is above 0
    loss = sum_t m_t l_t / sum_t m_t        (denominator "kept")   or / number of tokens (denominator "all")

| paper | here | |
|---|---|---|
| rho | `share` | 0.2 by analogy with forking tokens (inferred) |
| tau_i | per response | the one detail that is stated in public |
| H | `old.entropy` | nats, of the policy that sampled (inferred) |

All but the threshold per response is (inferred): the method section was not accessible and no code is released. At least one token of a
response is kept, ties at tau_i all are. Kept-token division makes a kept token weigh 1 / share more, so part of any gain may be the larger
step; `denominator="all"` leaves the step `share` times smaller. `least` is of ours: a quantile keeps its share even where nothing is uncertain.
A KL term to the reference stays on all tokens (the trainer's `beta`); under "kept" its divisor is the kept tokens too. The cascaded reward of
the paper (syntax, interface, function) is the task's own; a check that cannot be run should leave the reward missing, not 0.
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, upper_share
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy(), "old")


def gate(entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], share: float, least: float = 0.0) -> Bool[Tensor, "response token"]:
    """Valid tokens at or above the ceil(share T)-th largest entropy of their response, and at or above `least` nats."""
    return upper_share(entropy, mask, share) & (entropy.detach() >= least)


@dataclass(frozen=True)
class Earl(Intervention):
    """Masks the policy loss of all but the most uncertain tokens of every response."""

    name = "earl"
    slug = "earl"
    source = "EARL: Entropy-Aware RL Alignment of LLMs for Reliable RTL Code Generation, arXiv 2511.12033; (inferred) but for the threshold"
    effect = "Certain tokens are not trained; the kept ones share the divisor, so an update can move entropy faster."

    share: float = 0.2
    least: float = 0.0  # nats
    denominator: Literal["kept", "all"] = "kept"

    def __post_init__(self):
        check_fraction("Earl", "share", self.share)
        if self.share == 0:
            raise ValueError("Earl: share must be above 0. Got 0: nothing would be trained. To train on everything write share=1.")
        check_at_least("Earl", "least", self.least, 0, "It is in nats; 0 asks nothing.")
        check_one_of("Earl", "denominator", self.denominator, ("kept", "all"), 'The default is "kept".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    def neutral(self) -> "Earl":
        """Every token is kept."""
        return replace(self, share=1.0, least=0.0)

    def embedded(self) -> "Earl":
        """Removes two fifths of the tokens, less than half."""
        return replace(self, share=0.6)

    def recipe(self) -> Objective:
        """DAPO: token-mean, ratio in [0.8, 1.28]."""
        return Objective.named("dapo")

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        keep = gate(view.signal(_ENTROPY.key), view.mask, self.share, self.least)
        return Stats(view.rollouts.row_id, {"kept_share": keep.sum() / view.mask.sum().clamp(min=1)}, {"keep": keep})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.share == 1 and self.least == 0:
            return TokenWeight()
        return TokenWeight(keep=stats.token("keep", step), denominator=self.denominator)
