"""SPINE: the forking set and the band by hand, their gradients, and the sheet's exact statements."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.blocks import upper_share
from isentrope.control.papers import spine
from isentrope.control.papers.common_test import in_slices, shuffled, some_step
from isentrope.control.papers.spine import Spine
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, State, Step
from isentrope.testing import check_intervention

LINK = Spine(share=0.5, band_coef=0.1)
KEY = "current.entropy"


def line(entropy: list[float], advantage: float = 1.0) -> Step:
    value = torch.tensor([entropy], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(value.shape, dtype=torch.bool)
    log_probs = torch.zeros(value.shape, dtype=torch.float64, requires_grad=True)
    given = {"old_log_probs": torch.zeros(value.shape), "advantage": torch.full((1, 1), advantage, dtype=torch.float64)}
    return Step(Rollouts.of(mask, **given), log_probs, {KEY: value})


def slopes(step: Step, link: Spine, state: State | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the loss in the log-probs and in the entropies."""
    states = None if state is None else (state,)
    loss = policy_loss(step, link.recipe(), chain(link), state=states).loss
    found = torch.autograd.grad(loss, [step.log_probs, step.signal(KEY)], allow_unused=True, materialize_grads=True)
    return found[0], found[1]


# --- the set


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_a_response_keeps_its_share_of_highest_entropies_and_all_ties(values, share):
    entropy = torch.tensor([[*values, 99]], dtype=torch.float64)
    mask = torch.ones_like(entropy, dtype=torch.bool)
    mask[0, -1] = False
    keep = upper_share(entropy, mask, share)[0, :-1]
    count = max(1, -int(-(share * len(values) - 1e-9) // 1))
    threshold = sorted(values, reverse=True)[count - 1]
    assert keep.tolist() == [value >= threshold for value in values]
    assert torch.equal(upper_share(entropy**3 + 2 * entropy, mask, share)[0, :-1], keep)


def test_a_fifth_of_ten_thirty_and_of_one():
    entropy = torch.arange(30.0).repeat(3, 1)
    mask = torch.arange(30) < torch.tensor([[10], [30], [1]])
    assert upper_share(entropy, mask, 0.2).sum(-1).tolist() == [2, 6, 1]
    assert upper_share(entropy, mask, 0.1).sum(-1).tolist() == [1, 3, 1]
    assert not upper_share(entropy, torch.zeros_like(mask), 0.2).any()


# --- by hand


def test_the_loss_by_hand():
    """H = (0..9), share 0.5: S = {5..9}, quantiles 0.1 and 0.5 are 5.4 and 7. Mean over S; 5 pays 0.4, 8 and 9 pay 1 and 2."""
    step = line([float(value) for value in range(10)])
    loss = policy_loss(step, LINK.recipe(), chain(LINK))
    assert loss.loss.item() == pytest.approx(-1 + 0.1 * 3.4 / 5)
    ours, band = slopes(step, LINK)
    torch.testing.assert_close(ours, torch.tensor([[0.0] * 5 + [-0.2] * 5], dtype=torch.float64))
    torch.testing.assert_close(band, 0.02 * torch.tensor([[0.0] * 5 + [-1, 0, 0, 1, 1]], dtype=torch.float64))


def test_a_band_of_the_other_sign_is_noticed(monkeypatch):
    held = Spine.regularise

    def turned(self, step, stats, state):
        penalty = held(self, step, stats, state)
        return replace(penalty, total=-penalty.total)

    monkeypatch.setattr(spine.Spine, "regularise", turned)
    with pytest.raises(AssertionError):
        test_the_loss_by_hand()


def test_the_gradient_of_the_band_is_that_of_finite_differences_inside_the_quantiles():
    """With the band frozen nothing else depends on H, so differences are the gradient."""
    link, state = replace(LINK, thresholds="frozen", share=1.0), {"low": 2.2, "high": 6.5}
    values = [float(value) for value in range(10)]
    band = slopes(line(values), link, state)[1][0]
    for token in (0, 4, 9):
        moved = [[*values[:token], values[token] + nudge, *values[token + 1 :]] for nudge in (1e-4, -1e-4)]
        up, down = (policy_loss(line(each), link.recipe(), chain(link), state=(state,)).loss for each in moved)
        assert band[token].item() == pytest.approx(float((up - down).detach()) / 2e-4, abs=1e-9)


# --- exact statements


@given(seed=st.integers(0, 200), scale=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_the_band_scales_with_the_entropy(seed, scale):
    step = some_step(LINK, seed)
    penalties = []
    for factor in (1.0, scale):
        scaled = replace(step, signals={KEY: factor * step.signal(KEY)})
        penalties.append(policy_loss(scaled, LINK.recipe(), chain(LINK)).metrics["link/spine/penalty"])
    torch.testing.assert_close(penalties[1], scale * penalties[0], rtol=1e-5, atol=1e-9)


def test_a_unanimous_vote_leaves_the_band_alone():
    ours, band = slopes(line([float(value) for value in range(10)], advantage=0.0), LINK)
    assert not ours.any()
    assert band.any()


def test_the_band_of_a_responses_own_quantiles_never_switches_off_but_a_frozen_one_does():
    """The sheet's consequence: half above, a tenth below at every step, however narrow the entropies are."""
    for width in (1.0, 1e-3):
        values = [1 + width * value / 99 for value in range(100)]
        _, band = slopes(line(values), Spine(share=1.0, band_coef=1.0))
        assert (band > 0).sum() == 50
        assert (band < 0).sum() == 10
    link = Spine(share=1.0, band_coef=1.0, thresholds="frozen")
    assert not slopes(line(values), link, {"low": 0.9, "high": 1.1})[1].any()
    assert (slopes(line(values), link, {"low": 2.0, "high": 3.0})[1] < 0).all()


def test_the_upper_hinge_outweighs_the_lower_on_exponential_entropies():
    """The sheet says about 90 times: the mean excess over the median is 1/2, below the first decile 0.0054."""
    values = -torch.log1p(-(torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    step = line(values.tolist())
    link = Spine(share=1.0, band_coef=1.0)
    found = survey(step, link.recipe(), chain(link), (link.init(),), RowRng()).links[0].tokens
    size = found["side"] * (values - found["bound"])
    assert float(size[found["side"] > 0].sum() / size[found["side"] < 0].sum()) == pytest.approx(90, rel=0.1)


# --- thresholds over updates


@pytest.mark.parametrize(("thresholds", "after"), [("frozen", 5.4), ("ema", 0.99 * 5.4 + 0.01 * 10.8)])
def test_the_first_update_sets_the_band_and_the_next_moves_an_average(thresholds, after):
    link = replace(LINK, thresholds=thresholds)
    control, state = chain(link), (link.init(),)
    assert not slopes(line([0.0, 1.0]), link)[1].any()
    for factor in (1.0, 2.0):
        view = line([factor * value for value in range(10)])
        state = advance(control, state, survey(view, link.recipe(), control, state, RowRng()), Progress())
    assert state[0]["low"] == pytest.approx(after, rel=1e-6)


def test_a_band_that_remembers_keeps_the_contract():
    check_intervention(replace(Spine().embedded(), thresholds="ema"), slow=False)


def test_slices_and_order_give_the_same_loss():
    step = some_step(LINK, seed=3)
    touched, whole = in_slices(LINK, step, 16)
    for size in (1, 8):
        again, parts = in_slices(LINK, shuffled(step, size), size)
        assert torch.equal(again, touched)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)


# --- parameters


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 20.0}, r"Spine: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write share=0\.2\."),
        ({"share": 0.0}, r"Spine: share must be above 0\. Got 0: nothing would be trained\. To train on everything write share=1\."),
        ({"low": 0.6}, r"Spine: high must be at least 0\.6\. Got 0\.5\. The band is low\.\.high; low is 0\.6\."),
        ({"band_coef": -0.1}, r"Spine: band_coef must be at least 0\. Got -0\.1\. 0 switches the band off\."),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Spine(**wrong)


def test_a_band_that_holds_everything_warns():
    with pytest.warns(UserWarning, match="no token is outside the quantiles 0 and 1 of its own response"):
        Spine(low=0.0, high=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Spine(low=0.0, high=1.0, thresholds="frozen")
