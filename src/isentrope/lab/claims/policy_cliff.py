"""Whether a tie makes the learned policy jump at an arbitrarily small change of reward, and whether an entropy bonus makes it follow smoothly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.control.standard import EntropyBonus
from isentrope.control.step import Rollouts, State
from isentrope.explain.stability import hard_jump, optimal_actions, optimal_values, policy_shift_bound, tie_breaker
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, Picture, exact, over
from isentrope.lab.pictures import curves
from isentrope.lab.tabular import Settings, Task, train
from isentrope.lab.tabular import exact as known

SETTINGS = Settings(updates=150, samples=16, rate=1.0, every=150)
NUDGE = 0.01  # by how much one of two equally good answers is paid better, of a reward of 1
BONUS = 0.5
NUDGES = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Centred(Intervention):
    """Advantages R - mean, not divided by the group's spread."""

    name = "centred"

    def advantage(self, rollouts: Rollouts, state: State) -> Float64[Tensor, "response 1"]:
        return (rollouts.reward - rollouts.reward.mean())[:, None]  # one prompt is one group


def measure(bench: Bench) -> Findings:
    bonus = EntropyBonus(coef=BONUS)
    arms = {"GRPO": (), "GRPO, entropy bonus": (bonus,), "centred": (Centred(),), "centred, entropy bonus": (Centred(), bonus)}
    along: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    seeds = []
    for seed in range(bench.seeds):
        bench.tell(f"a tie, seed {seed + 1} of {bench.seeds}")
        for name, links in arms.items():
            along[name].append(np.array([shift(seed, links, nudge) for nudge in NUDGES]))
        seeds.append(between(learned(seed, (), 0.0), learned(seed + 1000, (), 0.0)))
    at = {name: [float(found[NUDGES.index(NUDGE)]) for found in values] for name, values in along.items()}
    jumps = [jump(seed) for seed in range(bench.seeds)]
    places = np.log10(np.array(NUDGES))
    return Findings(
        (
            over("tie", f"TV between policies that GRPO learns from rewards that differ by {NUDGE}", at["GRPO"]),
            over("bonus", f"the same with an entropy bonus of {BONUS}", at["GRPO, entropy bonus"]),
            over("less", "the bonus less without it", [two - one for one, two in zip(at["GRPO"], at["GRPO, entropy bonus"], strict=True)]),
            over("centred", "advantages not divided by the spread, without a bonus", at["centred"]),
            over("centred-bonus", "advantages not divided by the spread, with the bonus", at["centred, entropy bonus"]),
            over("seeds", "TV between policies learned from one reward, another seed", seeds),
            exact("jump", "largest distance of the optimal policy's jump from (m - 1) / m, 3 tied actions, change of reward 1e-6", max(jumps)),
            exact("bound", "TV that the optimal policy with this bonus can move at most", policy_shift_bound(NUDGE, coef=BONUS)),
        ),
        (
            Picture(
                "How far the learned policy moves with its reward",
                curves({name: (places, values) for name, values in along.items()}, x="log10 of the change of reward", y="TV"),
                "Two runs of the same seed, in which one or the other of two equally good answers is paid better. Mean over seeds, 95 % intervals.",
            ),
        ),
        (
            "GRPO divides by the spread of rewards in a group: once only the two good answers are sampled, any difference between them, however small, is "
            "scaled to 1. The bound is one for rewards; a bonus cannot keep it for what the division has made of them.",
        ),
    )


def learned(seed: int, links: Sequence[Intervention], nudge: float) -> torch.Tensor:
    """The policy after training: answers 0 and 1 are paid 1, answer 0 `nudge` more (or less), two others nothing."""
    paid = torch.tensor([1.0 + nudge / 2, 1.0 - nudge / 2, 0.0, 0.0], dtype=torch.float64)
    world = Task(torch.zeros(1, 4, 4, dtype=torch.float64), torch.zeros(1, 1, 4, 4, dtype=torch.float64), lambda _, ids: paid[ids[:, 0]])
    history = train(world, links, seed=seed, objective=Objective.named("grpo"), settings=SETTINGS)
    return known(history.world).answers[0]


def shift(seed: int, links: Sequence[Intervention], nudge: float) -> float:
    """TV between the policies that two opposite nudges teach, everything else and every random number being equal."""
    return between(learned(seed, links, nudge), learned(seed, links, -nudge))


def between(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().sum() / 2)


def jump(seed: int) -> float:
    """Of a random decision problem with three tied actions: how far the jump is from 2/3 when the reward changes by 1e-6."""
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    transition = torch.rand(5, 4, 5, generator=generator, dtype=torch.float64).softmax(-1)
    reward[0, :3], transition[0, :3] = 2.0, transition[0, 0]
    changed = tie_breaker(reward, transition, state=0, action=1, size=1e-6, discount=0.8)
    policies = []
    for paid, tolerance in ((reward, 1e-9), (changed, 1e-8)):
        best = optimal_actions(optimal_values(paid, transition, discount=0.8), tolerance=tolerance)[0].double()
        policies.append(best / best.sum())
    return abs(between(*policies) - hard_jump(3))


CLAIM = Claim(
    slug="policy-cliff",
    title="The Policy Cliff: A Theoretical Analysis of Reward-Policy Maps in Large Language Models",
    sentence="Where two actions tie, an arbitrarily small change of reward moves the optimal policy by a constant, and an entropy bonus makes it "
    "move in proportion.",
    figure="no effect sizes; the jump is (m - 1) / m of the mass for m tied actions, the smooth bound |dR| / (2 alpha (1 - gamma))",
    source="sections 2-4 and the appendix of the paper's LaTeX source",
    ours="Two answers paid alike up to 0.01 and two that are not paid; pairs of GRPO trainings of one seed that differ in which of the two is paid "
    "better, with and without an entropy bonus. The theorem itself on random decision problems.",
    scale="one state, 4 answers, 150 updates of 16 responses",
    minutes=3.0,
    measure=measure,
    seeds=12,
    expects=(
        Expect("tie", "a difference of 0.01 moves the learned policy by at least half of its mass", low=0.5),
        Expect("less", "an entropy bonus at least halves that", high=-0.25),
        Expect("jump", "the optimal policy jumps by (m - 1) / m to rounding", high=1e-9),
    ),
    untested="reward models of a language model; the theory says nothing of learned policies, of which the first two expectations speak",
)
