"""Normalisers: definitions by hand, degenerate scopes, order and padding, and the running scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.normalisers import MIDDLE, Running, normalise, unit_mean

KINDS = list(MIDDLE)
FULL = torch.ones(2, 3, dtype=torch.bool)
VALUE = torch.tensor([[1.0, 3.0, 2.0], [10.0, 10.0, 40.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("min-max", [[0, 1, 0.5], [0, 0, 1]]),
        ("z", [[-1, 1, 0], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]]),
        ("rank", [[0, 1, 0.5], [0.25, 0.25, 1]]),
        ("quantile", [[0, 1, 0.5], [0, 0, 1]]),
    ],
)
def test_by_hand_within_each_response(kind, expected):
    found = normalise(VALUE, FULL, kind, scope="sequence", levels=(0.25, 0.75))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_quantiles_are_torchs():
    found = normalise(VALUE, FULL, "quantile", levels=(0.1, 0.9))
    low, high = torch.quantile(VALUE.flatten(), 0.1), torch.quantile(VALUE.flatten(), 0.9)
    torch.testing.assert_close(found, ((VALUE - low) / (high - low)).clamp(0, 1), rtol=1e-12, atol=1e-12)


def test_a_group_is_one_scope():
    group = torch.tensor([7, 7])
    torch.testing.assert_close(normalise(VALUE, FULL, "z", scope="group", group=group), normalise(VALUE, FULL, "z"))
    apart = normalise(VALUE, FULL, "z", scope="group", group=torch.tensor([9, 4]))
    torch.testing.assert_close(apart, normalise(VALUE, FULL, "z", scope="sequence"))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_and_single_values_are_in_the_middle(kind):
    equal = torch.full((1, 5), 0.1, dtype=torch.float32)
    assert normalise(equal, torch.ones(1, 5, dtype=torch.bool), kind).tolist() == [[MIDDLE[kind]] * 5]
    one = torch.tensor([[False, True, False, False, False]])
    assert normalise(equal, one, kind).tolist() == [[0.0, MIDDLE[kind], 0.0, 0.0, 0.0]]
    assert normalise(equal, ~one & one, kind).tolist() == [[0.0] * 5]


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), scope=st.sampled_from(["sequence", "group", "update"]))
@settings(max_examples=80, deadline=None)
def test_order_padding_and_affine_maps_change_nothing(seed, kind, scope):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    group, row_id = torch.randint(0, 3, (6,), generator=generator), 11 * torch.randperm(6, generator=generator)
    found = normalise(value, mask, kind, scope=scope, group=group, row_id=row_id)
    order = torch.randperm(6, generator=generator)
    moved = normalise(value[order], mask[order], kind, scope=scope, group=group[order], row_id=row_id[order])
    assert torch.equal(moved, found[order])
    dirty = torch.where(mask, value, float("nan"))
    assert torch.equal(normalise(dirty, mask, kind, scope=scope, group=group, row_id=row_id), found)
    scaled = normalise(3 * value + 5, mask, kind, scope=scope, group=group, row_id=row_id)
    torch.testing.assert_close(scaled, found, rtol=1e-9, atol=1e-9)
    if kind != "z":
        assert bool(((found >= 0) & (found <= 1)).all())


def test_the_result_has_no_gradient_and_keeps_its_type():
    value = torch.randn(2, 3, requires_grad=True)
    found = normalise(value, FULL, "z")
    assert not found.requires_grad
    assert found.dtype == torch.float32


def test_what_is_wrong_is_said():
    with pytest.raises((ValueError, TypeError), match="robust"):
        normalise(VALUE, FULL, "robust")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scope must be one of .*ema.*Running"):
        normalise(VALUE, FULL, "z", scope="ema")
    with pytest.raises(ValueError, match="needs `group`"):
        normalise(VALUE, FULL, "z", scope="group")
    with pytest.raises((ValueError, TypeError), match="rank"):
        Running("rank")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decay must be a fraction"):
        Running(decay=1.5)


def test_weights_of_mean_one():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = unit_mean(torch.tensor([[1.0, 3.0, 9.0], [0.0, 0.0, 0.0]]), mask, scope="sequence")
    assert found.tolist() == [[0.5, 1.5, 1.0], [1.0, 1.0, 1.0]]
    whole = unit_mean(VALUE, FULL)
    assert float(whole.mean()) == pytest.approx(1.0, abs=1e-12)


def test_running_moments_by_hand():
    scale = Running("z", decay=0.75)
    state = scale.init()
    assert scale.apply(state, VALUE, FULL).abs().max() == 0
    found = {key: float(value) for key, value in scale.measure(VALUE[:1], FULL[:1]).items()}
    assert found == {"location": 2.0, "scale": 1.0}
    state = scale.update(state, **found)
    assert scale.apply(state, VALUE[:1], FULL[:1]).tolist() == [[-1.0, 1.0, 0.0]]
    assert scale.update(state, 6.0, 5.0) == {"location": 3.0, "scale": 2.0}
    nothing = scale.measure(VALUE, ~FULL)
    assert scale.update(state, float(nothing["location"]), float(nothing["scale"])) == state
