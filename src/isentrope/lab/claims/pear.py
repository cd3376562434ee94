"""A scratchpad of free length, a closing tag and an answer: does paying for low entropy of the scratchpad shorten it, and at what cost."""

import torch

from isentrope.control.papers.pear import Pear
from isentrope.control.placebo import placebo
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import History, Settings, Task

CLOSE, END = 2, 5
SETTINGS = Settings(updates=60, samples=16, rate=6.0, every=10)


def scratchpad(seed: int) -> Task:
    """Tokens 0 and 1 think, 2 closes, 3 and 4 answer, 5 ends; what does not fit is rare. Every thought makes the right answer a little likelier."""
    generator = torch.Generator().manual_seed(107 * seed + 3)
    own = 0.6 * torch.randn(6, 6, 6, 6, generator=generator, dtype=torch.float64)
    thinking, closed, answered = (0, 1), (CLOSE,), (3, 4)
    allowed = {thinking: (0, 1, CLOSE), closed: (3, 4), answered: (END,), (END,): (END,)}
    for before, after in allowed.items():
        for token in before:
            for forbidden in set(range(6)) - set(after):
                own[:, :, token, forbidden] -= 6.0
    gold = 3 + torch.randint(2, (6,), generator=generator)
    prompts = torch.arange(6)
    for at in range(6):
        own[prompts, at, CLOSE, gold] += 0.4 * at

    def pay(prompt, ids):
        close = (ids == CLOSE).long().argmax(-1)
        has = (ids == CLOSE).any(-1) & (close < ids.shape[1] - 1)
        said = ids.gather(1, (close + 1).clamp(max=ids.shape[1] - 1)[:, None]).squeeze(1)
        return (has & (said == gold[prompt])).double()

    return Task(torch.zeros(6, 6, 6, dtype=torch.float64), own, pay, end=END, sharing=0.0)


def thinking_entropy(history: History) -> float:
    """Entropy of the first thinking states at the end, nats."""
    log_p = history.world.logits()[:, :4, :2].log_softmax(-1)
    return float(-(log_p.exp() * log_p).sum(-1).mean())


def measure(bench: Bench) -> Findings:
    link = Pear(close=(CLOSE,))
    arms = trained(bench, scratchpad, {"GRPO": Arm(objective=link.recipe()), "PEAR": Arm(link), "its placebo": Arm(placebo(link))}, SETTINGS)
    thought = {name: [thinking_entropy(history) for history in found] for name, found in arms.runs.items()}
    less = [a - b for a, b in zip(thought["PEAR"], thought["GRPO"], strict=True)]
    return Findings(
        (
            over("length", "length at the end, PEAR less GRPO", arms.end("PEAR", "GRPO", "length"), "tokens"),
            over("placebo", "length at the end, PEAR less its placebo", arms.end("PEAR", "its placebo", "length"), "tokens"),
            over("reward", "accuracy at the end, PEAR less GRPO", arms.end("PEAR", "GRPO")),
            over("thought", "entropy of thinking states at the end, PEAR less GRPO", less, "nats"),
        ),
        (
            learning(arms.runs, "length", title="Length", y="tokens"),
            learning(arms.runs, title="Accuracy", y="accuracy"),
        ),
    )  # fmt: skip


CLAIM = Claim(
    slug="pear",
    title="PEAR: Phase Entropy Aware Reward for Efficient Reasoning",
    sentence="Subtracting the excess of thinking entropy over answer entropy from the reward of right answers shortens responses and keeps accuracy.",
    figure="six benchmarks, accuracy and tokens: 55.73, 4805 to 56.45, 3250 (1.5B); 74.85, 7428 to 74.27, 3221 (Qwen3-4B)",
    source="notes on arXiv 2510.08026 cross-checked with public reviews",
    ours="A scratchpad of free length in which every thought helps a little, a closing tag, an answer; the same penalties on other answers as placebo.",
    scale="tabular policy, 6 prompts, at most 6 tokens out of 6, 16 samples, 60 updates",
    minutes=1.0,
    measure=measure,
    seeds=8,
    expects=(
        Expect("length", "PEAR ends with shorter responses than GRPO", high=0.0),
        Expect("placebo", "shorter than its placebo's", high=0.0),
        Expect("reward", "it ends with as much accuracy as GRPO (within 0.02)", low=-0.02),
    ),
    untested="text, where low mean entropy and short length may go together for other reasons",
)
