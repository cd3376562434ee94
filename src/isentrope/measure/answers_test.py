"""Closed forms and laws of the answer measures."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure.answers import (
    Support,
    answer_entropy,
    bootstrap_interval,
    cluster_assignment_entropy,
    cluster_log_probs,
    detectable_mass,
    entailment_clusters,
    maj_at_k,
    pass_at_k,
    semantic_entropy,
    support,
    support_interval,
)

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7)


def test_pass_at_one_is_the_share_of_right_samples():
    assert torch.equal(pass_at_k(torch.tensor([0, 3, 8]), 8, 1), torch.tensor([0.0, 3 / 8, 1.0], dtype=torch.float64))


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_binomial_closed_form_and_grows_with_k(n, data):
    c = data.draw(st.integers(0, n))
    found = [float(pass_at_k(torch.tensor(c), n, k)) for k in range(1, n + 1)]
    assert found == pytest.approx([1 - math.comb(n - c, k) / math.comb(n, k) for k in range(1, n + 1)], abs=1e-12)
    assert found == sorted(found)


def test_pass_at_k_is_unbiased_over_binomial_sample_sets():
    p, n, k = 0.3, 6, 3
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * float(pass_at_k(torch.tensor(c), n, k)) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("c", "k", "word"), [(1, 5, "k must lie"), (1, 0, "k must lie"), (5, 1, "correct must lie")])
def test_pass_at_k_refuses_impossible_counts(c, k, word):
    with pytest.raises(ValueError, match=word):
        pass_at_k(torch.tensor([c]), 4, k)


def enumerated_majority(answers, correct, k):
    """maj@k by listing every draw: the definition itself."""
    total = 0.0
    draws = list(itertools.combinations(range(len(answers)), k))
    for draw in draws:
        votes = Counter(answers[i] for i in draw if answers[i] is not None)
        if votes:
            winners = [a for a, n in votes.items() if n == max(votes.values())]
            for winner in winners:
                judged = [right for a, right in zip(answers, correct, strict=True) if a == winner]
                total += sum(judged) / len(judged) / len(winners)
    return total / len(draws)


@settings(max_examples=60)
@given(ANSWERS, st.data())
def test_maj_at_k_equals_enumeration_of_every_draw(answers, data):
    correct = data.draw(st.lists(st.booleans(), min_size=len(answers), max_size=len(answers)))
    for k in range(1, len(answers) + 1):
        assert maj_at_k(answers, correct, k) == pytest.approx(enumerated_majority(answers, correct, k), abs=1e-12)


def test_maj_at_k_by_hand():
    assert maj_at_k(["7", "8"], [True, False], 2) == 0.5  # a tie is broken by a coin
    assert maj_at_k([None, None, "7"], [False, False, True], 3) == 1.0  # silence does not vote
    assert maj_at_k([None, None, "7"], [False, False, True], 1) == pytest.approx(1 / 3)
    assert maj_at_k(["7", "7", "8"], [True, True, False], 1) == pytest.approx(2 / 3)  # one answer: its chance of being right


def test_maj_at_k_of_sixty_four_samples_is_quick_and_near_one_for_a_clear_majority():
    answers = ["x"] * 40 + [str(i) for i in range(24)]
    assert maj_at_k(answers, [a == "x" for a in answers], 16) > 0.999


@given(ANSWERS)
def test_answer_entropy_lies_between_zero_and_the_log_of_the_clusters(answers):
    assert 0.0 <= answer_entropy(answers) <= math.log(len(set(answers))) + 1e-12


def test_answer_entropy_by_hand():
    assert answer_entropy(["a"] * 5) == 0.0
    assert answer_entropy(["a", "b", "c", None]) == pytest.approx(math.log(4))
    assert answer_entropy(["a", "a", "a", "b"]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_bootstrap_interval_matches_the_normal_limit():
    torch.manual_seed(0)
    values = torch.randn(400, dtype=torch.float64)
    found = bootstrap_interval(values, resamples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert found.value == pytest.approx(float(values.mean()), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_bootstrap_interval_is_seeded_and_leaves_the_global_generator_alone():
    values = torch.arange(10.0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (bootstrap_interval(values, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_bootstrap_interval_of_one_prompt_is_a_point_and_weights_make_a_ratio():
    one = bootstrap_interval(torch.tensor([0.25]))
    assert (one.value, one.low, one.high) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(torch.tensor([1.0, 3.0]), weights=torch.tensor([3.0, 1.0])).value == 1.5


@pytest.mark.parametrize("values", [torch.tensor([]), torch.tensor([float("nan")])])
def test_bootstrap_interval_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values)


def test_bootstrap_interval_says_how_to_write_a_level():
    with pytest.raises(ValueError, match=r"write 0\.95"):
        bootstrap_interval(torch.ones(3), level=95)


def test_miller_madow_adds_half_the_degrees_of_freedom():
    answers = ["7", "7", "8", None]
    assert answer_entropy(answers, correction="miller-madow") == pytest.approx(answer_entropy(answers) + 2 / 8, abs=1e-15)


CLUSTERED = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-30, 0), min_size=n, max_size=n),
        st.lists(st.integers(-3, 40), min_size=n, max_size=n),
    )
)


@settings(max_examples=80, deadline=None)
@given(CLUSTERED)
def test_semantic_entropy_is_the_entropy_of_the_summed_weights(drawn):
    log_probs, clusters = drawn
    weights = torch.tensor(log_probs, dtype=torch.float64).softmax(0).tolist()
    mass = Counter()
    for cluster, weight in zip(clusters, weights, strict=True):
        mass[cluster] += weight
    expected = -sum(p * math.log(p) for p in mass.values() if p)
    found = float(semantic_entropy(torch.tensor(log_probs, dtype=torch.float64), torch.tensor(clusters)))
    assert found == pytest.approx(expected, abs=1e-12)
    assert -1e-12 <= found <= math.log(len(mass)) + 1e-12


def test_semantic_entropy_of_one_meaning_is_0_and_of_all_distinct_ones_the_entropy_of_the_weights():
    log_probs = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(semantic_entropy(log_probs, torch.full((3, 6), 9)), torch.zeros(3, dtype=torch.float64), atol=1e-14)
    distinct = torch.arange(6).expand(3, 6)
    assert torch.allclose(semantic_entropy(log_probs, distinct), torch.special.entr(log_probs.softmax(-1)).sum(-1), atol=1e-14)
    unnormalised = semantic_entropy(log_probs, distinct, form="unnormalised")
    assert torch.allclose(unnormalised, torch.special.entr(log_probs.exp()).sum(-1), atol=1e-14)
    assert torch.allclose(semantic_entropy(log_probs, distinct, form="monte-carlo"), -log_probs.mean(-1), atol=1e-14)


def test_semantic_entropy_knows_no_names_of_clusters_no_order_and_no_constant():
    generator = torch.Generator().manual_seed(2)
    log_probs = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    clusters = torch.randint(0, 4, (5, 8), generator=generator)
    value, order = semantic_entropy(log_probs, clusters), torch.randperm(8, generator=generator)
    assert torch.allclose(semantic_entropy(log_probs[:, order], clusters[:, order]), value, atol=1e-14)
    assert torch.allclose(semantic_entropy(log_probs + 3.7, 11 - 5 * clusters), value, atol=1e-14)


@pytest.mark.parametrize("form", ["normalised", "monte-carlo", "unnormalised"])
def test_samples_outside_the_mask_are_inert_in_value_and_gradient(form):
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5]], dtype=torch.float64)
    clusters = torch.tensor([[0, 0, 1], [0, 1, 1]])
    padded = torch.cat((log_probs, torch.tensor([[math.nan], [0.0]], dtype=torch.float64)), 1).requires_grad_()
    ids, mask = torch.cat((clusters, torch.tensor([[1], [0]])), 1), torch.tensor([True, True, True, False]).expand(2, 4)
    found = semantic_entropy(padded, ids, mask=mask, form=form)
    assert torch.allclose(found, semantic_entropy(log_probs, clusters, form=form), atol=1e-14)
    found.sum().backward()
    plain = log_probs.clone().requires_grad_()
    semantic_entropy(plain, clusters, form=form).sum().backward()
    assert torch.allclose(padded.grad[:, :3], plain.grad, atol=1e-14)
    assert (padded.grad[:, 3] == 0).all()


def test_semantic_entropy_has_the_gradient_of_its_finite_differences():
    log_probs = torch.tensor([-1.0, -0.2, -3.0, -0.7], dtype=torch.float64, requires_grad=True)
    clusters = torch.tensor([0, 1, 1, 2])
    for form in ("normalised", "monte-carlo", "unnormalised"):
        assert torch.autograd.gradcheck(lambda values, form=form: semantic_entropy(values, clusters, form=form), (log_probs,))


def test_an_impossible_sample_has_no_weight_and_a_row_without_mass_is_nan():
    two = torch.tensor([-math.inf, -1.0, -1.0], dtype=torch.float64)
    assert float(semantic_entropy(two, torch.tensor([0, 1, 2]))) == pytest.approx(math.log(2), abs=1e-15)
    assert semantic_entropy(torch.full((2,), -math.inf), torch.tensor([0, 1])).isnan()
    none = torch.zeros(3, dtype=torch.bool)
    assert semantic_entropy(torch.zeros(3), torch.tensor([0, 1, 2]), mask=none).isnan()
    assert cluster_assignment_entropy(torch.tensor([0, 1, 2]), mask=none).isnan()


def test_the_released_direct_form_counts_a_cluster_once_per_sample():
    log_probs, clusters = torch.tensor([-3.0, -3.0, -2.0], dtype=torch.float64), torch.tensor([0, 0, 1])
    pair, single = 2 * math.exp(-3), math.exp(-2)
    once = -pair * math.log(pair) - single * math.log(single)
    assert float(semantic_entropy(log_probs, clusters, form="unnormalised")) == pytest.approx(once, abs=1e-14)
    twice = -2 * pair * math.log(pair) - single * math.log(single)
    assert float(semantic_entropy(log_probs, clusters, form="unnormalised", released=True)) == pytest.approx(twice, abs=1e-14)
    with pytest.raises(ValueError, match="form='unnormalised' alone"):
        semantic_entropy(log_probs, clusters, released=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 3), min_size=1, max_size=9))
def test_cluster_assignment_entropy_is_answer_entropy_of_the_names(clusters):
    assert float(cluster_assignment_entropy(torch.tensor(clusters))) == pytest.approx(answer_entropy(clusters), abs=1e-12)


def test_cluster_log_probs_sum_to_one_over_clusters():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    own = cluster_log_probs(log_probs, torch.tensor([5, 7, 5]))
    assert float(own[0]) == float(own[2])
    assert float(own[:2].exp().sum()) == pytest.approx(1, abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_entailment_clusters_recover_a_partition(meanings):
    same = torch.tensor([[2 if a == b else 0 for b in meanings] for a in meanings])
    first = {m: i for i, m in enumerate(dict.fromkeys(meanings))}
    expected = [first[m] for m in meanings]
    for strict, released in itertools.product((False, True), repeat=2):
        assert entailment_clusters(same, strict=strict, released=released).tolist() == expected


def test_entailment_that_is_not_transitive_stays_with_the_first_and_moves_in_the_released_form():
    labels = torch.full((3, 3), 2)
    labels[0, 1] = labels[1, 0] = 0  # 0 ~ 2 and 1 ~ 2, not 0 ~ 1
    assert entailment_clusters(labels).tolist() == [0, 1, 0]
    assert entailment_clusters(labels, released=True).tolist() == [0, 1, 1]


def test_loose_equivalence_is_no_contradiction_and_not_neutral_both_ways():
    for a, b in itertools.product(range(3), repeat=2):
        pair = torch.tensor([[2, a], [b, 2]])
        assert (entailment_clusters(pair).tolist() == [0, 0]) == (0 not in (a, b) and (a, b) != (1, 1))
        assert (entailment_clusters(pair, strict=True).tolist() == [0, 0]) == (a == b == 2)


def test_support_metrics_of_the_row_the_paper_reports():
    row = Support(preserved=2388, expansion=48, shrinkage=175)
    assert [round(x, 4) for x in (row.srr, row.ndr, row.sds, row.nscr)] == [0.9317, 0.0197, 0.0386, -0.0486]
    assert round(row.shrinkage / row.expansion, 2) == 3.65


def test_undefined_support_rates_are_nan_and_never_0():
    nothing = Support(0, 0, 0, out=5)
    assert all(math.isnan(x) for x in (nothing.srr, nothing.ndr, nothing.sds, nothing.nscr))
    lost = Support(0, 0, 3)
    assert lost.srr == 0
    assert math.isnan(lost.ndr)
    assert lost.nscr == -1
    assert Support(0, 0, 0, out=1) != Support(0, 0, 0, out=2)
    assert math.isnan(Support(0, 0, 2).sds)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_support_parts_every_item_once_and_exchanging_the_models_exchanges_e_and_s(items):
    base, tuned = (torch.tensor(side) for side in zip(*items, strict=True))
    counts, other = support(base, tuned, samples=20), support(tuned, base, samples=20)
    assert counts.preserved == sum(b > 0 and t > 0 for b, t in items)
    assert (counts.expansion, counts.shrinkage) == (other.shrinkage, other.expansion)
    near = support(base, tuned, samples=20, threshold=0.15, margin=2.0)
    for found in (counts, near):
        assert found.preserved + found.expansion + found.shrinkage + found.out + found.undecided == len(items)
    assert near.undecided == sum(any(1.5 <= c <= 6 for c in item) for item in items)


def test_detectable_mass_is_the_papers_value_and_exact_at_its_definition():
    assert detectable_mass(8192) == pytest.approx(3.657e-4, abs=5e-8)
    exact = detectable_mass(50, miss=0.1, exact=True)
    assert (1 - exact) ** 50 == pytest.approx(0.1, abs=1e-14)
    assert exact < detectable_mass(50, miss=0.1)


def test_support_interval_covers_its_value_and_is_the_binomial_one():
    counts = Support(preserved=90, expansion=5, shrinkage=10, out=15)
    found = support_interval(counts, "srr", resamples=4000)
    assert found == support_interval(counts, "srr", resamples=4000)
    half = 1.96 * math.sqrt(0.9 * 0.1 / 100)
    assert found.low == pytest.approx(0.9 - half, abs=0.012)
    assert found.high == pytest.approx(0.9 + half, abs=0.012)
    assert math.isnan(support_interval(Support(0, 0, 0), "nscr").value)


def test_support_refuses_counts_that_cannot_be():
    with pytest.raises(ValueError, match=r"support: tuned must lie in \[0, samples=4\]"):
        support(torch.tensor([1]), torch.tensor([5]), samples=4)


def test_path_entropy_rises_while_answer_entropy_falls_under_exact_policy_gradient():
    """Sheet invisible-leash: sixteen right paths, a wrong one, started at p = 1/2: 2.08 -> 2.77 nats of paths, 0.69 -> 0 of answers."""
    right = torch.tensor([1.0] * 16 + [0.0], dtype=torch.float64)
    logits = torch.tensor([0.0] * 16 + [math.log(16)], dtype=torch.float64, requires_grad=True)
    seen = []
    for _ in range(600):
        p = logits.softmax(0)
        share = float(p.detach() @ right)
        answer = float(semantic_entropy(p.detach().log(), 1 - right.long()))
        path = float(torch.special.entr(p.detach()).sum())
        assert path == pytest.approx(answer + share * math.log(16), abs=1e-12)  # grouping: the wrong answer has one path
        seen.append((path, answer))
        (gradient,) = torch.autograd.grad(p @ right, logits)
        with torch.no_grad():
            logits += 20.0 * gradient
    assert seen[0] == (pytest.approx(2.0794, abs=1e-4), pytest.approx(math.log(2), abs=1e-12))
    assert seen[-1] == (pytest.approx(math.log(16), abs=2e-2), pytest.approx(0, abs=2e-2))
    assert all(later[1] <= earlier[1] for earlier, later in itertools.pairwise(seen))
    assert all(seen[0][0] <= path <= math.log(17) + 1e-12 for path, _ in seen)  # not monotone: it tops at p = 16/17, where all paths are equal


def test_the_leash_does_not_always_lower_entropy_but_obeys_its_covariance():
    q = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    right = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert float(torch.special.entr(q).sum()) == pytest.approx(0.394, abs=5e-4)
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tilted = (q.log() + beta * right).softmax(0)
    (slope,) = torch.autograd.grad(torch.special.entr(tilted).sum(), beta)
    p = tilted.detach()
    share = float(p.detach() @ right)
    with_log_q = float(p @ (right * q.log())) - share * float(p @ q.log())
    assert float(slope) == pytest.approx(-with_log_q - 0.7 * share * (1 - share), abs=1e-12)
    assert float(slope) > 0  # the unconditional theorem would have it below 0
    limit = (q.log() + 60 * right).softmax(0)
    assert float(torch.special.entr(limit).sum()) == pytest.approx(math.log(2), abs=1e-12)
