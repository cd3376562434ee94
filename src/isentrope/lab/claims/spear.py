"""Replay of earlier successes where right answers are rare: who learns faster, and does the rising weight matter."""

from dataclasses import replace

from isentrope.control.papers.spear import Spear
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._worlds import sparse
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings

REPLAY = Spear(replayed=8, baseline=64, max_age=10, rise=50)
SETTINGS = Settings(updates=120, samples=16, rate=20.0, every=5)


def measure(bench: Bench) -> Findings:
    base = REPLAY.recipe()
    arms = {
        "on-policy": Arm(objective=base), "SPEAR": Arm(REPLAY), "constant weight": Arm(replace(REPLAY, rise=1)), "its placebo": Arm(placebo(REPLAY)),
    }  # fmt: skip
    found = trained(bench, sparse, arms, SETTINGS)
    return Findings(
        (
            over("area", "mean reward over the training, SPEAR less on-policy", found.area("SPEAR", "on-policy")),
            over("placebo", "mean reward over the training, SPEAR less its placebo", found.area("SPEAR", "its placebo")),
            over("entropy", "entropy at equal reward, SPEAR less on-policy", found.matched("SPEAR", "on-policy"), "nats"),
            over("rise", "mean reward over the training, rising weight less a constant one", found.area("SPEAR", "constant weight")),
            over("end", "reward at the end, SPEAR less on-policy", found.end("SPEAR", "on-policy")),
        ),
        (learning(found.runs), learning(found.runs, "entropy", title="Entropy", y="token entropy, nats")),
    )


CLAIM = Claim(
    slug="spear",
    title="SPEAR: Self-imitation with Progressive Exploration for Agentic Reinforcement Learning",
    sentence="Imitating one's own earlier successes, little at first and then more, learns sparse rewards faster without an early collapse of entropy.",
    figure="ALFWorld and WebShop, GRPO 72.8 and 56.8, SPEAR 88.9 and 77.5 (Qwen2.5-1.5B); AIME24 64.7 and 66.3 (32B)",
    source="tables of arXiv 2509.22601",
    ours="One right answer of 64 per prompt: on-policy, replay with a weight that rises over 50 updates, with a constant one, and a placebo.",
    scale="tabular policy, 16 prompts, 3 tokens out of 4, 16 samples, 120 updates, 8 responses replayed",
    minutes=0.6,
    measure=measure,
    seeds=8,
    expects=(
        Expect("area", "replay learns faster than on-policy updates alone", low=0.0),
        Expect("placebo", "it learns faster than replacing the same rows by random ones", low=0.0),
        Expect("entropy", "it has no less entropy at equal reward (within 0.01 nats)", low=-0.01),
        Expect("rise", "the rising weight learns no slower than a constant one", low=-0.001),
    ),
    untested="tools and their reward, the covariance clip of the replay, several turns",
)
