"""EMPO: recorded outputs, answers and clusters, what each reward ascends, the vote for oneself, and which groups train."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.common_test import FOLDERS, recorded
from isentrope.control.papers.empo import Clusters, Empo, canonical, cluster_reward, clusters_of, extract_answer
from isentrope.control.step import Rollouts
from isentrope.measure.answers import answer_entropy
from isentrope.testing.world import world
from isentrope.verify.cases import read_case
from isentrope.verify.empo import rewards


def rollouts(*groups: str, **known) -> Rollouts:
    """Groups of one-letter answers; "-" is none."""
    answers = tuple(None if letter == "-" else letter for group in groups for letter in group)
    group = torch.cat([torch.full((len(letters),), 3 + 2 * index) for index, letters in enumerate(groups)])
    return Rollouts.of(torch.ones(len(answers), 2, dtype=torch.bool), group=group, row_id=7 * torch.arange(len(answers)), **{"answer": answers} | known)


def paid(link: Empo, *groups: str) -> list[float]:
    return link.reward(rollouts(*groups), {}).tolist()


# --- recorded outputs


@pytest.mark.parametrize("name", ["cluster-reward", "cluster-reward-nontransitive"])
def test_both_releases_are_reproduced(name):
    case = recorded(f"empo__{name}")
    folder = next(folder for folder in FOLDERS if (folder / f"empo__{name}.npz").is_file())
    found = rewards(read_case(folder / f"empo__{name}.npz"))
    assert set(found) == set(case.found)
    for key, value in found.items():
        case.close(value, key)


def test_the_intervention_pays_what_was_recorded():
    """Where the relation is transitive its clusters are equal strings."""
    case = recorded("empo__cluster-reward")
    for equivalent, empty, *outputs in zip(case.given["equivalent"], case.given["empty"], case.found["trl_math"], case.found["verl_entropy"], strict=True):
        letters = "".join("-" if silent else chr(97 + int(row.long().argmax())) for row, silent in zip(equivalent, empty, strict=True))
        batch = rollouts(letters)
        keep = Empo().keep(batch, {})
        distinct = Empo().clusters(batch).distinct
        assert torch.where(distinct, 0.0, Empo().reward(batch, {})).tolist() == pytest.approx(outputs[0].tolist(), abs=1e-6)
        assert Empo(empty="own").reward(batch, {}).tolist() == pytest.approx(outputs[1].tolist(), abs=1e-6)
        assert bool(keep[0]) == (1 < len(set(letters)) < len(letters))


# --- answers


@pytest.mark.parametrize(
    ("text", "how", "answer"),
    [
        (r"so \boxed{12}, or \boxed{\frac{1}{2}} it is", "auto", r"\frac{1}{2}"),
        (r"never closed \boxed{12", "auto", "12"),  # no box: the last number
        (r"never closed \boxed{12", "boxed", None),
        ("a <answer> 5 </answer> b", "auto", "5"),
        ("3+4=7</think>8", "auto", "8"),
        ("3+4=7</think> ", "auto", None),
        ("3+4=7, so 1,024", "auto", "1024"),
        ("nothing", "auto", None),
        ("it is -3.5.", "last-number", "-3.5"),
        (" all of it ", "whole", "all of it"),
        ("", "whole", None),
        (r"\boxed{ }", "boxed", None),
    ],
)
def test_the_answer_of_a_text(text, how, answer):
    assert extract_answer(text, how) == answer


@pytest.mark.parametrize(
    ("given", "found"),
    [(" 007.50 ", "7.5"), ("-0", "0"), ("-0.00", "0"), ("10", "10"), ("1.0", "1"), ("-2.50", "-2.5"), ("x + 1", "x+1"), ("  ", None), ("", None), (None, None)],
)
def test_plain_numbers_are_read(given, found):
    assert canonical(given) == found


def test_without_answers_the_text_is_read_and_without_both_it_is_an_error():
    batch = rollouts("abc", answer=None, text=("</think>1", "so </think>1.0", "</think>2"))
    assert Empo().reward(batch, {}).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    with pytest.raises(ValueError, match=r"Empo: the rollouts carry neither answer nor text\. Fill Rollouts\.answer"):
        Empo().reward(replace(batch, text=None), {})


# --- clusters and rewards


def follows_the_counts() -> None:
    assert paid(Empo(), "aabc", "dd") == pytest.approx([0.5, 0.5, 0.25, 0.25, 1.0, 1.0])
    assert paid(Empo(form="voting"), "aabc", "abcc", "ab") == [1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert paid(Empo(form="shannon"), "aabc") == pytest.approx([math.log(0.5)] * 2 + [math.log(0.25)] * 2)


def test_rewards_by_hand():
    follows_the_counts()


def test_paying_for_rare_answers_is_noticed(monkeypatch):
    from isentrope.control.papers import empo

    whole = empo.clusters_of

    def flipped(*values):
        found = whole(*values)
        return replace(found, share=1 - found.share)

    monkeypatch.setattr(empo, "clusters_of", flipped)
    with pytest.raises(AssertionError):
        follows_the_counts()


def test_empty_answers_by_both_rules():
    assert paid(Empo(), "aa--", "----") == pytest.approx([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    assert paid(Empo(empty="own"), "aa--", "----") == pytest.approx([0.5, 0.5, 0.25, 0.25] + [0.25] * 4)
    assert paid(Empo(form="voting", empty="own"), "----") == [1, 1, 1, 1]
    assert paid(Empo(form="shannon"), "aa--") == paid(Empo(form="shannon", empty="own"), "aa--") == pytest.approx([math.log(0.5)] * 2 + [math.log(0.25)] * 2)


def test_without_a_majority_a_group_is_paid_alike_unless_it_agrees():
    assert paid(Empo(majority=0.5), "aabc", "abcd", "d") == pytest.approx([0.5, 0.5, 0.25, 0.25, 0, 0, 0, 0, 1])
    assert len(set(paid(Empo(majority=0.6, form="shannon"), "aabc"))) == 1


def test_the_task_keeps_its_part_of_the_reward():
    batch = rollouts("aab", reward=torch.tensor([0.0, 1.0, float("nan")]))
    found = Empo(share=0.25).reward(batch, {})
    assert found[:2].tolist() == pytest.approx([0.25 * 2 / 3, 0.75 + 0.25 * 2 / 3])
    assert found[2].isnan()
    assert Empo().reward(batch, {}).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])


@given(letters=st.lists(st.sampled_from("abcd-"), min_size=1, max_size=9), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_order_does_not_matter_and_the_entropy_is_that_of_the_answers(letters, seed):
    batch = rollouts("".join(letters), "ab")
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    for link in (Empo(), Empo(form="shannon"), Empo(form="voting", empty="own")):
        assert torch.equal(link.reward(batch.take(order), {}), link.reward(batch, {})[order])
        assert torch.equal(link.keep(batch.take(order), {}), link.keep(batch, {})[order])
    found = Empo().clusters(batch)
    known = [None if letter == "-" else letter for letter in letters]
    assert float(found.entropy[0]) == pytest.approx(answer_entropy(known), abs=1e-12)
    assert 0 <= float(found.entropy[0]) <= math.log(len(letters)) + 1e-12
    assert float(-found.share[: len(letters)].log().mean()) == pytest.approx(float(found.entropy[0]), abs=1e-12)


# --- which groups train


@pytest.mark.parametrize("size", [2, 3, 6, 7, 8, 10, 14])
def test_all_distinct_and_unanimous_groups_do_not_train_whatever_rounding_says(size):
    """ln G and -G (1/G) ln (1/G) differ in the last bit for G = 3, 6, 7, 10, 14."""
    distinct, unanimous, mixed = "abcdefghijklmnop"[:size], "a" * size, "aab" + "a" * (size - 3)
    assert not Empo().keep(rollouts(distinct, unanimous), {}).any()
    assert len(set(paid(Empo(), distinct))) == len(set(paid(Empo(), unanimous))) == 1
    if size > 2:
        assert Empo().keep(rollouts(mixed, distinct), {}).tolist() == [True] * size + [False] * size


def test_the_thresholds_are_open_and_in_nats():
    batch = rollouts("aabb", "aaab", "aabc")  # 0.693, 0.562, 1.040
    assert Empo(low=0.6, high=0.7).keep(batch, {}).tolist() == [True] * 4 + [False] * 8
    assert Empo(low=math.log(2)).keep(batch, {}).tolist() == [False] * 8 + [True] * 4


# --- what is ascended


def expected_push(logits: torch.Tensor, cluster: torch.Tensor, form: str) -> torch.Tensor:
    """sum_o pi(o) reward(o) grad ln pi(o) at the exact cluster probabilities."""
    p = torch.softmax(logits, -1).detach()
    mass = torch.zeros_like(p).index_add(0, cluster, p)[cluster]
    exact = Clusters(mass, mass.amax().expand(mass.shape), mass, torch.zeros_like(cluster, dtype=torch.bool))
    reward = cluster_reward(exact, torch.zeros_like(cluster, dtype=torch.bool), form=form)
    return torch.autograd.grad((p * reward * torch.log_softmax(logits, -1)).sum(), logits)[0]


@given(seed=st.integers(0, 10_000), answers=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_collision_ascends_the_collision_probability_and_shannon_descends_semantic_entropy(seed, answers):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, generator=generator, dtype=torch.float64)
    cluster = torch.randint(0, answers, (9,), generator=generator)

    def masses(at):
        return torch.zeros(answers, dtype=torch.float64).index_add(0, cluster, torch.softmax(at, -1))

    potentials = {"collision": lambda at: 0.5 * masses(at).square().sum(), "shannon": lambda at: -torch.special.entr(masses(at)).sum()}
    eye = 1e-5 * torch.eye(9, dtype=torch.float64)
    for form, potential in potentials.items():
        slope = torch.stack([(potential(logits + step) - potential(logits - step)) / 2e-5 for step in eye])
        torch.testing.assert_close(expected_push(logits.clone().requires_grad_(True), cluster, form), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_response_votes_for_itself(size):
    """E[p_c(i) | c(i) = c] = ((G - 1) p_c + 1) / G, summed over all groups."""
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for others in itertools.product(range(3), repeat=size - 1):
        chance = p[list(others)].prod()
        for first in range(3):
            drawn = torch.tensor([first, *others])
            total[first] += chance * clusters_of(drawn, torch.zeros_like(drawn)).share[0]
    torch.testing.assert_close(total, ((size - 1) * p + 1) / size)


def test_the_flow_keeps_its_first_choice():
    """Right or wrong: the exact expected update only sharpens."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(6, generator=generator, dtype=torch.float64)
        first = int(logits.argmax())
        for _ in range(300):
            logits = logits + expected_push(logits.clone().requires_grad_(True), torch.arange(6), "collision")
        assert int(logits.argmax()) == first
        assert float(torch.softmax(logits, -1).amax()) > 0.9


# --- parameters


def test_switched_off_it_is_the_tasks_reward_and_keeps_every_group():
    batch = world(0).rollouts
    assert torch.equal(Empo(share=0.0, low=0.5).reward(batch, {}), batch.reward)
    assert Empo(share=0.0, low=0.5).keep(batch, {}).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Empo(share=20.0), r"Empo: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write share=0\.2\."),
        (lambda: Empo(low=-1.0), r"Empo: low must be at least 0\. Got -1\.0\. It is an entropy in nats\."),
        (lambda: Empo(low=1.0, high=0.5), r"Empo: high must be above low\. Got low=1\.0, high=0\.5\. None keeps all"),
        (lambda: Empo(rounds=-1), r"Empo: rounds must be at least 0\. Got -1\. 0 masks dropped groups"),
        (lambda: Empo(majority=2.0), r"Empo: majority must be a fraction"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("parameter", ["form", "empty", "extract"])
def test_an_unknown_rule_is_refused(parameter):
    with pytest.raises((ValueError, TypeError), match=parameter):
        Empo(**{parameter: "other"})
