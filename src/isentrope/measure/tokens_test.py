"""The tiled engine of the token signals against their definition in plain autograd; invariances, odd inputs, refusals."""

import doctest
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from isentrope.measure import tiles, tokens
from isentrope.measure.signals import (
    SIGNALS,
    SIGNALS_WITH_GRAD,
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    Signal,
    SumSquares,
    TargetProb,
    TopKEntropy,
    TopKTail,
    Varentropy,
)
from isentrope.measure.tokens import token_signals, token_signals_from_logits

SMOOTH = (LogProb(), Entropy(grad=True), SumSquares(grad=True), NucleusEntropy(1.5, grad=True))
NUCLEI = (NucleusEntropy(0.8, grad=True), NucleusEntropy(0.9, top_k=3, grad=True), NucleusEntropy(1.5, top_k=4, grad=True))
WITH_GRAD = (*SMOOTH, *NUCLEI)
SUMS = (Discriminant(), ExpectedDiscriminant(), MaxProb(), TargetProb(), Varentropy(), MeanLogit())
DETACHED = (*SUMS, Rank(), InNucleus(0.6), TopKEntropy(3), TopKTail(3), TopKEntropy(99), TopKTail(99))
KINDS = {Rank: torch.int64, InNucleus: torch.bool}
EVERY = (*WITH_GRAD, *DETACHED)
ONLINE = (*SMOOTH[:3], *SUMS)  # by sums over column tiles; the others see whole rows
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": 0.25},
    "all": {"temperature": 1.3, "softcap": 2.0, "logit_scale": 1.7},
}


def grid(tile: int, rows: int, whole_rows: int, slopes: int):
    """Tiles of these sizes (patched, for tests of the boundaries)."""
    return patch.multiple(tiles, TILE=tile, ROWS=rows, WHOLE_ROWS=whole_rows, SLOPES=slopes)


TINY = (12, 4, 23, 24)  # of 9 tokens and 11 entries: tiles of 4 x 3, 3 x 4 of them, none dividing evenly; two whole rows
DEFAULT = (tiles.TILE, tiles.ROWS, tiles.WHOLE_ROWS, tiles.SLOPES)


def case(dtype=torch.float64, shape=(9,), vocab=11, d=5, seed=0, spread=2.0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, d, generator=draw, dtype=torch.float64)
    weight = torch.randn(vocab, d, generator=draw, dtype=torch.float64) * spread / d**0.5
    bias = torch.randn(vocab, generator=draw, dtype=torch.float64)
    target = torch.randint(0, vocab, shape, generator=draw)
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), target


def defined(hidden, weight, target, signals, *, bias=None, temperature=1.0, softcap=None, logit_scale=1.0):
    """The same by the definition: the head written out, then plain autograd."""
    logits = logit_scale * (hidden @ weight.T if bias is None else hidden @ weight.T + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return token_signals_from_logits(logits, target, signals, temperature=temperature)


def gradients(found, leaves, seed=1):
    """Of every signal that carries gradient, mixed with fixed random coefficients, with respect to the leaves."""
    draw = torch.Generator().manual_seed(seed)
    mix = [(value * torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value.dtype)).sum() for value in found.values() if value.requires_grad]
    return torch.autograd.grad(sum(mix), leaves, retain_graph=True)


def assert_same(found, expected, tolerance):
    assert list(found) == list(expected)
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")


# --- the engine equals the definition


def test_every_signal_stands_in_these_tests_and_has_its_own_key():
    assert {type(signal) for signal in EVERY} == set(SIGNALS)
    assert {type(signal) for signal in WITH_GRAD} == set(SIGNALS_WITH_GRAD)
    assert len({signal.key for signal in EVERY}) == len(EVERY)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("sizes", [TINY, (5, 5, 11, 5), (22, 2, 1, 1), (99, 9, 99, 99), DEFAULT], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"])
def test_the_engine_equals_the_definition_in_values_and_gradients(dtype, tolerance, sizes, head):
    for signals in (EVERY, ONLINE, WITH_GRAD, *((signal,) for signal in EVERY)):
        hidden, weight, bias, target = case(dtype)
        with grid(*sizes):
            found = token_signals(hidden, weight, target, signals, bias=bias, **head)
            expected = defined(hidden, weight, target, signals, bias=bias, **head)
            assert_same(found, expected, tolerance)
            for signal in signals:
                assert found[signal.key].requires_grad == signal.grad == expected[signal.key].requires_grad
                assert found[signal.key].dtype == KINDS.get(type(signal), dtype)
            if any(signal.grad for signal in signals):
                leaves = (hidden, weight, bias)
                for ours, theirs in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("signal", WITH_GRAD, ids=lambda signal: signal.key)
@pytest.mark.parametrize("function", [token_signals, defined], ids=["engine", "definition"])
def test_gradients_equal_finite_differences(function, signal):
    hidden, weight, bias, target = case(shape=(3,), vocab=7, d=2)

    def value(hidden, weight, bias):
        return function(hidden, weight, target, [signal], bias=bias, temperature=1.3, softcap=4.0, logit_scale=0.8)[signal.key]

    with grid(4, 2, 7, 8):
        assert torch.autograd.gradcheck(value, (hidden, weight, bias))


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_small_case_equals_the_definition(data):
    count, vocab = data.draw(st.integers(0, 4), "tokens"), data.draw(st.integers(1, 6), "vocab")
    value = st.sampled_from([0.0, 0.1, 1.0, -1.0, 3.0, -7.0, 30.0, -200.0, 900.0])
    row = st.lists(value, min_size=vocab, max_size=vocab)
    logits = torch.tensor(data.draw(st.lists(row, min_size=count, max_size=count), "logits"), dtype=torch.float64).reshape(count, vocab).requires_grad_()
    banned = torch.tensor(data.draw(st.lists(st.booleans(), min_size=vocab, max_size=vocab), "banned")) & data.draw(st.booleans(), "ban")
    bias = torch.zeros(vocab, dtype=torch.float64).masked_fill(banned, -math.inf)
    target = torch.tensor(data.draw(st.lists(st.integers(0, vocab - 1), min_size=count, max_size=count), "target"), dtype=torch.int64)
    signals = data.draw(st.lists(st.sampled_from((*EVERY, NucleusEntropy(0.7853))), min_size=1, max_size=4), "signals")
    signals = [s for s in signals if not isinstance(s, NucleusEntropy) or s.top_p in (0.7853, 1.5)]  # 4 of 5 equal tokens hold 0.8, rounded either way
    rows = data.draw(st.integers(1, 4), "rows")
    with grid(rows * data.draw(st.integers(1, 6), "columns"), rows, rows * vocab, 6):
        found = token_signals(logits, torch.eye(vocab, dtype=torch.float64), target, signals, bias=bias)
        expected = token_signals_from_logits(logits + bias, target, signals)
        assert_same(found, expected, 1e-10)
        smooth = [s.key for s in signals if s in SMOOTH and found[s.key].isfinite().all()]
        if smooth:  # members of a nucleus among equals are a choice; see the test of ties
            ours, theirs = (gradients({key: way[key] for key in smooth}, logits)[0] for way in (found, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns, in elements."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("signals", [ONLINE, EVERY], ids=["online", "every"])
def test_no_tensor_is_larger_than_a_tile_or_an_input(dtype, signals):
    hidden, weight, bias, target = case(dtype, (64,), 256, 4)
    with grid(512, 16, 1024, 1024), Largest() as largest:
        gradients(token_signals(hidden, weight, target, signals, bias=bias), (hidden, weight, bias))
    assert largest.numel <= 1024 < hidden.shape[0] * weight.shape[0]


# --- invariances


def test_adding_a_constant_to_the_logits_moves_only_their_mean():
    hidden, weight, bias, target = case()
    with grid(*TINY):
        before = token_signals(hidden, weight, target, EVERY, bias=bias, temperature=0.5)
        after = token_signals(hidden, weight, target, EVERY, bias=bias + 100.0, temperature=0.5)
    assert_same(after, before | {"mean_logit": before["mean_logit"] + 200.0}, 1e-11)


def test_the_order_of_the_vocabulary_does_not_matter():
    hidden, weight, bias, target = case()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    with grid(*TINY):
        moved = token_signals(hidden, weight[order], order.argsort()[target], EVERY, bias=bias[order])
        assert_same(moved, token_signals(hidden, weight, target, EVERY, bias=bias), 1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3)], ids=str)
def test_any_leading_axes(shape):
    hidden, weight, _, target = case(shape=shape)
    found = token_signals(hidden, weight, target, EVERY)
    flat = token_signals(hidden.reshape(-1, 5), weight, target.reshape(-1), EVERY)
    assert_same(found, {key: value.reshape(shape) for key, value in flat.items()}, 0)
    assert_same(found, defined(hidden, weight, target, EVERY), 1e-12)
    assert gradients(found, hidden)[0].shape == hidden.shape


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_empty_batch_gives_empty_values_and_zero_gradients(shape, dtype):
    hidden, weight, bias, target = case(dtype, shape)
    found = token_signals(hidden, weight, target, EVERY, bias=bias)
    assert all(value.shape == shape for value in (found | defined(hidden, weight, target, EVERY)).values())
    assert all(not g.any() for g in gradients(found, (hidden, weight, bias)))


# --- logits that are not finite


def nowhere(key, value, vocab):
    """Whether the value is that of a position without a distribution."""
    return value == vocab if key == "rank" else not value if key.startswith("in_nucleus") else value.isnan()


@pytest.mark.parametrize("lowest", [-math.inf, -3e38, -1e31], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_banned_tokens_leave_the_distribution_of_the_others(dtype, lowest):
    hidden, weight, bias, target = case(dtype, (12,))
    keep = torch.tensor([4, 6, 7, 9, 10])  # the first tile is banned whole
    target = keep[target % 5]
    few = tuple(x.detach()[keep].requires_grad_() for x in (weight, bias))
    closed = torch.full_like(bias, lowest).index_copy(0, keep, bias.detach()[keep]).requires_grad_()
    with grid(*TINY):
        found = token_signals(hidden, weight, target, EVERY, bias=closed, temperature=0.5)
        expected = token_signals(hidden, few[0], torch.searchsorted(keep, target), EVERY, bias=few[1], temperature=0.5)
        assert found.pop("mean_logit").max() < -1e29
        expected.pop("mean_logit")
        assert_same(found, expected, 1e-6)
        ours, theirs = gradients(found, (hidden, weight, closed)), gradients(expected, (hidden, *few))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-1
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    for whole, part in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(whole[keep], part, rtol=tolerance, atol=tolerance)
        assert not whole[[0, 1, 2, 3, 5, 8]].any()


def test_a_banned_target_has_no_probability_and_stands_behind_every_other():
    hidden, weight, _, _ = case(shape=(2,), vocab=4)
    bias = torch.tensor([0.0, -math.inf, -3e4, 0.0], dtype=torch.float64)
    with grid(4, 2, 4, 4):
        found = token_signals(hidden, weight, torch.tensor([1, 2]), (*SMOOTH, *DETACHED), bias=bias)
        assert_same(found, defined(hidden, weight, torch.tensor([1, 2]), (*SMOOTH, *DETACHED), bias=bias), 1e-10)
        assert [found[key][0].item() for key in ("log_prob", "p", "S", "rank", "mean_logit")] == [-math.inf, 0, 0, 3, -math.inf]
        assert found["rank"][1] == 2
        assert gradients(found, hidden)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_position_without_a_distribution_is_nan_and_alone(dtype, bad):
    hidden, weight, bias, target = case(dtype)
    spoilt = hidden.detach().clone().index_fill_(0, torch.tensor(4), bad).requires_grad_()
    others = torch.arange(9) != 4
    with grid(*TINY):
        found, expected = (token_signals(h, weight, target, EVERY, bias=bias) for h in (spoilt, hidden))
        for key, value in found.items():
            assert nowhere(key, value[4], 11)
            assert torch.equal(value[others], expected[key][others])
        leaves = (weight, bias)
        ours = gradients({key: value * others for key, value in found.items() if value.requires_grad}, (spoilt, *leaves))  # NaN x 0 in the values
        theirs = gradients({key: value * others for key, value in expected.items() if value.requires_grad}, (hidden, *leaves))
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            assert torch.equal(ours_, theirs_)
        assert not ours[0][4].any()
        assert all(g.isnan().any() for g in gradients(found, leaves))  # asked for, a NaN is not hidden


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan], ids=str)
def test_a_row_of_minus_inf_or_with_inf_or_nan_has_no_distribution(value):
    logits = torch.zeros(2, 4, dtype=torch.float64)
    logits[0] = torch.tensor([value, value, *((value, value) if value < 0 else (0.0, 0.0))])
    for target in ([0, 0], [3, 3]):
        found = token_signals_from_logits(logits, torch.tensor(target), EVERY)
        tiled = token_signals(torch.eye(2, dtype=torch.float64)[1:], torch.zeros(4, 2, dtype=torch.float64), torch.tensor(target[:1]), EVERY, bias=logits[0])
        for key in found:
            for got in (found[key][0], tiled[key][0]):
                assert nowhere(key, got, 4)
            assert not nowhere(key, found[key][1], 4) or key.startswith("in_nucleus")


# --- 16 bits


SIXTEEN = {  # in units of the dtype's rounding: twice the largest error measured over 4 seeds and both grids; of gradients the norm, relative
    torch.bfloat16: {"log_prob": 3.3, "entropy": 6.3, "N": 1.3, "p": 0.08, "S": 0.3, "max_p": 1.0, "sum_p2": 1.4, "varentropy": 14, "mean_logit": 0.6},
    torch.float16: {"log_prob": 9, "entropy": 18, "N": 2.2, "p": 0.14, "S": 0.44, "max_p": 2.8, "sum_p2": 4, "varentropy": 22, "mean_logit": 0.6},
}
SIXTEEN_GRADIENTS = {torch.bfloat16: (1.6, 3.2, 4), torch.float16: (1.6, 3.4, 7)}  # log_prob, entropy, sum_p2


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=["bfloat16", "float16"])
def test_sixteen_bit_products_stay_within_a_few_units_of_rounding(dtype, unit):
    """Logits of standard deviation 2, targets drawn from p; against float64 and against a head that rounds its logits."""
    for seed in range(2):
        hidden, weight, _, _ = case(dtype, (64,), 1000, 64, seed)
        wide = tuple(x.detach().double().requires_grad_() for x in (hidden, weight))
        logits = wide[0] @ wide[1].T
        target = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(-1)
        expected = token_signals_from_logits(logits, target, ONLINE)
        rounded = token_signals_from_logits((hidden.float() @ weight.float().T).to(dtype), target, ONLINE)
        for sizes in (DEFAULT, (512, 16, 1 << 12, 1 << 12)):
            with grid(*sizes):
                found = token_signals(hidden, weight, target, ONLINE)
                for key, bound in SIXTEEN[dtype].items():
                    assert found[key].dtype == torch.float32
                    assert (found[key] - expected[key]).abs().max() < bound * unit, key
                for key, better in {"log_prob": 2, "S": 5, "p": 8, "entropy": 1}.items():  # measured over the seeds, at least 3.0, 9.7, 17, 1.1
                    assert better * (found[key] - expected[key]).norm() < (rounded[key] - expected[key]).norm(), key
                for key, bound in zip(("log_prob", "entropy", "sum_p2"), SIXTEEN_GRADIENTS[dtype], strict=True):
                    ours, theirs = gradients({key: found[key]}, (hidden, weight)), gradients({key: expected[key]}, wide)
                    assert [g.dtype for g in ours] == [dtype, dtype]
                    assert all((a - b).norm() < bound * unit * b.norm() for a, b in zip(ours, theirs, strict=True)), key


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_sixteen_bits_with_scale_temperature_softcap_and_bias(head):
    hidden, weight, bias, target = case(torch.bfloat16)
    wide = tuple(x.detach().double().requires_grad_() for x in (hidden, weight, bias))
    with grid(*TINY):
        found = token_signals(hidden, weight, target, [*ONLINE, NUCLEI[0]], bias=bias, **head)
    expected = defined(wide[0], wide[1], target, [*ONLINE, NUCLEI[0]], bias=wide[2], **head)
    for key in found:
        torch.testing.assert_close(found[key].double(), expected[key], rtol=0.03, atol=0.03)
    for ours, theirs in zip(gradients(found, (hidden, weight, bias)), gradients(expected, wide), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("sizes", [TINY, DEFAULT], ids=str)
def test_precise_takes_products_in_float32(sizes):
    hidden, weight, bias, target = case(torch.bfloat16)
    wide = tuple(x.detach().float().requires_grad_() for x in (hidden, weight, bias))
    with grid(*sizes):
        found = token_signals(hidden, weight, target, EVERY, bias=bias, precise=True)
        expected = token_signals(*wide[:2], target, EVERY, bias=wide[2])
        assert_same(found, expected, 0)
        with torch.autocast("cpu", torch.bfloat16):  # at the time of the backward, it is not for us
            ours = gradients(found, (hidden, weight, bias))
        for g, theirs in zip(ours, gradients(expected, wide), strict=True):
            torch.testing.assert_close(g, theirs.bfloat16(), rtol=0, atol=0)
        mixed = token_signals(hidden, wide[1], target, EVERY, bias=wide[2])  # the wider of the two
        assert_same(mixed, expected, 0)


def test_autocast_takes_products_in_its_dtype_and_gives_gradients_in_theirs():
    leaves = case(torch.float32)
    hidden, weight, bias, target = leaves
    with grid(*TINY):
        half = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
        expected = token_signals(*half, target, EVERY, bias=bias)
        with torch.autocast("cpu", torch.bfloat16):
            found = token_signals(hidden, weight, target, EVERY, bias=bias)
            precise = token_signals(hidden, weight, target, EVERY, bias=bias, precise=True)
            double = token_signals(hidden.double(), weight.double(), target, EVERY)
        assert_same(found, expected, 0)
        assert_same(precise, token_signals(hidden, weight, target, EVERY, bias=bias), 0)
        assert double["entropy"].dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            ours = gradients(found, leaves[:3])
        for g, theirs in zip(ours, gradients(expected, (*half, bias)), strict=True):
            assert g.dtype == torch.float32
            torch.testing.assert_close(g, theirs.float(), rtol=0.02, atol=0.02)


# --- the nucleus of a row (its rules: signals_test.py)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.8, None), (0.95, None), (0.95, 700), (0.9999, None)])
def test_a_nucleus_may_reach_far_into_a_large_vocabulary(top_p, top_k):
    spread = torch.tensor([[0.01], [0.5], [1.0], [2.0], [4.0], [8.0]])  # rows of every reach in one tile
    logits = (torch.randn(6, 5200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * spread).requires_grad_()
    signal, target = NucleusEntropy(top_p, top_k, grad=True), torch.zeros(6, dtype=torch.int64)
    with grid(1 << 20, 4, 4 * 5200, 1):
        found = token_signals(torch.eye(6, dtype=torch.float64), logits.T, target, [signal])
        expected = token_signals_from_logits(logits, target, [signal])
        assert_same(found, expected, 1e-11)
        torch.testing.assert_close(gradients(found, logits)[0], gradients(expected, logits)[0], rtol=1e-9, atol=1e-13)


def test_the_whole_vocabulary_as_nucleus_is_the_entropy():
    hidden, weight, _, target = case()
    entropy, nucleus, capped = Entropy(grad=True), NucleusEntropy(1.01, grad=True), NucleusEntropy(2.0, top_k=11)
    found = token_signals(hidden, weight, target, [entropy, nucleus, capped])
    assert [found[key].requires_grad for key in found] == [True, True, False]
    assert torch.equal(found[nucleus.key], found["entropy"])
    assert torch.equal(found[capped.key], found["entropy"])
    one, both = (torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0] for value in (found["entropy"], found["entropy"] + 2 * found[nucleus.key]))
    torch.testing.assert_close(both, 3 * one)


# --- requests


def test_a_key_asked_for_twice_carries_gradient_if_either_does_and_order_is_kept():
    hidden, weight, _, target = case()
    for function in (token_signals, defined):
        for pair in ((Entropy(), Entropy(grad=True)), (Entropy(grad=True), Entropy())):
            found = function(hidden, weight, target, [Rank(), *pair, LogProb(grad=False)])
            assert list(found) == ["rank", "entropy", "log_prob"]
            assert [value.requires_grad for value in found.values()] == [False, True, False]
        assert function(hidden, weight, target, []) == {}
        with torch.no_grad():
            assert not function(hidden, weight, target, [LogProb()])["log_prob"].requires_grad


@pytest.mark.parametrize("which", range(3))
def test_a_gradient_can_be_asked_for_one_input_alone(which):
    leaves = case()
    expected = gradients(token_signals(*leaves[:2], leaves[3], EVERY, bias=leaves[2]), leaves[:3])[which]
    alone = [x if i == which else x.detach() for i, x in enumerate(leaves[:3])]
    (found,) = gradients(token_signals(*alone[:2], leaves[3], EVERY, bias=alone[2]), alone[which])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", [lambda value: value.sum(), lambda value: value.square().sum()], ids=["linear", "square"])
def test_second_order_is_refused_and_not_silently_left_out(loss):
    hidden, weight, _, target = case()
    first = torch.autograd.grad(loss(token_signals(hidden, weight, target, [Entropy(grad=True)])["entropy"]), hidden, create_graph=True)[0]
    torch.testing.assert_close(first, torch.autograd.grad(loss(defined(hidden, weight, target, [Entropy(grad=True)])["entropy"]), hidden)[0])
    with pytest.raises(RuntimeError, match=r"token_signals: .* cannot be differentiated again\. Use token_signals_from_logits"):
        (first.square().sum() + hidden.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
def test_targets_of_any_integer_dtype(dtype):
    hidden, weight, _, target = case(vocab=600)
    with grid(900, 9, 600, 1):  # 100 entries to a tile: the offsets do not fit into 8 bits
        expected = token_signals(hidden, weight, target % 90, EVERY)
        assert_same(token_signals(hidden, weight, (target % 90).to(dtype), EVERY), expected, 0)
        assert_same(defined(hidden, weight, (target % 90).to(dtype), EVERY), expected, 1e-12)


REFUSED = [
    ({"temperature": 0.0}, ["temperature must be > 0", "Got 0.0", "use MaxProb and Rank"]),
    ({"temperature": math.nan}, ["temperature must be > 0", "Got nan"]),
    ({"softcap": 0.0}, ["softcap must be > 0, or None", "Got 0.0"]),
    ({"target": torch.zeros(2, dtype=torch.int64)}, ["target must have the shape of", "without its last axis, [3]", "Got [2]"]),
    ({"weight": torch.zeros(7, 4)}, ["weight must be [vocab, 5] for hidden [3, 5]", "Got [7, 4]"]),
    ({"weight": torch.zeros(7)}, ["weight must be [vocab, 5]", "Got [7]"]),
    ({"bias": torch.zeros(6)}, ["bias must be [7], one per row of weight, or None", "Got [6]"]),
    ({"target": torch.tensor([0, -1, 9])}, ["target must hold token ids in [0, 7)", "Got -1", "hidden[mask], target[mask]"]),
    ({"target": torch.tensor([0, 7, 1])}, ["target must hold token ids in [0, 7)", "Got 7"]),
    ({"signals": [Signal()]}, ["signals must be instances of LogProb, Entropy,", "NucleusEntropy", "Got Signal()"]),
    ({"signals": [Entropy]}, ["signals must be instances of", "Got <class"]),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[" ".join(words[0].split()[:3]) for _, words in REFUSED])
def test_what_cannot_be_measured_is_refused_in_words(unchecked, change, words):
    given_ = {"hidden": torch.zeros(3, 5), "weight": torch.zeros(7, 5), "target": torch.tensor([0, 1, 2]), "signals": [Entropy()]} | change
    functions = [(token_signals, given_)]
    if not change.keys() & {"weight", "bias", "softcap"}:
        functions.append(
            (token_signals_from_logits, {key: value for key, value in given_.items() if key not in ("hidden", "weight")} | {"logits": torch.zeros(3, 7)})
        )
    for function, arguments in functions:
        with pytest.raises(ValueError) as caught:
            function(**arguments)
        assert str(caught.value).startswith(f"{function.__name__}: ")
        assert all(word in str(caught.value) for word in words), caught.value


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(tokens)
    assert (result.failed, result.attempted) == (0, 3)
