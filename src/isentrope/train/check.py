"""Judges a configuration against TRL, the objective and the interventions before a model is loaded.

`config.load` knows our own sections. What stands under `trl`, `objective` and `control` belongs to others: the fields and types of
TRL's GRPOConfig, the fields of `Objective`, and the registry of interventions.
"""

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig

from isentrope.config import RESERVED, Config, known_keys, unknown_key
from isentrope.control.objectives import Objective
from isentrope.control.standard import ReferenceKL
from isentrope.errors import UserError
from isentrope.train.carried import built, check_host, objective_of, refuse_same_meaning

WIDER: Mapping[str, Any] = {"scale_rewards": str | bool}
"""Fields that accept more than their annotation says."""

RANGES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("above 0; near-greedy is 1e-3", lambda v: v > 0),
    "learning_rate": ("at least 0", lambda v: v >= 0),
    "max_completion_length": ("a whole number of at least 1", lambda v: v is not None and v >= 1),
    "max_steps": ("at least 1, or -1 for trl.num_train_epochs", lambda v: v == -1 or v >= 1),
    "per_device_train_batch_size": ("at least 1", lambda v: v >= 1),
    "gradient_accumulation_steps": ("at least 1", lambda v: v >= 1),
}
"""What TRL takes without a word and breaks on later, or does something else with."""


def check(config: Config) -> Config:
    """The configuration with the values of `trl` in the types that GRPOConfig declares.

    Raises UserError for an untested TRL or Unsloth, an unknown field or a value of the wrong type in `trl` or `objective`, an unknown
    intervention or parameter, a trainer option that means the same as a link of the chain, and whatever TRL itself refuses.
    """
    check_host()
    from isentrope.train.run import trainer_arguments

    checked = config.model_copy(update={"trl": trl_options(config.trl)})
    chain = built(config.control)
    refuse_same_meaning(checked.trl, chain)
    if not checked.trl.get("beta") and any(isinstance(link, ReferenceKL) and link.against == "reference" for link in chain.links):
        raise UserError(
            "reference-kl needs a reference model, and TRL loads one only with trl.beta above 0. Set trl.beta=1e-6 and objective.kl=null "
            "objective.kl_coef=0 (or beta would put a second KL into the loss), or take the behaviour policy: {name: reference-kl, against: old}."
        )
    try:
        base = objective_of(trainer_arguments(checked, Path(config.out)))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"trl: these options do not go together: {' '.join(str(error).split())}") from error
    check_objective(config.objective, base)
    return checked


def trl_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` in the types of GRPOConfig's fields.

    Raises UserError naming the nearest field, or the field's type.
    """
    hints = typing.get_type_hints(GRPOConfig)
    allowed = [item.name for item in fields(GRPOConfig) if item.init and item.name not in RESERVED]
    for key in given:
        if key not in allowed:
            raise unknown_key(f"trl.{key}", all_keys(), "trl takes the fields of TRL's GRPOConfig.")
    found = {}
    for key, value in given.items():
        kind = WIDER.get(key, hints[key])
        try:
            found[key] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            name = kind.__name__ if isinstance(kind, type) else str(kind)
            quote = f" YAML reads bare no, off, yes and on as that; quote it: {key}: 'no'." if isinstance(value, bool) else ""
            raise UserError(f"trl.{key} must be {name.replace(' | ', ' or ')}. Got {value!r}.{quote}") from error
        allowed_values, fits = RANGES.get(key, ("finite", lambda value: True))
        if not fits(found[key]) or (isinstance(found[key], float) and not math.isfinite(found[key])):
            raise UserError(f"trl.{key} must be {allowed_values}. Got {found[key]!r}.")
    check_trackers(found.get("report_to", "none"))
    return found


def check_trackers(names: str | list[str] | None) -> None:
    """Raises UserError for a tracker that transformers does not know, or that is not installed."""
    for name in [names] if isinstance(names, str) else names or ():
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"trl.report_to: unknown tracker {name!r}. Known: none, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        if name not in get_available_reporting_integrations():
            raise UserError(f"trl.report_to: {name!r} is not installed here. pip install {name}, or --set trl.report_to=none.")


def check_objective(given: Mapping[str, Any], base: Objective) -> None:
    """Raises UserError for a field that Objective lacks, or a value that it refuses in place of `base`'s."""
    for key in given:
        if key not in [item.name for item in fields(Objective)]:
            raise unknown_key(f"objective.{key}", all_keys())
    try:
        replace(base, **given)
    except (ValueError, TypeError) as error:
        raise UserError(f"objective: {error}") from error


def all_keys() -> dict[str, list[str]]:
    """Section -> its keys, with those of `trl` and `objective`."""
    return {
        **known_keys(),
        "trl": [item.name for item in fields(GRPOConfig) if item.init and item.name not in RESERVED],
        "objective": [item.name for item in fields(Objective)],
    }
