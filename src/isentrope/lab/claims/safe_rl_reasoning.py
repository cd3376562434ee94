"""Learning to refuse by reward or by imitation, on prompts that share a table with tasks: what each does to the tasks, at equal safety."""

from dataclasses import replace

import numpy as np
import torch

from isentrope.control.objectives import Objective
from isentrope.control.stages import Chain
from isentrope.control.step import Progress, RowRng
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.pictures import bands
from isentrope.lab.tabular import Exact, History, Settings, Task, exact, rolled, scored, updated

HARMFUL = tuple(range(8))
SETTINGS = Settings(updates=80, samples=16, rate=4.0, only=HARMFUL)
REFUSE = 0


def two_contexts(seed: int) -> Task:
    """Prompts 0 to 7 are harmful, right is to refuse (first token 0); 8 to 15 are tasks with an answer of two tokens, solved about half the time."""
    generator = torch.Generator().manual_seed(109 * seed + 1)
    own = 0.7 * torch.randn(16, 3, 4, 4, generator=generator, dtype=torch.float64)
    own[:, 0, :, REFUSE] -= 0.5
    gold = 1 + torch.randint(3, (16, 2), generator=generator)
    tasks = torch.arange(8, 16)
    own[tasks, 0, :, gold[tasks, 0]] += 2.0
    for before in range(4):
        own[tasks, 2, before, gold[tasks, 1]] += 2.0

    def pay(prompt, ids):
        solved = (ids[:, [0, 2]] == gold[prompt]).all(-1)
        return torch.where(prompt < 8, ids[:, 0] == REFUSE, solved).double()

    return Task(torch.zeros(3, 4, 4, dtype=torch.float64), own, pay)


def figures(found: Exact) -> dict[str, float]:
    return {
        "reward": float(found.chance[:8].mean()), "tasks": float(found.chance[8:].mean()),
        "harmful": float(found.by_prompt[:8].mean()), "entropy": float(found.by_prompt[8:].mean()),
    }  # fmt: skip


def learned(world: Task, seed: int, *, imitate: bool) -> History:
    """On harmful prompts only: by reward, or by imitating refusals that follow a template. `reward` is safety here, `entropy` that of tasks."""
    generator = torch.Generator().manual_seed(13 * seed + 1)
    objective = Objective.named("grpo") if not imitate else Objective.named("reinforce")
    rows = []
    for update in range(SETTINGS.updates + 1):
        if update % SETTINGS.every == 0:
            rows.append((update, figures(exact(world))))
        rng = RowRng(seed=seed, step=update)
        if not imitate:
            rollouts, prompt = rolled(world, Chain(), (), SETTINGS, Progress(update, SETTINGS.updates), generator, rng)
        else:
            prompt = torch.tensor(HARMFUL).repeat_interleave(SETTINGS.samples)
            ids = torch.zeros(len(prompt), world.length, dtype=torch.long)
            ids[:, 1:] = template(len(prompt), world.length - 1, generator)
            rollouts = scored(world, prompt, ids, Chain(), update * len(prompt), prompt)
            rollouts = replace(rollouts, advantage=torch.ones(len(prompt), 1, dtype=torch.float64))
        world, _ = updated(world, rollouts, prompt, Chain(), (), objective, Progress(update, SETTINGS.updates), rng, SETTINGS.rate)
    table = {name: np.array([row[name] for _, row in rows]) for name in rows[0][1]}
    return History(world, table | {"update": np.array([at for at, _ in rows], dtype=float)})


def template(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """What follows a refusal in the demonstrations: a template, token 1, now and then another."""
    other = torch.rand(rows, length, generator=generator) < 0.1
    return torch.where(other, torch.randint(4, (rows, length), generator=generator), 1)


def measure(bench: Bench) -> Findings:
    runs: dict[str, list[History]] = {"RL": [], "SFT": []}
    for seed in range(bench.seeds):
        bench.tell(f"seed {seed + 1} of {bench.seeds}")
        world = two_contexts(seed)
        runs["RL"].append(learned(world, seed, imitate=False))
        runs["SFT"].append(learned(world, seed, imitate=True))
    level = 0.8
    at = {name: {what: np.array([history.at(level, what) for history in found]) for what in ("tasks", "entropy", "harmful")} for name, found in runs.items()}
    start = {what: np.array([history[what][0] for history in runs["RL"]]) for what in ("tasks", "entropy", "harmful")}
    return Findings(
        (
            over("tasks", f"task accuracy where safety first reaches {level}, RL less SFT", at["RL"]["tasks"] - at["SFT"]["tasks"]),
            over("harmful", "entropy on harmful prompts there, RL, less the start", at["RL"]["harmful"] - start["harmful"], "nats"),
            over("kept", "entropy on tasks there, RL less SFT", at["RL"]["entropy"] - at["SFT"]["entropy"], "nats"),
            over("rl", "task accuracy there, RL, less the start", at["RL"]["tasks"] - start["tasks"]),
            over("sft", "task accuracy there, SFT, less the start", at["SFT"]["tasks"] - start["tasks"]),
        ),
        (
            Picture("Tasks as safety rises", bands(runs, "reward", "tasks", x="safety", y="task accuracy"), "Mean over seeds, 95 % intervals."),
            Picture("Entropy on tasks as safety rises", bands(runs, "reward", "entropy", x="safety", y="nats"), "Both learn on harmful prompts only."),
        ),
    )


CLAIM = Claim(
    slug="safe-rl-reasoning",
    title="Beyond SFT: Reinforcement Learning for Safer Large Reasoning Models with Better Reasoning Ability",
    sentence="Safety learned by reward keeps reasoning better than safety learned by imitation, and lowers entropy on harmful prompts rather than everywhere.",
    figure="qualitative; a summary quotes +12.7 % average safety",
    source="abstract of arXiv 2512.01848 and public summaries; method (inferred)",
    ours="Harmful prompts and tasks share a table; both arms learn on harmful prompts only, and are compared where 80 % of harmful prompts are refused.",
    scale="tabular policy, 16 prompts, 3 tokens out of 4, 16 samples, 80 updates",
    minutes=0.4,
    measure=measure,
    seeds=16,
    expects=(
        Expect("tasks", "RL keeps more task accuracy than SFT at equal safety", low=0.0),
        Expect("harmful", "RL lowers entropy on harmful prompts", high=0.0),
        Expect("kept", "RL keeps more entropy on tasks than SFT at equal safety", low=0.0),
    ),
    untested="reflection words, which need text; demonstrations closer to the model's own text than a template",
)
