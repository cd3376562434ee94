"""The books against torch's own optimisers, finite differences, and a world where the token rule is exact."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.papers.clip_cov import ClipCov
from isentrope.control.stages import Chain, chain, policy_loss, predicted_push
from isentrope.control.standard import EntropyBonus
from isentrope.control.step import Normaliser, Rollouts, RowRng, Step
from isentrope.explain import ledger
from isentrope.explain.ledger import UpdateParts, attribute, booked, clip_factor, loss_slopes, tenths, token_class, token_parts, token_theories
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, LogProb, token_signals_from_logits

SIGNALS = (LogProb(grad=True), Entropy(grad=True), Discriminant(), ExpectedDiscriminant())


def world(seed: int = 0, rows: int = 4, tokens: int = 5, vocab: int = 6, d: int = 3):
    """A softmax policy over random states: weights, states, sampled tokens, mask, advantages; float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, d, generator=generator, dtype=torch.float64).requires_grad_(True)
    states = torch.randn(rows, tokens, d, generator=generator, dtype=torch.float64)
    target = torch.randint(vocab, (rows, tokens), generator=generator)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[0, 3:] = False
    advantage = torch.tensor([[1.5], [-0.5], [-1.0], [0.4]], dtype=torch.float64)[:rows]
    return weight, states, target, mask, advantage


def step_of(weight, states, target, mask, advantage) -> Step:
    found = token_signals_from_logits(states @ weight.T, target, SIGNALS)
    rollouts = Rollouts.of(mask, advantage=advantage, completion_ids=target)
    signals = {f"current.{key}": value for key, value in found.items() if key != "log_prob"}
    return Step(rollouts, found["log_prob"], signals, normaliser=Normaliser(token_divisor=float(mask.sum())))


def mean_entropy(weight, states, target, mask) -> torch.Tensor:
    return token_signals_from_logits(states @ weight.T, target, (Entropy(grad=True),))["entropy"][mask].mean()


# --- the optimiser's update


OPTIMISERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, betas=(0.8, 0.95), weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.0),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.02),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_parts_are_the_update_that_torch_makes(name):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, 3, dtype=torch.float64))
    optimizer = OPTIMISERS[name]([parameter])
    assert ledger.unsplit(optimizer) is None
    for _ in range(4):
        parameter.grad = torch.randn_like(parameter)
        parts = ledger.update_parts(optimizer, optimizer.param_groups[0], parameter, parameter.grad)
        predicted = parts.change(parameter.grad)
        before = parameter.detach().clone()
        optimizer.step()
        torch.testing.assert_close(parameter.detach() - before, predicted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.Adagrad(p), ["Adagrad", "AdamW"]),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), ["AdamW", "amsgrad"]),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), ["SGD", "maximize"]),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), ["Adam", "second moment"]),
    ],
)
def test_what_cannot_be_split_is_named(make, words):
    reason = ledger.unsplit(make([torch.nn.Parameter(torch.zeros(2))]))
    assert all(word in reason for word in words)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 8.0), st.integers(0, 50))
def test_accounts_add_up_to_the_slope_along_the_update_whatever_was_clipped(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    parameter, h = (torch.nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64)) for _ in range(2))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.3)
    for _ in range(2):
        free = torch.randn(5, generator=generator, dtype=torch.float64)
        parameter.grad = free.clone() * norm / free.norm()
        found = float(torch.nn.utils.clip_grad_norm_([parameter], 1.0))
        clipped = clip_factor(found, 1.0)
        torch.testing.assert_close(parameter.grad, free * norm / free.norm() * clipped, rtol=1e-9, atol=0)
        parts = ledger.update_parts(optimizer, optimizer.param_groups[0], parameter, parameter.grad)
        books = booked(h.detach(), parameter.grad, parts, clipped)
        before = parameter.detach().clone()
        optimizer.step()
        assert sum(books.values()) == pytest.approx(float(h.detach() @ (parameter.detach() - before)), rel=1e-9, abs=1e-13)
    assert (books["gradient_clipping"] == 0) == (norm < 1)
    assert books["this_batch"] == pytest.approx(-float(h.detach() @ (parts.scale * free * norm / free.norm())), rel=1e-6)  # as if nothing had been clipped


# --- this batch, token by token


CHAINS = {"plain": Chain(), "clip-cov": chain(ClipCov(ratio=0.2, low=-5.0)), "entropy-bonus": chain(EntropyBonus(coef=0.3))}


@pytest.mark.parametrize("links", CHAINS)
def test_parts_of_the_tokens_add_up_to_the_account_and_their_error_falls_with_the_square_of_the_reach(links):
    weight, *rest = world()
    states, target, mask, _ = rest
    control = CHAINS[links]
    step = step_of(weight, *rest)
    objective, state, rng = Objective.named("grpo"), control.init(), RowRng()
    loss = policy_loss(step, objective, control, None, state, rng).loss
    (g,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (h,) = torch.autograd.grad(mean_entropy(weight, states, target, mask), weight)
    parts, clipped = UpdateParts(0.05 + 0.1 * (g / g.norm()).square(), torch.zeros_like(g), torch.zeros_like(g)), 0.5
    account = booked(h, g * clipped, parts, clipped)["this_batch"]
    slopes = loss_slopes(step.detached(), objective, control, None, state, rng, ("entropy",))
    errors = []
    for reach in (0.4, 0.2):
        ahead, behind = (
            token_signals_from_logits(states @ (weight + sign * reach * parts.scale * h).T, target, SIGNALS) for sign in (1, -1)
        )  # fmt: skip
        found = token_parts(slopes, ahead, behind, reach)[mask].detach()
        errors.append(abs(float(found.sum()) - account))
    assert account != 0
    assert errors[1] < 1e-3 * abs(account)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_a_slope_of_the_entropy_is_asked_only_where_the_loss_differentiates_it():
    step = step_of(*world()).detached()
    arguments = (step, Objective.named("grpo"), CHAINS["entropy-bonus"], None, CHAINS["entropy-bonus"].init(), RowRng())
    slopes = loss_slopes(*arguments, ("entropy",))
    assert float(slopes["entropy"][step.mask].sum()) == pytest.approx(-0.3)  # the bonus adds coef times the mean entropy to what is maximised
    assert (slopes["entropy"][~step.mask] == 0).all()
    assert set(loss_slopes(*arguments)) == {"log_prob"}


@pytest.mark.parametrize(("half", "factor"), [(0.0, 4), (0.5, 8)])
def test_the_gradient_at_the_opening_predicts_to_first_order_and_half_way_to_second(half, factor):
    """Halve the learning rate: what it misses falls fourfold, or eightfold."""
    weight, *rest = world(seed=0)
    states, target, mask, _ = rest
    loss = policy_loss(step_of(weight, *rest), Objective.named("grpo")).loss
    (g,) = torch.autograd.grad(loss, weight)
    opening = mean_entropy(weight, states, target, mask)
    missed = []
    for rate in (0.2, 0.1, 0.05):
        (h,) = torch.autograd.grad(mean_entropy(weight - half * rate * g, states, target, mask), weight)
        measured = (mean_entropy(weight - rate * g, states, target, mask) - opening).detach()
        missed.append(float(measured) + rate * float((h * g).sum()))
    assert missed[0] / missed[1] == pytest.approx(factor, rel=0.25)
    assert missed[1] / missed[2] == pytest.approx(factor, rel=0.15)


# --- theories


def test_the_token_rule_is_exact_where_every_state_has_logits_of_its_own():
    """Gradient descent on free logits: n times its mean entropy moves by the rate times the pushes, with a residual of second order."""
    logits, target = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True), torch.arange(20).view(4, 5) % 6
    _, _, _, mask, advantage = world()
    step = Step(Rollouts.of(mask, advantage=advantage), *_signals(logits, target), normaliser=Normaliser(token_divisor=float(mask.sum())))
    objective = Objective.named("grpo")
    (g,) = torch.autograd.grad(policy_loss(step, objective).loss, logits, retain_graph=True)
    push = predicted_push(step.detached(), objective, Chain(), None, (), RowRng())
    entropy = lambda at: torch.distributions.Categorical(logits=at).entropy()[mask].sum()  # noqa: E731
    missed = []
    for rate in (0.1, 0.05):
        predicted = token_theories(step.detached(), rate, push)["token_rule"]
        missed.append(float((entropy(logits - rate * g) - entropy(logits)).detach()) - predicted)
    assert missed[0] / missed[1] == pytest.approx(4, rel=0.1)


def _signals(logits, target):
    found = token_signals_from_logits(logits, target, SIGNALS)
    return found["log_prob"], {f"current.{key}": value for key, value in found.items() if key != "log_prob"}


def test_covariance_and_omega_are_the_papers_means():
    step = step_of(*world()).detached()
    mask, log_p, advantage = step.mask, step.log_probs[step.mask], step.rollouts.token_advantage()[step.mask]
    found = token_theories(step, 2.0, torch.zeros(mask.shape))
    centred = (log_p - log_p.mean()) * (advantage - advantage.mean())
    assert found["covariance"] == pytest.approx(-2 * float(centred.mean()))
    entropy = step.signals["current.entropy"][mask]
    omega = -(advantage / log_p.exp()) * log_p.exp() * (1 - log_p.exp()) * (log_p + entropy)
    assert found["omega"] == pytest.approx(2 * float(omega.mean()))


def test_an_update_without_tokens_predicts_nothing():
    step = step_of(*world()).detached()
    empty = Step(Rollouts.of(torch.zeros_like(step.mask)), step.log_probs, step.signals)
    assert set(token_theories(empty, 1.0, torch.zeros(step.mask.shape)).values()) == {0.0}


# --- attribution


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 1)), max_size=30))
def test_shares_add_up(pairs):
    kinds, values = [kind for kind, _ in pairs], torch.tensor([value for _, value in pairs], dtype=torch.float64).numpy()
    shares = attribute(kinds, {"part": values})
    assert [share.kind for share in shares] == sorted(set(kinds))
    assert sum(share.tokens for share in shares) == len(pairs)
    assert math.fsum(share.sums["part"] for share in shares) == pytest.approx(math.fsum(values), abs=1e-12)


def test_tenths_run_over_the_trained_tokens_of_each_response():
    mask = torch.zeros(2, 25, dtype=torch.bool)
    mask[0, 2:22] = True  # a prefix that is not trained does not count
    mask[1, :3] = True
    found = tenths(mask)
    assert found[:20] == [f"tenth-{place:02d}" for place in range(1, 11) for _ in range(2)]
    assert found[20:] == ["tenth-01", "tenth-04", "tenth-07"]


def test_kinds_of_tokens():
    assert [token_class(text) for text in ("12", "½", "été", " don", "。", "->", "\t\n", "a1", "**", "÷")] == [
        "digits", "digits", "word", "word", "punctuation", "punctuation", "space", "mixed", "punctuation", "symbol",
    ]  # fmt: skip
    assert token_class("<|end|>", special=True) == "special"
    assert set(map(token_class, ("1", "a", ",", "+", " ", "", "a-"))) == set(ledger.CLASSES)
    assert ledger.signs([1.0, -2.0, 0.0]) == ["A > 0", "A < 0", "A = 0"]
    assert ledger.verdicts([1.0, 0.0, math.nan]) == ["right", "wrong", "not judged"]
