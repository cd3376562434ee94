"""A small language model alone and in a debate with itself: do entropies tell which answer is right, and does talking help."""

import random

import numpy as np

from isentrope.errors import UserError
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Measurement, Picture, over
from isentrope.lab.judger import best_of, judged, mean_of, oracle, plurality, within
from isentrope.lab.pictures import curves
from isentrope.lab.transcripts import Said, converse
from isentrope.measure.agents import question_features

EACH, RUNS, TOKENS = 8, 5, 24  # questions per repetition, single-agent runs of a question, tokens of a response


def measure(bench: Bench) -> Findings:
    from isentrope.train import models

    if bench.seeds < 2:
        raise UserError("multi-agent-entropy: the judger learns from the questions of one repetition and is tried on another's: --seeds 2 or more.")
    loaded = models.load("smollm2")
    generator = random.Random(0)
    pairs = [(generator.randint(2, 19), generator.randint(2, 9)) for _ in range(EACH * bench.seeds)]
    questions, truth = [f"What is {a} + {b}?" for a, b in pairs], [str(a + b) for a, b in pairs]
    singles = []
    for run in range(RUNS):
        bench.tell(f"run {run + 1} of {RUNS} of a single agent, {len(questions)} questions")
        singles.append(converse(loaded, questions, "single", rounds=1, max_tokens=TOKENS, seed=100 * run))
    bench.tell(f"a debate of three agents, two rounds, {len(questions)} questions")
    debates = converse(loaded, questions, "debate", rounds=2, max_tokens=TOKENS, seed=10_000)
    return found_in([[talks[at][-1] for talks in singles] for at in range(len(questions))], debates, truth)


def found_in(singles: list[list[Said]], debates: list[list[Said]], truth: list[str]) -> Findings:
    """What the transcripts say. singles: [question][run]; debates: [question] six calls."""
    right = np.array([[said.answer() == gold for said in row] for row, gold in zip(singles, truth, strict=True)])
    rows = [question_features([said.call("sampled")], answer=said.span("sampled")) for row in singles for said in row]
    span = np.array([[_span(said) for said in row] for row in singles])
    chance = judged(rows, right.flatten().tolist(), np.repeat(np.arange(len(right)), RUNS).tolist()).reshape(right.shape)
    first, last = ([[said for said in talk if said.round == number] for talk in debates] for number in (1, 2))
    voted = [_votes(three, gold) for three, gold in zip(last, truth, strict=True)]
    before = [_votes(three, gold) for three, gold in zip(first, truth, strict=True)]
    falls = [float(_level(two) < _level(one)) for one, two in zip(first, last, strict=True)]
    k = range(1, RUNS + 1)
    lines = {
        "judger": [best_of(chance, right, at) for at in k], "lowest entropy of the answer": [best_of(-span, right, at) for at in k],
        "vote": [plurality([[said.answer() for said in row] for row in singles], right, at) for at in k], "mean": [mean_of(right, at) for at in k],
        "oracle": [oracle(right, at) for at in k],
    }  # fmt: skip
    drawn = {name: (np.array(k, dtype=float), [np.array(line)]) for name, line in lines.items()}
    mean = right.mean(1)
    return Findings(
        (
            auroc("auroc", "AUROC of right against wrong answers by the entropy of the answer's tokens, low is right", -span, right),
            over("judger", "accuracy of the judger's choice of five, less the mean", _chosen(chance, right) - mean, of="questions"),
            over("rule", "accuracy of the answer of lowest entropy of five, less the mean", _chosen(-span, right) - mean, of="questions"),
            over("single", "accuracy, one agent's mean less the debate's vote", mean - np.array(voted), of="questions"),
            over("falls", "share of debates whose entropy falls from round 1 to 2", falls, of="questions"),
            over("talk", "accuracy of the vote, round 2 less round 1", np.array(voted) - np.array(before), of="questions"),
            auroc("within", "AUROC of the judger within a question", chance, right, inside=True),
            over("accuracy", "accuracy of one agent", mean, of="questions"),
        ),
        (Picture("Choosing among k runs of a question", curves(drawn, x="k", y="accuracy"), "Means over the questions."),),
    )  # fmt: skip


def auroc(key: str, what: str, score: np.ndarray, right: np.ndarray, *, inside: bool = False, draws: int = 1000) -> Measurement:
    """AUROC over all pairs of a right and a wrong answer (inside: of one question), with a bootstrap interval over questions."""
    rng = np.random.default_rng(0)
    value = _auroc(score, right, inside)
    picks = (rng.integers(len(right), size=len(right)) for _ in range(draws))
    found = np.array([_auroc(score[at], right[at], inside) for at in picks])
    low, high = np.nanquantile(found, [0.025, 0.975]).tolist()
    return Measurement(key, what, value, low, high, "", f"{len(right)} questions")


def _auroc(score: np.ndarray, right: np.ndarray, inside: bool) -> float:
    return within(score, right) if inside else within(score.reshape(1, -1), right.reshape(1, -1))


def _span(said: Said) -> float:
    """Mean entropy of the tokens of the answer, nats; a response without one is as uncertain as can be."""
    values = said.span("sampled")
    return float(values.mean()) if len(values) else float("inf")


def _level(said: list[Said]) -> float:
    return float(np.mean([float(one.sampled.mean()) for one in said]))


def _votes(three: list[Said], gold: str) -> float:
    answers = [said.answer() for said in three]
    return plurality([answers], np.array([[answer == gold for answer in answers]]), len(three))


def _chosen(score: np.ndarray, right: np.ndarray) -> np.ndarray:
    return right[np.arange(len(right)), score.argmax(1)].astype(float)


CLAIM = Claim(
    slug="multi-agent-entropy",
    title="When Does Multi-Agent Collaboration Help? An Entropy Perspective",
    sentence="Entropies of the agents' tokens tell right answers from wrong ones well enough to choose among runs, and one agent is often as good as several.",
    figure="judger 72.6 % (Llama) and 79.1 % (Qwen) five-fold; a single agent best in 43 % of cases; entropy falls from round 1 to 2 in 89.5 %",
    source="abstract and a third-party reading of arXiv 2602.04234; features and judger of the released code",
    ours="Sums of small numbers asked of one agent five times and of a debate of three over two rounds, at temperature 0.6 and top-p 0.95.",
    scale="SmolLM2-135M-Instruct, 64 questions, 24 tokens a response",
    minutes=9.0,
    measure=measure,
    seeds=8,
    expects=(
        Expect("auroc", "right answers have tokens of lower entropy", low=0.5),
        Expect("judger", "the judger's choice of five is right more often than the mean of them", low=0.0),
        Expect("single", "one agent is right as often as the debate's vote (within 0.05)", low=-0.05),
        Expect("falls", "entropy falls from round 1 to 2 in most debates", low=0.5),
    ),
    untested="other topologies and models, early stopping, causal effects",
)
