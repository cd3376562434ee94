"""Did it learn: pass@k on held-out prompts and the reward of the training batches."""

import re

import numpy as np
import polars as pl

from isentrope.report.data import Run, has, values
from isentrope.report.figure import Section, figure, line, lines, missing, table, thinned, thinning_note
from isentrope.report.markup import Markup, element, join
from isentrope.report.words import finite, interval, percent, short, whole

SHARES = re.compile(r"(pass|maj)@\d+|truncated")
UNITS = {"answer_entropy": "nats", "entropy": "nats", "length": "tokens"}
_RESAMPLES = 200


def section(run: Run) -> Section:
    charts, parts = {}, []
    for id, build in (("pass-at-k", _pass), ("reward", _reward)):
        chart, body = build(run)
        if chart is not None:
            charts[id] = chart
        parts.append(body)
    body = join([element("div", join(parts), class_="pair"), _figures(run)])
    return Section("learning", "Learning", "Did it learn?", body, charts)


def metric(run: Run, name: str) -> pl.DataFrame:
    """The evaluations of one metric, by step; empty where there are none."""
    if not {"metric", "step", "value"} <= set(run.evals.columns):
        return pl.DataFrame(schema={"step": pl.Int64, "value": pl.Float64})
    return run.evals.filter((pl.col("metric") == name) & pl.col("value").is_not_null() & pl.col("value").is_not_nan()).sort("step")


def pass_counts(run: Run) -> list[int]:
    """Every k for which pass@k was measured."""
    names = run.evals["metric"].unique().to_list() if "metric" in run.evals.columns else []
    found = (re.fullmatch(r"pass@(\d{1,6})", str(name)) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _pass(run: Run) -> tuple[dict | None, Markup]:
    counts = [k for k in pass_counts(run) if len(metric(run, f"pass@{k}"))]
    if not counts:
        if run.attached:
            return None, missing("pass@k: a trainer of your own evaluates nothing for us. The reward of its training responses is beside.")
        return None, missing("pass@k: no evaluation yet. Held-out prompts are evaluated every `evaluate.every` updates and at the end.")
    shown = counts if len(counts) <= 5 else [counts[round(at)] for at in np.linspace(0, len(counts) - 1, 5)]
    series = []
    for at, k in reversed(list(enumerate(shown))):
        rows = metric(run, f"pass@{k}")
        x, y, low, high = thinned(*(values(rows, name) for name in ("step", "value", "low", "high")))
        bounds = {"low": low, "high": high, "band": "95 % interval"} if has(rows, "low", "high") else {}
        series.append(line(f"pass@{k}", x, y, f"learn-{at + 1}", label=f"pass@{k}", width=3 if at == 0 else 2, marks=len(x) < 60, **bounds))
    prompts, samples = (finite(metric(run, f"pass@{shown[0]}").row(-1, named=True).get(name)) for name in ("prompts", "samples"))
    note = (
        f"Share of held-out prompts that at least one of k sampled answers solves (unbiased from {whole(samples)} samples for each of "
        f"{whole(prompts)} prompts). Bands: 95 % bootstrap over prompts."
    )
    chart = lines(series, x="update", y="held-out prompts solved, %", unit="percent", top=1.0)
    return chart, figure("pass-at-k", "pass@k on held-out prompts", note)


def _reward(run: Run) -> tuple[dict | None, Markup]:
    if not has(run.steps, "reward/mean"):
        return None, missing("Reward: no update on the tape yet.")
    x, y = values(run.steps, "step"), values(run.steps, "reward/mean")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    window = max(1, min(25, len(y) // 8) | 1)
    mean, low, high = smoothed(y, window)
    step, raw, mean, low, high = thinned(x, y, mean, low, high)
    series = [line("one update", step, raw, "learn", width=1, faint=True)]
    if window > 1:
        series.append(line(f"mean of {window} updates", step, mean, "learn", low=low, high=high, band="95 % interval", label="reward", width=3))
    else:
        series[0] |= {"faint": False, "width": 2.5, "marks": len(x) < 40, "label": "reward"}
    note = (
        f"Thin: mean reward of each update's responses. Thick: centred mean of {window} updates; band: 95 % bootstrap over these updates."
        if window > 1
        else "Mean reward of each update's responses."
    )
    right = _right(run, window) if run.unlabelled else None
    if right is not None:
        series.append(right)
    chart = lines(series, x="update", y="mean reward", unit="number", zero=bool(np.nanmin(y) >= 0), top=1.0 if np.nanmax(y) <= 1 else None)
    return chart, figure("reward", "Reward of the training responses", note, _what_is_paid(right) if run.unlabelled else "", thinning_note(x))


def _right(run: Run, window: int) -> dict | None:
    """The share of right training responses, which a reward of agreement did not see; None where nobody judged them."""
    if not has(run.steps, "correct/mean"):
        return None
    x, y = values(run.steps, "step"), values(run.steps, "correct/mean")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not (y > 0).any():  # none is right: on prompts without a label the task's own reward is a stand-in
        return None
    step, mean = thinned(x, smoothed(y, window)[0])
    return line("right answers", step, mean, "ink", label="right", width=2)


def _what_is_paid(right: dict | None) -> str:
    beside = " Right: the share of these responses that is right, which the training did not see." if right is not None else ""
    return f"This reward is agreement among the answers to a prompt: it can rise while the answers become wrong.{beside}"


def smoothed(y: np.ndarray, window: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred mean over `window` rows (fewer at the ends) and its 95 % bootstrap interval, rows of the window resampled.

    Rows of neighbouring updates are treated as independent (inferred), so the band shows the noise between batches only.
    """
    rng, half = np.random.default_rng(seed), window // 2
    at = np.arange(len(y))[:, None] + np.arange(-half, half + 1)[None, :]
    inside = (at >= 0) & (at < len(y))
    mean, low, high = np.empty(len(y)), np.empty(len(y)), np.empty(len(y))
    for row in range(len(y)):
        sample = y[at[row][inside[row]]]
        means = sample[rng.integers(0, len(sample), (_RESAMPLES, len(sample)))].mean(1)
        mean[row] = sample.mean()
        low[row], high[row] = np.quantile(means, (0.025, 0.975))
    return mean, low, high


def _figures(run: Run) -> Markup:
    """Every evaluated metric, first against last."""
    if not {"metric", "step", "value"} <= set(run.evals.columns) or not len(run.evals):
        return Markup("")
    rows = []
    for name in run.evals["metric"].unique(maintain_order=True).to_list():
        found = metric(run, str(name))
        if not len(found):
            continue
        first, last = found.row(0, named=True), found.row(-1, named=True)
        share, unit = bool(SHARES.fullmatch(str(name))), UNITS.get(str(name), "")
        note = run.provenance(f"evals.{name}") if unit == "nats" else ""
        rows.append([element("code", name), _value(first, share, unit), _value(last, share, unit), _bounds(last, share), note])
    steps = run.evals["step"].to_numpy()
    head = ["metric", f"update {steps.min()}", f"update {steps.max()}", "95 % interval", "what it is"]
    return element("details", element("summary", "All evaluation figures, first and last"), table(head, rows, numeric=(1, 2, 3)))


def _value(row: dict, share: bool, unit: str) -> str:
    value = finite(row["value"])
    return percent(value) if share else f"{short(value)} {unit}".strip()


def _bounds(row: dict, share: bool) -> str:
    low, high = finite(row.get("low")), finite(row.get("high"))
    if low is None or high is None:
        return "—"
    return interval(low, high) if share else f"{short(low)}–{short(high)}"
