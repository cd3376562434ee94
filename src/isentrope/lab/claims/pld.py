"""Whether a teacher's whole ranking teaches a student more than its probabilities do."""

from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.claims._recipe import SEEN, gaps, measured, picture, values
from isentrope.lab.recipes import Rows


def measure(bench: Bench) -> Findings:
    rows = measured(bench, "pld")
    return Findings(
        (
            over("kd", "held-out accuracy, PLD less KL distillation", gaps(rows, "accuracy", "pld", "kd")),
            over("labels", "held-out accuracy, PLD less cross-entropy on the labels", gaps(rows, "accuracy", "pld", "neutral")),
            over("order", "held-out accuracy, PLD less the same with a random order", gaps(rows, "accuracy", "pld", "placebo")),
            over("entropy", "entropy of the student, at the end less half-way", [
                end - half for end, half in zip(_of(rows, "entropy"), _of(rows, "entropy half-way"), strict=True)
            ], "nats"),
        ),
        (picture(rows, "accuracy", ("neutral", "pld", "placebo", "kd"), title="Held-out accuracy", y="accuracy"),),
        (SEEN,),
    )  # fmt: skip


def _of(rows: Rows, figure: str) -> list[float]:
    return values(rows, figure, "pld")


CLAIM = Claim(
    slug="pld",
    title="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    sentence="Distilling a teacher's ranking, each place weighted by the teacher's probability, beats distilling its probabilities and plain training.",
    figure="ImageNet, ResNet-50 from ResNet-152: labels 71.35, KL 76.80, PLD 77.30",
    source="arXiv 2506.12542, tables",
    ours="A small network learns ten classes from 300 labels and a wide teacher: labels, PLD, PLD with a random order, KL (`isentrope recipe pld`).",
    scale="blobs in 8 dimensions, 2000 updates",
    minutes=2.0,
    measure=measure,
    seeds=5,
    expects=(
        Expect("kd", "PLD is more accurate than KL distillation", low=0.0),
        Expect("labels", "it is more accurate than training on the labels", low=0.0),
        Expect("order", "the teacher's order is what helps", low=0.0),
    ),
    untested="images and large networks",
)
