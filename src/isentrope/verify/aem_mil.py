"""Recorded cases of the negative attention entropy of one bag (sheet `aem-mil`): several heads are averaged, one is not divided."""

from isentrope.measure.attention_ceilings import matrix_entropy
from isentrope.verify.cases import Case, Outputs, answers, gradient

SLUG = "aem-mil"


@answers(SLUG, "*")
def negative_entropy(case: Case) -> Outputs:
    scores = case.leaf("scores")
    heads = 1 if case.param("arch") == "abmil" else scores.shape[0]
    loss = -matrix_entropy(scores.softmax(-1)).sum() / heads
    return {"loss": loss, "grad_scores": gradient(loss, scores)[0]}
