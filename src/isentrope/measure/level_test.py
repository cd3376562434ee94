"""Levels: what padding, order, scale and degenerate cases must leave alone, and small cases worked by hand."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isentrope.measure.level import (
    Summary,
    masked_quantile,
    normalise,
    over_calls,
    phases,
    pool,
    reduce,
    segments,
    summarise,
    trend,
    turns,
    window_threshold,
    windows,
)

HOWS = ("mean", "sum", "max", "min", "std", "count")
SCALES = ("min-max", "z", "rank", "quantile")
VECTORS = st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=1, max_size=9)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def padded(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values with NaN on either side, and the mask that leaves them out."""
    around = torch.nn.functional.pad(values, (2, 3), value=math.nan)
    return around, torch.nn.functional.pad(torch.ones_like(values, dtype=torch.bool), (2, 3))


# --- windows


def test_windows_of_a_constant_are_it_and_of_width_one_the_values():
    constant = torch.full((3, 8), 0.7, dtype=torch.float64)
    found = windows(constant, width=4)
    assert torch.allclose(found.mean[:, :5], constant[:, :5], atol=1e-15)
    assert found.mean[:, 5:].isnan().all()
    values = random(3, 8)
    assert torch.equal(windows(values, width=1).mean, values)


@settings(max_examples=40, deadline=None)
@given(VECTORS, st.integers(1, 10), st.booleans())
def test_windows_are_the_mean_of_the_tokens_they_name(values, width, following):
    found = windows(f64(values), width=width, following=following)
    for t in range(len(values)):
        taken = values[t + following : t + following + width]
        assert bool(found.full[t]) == (len(taken) == width)
        if len(taken) == width:
            assert float(found.mean[t]) == pytest.approx(sum(taken) / width, abs=1e-12)


def test_a_window_over_a_gap_is_not_full_and_padding_is_inert():
    mask = torch.tensor([True, True, False, True, True, True])
    assert windows(torch.arange(6.0), width=2, mask=mask).full.tolist() == [True, False, False, True, True, False]
    values = random(2, 6)
    around, inside = padded(values)
    for following in (False, True):
        assert torch.equal(
            windows(around, width=3, mask=inside, following=following).mean[:, 2:8].nan_to_num(9),
            windows(values, width=3, following=following).mean.nan_to_num(9),
        )
    assert windows(values[:, :0], width=3).mean.shape == (2, 0)
    with pytest.raises(ValueError, match="width must be at least 1"):
        windows(values, width=0)


@pytest.mark.parametrize("released", [{}, {"released": True, "width": 3}])
def test_the_threshold_follows_an_affine_map(released):
    values = random(4, 12)
    before = window_threshold(values, **released)
    assert torch.allclose(window_threshold(3 * values + 2, **released), 3 * before + 2, atol=1e-12)
    around, mask = padded(values)
    assert torch.allclose(window_threshold(around, mask=mask, **released), before, atol=1e-14)


def released_threshold(values: list[float], width: int, quantile: float) -> float:
    """The rule as the sheet tells it: the list grows by the running mean of itself."""
    listed: list[float] = []
    for t in range(len(values)):
        following = values[t + 1 : t + 1 + width]
        if len(following) == width:
            listed.append(sum(following) / width)
        else:
            listed.append(sum(listed) / len(listed) if listed else values[t])
    return float(numpy.quantile(listed, quantile))


@settings(max_examples=60, deadline=None)
@given(VECTORS, st.integers(1, 6))
def test_the_released_threshold_is_the_growing_list(values, width):
    found = float(window_threshold(f64([values]), width=width, released=True))
    assert found == pytest.approx(released_threshold(values, width, 0.95), abs=1e-9)


def test_the_threshold_of_the_paper_takes_no_width():
    with pytest.raises(ValueError, match="width belongs to released=True"):
        window_threshold(random(2, 3), width=4)
    assert window_threshold(random(2, 3), mask=torch.zeros(2, 3, dtype=torch.bool)).isnan().all()


# --- ids


def test_segments_turns_and_phases_by_hand():
    mask = torch.tensor([False, True, True, False, True, True, True, False])
    starts = torch.tensor([True, False, False, True, False, True, False, True])
    assert segments(starts, mask=mask).tolist() == [-1, 0, 0, -1, 0, 1, 1, -1]
    assert turns(mask).tolist() == [-1, 0, 0, -1, 1, 1, 1, -1]
    closes = torch.tensor([True, False, False, True, True, False, True, False])  # the first two lie outside the mask
    assert phases(closes, mask=mask).tolist() == [-1, 0, 0, -1, -1, 1, 1, -1]
    assert phases(torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert segments(torch.zeros(2, 0, dtype=torch.bool)).shape == turns(torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_the_phase_excess_knows_no_length():
    """Sheet pear: max(0, H_think - alpha H_ans) is of the means alone; an absent answer counts 0."""

    def excess(thinking: list[float], answer: list[float]) -> float:
        values = f64([*thinking, 99.0, *answer])
        closes = torch.zeros(len(values), dtype=torch.bool)
        closes[len(thinking)] = True
        think, ans = pool(values, phases(closes), pools=2, empty=0.0)
        return float((think - ans).clamp(min=0))

    assert excess([1.0, 3.0], [0.5]) == excess([1.0, 3.0] * 7, [0.5] * 4) == 1.5
    assert excess([0.5], [0.5, 0.5]) == excess([], [2.0]) == 0
    assert excess([2.0], []) == 2


# --- pools


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(-1, 3)), min_size=1, max_size=10), st.sampled_from(HOWS))
def test_pools_are_the_numbers_of_their_items(items, how):
    oracle = {"mean": numpy.mean, "sum": numpy.sum, "max": numpy.max, "min": numpy.min, "std": numpy.std, "count": len}[how]
    found = pool(f64([v for v, _ in items]), torch.tensor([i for _, i in items]), pools=4, how=how)
    for name in range(4):
        members = [v for v, i in items if i == name]
        if members:
            assert float(found[name]) == pytest.approx(float(oracle(members)), abs=1e-12)
        else:
            assert float(found[name]) == 0 if how == "count" else found[name].isnan()


@pytest.mark.parametrize("how", HOWS)
def test_what_does_not_count_changes_no_pool_and_gets_no_gradient(how):
    values, ids = random(2, 6), torch.tensor([[0, 0, 1, 1, 3, 3]] * 2)
    around, mask = padded(values)
    around = around.requires_grad_()
    named = torch.nn.functional.pad(ids, (2, 3), value=2)
    found = pool(around, named, pools=4, how=how, mask=mask, empty=0.0)
    assert torch.equal(found, pool(values, ids, pools=4, how=how, empty=0.0))
    if how != "count":
        found.sum().backward()
        assert around.grad.isfinite().all()
        assert (around.grad[~mask] == 0).all()


@pytest.mark.parametrize("how", HOWS[:5])
def test_pool_has_the_gradient_of_its_finite_differences(how):
    values = random(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pool(v, torch.tensor([[0, 1, 0, 1, -1], [1, 1, 0, 0, 0]]), pools=2, how=how), (values,))


def test_equal_items_have_no_spread_and_no_slope():
    equal = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    spread = reduce(equal, how="std")
    spread.backward()
    assert spread == 0
    assert (equal.grad == 0).all()


def test_the_mean_over_tokens_is_the_size_weighted_mean_over_its_pools():
    values, ids = random(3, 10), torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2]] * 3)
    mean, size = (pool(values, ids, pools=3, how=how) for how in ("mean", "count"))
    assert torch.allclose((mean * size).sum(-1) / 10, reduce(values), atol=1e-14)


def test_pool_refuses_ids_of_no_pool():
    with pytest.raises(ValueError, match=r"ids must lie in \[-1, pools=2\). Got 0 to 2"):
        pool(torch.ones(2), torch.tensor([0, 2]), pools=2)


@settings(max_examples=60, deadline=None)
@given(VECTORS, st.floats(0, 1))
def test_masked_quantile_is_numpys_linear_one(values, quantile):
    around, mask = padded(f64(values))
    assert float(masked_quantile(around, quantile, mask=mask)) == pytest.approx(float(numpy.quantile(values, quantile)), abs=1e-11)


def test_a_percentage_is_refused_and_no_items_have_no_quantile():
    with pytest.raises(ValueError, match=r"For 95 % write 0\.95"):
        masked_quantile(torch.ones(3), 95)
    assert masked_quantile(torch.ones(2, 0), 0.5).isnan().all()


# --- normalisers


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", ["response", "group", "batch"])
def test_a_scale_knows_its_scope_alone_no_affine_map_and_no_padding(scale, scope):
    values, group = random(5, 7), torch.tensor([7, -2, 7, 7, -2]) if scope == "group" else None
    found = normalise(values, scale, scope=scope, group=group)
    assert torch.allclose(normalise(3 * values + 5, scale, scope=scope, group=group), found, atol=1e-12)
    around, mask = padded(values)
    wide = normalise(around, scale, scope=scope, group=group, mask=mask)
    assert torch.allclose(wide[mask].view(5, 7), found, atol=1e-14)
    assert (wide[~mask] == 0).all()
    moved = values.clone()
    moved[1] += random(7, seed=4)
    changed = (normalise(moved, scale, scope=scope, group=group) != found).any(-1)
    reach = {"response": [1], "group": [1, 4], "batch": [0, 1, 2, 3, 4]}[scope]
    assert set(changed.nonzero().flatten().tolist()) <= set(reach)


@pytest.mark.parametrize("scale", ["min-max", "z", "quantile"])
def test_scales_have_the_gradient_of_their_finite_differences(scale):
    mask = torch.tensor([[True, True, True, False, True], [False, True, True, True, True]])
    values = random(2, 5).requires_grad_()
    for scope in ("response", "batch"):
        assert torch.autograd.gradcheck(lambda v, scope=scope: normalise(v, scale, scope=scope, mask=mask), (values,))


@pytest.mark.parametrize(("scale", "of_equal"), [("min-max", 0.0), ("z", 0.0), ("rank", 0.5), ("quantile", 0.0)])
def test_degenerate_scopes_have_the_documented_value(scale, of_equal):
    equal = torch.full((2, 4), 0.1)
    assert (normalise(equal, scale, scope="response") == of_equal).all()
    assert (normalise(equal[:, :1], scale, scope="response") == of_equal).all()
    assert (normalise(equal, scale, scope="batch", mask=torch.zeros(2, 4, dtype=torch.bool)) == 0).all()
    assert normalise(equal[:, :0], scale, scope="response").shape == (2, 0)


def test_scales_by_hand():
    row = f64([[2.0, 6.0, 2.0, 4.0, 10.0]])
    assert normalise(row, "min-max", scope="batch").tolist() == [[0, 0.5, 0, 0.25, 1]]
    assert normalise(row, "rank", scope="batch").tolist() == [[0.125, 0.75, 0.125, 0.5, 1]]
    assert normalise(row, "quantile", scope="batch", quantiles=(0.25, 0.75)).tolist() == [[0, 1, 0, 0.5, 1]]
    z = normalise(row, "z", scope="batch")
    assert float(z.mean()) == pytest.approx(0, abs=1e-15)
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-14)
    outlier = f64([[1.0, 1.0, 1.0, 1.0, 9.0]])
    assert normalise(outlier, "quantile", scope="batch", quantiles=(0.25, 0.75)).tolist() == [[0, 0, 0, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_ranks_survive_any_increasing_map_and_mirror_under_a_decreasing_one(values):
    row = f64([values])
    found = normalise(row, "rank", scope="response")
    assert torch.equal(normalise(row**3 + row, "rank", scope="response"), found)
    assert torch.allclose(normalise(-row, "rank", scope="response"), 1 - found, atol=1e-15)


def test_a_scale_refuses_a_scope_without_its_groups():
    with pytest.raises(ValueError, match="group belongs to scope='group'"):
        normalise(random(2, 2), "z", scope="group")
    with pytest.raises(ValueError, match="the lower first"):
        normalise(random(2, 2), "quantile", scope="batch", quantiles=(0.9, 0.1))


# --- summaries

SHAPES = ("iqr_over_mean", "iqr_over_range", "bowley", "median_over_mean", "tail", "cv", "stability")
LOCATIONS = ("total", "mean", "std", "min", "q1", "median", "q3", "max", "range", "iqr")


def test_summary_by_hand():
    found = summarise(f64([1.0, 2.0, 3.0, 4.0, 10.0]))
    assert [float(getattr(found, name)) for name in ("count", "total", "mean", "min", "q1", "median", "q3", "max")] == [5, 20, 4, 1, 2, 3, 4, 10]
    assert float(found.var) == pytest.approx(10, abs=1e-13)
    assert (float(found.range), float(found.iqr), float(found.bowley), float(found.tail)) == (9, 2, 0, 3)
    assert float(found.cv) == pytest.approx(math.sqrt(10) / 4, abs=1e-14)
    assert float(summarise(f64([0.0, 0.0, 0.0, 1.0, 4.0])).bowley) == 1  # all of the inner half above the median


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=9), st.floats(0.1, 20))
def test_scaling_moves_locations_and_leaves_shapes(values, factor):
    one, scaled = summarise(f64(values)), summarise(f64(values) * factor)
    for name in LOCATIONS:
        assert float(getattr(scaled, name)) == pytest.approx(factor * float(getattr(one, name)), abs=1e-9)
    if len(set(values)) > 3 and one.iqr > 1e-3:
        for name in SHAPES:
            assert float(getattr(scaled, name)) == pytest.approx(float(getattr(one, name)), abs=1e-9)
    assert -1 - 1e-9 <= float(one.bowley) <= 1 + 1e-9
    assert float(one.total) == pytest.approx(len(values) * float(one.mean), abs=1e-10)


def test_every_feature_is_defined_for_one_token_and_for_zeros():
    for values in ([0.7], [0.0, 0.0]):
        found = summarise(f64(values))
        assert all(getattr(found, name).isfinite() for name in (*SHAPES, *LOCATIONS))
    assert summarise(f64([0.0, 0.0])).stability == 0
    assert summarise(f64([0.7])).stability == 1


def test_padding_changes_no_summary_and_a_row_of_none_is_nan():
    values = random(3, 6)
    around, mask = padded(values)
    for name in (*SHAPES, *LOCATIONS, "count"):
        assert torch.allclose(getattr(summarise(around, mask=mask), name), getattr(summarise(values), name), atol=1e-14)
    none = summarise(values, mask=torch.zeros(3, 6, dtype=torch.bool))
    assert (none.count == 0).all()
    assert (none.total == 0).all()
    assert none.mean.isnan().all()


def test_a_sample_of_several_calls_sums_totals_and_averages_the_rest():
    """Two rounds of three agents; the last call of the second is padding."""
    values, mask = random(2, 3, 5).abs(), torch.ones(2, 3, 5, dtype=torch.bool)
    mask[1, 2], mask[0, 1, 3:] = False, False
    calls = summarise(values, mask=mask)
    sample = over_calls(calls)
    lists = [[values[r, a][mask[r, a]].numpy() for a in range(3) if mask[r, a].any()] for r in range(2)]
    for r, agents in enumerate(lists):
        assert float(sample.total[r]) == pytest.approx(sum(a.sum() for a in agents), abs=1e-12)
        assert float(sample.count[r]) == sum(len(a) for a in agents)
        for name, of in (("max", numpy.max), ("mean", numpy.mean), ("std", numpy.std), ("median", numpy.median)):
            assert float(getattr(sample, name)[r]) == pytest.approx(float(numpy.mean([of(a) for a in agents])), abs=1e-12)
    assert isinstance(sample, Summary)


def test_trend_by_hand_and_of_one_item():
    around, mask = padded(f64([[2.0, 5.0, 8.0], [0.0, -1.0, 4.0]]))
    found = trend(around, mask=mask)
    assert found.difference.tolist() == [6, 4]
    assert found.ratio.tolist() == [4, 0]
    assert found.slope.tolist() == [3, 2]
    assert found.volatility.tolist() == pytest.approx([math.sqrt(6), math.sqrt(14 / 3)], abs=1e-14)
    assert found.sign.tolist() == [1, 1]
    one = trend(f64([3.0]))
    assert (float(one.difference), float(one.ratio), float(one.slope), float(one.volatility)) == (0, 1, 0, 0)
    assert trend(around, mask=torch.zeros_like(mask)).slope.isnan().all()


def test_words_that_are_none_of_ours_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"scope must be 'response', 'group' or 'batch'.* Got scope='row', scale='z'"):
        normalise(random(2, 2), "z", scope="row")
    with pytest.raises(ValueError, match="Got scope='batch', scale='softmax'"):
        normalise(random(2, 2), "softmax", scope="batch")
    with pytest.raises(ValueError, match=r"pool: how must be 'mean'.* Got 'median'"):
        reduce(random(2, 2), how="median")
