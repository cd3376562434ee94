"""Recorded cases of activation codes: the authors' repository (sheet `activation-hash`)."""

import torch
from torch import Tensor

from isentrope.measure.codes import activation_codes, cluster_accuracy, probe_line, redundancy_ratio, varying_units
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "activation-hash"


@answers(SLUG, "codes*")
def codes(case: Case) -> Outputs:
    """The authors drop the columns that are constant over training and test samples together."""
    layers = range(case.param("layers"))
    train, test = (activation_codes(_layers(case, case[name], layers)) for name in ("X_train", "X_test"))
    keep = varying_units(torch.cat((train, test)))
    train, test = train[:, keep], test[:, keep]
    return {"code_train": train, "code_test": test, "redundancy_train": redundancy_ratio(train), "redundancy_test": redundancy_ratio(test)}


@answers(SLUG, "cluster-accuracy*")
def clusters(case: Case) -> Outputs:
    found, labels = case["cluster"], case["label"]
    return {"greedy": cluster_accuracy(found, labels, released=True), "one_to_one": cluster_accuracy(found, labels)}


@answers(SLUG, "probe-line*")
def line(case: Case) -> Outputs:
    return {"points": probe_line(case["sample"], case["center"])}


def _layers(case: Case, x: Tensor, layers: range) -> list[Tensor]:
    """What the ReLU layers of the case's network give; its weights are [in, out]."""
    found = []
    for layer in layers:
        x = torch.relu(x @ case[f"W{layer}"] + case[f"b{layer}"])
        found.append(x)
    return found
