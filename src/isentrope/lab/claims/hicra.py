"""A plan and its execution: does amplifying the planning token teach more than amplifying as many others."""

import torch

from isentrope.control.papers.hicra import Hicra
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings, Task

PLANS = ((4,), (5,))
SETTINGS = Settings(updates=100, samples=16, rate=8.0)


def planned(seed: int) -> Task:
    """Four tokens out of six: a plan (4 or 5, or none), then three of execution, which a good base model already does mostly right once the plan is."""
    generator = torch.Generator().manual_seed(101 * seed + 7)
    own = 0.7 * torch.randn(8, 4, 6, 6, generator=generator, dtype=torch.float64)
    own[:, 1:, :, 4:] -= 4.0  # planning tokens stand at the start
    plan = 4 + torch.randint(2, (8,), generator=generator)
    gold = torch.randint(4, (8, 3), generator=generator)
    before = torch.cat([plan[:, None], gold[:, :2]], dim=1)
    prompts = torch.arange(8)
    for at in range(3):
        own[prompts, at + 1, before[:, at], gold[:, at]] += 2.5

    def pay(prompt, ids):
        return ((ids[:, 0] == plan[prompt]) & (ids[:, 1:] == gold[prompt]).all(-1)).double()

    return Task(torch.zeros(4, 6, 6, dtype=torch.float64), own, pay, sharing=0.0)


def measure(bench: Bench) -> Findings:
    link = Hicra(grams=PLANS)
    arms = trained(bench, planned, {"GRPO": Arm(objective=link.recipe()), "HICRA": Arm(link), "on random tokens": Arm(placebo(link))}, SETTINGS)
    return Findings(
        (
            over("reward", "mean reward over the training, HICRA less GRPO", arms.area("HICRA", "GRPO")),
            over("placebo", "mean reward over the training, HICRA less the same amplification of random tokens", arms.area("HICRA", "on random tokens")),
            over("entropy", "entropy at equal reward, HICRA less GRPO", arms.matched("HICRA", "GRPO"), "nats"),
        ),
        (learning(arms.runs),),
    )


CLAIM = Claim(
    slug="hicra",
    title="Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning",
    sentence="Amplifying the advantage of planning tokens beats GRPO and the same amplification of random tokens.",
    figure="AIME24, GRPO 68.5 and HICRA 73.1 (Qwen3-4B-Instruct), 24.9 and 31.0 (Qwen3-4B-Base); random n-grams clearly worse",
    source="arXiv 2509.03646, tables of section 4 and the reading note of its placebo",
    ours="A first token that plans and three that execute, which the model mostly can once the plan is right; alpha 0.2 on the planning tokens.",
    scale="tabular policy, 8 prompts, 4 tokens out of 6, 16 samples, 100 updates",
    minutes=0.8,
    measure=measure,
    seeds=10,
    expects=(
        Expect("reward", "HICRA has more reward over the training than GRPO", low=0.0),
        Expect("placebo", "it has more than with as many random tokens amplified", low=0.0),
    ),
    untested="how strategic phrases are found, and their entropy over a corpus",
)
