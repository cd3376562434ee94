"""Closed forms, limits and invariances of the sequence scores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_predictive_entropy_is_the_mean_surprise_of_the_samples_that_count():
    values = torch.tensor([[-1.0, -3.0, math.nan]])
    assert predictive_entropy(values, mask=torch.tensor([[True, True, False]])).tolist() == [2.0]
    assert predictive_entropy(values, mask=torch.zeros(1, 3, dtype=torch.bool)).isnan().all()


def test_the_expectation_of_predictive_entropy_is_the_entropy():
    p = random(5).softmax(0)
    expected = sum(float(p[i]) * float(predictive_entropy(p[i : i + 1].log())) for i in range(5))
    assert expected == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-14)


def test_sampled_mass_entropy_of_every_sequence_is_the_entropy():
    p = random(3, 5).softmax(-1)
    assert torch.allclose(sampled_mass_entropy(p.log()), torch.special.entr(p).sum(-1), atol=1e-14)
    assert float(sampled_mass_entropy(torch.tensor([0.0, -math.inf]))) == 0


def test_perplexity_of_equal_tokens_is_one_over_their_probability():
    assert float(perplexity(torch.full((7,), math.log(0.2), dtype=torch.float64))) == pytest.approx(5, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.floats(0.1, 4), st.integers(0, 99))
def test_divergence_from_uniform_is_the_gap_to_ln_vocab(vocab, order, seed):
    log_probs = random(vocab, seed=seed)
    found = float(divergence_from_uniform(log_probs, order=order))
    assert -1e-12 <= found <= math.log(vocab) + 1e-12
    q = log_probs.softmax(0)
    renyi = float(torch.special.entr(q).sum()) if order == 1 else math.log(float((q**order).sum())) / (1 - order)
    assert found == pytest.approx(math.log(vocab) - renyi, abs=1e-9)


def test_divergence_of_order_one_is_the_limit_and_uniform_has_none():
    log_probs = random(4, 6)
    near = (divergence_from_uniform(log_probs, order=1 - 1e-6) + divergence_from_uniform(log_probs, order=1 + 1e-6)) / 2
    assert torch.allclose(near, divergence_from_uniform(log_probs), atol=1e-8)
    for score in (divergence_from_uniform, fisher_rao_from_uniform, self_certainty):
        assert score(torch.zeros(7, dtype=torch.float64)).abs() < 1e-7
    assert float(divergence_from_uniform(log_probs, order=0.5, released=True)[0]) == pytest.approx(
        float(divergence_from_uniform(log_probs, order=0.5)[0]) - 2 * math.log(6), abs=1e-12
    )


def test_self_certainty_is_the_divergence_of_uniform_from_p():
    p = random(3, 6).softmax(-1)
    uniform = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    assert torch.allclose(self_certainty(p.log()), (uniform * (uniform / p).log()).sum(-1), atol=1e-14)
    assert self_certainty(torch.tensor([0.0, -math.inf])) == math.inf


def test_fisher_rao_of_one_certain_token_nears_the_whole_angle():
    certain = torch.full((10_000,), -math.inf, dtype=torch.float64)
    certain[3] = 0
    assert float(fisher_rao_from_uniform(certain)) == pytest.approx(2 / math.pi * math.acos(0.01), abs=1e-12)


def test_graph_scores_of_no_and_of_full_resemblance():
    alone, alike = torch.eye(5, dtype=torch.float64), torch.ones(5, 5, dtype=torch.float64)
    both = torch.stack((alone, alike))
    assert torch.allclose(laplacian_score(both), torch.tensor([5.0, 1.0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(degree_score(both), torch.tensor([0.8, 0.0], dtype=torch.float64), atol=1e-15)
    contradict = 1 - both
    assert float(kernel_language_entropy(both, contradict)[0]) == pytest.approx(1, abs=1e-12)  # no edges: identity / n
    assert float(kernel_language_entropy(both, contradict, time=50.0)[1]) == pytest.approx(0, abs=1e-9)  # one blurred vertex
    assert float(kernel_language_entropy(torch.ones(1, 1), torch.zeros(1, 1))) == 0


def test_laplacian_score_counts_separate_meanings():
    blocks = torch.block_diag(*(torch.ones(n, n, dtype=torch.float64) for n in (3, 1, 2)))
    assert float(laplacian_score(blocks)) == pytest.approx(3, abs=1e-12)
    with pytest.raises(ValueError, match="Put ones on the diagonal"):
        laplacian_score(torch.zeros(2, 2))


def test_graph_scores_do_not_depend_on_the_order_of_samples():
    entail = random(6, 6).sigmoid()
    contradict = (1 - entail) * random(6, 6, seed=1).sigmoid()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    moved, against = entail[order][:, order], contradict[order][:, order]
    assert torch.allclose(laplacian_score(moved), laplacian_score(entail), atol=1e-12)
    assert torch.allclose(kernel_language_entropy(moved, against), kernel_language_entropy(entail, contradict), atol=1e-12)
    log_probs = random(6) - 3
    assert torch.allclose(sentence_relevance_score(log_probs[order], moved), sentence_relevance_score(log_probs, entail), atol=1e-12)


def test_sentence_relevance_without_resemblance_is_predictive_entropy():
    log_probs = random(4, 5) - 4
    alone = torch.eye(5, dtype=torch.float64).expand(4, 5, 5)
    assert torch.allclose(sentence_relevance_score(log_probs, alone), predictive_entropy(log_probs), atol=1e-14)
