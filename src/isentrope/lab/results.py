"""What the finished runs of a comparison say: tables of arms and seeds, paired differences in two Holm families, verdicts, ranks.

Family "step": pass@1 and pass@k at matched step, each method against the baseline and against its placebo. Family "reward": entropy,
pass@k, maj@k and length at matched reward against the baseline, and entropy against the placebo. Everything else is shown with its
interval and not tested.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isentrope.lab.outcomes import Outcome, common, matched
from isentrope.lab.plan import BASELINE, Plan
from isentrope.lab.statistics import Difference, compared, ranks
from isentrope.lab.verdict import Verdict, judge

Arms = Mapping[str, Mapping[int, Outcome | None]]


@dataclass(frozen=True)
class Results:
    """Everything that the page shows. Differences are keyed (method, metric); NaN and absence mean that it is not known yet."""

    plan: Plan
    runs: Arms
    rates: Mapping[str, float]
    failed: Mapping[str, str]
    step: Mapping[tuple[str, str], Difference] = field(default_factory=dict)  # method less baseline
    step_sham: Mapping[tuple[str, str], Difference] = field(default_factory=dict)  # method less its placebo
    sham: Mapping[tuple[str, str], Difference] = field(default_factory=dict)  # placebo less baseline, shown and not tested
    reward: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    reward_sham: Mapping[tuple[str, str], Difference] = field(default_factory=dict)
    levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # method -> mean range of pass@1 of the matched reward
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    ranks: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    ledgers: Mapping[str, Outcome] = field(default_factory=dict)  # arm -> the run that kept its books

    @property
    def judged(self) -> tuple[str, str]:
        """The two metrics of the verdict."""
        return outcome_metrics(self.plan)

    def late(self, arm: str, metric: str) -> np.ndarray:
        """[seed] at matched step, NaN where a run is missing."""
        return np.array([math.nan if run is None else run.late(metric) for run in self.runs[arm].values()])

    def finished(self) -> int:
        return sum(run is not None for arm in self.runs.values() for run in arm.values())


def outcome_metrics(plan: Plan) -> tuple[str, str]:
    return "pass@1", f"pass@{plan.k}"


def matched_metrics(plan: Plan) -> tuple[str, ...]:
    return "entropy", f"pass@{plan.k}", f"maj@{plan.config['evaluate']['samples']}", "length"


def shown_metrics(plan: Plan) -> tuple[str, ...]:
    return "entropy", f"maj@{plan.config['evaluate']['samples']}", f"pass@{plan.config['evaluate']['samples']}", "length"


def summarise(plan: Plan, runs: Arms, rates: Mapping[str, float], failed: Mapping[str, str], ledgers: Mapping[str, Outcome] | None = None) -> Results:
    """The results of the runs that are there."""
    methods = [arm.name for arm in plan.methods]
    shams = {name: sham.name for name in methods if (sham := plan.placebo(name)) is not None}
    at_step = lambda pairs, metric: np.array([_paired(runs, one, other, lambda a, b: a.late(metric) - b.late(metric)) for one, other in pairs])  # noqa: E731
    at_reward = lambda pairs, metric: np.array([_paired(runs, one, other, lambda a, b: matched(a, b, metric)) for one, other in pairs])  # noqa: E731
    to_base = [(name, BASELINE) for name in methods]
    to_sham = [(name, shams[name]) for name in methods if name in shams]

    judged, others = outcome_metrics(plan), shown_metrics(plan)
    step, step_sham = _family(at_step, to_base, to_sham, judged, judged)
    reward, reward_sham = _family(at_reward, to_base, to_sham, matched_metrics(plan), ("entropy",))
    shown, shown_sham = _family(at_step, to_base, to_sham, others, others)
    needed, _ = _family(at_reward, to_base, [], ("step",), ())
    sham, _ = _family(at_step, [(shams[name], BASELINE) for name in methods if name in shams], [], (*judged, "entropy"), ())
    names = {placebo: name for name, placebo in shams.items()}
    sham = {(names[arm], metric): item for (arm, metric), item in sham.items()}
    verdicts = {
        name: judge(
            {metric: step[name, metric] for metric in judged},
            {metric: step_sham[name, metric] for metric in judged} if name in shams else None,
            {metric: reward[name, metric] for metric in matched_metrics(plan)},
        )
        for name in methods
    }
    order = [BASELINE, *methods]
    table = np.array([[math.nan if run is None else run.late("pass@1") for run in runs[name].values()] for name in order])
    placed = dict(zip(order, ranks(table), strict=True)) if np.isfinite(table).all(0).any() else {}
    levels = {name: _range(runs, name) for name in methods}
    return Results(plan, runs, rates, failed, shown | step, shown_sham | step_sham, sham, reward | needed, reward_sham, levels, verdicts, placed, ledgers or {})


def _paired(runs: Arms, one: str, other: str, difference: Any) -> list[float]:
    return [math.nan if a is None or b is None else difference(a, b) for a, b in zip(runs[one].values(), runs[other].values(), strict=True)]


def _family(values: Any, to_base: list, to_sham: list, metrics: Sequence[str], sham_metrics: Sequence[str]) -> tuple[dict, dict]:
    """Differences to the baseline and to the placebo, corrected together."""
    asked = [(metric, to_base) for metric in metrics if to_base] + [(metric, to_sham) for metric in sham_metrics if to_sham]
    found = compared([values(pairs, metric) for metric, pairs in asked])
    keyed = [{(one, metric): item for (one, _), item in zip(pairs, group, strict=True)} for (metric, pairs), group in zip(asked, found, strict=True)]
    base = {key: item for (_, pairs), group in zip(asked, keyed, strict=True) if pairs is to_base for key, item in group.items()}
    sham = {key: item for (_, pairs), group in zip(asked, keyed, strict=True) if pairs is to_sham for key, item in group.items()}
    return base, sham


def _range(runs: Arms, name: str) -> tuple[float, float]:
    """Mean over the seeds of the range of pass@1 in which a method and the baseline were compared."""
    found = [common(a, b) for a, b in zip(runs[name].values(), runs[BASELINE].values(), strict=True) if a is not None and b is not None]
    found = [pair for pair in found if not math.isnan(pair[0])]
    return (math.nan, math.nan) if not found else (float(np.mean([pair[0] for pair in found])), float(np.mean([pair[1] for pair in found])))


def as_data(results: Results) -> dict[str, Any]:
    """Plain data for results.json."""
    table = lambda found: [{"method": name, "metric": metric, **item.__dict__, "found": item.found} for (name, metric), item in found.items()]  # noqa: E731
    return {
        "finished": results.finished(),
        "runs": sum(len(arm) for arm in results.runs.values()),
        "failed": dict(results.failed),
        "verdicts": {name: item.__dict__ for name, item in results.verdicts.items()},
        "ranks": {name: dict(zip(("rank", "low", "high"), rank, strict=True)) for name, rank in results.ranks.items()},
        "learning_rate_factors": dict(results.rates),
        "matched_step": {"to_baseline": table(results.step), "to_placebo": table(results.step_sham), "placebo_to_baseline": table(results.sham)},
        "matched_reward": {
            "to_baseline": table(results.reward),
            "to_placebo": table(results.reward_sham),
            "pass@1": {name: list(level) for name, level in results.levels.items()},
        },
        "arms": {
            arm.name: {metric: results.late(arm.name, metric).tolist() for metric in (*results.judged, *shown_metrics(results.plan))}
            for arm in results.plan.arms
        },
    }
