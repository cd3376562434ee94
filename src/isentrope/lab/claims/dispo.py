"""Four clip windows, with sixteen optimiser steps per generation, so that ratios leave 1; and what the lower window of wrong answers does to length."""

import warnings
from contextlib import contextmanager

import torch

from isentrope.control.objectives import Objective
from isentrope.control.papers.dispo import Dispo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import forks
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings, Task

SETTINGS = Settings(updates=20, samples=16, rate=20.0, inner=16, every=4)


def with_end(seed: int) -> Task:
    """Answers of at most six tokens out of four, token 3 ends them: right are those of four tokens or more that hold two 1s."""
    generator = torch.Generator().manual_seed(41 * seed + 9)
    own = 0.5 * torch.randn(8, 6, 4, 4, generator=generator, dtype=torch.float64)

    def pay(prompt, ids):
        text = (ids == 3).long().cumsum(-1) == 0
        return ((text.sum(-1) >= 3) & ((ids == 1) & text).sum(-1).ge(2)).double()

    return Task(torch.zeros(6, 4, 4, dtype=torch.float64), own, pay, end=3, sharing=0.0)


@contextmanager
def quiet():
    """The default window of wrong answers reaches 101, of which the class warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure(bench: Bench) -> Findings:
    tight, faded = Dispo(right_high=0.2), Dispo(wrong_low=0.0)
    known = {
        "CISPO": Arm(objective=Objective.named("cispo")), "DAPO": Arm(objective=Objective.named("dapo")), "DISPO": Arm(Dispo()),
        "DISPO, tight for right answers": Arm(tight),
    }  # fmt: skip
    with quiet():
        arms = trained(bench, forks, known, SETTINGS)
        ended = trained(bench, with_end, {"weight fades (1)": Arm(Dispo(wrong_low=1.0)), "weight held (0)": Arm(faded)}, SETTINGS)
    gap, shorter = arms.matched("DISPO", "DISPO, tight for right answers"), ended.end("weight held (0)", "weight fades (1)", "length")
    return Findings(
        (
            over("cispo", "reward at the end, DISPO less CISPO", arms.end("DISPO", "CISPO")),
            over("dapo", "reward at the end, DISPO less DAPO", arms.end("DISPO", "DAPO")),
            over("entropy", "entropy at equal reward, wide upper window of right answers less tight", gap, "nats"),
            over("length", "length at the end, lower window of wrong answers held at 1 less fading", shorter, "tokens"),
        ),
        (
            learning(arms.runs),
            learning(ended.runs, "length", title="Length with an end token", y="tokens"),
        ),
    )  # fmt: skip


CLAIM = Claim(
    slug="dispo",
    title="DISPO: Enhancing Training Efficiency and Stability in RL for LLM Mathematical Reasoning",
    sentence="Separate clip windows for right and wrong answers learn more than CISPO and DAPO; a wide upper window for right ones raises entropy, and weights "
    "of wrong tokens that do not fade make responses vanish.",
    figure="Qwen3-14B-Base AIME24, DAPO 50.21, CISPO 55.42, DISPO 61.04",
    source="two notes of arXiv 2602.00983 that agree on the formula; windows from one of them",
    ours="Sixteen optimiser steps per generation; DISPO against CISPO and DAPO, its window for right answers wide and tight, and length with an end token.",
    scale="tabular policy, 8 prompts, answers of 6 tokens out of 4, 16 samples, 20 generations of 16 steps",
    minutes=1.5,
    measure=measure,
    seeds=5,
    expects=(
        Expect("cispo", "DISPO ends with more reward than CISPO", low=0.0),
        Expect("dapo", "DISPO ends with more reward than DAPO", low=0.0),
        Expect("entropy", "the wide upper window of right answers keeps more entropy at equal reward", low=0.0),
        Expect("length", "weights of wrong tokens held at 1 make responses shorter", high=0.0),
    ),
    untested="collapse by repetition, which needs text",
)
