import io
import math
import random
import struct
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from isentrope.train import state as state_module
from isentrope.train.state import StateError, pack_state, rng_state, set_rng_state, unpack_state


def through_a_file(state):
    """What a weights-only loader gives back."""
    file = io.BytesIO()
    torch.save(pack_state(state), file)
    file.seek(0)
    return unpack_state(torch.load(file, weights_only=True))


def bits(value):
    """A value as something that is equal only for the same types, the same bits and the same order."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if value.numel() else []
        return ("tensor", str(value.dtype), tuple(value.shape), raw)
    if isinstance(value, np.ndarray | np.generic):
        return (type(value).__name__, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", struct.pack(">d", value))
    if isinstance(value, complex):
        return ("complex", bits(value.real), bits(value.imag))
    if isinstance(value, dict):
        return (type(value).__name__, [(bits(key), bits(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return (type(value).__name__, [bits(item) for item in value])
    return (type(value).__name__, value)


numbers = st.one_of(st.integers(), st.integers(-(2**4000), 2**4000), st.floats(), st.complex_numbers(), st.booleans(), st.none())
texts = st.one_of(st.text(st.characters(codec=None)), st.binary(), st.sampled_from(["kind", "of", "isentrope/packed"]))
arrays = hnp.arrays(st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.boolean_dtypes(),
                              hnp.complex_number_dtypes(sizes=(64, 128))), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))  # fmt: skip
tensors = hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.int32]), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
leaves = st.one_of(
    numbers, texts, arrays, arrays.filter(lambda array: array.size).map(lambda array: array.reshape(-1)[0]), tensors.map(lambda array: torch.tensor(array))
)
keys = st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.fixed_dictionaries({"kind": inner, "of": inner}),
        st.fixed_dictionaries({"isentrope/packed": inner, "state": inner}),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_any_state_tree_round_trips_bit_for_bit(state):
    assert bits(through_a_file(state)) == bits(state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.int8, torch.uint16])
def test_tensor_types(dtype):
    value = torch.arange(6).to(dtype).reshape(2, 3)
    assert bits(through_a_file({"x": value})) == bits({"x": value})


def test_payload_of_nan_and_signs_survive():
    payload = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]
    value = [payload, -0.0, -math.nan, math.inf, torch.tensor([payload, -0.0], dtype=torch.float64), np.array([payload, -0.0])]
    assert bits(through_a_file(value)) == bits(value)
    assert bits(0.0) != bits(-0.0)


def test_a_window_on_a_large_tensor_saves_only_itself():
    large = torch.arange(1_000_000.0)
    file = io.BytesIO()
    torch.save(pack_state({"view": large[10:13], "transposed": large.view(1000, 1000).t()[:2]}), file)
    assert len(file.getvalue()) < 40_000
    file.seek(0)
    found = unpack_state(torch.load(file, weights_only=True))
    assert found["view"].tolist() == [10, 11, 12]
    assert torch.equal(found["transposed"], large.view(1000, 1000).t()[:2])


def test_parameters_come_back_as_detached_tensors():
    parameter = torch.nn.Parameter(torch.ones(3))
    found = through_a_file([parameter, torch.ones(2, requires_grad=True) * 2])
    assert [type(value) for value in found] == [Tensor, Tensor]
    assert not any(value.requires_grad for value in found)


def test_optimiser_and_generator_states_pass():
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    states = {
        "optimiser": optimiser.state_dict(),
        "pcg": np.random.default_rng(1).bit_generator.state,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    assert bits(through_a_file(states)) == bits(states)
    restored = np.random.default_rng(2)
    restored.bit_generator.state = through_a_file(states)["pcg"]
    assert restored.random(4).tolist() == np.random.default_rng(1).random(4).tolist()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, {2}]}, "state['a'][1] is a builtins.set"),
        ({"link": SimpleNamespace(x=1)}, "state['link'] is a types.SimpleNamespace"),
        ([torch.float32], "state[0] is a torch.dtype"),
        ([torch.ones(2, device="meta")], "state[0] is a torch.Tensor"),
        ([np.array(["a"])], "state[0] is a numpy.ndarray"),
        ({frozenset(): 1}, "state, a key is a builtins.frozenset"),
        (torch.Size([1]), "state is a torch.Size"),
        (lambda: None, "is a builtins.function"),
    ],
)
def test_anything_else_is_refused_by_its_place(value, words):
    with pytest.raises(TypeError) as error:
        pack_state(value)
    assert words in str(error.value)
    assert "convert it first" in str(error.value)


def test_content_that_was_not_packed_comes_as_it_is():
    content = {"state": {"kind": "dict"}, "step": 3}
    assert unpack_state(content) is content
    with pytest.raises(StateError, match="unknown kind 'tree'"):
        unpack_state({"isentrope/packed": 1, "state": {"kind": "tree", "of": 1}})


def draws() -> list:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(3).tolist(), torch.randn(3).tolist()]


@pytest.mark.parametrize("path", [lambda state: state, through_a_file])
def test_generators_go_on_where_they_were(path):
    before = rng_state()
    draws()  # leaves a cached Gaussian in Python's and NumPy's generators
    saved = path(rng_state())
    expected = draws()
    for other in (random.seed, np.random.seed, torch.manual_seed):
        other(99)
    assert draws() != expected
    set_rng_state(saved)
    assert draws() == expected
    set_rng_state(before)


def test_generator_states_need_no_packing():
    file = io.BytesIO()
    torch.save(rng_state(), file)
    file.seek(0)
    assert bits(torch.load(file, weights_only=True)) == bits(rng_state())


def test_other_cuda_devices_are_refused_before_anything_changes(monkeypatch):
    monkeypatch.setattr(state_module.torch.cuda, "is_available", lambda: False)
    saved = {**rng_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    random.random()
    with pytest.raises(StateError, match=r"saved on 2 CUDA devices, here are 0\..*cuda=False"):
        set_rng_state(saved)
    assert random.getstate() != saved["python"]
    set_rng_state(saved, cuda=False)
    assert random.getstate() == saved["python"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_generators_go_on_where_they_were():
    saved = through_a_file(rng_state())
    expected = torch.rand(3, device="cuda")
    set_rng_state(saved)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
