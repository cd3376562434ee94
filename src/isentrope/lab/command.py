"""`isentrope compare`: from what a user typed to a plan, a launcher, and a page."""

import argparse
import shutil
from pathlib import Path

import yaml

from isentrope import config as configuration
from isentrope.config import Config
from isentrope.errors import UserError
from isentrope.files import write_text_atomic
from isentrope.lab import page
from isentrope.lab import plan as plans
from isentrope.lab.compare import compare, told
from isentrope.lab.plan import Plan
from isentrope.lab.pool import Launcher, Local
from isentrope.lab.results import Results

SEEDS = 8
OUT = "runs/compare"
BASE = "base.yaml"
EVALUATIONS = 6


def run(options: argparse.Namespace) -> int:
    """One `isentrope compare`; returns the exit code: 0 all runs finished, 1 some failed."""
    from isentrope.report.page import plotly
    from isentrope.train.run import owned

    plotly()  # a missing package is told before the work
    if options.address is not None and options.launcher != "ray":
        raise UserError("compare: --address is of a Ray cluster; add --launcher ray.")
    if options.resume is not None:
        directory, plan = Path(options.resume), resumed(options)
    else:
        directory, plan = Path(options.out or OUT), asked(options)
    if options.dry_run:
        print(describe(plan, _probe(plan)))
        return 0
    if options.resume is None:
        _fresh(directory)
    launcher, guess = _launcher(options), _probe(plan)
    if options.resume is None:
        write_text_atomic(directory / BASE, yaml.safe_dump(plan.config, sort_keys=False))
        plans.save(plan, directory)
    with owned(directory):
        try:
            results = compare(plan, directory, launcher, write=page.write, keep=options.keep_models, tell=_tell, first_guess=guess)
        except KeyboardInterrupt:
            _tell(f"Runs under way go on from their last checkpoints with: isentrope compare --resume {directory}")
            raise
    print(summary(results))
    print(f"\n{directory / page.NAME}")
    return 1 if results.failed else 0


def asked(options: argparse.Namespace) -> Plan:
    """The plan that the flags ask for.

    Raises UserError for an unknown method, task or option, or a configuration that a run would refuse.
    """
    preset = options.preset or (None if options.config else "compare")
    sets = [*options.sets, *([f"task={options.task}"] if options.task else ())]
    config = configuration.load(options.config, preset=preset, sets=sets)
    trl, evaluate = dict(config.trl), config.evaluate
    if options.steps is not None:
        if options.steps < 1:
            raise UserError(f"compare: --steps must be at least 1. Got {options.steps}.")
        trl["max_steps"] = options.steps
        evaluate = evaluate.model_copy(update={"every": -(-options.steps // EVALUATIONS)})
    if int(trl.get("max_steps", -1)) < 1:
        raise UserError("compare: say how many updates: --steps N, or trl.max_steps in the configuration.")
    config = config.model_copy(update={"trl": trl, "evaluate": evaluate})
    match: plans.Match = "lr" if options.sweep else "none" if options.no_match else "step"
    if options.sweep and options.no_match:
        raise UserError("compare: --sweep lr tunes every learning rate and --no-match none; choose one.")
    made = plans.make(
        options.methods,
        config,
        seeds=SEEDS if options.seeds is None else options.seeds,
        match=match,
        placebos=not options.no_placebos,
        k=options.k,
        ledgers=not options.no_ledger,
    )
    _check(made)
    return made


def resumed(options: argparse.Namespace) -> Plan:
    """The plan in the directory. Raises UserError for flags that would make it another one."""
    given = {
        "methods": options.methods, "--config": options.config, "--preset": options.preset, "--set": options.sets, "--task": options.task,
        "--seeds": options.seeds, "--steps": options.steps, "--k": options.k, "--sweep": options.sweep, "--no-match": options.no_match,
        "--no-placebos": options.no_placebos, "--no-ledger": options.no_ledger, "--out": options.out,
    }  # fmt: skip
    if extra := [name for name, value in given.items() if value]:
        raise UserError(
            f"compare: --resume goes on with the plan in {options.resume}; {', '.join(extra)} does not go with it. Drop it, or start anew with --out."
        )
    return plans.load(Path(options.resume))


def describe(plan: Plan, guess: float) -> str:
    """What would run, and how long at most."""
    tasks = plan.tasks()
    updates = sum(plan.steps if task.kind != "pilot" else min(plans.PILOT, plan.steps) for task in tasks)
    lines = [
        f"{arm.role:9} {arm.name}  {'' if arm.role == 'baseline' else yaml.safe_dump([dict(item) for item in arm.control], default_flow_style=True).strip()}"
        for arm in plan.arms
    ]
    lines += [f"no placebo of {name}: {reason}" for name, reason in plan.without_placebo.items()]
    kinds = {"pilot": "pilots", "tune": "tuning runs", "run": "runs", "ledger": "runs with a ledger"}
    counted = ", ".join(f"{count} {kinds[kind]}" for kind in kinds if (count := sum(task.kind == kind for task in tasks)))
    whole = told(guess * updates / plan.steps)
    cost = f"{counted} of {plan.steps} updates; one run takes at most about {told(guess)} on one thread, all {whole} of core time"
    return "\n".join([*lines, "", cost])


def summary(results: Results) -> str:
    """The verdicts as plain text."""
    width = max(map(len, results.verdicts))
    lines = [f"{name:{width}}  {verdict.word}: {verdict.because}" for name, verdict in results.verdicts.items()]
    return "\n".join(["", *lines, *(f"failed: {key}: {reason}" for key, reason in results.failed.items())])


def _check(plan: Plan) -> None:
    """Every arm's configuration as its run will judge it, before any run. Raises UserError naming the arm."""
    from isentrope.train.check import check

    for arm in plan.arms:
        task = plans.Task(plans.run_key(arm, 0), arm.name, 0)
        try:
            check(plans.configuration(plan, task, Path("runs/run"), rate=1.0, records={}))
        except UserError as error:
            raise UserError(f"compare: {arm.name}: {error}") from error


def _probe(plan: Plan) -> float:
    """Seconds of one run at most, on one thread."""
    import torch

    from isentrope.train.plan import seconds

    torch.set_num_threads(1)
    config: Config = configuration.validate(plan.config)
    return seconds(config)


def _launcher(options: argparse.Namespace) -> Launcher:
    if options.launcher == "local":
        return Local(options.workers)
    from isentrope.lab.ray import Ray

    return Ray(options.workers, options.address)


def _fresh(directory: Path) -> None:
    """Raises UserError for a directory that holds something."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise UserError(f"compare: {directory} cannot be made: {error.strerror}. Choose another --out.") from error
    if plans.FILE in there:
        raise UserError(f"compare: {directory} holds a comparison. Go on with it by --resume {directory}, or choose another --out.")
    if there:
        raise UserError(f"compare: {directory} is not empty ({', '.join(there[:4])}). Choose another --out.")
    if shutil.disk_usage(directory).free == 0:
        raise UserError(f"compare: no space is left where {directory} lies.")


def _tell(text: str) -> None:
    print(text, flush=True)
