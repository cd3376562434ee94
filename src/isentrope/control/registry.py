"""Every finished intervention by name. A file under `control/papers/` (or `control/standard.py`) is registered by existing.

Placebos are built from the same kind of plain data: `{name: placebo, of: clip-cov}`, with `of` as any other item, `seed` to choose
among the placebos of one intervention, and `series` (one list per entry of its state) to yoke a controller to another run's record.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from isentrope.control import papers
from isentrope.control.placebo import Placebo, placebo
from isentrope.control.stages import Chain, Intervention, chain
from isentrope.control.step import State

PLACEBO = "placebo"
"""The name under which an item asks for the placebo of another."""


@cache
def registry() -> Mapping[str, type[Intervention]]:
    """Name -> class, in alphabetical order."""
    found: dict[str, type[Intervention]] = {}
    files = [f"{papers.__name__}.{module.name}" for module in pkgutil.iter_modules(papers.__path__) if not module.name.endswith("_test")]
    for path in (*files, "isentrope.control.standard"):
        for value in vars(importlib.import_module(path)).values():
            named = isinstance(value, type) and issubclass(value, Intervention) and "name" in value.__dict__
            if named and found.setdefault(value.name, value) is not value:
                raise ValueError(f"registry: two interventions are called {value.name!r}: {found[value.name]} and {value}.")
    return dict(sorted(found.items()))


def build(specs: Sequence[str | Mapping[str, Any] | Intervention]) -> Chain:
    """A chain from names: `["clip-cov", {"name": "siren", "beta": 0.01}, {"name": "placebo", "of": "clip-cov"}]`; instances pass through.

    Raises ValueError for an unknown name or parameter, naming the nearest known one.
    """
    return chain(*(_one(spec) for spec in specs))


def _one(spec: str | Mapping[str, Any] | Intervention) -> Intervention:
    if isinstance(spec, Intervention):
        return spec
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(given.pop("name", None))
    if name == PLACEBO:
        return _placebo(given)
    known = registry()
    if name not in known:
        raise ValueError(f"control: unknown intervention {name!r}.{_nearest(name, known)} Known: {', '.join(known)}.")
    parameters = [item.name for item in fields(known[name])]  # type: ignore[arg-type]  # every intervention is a dataclass
    for key in given:
        if key not in parameters:
            raise ValueError(f"control: {name} has no parameter {key!r}.{_nearest(key, parameters)} It takes: {', '.join(parameters) or 'none'}.")
    return known[name](**{key: _frozen(value) for key, value in given.items()})


def _placebo(given: Mapping[str, Any]) -> Placebo:
    """The placebo of `of`; `series` is columns (entry of the state -> its values after 0, 1, 2, ... updates), as YAML holds them briefly."""
    form = "{name: placebo, of: clip-cov, seed: 0, series: {coef: [0.1, 0.2]}}, of which only `of` is needed"
    for key in given:
        if key not in ("of", "seed", "series"):
            raise ValueError(f"control: placebo has no parameter {key!r}.{_nearest(key, ('of', 'seed', 'series'))} Write {form}.")
    if "of" not in given:
        raise ValueError(f"control: placebo needs `of`, the intervention whose placebo it is. Write {form}.")
    seed = given.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"control: placebo: seed must be a whole number. Got {seed!r}.")
    return placebo(_one(given["of"]), seed=seed, series=_states(given.get("series")))


def _states(columns: Any) -> tuple[State, ...] | None:
    if columns is None:
        return None
    lengths = {len(values) for values in columns.values()} if isinstance(columns, Mapping) else set()
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"control: placebo: series must be a mapping of equally long lists, one value per update. Got {_short(columns)}.")
    return tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _frozen(value: Any) -> Any:
    """YAML's lists as tuples: an intervention can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
