"""Recorded cases of effective features by sparse autoencoders: the authors' repository (sheet `superposition-compression`)."""

from isentrope.measure.codes import channel_samples, effective_features, feature_entropy, feature_mass, sparse_code_loss, tied_code
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "superposition-compression"


@answers(SLUG, "features-from-sae*")
def features_from_sae(case: Case) -> Outputs:
    weight, bias = case.leaf("W"), case.leaf("b")
    code = tied_code(case["X"], weight, bias)
    loss = sparse_code_loss(case["X"], code, l1_coef=case.param("l1_lambda"))
    grad_weight, grad_bias = gradient(loss, weight, bias)
    mass = feature_mass(code.features.detach())
    return {
        "z": code.features,
        "reconstruction": code.reconstruction,
        "loss": loss,
        "grad_W": grad_weight,
        "grad_b": grad_bias,
        "p": mass / mass.sum(),
        "entropy": feature_entropy(mass, released="adversarial"),
        "feature_count": effective_features(mass, released="adversarial"),
        "feature_count_eps_in_log": effective_features(mass, released="dropout"),
        "feature_count_eps_1e12": effective_features(mass, released="pythia"),
    }


@answers(SLUG, "convolutional-layer*")
def convolutional_layer(case: Case) -> Outputs:
    mass = feature_mass(tied_code(channel_samples(case["A"]), case["W"], case["b"]).features)
    return {"p": mass / mass.sum(), "feature_count": effective_features(mass, released="adversarial")}


@answers(SLUG, "degenerate*")
def degenerate(case: Case) -> Outputs:
    """The counts of one and of seven features are those of the main routine, high by its epsilon."""
    dead, one, seven = (feature_mass(case[name]) for name in ("z_dead", "z_one", "z_seven"))
    return {
        "count_dead_main": effective_features(dead, released="adversarial"),
        "count_dead_guarded": effective_features(dead),
        "count_one": effective_features(one, released="adversarial"),
        "count_seven": effective_features(seven, released="adversarial"),
    }
