"""One typed configuration behind file, preset and flags.

    load(preset="demo", sets=["trl.max_steps=12", "control=[clip-cov, {name: siren, beta: 0.01}]"])

Later sources win: defaults, preset, file, `--set`. An unknown key anywhere names the nearest known one. What only TRL or the
interventions can judge (`trl`, `objective`, `control`) is judged by `isentrope.train.check.check`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from isentrope.errors import UserError


class Section(BaseModel):
    """A section of the configuration: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSection(Section):
    """Which language model is trained."""

    name: str = Field(default="embedded", description="`embedded`, `smollm2`, a local folder, or a hub name")
    dtype: Literal["auto", "float32", "bfloat16"] | None = Field(
        default=None, description="weights and products; auto: float32 weights, bfloat16 products where the machine has them; none: float32"
    )
    peft: dict[str, Any] | None = Field(default=None, description="fields of peft's LoraConfig; none: all weights train")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class TaskSection(Section):
    """What is asked and who judges: a preset by `name`, a dataset of `reasoning_gym`, a `jsonl` file with a `reward`, or a `game` of several turns."""

    name: str | None = Field(default=None, description="a preset of `isentrope tasks`, or a name of your own")
    reasoning_gym: str | None = Field(default=None, description="a dataset of reasoning-gym")
    config: dict[str, Any] | None = Field(default=None, description="parameters of that dataset")
    jsonl: str | None = Field(default=None, description="a file with one object per line, each with a string `prompt`")
    reward: str | list[str] | None = Field(default=None, description="reward functions by import path, `pkg.mod:function`")
    game: str | None = Field(default=None, description="a game of several turns: `keys`, `reckon`, or a class by import path, `pkg.mod:Class`")
    arguments: dict[str, Any] | None = Field(default=None, description="what its constructor takes")
    turns: int | None = Field(default=None, gt=0, description="actions of an episode at most")
    turn_tokens: int | None = Field(default=None, gt=0, description="tokens of an action at most; trl.max_completion_length bounds the whole episode")
    size: int | None = Field(default=None, gt=0, description="how many entries are generated")
    seed: int | None = Field(default=None, description="seed of the entries")
    prompt: str | None = Field(default=None, description="format string of the prompt")
    compact: bool | None = Field(default=None, description="drop the spaces of the prompt")
    suffix: str | None = Field(default=None, description="appended to every prompt")
    keep: str | None = Field(default=None, description="only entries whose prompt holds this text")
    extract: Literal["auto", "last-number", "whole"] | None = Field(default=None, description="how the answer is read off")
    exact: bool | None = Field(default=None, description="partial credit counts as 0")
    validation_share: float | None = Field(default=None, gt=0, lt=1, description="share of the prompts held out")
    validation_size: int | None = Field(default=None, gt=0, description="at most this many held-out prompts")
    correct_at: float | None = Field(default=None, description="value of the first reward function from which a completion counts as correct (1.0)")
    timeout: float | None = Field(default=None, gt=0, description="seconds that one call of a reward function may take (10)")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


AlarmName = Literal["collapse", "explosion", "few-tokens", "equal-groups", "narrowing", "touches-nothing", "touches-everything"]


class EvaluateSection(Section):
    """Validation during the run."""

    every: int | None = Field(default=25, gt=0, description="updates between evaluations, also before the first and after the last; none: never")
    prompts: int = Field(default=64, gt=0, description="validation prompts")
    samples: int = Field(default=16, gt=0, description="completions per prompt; the largest k of pass@k")
    batch_size: int = Field(default=512, gt=0, description="completions generated at a time")


class TapeSection(Section):
    """What is recorded."""

    steps: bool = Field(default=True, description="one row per update")
    tokens_every: int | None = Field(default=5, gt=0, description="updates between token samples; none: no token rows, and TRL's own head stays")
    token_rows: int = Field(default=8, gt=0, description="responses per token sample")
    flush_every: int | None = Field(default=25, gt=0, description="updates between writes to disk beside those of checkpoints")
    update_norm: bool = Field(default=False, description="how far each update moves the weights; costs a copy of them")


class LedgerSection(Section):
    """The entropy ledger: why an update moved entropy."""

    every: int | None = Field(default=None, gt=0, description="updates between two ledgers, from the first on; none: no ledger")
    tokens: int = Field(default=20, gt=0, description="most responsible tokens that a ledger names")
    rows: int | None = Field(default=None, gt=0, description="responses in one of its passes, fewer need less memory; none: the trainer's slice")


class AlarmsSection(Section):
    """What is watched during the run (docs/alarms.md)."""

    enabled: bool = Field(default=True, description="watch the run; an alarm is an event on the tape and a line in the progress")
    spent: float = Field(default=0.25, gt=0, lt=0.5, description="share of the opening entropy that counts as spent")
    act: dict[AlarmName, Literal["stop", "bonus"]] = Field(
        default_factory=dict, description="what an alarm does: stop ends the run cleanly, bonus doubles or halves the entropy-bonus of the chain"
    )


class ReportSection(Section):
    """The page at the end."""

    build: bool = Field(default=True, description="write report.html when the run ends")


def _links(given: Any) -> Any:
    if isinstance(given, str | Mapping):
        given = [given]
    if not isinstance(given, Sequence):
        return given
    links = [{"name": item} if isinstance(item, str) else item for item in given]
    for item in links:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise ValueError(f"an item is a name or {{name: ..., parameter: ...}}, for example {{name: clip-cov, ratio: 0.001}}; found {item!r}")
    return links


class Config(Section):
    """A whole run."""

    preset: str | None = Field(default=None, description="the preset that this configuration started from")
    seed: int = Field(default=0, ge=0, description="of everything: data order, sampling, evaluation")
    out: str = Field(default="runs/run", description="the run directory")
    model: ModelSection = ModelSection()
    task: TaskSection = TaskSection(name="sums")
    objective: dict[str, Any] = Field(default_factory=dict, description="fields of Objective that replace what the `trl` options mean")
    control: Annotated[list[dict[str, Any]], BeforeValidator(_links)] = Field(
        default_factory=list, description="interventions in order: names, or {name: ..., parameter: ...}"
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="any field of TRL's GRPOConfig")
    evaluate: EvaluateSection = EvaluateSection()
    tape: TapeSection = TapeSection()
    ledger: LedgerSection = LedgerSection()
    alarms: AlarmsSection = AlarmsSection()
    report: ReportSection = ReportSection()


RESERVED = {
    "output_dir": "out", "logging_dir": "out", "seed": "seed", "resume_from_checkpoint": "`isentrope train --resume DIR`",
    "eval_strategy": "evaluate.every", "eval_steps": "evaluate.every", "do_eval": "evaluate.every",
}  # fmt: skip
"""Fields of GRPOConfig that a run sets itself, and what to use instead."""

BY_NAME = ("model", "task")
"""Sections that may be a single name."""

FREE = ("objective", "trl")
"""Sections whose keys belong to somebody else; `isentrope.train.check` knows them."""


def load(
    file: Path | str | None = None,
    *,
    preset: str | None = None,
    sets: Sequence[str] = (),
    seed: int | None = None,
    out: str | None = None,
) -> Config:
    """The resolved configuration.

    Raises UserError for a missing file, invalid YAML, an unknown key (with the nearest known one), or a value out of range.
    """
    merged: dict[str, Any] = {}
    if preset is not None:
        _merge(merged, {**read_preset(preset), "preset": preset})
    if file is not None:
        given = _read(Path(file))
        if given.get("preset") is not None and preset is None:
            _merge(merged, read_preset(str(given["preset"])))
        _merge(merged, given)
    flags: dict[str, Any] = {}
    for item in sets:
        _set(flags, item)
    _merge(merged, flags)
    if seed is not None:
        merged["seed"] = seed
    if out is not None:
        merged["out"] = out
    return validate(merged)


def validate(given: Mapping[str, Any]) -> Config:
    """A Config from plain data.

    Raises UserError in one sentence per fault.
    """
    given = {key: value for key, value in _normal(given).items() if value is not None}
    _known(given, Config, "")
    if isinstance(given.get("task"), Mapping) and not _source(given["task"]):
        given = {**given, "task": {"name": "sums", **given["task"]}}
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        raise UserError("configuration: " + " ".join(_fault(item) for item in error.errors())) from error
    for key in config.trl:
        if key in RESERVED:
            raise UserError(f"trl.{key} belongs to the run; use {RESERVED[key]} instead.")
    return config


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in files("isentrope").joinpath("presets").iterdir() if item.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset as plain data.

    Raises UserError naming the nearest preset.
    """
    if name not in presets():
        nearest = difflib.get_close_matches(name, presets(), n=1, cutoff=0.0)[0]
        raise UserError(f"unknown preset {name!r}. Did you mean {nearest!r}? Presets: {', '.join(presets())}.")
    return parse_yaml(files("isentrope").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8"))


def read_yaml(file: Path, flag: str) -> dict[str, Any]:
    """The sections in a file that stood behind `flag`.

    Raises UserError if it is not YAML, or no sections.
    """
    try:
        given = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{flag}: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise UserError(f"{flag}: {file} must hold sections ({', '.join(Config.model_fields)}). Got {type(given).__name__}.")
    return given


def differences(before: Config, after: Config) -> list[str]:
    """`key: old -> new` for every value that differs; where a run lies and how its values were given aside."""
    left, right = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    keys = sorted((left.keys() | right.keys()) - {"out", "preset"})
    return [f"{key}: {left.get(key)!r} -> {right.get(key)!r}" for key in keys if left.get(key) != right.get(key)]


def unknown_key(path: str, known: Mapping[str, Iterable[str]], hint: str = "") -> UserError:
    """The error for an unknown key `path`, naming the nearest of `known` (section -> keys; "" is the top level).

    A key that stands in another section wins, then one of the same section that looks alike, then any.
    """
    section, _, key = path.rpartition(".")
    here = list(known.get(section, ()))
    everywhere = [f"{name}.{item}" if name else item for name, items in known.items() for item in items]
    elsewhere = [item for item in everywhere if item.rpartition(".")[2] == key]
    alike = difflib.get_close_matches(key, here, n=1)
    nearest = elsewhere or [f"{section}.{item}" if section else item for item in alike] or difflib.get_close_matches(path, everywhere, n=1, cutoff=0.0)
    allowed = hint or f"{section or 'A configuration'} takes: {', '.join(here)}."
    return UserError(f"unknown key {path}. Did you mean {nearest[0]!r}? {allowed}")


def known_keys() -> dict[str, list[str]]:
    """Section -> its keys, "" for the top level; without the keys of `trl` and `objective`, which belong to others."""
    found = {"": list(Config.model_fields)}
    for name, item in Config.model_fields.items():
        kind = item.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = list(kind.model_fields)
    return found


# --- parts


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"--config: no file {file}. A preset goes by --preset NAME ({', '.join(presets())}).")
    return read_yaml(file, "--config")


def _normal(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: {"name": value} if key in BY_NAME and isinstance(value, str) else value for key, value in given.items()}


def _merge(into: dict[str, Any], given: Mapping[str, Any], path: str = "") -> None:
    for key, value in (given if path else _normal(given)).items():
        replaces = not path and key == "task" and _source(value)  # another source of prompts replaces the task whole
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and not replaces:
            _merge(into[key], value, f"{path}{key}.")
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _source(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and bool({"name", "reasoning_gym", "jsonl", "game"} & value.keys()))


def _set(flags: dict[str, Any], item: str) -> None:
    path, equals, text = item.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set takes key.path=value. Got {item!r}. Example: --set trl.max_steps=12")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {path}: the value is not YAML: {text!r} ({' '.join(str(error).split())}).") from error
    at: dict[str, Any] = flags
    for depth, key in enumerate(keys[:-1]):
        below = at.get(key, {})
        if isinstance(below, str) and depth == 0 and key in BY_NAME:
            below = {"name": below}
        if not isinstance(below, dict):
            raise UserError(f"--set {path}: an earlier --set made {'.'.join(keys[: depth + 1])} a plain value ({below!r}), so it has no keys.")
        at[key] = below
        at = below
    _merge(at, {keys[-1]: value}, path)


class _Yaml(yaml.SafeLoader):
    """Safe YAML whose numbers include 1e-4, which YAML 1.1 reads as text, and whose mappings hold each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands here twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text."""
    return yaml.load(text, Loader=_Yaml)


def _known(given: Mapping[str, Any], section: type[BaseModel], path: str) -> None:
    for key, value in given.items():
        if key not in section.model_fields:
            raise unknown_key(f"{path}{key}", _all_keys())
        kind = section.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            _known(value, kind, f"{path}{key}.")


def _all_keys() -> dict[str, list[str]]:
    try:
        from isentrope.train.check import all_keys
    except ImportError:  # without TRL its options cannot be named
        return known_keys()
    return all_keys()


def _fault(item: Mapping[str, Any]) -> str:
    """One fault that pydantic found: where, what is allowed, what was given, and how to switch off."""
    where = [str(part) for part in item["loc"]]
    section = Config.model_fields[where[0]].annotation if where and where[0] in Config.model_fields else None
    field = None
    if isinstance(section, type) and issubclass(section, BaseModel) and len(where) > 1:
        field = section.model_fields.get(where[1])
    off = " Off is null." if field is not None and type(None) in get_args(field.annotation) and item["type"].startswith("greater_than") else ""
    meaning = f" ({field.description})" if field is not None else ""
    return f"{'.'.join(where)}{meaning}: {item['msg'].removeprefix('Value error, ').replace('Input should', 'must')}. Got {item['input']!r}.{off}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: item for name, below in value.items() for key, item in _flat(below, f"{path}.{name}" if path else name).items()}
    return {path: value}
