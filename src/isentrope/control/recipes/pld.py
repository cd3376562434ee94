"""PLD: distillation by the Plackett-Luce likelihood of one ranking of the teacher's, each choice weighted by the teacher's confidence in it.

    pi_1 = y, then the other classes by falling teacher logit            alpha_k = softmax(t / tau)[pi_k], constants that sum to 1
    L    = sum_k alpha_k ( logsumexp_{l >= k} s[pi_l] - s[pi_k] )        mean over examples, nats
    dL/ds = sum_k alpha_k (sigma_k - e[pi_k])                            sigma_k: softmax of s over pi_k .. pi_C

| paper | here |
|---|---|
| s, t | `student`, `teacher` (detached) |
| tau_T | `temperature`, of alpha alone: it softens neither the student nor the order |
| alpha | `teacher_weights`; `alpha` replaces it in `ranking_loss` |

No cross-entropy beside it and no mixing weight. L is >= 0, convex in s, and unmoved by a constant added to s. It has no finite minimiser where all
alpha_k > 0: spreading the logits in the order of pi drives it to 0, so that the student's entropy falls as long as one trains (KL distillation
settles at the teacher's), and L tells nothing of calibration. alpha = (1, 0, ...) is cross-entropy; alpha = 1/C is ListMLE / C;
alpha_k = 2^(C-k) - 1 is position-aware ListMLE.

Paper and code: the paper's own listing (appendix C) is what is here; its text prints another alpha for the position-aware variant in the ablation,
which would be PLD itself. `top` (classes of the ranking kept, for large vocabularies) is ours: it changes L by at most the terms left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ranking(teacher: Float[Tensor, "*batch class"], label: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch class"]:
    """pi: the label, then the other classes by falling teacher logit; ties in the order of the classes."""
    first = torch.nn.functional.one_hot(label, teacher.shape[-1]).bool()
    return torch.where(first, torch.inf, teacher.detach()).argsort(dim=-1, descending=True, stable=True)


def teacher_weights(teacher: Float[Tensor, "*batch class"], order: Int[Tensor, "*batch class"], temperature: float = 1.0) -> Float[Tensor, "*batch class"]:
    """alpha: the teacher's softmax at `temperature`, in the order of the ranking; sums to 1. Masked classes (-inf) weigh 0."""
    if not temperature > 0:
        raise ValueError(f"PLD: temperature must be > 0. Got {temperature}. For cross-entropy alone pass alpha=(1, 0, ...) to ranking_loss.")
    wide = teacher.detach().to(torch.promote_types(teacher.dtype, torch.float32))
    return torch.softmax(wide / temperature, -1).gather(-1, order)


def ranking_loss(
    student: Float[Tensor, "*batch class"], order: Int[Tensor, "*batch class"], alpha: Float[Tensor, "*batch #class"], *, top: int | None = None
) -> Float[Tensor, "*batch"]:
    """sum_k alpha_k (logsumexp_{l >= k} s[pi_l] - s[pi_k]) of every example, nats, in float32 or wider.

    top: only the first so many choices (the sums still run over all classes that follow). Classes whose student logit is -inf are out of it.
    """
    s = student.to(torch.promote_types(student.dtype, torch.float32)).gather(-1, order)
    tail = s.flip(-1).logcumsumexp(-1).flip(-1)
    terms = torch.where(torch.isfinite(s), tail - s, 0.0)
    return (torch.where(torch.isfinite(s), alpha, 0.0) * terms)[..., :top].sum(-1)


@dataclass(frozen=True)
class Pld:
    """The loss of a batch. temperature: 1 on ImageNet, 4 on CIFAR-100 (paper). top: choices kept, None for all."""

    temperature: float = 1.0
    top: int | None = None

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"Pld: temperature must be > 0. Got {self.temperature}.")
        if self.top is not None and self.top < 1:
            raise ValueError(f"Pld: top must be at least 1, or None for all classes. Got {self.top}.")

    def loss(self, student: Float[Tensor, "example class"], teacher: Float[Tensor, "example class"], label: Int[Tensor, " example"]) -> Float[Tensor, ""]:
        """Mean over the examples; 0 of none."""
        order = ranking(teacher, label)
        return ranking_loss(student, order, teacher_weights(teacher, order, self.temperature), top=self.top).sum() / max(1, len(label))
