"""Recorded loss terms of the Koopman paper's released code (sheet `koopman-information`)."""

from isentrope.measure.koopman import koopman_matrix, ridge_pseudo_inverse, temporal_infonce
from isentrope.measure.spectrum import latent_entropy
from isentrope.verify.cases import Case, Outputs, answers, gradient


@answers("koopman-information", "loss-terms*")
def loss_terms(case: Case) -> Outputs:
    states, k = case.leaf("Z"), int(case.param("k"))
    entropy = latent_entropy(states, epsilon=case.param("eps"))
    contrast = temporal_infonce(states, neighbours=k, temperature=case.param("tau"))
    return {
        "entropy": entropy, "grad_entropy": gradient(entropy, states)[0], "infonce": contrast, "grad_infonce": gradient(contrast, states)[0],
        "pinv": ridge_pseudo_inverse(case["Z"], ridge=case.param("ridge")), "K": koopman_matrix(case["Z"], case["Z_next"], ridge=case.param("ridge")),
        "infonce_short_sequence": temporal_infonce(case["Z"][:, : 2 * k], neighbours=k, temperature=case.param("tau")),
    }  # fmt: skip
