"""Whether replay keeps what fine-tuning forgets, and whether weighing it by convergence and instability adds to that."""

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._recipe import SEEN, gaps, measured, picture


def measure(bench: Bench) -> Findings:
    rows = measured(bench, "forgetting-reasoning")
    return Findings(
        (
            over("replay", "loss on the other style, RECAP less GRPO without replay", gaps(rows, "other loss", "recap", "no replay"), "nats"),
            over("weights", "loss on the other style, RECAP less replay with equal weights", gaps(rows, "other loss", "recap", "neutral"), "nats"),
            over("reward", "held-out pass@1, RECAP less replay with equal weights", gaps(rows, "pass@1", "recap", "neutral")),
            over("cost", "held-out pass@1, RECAP less GRPO without replay", gaps(rows, "pass@1", "recap", "no replay")),
        ),
        (picture(rows, "other loss", ("neutral", "recap", "placebo", "no replay"), title="What is forgotten", y="loss on the other style, nats"),),
        (SEEN,),
    )


CLAIM = Claim(
    slug="forgetting-reasoning",
    title="Forgetting in reasoning RL, and RECAP",
    sentence="Replaying general data with weights from each objective's convergence and instability keeps general abilities, better than equal weights.",
    figure="LISA IoU: base 65.13, reasoning alone 57.58, RECAP 67.24 (7B)",
    source="arXiv 2510.21978, tables",
    ours="GRPO on additions worked out in phases, with text of another style replayed: equal weights, RECAP's, its weights exchanged, and no replay "
    "(`isentrope recipe forgetting-reasoning`).",
    scale="embedded model (0.86 M), 100 updates, two objectives",
    minutes=8.0,
    measure=measure,
    seeds=4,
    expects=(
        Expect("replay", "with RECAP the other style is forgotten less than without replay", high=0.0),
        Expect("weights", "its weights keep more of it than equal ones", high=0.0),
        Expect("reward", "it answers at least as well as with equal weights, within 0.03", low=-0.03),
    ),
    untested="many objectives of unlike scale, which is what the weights are for",
)
