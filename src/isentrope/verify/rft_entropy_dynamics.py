"""Recorded cases of Clip_B, Clip_V and the expected discriminant (sheet `rft-entropy-dynamics`)."""

from dataclasses import replace

import torch
from torch import Tensor

from isentrope.control.advantages import group_advantages, spread
from isentrope.control.papers.rft_entropy_dynamics import ClipB, ClipV, discriminant
from isentrope.control.step import Rollouts, RowRng, Step
from isentrope.measure.tokens import ExpectedDiscriminant, token_signals
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "rft-entropy-dynamics"


def _filtered(case: Case, link: ClipB | ClipV, log_probs: str, signals: dict[str, Tensor]) -> Outputs:
    """Advantages of the rewards, and what of the mask the link leaves."""
    mask = case.mask()
    advantage = group_advantages(case["token_rewards"].sum(-1), case["group"], epsilon=case.param("epsilon"))
    rollouts = Rollouts.of(mask, advantage=advantage.unsqueeze(1), group=case["group"], signals=signals)
    view = Step(replace(rollouts, sampling_log_probs=case[log_probs], old_log_probs=case[log_probs]), case[log_probs])
    dropped = link.dropped(view, RowRng())
    return {"adv": spread(advantage, mask), "new_mask": mask & ~dropped, "frac_clipped": dropped.sum() / mask.sum()}


@answers(SLUG, "clip-b*")
def clip_b(case: Case) -> Outputs:
    return _filtered(case, ClipB(mu=case.param("mu"), variant="code"), "rollout_logp", {"old.entropy": case["entropy"]})


@answers(SLUG, "clip-v*")
def clip_v(case: Case) -> Outputs:
    signals = {"old.S": discriminant(case["old_logp"], case["entropy"]), "old.N": case["N"]}
    return _filtered(case, ClipV(mu=case.param("mu"), max_share=case.param("max_frac")), "old_logp", signals)


@answers(SLUG, "expected-discriminator*")
def expected(case: Case) -> Outputs:
    """The tiled form on an identity head, so that the logits are those of the file."""
    logits = case["logits"]
    head, target = torch.eye(logits.shape[-1], dtype=logits.dtype), torch.zeros(logits.shape[:-1], dtype=torch.long)
    return {"N": token_signals(logits, head, target, [ExpectedDiscriminant()], precise=True)["N"]}
