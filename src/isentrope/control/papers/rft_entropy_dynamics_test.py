"""Clip_B and Clip_V: recorded outputs, both theorems against finite differences, and the filters by hand."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.advantages import group_advantages, spread
from isentrope.control.papers import rft_entropy_dynamics
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.rft_entropy_dynamics import ClipB, ClipV, clip_b_drop, clip_v_drop, discriminant
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Progress, Rollouts, RowRng, Stats, Step
from isentrope.measure.tokens import Discriminant, ExpectedDiscriminant, token_signals_from_logits
from isentrope.testing import check_intervention

B, V = ClipB(mu=0.5), ClipV(mu=0.5, max_share=0.1)
CASES = ["clip-b", "clip-b-binding", "clip-b-degenerate", "clip-v", "clip-v-binding", "clip-v-degenerate"]


# --- recorded outputs


def released(name: str) -> None:
    case = recorded(f"rft-entropy-dynamics__{name}")
    given, mask = case.given, case.given["mask"]
    advantage = group_advantages(given["token_rewards"].sum(-1), given["group"], epsilon=case.params["epsilon"])
    case.close(spread(advantage, mask), "adv")
    advantage = advantage[:, None]
    if "N" in given:
        distance = given["N"] - rft_entropy_dynamics.discriminant(given["old_logp"], given["entropy"])
        row_id = torch.arange(len(mask))
        dropped = clip_v_drop(distance, advantage, mask, case.params["mu"], case.params["max_frac"], row_id, RowRng())
    else:
        found = rft_entropy_dynamics.discriminant(given["rollout_logp"], given["entropy"])
        dropped = clip_b_drop(found, advantage, mask, case.params["mu"])
    case.close(mask & ~dropped, "new_mask")
    case.close(dropped.sum() / mask.sum(), "frac_clipped")


@pytest.mark.parametrize("name", CASES)
def test_the_filters_are_the_releases(name):
    released(name)


@pytest.mark.parametrize("name", ["clip-b-binding", "clip-v-binding"])
def test_another_sign_of_the_discriminant_is_noticed(name, monkeypatch):
    monkeypatch.setattr(rft_entropy_dynamics, "discriminant", lambda *values: -discriminant(*values))
    with pytest.raises(AssertionError, match="new_mask"):
        released(name)


def test_the_expected_discriminant_is_the_releases():
    case = recorded("rft-entropy-dynamics__expected-discriminator")
    logits = case.given["logits"]
    target = torch.zeros(logits.shape[:-1], dtype=torch.long)
    case.close(token_signals_from_logits(logits, target, [ExpectedDiscriminant()])["N"], "N")


# --- the theorems


def some_logits(seed: int) -> tuple[torch.Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    sharpness = 0.5 + 3 * torch.rand((), generator=generator, dtype=torch.float64)
    logits = sharpness * torch.randn(9, generator=generator, dtype=torch.float64)
    return logits, int(torch.randint(9, (), generator=generator))


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


def signals_of(logits: torch.Tensor, token: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = token_signals_from_logits(logits, torch.tensor(token), [Discriminant(), ExpectedDiscriminant()])
    return found["S"], found["N"]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_both_theorems_hold_up_to_the_square_of_the_step(seed):
    """A step on the sampled logit takes S from H, one along its policy gradient S - N; halving the step quarters what is left over."""
    logits, token = some_logits(seed)
    s, n = signals_of(logits, token)
    hot = torch.nn.functional.one_hot(torch.tensor(token), 9).double()
    for direction, slope in ((hot, -s), (hot - torch.softmax(logits, -1), -(s - n))):
        left = [entropy_of(logits + step * direction) - entropy_of(logits) - step * slope for step in (1e-2, 5e-3)]
        curvature = abs(left[0]) / 1e-4
        if curvature > 1e-2:
            assert abs(left[0] / left[1]) == pytest.approx(4, rel=0.25)
        centred = (entropy_of(logits + 1e-5 * direction) - entropy_of(logits - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close(centred, slope, rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_what_is_known_of_s_and_n(seed):
    """sum S = 0; N = sum p S is the covariance of p and ln p under p, not negative; S is p (ln p + H) of the sampled token."""
    logits, token = some_logits(seed)
    log_p = torch.log_softmax(logits, -1)
    p, h = log_p.exp(), entropy_of(logits)
    every = discriminant(log_p, h.expand(9))
    s, n = signals_of(logits, token)
    torch.testing.assert_close(every[token], s)
    torch.testing.assert_close(every.sum(), torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close((p * every).sum(), n)
    torch.testing.assert_close((p * (p - (p * p).sum()) * (log_p + h)).sum(), n)
    assert n >= -1e-15


@given(q=st.floats(1e-6, 1 - 1e-6))
def test_of_two_tokens_one_is_the_other_turned_around(q):
    log_p = torch.tensor([q, 1 - q], dtype=torch.float64).log()
    found = discriminant(log_p, torch.special.entr(log_p.exp()).sum().expand(2))
    torch.testing.assert_close(found[0], -found[1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("link", [B, V, ClipB(mu=0, variant="code")], ids=["clip-b", "clip-v", "clip-b-code"])
def test_a_uniform_policy_loses_nothing(link):
    mask = torch.ones(3, 4, dtype=torch.bool)
    log_p = torch.full((3, 4), -math.log(8))
    s = {"old.S": torch.zeros(3, 4), "old.N": torch.zeros(3, 4), "old.entropy": -log_p}
    known = {"advantage": torch.tensor([[1.0], [-1.0], [-2.0]]), "old_log_probs": log_p, "sampling_log_probs": log_p, "signals": s}
    assert not policy_loss(Step(Rollouts.of(mask, **known), log_p), link.recipe(), chain(link)).observed.touched[link.name].any()


# --- by hand


def line(value: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.tensor([value], dtype=torch.float64)
    return found, torch.ones_like(found, dtype=torch.bool)


def test_clip_b_by_hand():
    """S = (-3, 1, 1, 1): mean 0, deviation sqrt 3. The first is 1.73 deviations below; only a wrong answer's is dropped."""
    found, mask = line([-3.0, 1.0, 1.0, 1.0])
    for advantage, mu, count in ((-1.0, 1.7, 1), (-1.0, 1.74, 0), (1.0, 0.1, 0), (0.0, 0.1, 0)):
        dropped = clip_b_drop(found, torch.tensor([[advantage]]), mask, mu)
        assert dropped.tolist() == [[count == 1, False, False, False]]


def test_clip_v_by_hand():
    """D = (3, 2, 1, -1, 9): deviation 3.37 about the mean 2.8, but the threshold is not centred; the masked one counts nowhere."""
    found, mask = line([3.0, 2.0, 1.0, -1.0, 9.0])
    mask[0, 4] = False
    deviation = float(torch.tensor([3.0, 2.0, 1.0, -1.0]).std(correction=0))
    given = (torch.tensor([[-1.0]]), mask, 1.5 / deviation)
    ids, rng = torch.tensor([0]), RowRng()
    assert clip_v_drop(found, *given, 1.0, ids, rng).tolist() == [[True, True, False, False, False]]
    assert clip_v_drop(found, *given, 0.25, ids, rng).tolist() == [[True, False, False, False, False]]
    assert clip_v_drop(found, *given, 0.0, ids, rng).sum() == 1  # K is at least one


def test_zero_advantage_is_dropped_beside_the_cap_in_the_release_only():
    found, mask = line([3.0, 2.0, 2.5, 0.0])
    given = (torch.tensor([[-1.0, -1.0, 0.0, -1.0]]), mask, 0.5, 0.25, torch.tensor([0]), RowRng())
    assert clip_v_drop(found, *given).tolist() == [[True, False, True, False]]
    assert clip_v_drop(found, *given, zero=False).tolist() == [[True, False, False, False]]


def test_two_sided_drops_whatever_lowers_the_entropy():
    """dH of a token is -A (S - N) = A D: above 0 raises. Dropped are exactly those below -mu deviations."""
    step = some_step(replace(V, two_sided=True), seed=2)
    distance = step.signal("old.N") - step.signal("old.S")
    dropped = clip_v_drop(distance, step.advantage, step.mask, 0.5, 1.0, step.rollouts.row_id, RowRng(), two_sided=True)
    threshold = 0.5 * distance[step.mask].std(correction=0)
    expected = (torch.sign(step.advantage) * distance < -threshold) & step.mask
    assert torch.equal(dropped, expected)
    right = (step.advantage > 0).expand(dropped.shape)
    assert (dropped & right).any()
    assert (dropped & ~right).any()
    check_intervention(replace(V, two_sided=True, max_share=1.0), slow=False)


def test_a_missing_log_prob_of_the_engine_is_kept_and_counts_nowhere():
    found, mask = line([-3.0, 1.0, 1.0, 1.0, float("nan")])
    assert clip_b_drop(found, torch.tensor([[-1.0]]), mask, 1.7).tolist() == [[True, False, False, False, False]]


# --- the loss


@pytest.mark.parametrize("link", [B, V], ids=["clip-b", "clip-v"])
def test_dropped_tokens_leave_numerator_and_divisor(link):
    step = some_step(link)
    leaf = step.log_probs.clone().requires_grad_(True)
    step = replace(step, log_probs=leaf)
    result = policy_loss(step, link.recipe(), chain(link))
    dropped = result.observed.touched[link.name]
    (ours,) = torch.autograd.grad(result.loss, leaf)
    left = replace(step, rollouts=replace(step.rollouts, trained_mask=step.mask & ~dropped))
    (expected,) = torch.autograd.grad(policy_loss(left, link.recipe()).loss, leaf)
    assert dropped.any()
    assert (step.advantage.expand(dropped.shape)[dropped] <= 0).all()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-15)
    assert not ours[dropped].any()


@given(seed=st.integers(0, 300), mu=st.floats(0, 3), more=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_larger_mu_drops_a_part_of_what_a_smaller_one_does(seed, mu, more):
    step = some_step(V, seed)
    s, advantage, ids = step.signal("old.S"), step.advantage, step.rollouts.row_id
    distance = step.signal("old.N") - s
    for at in (
        lambda mu: clip_b_drop(s, advantage, step.mask, mu, ids),
        lambda mu: clip_v_drop(distance, advantage, step.mask, mu, 1.0, ids, RowRng()),
    ):
        assert not (at(mu + more) & ~at(mu)).any()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_release_reads_the_engines_probabilities(variant):
    link = ClipB(mu=0.5, variant=variant)
    step = some_step(link, seed=1)
    plain = policy_loss(step, link.recipe(), chain(link)).observed.touched["clip-b"]
    off = replace(step, rollouts=replace(step.rollouts, sampling_log_probs=torch.zeros_like(step.log_probs)))
    same = torch.equal(policy_loss(off, link.recipe(), chain(link)).observed.touched["clip-b"], plain)
    assert same == (variant == "paper")
    other = ClipB(mu=0.5, variant="code" if variant == "paper" else "paper")  # with one policy both are the same
    step = some_step(other, seed=1)
    assert torch.equal(policy_loss(step, other.recipe(), chain(other)).observed.touched["clip-b"], plain)


@pytest.mark.parametrize("link", [B, V], ids=["clip-b", "clip-v"])
def test_slices_and_order_drop_the_same_tokens(link):
    step = some_step(link, seed=3)
    touched, whole = in_slices(link, step, 16)
    for size in (1, 8):
        again, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(again, touched)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)
    assert not torch.equal(in_slices(replace(link, scope="micro-batch"), step, 1)[0], touched)


# --- parameters


def test_a_filter_that_never_binds_says_so_once():
    link, progress, ids = ClipB(), Progress(), torch.tensor([0])
    none, some, empty = (Stats(ids, {"dropped": torch.tensor(dropped), "valid": torch.tensor(valid)}) for dropped, valid in ((0, 9), (1, 9), (0, 0)))
    state = link.init()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in [none] * 49 + [some] + [none] * 49 + [empty]:
            state = link.update(state, found, progress)
        ClipB(mu=math.inf).update(state, none, progress)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for found in [none] * 60:
            state = link.update(state, found, progress)
    assert [str(one.message) for one in seen] == [
        "ClipB: no token was dropped in 50 updates in a row, so clip-b does nothing at mu=2.5. Lower mu until it drops 1e-4 to 1e-3 of the tokens."
    ]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ClipB, {"mu": -1}, r"ClipB: mu must be at least 0\. Got -1\. mu=inf drops nothing\."),
        (ClipV, {"mu": math.nan}, r"ClipV: mu must be at least 0\. Got nan\."),
        (ClipV, {"max_share": 2.0}, r"ClipV: max_share must be a fraction in \[0, 1\]\. Got 2\.0\. If you meant 2 %, write max_share=0\.02\."),
    ],
)
def test_wrong_parameters_are_refused(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**wrong)
