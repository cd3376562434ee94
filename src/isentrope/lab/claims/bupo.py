"""Whether training what an inner block would say, for the first updates, leaves the whole model better off."""

from isentrope.lab.bench import Bench, matched_gap
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.pictures import curves

LAYER, SHORT, ALL = 2, 15, 60
ARMS = {
    "GRPO": (),
    "BuPO, a quarter": ({"name": "bupo", "layer": LAYER, "updates": SHORT},),
    "inner policy throughout": ({"name": "bupo", "layer": LAYER, "updates": ALL},),
}


def measure(bench: Bench) -> Findings:
    runs = {name: [bench.train(control, seed=seed) for seed in range(bench.seeds)] for name, control in ARMS.items()}

    def last(arm: str, base: str) -> list[float]:
        return [one.summary["pass@1"] - other.summary["pass@1"] for one, other in zip(runs[arm], runs[base], strict=True)]

    lines = {name: (found[0].step, [one.reward for one in found]) for name, found in runs.items()}
    return Findings(
        (
            over("gain", "held-out pass@1 at the end, BuPO less GRPO", last("BuPO, a quarter", "GRPO")),
            over("long", "held-out pass@1 at the end, the inner policy throughout less BuPO", last("inner policy throughout", "BuPO, a quarter")),
            over(
                "entropy", "entropy at equal reward, BuPO less GRPO",
                [matched_gap(base, one) for base, one in zip(runs["GRPO"], runs["BuPO, a quarter"], strict=True)], "nats",
            ),
        ),
        (Picture("Learning", curves(lines, x="update", y="reward"), "Mean over seeds, 95 % intervals."),),
    )  # fmt: skip


CLAIM = Claim(
    slug="bupo",
    title="BuPO: Bottom-up Policy Optimization",
    sentence="Optimising the policy of an inner block for the first updates and the whole model's after it beats GRPO; doing so for long destroys the model.",
    figure="Qwen3-4B average: GRPO 55.08, BuPO 58.51; with 50 instead of 30 inner updates 42.11, with 70 9.89",
    source="arXiv 2512.19673 (v3), main table and ablation of s_inter",
    ours="The embedded model on additions: GRPO, the second of four blocks for the first 15 of 60 updates, and for all 60.",
    scale="embedded model (0.86 M), 60 updates of 64 responses",
    minutes=6.0,
    measure=measure,
    seeds=4,
    expects=(
        Expect("gain", "BuPO ends above GRPO", low=0.0),
        Expect("long", "the inner policy throughout ends below BuPO", high=0.0),
    ),
    untested="models deep enough for blocks that differ in what they do",
)
