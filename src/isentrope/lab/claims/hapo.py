"""One entropy signal for temperature, advantage and clip: against DAPO and against the same settings on other tokens."""

from isentrope.control.papers.hapo import Hapo
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import forks
from isentrope.lab.pictures import exchange, learning
from isentrope.lab.tabular import Settings

SETTINGS = Settings(updates=40, samples=16, rate=8.0, inner=4)


def measure(bench: Bench) -> Findings:
    link = Hapo()
    arms = trained(bench, forks, {"DAPO": Arm(objective=link.recipe()), "HAPO": Arm(link), "its placebo": Arm(placebo(link))}, SETTINGS)
    return Findings(
        (
            over("reward", "reward at the end, HAPO less DAPO", arms.end("HAPO", "DAPO")),
            over("placebo", "reward at the end, HAPO less its placebo", arms.end("HAPO", "its placebo")),
            over("entropy", "entropy at equal reward, HAPO less DAPO", arms.matched("HAPO", "DAPO"), "nats"),
            over("same_step", "entropy at the end, HAPO less DAPO", arms.end("HAPO", "DAPO", "entropy"), "nats"),
        ),
        (
            learning(arms.runs),
            exchange(arms.runs),
        ),
    )


CLAIM = Claim(
    slug="hapo",
    title="From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature",
    sentence="Tailoring temperature, advantage and clip range to each token's entropy beats DAPO and keeps entropy higher throughout.",
    figure="average of six sets, DAPO 46.97 and HAPO 50.04 (Qwen2.5-Math-7B), 38.34 and 40.62 (1.5B)",
    source="a note on v2 of arXiv 2509.16591; the paper's equations were not read",
    ours="Answers of six tokens of which two decide, four optimiser steps per generation, so that ratios leave 1; HAPO as intended, not as released.",
    scale="tabular policy, 8 prompts, answers of 6 tokens out of 4, 16 samples, 40 generations of 4 steps",
    minutes=1.0,
    measure=measure,
    seeds=5,
    expects=(
        Expect("reward", "HAPO ends with more reward than DAPO", low=0.0),
        Expect("placebo", "HAPO ends with more reward than its placebo", low=0.0),
        Expect("entropy", "HAPO keeps more entropy at equal reward", low=0.0),
    ),
    untested="the four components one by one; long responses, where the token-level average differs from the response-level one",
)
