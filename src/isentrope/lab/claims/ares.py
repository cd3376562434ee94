"""Windows of high entropy against a target by difficulty: as printed, where the target is the very mean it is compared with, and with one that lags."""

import torch

from isentrope.control.papers.ares import Ares, difficulty, high_threshold, high_windows
from isentrope.control.stages import chain
from isentrope.control.step import Progress, RowRng
from isentrope.lab.arms import Arm, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, exact, over
from isentrope.lab.pictures import curves
from isentrope.lab.tabular import Settings, Task, rolled

END, EASY = 3, 4
SETTINGS = Settings(updates=80, samples=16, rate=8.0)
LINK = Ares(width=1)


def easy_and_hard(seed: int) -> Task:
    """Answers of at most six tokens out of four, ended by token 3. Prompts 0 to 3 are right with one 1 in the text, 4 to 7 with three."""
    generator = torch.Generator().manual_seed(103 * seed + 5)
    own = 0.5 * torch.randn(8, 6, 4, 4, generator=generator, dtype=torch.float64)

    def pay(prompt, ids):
        text = (ids == END).long().cumsum(-1) == 0
        wanted = torch.where(prompt < EASY, 1, 3)
        return ((ids == 1) & text).sum(-1).ge(wanted).double()

    return Task(torch.zeros(6, 4, 4, dtype=torch.float64), own, pay, end=END, sharing=0.0)


def printed_multiplier(seed: int) -> float:
    """The largest lambda_d = max(0, (E[N|d] - N*_d) / (Var[N|d] + eps)) of a batch with N*_d = the batch's mean of N in bucket d, as printed."""
    rollouts, _ = rolled(easy_and_hard(seed), chain(LINK), (LINK.init(),), SETTINGS, Progress(), torch.Generator().manual_seed(seed), RowRng(seed=seed))
    entropy, mask = rollouts.signal("old.entropy"), rollouts.trained_mask
    count = high_windows(entropy, mask, high_threshold(entropy, mask, quantile=LINK.quantile), width=LINK.width)
    bucket = difficulty(rollouts.correct, rollouts.group, easy=LINK.easy, hard=LINK.hard)
    found = [0.0]
    for index in range(3):
        among = count[bucket == index]
        if len(among):
            target = among.sum() / len(among)
            found.append(max(0.0, float((among.mean() - target) / (among.var(correction=0) + 1e-6))))
    return max(found)


def measure(bench: Bench) -> Findings:
    arms = trained(bench, easy_and_hard, {"GRPO": Arm(objective=LINK.recipe()), "ARES, lagged target": Arm(LINK)}, SETTINGS)
    easy, hard = (
        [float((one["lengths"][-1] - two["lengths"][-1])[half].mean()) for one, two in zip(arms.runs["ARES, lagged target"], arms.runs["GRPO"], strict=True)]
        for half in (slice(0, EASY), slice(EASY, 8))
    )
    lines = {
        f"{kind}, {name}": (found[0]["update"], [history["lengths"][:, half].mean(-1) for history in found])
        for kind, half in (("easy", slice(0, EASY)), ("hard", slice(EASY, 8)))
        for name, found in (("GRPO", arms.runs["GRPO"]), ("ARES", arms.runs["ARES, lagged target"]))
    }
    return Findings(
        (
            over("gap", "length of hard less easy answers, ARES with a lagged target less GRPO", [b - a for a, b in zip(easy, hard, strict=True)], "tokens"),
            over("easy", "length of easy answers, ARES less GRPO", easy, "tokens"),
            over("hard", "length of hard answers, ARES less GRPO", hard, "tokens"),
            over("reward", "reward at the end, ARES less GRPO", arms.end("ARES, lagged target", "GRPO")),
            exact("printed", "largest multiplier of the printed rule over 100 batches", max(printed_multiplier(seed) for seed in range(100))),
        ),
        (Picture("Length by difficulty", curves(lines, x="update", y="tokens"), "Mean over seeds, 95 % intervals."),),
        ("As printed the target of a bucket is the batch mean of the very counts whose mean it is compared with, so the multiplier is 0 up to rounding.",),
    )


CLAIM = Claim(
    slug="ares",
    title="ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping",
    sentence="Paying for the count of high-entropy windows relative to a target per difficulty shortens easy answers and lengthens hard ones.",
    figure="GSM8K 332 to 279 tokens, AIME25 17.9k to 22.6k; multimodal average 55.9 against 46.2 (7B)",
    source="tables of arXiv 2510.08457, full text; degeneracy derived from its Eq. for the multiplier",
    ours="Prompts that need one or three tokens of a kind, an end token, the penalty with a target that lags; and the printed multiplier on 100 batches.",
    scale="tabular policy, 8 prompts, at most 6 tokens out of 4, 16 samples, 80 updates",
    minutes=1.0,
    measure=measure,
    seeds=8,
    expects=(
        Expect("gap", "hard answers gain length on easy ones, beyond what GRPO does", low=0.0),
        Expect("printed", "the printed multiplier is more than rounding", low=1e-6),
    ),
    untested="branching at windows, the KL that is relaxed inside them, images",
)
