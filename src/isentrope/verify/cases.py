"""One recorded case of an official implementation, the adapters that answer it with this library, and how the two are compared.

A case is a file `slug__case.npz`: `in_*` arrays, `out_*` arrays, and `meta`, a JSON object with parameters and tolerance. An adapter
takes the case and returns every `out_*` by its name; shapes and hyper-parameters come from the file, never from the adapter.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from isentrope.control.step import Normaliser, Rollouts, Step

MAX_BYTES = 64 * 2**20  # a case is kilobytes; anything larger is not one


class Unreadable(Exception):
    """The file is not a case; the message says why."""


@dataclass(frozen=True)
class Compared:
    """An output of which only some positions are compared: the others hold what the official code happens to leave there."""

    value: Tensor
    where: Tensor


Outputs = Mapping[str, Tensor | Compared | float | int]


@dataclass(frozen=True)
class Case:
    """What a file holds. `case["logp"]` is the tensor of `in_logp`."""

    slug: str
    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, numpy.ndarray]
    params: Mapping[str, Any]
    tolerance: float
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # inputs that are names, not numbers

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.inputs:
            raise Unreadable(f"the file has no in_{name}; it has {', '.join(sorted(self.inputs)) or 'no inputs'}")
        return self.inputs[name]

    def mask(self, name: str = "mask") -> Tensor:
        """A 0/1 input as a bool mask."""
        return self[name] != 0

    def leaf(self, name: str) -> Tensor:
        """An input that a gradient is taken with respect to."""
        return self[name].clone().requires_grad_(True)

    def param(self, name: str, default: Any = None) -> Any:
        """A hyper-parameter of the file; `default` is what the README of the vectors says where a file may leave it out."""
        value = self.params.get(name, default)
        if value is None:
            raise Unreadable(f"meta has no parameter {name!r}; it has {', '.join(sorted(self.params)) or 'none'}")
        return value


Adapter = Callable[[Case], Outputs]
_ADAPTERS: dict[tuple[str, str], Adapter] = {}


def answers(slug: str, *patterns: str) -> Callable[[Adapter], Adapter]:
    """Registers the function as the adapter of the slug's cases whose names match one of the patterns (shell style)."""

    def register(adapter: Adapter) -> Adapter:
        for pattern in patterns:
            if (slug, pattern) in _ADAPTERS:
                raise ValueError(f"answers: {slug} {pattern!r} has an adapter already.")
            _ADAPTERS[slug, pattern] = adapter
        return adapter

    return register


def adapter_of(slug: str, name: str) -> Adapter | None:
    """The adapter of a case: of the pattern that is the name itself, else of the first that matches."""
    if (slug, name) in _ADAPTERS:
        return _ADAPTERS[slug, name]
    return next((adapter for (known, pattern), adapter in _ADAPTERS.items() if known == slug and fnmatchcase(name, pattern)), None)


def answered() -> frozenset[str]:
    """Slugs of which recorded cases have an adapter."""
    return frozenset(slug for slug, _ in _ADAPTERS)


def split_name(path: Path) -> tuple[str, str]:
    """Slug and case of `slug__case.npz`; a file without the two parts has an empty slug."""
    slug, parted, name = path.stem.partition("__")
    return (slug, name) if parted else ("", path.stem)


def read_case(path: Path) -> Case:
    """The case in a file.

    Raises Unreadable with the reason: damaged, not an npz file, no usable meta, arrays that are no numbers.
    """
    slug, name = split_name(path)
    if not slug or not name:
        raise Unreadable("the name must be slug__case.npz")
    arrays = _arrays(path)
    meta = _meta(arrays.pop("meta", None))
    tolerance = meta.get("tolerance")
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not tolerance >= 0:
        raise Unreadable(f"meta names no tolerance that is a number >= 0, but {tolerance!r}")
    params = meta.get("params", {})
    if not isinstance(params, dict):
        raise Unreadable(f"the params of meta must be an object, not {type(params).__name__}")
    words = {key[3:]: tuple(map(str, value.flat)) for key, value in arrays.items() if key.startswith("in_") and value.dtype.kind == "U"}
    inputs = {key[3:]: _tensor(key, value) for key, value in arrays.items() if key.startswith("in_") and value.dtype.kind != "U"}
    outputs = {key[4:]: value for key, value in arrays.items() if key.startswith("out_")}
    if not outputs:
        raise Unreadable("the file records no out_* array")
    return Case(slug, name, inputs, outputs, params, float(tolerance), words)


def _arrays(path: Path) -> dict[str, numpy.ndarray]:
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        with path.open("rb") as file:
            archive = numpy.load(file, allow_pickle=False)
            if not isinstance(archive, numpy.lib.npyio.NpzFile):
                raise Unreadable("not an npz archive")
            with archive:
                size = sum(entry.file_size for entry in archive.zip.infolist()) if archive.zip is not None else 0
                if size > MAX_BYTES:
                    raise Unreadable(f"unpacks to more than {MAX_BYTES >> 20} MiB")
                return {key: archive[key] for key in archive.files}
    except Unreadable:
        raise
    except Exception as error:  # zipfile, zlib, header parser: a damaged file fails in many ways
        raise Unreadable(f"damaged: {type(error).__name__}: {error}") from error


def _meta(array: numpy.ndarray | None) -> dict[str, Any]:
    if array is None or array.dtype.kind not in "US" or array.size != 1:
        raise Unreadable("the file has no meta string")
    text = array.item()
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"meta is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise Unreadable("meta is not a JSON object")
    return meta


def _tensor(key: str, value: numpy.ndarray) -> Tensor:
    try:
        return torch.from_numpy(numpy.ascontiguousarray(value).reshape(value.shape))
    except TypeError as error:
        raise Unreadable(f"{key} holds {value.dtype}, not numbers") from error


# --- what adapters share


def step_of(case: Case, log_probs: Tensor, *, normaliser: Normaliser = Normaliser(), reference: bool = False) -> Step:
    """The update that a loss case describes: `in_old_logp`, `in_mask`, and `in_adv` per token or `in_adv_seq` per response."""
    mask = case.mask()
    advantage = case["adv"] if "adv" in case.inputs else case["adv_seq"].unsqueeze(1)
    rollouts = Rollouts.of(mask, advantage=advantage, old_log_probs=case["old_logp"])
    if reference:
        rollouts = replace(rollouts, ref_log_probs=case["ref_logp"])
    return Step(rollouts, log_probs, normaliser=normaliser)


def gradient(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a scalar, 0 where it does not depend on a leaf."""
    found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else (None,) * len(leaves)
    return tuple(torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(found, leaves, strict=True))


# --- comparison


def largest_error(recorded: numpy.ndarray, produced: Tensor | Compared | float | int) -> float:
    """Largest |a - b| / (1 + |a|) with a recorded and b produced; NaN equals NaN, an infinity equals itself, all else of them is infinite.

    Raises ValueError if the shapes differ.
    """
    where = None
    if isinstance(produced, Compared):
        produced, where = produced.value, produced.where.detach().numpy()
    b = produced.detach().to(torch.float64).numpy() if isinstance(produced, Tensor) else numpy.asarray(float(produced))
    a = recorded.astype(numpy.float64)
    if a.shape != b.shape:
        raise ValueError(f"has shape {list(b.shape)}, recorded {list(a.shape)}")
    with numpy.errstate(invalid="ignore", over="ignore"):
        error = numpy.abs(a - b) / (1 + numpy.abs(a))
    same = (a == b) | (numpy.isnan(a) & numpy.isnan(b))
    error = numpy.where(same, 0.0, numpy.where(numpy.isfinite(a) & numpy.isfinite(b), error, numpy.inf))
    if where is not None:
        error = error[where]
    return float(error.max(initial=0.0))
