r"""Attention entropy tokens: weight the tokens by how widely the policy attends where it produces them, from anchors to explorers as the run proceeds.

    e_t = E_t / ln n_t      u_t = rank of e_t in its response, in [0, 1]      c = progress of the run
    "monotone":  w_t = 1 + gamma (2 c - 1)(2 u_t - 1)      "bump":  w_t = exp(-kappa (u_t - c)^2);      then mean of w_t = 1 over the response
    attention-entropy-subset: only the `share` lowest (anchors) or highest (explorers) tokens of a response; the loss over the kept tokens

| paper | here | |
|---|---|---|
| e_t, of one middle layer | `old.attention_entropy[middle]` | fraction, mean over heads, of the policy that sampled; once per rollout batch |
| layer | `layer` | None: floor(layers / 2) (inferred) |
| lowest, highest 20 % | `group`, `share` | of the hard subset |
| dynamic soft weight | `form`, `gamma`, `kappa` | (inferred) |

There is no released code, and of the paper only the abstract, the outline and notes of third parties were readable; the formulas and their
constants are in `control.attention_tokens`. The row that produces the token rather than the token's own, the mean over heads, ranks within a response, both
weights and their constants are (inferred). The effect on entropy is not stated there.
"""

from dataclasses import dataclass, replace
from typing import Literal

from isentrope.control.attention_tokens import attention_groups, attention_weight
from isentrope.control.blocks import check_at_least, check_fraction, check_one_of
from isentrope.control.objectives import Objective
from isentrope.control.requests import AttentionEntropy
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need, RowRng, State, Stats, Step

_SOURCE = "Not All Tokens Learn Alike: Attention Entropy Reveals Heterogeneous Signals in RL Reasoning, arXiv 2605.07660; no code disclosed"


def _need(layer: int | None, sinkless: bool) -> Need:
    return Need(AttentionEntropy(layer, sinkless), policy="old")


def _check_layer(who: str, layer: int | None) -> None:
    if layer is not None and layer < 0:
        raise ValueError(f"{who}: layer must be at least 0, or None for the middle one. Got {layer}. Layers are counted from 0.")


@dataclass(frozen=True)
class AttentionEntropyTokens(Intervention):
    """Every token's loss is weighted by the rank of its attention entropy; the emphasis moves from low ranks to high ones."""

    name = "attention-entropy-tokens"
    slug = "attention-entropy-tokens"
    source = _SOURCE
    effect = "Not stated by what was readable: the weights see the entropy of attention, not of the policy."

    form: Literal["monotone", "bump"] = "monotone"
    gamma: float = 0.5  # strength of "monotone", in [0, 1); 0 is uniform
    kappa: float = 4.0  # strength of "bump"; 0 is uniform
    layer: int | None = None  # counted from 0; None: the middle one
    sinkless: bool = False  # of the row without the first position, the usual attention sink

    def __post_init__(self):
        check_one_of("AttentionEntropyTokens", "form", self.form, ("monotone", "bump"), 'The default is "monotone".')
        check_at_least("AttentionEntropyTokens", "kappa", self.kappa, 0, "0 weighs all tokens alike.")
        if not 0 <= self.gamma < 1:
            raise ValueError(f"AttentionEntropyTokens: gamma must lie in [0, 1). Got {self.gamma}. At 1 the last rank would weigh nothing.")
        _check_layer("AttentionEntropyTokens", self.layer)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_need(self.layer, self.sinkless),)

    @property
    def dense(self) -> str:
        return "every token of a response has a rank of its own, and a weight by it"

    def neutral(self) -> "AttentionEntropyTokens":
        """No strength in either form."""
        return replace(self, gamma=0.0, kappa=0.0)

    def recipe(self) -> Objective:
        """DAPO: token-mean, ratio in [0.8, 1.28]."""
        return Objective.named("dapo")

    def weight(self, step: Step, stats: Stats | None, state: State) -> TokenWeight:
        if (self.gamma if self.form == "monotone" else self.kappa) == 0:
            return TokenWeight()
        relative = step.signal(self.needs[0].key)
        value = attention_weight(relative, step.mask, step.progress.fraction, form=self.form, gamma=self.gamma, kappa=self.kappa)
        return TokenWeight(value.to(step.log_probs.dtype))


@dataclass(frozen=True)
class AttentionEntropySubset(Intervention):
    """The policy loss keeps one end of each response's tokens by attention entropy, and is divided by the kept ones."""

    name = "attention-entropy-subset"
    slug = "attention-entropy-tokens"
    source = _SOURCE
    effect = "Not stated by what was readable: the choice sees the entropy of attention, not of the policy."

    group: Literal["anchors", "explorers"] = "anchors"
    share: float = 0.2  # of each response's tokens, at least one token; 1 keeps all
    layer: int | None = None  # counted from 0; None: the middle one
    sinkless: bool = False  # of the row without the first position, the usual attention sink

    def __post_init__(self):
        check_one_of("AttentionEntropySubset", "group", self.group, ("anchors", "explorers"), 'The default is "anchors".')
        check_fraction("AttentionEntropySubset", "share", self.share)
        if self.share == 0:
            raise ValueError("AttentionEntropySubset: share must be above 0. Got 0: nothing would be trained. To train on everything write share=1.")
        _check_layer("AttentionEntropySubset", self.layer)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (_need(self.layer, self.sinkless),)

    def neutral(self) -> "AttentionEntropySubset":
        """Every token is kept."""
        return replace(self, share=1.0)

    def embedded(self) -> "AttentionEntropySubset":
        """Removes two fifths of the tokens, less than half."""
        return replace(self, share=0.6)

    def recipe(self) -> Objective:
        """DAPO: token-mean, ratio in [0.8, 1.28]."""
        return Objective.named("dapo")

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        anchors, explorers = attention_groups(view.signal(self.needs[0].key), view.mask, share=self.share)
        return Stats(view.rollouts.row_id, {}, {"keep": anchors if self.group == "anchors" else explorers})

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        if self.share == 1:
            return TokenWeight()
        return TokenWeight(keep=stats.token("keep", step), denominator="kept")
