"""What a number called "entropy" is: how it was estimated, at which temperature, of which policy, over which tokens, in which unit.

Two numbers of one name are often two quantities. A `Provenance` says which one; `combine` refuses to mix two; a `Measured` value
carries its provenance through sums and averages. Standard library only, so every room of the house may import it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import reduce
from operator import add
from typing import Any

ESTIMATORS = ("exact", "monte-carlo", "top-k", "plug-in")
"""exact: over the whole vocabulary. monte-carlo: from log-probs of sampled tokens. top-k: over the k most likely tokens.
plug-in: from the frequencies of a finite sample, such as 16 answers; biased low."""
POLICIES = ("sampling", "old", "current")
"""sampling: the engine that generated. old: the behaviour policy as the trainer scored it. current: the trained weights."""
UNITS = ("nats", "bits")
PER_TOKEN = "per-token"
"""The temperature where each token has its own (`Rollouts.sampling_temperature`)."""

_ONE_OF = {"estimator": ESTIMATORS, "policy": POLICIES, "unit": UNITS}
_NOT_IDENTITY = ("tail_bound",)


class ProvenanceError(ValueError):
    """Two different quantities would be mixed, or a provenance says something impossible."""


@dataclass(frozen=True)
class Provenance:
    """What a measured column is.

    >>> Provenance("exact", aggregation="token-mean").describe()
    'exact, temperature 1, current policy, trained tokens, token-mean, nats, float32'
    """

    estimator: str  # one of ESTIMATORS
    temperature: float | int | str = 1.0  # what divided the logits; "per-token" where each token has its own
    truncation: str | None = None  # "top_p=0.8", "top_k=20": the distribution was cut before it was measured
    policy: str = "current"  # one of POLICIES
    mask: str = "trained"  # which tokens: "trained", "completion", ...
    aggregation: str = "none"  # "none" (a value per token), "token-mean", "sequence-mean", ...
    unit: str = "nats"  # one of UNITS
    dtype: str = "float32"  # of the logits that it was taken from, as in "bfloat16"
    tail_bound: float | int | None = None  # estimator "top-k": the most that the tokens left out can add, in `unit`

    def __post_init__(self):
        for name, allowed in _ONE_OF.items():
            if self.__dict__[name] not in allowed:
                raise ProvenanceError(f"Provenance: {name} must be one of {', '.join(allowed)}. Got {self.__dict__[name]!r}.")
        _check_temperature(self.temperature)
        for name in ("mask", "aggregation", "dtype"):
            if not isinstance(self.__dict__[name], str) or not self.__dict__[name]:
                raise ProvenanceError(f"Provenance: {name} must be a word. Got {self.__dict__[name]!r}.")
        if "." in self.dtype:
            raise ProvenanceError(f"Provenance: dtype is the bare name. Got {self.dtype!r}; write {self.dtype.rpartition('.')[2]!r}.")
        if self.tail_bound is not None and (self.estimator != "top-k" or not self.tail_bound >= 0):
            raise ProvenanceError(f"Provenance: tail_bound belongs to estimator 'top-k' and is at least 0. Got {self.tail_bound!r} with {self.estimator!r}.")

    def describe(self) -> str:
        """One line for people, fit for an axis label."""
        tail = "" if self.tail_bound is None else f" (tail at most {self.tail_bound:g} {self.unit})"
        heat = self.temperature if isinstance(self.temperature, str) else f"{self.temperature:g}"
        cut = "" if self.truncation is None else f" with {self.truncation}"
        return (
            f"{self.estimator}{tail}, temperature {heat}{cut}, {self.policy} policy, {self.mask} tokens, "
            f"{'per token' if self.aggregation == 'none' else self.aggregation}, {self.unit}, {self.dtype}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A flat dictionary that JSON takes as it is."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Provenance":
        """The provenance that `to_dict` wrote. Raises ProvenanceError for a key that is unknown or missing."""
        known = [item.name for item in fields(cls)]
        for key in record:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ProvenanceError(f"Provenance.from_dict: unknown key {key!r}; known are {', '.join(known)}.{hint}")
        if "estimator" not in record:
            raise ProvenanceError(f"Provenance.from_dict: 'estimator' is missing. Got {', '.join(map(str, record)) or 'nothing'}.")
        return cls(**record)


def _check_temperature(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != PER_TOKEN and not (number and math.isfinite(value) and value > 0):
        raise ProvenanceError(f"Provenance: temperature must be a number above 0, or 'per-token'. Got {value!r}.")


def differing(a: Provenance, b: Provenance) -> tuple[str, ...]:
    """Names of the fields in which two provenances are different quantities. A tail bound is an error bar, not an identity."""
    return tuple(item.name for item in fields(Provenance) if item.name not in _NOT_IDENTITY and a.__dict__[item.name] != b.__dict__[item.name])


def compatible(a: Provenance, b: Provenance) -> bool:
    """Whether two numbers are the same quantity: may share an axis, be averaged or compared."""
    return not differing(a, b)


def combine(a: Provenance, b: Provenance) -> Provenance:
    """The provenance of an average of two numbers; of two tail bounds the wider holds, and an unstated one stays unstated.

    Raises ProvenanceError that names every field in which they differ.
    """
    names = differing(a, b)
    if names:
        pairs = "; ".join(f"{name} {a.__dict__[name]!r} against {b.__dict__[name]!r}" for name in names)
        raise ProvenanceError(
            f"combine: these are two different quantities: {pairs}. Keep them apart; "
            f"if a label is wrong, correct it: dataclasses.replace(provenance, {names[0]}={a.__dict__[names[0]]!r})."
        )
    if a.tail_bound is None or b.tail_bound is None:
        return replace(a, tail_bound=None)
    return replace(a, tail_bound=max(a.tail_bound, b.tail_bound))


@dataclass(frozen=True)
class Measured:
    """Values together with what they are. `values`: a number, a NumPy array or a tensor.

    >>> mean_entropy = Provenance("exact", aggregation="token-mean")
    >>> average([Measured(1.0, mean_entropy), Measured(2.0, mean_entropy)]).values
    1.5
    """

    values: Any
    provenance: Provenance

    def __post_init__(self):
        if isinstance(self.values, (list, tuple)):
            raise TypeError(f"Measured: values must be a number, an array or a tensor. Got a {type(self.values).__name__}.")

    def __add__(self, other: object) -> "Measured":
        """Values added element by element; both must be the same quantity and of one shape. Tail bounds add."""
        if not isinstance(other, Measured):
            raise TypeError(f"Measured + {type(other).__name__}: a bare number has no provenance. Wrap it: Measured(value, provenance).")
        provenance = combine(self.provenance, other.provenance)
        if _shape(self.values) != _shape(other.values):
            raise ValueError(f"Measured: shapes must agree. Got {_shape(self.values)} and {_shape(other.values)}.")
        mine, theirs = self.provenance.tail_bound, other.provenance.tail_bound
        tail_bound = None if mine is None or theirs is None else mine + theirs
        return Measured(self.values + other.values, replace(provenance, tail_bound=tail_bound))

    def __radd__(self, other: object) -> "Measured":
        """0 + measured, so that `sum(list_of_measured)` works; any other left operand is refused."""
        if type(other) is int and other == 0:
            return self
        raise TypeError(f"{type(other).__name__} + Measured: a bare number has no provenance. Wrap it: Measured(value, provenance).")


def average(items: Sequence[Measured], weights: Iterable[float | int] | None = None) -> Measured:
    """The (weighted) average of measured values, all of one quantity and shape.

    weights: one number >= 0 each, say token counts; equal by default. Raises ValueError if they do not fit or sum to 0.
    """
    weights = [1.0] * len(items) if weights is None else [float(weight) for weight in weights]
    if not items or len(weights) != len(items) or not all(weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError(f"average: needs values and as many weights >= 0, not all 0. Got {len(items)} values, weights {weights}.")
    provenance = reduce(combine, (item.provenance for item in items))
    used = [Measured(item.values * weight, item.provenance) for item, weight in zip(items, weights, strict=True) if weight > 0]
    return Measured(reduce(add, used).values / sum(weights), provenance)  # weight 0 is left out, for 0 * NaN is NaN


def _shape(values: Any) -> tuple[int, ...]:
    return () if isinstance(values, (int, float)) else tuple(values.shape)
