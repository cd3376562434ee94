"""The entropies of several agents that answered one question together, as one flat row of features.

Source: "When Does Multi-Agent Collaboration Help? An Entropy Perspective", arXiv 2602.04234 (sheet `multi-agent-entropy`, A to G).

    call      what one agent wrote in one round: its token entropies h, nats, end-of-sequence tail left out
    B         per call: total, max, min, mean, median, std and var (of the population), q1, q3 (linear), tokens, per_token
    C         per question: total and tokens are sums over calls, every other statistic is the MEAN OVER CALLS of the call's (so `max` is a mean of
              maxima); per_token = total / tokens
    D         the shape of these: range, iqr, iqr_over_mean, iqr_over_range, bowley, median_over_mean, tail, cv, stability
    E         per round: {max, min, mean, median, std, var, q1, q3} over its agents of nine of the statistics of B; the spread, CV and Bowley coefficient
              of the agents' means; the spread of their totals
    F         first round f to last l: difference, ratio, slope, volatility (population std over rounds), sign, of four figures of a round
    G         against a run of one agent (its total and its entropy per token), and the entropies of the answers' tokens

A zero denominator gives 0, as in the released code. Which entropy h is, is the caller's to say: the released code takes the SAMPLING distribution, after
temperature and top-p, in which what was filtered counts as 0; the full vocabulary's is another number. An orchestrator that only repeats the others is
left out of E by name (the released code drops it in debates). The paper's count of 245 was not re-derived. Labels never enter: the released judger is
given whether the single-agent run was CORRECT, which is not known when an answer must be chosen.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

STATISTICS = ("total", "max", "min", "mean", "median", "std", "var", "q1", "q3", "tokens", "per_token")
"""Of one call."""
AGGREGATED = ("max", "min", "mean", "median", "std", "var", "q1", "q3", "total")
"""Statistics whose distribution over the agents of a round is described."""
OVER_AGENTS = ("max", "min", "mean", "median", "std", "var", "q1", "q3")
ANSWER = ("max", "mean", "min", "std", "median")
CHANGES = ("mean", "total", "tokens", "per_token")


@dataclass(frozen=True)
class Call:
    """One agent's text in one round (from 1): its token entropies, nats."""

    agent: str
    round: int
    entropy: Float[Tensor, " token"]


def round_of(order: int, topology: str) -> int:
    """The round of the call that was made as number `order` (from 1): every call of a single agent is a round, three of a debate, four of the others.

    Raises ValueError for an order below 1.

    >>> [round_of(order, "debate") for order in range(1, 8)], round_of(5, "sequential"), round_of(3, "single")
    ([1, 1, 1, 2, 2, 2, 3], 2, 3)
    """
    if order < 1:
        raise ValueError(f"round_of: order counts calls from 1. Got {order}.")
    size = {"single": 1, "debate": 3}.get(topology, 4)
    return (order - 1) // size + 1


def call_statistics(entropy: Float[Tensor, " token"]) -> dict[str, float]:
    """The statistics of one call (B), nats.

    Raises ValueError for a call without a token, or one whose entropies are not finite and at least 0.
    """
    values = entropy.double().flatten()
    if not len(values) or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError("call_statistics: a call needs at least one token, with finite entropies of at least 0 nats. Leave a silent agent out.")
    described = _described(values)
    return {"total": math.fsum(values.tolist()), **described, "tokens": float(len(values)), "per_token": described["mean"]}


def question_features(
    calls: Sequence[Call],
    *,
    base: Sequence[Call] = (),
    answer: Float[Tensor, " token"] | None = None,
    base_answer: Float[Tensor, " base_token"] | None = None,
    apart: Collection[str] = (),
) -> dict[str, float]:
    """All features of one question: `sample/...` (C, D), `round-R/...` (E), `change/...` (F), `base/...` and `answer/...` (G).

    base: the calls of the run of one agent. answer, base_answer: entropies of the tokens of the final answer and of the base run's.
    apart: agents that do not count among a round's. Raises ValueError for no call, or a round that only such agents spoke in.
    """
    if not calls:
        raise ValueError("question_features: there is no call. Give the calls of all agents and rounds.")
    found = [call_statistics(call.entropy) for call in calls]
    sample = _sample(found)
    features = {f"sample/{name}": value for name, value in (sample | _shape(sample)).items()}
    rounds = sorted({call.round for call in calls})
    figures: dict[str, list[float]] = {name: [] for name in (*CHANGES, "spread")}
    for number in rounds:
        inside = [one for one, call in zip(found, calls, strict=True) if call.round == number and call.agent not in apart]
        if not inside:
            raise ValueError(f"question_features: in round {number} nobody speaks but {', '.join(sorted(apart))}. Take them out of `apart`.")
        told = _round(inside)
        features |= {f"round-{number}/{name}": value for name, value in told.items()}
        whole = _sample(inside)
        for name in CHANGES:
            figures[name].append(whole[name])
        figures["spread"].append(told["mean_spread"])
    for name in CHANGES:
        features |= {f"change/{name}/{key}": value for key, value in _changes(figures[name]).items()}
    features["change/spread/difference"] = figures["spread"][-1] - figures["spread"][0]
    return features | _against(sample, base, answer, base_answer)


# --- parts


def _described(values: Float64[Tensor, " value"]) -> dict[str, float]:
    """{max, min, mean, median, std, var, q1, q3} of a distribution, as a population; quantiles interpolate linearly.

    Sums are exact (fsum): in floating point the order of the tokens would decide the sign of a change between rounds of equal totals.
    """
    low, middle, high = torch.quantile(values, values.new_tensor([0.25, 0.5, 0.75])).tolist()
    mean = math.fsum(values.tolist()) / len(values)
    spread = math.fsum(((values - mean) ** 2).tolist()) / len(values)
    return {
        "max": float(values.max()), "min": float(values.min()), "mean": mean, "median": middle, "std": spread**0.5, "var": spread,
        "q1": low, "q3": high,
    }  # fmt: skip


def _sample(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """C: sums of total and tokens, means over calls of everything else, per_token of the sums."""
    whole = {name: math.fsum(one[name] for one in found) for name in STATISTICS}
    means = {name: value / len(found) for name, value in whole.items() if name not in ("total", "tokens")}
    return {**means, "total": whole["total"], "tokens": whole["tokens"], "per_token": whole["total"] / whole["tokens"]}


def _shape(one: Mapping[str, float]) -> dict[str, float]:
    """D."""
    width, middle = one["max"] - one["min"], one["q3"] - one["q1"]
    cv = _over(one["std"], one["mean"])
    return {
        "range": width, "iqr": middle, "iqr_over_mean": _over(middle, one["mean"]), "iqr_over_range": _over(middle, width),
        "bowley": _over(one["q3"] + one["q1"] - 2 * one["median"], middle), "median_over_mean": _over(one["median"], one["mean"]),
        "tail": _over(one["max"] - one["q3"], middle), "cv": cv, "stability": 1 - cv if one["mean"] else 0.0,
    }  # fmt: skip


def _round(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """E."""
    told = {}
    for statistic in AGGREGATED:
        values = torch.tensor([one[statistic] for one in found], dtype=torch.float64)
        told |= {f"{name}_agent_{statistic}": value for name, value in _described(values).items()}
    mean = {name: told[f"{name}_agent_mean"] for name in OVER_AGENTS}
    middle = mean["q3"] - mean["q1"]
    return told | {
        "mean_spread": mean["max"] - mean["min"], "mean_cv": _over(mean["std"], mean["mean"]),
        "mean_bowley": _over(mean["q3"] + mean["q1"] - 2 * mean["median"], middle), "total_spread": told["max_agent_total"] - told["min_agent_total"],
    }  # fmt: skip


def _changes(values: Sequence[float]) -> dict[str, float]:
    """F, of one figure over the rounds."""
    first, last = values[0], values[-1]
    difference = last - first
    return {
        "difference": difference, "ratio": _over(last, first), "slope": difference / max(len(values) - 1, 1),
        "volatility": float(torch.tensor(values, dtype=torch.float64).std(correction=0)), "sign": float((difference > 0) - (difference < 0)),
    }  # fmt: skip


def _against(sample: Mapping[str, float], base: Sequence[Call], answer: Tensor | None, base_answer: Tensor | None) -> dict[str, float]:
    """G."""
    told: dict[str, float] = {}
    if base:
        one = _sample([call_statistics(call.entropy) for call in base])
        told |= {
            "base/total_ratio": _over(sample["total"], one["total"]), "base/total_reduction": one["total"] - sample["total"],
            "base/per_token_ratio": _over(sample["per_token"], one["per_token"]), "base/per_token_difference": sample["per_token"] - one["per_token"],
        }  # fmt: skip
    spans = {name: _described(span.double().flatten()) | {"count": float(span.numel())} for name, span in (("answer", answer), ("base_answer", base_answer))
             if span is not None and span.numel()}  # fmt: skip
    for name, span in spans.items():
        told |= {f"{name}/{key}": span[key] for key in ("count", *ANSWER)}
    if len(spans) == 2:
        final, single = spans["answer"]["mean"], spans["base_answer"]["mean"]
        told |= {"answer/difference": final - single, "answer/ratio": _over(final, single), "answer/change": abs(final - single)}
    return told


def _over(value: float, by: float) -> float:
    return value / by if by else 0.0
