"""Objectives: what they have in common at r = 1, how aggregations relate, what a step does to the entropy, and the edges."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Bounds, Objective, aggregate
from isentrope.control.stages import policy_loss
from isentrope.control.step import Normaliser, Rollouts, Step

NAMES = ("ppo", "reinforce", "gpg", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "sapo", "rloo")
MODES = (
    "token-mean", "token-mean-local", "token-sum", "token-sum-norm", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm",
    "dr-grpo", "luspo",
)  # fmt: skip


def batch(seed=0, rows=5, width=7, *, lengths=None, drift=0.3, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=random) if lengths is None else torch.tensor(lengths)
    log_probs = -3 * torch.rand(rows, width, generator=random, dtype=dtype)
    old = log_probs + drift * torch.randn(rows, width, generator=random, dtype=dtype)
    advantage = torch.randn(rows, 1, generator=random, dtype=dtype)
    return log_probs, old, advantage, torch.arange(width) < lengths[:, None]


def loss_and_slope(objective, log_probs, old, advantage, mask, normaliser=Normaliser(), ref=None):
    leaf = log_probs.detach().clone().requires_grad_(True)
    step = Step(Rollouts.of(mask, advantage=advantage, old_log_probs=old, ref_log_probs=ref), leaf, normaliser=normaliser)
    loss = policy_loss(step, objective).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


# --- at r = 1


@pytest.mark.parametrize(("form", "mode"), [
    *((form, "seq-mean-token-mean") for form in ("ppo", "dapo", "cispo", "sapo", "gspo", "sequence-token", "gmpo")),
    *((form, "token-mean") for form in ("ppo", "dapo", "cispo", "sapo", "sequence-token")),
])  # fmt: skip
def test_at_ratio_one_every_objective_has_the_gradient_of_reinforce(form, mode):
    objective = Objective(level=form) if form == "sequence-token" else Objective.named(form)
    log_probs, _, advantage, mask = batch()
    _, slope = loss_and_slope(replace(objective, aggregation=mode), log_probs, log_probs, advantage, mask)
    _, reinforce = loss_and_slope(replace(Objective.named("reinforce"), aggregation=mode), log_probs, log_probs, advantage, mask)
    by_hand = -advantage * mask / (mask.sum() if mode == "token-mean" else mask.sum(-1, keepdim=True) * len(mask))
    torch.testing.assert_close(slope, by_hand, rtol=1e-6, atol=0)  # sapo's temperatures are float32, as in TRL
    torch.testing.assert_close(reinforce, by_hand, rtol=1e-12, atol=0)


def test_at_ratio_one_the_ratio_of_sums_has_the_gradient_of_the_sequence_log_prob():
    log_probs, _, advantage, mask = batch()
    _, slope = loss_and_slope(Objective.named("rloo"), log_probs, log_probs, advantage, mask)
    torch.testing.assert_close(slope, -advantage * mask / len(mask), rtol=1e-12, atol=0)


def test_the_token_form_of_gspo_has_its_value_and_a_gradient_per_token():
    log_probs, old, advantage, mask = batch(drift=0.01)
    sequence = replace(Objective.named("gspo"), epsilon_low=0.5, epsilon_high=0.5)
    value, slope = loss_and_slope(sequence, log_probs, old, advantage, mask)
    token_value, token_slope = loss_and_slope(replace(sequence, level="sequence-token"), log_probs, old, advantage, mask)
    torch.testing.assert_close(token_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(token_slope, slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_gmpo_with_an_open_window_is_gspo_unclipped(sign):
    log_probs, old, advantage, mask = batch()
    found, slope = loss_and_slope(replace(Objective.named("gmpo"), epsilon_low=None, epsilon_high=None), log_probs, old, sign * advantage, mask)
    mean = torch.where(mask, log_probs - old, 0.0).sum(-1) / mask.sum(-1)
    torch.testing.assert_close(found, (-sign * advantage[:, 0] * mean.exp()).mean(), rtol=1e-12, atol=0)
    open_gspo = replace(Objective.named("gspo"), epsilon_low=None, epsilon_high=None)
    expected, expected_slope = loss_and_slope(open_gspo, log_probs, old, sign * advantage, mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-12, atol=1e-16)


# --- aggregation


@given(seed=st.integers(0, 10_000), length=st.integers(1, 7))
@settings(deadline=None, max_examples=30)
def test_token_mean_is_the_mean_of_row_means_for_equal_lengths(seed, length):
    values, _, _, mask = batch(seed, lengths=[length] * 5)
    torch.testing.assert_close(aggregate(values, mask, "token-mean"), aggregate(values, mask, "seq-mean-token-mean"), rtol=1e-12, atol=0)


def test_the_three_norms_of_dr_grpo():
    """verl of January 2026 is TRL's times the rows (and the ratio of the constants); verl of August is TRL's."""
    values, _, _, mask = batch(rows=5, width=7)
    trl = aggregate(values, mask, "dr-grpo", horizon=32)
    torch.testing.assert_close(aggregate(values, mask, "token-sum-norm", horizon=17), trl * 5 * 32 / 17, rtol=1e-12, atol=0)
    torch.testing.assert_close(aggregate(values, mask, "seq-mean-token-sum-norm", horizon=32, empty_rows="exclude"), trl, rtol=1e-12, atol=0)
    torch.testing.assert_close(aggregate(values, mask, "dr-grpo"), trl * 32 / 7, rtol=1e-12, atol=0)


def test_an_empty_row_counts_in_trl_and_not_in_verl():
    values, _, _, mask = batch(lengths=[3, 0, 7, 2, 5])
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "luspo"):
        counted, excluded = (aggregate(values, mask, mode, empty_rows=how) for how in ("count", "exclude"))
        torch.testing.assert_close(excluded, counted * 5 / 4, rtol=1e-12, atol=0)
    kept = mask.any(-1)
    alone = aggregate(values[kept], mask[kept], "seq-mean-token-mean")
    torch.testing.assert_close(aggregate(values, mask, "seq-mean-token-mean", empty_rows="exclude"), alone, rtol=1e-12, atol=0)


def test_luspo_weighs_a_sequence_loss_by_its_length():
    _, _, advantage, mask = batch()
    torch.testing.assert_close(aggregate(advantage, mask, "luspo"), (advantage[:, 0] * mask.sum(-1)).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean", "token-mean-local"])
def test_kept_tokens_are_the_divisor(mode):
    values, _, _, mask = batch()
    kept = mask & (values > values[mask].median())
    rows = torch.where(kept, values, 0.0)
    found = aggregate(rows, mask, mode, kept=kept)
    expected = rows.sum() / kept.sum() if mode != "seq-mean-token-mean" else (rows.sum(-1) / kept.sum(-1).clamp(min=1)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_given_token_divisor_shrinks_by_the_kept_share_of_the_update():
    values, _, _, mask = batch()
    share = torch.tensor(0.25, dtype=torch.float64)
    found = aggregate(values, mask, "token-mean", kept=mask, kept_share=share, token_divisor=40.0)
    torch.testing.assert_close(found, values[mask].sum() / 10, rtol=1e-12, atol=0)
    nothing = aggregate(values, mask, "token-mean", kept=~mask, kept_share=0 * share, token_divisor=40.0)
    torch.testing.assert_close(nothing, values[mask].sum() / 40, rtol=1e-12, atol=0)


def test_accumulation_divides_what_is_a_mean_over_the_slice():
    values, _, _, mask = batch()
    for mode in MODES:
        whole, part = aggregate(values, mask, mode), aggregate(values, mask, mode, accumulation=4)
        torch.testing.assert_close(part, whole if mode in ("token-mean", "token-sum", "token-sum-norm") else whole / 4, rtol=1e-12, atol=0)


def test_rows_of_the_global_batch_replace_the_local_count():
    values, _, _, mask = batch()
    local = aggregate(values, mask, "seq-mean-token-mean", empty_rows="exclude")
    objective = Objective(aggregation="seq-mean-token-mean", empty_rows="exclude")
    found = objective.aggregate(values, mask, Normaliser(rows=40, world_size=2, accumulation=4))
    torch.testing.assert_close(found, local * 5 / 20, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_what_stands_under_the_mask_does_not_matter(mode):
    values, _, _, mask = batch()
    for spoilt in (math.nan, math.inf, 1e300):
        leaf = torch.where(mask, values, spoilt).requires_grad_(True)
        loss = aggregate(leaf, mask, mode)
        assert torch.equal(loss, aggregate(values, mask, mode))
        assert not torch.autograd.grad(loss, leaf)[0][~mask].any()


# --- clipping


@pytest.mark.parametrize(("advantage", "ratio", "moves"), [
    (1.0, 1.19, True), (1.0, 1.21, False), (1.0, 0.5, True), (-1.0, 0.81, True), (-1.0, 0.79, False), (-1.0, 1.5, True), (-1.0, 3.1, False),
])  # fmt: skip
def test_ppo_has_no_gradient_exactly_where_its_clip_bites(advantage, ratio, moves):
    log_probs, mask = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    _, slope = loss_and_slope(Objective.named("ppo"), log_probs, torch.full_like(log_probs, -1.0), torch.tensor([[advantage]], dtype=torch.float64), mask)
    assert bool(slope != 0) == moves


@given(ratio=st.floats(0.01, 100), advantage=st.floats(-5, 5))
@settings(deadline=None, max_examples=60)
def test_the_dual_clip_bounds_the_loss(ratio, advantage):
    objective = Objective.named("ppo")
    r, a, mask = (torch.tensor([[x]], dtype=torch.float64) for x in (ratio, advantage, 1.0))
    loss = float(objective.surrogate(r, a, r.log(), objective.bounds(), mask.bool()))
    plain = float(Objective(log_ratio_clamp=20.0).surrogate(r, a, r.log(), Bounds(0.8, 1.2), mask.bool()))
    assert loss == (min(plain, -3 * advantage) if advantage < 0 else plain)


def test_delta_caps_the_unclipped_branch():
    ratio = torch.tensor([[0.5, 1.1, 5.0]], dtype=torch.float64)
    negative = -torch.ones(1, 1, dtype=torch.float64)
    objective = Objective.trl("grpo", delta=1.5)
    loss = objective.surrogate(ratio, negative, ratio.log(), objective.bounds(), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(loss, torch.tensor([[0.8, 1.1, 1.5]], dtype=torch.float64))


def test_cispo_drops_no_token_and_caps_the_weight():
    log_probs, old, advantage, mask = batch(drift=2.0)
    _, slope = loss_and_slope(Objective.named("cispo"), log_probs, old, advantage, mask)
    weight = (log_probs - old).exp().clamp(max=5.0)
    assert bool((weight == 5.0)[mask].any())
    torch.testing.assert_close(slope, torch.where(mask, -weight * advantage / mask.sum(), 0.0), rtol=1e-12, atol=0)


def test_gmpo_bounds_are_those_of_the_ratio():
    bounds = Objective.named("gmpo").bounds()
    assert (bounds.low, bounds.high) == (pytest.approx(math.exp(-0.4)), pytest.approx(math.exp(0.4)))


# --- the KL term


def test_the_kl_term_is_added_per_token_and_multiplied_by_the_ratio_where_asked():
    log_probs, old, advantage, mask = batch()
    ref = old - 0.2
    plain, _ = loss_and_slope(Objective.named("dapo"), log_probs, old, advantage, mask)
    x = log_probs - ref
    k3 = (-x).exp() + x - 1
    for corrected, factor in ((False, 1.0), (True, (log_probs - old).exp())):
        objective = replace(Objective.named("dapo"), kl="k3", kl_coef=0.3, kl_bias_correction=corrected)
        found, _ = loss_and_slope(objective, log_probs, old, advantage, mask, ref=ref)
        torch.testing.assert_close(found, plain + 0.3 * (k3 * factor)[mask].mean(), rtol=1e-12, atol=0)


def test_the_kl_term_needs_a_reference():
    with pytest.raises(ValueError, match="carries no reference log-probs"):
        loss_and_slope(replace(Objective.named("dapo"), kl="k3", kl_coef=0.3), *batch())
    with pytest.raises(ValueError, match="kl names no estimator"):
        Objective().kl_term(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))


# --- what a step does to the entropy


@pytest.mark.parametrize("name", ["ppo", "dapo", "cispo", "reinforce"])
def test_first_order_entropy_change_of_a_step_on_a_tabular_policy(name):
    """sum_t -eta g_t (S_t - N_t), g_t = w_t r_t A_t over the divisor, is the finite difference of the summed entropy."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 9, generator=random, dtype=torch.float64)
    state, token = torch.randint(6, (5, 7), generator=random), torch.randint(9, (5, 7), generator=random)
    _, _, advantage, mask = batch(seed=3)
    weight = 0.5 + torch.rand(5, 7, generator=random, dtype=torch.float64)
    objective = Objective.named(name)
    table = logits.clone().requires_grad_(True)
    log_p = torch.log_softmax(table, -1)
    log_probs = log_p[state, token]
    old = log_probs.detach() + 0.1 * torch.randn(5, 7, generator=random, dtype=torch.float64)
    ratio = objective.ratio(log_probs, old, mask)
    loss = objective.aggregate(weight * objective.surrogate(ratio, advantage, log_probs, objective.bounds(), mask), mask, Normaliser())
    (slope,) = torch.autograd.grad(loss, table)

    def entropy(z):
        p = torch.softmax(z, -1)
        return -(p * p.log()).sum(-1)

    eta, p = 1e-5, log_p.detach().exp()
    s = p * (log_p.detach() + entropy(logits)[:, None])
    n = (p * s).sum(-1)
    r = ratio.detach()
    bounds = objective.bounds()
    acts = torch.ones_like(r)
    if name in ("ppo", "dapo"):
        acts = 1.0 * ~(((advantage > 0) & (r > bounds.high)) | ((advantage < 0) & (r < bounds.low)))
    factor = torch.ones_like(r) if name == "reinforce" else r
    predicted = (-eta * weight * factor * acts * advantage / mask.sum() * (s[state, token] - n[state]))[mask].sum()
    measured = (entropy(logits - eta * slope) - entropy(logits + eta * slope)).sum() / 2
    assert abs(float(predicted)) > 1e-9
    torch.testing.assert_close(measured, predicted, rtol=1e-5, atol=0)


# --- edges


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [[0, 0, 0], [0, 4, 0], [7]])
def test_empty_rows_and_a_single_response_are_finite(name, lengths):
    log_probs, old, advantage, mask = batch(rows=len(lengths), lengths=lengths)
    loss, slope = loss_and_slope(Objective.named(name), log_probs, old, advantage, mask)
    assert bool(loss.isfinite())
    assert bool(slope.isfinite().all())
    assert not slope[~mask].any()
    assert bool(loss != 0) == bool(mask.any())


@pytest.mark.parametrize("name", NAMES)
def test_equal_rewards_give_no_gradient(name):
    log_probs, old, advantage, mask = batch()
    loss, slope = loss_and_slope(Objective.named(name), log_probs, old, 0 * advantage, mask)
    assert loss == 0
    assert not slope.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [30.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_ratios_are_finite(name, size, dtype):
    log_probs, _, advantage, mask = batch(rows=8, dtype=dtype)
    old = log_probs + size * torch.tensor([[1.0], [-1.0]] * 4, dtype=dtype)
    for signs in (advantage.abs(), -advantage.abs()):
        loss, slope = loss_and_slope(Objective.named(name), log_probs, old, signs, mask)
        assert bool(loss.isfinite())
        assert bool(slope.isfinite().all())


# --- what is refused


@pytest.mark.parametrize(("field", "value", "words"), [
    ("form", "grpo", "form must be one of ppo, reinforce"), ("level", "row", "level must be one of token"),
    ("aggregation", "mean", "aggregation must be one of token-mean"), ("empty_rows", "drop", "empty_rows must be one of count, exclude"),
    ("kl", "k4", "kl must be one of k1"), ("epsilon_low", -1.0, "epsilon_low must be at least 0. Got -1.0. Off is None"),
    ("epsilon_high", math.nan, "epsilon_high must be at least 0"), ("dual_clip", 1.0, "dual_clip must be above 1. Got 1.0"),
    ("delta", 0.0, "delta must be above 0"), ("log_ratio_clamp", -20.0, "log_ratio_clamp must be above 0"), ("kl_coef", -0.1, "kl_coef must be at least 0"),
    ("tau_negative", 0.0, "tau_negative must be above 0"), ("kl_coef", 0.1, "kl must name an estimator"), ("epsilon_cap", 0.0, "epsilon_cap must be above 0"),
])  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_parameter_is_named(field, value, words):
    with pytest.raises(ValueError, match=words):
        Objective(**{field: value})


@pytest.mark.usefixtures("unchecked")
def test_what_is_not_carried_is_refused_by_name():
    for loss_type in ("luspo", "vespo", "gspo"):
        with pytest.raises(ValueError, match=rf"must be one of grpo, bnpo, dr_grpo, dapo, cispo, sapo\. Got '{loss_type}'\. GSPO is"):
            Objective.trl(loss_type)
    with pytest.raises(ValueError, match=r"importance_sampling_level must be token or sequence\. Got 'row'"):
        Objective.trl("grpo", importance_sampling_level="row")
    with pytest.raises(ValueError, match=r"name must be one of ppo, .*rloo\. Got 'trpo'"):
        Objective.named("trpo")
    with pytest.raises(ValueError, match="level must be 'token' for form 'gmpo'"):
        Objective("gmpo", level="sequence")


def test_trl_without_epsilon_high_takes_epsilon_also_as_the_cap_of_cispo():
    assert Objective.trl("dapo", epsilon=0.3).bounds() == Bounds(0.7, 1.3)
    assert Objective.trl("cispo").bounds() == Bounds(None, 0.2)
    assert Objective.trl("cispo", epsilon_high=5.0).bounds() == Bounds(None, 5.0)
