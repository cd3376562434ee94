"""Hot and cold samples of right answers against a target: does entropy settle where it is told to, and what does that cost."""

import numpy as np
import torch

from isentrope.control.papers.aepo_arbitrary import AepoArbitrary
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, exact, over
from isentrope.lab.claims._worlds import equal_arms
from isentrope.lab.pictures import curves, learning
from isentrope.lab.tabular import History, Settings

TARGETS = (0.2, 0.45, 0.7, 0.95, 1.2)
SETTINGS = Settings(updates=400, samples=16, rate=2.0, every=16, shuffled=True)
HEAT = {"T 1.2 or 0.8": (1.2, 0.8), "T 2 or 0.5": (2.0, 0.5)}


def settled(history: History) -> float:
    """Entropy over the last third, nats."""
    return float(history["entropy"][-len(history["entropy"]) // 3 :].mean())


def wrong_signs(policies: int = 20_000) -> float:
    """Share of random policies whose entropy a small step towards pi_T moves the other way than T - 1 says (no filter by reward)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(policies, 12, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    discriminant = p * (p.log() - (p * p.log()).sum(-1, keepdim=True))
    wrong = torch.zeros(policies, dtype=torch.bool)
    for temperature in (0.8, 1.2):
        drift = -(discriminant * ((logits / temperature).softmax(-1) - p)).sum(-1)
        wrong |= drift * (temperature - 1) < 0
    return float(wrong.double().mean())


def measure(bench: Bench) -> Findings:
    known = {"GRPO": Arm(objective=AepoArbitrary().recipe())} | {
        f"{heat}, target {target}": Arm(AepoArbitrary(target=target, replaced=32, groups=1.0, hot=hot, cold=cold))
        for heat, (hot, cold) in HEAT.items()
        for target in TARGETS
    }
    arms = trained(bench, equal_arms, known, SETTINGS)
    ends = {heat: np.array([[settled(history) for history in arms.runs[f"{heat}, target {target}"]] for target in TARGETS]) for heat in HEAT}
    rewards = np.array([[history["reward"][-1] for history in arms.runs[f"T 1.2 or 0.8, target {target}"]] for target in TARGETS])
    slopes = {heat: [float(np.polyfit(TARGETS, column, 1)[0]) for column in found.T] for heat, found in ends.items()}
    best, released = rewards.max(0), ends["T 1.2 or 0.8"]
    settling = {f"entropy, last third, {heat}": (np.array(TARGETS), list(found.T)) for heat, found in ends.items()}
    return Findings(
        (
            over("slope", "slope of the entropy at the end against its target (1 = it goes where it is told)", slopes["T 1.2 or 0.8"]),
            over("strong", "the same slope with temperatures 2 and 0.5", slopes["T 2 or 0.5"]),
            over("miss", "largest distance from a target, over the five", np.abs(released - np.array(TARGETS)[:, None]).max(0), "nats"),
            over("low", "reward, best of the five targets less the lowest target", best - rewards[0]),
            over("high", "reward, best of the five targets less the highest target", best - rewards[-1]),
            over("grpo", "reward, best of the five targets less GRPO", best - np.array([history["reward"][-1] for history in arms.runs["GRPO"]])),
            exact("sign", "share of 20,000 random policies that a step towards pi_T moves the wrong way", wrong_signs()),
        ),
        (
            Picture("Where entropy settles", curves(settling, x="target, nats", y="nats"), "The claim is a straight line of slope 1."),
            learning(arms.runs, "entropy", title="Entropy along the way", y="token entropy, nats"),
        ),
        (
            "Right answers are imitated only from groups that also hold wrong ones: once a prompt is solved nothing pushes its entropy up. Up to "
            "there the reward's own pull outweighs temperatures of 1.2 and 0.8 (the bound of the sheet: alpha (T - 1) sum S^2 against Cov(S, A)).",
        ),
    )  # fmt: skip


CLAIM = Claim(
    slug="aepo-arbitrary",
    title="Arbitrary Entropy Policy Optimization Breaks The Exploration Bottleneck of Reinforcement Learning",
    sentence="Imitating right answers that were sampled hotter or colder makes entropy settle at any chosen target; reward first rises and then falls with it.",
    figure="average of seven sets, GRPO 57.96, entropy regularisation 57.39, AEPO at 0.75 nats 61.36 (Qwen2.5-Math-7B)",
    source="README of the authors' code (arXiv 2510.08141); the paper's body was not readable",
    ours="Five targets from 0.2 to 1.2 nats where four of eight answers are right: entropy over the last third, and reward at the end.",
    scale="tabular policy, 8 prompts, one token out of 8, 16 samples of which a quarter is replaced, 400 updates",
    minutes=2.5,
    measure=measure,
    seeds=8,
    expects=(
        Expect("slope", "entropy follows its target with a slope between 0.8 and 1.2", low=0.8, high=1.2),
        Expect("strong", "with temperatures 2 and 0.5 it does", low=0.8, high=1.2),
        Expect("miss", "no target is missed by more than 0.1 nats", high=0.1),
        Expect("low", "a higher target than the lowest gives more reward", low=0.0),
        Expect("high", "a lower target than the highest gives more reward", low=0.0),
        Expect("sign", "heat raises and cold lowers entropy to first order in every policy", high=1e-9),
    ),
    untested="pass@1024, tasks that stay half solved, and few replaced responses (here a quarter of them, 2 % in the released script)",
)
