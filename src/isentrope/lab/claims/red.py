"""Whether a weight from entropy changes is what makes a teacher's text help beside GRPO."""

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._recipe import SEEN, gaps, measured, picture, values


def measure(bench: Bench) -> Findings:
    rows = measured(bench, "red")
    return Findings(
        (
            over("reward", "held-out pass@1, RED less GRPO alone", gaps(rows, "pass@1", "red", "neutral")),
            over("order", "held-out pass@1, RED less its weights in random order", gaps(rows, "pass@1", "red", "placebo")),
            over("fixed", "held-out pass@1, RED less the same text at a fixed weight", gaps(rows, "pass@1", "red", "fixed")),
            over("acts", "share of the updates in which the weight is not the lower bound of its clip", [1 - bound for bound in values(rows, "bound", "red")]),
            over("entropy", "entropy of held-out answers, RED less GRPO alone", gaps(rows, "entropy", "red", "neutral"), "nats"),
        ),
        (picture(rows, "pass@1", ("neutral", "red", "placebo", "fixed"), title="Held-out answers", y="pass@1"),),
        (SEEN,),
    )


CLAIM = Claim(
    slug="red",
    title="RED: Recall-Extend Dynamics",
    sentence="Text of a teacher beside GRPO, weighted by the ratio of entropy changes on both, is better than GRPO alone and than a fixed mixture.",
    figure="MATH500 65.5 against 63.8 (LUFFY), Qwen2.5-Math-1.5B (secondary source, unverified)",
    source="arXiv 2508.16677; an independent re-implementation",
    ours="GRPO on additions with perfect worked answers to the same prompts beside it: no text, RED's weights, those in random order, and a fixed weight "
    "(`isentrope recipe red`).",
    scale="embedded model (0.86 M), 100 updates of 16 responses and as much text",
    minutes=8.0,
    measure=measure,
    seeds=4,
    expects=(
        Expect("reward", "RED ends above GRPO alone", low=0.0),
        Expect("order", "it ends above its weights in random order", low=0.0),
        Expect("acts", "its weight is more than the lower bound in a tenth of the updates", low=0.1),
    ),
    untested="the shift of the assumed behaviour policy by accuracy, and distilled reasoning traces",
)
