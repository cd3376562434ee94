"""What changed between a run's first and last evaluation, prompt by prompt: support, and entropy by context.

The tape's table `answers` has one row per held-out prompt and evaluation, made of what the evaluation sampled anyway. From it come

- the support shift: which prompts the start and the end of the run answer right at least once in their n samples (sheet `invisible-leash`,
  arXiv 2507.14843; item = prompt, the sheet's default; the start of the run is its base model);
- what became of majorities (`empo`, `spine`: rewards without labels pay agreement, and a wrong majority is paid like a right one);
- the entropy profile: mean token entropy by context, start against end (sheet `safe-rl-reasoning`, arXiv 2512.01848, method 2 and 4; its
  method is inferred). A context here is one of three kinds: a class of prompts (the task's column `kind` where it has one of 2 to 8
  values, else how often the START answered them right, so that a prompt stays in its class); the responses judged right, or wrong; a tenth
  of the response, by relative position. The sheet's 20 bins are 10, because our responses are short.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

TENTHS = 10
PLACES = tuple(f"tenth-{place + 1:02d}" for place in range(TENTHS))
PARTS = ("right", "wrong", *PLACES)
ENTROPIES = ("entropy", *(f"entropy/{part}" for part in PARTS))
"""The entropy columns of `answers`: token means in nats; `tokens` and `tokens/PART` say over how many tokens."""
MAX_ANSWERS, MAX_ANSWER = 16, 120
MAX_KINDS = 8
RESAMPLES = 1000
OF = "held-out prompts, first and last evaluation; solved: at least one right answer"


def tenths(length: int) -> np.ndarray:
    """How many of a response's tokens stand in each tenth of it; token t of L is in tenth floor(10 t / L)."""
    return np.bincount(np.arange(length) * TENTHS // max(length, 1), minlength=TENTHS)


def prompt_rows(samples: Sequence[Mapping[str, Any]], per_prompt: int) -> list[dict[str, Any]]:
    """Rows of the table `answers` (without the step) from the responses of one evaluation, `per_prompt` of each prompt in a row."""
    return [_prompt_row(samples[start : start + per_prompt]) for start in range(0, len(samples), per_prompt)]


def _prompt_row(drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = drawn[0]
    text = first["prompt"] if isinstance(first["prompt"], str) else "".join(str(message.get("content") or "") for message in first["prompt"])
    answers = Counter(one["answer"] for one in drawn).most_common(MAX_ANSWERS)
    row = {
        "group": first["group"], "prompt": text, "kind": first.get("kind"), "samples": len(drawn), "correct": sum(bool(one["correct"]) for one in drawn),
        "majority": majority(drawn), "answers": json.dumps([[None if answer is None else str(answer)[:MAX_ANSWER], count] for answer, count in answers]),
    }  # fmt: skip
    sums = {"": (sum(one["length"] for one in drawn), sum(one["entropy"] * one["length"] for one in drawn))}
    for part, right in (("/right", True), ("/wrong", False)):
        mine = [one for one in drawn if bool(one["correct"]) is right]
        sums[part] = sum(one["length"] for one in mine), sum(one["entropy"] * one["length"] for one in mine)
    counts, totals = sum(tenths(one["length"]) for one in drawn), np.sum([one["tenths"] for one in drawn], axis=0)
    sums |= {f"/{name}": (int(count), float(total)) for name, count, total in zip(PLACES, counts, totals, strict=True)}
    for part, (tokens, total) in sums.items():
        row |= {f"tokens{part}": tokens, f"entropy{part}": total / tokens if tokens else None}
    return row


def majority(drawn: Sequence[Mapping[str, Any]]) -> float | None:
    """Whether the most frequent answer of a prompt is judged right: 1 or 0, the share of right ones among answers that tie; None without an answer."""
    votes = Counter(one["answer"] for one in drawn if one["answer"] is not None)
    if not votes:
        return None
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    right = {one["answer"] for one in drawn if one["correct"]}
    return sum(answer in right for answer in tied) / len(tied)


# --- start against end


@dataclass(frozen=True)
class Ends:
    """The first and the last evaluation of the same prompts with equally many samples of each; rows in equal order."""

    start: pl.DataFrame
    end: pl.DataFrame
    samples: int

    @property
    def steps(self) -> tuple[int, int]:
        return int(self.start["step"][0]), int(self.end["step"][0])

    def correct(self) -> tuple[np.ndarray, np.ndarray]:
        """Right answers per prompt at the start and at the end."""
        return self.start["correct"].cast(pl.Int64).to_numpy(), self.end["correct"].cast(pl.Int64).to_numpy()


def ends(answers: pl.DataFrame) -> Ends | None:
    """None without an evaluation before the first update and a later one, or where they are not of the same prompts and samples."""
    wanted = ("step", "group", "samples", "correct")
    if not set(wanted) <= set(answers.columns):
        return None
    known = answers.with_columns(pl.col(*wanted).cast(pl.Float64, strict=False)).filter(pl.all_horizontal(pl.col(*wanted).is_finite()))
    known = known.filter((pl.col("samples") >= 1) & (pl.col("correct") >= 0) & (pl.col("correct") <= pl.col("samples")))
    if not len(known):
        return None
    steps = sorted(set(known["step"].to_list()))
    if steps[0] != 0 or len(steps) < 2:
        return None
    start, end = (known.filter(pl.col("step") == step).unique("group", keep="last").sort("group") for step in (steps[0], steps[-1]))
    if start["group"].to_list() != end["group"].to_list() or len({*start["samples"].to_list(), *end["samples"].to_list()}) != 1:
        return None
    return Ends(start, end, int(start["samples"][0]))


@dataclass(frozen=True)
class Majority:
    """Prompts whose first majority was of one kind: how many; the mean share of right answers at the start and at the end, with the 95 % bootstrap
    interval of the change; and how many have a right and a wrong majority at the end (the rest is tied or silent)."""

    first: str
    prompts: int
    start: float
    end: float
    low: float | None
    high: float | None
    right: int
    wrong: int


def majorities(answers: pl.DataFrame) -> list[Majority]:
    """What became of the prompts whose first majority was right, wrong, or neither; empty without two evaluations that recorded it. Deterministic."""
    found = ends(answers)
    if found is None or not all("majority" in frame.columns for frame in (found.start, found.end)):
        return []
    before, after = (_numbers(frame, "majority") for frame in (found.start, found.end))
    start, end = (count / found.samples for count in found.correct())
    kinds = (("right", before == 1), ("wrong", before == 0), ("tied or none", ~np.isin(before, (0.0, 1.0))))
    rows = []
    for name, inside in kinds:
        count = int(inside.sum())
        if not count:
            continue
        change, low, high = (end - start)[inside], None, None
        if count > 1:
            drawn = np.random.default_rng(0).choice(change, size=(RESAMPLES, count)).mean(axis=1)
            low, high = (float(edge) for edge in np.quantile(drawn, (0.025, 0.975)))
        final = after[inside]
        rows.append(Majority(name, count, float(start[inside].mean()), float(end[inside].mean()), low, high, int((final == 1).sum()), int((final == 0).sum())))
    return rows


@dataclass(frozen=True)
class Turned:
    """A prompt whose majority was right at the start and is wrong now: its most frequent answer then and now, and how many of the samples gave it."""

    prompt: str
    then: str
    now: str
    counts: tuple[int, int]


def turned(answers: pl.DataFrame) -> list[Turned]:
    """The prompts whose right majority was lost to a wrong one, the most agreed upon first; empty without the answers themselves. Deterministic."""
    found = ends(answers)
    if found is None or not all({"majority", "prompt", "answers"} <= set(frame.columns) for frame in (found.start, found.end)):
        return []
    before, after = (_numbers(frame, "majority") for frame in (found.start, found.end))
    rows = []
    for at in np.flatnonzero((before == 1) & (after == 0)).tolist():
        then, now = (_most_frequent(frame["answers"][at]) for frame in (found.start, found.end))
        if then is not None and now is not None:
            rows.append(Turned(str(found.end["prompt"][at]), then[0], now[0], (then[1], now[1])))
    return sorted(rows, key=lambda row: -row.counts[1])


def _most_frequent(told: object) -> tuple[str, int] | None:
    """The most frequent answer of a prompt's row, which is no silence; None for a row without."""
    try:
        counted = [(str(answer), int(count)) for answer, count in json.loads(str(told)) if answer is not None]
    except (TypeError, ValueError):
        return None
    return max(counted, key=lambda one: one[1], default=None)


def support_figures(answers: pl.DataFrame) -> dict[str, Any]:
    """The support shift for `summary.json`: counts of prompts, rates with 95 % bootstrap intervals, what the sample count can see.

    Keys `support.NAME`; an undefined rate is None, never 0. `support.detectable_mass`: a chance of a right answer that the n samples of a
    prompt miss altogether one time in twenty, exactly 1 - 0.05^(1/n). `support.by_chance`: `chance_flips`. Empty where there is no start or end.
    """
    found = ends(answers)
    if found is None:
        return {}
    import torch  # late: a report without such a table needs none

    from isentrope.measure.answers import detectable_mass, support, support_interval

    base, tuned = found.correct()
    counts = support(torch.from_numpy(base.copy()), torch.from_numpy(tuned.copy()), samples=found.samples)
    figures: dict[str, Any] = {
        "preserved": counts.preserved, "expanded": counts.expansion, "shrunk": counts.shrinkage, "out": counts.out,
        "prompts": len(base), "samples": found.samples,
    }  # fmt: skip
    for name in ("srr", "ndr", "nscr"):
        rate = support_interval(counts, name)
        figures |= {name: rate.value, f"{name}.low": rate.low, f"{name}.high": rate.high}
    figures |= {"detectable_mass": detectable_mass(found.samples, exact=True), "by_chance": chance_flips(base, tuned, found.samples), "of": OF}
    return {f"support.{name}": None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}


def chance_flips(base: np.ndarray, tuned: np.ndarray, samples: int) -> float:
    """Prompts that would count as shrunk (and as many as expanded) on average if both models were one: a number of prompts.

    The 2n answers of a prompt, c of them right, are dealt anew into two halves: all c fall into one given half with chance
    C(n, c) / C(2n, c). It treats the two evaluations as independent draws. (ours)

    >>> round(chance_flips(np.array([1]), np.array([0]), 16), 3)
    0.5
    """
    n, total = float(samples), 0.0
    for right in (base + tuned).tolist():
        if 1 <= right <= samples:
            total += math.exp(math.lgamma(n + 1) - math.lgamma(n - right + 1) - math.lgamma(2 * n + 1) + math.lgamma(2 * n - right + 1))
    return total


# --- entropy by context


@dataclass(frozen=True)
class Context:
    """Mean token entropy in one context, nats; `low` and `high` bound the change, 95 % bootstrap over prompts (both ends drawn together)."""

    kind: str  # "prompts", "responses" or "tenth"
    name: str
    prompts: int
    tokens: tuple[int, int]
    start: float | None
    end: float | None
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float | None:
        return None if self.start is None or self.end is None else self.end - self.start


def profile(answers: pl.DataFrame) -> list[Context]:
    """The entropy profile, start against end; empty without the two evaluations or their entropies. Deterministic."""
    found = ends(answers)
    if found is None or not all({"entropy", "tokens"} <= set(frame.columns) for frame in (found.start, found.end)):
        return []
    whole = np.ones(len(found.start), dtype=bool)
    contexts = [_context(found, "prompts", name, inside, "") for name, inside in _classes(found)]
    contexts += [_context(found, "responses", part, whole, f"/{part}") for part in ("right", "wrong")]
    contexts += [_context(found, "tenth", str(place + 1), whole, f"/{name}") for place, name in enumerate(PLACES)]
    return [context for context in contexts if context.start is not None or context.end is not None]


def _classes(found: Ends) -> list[tuple[str, np.ndarray]]:
    if "kind" in found.start.columns:
        kinds = found.start["kind"].to_list()
        names = sorted({str(kind) for kind in kinds})
        if None not in kinds and 2 <= len(names) <= MAX_KINDS:
            return [(name, np.array([str(kind) == name for kind in kinds])) for name in names]
    share = found.correct()[0] / found.samples
    masks = (("never right at the start", share == 0), ("right in less than half", (share > 0) & (share < 0.5)), ("right in half or more", share >= 0.5))
    return [(name, mask) for name, mask in masks if mask.any()]


def _context(found: Ends, kind: str, name: str, inside: np.ndarray, part: str) -> Context:
    sums, tokens = [], []
    for frame in (found.start, found.end):
        weight, value = (_numbers(frame, f"{column}{part}")[inside] for column in ("tokens", "entropy"))
        weight = np.where(np.isfinite(weight) & np.isfinite(value) & (weight > 0), weight, 0.0)
        tokens.append(weight)
        sums.append(weight * np.where(weight > 0, value, 0.0))
    start, end = (float(total.sum() / weight.sum()) if weight.sum() > 0 else None for total, weight in zip(sums, tokens, strict=True))
    counted = (int(tokens[0].sum()), int(tokens[1].sum()))
    many = len(tokens[0])
    if start is None or end is None or many < 2:
        return Context(kind, name, many, counted, start, end)
    drawn = np.random.default_rng(0).multinomial(many, np.full(many, 1 / many), RESAMPLES).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        before, after = ((drawn @ total) / (drawn @ weight) for total, weight in zip(sums, tokens, strict=True))
    change = after - before
    change = change[np.isfinite(change)]
    low, high = (float(edge) for edge in np.quantile(change, (0.025, 0.975))) if len(change) else (None, None)
    return Context(kind, name, many, counted, start, end, low, high)


def _numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[name].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
