"""Where performance ends: the law R = -a exp(H) + b of this run, what it foretold early, and what became of that."""

import math
from collections.abc import Mapping

import numpy as np

from isentrope.explain import laws
from isentrope.explain.fitting import Estimate, Fit
from isentrope.explain.laws import Forecast
from isentrope.report.data import Run
from isentrope.report.figure import Section, figure, line, lines, missing, table, thinned, thinning_note
from isentrope.report.markup import Markup, element, join
from isentrope.report.words import finite, percent, short, whole
from isentrope.train.forecast import ENTROPY, OF, Pair, pair

ID, NAV, TITLE = "forecast", "Forecast", "Where will it end?"
NAMES = {"reward": "mean reward", "pass@1": "pass@1"}
METHODS = {
    laws.LAW.name: "law: −a exp(H) + b",
    laws.LINEAR.name: "rival: −a H + b",
    laws.SATURATING.name: "rival: b − a exp(−t/τ), t the update",
    laws.BLIND: "law on its own forecast of H",
    laws.LEVEL.name: "naive: the last value",
}
KNOWS = {"entropy": "the later entropies", "update": "the update", "nothing": "nothing"}
COLOURS = ("learn-2", "learn-3", "learn-5")
_POINTS = 120


def section(run: Run) -> Section:
    reward = pair("reward", run.steps, run.evals)
    fitted = laws.law(reward.entropy, reward.performance)
    if fitted.problem is not None:
        return Section(ID, NAV, TITLE, missing(f"No law yet of reward against entropy: {fitted.problem}."))
    total = float(run.last_step) if run.finished else _planned(run)
    made = laws.forecasts(reward.step, reward.entropy, reward.performance, total=total)
    now = None if run.finished else _now(reward, total)
    charts = {"forecast-law": _law_chart(reward, fitted, "reward"), "forecast-updates": _updates_chart(reward, made, now)}
    pictures = [_law_figure(run, fitted, "reward"), _updates_figure(reward, made, now)]
    body = [element("div", join(pictures), class_="pair"), _table(made, "reward"), _held_out(run, total, charts), _reading(run)]
    return Section(ID, NAV, TITLE, join(body), charts, lead=_lead(run, fitted, reward, made, now, total))


def _planned(run: Run) -> float | None:
    effective = run.record.get("effective")
    planned = finite(effective.get("max_steps")) if isinstance(effective, Mapping) else None
    return planned if planned is not None and planned > 0 else None


def _now(reward: Pair, total: float | None) -> Forecast | None:
    """The forecast from the last update on the tape to the last one planned."""
    last = reward.step[-1]
    if total is None or total <= last:
        return None
    return laws.ahead(reward.step, reward.entropy, reward.performance, np.linspace(last + 1, total, min(_POINTS, int(total - last))))


def _lead(run: Run, fitted: Fit, reward: Pair, made: list[Forecast], now: Forecast | None, total: float | None) -> str:
    said = []
    if now is not None and now.problem is None:
        end = now.end
        said.append(f"At update {run.last_step} of {whole(total)} the law expects mean reward to end near {_with(end)}.")
    top = laws.ceiling(fitted)
    if fitted["a"].low > 0:
        said.append(
            f"On this run mean reward follows −{short(fitted['a'].value)} exp(H) + {short(fitted['b'].value)}; "
            f"with no entropy left it would end at {_with(top)}."
        )
    else:
        said.append("On this run reward does not fall as entropy rises, so the law R = −a exp(H) + b says nothing about its end (a may be 0 or less).")
    said += _worth(made)
    stages = laws.stages(reward.step, reward.entropy)
    if stages.stage == "plateau":
        said.append(_exchange(reward, stages.plateau))
    elif stages.stage == "rising":
        said.append("Entropy has not come to a plateau.")
    return " ".join(said)


def _worth(made: list[Forecast]) -> list[str]:
    """What the last forecast of the law was worth beside the naive one, in a sentence."""
    latest = {one.method: one for one in made if one.problem is None and one.share == made[-1].share}
    law, last = latest.get(laws.LAW.name), latest.get(laws.LEVEL.name)
    if law is None or last is None or not math.isfinite(law.rmse):
        return []
    return [f"Fitted on the first {percent(law.share)}, it missed the rest by {short(law.rmse, 2)}; the last value missed it by {short(last.rmse, 2)}."]


def _exchange(reward: Pair, plateau: Estimate) -> str:
    """When the plateau began, and how much of the loss of entropy and of the gain of reward had happened by then."""
    before = reward.step <= plateau.value
    tenth = max(1, len(reward.step) // 20)
    shares = []
    for values in (reward.entropy, reward.performance):
        first, last = np.nanmean(values[:tenth]), np.nanmean(values[-tenth:])
        at = np.nanmean(values[before][-tenth:])
        shares.append(float((at - first) / (last - first)) if abs(last - first) > 1e-12 else math.nan)
    text = f"The plateau began at update {plateau.value:.0f} (95 %: {plateau.low:.0f} to {plateau.high:.0f})"
    if not all(math.isfinite(share) and 0 <= share <= 1.5 for share in shares):
        return text + "."
    return f"{text}: by then {percent(min(shares[0], 1.0))} of the entropy lost was lost, and {percent(min(shares[1], 1.0))} of the reward gained was gained."


def _with(value: Estimate) -> str:
    return f"{short(value.value)} (95 %: {short(value.low)} to {short(value.high)})"


# --- the law


def _law_chart(data: Pair, fitted: Fit, name: str) -> dict:
    x = np.linspace(0.0, float(fitted.x.max()), _POINTS)
    band, order = fitted.band(x), np.argsort(fitted.x, kind="stable")
    entropy, performance = thinned(fitted.x[order], fitted.y[order])
    series = [
        line("one update" if name == "reward" else "one evaluation", entropy, performance, "learn-4", width=2, points=True),
        line("law", x, band.value, "entropy", low=band.low, high=band.high, band="95 % of the law", label="law", width=3),
    ]
    top = 1.0 if max(fitted.y.max(), band.high.max()) <= 1 else None
    return lines(series, x="token entropy, nats", y=NAMES[name], unit="number", zero=False, top=top)


def _law_figure(run: Run, fitted: Fit, name: str) -> Markup:
    id = "forecast-law" if name == "reward" else "forecast-held-out"
    note = (
        f"R = −a exp(H) + b by least squares: a {_with(fitted['a'])}, b {_with(fitted['b'])}; R² {short(fitted.r_squared, 2)}, "
        f"typical miss {short(fitted.rmse, 2)}. "
        f"Both of the {OF[name]}. Where the curve meets entropy 0 lies the ceiling b − a, {_with(laws.ceiling(fitted))}."
    )
    return figure(id, f"{NAMES[name].capitalize()} against entropy", note, provenance=run.provenance(ENTROPY[name]))


# --- what was foretold


def _updates_chart(data: Pair, made: list[Forecast], now: Forecast | None) -> dict:
    step, performance = thinned(data.step, data.performance)
    series = [line("one update", step, performance, "learn", width=1, faint=True)]
    for one, colour in zip(_in_earnest(made), COLOURS, strict=False):
        series.append(_foretold(one, f"foretold at {percent(one.share)}", colour))
    if now is not None and now.problem is None:
        series.append(_foretold(now, "foretold now", "entropy") | {"width": 3})
    return lines(series, x="update", y="mean reward", unit="number", zero=False)


def _in_earnest(made: list[Forecast]) -> list[Forecast]:
    return [one for one in made if one.method == laws.BLIND and one.problem is None]


def _foretold(one: Forecast, name: str, colour: str) -> dict:
    step, value, low, high = thinned(one.step, one.band.value, one.band.low, one.band.high)
    return line(name, step, value, colour, low=low, high=high, band="95 % of single updates", label=name.removeprefix("foretold "), width=2.5)


def _updates_figure(data: Pair, made: list[Forecast], now: Forecast | None) -> Markup:
    told = (
        "Each forecast knows only what had happened by its share of the run: it forecasts entropy, h + c exp(−t/τ), and reads reward off the law as "
        "fitted by then. "
        "Bands: 95 % of single updates."
    )
    if not _in_earnest(made) and (now is None or now.problem is not None):
        told = "No forecast yet: " + (now.problem if now is not None and now.problem else "too little of the run has passed") + "."
    return figure("forecast-updates", "Foretold, and what became of it", told, thinning_note(data.step))


def _table(made: list[Forecast], name: str) -> Markup | None:
    if not made:
        return None
    rows = []
    for one in made:
        start = [f"{percent(one.share)}, update {one.until:.0f}", METHODS[one.method], KNOWS[one.knows]]
        if one.problem is not None:
            rows.append([*start, element("span", f"none: {one.problem}", class_="muted"), "", "", ""])
        else:
            rows.append([*start, _with(one.end), short(one.end_happened), short(one.rmse), percent(one.coverage)])
    head = ["fitted on", "method", "knows of the rest", f"{NAMES[name]} foretold for its end", "happened so far", "error (RMSE)", "in the 95 % band"]
    note = (
        "A good forecast has a small error, and about 95 % of what happened inside its band. The law and its first rival are told the later "
        "entropies, as in the paper's test; the others are not. If the last value does as well, the law has told nothing new."
    )
    summary = element("summary", f"What the forecasts of {NAMES[name]} were worth, beside rivals")
    return element("details", summary, table(head, rows, numeric=(4, 5, 6)), element("p", note, class_="note"), open=name == "reward")


def _held_out(run: Run, total: float | None, charts: dict) -> Markup:
    """The same for pass@1 against the entropy of the held-out responses: another entropy, so a picture of its own."""
    data = pair("pass@1", run.steps, run.evals)
    fitted = laws.law(data.entropy, data.performance)
    if fitted.problem is not None:
        return missing(f"The law of pass@1 against the entropy of the held-out responses: {fitted.problem}.")
    charts["forecast-held-out"] = _law_chart(data, fitted, "pass@1")
    made = laws.forecasts(data.step, data.entropy, data.performance, total=total)
    return join([_law_figure(run, fitted, "pass@1"), _table(made, "pass@1")])


def _reading(run: Run) -> Markup:
    said = [
        "The law was claimed for runs without any intervention on entropy or KL, model by model; neither its form nor its parameters are laws of nature. "
        "Entropy and performance come from the same responses and both carry noise, which draws the curve flatter than it is.",
        "Intervals: bootstrap with the errors of neighbouring updates as correlated as they were seen to be. One run, one seed.",
    ]
    if run.links:
        said.insert(0, "This run had interventions, so the law is out of its claimed range here.")
    return element("div", *(element("p", one) for one in said), class_="note")
