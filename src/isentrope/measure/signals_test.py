"""What the signals are: closed forms, identities and the rules of the nucleus and the rank, in the engine and in the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.signals import (
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    SumSquares,
    TargetProb,
    TopKEntropy,
    TopKTail,
    Varentropy,
)
from isentrope.measure.tokens import token_signals, token_signals_from_logits

NUCLEI = (NucleusEntropy(0.8), NucleusEntropy(0.9, top_k=3), NucleusEntropy(1.5, top_k=4))
EVERY = (LogProb(), Entropy(grad=True), SumSquares(grad=True), NucleusEntropy(1.5), Discriminant(), ExpectedDiscriminant(), MaxProb(), TargetProb(),
         Varentropy(), MeanLogit(), Rank())  # fmt: skip


def both_ways(logits, target, signals):
    """By the engine, whose product with the identity is the logits; the definition must agree."""
    found = token_signals(torch.eye(len(logits), dtype=logits.dtype), logits.T, target, signals)
    for key, value in token_signals_from_logits(logits, target, signals).items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    return found


# --- closed forms


@pytest.mark.parametrize("vocab", [1, 2, 8, 100])
def test_uniform(vocab):
    found = both_ways(torch.full((2, vocab), 3.25, dtype=torch.float64), torch.tensor([0, vocab - 1]), EVERY)
    log = math.log(vocab)
    expected = {"S": 0, "N": 0, "max_p": 1 / vocab, "p": 1 / vocab, "varentropy": 0, "mean_logit": 3.25, "rank": 0, "log_prob": -log, "entropy": log,
                "sum_p2": 1 / vocab, "nucleus_entropy[1.5]": log}  # fmt: skip
    assert {key: value.tolist() for key, value in found.items()} == {key: pytest.approx([value] * 2, abs=1e-13) for key, value in expected.items()}


def test_one_token_takes_everything():
    logits = torch.zeros(2, 6, dtype=torch.float64)
    logits[:, 2] = 60.0
    found = both_ways(logits, torch.tensor([2, 0]), (*EVERY, *NUCLEI))
    expected = {"S": [0, 0], "N": [0, 0], "max_p": [1, 1], "p": [1, 0], "varentropy": [0, 0], "mean_logit": [10, 10], "rank": [0, 1], "log_prob": [0, -60],
                "entropy": [0, 0], "sum_p2": [1, 1]} | {signal.key: [0, 0] for signal in (*NUCLEI, NucleusEntropy(1.5))}  # fmt: skip
    assert {key: value.tolist() for key, value in found.items()} == {key: pytest.approx(value, abs=1e-15) for key, value in expected.items()}


@given(st.floats(-8, 8))
@settings(deadline=None, max_examples=40)
def test_two_tokens(x):
    p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(x))
    found = both_ways(torch.tensor([[x, 0.0]], dtype=torch.float64), torch.tensor([0]), EVERY)
    expected = {
        "log_prob": math.log(p), "entropy": math.log1p(math.exp(x)) - p * x, "S": p * q * x, "N": p * q * (p - q) * x, "sum_p2": 1 - 2 * p * q,
        "varentropy": p * q * x * x, "p": p, "max_p": max(p, q), "mean_logit": x / 2, "rank": int(x < 0),
    }  # fmt: skip
    assert {key: float(found[key]) for key in expected} == pytest.approx(expected, abs=1e-13)


def test_the_nucleus_of_the_sampler_holds_the_token_that_crosses():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log().repeat(4, 1)
    for top_p, members in ((0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4), (2.0, 4)):
        found = both_ways(logits, torch.arange(4), [InNucleus(top_p)])
        assert found[f"in_nucleus[{top_p}]"].tolist() == [True] * members + [False] * (4 - members)
    tied = both_ways(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([3]), [InNucleus(0.3)])
    assert tied["in_nucleus[0.3]"].item()


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.integers(1, 10))
@settings(deadline=None, max_examples=100)
def test_the_tail_bounds_what_the_top_k_leave_out(row, k):
    logits = torch.tensor([row], dtype=torch.float64)
    found = both_ways(logits, torch.tensor([0]), [Entropy(), TopKEntropy(k), TopKTail(k)])
    entropy, kept, tail = (found[key].item() for key in ("entropy", f"top_k_entropy[{k}]", f"top_k_tail[{k}]"))
    assert kept - 1e-12 <= entropy <= kept + tail + 1e-12
    if k >= len(row):
        assert tail == 0
        assert kept == pytest.approx(entropy, abs=1e-12)


def test_the_tail_bound_is_reached_by_an_even_tail():
    bias = torch.tensor([3.0, 1.0, 1.0, 1.0, -math.inf], dtype=torch.float64)
    signals, target = [Entropy(), TopKEntropy(1), TopKTail(1)], torch.tensor([0])
    found = token_signals(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64), target, signals, bias=bias)
    for key, value in token_signals_from_logits(bias.unsqueeze(0), target, signals).items():
        torch.testing.assert_close(found[key], value)
    assert (found["top_k_entropy[1]"] + found["top_k_tail[1]"]).item() == pytest.approx(found["entropy"].item(), abs=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InNucleus(0.0), "InNucleus: top_p must be > 0"),
        (lambda: TopKEntropy(0), "TopKEntropy: k must be at least 1. Got 0"),
        (lambda: TopKTail(-1), "TopKTail: k must be at least 1. Got -1"),
    ],
)
def test_parameters_of_row_signals_are_checked(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- identities


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_identities_of_the_discriminants(spread):
    vocab = 7
    row = spread * torch.randn(1, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = row.repeat(vocab, 1).requires_grad_()  # every token as the target once
    found = both_ways(logits, torch.arange(vocab), EVERY)
    p, log_p, s, entropy = (found[key] for key in ("p", "log_prob", "S", "entropy"))
    one, eye = torch.ones((), dtype=torch.float64), torch.eye(vocab, dtype=torch.float64)
    facts = {
        "sum p = 1": (p.sum(), one),
        "p = exp log_prob": (p, log_p.exp()),
        "H = -sum p ln p": (entropy[0], -(p * log_p).sum()),
        "sum S = 0": (s.sum(), 0 * one),
        "S = p (ln p + H)": (s, p * (log_p + entropy)),
        "N = sum p S": (found["N"][0], (p * s).sum()),
        "N = Cov(p, ln p)": (found["N"][0], (p * (p - (p * p).sum()) * (log_p - (p * log_p).sum())).sum()),
        "sum_p2": (found["sum_p2"][0], (p * p).sum()),
        "varentropy": (found["varentropy"][0], (p * (log_p + entropy) ** 2).sum()),
        "max_p": (found["max_p"][0], p.max()),
        "mean logit": (found["mean_logit"][0], row.mean()),
        "dH/dz = -S": (torch.autograd.grad(entropy.sum(), logits, retain_graph=True)[0], -s.expand(vocab, vocab)),
        "dln p_k/dz = [k] - p": (torch.autograd.grad(log_p.sum(), logits, retain_graph=True)[0], eye - p),
        "dsum p^2/dz": (torch.autograd.grad(found["sum_p2"].sum(), logits)[0], (2 * p * (p - (p * p).sum())).expand(vocab, vocab)),
    }
    for fact, (left, right) in facts.items():
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12, msg=lambda text, fact=fact: f"{fact}: {text}")
    assert (found["N"] > 0).all()
    assert (-found["sum_p2"].log() < entropy).all()  # Renyi-2 below Shannon
    assert torch.equal(found["rank"][row[0].argsort(descending=True)], torch.arange(vocab))


# --- the nucleus


def nucleus_of(p, signal, target=0):
    """Value, and gradient with respect to the logits, of the engine; the definition must agree in the value."""
    logits = torch.tensor([p], dtype=torch.float64).log().requires_grad_()
    value = both_ways(logits, torch.tensor([target]), [signal])[signal.key]
    return value.item(), torch.autograd.grad(value.sum(), logits)[0][0]


def entropy_of(*weights):
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


@pytest.mark.parametrize(
    ("top_p", "top_k", "members"),
    [(0.8, None, 2), (0.95, None, 3), (0.4, None, 0), (0.51, None, 1), (2.0, None, 4), (0.95, 2, 2), (0.95, 9, 3), (2.0, 1, 1), (2.0, 3, 3), (0.8, 3, 2)],
)
def test_the_nucleus_ends_before_the_token_that_crosses(top_p, top_k, members):
    p = [0.15, 0.5, 0.1, 0.25]
    value, gradient = nucleus_of(p, NucleusEntropy(top_p, top_k, grad=True))
    inside = sorted(p, reverse=True)[:members]
    assert value == pytest.approx(entropy_of(*inside) if inside else 0.0, abs=1e-14)
    expected = [-(w / sum(inside)) * (math.log(w / sum(inside)) + value) if w in inside else 0.0 for w in p]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-14)


def test_equal_tokens_at_the_edge_share_one_place():
    value, gradient = nucleus_of([0.2, 0.4, 0.2, 0.2], NucleusEntropy(0.7, grad=True))
    assert value == pytest.approx(entropy_of(2, 1))
    full = -(1 / 3) * (math.log(1 / 3) + value)
    assert gradient.tolist() == pytest.approx([full / 3, -full, full / 3, full / 3])


# --- rank


@pytest.mark.parametrize(("target", "rank"), [(0, 1), (1, 0), (2, 1), (3, 3), (4, 4)])
def test_rank_counts_the_strictly_likelier(target, rank):
    logits = torch.tensor([[2.0, 5.0, 2.0, 1.0, -math.inf]])
    assert token_signals_from_logits(logits, torch.tensor([target]), [Rank()])["rank"].item() == rank
    found = token_signals(torch.ones(1, 1), torch.zeros(5, 1), torch.tensor([target]), [Rank()], bias=logits[0])["rank"]
    assert (found.item(), found.dtype) == (rank, torch.int64)


@pytest.mark.parametrize(
    ("arguments", "words"), [((0.0,), "top_p must be > 0"), ((math.nan,), "Got nan"), ((0.5, 0), "top_k must be None (no limit) or at least 1. Got 0")]
)
def test_a_nucleus_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError) as caught:
        NucleusEntropy(*arguments)
    assert str(caught.value).startswith("NucleusEntropy: ")
    assert words in str(caught.value)


def test_keys():
    assert [signal.key for signal in (*EVERY, NucleusEntropy(1, 5))] == [
        "log_prob", "entropy", "sum_p2", "nucleus_entropy[1.5]", "S", "N", "max_p", "p", "varentropy", "mean_logit", "rank", "nucleus_entropy[1.0,5]",
    ]  # fmt: skip
