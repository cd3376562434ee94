"""Where drafts are cut: filters, order, the draw, and what a branch goes on from."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.cuts import Drafts, contexts, drawn, eligible, leading
from isentrope.control.placebo import placebo
from isentrope.control.stages import Regenerate, chain, stages_of
from isentrope.control.step import Rollouts, RowRng


def drafts(ids, texts=None, special=(), longest=99, mask=None, group=None) -> Drafts:
    ids = torch.tensor(ids)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.tensor(mask)
    texts = {token: f"<{token}>" for token in ids.unique().tolist()} if texts is None else texts
    rollouts = replace(Rollouts.of(mask), completion_ids=ids, group=torch.zeros(len(ids), dtype=torch.long) if group is None else torch.tensor(group))
    return Drafts(rollouts, 1, longest, texts, frozenset(special))


def anything(text, special):
    return True


def test_position_0_and_what_is_no_text_are_never_cut():
    found = eligible(drafts([[5, 5, 5], [5, 5, 5]], mask=[[True, True, False], [True, False, False]]), anything)
    assert found.tolist() == [[False, True, False], [False, False, False]]


def test_the_predicate_sees_text_and_whether_the_token_is_special():
    seen = []
    found = eligible(drafts([[1, 2, 3]], {1: "a", 2: " b ", 3: ""}, special=(3,)), lambda text, special: seen.append((text, special)) or text == " b ")
    assert sorted(seen) == [("", True), (" b ", False), ("a", False)]
    assert found.tolist() == [[False, True, False]]


@pytest.mark.parametrize(("room", "last"), [(1, 5), (2, 4), (4, 2)])
def test_a_cut_leaves_room_to_the_longest_response(room, last):
    found = eligible(drafts([[7] * 6], longest=6), anything, room=room)
    assert found.nonzero()[:, 1].tolist() == list(range(1, last + 1))


def test_candidates_in_the_order_of_falling_key_earlier_first_in_a_tie():
    key = torch.tensor([[0.1, 3.0, 2.0, 3.0], [torch.nan, 1.0, torch.inf, 0.5]])
    among = torch.tensor([[True, True, False, True], [False, True, False, False]])
    assert leading(key, among, 3).tolist() == [[1, 3, 0], [1, -1, -1]]


@given(st.integers(0, 6), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_the_draw_is_one_of_the_candidates_or_0(count, uniform):
    row = torch.tensor([[10 + place for place in range(count)] + [-1] * (6 - count)])
    found = int(drawn(row, torch.tensor([uniform], dtype=torch.float64)))
    assert found == (10 + int(uniform * count) if count else 0)


def test_every_candidate_is_drawn_equally_often():
    row = torch.arange(4).expand(4000, 4)
    found = drawn(row, RowRng(seed=1).uniform(torch.arange(4000), 1).squeeze(1))
    assert torch.bincount(found, minlength=4).float().sub(1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5  # four deviations of a count


def test_a_branch_goes_on_from_its_prompt_and_what_is_kept():
    assert contexts([[1, 2], [3]], [[7, 8, 9], [7, 8]], [2, 0]) == [[1, 2, 7, 8], [3]]
    assert contexts([[1, 2]], [[7, 8, 9]], [3], buffer=4) == [[1, 2, 7, 8]]  # as released: the cut moves to 2


def test_groups_stand_in_the_order_of_the_drafts():
    assert [rows.tolist() for rows in drafts([[1]] * 4, group=[9, 9, 2, 2]).groups()] == [[0, 1], [2, 3]]


# --- the stage


def test_at_most_one_link_of_a_chain_re_generates():
    from isentrope.control.papers.cure import Cure

    with pytest.raises(ValueError, match=r"only one link may say how the responses of a group begin\. Got cure, cure"):
        chain(Cure(), Cure(n1=2))


def test_the_placebo_cuts_the_same_drafts_elsewhere_where_a_cut_was_allowed_and_keeps_branches_together():
    from isentrope.control.papers.cure import Cure

    link = Cure(n1=8, n2=3, top_k=1)
    some = drafts([[4 + (row + token) % 3 for token in range(30)] for row in range(8)], {4: "ab", 5: ".", 6: "cd"})
    entropy = torch.zeros(8, 30)
    entropy[:, 17] = entropy[:, 18] = 1.0  # one of them is admitted in every row
    some = replace(some, rollouts=replace(some.rollouts, signals={"draft.entropy": entropy}))
    real, sham = link.branches(some, {}, RowRng()), placebo(link).branches(some, {}, RowRng())
    assert isinstance(placebo(link), Regenerate)
    assert "regenerate" in stages_of(placebo(link))
    assert torch.equal(real.parent, sham.parent)
    assert set(real.cut.tolist()) <= {17, 18}
    assert sham.allowed[sham.parent, sham.cut].all()
    assert not torch.equal(real.cut, sham.cut)
    assert (sham.cut.view(8, 3) == sham.cut.view(8, 3)[:, :1]).all()
