"""Every finished intervention by name. A file under `control/papers/` (or `control/standard.py`) is registered by existing."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from isentrope.control import papers
from isentrope.control.stages import Chain, Intervention, chain


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
    """A chain from names: `["clip-cov", {"name": "siren", "beta": 0.01}]`; instances pass through.

    Raises ValueError for an unknown name or parameter, naming the nearest known one.
    """
    return chain(*(_one(spec) for spec in specs))


def _one(spec: str | Mapping[str, Any] | Intervention) -> Intervention:
    if isinstance(spec, Intervention):
        return spec
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(given.pop("name", None))
    known = registry()
    if name not in known:
        raise ValueError(f"control: unknown intervention {name!r}.{_nearest(name, known)} Known: {', '.join(known)}.")
    parameters = [item.name for item in fields(known[name])]  # type: ignore[arg-type]  # every intervention is a dataclass
    for key in given:
        if key not in parameters:
            raise ValueError(f"control: {name} has no parameter {key!r}.{_nearest(key, parameters)} It takes: {', '.join(parameters) or 'none'}.")
    return known[name](**{key: _frozen(value) for key, value in given.items()})


def _frozen(value: Any) -> Any:
    """YAML's lists as tuples: an intervention can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
