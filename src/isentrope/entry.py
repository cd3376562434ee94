"""What is told of one intervention, read off the class: what it costs, what it was checked against, what it does to entropy, how to run it."""

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import yaml

from isentrope.control.objectives import Objective
from isentrope.control.stages import Filter, Fork, Intervention, Select, stages_of

PRESET = "control-check"
"""The preset that the recipes run on: the embedded model, four updates per generation batch, each batch used twice."""
GAME = "game"
"""The preset for a link that forks episodes of several turns."""

_INFERRED = re.compile(r"\(inferred\b|\binferred\)", re.IGNORECASE)


def cost(link: Intervention) -> dict[str, Any]:
    """What a link adds to an update beside the forward and backward that are there anyway, told from its stages and signals.

    forwards_per_generation: passes over the generation batch without gradient (the signals of the policy that sampled).
    forwards_over_drafts: such passes over the responses of a generation that are sampled first.
    forwards_to_remember: such passes where the trainer uses a batch once, and so keeps no log-probs that a replay could be held to.
    forwards_per_update: passes over the whole update without gradient; 0 where it is one slice on one process.
    generated: responses or tokens that are sampled in addition. Links of a chain share each pass.
    """
    stages, old, drafts = stages_of(link), *(any(need.policy == policy for need in link.needs) for policy in ("old", "draft"))
    generated = []
    asked = link.probe() if isinstance(link, Select) else None
    if asked is not None:
        of = "every prompt" if asked.prompts is None else f"{asked.prompts} prompts"
        generated.append(f"once, before training, {asked.samples} responses to {of}, counted as isentrope/probe_tokens")
    if "extra" in stages:
        generated.append("the responses that it asks for, counted as isentrope/extra_tokens")
    if "filter" in stages:
        rounds = link.__dict__.get("rounds", type(link).__dict__.get("rounds"))
        generated.append("none" if rounds == 0 else f"up to {rounds} times the responses of the groups that it drops")
    words = ["one forward without gradient per generation, which scores the signals of the policy that sampled"] if old else []
    if "regenerate" in stages:
        words += ["one forward without gradient per generation over the responses that are sampled first"] if drafts else []
        words.append(
            "a second call of the sampler, which reads again what a branch took over; both calls' tokens are counted as isentrope/regenerate/first_tokens "
            "and second_tokens, what is taken over is not sampled again"
        )
    if "fork" in stages:
        words.append(
            "one forward without gradient over what is drawn after every turn of a game; an episode of every group that is played beforehand and thrown away, "
            "counted as isentrope/fork/pilot_tokens; what a copy took over is not sampled again"
        )
    if "survey" in stages:
        words.append("one forward without gradient per update where that has several slices or processes")
    if "sample" in stages:
        words.append("a hook on every decoding step")
    if "replay" in stages:
        words.append("one forward without gradient per generation where the trainer uses a batch once and keeps no log-probs of it")
    words += [f"generates {item}" for item in generated if item != "none"]
    if {"extra", "rows"} & set(stages) or any(item != "none" for item in generated):
        words.append("rows that are replaced are scored again where the signals or log-probs of the policy that sampled are kept")
    return {
        "forwards_per_generation": int(old),
        "forwards_over_drafts": int(drafts),
        "forwards_to_remember": int("replay" in stages),
        "forwards_per_update": int("survey" in stages),
        "generated": "; ".join(item for item in generated if item != "none") or None,
        "text": "; ".join(words) or "none: no forward, no generated token",
    }


def inferred(kind: type) -> list[str]:
    """What the docstrings of the module and of the class mark as inferred: the sentences and table rows with the mark."""
    text = f"{sys.modules[kind.__module__].__doc__ or ''}\n\n{kind.__doc__ or ''}"
    lines = [" ".join(line.strip().strip("|").split()) for line in text.splitlines() if line.startswith("|")]
    return [line for line in (*lines, *_sentences(text.split("\n\n"))) if _INFERRED.search(line)]


def verified(slug: str | None, marked: list[str]) -> list[str]:
    """"vectors" where recorded official outputs of the slug are answered by an adapter, else "identities" (the contract, the sheet's exact
    statements); then "inferred" is added where the docstrings mark something so."""
    from isentrope.verify.cases import answered

    if slug in answered():
        return ["vectors"]
    return ["identities", "inferred"] if marked else ["identities"]


def vllm(link: Intervention) -> str:
    """How it fares with vLLM rollouts, told from its stages alone (the host decides by the same rule)."""
    stages = stages_of(link)
    if "sample" in stages:
        return "refused, because it needs a hook on every decoding step"
    if "regenerate" in stages:
        return "refused, because responses that go on from a cut go through transformers' generate"
    if "fork" in stages:
        return "not tried: what is drawn in a turn is scored by the trainer's own model before the next"
    if "extra" in stages:
        return "refused, because extra rollouts at another temperature go through transformers' generate"
    if isinstance(link, Select) and link.probe() is not None:
        return "refused, because prompts are tried before training through transformers' generate"
    if isinstance(link, Filter) and link.rounds > 0:
        return "refused, because dropped groups are sampled again through transformers' generate; works with rounds=0"
    return "works"


def recipe(link: Intervention) -> dict[str, Any]:
    """How to run it on the embedded model: `control` and `objective` of the configuration, and the command.

    The settings are those that bite on that model (`embedded`), the objective the one that its paper combines it with (`recipe`).
    """
    chosen = link.embedded()
    control = [{"name": link.name, **_changed(chosen, link)}]
    objective = _changed(chosen.recipe(), Objective.named("grpo"))
    sets = [f"control={_flow(control if len(control[0]) > 1 else [link.name])}", *([f"objective={_flow(objective)}"] if objective else [])]
    preset = GAME if isinstance(link, Fork) else PRESET
    words = ["isentrope", "train", "--preset", preset, *(word for item in sets for word in ("--set", item)), "--out", f"runs/{link.name}"]
    return {"preset": preset, "control": control, "objective": objective, "sets": sets, "command": " ".join(map(shlex.quote, words))}


def _changed(value: Any, base: Any) -> dict[str, Any]:
    """The fields in which two dataclasses of one kind differ."""
    return {item.name: value.__dict__[item.name] for item in fields(base) if value.__dict__[item.name] != base.__dict__[item.name]}


def _flow(value: Any) -> str:
    """YAML on one line that reads back as the value, tuples as lists and infinities as `.inf`."""
    return yaml.safe_dump(plain(value), default_flow_style=True, width=10**9, sort_keys=False).strip()


def plain(value: Any) -> Any:
    """Lists for tuples, dicts for mappings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def shown(value: Any) -> Any:
    """A value for JSON: infinities as text, and whatever JSON has no word for."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, Mapping):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [shown(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else json.loads(json.dumps(value, default=str))


def _sentences(paragraphs: list[str]) -> Iterator[str]:
    """Sentences of running text, one line each; tables are left out, and indented formulas stand for a sentence of their own."""
    for paragraph in paragraphs:
        if paragraph.lstrip("\n").startswith("|"):
            continue
        text = " ".join(line.strip() for line in paragraph.splitlines() if line.strip())
        yield from re.split(r"(?<=[.;])\s+(?=[A-Za-z`\"(])", text)
