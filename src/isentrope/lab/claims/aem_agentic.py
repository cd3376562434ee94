"""Whether modulation by entropy raises entropy while failures prevail and lowers it once successes do: a task whose failures take more turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.papers.aem_agentic import AemAgentic
from isentrope.control.placebo import placebo
from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Rollouts, State
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, over
from isentrope.lab.pictures import bands
from isentrope.lab.tabular import History, Settings, Task, task, train

SETTINGS = Settings(updates=160, samples=8, rate=2.0, every=4)
SOLVED, WORDS = 3, 4  # the token that ends an episode, and of how many tokens it is one
TURN = 2  # tokens of a turn


@dataclass(frozen=True)
class Turns(Intervention):
    """AEM on turns of two tokens, which the tabular host does not mark; or its placebo. recentre: takes the token mean out again."""

    name = "turns"
    inner: Intervention
    recentre: bool = False

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.inner.needs

    def advantage(self, rollouts: Rollouts, state: State) -> Float64[Tensor, "response token"]:
        mask = rollouts.trained_mask
        turn = (torch.arange(mask.shape[1]) // TURN).expand(mask.shape)
        shaped = self.inner.advantage(replace(rollouts, turn=turn), state).expand(mask.shape)  # type: ignore[attr-defined]  # AEM, or its placebo
        if self.recentre:
            shaped = shaped - shaped[mask].mean() + rollouts.token_advantage()[mask].mean()
        return torch.where(mask, shaped, 0.0)


AEM = AemAgentic()
ARMS: dict[str, Sequence[Intervention]] = {
    "A": (), "alpha A": (Turns(AEM),), "alpha A, permuted": (Turns(placebo(AEM)),), "alpha A, mean kept at A's": (Turns(AEM, recentre=True),),
    "alpha A, strength 3": (Turns(AemAgentic(strength=3.0)),),
}  # fmt: skip


def measure(bench: Bench) -> Findings:
    arms: dict[str, list[History]] = {name: [] for name in ARMS}
    equal = {}
    for seed in range(bench.seeds):
        bench.tell(f"episodes, seed {seed + 1} of {bench.seeds}")
        for name, links in ARMS.items():
            arms[name].append(train(episodes(seed), links, seed=seed, objective=Objective.named("dapo"), settings=SETTINGS))
        for name in ("A", "alpha A"):
            equal.setdefault(name, []).append(train(episodes(seed), ARMS[name], seed=seed, objective=Objective.named("grpo"), settings=SETTINGS))
    base, aem, other, kept, strong = arms.values()
    return Findings(
        (
            over("early", "entropy while most episodes fail, alpha A less A, at equal reward", _each(early, base, aem), "nats"),
            over("late", "entropy once most succeed, alpha A less A, at equal reward", _each(late, base, aem), "nats"),
            over("cause", "entropy while most fail, alpha A less permuted factors, at equal reward", _each(early, other, aem), "nats"),
            over("speed", "mean reward along training, alpha A less A", _gain(base, aem)),
            over("mechanism", "entropy while most fail, alpha A less the same with A's mean, at equal reward", _each(early, kept, aem), "nats"),
            over("grpo", "as the first, every episode weighing the same (GRPO's mean)", _each(early, equal["A"], equal["alpha A"]), "nats"),
            over("strong", "as the first, at strength 3", _each(early, base, strong), "nats"),
            over("strong-speed", "mean reward along training, strength 3 less A", _gain(base, strong)),
            over("start", "share of successes at the start", [item["reward"][0] for item in base]),
            over("end", "share of successes at the end, A", [item["reward"][-1] for item in base]),
        ),
        (
            Picture("Entropy along training", bands(arms, "update", "entropy", x="update", y="token entropy, nats"), "Mean over seeds, 95 % intervals."),
            Picture("Success along training", bands(arms, "update", "reward", x="update", y="expected reward"), "Mean over seeds, 95 % intervals."),
        ),
    )


def episodes(seed: int) -> Task:
    """Up to three turns of two tokens. One token solves it and ends the episode; who never says it fails, after six."""

    def pay(_: Tensor, ids: Tensor) -> Tensor:
        return (ids == SOLVED).any(-1).double()

    world = task(pay, seed, prompts=8, length=3 * TURN, vocab=WORDS, sharpness=0.7, end=SOLVED)
    own = world.own.clone()
    own[..., SOLVED] -= 3.0  # nine episodes of ten fail at the start
    return replace(world, own=own)


def early(base: History, other: History) -> float:
    """Mean difference of entropy at equal reward, from the start to one half, nats."""
    return _between(base, other, float(base["reward"][0]), 0.5)


def late(base: History, other: History) -> float:
    """The same from one half to nine tenths."""
    return _between(base, other, 0.5, 0.9)


def _between(base: History, other: History, low: float, high: float) -> float:
    return float(np.mean([other.at(level) - base.at(level) for level in np.linspace(low, high, 11)[1:-1]]))


def _gain(base: list[History], other: list[History]) -> list[float]:
    return [float(two["reward"].mean() - one["reward"].mean()) for one, two in zip(base, other, strict=True)]


def _each(what: Callable[[History, History], float], base: list[History], other: list[History]) -> list[float]:
    return [what(one, two) for one, two in zip(base, other, strict=True)]


CLAIM = Claim(
    slug="aem-agentic",
    title="AEM: Adaptive Entropy Modulation for Multi-Turn Agentic Reinforcement Learning",
    sentence="Scaling advantages down for uncertain turns raises entropy while failures prevail and lowers it once successes do, and improves success.",
    figure="ALFWorld 68.0 -> 76.8 (GRPO) and 88.5 -> 94.5 (DAPO) with Qwen2.5-1.5B; entropy rises early and decays later",
    source="a third-party reading of v1; no code found",
    ours="Episodes of up to three turns that end when solved, so that failures have more turns: advantages as they are, modulated, modulated with "
    "permuted factors, and modulated with the mean of before put back.",
    scale="tabular policy, 8 prompts, 160 updates of 64 episodes",
    minutes=3.0,
    measure=measure,
    seeds=12,
    expects=(
        Expect("early", "modulation keeps entropy higher while most episodes fail", low=0.0),
        Expect("late", "it has it lower once most succeed", high=0.0),
        Expect("cause", "early entropy is higher than with permuted factors", low=0.0),
        Expect("speed", "success along training is greater", low=0.0),
    ),
    untested="other strengths and scopes; agents with tools",
)
