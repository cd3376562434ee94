"""PLD on ten overlapping blobs: a wide teacher, a small student, few labels. Accuracy, and what each loss does to the student's entropy.

The sheet's question: does the student's entropy keep falling under PLD, where it settles at the teacher's under KL distillation?
"""

import functools

import torch
from torch import Tensor, nn

from isentrope.control.recipes.pld import Pld, ranking, ranking_loss, teacher_weights

STEPS = 2000
CLASSES, DIMENSIONS, LABELS, HELD_OUT = 10, 8, 300, 4000
ARMS = {
    "neutral": "cross-entropy on the labels",
    "pld": "PLD at temperature 1",
    "placebo": "PLD with the teacher's order after the label drawn at random, its weights kept by rank",
    "kd": "KL to the teacher at temperature 1",
}
FIGURES = {
    "accuracy": f"on {HELD_OUT} held-out points",
    "entropy": "of the student, mean over them, nats",
    "entropy half-way": "the same after half of the updates",
    "teacher entropy": "of the teacher on them, nats",
    "calibration error": "expected, 15 bins",
    "teacher KL": "KL(teacher || student), nats",
}


def _points(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    centres = 1.6 * torch.randn(CLASSES, DIMENSIONS, generator=torch.Generator().manual_seed(77))
    label = torch.randint(CLASSES, (count,), generator=draw)
    return centres[label] + 1.5 * torch.randn(count, DIMENSIONS, generator=draw), label


def _network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIMENSIONS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


@functools.cache
def _teacher(seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(1000 + seed)
    network = _network(256, seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(800):
        x, y = _points(256, draw)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network.eval().requires_grad_(False)


def _shuffled(teacher: Tensor, label: Tensor) -> Tensor:
    """The loss's teacher with the classes after the label in random order, always the same for a point."""
    order = ranking(teacher, label)
    draw = torch.Generator().manual_seed(5)
    keys = torch.rand(order[:, 1:].shape, generator=draw)
    return torch.cat([order[:, :1], order[:, 1:].gather(-1, keys.argsort(-1))], -1)


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one student."""
    draw = torch.Generator().manual_seed(seed)
    x, y = _points(LABELS, draw)
    held_x, held_y = _points(HELD_OUT, torch.Generator().manual_seed(9999 + seed))
    teacher = _teacher(seed)
    target, held_target = teacher(x), teacher(held_x)
    order, alpha = ranking(target, y), teacher_weights(target, ranking(target, y))
    wrong = _shuffled(target, y)
    losses = {
        "neutral": lambda s, rows: nn.functional.cross_entropy(s, y[rows]),
        "pld": lambda s, rows: Pld().loss(s, target[rows], y[rows]),
        "placebo": lambda s, rows: ranking_loss(s, wrong[rows], alpha[rows]).mean(),
        "kd": lambda s, rows: nn.functional.kl_div(s.log_softmax(-1), target[rows].log_softmax(-1), log_target=True, reduction="batchmean"),
    }
    assert order.shape == wrong.shape
    student = _network(32, 100 + seed)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=1e-2)
    half_way = float("nan")
    for step in range(steps):
        rows = torch.randint(LABELS, (64,), generator=draw)
        optimiser.zero_grad()
        losses[name](student(x[rows]), rows).backward()
        optimiser.step()
        if step + 1 == max(1, steps // 2):
            half_way = _entropy(student, held_x)
    return {**_figures(student, held_x, held_y, held_target), "entropy half-way": half_way}


@torch.no_grad()
def _entropy(student: nn.Module, x: Tensor) -> float:
    return float(torch.special.entr(student(x).softmax(-1)).sum(-1).mean())


@torch.no_grad()
def _figures(student: nn.Module, x: Tensor, y: Tensor, teacher: Tensor) -> dict[str, float]:
    log_p = student(x).log_softmax(-1)
    confidence, guess = log_p.exp().max(-1)
    right = (guess == y).double()
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [float((confidence[bins == b].double() - right[bins == b]).sum().abs()) for b in range(15)]
    return {
        "accuracy": float(right.mean()),
        "entropy": _entropy(student, x),
        "teacher entropy": float(torch.special.entr(teacher.softmax(-1)).sum(-1).mean()),
        "calibration error": sum(gaps) / len(x),
        "teacher KL": float(nn.functional.kl_div(log_p, teacher.log_softmax(-1), log_target=True, reduction="batchmean")),
    }
