"""ResRL: the recorded advantages, a batch by hand, GRPO at the neutral setting, NSR at least = 1, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from isentrope.control.papers import resrl
from isentrope.control.papers.common_test import recorded
from isentrope.control.papers.resrl import ResRL
from isentrope.control.step import Rollouts
from isentrope.testing.world import world

CASES = ("projection-weights", "projection-weights-flat", "projection-weights-full-rank", "projection-weights-skipped")


def of_case(name: str):
    case = recorded(f"resrl__{name}")
    given, params = case.given, case.params
    link = ResRL(params["pos_weight"], params["w_min"], params["rank"], params["q_low"], params["q_high"], params["max_pos_tokens"])
    known = {"group": given["group"].long(), "reward": torch.where(given["positive"] != 0, 1.0, -1.0), "advantage": given["adv"]}
    return case, link, Rollouts.of(given["mask"], **known, signals={"old.hidden[-2]": given["hidden"]})


@pytest.mark.parametrize("name", CASES)
def test_the_advantages_are_the_releases(name):
    case, link, rollouts = of_case(name)
    case.close(link.advantage(rollouts, {}), "adv", rollouts.trained_mask)


def test_weights_on_the_other_side_are_noticed(monkeypatch):
    weights = resrl.projection_weights
    monkeypatch.setattr(resrl, "projection_weights", lambda hidden, mask, positive, group, **known: weights(hidden, mask, ~positive, group, **known))
    case, link, rollouts = of_case(CASES[0])
    with pytest.raises(AssertionError):
        case.close(link.advantage(rollouts, {}), "adv", rollouts.trained_mask)


def by_hand() -> Rollouts:
    """Two right answers whose states vary along one direction; a wrong one with a token on that line and three ever further off it."""
    one, two, off = (torch.tensor(value) for value in ([1.0, -1, 0, 0], [0.0, 0, 1, -1], [1.0, 1, -1, -1]))
    line = torch.stack([torch.stack([one, -one]), torch.stack([-one, one]), torch.stack([one, two])])
    states = torch.cat([line, torch.stack([-one, off]).expand(3, 2, 4)], dim=1)
    mask = torch.tensor([[True, True, False, False]] * 2 + [[True] * 4])
    states = torch.where(mask[..., None], states, torch.nan)
    return Rollouts.of(mask, reward=torch.tensor([1.0, 1.0, 0.0]), advantage=torch.tensor([[1.0], [1.0], [-2.0]]), signals={"old.hidden[-2]": states})


def test_on_the_line_of_the_right_answers_a_token_counts_least():
    """Layer norm turns each state to mean square 1; `one` lies on the line (e = 0), the others are orthogonal to it (e = 1)."""
    found = ResRL(rank=1).advantage(by_hand(), {})
    torch.testing.assert_close(found[:2, :2], torch.full((2, 2), 0.1))
    torch.testing.assert_close(found[2], torch.tensor([-0.2, -2.0, -0.2, -2.0]))


def test_what_is_neutral_and_what_is_nsr():
    rollouts = by_hand()
    assert ResRL().neutral().advantage(rollouts, {}) is rollouts.advantage
    nsr = ResRL(least=1).advantage(replace(rollouts, signals={}), {})
    torch.testing.assert_close(nsr, torch.tensor([0.1, 0.1, -2.0])[:, None].expand(3, 4))


def test_only_the_reward_above_the_threshold_is_right():
    rollouts = replace(by_hand(), reward=torch.tensor([0.4, 0.4, 0.1]))
    assert torch.equal(ResRL(rank=1, threshold=0.3).advantage(rollouts, {}), ResRL(rank=1).advantage(by_hand(), {}))
    assert torch.equal(ResRL(rank=1).advantage(rollouts, {}), 0.1 * rollouts.advantage.expand(3, 4))


def test_scale_of_the_states_and_scattered_rows_do_not_matter():
    link = ResRL(rank=3)
    rollouts = world(3).scored(link.needs).rollouts
    plain = link.advantage(rollouts, {})
    larger = replace(rollouts, signals={key: 50 * value for key, value in rollouts.signals.items()})
    torch.testing.assert_close(link.advantage(larger, {}), plain, rtol=0, atol=1e-3)
    order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(2))
    assert torch.equal(link.advantage(rollouts.take(order), {}), plain[order])
    assert len(plain.unique()) > 10


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"least": 10.0}, r"ResRL: least must be a fraction in \[0, 1\]\. Got 10\.0\. If you meant 10 %"),
        ({"low": 0.8, "high": 0.2}, r"ResRL: low must be below high\. Got 0\.8 and 0\.2\. The paper has 0\.2 and 0\.8\."),
        ({"scale": -1.0}, r"ResRL: scale must be at least 0\. Got -1\.0\. 1 leaves the right answers as they are\."),
        ({"rank": 0}, r"ResRL: rank must be at least 1\. Got 0\."),
        ({"max_rows": 3}, r"ResRL: max_rows must be at least 4\. Got 3\. With fewer right tokens nothing is weighted\."),
    ],
)
def test_wrong_parameters_are_refused(known, message):
    with pytest.raises(ValueError, match=message):
        ResRL(**known)
