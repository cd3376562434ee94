"""Halves of a group by entropy: a faster teacher where entropy tells right from wrong, whichever way, and a neutral one where it does not."""

import torch

from isentrope.control.papers.canon import Canon
from isentrope.control.step import Rollouts, RowRng
from isentrope.lab.arms import Arm, Arms, trained
from isentrope.lab.bench import Bench
from isentrope.lab.claim import Claim, Expect, Findings, over
from isentrope.lab.pictures import learning
from isentrope.lab.tabular import Settings, Task

SETTINGS = Settings(updates=80, samples=16, rate=15.0)


class RandomHalves(Canon):
    """The paper's own control: halves drawn at random, the same for a row however rows are ordered."""

    def _metric(self, rollouts: Rollouts) -> torch.Tensor:
        return RowRng(seed=5).uniform(rollouts.row_id, 1).squeeze(1)


def tagged(kind: str):
    """Answers of three tokens: the first chooses a style, flat (token 0 or 1) or peaked (2 or 3), the second and third follow it.

    kind: "flat", right answers are likelier in the flat style; "peaked", in the other; "neither", in both alike.
    """

    def world(seed: int) -> Task:
        generator = torch.Generator().manual_seed(17 * seed + 2)
        own = 0.3 * torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64)
        own[:, 1, 2:] *= 10.0  # after a peaked first token
        own[:, 2] = 3.0 * own[:, 2, :1]  # whatever stands before: entropy tells of the style, and of nothing else that is paid
        gold = torch.randint(4, (8,), generator=generator)

        def pay(prompt, ids):
            styled = {"flat": ids[:, 0] < 2, "peaked": ids[:, 0] >= 2, "neither": ids[:, 0] >= 0}[kind]
            return (styled & (ids[:, 2] == gold[prompt])).double()

        return Task(torch.zeros(3, 4, 4, dtype=torch.float64), own, pay, sharing=0.0)

    return world


def measure(bench: Bench) -> Findings:
    found: dict[str, Arms] = {}
    for kind in ("flat", "peaked", "neither"):
        link = Canon(inter=1.0)
        known = {
            "Dr.GRPO": Arm(Canon(inter=0.5)),
            "CANON inter": Arm(link),
            "CANON intra": Arm(Canon(inter=0.0)),
            "random halves": Arm(RandomHalves(inter=1.0)),
        }
        found[kind] = trained(bench, tagged(kind), known, SETTINGS)
    speed = {kind: arms.area("CANON inter", "Dr.GRPO") for kind, arms in found.items()}
    drift, intra = found["neither"].matched("CANON inter", "Dr.GRPO"), found["flat"].matched("CANON intra", "Dr.GRPO")
    return Findings(
        (
            over("flat", "mean reward over the training, inter less Dr.GRPO, where entropy marks right answers", speed["flat"]),
            over("peaked", "the same where low entropy marks them", speed["peaked"]),
            over("placebo", "the same against random halves, where entropy marks right answers", found["flat"].area("CANON inter", "random halves")),
            over("neither", "the same against Dr.GRPO, where entropy tells nothing", speed["neither"]),
            over("drift", "entropy at equal reward, inter less Dr.GRPO, where entropy tells nothing", drift, "nats"),
            over("intra", "entropy at equal reward, intra less Dr.GRPO, where entropy marks right answers", intra, "nats"),
        ),
        (
            learning(found["flat"].runs, title="High entropy marks right answers", y="expected reward"),
            learning(found["peaked"].runs, title="Low entropy marks them", y="expected reward"),
        ),
    )  # fmt: skip


CLAIM = Claim(
    slug="canon",
    title="Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models",
    sentence="Comparing across the halves of a group by entropy speeds learning whichever direction of entropy is useful, without choosing it or drifting.",
    figure="six mathematics sets, Dr.GRPO 55.7, CANON by entropy 57.6 (Qwen2.5-Math-7B); AIME24 27.7 and 32.7",
    source="full text of arXiv 2509.23962, main table",
    ours="A first token that chooses a flat or a peaked style; right answers lie in one of them, in the other, or in both alike.",
    scale="tabular policy, 8 prompts, 3 tokens out of 4, 16 samples, 80 updates, three tasks",
    minutes=1.2,
    measure=measure,
    seeds=8,
    expects=(
        Expect("flat", "the inter-half baseline learns faster where high entropy marks right answers", low=0.0),
        Expect("peaked", "it does where low entropy marks them", low=0.0),
        Expect("placebo", "it learns faster than with random halves", low=0.0),
        Expect("drift", "it moves entropy by less than 0.01 nats where entropy tells nothing", low=-0.01, high=0.01),
    ),
    untested="length as the metric, and the schedules",
)
