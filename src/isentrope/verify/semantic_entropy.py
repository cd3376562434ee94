"""Recorded cases of semantic entropy: the authors' pipeline and a library of uncertainty scores (no sheet; see the vectors' README)."""

import torch
from torch import Tensor

from isentrope.measure.answers import cluster_assignment_entropy, cluster_log_probs, entailment_clusters, semantic_entropy
from isentrope.measure.sequences import (
    degree_score,
    divergence_from_uniform,
    fisher_rao_from_uniform,
    kernel_language_entropy,
    laplacian_score,
    perplexity,
    predictive_entropy,
    sampled_mass_entropy,
    self_certainty,
    sentence_relevance_score,
)
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "semantic-entropy"


@answers(SLUG, "from-clusters*")
def from_clusters(case: Case) -> Outputs:
    clusters, mean, total = case["cluster_id"], case["mean_token_logprob"], case["sum_token_logprob"]
    return {
        "semantic_entropy": semantic_entropy(mean, clusters),
        "semantic_entropy_unnormalised_length": semantic_entropy(total, clusters),
        "predictive_entropy": predictive_entropy(mean),
        "predictive_entropy_sum": predictive_entropy(total),
        "rao": sampled_mass_entropy(mean),
        "rao_sum": sampled_mass_entropy(total),
        "cluster_assignment_entropy": cluster_assignment_entropy(clusters),
        "cluster_logprob": _by_cluster(cluster_log_probs(mean, clusters), clusters),
    }


@answers(SLUG, "greedy-clustering*")
def greedy_clustering(case: Case) -> Outputs:
    labels = case["entailment"]
    return {
        "loose": entailment_clusters(labels, released=True),
        "strict": entailment_clusters(labels, strict=True, released=True),
    }


@answers(SLUG, "uncertainty-estimators*")
def uncertainty_estimators(case: Case) -> Outputs:
    clusters, samples = case["cluster_id"], case["sample_logprob"]
    tokens, chosen, entail = case["greedy_token_logprobs"], case["greedy_chosen_logprob"], case["entail"]
    order, temperature = case.param("renyi_alpha"), case.param("temperature")
    return {
        "semantic_entropy": semantic_entropy(samples, clusters, form="monte-carlo"),
        "semantic_entropy_frequency": cluster_assignment_entropy(clusters),
        "semantic_entropy_direct": semantic_entropy(samples, clusters, form="unnormalised", released=True),
        "mean_token_entropy": sampled_mass_entropy(tokens).mean(-1),
        "perplexity": perplexity(chosen).log(),
        "sequence_nll": -chosen.sum(-1),
        "mc_sequence_entropy": predictive_entropy(samples),
        "mc_normalised_sequence_entropy": predictive_entropy(samples / case["sample_length"]),
        "renyi_neg": divergence_from_uniform(tokens, order=order, temperature=temperature, released=True).mean(-1),
        "renyi_neg_alpha1": divergence_from_uniform(tokens, temperature=temperature).mean(-1),
        "fisher_rao": fisher_rao_from_uniform(tokens, temperature=temperature).mean(-1),
        "self_certainty": -self_certainty(tokens).mean(-1),
        "laplacian_eigenvalue_sum": laplacian_score(entail),
        "degree_matrix": degree_score(entail),
        "kernel_language_entropy": kernel_language_entropy(entail, case["contradict"], time=case.param("kle_t")),
        "sentence_sar": sentence_relevance_score(samples, case["sentence_similarity"], temperature=case.param("sar_t")),
    }


def _by_cluster(own: Tensor, clusters: Tensor) -> Tensor:
    """[question, cluster], NaN beyond a question's last cluster, as wide as there are samples."""
    return torch.full_like(own, torch.nan).scatter(-1, clusters, own)
