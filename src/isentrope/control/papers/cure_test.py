"""CURE: the recorded candidates, cuts by hand, the filters, and what the sheet states exactly."""

from dataclasses import replace

import pytest
import torch

from isentrope.control.cuts import Drafts
from isentrope.control.objectives import Objective
from isentrope.control.papers import cure
from isentrope.control.papers.common_test import recorded
from isentrope.control.papers.cure import Cure
from isentrope.control.stages import chain, policy_loss
from isentrope.control.step import Progress, Rollouts, RowRng, Step
from isentrope.verify import verify


def drafts(entropy, ids=None, texts=None, *, special=(), first_id=0, longest=99) -> Drafts:
    entropy = torch.as_tensor(entropy, dtype=torch.float64)
    ids = torch.full(entropy.shape, 7) if ids is None else torch.as_tensor(ids)
    rollouts = Rollouts.of(
        torch.ones(entropy.shape, dtype=torch.bool), completion_ids=ids, signals={"draft.entropy": entropy}, row_id=first_id + torch.arange(len(entropy))
    )
    return Drafts(rollouts, 1, longest, {int(token): "word" for token in ids.unique()} if texts is None else texts, frozenset(special))


def of_the_record(link: Cure, rng: RowRng) -> list[int]:
    given = recorded("cure__critical-token-candidates").given
    texts = {token: "x" * int(length) for token, length in enumerate(given["text_length"].tolist())}
    special = given["special"].nonzero().squeeze(1).tolist()
    return link.branches(drafts(given["entropy"], given["response_ids"], texts, special=special), {}, rng).cut.tolist()


# --- recorded outputs


def cuts_are_of_the_record() -> None:
    """Over many draws every recorded candidate is cut, and nothing else."""
    wanted = recorded("cure__critical-token-candidates").found["position_by_draw"].long()
    found = torch.tensor([of_the_record(Cure(n2=1, top_k=5), RowRng(seed=seed)) for seed in range(200)])
    for row in range(len(wanted)):
        assert set(found[:, row].tolist()) == set(wanted[row].tolist())


def test_cuts_are_the_released_candidates():
    cuts_are_of_the_record()


def test_the_least_uncertain_positions_turn_it_red(monkeypatch):
    ranked = cure.leading
    monkeypatch.setattr(cure, "leading", lambda key, among, count: ranked(-key, among, count))
    with pytest.raises(AssertionError):
        cuts_are_of_the_record()


def test_both_recorded_cases_pass(request):
    results = verify(request.config.rootpath / "tests" / "vectors", ["cure"])
    assert [result.passed for result in results] == [True, True]


# --- by hand


def test_one_cut_per_draft_and_all_its_branches_go_on_from_it():
    found = Cure(n1=2, n2=3, top_k=1).branches(drafts([[9.0, 1.0, 2.0, 0.5], [0.0, 3.0, 1.0, 1.0]]), {}, RowRng())
    assert found.parent.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.cut.tolist() == [2, 2, 2, 1, 1, 1]  # the 9 stands at position 0


@pytest.mark.parametrize(("text", "cut"), [("word", 2), (" a ", 0), (".", 0), ("", 0), ("  ", 0), ("ab", 2), ("\n\n", 0)])
def test_texts_of_one_character_are_no_cut(text, cut):
    found = Cure(top_k=1, n2=1).branches(drafts([[0.0, 1.0, 2.0]], [[1, 1, 2]], {1: "", 2: text}), {}, RowRng())
    assert found.cut.tolist() == [cut]


def test_special_tokens_are_no_cut():
    assert not Cure().admits("<|eos|>", special=True)
    assert Cure(top_k=1, n2=1).branches(drafts([[0.0, 1.0, 2.0]], [[7, 7, 8]], special=(8,)), {}, RowRng()).cut.tolist() == [1]


def test_a_cut_that_leaves_too_little_room_is_not_admitted():
    late = drafts([[0.0, 1.0, 2.0, 3.0, 9.0]], longest=5)
    assert Cure(top_k=1, n2=1).branches(late, {}, RowRng()).cut.tolist() == [4]
    assert Cure(top_k=1, n2=1, room=3).branches(late, {}, RowRng()).cut.tolist() == [2]


def test_random_cuts_keep_the_filters_and_forget_the_entropy():
    texts = {1: "ab", 2: "."}
    entropy = [[0.0, 1.0, 9.0, 2.0, 3.0]] * 500
    some = drafts(entropy, [[1, 1, 2, 1, 1]] * 500, texts)
    count = torch.bincount(Cure(n2=1, top_k=2, kind="random").branches(some, {}, RowRng(seed=4)).cut, minlength=5)
    assert count[0] == count[2] == 0
    assert all(abs(int(count[at]) - 500 / 3) < 4 * (500 * 2 / 9) ** 0.5 for at in (1, 3, 4))  # four deviations
    assert set(Cure(n2=1, top_k=2).branches(some, {}, RowRng(seed=4)).cut.tolist()) == {3, 4}


def test_cuts_are_keyed_by_the_row_not_by_where_it_stands():
    entropy = torch.rand(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    link, rng = Cure(n2=1, top_k=6), RowRng(seed=2, step=-3)
    whole = link.branches(drafts(entropy, first_id=30), {}, rng).cut
    halves = [link.branches(drafts(entropy[part], first_id=30 + part.start), {}, rng).cut for part in (slice(0, 3), slice(3, 6))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, link.branches(drafts(entropy, first_id=30), {}, RowRng(seed=2, step=-4)).cut)


# --- the schedule and the groups


@pytest.mark.parametrize(("until", "step", "drafts"), [(300, 0, 4), (300, 299, 4), (300, 300, None), (None, 10**6, 4), (0, 0, None)])
def test_stage_one_ends_after_its_updates(until, step, drafts):
    assert Cure(until=until).drafts(16, Progress(step, 1000), {}) == drafts


def test_groups_of_another_size_are_refused_with_both_numbers():
    assert Cure().misfit(16) == ""
    assert Cure().misfit(8) == "n1 + n1 n2 = 4 + 12 = 16 responses form a group, and num_generations is 8. Set both alike."
    assert Cure(until=0).misfit(8) == ""


@pytest.mark.parametrize(("parameter", "value"), [("n1", 0), ("n2", 0), ("top_k", 0), ("room", 0), ("until", -1), ("characters", -1)])
def test_parameters_out_of_range_are_refused_by_name(parameter, value):
    with pytest.raises(ValueError, match=f"Cure: {parameter} must be"):
        Cure(**{parameter: value})


def test_the_recipe_is_dapo_with_the_scripts_bounds():
    assert Cure().recipe() == replace(Objective.named("dapo"), epsilon_high=0.28, dual_clip=10.0)


# --- the sheet's exact statement (b)


def test_a_branch_term_has_zero_mean_given_its_prefix_whatever_the_baseline():
    """Two tokens of three kinds, the first taken over: summed over all second tokens by their chance, the gradient of a constant advantage is 0."""
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)
    log_p = torch.log_softmax(logits, -1)
    total = torch.zeros(2, 3, dtype=torch.float64)
    for token in range(3):
        log_probs = torch.stack([log_p[0, 1], log_p[1, token]])[None]
        mask = torch.tensor([[False, True]])
        rollouts = Rollouts.of(mask, completion_mask=torch.ones_like(mask), advantage=torch.full((1, 1), 0.7, dtype=torch.float64))
        loss = policy_loss(Step(rollouts, log_probs), Objective.named("dapo"), chain(Cure())).loss
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert (slope[0] == 0).all()  # no credit to the prefix
        total += log_p[1, token].exp().detach() * slope
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)
