"""STEER: recorded outputs, the weights by hand, and the entropy change that they follow against finite differences."""

import math
import warnings
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.papers import steer
from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.steer import Steer, exact_change, exponential_weight, linear_weight, own_logit_change, passes
from isentrope.control.stages import chain, policy_loss, survey
from isentrope.control.step import Rollouts, RowRng, Step
from isentrope.control.surrogates import Bounds
from isentrope.measure.tokens import LogProb, token_signals_from_logits
from isentrope.testing import check_intervention

FORMS = [Steer(form=form, rule=rule) for form in ("exponential", "linear") for rule in ("omega", "exact")]
ENTROPY_TO_CHANGE = [Steer(), Steer(rule="exact")]
CASES = ["exp", "exp-tiny-omega", "exp-zero-adv", "linear", "linear-tiny-omega", "linear-zero-adv"]


def one(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([[value]], dtype=torch.float64) for name, value in values.items()}


# --- recorded outputs


def released(name: str) -> None:
    case = recorded(f"steer__{name}")
    given, params = case.given, case.params
    high = {"form": "linear", "high": params["weight_max"]} if params["linear"] else {}
    link = Steer(low=params["weight_min"], floor=params["floor"], variant="code", **high)
    leaf = given["logp"].clone().requires_grad_(True)
    known = {"old_log_probs": given["old_logp"], "advantage": given["adv"], "signals": {"old.entropy": given["entropy"]}}
    result = policy_loss(Step(Rollouts.of(given["mask"], **known), leaf), link.recipe(), chain(link))
    case.close(result.observed.weight, "weight", given["mask"])
    case.close(result.loss, "loss")
    case.close(torch.autograd.grad(result.loss, leaf)[0], "grad_logp")


@pytest.mark.parametrize("name", CASES)
def test_the_code_variant_is_the_release(name):
    released(name)


@pytest.mark.parametrize("name", ["exp-tiny-omega", "linear-tiny-omega"])
def test_another_sign_of_the_entropy_is_noticed(name, monkeypatch):
    monkeypatch.setattr(steer, "own_logit_change", lambda a, p, old, entropy: own_logit_change(a, p, old, -entropy))
    with pytest.raises(AssertionError, match="apart"):
        released(name)


# --- the entropy change


def distribution(seed: int) -> tuple[torch.Tensor, int, float, float]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(7, generator=generator, dtype=torch.float64)
    token = int(torch.randint(7, (), generator=generator))
    return logits, token, float(torch.randn((), generator=generator)), float(-3 * torch.rand((), generator=generator))


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_exact_rule_is_the_first_order_change_of_the_entropy(seed):
    """A gradient step on -r A moves the logits by eta r A (e_k - p); the entropy then moves by eta times the rule, up to eta^2."""
    logits, token, advantage, old = distribution(seed)
    leaf = logits.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(torch.exp(torch.log_softmax(leaf, -1)[token] - old) * advantage, leaf)
    signals = token_signals_from_logits(logits, torch.tensor(token), [need.signal for need in Steer(rule="exact").needs] + [LogProb()])
    given = one(a=advantage, p=float(signals["log_prob"]), old=old, s=float(signals["S"]), n=float(signals["N"]))
    eta = 1e-6 / (1 + float(slope.norm()))
    moved = (entropy_of(logits + eta * slope) - entropy_of(logits - eta * slope)) / (2 * eta)
    torch.testing.assert_close(exact_change(*given.values()).squeeze(), moved, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_omega_is_the_change_through_the_tokens_own_logit_over_its_probability(seed):
    """-(dH / dz_k) is S_k = p_k (ln p_k + H); the step on z_k is r A (1 - p_k), and the estimate from one sample divides by p_k."""
    logits, token, advantage, old = distribution(seed)
    log_p, entropy = torch.log_softmax(logits, -1)[token], entropy_of(logits)
    nudge = torch.nn.functional.one_hot(torch.tensor(token), 7) * 1e-6
    slope = (entropy_of(logits + nudge) - entropy_of(logits - nudge)) / 2e-6
    expected = slope * torch.exp(log_p - old) * advantage * (1 - log_p.exp()) / log_p.exp()
    given = one(a=advantage, p=float(log_p), old=old, h=float(entropy))
    torch.testing.assert_close(own_logit_change(*given.values()).squeeze(), expected, rtol=1e-4, atol=1e-6)


def test_the_quadrants_of_the_paper():
    """A > 0 above -H: down. A > 0 below: up. A < 0 turns both around. At ln p = -H, at A = 0 and at p = 1 nothing moves."""
    for advantage, log_p, sign in ((1, -0.5, -1), (1, -2.0, 1), (-1, -0.5, 1), (-1, -2.0, -1), (1, -1.0, 0), (0, -2.0, 0)):
        found = own_logit_change(*one(a=advantage, p=log_p, old=log_p, h=1.0).values())
        assert torch.sign(found).item() == sign
    assert abs(own_logit_change(*one(a=1, p=0.0, old=0.0, h=0.0).values()).item()) < 1e-15


def test_a_uniform_policy_weighs_every_token_one():
    log_p = torch.full((2, 3), -math.log(8), dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for link in ENTROPY_TO_CHANGE:
        signals = {"current.entropy": -log_p, "current.S": 0 * log_p, "current.N": 0 * log_p}
        step = Step(Rollouts.of(mask, advantage=torch.ones(2, 1), old_log_probs=log_p), log_p, signals)
        assert torch.equal(policy_loss(step, link.recipe(), chain(link)).observed.weight, torch.ones_like(log_p))


@given(seed=st.integers(0, 300))
@settings(max_examples=20, deadline=None)
def test_omega_agrees_with_the_exact_rule_for_most_tokens(seed):
    """The sheet's figures are 85 % of signs; here every token of a small world."""
    ours, exact = (link.change(with_ratio(link, some_step(link, seed))) for link in ENTROPY_TO_CHANGE)
    moved = exact != 0
    assert (torch.sign(ours) == torch.sign(exact))[moved].double().mean() > 0.6


def with_ratio(link: Steer, step: Step) -> Step:
    objective = link.recipe()
    return replace(step, ratio=objective.ratio(step.log_probs, step.old_log_probs, step.mask), bounds=objective.bounds())


# --- the weights


def test_weights_by_hand():
    size = torch.tensor([[0.0, 0.1, 0.2, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    found = exponential_weight(size, mask, 0.25)[mask]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    found = linear_weight(size, mask, 0.8, 1.2)[mask]
    torch.testing.assert_close(found, torch.tensor([1.2, 1.0, 0.8], dtype=torch.float64))


def test_below_the_floor_weights_stay_near_one():
    size, mask = torch.tensor([[1e-5, 2e-5]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    assert exponential_weight(size, mask, 0.8).min() > 0.999
    assert exponential_weight(size, mask, 0.8, floor=0.0).min().item() == pytest.approx(0.8)
    assert torch.equal(exponential_weight(0 * size, mask, 0.8, floor=0.0), torch.ones_like(size))


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=9), st.floats(0.01, 1), st.floats(0, 2), st.floats(0.3, 1))
@settings(max_examples=100, deadline=None)
def test_weights_stay_inside_their_range_and_fall(sizes, low, above, quantile):
    size = torch.tensor([sizes], dtype=torch.float64)
    mask = torch.ones_like(size, dtype=torch.bool)
    for weight, high in (
        (exponential_weight(size, mask, low, quantile=quantile), 1.0),
        (linear_weight(size, mask, low, low + above, quantile), low + above),
    ):
        assert ((weight >= low) & (weight <= high)).all()
        assert (weight[0, size[0].argsort()].diff() <= 1e-12).all()
    if max(sizes) >= 0.02:
        assert exponential_weight(size, mask, low)[0, size.argmax()].item() == pytest.approx(low, rel=1e-12)


def test_a_quantile_forgets_an_outlier():
    size = torch.cat([torch.linspace(0.02, 0.1, 99, dtype=torch.float64), torch.tensor([1e6], dtype=torch.float64)])[None]
    mask = torch.ones_like(size, dtype=torch.bool)
    assert exponential_weight(size, mask, 0.5)[0, :99].min() > 0.999
    assert exponential_weight(size, mask, 0.5, quantile=0.98)[0, :99].min() < 0.51
    assert exponential_weight(size, mask, 0.5, quantile=0.98)[0, 99] == 0.5


def test_no_valid_token_weighs_nothing():
    size, mask = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.bool)
    assert exponential_weight(size, mask, 0.8).isfinite().all()
    assert linear_weight(size, mask, 0.8, 1.2).isfinite().all()


# --- the loss


@pytest.mark.parametrize("link", FORMS[3:], ids=lambda link: f"{link.form}-{link.rule}")
def test_the_other_form_with_the_other_rule_keeps_the_contract(link):
    check_intervention(link, slow=False)


@pytest.mark.parametrize("link", FORMS, ids=lambda link: f"{link.form}-{link.rule}")
def test_the_gradient_of_a_token_is_its_weight_times_the_objectives(link):
    step = some_step(link)
    leaf = step.log_probs.clone().requires_grad_(True)
    step = replace(step, log_probs=leaf)
    result = policy_loss(step, link.recipe(), chain(link))
    (ours,), (base,) = (torch.autograd.grad(loss, leaf) for loss in (result.loss, policy_loss(step, link.recipe()).loss))
    torch.testing.assert_close(ours, base * result.observed.weight, rtol=1e-12, atol=1e-15)


def test_tokens_that_move_the_entropy_most_weigh_least():
    link = Steer(floor=0.0)
    step = some_step(link)
    found = survey(step, link.recipe(), chain(link), ({},), RowRng()).links[0]
    size, weight = link.change(with_ratio(link, step)).abs()[step.mask], found.tokens["weight"][step.mask]
    assert weight[size.argmax()] == pytest.approx(0.8)
    assert (weight[size.argsort()].diff() <= 0).all()


def test_only_the_papers_form_passes_over_clipped_tokens():
    """A token outside the window with a huge Omega: 1 in the paper, the maximum in the code."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    log_p = torch.tensor([[-0.5, -0.5]])
    known = {"old_log_probs": torch.tensor([[-5.0, -0.5]]), "advantage": torch.ones(1, 1), "signals": {"old.entropy": torch.ones(1, 2)}}
    step = Step(Rollouts.of(mask, **known), log_p, {"current.entropy": torch.ones(1, 2)})
    paper, code = (policy_loss(step, link.recipe(), chain(link)).observed.weight for link in (Steer(), Steer(variant="code")))
    torch.testing.assert_close(paper, torch.tensor([[1.0, 0.8]]))
    assert code[0, 0].item() == pytest.approx(0.8)
    assert code[0, 1] > 0.99


def test_passes_names_the_sides_where_ppo_has_no_gradient():
    ratio = torch.tensor([[0.5, 1.0, 1.5, 12.0]])
    bounds = Bounds(0.8, 1.28, cap=10.0)
    for advantage in (1.0, -1.0):
        leaf = ratio.clone().requires_grad_(True)
        step = Step(Rollouts.of(torch.ones(1, 4, dtype=torch.bool), advantage=torch.full((1, 1), advantage)), leaf, bounds=bounds)
        loss = Steer().recipe().surrogate(leaf, step.advantage, leaf, bounds, step.mask).sum()
        assert torch.equal(passes(ratio, step.advantage, bounds), torch.autograd.grad(loss, leaf)[0] != 0)
    assert passes(ratio, torch.ones(1, 1), Bounds()).all()


@pytest.mark.parametrize("link", FORMS, ids=lambda link: f"{link.form}-{link.rule}")
def test_rescaled_weights_have_mean_one(link):
    link = replace(link, rescale=True)
    step = some_step(link)
    weight = policy_loss(step, link.recipe(), chain(link)).observed.weight[step.mask]
    assert weight.mean().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("link", [Steer(floor=0.0), Steer(form="linear", rescale=True, quantile=0.9)], ids=["exponential", "linear"])
def test_slices_and_order_give_the_same_weights(link):
    step = some_step(link, seed=3)
    _, whole = in_slices(link, step, 16)
    for size in (1, 8):
        mixed = shuffled(step, size)
        _, parts = in_slices(link, mixed, size)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)
    _, parts = in_slices(replace(link, scope="micro-batch"), step, 1)
    assert abs(sum(part.loss for part in parts) - whole[0].loss) > 1e-6


# --- parameters


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low": 80}, r"Steer: low must be a fraction in \[0, 1\]\. Got 80\. If you meant 80 %, write low=0\.8\."),
        ({"low": 0}, r"Steer: low must be above 0\. Got 0: .* write low=0\.01\."),
        ({"low": 0.9, "high": 0.8, "form": "linear"}, r"Steer: high must be a finite number of at least low\. Got 0\.8, low is 0\.9\."),
        ({"floor": math.nan}, r"Steer: floor must be a finite number of at least 0\. Got nan\."),
        ({"quantile": 99.9}, r"Steer: quantile must be a fraction in \[0, 1\]\."),
    ],
)
def test_wrong_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Steer(**wrong)


def test_an_upper_weight_without_the_linear_form_warns():
    with pytest.warns(UserWarning, match='high does nothing in the exponential form.*form="linear"'):
        Steer(high=1.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Steer(form="linear", high=1.05)


def test_every_variant_is_documented():
    assert steer.__doc__ is not None
    assert all(f'variant="{name}"' in steer.__doc__ for name in get_args(get_type_hints(Steer)["variant"]))
