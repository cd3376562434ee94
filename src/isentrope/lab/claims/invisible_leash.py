"""Whether reinforcement learning loses more support than it finds, and whether path entropy can rise while answer entropy falls."""

import math

import numpy as np
import torch

from isentrope.control.objectives import Objective
from isentrope.explain.tilt import entropy_parts
from isentrope.explain.world import SoftmaxBandit
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, exact, over
from isentrope.lab.pictures import curves
from isentrope.lab.tabular import History, Settings, Task, task, train
from isentrope.lab.tabular import exact as known
from isentrope.measure.answers import Support, detectable_mass

BUDGET = 4096  # samples per prompt, the paper's least: a correct answer counts as within reach if so many find it 19 times in 20
SMALL = 256  # a budget at which half of the prompts are out of the base's reach
SETTINGS = Settings(updates=150, samples=8, rate=8.0, inner=2, every=15)
PROMPTS, RIGHT = 48, 4


def measure(bench: Bench) -> Findings:
    problems, few, completions, gained, histories = [], [], [], [], []
    for seed in range(bench.seeds):
        bench.tell(f"prompts that share a policy, seed {seed + 1} of {bench.seeds}")
        world, right = prompts(seed)
        history = train(world, seed=seed, objective=Objective.named("grpo"), settings=SETTINGS)
        before, after = known(world), known(history.world)
        problems.append(counted(before.chance, after.chance))
        few.append(counted(before.chance, after.chance, SMALL))
        one, two = (torch.cat([found.answers[q, right[q]] for q in range(PROMPTS)]) for found in (before, after))
        completions.append(counted(one, two))
        gained.append(history["reward"][-1] - history["reward"][0])
        histories.append(history)
    many = decoupled(torch.float64)
    return Findings(
        (
            over("lost", "net change of support, (found - lost) / all, prompts", [item.nscr for item in problems]),
            over("kept", "share of the base's support that is kept, prompts", [item.srr for item in problems]),
            over("found", "share of the new support that the base lacked, prompts", [item.ndr for item in problems]),
            over("lost-small", f"net change of support at a budget of {SMALL}, prompts", [item.nscr for item in few]),
            over("lost-answers", "net change of support, single correct answers", [item.nscr for item in completions]),
            over("kept-answers", "share of the base's support that is kept, single correct answers", [item.srr for item in completions]),
            over("gain", "expected reward (pass@1), after less before", gained),
            exact("path", "path entropy, after less before, where the right answer has 16 ways and the wrong one a single way", many["path"], "nats"),
            exact("answer", "answer entropy there, after less before", many["answer"], "nats"),
        ),
        (Picture("pass@k before and after", passes(histories), "Mean over seeds, 95 % intervals; exact for every k."),),
        (
            f"Within reach at a budget of {BUDGET}: probability above {detectable_mass(BUDGET):.2g}, the mass that so many samples miss once in 20 times. "
            "Probabilities are exact, so no item flips by sampling.",
            "Paths and answers: exact policy gradient on one state with 17 actions, half of the probability on each answer at the start.",
        ),
    )


def prompts(seed: int) -> tuple[Task, torch.Tensor]:
    """Prompts that share one table, each with a few correct answers out of 256, among them rare ones."""
    generator = torch.Generator().manual_seed(17 * seed + 3)
    right = torch.stack([torch.randperm(256, generator=generator)[:RIGHT] for _ in range(PROMPTS)])
    table = torch.zeros(PROMPTS, 256, dtype=torch.float64).scatter(1, right, 1.0)
    place = 4 ** torch.arange(3, -1, -1)

    def pay(prompt, ids):
        return table[prompt, (ids * place).sum(-1)]

    world = task(pay, seed, prompts=PROMPTS, length=4, vocab=4, sharpness=1.3, sharing=1.0)
    return world, right


def counted(before: torch.Tensor, after: torch.Tensor, budget: int = BUDGET) -> Support:
    """Items within reach of both, of one, of none."""
    reach = detectable_mass(budget)
    one, two = before > reach, after > reach
    return Support(int((one & two).sum()), int((~one & two).sum()), int((one & ~two).sum()), int((~one & ~two).sum()))


def decoupled(dtype: torch.dtype) -> dict[str, float]:
    """Ascent of the exact gradient: answer 0 has one way, answer 1 sixteen, each answer half of the probability."""
    logits = torch.cat([torch.tensor([math.log(16.0)], dtype=dtype), torch.zeros(16, dtype=dtype)])[None]
    reward = torch.cat([torch.zeros(1, dtype=dtype), torch.ones(16, dtype=dtype)])[None]
    world = SoftmaxBandit(logits, reward, torch.ones(1, dtype=dtype))
    start = entropy_parts(world.log_probs, reward > 0)
    for _ in range(2000):
        world = world.moved(2.0 * world.gradient)
    end = entropy_parts(world.log_probs, reward > 0)
    return {"path": float(end.whole - start.whole), "answer": float(end.between - start.between)}


def passes(histories: list[History]) -> dict:
    """pass@k of the policies at the start and at the end, along ln k."""
    budgets = 2 ** np.arange(0, 14)
    before = [np.array([known(prompts(seed)[0]).passed(int(k)) for k in budgets]) for seed in range(len(histories))]
    after = [np.array([known(history.world).passed(int(k)) for k in budgets]) for history in histories]
    return curves({"before": (np.log2(budgets), before), "after": (np.log2(budgets), after)}, x="samples k, powers of two", y="pass@k")


CLAIM = Claim(
    slug="invisible-leash",
    title="The Invisible Leash: Why RLVR May Not Escape Its Origin",
    sentence="Reinforcement learning with verifiable rewards loses more of the base model's support than it gains, pass@1 rises nevertheless, "
    "and path entropy may rise while answer entropy falls.",
    figure="support kept 0.93-0.99, newly found at most 0.04, net change -0.01 to -0.06 (1.5B to 14B models, 4096 to 8192 samples); token entropy 0.44 -> 0.52 "
    "with lower answer entropy",
    source="two third-party summaries that agree; the paper's body was not read",
    ours="Forty-eight prompts that share one table, four correct answers each out of 256, plain GRPO; what is within reach of 4096 samples before "
    "and after. Then one state whose right answer has sixteen ways and whose wrong one has one.",
    scale="tabular policy, 48 prompts, 150 generations of 384 responses, 2 steps each; exact probabilities",
    minutes=4.0,
    measure=measure,
    seeds=12,
    expects=(
        Expect("lost", "more prompts leave the support than enter it", high=0.0),
        Expect("kept", "at least 0.9 of the support is kept", low=0.9),
        Expect("gain", "pass@1 rises", low=0.0),
        Expect("path", "path entropy rises where the right answer has many ways", low=0.0),
        Expect("answer", "answer entropy falls there", high=0.0),
    ),
    untested="models of other families; perplexity of other models' traces",
)
