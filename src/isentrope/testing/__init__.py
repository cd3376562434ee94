"""The contract that every intervention passes, public: run it on one of your own.

    from isentrope.testing import check_intervention
    check_intervention(MyMethod())                     # raises, naming the check and what was found

or, as named tests:

    from isentrope.testing import parametrize_with_checks

    @parametrize_with_checks([MyMethod()])             # ids read my-method-padding_never_matters
    def test_contract(intervention, check):
        check(intervention)
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Literal, get_args, get_origin, get_type_hints
from unittest import SkipTest

from isentrope.control.stages import Intervention
from isentrope.testing.bites import Bite, check_bites
from isentrope.testing.checks import CHECKS, Check, ContractError
from isentrope.testing.world import Outcome, World, lived, play, world

__all__ = [
    "Bite", "Check", "ContractError", "Outcome", "World", "check_bites", "check_intervention", "checks", "lived",
    "parametrize_with_checks", "play", "variants", "world",
]  # fmt: skip


def checks() -> list[Check]:
    """All checks in the order of the contract: name, function, the stages that each concerns, whether it takes minutes."""
    return list(CHECKS)


def check_intervention(intervention: Intervention, *, seed: int = 0, slow: bool = True) -> None:
    """Run every check that concerns `intervention`. `slow=False` leaves out the run on the embedded model, which needs trl.

    Raises ContractError that lists every failure. Recorded outputs are compared where some exist for its slug.
    """
    failures = []
    for check in CHECKS:
        if check.slow and not slow:
            continue
        try:
            check(intervention, seed=seed)
        except SkipTest:
            continue
        except ContractError as error:
            failures.append(error)
    if failures:
        raise ContractError("\n".join(str(error) for error in failures)) from failures[0]


def variants(kind: type[Intervention]) -> list[Intervention]:
    """One instance for each value of the field `variant` (formulas of the paper, of the code, fixed), in its embedded setting.

    A value that the class refuses with ValueError is left out.
    """
    hint = get_type_hints(kind).get("variant") if is_dataclass(kind) and "variant" in {item.name for item in fields(kind)} else None
    if get_origin(hint) is not Literal:
        return [kind().embedded()]
    found = []
    for value in get_args(hint):
        try:
            found.append(kind(variant=value).embedded())
        except ValueError:
            continue
    return found


def parametrize_with_checks(instances: Mapping[str, type[Intervention]] | Iterable[Intervention | type[Intervention]]):
    """A pytest parametrisation of (intervention, check). Classes stand for all their variants; `registry()` may be passed as it is.

    Slow checks carry the mark `slow`. Ids read `clip-cov-padding_never_matters`, or `clip-cov[paper]-...` where there are variants.
    """
    import pytest

    listed: Sequence = list(instances.values()) if isinstance(instances, Mapping) else list(instances)
    parameters = []
    for entry in listed:
        chosen = variants(entry) if inspect.isclass(entry) else [entry]
        for intervention in chosen:
            variant = f"[{intervention.__dict__['variant']}]" if len(chosen) > 1 else ""
            for check in CHECKS:
                if check.concerns(intervention):
                    marks = [pytest.mark.slow] if check.slow else []
                    parameters.append(pytest.param(intervention, check, id=f"{intervention.name}{variant}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("intervention", "check"), parameters)
