"""EPO: recorded outputs, the nested mean and the corridor by hand, the three slopes of the sheet, schedules, and both histories."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import epo
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.epo import Epo, nested_share, phase, released_penalty, released_phase
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, State, Step

KEY = "current.entropy"
LINK = Epo(coef=0.1, low=0.5, high=1.5)


def past(*reference: float) -> State:
    return {"reference": torch.tensor(reference, dtype=torch.float64), "count": torch.ones(len(reference), dtype=torch.long)}


def step_of(entropy: list[list[float]], turn: list[list[int]] | None = None, lengths: list[int] | None = None, progress=Progress(0, 10)) -> Step:
    value = torch.tensor(entropy, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(value.shape, dtype=torch.bool) if lengths is None else torch.arange(value.shape[1]) < torch.tensor(lengths)[:, None]
    zero = torch.zeros(value.shape, dtype=torch.float64)
    rollouts = Rollouts.of(mask, old_log_probs=zero, turn=None if turn is None else torch.tensor(turn))
    return Step(rollouts, zero, {KEY: value}, progress)


def slope(link: Epo, step: Step, state: State) -> torch.Tensor:
    return torch.autograd.grad(policy_loss(step, link.recipe(), chain(link), None, (state,)).loss, step.signal(KEY))[0]


# --- by hand


def test_every_turn_counts_equally():
    """Two turns of one and three tokens, and a response of one turn: 1/4, 1/12 thrice, 1/4 twice; a response without text has none."""
    turn = torch.tensor([[0, 3, 3, 3], [5, 5, 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    expected = torch.tensor([[1 / 4, 1 / 12, 1 / 12, 1 / 12], [1 / 4, 1 / 4, 0, 0], [0] * 4], dtype=torch.float64)
    torch.testing.assert_close(nested_share(turn, mask), expected)
    assert not torch.allclose(expected[mask], torch.full((6,), 1 / 6, dtype=torch.float64))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_shares_sum_to_one_in_every_response_and_turn(seed):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randint(0, 4, (5, 9), generator=generator)
    mask = torch.rand(5, 9, generator=generator) < 0.6
    share = nested_share(turn, mask)
    some = mask.any(-1)
    torch.testing.assert_close(share.sum(-1), some.double() / some.sum().clamp(min=1))
    for row in range(5):
        turns = turn[row][mask[row]].unique()
        parts = torch.stack([share[row][mask[row] & (turn[row] == one)].sum() for one in turns]) if len(turns) else torch.zeros(0)
        assert torch.allclose(parts.double(), parts[:1].double().expand(parts.shape))


def test_the_three_slopes_of_the_sheet():
    """R = 1: below the corridor -coef (1 + alpha beta), inside -coef, above -coef (1 - alpha beta), each over the four tokens."""
    step = step_of([[0.2, 0.9, 1.4, 2.0]])
    for alpha in (0.7, 1.0, 2.0):
        beta = 2.0  # at k = 0
        expected = -0.1 / 4 * torch.tensor([[1 + alpha * beta, 1, 1, 1 - alpha * beta]], dtype=torch.float64)
        torch.testing.assert_close(slope(replace(LINK, alpha=alpha, gamma=0.0), step, past(1.0)), expected)


def test_the_value_by_hand():
    """Hinges of 0.3 and 0.5, mean 0.2; bonus mean 1.125; beta_0 = 2: -0.1 (1.125 - 2 * 0.2)."""
    result = policy_loss(step_of([[0.2, 0.9, 1.4, 2.0]]), LINK.recipe(), chain(LINK), None, (past(1.0),))
    assert float(result.metrics["link/epo/penalty"]) == pytest.approx(-0.1 * (1.125 - 2 * 0.2))


def test_a_hinge_of_the_other_sign_is_noticed(monkeypatch):
    held = Epo.survey

    def turned(self, view, state, rng):
        stats = held(self, view, state, rng)
        return replace(stats, tokens={**stats.tokens, "side": -stats.tokens["side"]})

    monkeypatch.setattr(epo.Epo, "survey", turned)
    with pytest.raises(AssertionError):
        test_the_three_slopes_of_the_sheet()
    with pytest.raises(AssertionError):
        test_the_value_by_hand()


def test_without_a_past_and_at_the_past_only_the_bonus_is_left():
    step = step_of([[1.0, 1.0, 1.0]])
    plain = torch.full((1, 3), -0.1 / 3, dtype=torch.float64)
    torch.testing.assert_close(slope(LINK, step, LINK.init()), plain)
    torch.testing.assert_close(slope(LINK, step, past(1.0)), plain)


def test_the_gradient_is_that_of_finite_differences():
    step, state = step_of([[0.2, 0.9, 1.4], [2.0, 0.1, 1.1]], turn=[[0, 1, 1], [0, 0, 1]]), past(1.0)
    found = slope(LINK, step, state)
    for at in ((0, 0), (0, 2), (1, 0), (1, 1)):
        values = []
        for move in (1e-6, -1e-6):
            entropy = step.signal(KEY).detach().clone()
            entropy[at] += move
            values.append(policy_loss(replace(step, signals={KEY: entropy}), LINK.recipe(), chain(LINK), None, (state,)).loss)
        assert float((values[0] - values[1]) / 2e-6) == pytest.approx(float(found[at]), rel=1e-6)


def test_a_floor_keeps_the_lower_edge():
    """R = 0.1 makes a corridor of 0.05..0.15; with a floor of 0.3 what lies below it is pushed up."""
    step = step_of([[0.1, 0.4]])
    held = slope(replace(LINK, floor=0.3), step, past(0.1))
    torch.testing.assert_close(held, -0.1 / 2 * torch.tensor([[3.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(slope(LINK, step, past(0.1)), -0.1 / 2 * torch.tensor([[1.0, -1.0]], dtype=torch.float64))


def test_slices_add_up_in_any_order():
    step = some_step(LINK, differentiable=True)
    state = past(0.8)
    whole = policy_loss(step, LINK.recipe(), chain(LINK), None, (state,)).loss
    for size in (1, 4):
        parts = in_slices(LINK, shuffled(step, size), size, state=state)[1]
        torch.testing.assert_close(sum(part.loss for part in parts), whole, rtol=1e-9, atol=1e-12)


# --- schedules


def test_the_phase_weights():
    assert phase(0, 120, 3.0) == 2
    assert phase(60, 120, 1.0) == pytest.approx(1 + math.exp(-1))
    assert phase(120, 120, 1.0) == pytest.approx(1 + math.exp(-2))
    assert phase(7, 1, 1.0) == 1 + math.exp(-7)
    weights = [phase(k, 50, 0.5) for k in range(51)]
    assert weights == sorted(weights, reverse=True)
    case = recorded("epo__released-phase-weight")
    case.close(torch.tensor([released_phase(int(k), case.params["max_epochs"]) for k in case.given["epoch"]], dtype=torch.float64), "weight")
    assert released_phase(151, 151) == pytest.approx(0.8 * math.exp(-3))
    assert released_phase(5, 1) == pytest.approx(1 - 0.2 * (1 - math.exp(-2)))


# --- histories


def after(link: Epo, state: State, *entropies: list[list[float]], turn: list[list[int]] | None = None) -> State:
    control, states = chain(link), (state,)
    for entropy in entropies:
        step = step_of(entropy, turn)
        states = advance(control, states, survey(step, link.recipe(), control, states, RowRng()), Progress())
    return states[0]


def test_the_reference_is_the_plain_mean_of_all_updates():
    state = after(LINK, LINK.init(), [[1.0, 3.0]], [[5.0, 5.0]], [[0.0, 1.0]])
    assert state["reference"].tolist() == pytest.approx([7.5 / 3])
    smooth = after(replace(LINK, decay=0.75), LINK.init(), [[1.0, 3.0]], [[6.0, 6.0]])
    assert smooth["reference"].tolist() == pytest.approx([0.75 * 2 + 0.25 * 6])
    empty = step_of([[1.0]], lengths=[0])
    stats = survey(empty, LINK.recipe(), chain(LINK), (state,), RowRng())
    assert LINK.update(state, stats.links[0], Progress()) is state


def test_a_turn_that_was_not_reached_keeps_its_mean_or_counts_as_zero():
    by_turn, code = replace(LINK, history="turn"), Epo(coef=0.1, variant="code")
    first, second = [[1.0, 2.0, 4.0]], [[3.0, 3.0, 5.0]]
    for link, expected in ((by_turn, [2.0, 3.0]), (code, [2.0, 1.5])):
        state = after(link, link.init(), first, turn=[[0, 1, 1]])
        state = after(link, state, [[3.0, 3.0, 3.0]], turn=[[0, 0, 0]])
        assert state["reference"].tolist() == pytest.approx(expected)
        state = after(link, state, second, turn=[[0, 0, 4]])
        assert len(state["reference"]) == 5
        assert state["reference"][4] == pytest.approx(5.0 if link is by_turn else 5 / 3)
        assert link.reference(state, torch.tensor([[9]])).isnan().all()


def test_a_turn_is_compared_with_its_own_past():
    link = replace(LINK, history="turn")
    step = step_of([[1.0, 1.0]], turn=[[0, 1]])
    torch.testing.assert_close(slope(link, step, past(4.0, 0.5)), -0.1 / 2 * torch.tensor([[3.0, -1.0]], dtype=torch.float64))


# --- the released loss


@pytest.mark.parametrize("name", ["token", "zero-history"])
def test_the_link_is_the_released_loss(name):
    """Every row of the file is one turn; the history mean at its number is the state's."""
    case = recorded(f"epo__released-loss-{name}")
    params = case.params
    link = Epo(coef=params["entropy_coeff"], low=params["kappa_l"], high=params["kappa_r"], alpha=params["alpha"], variant="code")
    log_probs, entropy = (case.given[key].clone().requires_grad_(True) for key in ("logp", "entropy"))
    turn = case.given["rollout_step"].long()[:, None].expand(entropy.shape)
    rollouts = Rollouts.of(case.given["mask"], old_log_probs=case.given["old_logp"], advantage=case.given["adv"], turn=turn)
    mean = case.given["history_epochs_by_step"].mean(0)
    state = {"reference": mean, "count": torch.full((len(mean),), 5)}
    step = Step(rollouts, log_probs, {KEY: entropy}, Progress(params["epoch"], params["max_epochs"]))
    objective = replace(link.recipe(), dual_clip=params["dual_clip_c"])
    loss = policy_loss(step, objective, chain(link), None, (state,)).loss
    case.close(loss, "loss")
    found = torch.autograd.grad(loss, [entropy, log_probs])
    case.close(found[0], "grad_entropy")
    case.close(found[1], "grad_logp")


def test_the_released_penalty_moves_the_value_and_no_gradient():
    step, link = step_of([[0.2, 0.9, 1.4, 2.0]]), Epo(coef=0.1, variant="code", alpha=0.3)
    assert released_penalty(step.signal(KEY), torch.ones(1, 1), 0.5, 1.5, 0.3).tolist() == [pytest.approx([0.3, 0, 0, 0.3])]
    assert not released_penalty(step.signal(KEY), torch.ones(1, 1), 0.5, 1.5, 0.3, "seq").any()
    torch.testing.assert_close(slope(link, step, past(1.0)), torch.full((1, 4), -0.1 / 4, dtype=torch.float64))
    with_past, without = (policy_loss(step, link.recipe(), chain(link), None, (state,)).loss.item() for state in (past(1.0), link.init()))
    assert with_past - without == pytest.approx(0.1 * 0.15)


# --- parameters


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"Epo: high must be at least 0\.5\. Got 0\.3\. The corridor is low\.\.high"):
        Epo(high=0.3)
    with pytest.raises(ValueError, match=r"Epo: coef must be at least 0\. Got -1"):
        Epo(coef=-1)
    with pytest.raises(ValueError, match=r"Epo: decay must be a fraction in \[0, 1\]\. Got 90\. If you meant 90 %"):
        Epo(decay=90)
    with pytest.raises(ValueError, match="keeps its own history, by turn"):
        Epo(variant="code", history="turn")


def test_an_upper_hinge_that_cannot_push_down_warns():
    with pytest.warns(UserWarning, match=r"ends at 0\.11, below 1: above the corridor the term still raises"):
        Epo(alpha=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Epo(alpha=0.0)
        Epo(alpha=0.1, variant="code")
        Epo(alpha=0.1, coef=0.0)
