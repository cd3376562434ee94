"""The chain and the pure loss: how links compose, what a survey shares, and that the predicted entropy change is the measured one."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from isentrope.control.objectives import Bounds, Objective
from isentrope.control.stages import (
    Chain,
    ChainStats,
    Intervention,
    Penalty,
    TokenWeight,
    advance,
    chain,
    policy_loss,
    predicted_push,
    removed_shares,
    stages_of,
    survey,
)  # fmt: skip
from isentrope.control.step import Need, Progress, Rollouts, RowRng, Stats, Step, join_steps, micro_batches
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, LogProb, token_signals_from_logits

GRPO = Objective.named("grpo")
DAPO = Objective.named("dapo")


# --- links of one stage each


@dataclass(frozen=True)
class Scale(Intervention):
    name = "scale"
    factor: float = 2.0

    def weight(self, step, stats, state):
        return TokenWeight(value=torch.full_like(step.log_probs, self.factor))


@dataclass(frozen=True)
class Above(Intervention):
    """Keeps tokens whose entropy is above a level of the update: its mean plus `shift`."""

    name = "above"
    denominator: str = "all"
    shift: float = 0.0
    scope: str = "update"

    def survey(self, view, state, rng):
        level = view.signal("current.entropy")[view.mask].mean() + self.shift
        return Stats(view.rollouts.row_id, {"level": level})

    def weight(self, step, stats, state):
        return TokenWeight(keep=step.signal("current.entropy") > stats.scalars["level"], denominator=self.denominator)


@dataclass(frozen=True)
class Below(Above):
    name = "below"

    def weight(self, step, stats, state):
        return TokenWeight(keep=step.signal("current.entropy") <= stats.scalars["level"], denominator=self.denominator)


@dataclass(frozen=True)
class Width(Intervention):
    name = "width"
    low: float = 0.5
    high: float = 1.5

    def clip(self, step, stats, state):
        return replace(step.bounds, low=self.low, high=self.high)


@dataclass(frozen=True)
class Bonus(Intervention):
    """A penalty per token and one over the update, so that both ways are added."""

    name = "bonus"
    coef: float = 0.1

    @property
    def needs(self):
        return (Need(Entropy(grad=True)),)

    def regularise(self, step, stats, state):
        entropy = step.signal("current.entropy")
        return Penalty(-self.coef * entropy, self.coef * torch.where(step.mask, entropy, 0.0).sum(), step.mask)


@dataclass(frozen=True)
class Draw(Intervention):
    """Keeps a token with probability one half, by its key."""

    name = "draw"

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, tokens={"keep": rng.uniform(view.rollouts.row_id, view.mask.shape[1]) < 0.5})

    def weight(self, step, stats, state):
        return TokenWeight(keep=stats.token("keep", step))


@dataclass(frozen=True)
class Frozen(Intervention):
    name = "frozen"

    def policy(self, step):
        return step.log_probs.detach()


@dataclass(frozen=True)
class Count(Intervention):
    name = "count"
    opposes = frozenset({"scale"})

    def init(self):
        return {"updates": 0, "tokens": 0.0}

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, {"tokens": view.mask.sum()})

    def update(self, state, stats, progress):
        return {"updates": progress.step, "tokens": state["tokens"] + float(stats.scalars["tokens"])}


@dataclass(frozen=True)
class SeesBounds(Intervention):
    """Remembers the upper bound that reaches its weight stage as the weight itself."""

    name = "sees"

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, {"high": torch.as_tensor(view.bounds.high)})

    def weight(self, step, stats, state):
        return TokenWeight(value=torch.full_like(step.log_probs, float(step.bounds.high) * float(stats.scalars["high"])))


# --- a tabular policy


@dataclass(frozen=True)
class Table:
    """A logit vector for every position: the smallest policy that has an entropy."""

    logits: torch.Tensor
    rollouts: Rollouts
    signals: ClassVar = (LogProb(), Entropy(grad=True), Discriminant(), ExpectedDiscriminant())

    def step(self) -> Step:
        found = token_signals_from_logits(self.logits, self.rollouts.completion_ids, self.signals)
        return Step(self.rollouts, found["log_prob"], {f"current.{key}": value for key, value in found.items()})


def table(seed: int = 0, rows: int = 8, width: int = 6, vocab: int = 7) -> Table:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, width, vocab, generator=generator, dtype=torch.float64)
    ids = torch.randint(vocab, (rows, width), generator=generator)
    mask = torch.arange(width) < torch.randint(2, width + 1, (rows, 1), generator=generator)
    log_prob = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
    old = log_prob + 0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    advantage = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    known = {"row_id": 50 - torch.arange(rows), "group": torch.arange(rows) // 4, "completion_ids": ids, "advantage": advantage, "old_log_probs": old}
    return Table(logits.requires_grad_(True), Rollouts.of(mask, **known))


def gradient(loss: torch.Tensor, policy: Table) -> torch.Tensor:
    return torch.autograd.grad(loss, policy.logits, retain_graph=True)[0]


# --- the chain


def test_chains_flatten_and_keys_are_unique():
    inner = chain(Scale(), Scale(3.0))
    whole = chain(inner, Draw(), chain(Scale(4.0)))
    assert [link.name for link in whole.links] == ["scale", "scale", "draw", "scale"]
    assert whole.keys == ("scale", "scale#2", "draw", "scale#3")
    assert whole.without(1).keys == ("scale", "draw", "scale#3")
    assert chain() == Chain()


@pytest.mark.usefixtures("unchecked")
def test_a_link_that_is_no_intervention_is_refused_with_the_way_out():
    with pytest.raises((ValueError, TypeError), match=r"must be an Intervention\. Got 'clip-cov'.*registry\.build"):
        chain("clip-cov")


def test_two_policies_of_one_ratio_are_refused():
    with pytest.raises(ValueError, match=r"only one link may choose the policy.*frozen, frozen"):
        chain(Frozen(), Frozen())


def test_two_clips_warn_that_the_last_wins_and_it_does():
    with pytest.warns(UserWarning, match="width, width all set the clip bounds.*last wins"):
        both = chain(Width(0.9, 1.1), Width(0.2, 3.0))
    step = table().step()
    assert torch.equal(policy_loss(step, GRPO, both).loss, policy_loss(step, GRPO, chain(Width(0.2, 3.0))).loss)
    assert not torch.equal(policy_loss(step, GRPO, both).loss, policy_loss(step, GRPO, chain(Width(0.9, 1.1))).loss)


def test_opposites_warn_and_one_clip_does_not():
    with pytest.warns(UserWarning, match="count undoes scale"):
        chain(Scale(), Count())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chain(Scale(), Width(), Draw())


def test_stages_are_read_off_the_methods_in_their_order():
    assert stages_of(Above()) == ("survey", "weight")
    assert stages_of(Bonus()) == ("regularise",)
    assert stages_of(Count()) == ("survey", "update")
    assert stages_of(Intervention()) == ()


def test_needs_of_a_chain_are_united_and_a_gradient_wins():
    @dataclass(frozen=True)
    class Reads(Intervention):
        name = "reads"

        @property
        def needs(self):
            return (Need(Entropy()), Need(Entropy(), policy="old"))

    for links in ((Reads(), Bonus()), (Bonus(), Reads())):
        needs = {need.key: need.signal.grad for need in chain(*links).needs}
        assert needs == {"current.entropy": True, "old.entropy": False}


# --- policy_loss


def test_the_empty_chain_is_the_objective():
    step = table().step()
    ratio = GRPO.ratio(step.log_probs, step.old_log_probs, step.mask)
    token = GRPO.surrogate(ratio, step.advantage, step.log_probs, GRPO.bounds(), step.mask)
    assert torch.equal(policy_loss(step, GRPO).loss, GRPO.aggregate(token, step.mask, step.normaliser))


def test_policy_loss_is_pure():
    policy, control = table(), chain(Above(denominator="kept"), Draw(), Bonus(), Width(), Count())
    step = policy.step()
    before = [value.detach().clone() for value in (step.log_probs, step.rollouts.advantage, step.old_log_probs, *step.signals.values())]
    generator = torch.random.get_rng_state()
    first, second = policy_loss(step, DAPO, control), policy_loss(step, DAPO, control)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(gradient(first.loss, policy), gradient(second.loss, policy))
    assert step.ratio is None
    assert step.bounds is None
    after = (step.log_probs, step.rollouts.advantage, step.old_log_probs, *step.signals.values())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert not any(value.requires_grad for value in (first.observed.ratio, first.observed.weight, *first.metrics.values()))


def test_what_stands_under_the_mask_is_nothing():
    policy = table()
    step = policy.step()
    control = chain(Above(denominator="kept"), Bonus(), Scale())
    clean = policy_loss(step, DAPO, control).loss
    for value in (float("nan"), float("inf"), 1e30):
        rollouts = replace(
            step.rollouts,
            old_log_probs=torch.where(step.mask, step.old_log_probs, value),
            advantage=torch.where(step.mask, step.advantage, value),
            signals={"old.entropy": torch.full_like(step.log_probs, value)},
        )
        signals = {key: torch.where(step.mask, each, value) for key, each in step.signals.items()}
        dirty = replace(step, rollouts=rollouts, log_probs=torch.where(step.mask, step.log_probs, value), signals=signals)
        loss = policy_loss(dirty, DAPO, control).loss
        assert torch.equal(loss, clean)
        assert torch.equal(gradient(loss, policy), gradient(clean, policy))


def test_old_signals_reach_a_link_without_what_stands_under_the_mask():
    seen = []

    @dataclass(frozen=True)
    class Looks(Intervention):
        name = "looks"

        def weight(self, step, stats, state):
            seen.append(step.signal("old.entropy"))
            return TokenWeight()

    step = table().step()
    old = torch.where(step.mask, torch.ones_like(step.log_probs), float("nan"))
    policy_loss(replace(step, rollouts=replace(step.rollouts, signals={"old.entropy": old})), GRPO, chain(Looks()))
    assert all(torch.equal(value, step.mask.to(value.dtype)) for value in seen)
    assert seen


# --- composition


def test_weights_multiply():
    policy = table()
    step = policy.step()
    six, both = policy_loss(step, GRPO, chain(Scale(6.0))), policy_loss(step, GRPO, chain(Scale(2.0), Scale(3.0)))
    assert torch.equal(six.loss, both.loss)
    torch.testing.assert_close(both.loss, 6 * policy_loss(step, GRPO).loss, rtol=1e-12, atol=0)
    assert torch.equal(both.observed.weight, torch.where(step.mask, 6.0, 1.0).double())
    assert both.observed.touched["scale#2"].sum() == step.mask.sum()


def test_kept_tokens_intersect_and_each_link_sees_its_own_touch():
    step = table().step()
    entropy, mask = step.signal("current.entropy"), step.mask
    level = entropy[mask].mean()
    result = policy_loss(step, DAPO, chain(Above(shift=-0.2), Below(shift=0.2)))
    kept = (entropy > level - 0.2) & (entropy <= level + 0.2) & mask
    assert 0 < int(kept.sum()) < int(mask.sum())
    assert torch.equal((result.observed.weight != 0) & mask, kept)
    assert torch.equal(result.observed.touched["above"], (entropy <= level - 0.2) & mask)
    assert torch.equal(result.observed.touched["below"], (entropy > level + 0.2) & mask)
    assert policy_loss(step, DAPO, chain(Above(), Below())).loss == 0


def test_penalties_add_to_the_loss_with_the_aggregation_of_the_objective():
    step = table().step()
    entropy = step.signal("current.entropy")
    expected = policy_loss(step, DAPO).loss
    for coef in (0.1, 0.3):
        expected = expected + DAPO.aggregate(-coef * entropy, step.mask, step.normaliser) + coef * entropy[step.mask].sum()
    result = policy_loss(step, DAPO, chain(Bonus(0.1), Bonus(0.3)))
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)
    assert set(result.metrics) == {"policy_loss", "link/bonus/penalty", "link/bonus#2/penalty"}


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_kept_denominator_is_that_of_the_update_and_slices_add_up(name, size):
    policy, objective = table(), Objective.named(name)
    step = policy.step()
    control = chain(Above(denominator="kept"), Draw(), Bonus())
    whole = policy_loss(step, objective, control)
    parts = list(micro_batches(step, size))
    stats = survey(join_steps(parts), objective, control, control.init(), RowRng())
    results = [policy_loss(part, objective, control, stats) for part in parts]
    torch.testing.assert_close(sum(result.loss for result in results), whole.loss, rtol=1e-12, atol=1e-15)
    total = sum(gradient(policy_loss(part, objective, control, stats).loss, policy) for part in micro_batches(policy.step(), size))
    torch.testing.assert_close(total, gradient(whole.loss, policy), rtol=1e-10, atol=1e-14)
    assert torch.equal(torch.cat([result.observed.weight for result in results]), whole.observed.weight)


def test_a_kept_denominator_divides_by_the_kept_tokens():
    step = table().step()
    entropy, mask = step.signal("current.entropy"), step.mask
    keep = (entropy > entropy[mask].mean()) & mask
    token = DAPO.surrogate(DAPO.ratio(step.log_probs, step.old_log_probs, mask), step.advantage, step.log_probs, DAPO.bounds(), mask)
    kept = policy_loss(step, DAPO, chain(Above(denominator="kept"))).loss
    torch.testing.assert_close(kept, token[keep].sum() / keep.sum(), rtol=1e-6, atol=0)  # the share is a float32
    everything = policy_loss(step, DAPO, chain(Above())).loss
    torch.testing.assert_close(everything, token[keep].sum() / mask.sum(), rtol=1e-12, atol=0)


def test_a_kept_denominator_without_a_survey_of_the_update_is_refused():
    step = table().step()
    control = chain(Above(denominator="kept"))
    whole = survey(step, DAPO, control, control.init(), RowRng())
    with pytest.raises(ValueError, match='denominator "kept" needs the survey'):
        policy_loss(step, DAPO, control, ChainStats(whole.links))


def test_a_survey_sees_the_bounds_that_earlier_links_left():
    step = table().step()
    before = policy_loss(step, GRPO, chain(Width(0.5, 1.5), SeesBounds())).observed.weight
    after = policy_loss(step, GRPO, chain(SeesBounds(), Width(0.5, 1.5))).observed.weight
    torch.testing.assert_close(before, torch.where(step.mask, 1.5 * 1.5, 1.0).double(), rtol=1e-6, atol=0)
    expected = torch.where(step.mask, 1.5 * float(GRPO.bounds().high), 1.0).double()
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=0)  # weights come after all clips, surveys do not


def test_scope_micro_batch_takes_its_statistics_slice_by_slice():
    policy = table()
    step, control = policy.step(), chain(Above(scope="micro-batch"))
    parts = list(micro_batches(step, 2))
    stats = survey(join_steps(parts), DAPO, control, control.init(), RowRng())
    assert stats.links == (None,)
    for part in parts:
        entropy = part.signal("current.entropy")
        expected = (entropy <= entropy[part.mask].mean()) & part.mask
        assert torch.equal(policy_loss(part, DAPO, control, stats).observed.touched["above"], expected)


def test_the_policy_stage_decides_which_log_probs_form_the_ratio():
    step = table().step()
    result = policy_loss(step, GRPO, chain(Frozen()))
    assert not result.loss.requires_grad
    assert result.loss == policy_loss(step, GRPO).loss


def test_clip_touches_the_tokens_whose_slope_changes():
    step = table().step()
    ratio, advantage, mask = step.log_probs.sub(step.old_log_probs).exp(), step.advantage.expand_as(step.log_probs), step.mask
    touched = policy_loss(step, GRPO, chain(Width(0.7, 1.3))).observed.touched["width"]
    high = (advantage > 0) & (ratio > 1.2) & (ratio < 1.3)
    low = (advantage < 0) & (ratio < 0.8) & (ratio > 0.7)
    assert torch.equal(touched, (high | low) & mask)
    assert touched.any()


def test_total_penalties_count_once_over_ranks():
    policy = table()
    step, control = policy.step(), chain(Bonus())
    shared = replace(step.normaliser, world_size=2, token_divisor=step.mask.sum() / 2)
    halves = [replace(part, normaliser=shared) for part in micro_batches(step, 4)]
    averaged = sum(policy_loss(part, DAPO, control).loss for part in halves) / 2
    torch.testing.assert_close(averaged, policy_loss(step, DAPO, control).loss, rtol=1e-12, atol=1e-14)


def test_draws_of_two_links_are_independent_and_keyed_by_row():
    step, control = table(rows=16).step(), chain(Draw(), Draw())
    found = policy_loss(step, GRPO, control).observed.touched
    assert not torch.equal(found["draw"], found["draw#2"])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = replace(step, rollouts=step.rollouts.take(order), log_probs=step.log_probs[order], signals={k: v[order] for k, v in step.signals.items()})
    assert torch.equal(policy_loss(shuffled, GRPO, control).observed.touched["draw"], found["draw"][order])


# --- controllers


def test_advance_moves_the_links_that_have_a_state():
    step = table().step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        control = chain(Scale(), Count())
    state = control.init()
    for update in (1, 2):
        stats = survey(step, GRPO, control, state, RowRng())
        state = advance(control, state, stats, Progress(update, 10))
    assert state == ({}, {"updates": 2, "tokens": 2.0 * int(step.mask.sum())})


# --- the predicted entropy change


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "control", [chain(), chain(Above(denominator="kept")), chain(Scale(0.5), Draw()), chain(Width(0.9, 1.05))], ids=lambda c: "+".join(c.keys) or "empty"
)
def test_predicted_push_is_the_measured_change_of_every_states_entropy(seed, control):
    """dH of a state under a step of size eta along the negative gradient is eta x push, by central differences."""
    policy = table(seed)
    step = policy.step()
    push = predicted_push(step, DAPO, control, None, control.init(), RowRng())
    slope = gradient(policy_loss(step, DAPO, control).loss, policy)
    eta = 1e-3

    def entropy(logits):
        return token_signals_from_logits(logits, policy.rollouts.completion_ids, [Entropy()])["entropy"]

    measured = (entropy(policy.logits.detach() - eta * slope) - entropy(policy.logits.detach() + eta * slope)) / (2 * eta)
    torch.testing.assert_close(push, measured, rtol=1e-4, atol=1e-8)
    assert push[step.mask].abs().max() > 1e-4
    assert (push[~step.mask] == 0).all()


def test_predicted_push_is_the_token_rule():
    """-w r A (S - N) over the divisor, where no clip bites."""
    step = table().step()
    wide, control = chain(Width(0.0, 1e9)), chain(Width(0.0, 1e9), Scale(3.0))
    ratio = (step.log_probs - step.old_log_probs).exp().detach()
    rule = -ratio * step.advantage * (step.signal("current.S") - step.signal("current.N")).detach() / step.mask.sum()
    rule = torch.where(step.mask, rule, 0.0)
    torch.testing.assert_close(predicted_push(step, DAPO, wide, None, wide.init(), RowRng()), rule, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(predicted_push(step, DAPO, control, None, control.init(), RowRng()), 3 * rule, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("given", [False, True], ids=["surveyed-inside", "survey-given"])
def test_removed_shares_are_what_each_link_took_away(given):
    step = table().step()
    control = chain(Above(denominator="all"), Scale(0.25))
    state = control.init()
    stats = survey(step, DAPO, control, state, RowRng()) if given else None
    shares = removed_shares(step, DAPO, control, stats, state, RowRng())
    plain = predicted_push(step, DAPO, chain(), None, (), RowRng())
    keep = step.signal("current.entropy") > step.signal("current.entropy")[step.mask].mean()
    without, whole = shares["above"]
    torch.testing.assert_close(without, 0.25 * plain.sum(), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(whole, 0.25 * plain[keep].sum(), rtol=1e-9, atol=1e-15)
    without, whole = shares["scale"]
    torch.testing.assert_close(without, plain[keep].sum(), rtol=1e-9, atol=1e-15)
    assert abs(float(without - whole)) > 1e-4


def test_removed_shares_of_a_link_that_narrows_the_divisor():
    step = table().step()
    control = chain(Above(denominator="kept"), Scale(0.5))
    stats = survey(step, DAPO, control, control.init(), RowRng())
    shares = removed_shares(step, DAPO, control, stats, control.init(), RowRng())
    plain = predicted_push(step, DAPO, chain(), None, (), RowRng())
    torch.testing.assert_close(shares["above"][0], 0.5 * plain.sum(), rtol=1e-9, atol=1e-15)
    kept = predicted_push(step, DAPO, chain(Above(denominator="kept")), None, ({},), RowRng())
    torch.testing.assert_close(shares["scale"][0], kept.sum(), rtol=1e-9, atol=1e-15)


def test_without_a_gradient_the_push_is_nothing():
    step, control = table().step(), chain(Frozen())
    assert predicted_push(step, GRPO, control, None, control.init(), RowRng()).abs().sum() == 0


def test_bounds_are_the_objectives_own_without_a_clip():
    assert isinstance(GRPO.bounds(), Bounds)
