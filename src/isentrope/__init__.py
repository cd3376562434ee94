"""isentrope: entropy in learning systems, measured, explained, controlled.

`import isentrope` loads the standard library alone; its rooms load when they are first used.
"""

import importlib

__version__ = "0.1.0"
_ROOMS = ("measure", "control", "train", "report", "testing", "verify", "tape", "provenance", "config")


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"isentrope.{name}")
    raise AttributeError(f"module 'isentrope' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
