"""The record: how to run it again, timings, configuration, effective options, versions, provenance."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from isentrope.report.data import Run, generated_tokens, has, values
from isentrope.report.figure import Section, missing, pairs, table
from isentrope.report.markup import Markup, element, join, visible
from isentrope.report.words import duration, finite, short, whole

MAX_CONFIG = 60_000
HIDDEN = "(hidden)"
_SECRET = re.compile(r"(^|[_.\-])(hub_token|auth_token|access_token|api_token|api_?key|password|passwd|secret)$", re.IGNORECASE)
_SECRET_LINE = re.compile(r"^(\s*-?\s*[\"']?([\w.\-]+)[\"']?\s*:\s*)(?!null\b|~|\s*$)(.+)$", re.MULTILINE)


def section(run: Run) -> Section:
    parts = [_again(run), _details("Timings", _timings(run), open_=True), _details("Configuration, resolved", _config(run))]
    parts.append(_details("Options in effect", _options(run)))
    parts.append(_details("Versions and machine", _versions(run)))
    parts.append(_details("Provenance of every entropy column", _provenance(run)))
    return Section("record", "Record", "The record", join(parts))


def _again(run: Run) -> Markup:
    if run.attached:
        return element("p", "A script of your own trained it (isentrope.attach), and running that script again repeats it; no configuration of ours does.")
    config = shlex.quote(str(run.path / "config.yaml"))
    seed = run.record.get("seed")
    command = f"isentrope train --config {config} --out NEW_DIRECTORY" + (f" --seed {seed}" if isinstance(seed, int) else "")
    lines = [element("p", "To run it again:"), element("pre", command, class_="command", tabindex="0")]
    if run.record.get("command"):
        lines += [element("p", "It was started as:"), element("pre", str(run.record["command"]), class_="command", tabindex="0")]
    recovered = run.record.get("recovered_from")
    if recovered:
        lines.append(
            element(
                "p",
                f"It was resumed from a checkpoint: update {', '.join(str(step) for step in recovered) if isinstance(recovered, list) else recovered}.",
                class_="note",
            )
        )
    return join(lines)


def _details(title: str, body: Markup, open_: bool = False) -> Markup:
    return element("details", element("summary", title), body, open=open_)


def _timings(run: Run) -> Markup:
    if not has(run.steps, "seconds"):
        return missing("No update on the tape yet.")
    seconds = values(run.steps, "seconds")
    seconds = seconds[np.isfinite(seconds)]
    low, middle, high = np.quantile(seconds, (0.05, 0.5, 0.95))
    rows = [
        ("updates", whole(run.last_step)),
        ("seconds an update", f"{short(middle)} (median; 90 % between {short(low)} and {short(high)})"),
        ("all updates", duration(float(seconds.sum()))),
    ]
    total = finite(run.summary.get("seconds"))
    if total is not None and abs(total - seconds.sum()) > 1:
        rows.append(("whole run", duration(total)))
    tokens = generated_tokens(run)
    if tokens is not None:
        rows += [("tokens generated", whole(tokens)), ("tokens generated per second of all updates", short(tokens / max(float(seconds.sum()), 1e-9)))]
    rows.append(("started", run.record.get("started", "not recorded")))
    return pairs(rows)


def _config(run: Run) -> Markup:
    if not run.config:
        return missing("config.yaml is missing.")
    return element("pre", visible(_without_secrets(run.config), MAX_CONFIG), class_="config", tabindex="0")


def _without_secrets(text: str) -> str:
    return _SECRET_LINE.sub(lambda match: f"{match[1]}{HIDDEN}" if _SECRET.search(match[2]) else match[0], text)


def _options(run: Run) -> Markup:
    objective, effective = run.record.get("objective"), run.record.get("effective")
    parts = []
    if isinstance(objective, Mapping):
        parts += [element("h3", "Objective"), pairs((key, _value(key, value)) for key, value in objective.items())]
    if isinstance(effective, Mapping):
        parts += [element("h3", "Trainer, after its own changes"), pairs((key, _value(key, effective[key])) for key in sorted(effective))]
    return join(parts) if parts else missing("run.json does not record the options in effect.")


def _value(key: str, value: Any) -> str:
    if value is not None and _SECRET.search(str(key)):
        return HIDDEN
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return visible(text, 300)


def _versions(run: Run) -> Markup:
    versions, rows = run.record.get("versions"), [("isentrope", run.record.get("isentrope", "not recorded"))]
    if isinstance(versions, Mapping):
        rows += sorted((str(key), value) for key, value in versions.items() if key != "isentrope")
    machine = run.record.get("machine")
    if isinstance(machine, Mapping):
        rows += [(str(key), value) for key, value in machine.items()]
    rows += [(name, run.record[name]) for name in ("threads", "head", "seed", "preset") if name in run.record]
    return pairs((name, _value(name, value)) for name, value in rows)


def _provenance(run: Run) -> Markup:
    found = run.record.get("provenance")
    if not isinstance(found, Mapping) or not found:
        return missing("run.json records no provenance.")
    return table(["column", "what it is"], [[element("code", key), run.provenance(str(key))] for key in found])
