"""Recorded cases of ResRL's released weights and length factor (sheet `resrl`). The random subspaces of the release are determined in them."""

from isentrope.control.projection import length_factor, projection_weights, reweighted
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "resrl"


@answers(SLUG, "projection-weights*")
def weights(case: Case) -> Outputs:
    positive, mask = case["positive"] != 0, case.mask()
    found = projection_weights(
        case["hidden"], mask, positive, case["group"], rank=case.param("rank"), low=case.param("q_low"), high=case.param("q_high"),
        least=case.param("w_min"), max_rows=case.param("max_pos_tokens"),
    )  # fmt: skip
    return {"weight": found, "adv": reweighted(case["adv"], found, positive, case.param("pos_weight"))}


@answers(SLUG, "length-factor*")
def factor(case: Case) -> Outputs:
    known = {"start": case.param("start"), "limit": case.param("max_length"), "end": case.param("end_scale")}
    return {"reward": length_factor(case["reward"], case["length"], **known)}
