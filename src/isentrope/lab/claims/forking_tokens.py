"""Are the tokens at forks enough: two deciding tokens among six, the others nearly forced, as syntax is in text."""

from dataclasses import dataclass

from isentrope.control.objectives import Objective
from isentrope.control.papers.forking_tokens import ForkingTokens
from isentrope.control.placebo import placebo
from isentrope.control.stages import TokenWeight
from isentrope.control.step import State, Stats, Step
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import forks
from isentrope.lab.pictures import exchange, learning
from isentrope.lab.tabular import Settings

FORKS, FIFTH = 1 / 3, 0.2
"""The share of this text that decides (two tokens in six), and the paper's, in whose text it is the same."""
STEP = 6.0


def settings(share: float) -> Settings:
    """The mask divides by the tokens that it keeps: at this rate a kept token moves by the same step whatever their share."""
    return Settings(updates=100, samples=16, rate=STEP * share, every=10)


@dataclass(frozen=True)
class Others(ForkingTokens):
    """The tokens that the mask leaves out: the paper's control."""

    def weight(self, step: Step, stats: Stats, state: State) -> TokenWeight:
        return TokenWeight(keep=~stats.token("keep", step), denominator="kept")


def measure(bench: Bench) -> Findings:
    link = ForkingTokens(share=FORKS)
    known = {
        "all tokens": Arm((), Objective.named("dapo"), settings(1.0)), "top third": Arm(link, None, settings(FORKS)),
        "top fifth": Arm(ForkingTokens(share=FIFTH), None, settings(FIFTH)), "random third": Arm(placebo(link), None, settings(FORKS)),
        "the other two thirds": Arm(Others(share=FORKS), None, settings(1 - FORKS)),
    }  # fmt: skip
    arms = trained(bench, forks, known)
    return Findings(
        (
            over("reward", "reward at the end, top third less all tokens", arms.end("top third", "all tokens")),
            over("random", "reward at the end, top third less a random third", arms.end("top third", "random third")),
            over("rest", "reward at the end, the other two thirds less all tokens", arms.end("the other two thirds", "all tokens")),
            over("entropy", "entropy at equal reward, top third less all tokens", arms.matched("top third", "all tokens"), "nats"),
            over("fifth", "reward at the end, top fifth less all tokens", arms.end("top fifth", "all tokens")),
        ),
        (learning(arms.runs), exchange(arms.runs)),
    )


CLAIM = Claim(
    slug="forking-tokens",
    title="Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective RL for LLM Reasoning",
    sentence="Policy gradients on the fifth of the tokens with the highest entropy, the forks, teach at least as much as on all; on the others, clearly less.",
    figure="AIME24, all tokens 55.8 and forking tokens 63.5 (32B), 45.2 and 50.4 (14B), 33.3 and 34.6 (8B); entropy is highest near 20 %",
    source="Tables 1 and 2, sections 5 and 6 of arXiv 2506.01939, read in full",
    ours="Answers of six tokens of which two decide and four are nearly forced by what stands before; every kept token moves by the same step in all arms.",
    scale="tabular policy, 8 prompts, answers of 6 tokens out of 4, DAPO, 16 samples, 100 updates",
    minutes=0.5,
    measure=measure,
    seeds=12,
    expects=(
        Expect("reward", "the top third ends with at least as much reward as all tokens (within 0.01)", low=-0.01),
        Expect("random", "it ends with more reward than a random third", low=0.0),
        Expect("rest", "the other two thirds end with less reward than all tokens", high=0.0),
        Expect("entropy", "the top third keeps more entropy than all tokens at equal reward", low=0.0),
        Expect("fifth", "a fifth is enough too, where a third of the tokens decide (within 0.01)", low=-0.01),
    ),
    untested="that the advantage grows with the model; decoding with two temperatures",
)
