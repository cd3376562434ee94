"""The contract itself: it passes what is sound, and every check fails for an intervention that breaks its property and no other."""

import inspect
import random
import re
from dataclasses import dataclass, replace
from unittest import SkipTest

import pytest
import torch

import isentrope.testing.bites
import isentrope.testing.budget
import isentrope.testing.checks
from isentrope.control.objectives import Objective
from isentrope.control.placebo import placebo
from isentrope.control.registry import registry
from isentrope.control.stages import Intervention, Penalty, TokenWeight, policy_loss
from isentrope.control.step import Need, Stats, Variant
from isentrope.measure.tokens import Entropy, LogProb
from isentrope.testing import ContractError, check_intervention, checks, parametrize_with_checks, play, variants, world
from isentrope.testing.checks import CHECKS
from isentrope.testing.examples import EXAMPLES, CoolUncertain, CreditUncertain, DropAtRandom, LiftChosen, WidenUncertain, mean_where


@parametrize_with_checks(EXAMPLES)
def test_the_examples_keep_the_contract(intervention, check):
    check(intervention)


@parametrize_with_checks([placebo(example, seed=2) for example in EXAMPLES])
def test_placebos_are_sound_interventions_themselves(intervention, check):
    if check.name == "placebo_keeps_the_budget":
        with pytest.raises(ContractError, match="is a placebo already"):
            check(intervention)
    else:
        check(intervention)


# --- broken on purpose: one property each


@dataclass(frozen=True)
class Broken(Intervention):
    """A sound weight on uncertain tokens, for the others to break."""

    name = "broken"
    source = "broken on purpose"
    coef: float = 0.5

    @property
    def needs(self):
        return (Need(Entropy()),)

    def neutral(self):
        return replace(self, coef=0.0)

    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, {"mean": mean_where(view.signal("current.entropy"), view.mask)})

    def weight(self, step, stats, state):
        above = step.signal("current.entropy") > stats.scalars["mean"]
        return TokenWeight(torch.where(above, 1 + self.coef, 1.0).to(step.log_probs.dtype))


class NeutralIsNot(Broken):
    def neutral(self):
        return replace(self, coef=1e-6)


class NeutralStaysCool(CoolUncertain):
    def neutral(self):
        return replace(self, coef=1e-9)  # no loss shows it


class MultipliesByTheMask(CreditUncertain):
    def advantage(self, rollouts, state):
        mask = rollouts.trained_mask
        mean = (rollouts.signal("old.entropy") * mask).sum() / mask.sum().clamp(min=1)
        return rollouts.advantage * (1 + self.coef * torch.tanh(mean)) if self.coef else rollouts.advantage


class CountsThePadding(Broken):
    def survey(self, view, state, rng):
        return Stats(view.rollouts.row_id, {"mean": view.signal("current.entropy").mean()})


class TakesTheFirstRows(DropAtRandom):
    def survey(self, view, state, rng):
        keep = torch.ones_like(view.mask)
        keep[: 4 if self.share else 0] = False
        return Stats(view.rollouts.row_id, tokens={"keep": keep})


class KeysByPlace(DropAtRandom):
    def survey(self, view, state, rng):
        place = torch.arange(len(view.rollouts))
        return Stats(view.rollouts.row_id, tokens={"keep": rng.uniform(place, view.mask.shape[1]) >= self.share})


class MeansOfASlice(Broken):
    def weight(self, step, stats, state):
        own = {"mean": mean_where(step.signal("current.entropy"), step.mask)}
        return super().weight(step, replace(stats, scalars=own), state)


class CountsRanksTwice(LiftChosen):
    def regularise(self, step, stats, state):
        penalty = super().regularise(step, stats, state)
        return Penalty(total=penalty.token.sum() * step.normaliser.world_size, touched=penalty.touched)


class DividesByASpread(Broken):
    def survey(self, view, state, rng):
        entropy = view.signal("current.entropy")[view.mask]
        return Stats(view.rollouts.row_id, {"mean": entropy.mean(), "std": (entropy - entropy.mean()).square().mean().sqrt()})

    def weight(self, step, stats, state):
        z = (step.signal("current.entropy").detach() - stats.scalars["mean"]) / stats.scalars["std"]
        return TokenWeight(1 + self.coef * torch.tanh(z)) if self.coef else TokenWeight()


class LeaksThroughEntropy(Broken):
    def weight(self, step, stats, state):
        return TokenWeight(1 + self.coef * torch.tanh(step.signal("current.entropy")))


class LeaksThroughTheRatio(Broken):
    def weight(self, step, stats, state):
        return TokenWeight(1 + self.coef * torch.tanh(step.ratio))


class LosesDigits(Broken):
    def weight(self, step, stats, state):
        return TokenWeight(1 + self.coef * ((step.signal("current.entropy").detach() + 1e5) - 1e5))


class RemembersAnObject(Broken):
    def init(self):
        return {"seen": [0.0]}


class DrawsFromTorch(DropAtRandom):
    def survey(self, view, state, rng):
        keep = torch.rand(view.mask.shape) >= self.share
        return Stats(view.rollouts.row_id, tokens={"keep": keep[torch.argsort(torch.argsort(view.rollouts.row_id))]})


class TouchesAGlobalGenerator(Broken):
    def survey(self, view, state, rng):
        torch.rand(1)  # without effect here, but everybody after it draws otherwise
        return super().survey(view, state, rng)


class DrawsFromPython(DropAtRandom):
    def survey(self, view, state, rng):
        keep = rng.uniform(view.rollouts.row_id, view.mask.shape[1]) >= self.share * random.random()
        return Stats(view.rollouts.row_id, tokens={"keep": keep})


class ReadsKeysForNothing(Broken):
    def survey(self, view, state, rng):
        rng.uniform(view.rollouts.row_id, 1)
        return super().survey(view, state, rng)


class OneBoundForAll(WidenUncertain):
    def clip(self, step, stats, state):
        return replace(step.bounds, high=step.bounds.high + self.coef)


class IgnoresItsSurvey(LiftChosen):
    def regularise(self, step, stats, state):
        chosen = step.mask & (step.advantage > 0) & (step.signal("current.entropy") > 2.0)
        return Penalty(token=-self.coef * torch.where(chosen, step.signal("current.entropy"), 0.0), touched=chosen)


class ChoosesThePolicy(Broken):
    def policy(self, step):
        return step.log_probs


class DoesNothing(Broken):
    def weight(self, step, stats, state):
        return TokenWeight(torch.ones_like(step.log_probs))


@dataclass
class IsNotFrozen(Intervention):
    name = "not-frozen"
    source = "broken on purpose"
    gain: float = 1.5

    def neutral(self):
        return IsNotFrozen(gain=1.0)

    def weight(self, step, stats, state):
        return TokenWeight(torch.where(step.signal("current.log_prob") > -1.0, self.gain, 1.0).to(step.log_probs.dtype))

    @property
    def needs(self):
        return (Need(LogProb(grad=False)),)


class HasNoSource(Broken):
    source = ""


@dataclass(frozen=True)
class ParameterNamedLikeAStage(Broken):
    reward: float = 1.0


BROKEN = [
    (NeutralIsNot(), {"neutral_equals_recipe": "neutral loss .* the objective's"}),
    (NeutralStaysCool(), {"neutral_leaves_rollouts_alone": "neutral changes the sampling temperatures"}),
    (MultipliesByTheMask(), {"padding_never_matters": "nan under the mask"}),
    (CountsThePadding(), {"padding_never_matters": "wider padding"}),
    (TakesTheFirstRows(), {"permuting_permutes": "another order"}),
    (KeysByPlace(), {"permuting_permutes": "another order"}),
    (MeansOfASlice(), {"split_into_micro_batches": "slices", "split_over_ranks": "ranks"}),
    (CountsRanksTwice(), {"split_over_ranks": "ranks"}),
    (DividesByASpread(), {"degenerate_batches_stay_finite": "the (loss|gradient) is"}),
    (LeaksThroughEntropy(), {"gradients_flow_only_where_declared": r"reaches current\.entropy; declare it with grad=True"}),
    (LeaksThroughTheRatio(), {"gradients_flow_only_where_declared": "weight carries a gradient"}),
    (LosesDigits(), {"precision_agrees": "float32"}),
    (TouchesAGlobalGenerator(), {"same_seed_same_result": "global generator"}),
    (ReadsKeysForNothing(), {"same_seed_same_result": "never choose otherwise"}),
    (OneBoundForAll(), {"placebo_keeps_the_budget": "no stage chose anything"}),
    (IgnoresItsSurvey(), {"placebo_keeps_the_budget": "as the intervention itself"}),
    (ChoosesThePolicy(), {"placebo_keeps_the_budget": "the stage policy"}),
    (IsNotFrozen(), {"declares_itself": "frozen dataclass"}),
    (HasNoSource(), {"declares_itself": "a source"}),
]


@pytest.mark.parametrize(("link", "expected"), BROKEN, ids=[type(link).__name__ for link, _ in BROKEN])
def test_each_fault_fails_its_own_check_and_no_other(link, expected):
    found = failures(link)
    assert set(found) == set(expected), found
    for name, wording in expected.items():
        assert re.search(wording, found[name]), found[name]
        assert link.name in found[name]
        assert name in found[name]
        assert type(link).__name__ in found[name]


def failures(link: Intervention) -> dict[str, str]:
    """Message by check."""
    found = {}
    for check in CHECKS:
        try:
            if not check.slow:
                check(link)
        except ContractError as error:
            found[check.name] = str(error)
        except SkipTest:
            pass
    return found


@pytest.mark.parametrize("link", [DrawsFromTorch(), DrawsFromPython()], ids=["torch", "python"])
def test_unkeyed_randomness_is_caught(link):
    found = failures(link)
    assert "the same keys a second time" in found["same_seed_same_result"]
    assert {"permuting_permutes", "split_into_micro_batches", "split_over_ranks", "padding_never_matters"} <= set(found)


def test_a_state_that_holds_an_object_is_caught():
    assert "state['seen'] is a list; flat values only" in failures(RemembersAnObject())["state_round_trips"]


def test_a_parameter_named_like_a_stage_is_named():
    found = failures(ParameterNamedLikeAStage())
    assert "parameter 'reward' is taken for the stage 'reward'; rename it" in found["declares_itself"]


# --- expected failures are strict


@dataclass(frozen=True)
class Deviates(MeansOfASlice):
    reasons: tuple[str, ...] = ("split_into_micro_batches", "split_over_ranks")

    @property
    def expected_failures(self):
        return dict.fromkeys(self.reasons, "takes its mean over a slice, as the released code did")


def test_an_expected_failure_is_silent_and_one_that_passes_is_a_failure():
    assert failures(Deviates()) == {}
    found = failures(Deviates(reasons=("split_into_micro_batches", "split_over_ranks", "precision_agrees")))
    assert set(found) == {"precision_agrees"}
    assert re.search(r"expected to fail \(takes its mean over a slice.*and passed\. Take it out", found["precision_agrees"])


def test_an_expected_failure_of_no_check_is_an_error():
    found = failures(Deviates(reasons=("split_into_micro_batches", "split_over_ranks", "split_into_microbatches")))
    assert "['split_into_microbatches']" in found["declares_itself"]


# --- the public surface


def test_check_intervention_lists_every_failure():
    check_intervention(DropAtRandom(), slow=False)
    with pytest.raises(ContractError) as caught:
        check_intervention(MeansOfASlice(), slow=False)
    assert "split_into_micro_batches (contract 3)" in str(caught.value)
    assert "split_over_ranks (contract 3)" in str(caught.value)


def test_checks_cover_the_nine_contracts_and_are_short():
    assert {check.contract for check in checks()} == set(range(10))
    for check in checks():
        assert len(inspect.getsource(check.function).splitlines()) < 40, check.name
        assert check.function.__doc__


def test_no_check_knows_an_intervention_by_name():
    text = "".join(inspect.getsource(module) for module in (isentrope.testing.checks, isentrope.testing.budget, isentrope.testing.bites))
    assert [name for name in registry() if re.search(rf"\b{re.escape(name)}\b|\b{name.replace('-', '_')}\b", text)] == []


@dataclass(frozen=True)
class TwoFormulas(DropAtRandom):
    name = "two-formulas"
    variant: Variant = "code"

    def __post_init__(self):
        if self.variant == "fixed":
            raise ValueError("TwoFormulas: nothing to fix.")

    def embedded(self):
        return replace(self, share=0.3)


def test_a_class_stands_for_its_variants_in_their_embedded_setting():
    assert variants(TwoFormulas) == [TwoFormulas(variant="paper", share=0.3), TwoFormulas(variant="code", share=0.3)]
    assert variants(DropAtRandom) == [DropAtRandom()]


def test_parametrised_ids_read_name_and_check():
    mark = parametrize_with_checks({"two-formulas": TwoFormulas, "drop-at-random": DropAtRandom}).mark
    ids = [parameter.id for parameter in mark.args[1]]
    assert "two-formulas[paper]-padding_never_matters" in ids
    assert "drop-at-random-padding_never_matters" in ids
    assert len(ids) == len(set(ids)) == 3 * len(CHECKS)
    slow = {parameter.id for parameter in mark.args[1] if any(each.name == "slow" for each in parameter.marks)}
    assert slow == {name for name in ids if name.endswith("-bites")}


# --- the world


def test_the_world_is_what_it_says():
    for seed in range(5):
        scene = world(seed)
        rollouts, step = scene.rollouts, scene.scored(()).step(())
        assert len(set(rollouts.lengths.tolist())) > 3
        assert 0 < rollouts.correct.mean() < 1
        assert (rollouts.completion_mask & ~rollouts.trained_mask).any(), "text outside the loss"
        ratio = (step.log_probs - step.old_log_probs).exp()[step.mask]
        assert ratio.min() < 0.8
        assert ratio.max() > 1.2
        assert (rollouts.advantage > 0).any()
        assert (rollouts.advantage < 0).any()
        assert rollouts.row_id.unique().numel() == 16
        assert rollouts.group.unique().numel() == 4
        assert torch.equal(world(seed).logits, scene.logits)
        assert not torch.equal(world(seed + 1).logits, scene.logits)


def test_a_played_update_is_the_gradient_of_the_objective():
    scene = world(1).scored(())
    leaf = scene.logits.clone().requires_grad_(True)
    step = scene.step((), leaf)
    expected = torch.autograd.grad(policy_loss(step, Objective.named("grpo")).loss, leaf)[0]
    torch.testing.assert_close(play(None, world(1)).gradient, expected, rtol=1e-12, atol=1e-16)
    assert (expected[~step.mask] == 0).all()
    assert expected[step.mask].abs().max() > 1e-4


def test_an_undeclared_signal_is_not_there():
    class ReadsWhatItDidNotAskFor(Broken):
        needs = ()

    with pytest.raises(KeyError, match=r"current\.entropy.*Declare it in `needs`"):
        play(ReadsWhatItDidNotAskFor(), world())
