"""AEPO (agentic): recorded outputs, the gradient of every side of the window against PPO's, and the entropy-aware advantage by hand."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.forks import Standing
from isentrope.control.papers import aepo_agentic
from isentrope.control.papers.aepo_agentic import AepoAgentic, AepoBranch, preserved, root_share, standardised_entropy
from isentrope.control.papers.common_test import in_slices, recorded, recorded_step, shuffled, some_step
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Rollouts, RowRng, Step
from isentrope.testing import check_intervention
from isentrope.testing.examples import KeepUncertain, WidenUncertain

BOTH, CLIP, ADVANTAGE = AepoAgentic(), AepoAgentic(alpha=0.0), AepoAgentic(balanced_clip=False)
CASES = ["advantage-only", "clip-only", "both", "constant-entropy"]
PARTS = pytest.mark.parametrize("link", [BOTH, CLIP, ADVANTAGE], ids=["both", "clip", "advantage"])


def loss_and_gradient(step: Step, link: AepoAgentic | None) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = step.log_probs.detach().clone().requires_grad_(True)
    loss = policy_loss(replace(step, log_probs=leaf), AepoAgentic().recipe(), chain() if link is None else chain(link)).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def line(ratios: list[float], advantage: float, entropy: list[float] | None = None) -> Step:
    log_probs = torch.full((1, len(ratios)), -3.0, dtype=torch.float64)
    old = log_probs - torch.tensor([ratios], dtype=torch.float64).log()
    given = {"advantage": torch.full((1, 1), advantage, dtype=torch.float64), "old_log_probs": old}
    signals = {} if entropy is None else {"current.entropy": torch.tensor([entropy], dtype=torch.float64)}
    return Step(Rollouts.of(torch.ones(log_probs.shape, dtype=torch.bool), **given), log_probs, signals)


# --- recorded outputs


def released(name: str) -> None:
    case = recorded(f"aepo-agentic__{name}")
    link = AepoAgentic(case.params["alpha_H"] if case.params["balanced_advantage"] else 0.0, case.params["balanced_clip"])
    leaf, step = recorded_step(case)
    loss = policy_loss(step, link.recipe(), chain(link)).loss
    case.close(loss, "loss")
    case.close(torch.autograd.grad(loss, leaf)[0], "grad_logp")


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_the_releases(name):
    released(name)


def test_another_sign_of_the_entropy_is_noticed(monkeypatch):
    monkeypatch.setattr(aepo_agentic, "standardised_entropy", lambda *values: -standardised_entropy(*values))
    with pytest.raises(AssertionError, match="apart"):
        released("advantage-only")


def test_the_clip_on_the_other_side_is_noticed_in_the_gradient(monkeypatch):
    monkeypatch.setattr(aepo_agentic, "preserved", lambda ratio, advantage, high: preserved(ratio, -advantage, high))
    with pytest.raises(AssertionError, match="apart"):
        released("clip-only")


# --- the clip


TABLE = [
    (1.0, [0.1, 0.9, 1.0, 1.19, 1.5, 50.0], [0.1, 0.9, 1.0, 1.19, 1.2, 1.2], [0.1, 0.9, 1.0, 1.19, 0.0, 0.0]),
    (-1.0, [0.1, 0.79, 0.9, 1.5, 2.9, 3.1], [0.0, 0.0, 0.9, 1.5, 2.9, 0.0], [0.0, 0.0, 0.9, 1.5, 2.9, 0.0]),
    (0.0, [0.1, 1.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("advantage", "ratios", "ours", "ppo"), TABLE, ids=["right", "wrong", "zero"])
def test_the_gradient_of_every_side_of_the_window(advantage, ratios, ours, ppo):
    """The sheet's table: F of F A grad ln p. PPO beside it has 0 where ours is 1.2."""
    step = line(ratios, advantage)
    for link, expected in ((CLIP, ours), (None, ppo)):
        found = -len(ratios) * loss_and_gradient(step, link)[1]
        torch.testing.assert_close(found, advantage * torch.tensor([expected], dtype=torch.float64))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_the_value_is_always_that_of_ppo(ratios, advantage):
    step = line(ratios, advantage)
    torch.testing.assert_close(loss_and_gradient(step, CLIP)[0], loss_and_gradient(step, None)[0], rtol=1e-12, atol=1e-15)


def test_every_token_above_the_window_keeps_its_gradient_whatever_its_entropy():
    """No gate: a public port keeps it for certain tokens only."""
    step = line([1.5, 1.5], 1.0, [0.0, 3.0])
    found = -2 * loss_and_gradient(step, BOTH)[1] / (1 + 0.2 * torch.tensor([-0.5, 0.5]) * 2**0.5)
    torch.testing.assert_close(found, torch.full((1, 2), 1.2, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_window_of_an_earlier_link_is_the_one_preserved():
    link = WidenUncertain(coef=0.5)
    step = line([1.5, 3.0], 1.0, [0.0, 2.0])
    leaf = step.log_probs.clone().requires_grad_(True)
    with pytest.warns(UserWarning, match="each sees the bounds of the one before"):
        both = chain(link, CLIP)
    loss = policy_loss(replace(step, log_probs=leaf), CLIP.recipe(), both).loss
    torch.testing.assert_close(-2 * torch.autograd.grad(loss, leaf)[0], torch.tensor([[1.2, 2.2]], dtype=torch.float64))


# --- the advantage


def test_the_advantage_by_hand():
    """H = (1, 2, 3): mean 2, sample deviation 1, so Hs = (-1, 0, 1) and A' = (0.8, 1, 1.2) A; a masked entropy counts nowhere."""
    entropy = torch.tensor([[1.0, 2.0, 3.0, 90.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    assert torch.equal(standardised_entropy(entropy, mask), torch.tensor([[-1.0, 0.0, 1.0, 0.0]], dtype=torch.float64))
    found = -3 * loss_and_gradient(line([1.0, 1.0, 1.0], 2.0, [1.0, 2.0, 3.0]), ADVANTAGE)[1]
    torch.testing.assert_close(found, torch.tensor([[1.6, 2.0, 2.4]], dtype=torch.float64))


@pytest.mark.parametrize("entropy", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_equal_entropies_change_nothing(entropy):
    step = line([0.9, 1.0, 1.3], 2.0, entropy)
    assert torch.equal(loss_and_gradient(step, ADVANTAGE)[1], loss_and_gradient(step, None)[1])


@given(seed=st.integers(0, 500), scale=st.floats(0.1, 10), shift=st.floats(-2, 2))
@settings(max_examples=25, deadline=None)
def test_the_mean_factor_is_one_and_units_do_not_matter(seed, scale, shift):
    step = some_step(BOTH, seed)
    entropy, mask = step.signal("current.entropy"), step.mask
    hs = standardised_entropy(entropy, mask)
    assert abs(float(hs[mask].mean())) < 1e-12
    assert float(hs[mask].std()) == pytest.approx(1, rel=1e-9)
    torch.testing.assert_close(standardised_entropy(scale * entropy + shift, mask), hs, rtol=1e-6, atol=1e-9)


def test_an_advantage_is_never_turned_around():
    """One certain token among a hundred: Hs is about -9.9, and 1 + 0.2 Hs would be negative."""
    step = line([1.0] * 100, 1.0, [0.0] + [2.0] * 99)
    assert standardised_entropy(step.signal("current.entropy"), step.mask)[0, 0] < -5
    found = loss_and_gradient(step, BOTH)[1]
    assert found[0, 0] == 0
    assert (found[0, 1:] < 0).all()


def test_no_token_and_one_token_are_finite():
    entropy = torch.ones(1, 2)
    assert torch.equal(standardised_entropy(entropy, torch.zeros(1, 2, dtype=torch.bool)), torch.zeros(1, 2, dtype=torch.float64))
    assert torch.equal(standardised_entropy(entropy, torch.tensor([[True, False]])), torch.zeros(1, 2, dtype=torch.float64))


# --- the update


@PARTS
def test_slices_and_order_give_the_same_loss(link):
    step = some_step(link, seed=3)
    touched, whole = in_slices(link, step, 16)
    for size in (1, 8):
        again, parts = in_slices(link, shuffled(step, size), size)
        assert torch.equal(again, touched)
        torch.testing.assert_close(sum(part.loss for part in parts), whole[0].loss, rtol=1e-9, atol=1e-15)


def test_the_release_standardises_per_micro_batch():
    step = some_step(BOTH, seed=3)
    whole, parts = (sum(part.loss for part in in_slices(link, step, 1)[1]) for link in (BOTH, replace(BOTH, scope="micro-batch")))
    assert abs(whole - parts) > 1e-4


def test_the_clip_alone_keeps_the_contract_and_needs_no_entropy():
    assert CLIP.needs == ()
    check_intervention(CLIP, slow=False)


def test_a_chain_with_a_method_that_damps_what_this_amplifies_warns():
    @dataclass(frozen=True)
    class Damps(KeepUncertain):
        name = "empg"

    with pytest.warns(UserWarning, match="aepo-agentic undoes empg; drop one of them"):
        chain(BOTH, Damps())


def test_a_percentage_is_refused():
    with pytest.raises(ValueError, match=r"AepoAgentic: alpha must be a fraction in \[0, 1\]\. Got 20\. If you meant 20 %, write alpha=0\.2\."):
        AepoAgentic(alpha=20)


# --- the budget, and where lines of play are doubled


def line_of(*entropies: float, row: int = 0, tokens: int = 2, run: int = 0) -> Standing:
    """A line whose action t has `tokens` tokens of entropies[t] times ln V, each."""
    turns = tuple(torch.full((tokens,), value * UNIFORM, dtype=torch.float64) for value in entropies)
    return Standing(row, turns, UNIFORM, run)


UNIFORM = math.log(50)
PAPER, CODE = AepoBranch(variant="paper"), AepoBranch(variant="code")


@given(st.floats(-5, 5), st.floats(0.01, 3.0), st.integers(1, 64))
def test_half_of_the_budget_goes_to_roots_where_both_are_equally_uncertain_and_more_where_the_root_is(gap, beta, samples):
    assert root_share(gap, gap, beta=beta) == 0.5
    assert root_share(gap, 0.0, beta=beta) + root_share(0.0, gap, beta=beta) == pytest.approx(1.0)
    link = replace(CODE, beta=beta)
    calm, open_ = (link.roots(samples, line_of(root, 1.0, row=0), {}) for root in (0.5, 1.5))
    assert 1 <= calm <= open_ <= samples


def test_the_budget_by_hand():
    pilot = line_of(0.9, 0.1, 0.3)
    mean_after, sum_all = (0.1 + 0.3) / 2, 2 * (0.9 + 0.1 + 0.3) / 3
    assert PAPER.roots(100, pilot, {}) == int(100 / (1 + math.exp(-0.5 * (0.9 - mean_after)))) + 1
    assert CODE.roots(100, pilot, {}) == int(100 / (1 + math.exp(-0.5 * (2 * 0.9 - sum_all)))) + 1
    assert PAPER.roots(8, line_of(0.9), {}) == 5  # no reply: the root against itself
    assert replace(PAPER, dynamic=False).roots(16, None, {}) == 8
    assert PAPER.neutral().roots(16, None, {}) == 16
    assert PAPER.roots(1, pilot, {}) == 1


def test_as_printed_a_line_is_doubled_when_it_became_more_uncertain():
    standing = [line_of(0.5, 0.6), line_of(0.5, 0.4), line_of(0.5), line_of(0.5, 0.9, 0.5)]
    assert list(PAPER.forks(standing, 9, 0, {}, RowRng())) == [1, 0, 0, 0]  # exceeds tau: equal does not
    risen = [line_of(0.1, 0.9, run=run) for run in range(6)]  # 0.5 + 0.2 * 0.8 = 0.66, times 1 - 0.05 run
    assert list(PAPER.forks(risen, 9, 7, {}, RowRng())) == [1, 1, 1, 1, 1, 0]
    assert list(PAPER.forks(risen, 2, 7, {}, RowRng())) == [1, 1, 0, 0, 0, 0]  # the first have the places
    assert list(replace(PAPER, beam=4).forks(risen[:3], 5, 0, {}, RowRng())) == [3, 2, 0]


def test_as_released_a_draw_decides_and_the_penalty_is_the_prompts():
    def share(gap: float, made: int = 0, run: int = 0) -> float:
        standing = [line_of(0.5, 0.5 + gap, row=row, run=run) for row in range(800)]
        return sum(CODE.forks(standing, 800, made, {}, RowRng(seed=3))) / 800

    chance = lambda gap, made=0: min(1.0, max(0.0, 1 - 0.5 / (1 - 0.05 * made) + 0.2 * 2 * gap))  # noqa: E731  a sum over two tokens
    for gap, made in ((0.0, 0), (0.5, 0), (-0.5, 0), (0.0, 4), (0.25, 8), (0.0, 12)):
        assert share(gap, made) == pytest.approx(chance(gap, made), abs=0.05)
    assert share(0.0, run=9) == share(0.0)  # runs of one line are the paper's
    assert share(0.0, made=20) == 0.0


def test_draws_belong_to_a_row_and_a_reply():
    standing = [line_of(0.5, 0.5, row=row) for row in range(50)]
    plain = CODE.forks(standing, 50, 0, {}, RowRng())
    assert [CODE.forks([one], 50, 0, {}, RowRng())[0] for one in standing] == list(plain)
    later = [line_of(0.5, 0.5, 0.5, row=row) for row in range(50)]
    assert list(CODE.forks(later, 50, 0, {}, RowRng())) != list(plain)


def test_only_the_first_tokens_of_an_action_are_looked_at_and_an_empty_one_is_certain():
    head = torch.full((20,), 0.2, dtype=torch.float64)
    long = Standing(0, (head, torch.cat([head, torch.full((5,), 9.0, dtype=torch.float64)])), UNIFORM)
    assert list(PAPER.forks([long], 1, 0, {}, RowRng())) == [0]
    assert list(PAPER.forks([Standing(0, (head[:0], head), UNIFORM)], 1, 0, {}, RowRng())) == [1]
    assert list(PAPER.forks([Standing(0, (head, head[:0]), UNIFORM)], 1, 0, {}, RowRng())) == [0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AepoBranch(share=8), r"share must be a fraction in \[0, 1\]"),
        (lambda: AepoBranch(beam=1), "beam must be at least 2"),
        (lambda: AepoBranch(first=0), "first must be at least 1"),
        (lambda: AepoBranch(shared="none"), "shared must be one of all, once"),
    ],
)
def test_wrong_parameters_of_the_rollout_are_refused(unchecked, build, message):
    with pytest.raises(ValueError, match=message):
        build()
