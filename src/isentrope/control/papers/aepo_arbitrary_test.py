"""AEPO: recorded outputs, which rows are replaced, what H_now is, and the drift that the extra term causes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import aepo_arbitrary
from isentrope.control.papers.aepo_arbitrary import AepoArbitrary, dcpo_advantage, log_space_clip_loss, replacements
from isentrope.control.papers.common_test import in_slices, recorded, recorded_step, reproduce, some_step
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import ORIGINS, Progress, Rollouts, RowRng, Step
from isentrope.testing.world import World, play, world

LINK = AepoArbitrary()
COLD = {"entropy": 0.9}
HOT = {"entropy": 0.1}


# --- recorded outputs


@pytest.mark.parametrize("name", ["loss", "loss-extreme"])
def test_the_log_space_clip_is_the_released_one_and_equals_the_recipe(name):
    case = recorded(f"aepo-arbitrary__{name}")
    params = case.params
    leaf, step = recorded_step(case)
    found = log_space_clip_loss(
        leaf, step.old_log_probs, step.advantage, step.mask,
        epsilon_low=params["eps_low"], epsilon_high=params["eps_high"], dual_clip=params["dual_clip_c"],
    )  # fmt: skip
    case.close(found.loss, "loss")
    case.close(torch.autograd.grad(found.loss, leaf)[0], "grad_logp")
    case.close(found.surprise, "entropy_estimate")
    case.close(found.clipped, "clipfrac_high")
    case.close(found.dual_clipped, "clipfrac_low")
    reproduce(AepoArbitrary(variant="code"), case)


@pytest.mark.parametrize("name", ["large", "small"])
def test_the_dcpo_advantage_is_the_released_one(name):
    case = recorded(f"aepo-arbitrary__dcpo-advantage-{name}-gap")
    given, params = case.given, case.params
    known = {"entropy": params["entropy"], "target": params["target"], "cap": params["cap"]}
    case.close(dcpo_advantage(given["adv"], given["correct"].bool(), given["old_logp"], given["old_logp_at_T"], **known), "adv")


def follows_the_record(name: str) -> None:
    case = recorded(f"aepo-arbitrary__replacement-{name}-target")
    reward, params = case.given["extra_rewards"], case.params
    group = torch.arange(len(reward)).repeat_interleave(reward.shape[1])
    found = replacements(
        reward.flatten(), group, entropy=params["entropy"], target=params["target"],
        most=params["reinforce_sample_num"], threshold=params["threshold"],
    )  # fmt: skip
    assert torch.equal(found.kept, case.found["kept_index"])
    assert found.count == int(case.found["replaced"])


@pytest.mark.parametrize("name", ["above", "below"])
def test_the_replacements_are_the_released_ones(name):
    follows_the_record(name)


def test_keeping_the_wrong_responses_is_noticed(monkeypatch):
    advantages = aepo_arbitrary.group_advantages
    monkeypatch.setattr(aepo_arbitrary, "group_advantages", lambda *values: -advantages(*values))
    with pytest.raises(AssertionError):
        follows_the_record("below")


# --- which rows


def extra_of(scene: World, state) -> tuple[Rollouts, Rollouts]:
    """The batch, and the responses that the link asks for."""
    request = LINK.extra(scene.rollouts, Progress(), state)
    return scene.rollouts, scene.extra(request).scored(LINK.needs).rollouts


def test_the_first_quarter_of_the_groups_is_sampled_again():
    rollouts = world(0, groups=8, samples=3).rollouts
    request = LINK.extra(rollouts, Progress(), LINK.init())
    assert request.groups.tolist() == sorted(rollouts.group.unique().tolist())[:2]
    assert request.samples == 3
    assert LINK.extra(rollouts.take(torch.arange(23, -1, -1)), Progress(), LINK.init()).groups.tolist() == request.groups.tolist()


def test_hot_below_the_target_cold_above_and_hot_at_first():
    rollouts = world(0).rollouts
    temperatures = [LINK.extra(rollouts, Progress(), {"entropy": value}).temperature for value in (0.0, 0.5, 0.5001)]
    assert temperatures == [1.2, 1.2, 0.8]
    assert LINK.init() == {"entropy": 0.0}


def with_rewards(extra: Rollouts, rewards: list[float]) -> Rollouts:
    return replace(extra, reward=torch.tensor(rewards, dtype=torch.float64))


def test_the_first_rows_by_id_become_the_first_kept_with_advantage_one():
    rollouts, extra = extra_of(world(1), HOT)
    extra = with_rewards(extra, [0.0, 1.0, 0.0, 1.0])
    edit = LINK.rows(rollouts, extra, HOT, RowRng())
    assert rollouts.row_id[edit.target].tolist() == sorted(rollouts.row_id.tolist())[:2]
    assert edit.source.tolist() == [1, 3]
    assert edit.advantage.tolist() == [1.0, 1.0]
    assert edit.dropped is None
    order = torch.tensor([3, 0, 2, 1])
    again = LINK.rows(rollouts, extra.take(order), HOT, RowRng())
    assert extra.take(order).row_id[again.source].tolist() == extra.row_id[edit.source].tolist()


@pytest.mark.parametrize(
    ("rewards", "state", "most", "count"),
    [
        ([1.0, 0.0, 0.0, 1.0], HOT, 60, 2),
        ([1.0, 0.0, 0.0, 1.0], COLD, 60, 1),
        ([1.0, 0.0, 0.0, 0.0], COLD, 60, 0),  # one kept, halved
        ([1.0, 1.0, 1.0, 0.0], HOT, 2, 2),
        ([1.0, 1.0, 1.0, 0.0], COLD, 2, 1),  # at most 2, then halved
        ([1.0, 1.0, 1.0, 1.0], HOT, 60, 0),  # equal rewards have no advantage: no kept sample, no replacement
        ([0.0, 0.0, 0.0, 0.0], HOT, 60, 0),
        ([0.7, 0.7, 0.7, 0.7], HOT, 60, 0),
        ([float("nan")] * 4, HOT, 60, 0),
    ],
)
def test_how_many_are_replaced(rewards, state, most, count):
    rollouts, extra = extra_of(world(1), HOT)
    edit = AepoArbitrary(replaced=most).rows(rollouts, with_rewards(extra, rewards), state, RowRng())
    assert len(edit.target) == len(edit.source) == len(edit.advantage) == count


def test_no_more_rows_are_replaced_than_there_are():
    rollouts, extra = extra_of(world(1), HOT)
    edit = LINK.rows(rollouts.take(torch.tensor([5])), with_rewards(extra, [1.0, 1.0, 0.0, 0.0]), HOT, RowRng())
    assert edit.target.tolist() == [0]
    assert edit.source.tolist() == [0]


def test_without_extra_responses_nothing_is_replaced():
    rollouts = world(0).rollouts
    assert AepoArbitrary(replaced=0).extra(rollouts, Progress(), HOT) is None
    assert len(LINK.rows(rollouts, None, HOT, RowRng()).target) == 0


@pytest.mark.parametrize("link", [LINK, AepoArbitrary(variant="code")], ids=["fixed", "code"])
def test_slices_and_order_train_the_same_rows(link):
    scene = world(5)
    whole = play(link, scene, state=HOT).by_row()
    assert (whole.rollouts.origin != 0).any()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for slices in (2, 8):
        cut = play(link, scene.take(order), state=HOT, slices=slices).by_row()
        assert torch.equal(cut.rollouts.row_id, whole.rollouts.row_id)
        torch.testing.assert_close(cut.gradient, whole.gradient, rtol=1e-9, atol=1e-12)
        assert cut.state["entropy"] == pytest.approx(whole.state["entropy"], rel=1e-12)


# --- what H_now is


def after(link: AepoArbitrary, step: Step) -> float:
    stats = survey(step, link.recipe(), chain(link), (HOT,), RowRng())
    return advance(chain(link), (HOT,), stats, Progress())[0]["entropy"]


def test_entropy_is_of_the_ordinary_rows_and_the_code_takes_the_surprise_of_all():
    step = some_step(LINK)
    origin = torch.zeros(16, dtype=torch.long)
    origin[[2, 5]] = ORIGINS.index("branch")
    step = replace(step, rollouts=replace(step.rollouts, origin=origin))
    ordinary = step.mask & (origin == 0)[:, None]
    assert after(LINK, step) == pytest.approx(float(step.signal("current.entropy")[ordinary].mean()), rel=1e-12)
    assert after(AepoArbitrary(variant="code"), step) == pytest.approx(float(-step.log_probs[step.mask].mean()), rel=1e-12)
    none = replace(step, rollouts=replace(step.rollouts, origin=torch.full((16,), ORIGINS.index("branch"))))
    assert after(LINK, none) == HOT["entropy"]


def test_the_loss_itself_is_the_objectives():
    step = some_step(LINK)
    assert torch.equal(in_slices(LINK, step, 16)[1][0].loss, policy_loss(step, LINK.recipe()).loss)


# --- why it moves entropy


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


def drift(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """-sum_i S_i (p_T - p)_i, the first-order change of entropy per unit of alpha eta."""
    p, hot = torch.softmax(logits, -1), torch.softmax(logits / temperature, -1)
    return -(p * (p.log() + entropy_of(logits)[..., None]) * (hot - p)).sum(-1)


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.5, 0.8, 0.9, 1.1, 1.2, 2.0, 5.0]), vocab=st.integers(2, 60))
@settings(max_examples=50, deadline=None)
def test_imitating_hot_samples_raises_entropy_and_cold_ones_lower_it(seed, temperature, vocab):
    logits = 2 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    predicted = drift(logits, temperature)
    assert float(predicted) * (temperature - 1) > 0
    eta = 1e-5
    target = torch.softmax(logits / temperature, -1)
    moved = [entropy_of(logits + sign * eta * (target - torch.softmax(logits, -1))) for sign in (1, -1)]
    torch.testing.assert_close((moved[0] - moved[1]) / (2 * eta), predicted, rtol=1e-4, atol=1e-8)


def test_near_temperature_one_the_drift_is_the_sum_of_squares_and_at_one_it_is_zero():
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.softmax(logits, -1)
    squares = (p * (p.log() + entropy_of(logits)[:, None])).square().sum(-1)
    torch.testing.assert_close(drift(logits, 1 + 1e-6) / 1e-6, squares, rtol=1e-4, atol=0)
    assert torch.equal(drift(logits, 1.0), torch.zeros(5, dtype=torch.float64))


# --- DCPO


def test_dcpo_by_hand():
    """Half correct, gap 0.05: a = 0.1, alpha = 1 / 11; imitation factor 2 on the correct row."""
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    old = torch.zeros(2, 2, dtype=torch.float64)
    found = dcpo_advantage(advantage, torch.tensor([True, False]), old, old + torch.log(torch.tensor(2.0)), entropy=0.45, target=0.5)
    assert found.tolist() == [pytest.approx([12 / 11] * 2, rel=1e-6), pytest.approx([-10 / 11] * 2, rel=1e-6)]


def test_dcpo_without_a_correct_response_leaves_the_advantage():
    advantage, old = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 3)
    found = dcpo_advantage(advantage, torch.tensor([False, False]), old, old, entropy=0.2, target=0.5)
    assert torch.equal(found, advantage.expand(2, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AepoArbitrary(target=-1.0), r"AepoArbitrary: target must be at least 0\. Got -1\.0\. It is an entropy in nats\."),
        (lambda: AepoArbitrary(replaced=-1), r"AepoArbitrary: replaced must be at least 0\. Got -1\. 0 switches it off\."),
        (lambda: AepoArbitrary(groups=25.0), r"AepoArbitrary: groups must be a fraction in \[0, 1\]\. Got 25\.0\. If you meant 25 %, write groups=0\.25\."),
        (lambda: AepoArbitrary(hot=0.5), r"AepoArbitrary: temperatures must satisfy 0 < cold <= hot\. Got cold=0\.8, hot=0\.5"),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="variant"):
        AepoArbitrary(variant="paper")
