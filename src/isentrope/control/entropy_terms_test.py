"""Entropy bonus and band: by hand, exact gradients over slices, references that move, controllers in a chain, warnings."""

import warnings
from dataclasses import replace
from math import inf

import pytest
import torch

from isentrope.control.entropy_terms import EntropyBand, EntropyBonus
from isentrope.control.objectives import Objective
from isentrope.control.papers.common_test import in_slices, recorded, some_step
from isentrope.control.registry import build
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Normaliser, Progress, Rollouts, RowRng, Step
from isentrope.testing import check_intervention

KEY = "current.entropy"
BASE = Objective.named("dapo")


def line(entropies: list[list[float]], lengths: list[int], correct: list[float] | None = None) -> tuple[torch.Tensor, Step]:
    """Responses with these entropies; nothing else is in their loss."""
    entropy = torch.tensor(entropies, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(entropy.shape[1]) < torch.tensor(lengths)[:, None]
    zero = torch.zeros(entropy.shape, dtype=torch.float64)
    known = {} if correct is None else {"correct": torch.tensor(correct, dtype=torch.float64)}
    return entropy, Step(Rollouts.of(mask, old_log_probs=zero, **known), zero, {KEY: entropy})


def term(link, step: Step, state=None) -> torch.Tensor:
    """What the link adds to the loss."""
    return policy_loss(step, BASE, chain(link), None, (link.init() if state is None else state,)).loss - policy_loss(step, BASE).loss


def amount(link, step: Step, state=None) -> float:
    """The term as a number."""
    return float(term(link, step, state).detach())


def slope(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


def after(link, step: Step, state):
    """The state after this update."""
    control = chain(link)
    return advance(control, (state,), survey(step, BASE, control, (state,), RowRng()), step.progress)[0]


H = [[0.1, 0.5, 9.0], [0.3, 1.1, 2.0]]  # lengths 2 and 3: means 0.3 and 3.4 / 3, of all tokens 0.8
LENGTHS = [2, 3]


# --- bonus


def test_the_bonus_by_hand():
    """Minus coef times the mean of five tokens; its gradient is -coef / 5 each."""
    entropy, step = line(H, LENGTHS)
    value = term(EntropyBonus(coef=0.5), step)
    assert float(value.detach()) == pytest.approx(-0.5 * 0.8)
    torch.testing.assert_close(slope(value, entropy), torch.where(step.mask, -0.1, 0.0).double())
    assert amount(EntropyBonus(coef=-0.5), step) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["trl-losses", "trl-losses-degenerate"])
def test_the_bonus_is_trls(name):
    """But for the divisor: TRL's mean is over the slice's own tokens, ours over those of the policy loss, so that slices add up."""
    case = recorded(f"grpo-family__{name}")
    given, params = case.given, case.params
    leaf, entropy = given["logp"].clone().requires_grad_(True), given["entropy"].clone().requires_grad_(True)
    rollouts = Rollouts.of(given["mask"].bool(), old_log_probs=given["old_logp"], advantage=given["adv_seq"][:, None])
    objective = Objective.trl("dapo", epsilon=params["eps_low"], epsilon_high=params["eps_high"])
    link, step = (
        EntropyBonus(coef=params["entropy_coef"]),
        Step(rollouts, leaf, {KEY: entropy}, normaliser=Normaliser(token_divisor=float(params["num_items_in_batch"]))),
    )
    loss = policy_loss(step, objective, chain(link)).loss
    case.close(slope(loss, leaf), "grad_logp_dapo_entropy_bonus")
    divisors = params["num_items_in_batch"] / given["mask"].sum()
    case.close(slope(loss, entropy) * divisors, "grad_entropy_dapo_entropy_bonus")
    plain = policy_loss(step, objective).loss
    case.close(plain + (loss - plain) * divisors, "loss_dapo_entropy_bonus")


def test_the_coefficient_follows_the_schedule_and_the_accuracy():
    _, step = line(H, LENGTHS, correct=[1.0, 0.0])
    link = EntropyBonus(coef=0.4, end=0.0, schedule="linear")
    assert amount(link, replace(step, progress=Progress(75, 100))) == pytest.approx(-0.1 * 0.8)
    assert amount(link, replace(step, progress=Progress(100, 100))) == 0
    by_accuracy = EntropyBonus(coef=0.4, schedule="accuracy")
    assert amount(by_accuracy, step) == pytest.approx(-0.2 * 0.8)
    assert amount(by_accuracy, line(H, LENGTHS)[1]) == pytest.approx(-0.4 * 0.8)  # no verifier spoke


def test_trls_adaptive_coefficient_in_a_chain_is_the_recorded_one():
    case = recorded("grpo-family__trl-adaptive-entropy-coef")
    params = case.params
    link = EntropyBonus(
        controller="adaptive", coef=params.get("coef_init", 0.0), target=params["target"], delta=params["delta"],
        coef_low=params.get("coef_min", 0.0), coef_high=params.get("coef_max", 1.0),
    )  # fmt: skip
    state, applied, coefs = link.init(), [], []
    for entropy, mask in zip(case.given["entropy"], case.given["mask"], strict=True):
        zero = torch.zeros(entropy.shape, dtype=entropy.dtype)
        step = Step(Rollouts.of(mask.bool(), old_log_probs=zero), zero, {KEY: entropy})
        stats = survey(step, BASE, chain(link), (state,), RowRng())
        applied.append(link.applied(state, stats.links[0], step.progress))  # type: ignore[arg-type]
        state = after(link, step, state)
        coefs.append(state["coef"])
    case.close(torch.tensor(applied, dtype=torch.float64), "applied")
    case.close(torch.tensor(coefs, dtype=torch.float64), "coef_after")


@pytest.mark.parametrize("controller", ["adaptive", "pi", "band"])
def test_controllers_raise_the_coefficient_while_entropy_is_low(controller):
    link = EntropyBonus(coef=0.1, controller=controller, target=1.0, ceiling=1.2, gain_p=0.1, gain_i=0.1, delta=0.02)
    _, low = line(H, LENGTHS)
    _, high = line([[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]], LENGTHS)
    state = after(link, low, link.init())
    assert state["coef"] > 0.1
    assert amount(link, low, state) == pytest.approx(-state["coef"] * 0.8)
    assert after(link, high, state)["coef"] < state["coef"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("controller", [pytest.param("adaptive", marks=SLOW), "pi", pytest.param("band", marks=SLOW)])
def test_the_contract_holds_under_every_controller(controller):
    check_intervention(EntropyBonus(coef=0.05, controller=controller, target=2.0, ceiling=2.5), slow=False)


# --- band


def test_the_band_by_hand_at_every_level():
    """Below 0.4: tokens 0.1 and 0.3, response mean 0.3; above 1.0: token 1.1 and 2.0, response mean 3.4 / 3."""
    entropy, step = line(H, LENGTHS)
    band = EntropyBand(low=0.4, high=1.0, coef=1.0, level="token")
    value = term(band, step)
    assert float(value.detach()) == pytest.approx((0.3 + 0.1 + 0.1 + 1.0) / 5)
    expected = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 1.0, 1.0]]).double() / 5
    torch.testing.assert_close(slope(value, entropy), expected)
    value = term(replace(band, level="response"), step)
    assert float(value.detach()) == pytest.approx((0.1 + 0.4 / 3) / 2)
    torch.testing.assert_close(slope(value, entropy), torch.tensor([[-1 / 4, -1 / 4, 0.0], [1 / 6, 1 / 6, 1 / 6]]).double())
    assert amount(replace(band, level="update"), step) == 0
    value = term(EntropyBand(low=1.0, coef=1.0), step)
    assert float(value.detach()) == pytest.approx(0.2)
    torch.testing.assert_close(slope(value, entropy), torch.where(step.mask, -0.2, 0.0).double())


@pytest.mark.parametrize("level", ["update", "response", "token"])
@pytest.mark.parametrize(("low", "high"), [(1.5, None), (None, 0.2), (0.2, 0.7)])
def test_gradients_are_those_of_finite_differences(level, low, high):
    entropy, step = line(H, LENGTHS)
    link = EntropyBand(low=low, high=high, level=level, coef=0.7, shape="squared")
    exact = slope(term(link, step), entropy)
    for row, token in ((0, 0), (0, 1), (1, 2), (0, 2)):
        moved = []
        for sign in (1, -1):
            shifted = entropy.detach().clone()
            shifted[row, token] += sign * 1e-5
            moved.append(amount(link, replace(step, signals={KEY: shifted})))
        assert float(exact[row, token]) == pytest.approx((moved[0] - moved[1]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("level", ["update", "response", "token"])
def test_slices_add_up(level):
    link = EntropyBand(low=1.3, high=1.5, level=level, coef=0.5)
    step = some_step(link)
    whole = policy_loss(step, link.recipe(), chain(link)).metrics["link/entropy-band/penalty"]
    _, results = in_slices(link, replace(step, normaliser=replace(step.normaliser)), 4)
    objective_free = sum(float(result.metrics["link/entropy-band/penalty"]) for result in results)
    assert float(whole) > 0
    assert objective_free == pytest.approx(float(whole), rel=1e-9)


def test_quantiles_of_the_update_are_edges():
    entropy, step = line([[0.0, 1.0, 2.0, 3.0, 4.0]], [5])
    value = term(EntropyBand(low=0.25, high=0.75, of="quantile", level="token", coef=1.0), step)
    assert float(value.detach()) == pytest.approx((1 + 1) / 5)
    assert slope(value, entropy).tolist() == [[-0.2, 0.0, 0.0, 0.0, 0.2]]


def means(link: EntropyBand, values: list[float]) -> list[float]:
    """The reference after updates of these mean entropies."""
    state, found = link.init(), []
    for value in values:
        state = after(link, line([[value, value]], [2])[1], state)
        found.append(float(state["reference"]))  # type: ignore[arg-type]
    return found


def test_references_by_hand():
    assert means(EntropyBand(low=0.5, of="history"), [1.0, 2.0, 6.0]) == pytest.approx([1.0, 1.5, 3.0])
    assert means(EntropyBand(low=0.5, of="ema", decay=0.75), [1.0, 2.0, 6.0]) == pytest.approx([1.0, 1.25, 2.4375])
    assert means(EntropyBand(low=0.5, of="anchor"), [1.0, 2.0, 6.0]) == [1.0, 1.0, 1.0]


def test_a_multiple_of_the_reference_holds_once_there_is_one():
    link, (_, step) = EntropyBand(low=0.5, high=2.0, of="anchor", coef=1.0), line(H, LENGTHS)
    assert amount(link, step) == 0
    assert amount(link, step, {"reference": 3.0, "updates": 1}) == pytest.approx(1.5 - 0.8)
    assert amount(link, step, {"reference": 0.3, "updates": 1}) == pytest.approx(0.8 - 0.6)
    floored = replace(link, floor=1.0)
    assert amount(floored, step, {"reference": 0.3, "updates": 1}) == pytest.approx(0.2)


@pytest.mark.filterwarnings("ignore:EntropyBand. the reference fell")  # the contract has batches without any entropy
@pytest.mark.parametrize(("of", "level"), [("ema", "response"), pytest.param("history", "token", marks=SLOW), pytest.param("anchor", "token", marks=SLOW)])
def test_the_contract_holds_for_every_reference(of, level):
    check_intervention(EntropyBand(low=0.9, high=1.1, of=of, level=level, coef=0.1), slow=False)


@SLOW
def test_the_contract_holds_for_the_mean_of_the_update():
    check_intervention(EntropyBand(low=1.4, high=1.6, shape="squared", coef=0.5), slow=False)


def test_a_band_that_cannot_bind_warns():
    for useless in ({"low": None}, {"low": 0.0}, {"low": -1.0, "high": inf}, {"low": 0.0, "high": 1.0, "of": "quantile", "level": "token"}):
        with pytest.warns(UserWarning, match="cannot bind"):
            EntropyBand(**useless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EntropyBand(low=0.0, coef=0.0)
        EntropyBand(low=0.0, floor=0.1, of="history")
        EntropyBand(low=None, high=2.0)


def test_a_corridor_that_collapses_warns_once():
    link = EntropyBand(low=0.5, of="ema", decay=0.0)
    state = after(link, line([[1.0, 1.0]], [2])[1], link.init())
    with pytest.warns(UserWarning, match=r"reference fell to .* nats.*absolute floor"):
        state = after(link, line([[0.0, 0.0]], [2])[1], state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after(link, line([[0.0, 0.0]], [2])[1], state)
        silent = replace(link, floor=0.1)
        after(silent, line([[0.0, 0.0]], [2])[1], silent.init())


# --- chains and mistakes


def test_clip_cov_and_a_band_in_one_chain():
    control = build(["clip-cov", {"name": "entropy-band", "low": 2.0, "coef": 1.0}])
    step = some_step(EntropyBand())
    loss = policy_loss(step, BASE, control)
    alone = policy_loss(step, BASE, build(["clip-cov"])).loss
    assert float(loss.loss - alone) == pytest.approx(float(loss.metrics["link/entropy-band/penalty"]))
    assert float(loss.metrics["link/entropy-band/penalty"]) > 0


def test_what_is_wrong_is_said():
    for wrong, words in (
        (lambda: EntropyBonus(schedule="linear", controller="pi"), r"schedule and controller both move.*controller=\"none\""),
        (lambda: EntropyBonus(coef=inf), r"coef must be finite"),
        (lambda: EntropyBonus(controller="pi", coef_low=0.5, coef_high=0.1), r"coef_high must be at least 0\.5"),
        (lambda: EntropyBonus(controller="band", target=0.5, ceiling=0.4), r"ceiling must be at least 0\.5"),
        (lambda: EntropyBonus(schedule="exponential"), r"exponential needs start and end of one sign"),
        (lambda: EntropyBand(low=0.5, high=0.4), r"EntropyBand: high must be at least 0\.5\. Got 0\.4"),
        (lambda: EntropyBand(of="quantile"), r'needs level "token" or "response"'),
        (lambda: EntropyBand(low=20, of="quantile", level="token"), r"low must be a fraction.*0\.2"),
        (lambda: EntropyBand(coef=-1), r"coef must be at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
