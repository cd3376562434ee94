"""AEM (agentic): alpha by hand on synthetic turns, what it keeps, and the two identities of its sheet."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.blocks import turns
from isentrope.control.papers.aem_agentic import AemAgentic, modulation
from isentrope.control.step import Rollouts

TURNS = torch.tensor([[0, 0, 1, 1, 1, 2], [5, 5, 9, 9, 9, 9], [3, 3, 3, 3, 3, 3]])


def batch(entropy=None, turn=TURNS) -> Rollouts:
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 5], mask[0, 3] = False, False
    entropy = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) if entropy is None else entropy
    known = {"advantage": torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64), "group": torch.tensor([1, 1, 0])}
    return Rollouts.of(mask, row_id=torch.tensor([30, 10, 20]), turn=turn, signals={"old.entropy": entropy}, **known)


def factors(link: AemAgentic, rollouts: Rollouts) -> dict[tuple[int, int], float]:
    """alpha by (row, turn), which must be constant on it."""
    alpha, found = link.advantage(rollouts, {}) / rollouts.advantage, {}
    for row in range(3):
        for turn in rollouts.turn[row].unique().tolist():
            here = alpha[row][(rollouts.turn[row] == turn) & rollouts.trained_mask[row]]
            assert float(here.max() - here.min()) < 1e-15
            found[row, turn] = float(here[0])
    return found


def test_turns_are_numbered_by_row_id():
    rollouts = batch()
    of, row = turns(rollouts.trained_mask, rollouts.turn, rollouts.row_id)
    assert row.tolist() == [1, 1, 2, 0, 0, 0]
    assert of[0].tolist() == [3, 3, 4, 0, 4, 5]
    assert turns(rollouts.trained_mask, None, rollouts.row_id)[1].tolist() == [1, 2, 0]


def test_by_hand_within_a_response():
    """Mean entropies 0, 1 and 2 of three turns, lambda = 2 ln 2: factors 1, 1/2 and 1/4 over their mean 7/12."""
    entropy = torch.tensor([[0.0, 0, 2, 9, 0, 2], [1, 1, 3, 3, 3, 9], [4, 4, 4, 4, 4, 4]], dtype=torch.float64)
    found = factors(AemAgentic(strength=2 * math.log(2)), batch(entropy))
    assert [found[0, turn] for turn in (0, 1, 2)] == pytest.approx([12 / 7, 6 / 7, 3 / 7])
    assert [found[1, turn] for turn in (5, 9)] == pytest.approx([1.6, 0.4])
    assert found[2, 3] == 1


@pytest.mark.parametrize(("scope", "sets"), [("sequence", [[0], [1], [2]]), ("group", [[0, 1], [2]]), ("rollout", [[0, 1, 2]])])
def test_alpha_has_mean_one_over_the_turns_of_its_scope(scope, sets):
    found = factors(AemAgentic(strength=1.7, scope=scope), batch())
    for rows in sets:
        values = [alpha for (row, _), alpha in found.items() if row in rows]
        assert sum(values) / len(values) == pytest.approx(1)
    assert len({round(alpha, 9) for alpha in found.values()}) > 2


def test_the_more_certain_turn_weighs_more_and_signs_stay():
    entropy = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rollouts = batch(entropy)
    found = AemAgentic(scope="rollout").advantage(rollouts, {})
    assert torch.equal(found.sign(), rollouts.token_advantage().sign())
    one = torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64)
    alpha = modulation(one, torch.zeros(3, dtype=torch.long), 1.0)
    assert alpha[0] > alpha[2] > alpha[1]


@given(st.floats(0, 5), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_alpha_is_blind_to_affine_maps_of_the_entropy(strength, scale, shift):
    value = torch.tensor([0.2, 1.4, 0.9, 3.0], dtype=torch.float64)
    scope = torch.tensor([0, 0, 0, 0])
    torch.testing.assert_close(modulation(scale * value + shift, scope, strength), modulation(value, scope, strength), rtol=1e-9, atol=1e-12)


def test_one_turn_per_response_or_equal_entropies_change_nothing():
    single = batch(turn=torch.zeros_like(TURNS))
    assert torch.equal(AemAgentic(strength=3.0).advantage(single, {}), single.token_advantage())
    flat = batch(torch.full((3, 6), 0.4, dtype=torch.float64))
    assert torch.equal(AemAgentic(strength=3.0, scope="rollout").advantage(flat, {}), flat.token_advantage())


def test_sum_and_surprisal_order_turns_by_their_total():
    """A long turn of little entropy per token and a short one of more: the mean and the sum disagree."""
    entropy = torch.full((3, 6), 0.5, dtype=torch.float64)
    entropy[1, :2] = 0.6
    rollouts = batch(entropy)
    mean, total = (factors(AemAgentic(proxy=proxy), rollouts) for proxy in ("mean", "sum"))
    assert mean[1, 5] < 1 < mean[1, 9]
    assert total[1, 5] > 1 > total[1, 9]
    rollouts.signals["old.p"] = torch.exp(-entropy)
    assert factors(AemAgentic(proxy="surprisal"), rollouts) == pytest.approx(total)
    assert [need.key for need in AemAgentic(proxy="surprisal").needs] == ["old.p"]


def test_the_entropy_of_a_natural_gradient_flow_changes_by_the_covariance():
    """dH/dt = E[A (S - H)] under dpi = pi (A - E A)."""
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(9, generator=generator, dtype=torch.float64), -1)
    a = torch.randn(9, generator=generator, dtype=torch.float64)

    def entropy(t: float) -> float:
        moved = p * (1 + t * a)
        moved = moved / moved.sum()
        return float(-(moved * moved.log()).sum())

    surprisal = -p.log()
    exact = float((p * a * (surprisal - (p * surprisal).sum())).sum())
    assert (entropy(1e-5) - entropy(-1e-5)) / 2e-5 == pytest.approx(exact, rel=1e-6)


def test_a_negative_mean_advantage_raises_entropy_and_a_positive_one_lowers_it():
    """E[alpha A (S - H)] = E[A] Cov(alpha, S) where A is independent of S: here A is the same in every turn."""
    surprisal = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha = modulation(surprisal, torch.zeros(50, dtype=torch.long), 1.0)
    covariance = ((alpha - 1) * (surprisal - surprisal.mean())).mean()
    assert float(covariance) < 0
    for mean in (-0.5, 0.5):
        drift = (alpha * mean * (surprisal - surprisal.mean())).mean()
        assert float(drift) == pytest.approx(float(mean * covariance))


def test_wrong_parameters_say_the_way_out():
    with pytest.raises(ValueError, match=r"AemAgentic: strength .*aepo-agentic"):
        AemAgentic(strength=-1.0)
