"""isentrope: entropy in learning systems, measured, explained, controlled.

`import isentrope` loads the standard library alone; its rooms load when they are first used.
"""

import importlib

__version__ = "0.1.0"
_ROOMS = ("measure", "control", "train", "report", "testing", "verify", "tape", "provenance", "config")
_DOORS = {"attach": "isentrope.train.attach", "EntropyCallback": "isentrope.train.callback"}


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"isentrope.{name}")
    if name in _DOORS:
        return getattr(importlib.import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'isentrope' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}; beside them {', '.join(_DOORS)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, *_DOORS])
