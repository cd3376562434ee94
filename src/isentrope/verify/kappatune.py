"""Recorded case of KappaTune's selection (sheet `kappatune`)."""

import math

import torch

from isentrope.measure.spectrum import best_conditioned, condition_number
from isentrope.verify.cases import Case, Outputs, Unreadable, answers


@answers("kappatune", "selection")
def selection(case: Case) -> Outputs:
    """NaN where the released code analyses nothing; 1e300 stands for what its rounding makes of a matrix that is exactly deficient, as the file says."""
    if "names" not in case.words:
        raise Unreadable("the file has no in_names")
    most, found = int(case.param("max_dim")), {}
    for index, name in enumerate(case.words["names"]):
        matrix = next((value for key, value in case.inputs.items() if key.startswith(f"W{index}_")), None)
        if matrix is None:
            raise Unreadable(f"the file has no in_W{index}_*")
        if matrix.dim() != 2 or max(matrix.shape) > most:
            found[name] = math.nan
        else:
            value = float(condition_number(matrix.double()))
            found[name] = 1e300 if value == math.inf and bool(matrix.any()) else value
    chosen = set(best_conditioned(found, int(case.param("k"))))
    selected = torch.tensor([name in chosen for name in found])
    return {"kappa": torch.tensor(list(found.values()), dtype=torch.float64), "selected": selected, "requires_grad": selected}
