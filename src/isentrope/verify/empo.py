"""Recorded cases of EMPO's two releases (sheet `empo`); the equivalence of answers is given, so their extraction is not exercised."""

import torch
from torch import Tensor

from isentrope.control.papers.empo import Clusters, cluster_reward, clusters_of
from isentrope.measure.answers import entailment_clusters
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "empo"


@answers(SLUG, "cluster-reward*")
def rewards(case: Case) -> Outputs:
    """The TRL version takes empty answers as one cluster and pays 0 to an all-distinct group; the verl version has each by itself."""
    equivalent, silent = case["equivalent"] != 0, case.mask("empty")
    alone = torch.eye(silent.shape[1], dtype=torch.bool)
    speak = ~silent.unsqueeze(-1) & ~silent.unsqueeze(-2)
    both = silent.unsqueeze(-1) & silent.unsqueeze(-2)
    trl = entailment_clusters(2 * (equivalent & speak | both).long(), strict=True, released=True)
    verl = entailment_clusters(2 * (equivalent & speak | alone).long(), strict=True)
    first, second = _clusters(trl), _clusters(verl)
    paid = cluster_reward(first, silent.flatten(), form="collision", empty="zero")
    return {
        "trl_math": torch.where(first.distinct, 0.0, paid).view(silent.shape),
        "verl_entropy": cluster_reward(second, silent.flatten(), form="collision", empty="own").view(silent.shape),
        "verl_voting": cluster_reward(second, silent.flatten(), form="voting", empty="own").view(silent.shape),
        "verl_format": (~silent).double(),
        "cluster_id_trl": trl,
        "semantic_entropy": first.entropy.view(silent.shape)[:, 0],
    }


def _clusters(cluster: Tensor) -> Clusters:
    """Of a [question, answer] matrix of ids, response by response."""
    return clusters_of(cluster.flatten(), torch.arange(len(cluster)).repeat_interleave(cluster.shape[1]))
