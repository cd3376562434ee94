"""Whether the few uncertain positions of a base model's answers are enough to learn from."""

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._recipe import SEEN, gaps, measured, picture


def measure(bench: Bench) -> Findings:
    rows = measured(bench, "reasonmaxxer")
    return Findings(
        (
            over("gain", "held-out pass@1, gated less the base", gaps(rows, "pass@1", "reasonmaxxer", "base")),
            over("full", "held-out pass@1, gated less trained on every token", gaps(rows, "pass@1", "reasonmaxxer", "neutral")),
            over("random", "held-out pass@1, gated less as many positions at random", gaps(rows, "pass@1", "reasonmaxxer", "placebo")),
            over("drift", "KL from the base on its answers, gated less trained on every token", gaps(rows, "drift", "reasonmaxxer", "neutral"), "nats"),
        ),
        (picture(rows, "pass@1", ("neutral", "reasonmaxxer", "placebo", "base"), title="Held-out answers", y="pass@1"),),
        (SEEN,),
    )


CLAIM = Claim(
    slug="reasonmaxxer",
    title="ReasonMaxxer: offline learning on entropy-gated positions",
    sentence="A signed cross-entropy on the few uncertain positions of the base model's answers, anchored elsewhere, gives most of what training on all gives.",
    figure="average of six benchmarks, Qwen2.5-7B: base .351, this .472, best RL .485; 1 to 3 % of positions",
    source="arXiv 2605.06241 (v2), summary tables",
    ours="Answers of the embedded model to 150 additions: all tokens, gated tokens, as many at random, and the base (`isentrope recipe reasonmaxxer`).",
    scale="embedded model (0.86 M), 100 updates of 8 answers",
    minutes=9.0,
    measure=measure,
    seeds=3,
    expects=(
        Expect("gain", "gating gains on the base", low=0.0),
        Expect("full", "it gives at least what every token gives, within 0.05", low=-0.05),
        Expect("random", "random positions give less", low=0.0),
        Expect("drift", "it drifts less from the base than training on every token", high=0.0),
    ),
    untested="that reinforcement learning edits the same positions",
)
