"""Verifiable tasks: prompts that a reward function can judge.

Four sources: the presets below (compact prompts that the embedded model reads), any dataset of reasoning-gym with its own
verifier, a JSONL file with a reward function by import path, and games of several turns (`isentrope.train.games`). Train and
validation prompts are disjoint by construction: a hash of the canonical prompt (white space collapsed; a game's with its seed)
decides the side, so equal prompts can never stand on both.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from isentrope.errors import UserError
from isentrope.train import games
from isentrope.train.rewards import GuardedReward, import_reward
from isentrope.train.turns import outcome

VALIDATION_SHARE = 0.125
Extract = Literal["auto", "last-number", "whole"]
Row = dict[str, Any]
_KEY = "isentrope/key"  # the canonical prompt, which decides the side
RESERVED = frozenset({
    "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "image", "images", _KEY,
})  # fmt: skip
"""Columns that a JSONL file cannot have: arguments of TRL's reward functions, and what would switch on a feature that is not carried."""


class TaskError(UserError, ValueError):
    """A task that cannot be built; the message names the field and the way out."""


@dataclass(frozen=True)
class Task:
    """Prompts on two disjoint sides and the functions that judge completions.

    `train` and `validation` have a column `prompt` (a string, or a list of messages for a chat model) and whatever the rewards
    read. `reward_funcs` have TRL's signature and are guarded. A completion is correct when the first of them gives at least
    `correct_at`; the others only shape. With `game` a response is an episode of it, and every prompt has its `seed`.
    """

    name: str
    train: Dataset
    validation: Dataset
    reward_funcs: tuple[GuardedReward, ...]
    extract: Callable[[str], str | None]
    correct_at: float = 1.0
    source: Mapping[str, Any] = field(default_factory=dict)
    game: games.GameSpec | None = None

    def describe(self) -> dict[str, Any]:
        """Flat facts for the log, the dry run and the model card."""
        return {
            "name": self.name,
            "train_prompts": len(self.train),
            "validation_prompts": len(self.validation),
            "rewards": [reward.__name__ for reward in self.reward_funcs],
            "first_prompt": self.train[0]["prompt"],
            **self.source,
        }

    def reward_faults(self) -> dict[str, int]:
        """Rows that could not be scored so far, by `reward/kind`."""
        return {f"{r.__name__}/{kind}": n for r in self.reward_funcs for kind, n in r.counts.items()}


@dataclass(frozen=True)
class TaskInfo:
    """One line of `isentrope tasks`."""

    name: str
    kind: Literal["preset", "reasoning-gym"]
    summary: str


_SUMS = {
    "reasoning_gym": "chain_sum",
    "config": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "prompt": "{metadata[expression]}=",
    "compact": True,
    "keep": "+",
    "extract": "last-number",
    "exact": True,
    "size": 24000,
}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sums": ("two-digit additions as `12+34=`, the default; the embedded model was made for it", _SUMS),
    "sums-think": (
        "the same additions as `12+34=<think>`: worked answers in phases opened by verbs",
        {**_SUMS, "suffix": "<think>"},
    ),
    "sums-chat": (
        "sums and differences of two digits in words, for a small chat model",
        {
            "reasoning_gym": "chain_sum",
            "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            "prompt": "What is {metadata[expression]}? End with the final number.",
            "extract": "last-number",
            "exact": True,
            "size": 4000,
        },
    ),
    "keys": (
        "a note behind one of four places, and a door that opens with its two digits: several turns, for the model `embedded-game`",
        {"game": "keys", "size": 400, "turns": 5, "turn_tokens": 4},
    ),
    "reckon": (
        "sums and products with a calculator that takes one operation at a time: tool calls in several turns, for the model `embedded-tool`",
        {"game": "reckon", "size": 2000, "turns": 4, "turn_tokens": 9},
    ),
}


def side_of(prompt: str, share: float = VALIDATION_SHARE) -> Literal["train", "validation"]:
    """The side on which a prompt stands, for ever: a hash of its words, uniform on [0, 1), below `share` or not."""
    digest = hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") / 2**64 < share else "train"


def list_tasks() -> list[TaskInfo]:
    """The presets, then every dataset of reasoning-gym (as `reasoning-gym:NAME`)."""
    from reasoning_gym.factory import DATASETS

    presets = [TaskInfo(name, "preset", summary) for name, (summary, _) in PRESETS.items()]
    return presets + [TaskInfo(f"reasoning-gym:{n}", "reasoning-gym", _first_line(DATASETS[n][0])) for n in sorted(DATASETS)]


def build(spec: str | Mapping[str, Any] | BaseModel, *, chat: bool = False) -> Task:
    """A task by preset name, `reasoning-gym:NAME`, or a mapping (or pydantic model, whose None fields count as absent).

    A mapping holds `name` (a preset, whose fields the others replace), or `reasoning_gym` with the arguments of
    `reasoning_gym_task`, `jsonl` and `reward` with those of `jsonl_task`, or `game` with those of `game_task`. With `chat` prompts become lists of messages.
    Raises TaskError, which names the field and the way out.
    """
    if isinstance(spec, BaseModel):
        spec = spec.model_dump(exclude_none=True)
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.get("name")
    if name is not None and not MAKERS.keys() & given.keys():
        if str(name).startswith("reasoning-gym:"):
            given["reasoning_gym"] = str(name).partition(":")[2]
        elif name in PRESETS:
            given = {**PRESETS[name][1], **given}
        else:
            raise TaskError(f"task: unknown task {name!r}.{_nearest(str(name), PRESETS)} `isentrope tasks` lists them all.")
    source = next((key for key in MAKERS if key in given), None)
    if source is None:
        raise TaskError("task needs one of: name (a preset), reasoning_gym (a dataset), jsonl (a file), game (of several turns). Got none of them.")
    maker = MAKERS[source]
    known = [source, *list(inspect.signature(maker).parameters)[1:]]
    if unknown := [key for key in given if key not in known]:
        raise TaskError(f"task: unknown field {unknown[0]!r}.{_nearest(unknown[0], known)} Allowed: {', '.join(sorted(known))}.")
    if maker is jsonl_task and "reward" not in given:
        raise TaskError("task.reward is missing: a JSONL task needs a reward function by import path, 'pkg.mod:function'.")
    task = maker(given.pop(source), **given)
    return as_chat(task) if chat else task


def reasoning_gym_task(
    dataset: str,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    size: int = 2000,
    seed: int = 0,
    prompt: str = "{question}",
    compact: bool = False,
    suffix: str = "",
    keep: str | None = None,
    extract: Extract = "auto",
    exact: bool = False,
    validation_share: float = VALIDATION_SHARE,
    validation_size: int | None = None,
    correct_at: float = 1.0,
    timeout: float | None = 10.0,
) -> Task:
    """Prompts of a reasoning-gym dataset, judged by that dataset's own `score_answer`.

    `prompt` is a format string over the entry (`question`, `answer`, `metadata[...]`); `compact` drops its spaces; `suffix` is appended
    and does not change the side; `keep` takes entries whose prompt contains that text; `exact` turns partial credit into 0.
    Duplicate prompts are dropped, so fewer than `size` may come out.
    """
    from reasoning_gym.factory import DATASETS, create_dataset

    if dataset not in DATASETS:
        raise TaskError(f"task.reasoning_gym: unknown dataset {dataset!r}.{_nearest(dataset, DATASETS)} `isentrope tasks` lists them.")
    try:
        entries = create_dataset(dataset, **{**dict(config or {}), "size": size, "seed": seed})
    except (TypeError, AssertionError, ValueError) as error:
        raise TaskError(f"task.config: reasoning-gym refused it for {dataset!r}: {error}. Got {dict(config or {})}.") from error
    rows = []
    for index in range(size):
        entry = entries[index]
        text = _formatted(prompt, entry)
        text = "".join(text.split()) if compact else text
        if keep is None or keep in text:
            rows.append({_KEY: text, "prompt": text + suffix, "answer": str(entry["answer"]), "index": index})
    reader = _EXTRACT[extract]

    def verifier(completions: Sequence[Any], index: Sequence[int], **_: Any) -> list[float | None]:
        return [_judged(entries, i, reader(completion_text(c)), exact) for c, i in zip(completions, index, strict=True)]

    source = {
        "reasoning_gym": dataset,
        "config": dict(config or {}),
        "size": size,
        "seed": seed,
        "extract": extract,
        "exact": exact,
    }
    return _task(
        name or dataset,
        rows,
        (GuardedReward(verifier, name=dataset, timeout=timeout),),
        reader,
        source,
        validation_share,
        validation_size,
        correct_at,
    )


def jsonl_task(
    path: str | Path,
    *,
    reward: str | Sequence[str],
    name: str | None = None,
    extract: Extract = "auto",
    validation_share: float = VALIDATION_SHARE,
    validation_size: int | None = None,
    correct_at: float = 1.0,
    timeout: float | None = 10.0,
) -> Task:
    """Prompts of a JSONL file (one object per line, a string `prompt` and anything else), judged by `pkg.mod:function`."""
    file = Path(path)
    rows = [{**row, _KEY: row["prompt"]} for row in read_jsonl(file)]
    paths = [reward] if isinstance(reward, str) else list(reward)
    rewards = tuple(GuardedReward(import_reward(item), timeout=timeout) for item in paths)
    source = {"jsonl": str(file), "reward": paths, "extract": extract}
    return _task(name or file.stem, rows, rewards, _EXTRACT[extract], source, validation_share, validation_size, correct_at)


def game_task(
    game: str,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    turns: int = 8,
    turn_tokens: int = 32,
    size: int = 2000,
    seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
    validation_size: int | None = None,
    correct_at: float = 1.0,
    timeout: float | None = 10.0,
) -> Task:
    """Episodes of a game of `isentrope.train.games`, or of one by import path `pkg.mod:Class`: seeds from `seed` on, `size` of them.

    A prompt is what the game says first, and its side is decided by prompt and seed together. The reward is what the game pays.
    """
    rules = games.spec(game, arguments=arguments, turns=turns, turn_tokens=turn_tokens, timeout=timeout, name=name)
    rows = []
    for number in range(seed, seed + size):
        try:
            opening = rules.game().reset(number)
        except (Exception, SystemExit) as error:  # whatever a user's game raises is data here
            raise TaskError(f"task.game {game!r}: reset({number}) raised {type(error).__name__}: {error}.") from error
        if not isinstance(opening, str) or not opening.strip():
            raise TaskError(f"task.game {game!r}: reset({number}) must return the text that the policy reads first. Got {opening!r}.")
        rows.append({_KEY: f"{opening} {number}", "prompt": opening, "seed": number})
    source = {"game": game, "arguments": dict(arguments or {}), "turns": turns, "turn_tokens": turn_tokens, "size": size, "seed": seed}
    rewards = (GuardedReward(outcome, name=rules.name, timeout=timeout),)
    made = _task(rules.name, rows, rewards, last_line, source, validation_share, validation_size, correct_at)
    return replace(made, game=rules)


MAKERS: Mapping[str, Callable[..., Task]] = {"reasoning_gym": reasoning_gym_task, "jsonl": jsonl_task, "game": game_task}
"""Sources of tasks: the field that names one, and what makes a task of it and the other fields."""


def read_jsonl(file: Path) -> list[Row]:
    """The objects of a JSONL file. TaskError, with the line number, when it is not one."""
    if not file.is_file():
        raise TaskError(f"task.jsonl: no file {file}. Give a path relative to {Path.cwd()}, or an absolute one.")
    rows = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):  # not splitlines: JSON text may hold U+2028 and its kind
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except json.JSONDecodeError as error:
            raise TaskError(f"task.jsonl: {file} line {number} is not JSON: {error.msg} at column {error.colno}.") from error
        except (UnicodeDecodeError, RecursionError, ValueError) as error:
            raise TaskError(f"task.jsonl: {file} line {number} cannot be read: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise TaskError(f"task.jsonl: {file} line {number} must be an object with a non-empty string 'prompt'. Got {line[:80].decode(errors='replace')!r}.")
        if taken := sorted(RESERVED & row.keys()):
            raise TaskError(f"task.jsonl: {file} line {number} has a column {taken[0]!r}, a name that TRL gives a meaning of its own. Rename it.")
        rows.append(row)
    if not rows:
        raise TaskError(f"task.jsonl: {file} holds no rows. Write one JSON object per line, with a string 'prompt'.")
    return rows


def as_chat(task: Task) -> Task:
    """The same task with every prompt as one user message, as chat models expect."""

    def wrap(row: Row) -> Row:
        return {"prompt": [{"role": "user", "content": row["prompt"]}]}

    def mapped(data: Dataset) -> Dataset:
        return Dataset.from_list([{**row, **wrap(row)} for row in data.to_list()])

    return replace(task, train=mapped(task.train), validation=mapped(task.validation))


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The text that the model reads: a plain prompt as it is, messages through the chat template."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)


def prompt_texts(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all prompts, train side first."""
    return [prompt_text(tokenizer, prompt) for side in (task.train, task.validation) for prompt in side["prompt"]]


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion, plain or a list of messages."""
    return completion if isinstance(completion, str) else "".join(str(message.get("content") or "") for message in completion)


def last_number(text: str) -> str | None:
    """The last integer or decimal number of a text, with its sign where one stands free; None where there is none."""
    found = re.findall(r"(?:(?<![\w.)])-)?\d+(?:\.\d+)?", text.replace(",", "") if re.search(r"\d,\d{3}\b(?!\d*[+=])", text) else text)
    return found[-1] if found else None


def whole(text: str) -> str | None:
    """The text without the space around it; None when nothing is left."""
    return text.strip() or None


def last_line(text: str) -> str | None:
    """The last line without the space around it: of an episode, what was done last."""
    return whole(text.rsplit("\n", 1)[-1])


def auto(text: str) -> str | None:
    """The last `<answer>` where there is one, else what follows `</think>`, else the whole text."""
    if tagged := re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL):
        return whole(tagged[-1])
    return whole(text.rsplit("</think>", 1)[-1])


_EXTRACT: dict[str, Callable[[str], str | None]] = {"auto": auto, "last-number": last_number, "whole": whole}


def _judged(entries: Any, index: int, answer: str | None, exact: bool) -> float | None:
    score = entries.score_answer(answer=answer, entry=entries[index])
    return float(score >= 1.0) if exact and score is not None else score


def _task(
    name: str,
    rows: Iterable[Row],
    rewards: tuple[GuardedReward, ...],
    extract: Callable[[str], str | None],
    source: Mapping[str, Any],
    share: float,
    validation_size: int | None,
    correct_at: float,
) -> Task:
    """Drop duplicates, split by hash, and refuse an empty side."""
    if not 0 < share < 1:
        raise TaskError(f"task.validation_share must be a fraction in (0, 1). Got {share}.")
    rows = list(rows)
    columns = dict.fromkeys(column for row in rows for column in row if column != _KEY)
    unique = {" ".join(row[_KEY].split()): row for row in reversed(rows)}
    sides: dict[str, list[Row]] = {"train": [], "validation": []}
    for key, row in reversed(unique.items()):
        sides[side_of(key, share)].append({column: row.get(column) for column in columns})
    for side, members in sides.items():
        if not members:
            raise TaskError(
                f"task {name!r}: its {side} side is empty ({len(unique)} different prompts in all). Give more prompts, "
                f"or change task.validation_share (now {share})."
            )
    validation = sides["validation"][:validation_size]
    return Task(name, _dataset(name, sides["train"]), _dataset(name, validation), rewards, extract, correct_at, source)


def _dataset(name: str, rows: list[Row]) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise TaskError(f"task {name!r}: a column must hold values of one type in all rows: {' '.join(str(error).split())}.") from error


def _formatted(prompt: str, entry: Mapping[str, Any]) -> str:
    try:
        return prompt.format_map(entry)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise TaskError(
            f"task.prompt {prompt!r} does not fit the entries ({type(error).__name__}: {error}). They hold {', '.join(entry)}; "
            f"metadata holds {', '.join(entry['metadata'])}, as in {{metadata[NAME]}}."
        ) from error


def _first_line(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0]


def _nearest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
