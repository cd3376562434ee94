"""SIREN: pull the entropy of each response's least certain positions back to where it was before training.

    Hn_t: entropy of p renormalised on its nucleus            gradient through p, not through the membership
    M_t = [ Hn_t > tau-quantile of Hn over the response ]     one mask per response, detached
    H_sel = mean_i ( sum_t M_t Hn_t / sum_t M_t )             over all responses of the update; 0 where none is selected
    loss += beta (H_sel - anchor)^2,   anchor = H_sel of the first update

| paper | here | |
|---|---|---|
| top-p nucleus | `top_p`, `top_k` | the token that crosses the mass is left out; only the `top_k` largest logits enter |
| tau | `quantile` | linear interpolation, float32, strict > |
| H_anchor | `anchor` in the state | nats; None before the first update |
| beta | `beta` | per nat^2 |

With slices (micro-batches, ranks) H_sel is still of the whole update: every slice has the value beta (H_sel - anchor)^2 times its share of
the responses, so the values add up to the term, and the gradient 2 beta (H_sel - anchor) times that of its own part of H_sel, so
the gradients add up to the exact one. The released code squares the mean of every micro-batch instead, which is another term: not offered.

The first update sets the anchor, so its own term is 0. The code takes the anchor from the first rollout batch, which is the same while one
update uses it all. `top_p` and `quantile` of the paper are (inferred) those of the released script; the paper's Eq. 9 was not read.

Released: the mask is applied twice (nearly idempotent; once here) and not intersected with the response, so the entropy right after the
last token can be selected. `peak_mask(..., leak=True)` shows that; in a chain nothing outside the mask reaches a link.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, number, quantile
from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, Penalty
from isentrope.control.step import Need, Progress, RowRng, State, Stats, Step
from isentrope.measure.tokens import Entropy, NucleusEntropy, Signal


def peak_mask(
    entropy: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], level: float, *, leak: bool = False
) -> Bool[Tensor, "response token"]:
    """Positions above the `level` quantile of their response's own entropies. Empty where a response has no valid token.

    leak: as released, positions outside the mask may be selected too.
    """
    above = entropy.detach() > quantile(entropy.detach(), mask, level).unsqueeze(-1)
    return above if leak else above & mask


def response_entropy(entropy: Float[Tensor, "response token"], selected: Bool[Tensor, "response token"]) -> Float[Tensor, " response"]:
    """Mean entropy of the selected positions of every response, nats; 0 where none is. float32 or wider; gradient through the entropy."""
    entropy = entropy.to(torch.promote_types(entropy.dtype, torch.float32))
    return torch.where(selected, entropy, 0.0).sum(-1) / selected.sum(-1).clamp(min=1)


def selected_entropy(entropy: Float[Tensor, "response token"], selected: Bool[Tensor, "response token"]) -> Float[Tensor, ""]:
    """H_sel in nats: the mean of `response_entropy` over all responses, those with nothing selected counting as 0."""
    return response_entropy(entropy, selected).mean()


def anchored_penalty(h_sel: Float[Tensor, ""], anchor: float, beta: float) -> Float[Tensor, ""]:
    """beta (H_sel - anchor)^2."""
    return beta * (h_sel - anchor) ** 2


@dataclass(frozen=True)
class Siren(Intervention):
    """A squared distance of selected entropy to its start. The ablations of the sheet are settings: `top_p=None` takes the full
    entropy, `quantile=None` every position, `peaks_of="full"` selects peaks by the full entropy, `anchored=False` is a plain bonus
    -beta H_sel.
    """

    name = "siren"
    slug = "siren"
    source = "Rethinking Entropy Regularization in Large Reasoning Models, arXiv 2509.25133; Linn3a/siren dp_actor.py, ray_trainer.py"
    effect = "Holds the entropy of the uncertain positions near its value before training."
    replaces = frozenset({"entropy_coef", "use_adaptive_entropy"})

    beta: float = 0.005
    top_p: float | None = 0.8
    top_k: int | None = 10_000
    quantile: float | None = 0.8
    peaks_of: Literal["nucleus", "full"] = "nucleus"
    anchored: bool = True

    def __post_init__(self):
        check_at_least("Siren", "beta", self.beta, 0, "0 switches the term off.")
        if self.top_p is not None and not self.top_p > 0:
            raise ValueError(f"Siren: top_p must be above 0, or None for the full entropy. Got {self.top_p}.")
        if self.top_k is not None:
            check_at_least("Siren", "top_k", self.top_k, 1, "For the whole vocabulary write top_k=None.")
        if self.quantile is not None:
            check_fraction("Siren", "quantile", self.quantile)
        check_one_of("Siren", "peaks_of", self.peaks_of, ("nucleus", "full"), 'The default is "nucleus".')

    @property
    def signal(self) -> Signal:
        """The entropy that is held: of the nucleus, or full."""
        return Entropy(grad=True) if self.top_p is None else NucleusEntropy(self.top_p, self.top_k, grad=True)

    @property
    def needs(self) -> tuple[Need, ...]:
        own = (Need(self.signal),)
        return own if self.peaks_of == "nucleus" or self.top_p is None else (*own, Need(Entropy()))

    def init(self) -> State:
        return {"anchor": None}

    def neutral(self) -> "Siren":
        return replace(self, beta=0.0)

    def embedded(self) -> "Siren":
        """A weight that a run of twenty updates can feel."""
        return replace(self, beta=0.1)

    def recipe(self) -> Objective:
        """Dr.GRPO with a symmetric window of 0.28 (released script)."""
        return replace(Objective.named("dr_grpo"), epsilon_low=0.28, epsilon_high=0.28)

    def survey(self, view: Step, state: State, rng: RowRng) -> Stats:
        entropy = view.signal(Need(self.signal).key)
        ranked = view.signal("current.entropy") if self.peaks_of == "full" else entropy
        peak = view.mask if self.quantile is None else peak_mask(ranked, view.mask, self.quantile)
        h_sel = selected_entropy(entropy, peak)
        scalars = {"h_sel": h_sel, "responses": torch.tensor(len(peak)), "valid": view.mask.sum()}
        return Stats(view.rollouts.row_id, scalars, {"peak": peak})

    def regularise(self, step: Step, stats: Stats, state: State) -> Penalty:
        if self.beta == 0:
            return Penalty()
        peak, h_sel = stats.token("peak", step), stats.scalars["h_sel"]
        part = response_entropy(step.signal(Need(self.signal).key), peak).sum() / stats.scalars["responses"]
        if not self.anchored:
            return Penalty(total=-self.beta * part, touched=peak)
        if state["anchor"] is None:
            return Penalty()
        anchor = number(state, "anchor")
        value = anchored_penalty(h_sel, anchor, self.beta) * (len(peak) / stats.scalars["responses"])
        slope = 2 * self.beta * (h_sel - anchor)
        return Penalty(total=value + slope * (part - part.detach()), touched=peak)

    def update(self, state: State, stats: Stats | None, progress: Progress) -> State:
        """The first update with a valid token sets the anchor."""
        if stats is None or state["anchor"] is not None or int(stats.scalars["valid"]) == 0:
            return state
        return {"anchor": float(stats.scalars["h_sel"])}
