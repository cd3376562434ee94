"""Entrocraft: recorded outputs, which responses are left out, what they leave the mean to, the schedules, and where the theorem ends."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.advantages import group_advantages, spread
from isentrope.control.papers import entrocraft
from isentrope.control.papers.common_test import recorded
from isentrope.control.papers.entrocraft import Entrocraft, integral_weighted, positive_weighted, released_advantage, side_of
from isentrope.control.step import Progress, Rollouts, RowRng
from isentrope.testing import play, world

START = {"step": 0, "total": 10}
LINK = Entrocraft(low=1.0, high=2.0, low_end=None, high_end=None)


def batch(advantage: list[float], entropy: float | list[list[float]], lengths: list[int] | None = None) -> Rollouts:
    rows = len(advantage)
    width = 3 if isinstance(entropy, float) else len(entropy[0])
    mask = torch.ones(rows, width, dtype=torch.bool) if lengths is None else torch.arange(width) < torch.tensor(lengths)[:, None]
    value = torch.full((rows, width), entropy) if isinstance(entropy, float) else torch.tensor(entropy)
    given = torch.tensor(advantage)
    correct = (given > 0).float()
    return Rollouts.of(mask, advantage=given[:, None], reward=correct, correct=correct, signals={"old.entropy": value})


def dropped(link: Entrocraft, rollouts: Rollouts, state=START) -> list[int]:
    edit = link.rows(rollouts, None, state, RowRng())
    assert len(edit.target) == len(edit.source) == len(edit.advantage) == 0
    return edit.dropped.tolist()


# --- recorded outputs


def test_the_released_rule_and_its_schedules():
    case = recorded("entrocraft__band-advantage")
    params, score = case.params, case.given["token_rewards"].sum(-1)
    inside = group_advantages(score, case.given["group"].long())
    for schedule in ("linear", "cosine"):
        link = Entrocraft(params["lower"][0], params["upper"][0], params["lower"][1], params["upper"][1], schedule)
        states = [{"step": step, "total": params["total_steps"]} for step in params["steps"]]
        sides = [side_of(entropy, *link.band(state)) for entropy in params["entropies"] for state in states]
        assert set(sides) == {-1, 0, 1}
        ours = [spread(released_advantage(score, inside, side), case.given["mask"]) for side in sides]
        case.close(torch.stack(ours), schedule)


def test_the_released_baselines():
    case = recorded("entrocraft__baselines")
    params, score, mask = case.params, case.given["token_rewards"].sum(-1), case.given["mask"]
    case.close(spread(positive_weighted(score, params["pos_weight"]), mask), "w_reinforce")
    found, integral = integral_weighted(score, params["entropy"], params["target"], 0.0, gain_p=params["gain_p"], gain_i=params["gain_i"])
    case.close(spread(found, mask), "entropic")
    case.close(integral, "integral_out")


# --- which are left out


def test_below_the_band_successes_go_and_above_it_failures():
    advantage = [1.0, -1.0, 0.0, 0.5, -0.2]
    assert dropped(LINK, batch(advantage, 0.9)) == [0, 3]
    assert dropped(LINK, batch(advantage, 2.1)) == [1, 4]
    for inside in (1.0, 1.5, 2.0):  # the edges belong to the band
        assert dropped(LINK, batch(advantage, inside)) == []


def test_a_band_of_the_other_sign_is_noticed(monkeypatch):
    monkeypatch.setattr(entrocraft, "side_of", lambda entropy, low, high: -side_of(entropy, low, high))
    with pytest.raises(AssertionError):
        test_below_the_band_successes_go_and_above_it_failures()


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.sampled_from([0.1, 1.5, 5.0]))
@settings(max_examples=60, deadline=None)
def test_the_kept_never_have_the_wrong_sign(advantage, entropy):
    left = dropped(LINK, batch([float(value) for value in advantage], entropy))
    m = side_of(entropy, 1.0, 2.0)
    assert [m * value < 0 for value in advantage] == [row in left for row in range(len(advantage))]


def test_the_entropy_is_a_mean_over_responses_or_over_tokens():
    """Responses of 1 and 3 tokens with entropies 4 and 0: 2 by response, 1 by token; an empty one counts nowhere."""
    rollouts = batch([1.0, -1.0, 1.0], [[4.0, 9.0, 9.0], [0.0, 0.0, 0.0], [math.nan] * 3], [1, 3, 0])
    assert LINK.entropy(rollouts) == 2.0
    assert replace(LINK, of="token").entropy(rollouts) == 1.0
    assert math.isnan(LINK.entropy(replace(rollouts, trained_mask=torch.zeros(3, 3, dtype=torch.bool))))


def test_an_advantage_by_token_counts_by_its_mean():
    rollouts = batch([0.0, 0.0], 0.5)
    finer = torch.tensor([[3.0, -1.0, -1.0], [1.0, -1.0, -1.0]])
    assert dropped(LINK, replace(rollouts, advantage=finer)) == [0]


def test_the_mean_is_over_what_is_kept():
    """A played update with the failures left out equals the objective on the kept responses alone, loss and gradient."""
    scene = world(3)
    link = Entrocraft(low=0.0, high=1e-3, low_end=None, high_end=None)
    ours = play(link, scene)
    keep = (scene.rollouts.advantage.squeeze(1) >= 0).nonzero().squeeze(1)
    assert 0 < len(keep) < len(scene.rollouts)
    alone = play(None, scene.take(keep), objective=link.recipe())
    torch.testing.assert_close(ours.loss, alone.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.gradient[keep], alone.gradient, rtol=1e-12, atol=0)
    left = torch.ones(len(scene.rollouts), dtype=torch.bool)
    left[keep] = False
    assert not ours.gradient[left].any()


def test_nothing_kept_is_an_empty_update():
    scene = world(0)
    rollouts = replace(scene.rollouts, advantage=scene.rollouts.advantage.abs() + 0.1)
    found = play(Entrocraft(low=50.0, high=60.0, low_end=None, high_end=None), replace(scene, rollouts=rollouts))
    assert float(found.loss) == 0
    assert not found.gradient.any()


# --- schedules


def test_the_band_moves_with_the_run():
    link = Entrocraft(0.6, 0.7, 0.2, 0.5)
    assert link.band(link.init()) == (0.6, 0.7)
    assert link.band({"step": 5, "total": 10}) == pytest.approx((0.4, 0.6))
    assert link.band({"step": 10, "total": 10}) == pytest.approx((0.2, 0.5))
    wave = replace(link, schedule="cosine")
    assert wave.band({"step": 5, "total": 10}) == pytest.approx((0.4, 0.6))
    assert wave.band({"step": 2, "total": 8})[0] == pytest.approx(0.6 - 0.4 * (1 - math.cos(math.pi / 4)) / 2)
    after = link.update(link.init(), None, Progress(7, 20))
    assert after == {"step": 7, "total": 20}
    rollouts = batch([1.0, -1.0], 0.55)
    assert dropped(link, rollouts, {"step": 0, "total": 10}) == [0]
    assert dropped(link, rollouts, {"step": 10, "total": 10}) == [1]


# --- the released form


def test_the_released_form_replaces_the_advantage_and_drops_nothing():
    """Two right, one wrong, one without a verdict whose reward is 0.7."""
    link = replace(LINK, variant="code")
    rollouts = batch([0.5, 0.5, -1.0, 0.0], 0.5)
    rollouts = replace(rollouts, correct=torch.tensor([1.0, 1.0, 0.0, math.nan]), reward=torch.tensor([1.0, 1.0, 0.0, 0.7]))
    high = replace(rollouts, signals={"old.entropy": torch.full((4, 3), 2.5)})
    assert link.advantage(rollouts, START).tolist() == [[0.0], [0.0], [-1.0], [0.0]]
    assert link.advantage(high, START).tolist() == [[1.0], [1.0], [0.0], [pytest.approx(0.7)]]
    inside = replace(rollouts, signals={"old.entropy": torch.full((4, 3), 1.5)})
    assert link.advantage(inside, START) is inside.advantage
    assert dropped(link, rollouts) == []


# --- the theorem's edge


def test_a_rare_token_that_is_rewarded_raises_entropy():
    """dH has the sign of -(S_k - E S): negative for the likely token, positive for the rare one (ln p < -H), by one small step on the logits."""
    logits = torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum()
    assert p[2].log() < -entropy

    def change(token: int) -> float:
        step = logits.clone()
        step += 1e-4 * (torch.nn.functional.one_hot(torch.tensor(token), 3) - p)
        q = step.softmax(-1)
        return float(-(q * q.log()).sum() - entropy)

    s = p * (p.log() + entropy)
    for token in (0, 2):
        assert math.copysign(1, change(token)) == -math.copysign(1, float(s[token] - (p * s).sum()))
    assert change(0) < 0 < change(2)


# --- parameters


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"Entrocraft: high must be at least 0\.8\. Got 0\.7\. The band is low\.\.high"):
        Entrocraft(low=0.8)
    with pytest.raises(ValueError, match=r"Entrocraft: high_end must be at least 0\.1\. Got 0\.05"):
        Entrocraft(high_end=0.05)
    with pytest.raises(ValueError, match="both be finite or both be inf"):
        Entrocraft(high=math.inf)


def test_the_neutral_band_holds_everything():
    link = Entrocraft().neutral()
    for entropy in (0.0, 12.0):
        assert dropped(link, batch([1.0, -1.0], entropy), {"step": 3, "total": 4}) == []
