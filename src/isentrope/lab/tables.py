"""The tables of a comparison's page: verdicts, numbers at the same update and at the same reward, step sizes and compute, the ledger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from isentrope.control.registry import build
from isentrope.control.stages import Advantage, Filter, Reward
from isentrope.explain.ledger import ACCOUNTS
from isentrope.lab.outcomes import Outcome
from isentrope.lab.plan import BASELINE, LEDGERS, Arm
from isentrope.lab.results import Results, matched_metrics, shown_metrics
from isentrope.lab.statistics import ALPHA, FEWEST, Difference
from isentrope.lab.verdict import MIN_PAIRS, chance, signed
from isentrope.report.figure import Section, table
from isentrope.report.markup import Markup, element, join
from isentrope.report.sections.ledger import NAMES

TONES = {"helps": "good", "hurts": "bad", "slower learning only": "warn", "trades": "warn"}
MEANING = {
    "helps": "better than the baseline in pass@1 or pass@k and worse in neither, and better than its placebo in one it is better in.",
    "hurts": "worse in one and better in neither, worse than its placebo too, and not the next.",
    "slower learning only": "worse in pass@1 at the same update, and no difference found in anything at the same reward.",
    "trades": "better in one, worse in the other.",
    "same as its placebo": "differs from the baseline, and not from its placebo in what it differs in: that it touches so much does it, not which.",
    "no difference found": "no difference to the baseline. That is no proof of equality: the size that would have been seen stands beside it.",
    "same computation": "every run equals the baseline's exactly: with this setting the method changed nothing.",
    "not judged": f"fewer than {MIN_PAIRS} seeds so far.",
}
HOW = {
    "step": "Learning rates are set by a short pilot per arm, on a seed of its own, so that the mean step is the baseline's. How far the weights "
    "really went in the runs stands beside it.",
    "lr": "Every arm has the learning rate with the best mean pass@1 of three, found on seeds that the comparison does not use.",
    "none": "All arms have the same learning rate; their steps were not matched.",
}
Found = Mapping[tuple[str, str], Difference]


def verdicts(results: Results) -> Section:
    one, many = results.judged
    rows = []
    for name, verdict in results.verdicts.items():
        without = results.plan.without_placebo.get(name)
        rows.append([
            element("code", name), word(verdict.word), cell(results.step.get((name, one))), cell(results.step_sham.get((name, one)), without),
            cell(results.step.get((name, many))), cell(results.reward.get((name, "entropy"))), _rank(results.ranks.get(name)),
            _seen(results, name),
        ])  # fmt: skip
    head = ["method", "verdict", f"{one} − baseline", f"{one} − placebo", f"{many} − baseline", "entropy, same reward", "rank", "would be seen"]
    note = [
        "Means over seeds of paired differences, at matched step (the evaluations in the last third of the updates); below them 95 % bootstrap "
        f"intervals over seeds (from {FEWEST} seeds on) and p values corrected by Holm over all tests of this kind on the page. "
        f"Bold: found, at a corrected p of at most {ALPHA}.",
        f"Entropy, same reward: where both runs of a seed have the same held-out pass@1, in nats. Rank: in pass@1, 1 is best, 95 % interval; the "
        f"baseline's is {_rank(results.ranks.get(BASELINE))}. Would be seen: the smallest true difference found four times in five.",
    ]
    body = join([table(head, rows, class_="tests"), *(element("p", text, class_="note") for text in note), _meaning()])
    return Section("verdicts", "Verdicts", "Verdicts", body)


def _seen(results: Results, name: str) -> Markup | str:
    """What would have been seen, in both judged metrics."""
    found = [(metric, results.step[name, metric].detectable) for metric in results.judged]
    known = [f"{value:.2g} {metric}" for metric, value in found if math.isfinite(value)]
    return join([known[0], *(element("span", more, class_="also") for more in known[1:])]) if known else "—"


def word(verdict: str) -> Markup:
    return element("span", verdict, class_=f"word {TONES.get(verdict, '')}".strip())


def _meaning() -> Markup:
    rows = join(element("tr", element("td", word(name)), element("td", text, class_="said")) for name, text in MEANING.items())
    frame = element("div", element("table", element("tbody", rows), class_="tests"), class_="scroll", tabindex="0", role="region", aria_label="table")
    return element("details", element("summary", "What the words mean"), frame)


def cell(item: Difference | None, why: str | None = None, digits: int = 3) -> Markup | str:
    """A difference with its interval and corrected p below it. why: what stands in the tooltip where there is none."""
    if item is None or item.pairs == 0:
        return element("span", "none", title=why) if why else "—"
    if item.identical:
        return join(["0", element("span", "identical", class_="also")])
    notes = [] if math.isnan(item.low) else [f"[{signed(item.low, digits)}, {signed(item.high, digits)}]"]
    notes += [] if math.isnan(item.adjusted) else [chance(item.adjusted).removeprefix("corrected ")]
    mean = signed(item.mean, digits)
    return join([element("strong", mean) if item.found else mean, *(element("span", note, class_="also") for note in notes)])


def _rank(rank: tuple[int, int, int] | None) -> str:
    if rank is None or not rank[0]:
        return "—"
    return str(rank[0]) if rank[1] == rank[2] else f"{rank[0]} ({rank[1]} to {rank[2]})"


def _shown(found: Found, name: str, metric: str, tested: Sequence[str]) -> Markup | str:
    """A cell, without its p where the number is shown and not tested."""
    item = found.get((name, metric))
    if item is not None and metric not in tested:
        item = replace(item, p=math.nan, adjusted=math.nan)
    return cell(item, digits=2 if metric == "length" else 1 if metric == "step" else 3)


def _grid(head: str, found: Found, names: Sequence[str], metrics: Sequence[str], tested: Sequence[str]) -> Markup:
    rows = [[element("code", name), *(_shown(found, name, metric, tested) for metric in metrics)] for name in names if (name, metrics[0]) in found]
    return table([head, *metrics], rows, class_="tests")


def numbers(results: Results) -> Section:
    names, judged = list(results.verdicts), results.judged
    step = (*judged, *(metric for metric in shown_metrics(results.plan) if metric not in judged))
    note = lambda text: element("p", text, class_="note")  # noqa: E731
    body = join([
        element("h3", "At the same reward"),
        note("Each pair of runs is compared where both have the same held-out pass@1, over the upper half of the range that both passed through. What a "
             "slower learner shows at the same update by being behind is gone here. p: corrected over this table. Updates needed: shown, not tested."),
        _at_reward(results),
        element("h3", "At the same update, less the baseline"),
        note(f"{judged[0]} and {judged[1]} are tested, in one family with the next table; the rest is shown with its interval."),
        _grid("method", results.step, names, step, judged),
        element("h3", "At the same update, less its placebo"),
        _grid("method", results.step_sham, names, step, judged),
        element("h3", "The placebos, less the baseline"),
        note("Shown, not tested: what touching as much does, without the choice."),
        _grid("placebo of", results.sham, names, (*judged, "entropy"), ()),
    ])  # fmt: skip
    return Section("numbers", "Numbers", "The numbers", body)


def _at_reward(results: Results) -> Markup:
    metrics, rows = matched_metrics(results.plan), []
    for name in results.verdicts:
        low, high = results.levels[name]
        where = "nothing in common" if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f} %"
        pairs = results.reward[name, "entropy"].pairs
        rows.append([
            element("code", name), join([where, element("span", f"{pairs} seed{'' if pairs == 1 else 's'}", class_="also")]),
            *(_shown(results.reward, name, metric, metrics) for metric in metrics), _shown(results.reward, name, "step", ()),
            cell(results.reward_sham.get((name, "entropy")), results.plan.without_placebo.get(name)),
        ])  # fmt: skip
    return table(["method less baseline", "pass@1", *metrics, "updates needed", "entropy − placebo"], rows, class_="tests")


# --- fairness


def fairness(results: Results) -> Section:
    base = {what: _mean(results, BASELINE, what) for what in ("path", "tokens")}
    rate = float(results.plan.config["trl"].get("learning_rate", 1e-6))
    rows = []
    for arm in results.plan.arms:
        factor = results.rates.get(arm.name, 1.0 if results.plan.match == "none" else math.nan)
        path, tokens, seconds = (_mean(results, arm.name, what) for what in ("path", "tokens", "seconds"))
        rows.append([
            element("code", arm.name), _number(rate * factor, ".3g"), _number(factor, ".3f"), _number(path / base["path"], ".2f"),
            _number(tokens / base["tokens"], ".2f"), _number(seconds, ".0f"), _touched(results, arm),
        ])  # fmt: skip
    head = ["arm", "learning rate", "times the base", "path of the weights", "tokens sampled", "seconds a run", "touched"]
    note = (
        "Path of the weights (the sum of |Δθ| over the updates) and tokens: times the baseline's, means over seeds; tokens include what a method samples "
        "in addition. Touched: share of tokens, rows or prompts that a link changed, mean over updates, of the link with most; —: none recorded."
    )
    body = join([table(head, rows, numeric=(1, 2, 3, 4, 5, 6), class_="tests"), element("p", note, class_="note")])
    return Section("fairness", "Fairness", "Step size and compute", body, lead=HOW[results.plan.match])


def _number(value: float, pattern: str) -> str:
    return format(value, pattern) if math.isfinite(value) else "—"


def _mean(results: Results, arm: str, what: str) -> float:
    runs = [run for run in results.runs[arm].values() if run is not None]
    found = [run.path() if what == "path" else run.tokens() if what == "tokens" else float(run.summary.get("seconds", math.nan)) for run in runs]
    return float(np.mean(found)) if found else math.nan


def _touched(results: Results, arm: Arm) -> str:
    runs = [run for run in results.runs[arm.name].values() if run is not None]
    found = [float(np.nanmean(values)) for run in runs for name, values in run.train.items() if name.startswith("touch/") and np.isfinite(values).any()]
    if found and max(found) == 0 and any(isinstance(link, Reward | Filter | Advantage) for link in build(arm.control).links):
        return "—"  # nothing, or a tape of before these stages were recorded
    return f"{100 * max(found):.2g} %" if found else "—"


# --- the ledger


def ledger(results: Results) -> Section | None:
    """Why entropy moved, by arm: the accounts of its ledgers, and how well each theory predicted the change; None where no run kept one."""
    kept = {arm.name: runs for arm in results.plan.arms if (runs := _with_books(results, arm))}
    keys = {key for runs in kept.values() for run in runs for key in run.summary}
    theories = sorted({key.split(".")[1] for key in keys if key.startswith("ledger.") and key.endswith(".correlation")})
    if not theories:
        return None
    accounts = [name for name in ACCOUNTS if any(f"account/{name}" in run.books for runs in kept.values() for run in runs)]
    head = ["arm", *(["change of entropy"] if accounts else []), *(NAMES[name] for name in accounts)]
    rows = [[element("code", name), *(_sum(runs, f"{place}{item}") for place, item in _columns(accounts))] for name, runs in kept.items()]
    books = table(head, rows, class_="tests") if accounts else None
    said = table(
        ["correlation, slope", *theories], [[element("code", name), *(_theory(runs, it) for it in theories)] for name, runs in kept.items()], class_="tests"
    )
    note = element(
        "p", "Above: nats per token, summed over the ledgers of a run, of about one update in "
        f"{max(1, results.plan.steps // LEDGERS)}; the columns add up to the change. Below: how each theory's prediction agrees with the measured change.",
        class_="note",
    )  # fmt: skip
    lead = (
        "From one more run of the first seed for the baseline and each method, which keeps the entropy ledger." if results.ledgers else "Means over the seeds."
    )
    return Section("ledger", "Ledger", "Why entropy moved", join([books, said, note]), lead=lead)


def _with_books(results: Results, arm: Arm) -> list[Outcome]:
    """The run that kept the arm's books, or all its runs where they did themselves."""
    if arm.name in results.ledgers:
        return [results.ledgers[arm.name]]
    return [run for run in results.runs[arm.name].values() if run is not None and any(key.startswith("ledger.") for key in run.summary)]


def _columns(accounts: Sequence[str]) -> list[tuple[str, str]]:
    return [("", "measured"), *(("account/", name) for name in accounts)] if accounts else []


def _sum(runs: Sequence[Outcome], column: str) -> str:
    found = [float(np.nansum(run.books[column])) for run in runs if column in run.books]
    return signed(float(np.mean(found)), 4) if found else "—"


def _theory(runs: Sequence[Outcome], theory: str) -> str:
    pairs = [tuple(run.summary.get(f"ledger.{theory}.{what}") for what in ("correlation", "slope")) for run in runs]
    known = np.array([pair for pair in pairs if all(isinstance(value, int | float) for value in pair)], dtype=float)
    return ", ".join(f"{value:.2f}" for value in known.mean(0)) if len(known) else "—"
