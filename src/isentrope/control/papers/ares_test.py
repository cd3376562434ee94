"""ARES: recorded outputs, windows and buckets, the printed multiplier that is always 0, the lagged one that is not, and the released controller."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.cuts import Drafts
from isentrope.control.papers import ares
from isentrope.control.papers.ares import BUCKETS, Ares, AresBranch, deviation, difficulty, high_threshold, high_windows, released_shaping
from isentrope.control.papers.common_test import recorded
from isentrope.control.stages import advance, chain, survey
from isentrope.control.step import Progress, Rollouts, RowRng, Step
from isentrope.testing.world import play, world


def rollouts(entropy, correct, *, group=None, mask=None) -> Rollouts:
    """Responses with these entropies of the policy that sampled them; the reward is their correctness."""
    entropy, correct = torch.tensor(entropy, dtype=torch.float64), torch.tensor(correct, dtype=torch.float64)
    return Rollouts.of(
        torch.ones(entropy.shape, dtype=torch.bool) if mask is None else mask,
        reward=correct,
        correct=correct,
        signals={"old.entropy": entropy},
        **({} if group is None else {"group": torch.tensor(group)}),
    )


def batch_of_counts(counts, correct, **known) -> Rollouts:
    """Responses of 8 tokens of which `counts` are high, at width 1 and the quantile 0.99: the quantile of a response with a high token is near 1."""
    return rollouts([[1.0] * count + [0.0] * (8 - count) for count in counts], correct, **known)


def after(link: Ares, batch: Rollouts, state, progress=Progress()):
    """The state after one update that holds all of the batch."""
    step = Step(
        replace(batch, old_log_probs=torch.zeros(batch.trained_mask.shape, dtype=torch.float64)), torch.zeros(batch.trained_mask.shape, dtype=torch.float64)
    )
    stats = survey(step, link.recipe(), chain(link), (state,), RowRng())
    return advance(chain(link), (state,), stats, progress)[0]


# --- recorded outputs


def follows_the_record() -> None:
    case = recorded("ares__code-reward")
    given = case.given
    found = ares.released_shaping(given["bucket"], given["correct"] != 0, given["window_count"], given["target_count"], given["alpha"])
    case.close(found, "shaping")
    case.close(found + given["correct"], "reward")


def test_the_released_reward_is_reproduced():
    follows_the_record()


def test_shaping_the_other_way_is_noticed(monkeypatch):
    monkeypatch.setattr(ares, "released_shaping", lambda *values: -released_shaping(*values))
    with pytest.raises(AssertionError):
        follows_the_record()


@given(target=st.integers(0, 30), alpha=st.floats(0.01, 2), bucket=st.integers(0, 2), correct=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_released_reward_is_bounded_and_continuous_but_where_hard_ones_turn(target, alpha, bucket, correct):
    """One jump: a correct answer to a hard prompt at Delta = -M falls from half the cap to 0."""
    wide = torch.linspace(-5, 60, 13_001, dtype=torch.float64)
    filled = torch.full_like(wide, target)
    found = released_shaping(torch.full(wide.shape, bucket), torch.full(wide.shape, correct), wide, filled, torch.full_like(wide, alpha))
    cap = alpha * (1.2 if bucket == 2 else 1.0)
    assert (found.abs() <= cap + 1e-12).all()
    jumps = (found.diff().abs() > 0.02 * cap).nonzero().flatten()
    turn = target - max(1.0, 0.35 * target)
    expected = correct and bucket == 2 and turn > -5
    assert len(jumps) == int(expected)
    if expected:
        assert float(wide[jumps[0]]) == pytest.approx(turn, abs=0.011)
        assert float(found.diff()[jumps[0]]) == pytest.approx(cap / 2, rel=0.02)
    if not correct:
        assert (found >= 0.3 * cap - 1e-12).all()  # being wrong is paid, always


# --- windows and buckets


@pytest.mark.parametrize("value", [0.0, 0.7, 3.0])
def test_every_full_window_of_a_constant_is_high(value):
    entropy, mask = torch.full((1, 9), value, dtype=torch.float64), torch.arange(9)[None] < 7
    threshold = high_threshold(entropy, mask)
    assert float(threshold) == value
    assert high_windows(entropy, mask, threshold, width=4).tolist() == [4.0]
    assert high_windows(entropy, mask, threshold, width=8).tolist() == [0.0]


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), shift=st.floats(-2, 2), released=st.sampled_from([None, 3]))
@settings(max_examples=40, deadline=None)
def test_counts_are_the_same_after_an_affine_map_of_the_entropies(seed, scale, shift, released):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(5, 12, generator=generator, dtype=torch.float64)
    mask = torch.arange(12) < torch.randint(1, 13, (5, 1), generator=generator)
    plain = high_threshold(entropy, mask, quantile=0.7, released=released)
    moved = high_threshold(scale * entropy + shift, mask, quantile=0.7, released=released)
    torch.testing.assert_close(moved, scale * plain + shift, rtol=1e-9, atol=1e-9)
    level = plain - 1e-6  # a window may be the quantile itself
    assert torch.equal(high_windows(entropy, mask, level, width=3), high_windows(scale * entropy + shift, mask, scale * level + shift, width=3))


def test_windows_after_a_trigger():
    entropy = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]])
    before = torch.tensor([[True, False, False, True, True, False]])
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert high_windows(entropy, mask, 0.9, width=2, before=before).tolist() == [1.0]  # after 0: 1, 1; after 3: 0, 1; after 4: not full
    assert high_windows(entropy, mask, 0.5, width=2, before=before).tolist() == [2.0]


@pytest.mark.parametrize(("solved", "bucket"), [(0, 2), (1, 2), (2, 2), (3, 1), (4, 1), (5, 1), (6, 0), (7, 0), (8, 0)])
def test_buckets_of_eight_are_the_papers_and_the_codes(solved, bucket):
    correct = (torch.arange(8) < solved).double()
    group = torch.full((8,), 5)
    assert difficulty(correct, group).tolist() == [bucket] * 8
    assert difficulty(correct, group, easy=2 / 3, hard=1 / 3 - 1e-6).tolist() == [bucket] * 8


def test_what_no_verifier_judged_has_no_bucket():
    nan = float("nan")
    assert difficulty(torch.tensor([1.0, nan, nan, nan]), torch.tensor([0, 0, 1, 1])).tolist() == [0, 0, -1, -1]
    assert deviation(torch.tensor([0, 1, 2, -1] * 2), torch.tensor([2.0] * 4 + [-2.0] * 4).double()).tolist() == [2, 2, 0, 0, 0, 2, 2, 0]


# --- the multiplier


@given(counts=st.lists(st.integers(0, 8), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_printed_multiplier_is_zero_whatever_is_counted(counts):
    count = torch.tensor(counts, dtype=torch.float64)
    for bucket in range(3):
        assert Ares().multiplier(count, bucket, float(count.sum() / len(count))) == 0


def test_the_printed_rule_changes_no_reward_and_says_so():
    batch = batch_of_counts([1, 5, 3, 7], [1, 0, 0, 0])
    link = Ares(variant="paper")
    assert torch.equal(link.reward(batch, link.init()), batch.reward)
    assert after(link, batch, {}) == {}
    with pytest.warns(UserWarning, match=r'Ares: variant="paper" changes no reward: .* Take "fixed" or "code"\.'):
        after(link, batch, {}, Progress(10, 20))


def shapes_by_the_target() -> None:
    """Counts 6, 2 | 2, 6 with targets 3, 5, 5 and a variance of 4: lambda is 1 / 4, on the punished side alone."""
    link = Ares(width=1, quantile=0.99, targets=(3.0, 5.0, 5.0))
    easy = batch_of_counts([6, 2, 6, 2], [0, 1, 1, 1])
    middle = batch_of_counts([6, 2, 6, 2], [0, 0, 1, 1])
    hard = batch_of_counts([6, 2, 6, 2], [0, 0, 1, 0])
    rate = 1 / (4 + 1e-3)
    assert link.counts(easy, {}).tolist() == [6, 2, 6, 2]
    assert link.reward(easy, link.init()).tolist() == pytest.approx([-3 * rate, 1, 1, 1])
    assert link.reward(middle, link.init()).tolist() == pytest.approx([-rate, -3 * rate, 1, 1])
    assert link.reward(hard, link.init()).tolist() == pytest.approx([0, -3 * rate, 1, -3 * rate])
    right_side = replace(link, targets=(5.0, 4.0, 3.0))  # no bucket misses on the punished side
    for batch in (easy, middle, hard):
        assert torch.equal(right_side.reward(batch, right_side.init()), batch.reward)


def test_the_reward_by_hand():
    shapes_by_the_target()


def test_punishing_the_other_side_is_noticed(monkeypatch):
    monkeypatch.setattr(ares, "deviation", lambda bucket, apart: deviation(bucket, -apart))
    with pytest.raises(AssertionError):
        shapes_by_the_target()


def test_the_multiplier_is_capped_where_all_counts_agree():
    assert Ares().multiplier(torch.full((3,), 4.0, dtype=torch.float64), 0, 1.0) == 2.0
    assert Ares(limit=0.5).multiplier(torch.full((3,), 4.0, dtype=torch.float64), 0, 1.0) == 0.5


def test_the_target_lags_so_a_drift_is_seen():
    """Easy prompts that think more and more: the first update has no target, later ones are behind."""
    link = Ares(width=1, quantile=0.99, memory=0.5)
    state = link.init()
    assert state == {"target_easy": None, "target_medium": None, "target_hard": None}
    few, many = batch_of_counts([1, 3, 2, 2], [0, 1, 1, 1]), batch_of_counts([5, 7, 6, 6], [0, 1, 1, 1])
    assert torch.equal(link.reward(few, state), few.reward)
    state = after(link, few, state)
    assert state == {"target_easy": 2.0, "target_medium": None, "target_hard": None}
    assert torch.equal(link.reward(few, state), few.reward)  # on target
    assert float(link.reward(many, state)[0]) == pytest.approx(-2.0 * 3)  # 4 above, variance 1/2: capped at 2
    assert after(link, many, state)["target_easy"] == 4.0


def test_the_released_controller_moves_by_rounding_only():
    link = Ares(width=1, variant="code")
    state = link.init()
    assert state == {"threshold": None, "alpha_easy": 0.5, "alpha_medium": 0.5, "alpha_hard": 0.5}
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        entropy = torch.rand(8, 10, generator=generator, dtype=torch.float64)
        batch = replace(rollouts(entropy.tolist(), [0.0] * 4 + [1.0] * 4, group=[0] * 4 + [1] * 4))
        new = after(link, batch, state)
        for name in BUCKETS:
            assert abs(float(new[f"alpha_{name}"]) - float(state[f"alpha_{name}"])) <= 0.05 * 0.5 + 1e-12
        state = new
    assert state["alpha_medium"] == 0.5  # no such group
    assert 0 < float(state["threshold"]) < 1


def test_the_released_threshold_is_an_average_of_earlier_ones():
    link = Ares(width=1, variant="code")
    low, high = rollouts([[0.1] * 6], [1.0]), rollouts([[0.9] * 6], [1.0])
    state = after(link, low, link.init())
    assert state["threshold"] == pytest.approx(0.1)
    assert after(link, high, state)["threshold"] == pytest.approx(0.99 * 0.1 + 0.01 * 0.9)
    assert link.counts(high, state).tolist() == [5.0]
    assert link.counts(low, {"threshold": 0.5}).tolist() == [0.0]


def test_only_triggers_open_windows_as_released():
    batch = replace(rollouts([[0.1, 0.9, 0.1, 0.9]], [1.0]), completion_ids=torch.tensor([[5, 6, 7, 5]]))
    state = {"threshold": 0.5}
    assert Ares(width=1, variant="code").counts(batch, state).tolist() == [2.0]
    assert Ares(width=1, variant="code", triggers=(7,)).counts(batch, state).tolist() == [1.0]
    assert Ares(width=1, variant="code", triggers=(6,)).counts(batch, state).tolist() == [0.0]


# --- what else must hold


@pytest.mark.parametrize("variant", ["fixed", "code"])
def test_correct_and_unjudged_responses(variant):
    nan = float("nan")
    link = Ares(width=1, quantile=0.99, targets=(0.0, 0.0, 9.0), variant=variant)
    batch = batch_of_counts([6, 2, 6, 2], [1.0, 0.0, nan, 0.0])
    found = link.reward(batch, link.init())
    assert found[2].isnan()  # unscorable stays so
    assert (found[0] == 1) == (variant == "fixed")
    assert found[1] != 0


def test_group_centred_variance_identity():
    """For i.i.d. R with the group mean as baseline Var(A) = (1 - 1/N) Var(R), and - kappa K in the return adds kappa^2 Var(K) - 2 kappa Cov(S, K) of it."""
    kappa, size = 0.7, 2
    values = torch.tensor([[1.0, 0.2], [0.0, 0.9], [0.5, 0.1]], dtype=torch.float64)  # three equally likely pairs (S, K)
    both = values[:, 0] - kappa * values[:, 1]
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    centred = both[first] - (both[first] + both[second]) / size
    cov = torch.cov(values.T, correction=0)
    expected = (1 - 1 / size) * (cov[0, 0] + kappa**2 * cov[1, 1] - 2 * kappa * cov[0, 1])
    torch.testing.assert_close(centred.square().mean(), expected)


@pytest.mark.parametrize("variant", ["fixed", "code"])
def test_slices_and_order_leave_state_and_gradient(variant):
    link = Ares(variant=variant).embedded()
    scene = world(5)
    whole = play(link, scene).by_row()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    for slices in (2, 8):
        cut = play(link, scene.take(order), slices=slices).by_row()
        torch.testing.assert_close(cut.gradient, whole.gradient, rtol=1e-9, atol=1e-12)
        assert cut.state == pytest.approx(dict(whole.state), rel=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ares(coef=-1.0), r"Ares: coef must be at least 0\. Got -1\.0\. 0 switches it off\."),
        (lambda: Ares(width=0), r"Ares: width must be at least 1\. Got 0\. It is a number of tokens\."),
        (lambda: Ares(quantile=95.0), r"Ares: quantile must be a fraction in \[0, 1\]\. Got 95\.0\. If you meant 95 %, write quantile=0\.95\."),
        (lambda: Ares(easy=0.2), r"Ares: hard must be below easy\. Got hard=0\.25, easy=0\.2\. The paper takes 0\.25 and 0\.75\."),
        (lambda: Ares(limit=-0.1), r"Ares: limit must be at least 0\. Got -0\.1\. It caps the multiplier\."),
    ],
)
def test_wrong_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="variant"):
        Ares(variant="other")  # type: ignore[arg-type]


# --- branching


def drafted(entropy, *, missing=2, group=None, longest=99) -> Drafts:
    """Drafts with these entropies, one group unless told otherwise; a NaN ends the text."""
    entropy = torch.tensor(entropy, dtype=torch.float64)
    known = {"group": torch.zeros(len(entropy), dtype=torch.long) if group is None else torch.tensor(group)}
    rows = Rollouts.of(~entropy.isnan(), signals={"draft.entropy": entropy}, completion_ids=torch.full(entropy.shape, 5), **known)
    return Drafts(rows, missing, longest, {5: "."})


def test_a_run_of_uncertain_windows_is_one_trigger_at_its_first_position():
    entropy = [[0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 0.0, 0.0, 4.0, 0.0]]
    link = AresBranch(first=1, width=2)
    found = link.branches(drafted(entropy, missing=4), {"threshold": 1.5}, RowRng())
    assert found.cut.tolist() == [2, 7, 0, 0]  # windows 2-3, 3-4, 4-5 and 7-8, 8-9 exceed 1.5; the rest of the group starts at the prompt
    assert link.branches(drafted(entropy, missing=4), {"threshold": 2.0}, RowRng()).cut.tolist() == [3, 0, 0, 0]  # strictly above
    assert link.branches(drafted(entropy, missing=4), {"threshold": 5.0}, RowRng()).cut.tolist() == [0, 0, 0, 0]


def test_a_window_must_lie_inside_the_text_and_one_at_0_is_no_branch():
    nan = float("nan")
    found = AresBranch(first=1, width=2).branches(drafted([[9.0, 9.0, 0.0, 0.0, 9.0, nan]]), {"threshold": 5.0}, RowRng())
    assert found.cut.tolist() == [0, 0]
    assert found.allowed.tolist() == [[False, True, True, True, False, False]]


def test_the_budget_of_a_group_follows_its_own_triggers():
    calm, busy = [0.0] * 8, [0.0, 0.0, 9.0, 0.0, 0.0, 9.0, 0.0, 0.0]
    found = AresBranch(first=1, width=1).branches(drafted([calm, busy], group=[3, 8]), {"threshold": 1.0}, RowRng())
    assert found.parent.tolist() == [0, 0, 1, 1]
    assert found.cut.tolist() == [0, 0, 2, 5]


def test_where_there_are_more_triggers_than_places_each_is_drawn_equally_often():
    entropy = [[0.0] + [9.0, 0.0] * 6]
    link = AresBranch(first=1, width=1)
    cuts = torch.cat([link.branches(drafted(entropy), {"threshold": 1.0}, RowRng(seed=seed)).cut for seed in range(600)])
    count = torch.bincount(cuts, minlength=13)[1::2]
    assert int(count.sum()) == 1200
    assert (count - 200).abs().max() < 4 * (600 * (1 / 3) * (2 / 3)) ** 0.5  # four deviations


def test_the_threshold_is_of_earlier_generations():
    link = AresBranch(width=1, quantile=1.0, memory=0.25)
    assert link.drafts(8, Progress(), link.init()) is None  # nothing is known yet
    one = link.collect(rollouts([[1.0, 3.0], [5.0, 2.0]], [1.0, 0.0]), link.init())
    assert one == {"threshold": 4.0}  # the mean of 3 and 5
    assert link.drafts(8, Progress(), one) == 4
    assert link.collect(rollouts([[8.0, 0.0]], [1.0]), one) == {"threshold": 0.25 * 4.0 + 0.75 * 8.0}
    assert AresBranch().collect(rollouts([[8.0, 0.0]], [1.0]), one) == {"threshold": pytest.approx(0.95 * 8.0)}  # the last one alone


def test_what_a_branch_took_over_counts_once_in_the_threshold():
    mask = torch.tensor([[True, True], [False, True]])
    batch = rollouts([[9.0, 1.0], [9.0, 1.0]], [1.0, 0.0], mask=mask)
    assert AresBranch(quantile=1.0).collect(batch, {"threshold": None}) == {"threshold": 5.0}  # 9 and 1, not 9 and 9


def test_a_group_without_room_for_branches_is_refused_with_both_numbers():
    assert AresBranch().misfit(5) == ""
    assert AresBranch().misfit(4) == "first = 4 responses are sampled before any branches, and num_generations is 4, so none is left. Lower first."
