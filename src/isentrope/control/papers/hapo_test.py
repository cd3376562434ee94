"""HAPO: recorded outputs, the signal by hand, and the sheet's exact statements for each of its four parts."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import hapo
from isentrope.control.papers.common_test import in_slices, recorded, reproduce, shuffled, some_step
from isentrope.control.papers.hapo import Hapo, adaptive_temperature, clip_widths, entropy_signal, group_advantage, redistribution
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, Step, micro_batches
from isentrope.testing.world import world

LINK = Hapo()
STATISTICS = ("pivot", "sigma", "scale_pos", "scale_neg")


# --- recorded outputs


@pytest.mark.parametrize("name", ["entropy-signal-as-released", "entropy-signal-as-released-degenerate"])
def test_the_signal_is_the_released_one_and_ours_its_mirror_below_the_pivot(name):
    case = recorded(f"hapo__{name}")
    entropy, mask = case.given["entropy"], case.given["mask"]
    released = entropy_signal(entropy, mask, case.params["pivot"], released=True)
    for ours, theirs in (("h", "h"), ("pivot", "pivot_value"), ("sigma", "sigma"), ("scale_pos", "scale_pos"), ("scale_neg", "scale_neg")):
        case.close(released.__dict__[ours], theirs)
    fixed = entropy_signal(entropy, mask, case.params["pivot"])
    below = entropy.clamp(min=1e-8).log() <= fixed.pivot
    assert below.any()
    assert torch.equal(fixed.h, torch.where(below, -released.h, released.h))


def test_the_sampling_temperature_is_the_released_one():
    case = recorded("hapo__adaptive-temperature")
    given, params = case.given, case.params
    known = {"pivot": params["pivot_value"], "sigma": params["sigma"], "scale_pos": params["scale_pos"]}
    case.close(adaptive_temperature(given["logits"], given["T0"], params["tau"], **known, scale_neg=params["scale_neg"]), "temp")
    case.close(adaptive_temperature(given["logits"], given["T0"], params["tau"], **known, scale_neg=-params["scale_neg"]), "temp_as_released")


@pytest.mark.parametrize("name", ["group-advantage", "group-advantage-fallback"])
def test_the_group_advantage_is_the_released_one(name):
    case = recorded(f"hapo__{name}")
    given, mask = case.given, case.given["mask"]
    for scale, output in ((True, "adv"), (False, "adv_nostd")):
        found = group_advantage(given["token_rewards"].sum(-1), mask.sum(-1), given["group"], scale=scale, epsilon=case.params["epsilon"])
        case.close(found[:, None].expand(mask.shape), output, mask)


def test_widths_and_redistribution_are_the_released_ones():
    case = recorded("hapo__adaptive-clip-and-advantage")
    given, params = case.given, case.params
    low, high = clip_widths(given["h"], params["eps_low"], params["eps_high"], params["clip_alpha"])
    case.close(low, "width_low")
    case.close(high, "width_high")
    case.close(given["adv"] * redistribution(given["h"], given["ratio"], low, high, params["adv_beta"]), "adv_out")


def released(case) -> Hapo:
    params = case.params
    alpha = params["clip_alpha"] if params["adaptive_clip"] else 0.0
    beta = params["adv_beta"] if params["adaptive_advantage"] else 0.0
    return Hapo(pivot=params["pivot"], alpha=alpha, beta=beta, variant="code")


@pytest.mark.parametrize("name", ["adaptive", "adv-only", "clip-only"])
def test_the_loss_is_the_released_one(name):
    case = recorded(f"hapo__loss-as-released-{name}")
    reproduce(released(case), case)


def test_another_sign_of_h_is_noticed(monkeypatch):
    case = recorded("hapo__loss-as-released-adaptive")

    def mirrored(*values):
        found = entropy_signal(*values)
        return replace(found, h=-found.h)

    monkeypatch.setattr(hapo, "entropy_signal", mirrored)
    with pytest.raises(AssertionError, match="apart"):
        reproduce(released(case), case)


# --- the signal


def test_the_signal_by_hand():
    """ln H = (-2, -1, 0, 1) and a pivot of the third of four: m = 0, sigma^2 = (4 + 1 + 0 + 1) / 4; h = (-1, -1/2, 0, 1)."""
    entropy = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 30.0]], dtype=torch.float64).exp()
    mask = torch.tensor([[True, True, True, True, False]])
    found = entropy_signal(entropy, mask, 2 / 3)
    torch.testing.assert_close(found.h[mask], torch.tensor([-1.0, -0.5, 0.0, 1.0], dtype=torch.float64))
    assert float(found.pivot) == pytest.approx(0.0, abs=1e-12)
    assert float(found.sigma) == pytest.approx(1.5**0.5)
    assert float(found.scale_pos) == pytest.approx(1.5**0.5)
    assert float(found.scale_neg) == pytest.approx(1.5**0.5 / 2)
    assert float(entropy_signal(entropy, mask, 2 / 3, released=True).scale_neg) == pytest.approx(-(1.5**0.5) / 2)


@given(seed=st.integers(0, 1000), quantile=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_signal_fills_its_range_and_changes_sign_at_the_pivot(seed, quantile):
    step = some_step(LINK, seed)
    entropy, mask = step.signal("current.entropy"), step.mask
    h, log_entropy = entropy_signal(entropy, mask, quantile).h[mask], entropy[mask].clamp(min=1e-8).log()
    pivot = log_entropy.sort().values[round(quantile * (len(log_entropy) - 1))]
    assert h.abs().max() <= 1 + 1e-12
    assert ((h > 0) == (log_entropy > pivot)).all()
    if (h > 0).any():
        assert float(h.max()) == pytest.approx(1)
    if (h < 0).any():
        assert float(h.min()) == pytest.approx(-1)
    assert (entropy_signal(entropy, mask, quantile, released=True).h[mask] >= 0).all()


def test_equal_entropies_and_no_token_give_no_signal():
    entropy = torch.full((2, 3), 0.7, dtype=torch.float64)
    assert (entropy_signal(entropy, torch.ones(2, 3, dtype=torch.bool)).h == 0).all()
    nothing = entropy_signal(entropy, torch.zeros(2, 3, dtype=torch.bool))
    assert (nothing.h == 0).all()
    assert float(nothing.sigma) == 0


# --- sampling


@given(seed=st.integers(0, 1000), tau=st.floats(0, 0.9), base=st.floats(0.3, 2), released=st.booleans())
@settings(max_examples=30, deadline=None)
def test_temperatures_stay_within_tau_of_the_base(seed, tau, base, released):
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 6
    known = {"pivot": -0.5, "sigma": 1.3, "scale_pos": 0.9, "scale_neg": -0.4 if released else 0.4}
    found = adaptive_temperature(logits, base, tau, **known)
    assert (found >= base * (1 - tau) - 1e-12).all()
    assert (found <= base * (1 + tau) + 1e-12).all()


def test_flat_positions_are_sampled_hotter_and_peaked_ones_cooler_after_the_first_update():
    logits = torch.stack([torch.zeros(50), torch.cat([torch.tensor([9.0]), torch.zeros(49)])])
    state = {"pivot": 0.0, "sigma": 1.0, "scale_pos": 0.5, "scale_neg": 0.5}
    flat, peaked = LINK.temperature(logits, 1.0, state).tolist()
    assert 0.95 - 1e-6 <= peaked < 1 < flat <= 1.05 + 1e-6
    assert LINK.temperature(logits, 0.7, LINK.init()).tolist() == pytest.approx([0.7, 0.7])
    assert LINK.temperature(torch.full((1, 3), 1.0).index_fill(1, torch.tensor([2]), -torch.inf), 1.0, state).isfinite().all()


def test_the_state_is_the_statistics_of_the_last_update_with_tokens():
    step = some_step(LINK)
    stats = survey(step, LINK.recipe(), chain(LINK), (LINK.init(),), RowRng())
    found = entropy_signal(step.signal("current.entropy"), step.mask)
    (state,) = advance(chain(LINK), (LINK.init(),), stats, Progress())
    assert state == {name: pytest.approx(float(found.__dict__[name]), rel=1e-12) for name in STATISTICS}
    empty = replace(step, rollouts=replace(step.rollouts, trained_mask=torch.zeros_like(step.mask)))
    nothing = survey(empty, LINK.recipe(), chain(LINK), (state,), RowRng())
    assert advance(chain(LINK), (state,), nothing, Progress()) == (state,)


# --- advantage


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_over_the_tokens_of_a_group_the_mean_is_zero_and_the_variance_one_but_for_epsilon(seed):
    generator = torch.Generator().manual_seed(seed)
    reward, lengths = torch.rand(12, generator=generator, dtype=torch.float64), torch.randint(1, 30, (12,), generator=generator)
    group = torch.arange(3).repeat_interleave(4)[torch.randperm(12, generator=generator)]
    found = group_advantage(reward, lengths, group, limit=1e9)
    for value in range(3):
        rows = group == value
        assert float((lengths * found)[rows].sum()) == pytest.approx(0, abs=1e-9)
        mean = float((lengths * reward)[rows].sum() / lengths[rows].sum())
        spread = float((lengths * (reward - mean) ** 2)[rows].sum() / lengths[rows].sum()) ** 0.5
        assert float((lengths * found**2)[rows].sum() / lengths[rows].sum()) == pytest.approx((spread / (spread + 1e-6)) ** 2, rel=1e-9)


def test_equal_lengths_give_grpo_with_the_population_deviation():
    reward, group = torch.tensor([1.0, 0.0, 0.0, 0.5]), torch.zeros(4, dtype=torch.long)
    found = group_advantage(reward, torch.full((4,), 7), group)
    torch.testing.assert_close(found, (reward - reward.mean()) / (reward.std(correction=0) + 1e-6))


def test_a_lone_short_success_falls_back_to_grpo():
    reward, group = torch.tensor([1.0] + [0.0] * 7), torch.zeros(8, dtype=torch.long)
    lengths = torch.tensor([1] + [20] * 7)
    torch.testing.assert_close(group_advantage(reward, lengths, group), (reward - reward.mean()) / (reward.std() + 1e-6))
    assert float(group_advantage(reward, lengths, group, limit=100.0)[0]) > 5


def test_equal_rewards_single_responses_and_rows_without_reward_or_tokens_are_zero():
    reward = torch.tensor([0.1] * 6 + [0.7, torch.nan, 1.0, 0.0, 1.0])
    group = torch.tensor([0] * 6 + [1, 2, 2, 2, 2])
    lengths = torch.tensor([3, 5, 2, 9, 4, 1, 8, 5, 2, 2, 0])
    found = group_advantage(reward, lengths, group)
    assert (found[:8] == 0).all()
    assert found[8:].tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-5)


def test_the_stage_replaces_the_advantage_or_leaves_it():
    rollouts = world(0).rollouts
    found = LINK.advantage(rollouts, LINK.init())
    torch.testing.assert_close(found.squeeze(1), group_advantage(rollouts.reward, rollouts.lengths, rollouts.group))
    assert replace(LINK, token_average=False).advantage(rollouts, {}) is rollouts.advantage


# --- clip and weight


def small(entropies: list[float], log_ratios: list[float]) -> Step:
    entropy, ratio = torch.tensor([entropies], dtype=torch.float64), torch.tensor([log_ratios], dtype=torch.float64).exp()
    log_probs = ratio.log().requires_grad_(True)
    mask = torch.ones(entropy.shape, dtype=torch.bool)
    rollouts = Rollouts.of(mask, old_log_probs=torch.zeros_like(entropy), advantage=torch.ones(1, 1, dtype=torch.float64))
    return Step(rollouts, log_probs, {"current.entropy": entropy})


def test_clip_and_weight_by_hand():
    """h = (-1, 0, 1), ratio 1.3 everywhere, A = 1. h = -1: the right bound stays at 1.2, so it is clipped; h = 0 counts as low, clipped
    too. h = 1: the bound is 1.4 and the ratio outside the zone, which ends at 1.2: factor 2."""
    link = Hapo(pivot=0.5)
    step = small([0.1, 1.0, 10.0], [torch.tensor(1.3).log().item()] * 3)
    result = policy_loss(step, link.recipe(), chain(link))
    (gradient,) = torch.autograd.grad(result.loss, step.log_probs)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, -2 * 1.3 / 3]], dtype=torch.float64), rtol=1e-6, atol=0)


def test_without_a_signal_it_is_the_objective():
    """Equal entropies: h = 0 everywhere, so windows, factors, loss and gradient are PPO's."""
    step = small([0.7] * 4, [-1.0, 0.0, 0.2, 1.0])
    ours, base = (policy_loss(step, LINK.recipe(), control).loss for control in (chain(LINK), chain()))
    assert torch.equal(ours, base)
    assert torch.equal(*(torch.autograd.grad(loss, step.log_probs)[0] for loss in (ours, base)))


def test_at_ratio_one_uncertain_tokens_are_unchanged_and_certain_ones_attenuated():
    step = some_step(LINK)
    step = replace(step, rollouts=replace(step.rollouts, old_log_probs=step.log_probs))
    h = entropy_signal(step.signal("current.entropy"), step.mask).h
    weight = policy_loss(step, LINK.recipe(), chain(LINK)).observed.weight
    expected = torch.where(h > 0, 1.0, 1 + h)
    torch.testing.assert_close(weight[step.mask], expected[step.mask])


@given(seed=st.integers(0, 500), beta=st.floats(0, 1), variant=st.sampled_from(["fixed", "code"]))
@settings(max_examples=25, deadline=None)
def test_no_factor_is_negative_and_widths_stay_within_their_double(seed, beta, variant):
    link = Hapo(beta=beta, variant=variant)
    step = some_step(link, seed)
    assert (policy_loss(step, link.recipe(), chain(link)).observed.weight >= 0).all()
    h = entropy_signal(step.signal("current.entropy"), step.mask, released=variant == "code").h[step.mask][None]
    low, high = clip_widths(h, 0.2, 0.28)
    assert ((low >= 0.2) & (low <= 0.4 + 1e-12)).all()
    assert ((high >= 0.28) & (high <= 0.56 + 1e-12)).all()
    assert (((low > 0.2) & (h > 0)) | ((high > 0.28) & (h <= 0))).sum() == 0
    if variant == "code":
        assert (low[h != 0] == 0.2).all()  # the released sign never widens the left bound


def test_the_four_cells_of_clipped_tokens():
    """Widening frees tokens on its own side only: left for h <= 0, right for h > 0."""
    wide, narrow = Hapo(beta=0.0), Hapo(beta=0.0, alpha=0.0)
    counts = torch.zeros(2, 2, 2, dtype=torch.long)
    for seed in range(12):
        step = some_step(wide, seed)
        uncertain = entropy_signal(step.signal("current.entropy"), step.mask).h > 0
        for index, link in enumerate((narrow, wide)):
            observed = policy_loss(step, link.recipe(), chain(link)).observed
            for sign in (0, 1):
                for side, clipped in enumerate((observed.clipped_low, observed.clipped_high)):
                    counts[index, sign, side] += (clipped & (uncertain == bool(sign))).sum()
    freed = counts[0] - counts[1]
    assert freed[0, 0] > 0
    assert freed[1, 1] > 0
    assert freed[0, 1] == freed[1, 0] == 0


def test_with_all_four_off_it_is_the_objective_and_each_alone_is_not():
    off = {"tau": 0.0, "alpha": 0.0, "beta": 0.0, "token_average": False}
    step, state = some_step(LINK), dict.fromkeys(STATISTICS, 0.5)
    base, logits = policy_loss(step, LINK.recipe()).loss, torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for part in (None, *off):
        link = replace(LINK, **{name: value for name, value in off.items() if name != part})
        assert torch.equal(policy_loss(step, link.recipe(), chain(link)).loss, base) == (part not in ("alpha", "beta"))
        assert bool((link.temperature(logits, 1.0, state) == 1).all()) == (part != "tau")
        assert (link.advantage(step.rollouts, state) is step.rollouts.advantage) == (part != "token_average")


def test_the_neutral_zone_follows_the_adaptive_window():
    """An uncertain token at ratio 1.15: outside 1 + 0.2 / 2, inside 1 + 0.4 / 2."""
    h, ratio = torch.tensor([[1.0]]), torch.tensor([[1.15]])
    assert redistribution(h, ratio, 0.2, 0.2).item() == 2.0
    assert redistribution(h, ratio, *clip_widths(h, 0.2, 0.2)).item() == 1.0


# --- the whole update


@pytest.mark.parametrize("link", [LINK, Hapo(variant="code")], ids=["fixed", "code"])
def test_slices_and_order_touch_the_same_tokens_and_losses_add_up(link):
    step = some_step(link, seed=2)
    whole, results = in_slices(link, step, 16)
    assert whole.any()
    for size in (1, 2, 8):
        touched, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(touched, whole)
        torch.testing.assert_close(sum(part.loss for part in parts), results[0].loss, rtol=1e-9, atol=1e-15)


def test_micro_batch_scope_normalises_within_its_slice():
    local = Hapo(scope="micro-batch")
    step = some_step(local, seed=2)
    ours, whole = in_slices(local, step, 1)[1], in_slices(LINK, step, 1)[1]
    assert any(not torch.equal(a.observed.weight, b.observed.weight) for a, b in zip(ours, whole, strict=True))
    for part, result in zip(micro_batches(step, 1), ours, strict=True):
        assert torch.equal(result.observed.weight, policy_loss(part, LINK.recipe(), chain(LINK)).observed.weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hapo(beta=1.5), r"Hapo: beta must be a fraction in \[0, 1\]\. Got 1\.5"),
        (lambda: Hapo(pivot=80.0), r"Hapo: pivot must be a fraction in \[0, 1\]\. Got 80\.0\. If you meant 80 %, write pivot=0\.8\."),
        (lambda: Hapo(tau=1.0), r"Hapo: tau must be in \[0, 1\), or a temperature T_0 \(1 \+ tau h\) could reach 0\. Got 1\.0\."),
        (lambda: Hapo(alpha=-1.0), r"Hapo: alpha must be at least 0\. Got -1\.0"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_objective_without_a_window_is_refused():
    step = some_step(LINK)
    with pytest.raises(ValueError, match=r"Hapo: .* the objective needs one on both sides\. Got low=None, high=5\.0\. Use loss_type"):
        policy_loss(step, Objective.named("cispo"), chain(LINK))


def test_an_unknown_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="variant"):
        Hapo(variant="paper")
