"""Whether the sign of S - N tells where a token takes the entropy, and whether dropping the predicted reducers keeps entropy up."""

import torch

from isentrope.control.papers.rft_entropy_dynamics import ClipB, ClipV
from isentrope.control.placebo import placebo
from isentrope.explain.theory import discriminant, expected_discriminant
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.claims._walk import alone, walk
from isentrope.lab.claims._worlds import forks
from isentrope.lab.pictures import bands
from isentrope.lab.tabular import Settings, matched, train

SETTINGS = Settings(updates=100, samples=8, rate=2.0, inner=4, every=5)
CLIP_B, CLIP_V = ClipB(mu=1.5), ClipV(mu=1.5, max_share=0.02)
ARMS = {"GRPO": None, "Clip_B": CLIP_B, "Clip_V": CLIP_V, "Clip_B placebo": placebo(CLIP_B), "Clip_V placebo": placebo(CLIP_V)}


def measure(bench: Bench) -> Findings:
    signs, still = [], []
    arms: dict[str, list] = {name: [] for name in ARMS}
    for seed in range(bench.seeds):
        bench.tell(f"forks, seed {seed + 1} of {bench.seeds}")
        right, zero = agreement(seed)
        signs.append(right)
        still.append(zero)
        for name, link in ARMS.items():
            arms[name].append(train(forks(seed), () if link is None else link, seed=seed, objective=CLIP_B.recipe(), settings=SETTINGS))
    gap = {(base, other): [matched(one, two) for one, two in zip(arms[base], arms[other], strict=True)] for base, other in PAIRS}
    last = {name: [history["reward"][-1] for history in found] for name, found in arms.items()}
    return Findings(
        (
            over("sign", "share of tokens whose entropy change has the predicted sign", signs),
            over("clip-b", "entropy of Clip_B less GRPO's at equal reward", gap["GRPO", "Clip_B"], "nats"),
            over("clip-v", "entropy of Clip_V less GRPO's at equal reward", gap["GRPO", "Clip_V"], "nats"),
            over("clip-b-cause", "entropy of Clip_B less its placebo's at equal reward", gap["Clip_B placebo", "Clip_B"], "nats"),
            over("clip-v-cause", "entropy of Clip_V less its placebo's at equal reward", gap["Clip_V placebo", "Clip_V"], "nats"),
            over("clip-b-speed", "reward at the end, Clip_B less GRPO", [a - b for a, b in zip(last["Clip_B"], last["GRPO"], strict=True)]),
            over("clip-v-speed", "reward at the end, Clip_V less GRPO", [a - b for a, b in zip(last["Clip_V"], last["GRPO"], strict=True)]),
            over("neutral", "share of tokens too near to S = N or A = 0 to be counted", still),
        ),
        (
            Picture(
                "Entropy as reward rises", bands(arms, "reward", "entropy", x="expected reward", y="token entropy, nats"), "Mean over seeds, 95 % intervals."
            ),
        ),
        (
            "A token's sign is that of its own state's entropy change under a real step of size 0.05 on it alone, in batches along a GRPO training; tokens "
            "that move less than 1e-9 nats are not counted.",
        ),
    )


PAIRS = (("GRPO", "Clip_B"), ("GRPO", "Clip_V"), ("Clip_B placebo", "Clip_B"), ("Clip_V placebo", "Clip_V"))


def agreement(seed: int) -> tuple[float, float]:
    """Share of moved tokens whose sign is predicted, and share of tokens that are not moved."""
    right, counted, total = 0.0, 0.0, 0
    settings = Settings(updates=100, samples=8, rate=8.0)
    for at, moment in enumerate(walk(forks(seed), seed=seed, settings=settings, objective=CLIP_B.recipe())):
        if at % 10:
            continue
        truth = alone(moment, 0.05)
        s = discriminant(moment.log_probs).gather(-1, moment.token[:, None]).squeeze(-1)
        predicted = -moment.advantage * (s - expected_discriminant(moment.log_probs))
        moved = truth.abs() > 1e-9
        right += float((torch.sign(predicted) == torch.sign(truth))[moved].sum())
        counted += float(moved.sum())
        total += len(truth)
    return right / counted, 1 - counted / total


CLAIM = Claim(
    slug="rft-entropy-dynamics",
    title="On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models",
    sentence="The sign of S - N decides whether rewarding a token lowers or raises entropy, and clipping the predicted reducers keeps entropy above GRPO's.",
    figure="no table in what could be read; theorems 3.2 and 3.3, entropy curves of Qwen2.5-7B-Instruct on DAPO-Math-17k",
    source="a secondary summary of the theorems; the released code of Clip_B and Clip_V",
    ours="Every token of the batches of a GRPO training by itself, then GRPO, Clip_B (mu 1.5), Clip_V (mu 1.5, at most 2 %) and their placebos at "
    "equal expected reward, on nearly forced syntax around two decisive tokens per answer.",
    scale="tabular policy, 8 prompts, 6 tokens out of 4, 100 generations of 64 responses, 4 steps each",
    minutes=4.0,
    measure=measure,
    seeds=8,
    expects=(
        Expect("sign", "at least 95 % of the tokens go where S - N says", low=0.95),
        Expect("clip-b", "Clip_B keeps more entropy than GRPO at equal reward", low=0.0),
        Expect("clip-v", "Clip_V does", low=0.0),
        Expect("clip-b-cause", "Clip_B keeps more than its placebo", low=0.0),
        Expect("clip-v-cause", "Clip_V keeps more than its placebo", low=0.0),
    ),
    untested="performance on mathematics; the two-sided rule",
)
