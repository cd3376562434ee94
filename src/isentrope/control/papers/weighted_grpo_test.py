"""Weighted GRPO: the closed forms of its sheet, the cancellation, and who is weighted."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers.weighted_grpo import WeightedGrpo, normalised_outcomes, rare_events
from isentrope.control.stages import Probed, ProbeRequest
from isentrope.control.step import Rollouts


def outcomes(right: int, total: int):
    return torch.arange(total) < right, torch.zeros(total, dtype=torch.long), torch.ones(total, dtype=torch.bool)


def batch(right, group=None, advantage=None) -> Rollouts:
    right = torch.tensor(right, dtype=torch.float64)
    advantage = 2 * right - 1 if advantage is None else torch.tensor(advantage, dtype=torch.float64)
    group = torch.zeros(len(right), dtype=torch.long) if group is None else torch.tensor(group)
    return Rollouts.of(torch.ones(len(right), 2, dtype=torch.bool), correct=right, reward=right.clone(), group=group, advantage=advantage[:, None])


@given(st.floats(0, 10), st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_before_the_normalisation_every_lambda_is_plain_grpo(failure, right):
    p = right / 16
    found = normalised_outcomes(*outcomes(right, 16), failure, scale=True)
    assert float(found[0]) == pytest.approx(math.sqrt((1 - p) / p), rel=1e-3)
    assert float(found[-1]) == pytest.approx(-math.sqrt(p / (1 - p)), rel=1e-3)
    assert float(found.abs().mean()) == pytest.approx(2 * math.sqrt(p * (1 - p)), rel=1e-3)
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)


def test_one_success_of_eight():
    found = normalised_outcomes(*outcomes(1, 8), 1.0, scale=True)
    assert [round(float(x), 2) for x in found[:2]] == [2.65, -0.38]
    assert float(normalised_outcomes(*outcomes(7, 8), 1.0, scale=True)[-1]) == pytest.approx(-2.646, abs=1e-2)


def test_without_the_deviation_lambda_is_one_factor():
    one, five = (normalised_outcomes(*outcomes(3, 8), failure, scale=False) for failure in (1.0, 5.0))
    torch.testing.assert_close(five, 3 * one)
    assert float(one[0]) == pytest.approx(2 * 5 / 8)
    link = WeightedGrpo(failure=5.0, stage="mean-only")
    torch.testing.assert_close(link.advantage(batch([1, 1, 1, 0, 0, 0, 0, 0]), {})[:, 0], five)


@pytest.mark.parametrize("right", [0, 8])
def test_equal_outcomes_give_nothing(right):
    for scale in (True, False):
        assert not normalised_outcomes(*outcomes(right, 8), 3.0, scale=scale).any()
    assert not any(kind.any() for kind in rare_events(*outcomes(right, 8), rare=2))


def test_who_is_rare():
    for right, rare, won, lost in ((1, 2, 1, 0), (2, 2, 2, 0), (3, 2, 0, 0), (6, 2, 0, 2), (7, 1, 0, 1), (6, 1, 0, 0)):
        found = rare_events(*outcomes(right, 8), rare=rare)
        assert [int(kind.sum()) for kind in found] == [won, lost]
    won, lost = rare_events(*outcomes(1, 2), rare=1)
    assert won.tolist() == [True, False]
    assert lost.tolist() == [False, True]


def test_after_the_normalisation_only_the_rare_are_weighted():
    right = [1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0]
    group = [3] * 4 + [1] * 4 + [2] * 4
    found = WeightedGrpo(success=3.0, failure=2.0, rare=1).advantage(batch(right, group), {})[:, 0]
    assert found.tolist() == [3, -1, -1, -1, 1, 1, 1, -2, 1, 1, -1, -1]


@pytest.mark.parametrize(("right", "success", "failure"), [(1, 2.5, 1.0), (7, 1.0, 2.5)])
def test_the_mean_of_a_weighted_group(right, success, failure):
    p = right / 8
    values = [math.sqrt((1 - p) / p)] * right + [-math.sqrt(p / (1 - p))] * (8 - right)
    rollouts = batch([1] * right + [0] * (8 - right), advantage=values)
    found = WeightedGrpo(success=success, failure=failure).advantage(rollouts, {})
    assert float(found.mean()) == pytest.approx((success - failure) * math.sqrt(p * (1 - p)))


def test_the_reward_decides_where_no_verifier_spoke_and_empty_rows_are_nobody():
    rollouts = batch([1, 0, 0, 0])
    rollouts.correct.fill_(float("nan"))
    assert WeightedGrpo(success=3.0).advantage(rollouts, {})[:, 0].tolist() == [3, -1, -1, -1]
    rollouts.trained_mask[1:] = False  # no wrong response is left
    assert WeightedGrpo(success=3.0).advantage(rollouts, {})[:, 0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(("wrong", "says"), [({"success": -1.0}, "rare successes"), ({"failure": -1.0}, "rare failures"), ({"rare": 0}, "counts responses")])
def test_wrong_parameters_say_the_way_out(wrong, says):
    with pytest.raises(ValueError, match=rf"WeightedGrpo: .*{says}"):
        WeightedGrpo(**wrong)


def test_the_printed_order_warns_that_it_does_nothing():
    with pytest.warns(UserWarning, match="cancels"):
        WeightedGrpo(stage="before")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightedGrpo()


# --- pairs of prompts


def probed(rights: list[int], probes: int = 8, lengths: list[int] | None = None, verdict: bool = True) -> Probed:
    right = (torch.arange(probes) < torch.tensor(rights)[:, None]).float()
    length = torch.tensor([10] * len(rights) if lengths is None else lengths)[:, None].expand(-1, probes)
    correct = right if verdict else torch.full_like(right, math.nan)
    return Probed(100 + 10 * torch.arange(len(rights)), right, correct, length)


def test_the_pair_is_the_hardest_solved_and_the_easiest_failed():
    """Of 0, 3, 8, 1, 6, 7 rights of 8: 1 and 7; two pairs add 3 and 6; never what is always solved or never."""
    found = probed([0, 3, 8, 1, 6, 7])
    assert WeightedGrpo(pairs=1).select(found).tolist() == [130, 150]
    assert WeightedGrpo(pairs=2).select(found).tolist() == [130, 150, 110, 140]
    assert WeightedGrpo(pairs=9).select(found).tolist() == [130, 150, 110, 140]
    assert WeightedGrpo(pairs=1).select(probed([0, 3, 8, 1, 6, 7], verdict=False)).tolist() == [130, 150]


def test_ties_go_to_the_shorter_and_then_to_the_first():
    assert WeightedGrpo(pairs=1).select(probed([1, 1, 7, 7], lengths=[9, 4, 8, 3])).tolist() == [110, 130]
    assert WeightedGrpo(pairs=1).select(probed([1, 1, 7, 7])).tolist() == [100, 120]


@given(st.lists(st.integers(0, 8), min_size=2, max_size=12), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_no_prompt_is_on_both_sides(rights, pairs):
    found = probed(rights)
    mixed = [position for position, right in zip(found.position.tolist(), rights, strict=True) if 0 < right < 8]
    if len(mixed) < 2:
        with pytest.raises(ValueError, match=r"pairs needs two prompts that are solved sometimes and failed sometimes\. Of \d+ prompts"):
            WeightedGrpo(pairs=pairs).select(found)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = WeightedGrpo(pairs=pairs).select(found).tolist()
    assert len(set(chosen)) == len(chosen) == 2 * min(pairs, len(mixed) // 2)
    assert set(chosen) <= set(mixed)


def test_what_is_not_rare_warns():
    with pytest.warns(UserWarning, match=r"hard prompts are solved in 62% and the easy ones in 62% of the trials"):
        WeightedGrpo(pairs=1).select(probed([5, 5]))


def test_without_pairs_nothing_is_probed():
    assert WeightedGrpo().probe() is None
    assert WeightedGrpo().embedded().neutral().probe() is None
    assert WeightedGrpo(pairs=1).probe() == ProbeRequest(16, 256)
    with pytest.raises(ValueError, match=r"WeightedGrpo: probes must be at least 2\. Got 1"):
        WeightedGrpo(probes=1)
