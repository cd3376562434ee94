"""Recorded cases of SIREN's released code (sheet `siren`)."""

import torch

from isentrope.control.blocks import quantile
from isentrope.control.papers.siren import anchored_penalty, peak_mask, selected_entropy
from isentrope.measure.tokens import Entropy, NucleusEntropy, token_signals
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "siren"


@answers(SLUG, "anchored-loss*")
def anchored_loss(case: Case) -> Outputs:
    """The released mask is not intersected with the response; that shows in the case that is about it."""
    entropy, mask, level, leak = case.leaf("entropy"), case.mask(), case.param("tau"), "leak" in case.name
    peaks = peak_mask(entropy, mask, level, leak=leak)
    selected = selected_entropy(entropy, peaks)
    penalty = anchored_penalty(selected, case.param("anchor"), case.param("beta"))
    return {
        "peak_mask": peaks,
        "peak_mask_second": peak_mask(torch.where(peaks, entropy, 0.0), mask, level, leak=leak),
        "threshold": quantile(case["entropy"], mask, level),
        "H_sel": selected,
        "penalty": penalty,
        "grad_entropy": gradient(penalty, entropy)[0],
    }


@answers(SLUG, "nucleus-entropy*")
def nucleus_entropy(case: Case) -> Outputs:
    """The tiled form on an identity head, so that the logits are those of the file."""
    logits = case.leaf("logits")
    signal = NucleusEntropy(top_p=case.param("p_top"), top_k=case.param("top_k"), grad=True)
    head, target = torch.eye(logits.shape[-1], dtype=logits.dtype), torch.zeros(logits.shape[:-1], dtype=torch.long)
    found = token_signals(logits, head, target, [signal, Entropy()], precise=True)
    return {
        "nucleus_entropy": found[signal.key],
        "full_entropy": found["entropy"],
        "grad_logits": gradient((case["w"] * found[signal.key]).sum(), logits)[0],
    }
