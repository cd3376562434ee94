"""Measures of sampled answers: pass@k, maj@k, answer entropy, and a bootstrap interval over prompts. Pure functions."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, in the unit of the values."""

    value: float
    low: float
    high: float


def pass_at_k(correct: Int[Tensor, "*batch"], samples: int, k: int) -> Float[Tensor, "*batch"]:
    """Unbiased pass@k, a probability: 1 - C(n-c, k) / C(n, k) for c correct among n samples.

    The chance that k of the n samples, drawn without replacement, hold a correct one; its mean over sample sets is
    1 - (1-p)^k. float64. Raises ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Chen et al. 2021, arXiv 2107.03374, Eq. 1.

    >>> pass_at_k(torch.tensor([0, 1, 4]), samples=4, k=2)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: k must lie in [1, samples]. Got k={k}, samples={samples}. Draw more samples, or ask for less.")
    if ((correct < 0) | (correct > samples)).any():
        raise ValueError(f"pass_at_k: correct must lie in [0, samples={samples}]. Got {correct.tolist()}.")
    drawn = torch.arange(k, dtype=torch.float64)
    wrong = (samples - correct).double().unsqueeze(-1)
    return 1 - ((wrong - drawn).clamp(min=0) / (samples - drawn)).prod(-1)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """maj@k of one prompt, a probability: the chance that the majority of k answers is right; exact.

    The k answers are drawn without replacement from the n given; equal answers form a cluster; the largest cluster in the draw wins, ties
    are broken uniformly at random, None (no answer) does not vote, and a draw without votes is wrong. A cluster whose members
    were judged differently counts with its share of right ones. No simulation: hypergeometric counts are summed.
    Raises ValueError unless 1 <= k <= n. Source: Wang et al. 2022, arXiv 2203.11171 (self-consistency); tie rule ours.

    >>> maj_at_k(["7", "7", "8"], [True, True, False], k=3)
    1.0
    """
    if len(answers) != len(correct):
        raise ValueError(f"maj_at_k: answers and correct must be equally long. Got {len(answers)} and {len(correct)}.")
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj_at_k: k must lie in [1, {len(answers)}], the number of answers. Got {k}.")
    sizes = Counter(answers)
    silent = sizes.pop(None, 0)
    right: defaultdict[Hashable, int] = defaultdict(int)
    for answer, judged in zip(answers, correct, strict=True):
        right[answer] += bool(judged)
    total = 0.0
    for answer, size in sizes.items():
        if right[answer]:
            others = [n for other, n in sizes.items() if other != answer]
            total += right[answer] / size * _wins(size, others, silent, k)
    return total / math.comb(len(answers), k)


def answer_entropy(answers: Sequence[Hashable | None]) -> float:
    """Plug-in Shannon entropy of the answers of one prompt, in nats: -sum_i f_i ln f_i over clusters of equal answers.

    Range [0, ln n]. None (no answer) is a cluster of its own. Biased low by about (clusters - 1) / 2n (Miller 1955).

    >>> round(answer_entropy(["7", "7", "8", "8"]), 4)
    0.6931
    """
    if not answers:
        raise ValueError("answer_entropy: needs at least one answer. Got none.")
    n = len(answers)
    return -sum(size / n * math.log(size / n) for size in Counter(answers).values()) + 0.0


def bootstrap_interval(
    values: Float[Tensor, " prompt"],
    *,
    weights: Float[Tensor, " prompt"] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The (weighted) mean of values and its percentile bootstrap interval, prompts resampled, in the values' unit.

    With `weights` the statistic is sum w v / sum w, and a prompt is drawn with its weight (a token mean: w = tokens of the prompt).
    Deterministic in `seed`; the global random state is not touched. Source: Efron 1979. Raises ValueError when empty or not finite.
    """
    if values.numel() == 0 or not values.isfinite().all():
        raise ValueError(f"bootstrap_interval: values must be finite and at least one. Got {values.tolist()[:8]}.")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level must be a fraction in (0, 1). Got {level}. For 95 % write 0.95.")
    v = values.double()
    w = torch.ones_like(v) if weights is None else weights.double()
    if not (w.sum() > 0 and (w >= 0).all()):
        raise ValueError("bootstrap_interval: weights must be non-negative with a positive sum.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(v), (resamples, len(v)), generator=generator)
    means = (w * v)[drawn].sum(-1) / w[drawn].sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float((w * v).sum() / w.sum()), low, high)


def _wins(size: int, others: Sequence[int], silent: int, k: int) -> float:
    """Number of draws of k (ties counted by their share) that a cluster of `size` wins against `others` and `silent` non-voters."""
    won = 0.0
    for votes in range(1, min(size, k) + 1):
        ways = {(0, 0): 1}  # (answers drawn from the others, clusters tied with ours) -> number of draws
        for other in others:
            grown: defaultdict[tuple[int, int], int] = defaultdict(int)
            for (drawn, tied), count in ways.items():
                for more in range(min(other, votes, k - votes - drawn) + 1):
                    grown[drawn + more, tied + (more == votes)] += count * math.comb(other, more)
            ways = grown
        for (drawn, tied), count in ways.items():
            rest = k - votes - drawn
            won += math.comb(size, votes) * count * math.comb(silent, rest) / (tied + 1)
    return won
