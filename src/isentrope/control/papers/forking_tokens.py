"""Forking tokens: train only on the share of tokens where the policy is least certain.

    keep_t = [ H_t >= q ],   q = the (1 - share) quantile of H over the valid tokens of the update
    loss   = sum_t keep_t l_t / sum_t keep_t                     l_t: the clipped loss of DAPO

| paper | here | |
|---|---|---|
| H_t, Eq. 1 | `current.entropy` | nats, of the policy that is trained, detached |
| rho | `share` | kept share of the tokens |
| tau_rho^B, Eq. 6 | `entropy_threshold` | linear interpolation, float32 |

Paper and code: the paper divides by the kept tokens (`variant="paper"`, the default); TRL's `top_entropy_quantile` divides by all tokens,
which makes the loss about `share` times smaller (`variant="code"`; compare at a learning rate divided by `share`). In both a KL term to the
reference is not masked. TRL takes the quantile per micro-batch over all processes; here it is over the whole update unless
`scope="micro-batch"` (then over this process's slice).

Only the threshold is float32. With float64 entropies the rounded threshold can lie just above the token that sets it and drop that token.
Ties are kept: where the quantile is 0, every token is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_fraction, check_one_of, check_scope, quantile
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, Scope, State, Stats, Step
from isentrope.measure.tokens import Entropy

_ENTROPY = Need(Entropy())


def entropy_threshold(entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], level: float) -> Float[Tensor, ""]:
    """The `level` quantile of the entropy over the valid tokens, in nats, float32; NaN without a valid token."""
    return quantile(entropy.detach().flatten(), mask.flatten(), level)


def top_entropy(
    entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], level: float
) -> Bool[Tensor, "response token"]:
    """Valid tokens whose entropy is at least the `level` quantile (level = 1 - share): the mask of TRL's `get_high_entropy_mask`."""
    wide = entropy.to(torch.promote_types(entropy.dtype, torch.float32))  # bfloat16 would round the threshold
    return (wide >= entropy_threshold(entropy, mask, level)) & mask


@dataclass(frozen=True)
class ForkingTokens(Intervention):
    """The policy loss keeps the tokens of highest entropy (Eq. 6)."""

    name = "forking-tokens"
    slug = "forking-tokens"
    source = "Wang et al., Beyond the 80/20 Rule, arXiv 2506.01939, Eq. 6; huggingface/trl grpo_trainer.py (top_entropy_quantile)"
    effect = "Certain tokens are not trained; the kept ones share the divisor, so an update can move entropy faster."
    replaces = frozenset({"top_entropy_quantile"})

    share: float = 0.2  # kept share of the tokens; 0.1 to 0.5 are nearly the same (section 5)
    scope: Scope = "update"
    variant: Literal["paper", "code"] = "paper"

    def __post_init__(self):
        check_fraction("ForkingTokens", "share", self.share)
        if self.share == 0:
            raise ValueError("ForkingTokens: share must be above 0. Got 0: nothing would be trained. To train on everything write share=1.")
        check_scope("ForkingTokens", self.scope)
        check_one_of("ForkingTokens", "variant", self.variant, ("paper", "code"), 'The default is "paper".')

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_ENTROPY,)

    def neutral(self) -> "ForkingTokens":
        """Every token is kept."""
        return replace(self, share=1.0)

    def embedded(self) -> "ForkingTokens":
        """Removes two fifths of the tokens, less than half."""
        return replace(self, share=0.6)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        if self.variant == "paper":
            return {}
        return {
            "bites": "the half of the tokens with less entropy carries about 1e-3 of the embedded model's gradient; without the paper's division by "
            "the kept tokens nothing else moves it"
        }

    def recipe(self) -> Objective:
        """DAPO: token-mean, ratio in [0.8, 1.28]."""
        return Objective.named("dapo")

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        entropy, level = view.signal(_ENTROPY.key), 1 - self.share
        keep = top_entropy(entropy, view.mask, level)
        return Stats(view.rollouts.row_id, {"threshold": entropy_threshold(entropy, view.mask, level)}, {"keep": keep})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.share == 1:
            return TokenWeight()
        return TokenWeight(keep=stats.token("keep", step), denominator="kept" if self.variant == "paper" else "all")
