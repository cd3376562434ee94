"""DISPO: the gradient of each regime by hand, its limits (CISPO, importance weights, PPO), and what it does to the entropy."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers import dispo
from isentrope.control.papers.common_test import in_slices, shuffled, some_step
from isentrope.control.papers.dispo import Dispo, four_regimes
from isentrope.control.stages import advance, chain, policy_loss, predicted_push, survey
from isentrope.control.step import Need, Progress, Rollouts, RowRng, Step
from isentrope.measure.tokens import Discriminant, ExpectedDiscriminant

RATIOS = [0.1, 0.9, 1.0, 1.5, 20.0, 200.0]
PAPER = {1.0: [0.8, 0.9, 1.0, 1.5, 11.0, 11.0], -1.0: [0.1, 0.9, 1.0, 1.5, 20.0, 101.0], 0.0: [0.0] * 6}
FORMS = [Dispo().recipe(), replace(Objective.named("dapo"), epsilon_high=0.2), Objective.named("grpo")]


def line(advantage: float, ratios: list[float] = RATIOS, **known) -> Step:
    log_probs = torch.full((1, len(ratios)), -3.0, dtype=torch.float64)
    old = log_probs - torch.tensor([ratios], dtype=torch.float64).log()
    mask = torch.ones(log_probs.shape, dtype=torch.bool)
    given = {"advantage": torch.full((1, 1), advantage, dtype=torch.float64), "old_log_probs": old}
    return Step(Rollouts.of(mask, **(given | known)), log_probs.requires_grad_(True))


def gradient(step: Step, link: Dispo | None, objective: Objective) -> torch.Tensor:
    loss = policy_loss(step, objective, chain() if link is None else chain(link)).loss
    return torch.autograd.grad(loss, step.log_probs)[0]


# --- the four regimes


def regimes_are_the_papers(objective: Objective, advantage: float) -> None:
    found = -len(RATIOS) * gradient(line(advantage), Dispo(), objective)
    assert torch.allclose(found, advantage * torch.tensor([PAPER[advantage]], dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", FORMS, ids=["cispo", "dapo", "grpo"])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_the_gradient_is_the_held_ratio_times_the_advantage_whatever_the_objective_writes(objective, advantage):
    regimes_are_the_papers(objective, advantage)


def test_windows_of_the_other_side_are_noticed(monkeypatch):
    monkeypatch.setattr(dispo, "four_regimes", lambda ratio, right, **windows: four_regimes(ratio, ~right, **windows))
    with pytest.raises(AssertionError):
        regimes_are_the_papers(Dispo().recipe(), 1.0)


def test_the_value_is_the_papers_objective():
    """-J: the mean of sg(w) A ln p, here all ln p = -3."""
    step = line(1.0)
    assert policy_loss(step, Dispo().recipe(), chain(Dispo())).loss.item() == pytest.approx(3 * sum(PAPER[1.0]) / 6, rel=1e-9)


def test_a_suppressed_wrong_token_is_still_pushed_only_if_its_window_ends_at_one():
    """wrong_low = 0: weight 1 however small r is. wrong_low = 1: weight r, the push fades."""
    for low, weights in ((0.0, [1.0, 1.0, 1.0]), (1.0, [1e-6, 1e-3, 0.5])):
        found = 3 * gradient(line(-1.0, [1e-6, 1e-3, 0.5]), Dispo(wrong_low=low), Dispo().recipe())
        torch.testing.assert_close(found, torch.tensor([weights], dtype=torch.float64))


# --- limits


@given(seed=st.integers(0, 300), low=st.floats(0, 1), high=st.floats(0, 5))
@settings(max_examples=25, deadline=None)
def test_equal_windows_are_cispo(seed, low, high):
    link = Dispo(low, high, low, high)
    step = some_step(link, seed)
    step = replace(step, log_probs=step.log_probs.clone().requires_grad_(True))
    cispo = replace(Objective.named("cispo"), epsilon_low=low, epsilon_cap=1 + high)
    torch.testing.assert_close(gradient(step, link, link.recipe()), gradient(step, None, cispo), rtol=1e-9, atol=1e-15)


def test_open_windows_are_importance_weights():
    step = line(-1.0)
    found = 6 * gradient(step, Dispo().neutral(), Dispo().recipe())
    torch.testing.assert_close(found, torch.tensor([RATIOS], dtype=torch.float64))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_where_ppo_differs(advantage):
    """Same window: PPO gives 0 where A > 0 and r is above, A < 0 and r below; r itself where DISPO holds it on the other side."""
    ratio = torch.tensor(RATIOS, dtype=torch.float64)
    ppo = 6 * gradient(line(advantage), None, replace(Objective.named("dapo"), epsilon_high=0.2))[0]
    ours = 6 * gradient(line(advantage), Dispo(0.2, 0.2, 0.2, 0.2), Dispo().recipe())[0]
    stopped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    torch.testing.assert_close(ppo, torch.where(stopped, 0.0, -advantage * ratio))
    torch.testing.assert_close(ours, -advantage * ratio.clamp(0.8, 1.2))


@given(st.floats(0, 1), st.floats(0, 100), st.floats(0, 1), st.floats(0, 100), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_at_ratio_one_all_settings_are_the_policy_gradient(right_low, right_high, wrong_low, wrong_high, advantage):
    link = Dispo(right_low, right_high, wrong_low, wrong_high)
    found = gradient(line(advantage, [1.0]), link, link.recipe())
    torch.testing.assert_close(found, torch.tensor([[-advantage]], dtype=torch.float64))


@given(st.lists(st.floats(2e-9, 4e8), min_size=1, max_size=6), st.booleans(), st.floats(0, 1), st.floats(0, 100))
@settings(max_examples=50, deadline=None)
def test_the_held_ratio_stays_inside_its_window(ratios, right, low, high):
    ratio = torch.tensor([ratios], dtype=torch.float64)
    window, free = {"right_low": low, "right_high": high}, {"wrong_low": 1.0, "wrong_high": math.inf}
    held = four_regimes(ratio, torch.full_like(ratio, right, dtype=torch.bool), **window, **free)
    assert ((held >= 1 - low) & (held <= 1 + high)).all() if right else torch.equal(held, ratio)


def test_extreme_ratios_keep_their_weight_in_single_precision():
    step = line(1.0, [1e-8, 1.0])
    step = replace(step, log_probs=step.log_probs.detach().float().requires_grad_(True))
    for objective in FORMS:
        torch.testing.assert_close(gradient(step, Dispo(), objective)[0, 0].item() * 2, -0.8, rtol=1e-5, atol=0)


# --- right and wrong


@pytest.mark.parametrize(("correct", "window"), [(1.0, 0.8), (0.0, 0.1), (math.nan, 0.8)])
def test_the_verifier_decides_if_asked_and_the_advantage_where_it_is_silent(correct, window):
    step = line(1.0, correct=torch.tensor([correct]))
    found = -6 * gradient(step, Dispo(split="correct"), Dispo().recipe())
    assert found[0, 0].item() == pytest.approx(window)
    assert -6 * gradient(step, Dispo(), Dispo().recipe())[0, 0].item() == pytest.approx(0.8)


# --- the update


def test_the_survey_counts_every_regime():
    step = line(1.0)
    found = survey(step, Dispo().recipe(), chain(Dispo()), ({},), RowRng()).links[0].scalars
    assert {key: int(value) for key, value in found.items()} == {"right/low": 1, "right/high": 2, "wrong/low": 0, "wrong/high": 0, "on_policy": 0}
    found = survey(line(-1.0), Dispo().recipe(), chain(Dispo(wrong_low=0.5)), ({},), RowRng()).links[0].scalars
    assert [int(found[f"wrong/{side}"]) for side in ("low", "high")] == [1, 1]


def test_slices_and_order_give_the_same_loss():
    link = Dispo(0.05, 0.1, 0.1, 0.2)
    step = some_step(link, seed=3)
    touched, whole = in_slices(link, step, 16)
    for size in (1, 8):
        again, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(again, touched)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)


def test_its_first_order_effect_on_the_entropy_is_that_of_the_held_ratio():
    """A token moves the entropy of its state by -w A (S - N): a wider window scales that, so it raises the entropy only where S < N."""
    link = Dispo(0.05, 0.1, 0.1, 0.2)
    step = some_step(_Measured(), seed=5)
    objective, control = link.recipe(), chain(link)
    found = predicted_push(step, objective, control, survey(step, objective, control, ({},), RowRng()), ({},), RowRng())
    ratio = objective.ratio(step.log_probs, step.old_log_probs, step.mask)
    windows = {name: value for name, value in link.__dict__.items() if name != "split"}
    held = four_regimes(ratio, step.advantage > 0, **windows)
    expected = -held * step.advantage * (step.signal("current.S") - step.signal("current.N")) / step.mask.sum()
    torch.testing.assert_close(found, torch.where(step.mask, expected, 0.0), rtol=1e-9, atol=1e-12)


class _Measured(Dispo):
    """With the signals that the prediction reads."""

    @property
    def needs(self):
        return (Need(Discriminant()), Need(ExpectedDiscriminant()))


def test_a_run_that_is_always_on_policy_is_told_once():
    link = Dispo()
    on, off = (survey(line(1.0, ratios), link.recipe(), chain(link), ({},), RowRng()) for ratios in ([1.0, 1.0], [1.0, 2.0]))
    state = (link.init(),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (on, off, on):
            state = advance(chain(link), state, found, Progress())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(4):
            state = advance(chain(link), state, on, Progress())
    assert [str(one.message)[:50] for one in seen] == ["Dispo: every ratio was 1 in two updates in a row, "]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"right_low": 20.0}, r"Dispo: right_low must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write right_low=0\.2\."),
        ({"wrong_high": -1.0}, r"Dispo: wrong_high must be at least 0\. Got -1\.0\. The window ends at 1 \+ wrong_high; inf leaves it open\."),
        ({"right_high": math.nan}, r"Dispo: right_high must be at least 0\. Got nan\."),
    ],
)
def test_wrong_windows_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Dispo(**wrong)
