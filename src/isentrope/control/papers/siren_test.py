"""SIREN: recorded outputs, the penalty by hand, exact gradients over slices, and the anchor."""

from dataclasses import dataclass, replace

import pytest
import torch

from isentrope.control.papers.common_test import in_slices, recorded, shuffled, some_step
from isentrope.control.papers.siren import Siren, anchored_penalty, peak_mask, response_entropy, selected_entropy
from isentrope.control.stages import advance, chain, policy_loss, survey
from isentrope.control.step import Progress, Rollouts, RowRng, Step
from isentrope.measure.tokens import Entropy, NucleusEntropy, token_signals_from_logits

HELD = Siren(beta=0.3)
KEY = "current.nucleus_entropy[0.8,10000]"
ANCHORED = {"anchor": 0.4}


def penalty_of(link: Siren, step: Step, state) -> torch.Tensor:
    """The loss of the update minus that of the objective alone."""
    return policy_loss(step, link.recipe(), chain(link), None, (state,)).loss - policy_loss(step, link.recipe()).loss


def gradient_of(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


# --- recorded outputs


@pytest.mark.parametrize("name", ["nucleus-entropy", "nucleus-entropy-degenerate"])
def test_nucleus_entropy_is_the_released_one(name):
    case = recorded(f"siren__{name}")
    logits = case.given["logits"].clone().requires_grad_(True)
    signal = NucleusEntropy(case.params["p_top"], case.params["top_k"], grad=True)
    target = torch.zeros(len(logits), dtype=torch.long)
    found = token_signals_from_logits(logits, target, [signal, Entropy()])
    case.close(found[signal.key], "nucleus_entropy")
    case.close(found["entropy"], "full_entropy")
    case.close(gradient_of((case.given["w"] * found[signal.key]).sum(), logits), "grad_logits")


@pytest.mark.parametrize("name", ["anchored-loss", "anchored-loss-empty-row", "anchored-loss-padding-leak"])
def test_the_anchored_loss_is_the_released_one(name):
    case = recorded(f"siren__{name}")
    mask, params = case.given["mask"], case.params
    entropy = case.given["entropy"].clone().requires_grad_(True)
    peak = peak_mask(entropy, mask, params["tau"], leak="leak" in name)
    assert torch.equal(peak, case.found["peak_mask"].bool())
    h_sel = selected_entropy(entropy, peak)
    case.close(h_sel, "H_sel")
    value = anchored_penalty(h_sel, params["anchor"], params["beta"])
    case.close(value, "penalty")
    case.close(gradient_of(value, entropy), "grad_entropy")
    if "leak" in name:
        assert (peak & ~mask).any()
        assert not (peak_mask(entropy, mask, params["tau"]) & ~mask).any()


def test_the_link_is_the_released_loss():
    case = recorded("siren__anchored-loss")
    entropy, mask = case.given["entropy"].clone().requires_grad_(True), case.given["mask"]
    link = Siren(beta=case.params["beta"], quantile=case.params["tau"])
    log_probs = torch.zeros(mask.shape, dtype=torch.float64)
    step = Step(Rollouts.of(mask, old_log_probs=log_probs), log_probs, {KEY: entropy})
    value = penalty_of(link, step, {"anchor": case.params["anchor"]})
    case.close(value, "penalty")
    case.close(gradient_of(value, entropy), "grad_entropy")


# --- by hand


def line(entropies: list[list[float]], lengths: list[int]) -> tuple[torch.Tensor, Step]:
    entropy = torch.tensor(entropies, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(entropy.shape[1]) < torch.tensor(lengths)[:, None]
    zero = torch.zeros(entropy.shape, dtype=torch.float64)
    return entropy, Step(Rollouts.of(mask, old_log_probs=zero), zero, {KEY: entropy})


def test_the_penalty_by_hand():
    """Median of (0, 1, 2, 4) is 1.5: 2 and 4 are selected, h = 3. Median of (1, 3) is 2: h = 3. Nothing valid: h = 0. H_sel = 2."""
    entropy, step = line([[0.0, 1.0, 2.0, 4.0], [1.0, 3.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]], [4, 2, 0])
    link = Siren(beta=0.5, quantile=0.5)
    result = policy_loss(step, link.recipe(), chain(link), None, ({"anchor": 3.0},))
    assert result.observed.touched["siren"].tolist() == [[False, False, True, True], [False, True, False, False], [False] * 4]
    assert float(result.metrics["link/siren/penalty"]) == 0.5
    expected = torch.tensor([[0.0, 0.0, 1 / 6, 1 / 6], [0.0, 1 / 3, 0.0, 0.0], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(gradient_of(result.loss, entropy), 2 * 0.5 * (2.0 - 3.0) * expected, rtol=1e-12, atol=0)


# --- exact statements


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_slice_has_exactly_the_value_and_the_gradient(seed):
    step = some_step(HELD, seed, differentiable=True)
    entropy = step.signal(KEY)
    h_sel = selected_entropy(entropy, peak_mask(entropy, step.mask, 0.8))
    direct = anchored_penalty(h_sel, 0.4, 0.3)
    result = policy_loss(step, HELD.recipe(), chain(HELD), None, (ANCHORED,))
    assert torch.equal(result.metrics["link/siren/penalty"], direct.detach())
    torch.testing.assert_close(gradient_of(penalty_of(HELD, step, ANCHORED), entropy), gradient_of(direct, entropy), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("link", [HELD, replace(HELD, anchored=False)], ids=["anchored", "bonus"])
def test_values_and_gradients_of_slices_add_up(link):
    step = some_step(link, differentiable=True)
    entropy = step.signal(KEY)
    whole = policy_loss(step, link.recipe(), chain(link), None, (ANCHORED,))
    for size in (1, 2, 8):
        touched, parts = in_slices(link, shuffled(step, size), size, state=ANCHORED)
        assert torch.equal(touched, in_slices(link, step, 16, state=ANCHORED)[0])
        torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, rtol=1e-9, atol=1e-15)
        total = sum(part.loss for part in parts)
        torch.testing.assert_close(gradient_of(total, entropy), gradient_of(whole.loss, entropy), rtol=1e-9, atol=1e-15)


def test_at_the_anchor_loss_and_gradient_are_zero():
    step = some_step(HELD, differentiable=True)
    entropy = step.signal(KEY)
    there = {"anchor": float(selected_entropy(entropy.detach(), peak_mask(entropy, step.mask, 0.8)))}
    value = penalty_of(HELD, step, there)
    assert float(value.detach()) == 0.0
    assert torch.equal(gradient_of(policy_loss(step, HELD.recipe(), chain(HELD), None, (there,)).loss, entropy), torch.zeros_like(entropy))


def test_logits_outside_the_nucleus_have_no_say_and_inside_q_ln_q_plus_h():
    logits = torch.tensor([[2.0, 1.5, 1.0, -1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    signal = NucleusEntropy(0.9, grad=True)
    found = token_signals_from_logits(logits, torch.tensor([0]), [signal])[signal.key]
    p = torch.softmax(logits.detach(), -1)
    inside = p.cumsum(-1) < 0.9
    assert int(inside.sum()) == 2
    q = torch.where(inside, p, 0.0) / p[inside].sum()
    expected = torch.where(inside, -q * (q.clamp(min=1e-30).log() + found.detach()), 0.0)
    torch.testing.assert_close(gradient_of(found.sum(), logits), expected, rtol=1e-9, atol=1e-11)


@dataclass(frozen=True)
class Reversed(Siren):
    """The mutation: pushes away from the anchor."""

    def regularise(self, step, stats, state):
        penalty = super().regularise(step, stats, state)
        return replace(penalty, total=2 * penalty.total.detach() - penalty.total)


def pulls_towards_its_anchor(link: Siren) -> None:
    """A step down the penalty raises H_sel below the anchor and lowers it above."""
    for anchor, sign in ((5.0, 1), (0.0, -1)):
        logits = torch.randn(3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)

        def step(z: torch.Tensor) -> Step:
            mask = torch.ones(3, 7, dtype=torch.bool)
            zero = torch.zeros(3, 7, dtype=torch.float64)
            found = token_signals_from_logits(z, zero.long(), [link.signal])
            return Step(Rollouts.of(mask, old_log_probs=zero), zero, {KEY: found[link.signal.key]})

        value = penalty_of(link, step(logits), {"anchor": anchor})
        after = step(logits.detach() - 0.01 * gradient_of(value, logits)).signal(KEY)
        before = step(logits).signal(KEY).detach()
        peak = peak_mask(before, torch.ones(3, 7, dtype=torch.bool), 0.8)
        assert sign * float(selected_entropy(after, peak) - selected_entropy(before, peak)) > 0


def test_it_pulls_and_the_opposite_sign_is_noticed():
    pulls_towards_its_anchor(Siren(beta=0.3))
    with pytest.raises(AssertionError):
        pulls_towards_its_anchor(Reversed(beta=0.3))


# --- the anchor


def test_the_first_update_sets_the_anchor_and_later_ones_keep_it():
    state = (HELD.init(),)
    seen = []
    for seed in range(3):
        step = some_step(HELD, seed)
        if seed == 0:
            assert float(policy_loss(step, HELD.recipe(), chain(HELD), None, state).metrics["link/siren/penalty"]) == 0.0
        stats = survey(step, HELD.recipe(), chain(HELD), state, RowRng())
        seen.append(float(stats.links[0].scalars["h_sel"]))
        state = advance(chain(HELD), state, stats, Progress(seed, 3))
    assert len(set(seen)) == 3
    assert state[0] == {"anchor": seen[0]}


def test_an_update_without_tokens_sets_no_anchor():
    step = some_step(HELD)
    empty = replace(step, rollouts=replace(step.rollouts, trained_mask=torch.zeros_like(step.mask)))
    stats = survey(empty, HELD.recipe(), chain(HELD), (HELD.init(),), RowRng())
    assert advance(chain(HELD), (HELD.init(),), stats, Progress()) == ({"anchor": None},)


# --- ablations


def test_ablations_select_and_measure_what_they_say():
    full = replace(HELD, top_p=None)
    assert [need.key for need in full.needs] == ["current.entropy"]
    step = some_step(full)
    entropy = step.signal("current.entropy")
    everywhere = in_slices(replace(full, quantile=None), step, 16, state=ANCHORED)[0]
    assert torch.equal(everywhere, step.mask[torch.argsort(step.rollouts.row_id)])
    direct = anchored_penalty(selected_entropy(entropy, peak_mask(entropy, step.mask, 0.8)), 0.4, 0.3)
    torch.testing.assert_close(penalty_of(full, step, ANCHORED), direct, rtol=1e-9, atol=0)
    first = replace(HELD, peaks_of="full")
    assert [need.key for need in first.needs] == [KEY, "current.entropy"]
    both = some_step(first)
    expected = peak_mask(both.signal("current.entropy"), both.mask, 0.8)
    assert torch.equal(in_slices(first, both, 16, state=ANCHORED)[0], expected[torch.argsort(both.rollouts.row_id)])


def test_the_plain_bonus_is_minus_beta_h_sel():
    bonus = replace(HELD, anchored=False)
    step = some_step(bonus)
    entropy = step.signal(KEY)
    h_sel = selected_entropy(entropy, peak_mask(entropy, step.mask, 0.8))
    torch.testing.assert_close(penalty_of(bonus, step, bonus.init()), -0.3 * h_sel, rtol=1e-9, atol=0)


def test_a_response_with_nothing_selected_counts_as_zero():
    entropy = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    peak = peak_mask(entropy, torch.ones(2, 2, dtype=torch.bool), 0.5)
    assert response_entropy(entropy, peak).tolist() == [0.0, 2.0]
    assert float(selected_entropy(entropy, peak)) == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Siren(beta=-0.1), r"Siren: beta must be at least 0\. Got -0\.1"),
        (lambda: Siren(quantile=80.0), r"Siren: quantile must be a fraction in \[0, 1\]\. Got 80\.0\. If you meant 80 %, write quantile=0\.8\."),
        (lambda: Siren(top_p=0.0), r"Siren: top_p must be above 0, or None for the full entropy\. Got 0\.0\."),
        (lambda: Siren(top_k=0), r"Siren: top_k must be at least 1\. Got 0\. For the whole vocabulary write top_k=None\."),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_choice_is_refused():
    with pytest.raises((ValueError, TypeError), match="peaks_of"):
        Siren(peaks_of="all")
