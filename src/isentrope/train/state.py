"""State as content that a weights-only loader takes: trees of plain values and tensors, bit for bit, and the random generators."""

import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isentrope.errors import UserError

_TAG = "isentrope/packed"


class StateError(UserError, RuntimeError):
    """A saved state that cannot be restored here."""


def pack_state(state: Any) -> dict[str, Any]:
    """A state tree as content that `torch.load(weights_only=True)` takes; `unpack_state` gives the same tree, bit for bit.

    Takes dicts, OrderedDicts, lists, tuples, tensors and parameters (detached), NumPy arrays and scalars of numbers, int, float,
    complex, bool, str, bytes and None. Raises TypeError naming the place of anything else.
    """
    return {_TAG: 1, "state": _pack(state, "state")}


def unpack_state(content: Any) -> Any:
    """The tree that `pack_state` took; any other content as it is."""
    if isinstance(content, dict) and content.keys() == {_TAG, "state"}:
        return _unpack(content["state"])
    return content


def _pack(value: Any, where: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, float, complex, str) or (kind is int and value.bit_length() < 64):
        return value
    if kind in (list, tuple):
        return kind(_pack(item, f"{where}[{index}]") for index, item in enumerate(value))
    if kind in (Tensor, torch.nn.Parameter) and not value.is_meta:
        return _own_memory(value)
    if kind in (dict, OrderedDict):
        items = [(_pack(key, f"{where}, a key"), _pack(item, f"{where}[{key!r}]")) for key, item in value.items()]
        return _tagged(kind.__name__, items)
    if kind is int:
        return _tagged("int", hex(value))
    if kind is bytes:
        return _tagged("bytes", _bytes_tensor(value))
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufc":
        raw = _bytes_tensor(np.ascontiguousarray(value).tobytes())
        return _tagged("array" if kind is np.ndarray else "scalar", (value.dtype.str, tuple(value.shape), raw))
    raise TypeError(
        f"pack_state: {where} is a {kind.__module__}.{kind.__qualname__}. "
        "State is dicts, lists, tuples, tensors, NumPy numbers, int, float, complex, bool, str, bytes and None; convert it first."
    )


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    """Every dict in packed content is one of these, so a user's dict cannot be mistaken for one."""
    return {"kind": kind, "of": content}


def _unpack(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_unpack(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind, content = value["kind"], value["of"]
    if kind in ("dict", "OrderedDict"):
        return (dict if kind == "dict" else OrderedDict)((_unpack(key), _unpack(item)) for key, item in content)
    if kind in ("array", "scalar"):
        array = np.frombuffer(_bytes_of(content[2]), dtype=np.dtype(content[0])).reshape(content[1]).copy()
        return array if kind == "array" else array[()]
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return _bytes_of(content)
    raise StateError(f"unpack_state: unknown kind {kind!r}; was it written by a newer isentrope?")


def _own_memory(value: Tensor) -> Tensor:
    """Detached, and not a window on a larger memory, all of which would be saved."""
    value = value.detach().resolve_conj().resolve_neg()
    strided = value.layout == torch.strided
    return value.clone() if strided and value.untyped_storage().nbytes() != value.nbytes else value


def _bytes_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _bytes_of(value: Tensor) -> bytes:
    return value.cpu().numpy().tobytes()


# --- random generators


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's global generators (CUDA's where there is one), as a weights-only loader takes it."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any], *, cuda: bool = True) -> None:
    """Restores what `rng_state` gave. `cuda`: also of the devices; then there must be as many as before.

    Raises StateError otherwise, before anything was changed.
    """
    devices = [device.cpu() for device in state.get("cuda", ())] if cuda else []
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices and len(devices) != here:
        raise StateError(
            f"set_rng_state: saved on {len(devices)} CUDA devices, here are {here}. "
            "The run cannot go on bit for bit; set_rng_state(state, cuda=False) goes on with other samples."
        )
    layout, numbers, gauss = state["python"]
    random.setstate((layout, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if devices:
        torch.cuda.set_rng_state_all(devices)
