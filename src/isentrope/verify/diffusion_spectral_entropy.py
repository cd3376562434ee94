"""Recorded cases of the released DSE and DSMI code, in bits (sheet `diffusion-spectral-entropy`)."""

from functools import partial

import torch
from torch import Tensor

from isentrope.measure import diffusion
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "diffusion-spectral-entropy"
entropy = partial(diffusion.diffusion_entropy, unit="bits", released=True)


def _each(values: Tensor, function) -> Tensor:
    return torch.stack([function(value) for value in values.tolist()])


@answers(SLUG, "swiss-roll")
def swiss_roll(case: Case) -> Outputs:
    x, sigmas = case["X"], case["sigmas"]
    kernels = _each(sigmas, lambda sigma: diffusion.gaussian_kernel(x[: int(case.param("matrix_rows"))], sigma))
    return {
        "K": kernels,
        "eigvals_ascending": torch.linalg.eigvalsh(kernels),
        "dse_bits": _each(sigmas, lambda sigma: _each(case["ts"], lambda time: entropy(x, sigma, time=time))),
        "matrix_entry_bits": _each(sigmas, lambda sigma: diffusion.matrix_entropy(x, sigma, unit="bits", released=True)),
    }


@answers(SLUG, "limits")
def limits(case: Case) -> Outputs:
    x = case["X"]
    return {
        "dse_clusters": _each(case["ts"], lambda time: entropy(case["X_clusters"], case.param("sigma_clusters"), time=time)),
        "dse_identical": entropy(case["X_identical"], 1.0), "dse_sigma_tiny": entropy(x, 1e-3), "dse_sigma_huge": entropy(x, 1e6),
        "dse_one_point": entropy(x[:1], 5.0), "dse_two_points": entropy(x[:2], 5.0),
    }  # fmt: skip


@answers(SLUG, "adjacency")
def adjacency(case: Case) -> Outputs:
    def of(kind):
        return _each(case["sigmas"], lambda sigma: diffusion.adjacency_entropy(case["X"], sigma, kind=kind, unit="bits", released=True))

    near = _each(case["knn"], lambda k: diffusion.neighbour_entropy(case["X"], int(k), unit="bits", released=True))
    return {"gaussian": of("gaussian"), "normalised": of("normalised"), "knn": near}


@answers(SLUG, "classic-binned")
def classic_binned(case: Case) -> Outputs:
    return {"bits": _each(case["bins"], lambda bins: diffusion.binned_entropy(case["X"], int(bins), unit="bits"))}


@answers(SLUG, "mutual-information")
def mutual_information(case: Case) -> Outputs:
    classes = {"label": case["label"].long(), "scalar": diffusion.scalar_bins(case["scalar"], int(case.param("scalar_bins")))}
    found: dict[str, Tensor] = {}
    for name, y in classes.items():
        rows = [case[f"subsets_{name}"][index].long() for index in range(len(torch.unique(y)))]
        subsets = {int((part[0] >= 0).sum()): torch.stack([line[line >= 0] for line in part]) for part in rows}
        information = partial(diffusion.diffusion_information, case["X"], y, subsets=subsets, unit="bits", released=True)
        found[f"clusters_{name}"] = y
        found[f"dsmi_{name}"] = information(case.param("sigma"), time=case.param("t"))
        found[f"asmi_knn_{name}"] = information(1.0, neighbours=int(case.param("knn")))
    return found
