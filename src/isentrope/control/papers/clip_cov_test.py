"""Clip-Cov and KL-Cov: recorded outputs, the statistic worked by hand, and the sheet's exact statements."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import clip_cov
from isentrope.control.papers.clip_cov import ClipCov, KLCov, clip_cov_candidates, covariance, ppo_clipped, quota
from isentrope.control.papers.common_test import in_slices, recorded, reproduce, shuffled, some_step
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, Step
from isentrope.control.surrogates import Bounds

CLIP = ClipCov(ratio=0.1, low=0.3, high=5.0)
KL = KLCov(ratio=0.1)
VERL = ["all-candidates", "none", "one"]


def by_hand() -> Step:
    """Two responses of two tokens: mean log p = -2.5, mean A = 0, C = (1.5, 0.5, 0.5, 1.5); ratios 1."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    log_probs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    return Step(Rollouts.of(mask, old_log_probs=log_probs.detach().clone(), advantage=advantage), log_probs)


# --- recorded outputs


@pytest.mark.parametrize("name", VERL)
def test_clip_cov_equals_verl(name):
    case = recorded(f"clip-cov__verl-clip-cov-{name}")
    given, params = case.given, case.params
    case.close(covariance(given["logp"], given["adv"], given["mask"]), "cov")
    result = reproduce(ClipCov(params["clip_cov_ratio"], params["cov_lb"], params["cov_ub"]), case)
    chosen = result.observed.touched["clip-cov"]
    assert torch.equal(chosen, case.found["selected"].bool())
    case.close(chosen.sum() / given["mask"].sum(), "clipfrac")


def test_clip_cov_equals_the_original_repository():
    case = recorded("clip-cov__prime-clip-cov")
    result = reproduce(ClipCov(case.params["clip_ratio"], case.params["lb"], case.params["ub"]), case)
    case.close(result.observed.touched["clip-cov"].sum() / case.given["mask"].sum(), "clipfrac")


@pytest.mark.parametrize(
    ("name", "share"),
    [("verl-kl-cov", "kl_cov_ratio_fraction"), ("verl-kl-cov-floor-one", "kl_cov_ratio_fraction"), ("prime-kl-cov", "k_percent")],
)
def test_kl_cov_equals_verl_and_the_original_repository(name, share):
    case = recorded(f"clip-cov__{name}")
    ratio = case.params[share] / (100 if share == "k_percent" else 1)
    result = reproduce(KLCov(ratio, case.params["ppo_kl_coef"]), case)
    assert torch.equal(result.observed.touched["kl-cov"], case.found["selected"].bool())


@pytest.mark.parametrize(("link", "name"), [(ClipCov(0.5, 1.0, 5.0), "verl-clip-cov-all-candidates"), (KLCov(0.1), "verl-kl-cov")])
def test_the_sign_of_the_covariance_matters(link, name, monkeypatch):
    case = recorded(f"clip-cov__{name}")
    reproduce(link, case)
    monkeypatch.setattr(clip_cov, "covariance", lambda *values: -covariance(*values))
    with pytest.raises(AssertionError, match="apart"):
        reproduce(link, case)


# --- by hand


def test_the_statistic_by_hand():
    step = by_hand()
    found = covariance(step.log_probs, step.advantage, step.mask)
    assert torch.equal(found, torch.tensor([[1.5, 0.5], [0.5, 1.5]], dtype=torch.float64))
    assert not found.requires_grad


def test_clip_cov_by_hand():
    """Both tokens of C = 1.5 are candidates, K = 2: loss -(0 + 1 - 1 + 0) / 4 over all four tokens."""
    step = by_hand()
    result = policy_loss(step, ClipCov().recipe(), chain(ClipCov(ratio=0.5)))
    assert torch.equal(result.observed.touched["clip-cov"], torch.tensor([[True, False], [False, True]]))
    (gradient,) = torch.autograd.grad(result.loss, step.log_probs)
    assert torch.equal(gradient, torch.tensor([[0.0, -0.25], [0.25, 0.0]], dtype=torch.float64))


def test_kl_cov_by_hand():
    """One token of the largest C, its log p 0.1 above the old: its slope is that of -r A plus 2, over four tokens."""
    step = by_hand()
    old = step.log_probs.detach() + torch.tensor([[-0.1, 0.0], [0.0, 0.3]])
    step = replace(step, rollouts=replace(step.rollouts, old_log_probs=old, advantage=torch.tensor([[3.0], [-1.0]], dtype=torch.float64)))
    result = policy_loss(step, KLCov().recipe(), chain(KLCov(ratio=0.25, beta=2.0)))
    assert torch.equal(result.observed.touched["kl-cov"], torch.tensor([[True, False], [False, False]]))
    (gradient,) = torch.autograd.grad(result.loss, step.log_probs)
    ratio = torch.exp(step.log_probs.detach() - old)
    expected = (-ratio * step.advantage + torch.tensor([[2.0, 0.0], [0.0, 0.0]])) / 4
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


# --- exact statements


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3), scale=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_the_mean_is_the_covariance_and_shifts_change_nothing(seed, shift, scale):
    step = some_step(CLIP, seed)
    mask, log_probs, advantage = step.mask, step.log_probs, step.rollouts.token_advantage()
    found = covariance(log_probs, advantage, mask)
    both = torch.stack([log_probs[mask], advantage[mask]])
    torch.testing.assert_close(found[mask].mean(), torch.cov(both, correction=0)[0, 1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance(log_probs + shift, advantage - shift, mask), found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance(log_probs, scale * advantage, mask), scale * found, rtol=1e-9, atol=1e-9)


def test_no_share_switches_the_code_off_but_the_paper():
    assert [quota(0.0, 106, variant) for variant in ("paper", "code")] == [0, 1]
    assert [quota(0.1, 106, variant) for variant in ("paper", "code")] == [10, 10]


def test_the_window_is_open_in_the_code_and_closed_in_the_paper():
    found = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    allowed = torch.ones(1, 3, dtype=torch.bool)
    assert clip_cov_candidates(found, allowed, 1.0, 5.0, "code").tolist() == [[False, True, False]]
    assert clip_cov_candidates(found, allowed, 1.0, 5.0, "paper").tolist() == [[True, True, True]]


def test_tokens_that_ppo_stopped_are_no_candidates():
    ratio = torch.tensor([[0.5, 0.5, 1.0, 1.5, 1.5]])
    advantage = torch.tensor([[-1.0, 1.0, -1.0, 1.0, -1.0]])
    assert ppo_clipped(ratio, advantage, Bounds(0.8, 1.2)).tolist() == [[True, False, False, True, False]]
    assert ppo_clipped(ratio, advantage, Bounds(None, 1.2)).tolist() == [[False, False, False, True, False]]
    assert not ppo_clipped(ratio, advantage, Bounds()).any()
    link = replace(CLIP, ratio=1.0, low=-100.0, high=100.0)
    step, narrow = some_step(link), Objective.named("dapo")
    result = policy_loss(step, narrow, chain(link))
    stopped = ppo_clipped(result.observed.ratio, step.advantage, narrow.bounds()) & step.mask
    assert stopped.any()
    assert torch.equal(result.observed.touched["clip-cov"], step.mask & ~stopped)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_chosen_tokens_have_no_gradient_and_the_others_keep_theirs(variant):
    link = replace(CLIP, variant=variant)
    step = some_step(link, differentiable=True)
    result, base = policy_loss(step, link.recipe(), chain(link)), policy_loss(step, link.recipe())
    chosen = result.observed.touched["clip-cov"]
    assert int(chosen.sum()) == quota(link.ratio, int(step.mask.sum()), variant)
    ours, theirs = (torch.autograd.grad(one.loss, step.log_probs, retain_graph=True)[0] for one in (result, base))
    assert torch.equal(ours, torch.where(chosen, 0.0, theirs))
    assert (theirs[chosen] != 0).all()


def test_without_a_candidate_it_is_the_objective():
    link = replace(CLIP, low=1e3, high=2e3)
    step = some_step(link)
    assert torch.equal(policy_loss(step, link.recipe(), chain(link)).loss, policy_loss(step, link.recipe()).loss)


def test_kl_cov_without_penalty_is_the_unclipped_policy_gradient():
    step = some_step(KL)
    loss = policy_loss(step, KL.recipe(), chain(replace(KL, beta=0.0))).loss
    ratio = torch.exp(step.log_probs - step.old_log_probs)
    torch.testing.assert_close(loss, -(ratio * step.advantage)[step.mask].mean(), rtol=1e-12, atol=0)


def test_kl_cov_takes_the_clip_away_from_any_objective():
    step = some_step(KL)
    clipped, free = (policy_loss(step, objective, chain(KL)).loss for objective in (Objective.named("dapo"), KL.recipe()))
    assert torch.equal(clipped, free)


@given(seed=st.integers(0, 500))
@settings(max_examples=15, deadline=None)
def test_below_0404_nats_only_wrong_answers_are_clipped(seed):
    """Eight responses, one of them right (the largest advantage there is, 2.475 = 7 / 8^0.5): with a mean surprise below 1 / 2.475 nats
    no token of the right one can reach C = 1."""
    generator = torch.Generator().manual_seed(seed)
    surprise = torch.rand(8, 12, generator=generator, dtype=torch.float64) ** 12
    surprise = surprise * 0.403 / surprise.mean()
    advantage = torch.full((8, 1), -1.0, dtype=torch.float64) / 8**0.5
    advantage[3] = 7 / 8**0.5
    step = Step(Rollouts.of(torch.ones(8, 12, dtype=torch.bool), old_log_probs=-surprise, advantage=advantage), -surprise)
    link = ClipCov(ratio=1.0)
    touched = policy_loss(step, link.recipe(), chain(link)).observed.touched["clip-cov"]
    assert not touched[3].any()
    stats = survey(step, link.recipe(), chain(link), ({},), RowRng()).links[0]
    assert float(stats.scalars["chosen/negative_share"]) == (1.0 if touched.any() else 0.0)


# --- the whole update


@pytest.mark.parametrize("link", [CLIP, KL, replace(CLIP, variant="paper")], ids=["clip-cov", "kl-cov", "clip-cov-paper"])
def test_slices_and_order_choose_the_same_tokens(link):
    step = some_step(link, seed=3)
    whole, _ = in_slices(link, step, 16)
    assert whole.any()
    for size in (1, 2, 8):
        assert torch.equal(in_slices(link, shuffled(step, size), size)[0], whole)


def test_other_keys_draw_other_tokens_of_the_same_number():
    step = some_step(CLIP)
    draws = [in_slices(CLIP, step, 16, rng=RowRng(step=step_id))[0] for step_id in range(5)]
    assert len({int(draw.sum()) for draw in draws}) == 1
    assert any(not torch.equal(draw, draws[0]) for draw in draws[1:])


def test_micro_batch_scope_takes_its_own_means():
    """One response with one advantage has C = 0: Clip-Cov is off, as in the released code."""
    step = some_step(CLIP)
    local = replace(CLIP, scope="micro-batch")
    assert in_slices(CLIP, step, 1)[0].any()
    assert not in_slices(local, step, 1)[0].any()


def test_a_tie_of_all_tokens_is_drawn_by_keys():
    """Equal advantages make every C equal up to rounding of the mean; exactly equal where they are 0."""
    step = some_step(KL)
    step = replace(step, rollouts=replace(step.rollouts, advantage=torch.zeros(16, 1, dtype=torch.float64)))
    first, second = (in_slices(KL, step, 16, rng=RowRng(step=step_id))[0] for step_id in (1, 2))
    assert int(first.sum()) == int(second.sum()) == quota(KL.ratio, int(step.mask.sum()))
    assert not torch.equal(first, second)
    assert torch.equal(in_slices(KL, shuffled(step, 5), 4, rng=RowRng(step=1))[0], first)


# --- KL-Cov needs ratios


def on_policy(step: Step) -> Step:
    return replace(step, rollouts=replace(step.rollouts, old_log_probs=step.log_probs.detach()))


def played(link: KLCov, steps: list[Step]) -> dict:
    control, state = chain(link), (link.init(),)
    for step in steps:
        stats = survey(step, link.recipe(), control, state, RowRng())
        state = advance(control, state, stats, Progress())
    return dict(state[0])


def test_at_ratio_one_kl_cov_has_no_gradient_and_warns_once():
    step = some_step(KL, differentiable=True)
    still = on_policy(step)
    ours, base = (policy_loss(still, KL.recipe(), control).loss for control in (chain(KL), chain(KL.neutral())))
    ours, base = (torch.autograd.grad(loss, step.log_probs, retain_graph=True)[0] for loss in (ours, base))
    assert torch.equal(ours, base)
    with pytest.warns(UserWarning, match="several updates per rollout") as caught:
        assert played(KL, [still] * 4) == {"on_policy": 4}
    assert len(caught) == 1


def test_ratios_that_leave_one_do_not_warn():
    moved, still = some_step(KL), on_policy(some_step(KL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert played(KL, [still, moved, still, moved]) == {"on_policy": 0}
        assert played(KL.neutral(), [still, still]) == {"on_policy": 2}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClipCov(ratio=20.0), r"ClipCov: ratio must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write ratio=0\.2\."),
        (lambda: ClipCov(low=2.0, high=1.0), r"ClipCov: high must be at least 2\. Got 1\.0\. The window is low\.\.high; low is 2\.0\."),
        (lambda: ClipCov(scope="group"), r"ClipCov: scope must be one of update, micro-batch\. Got 'group'"),
        (lambda: KLCov(beta=-1.0), r"KLCov: beta must be at least 0\. Got -1\.0\. 0 switches the penalty off\."),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="variant"):
        ClipCov(variant="fixed")
