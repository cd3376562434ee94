"""Whether favouring confident answers gives up entropy, and whether ARM, which does the opposite, keeps it: a bandit with two right answers."""

from isentrope.control.papers.entropy_performance_exchange import PerplexityShaping
from isentrope.control.papers.progrpo_arm import Arm
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.claims._worlds import two_modes
from isentrope.lab.pictures import bands
from isentrope.lab.tabular import Settings, matched, train

SETTINGS = Settings(updates=80, samples=16, rate=3.0)


def measure(bench: Bench) -> Findings:
    arms: dict[str, list] = {"GRPO": [], "perplexity shaping": [], "ARM": []}
    for seed in range(bench.seeds):
        bench.tell(f"two modes, seed {seed + 1} of {bench.seeds}")
        world = two_modes(seed)
        for name, link in (("GRPO", ()), ("perplexity shaping", PerplexityShaping(alpha=0.5)), ("ARM", Arm(alpha=0.3))):
            arms[name].append(train(world, link, seed=seed, settings=SETTINGS))
    gaps = {name: [matched(base, other) for base, other in zip(arms["GRPO"], arms[name], strict=True)] for name in ("perplexity shaping", "ARM")}
    last = {name: [history["reward"][-1] for history in found] for name, found in arms.items()}
    chart = bands(arms, "reward", "entropy", x="expected reward", y="token entropy, nats")
    return Findings(
        (
            over("ppl", "entropy of perplexity shaping less GRPO's at equal reward", gaps["perplexity shaping"], "nats"),
            over("arm", "entropy of ARM less GRPO's at equal reward", gaps["ARM"], "nats"),
            over("speed", "reward at the end, perplexity shaping less GRPO", [a - b for a, b in zip(last["perplexity shaping"], last["GRPO"], strict=True)]),
        ),
        (Picture("Entropy as reward rises", chart, "Mean over seeds, with 95 % intervals."),),
    )


CLAIM = Claim(
    slug="entropy-performance-exchange",
    title="Decomposing the Entropy-Performance Exchange",
    sentence="Scaling advantages up for low-perplexity responses improves the exchange of entropy for performance.",
    figure="+1.51 % (Qwen2.5-7B) and +2.31 % (Qwen2.5-Math-7B) on mathematics, 8 samples per question",
    source="a note on the paper and its abstract; the tables were not read",
    ours="Two equally right answers of unequal prior probability per prompt: GRPO, perplexity shaping (alpha 0.5) and ARM (alpha 0.3), entropy at "
    "equal expected reward.",
    scale="tabular policy, 8 prompts, 5 answers of 2 tokens, 80 updates",
    minutes=1.0,
    measure=measure,
    seeds=12,
    expects=(
        Expect("speed", "perplexity shaping ends with more reward than GRPO", low=0.0),
        Expect("ppl", "it keeps at least as much entropy at equal reward", low=-0.005),
    ),
    untested="position shaping; stages of a real run",
)
