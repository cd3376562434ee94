"""Two equally right answers of which one is nine times as likely: who keeps both."""

import numpy as np
import torch

from isentrope.control.papers.progrpo_arm import Arm as Confidence
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, exact, over
from isentrope.lab.claims._worlds import two_modes
from isentrope.lab.pictures import exchange
from isentrope.lab.tabular import History, Settings

SETTINGS = Settings(updates=60, samples=16, rate=3.0)


def rarer(history: History) -> float:
    """Probability of the rarer right answer among the right ones, at the end, mean over prompts."""
    p = history.world.logits()[:, 0, 0].softmax(-1)
    return float((p[:, 1] / (p[:, 0] + p[:, 1])).mean())


def least_drift(policies: int = 20_000) -> float:
    """The smallest first-order entropy drift of ARM's own term per unit of alpha and step, Cov_p(S, p) with c = p, over random bandits, nats."""
    generator = torch.Generator().manual_seed(0)
    worst = np.inf
    for size in (2, 3, 5, 20):
        p = (2 * torch.randn(policies // 4, size, generator=generator, dtype=torch.float64)).softmax(-1)
        discriminant = p * (p.log() - (p * p.log()).sum(-1, keepdim=True))
        covariance = (p * discriminant * p).sum(-1) - (p * discriminant).sum(-1) * (p * p).sum(-1)
        worst = min(worst, float(covariance.min()))
    return worst


def measure(bench: Bench) -> Findings:
    link = Confidence()
    arms = trained(
        bench, two_modes, {"GRPO": Arm(objective=link.recipe()), "ARM": Arm(link), "its placebo": Arm(placebo(link))}, SETTINGS
    )  # fmt: skip
    share = {name: np.array([rarer(history) for history in found]) for name, found in arms.runs.items()}
    return Findings(
        (
            over("kept", "share of the rarer right answer at the end (0.1 at the start), ARM", share["ARM"]),
            over("share", "the same, ARM less GRPO", share["ARM"] - share["GRPO"]),
            over("entropy", "entropy at equal reward, ARM less GRPO", arms.matched("ARM", "GRPO"), "nats"),
            over("placebo", "entropy at equal reward, ARM less its placebo", arms.matched("ARM", "its placebo"), "nats"),
            over("reward", "reward at the end, ARM less GRPO", arms.end("ARM", "GRPO")),
            exact("drift", "smallest drift of ARM's term over 20,000 random bandits, per unit of alpha", least_drift(), "nats"),
        ),
        (exchange(arms.runs),),
    )


CLAIM = Claim(
    slug="progrpo-arm",
    title="Back to Basics: Revisiting Exploration in RL for LLM Reasoning via Generative Probabilities",
    sentence="Subtracting an answer's own confidence from its advantage keeps several right answers alive, where GRPO collapses on one, at no cost in reward.",
    figure="Qwen2.5-7B, GRPO Pass@1 37.6, Pass@32 54.7; ProGRPO 43.3, 68.5; entropy first falls, then rises and stays above GRPO's",
    source="a review page and a reading note of arXiv 2602.05281 that agree; alpha is not confirmed",
    ours="Two equally right answers of prior 0.27 and 0.03 per prompt, alpha 0.3: what is left of the rarer one, and entropy at equal reward.",
    scale="tabular policy, 8 prompts, 5 first tokens, 16 samples, 60 updates",
    minutes=0.4,
    measure=measure,
    seeds=12,
    expects=(
        Expect("kept", "ARM keeps the rarer answer at its share of the start or above (within 0.01)", low=0.09),
        Expect("entropy", "ARM has more entropy than GRPO at equal reward", low=0.0),
        Expect("placebo", "ARM has more entropy than its placebo at equal reward", low=0.0),
        Expect("reward", "ARM ends with as much reward as GRPO (within 0.02)", low=-0.02),
        Expect("drift", "its term raises entropy in every tabular bandit", low=-1e-12),
    ),
    untested="the confidence in the prompt, which is an offset within a group",
)
