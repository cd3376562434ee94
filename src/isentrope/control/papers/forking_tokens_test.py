"""Forking tokens: recorded masks and TRL's loss, the threshold by hand, and the sheet's exact statements."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import forking_tokens
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.forking_tokens import ForkingTokens, entropy_threshold, top_entropy
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Normaliser, Rollouts, Step

PAPER = ForkingTokens(share=0.3)
CODE = ForkingTokens(share=0.3, variant="code")


# --- recorded outputs


@pytest.mark.parametrize("name", ["trl-high-entropy-mask", "trl-high-entropy-mask-degenerate"])
def test_the_mask_is_trls(name):
    case = recorded(f"forking-tokens__{name}")
    entropy, mask = case.given["entropy"], case.given["mask"]
    for index, level in enumerate(case.params["threshold_quantiles"]):
        assert torch.equal(top_entropy(entropy, mask, level), case.found[f"mask_{index}"].bool())
    if "mask_zeros" in case.found:
        assert torch.equal(top_entropy(case.given["entropy_with_zeros"], mask, 0.5), case.found["mask_zeros"].bool())
        assert torch.equal(top_entropy(entropy, torch.zeros_like(mask), 0.5), case.found["mask_empty"].bool())


def trl_loss(case) -> tuple[torch.Tensor, Step]:
    given, params = case.given, case.params
    leaf = given["logp"].clone().requires_grad_(True)
    known = {"old_log_probs": given["old_logp"], "ref_log_probs": given["ref_logp"], "advantage": given["adv_seq"][:, None]}
    normaliser = Normaliser(token_divisor=float(params["num_items_in_batch"]))
    return leaf, Step(Rollouts.of(given["mask"], **known), leaf, {"current.entropy": given["entropy"]}, normaliser=normaliser)


@pytest.mark.parametrize("name", ["trl-losses", "trl-losses-degenerate"])
def test_the_code_variant_is_trls_loss_and_leaves_the_kl_term_alone(name):
    case = recorded(f"grpo-family__{name}")
    params = case.params
    objective = Objective.trl(
        "dapo", epsilon=params["eps_low"], epsilon_high=params["eps_high"], beta=params["beta"], use_bias_correction_kl=False
    )
    leaf, step = trl_loss(case)
    loss = policy_loss(step, objective, chain(ForkingTokens(share=params["top_entropy_fraction"], variant="code"))).loss
    case.close(loss, "loss_dapo_top_entropy")
    case.close(torch.autograd.grad(loss, leaf)[0], "grad_logp_dapo_top_entropy")


def test_keeping_the_certain_tokens_instead_is_noticed(monkeypatch):
    test_the_mask_is_trls("trl-high-entropy-mask")
    monkeypatch.setattr(forking_tokens, "quantile", lambda value, mask, level: torch.quantile(-value[mask].float(), level))
    with pytest.raises(AssertionError):
        test_the_mask_is_trls("trl-high-entropy-mask")


# --- by hand


def line(entropy: list[float]) -> Step:
    value = torch.tensor([entropy])
    mask = torch.ones(value.shape, dtype=torch.bool)
    log_probs = torch.zeros(value.shape, requires_grad=True)
    return Step(Rollouts.of(mask, old_log_probs=torch.zeros(value.shape), advantage=torch.ones(1, 1)), log_probs, {"current.entropy": value})


@pytest.mark.parametrize(("variant", "slope"), [("paper", -0.5), ("code", -0.2)])
def test_two_of_five_by_hand(variant, slope):
    """Level 0.6 of five sorted values is rank 2.4: the threshold is 1.4 between 1 and 2, two tokens stay, over 2 or over 5 tokens."""
    step = line([0.0, 2.0, 0.5, 3.0, 1.0])
    assert float(entropy_threshold(step.signal("current.entropy"), step.mask, 0.6)) == pytest.approx(1.4, abs=1e-6)
    loss = policy_loss(step, PAPER.recipe(), chain(ForkingTokens(share=0.4, variant=variant))).loss
    (gradient,) = torch.autograd.grad(loss, step.log_probs)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, slope, 0.0, slope, 0.0]]))


def test_where_the_quantile_is_zero_everything_is_kept():
    step = line([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0])
    assert top_entropy(step.signal("current.entropy"), step.mask, 0.5).all()


# --- exact statements


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_all_tokens_is_dapo_bit_for_bit(variant):
    link = ForkingTokens(share=1.0, variant=variant)
    step = some_step(link, differentiable=True)
    ours, base = policy_loss(step, link.recipe(), chain(link)).loss, policy_loss(step, link.recipe()).loss
    assert torch.equal(ours, base)
    assert torch.equal(*(torch.autograd.grad(loss, step.log_probs, retain_graph=True)[0] for loss in (ours, base)))


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1).map(lambda share: round(share, 6)))
@settings(max_examples=40, deadline=None)
def test_the_kept_share_is_the_share_and_only_the_order_counts(seed, share):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(60, generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.8
    entropy = (0.01 + order).float().view(5, 12) / 30
    keep, count = top_entropy(entropy, mask, 1 - share), int(mask.sum())
    level = float(torch.tensor(1 - share, dtype=torch.float32) * (count - 1))
    assert int(keep.sum()) == count - math.ceil(level)
    assert not (keep & ~mask).any()
    if abs(level - round(level)) > 1e-3:  # on a token the rounding of the map decides; between two it cannot
        assert torch.equal(top_entropy(entropy**3 + entropy, mask, 1 - share), keep)


@given(seed=st.integers(0, 200), share=st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_the_papers_divisor_makes_a_constant_loss_the_same_at_every_share(seed, share):
    link = ForkingTokens(share=share)
    step = some_step(link, seed)
    ones = torch.ones(16, 1, dtype=torch.float64)
    step = replace(step, rollouts=replace(step.rollouts, advantage=ones, old_log_probs=step.log_probs))
    assert float(policy_loss(step, link.recipe(), chain(link)).loss) == pytest.approx(-1.0, rel=1e-6)


def test_the_code_is_smaller_by_the_kept_share():
    step = some_step(PAPER)
    paper, code = (policy_loss(step, link.recipe(), chain(link)) for link in (PAPER, CODE))
    removed = code.observed.touched["forking-tokens"].sum()
    kept = 1 - removed / step.mask.sum()
    torch.testing.assert_close(code.loss, paper.loss * kept.double(), rtol=1e-6, atol=0)


# --- the whole update


@pytest.mark.parametrize("link", [PAPER, CODE], ids=["paper", "code"])
def test_slices_and_order_keep_the_same_tokens_and_losses_add_up(link):
    step = some_step(link, seed=3)
    whole, results = in_slices(link, step, 16)
    for size in (1, 2, 8):
        touched, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(touched, whole)
        torch.testing.assert_close(sum(part.loss for part in parts), results[0].loss, rtol=1e-9, atol=1e-15)


def test_micro_batch_scope_takes_the_quantile_of_its_slice():
    local = replace(CODE, scope="micro-batch")
    step = some_step(local, seed=3)
    touched, _ = in_slices(local, step, 1)
    assert not torch.equal(touched, in_slices(CODE, step, 1)[0])
    order = torch.argsort(step.rollouts.row_id)
    entropy, mask = step.signal("current.entropy")[order], step.mask[order]
    rows = torch.stack([top_entropy(entropy[[row]], mask[[row]], 0.7)[0] for row in range(16)])
    assert torch.equal(touched, mask & ~rows)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (20.0, r"ForkingTokens: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write share=0\.2\."),
        (0.0, r"ForkingTokens: share must be above 0\. Got 0: nothing would be trained\. To train on everything write share=1\."),
    ],
)
def test_wrong_shares_are_refused(share, message):
    with pytest.raises(ValueError, match=message):
        ForkingTokens(share=share)
