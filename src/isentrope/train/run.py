"""A run: from a resolved configuration to a directory with a tape, checkpoints, models, a summary and a report.

`run(config)` starts one, `run(config, resume=DIR)` goes on with one that was interrupted, wherever it was killed.
"""

import copy
import errno
import fcntl
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerState
from trl import GRPOConfig

from isentrope.config import Config
from isentrope.errors import DiskError, UserError
from isentrope.explain.alarms import Seen
from isentrope.tape import Tape, TapeError, TapeWriter, write_json_atomic, write_text_atomic
from isentrope.train import checkpoint, models, tasks
from isentrope.train.alarms import Alarms
from isentrope.train.carried import built, objective_of
from isentrope.train.evaluate import Evaluation, evaluate
from isentrope.train.forecast import law_figures
from isentrope.train.ledger import Ledger, ledger_summary
from isentrope.train.ledger import provenance as ledger_provenance
from isentrope.train.recorder import TapeRecorder, provenance
from isentrope.train.shift import ENTROPIES, support_figures
from isentrope.train.trl import IsentropeTrainer, host_state_name
from isentrope.train.turn_figures import turn_provenance

PACKAGES = ("isentrope", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "numpy", "polars", "reasoning-gym")
MARK = "run.json"


class Watcher(Protocol):
    """Where live progress goes (`isentrope.progress.Progress`)."""

    def start(self, total: int) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """No progress at all."""

    def start(self, total: int) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """Where the run lies, its final figures, and whether it was interrupted (then it can be resumed)."""

    directory: Path
    summary: dict[str, Any]
    interrupted: bool = False


class RunTrainer(IsentropeTrainer):
    """The host writing its checkpoints into a run directory, each counted only once its manifest stands."""

    run: "Run"

    def _save_checkpoint(self, model, trial):
        states = gather_object([(self.accelerator.process_index, self.host_state())])
        if self.accelerator.is_main_process:
            self.run.save_checkpoint(dict(states))
        self.accelerator.wait_for_everyone()


class Run:
    """One run in the making. Everything that outlives a step lies in its directory or in its checkpoints."""

    def __init__(self, config: Config, directory: Path, resume: checkpoint.Checkpoint | None, progress: Watcher):
        self.config, self.directory, self.resumed, self.progress = config, directory, resume, progress
        self.started = time.time()
        self.best: dict[str, float] = {"pass@1": -math.inf, "step": -1}
        self.interrupted = False
        self.faults: dict[str, int] = {}
        self.loaded = models.load(config.model.name, dtype=config.model.dtype)
        self.task = tasks.build(config.task, chat=self.loaded.chat)
        self.args = trainer_arguments(config, directory)
        check_prompts(self.task, self.args)
        models.check_context(longest_prompt(self.task, self.loaded), self.args.max_completion_length, self.loaded.context)
        self.writer = TapeWriter(directory / "tape")
        tape = config.tape
        self.recorder = TapeRecorder(
            self.writer, steps=tape.steps, tokens_every=tape.tokens_every, token_rows=tape.token_rows,
            decode=lambda token: self.loaded.tokenizer.decode([token]), warn=self.warn, update_norm=tape.update_norm,
        )  # fmt: skip
        self.ledger = None
        if config.ledger.every is not None:
            self.ledger = Ledger(
                self.writer, every=config.ledger.every, tokens=config.ledger.tokens, rows=config.ledger.rows, warn=self.warn,
                decode=self.loaded.tokenizer.decode, special=self.loaded.tokenizer.all_special_ids,
            )  # fmt: skip
        with refused_by_trl():
            self.trainer = RunTrainer(
                model=self.loaded.model,
                reward_funcs=list(self.task.reward_funcs),
                args=self.args,
                train_dataset=self.task.train,
                processing_class=self.loaded.tokenizer,
                peft_config=models.lora(config.model.peft),
                control=built(config.control),
                objective=replace(objective_of(self.args), **config.objective),
                recorder=self.recorder,
                ledger=self.ledger,
                correct_at=self.task.correct_at,
                game=self.task.game,
            )
        self.alarms = self._alarms()
        self.trainer.run = self
        self.trainer.failure_directory = directory
        self.trainer.add_callback(_RunCallback(self))
        from transformers.trainer_callback import PrinterCallback, ProgressCallback

        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)

    # --- the whole

    def go(self) -> RunResult:
        if self.resumed is not None:
            self.writer.truncate_after(self.resumed.step)
            state = json.loads((self.resumed.path / "run_state.json").read_text())
            self.best = state["best"]
            if self.alarms is not None and state.get("alarms") is not None:
                self.alarms.load_state(state["alarms"])
        if self.trainer.accelerator.is_main_process:
            self.describe()
        if self.alarms is not None:
            self.trainer.chain = self.alarms.controlled()
        self.progress.start(int(self.args.max_steps))
        previous = signal.signal(signal.SIGINT, self._interrupt)
        try:
            if not self._already_trained():
                self.trainer.train(resume_from_checkpoint=None if self.resumed is None else str(self.resumed.path))
        except BaseException as error:
            self._keep(error)
            raise
        finally:
            signal.signal(signal.SIGINT, previous)
            self.progress.stop()
        self.writer.flush(self.trainer.state.global_step)
        if self.interrupted:
            return RunResult(self.directory, {}, interrupted=True)
        return RunResult(self.directory, self.finish())

    def _already_trained(self) -> bool:
        """Whether the checkpoint holds the last update, planned or stopped at: then only its weights are wanted. (transformers would train one more.)"""
        if self.resumed is None:
            return False
        state = TrainerState.load_from_json(str(self.resumed.path / "trainer_state.json"))
        stopped = self.alarms is not None and self.alarms.stopped is not None
        if not stopped and not 0 < state.max_steps <= state.global_step:
            return False
        self.trainer._load_from_checkpoint(str(self.resumed.path))
        self.trainer.state = state
        return True

    def _keep(self, error: BaseException) -> None:
        """Before a run ends early: why it does, and what the tape still holds in memory, on the disk if it takes it."""
        step = self.trainer.state.global_step
        if isinstance(error, Exception) and self.trainer.accelerator.is_main_process:
            self.writer.append("events", [{"step": step, "level": "error", "kind": type(error).__name__, "message": str(error)}])
        with suppress(TapeError):
            self.writer.flush(step)

    def _interrupt(self, number, frame) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.progress.message("Interrupted: this update is finished and saved, then the run stops. Press Ctrl-C again to stop at once.")

    def warn(self, kind: str, message: str, level: str = "warning") -> None:
        """An event on the tape and in the progress."""
        self.writer.append("events", [{"step": self.trainer.state.global_step, "level": level, "kind": kind, "message": message}])
        self.progress.message(f"{level}: {message}")

    def note_reward_faults(self) -> None:
        """An event for every kind of reward fault when it first appears, and again each time its count has grown tenfold."""
        for kind, count in self.task.reward_faults().items():
            if count >= 10 * self.faults.get(kind, 0.1):
                self.faults[kind] = count
                self.warn("reward-fault", f"{kind}: {count} completions so far could not be scored; they get advantage 0 and teach nothing.")

    # --- what a step brings

    def _alarms(self) -> Alarms | None:
        settings = self.config.alarms
        if not settings.enabled:
            return None
        end = int(self.args.max_steps) if self.args.max_steps > 0 else None
        return Alarms(self.trainer.chain, self.warn, end=end, spent=settings.spent, act=settings.act)

    def watch(self, evaluation: Evaluation | None) -> bool:
        """The alarms see the update that has just ended. True if one of them stops the run."""
        if self.alarms is None:
            return False
        measured = None if evaluation is None else {row["metric"]: (row["value"], row["low"], row["high"]) for row in evaluation.rows}
        step = self.trainer.state.global_step
        stop = self.alarms.see(Seen(step, self.recorder.last if step else {}, self.recorder.pushes if step else (), measured))
        self.trainer.chain = self.alarms.controlled()
        return stop

    def evaluate(self) -> Evaluation:
        """Validation at the current weights, on the tape; a new best model is kept."""
        settings, step = self.config.evaluate, self.trainer.state.global_step
        prompts = min(settings.prompts, len(self.task.validation))
        batch = {"prompts": self.task.validation["prompt"][:prompts]}
        # autocast: the products of the training also where accelerate did not wrap the model itself (peft)
        with self.trainer.sampling(batch), self.trainer.accelerator.autocast():
            found = evaluate(
                self.trainer.accelerator.unwrap_model(self.trainer.model), self.loaded.tokenizer, self.task, prompts=prompts,
                samples=settings.samples, temperature=float(self.args.temperature), max_completion_length=self.args.max_completion_length,
                seed=self.config.seed, batch_size=settings.batch_size, trainer_state=self.trainer.state,
            )  # fmt: skip
        self.writer.append("evals", [{"step": step, **row} for row in found.rows])
        self.writer.append("answers", [{"step": step, **row} for row in found.by_prompt()])
        score = found.value("pass@1")
        self.progress.message(f"step {step}: pass@1 {score:.3f} on {prompts} validation prompts, entropy {found.value('entropy'):.3f} nats")
        if score > self.best["pass@1"]:
            self.best = {"pass@1": score, "step": step}
            self._save_model("best")
        return found

    def save_checkpoint(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Called on the main process with every rank's host state."""
        trainer, step = self.trainer, self.trainer.state.global_step
        trainer.check_weights(trainer._buffered_inputs)

        def write(path: Path) -> None:
            trainer.save_model(str(path), _internal_call=True)
            (path / "training_args.bin").unlink(missing_ok=True)  # a pickle; our configuration is YAML
            trainer._save_optimizer_and_scheduler(str(path))
            trainer._save_rng_state(str(path))
            trainer.state.save_to_json(str(path / "trainer_state.json"))
            for rank, state in states.items():
                checkpoint.save_state(path / host_state_name(rank), dict(state))
            write_json_atomic(path / "run_state.json", {"best": self.best, "alarms": None if self.alarms is None else self.alarms.state()})

        self.writer.flush(step)
        checkpoint.save(self.directory, step, write)

    def _save_model(self, name: str) -> None:
        if not self.trainer.accelerator.is_main_process:
            return
        target, fresh = self.directory / "model" / name, self.directory / "model" / f".new-{name}"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            if self.config.model.peft is not None:  # the adapter for those who want it alone; the folder itself is a whole model
                model.save_pretrained(fresh / "adapter", safe_serialization=True)
                model = copy.deepcopy(model).merge_and_unload()  # a copy, because taking an adapter out again is not exact
            model.save_pretrained(fresh, safe_serialization=True)
            self.loaded.tokenizer.save_pretrained(fresh)
            write_text_atomic(fresh / "README.md", self.card(name))
        except BaseException as error:
            reason = checkpoint.refusal(error, self.directory)
            shutil.rmtree(fresh, ignore_errors=True)
            if reason is None:
                raise
            raise DiskError(f"model: {target} cannot be written: {reason}. Checkpoints and tape stand; make room and resume the run.") from error
        old = self.directory / "model" / f".old-{name}"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    # --- what the run says of itself

    def describe(self) -> None:
        """config.yaml and run.json: resolved configuration, effective options, versions, provenance."""
        write_text_atomic(self.directory / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        path = self.directory / MARK
        before: dict[str, Any] = {}
        if path.is_file():
            with suppress(ValueError):  # a damaged one is written anew
                before = dict(json.loads(path.read_text(encoding="utf-8")))
        dtype = "bfloat16" if self.args.bf16 else str(next(self.trainer.model.parameters()).dtype).removeprefix("torch.")  # of the logits
        self._tell_changes(before)
        record = described(self.trainer) | {
            "preset": self.config.preset,
            "seed": self.config.seed,
            "model": self.config.model.name,
            "task": self.task.describe(),
            "started": before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            "provenance": {key: value.to_dict() for key, value in self.provenance(dtype).items()},
            "recovered_from": before.get("recovered_from", []) + ([self.resumed.step] if self.resumed else []),
            "command": before.get("command", " ".join(["isentrope", *sys.argv[1:]])),
        }
        write_json_atomic(path, record)

    def _tell_changes(self, before: Mapping[str, Any]) -> None:
        """What is not as it was when the run began, and keeps its end from being that of the uninterrupted run bit for bit."""
        here = {**versions(), "threads": torch.get_num_threads()}
        there = {**dict(before.get("versions", {})), "threads": before.get("threads")}
        changed = [f"{key} {there[key]} -> {here[key]}" for key in here if there.get(key) not in (None, here[key])]
        if changed:
            self.progress.message(f"warning: not as when the run began: {', '.join(changed)}. The last bits of its figures may differ.")

    def provenance(self, dtype: str) -> dict:
        books = {} if self.ledger is None else ledger_provenance(self.args.temperature)
        books |= {} if self.task.game is None else turn_provenance(self.task.game.turns, self.args.temperature, dtype)
        books |= {} if self.trainer.forking is None else self.trainer.forking.provenance(self.args.temperature, dtype)
        cutting = None if self.trainer.regeneration is None else self.trainer.regeneration.key
        return provenance(self.args.temperature, dtype, self.trainer.own_head, cutting) | self.eval_provenance(dtype) | books

    def eval_provenance(self, dtype: str) -> dict:
        from isentrope.provenance import Provenance

        exact = Provenance(
            estimator="exact", temperature=float(self.args.temperature), truncation=None, policy="current", mask="completion",
            aggregation="token-mean", unit="nats", dtype=dtype,
        )  # fmt: skip
        return {
            "evals.entropy": exact,
            **{f"answers.{name}": replace(exact, mask=name.replace("entropy", "completion")) for name in ENTROPIES},
            "evals.answer_entropy": Provenance(
                estimator="plug-in", temperature=float(self.args.temperature), truncation=None, policy="current", mask="answers",
                aggregation="prompt-mean", unit="nats", dtype="float64",
            ),
        }  # fmt: skip

    def finish(self) -> dict[str, Any]:
        """Final model, summary and report."""
        trainer = self.trainer
        self.writer.flush(trainer.state.global_step)
        summary = summarise(Tape.read(self.directory), self.best)
        if self.alarms is not None and self.alarms.stopped is not None:
            summary |= {"stopped.by": f"alarm {self.alarms.stopped['by']}", "stopped.step": self.alarms.stopped["step"]}
        if trainer.accelerator.is_main_process:
            write_json_atomic(self.directory / "summary.json", summary)
            self._save_model("final")
            if self.config.report.build:
                from isentrope import report

                try:
                    report.build(self.directory)
                except UserError as error:
                    self.progress.message(f"warning: no page was written: {error} Then: isentrope report {self.directory}")
        return summary

    def card(self, name: str) -> str:
        """The model card: task, chain, figures, versions."""
        figures = summarise(Tape.read(self.directory, skip_damaged=True), self.best) if name == "final" else dict(self.best)
        chain = ", ".join(self.trainer.chain.keys) or "none (plain objective)"
        lines = [
            "---", "library_name: transformers", "tags: [isentrope, reinforcement-learning, grpo]", "---", "",
            f"# {self.config.model.name} after reinforcement fine-tuning ({name})", "",
            f"- task: {self.task.describe()}", f"- objective: {self.trainer.objective}", f"- interventions: {chain}", f"- seed: {self.config.seed}",
            "", "| figure | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in figures.items() if not key.startswith("law.")),
            "", "| package | version |", "|---|---|", *(f"| {key} | {value} |" for key, value in versions().items()), "",
        ]  # fmt: skip
        return "\n".join(lines)


class _RunCallback(TrainerCallback):
    """Evaluations, progress and stopping, after the host has closed its update."""

    def __init__(self, run: Run):
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.run.watch(self.run.evaluate() if self.run.config.evaluate.every is not None else None)

    def on_step_end(self, args, state, control, **kwargs):
        run = self.run
        last = state.global_step >= state.max_steps
        every = run.config.evaluate.every
        evaluation = run.evaluate() if every is not None and (state.global_step % every == 0 or last) else None
        stop = run.watch(evaluation)
        if stop and every is not None and evaluation is None:
            run.evaluate()
        run.progress.step({"step": state.global_step, **run.recorder.last})
        run.note_reward_faults()
        if run.config.tape.flush_every and state.global_step % run.config.tape.flush_every == 0:
            run.writer.flush(state.global_step)
        if run.interrupted or stop:
            control.should_save = True
            control.should_training_stop = True
        return control


def run(config: Config, *, resume: Path | str | None = None, progress: Watcher | None = None) -> RunResult:
    """Trains as `config` says in `config.out`, or goes on with the run in `resume`.

    Raises UserError for a directory that is not empty, in use, or holds no run to resume, and under a launcher of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "isentrope train is one process. On several, start your own script with IsentropeTrainer under torchrun or accelerate (docs/trl.md): "
            "the same chains, surveys over all ranks."
        )
    progress = Silent() if progress is None else progress
    directory = fresh_directory(Path(config.out)) if resume is None else Path(resume)
    if resume is not None and not (directory / MARK).is_file():
        raise UserError(f"{directory} holds no run (no {MARK}), so nothing was computed there. Start one in another directory: isentrope train --out DIR")
    with owned(directory):
        found = None if resume is None else _newest(directory, progress)
        return Run(config, directory, found, progress).go()


def _newest(directory: Path, progress: Watcher) -> checkpoint.Checkpoint | None:
    found = checkpoint.latest(directory)
    if found is None:
        progress.message(f"{directory} has no complete checkpoint; the run starts again from step 0.")
        shutil.rmtree(directory / "tape", ignore_errors=True)
        return None
    for path, reason in found.skipped:
        progress.message(f"warning: checkpoint {path} is left aside: {reason}")
    return found


# --- parts


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """One run at a time writes to a directory; the lock is the kernel's, so that no killed process leaves one behind.

    Raises UserError if another process holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # others: a file system without locks, nothing to hold
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"{directory} is in use: another process is running it. Wait for it, stop it, or choose another --out.") from error
        yield
    finally:
        os.close(handle)


def fresh_directory(directory: Path) -> Path:
    """The directory of a new run, made, empty and writable.

    Raises UserError that says what is in the way.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in directory.iterdir())
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"out: {directory} cannot be a run directory: {error.strerror}. Choose another --out.") from error
    if there:
        way_out = f"continue that run with --resume {directory}" if MARK in there else "empty it"
        raise UserError(f"{directory} is not empty ({', '.join(there[:4])}{', ...' if len(there) > 4 else ''}). Choose another --out, or {way_out}.")
    return directory


def check_prompts(task: tasks.Task, args: GRPOConfig) -> None:
    """Raises UserError if the training prompts do not fill one generation batch: TRL would then train nothing, and not say so."""
    wanted = args.generation_batch_size // args.num_generations
    if len(task.train) < wanted:
        raise UserError(
            f"task {task.name!r} has {len(task.train)} training prompts, and one generation takes {wanted} different ones: "
            f"trl.per_device_train_batch_size x trl.steps_per_generation x processes / trl.num_generations = {args.generation_batch_size} / "
            f"{args.num_generations}. Give more prompts, or lower trl.per_device_train_batch_size."
        )


@contextmanager
def refused_by_trl() -> Iterator[None]:
    """What TRL, transformers or peft refuse of the user's options, as his error."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the trainer refuses these options: {' '.join(str(error).split())}") from error


def trainer_arguments(config: Config, directory: Path) -> GRPOConfig:
    """TRL's options: the user's, and what a run directory needs."""
    own = {
        "output_dir": str(directory),
        "seed": config.seed,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 50,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": config.model.dtype == "auto" and models.bfloat16_is_fast(),  # TRL alone would turn autocast on everywhere
    }
    return GRPOConfig(**(own | dict(config.trl)))


def longest_prompt(task: tasks.Task, loaded: models.LoadedModel) -> int:
    """Tokens of the longest training prompt."""
    return max(len(loaded.tokenizer(text)["input_ids"]) for text in tasks.prompt_texts(task, loaded.tokenizer))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def effective(args: GRPOConfig) -> dict[str, Any]:
    """TRL's options as they stand after its own changes: effective, not requested."""
    return {key: value for key, value in args.to_dict().items() if isinstance(value, str | int | float | bool | list | dict | type(None))}


def described(trainer: IsentropeTrainer) -> dict[str, Any]:
    """What a trainer is, for run.json: versions, objective, chain, options as they stand, machine."""
    return {
        "isentrope": version("isentrope"),
        "versions": versions(),
        "objective": _plain(trainer.objective),
        "control": [{"name": key, **_plain(link)} for key, link in zip(trainer.chain.keys, trainer.chain.links, strict=True)],
        "effective": effective(trainer.args),
        "head": "isentrope" if trainer.own_head else "trl",
        "threads": torch.get_num_threads(),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "processes": trainer.accelerator.num_processes},
    }


def summarise(tape: Tape, best: Mapping[str, float]) -> dict[str, Any]:
    """The run's final figures as a flat object."""
    summary: dict[str, Any] = {}
    steps, evals = tape.steps, tape.evals
    if len(steps):
        rows = steps.sort("step")
        edge = max(1, len(rows) // 20)
        summary |= {
            "steps": int(rows["step"][-1]),
            "seconds": float(rows["seconds"].sum()),
            "tokens": float(rows["tokens"].sum()),
            "entropy.start": float(rows["entropy/mean"][:edge].mean()),
            "entropy.end": float(rows["entropy/mean"][-edge:].mean()),
            "entropy.of": "training responses, first and last twentieth of the updates",
            "reward.start": float(rows["reward/mean"][:edge].mean()),
            "reward.end": float(rows["reward/mean"][-edge:].mean()),
        }
    if len(evals):
        final = evals.filter(evals["step"] == evals["step"].max())
        first = evals.filter(evals["step"] == evals["step"].min())
        for row in final.iter_rows(named=True):
            summary[row["metric"]] = row["value"]
            summary[f"{row['metric']}.low"], summary[f"{row['metric']}.high"] = row["low"], row["high"]
        if first["step"][0] < final["step"][0]:
            summary |= {f"{row['metric']}.start": row["value"] for row in first.iter_rows(named=True)}
            summary |= {"entropy.end": summary["entropy"], "entropy.of": "held-out responses, first and last evaluation"}
        summary["best.pass@1"], summary["best.step"] = best["pass@1"], best["step"]
        summary |= support_figures(tape.answers)
    summary |= ledger_summary(tape.table("ledger"), steps)
    return summary | law_figures(steps, evals)


def _plain(value: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(value), default=str))
