"""Tabular tasks that several claims share; everything in them follows from the seed."""

import torch

from isentrope.lab.tabular import Task, task


def two_modes(seed: int, *, prompts: int = 8, prior: float = 0.9) -> Task:
    """Answers of two tokens out of five: two of the first tokens are right (whatever follows), the first with `prior` of their probability.

    Every prompt has the same odds, right together at 0.3, with its own noise in what follows.
    """
    world = task(lambda _, ids: (ids[:, 0] < 2).double(), seed, prompts=prompts, length=2, vocab=5, sharpness=0.7)
    odds = torch.tensor([0.3 * prior, 0.3 * (1 - prior), 0.3, 0.25, 0.15], dtype=torch.float64).log()
    own = world.own.clone()
    own[:, 0, 0] = odds
    return Task(world.shared, own, world.pay, sharing=0.0)


def forks(seed: int, *, prompts: int = 8, sharing: float = 0.0) -> Task:
    """Answers of six tokens out of four, of which two decide and four are syntax: nearly forced by what stands before, and not paid for."""
    generator = torch.Generator().manual_seed(31 * seed + 5)
    gold = torch.randint(4, (prompts, 2), generator=generator)

    def pay(prompt, ids):
        return (ids[:, [1, 4]] == gold[prompt]).all(-1).double()

    return task(pay, seed, prompts=prompts, length=6, vocab=4, sharpness=0.8, forced=(0, 2, 3, 5), sharing=sharing)


def equal_arms(seed: int) -> Task:
    """One token out of eight, of which four are right and equally good: up to ln 4 = 1.39 nats cost no reward."""
    own = torch.zeros(8, 1, 8, 8, dtype=torch.float64)
    own[:, 0, 0] = 0.8 * torch.randn(8, 8, generator=torch.Generator().manual_seed(43 * seed + 9), dtype=torch.float64)
    return Task(torch.zeros(1, 8, 8, dtype=torch.float64), own, lambda _, ids: (ids[:, 0] < 4).double(), sharing=0.0)


def several_right(seed: int) -> Task:
    """Answers of two tokens out of six: three first tokens are right, each with one second token; several right answers, few of them likely."""
    generator = torch.Generator().manual_seed(61 * seed + 8)
    own = 0.8 * torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    gold = torch.randint(6, (8, 6), generator=generator)

    def pay(prompt, ids):
        return ((ids[:, 0] < 3) & (ids[:, 1] == gold[prompt, ids[:, 0]])).double()

    return Task(torch.zeros(2, 6, 6, dtype=torch.float64), own, pay, sharing=0.0)


def turns(seed: int) -> Task:
    """Six steps of one token out of four: three decide and are fairly sure, three are noise, where all actions are equally good and likely."""
    generator = torch.Generator().manual_seed(97 * seed + 2)
    own = torch.randn(8, 6, 4, 4, generator=generator, dtype=torch.float64)
    noise = (1, 3, 4)
    own[:, noise] *= 0.1
    gold = torch.randint(4, (8, 3), generator=generator)

    def pay(prompt, ids):
        return (ids[:, [0, 2, 5]] == gold[prompt]).sum(-1).ge(2).double()

    return Task(torch.zeros(6, 4, 4, dtype=torch.float64), own, pay, turn=(0, 1, 2, 3, 4, 5), sharing=0.0)


def sparse(seed: int) -> Task:
    """Three tokens out of four with one right answer of 64: about one response in sixty is right at the start."""
    gold = torch.randint(4, (16, 3), generator=torch.Generator().manual_seed(11 * seed + 1))
    return task(lambda prompt, ids: (ids == gold[prompt]).all(-1).double(), seed, prompts=16, length=3, vocab=4, sharpness=0.7, sharing=0.0)


def leaves(seed: int) -> Task:
    """Trees of four branches and depth six: three leaves in a hundred are right, at random."""
    right = torch.rand(16, 4**6, generator=torch.Generator().manual_seed(7 * seed + 2)) < 0.03
    place = 4 ** torch.arange(5, -1, -1)
    return task(lambda prompt, ids: right[prompt, (ids * place).sum(-1)].double(), seed, prompts=16, length=6, vocab=4, sharpness=0.5, sharing=0.0)
