"""What interventions cost: the time of a step under each against the time of the same step without, and against its bill.

    OMP_NUM_THREADS=1 python bench/control_cost.py --all                          # every registered name; writes docs/control-cost.md
    OMP_NUM_THREADS=1 python bench/control_cost.py --chains                       # chains of four that change only advantage, clip or weight
    OMP_NUM_THREADS=1 python bench/control_cost.py --names clip-cov hapo --rounds 30

Several trainers in one process take their steps in turn at learning rate 0 and sample the same completions (bench/interleaved.py); each measures what
`isentrope train` records of every token. Two have an empty chain: time is divided by their mean, and the second over the first shows what this machine
tells apart. A unit is one generation with all its updates; figures are medians over units of paired ratios with 95 % bootstrap intervals. Every name
runs in its embedded setting. Seconds are those of the thread that steps (`--clock cpu`), so other processes hardly matter; `--names ... --rows FILE`
measures in parts.

The bill is what `isentrope papers --json` states (src/isentrope/entry.py), in seconds measured in the same unit: a forward is the host's own pass without
gradient over the generation batch; a generated token costs what a decoding step of as many rows costs. Links share a pass. A link that changes
temperatures pays for it at every decoding step, and then samples at the base's: its samples too are those of the others. A link that re-generates
samples other completions, in two calls: its bill is their decoding steps in the place of the base's, and as parts of a forward (by positions) the pass
that scores the first responses and what the second call reads again; its tokens are those of the second call.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from interleaved import OneStep, Turns, median_interval, rewards, train, trainer
from trl import GRPOTrainer

from isentrope import config as configuration
from isentrope.config import Config
from isentrope.control.registry import registry
from isentrope.control.stages import Chain, Fork, Intervention, Sample, chain, stages_of
from isentrope.entry import cost
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, MaxProb, TargetProb
from isentrope.train.head import completion_signals
from isentrope.train.trl import IsentropeTrainer

DOCS = Path(__file__).parents[1] / "docs" / "control-cost.md"
CHAINS: Mapping[str, tuple[str, ...]] = {
    "weights": ("position-shaping", "clip-higher", "clip-cov", "forking-tokens"),
    "regimes": ("hicra", "position-shaping", "dispo", "steer"),
    "agentic": ("hicra", "position-shaping", "aepo-agentic", "clip-cov"),
    "three weights": ("hicra", "clip-cov", "forking-tokens", "steer"),
}
"""Chains of four that change only advantage, clip or weight, and need no pass of the policy that sampled."""
LAYOUTS: Mapping[str, tuple[str, Sequence[str]]] = {
    "one slice": ("demo", ()),
    "two slices": ("demo", ("trl.per_device_train_batch_size=64", "trl.gradient_accumulation_steps=2", "trl.steps_per_generation=2")),
    "eight updates": ("control-check", ()),
}
"""Preset and settings: an update that is one slice of 128 rows; the same in two slices; eight updates of 32 rows per generation."""
RECORDED = (Entropy(), Discriminant(), ExpectedDiscriminant(), TargetProb(), MaxProb())
"""What `isentrope train` records of every token unless told otherwise."""
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
AGAIN = "empty chain again"
GROUP = 6  # links measured side by side


@dataclass(frozen=True)
class Row:
    """One chain: step time over that of an empty chain, what the bill says of it, and measured over billed time; each a median with its interval.
    `extra` and `billed`: seconds per unit beside the empty chain's."""

    name: str
    layout: str
    units: int
    measured: tuple[float, float, float]
    bill: tuple[float, float, float]
    ratio: tuple[float, float, float]
    extra: float
    billed: float
    forwards: int
    tokens: float
    same_samples: bool
    scored: float = 0.0  # forwards over a part of the batch


class Meter:
    """Off the clock, after every step of the trainer with an empty chain: what the host's forward without gradient over its generation batch takes."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.trainer: IsentropeTrainer | None = None
        self.forwards: list[float] = []

    def __call__(self) -> None:
        began = self.clock()
        with torch.no_grad():
            for part in self.trainer._buffered_inputs:
                ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
                mask = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
                completion_signals(self.trainer.model, ids, mask, part["completion_mask"].bool(), self.trainer.signals)
        self.forwards.append(self.clock() - began)


class Extra:
    """Notes rows, decoding steps and tokens of what one trainer generates beside its batch: everything of a generation that is rewarded after it. What
    is probed before the training is no part of a unit."""

    def __init__(self, trainer: IsentropeTrainer):
        self.calls: list[tuple[int, int, int, int]] = []  # step, rows, decoding steps, tokens
        generate, reward = trainer._generate_and_score_completions, trainer._calculate_rewards
        seen: list[int | None] = [None]  # rewarded batches of the generation that runs

        def generated(inputs):
            seen[0] = 0
            try:
                return generate(inputs)
            finally:
                seen[0] = None

        def rewarded(inputs, prompts, completions, completion_ids_list):
            lengths = [len(ids) for ids in completion_ids_list]
            if seen[0]:
                self.calls.append((trainer.state.global_step, len(lengths), max(lengths), sum(lengths)))
            seen[0] = None if seen[0] is None else seen[0] + 1
            return reward(inputs, prompts, completions, completion_ids_list)

        trainer._generate_and_score_completions, trainer._calculate_rewards = generated, rewarded


class Calls:
    """Notes what every call of the sampler of one trainer reads and samples, and per step how many positions a pass of the host's has."""

    def __init__(self, trainer: IsentropeTrainer):
        self.trainer = trainer
        self.calls: list[tuple[int, int, int, int, int]] = []  # step, rows, width of what is read, decoding steps, tokens
        self.positions: dict[int, int] = {}
        cutting = trainer.regeneration
        sample = trainer._generate_single_turn if cutting is None else cutting._sampled

        def sampled(prompt_ids, *rest):
            found = sample(prompt_ids, *rest)
            ids = found[0] if cutting is None else found
            lengths = [len(row) for row in ids]
            self.calls.append((trainer.state.global_step, len(ids), max(map(len, prompt_ids)), max(lengths), sum(lengths)))
            return found

        if cutting is None:
            trainer._generate_single_turn = sampled
        else:
            cutting._sampled = sampled
        pack = trainer._prepare_inputs

        def prepared(batch):
            found = pack(batch)
            self.positions[trainer.state.global_step] = sum(part["prompt_ids"].numel() + part["completion_ids"].numel() for part in trainer._buffered_inputs)
            return found

        trainer._prepare_inputs = prepared

    def decoding(self, units: int, updates: int, step: Mapping[int, float]) -> np.ndarray:
        """Seconds of all decoding steps, by unit."""
        found = np.zeros(units)
        for at, rows, _, steps, _ in self.calls:
            found[at // updates] += steps * step[rows]
        return found

    def read_again(self, units: int, updates: int) -> np.ndarray:
        """By unit, as parts of a forward over the generation batch: scoring the first call's responses, and reading what the second goes on from."""
        found = np.zeros(units)
        by_unit: dict[int, list[tuple[int, int, int, int]]] = {}
        for at, rows, width, steps, _ in self.calls:
            by_unit.setdefault(at // updates, []).append((at, rows, width, steps))
        for unit, calls in by_unit.items():
            if len(calls) == 2:
                (at, rows, width, steps), (_, late, wide, _) = calls
                found[unit] = (rows * (width + steps) + late * (wide - width)) / self.positions[at]
        return found

    def second_tokens(self, units: int, updates: int) -> float:
        """Tokens of all calls but the first of a unit, per unit."""
        seen, total = set(), 0
        for at, _, _, _, tokens in self.calls:
            total += tokens if at // updates in seen else 0
            seen.add(at // updates)
        return total / units


def decoding_step(base: GRPOTrainer, rows: Sequence[int], clock: Callable[[], float], steps: int = 24) -> dict[int, float]:
    """Seconds of one decoding step of `rows` rows: the least of three generations of `steps` tokens each, through TRL's own call."""
    found, kept = {}, base.generation_config
    ids = [list(base._tokenizer(base.train_dataset[at]["prompt"])["input_ids"]) for at in range(max(rows, default=0))]
    for count in rows:
        base.generation_config = type(kept).from_dict(kept.to_dict() | {"max_new_tokens": steps, "min_new_tokens": steps})
        seconds = []
        for _ in range(3):
            began = clock()
            GRPOTrainer._generate_single_turn(base, ids[:count], None, {}, 1)
            seconds.append(clock() - began)
        found[count] = min(seconds) / steps
    base.generation_config = kept
    return found


def at_base_temperature(link: Intervention) -> Intervention:
    """A link that sets temperatures works them out as ever, and then samples at the base's."""
    if not isinstance(link, Sample):
        return link
    kind = type(link)

    def temperature(self, logits, base, state):
        kind.temperature(self, logits, base, state)
        return torch.full((len(logits),), base, device=logits.device)

    made = object.__new__(type(kind.__name__, (kind,), {"temperature": temperature, "name": link.name}))
    made.__dict__.update(link.__dict__)
    return made


def measure(chains: Mapping[str, Chain], layout: str, *, units: int, clock: str, warmup: int = 2) -> list[Row]:
    """Every chain against two empty ones, side by side."""
    preset, sets = LAYOUTS[layout]
    config = configuration.load(preset=preset, sets=list(sets))
    updates = updates_per_generation(config)
    everyone = {"": Chain(), AGAIN: Chain(), **chains}
    turns, folder, meter = Turns(len(everyone)), Path(tempfile.mkdtemp()), Meter(CLOCKS[clock])
    clocks = [OneStep(turns, who, meter if who == 0 else None, CLOCKS[clock]) for who in range(len(everyone))]
    trainers = [
        trainer(IsentropeTrainer, config, folder / str(who), one, steps=(units + warmup) * updates, signals=RECORDED, control=control)
        for who, (one, control) in enumerate(zip(clocks, everyone.values(), strict=True))
    ]
    meter.trainer = trainers[0]
    extras, calls = [Extra(one) for one in trainers], [Calls(one) for one in trainers]
    train(trainers, turns)
    step = decoding_step(trainers[0], sorted({call[1] for one in (*extras, *calls) for call in one.calls}), CLOCKS[clock])
    times = [np.array(one.times).reshape(-1, updates).sum(1)[warmup:] for one in clocks]
    forward = np.array(meter.forwards).reshape(-1, updates)[warmup:, 0]
    rows = []
    for who, (name, control) in enumerate(everyone.items()):
        if not name:
            continue
        base = times[0] if name == AGAIN else (times[0] + times[1]) / 2
        forwards = billed_forwards(control, config)
        generated, tokens = np.zeros(units + warmup), 0.0
        for at, count, steps, found in extras[who].calls:
            generated[at // updates] += steps * step[count]
            tokens += found / (units + warmup)
        scored = np.zeros(units)
        if trainers[who].regeneration is not None:
            generated += calls[who].decoding(units + warmup, updates, step) - calls[0].decoding(units + warmup, updates, step)
            tokens += calls[who].second_tokens(units + warmup, updates)
            scored = calls[who].read_again(units + warmup, updates)[warmup:]
        bill = (forwards + scored) * forward + generated[warmup:]
        rows.append(
            Row(
                name, layout, units, median_interval(times[who] / base), median_interval((base + bill) / base), median_interval(times[who] / (base + bill)),
                median(times[who] - base), median(bill), forwards, tokens, rewards(trainers[who]) == rewards(trainers[0]),
                float(scored.mean()),
            )
        )  # fmt: skip
    return rows


def updates_per_generation(config: Config) -> int:
    """Optimiser steps from one generation to the next."""
    options = config.trl
    return options["steps_per_generation"] * options["num_iterations"] // options["gradient_accumulation_steps"]


def billed_forwards(control: Chain, config: Config) -> int:
    """Forwards over the generation batch per unit that the entries of its links state; links share a pass."""
    bills = [cost(link) for link in control.links]
    surveys = config.trl["gradient_accumulation_steps"] > 1 and any(bill["forwards_per_update"] for bill in bills)
    used_once = config.trl["gradient_accumulation_steps"] % (config.trl["steps_per_generation"] * config.trl["num_iterations"]) == 0
    remembers = used_once and any(bill["forwards_to_remember"] for bill in bills)
    return max((bill["forwards_per_generation"] for bill in bills), default=0) + surveys * config.trl["num_iterations"] + remembers


# --- the table


def shown(value: Sequence[float]) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def line(row: Row) -> str:
    whole = [f"{row.forwards} forward{'s' * (row.forwards != 1)}"] * bool(row.forwards)
    bill = ", ".join([*whole, *[f"{row.scored:.2f} of a forward"] * bool(row.scored), *[f"{row.tokens:.0f} tokens"] * bool(row.tokens)]) or "nothing"
    return (
        f"| {row.name} | {bill} | {1000 * row.billed:.0f} ms | {1000 * row.extra:+.0f} ms | x {row.bill[0]:.3f} | x {shown(row.measured)} "
        f"| {shown(row.ratio)} | {'yes' if row.same_samples else 'no'} |\n"
    )


HEAD = "| chain | bill | billed | measured | step by the bill | step measured | measured / bill | same rewards |\n|---|---|---|---|---|---|---|---|\n"


def write(rows: Sequence[Row], path: Path) -> None:
    """The tables of all layouts, in Markdown."""
    about = __doc__.split("\n\n", 2)[2].strip()  # type: ignore[union-attr]
    text = f"# What interventions cost\n\n`OMP_NUM_THREADS=1 python bench/control_cost.py --all --chains --rounds {min(row.units for row in rows)}`. {about}\n"
    for layout, (preset, sets) in LAYOUTS.items():
        found = [row for row in rows if row.layout == layout]
        if not found:
            continue
        noise = [row.ratio[0] for row in found if row.name == AGAIN]
        text += f"\n## {layout.capitalize()}\n\nPreset `{preset}`{''.join(f', `{item}`' for item in sets)}; {min(row.units for row in found)} units or more. "
        text += f"An empty chain over an empty chain: {', '.join(f'{value:.3f}' for value in noise)}.\n\n{HEAD}"
        text += "".join(line(row) for row in sorted(found, key=lambda row: row.name) if row.name != AGAIN)
    path.write_text(text, encoding="utf-8")


def remembered(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path is not None and path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--chains", action="store_true")
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--layout", choices=list(LAYOUTS), default=None, help="of --names and --all: two slices; of --chains: one slice and eight updates")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=Path, help="JSON lines: rows of earlier calls, to which these are added")
    parser.add_argument("--out", type=Path, help="where the table goes; with --all and --chains docs/control-cost.md")
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="cpu: of the thread that steps, torch on one thread; wall: needs a quiet machine")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.clock == "cpu" and os.environ.get("OMP_NUM_THREADS") != "1":  # torch.set_num_threads would not reach the trainers' threads
        parser.error("the clock cpu counts one thread: set OMP_NUM_THREADS=1, or take --clock wall on a quiet machine")
    names = [name for name, kind in registry().items() if not isinstance(kind(), Fork)] if options.all else options.names  # no games here
    jobs: list[tuple[dict[str, Chain], str]] = []
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        jobs.append(({f"`{name}`": chain(at_base_temperature(registry()[name]().embedded())) for name in group}, options.layout or "two slices"))
    if options.chains:
        built = {", ".join(f"`{name}`" for name in links): chain(*(registry()[name]().embedded() for name in links)) for links in CHAINS.values()}
        assert all({"advantage", "clip", "weight", "survey", "update"} >= set(stages_of(link)) for made in built.values() for link in made.links)
        jobs += [(built, layout) for layout in ([options.layout] if options.layout else ["one slice", "eight updates"])]
    rows = [Row(**entry) for entry in remembered(options.rows)]
    for chains, layout in jobs:
        found = measure(chains, layout, units=options.rounds, clock=options.clock)
        print(HEAD + "".join(map(line, found)), flush=True)
        rows = [row for row in rows if row.name == AGAIN or all((row.name, row.layout) != (new.name, new.layout) for new in found)] + found
        if options.rows is not None:
            options.rows.write_text("".join(json.dumps(row.__dict__) + "\n" for row in rows))
        out = options.out or (DOCS if options.all or options.chains else None)
        if out is not None:
            write(rows, out)


if __name__ == "__main__":
    main()
