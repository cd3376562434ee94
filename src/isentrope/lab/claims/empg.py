"""A chain of decisions, half of them noise: does scaling by a step's entropy teach more than the same scales on other steps."""

from isentrope.control.papers.empg import Empg
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import turns
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings

SETTINGS = Settings(updates=100, samples=16, rate=15.0)


def measure(bench: Bench) -> Findings:
    scaled, bonus, both = Empg(bonus=0.0), Empg(sharpness=0.0), Empg()
    arms = trained(
        bench, turns,
        {
            "GRPO": Arm(objective=both.recipe()), "EMPG": Arm(both), "scaling only": Arm(scaled), "bonus only": Arm(bonus),
            "scaling, permuted": Arm(placebo(scaled)),
        },
        SETTINGS,
    )  # fmt: skip
    return Findings(
        (
            over("reward", "mean reward over the training, EMPG less GRPO", arms.area("EMPG", "GRPO")),
            over("placebo", "mean reward over the training, scaling less the same scales on other steps", arms.area("scaling only", "scaling, permuted")),
            over("scaling", "mean reward over the training, scaling only less GRPO", arms.area("scaling only", "GRPO")),
            over("bonus", "mean reward over the training, bonus only less GRPO", arms.area("bonus only", "GRPO")),
            over("entropy", "entropy at equal reward, EMPG less GRPO", arms.matched("EMPG", "GRPO"), "nats"),
        ),
        (learning(arms.runs),),
    )


CLAIM = Claim(
    slug="empg",
    title="Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents",
    sentence="Scaling each step's advantage down with its entropy, and paying for clear next steps, speeds the learning of long-horizon agents.",
    figure="ALFWorld GRPO 65.6 and 73.7, DAPO 80.8 and 88.1 (Qwen2.5-1.5B); an independent one 50.9 and 71.5 (Qwen3-8B)",
    source="Tables 1 and 2 of arXiv 2509.09265, read second-hand; appendix of ARLArena",
    ours="A chain of six decisions with reward at its end, three of them noise; the scales have mean 1, so all arms take the same mean step.",
    scale="tabular policy, 8 prompts, 6 steps of 4 actions, 16 samples, 100 updates",
    minutes=0.8,
    measure=measure,
    seeds=10,
    expects=(
        Expect("reward", "EMPG has more reward over the training than GRPO", low=0.0),
        Expect("placebo", "scaling by entropy beats the same scales permuted over steps", low=0.0),
    ),
    untested="steps of many tokens, environments that answer",
)
