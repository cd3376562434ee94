"""EARL: the gate by hand, its invariances, and what it leaves of the gradient."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import earl
from isentrope.control.papers.common_test import in_slices, shuffled, some_step
from isentrope.control.papers.earl import Earl, gate
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Rollouts, Step

KEPT, ALL = Earl(share=0.5), Earl(share=0.5, denominator="all")


def two(entropy: list[list[float]], **known) -> Step:
    value = torch.tensor(entropy, dtype=torch.float64)
    zeros = torch.zeros_like(value)
    given = {"old_log_probs": zeros, "advantage": torch.ones(len(entropy), 1), "signals": {"old.entropy": value}}
    return Step(Rollouts.of(torch.ones(value.shape, dtype=torch.bool), **(given | known)), zeros.clone().requires_grad_(True))


def slope(step: Step, link: Earl, objective: Objective | None = None) -> torch.Tensor:
    loss = policy_loss(step, link.recipe() if objective is None else objective, chain(link)).loss
    return torch.autograd.grad(loss, step.log_probs)[0]


# --- by hand


def gated_by_hand() -> None:
    """Each response keeps its own half, though every entropy of the second is above those of the first."""
    step = two([[0.1, 0.4, 0.3, 0.2], [9.0, 6.0, 7.0, 8.0]])
    kept = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(slope(step, KEPT), -kept / 4)
    torch.testing.assert_close(slope(step, ALL), -kept / 8)


def test_the_gate_is_of_each_response():
    gated_by_hand()


def test_keeping_the_certain_tokens_instead_is_noticed(monkeypatch):
    monkeypatch.setattr(earl, "gate", lambda entropy, *rest: gate(-entropy, rest[0], rest[1], -torch.inf))
    with pytest.raises(AssertionError):
        gated_by_hand()


def test_an_absolute_floor_drops_what_is_only_relatively_uncertain():
    step = two([[0.1, 0.4, 0.3, 0.2], [9.0, 6.0, 7.0, 8.0]])
    found = slope(step, replace(KEPT, least=0.35))
    torch.testing.assert_close(found, -torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]], dtype=torch.float64) / 3)


# --- exact statements


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1).map(lambda share: round(share, 3)))
@settings(max_examples=40, deadline=None)
def test_the_count_is_the_ceiling_of_the_share_and_only_the_order_counts(seed, share):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(6, 15, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 15, generator=generator) < 0.7
    keep = gate(entropy, mask, share)
    expected = [max(1, math.ceil(share * tokens - 1e-9)) if tokens else 0 for tokens in mask.sum(-1).tolist()]
    assert keep.sum(-1).tolist() == expected
    assert not (keep & ~mask).any()
    assert torch.equal(gate(entropy / math.log(2), mask, share), keep)
    assert torch.equal(gate(torch.exp(3 * entropy), mask, share), keep)


def test_ties_stay_and_one_token_stays():
    entropy = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 5.0, 5.0, 5.0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    assert gate(entropy, mask, 0.25).tolist() == [[True, True, True, False], [True, False, False, False]]


def test_where_responses_have_the_same_entropies_the_threshold_is_that_of_the_batch():
    row = torch.randperm(20, generator=torch.Generator().manual_seed(0)).double()
    entropy = torch.stack([row, row.flip(0), row.roll(3)])
    mask = torch.ones_like(entropy, dtype=torch.bool)
    together = gate(entropy.flatten()[None], mask.flatten()[None], 0.3).view(3, 20)
    assert torch.equal(gate(entropy, mask, 0.3), together)


def test_masked_tokens_have_no_policy_gradient_but_one_of_the_kl_term():
    step = two([[0.1, 0.4, 0.3, 0.2]], ref_log_probs=torch.full((1, 4), 0.5, dtype=torch.float64))
    objective = replace(Earl().recipe(), kl="k3", kl_coef=0.1)
    plain, anchored = slope(step, ALL), slope(step, ALL, objective)
    dropped = torch.tensor([[True, False, False, True]])
    assert not plain[dropped].any()
    kl = 0.1 * (1 - math.exp(0.5)) / 4
    torch.testing.assert_close(anchored - plain, torch.full((1, 4), kl, dtype=torch.float64))
    # under "kept" the term is divided by the kept tokens as well
    torch.testing.assert_close(slope(step, KEPT, objective) - slope(step, KEPT), torch.full((1, 4), 2 * kl, dtype=torch.float64))


@given(seed=st.integers(0, 200), share=st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_kept_division_makes_a_constant_loss_the_same_at_every_share(seed, share):
    link = Earl(share=share)
    step = some_step(link, seed)
    ones = torch.ones(16, 1, dtype=torch.float64)
    step = replace(step, rollouts=replace(step.rollouts, advantage=ones, old_log_probs=step.log_probs))
    loss = policy_loss(step, link.recipe(), chain(link))
    assert float(loss.loss) == pytest.approx(-1.0, rel=1e-6)
    short = policy_loss(step, link.recipe(), chain(replace(link, denominator="all"))).loss
    kept = 1 - loss.observed.touched["earl"].sum() / step.mask.sum()
    assert float(short) == pytest.approx(-float(kept), rel=1e-6)


@pytest.mark.parametrize("link", [KEPT, ALL, replace(KEPT, least=0.3)], ids=["kept", "all", "least"])
def test_slices_and_order_keep_the_same_tokens(link):
    step = some_step(link, seed=3)
    touched, whole = in_slices(link, step, 16)
    for size in (1, 8):
        again, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(again, touched)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 20.0}, r"Earl: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write share=0\.2\."),
        ({"share": 0.0}, r"Earl: share must be above 0\. Got 0: nothing would be trained\. To train on everything write share=1\."),
        ({"least": -1.0}, r"Earl: least must be at least 0\. Got -1\.0\. It is in nats; 0 asks nothing\."),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Earl(**wrong)
