"""Turn by turn: entropy and advantage by turn, how far episodes get, and sampled episodes as a talk of policy and environment.

Only for runs whose responses have several turns; others have no such section.
"""

import re

import numpy as np
import polars as pl

from isentrope.report.data import NOT_RECORDED, Phase, Run, has, nan_mean, phases, texts, values, within
from isentrope.report.figure import Section, figure, line, lines, thinned, thinning_note
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.words import finite, short

PER_CELL = 2
"""Episodes of each phase (early, late) and outcome (won, lost)."""
MAX_TURNS = 24
"""Turns of one episode that the page shows; the rest is counted."""
MAX_SAID = 2_000
"""Characters of one action, one reply or one prompt."""
_COLUMN = re.compile(r"turn-(\d{2,})/entropy")


def section(run: Run) -> Section | None:
    turns = sorted(int(found[1]) for name in run.steps.columns if (found := _COLUMN.fullmatch(name)) and has(run.steps, name))
    if len(turns) < 2:
        return None
    known = phases(run.steps["step"].to_list())
    provenance = run.provenance(f"steps.{_column(turns[0])}/entropy")
    provenance = "" if provenance == NOT_RECORDED else provenance
    x = values(run.steps, "step")
    pictures = [
        figure("turns-entropy", "Entropy by turn", _those(known), provenance=provenance),
        figure("turns-updates", "Its first, middle and last turn over updates", thinning_note(x), provenance=provenance),
        figure("turns-advantage", "Advantage by turn", "Mean over the policy's tokens of the turn. In plain GRPO all tokens of a response share one advantage: "
               "a slope then says who is still playing, not which turn was good.", _those(known)),
        figure("turns-reach", "How far episodes go", "Responses in which the policy takes the turn, of those that take the first.", _those(known)),
    ]  # fmt: skip
    charts = {
        "turns-entropy": lines(_by_turn(run, known, turns, "entropy", "entropy"), x="turn", y="token entropy, nats", unit="nats"),
        "turns-updates": lines(_over_updates(run, x, turns), x="update", y="token entropy, nats", unit="nats"),
        "turns-advantage": lines(_by_turn(run, known, turns, "advantage", "learn"), x="turn", y="advantage", unit="number", zero=False, rule=0.0),
        "turns-reach": lines(_reach(run, known, turns), x="turn", y="responses", unit="percent", top=1.0),
    }
    body = join([element("div", join(pictures[:2]), class_="pair"), element("div", join(pictures[2:]), class_="pair"), _episodes(run)])
    return Section("turns", "Turns", "Turn by turn", body, charts, lead=_lead(run, known, turns))


def _column(turn: int) -> str:
    return f"turn-{turn:02d}"


def _those(known: tuple[Phase, ...]) -> str:
    return "; ".join(f"{phase.name}: {phase.title}" for phase in known) + "."


def _colours(known: tuple[Phase, ...], role: str) -> list[str]:
    """Pale to strong, as the run goes."""
    shades = {"entropy": ("entropy-1", "entropy-2", "entropy-3"), "learn": ("learn-5", "learn-3", "learn-1")}[role]
    return [shades[at] for at in {1: (2,), 2: (0, 2), 3: (0, 1, 2)}[len(known)]]


def _mean(run: Run, phase: Phase, turn: int, name: str) -> float:
    """A turn's figure over a phase: the mean of the updates, each counted by its tokens of that turn; NaN where nobody took it."""
    rows = within(run.steps, phase)
    value, tokens = values(rows, f"{_column(turn)}/{name}"), np.nan_to_num(values(rows, f"{_column(turn)}/tokens"))
    kept = np.isfinite(value) & (tokens > 0)
    return float(np.average(value[kept], weights=tokens[kept])) if kept.any() else float("nan")


def _by_turn(run: Run, known: tuple[Phase, ...], turns: list[int], name: str, role: str) -> list[dict]:
    number = np.array(turns, dtype=float) + 1
    return [
        line(phase.name, number, np.array([_mean(run, phase, turn, name) for turn in turns]), colour, label=phase.name, width=2.5, marks=True)
        for phase, colour in zip(known, _colours(known, role), strict=True)
    ]


def _over_updates(run: Run, x: np.ndarray, turns: list[int]) -> list[dict]:
    chosen = sorted({turns[0], turns[len(turns) // 2], turns[-1]})
    series = []
    for turn, colour in zip(chosen, ("entropy-1", "entropy-2", "entropy-3"), strict=False):
        step, mean = thinned(x, values(run.steps, f"{_column(turn)}/entropy"))
        series.append(line(f"turn {turn + 1}", step, mean, colour, label=f"turn {turn + 1}", marks=len(step) < 3))
    return series


def _reach(run: Run, known: tuple[Phase, ...], turns: list[int]) -> list[dict]:
    series = []
    for phase, colour in zip(known, _colours(known, "learn"), strict=True):
        rows = within(run.steps, phase)
        counts = np.array([np.nansum(values(rows, f"{_column(turn)}/responses")) for turn in turns])
        share = counts / counts[0] if counts[0] else np.full(len(turns), np.nan)
        series.append(line(phase.name, np.array(turns, dtype=float) + 1, share, colour, label=phase.name, width=2.5, marks=True))
    return series


def _lead(run: Run, known: tuple[Phase, ...], turns: list[int]) -> str:
    if len(known) < 2:
        return ""
    early, late = ([_mean(run, phase, turn, "entropy") for turn in turns] for phase in (known[0], known[-1]))
    parts = [f"turn {turn + 1} from {short(before)} to {short(after)}" for turn, before, after in zip(turns, early, late, strict=True)
             if np.isfinite([before, after]).all()]  # fmt: skip
    if not parts:
        return ""
    shown = parts if len(parts) <= 3 else [parts[0], parts[len(parts) // 2], parts[-1]]
    took = [nan_mean(values(within(run.steps, phase), "turns/mean")) for phase in (known[0], known[-1])]
    text = f"Mean token entropy, early to late, in nats: {', '.join(shown)}."
    return text if None in took else f"{text} An episode took {short(took[0])} turns early and {short(took[1])} late."


# --- sampled episodes


def _episodes(run: Run) -> Markup | None:
    """Episodes of the first and the last phase as talks, won and lost."""
    if not {"step", "row_id", "turn"} <= set(run.turns.columns):
        return None
    cards = [_card(run, phase, rows) for phase, rows in _chosen(run.turns.drop_nulls(["row_id", "turn"]), 1 if run.lean else PER_CELL)]
    if not cards:
        return None
    note = "What the policy wrote stands on the left with a mark, what the environment answered is set back. Entropy: mean of the policy's tokens of that turn."
    return join([element("h3", "Episodes", class_="sub"), element("p", note, class_="note"), element("div", join(cards), class_="talks")])


def _chosen(turns: pl.DataFrame, count: int) -> list[tuple[Phase, pl.DataFrame]]:
    """(phase, its turns in order) of at most `count` episodes of each phase and outcome, no two of one group."""
    known, found = phases(turns["step"].to_list()), []
    for phase in dict.fromkeys((*known[:1], *known[-1:])):
        rows = within(turns, phase)
        episodes = rows.unique(["step", "row_id"], keep="first", maintain_order=True).sort("step", "row_id", descending=phase.name == "late")
        won = values(episodes, "correct") >= 0.5
        for outcome in (True, False):
            cell = episodes.filter(pl.Series(won == outcome))
            fresh = cell.unique("group", keep="first", maintain_order=True) if "group" in cell.columns else cell
            for row in fresh.head(count).iter_rows(named=True):
                found.append((phase, rows.filter((pl.col("step") == row["step"]) & (pl.col("row_id") == row["row_id"])).sort("turn")))
    return found


def _card(run: Run, phase: Phase, rows: pl.DataFrame) -> Markup:
    first = rows.row(0, named=True)
    won, reward = finite(first.get("correct")), finite(first.get("reward"))
    outcome = element("span", "won" if won else "lost", class_=f"outcome {'right' if won else 'wrong'}") if won is not None else None
    head = [outcome, element("span", f"{phase.name}, update {first['step']}"), element("span", f"{len(rows)} turns" if len(rows) > 1 else "1 turn")]
    if reward is not None:
        head.append(element("span", f"reward {short(reward)}"))
    entropy = _entropies(run, first)
    parts: list[Markup | None] = [element("header", join(head)), element("div", visible(_prompt(run, first), MAX_SAID), class_="prompt")]
    said = zip(rows["turn"].to_list(), texts(rows, "action"), texts(rows, "reply"), values(rows, "advantage").tolist(), strict=True)
    for turn, action, reply, advantage in list(said)[:MAX_TURNS]:
        meta = [
            f"{turn + 1}",
            None if turn not in entropy else f"{short(entropy[turn])} nats",
            f"A {short(advantage)}" if finite(advantage) is not None else None,
        ]
        tag = element("span", " · ".join(word for word in meta if word), class_="turn-meta")
        parts.append(element("div", tag, element("div", visible(action, MAX_SAID) or "(nothing)", class_="action" if action else "action empty")))
        if reply:
            parts.append(element("div", visible(reply.rstrip("\n"), MAX_SAID), class_="reply"))
    if len(rows) > MAX_TURNS:
        parts.append(element("p", f"… and {len(rows) - MAX_TURNS} more turns", class_="note"))
    parts.append(_ending(texts(rows, "ending")[-1]))
    return element("article", join(parts), class_="sample talk")


_ENDINGS = {
    "": None, "end": None, "turns": "The allowed turns were used up.", "budget": "Cut: no token was left for another action.",
}  # fmt: skip


def _ending(ending: str) -> Markup | None:
    text = _ENDINGS.get(ending, f"The game failed: {ending}")
    return None if text is None else element("p", visible(text, MAX_SAID), class_="note")


def _prompt(run: Run, first: dict) -> str:
    if not {"step", "row_id", "prompt"} <= set(run.samples.columns):
        return ""
    found = run.samples.filter((pl.col("step") == first["step"]) & (pl.col("row_id") == first["row_id"]))
    return texts(found, "prompt")[0] if len(found) else ""


def _entropies(run: Run, first: dict) -> dict[int, float]:
    """Mean token entropy of each turn of one sampled response, from its token rows; empty where there are none."""
    if not {"step", "row_id", "turn", "entropy"} <= set(run.tokens.columns):
        return {}
    rows = run.tokens.filter((pl.col("row_id") == first["row_id"]) & (pl.col("step") >= first["step"]))
    if not len(rows):
        return {}
    rows = rows.filter(pl.col("step") == pl.col("step").min())
    found = rows.group_by("turn").agg(pl.col("entropy").mean()).drop_nulls()
    return {int(turn): float(value) for turn, value in found.iter_rows() if finite(value) is not None}
