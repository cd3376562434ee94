"""Row entropies against the explicit softmax in float64, their gradients, closed forms and invariances."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.measure import attention
from isentrope.measure.attention import attention_entropy, visible_keys


def defined(query, key, seen, *, scale=None, bias=0.0, softcap=None, sinks=None):
    """The definition: logits, softmax and sum, in float64. NaN where nothing is seen."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = scale * query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logits = (logits + bias).masked_fill(~seen, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double()[None, :, None, None].expand(*logits.shape[:-1], 1)], -1)
    none = ~seen.any(-1)
    log_p = torch.where(none.unsqueeze(-1), 0.0, logits).log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1).masked_fill(none, torch.nan)


def drawn(batch=2, heads=4, kv_heads=2, queries=37, keys=37, d=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(batch, h, n, d, generator=generator).to(dtype) for h, n in ((heads, queries), (kv_heads, keys)))
    return query, key + 3.0


def by_position(queries, keys, causal, window):
    apart = torch.arange(queries).unsqueeze(1) + keys - queries - torch.arange(keys)
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    seen = seen & (apart >= 0) if causal else seen
    return seen if window is None else seen & (apart.abs() < window)


def padding(kind, batch, keys):
    visible = torch.ones(batch, keys, dtype=torch.bool)
    if kind == "left":
        visible[0, :7] = False
    elif kind == "right":
        visible[1, -9:] = False
    elif kind == "hole":
        visible[0, 10:14] = False
    elif kind == "nothing":
        visible[0] = False
    return visible


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("pad", [None, "left", "right", "hole", "nothing"])
@pytest.mark.parametrize("queries", [37, 5, 1])
def test_values_and_gradients_are_those_of_the_explicit_softmax(causal, window, pad, queries, monkeypatch):
    monkeypatch.setattr(attention, "MASK_ELEMENTS", 11 * 37 * 2)  # several tiles, the last one odd
    monkeypatch.setattr(attention, "GROUP_ELEMENTS", 1)  # several groups of heads
    query, key = (x.requires_grad_() for x in drawn(queries=queries))
    visible = None if pad is None else padding(pad, 2, 37)
    seen = by_position(queries, 37, causal, window)
    seen = (seen if visible is None else seen & visible[:, None, None]).expand(2, 4, queries, 37)
    found, wanted = attention_entropy(query, key, causal=causal, window=window, visible=visible), defined(query, key, seen)
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=5e-6, equal_nan=True)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    some = found.isfinite()
    if not some.any():
        return
    for mine, theirs in zip(*(torch.autograd.grad((value * weight)[some].sum(), (query, key)) for value in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_gradcheck_in_float64():
    query, key = (x.requires_grad_() for x in drawn(1, 2, 1, 6, 6, 3, dtype=torch.float64))
    bias = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: attention_entropy(q, k), (query, key))
    assert torch.autograd.gradcheck(lambda q, k: attention_entropy(q, k, causal=True, window=3)[:, :, 1:], (query, key))
    assert torch.autograd.gradcheck(lambda q, k, b, s: attention_entropy(q, k, causal=True, mask=b, softcap=2.0, sinks=s), (query, key, bias, sinks))


@pytest.mark.parametrize("extra", ["bias", "softcap", "sinks", "all"])
def test_what_the_kernel_cannot_do_is_computed_by_tiles(extra, monkeypatch):
    monkeypatch.setattr(attention, "LOGIT_ELEMENTS", 11 * 37 * 8)
    query, key = drawn()
    bias = torch.randn(2, 4, 37, 37) if extra in ("bias", "all") else None
    softcap = 1.5 if extra in ("softcap", "all") else None
    sinks = torch.randn(4) if extra in ("sinks", "all") else None
    visible = padding("left", 2, 37)
    seen = (by_position(37, 37, True, None) & visible[:, None, None]).expand(2, 4, 37, 37)
    found = attention_entropy(query, key, causal=True, visible=visible, mask=bias, softcap=softcap, sinks=sinks)
    wanted = defined(query, key, seen, bias=0.0 if bias is None else bias, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=5e-6, equal_nan=True)


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("per_head", [False, True])
def test_additive_masks_of_two_numbers_and_bool_masks_are_causal_and_padding(low, per_head, monkeypatch):
    monkeypatch.setattr(attention, "GROUP_ELEMENTS", 1)
    query, key = drawn()
    seen = (by_position(37, 37, True, None) & padding("left", 2, 37)[:, None, None]).expand(2, 4 if per_head else 1, 37, 37)
    seen = seen.clone()
    seen[:, -1, 20, :3] = False
    wanted = defined(query, key, seen.expand(2, 4, 37, 37)).float()
    additive = torch.where(seen, 0.0, low)
    torch.testing.assert_close(attention_entropy(query, key, mask=seen), wanted, rtol=0, atol=5e-6, equal_nan=True)
    torch.testing.assert_close(attention_entropy(query, key, mask=additive), wanted, rtol=0, atol=5e-6, equal_nan=True)
    torch.testing.assert_close(attention_entropy(query, key, mask=seen[:, :, -1:], causal=True)[0, 0, 30], wanted[0, 0, 30], rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_first(dtype):
    query, key = (x.requires_grad_() for x in drawn(dtype=dtype))
    found = attention_entropy(query, key, causal=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, attention_entropy(query.float(), key.float(), causal=True), rtol=0, atol=0)
    assert [x.dtype for x in torch.autograd.grad(found.sum(), (query, key))] == [dtype, dtype]


def test_a_large_part_common_to_all_keys_costs_no_digits():
    query, key = drawn(d=16)
    shifted = ((key - 3.0) * 64).round() / 64 + 1024.0  # nothing is lost in the addition
    found, wanted = attention_entropy(query, shifted), attention_entropy(query.double(), shifted.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def test_padding_may_hold_anything():
    query, key = drawn()
    visible = padding("left", 2, 37) & padding("right", 2, 37)
    wanted = attention_entropy(query, key, causal=True, visible=visible)
    spoilt = key.masked_fill(~visible[:, None, :, None], torch.nan).requires_grad_()
    found = attention_entropy(query, spoilt, causal=True, visible=visible)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.autograd.grad(found[found.isfinite()].sum(), spoilt)[0].isfinite().all()


def test_a_query_without_slope_may_hold_anything():
    query, key = drawn()
    spoilt = query.clone()
    spoilt[0, :, 3] = torch.nan
    spoilt, key = spoilt.requires_grad_(), key.requires_grad_()
    found = attention_entropy(spoilt, key, causal=True)
    assert found[0, :, 3].isnan().all()
    assert found.isnan().sum() == 4
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(found[found.isfinite()].sum(), (spoilt, key)))


@pytest.mark.parametrize("queries", [0, 3])
def test_nothing_to_see(queries):
    found = attention_entropy(torch.randn(1, 2, queries, 4), torch.randn(1, 1, 0, 4))
    assert found.shape == (1, 2, queries)
    assert found.isnan().all()
    assert attention_entropy(torch.randn(1, 2, 0, 4), torch.randn(1, 1, 3, 4), softcap=1.0).shape == (1, 2, 0)


def test_without_first_renormalises_the_rest():
    query, key = drawn()
    for visible in (None, padding("left", 2, 37)):
        full = torch.ones(2, 37, dtype=torch.bool) if visible is None else visible
        rest = full & (full.cumsum(1) > 1)
        seen = (by_position(37, 37, True, None) & rest[:, None, None]).expand(2, 4, 37, 37)
        found = attention_entropy(query, key, causal=True, visible=visible, without_first=True)
        torch.testing.assert_close(found, defined(query, key, seen).float(), rtol=0, atol=5e-6, equal_nan=True)
        count = visible_keys(37, 37, causal=True, visible=visible, without_first=True)
        assert torch.equal(count.expand(2, 1, 37), seen[:, :1].sum(-1))
    whole = attention_entropy(query.double(), key.double(), causal=True)
    logits = query.double() @ key.double().repeat_interleave(2, 1).mT / math.sqrt(8)
    first = logits.masked_fill(~by_position(37, 37, True, None), -torch.inf).softmax(-1)[..., 0]
    rest = attention_entropy(query.double(), key.double(), causal=True, without_first=True)
    grouped = torch.special.entr(first) + torch.special.entr(1 - first) + (1 - first) * rest  # the grouping identity
    torch.testing.assert_close(whole[..., 1:], grouped[..., 1:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_uniform_attention_has_the_logarithm_of_the_seen_keys(causal, window):
    key = torch.randn(2, 1, 9, 4)
    visible = padding("nothing", 2, 9) | (torch.arange(9) > 3)
    found = attention_entropy(torch.zeros(2, 3, 9, 4), key, causal=causal, window=window, visible=visible)
    count = visible_keys(9, 9, causal=causal, window=window, visible=visible)
    wanted = torch.where(count > 0, count.float().log(), torch.nan).expand(2, 3, 9)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6, equal_nan=True)


def test_one_dominant_key_has_entropy_zero():
    key = torch.eye(4)[None, None]
    found = attention_entropy(1e4 * key, key)
    assert (found >= 0).all()
    assert (found < 1e-3).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_permuting_keys_changes_nothing_and_the_range_is_kept(keys, seed):
    query, key = drawn(1, 2, 1, 3, keys, 4, seed)
    found = attention_entropy(query, key)
    order = torch.randperm(keys, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, attention_entropy(query, key[:, :, order]), rtol=0, atol=1e-5)
    assert (found >= 0).all()
    assert (found <= math.log(keys) + 1e-5).all()


def test_sharper_logits_have_less_entropy():
    """dH/dc of softmax(c z) is -c Var(z): sheet `sigma-reparam`."""
    query, key = drawn(dtype=torch.float64)
    values = [attention_entropy(query, key, scale=scale) for scale in (0.1, 0.2, 0.4, 0.8)]
    assert all((low <= high).all() for high, low in pairwise(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"scale": 0.0}, "scale must be > 0"),
        ({"softcap": -1.0}, "softcap must be > 0"),
        ({"visible": torch.ones(2, 36, dtype=torch.bool)}, "visible must be"),
        ({"mask": torch.zeros(2, 1, 37, 36)}, "mask must have four axes"),
        ({"sinks": torch.zeros(3)}, "sinks must hold one logit per query head"),
        ({"key": torch.zeros(2, 3, 37, 8)}, "multiple of those of key"),
        ({"key": torch.zeros(2, 2, 37, 7)}, "the same batch and d"),
    ],
)
def test_bad_input_is_refused_by_name(change, words, unchecked):
    query, key = drawn()
    with pytest.raises(ValueError, match=words):
        attention_entropy(query, change.pop("key", key), **change)
