"""A bonus with a corridor around entropy's own past, over several turns: does the corridor damp what a bonus of the same size does not."""

import numpy as np

from isentrope.control.papers.epo import Epo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import turns
from isentrope.lab.pictures import exchange, learning
from isentrope.lab.tabular import History, Settings

COEF = 0.05
SETTINGS = Settings(updates=100, samples=16, rate=15.0, every=2)


def roughness(history: History) -> float:
    """Standard deviation of the second differences of entropy along the run, nats: what is no trend."""
    return float(np.diff(history["entropy"], n=2).std())


def measure(bench: Bench) -> Findings:
    link = Epo(coef=COEF)
    known = {
        "PPO": Arm(objective=link.recipe()), "bonus": Arm(Epo(coef=COEF, alpha=0.0), link.recipe()), "EPO": Arm(link),
        "EPO, wide as released": Arm(Epo(coef=COEF, low=0.0, high=2.0, alpha=0.1)),
    }  # fmt: skip
    arms = trained(bench, turns, known, SETTINGS)
    rough = {name: np.array([roughness(history) for history in found]) for name, found in arms.runs.items()}
    return Findings(
        (
            over("reward", "reward at the end, EPO less the objective alone", arms.end("EPO", "PPO")),
            over("bonus", "reward at the end, EPO less the bonus without its corridor", arms.end("EPO", "bonus")),
            over("rough", "roughness of entropy, EPO over the bonus, less 1", rough["EPO"] / rough["bonus"] - 1),
            over("released", "reward at the end, corridor as released (0 to 2, alpha 0.1) less the bonus", arms.end("EPO, wide as released", "bonus")),
            over("entropy", "entropy at equal reward, EPO less the objective alone", arms.matched("EPO", "PPO"), "nats"),
        ),
        (learning(arms.runs), exchange(arms.runs)),
    )


CLAIM = Claim(
    slug="epo",
    title="EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning",
    sentence="A corridor around entropy's own past damps its oscillations and lets agents with sparse rewards learn more than with a bonus alone.",
    figure="ScienceWorld PPO 38.4 and 96.8 (Qwen2.5-7B); ALFWorld GRPO 63.3 and 75.8 (Qwen2.5-3B)",
    source="Table 1 of arXiv 2509.22576",
    ours="Six turns with reward at the end; the objective alone, a bonus, the same bonus with its corridor, and the corridor as released.",
    scale="tabular policy, 8 prompts, 6 turns of 4 actions, 16 samples, 100 updates",
    minutes=0.8,
    measure=measure,
    seeds=5,
    expects=(
        Expect("bonus", "EPO ends with more reward than the bonus without its corridor", low=0.0),
        Expect("rough", "entropy is less rough than under the bonus alone", high=0.0),
        Expect("reward", "EPO ends with more reward than the objective alone", low=0.0),
    ),
    untested="environments that answer, a critic",
)
