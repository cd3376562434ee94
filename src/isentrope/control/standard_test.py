"""Interventions of no paper: by hand, exact gradients, limits, what is refused, and what the trainer's own options mean."""

import warnings
from dataclasses import replace
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers.common_test import recorded, some_step
from isentrope.control.registry import build, registry
from isentrope.control.stages import chain, policy_loss
from isentrope.control.standard import ClipHigher, DualClip, DynamicSampling, Overlong, ReferenceKL
from isentrope.control.step import Rollouts, Step
from isentrope.control.surrogates import Bounds

NAN = float("nan")


def ratios(values: list[float], advantage: float) -> tuple[torch.Tensor, Step]:
    """One response whose ratios are these."""
    leaf = torch.tensor([values], dtype=torch.float64).log().requires_grad_(True)
    mask = torch.ones(1, len(values), dtype=torch.bool)
    old = torch.zeros(1, len(values), dtype=torch.float64)
    return leaf, Step(Rollouts.of(mask, old_log_probs=old, advantage=torch.tensor([[advantage]], dtype=torch.float64)), leaf)


def trained(link, leaf: torch.Tensor, step: Step) -> list[bool]:
    """Which tokens have a gradient."""
    loss = policy_loss(step, Objective.named("grpo"), chain(link)).loss
    return (torch.autograd.grad(loss, leaf)[0][0] != 0).tolist()


# --- clips


def test_clip_higher_frees_the_upper_side_only():
    values = [0.5, 0.79, 0.81, 1.19, 1.21, 1.27, 1.29]
    assert trained(ClipHigher(), *ratios(values, 1.0)) == [True] * 6 + [False]
    assert trained(ClipHigher(), *ratios(values, -1.0)) == [False, False] + [True] * 5
    assert trained(ClipHigher(high=None, low=0.4), *ratios(values, -1.0)) == [False] + [True] * 6
    assert trained(ClipHigher(high=inf), *ratios(values, 1.0)) == [True] * 7


def test_clip_higher_on_grpo_is_dapos_window():
    step = some_step(ClipHigher())
    narrow = replace(Objective.named("dapo"), epsilon_high=0.2)
    assert torch.equal(policy_loss(step, narrow, chain(ClipHigher())).loss, policy_loss(step, Objective.named("dapo")).loss)
    result = policy_loss(step, narrow, chain(ClipHigher()))
    ratio = result.observed.ratio
    assert torch.equal(result.observed.touched["clip-higher"], step.mask & (step.advantage > 0) & (ratio > 1.2) & (ratio <= 1.28))


def test_dual_clip_by_hand():
    """Above cap with A < 0 there is no gradient and the loss is -A cap."""
    values = [0.9, 2.9, 3.1, 9.0]
    leaf, step = ratios(values, -2.0)
    assert trained(DualClip(), leaf, step) == [True, True, False, False]
    assert trained(DualClip(), *ratios([0.9, 1.1], 2.0)) == [True, True]
    loss = policy_loss(step, Objective.named("grpo"), chain(DualClip())).loss
    assert float(loss.detach()) == pytest.approx(2 * (0.9 + 2.9 + 3 + 3) / 4)


@given(seed=st.integers(0, 10_000), cap=st.floats(1.3, 4.0))
@settings(max_examples=40, deadline=None)
def test_dual_clip_is_trls_delta(seed, cap):
    """Beyond the window's upper side both bound the loss at -A cap where A < 0."""
    generator = torch.Generator().manual_seed(seed)
    ratio = torch.exp(torch.randn(4, 6, generator=generator, dtype=torch.float64))
    advantage = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    step = Step(Rollouts.of(torch.ones(4, 6, dtype=torch.bool), advantage=advantage, old_log_probs=torch.zeros(4, 6).double()), ratio.log())
    ours = policy_loss(step, Objective.named("grpo"), chain(DualClip(cap=cap))).loss
    torch.testing.assert_close(ours, policy_loss(step, replace(Objective.named("grpo"), delta=cap)).loss, rtol=1e-12, atol=1e-12)


def test_the_clips_leave_what_is_not_theirs():
    step = replace(some_step(DualClip()), bounds=Bounds(0.7, 1.3, cap=5.0, delta=9.0))
    step = replace(step, ratio=torch.ones_like(step.log_probs))
    assert ClipHigher(high=0.5).clip(step, None, {}) == Bounds(0.7, 1.5, 5.0, 9.0)
    assert DualClip(cap=2.0).clip(step, None, {}) == Bounds(0.7, 1.3, 2.0, 9.0)


# --- overlong


def responses(lengths: list[int], truncated: list[bool] | None = None) -> Rollouts:
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    cut = torch.zeros(len(lengths), dtype=torch.bool) if truncated is None else torch.tensor(truncated)
    return Rollouts.of(mask, reward=torch.ones(len(lengths), dtype=torch.float64), truncated=cut)


def test_overlong_is_the_recorded_one():
    case = recorded("grpo-family__verl-overlong")
    lengths, params = case.given["length"].int().tolist(), case.params
    rollouts = replace(responses(lengths), reward=case.given["reward"])
    link = Overlong(limit=params["L_max"], buffer=params["L_buffer"], factor=params["factor"], variant="code")
    case.close(link.reward(rollouts, {}), "reward")


def test_overlong_by_hand():
    rollouts = responses([10, 16, 18, 20, 24])
    assert Overlong(limit=20, buffer=4).reward(rollouts, {}).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert Overlong(limit=20, buffer=4, variant="code").reward(rollouts, {}).tolist() == [1.0, 1.0, 0.5, 0.0, -1.0]
    assert Overlong(limit=20, factor=2.0).reward(rollouts, {}).tolist() == [1.0, 1.0, 0.0, -1.0, -1.0]


def test_overlong_finds_the_length_at_which_responses_were_cut():
    assert Overlong(buffer=4).reward(responses([10, 18, 20], [False, False, True]), {}).tolist() == [1.0, 0.5, 0.0]
    assert Overlong(buffer=4).reward(responses([10, 18, 20]), {}).tolist() == [1.0, 1.0, 1.0]
    assert Overlong(limit="longest", buffer=4).reward(responses([10, 18, 20]), {}).tolist() == [1.0, 0.5, 0.0]


def test_overlong_counts_all_text_and_leaves_unscorable_rewards():
    rollouts = responses([20, 18])
    rollouts = replace(rollouts, trained_mask=rollouts.trained_mask & (torch.arange(20) > 10), reward=torch.tensor([NAN, 1.0]))
    found = Overlong(limit=20, buffer=4).reward(rollouts, {})
    assert found[0].isnan()
    assert found[1] == 0.5


# --- dynamic sampling


def test_dynamic_sampling_keeps_mixed_groups():
    group, reward = torch.tensor([1, 1, 2, 2, 3, 3]), torch.tensor([0.0, 1.0, 1.0, 1.0, 0.2, 0.3])
    correct = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    rollouts = Rollouts.of(torch.ones(6, 2, dtype=torch.bool), group=group, reward=reward, correct=correct)
    assert DynamicSampling().keep(rollouts, {}).tolist() == [True, True, False, False, True, True]
    assert DynamicSampling(of="correct").keep(rollouts, {}).tolist() == [True, True, False, False, False, False]
    assert DynamicSampling(spread=-1).keep(replace(rollouts, reward=reward * NAN), {}).all()


# --- reference KL


def two_policies(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, ref = torch.randn(2, 7, generator=generator, dtype=torch.float64).unbind()
    return logits.requires_grad_(True), ref


@pytest.mark.parametrize(("estimator", "forward"), [("k1", None), ("k2", False), ("k3", True)])
def test_the_mean_gradient_of_each_estimator_is_the_one_the_docstring_names(estimator, forward):
    """Exact, by summing over the vocabulary with the policy's probabilities as weights of the samples."""
    logits, ref = two_policies()
    log_p, log_q = torch.log_softmax(logits, 0), torch.log_softmax(ref, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        link = ReferenceKL(coef=1.0, estimator=estimator)
    rollouts = Rollouts.of(torch.ones(1, 7, dtype=torch.bool), ref_log_probs=log_q[None], old_log_probs=log_p.detach()[None])
    value = link.regularise(Step(rollouts, log_p[None]), None, {}).token
    assert value is not None
    ours = torch.autograd.grad((log_p.detach().exp() * value[0]).sum(), logits, retain_graph=True)[0]
    reverse = (log_p.exp() * (log_p - log_q)).sum() if forward is False else (log_q.exp() * (log_q - log_p)).sum()
    exact = torch.zeros_like(ours) if forward is None else torch.autograd.grad(reverse, logits)[0]
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)


def test_k3_is_the_kl_of_the_objective():
    step = some_step(ReferenceKL())
    bare = Objective.named("grpo")
    with_kl = replace(bare, kl="k3", kl_coef=0.1)
    ours = policy_loss(step, bare, chain(ReferenceKL(coef=0.1, estimator="k3"))).loss
    torch.testing.assert_close(ours, policy_loss(step, with_kl).loss, rtol=1e-12, atol=1e-12)


def test_within_the_free_distance_nothing_is_paid_and_beyond_it_the_rest():
    leaf, step = ratios([1.0, 1.05, 2.0, 0.5], 0.0)
    penalty = ReferenceKL(coef=1.0, against="old", free=0.1).regularise(step, None, {})
    assert penalty.token is not None
    assert penalty.touched is not None
    assert penalty.touched.tolist() == [[False, False, True, True]]
    rest = torch.tensor(2.0).double().log() - 0.1
    torch.testing.assert_close(penalty.token[0], torch.stack([0 * rest, 0 * rest, rest**2 / 2, rest**2 / 2]))
    slope = torch.autograd.grad(penalty.token.sum(), leaf)[0]
    torch.testing.assert_close(slope[0], torch.stack([0 * rest, 0 * rest, rest, -rest]))


def test_without_a_reference_the_way_out_is_named():
    step = some_step(ReferenceKL())
    step = replace(step, rollouts=replace(step.rollouts, ref_log_probs=None))
    with pytest.raises(ValueError, match=r"no log-probs of a reference.*trl\.beta=1e-6.*kl: null"):
        policy_loss(step, Objective.named("grpo"), chain(ReferenceKL()))


# --- all of them


def test_useless_and_wrong_settings_are_told():
    with pytest.warns(UserWarning, match="k1 in the loss has mean gradient 0"):
        ReferenceKL(estimator="k1")
    for wrong, words in (
        (lambda: ClipHigher(high=-0.1), r"ClipHigher: high must be at least 0\. Got -0\.1"),
        (lambda: DualClip(cap=0.9), r"DualClip: cap must be above 1.*Got 0\.9"),
        (lambda: Overlong(limit=10, buffer=20), r"Overlong: limit must be at least 20\. Got 10"),
        (lambda: Overlong(limit="max"), r"limit must be one of cut, longest|max"),  # type: ignore[arg-type]
        (lambda: Overlong(buffer=0), r"Overlong: buffer must be at least 1"),
        (lambda: DynamicSampling(rounds=-1), r"DynamicSampling: rounds must be at least 0"),
        (lambda: ReferenceKL(coef=-1.0), r"ReferenceKL: coef must be at least 0"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            wrong()


@pytest.mark.parametrize(
    ("link", "form", "why"),
    [
        (ClipHigher(), "sapo", "'sapo' takes no such bound"),
        (ClipHigher(), "gpg", "'reinforce' takes no such bound"),
        (DualClip(), "cispo", "'cispo' takes no such bound"),
        (DualClip(), "gmpo", "'gmpo' takes no such bound"),
        (ClipHigher(), "cispo", ""),
        (DualClip(), "dapo", ""),
    ],
)
def test_a_bound_that_the_objective_clips_away_is_known_and_indeed_changes_nothing(link, form, why):
    objective = Objective.named(form)
    step = ratios([0.2, 0.9, 4.0, 1.3], -1.0)[1]
    assert why in link.idle_under(objective)
    assert bool(link.idle_under(objective)) == bool(why)
    assert (policy_loss(step, objective, chain(link)).loss == policy_loss(step, objective).loss) == bool(why)
    assert link.neutral().idle_under(objective) == ""


@pytest.mark.parametrize("link", [ClipHigher(), DualClip(), ReferenceKL(against="old")])
def test_what_needs_a_ratio_does_nothing_at_ratio_one(link):
    """Loss and gradient are the objective's own, so a run with one update per generation is told."""
    objective, (leaf, step) = Objective.named("dapo"), ratios([1.0, 1.0, 1.0], -1.0)
    ours, theirs = (torch.autograd.grad(policy_loss(step, objective, control).loss, leaf)[0] for control in (chain(link), chain()))
    assert torch.equal(ours, theirs)
    assert link.idle_under(objective, on_policy=True)
    assert not link.idle_under(objective)


def test_they_are_built_by_name():
    names = ("clip-higher", "dual-clip", "dynamic-sampling", "entropy-band", "entropy-bonus", "overlong", "reference-kl")
    assert set(names) <= set(registry())
    built = build(["clip-cov", {"name": "entropy-band", "low": 0.3}, "dynamic-sampling"])
    assert [link.name for link in built.links] == ["clip-cov", "entropy-band", "dynamic-sampling"]
    assert all(registry()[name].slug is None for name in names)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("clip-higher", "epsilon_high", 0.28), ("clip-higher", "epsilon", 0.1), ("dual-clip", "delta", 3.0),
        ("overlong", "mask_truncated_completions", True), ("entropy-bonus", "entropy_coef", 0.01),
    ],
)  # fmt: skip
def test_an_option_of_the_trainer_that_means_the_same_is_refused(name, option, value):
    carried = pytest.importorskip("isentrope.train.carried")
    with pytest.raises(carried.UserError, match=rf"trl\.{option}=.*'{name}' mean the same"):
        carried.refuse_same_meaning({option: value}, build([name]))
