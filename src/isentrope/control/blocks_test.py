"""What the papers share: the quantile is torch's, a draw is uniform, and no order of rows changes a selection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.blocks import check_at_least, check_fraction, check_one_of, check_scope, choose, in_row_order, largest, quantile
from isentrope.control.step import RowRng


def some(seed: int, rows: int = 6, width: int = 9, share: float = 0.7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < share
    return value, mask, 40 + 7 * torch.randperm(rows, generator=generator)


@given(seed=st.integers(0, 10_000), level=st.floats(0, 1), tied=st.booleans())
@settings(max_examples=60, deadline=None)
def test_quantile_is_torchs_bit_for_bit(seed, level, tied):
    value, mask, _ = some(seed)
    value = value.round() if tied else value
    mask[0] = False
    if mask.any():
        assert torch.equal(quantile(value.flatten(), mask.flatten(), level), torch.quantile(value[mask].float(), level))
    rows = torch.nanquantile(torch.where(mask, value, torch.nan).float(), level, dim=1)
    assert torch.equal(quantile(value, mask, level).nan_to_num(-1.0), rows.nan_to_num(-1.0))


def test_quantile_never_reads_what_is_not_counted():
    value, mask, _ = some(3)
    for filler in (float("nan"), float("inf"), 1e30):
        assert torch.equal(quantile(torch.where(mask, value, filler), mask, 0.4), quantile(value, mask, 0.4))


def test_quantile_of_nothing_is_nan():
    assert quantile(torch.ones(3), torch.zeros(3, dtype=torch.bool), 0.5).isnan()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_sums_in_row_order_are_bit_equal_under_permutation_and_padding(seed):
    value, mask, row_id = some(seed)
    plain = in_row_order(value, mask, row_id)
    order = torch.randperm(len(row_id), generator=torch.Generator().manual_seed(seed + 1))
    wide = torch.nn.functional.pad(value, (0, 4), value=float("nan")), torch.nn.functional.pad(mask, (0, 4))
    assert torch.equal(in_row_order(wide[0][order], wide[1][order], row_id[order]), plain)
    assert torch.equal(plain.sort().values, value[mask].sort().values)


def test_choose_draws_uniformly_without_replacement():
    among = torch.zeros(3, 5, dtype=torch.bool)
    among[0, 1] = among[1, 3] = among[2, 0] = among[2, 4] = True
    counts, draws = torch.zeros(3, 5), 600
    for step in range(draws):
        chosen = choose(among, 2, RowRng(step=step).uniform(torch.tensor([5, 9, 2]), 5))
        assert int(chosen.sum()) == 2
        assert not (chosen & ~among).any()
        counts += chosen
    share = counts[among] / draws
    assert (share - 0.5).abs().max() < 5 * (0.25 / draws) ** 0.5


def test_choose_takes_all_if_there_are_fewer_and_none_of_none():
    among = torch.tensor([[True, False, True]])
    keys = RowRng().uniform(torch.tensor([0]), 3)
    assert torch.equal(choose(among, 9, keys), among)
    assert not choose(among, 0, keys).any()


@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), tied=st.booleans())
@settings(max_examples=60, deadline=None)
def test_largest_takes_the_largest_and_follows_its_rows(seed, count, tied):
    value, mask, row_id = some(seed)
    value = value.round() if tied else value
    chosen = largest(value, mask, count, row_id, RowRng(seed))
    assert int(chosen.sum()) == min(count, int(mask.sum()))
    assert not (chosen & ~mask).any()
    rest = mask & ~chosen
    if chosen.any() and rest.any():
        assert value[chosen].min() >= value[rest].max()
    order = torch.randperm(len(row_id), generator=torch.Generator().manual_seed(seed + 1))
    assert torch.equal(largest(value[order], mask[order], count, row_id[order], RowRng(seed)), chosen[order])


def test_only_ties_are_drawn():
    mask, row_id = torch.ones(2, 3, dtype=torch.bool), torch.tensor([4, 1])
    value = torch.tensor([[3.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    drawn = [largest(value, mask, 2, row_id, RowRng(step=step)) for step in range(200)]
    assert all(chosen[0, 0] and not chosen[1, 1] for chosen in drawn)
    share = torch.stack(drawn).double().mean(0)[value == 1]
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 200) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_fraction("X", "share", 20.0), r"X: share must be a fraction in \[0, 1\]\. Got 20\.0\. If you meant 20 %, write share=0\.2\."),
        (lambda: check_fraction("X", "share", -0.1), r"X: share must be a fraction in \[0, 1\]\. Got -0\.1\.$"),
        (lambda: check_fraction("X", "share", float("nan")), r"Got nan"),
        (lambda: check_at_least("X", "beta", -1.0, 0, "0 is off."), r"X: beta must be at least 0\. Got -1\.0\. 0 is off\."),
        (lambda: check_at_least("X", "beta", float("nan"), 0, "0 is off."), r"Got nan"),
        (lambda: check_one_of("X", "variant", "both", ("paper", "code"), "Choose."), r"X: variant must be one of paper, code\. Got 'both'\. Choose\."),
        (lambda: check_scope("X", "group"), r"X: scope must be one of update, micro-batch\. Got 'group'\."),
    ],
)
def test_wrong_parameters_say_who_what_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
