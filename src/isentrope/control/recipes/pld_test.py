"""PLD: its gradient, its special cases, and what drives it to 0."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.control.recipes.pld import Pld, ranking, ranking_loss, teacher_weights

EXAMPLES, CLASSES = 5, 6


def scene(seed=0):
    draw = torch.Generator().manual_seed(seed)
    make = lambda: 2 * torch.randn(EXAMPLES, CLASSES, generator=draw, dtype=torch.float64)  # noqa: E731
    return make().requires_grad_(True), make(), torch.randint(CLASSES, (EXAMPLES,), generator=draw)


def test_by_hand():
    """Teacher (2, 1, 0), label 1: order 1, 0, 2. Student all 0: terms ln 3, ln 2, 0."""
    teacher = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    order = ranking(teacher, torch.tensor([1]))
    assert order.tolist() == [[1, 0, 2]]
    p = torch.softmax(teacher[0], -1)
    loss = Pld().loss(torch.zeros(1, 3, dtype=torch.float64), teacher, torch.tensor([1]))
    assert loss.item() == pytest.approx(float(p[1]) * math.log(3) + float(p[0]) * math.log(2))


def test_ties_keep_the_order_of_the_classes():
    assert ranking(torch.zeros(1, 4), torch.tensor([2])).tolist() == [[2, 0, 1, 3]]


def test_the_gradient_is_the_closed_form():
    student, teacher, label = scene()
    order = ranking(teacher, label)
    alpha = teacher_weights(teacher, order, 1.7)
    (slope,) = torch.autograd.grad(ranking_loss(student, order, alpha).sum(), student)
    expected = torch.zeros_like(slope)
    for e in range(EXAMPLES):
        for k in range(CLASSES):
            left = order[e, k:]
            expected[e, left] += alpha[e, k] * torch.softmax(student.detach()[e, left], -1)
            expected[e, order[e, k]] -= alpha[e, k]
    assert torch.allclose(slope, expected)
    assert slope.sum(-1).abs().max() < 1e-12


def test_special_cases():
    student, teacher, label = scene()
    order = ranking(teacher, label)
    one = torch.zeros(EXAMPLES, CLASSES, dtype=torch.float64)
    one[:, 0] = 1
    assert torch.allclose(ranking_loss(student, order, one), torch.nn.functional.cross_entropy(student, label, reduction="none"))
    s = student.gather(-1, order)
    list_mle = -sum(torch.log_softmax(s[:, k:], -1)[:, 0] for k in range(CLASSES))
    assert torch.allclose(ranking_loss(student, order, torch.full((EXAMPLES, CLASSES), 1 / CLASSES, dtype=torch.float64)), list_mle / CLASSES)
    sharp = teacher.scatter(-1, label[:, None], 50.0)
    assert torch.allclose(Pld(0.05).loss(student, sharp, label), torch.nn.functional.cross_entropy(student, label))
    assert torch.allclose(Pld(1e9).loss(student, teacher, label), list_mle.mean() / CLASSES)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), shift=st.floats(-20, 20))
def test_convex_non_negative_and_unmoved_by_a_constant(seed, share, shift):
    a, teacher, label = scene(seed)
    b = scene(seed + 1)[0]
    f = lambda s: Pld().loss(s, teacher, label)  # noqa: E731
    assert f(share * a + (1 - share) * b) <= share * f(a) + (1 - share) * f(b) + 1e-9
    assert f(a) >= 0
    assert torch.allclose(f(a + shift), f(a))
    assert not torch.allclose(f(2 * a), f(a))


def test_renaming_the_classes_changes_nothing():
    student, teacher, label = scene()
    names = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(Pld().loss(student[:, names], teacher[:, names], torch.argsort(names)[label]), Pld().loss(student, teacher, label))


def test_it_has_no_minimiser_the_teacher_itself_is_not_stationary():
    _, teacher, label = scene()
    order = ranking(teacher, label)
    spread = torch.empty(EXAMPLES, CLASSES, dtype=torch.float64).scatter_(-1, order, -torch.arange(CLASSES, dtype=torch.float64).expand(EXAMPLES, -1))
    losses = [float(Pld().loss(scale * spread, teacher, label)) for scale in (1, 3, 10, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-12
    same = teacher.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(Pld().loss(same, teacher, label), same)
    assert slope.abs().max() > 1e-3


def test_cutting_the_ranking_changes_the_loss_by_what_is_left_out():
    student, teacher, label = scene()
    order = ranking(teacher, label)
    alpha = teacher_weights(teacher, order)
    whole, cut = ranking_loss(student, order, alpha), ranking_loss(student, order, alpha, top=2)
    s = student.gather(-1, order)
    rest = sum(alpha[:, k] * -torch.log_softmax(s[:, k:], -1)[:, 0] for k in range(2, CLASSES))
    assert torch.allclose(whole - cut, rest)


def test_masked_classes_are_out_of_it():
    """A class that is -inf in both: the loss of the others, finite gradient."""
    student, teacher, label = scene()
    wide_student = torch.cat([student, torch.full((EXAMPLES, 1), -torch.inf, dtype=torch.float64)], -1)
    wide_teacher = torch.cat([teacher, torch.full((EXAMPLES, 1), -torch.inf, dtype=torch.float64)], -1)
    loss = Pld().loss(wide_student, wide_teacher, label)
    assert torch.allclose(loss, Pld().loss(student, teacher, label))
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_bad_parameters_and_no_example():
    with pytest.raises(ValueError, match="temperature must be > 0"):
        Pld(0)
    with pytest.raises(ValueError, match="top must be at least 1"):
        Pld(top=0)
    assert Pld().loss(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0
