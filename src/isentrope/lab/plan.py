"""What a comparison runs: arms, seeds, and the tasks with what each must wait for.

    grpo                                  the baseline: the objective without intervention
    clip-cov                              an intervention; on the embedded model, in the setting that acts there (its `embedded()`)
    forking-tokens(rho=0.2)               with parameters, the others at their defaults
    clip-cov+entropy-band(low=0.2)        a chain

An arm is a chain. Every method has a second arm, its placebo: the same chain with each link replaced by its placebo. A link whose
controller remembers measured numbers is yoked: its placebo replays what the controller did on the next seed. A chain of links that
treat all tokens alike and control nothing has no placebo, and the arm is left out with the reason.

Step sizes. Under Adam a method that keeps few tokens moves the weights about as far as one that keeps all, but not exactly, and under
SGD not at all; so (`match: step`) a pilot per arm, PILOT updates at the base learning rate held constant, on a seed of its own, measures
m = mean over its second half of |delta theta| / learning rate, and the arm trains with base learning rate x m(baseline) / m(arm). How far
the weights really went stands in the table. `match: lr` instead trains every arm at each of SWEEP times the base rate on TUNING_SEEDS
seeds that the comparison does not use, and takes the rate with the highest mean pass@1 at matched step. `match: none` changes nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from isentrope.config import Config, parse_yaml, validate
from isentrope.control.registry import PLACEBO, build, registry
from isentrope.control.stages import Intervention
from isentrope.errors import UserError
from isentrope.files import write_json_atomic

BASELINE = "grpo"
FILE = "compare.json"
PILOT = 20
PILOT_SEED = 1000
TUNING_SEEDS = 2
LEDGERS = 24
"""Ledgers that are kept in the run that explains an arm."""
SWEEP = (0.5, 1.0, 2.0)
Match = Literal["step", "lr", "none"]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One column of runs. `control` is what stands in a run's configuration; `yoked` are the positions of links to be given a record."""

    name: str
    role: Literal["baseline", "method", "placebo"]
    control: tuple[Spec, ...] = ()
    of: str | None = None  # of a placebo: its method
    yoked: tuple[int, ...] = ()

    @property
    def folder(self) -> str:
        """A name that any file system takes."""
        return re.sub(r"[^a-z0-9.+]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Task:
    """One run. `key` is its folder below the comparison's; `after` are keys that must be finished first."""

    key: str
    arm: str
    seed: int
    kind: Literal["pilot", "tune", "run", "ledger"] = "run"  # "ledger": the first seed's run again, with books and without evaluations
    rate: float = 1.0  # "tune": times the base learning rate
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The whole comparison, as saved in compare.json. `config` is the resolved configuration of the baseline, plain data."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    config: dict[str, Any]
    match: Match = "step"
    k: int = 4  # of the pass@k that is judged
    without_placebo: dict[str, str] = field(default_factory=dict)  # method -> why
    ledgers: bool = True  # one more run of the baseline and of every method, which keeps the entropy ledger

    @property
    def methods(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if arm.role == "method")

    @property
    def steps(self) -> int:
        return int(self.config["trl"]["max_steps"])

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def placebo(self, method: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.of == method), None)

    def next_seed(self, seed: int) -> int:
        """The seed whose record a yoked placebo of `seed` replays."""
        return self.seeds[(self.seeds.index(seed) + 1) % len(self.seeds)]

    def tasks(self) -> list[Task]:
        """Tuning first, then all arms seed by seed, so that every finished seed is a whole comparison; ledgers last."""
        found = self._tuning()
        tuned = tuple(found)
        for seed in self.seeds:
            for arm in self.arms:
                after = tuple(task.key for task in tuned if task.arm in (arm.name, BASELINE))
                if arm.yoked:
                    after += (run_key(self.arm(str(arm.of)), self.next_seed(seed)),)
                found.append(Task(run_key(arm, seed), arm.name, seed, after=after))
        if self.ledgers and self.config["ledger"]["every"] is None:
            for arm in self.arms:
                if arm.role != "placebo":
                    after = tuple(task.key for task in tuned if task.arm in (arm.name, BASELINE))
                    found.append(Task(ledger_key(arm), arm.name, self.seeds[0], "ledger", after=after))
        return found

    def _tuning(self) -> list[Task]:
        if self.match == "step":
            return [Task(f"pilot/{arm.folder}", arm.name, PILOT_SEED, "pilot", after=self._recorded(arm, "pilot/{}")) for arm in self.arms]
        if self.match == "lr":
            return [
                Task(f"tune/{arm.folder}/x{rate:g}-seed-{seed}", arm.name, seed, "tune", rate, self._recorded(arm, f"tune/{{}}/x{rate:g}-seed-{seed}"))
                for seed in range(PILOT_SEED, PILOT_SEED + TUNING_SEEDS)
                for arm in self.arms
                for rate in SWEEP
            ]
        return []

    def _recorded(self, arm: Arm, pattern: str) -> tuple[str, ...]:
        """The method's own tuning run, whose record the tuning run of a yoked placebo replays."""
        return (pattern.format(self.arm(str(arm.of)).folder),) if arm.yoked else ()


def run_key(arm: Arm, seed: int) -> str:
    return f"runs/{arm.folder}/seed-{seed}"


def ledger_key(arm: Arm) -> str:
    return f"ledger/{arm.folder}"


# --- making a plan


def make(
    methods: Sequence[str], config: Config, *, seeds: int, match: Match = "step", placebos: bool = True, k: int | None = None, ledgers: bool = True
) -> Plan:
    """The plan of these methods, the baseline first.

    k: of the pass@k that is judged beside pass@1, a power of 2 (default: 4, or all samples if they are fewer).
    Raises UserError for no method, one given twice, an unknown one (with the nearest), or a configuration that has a chain already.
    """
    if config.control:
        raise UserError(f"compare: the configuration has a chain of its own ({', '.join(item['name'] for item in config.control)}). Name it as a method.")
    if seeds < 1:
        raise UserError(f"compare: --seeds must be at least 1. Got {seeds}.")
    samples = config.evaluate.samples
    k = min(4, samples) if k is None else k
    if k < 2 or k > samples or k & (k - 1):
        raise UserError(f"compare: --k must be a power of 2 from 2 to evaluate.samples={samples}. Got {k}.")
    if config.evaluate.every is None:
        raise UserError("compare: evaluate.every is null, and a comparison is of evaluations. Set it to a sixth of the updates or so.")
    wanted = [method.strip() for method in methods if method.strip() != BASELINE]
    if not wanted:
        raise UserError("compare: name at least one method beside the baseline, as in `isentrope compare grpo clip-cov entropy-band`.")
    twice = sorted({method for method in wanted if wanted.count(method) > 1})
    if twice:
        raise UserError(f"compare: {', '.join(twice)} stands there twice.")
    arms, without = [Arm(BASELINE, "baseline")], {}
    for method in wanted:
        arm = Arm(method, "method", tuple(parse(method, embedded=config.model.name == "embedded")))
        arms.append(arm)
        try:
            sham = placebo_of(arm, yoke=seeds > 1) if placebos else None
        except ValueError as error:
            without[method] = str(error)
        else:
            arms += [sham] if sham else []
    folders = [arm.folder for arm in arms]
    if clash := sorted({arm.name for arm in arms if folders.count(arm.folder) > 1}):
        raise UserError(f"compare: {', '.join(clash)} would share a folder; write one of them otherwise.")
    base = config.model_copy(update={"report": config.report.model_copy(update={"build": False})}).model_dump(mode="json")
    base["tape"]["update_norm"] = True
    return Plan(tuple(arms), tuple(range(seeds)), base, match, k, without, ledgers)


def parse(method: str, *, embedded: bool = False) -> list[Spec]:
    """The links of `name(parameter=value, ...)+name`, values as YAML.

    embedded: a link without parameters takes the setting that acts on the embedded model. Raises UserError naming what is wrong.
    """
    links = []
    for part in _split(method, "+"):
        match = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*(?:\((.*)\))?\s*", part, re.DOTALL)
        if match is None:
            raise UserError(f"compare: {part.strip()!r} is no method. Write name, or 'name(parameter=value)', or a chain 'name+name'.")
        name, inside = match[1], match[2]
        spec: Spec = {"name": name}
        for item in _split(inside, ",") if inside and inside.strip() else ():
            key, equals, value = item.partition("=")
            if not equals or not key.strip().isidentifier():
                raise UserError(f"compare: {method}: {item.strip()!r} is no parameter; write parameter=value.")
            spec[key.strip()] = parse_yaml(value)
        links.append(spec)
    try:
        chain = build(links)
    except (ValueError, TypeError) as error:
        text = str(error).removeprefix("control: ")
        raise UserError(f"compare: {method}: {text} The objective without intervention is called {BASELINE!r}.") from error
    if embedded:
        return [spec_of(link.embedded()) if len(spec) == 1 else spec for spec, link in zip(links, chain.links, strict=True)]
    return links


def _split(text: str, at: str) -> list[str]:
    """`text` cut at `at` outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == at and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def spec_of(link: Intervention) -> Spec:
    """The item of a configuration that builds `link`: its name and what is not at its default, as YAML holds it."""
    default = registry()[link.name]()
    values = {item.name: link.__dict__[item.name] for item in fields(link)}  # type: ignore[arg-type]  # every intervention is a dataclass
    return {"name": link.name} | {key: _plain(value) for key, value in values.items() if value != default.__dict__[key]}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def placebo_of(arm: Arm, *, yoke: bool = True) -> Arm:
    """The placebo arm of a method. Raises ValueError with the reason where there is nothing to permute and nothing to replay.

    yoke: there is another seed, so that controllers can replay its record; with one seed they run as they are.
    """
    chain = build(arm.control)
    yoked = tuple(at for at, link in enumerate(chain.links) if remembers(link))
    alike = [link.expected_failures.get("placebo_keeps_the_budget") for link in chain.links]
    reasons = [f"{link.name}: {reason}" for at, (link, reason) in enumerate(zip(chain.links, alike, strict=True)) if reason and not (yoke and at in yoked)]
    if len(reasons) == len(chain.links):
        raise ValueError("; ".join(reasons))
    control = tuple({"name": PLACEBO, "of": dict(spec)} for spec in arm.control)
    build(control)  # raises ValueError for a link that has none
    return Arm(f"placebo of {arm.name}", "placebo", control, arm.name, yoked if yoke else ())


def remembers(link: Intervention) -> bool:
    """Whether a controller of the link remembers measured numbers; counts of updates are no measurement, its placebo counts the same."""
    return any(value is None or isinstance(value, float) for value in link.init().values())


# --- a task's configuration


def configuration(plan: Plan, task: Task, out: Path, *, rate: float, records: Mapping[int, Mapping[str, Sequence[float | None]]]) -> Config:
    """The configuration of one run. rate: times the base learning rate. records: position of a yoked link -> its state's columns."""
    arm = plan.arm(task.arm)
    config = json.loads(json.dumps(plan.config))
    config |= {"seed": task.seed, "out": str(out), "control": [yoked(spec, records.get(at)) for at, spec in enumerate(arm.control)]}
    config["trl"]["learning_rate"] = float(config["trl"].get("learning_rate", 1e-6)) * rate
    if task.kind == "pilot":
        config["trl"] |= {"max_steps": min(PILOT, plan.steps), "lr_scheduler_type": "constant"}
        config["evaluate"]["every"] = None
    if task.kind == "ledger":
        config["evaluate"]["every"] = None
        config["ledger"]["every"] = max(1, plan.steps // LEDGERS)
    return validate(config)


def yoked(spec: Spec, record: Mapping[str, Sequence[float | None]] | None) -> Spec:
    return dict(spec) if not record else {**spec, "series": {name: list(values) for name, values in record.items()}}


# --- on the disk


def save(plan: Plan, directory: Path) -> None:
    write_json_atomic(directory / FILE, asdict(plan))


def load(directory: Path) -> Plan:
    """The plan of the comparison in `directory`. Raises UserError if there is none, or it is damaged."""
    path = directory / FILE
    if not path.is_file():
        raise UserError(f"compare: {directory} holds no comparison (no {FILE}). Start one with: isentrope compare METHOD ... --out {directory}")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        arms = tuple(Arm(**{**arm, "control": tuple(arm["control"]), "yoked": tuple(arm["yoked"])}) for arm in given["arms"])
        return Plan(arms, tuple(given["seeds"]), given["config"], given["match"], given["k"], given["without_placebo"], given.get("ledgers", True))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"compare: {path} is damaged ({error}). Its runs stand in {directory / 'runs'}; start the comparison anew elsewhere.") from error
