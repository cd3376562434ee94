"""Measures of sampled answers: pass@k, maj@k, answer and semantic entropy, support, and a bootstrap interval over prompts. Pure functions.

Semantic entropy, over the samples i of one prompt with log-probability l_i and meaning c(i), in nats:

    w_i = exp(l_i) / sum_j exp(l_j)     p_c = sum of w_i over c(i) = c     SE = -sum_c p_c ln p_c = -sum_i w_i ln p_c(i)

The last form needs no list of clusters: any integers may name them, gaps included, and a batch needs no padding of clusters.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SemanticForm = Literal["normalised", "monte-carlo", "unnormalised"]
SupportMetric = Literal["srr", "ndr", "sds", "nscr"]


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


def answer_entropy(answers: Sequence[Hashable | None], *, correction: Literal["none", "miller-madow"] = "none") -> float:
    """Plug-in Shannon entropy of the answers of one prompt, in nats: -sum_i f_i ln f_i over clusters of equal answers.

    Range [0, ln n]. None (no answer) is a cluster of its own. Biased low by about (clusters - 1) / 2n, which the correction
    "miller-madow" adds (Miller 1955; the result can exceed ln n). Raises ValueError without answers.
    Source: sheet `invisible-leash`, method 8.

    >>> round(answer_entropy(["7", "7", "8", "8"]), 4)
    0.6931
    """
    if not answers:
        raise ValueError("answer_entropy: needs at least one answer. Got none.")
    if correction not in ("none", "miller-madow"):
        raise ValueError(f"answer_entropy: correction must be 'none' or 'miller-madow'. Got {correction!r}.")
    n, sizes = len(answers), Counter(answers).values()
    plug_in = -sum(size / n * math.log(size / n) for size in sizes) + 0.0
    return plug_in + (len(sizes) - 1) / (2 * n) if correction == "miller-madow" else plug_in


def semantic_entropy(
    log_probs: Float[Tensor, "*batch sample"],
    clusters: Int[Tensor, "*batch sample"],
    *,
    mask: Bool[Tensor, "*batch sample"] | None = None,
    form: SemanticForm = "normalised",
    released: bool = False,
) -> Float[Tensor, "*batch"]:
    """Entropy over meanings, weighted by likelihood, in nats. float32 or wider; differentiable in log_probs.

    `log_probs`: of each sample, the MEAN over its tokens in the published pipeline (length-normalised), or their sum. `clusters`: any integers.
    "normalised": SE = -sum_c p_c ln p_c with weights normalised over the samples; range [0, ln clusters]; the default, of the released pipeline.
    "monte-carlo": -mean_i ln P_c(i) with P_c = sum of exp(l) over the cluster, not normalised; at least -ln of all mass seen.
    "unnormalised": -sum_c P_c ln P_c. A common library adds this term once per sample, not per cluster: `released=True` (of this form only).
    Samples outside `mask` do not count; a row of none, or of only -inf, is NaN.
    Source: Kuhn et al. 2023, arXiv 2302.09664; Farquhar et al. 2024 (Nature 630); vectors README, `semantic-entropy`.

    >>> semantic_entropy(torch.zeros(4), torch.tensor([3, 3, 8, 8]))  # two meanings of equal weight: ln 2
    tensor(0.6931)
    """
    if form not in ("normalised", "monte-carlo", "unnormalised"):
        raise ValueError(f"semantic_entropy: form must be 'normalised', 'monte-carlo' or 'unnormalised'. Got {form!r}.")
    if released and form != "unnormalised":
        raise ValueError(f"semantic_entropy: released=True is of form='unnormalised' alone. Got form={form!r}. Leave released out.")
    own = cluster_log_probs(log_probs, clusters, mask=mask, normalised=form == "normalised")
    counted = torch.ones_like(clusters, dtype=torch.bool) if mask is None else mask
    values = _wide(log_probs).masked_fill(~counted, -torch.inf)
    if form == "monte-carlo":
        return -own.masked_fill(~counted, 0).sum(-1) / counted.sum(-1)
    if form == "normalised":
        weight = values.softmax(-1)
    else:
        weight = own.exp() if released else values.exp()
    seen = weight != 0  # NaN stays: a row without any mass has no entropy
    return -torch.where(seen, weight * own.masked_fill(~seen, 0), 0).sum(-1)


def cluster_log_probs(
    log_probs: Float[Tensor, "*batch sample"],
    clusters: Int[Tensor, "*batch sample"],
    *,
    mask: Bool[Tensor, "*batch sample"] | None = None,
    normalised: bool = True,
) -> Float[Tensor, "*batch sample"]:
    """ln p of the cluster that each sample belongs to, in nats; with `normalised=False` ln of the summed exp(l) as they are.

    At most 0 when normalised. Samples outside `mask` give and get nothing (-inf). float32 or wider; differentiable in log_probs.
    Source: as `semantic_entropy`.
    """
    values = _wide(log_probs)
    same = clusters.unsqueeze(-1) == clusters.unsqueeze(-2)
    if mask is not None:
        values = values.masked_fill(~mask, -torch.inf)
        same = same & mask.unsqueeze(-1)
    if normalised:
        values = values.log_softmax(-1)
    return values.unsqueeze(-2).masked_fill(~same, -torch.inf).logsumexp(-1)


def cluster_assignment_entropy(clusters: Int[Tensor, "*batch sample"], *, mask: Bool[Tensor, "*batch sample"] | None = None) -> Float[Tensor, "*batch"]:
    """Entropy of the relative cluster sizes, in nats: -sum_c f_c ln f_c. float64; range [0, ln samples]; no gradient.

    Any integers name the clusters. Samples outside `mask` do not count; a row of none is NaN. Biased low like every plug-in entropy.
    Source: Farquhar et al. 2024 (Nature 630, "discrete semantic entropy").

    >>> cluster_assignment_entropy(torch.tensor([0, 0, 5, 5]))
    tensor(0.6931, dtype=torch.float64)
    """
    return semantic_entropy(torch.zeros_like(clusters, dtype=torch.float64), clusters, mask=mask)


def entailment_clusters(entailment: Int[Tensor, "*batch premise hypothesis"], *, strict: bool = False, released: bool = False) -> Int[Tensor, "*batch premise"]:
    """Meanings from pairwise entailment labels (0 contradiction, 1 neutral, 2 entailment): a cluster id per sample, from 0 without gaps.

    Samples are taken in order; one joins the first cluster whose FIRST member it is equivalent to, or opens the next. Equivalent when `strict`:
    each entails the other; otherwise: neither contradicts the other and not both are neutral. `released=True`: a later cluster takes over
    samples that an earlier one holds, as in the authors' code; the same where the relation is transitive.
    Source: Kuhn et al. 2023, arXiv 2302.09664 (bidirectional entailment clustering); vectors README, `semantic-entropy`.
    """
    if entailment.numel() and not 0 <= int(entailment.min()) <= int(entailment.max()) <= 2:
        raise ValueError("entailment_clusters: labels must be 0 (contradiction), 1 (neutral) or 2 (entailment). Got others.")
    back = entailment.transpose(-1, -2)
    if strict:
        equivalent = (entailment == 2) & (back == 2)
    else:
        equivalent = (entailment != 0) & (back != 0) & ~((entailment == 1) & (back == 1))
    n = entailment.shape[-1]
    clusters = torch.full(entailment.shape[:-1], -1, dtype=torch.int64, device=entailment.device)
    opened = torch.zeros(entailment.shape[:-2], dtype=torch.int64, device=entailment.device)
    later = torch.arange(n, device=entailment.device)
    for first in range(n):
        opens = clusters[..., first] < 0
        joins = (equivalent[..., first, :] & (later > first)) | (later == first)
        joins = joins & opens.unsqueeze(-1)
        if not released:
            joins = joins & (clusters < 0)
        clusters = torch.where(joins, opened.unsqueeze(-1), clusters)
        opened = opened + opens
    return clusters


@dataclass(frozen=True)
class Support:
    """How many items (problems by default) two models solve within one budget: by both, by the tuned one alone, by the base alone, by neither.

    The rates are in [0, 1], `nscr` in [-1, 1]; an undefined one is NaN, never 0. `undecided` items lie too near the threshold for one of the models
    and enter no rate. Source: sheet `invisible-leash`, methods 3-4 (arXiv 2507.14843).

    >>> round(Support(preserved=2388, expansion=48, shrinkage=175).nscr, 4)
    -0.0486
    """

    preserved: int
    expansion: int
    shrinkage: int
    out: int = 0
    undecided: int = 0

    @property
    def srr(self) -> float:
        """Support retention rate, P / (P + S): of what the base solves, the share that stays."""
        return _ratio(self.preserved, self.preserved + self.shrinkage)

    @property
    def ndr(self) -> float:
        """Net discovery rate, E / (P + E): of what the tuned model solves, the share that is new."""
        return _ratio(self.expansion, self.preserved + self.expansion)

    @property
    def sds(self) -> float:
        """Support dynamic score: harmonic mean of SRR and NDR; 0 if both are 0."""
        srr, ndr = self.srr, self.ndr
        return 0.0 if srr == ndr == 0 else _ratio(2 * srr * ndr, srr + ndr)

    @property
    def nscr(self) -> float:
        """Net support change rate, (E - S) / (P + E + S): negative when support shrank."""
        return _ratio(self.expansion - self.shrinkage, self.preserved + self.expansion + self.shrinkage)


def support(base: Int[Tensor, " item"], tuned: Int[Tensor, " item"], *, samples: int, threshold: float = 0.0, margin: float = 1.0) -> Support:
    """P, E, S and O from the number of correct completions that each model found of each item in `samples` draws; both with the same budget.

    An item is in a model's support when its share of correct draws exceeds `threshold` (default 0: one correct draw). With `margin` m > 1 it is in
    above m * threshold, out below threshold / m, and undecided between (method: items near the threshold flip between runs; the sheet advises 2).
    Raises ValueError for counts outside [0, samples]. Source: sheet `invisible-leash`, methods 2-3 and pitfall 3.
    """
    for name, counts in (("base", base), ("tuned", tuned)):
        if ((counts < 0) | (counts > samples)).any():
            raise ValueError(f"support: {name} must lie in [0, samples={samples}]. Got {counts.tolist()[:8]}.")
    if not 0 <= threshold < 1 or not margin >= 1:
        raise ValueError(f"support: threshold must lie in [0, 1) and margin be at least 1. Got threshold={threshold}, margin={margin}.")
    share = torch.stack((base, tuned)).double() / samples
    inside = share > threshold * margin
    between = ~inside & (share >= threshold / margin) & (threshold > 0) & (margin > 1)
    decided = ~between.any(0)
    base_in, tuned_in = inside[0] & decided, inside[1] & decided
    both, either = int((base_in & tuned_in).sum()), int((base_in | tuned_in).sum())
    return Support(
        preserved=both,
        expansion=int(tuned_in.sum()) - both,
        shrinkage=int(base_in.sum()) - both,
        out=int(decided.sum()) - either,
        undecided=int((~decided).sum()),
    )


def detectable_mass(samples: int, *, miss: float = 0.05, exact: bool = False) -> float:
    """The probability of a completion that `samples` draws miss with probability `miss`: -ln(miss) / samples, or exactly 1 - miss^(1/samples).

    Source: sheet `invisible-leash`, method 1 (the formula is reconstructed from the quoted 3.66e-4 at 8192 and 0.05).

    >>> round(detectable_mass(8192), 7)
    0.0003657
    """
    if samples < 1 or not 0 < miss < 1:
        raise ValueError(f"detectable_mass: samples must be at least 1 and miss a fraction in (0, 1). Got samples={samples}, miss={miss}.")
    return -math.expm1(math.log(miss) / samples) if exact else -math.log(miss) / samples


def support_interval(counts: Support, metric: SupportMetric, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """A rate of a Support with its percentile bootstrap interval, items resampled (decided ones), a fraction.

    Deterministic in `seed`; the global random state is not touched. Resamples in which the rate is undefined are left out; none left: NaN.
    Source: Efron 1979; sheet `invisible-leash`, pitfall 3.
    """
    if metric not in ("srr", "ndr", "sds", "nscr"):
        raise ValueError(f"support_interval: metric must be 'srr', 'ndr', 'sds' or 'nscr'. Got {metric!r}.")
    if not 0 < level < 1:
        raise ValueError(f"support_interval: level must be a fraction in (0, 1). Got {level}. For 95 % write 0.95.")
    cells = torch.tensor([counts.preserved, counts.expansion, counts.shrinkage, counts.out], dtype=torch.float64)
    if not cells.sum() > 0:
        return Interval(math.nan, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    left, tables = torch.full((resamples,), float(cells.sum()), dtype=torch.float64), []
    for i in range(3):  # a multinomial draw as binomials of what is left, so that the number of items costs nothing
        share = cells[i] / cells[i:].sum() if cells[i] else cells.new_zeros(())
        tables.append(torch.binomial(left, share.expand(resamples), generator=generator))
        left = left - tables[-1]
    tables = torch.stack((*tables, left), -1).long().tolist()
    rates = [rate for table in tables if not math.isnan(rate := getattr(Support(*table), metric))]
    value = getattr(counts, metric)
    if not rates:
        return Interval(value, math.nan, math.nan)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(rates, dtype=torch.float64), edges).tolist()
    return Interval(value, low, high)


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


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


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
