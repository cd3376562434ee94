"""Paid by agreement: what minimising the entropy of answers does to prompts whose likeliest answer is right, and to the others."""

from dataclasses import replace

import numpy as np
import torch

from isentrope.control.papers.empo import Empo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings, Task, exact

SETTINGS = Settings(updates=120, samples=16, rate=20.0)


def quizzes(seed: int) -> Task:
    """Forty prompts with six answers; the right one is drawn from the policy sharpened by 2, so the likeliest is right more often than not."""
    generator = torch.Generator().manual_seed(71 * seed + 6)
    own = 1.2 * torch.randn(40, 1, 6, 6, generator=generator, dtype=torch.float64)
    gold = torch.multinomial((1.5 * own[:, 0, 0]).softmax(-1), 1, generator=generator).squeeze(-1)
    return Task(torch.zeros(1, 6, 6, dtype=torch.float64), own, lambda prompt, ids: (ids[:, 0] == gold[prompt]).double(), sharing=0.0)


def measure(bench: Bench) -> Findings:
    base = Empo().recipe()
    arms = trained(
        bench, quizzes,
        {"supervised": Arm(objective=base), "EMPO": Arm(Empo(), base), "vote": Arm(Empo(form="voting"), base), "Shannon": Arm(Empo(form="shannon"), base)},
        SETTINGS,
    )  # fmt: skip
    alike = trained(bench, lambda seed: replace(quizzes(seed), sharing=1.0), {"EMPO": Arm(Empo(), base)}, SETTINGS)
    predicted, kept = [], []
    for seed, history in enumerate(arms.runs["EMPO"]):
        start = exact(quizzes(seed))
        likeliest = start.answers.argmax(-1)
        gold_first = torch.tensor([bool(start.chance[at] >= start.answers[at].max() - 1e-12) for at in range(len(start.chance))])
        predicted.append(float(gold_first.double().mean() - start.chance.mean()))
        kept.append(float((exact(history.world).answers.argmax(-1) == likeliest).double().mean()))
    gained = np.array(arms.gained("EMPO"))
    return Findings(
        (
            over("gain", "accuracy of EMPO, end less start", gained),
            over("supervised", "accuracy at the end, EMPO less training with labels", arms.end("EMPO", "supervised")),
            over("law", "gain less (share of prompts whose likeliest answer is right - accuracy at the start)", gained - np.array(predicted)),
            over("kept", "share of prompts whose likeliest answer is the same at the end", kept),
            over("pass8", "pass@8 of EMPO, end less start", arms.gained("EMPO", "pass@8")),
            over("alike", "accuracy of EMPO, end less start, where prompts share what they learn", alike.gained("EMPO")),
            over("vote", "accuracy at the end, EMPO less plain votes", arms.end("EMPO", "vote")),
        ),
        (
            learning(arms.runs, title="Accuracy", y="accuracy"),
            learning(arms.runs, "pass@8", title="pass@8", y="pass@8", note="What agreement costs."),
        ),
        ("Where prompts share a part of the policy, agreement is had by one answer to all of them: the constant answers that the sheet warns of.",),
    )


CLAIM = Claim(
    slug="empo",
    title="Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization",
    sentence="Minimising the semantic entropy of answers, without any label, raises accuracy as much as training with labels does.",
    figure="README: five mathematics sets, base 33.0, supervised GSPO 42.8, EMPO 42.6 (1.5B); 33.7, 51.7, 51.6 (7B)",
    source="README of the authors' code (arXiv 2504.05812)",
    ours="Forty prompts with six answers of which the likeliest is right more often than not; the same objective with agreement or with labels as reward.",
    scale="tabular policy, 40 prompts, one token out of 6, 16 samples, 120 updates",
    minutes=1.0,
    measure=measure,
    seeds=6,
    expects=(
        Expect("gain", "EMPO raises accuracy", low=0.0),
        Expect("supervised", "it ends within 0.02 of training with labels", low=-0.02),
    ),
    untested="free text, whose equivalence a second model judges; generalisation to other questions, which may be what both have in common",
)
