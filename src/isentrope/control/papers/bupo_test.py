"""BuPO: the recorded loss, the ratio of two internal policies by hand, where the phase ends, and what gradient the full policy gets."""

from dataclasses import replace

import pytest
import torch

from isentrope.control.papers import bupo
from isentrope.control.papers.bupo import Bupo
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.requests import LayerLogProb
from isentrope.control.stages import PolicyPair, chain, policy_loss, survey
from isentrope.control.step import Need, Progress, Rollouts, RowRng, Step
from isentrope.measure.tokens import LogProb, token_signals

CURRENT, OLD = "current.layer_log_prob[6]", "old.layer_log_prob[6]"


def step_of(current: list[float], old: list[float], advantage: list[float], at: int = 0) -> Step:
    leaf = torch.tensor([current], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(leaf.shape, dtype=torch.bool)
    own = torch.full(leaf.shape, -0.5, dtype=torch.float64, requires_grad=True)
    rollouts = Rollouts.of(
        mask, advantage=torch.tensor([advantage], dtype=torch.float64), old_log_probs=own.detach() - 0.1,
        signals={OLD: torch.tensor([old], dtype=torch.float64)},
    )  # fmt: skip
    return Step(rollouts, own, {CURRENT: leaf}, Progress(at, 100))


def test_the_loss_on_one_layer_is_the_released_one():
    case = recorded("bupo__ipa-loss")
    hidden, unembed = (case.given[name].clone().requires_grad_(True) for name in ("hidden", "unembed"))
    found = token_signals(hidden, unembed, case.given["token_ids"].long(), [LogProb()], temperature=case.params["temperature"], precise=True)["log_prob"]
    case.close(found, "logp")
    link = Bupo()
    none = torch.zeros_like(case.given["old_logp"])
    rollouts = Rollouts.of(case.given["mask"], advantage=case.given["adv"], old_log_probs=none, signals={OLD: case.given["old_logp"]})
    loss = policy_loss(Step(rollouts, none, {CURRENT: found}), link.recipe(), chain(link)).loss
    case.close(loss, "loss")
    slopes = torch.autograd.grad(loss, [hidden, unembed])
    case.close(slopes[0], "grad_hidden")
    case.close(slopes[1], "grad_unembed")


def test_the_ratio_is_of_the_internal_policies():
    """ln rho = 0.1 and -0.3; A = 1 and -1: rho = e^0.1 is inside, e^-0.3 = 0.74 clips where A < 0, so only the first has a gradient."""
    step = step_of([-1.0, -2.0], [-1.1, -1.7], [1.0, -1.0])
    result = policy_loss(step, Bupo().recipe(), chain(Bupo()))
    ratio = torch.tensor([[0.1, -0.3]], dtype=torch.float64).exp()
    torch.testing.assert_close(result.observed.ratio, ratio)
    assert float(result.loss.detach()) == pytest.approx(float(-ratio[0, 0] + 0.8) / 2)
    internal, own = torch.autograd.grad(result.loss, [step.signal(CURRENT), step.log_probs], allow_unused=True)
    torch.testing.assert_close(internal, torch.tensor([[-float(ratio[0, 0]) / 2, 0.0]], dtype=torch.float64))
    assert own is None
    assert result.observed.touched["bupo"].all()


def test_policies_exchanged_are_noticed(monkeypatch):
    held = Bupo.policy

    def turned(self, step):
        pair = held(self, step)
        return PolicyPair(2 * pair.old_log_probs - pair.log_probs, pair.old_log_probs)

    monkeypatch.setattr(bupo.Bupo, "policy", turned)
    with pytest.raises(AssertionError):
        test_the_ratio_is_of_the_internal_policies()
    with pytest.raises(AssertionError):
        test_the_loss_on_one_layer_is_the_released_one()


def test_after_its_updates_the_objective_is_alone():
    link = Bupo(updates=5)
    for at, own in ((4, False), (5, True), (60, True)):
        step = step_of([-1.0, -2.0], [-1.1, -1.7], [1.0, -1.0], at)
        result = policy_loss(step, link.recipe(), chain(link))
        alone = policy_loss(step, link.recipe())
        assert torch.equal(result.loss, alone.loss) == own
        assert bool(result.observed.touched["bupo"].any()) != own


def test_where_the_policies_have_not_moved_the_ratio_is_one():
    step = step_of([-1.0, -2.0], [-1.0, -2.0], [1.0, -1.0])
    result = policy_loss(step, Bupo().recipe(), chain(Bupo()))
    assert (result.observed.ratio == 1).all()
    slope = torch.autograd.grad(result.loss, step.signal(CURRENT))[0]
    torch.testing.assert_close(slope, torch.tensor([[-0.5, 0.5]], dtype=torch.float64))


def test_slices_add_up_in_any_order():
    link = Bupo(layer=2)
    step = some_step(link, differentiable=True)
    whole = policy_loss(step, link.recipe(), chain(link)).loss
    assert not torch.equal(whole, policy_loss(step, link.recipe()).loss)
    for size in (1, 4):
        parts = in_slices(link, shuffled(step, size), size)[1]
        torch.testing.assert_close(sum(part.loss for part in parts), whole, rtol=1e-9, atol=1e-12)


def test_a_survey_of_another_link_sees_the_ratio_of_the_internal_policies():
    from isentrope.control.papers.clip_cov import ClipCov
    from isentrope.control.stages import Survey

    seen = []

    class Watch(ClipCov):
        name = "watch"

        def survey(self, view, state, rng):
            seen.append(view.ratio)
            return super().survey(view, state, rng)

    assert issubclass(Watch, Survey)
    step = step_of([-1.0, -2.0], [-1.1, -1.7], [1.0, -1.0])
    survey(step, Bupo().recipe(), chain(Bupo(), Watch()), ({}, {}), RowRng())
    torch.testing.assert_close(seen[0], torch.tensor([[0.1, -0.3]], dtype=torch.float64).exp())


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"Bupo: layer must be at least 1\. Got 0\. Blocks are counted from 1"):
        Bupo(layer=0)
    with pytest.raises(ValueError, match=r"Bupo: updates must be at least 0\. Got -1"):
        Bupo(updates=-1)
    with pytest.raises(ValueError, match=r"LayerLogProb: layer must be at least 1"):
        LayerLogProb(0)
    assert Need(LayerLogProb(3, "final")).key == "current.layer_log_prob[3,norm]"
    assert replace(Bupo(), norm="final").needs[1].key == "old.layer_log_prob[6,norm]"
