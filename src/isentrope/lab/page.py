"""The page of a comparison: one self-contained file, written afresh after every run, that says of each method what was found.

Names of methods are what a user typed and reasons of failure are what a program said: both are escaped like everything else.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from isentrope.files import write_bytes_atomic, write_json_atomic
from isentrope.lab.plan import BASELINE, Arm, run_key
from isentrope.lab.results import Results, as_data, matched_metrics, shown_metrics
from isentrope.lab.statistics import ALPHA, FEWEST, POWER, Difference
from isentrope.lab.verdict import MIN_PAIRS, WORDS, signed
from isentrope.lab.work import ASKED
from isentrope.report.figure import Section, figure, line, lines, missing, table
from isentrope.report.markup import Markup, element, join
from isentrope.report.page import asset, document

NAME = "compare.html"
DATA = "results.json"
TONES = {"helps": "good", "hurts": "bad", "slower learning only": "warn", "trades": "warn"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def write(results: Results, directory: Path) -> Path:
    """Writes results.json and compare.html into `directory`; returns the page's path."""
    write_json_atomic(directory / DATA, as_data(results))
    write_bytes_atomic(directory / NAME, html(results, directory).encode("utf-8", errors="backslashreplace"))
    return directory / NAME


def html(results: Results, directory: Path) -> str:
    """The whole page as text."""
    sections = [_verdicts(results), _front(results), _methods(results), _tables(results), _fairness(results), _ledger(results), _again(results, directory)]
    foot = "Made by isentrope from the tapes of these runs. The file requests nothing; entropies are in nats."
    shown = [section for section in sections if section is not None]
    return document(f"{_title(results)} · isentrope", _head(results), shown, foot, style=asset("compare.css"), drawers=asset("compare.js"))


# --- the top


def _head(results: Results) -> Markup:
    plan = results.plan
    model, task = plan.config["model"]["name"], plan.config["task"].get("name") or plan.config["task"].get("reasoning_gym") or "own task"
    total = sum(len(runs) for runs in results.runs.values())
    done = results.finished()
    pill = element("span", f"not finished: {done} of {total} runs", class_="pill") if done + _lost(results) < total else None
    what = [
        element("strong", str(model)), " on ", element("strong", str(task)), f", {plan.steps} updates, {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}: "
        f"{len(plan.methods)} method{'s' if len(plan.methods) > 1 else ''} against plain GRPO and against ", "their placebos" if len(plan.methods) > 1 else "its placebo",
    ]  # fmt: skip
    failures = [element("li", element("strong", key), " ", reason, class_="error") for key, reason in results.failed.items()]
    failed = element("ul", join(failures), class_="events") if failures else None
    return element(
        "header",
        element("p", join([*what, pill]), class_="eyebrow"),
        element("h1", _title(results)),
        element("p", _lead(results), class_="lead"),
        failed,
        id="top",
    )


def _lost(results: Results) -> int:
    return len([key for key in results.failed if key.startswith("runs/")])


def _title(results: Results) -> str:
    words = [verdict.word for verdict in results.verdicts.values()]
    judged = [word for word in words if word != "not judged"]
    if not judged:
        return "Nothing can be judged yet"
    counted = [(word, judged.count(word)) for word in WORDS if word in judged]
    named = {"helps": "help", "hurts": "hurt", "slower learning only": "only learn more slowly", "trades": "trade one thing for another", "same as its placebo": "do what a placebo does", "no difference found": "show no difference", "same computation": "change nothing"}  # fmt: skip
    single = {"helps": "helps", "hurts": "hurts", "slower learning only": "only learns more slowly", "trades": "trades one thing for another", "same as its placebo": "does what its placebo does", "no difference found": "shows no difference", "same computation": "changes nothing"}  # fmt: skip
    said = ", ".join(f"{_count(count)} {single[word] if count == 1 else named[word]}" for word, count in counted)
    text = (
        f"Of {_count(len(judged))} method{'s' if len(judged) > 1 else ''}, {said}" if len(judged) > 1 else f"{next(iter(results.verdicts))} {single[judged[0]]}"
    )
    return text + "."


def _count(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def _lead(results: Results) -> str:
    one, many = results.judged
    seen = [(metric, [results.step[name, metric].detectable for name in results.verdicts if (name, metric) in results.step]) for metric in (one, many)]
    known = [(metric, [value for value in values if not math.isnan(value)]) for metric, values in seen]
    smallest = " and ".join(f"{np.median(values):.2g} in {metric}" for metric, values in known if values)
    if not smallest:
        return f"A verdict needs at least {MIN_PAIRS} seeds of a method and of the baseline."
    return f"The smallest difference that this comparison could have seen (chance {POWER:.0%}, corrected level): about {smallest}."


# --- the verdicts


def _verdicts(results: Results) -> Section:
    one, many = results.judged
    head = [
        "method",
        "verdict",
        f"{one} − baseline",
        f"{one} − placebo",
        f"{many} − baseline",
        "entropy at the same reward",
        "rank in pass@1",
        "could have seen",
    ]
    rows = []
    for name, verdict in results.verdicts.items():
        seen = results.step[name, one].detectable
        rows.append([
            element("code", name), _word(verdict.word), _cell(results.step.get((name, one))), _cell(results.step_sham.get((name, one)), results.plan.without_placebo.get(name)),
            _cell(results.step.get((name, many))), _cell(results.reward.get((name, "entropy"))), _rank(results.ranks.get(name)), "—" if math.isnan(seen) else f"±{seen:.2g} {one}",
        ])  # fmt: skip
    rank = results.ranks.get(BASELINE)
    how = join([
        element("p", f"Differences are means over seeds, with their 95 % bootstrap interval (from {FEWEST} seeds on); bold: found, by a corrected p of at most {ALPHA}. The baseline's own rank is {_rank(rank)}."),
        element("p", "Matched step: the mean of the evaluations in the last third of the updates. The same reward: entropy where both runs of a seed have the same held-out pass@1 (docs/compare.md says how)."),
    ])  # fmt: skip
    return Section("verdicts", "Verdicts", "Verdicts", join([table(head, rows, class_="tests"), element("div", how, class_="note"), _words()]))


def _word(word: str) -> Markup:
    return element("span", word, class_=f"word {TONES.get(word, '')}".strip())


def _cell(item: Difference | None, why: str | None = None, digits: int = 3) -> Markup | str:
    if item is None or item.pairs == 0:
        return element("span", "none", title=why) if why else "—"
    mean = signed(item.mean, digits)
    sub = "identical" if item.identical else "" if math.isnan(item.low) else f"[{signed(item.low, digits)}, {signed(item.high, digits)}]"
    corrected = "" if item.identical or math.isnan(item.adjusted) else f"p {item.adjusted:.2g}"
    note = ", ".join(part for part in (sub, corrected) if part)
    return join([element("strong", mean) if item.found else mean, element("span", note, class_="sub") if note else None])


def _rank(rank: tuple[int, int, int] | None) -> str:
    return "—" if rank is None or not rank[0] else f"{rank[0]} ({rank[1]} to {rank[2]})" if rank[1] != rank[2] else str(rank[0])


def _words() -> Markup:
    said = [
        ("helps", "better than the baseline in pass@1 or pass@k and worse in neither, and better than its placebo in one it is better in."),
        ("hurts", "worse in one and better in neither, worse than its placebo too, and not the next."),
        ("slower learning only", "worse in pass@1 at the same update, but no different in anything at the same reward."),
        ("trades", "better in one, worse in the other."),
        ("same as its placebo", "differs from the baseline, and not from its placebo in what it differs in: what it touches does it, not which."),
        (
            "no difference found",
            "no corrected difference to the baseline; that is no proof of equality, so the size that could have been seen stands beside it.",
        ),
        ("not judged", f"fewer than {MIN_PAIRS} seeds so far."),
    ]
    rows = join(element("tr", element("td", _word(word)), element("td", text)) for word, text in said)
    return element(
        "details",
        element("summary", "What the words mean"),
        element("div", element("table", element("tbody", rows)), class_="scroll", tabindex="0", role="region", aria_label="words"),
    )


# --- pictures


def _front(results: Results) -> Section:
    points = []
    for arm in results.plan.arms:
        reward, entropy = (_spread(results.late(arm.name, metric)) for metric in ("pass@1", "entropy"))
        if reward is None or entropy is None:
            continue
        points.append({
            "name": arm.name, "role": arm.role, "x": entropy[0], "y": reward[0], "xs": entropy[1], "ys": reward[1],
            "seeds": int(np.isfinite(results.late(arm.name, "pass@1")).sum()), "note": "in brackets: lowest and highest seed",
        })  # fmt: skip
    if not points:
        return Section("front", "Front", "Entropy and reward", missing("No run is finished yet."))
    chart = {
        "kind": "front",
        "points": points,
        "front": pareto([(point["x"], point["y"]) for point in points]),
        "x": "entropy, nats per token of held-out responses",
        "y": "pass@1, %",
    }
    body = figure(
        "front-chart", "Every arm at matched step",
        "Diamond: the baseline. Filled: methods. Rings: their placebos. Bars: lowest and highest seed. The dotted line joins the arms that no other beats in both entropy and reward.",
        "Entropy is no aim of its own here: an arm far right at the same height keeps more of it for the same reward at this step, which slower learning does too. Compare at the same reward below.", tall=True,
        provenance=f"mean over seeds and over the evaluations in the last third of {results.plan.steps} updates; exact entropy, current policy, token mean, nats",
    )  # fmt: skip
    return Section("front", "Front", "Entropy and reward", body, {"front-chart": chart})


def _spread(values: np.ndarray) -> tuple[float, tuple[float, float] | None] | None:
    there = values[np.isfinite(values)]
    if not len(there):
        return None
    return float(there.mean()), (float(there.min()), float(there.max())) if len(there) > 1 else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other equals or beats in both coordinates (larger is better), by rising x.

    >>> pareto([(0.0, 3.0), (1.0, 2.0), (0.5, 1.0), (2.0, 0.0)])
    [0, 1, 3]
    """
    beaten = lambda at: any(x >= points[at][0] and y >= points[at][1] and (x, y) != points[at] for x, y in points)  # noqa: E731
    return sorted((at for at in range(len(points)) if not beaten(at)), key=lambda at: points[at][0])


def _methods(results: Results) -> Section:
    charts, parts = {}, []
    for place, arm in enumerate(results.plan.methods):
        verdict = results.verdicts[arm.name]
        plots = []
        for metric, title, y, unit, colour in (
            ("pass@1", "Reward", "pass@1, %", "percent", "learn"),
            ("entropy", "Entropy", "entropy, nats", "nats", "entropy"),
        ):
            chart = _curves(results, arm, metric, y, unit, colour)
            id = f"curve-{place}-{unit}"
            if chart is not None:
                charts[id] = chart
            plots.append(figure(id, title, _band_note(results, arm)) if chart is not None else missing("Not evaluated yet."))
        sham = results.plan.without_placebo.get(arm.name)
        parts.append(element(
            "div", element("h3", arm.name, " ", _word(verdict.word)), element("p", f"{verdict.because} {verdict.entropy}".strip()),
            element("p", f"No placebo: {sham}.") if sham else None, element("div", join(plots), class_="pair"), _setting(arm), class_="method",
        ))  # fmt: skip
    lead = "Solid: the method. Pale: the baseline. Dotted: the placebo. Bands: lowest to highest seed."
    return Section("methods", "Methods", "Method by method", join(parts), charts, lead)


def _band_note(results: Results, arm: Arm) -> str:
    sham = results.plan.placebo(arm.name)
    counts = [f"{name} {int(np.isfinite(results.late(arm_name, 'pass@1')).sum())}" for name, arm_name in (("method", arm.name), ("placebo", sham.name if sham else ""), ("baseline", BASELINE)) if arm_name]  # fmt: skip
    return f"Held-out responses. Seeds finished: {', '.join(counts)}."


def _curves(results: Results, arm: Arm, metric: str, y: str, unit: str, colour: str) -> dict | None:
    sham = results.plan.placebo(arm.name)
    series = []
    for name, role, dash, label in (
        (BASELINE, "muted", "solid", "baseline"),
        (sham.name if sham else "", "muted", "dot", "placebo"),
        (arm.name, colour, "solid", "method"),
    ):
        runs = [run for run in results.runs.get(name, {}).values() if run is not None and metric in run.evals]
        if not runs:
            continue
        stacked = np.stack([run.evals[metric] for run in runs if len(run.step) == len(runs[0].step)])
        band = {"low": stacked.min(0), "high": stacked.max(0), "band": "lowest to highest seed"} if len(stacked) > 1 and label != "placebo" else {}
        series.append(line(label, runs[0].step, stacked.mean(0), role, dash=dash, label=label, marks=True, width=2, **band))
    return lines(series, x="update", y=y, unit=unit) if series else None


def _setting(arm: Arm) -> Markup:
    return element(
        "details", element("summary", "Setting"), element("pre", yaml.safe_dump([dict(spec) for spec in arm.control], sort_keys=False).strip(), class_="config")
    )


# --- tables


def _tables(results: Results) -> Section:
    one, many = results.judged
    names = list(results.verdicts)
    step = (one, many, *[metric for metric in shown_metrics(results.plan) if metric not in (one, many)])
    at_step = table(["method less baseline", *step], [[element("code", name), *(_cell(_plain(results.step.get((name, m)), m in (one, many)), digits=_digits(m)) for m in step)] for name in names], class_="tests")  # fmt: skip
    to_sham = table(["method less its placebo", *step], [[element("code", name), *(_cell(_plain(results.step_sham.get((name, m)), m in (one, many)), digits=_digits(m)) for m in step)] for name in names if (name, one) in results.step_sham], class_="tests")  # fmt: skip
    placebos = table(["placebo less baseline", one, many, "entropy"], [[element("code", name), *(_cell(_plain(results.sham.get((name, m)), False)) for m in (one, many, "entropy"))] for name in names if (name, one) in results.sham], class_="tests")  # fmt: skip
    metrics = matched_metrics(results.plan)
    rows = []
    for name in names:
        low, high = results.levels[name]
        pairs = results.reward[name, "entropy"].pairs
        where = "nothing in common" if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f} %, {pairs} seed{'' if pairs == 1 else 's'}"
        rows.append([
            element("code", name), where, *(_cell(results.reward.get((name, m)), digits=_digits(m)) for m in metrics),
            _cell(_plain(results.reward.get((name, "step")), False), digits=1), _cell(results.reward_sham.get((name, "entropy"))),
        ])  # fmt: skip
    at_reward = table(["method less baseline", "pass@1 where compared", *metrics, "updates needed", "entropy − placebo"], rows, class_="tests")
    note = lambda text: element("p", text, class_="note")  # noqa: E731
    body = join([
        element("h3", "At the same reward"), note("Each pair of runs is compared where both have the same held-out pass@1, over the upper half of the range that both passed through. What a slower learner gains at matched step by being behind is gone here. p: corrected over this table; updates needed: shown, not tested."), at_reward,
        element("h3", "At the same update, against the baseline"), note(f"Only {one} and {many} are tested (one family with the next table); the rest is shown with its interval."), at_step,
        element("h3", "At the same update, against its placebo"), to_sham, element("h3", "The placebos against the baseline"), note("Shown, not tested: what touching as much does, without the choice."), placebos,
    ])  # fmt: skip
    return Section("numbers", "Numbers", "The numbers", body)


def _digits(metric: str) -> int:
    return 2 if metric == "length" else 3


def _plain(item: Difference | None, tested: bool) -> Difference | None:
    """Without its p where the number is shown and not tested."""
    return item if item is None or tested else replace(item, p=math.nan, adjusted=math.nan)


def _fairness(results: Results) -> Section:
    plan = results.plan
    base_path, base_tokens, base_rate = (
        _mean(results, BASELINE, "path"),
        _mean(results, BASELINE, "tokens"),
        float(plan.config["trl"].get("learning_rate", 1e-6)),
    )
    rows = []
    for arm in plan.arms:
        rate, path, tokens, seconds = (
            results.rates.get(arm.name),
            _mean(results, arm.name, "path"),
            _mean(results, arm.name, "tokens"),
            _mean(results, arm.name, "seconds"),
        )
        touched = _touched(results, arm)
        rows.append([
            element("code", arm.name), "—" if rate is None else f"{rate * base_rate:.3g}", "—" if rate is None else f"{rate:.3f}",
            _ratio(path, base_path), _ratio(tokens, base_tokens), "—" if math.isnan(seconds) else f"{seconds:.0f}", touched,
        ])  # fmt: skip
    how = {
        "step": "Learning rates are set by a pilot per arm (constant rate, a seed of its own) so that the mean step per update is the baseline's; how far the weights really went in all updates stands beside it.",
        "lr": "Every arm has the learning rate with the best mean pass@1 among three, found on seeds that the comparison does not use.",
        "none": "All arms have the same learning rate; their steps were not matched.",
    }[plan.match]  # fmt: skip
    head = ["arm", "learning rate", "times the base", "path of the weights", "tokens sampled", "seconds a run", "touched"]
    body = join([table(head, rows, numeric=(1, 2, 3, 4, 5), class_="tests"), element("p", "Path and tokens: times the baseline's, means over seeds. Tokens include what a method samples in addition. Touched: the largest share among the links of the tokens, rows or prompts that a link changed, mean over updates.", class_="note")])  # fmt: skip
    return Section("fairness", "Fairness", "Step size and compute", body, lead=how)


def _mean(results: Results, arm: str, what: str) -> float:
    found = []
    for run in results.runs[arm].values():
        if run is not None:
            extra = sum(run.train[name].sum() for name in run.train if name.endswith("extra_tokens"))
            found.append({"path": run.path(), "tokens": float(np.nansum(run.train.get("tokens", np.array([math.nan])))) + float(np.nan_to_num(extra)), "seconds": float(run.summary.get("seconds", math.nan))}[what])  # fmt: skip
    return float(np.mean(found)) if found else math.nan


def _ratio(value: float, base: float) -> str:
    return "—" if math.isnan(value) or math.isnan(base) or base == 0 else f"{value / base:.2f}"


def _touched(results: Results, arm: Arm) -> str:
    found = [
        np.nanmean(values) for run in results.runs[arm.name].values() if run is not None for name, values in run.train.items() if name.startswith("touch/")
    ]
    return "—" if not found else f"{100 * max(found):.2g} %"


def _ledger(results: Results) -> Section | None:
    """How well each theory of the ledger predicted the change of entropy, by arm, where the runs kept one."""
    theories = sorted({key.split(".")[1] for arm in results.runs.values() for run in arm.values() if run is not None for key in run.summary if key.startswith("ledger.") and key.endswith(".correlation")})  # fmt: skip
    if not theories:
        return None
    rows = []
    for arm in results.plan.arms:
        runs = [run for run in results.runs[arm.name].values() if run is not None]
        cells = []
        for theory in theories:
            pairs = [(run.summary.get(f"ledger.{theory}.correlation"), run.summary.get(f"ledger.{theory}.slope")) for run in runs]
            known = [(float(r), float(s)) for r, s in pairs if isinstance(r, int | float) and isinstance(s, int | float)]
            cells.append("—" if not known else f"{np.mean([r for r, _ in known]):.2f}, {np.mean([s for _, s in known]):.2f}")
        rows.append([element("code", arm.name), *cells])
    body = table(["arm: correlation, slope", *theories], rows, class_="tests")
    return Section(
        "ledger",
        "Ledger",
        "Why entropy moved",
        body,
        lead="Measured change of entropy per update against what each theory predicts: mean correlation and slope over the seeds.",
    )


# --- again


def _again(results: Results, directory: Path) -> Section:
    plan = results.plan
    where = shlex.quote(str(directory))
    whole = [
        "isentrope",
        "compare",
        *(arm.name for arm in plan.arms if arm.role != "placebo"),
        "--config",
        str(directory / "base.yaml"),
        "--seeds",
        str(len(plan.seeds)),
    ]
    whole += ["--k", str(plan.k), *{"step": [], "lr": ["--sweep", "lr"], "none": ["--no-match"]}[plan.match], "--out", "AGAIN"]
    body = join([
        element("pre", shlex.join(whole), class_="command"), element("p", "Goes on with this one after a kill; finished runs are not computed again:", class_="note"), element("pre", f"isentrope compare --resume {where}", class_="command"),
        element("details", element("summary", "Every run by itself"), element("pre", "\n".join(_commands(results, directory)), class_="all")),
        element("details", element("summary", "Configuration of the baseline"), element("pre", yaml.safe_dump(plan.config, sort_keys=False), class_="config")),
        element("details", element("summary", "Versions and files"), element("p", f"Plan: compare.json. Numbers of this page: {DATA}. Each run: an ordinary run directory below runs/, with config.yaml, run.json and tape.", class_="note")),
    ])  # fmt: skip
    return Section("again", "Again", "Run it again", body)


def _commands(results: Results, directory: Path) -> Iterator[str]:
    for arm in results.plan.arms:
        for seed in results.plan.seeds:
            key = run_key(arm, seed)
            yield shlex.join(["isentrope", "train", "--config", str(directory / f"{key}.{ASKED}"), "--out", f"AGAIN/{arm.folder}-{seed}"])
