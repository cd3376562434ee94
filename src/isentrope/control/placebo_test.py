"""Placebos by stage: what stays is exactly what stays, what is drawn is drawn afresh and by key."""

from dataclasses import dataclass, replace

import pytest
import torch

from isentrope.control.objectives import Objective
from isentrope.control.placebo import Placebo, moved, permutation, placebo
from isentrope.control.stages import Intervention, Penalty, chain, policy_loss, stages_of, survey
from isentrope.control.step import Progress, RowRng
from isentrope.testing import lived, play, world
from isentrope.testing.examples import (
    CoolUncertain,
    CreditUncertain,
    DropAtRandom,
    DropEqual,
    HoldLevel,
    KeepUncertain,
    LiftChosen,
    ReplayCorrect,
    ShorterIsBetter,
    WidenUncertain,
)  # fmt: skip
from isentrope.testing.world import RNG

SEEDS = range(3)


def surveyed(link: Intervention, seed: int, state=None):
    """The step of a world, the link's stats, and its state."""
    scene = world(seed).scored(link.needs)
    objective, step = link.recipe(), scene.step(link.needs)
    state = link.init() if state is None else state
    step = replace(step, ratio=objective.ratio(step.log_probs, step.old_log_probs, step.mask), bounds=objective.bounds())
    return step, survey(step, objective, chain(link), (state,), RNG).links[0], state


# --- permutations


def scattered(seed: int, rows: int = 6, width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    stratum = torch.randint(-1, 2, (rows, 1), generator=generator)
    return torch.randperm(100, generator=generator)[:rows], mask, stratum


@pytest.mark.parametrize("seed", SEEDS)
def test_a_permutation_stays_in_its_stratum_and_leaves_the_rest_alone(seed):
    row_id, mask, stratum = scattered(seed)
    source = permutation(row_id, mask, stratum, RowRng(seed))
    assert torch.equal(source.flatten().sort().values, torch.arange(mask.numel()))
    own = torch.arange(mask.numel()).reshape(mask.shape)
    assert torch.equal(source[~mask], own[~mask])
    assert (source[mask] != own[mask]).any()
    kinds = stratum.expand(mask.shape).flatten()
    assert torch.equal(kinds[source].reshape(mask.shape), kinds.reshape(mask.shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_permutation_follows_its_rows_when_they_are_reordered_or_padded(seed):
    row_id, mask, stratum = scattered(seed)
    value = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed))
    expected = moved(value, permutation(row_id, mask, stratum, RowRng(seed)))
    order = torch.randperm(len(row_id), generator=torch.Generator().manual_seed(seed + 9))
    again = moved(value[order], permutation(row_id[order], mask[order], stratum[order], RowRng(seed)))
    assert torch.equal(again, expected[order])
    wide, padded = torch.nn.functional.pad(mask, (0, 4)), torch.nn.functional.pad(value, (0, 4))
    assert torch.equal(moved(padded, permutation(row_id, wide, stratum, RowRng(seed)))[:, :5], expected)


def test_permutations_are_uniform():
    """Each of the 24 orders of four tokens comes up as often, by chi-square."""
    mask, row_id, counts = torch.ones(2, 2, dtype=torch.bool), torch.tensor([4, 2]), {}
    for step in range(2400):
        found = tuple(permutation(row_id, mask, torch.zeros(2, 1, dtype=torch.long), RowRng(0, step)).flatten().tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 24
    chi = sum((count - 100) ** 2 / 100 for count in counts.values())  # 23 degrees of freedom: mean 23, standard deviation 6.8
    assert chi < 23 + 5 * 6.8


# --- by stage


@pytest.mark.parametrize("seed", SEEDS)
def test_kept_tokens_are_as_many_in_each_sign_of_the_advantage(seed):
    link = KeepUncertain()
    sham = placebo(link)
    step, stats, state = surveyed(link, seed)
    _, sham_stats, _ = surveyed(sham, seed)
    real, drawn = link.weight(step, stats, state), sham.weight(step, sham_stats, state)
    assert drawn.denominator == real.denominator == "kept"
    for side in (step.advantage > 0, step.advantage < 0):
        counted = step.mask & side
        assert (real.keep & counted).sum() == (drawn.keep & counted).sum() > 0
    assert not torch.equal(real.keep & step.mask, drawn.keep & step.mask)


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_are_the_same_values_on_other_tokens_of_the_sign(seed):
    link = WidenUncertain()
    sham = placebo(link)
    step, stats, state = surveyed(link, seed)
    _, sham_stats, _ = surveyed(sham, seed)
    real, drawn = link.clip(step, stats, state), sham.clip(step, sham_stats, state)
    for side in (step.advantage > 0, step.advantage < 0):
        counted = step.mask & side
        assert torch.equal(real.high[counted].sort().values, drawn.high[counted].sort().values)
    assert not torch.equal(real.high[step.mask], drawn.high[step.mask])
    assert drawn.low == real.low


@pytest.mark.parametrize("seed", SEEDS)
def test_a_penalty_on_surveyed_tokens_falls_on_as_many_random_ones(seed):
    link = LiftChosen()
    step, stats, state = surveyed(link, seed)
    _, sham_stats, _ = surveyed(placebo(link), seed)
    real, drawn = link.regularise(step, stats, state), placebo(link).regularise(step, sham_stats, state)
    assert real.touched.sum() == drawn.touched.sum() > 0
    assert not torch.equal(real.touched, drawn.touched)
    expected = torch.where(drawn.touched, -link.coef * step.signal("current.entropy"), 0.0)
    assert torch.equal(torch.where(step.mask, drawn.token, 0.0), expected)  # the penalty of the link itself, elsewhere


@pytest.mark.parametrize("seed", SEEDS)
def test_a_penalty_without_surveyed_tokens_keeps_its_slopes_and_its_value(seed):
    link = HoldLevel()
    state = lived(link)
    step, stats, _ = surveyed(link, seed, state)
    _, sham_stats, _ = surveyed(placebo(link), seed, state)
    leaf = step.signals["current.entropy"].clone().requires_grad_(True)
    probe = replace(step, signals={"current.entropy": leaf})
    real, drawn = link.regularise(probe, stats, state), placebo(link).regularise(probe, sham_stats, state)
    torch.testing.assert_close(drawn.total, real.total, rtol=1e-12, atol=1e-15)
    slopes = [torch.autograd.grad(penalty.total, leaf, retain_graph=True)[0] for penalty in (real, drawn)]
    torch.testing.assert_close(slopes[0][step.mask].sort().values, slopes[1][step.mask].sort().values, rtol=1e-12, atol=1e-15)
    assert not torch.equal(slopes[0], slopes[1])
    assert real.touched.sum() == drawn.touched.sum()
    assert torch.equal(slopes[1] != 0, drawn.touched)


@dataclass(frozen=True)
class PullRatio(Intervention):
    """A penalty on the squared log-ratio where it is large: a function of the ratio, per token, without a survey."""

    name = "pull-ratio"
    source = "a test"

    def regularise(self, step, stats, state):
        far = (step.ratio.detach() - 1).abs() > 0.2
        return Penalty(token=torch.where(far, step.ratio.log() ** 2, 0.0), touched=far)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_penalty_on_the_ratio_keeps_its_slopes_in_the_log_probs(seed):
    scene = world(seed).scored(())
    grads, dapo = [], Objective.named("dapo")
    for control in (chain(PullRatio()), chain(placebo(PullRatio())), chain()):
        step = scene.step(())
        leaf = step.log_probs.clone().requires_grad_(True)
        loss = policy_loss(replace(step, log_probs=leaf), dapo, control, None, None, RNG).loss
        grads.append((torch.autograd.grad(loss, leaf)[0])[step.mask])
    real, drawn = grads[0] - grads[2], grads[1] - grads[2]
    torch.testing.assert_close(real.sort().values, drawn.sort().values, rtol=1e-9, atol=1e-15)
    assert (real - drawn).abs().max() > 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_shaping_terms_of_rewards_move_within_their_group(seed):
    link, rollouts = ShorterIsBetter(), world(seed).rollouts
    real, drawn = (each.reward(rollouts, {}) - rollouts.reward for each in (link, placebo(link)))
    for group in rollouts.group.unique():
        rows = rollouts.group == group
        torch.testing.assert_close(real[rows].sort().values, drawn[rows].sort().values, rtol=0, atol=1e-15)
    assert not torch.allclose(real, drawn)


@pytest.mark.parametrize("seed", SEEDS)
def test_shaping_terms_of_advantages_move_within_their_group_and_their_sum_stays(seed):
    link = CreditUncertain()
    rollouts = world(seed).scored(link.needs).rollouts
    real, drawn = (each.advantage(rollouts, {}) - rollouts.advantage for each in (link, placebo(link)))
    mask = rollouts.trained_mask
    for group in rollouts.group.unique():
        counted = mask & (rollouts.group == group)[:, None]
        torch.testing.assert_close(real[counted].sort().values, drawn[counted].sort().values, rtol=0, atol=1e-12)
    assert not torch.allclose(real[mask], drawn[mask])


def test_temperatures_of_a_decoding_step_change_hands():
    link, logits = CoolUncertain(), world(0).old[:, 0]
    real, drawn = link.temperature(logits, 1.0, {}), placebo(link).temperature(logits, 1.0, {})
    assert torch.equal(real.sort().values, drawn.sort().values)
    assert not torch.equal(real, drawn)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    assert torch.equal(placebo(link).temperature(logits[order], 1.0, {}), drawn[order])
    assert torch.equal(placebo(link).temperature(logits, 1.0, {}), drawn)
    assert not torch.equal(placebo(link, seed=1).temperature(logits, 1.0, {}), drawn)


@pytest.mark.parametrize("seed", range(6))
def test_a_filter_drops_as_many_random_groups(seed):
    link, rollouts = DropEqual(), world(seed).rollouts
    real, drawn = link.keep(rollouts, {}), placebo(link).keep(rollouts, {})
    assert real.sum() == drawn.sum()
    for group in rollouts.group.unique():
        assert drawn[rollouts.group == group].unique().numel() == 1
    assert placebo(link).rounds == link.rounds


@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_random_rows_are_replaced_by_random_samples_at_the_batchs_own_temperature(seed):
    link, scene = ReplayCorrect(), world(seed)
    sham, state = placebo(link), link.init()
    request = sham.extra(scene.rollouts, Progress(), state)
    assert (len(request.groups), request.samples) == (2, 4)
    assert request.temperature == 1.0
    assert set(request.groups.tolist()) <= set(scene.rollouts.group.tolist())
    extra = scene.extra(request).rollouts
    real, drawn = link.rows(scene.rollouts, extra, state, RNG), sham.rows(scene.rollouts, extra, state, RNG)
    assert len(drawn.target) == len(real.target) == drawn.target.unique().numel() > 0
    assert len(drawn.source) == len(real.source) == drawn.source.unique().numel()
    assert torch.equal(drawn.advantage.sort().values, real.advantage.sort().values)
    assert (set(drawn.target.tolist()), set(drawn.source.tolist())) != (set(real.target.tolist()), set(real.source.tolist()))


# --- the wrapper


def test_a_placebo_has_the_stages_of_its_link_and_a_survey_where_it_permutes():
    assert stages_of(placebo(WidenUncertain())) == ("survey", "clip")
    assert stages_of(placebo(ReplayCorrect())) == ("extra", "rows", "update")
    assert stages_of(placebo(HoldLevel())) == ("survey", "regularise", "update")
    assert type(placebo(KeepUncertain())) is type(placebo(DropAtRandom()))  # same stages, same class


def test_a_placebo_names_its_link():
    sham = placebo(KeepUncertain(), seed=3)
    assert sham.name == "keep-uncertain-placebo"
    assert sham.needs == KeepUncertain().needs
    assert chain(sham, KeepUncertain()).keys == ("keep-uncertain-placebo", "keep-uncertain")
    assert isinstance(sham, Placebo)
    assert sham == placebo(KeepUncertain(), seed=3) != placebo(KeepUncertain(), seed=4)


def test_seeds_choose_otherwise_and_the_same_seed_the_same():
    runs = [play(placebo(KeepUncertain(), seed=seed), world()).gradient for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_controller_runs_on_what_the_link_itself_found_or_on_a_recorded_series():
    link = HoldLevel()
    assert play(placebo(link), world()).state == play(link, world()).state
    series = tuple({"target": float(level)} for level in range(5))
    yoked = placebo(link, series=series)
    assert yoked.init() == {"target": 0.0}
    assert yoked.update({"target": 0.0}, None, Progress(3, 9)) == {"target": 3.0}
    assert yoked.update({"target": 0.0}, None, Progress(99, 99)) == {"target": 4.0}


@dataclass(frozen=True)
class Nothing(Intervention):
    name = "nothing"


@dataclass(frozen=True)
class OwnPolicy(Intervention):
    name = "own-policy"

    def policy(self, step):
        return step.log_probs


@pytest.mark.parametrize(
    ("link", "wording"),
    [
        (Nothing(), "Nothing has no stage"),
        (OwnPolicy(), "OwnPolicy has the stage policy, which has no budget to permute. Placebos exist for: select, extra, sample"),
        (placebo(KeepUncertain()), "keep-uncertain-placebo is a placebo already. For another one, change its seed"),
    ],
)
def test_what_has_no_placebo_says_so(link, wording):
    with pytest.raises(ValueError, match=wording):
        placebo(link)
