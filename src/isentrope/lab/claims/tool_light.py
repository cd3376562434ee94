"""Whether branches inside uncertain tool calls are worth their tokens, and whether preferring few calls teaches to use a tool well."""

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._recipe import SEEN, gaps, measured, picture


def measure(bench: Bench) -> Findings:
    rows = measured(bench, "tool-light")
    return Findings(
        (
            over("gain", "held-out pass@1, Tool-Light less the base", gaps(rows, "pass@1", "tool-light", "base")),
            over("places", "held-out pass@1, Tool-Light less branches at random places", gaps(rows, "pass@1", "tool-light", "placebo")),
            over("pairs", "pairs per 1000 tokens, Tool-Light less whole episodes", gaps(rows, "pairs per 1000 tokens", "tool-light", "neutral")),
            over("necessity", "held-out pass@1, rejecting wrong episodes of few calls less the base", gaps(rows, "pass@1", "necessity", "base")),
            over("turns", "calls and answers of an episode, Tool-Light less the base", gaps(rows, "turns", "tool-light", "base")),
        ),
        (picture(rows, "pass@1", ("neutral", "tool-light", "placebo", "necessity", "base"), title="Held-out tasks", y="pass@1"),),
        (SEEN, "The criteria of pairs are inferred from a summary of the paper: they are the least certain part of this experiment."),
    )


CLAIM = Claim(
    slug="tool-light",
    title="Tool-Light: Toward Effective Tool-Integrated Reasoning via Self-Evolved Preference Learning",
    sentence="Pairs from episodes that branch at uncertain steps, preferring right answers of few tool calls, teach better and leaner tool use.",
    figure="better accuracy, efficiency and necessity on ten data sets (Qwen2.5-7B-Instruct)",
    source="arXiv 2509.23285, abstract; released sampler",
    ours="Sums and products with a real calculator that takes one operation at a time; pairs for DPO from whole episodes, from branches at uncertain or at "
    "random places, and with wrong episodes of few calls rejected first (`isentrope recipe tool-light`).",
    scale="embedded model (0.86 M), 400 questions, 100 updates of DPO",
    minutes=6.0,
    measure=measure,
    seeds=3,
    expects=(
        Expect("gain", "the trained model solves more than the base", low=0.0),
        Expect("places", "it solves more than with branches at random places", low=0.0),
        Expect("pairs", "branches give more pairs a token than whole episodes", low=0.0),
    ),
    untested="the fine-tuning before it, several rounds, and search as a tool",
)
