"""Syn-GRPO: diversity and each response's share of it against their definitions, the level, and which prompts are chosen."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import syn_grpo
from isentrope.control.papers.syn_grpo import SynGrpo, diversity
from isentrope.control.stages import Probed, ProbeRequest
from isentrope.control.step import Rollouts


def batch(correct: list[float], group: list[int] | None = None) -> Rollouts:
    value = torch.tensor(correct, dtype=torch.float64)
    group = [0] * len(correct) if group is None else group
    advantage = torch.zeros(len(correct), 1, dtype=torch.float64)
    return Rollouts.of(torch.ones(len(correct), 2, dtype=torch.bool), correct=value, reward=value, group=torch.tensor(group), advantage=advantage)


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def everyone(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_a_share_is_the_jackknife_value(outcomes):
    """g D - (g - 1) D without j, by taking j out; the shares' mean is the unbiased variance."""
    g = len(outcomes)
    d, own = diversity(torch.tensor(outcomes, dtype=torch.float64), *everyone(g))
    assert float(d[0]) == pytest.approx(variance(outcomes), abs=1e-12)
    for j in range(g):
        without = variance(outcomes[:j] + outcomes[j + 1 :])
        assert float(own[j]) == pytest.approx(g * variance(outcomes) - (g - 1) * without, abs=1e-9)
    assert float(own.mean()) == pytest.approx(variance(outcomes) * g / (g - 1), abs=1e-9)


def test_of_binary_outcomes_it_is_p_times_one_less_p():
    for right in range(9):
        d, own = diversity((torch.arange(8) < right).double(), *everyone(8))
        p = right / 8
        assert float(d[0]) == pytest.approx(p * (1 - p))
        assert float(d[0]) <= 0.25
        if 0 < right < 8:
            assert float(own[0]) == pytest.approx((1 - p) ** 2 * 8 / 7)
            assert (float(own[0]) > float(own[-1])) == (right < 4)
        else:
            assert not own.any()


def test_the_advantage_by_hand():
    """Group 0: one right of two, D = 1/4 and P = 1/2 each; group 1: all alike, D = P = 0. The level is their mean 1/8, or the state's."""
    link, rollouts = SynGrpo(coef=2.0), batch([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    assert link.advantage(rollouts, link.init()).squeeze(1).tolist() == pytest.approx([0.75, 0.75, -0.25, -0.25])
    assert link.advantage(rollouts, {"level": 0.5}).squeeze(1).tolist() == pytest.approx([0.0, 0.0, -1.0, -1.0])


def test_a_pay_of_the_other_sign_is_noticed(monkeypatch):
    straight = syn_grpo.diversity
    monkeypatch.setattr(syn_grpo, "diversity", lambda *given: tuple(-value for value in straight(*given)))
    with pytest.raises(AssertionError):
        test_the_advantage_by_hand()


def test_the_level_follows_slowly():
    link, rollouts = SynGrpo(smoothing=0.75), batch([1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    first = link.collect(rollouts, link.init())
    assert first == {"level": pytest.approx(0.125)}
    assert link.collect(batch([1.0, 0.0]), first)["level"] == pytest.approx(0.75 * 0.125 + 0.25 * 0.25)
    empty = replace(rollouts, trained_mask=torch.zeros(4, 2, dtype=torch.bool))
    assert link.collect(empty, first) is first


def test_what_has_no_text_counts_nowhere():
    rollouts = batch([1.0, 0.0, 0.0])
    mask = rollouts.trained_mask.clone()
    mask[2] = False
    link = SynGrpo(coef=1.0)
    ours = link.advantage(replace(rollouts, trained_mask=mask), {"level": 0.1}).squeeze(1)
    assert ours.tolist() == pytest.approx([0.4, 0.4, 0.0])
    alone = link.advantage(batch([1.0]), {"level": 0.1})
    assert alone.tolist() == [[pytest.approx(-0.1)]]


def test_without_a_verdict_the_reward_is_the_outcome():
    rollouts = replace(batch([1.0, 0.0]), correct=torch.full((2,), math.nan, dtype=torch.float64), reward=torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert SynGrpo().measured(rollouts)[0].tolist() == pytest.approx([1.0, 1.0])


def probed(rights: list[int], probes: int = 8) -> Probed:
    right = (torch.arange(probes) < torch.tensor(rights)[:, None]).float()
    return Probed(10 * torch.arange(len(rights)), right, right, torch.ones(len(rights), probes, dtype=torch.long))


def test_the_prompts_nearest_to_one_half_are_chosen():
    found = probed([0, 1, 4, 8, 6, 3])
    assert SynGrpo(prompts=2).select(found).tolist() == [20, 50]
    assert SynGrpo(prompts=6).select(found).tolist() == [20, 50, 40, 10]
    with pytest.raises(ValueError, match=r"Of 2 prompts with 8 responses each none did\. Raise probes or probe_prompts"):
        SynGrpo(prompts=1).select(probed([0, 8]))


def test_parameters():
    assert SynGrpo().probe() is None
    assert SynGrpo(prompts=4).probe() == ProbeRequest(16, 256)
    assert SynGrpo().embedded().neutral().probe() is None
    with pytest.raises(ValueError, match=r"SynGrpo: smoothing must be a fraction in \[0, 1\]\. Got 90"):
        SynGrpo(smoothing=90)
    with pytest.raises(ValueError, match=r"SynGrpo: probes must be at least 2\. Got 1\. A variance needs two"):
        SynGrpo(probes=1)
