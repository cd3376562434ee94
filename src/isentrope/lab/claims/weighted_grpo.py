"""Two prompts to train on: a rare success and a rare failure, or two coin flips; what the others learn from them."""

from dataclasses import replace

import torch

from isentrope.control.papers.weighted_grpo import WeightedGrpo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, exact, over
from isentrope.lab.pictures import curves
from isentrope.lab.tabular import History, Settings, Task, group_advantage

PAIR, COIN = (0, 1), (2, 3)
SETTINGS = Settings(updates=60, samples=8, rate=2.0)


def related(seed: int) -> Task:
    """Prompts that share what is right, each with its own odds: 0 is solved once in eight, 1 seven times, 2 and 3 half the time, 4 to 15 in between.

    A response is two tokens out of four; the first must be 0. What is learned in the shared part of the table carries over.
    """
    generator = torch.Generator().manual_seed(83 * seed + 1)
    chance = torch.cat([torch.tensor([1 / 8, 7 / 8, 1 / 2, 1 / 2]), 0.1 + 0.6 * torch.rand(12, generator=generator)]).double()
    own = 0.5 * torch.randn(16, 2, 4, 4, generator=generator, dtype=torch.float64)
    own[:, 0, :, 0] = own[:, 0, :, 1:].logsumexp(-1) + (chance / (1 - chance)).log()[:, None]
    return Task(torch.zeros(2, 4, 4, dtype=torch.float64), own, lambda prompt, ids: (ids[:, 0] == 0).double(), sharing=1.0)


def held_out(history: History):
    """Chance of a right answer on the prompts that no arm trained on, along the training."""
    return history["chance"][:, 4:].mean(-1)


def effect_of_lambda() -> float:
    """Largest change of a group-normalised advantage when wrong answers count -5 instead of -0.2, mapped before the normalisation."""
    found = []
    for wrong in (0.2, 5.0):
        reward = torch.tensor([1.0] + [-wrong] * 7, dtype=torch.float64)
        found.append(group_advantage(reward, torch.zeros(8, dtype=torch.long)))
    return float((found[0] - found[1]).abs().max())


def measure(bench: Bench) -> Findings:
    link = WeightedGrpo()
    known = {
        "coin flips": Arm((), link.recipe(), replace(SETTINGS, only=COIN)), "pair": Arm((), link.recipe(), replace(SETTINGS, only=PAIR)),
        "pair, weighted": Arm(link, None, replace(SETTINGS, only=PAIR)), "all prompts": Arm((), link.recipe(), SETTINGS),
    }  # fmt: skip
    arms = trained(bench, related, known, SETTINGS)
    last = {name: torch.tensor([held_out(history)[-1] for history in found]) for name, found in arms.runs.items()}
    lines = {name: (found[0]["update"], [held_out(history) for history in found]) for name, found in arms.runs.items()}
    return Findings(
        (
            over("pair", "held-out reward at the end, weighted pair less two coin flips", (last["pair, weighted"] - last["coin flips"]).numpy()),
            over("weights", "held-out reward at the end, weighted pair less the same pair unweighted", (last["pair, weighted"] - last["pair"]).numpy()),
            over("all", "held-out reward at the end, weighted pair less training on all prompts", (last["pair, weighted"] - last["all prompts"]).numpy()),
            exact("lambda", "change of an advantage when a failure counts 25 times as much before the normalisation, as the text says", effect_of_lambda()),
            exact("wasted", "share of groups of 8 without any signal: pair (1/8, 7/8)", 0.5 * 2 * ((1 / 8) ** 8 + (7 / 8) ** 8)),
            exact("wasted_coin", "the same, coin flips", 2 * 0.5**8),
        ),
        (Picture("Reward on prompts that nobody trained on", curves(lines, x="update", y="expected reward"), "Mean over seeds, 95 % intervals."),),
        ("The printed order maps outcomes to +1 and -lambda before a normalisation that takes any such map out again; the weights act here after it.",),
    )


CLAIM = Claim(
    slug="weighted-grpo",
    title="Beyond Variance: Prompt-Efficient RLVR via Rare-Event Amplification and Bidirectional Pairing",
    sentence="A prompt with rare successes and one with rare failures, both amplified, teach more than the two prompts of highest variance.",
    figure="AIME25 Pass@8 16.8 (two of highest variance) and 22.2 (pair); AMC23 Pass@64 94.0 and 97.0 (Qwen2.5-Math-7B)",
    source="abstract of arXiv 2602.03452 and a note on its method",
    ours="Sixteen prompts that share what is right; two are trained on (solved 1 and 7 times in 8, or half the time each), twelve are held out.",
    scale="tabular policy, 16 prompts, 2 tokens out of 4, 8 samples, 60 updates",
    minutes=0.4,
    measure=measure,
    seeds=20,
    expects=(
        Expect("pair", "the weighted pair gives more held-out reward than two coin flips", low=0.0),
        Expect("weights", "the weights add to what the pair gives", low=0.0),
        Expect("lambda", "lambda changes the advantages as printed", low=1e-3),
    ),
    untested="questions that share methods rather than a table",
)
