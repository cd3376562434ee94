"""Evaluation on held-out prompts: what the model gets right, how varied it is, how long, each with a bootstrap interval."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from isentrope.measure.answers import answer_entropy, bootstrap_interval, maj_at_k, pass_at_k
from isentrope.train.games import GameSpec
from isentrope.train.shift import TENTHS, prompt_rows
from isentrope.train.tasks import Task, prompt_text
from isentrope.train.turns import Drawn, Episode, Voice, opened, outcomes, play


@dataclass(frozen=True)
class Evaluation:
    """`rows` as in the tape's table `evals` (without the step); `samples` one mapping per response, `per_prompt` of each prompt in a row.

    Entropy is exact over the vocabulary, of softmax(logits / temperature), at the sampled positions (the end token's included),
    token mean, in nats.
    """

    rows: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    temperature: float
    per_prompt: int = 1

    def by_prompt(self) -> list[dict[str, Any]]:
        """One row per prompt as in the tape's table `answers` (without the step): right answers, answers, entropy by part."""
        return prompt_rows(self.samples, self.per_prompt)

    def value(self, metric: str) -> float:
        """The value of one metric; KeyError lists those there are."""
        values = {row["metric"]: row["value"] for row in self.rows}
        if metric not in values:
            raise KeyError(f"evaluation has no metric {metric!r}; it has {', '.join(values)}")
        return values[metric]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    prompts: int | None = 64,
    samples: int = 16,
    temperature: float = 1.0,
    max_completion_length: int = 48,
    seed: int = 0,
    batch_size: int = 256,
    trainer_state: Any = None,
) -> Evaluation:
    """Sample `samples` responses to each of the first `prompts` validation prompts (None: all) and judge them.

    Deterministic in `seed` for equal batch_size; leaves torch's, numpy's and Python's random states and the training mode as
    they were. Reward functions are called with what TRL gives them (`trainer_state` as given here). A response to a game is a whole episode of it, of
    which the policy's tokens count. Raises ValueError for counts below 1.
    """
    for name, value in {
        "prompts": prompts or 1,
        "samples": samples,
        "max_completion_length": max_completion_length,
        "batch_size": batch_size,
    }.items():
        if value < 1:
            raise ValueError(f"evaluate: {name} must be at least 1. Got {value}.")
    if not temperature > 0:
        raise ValueError(f"evaluate: temperature must be positive. Got {temperature}. For greedy answers take a small one, 1e-3.")
    chosen = task.validation.select(range(min(prompts or len(task.validation), len(task.validation))))
    rows = [dict(row) for row in chosen for _ in range(samples)]
    training = model.training
    model.eval()
    try:
        with _own_randomness(seed, model.device), torch.no_grad():
            drawn: list[dict[str, Any]] = []
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                if task.game is None:
                    drawn += _sample(model, tokenizer, part, temperature, max_completion_length)
                else:
                    drawn += _played(model, tokenizer, part, temperature, max_completion_length, task.game)
            judged = _judge(task, rows, drawn, samples, trainer_state)
    finally:
        model.train(training)
    return Evaluation(tuple(_summary(judged, samples, seed)), tuple(judged), temperature, samples)


class _Entropies(LogitsProcessor):
    """Divides by the temperature and notes the entropy of what is about to be sampled, [row] nats per position."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float() / self.temperature
        log_probs = scores.log_softmax(-1)
        self.entropies.append(-(log_probs.exp() * log_probs.clamp(min=torch.finfo(torch.float32).min)).sum(-1))
        return scores


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    temperature: float,
    length: int,
) -> list[dict[str, Any]]:
    texts = [prompt_text(tokenizer, row["prompt"]) for row in rows]
    special = isinstance(rows[0]["prompt"], str)
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=special).to(model.device)
    ids, entropy, lengths, ended = _generated(model, tokenizer, encoded, temperature, length)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    kept = torch.where(mask, entropy, 0.0).double()
    sums = kept.sum(1)
    places = (torch.arange(ids.shape[1]) * TENTHS // lengths[:, None]).clamp(max=TENTHS - 1)
    tenths = torch.zeros(len(rows), TENTHS, dtype=torch.float64).scatter_add_(1, places, kept)
    return [
        {
            "completion": tokenizer.decode(ids[i, : lengths[i]], skip_special_tokens=True),
            "completion_ids": ids[i, : lengths[i]].tolist(),
            "length": int(lengths[i]),
            "truncated": not bool(ended[i].any()),
            "entropy": float(sums[i] / lengths[i]),
            "tenths": tenths[i].tolist(),
        }
        for i in range(len(rows))
    ]


def _played(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], temperature: float, length: int, rules: GameSpec
) -> list[dict[str, Any]]:
    """One episode per row; lengths and entropies are of the policy's tokens."""
    chat = not isinstance(rows[0]["prompt"], str)
    texts = [prompt_text(tokenizer, row["prompt"]) for row in rows]
    episodes = opened(rules, rows, tokenizer(texts, add_special_tokens=not chat)["input_ids"])
    play_on(model, tokenizer, episodes, rules, temperature=temperature, length=length, chat=chat)
    return [_response(tokenizer, episode) for episode in episodes]


def play_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, episodes: Sequence[Episode], rules: GameSpec, *, temperature: float = 1.0, length: int,
    chat: bool = False,
) -> None:  # fmt: skip
    """Plays episodes of a game to their ends by this model, from wherever they stand, with a column `entropy` (nats) of its tokens.

    length: tokens that a whole row may have. Draws from torch's global generator.
    """

    def generate(contexts: list[list[int]], tokens: int) -> Drawn:
        encoded = tokenizer.pad({"input_ids": contexts}, padding_side="left", return_tensors="pt").to(model.device)
        ids, entropy, lengths, _ = _generated(model, tokenizer, encoded, temperature, tokens)
        cut = list(enumerate(lengths.tolist()))
        return Drawn([ids[row, :end].tolist() for row, end in cut], {"entropy": [entropy[row, :end].tolist() for row, end in cut]})

    play(episodes, generate, Voice(tokenizer, [tokenizer.eos_token_id], chat=chat), rules, length)


def _response(tokenizer: PreTrainedTokenizerBase, episode: Episode) -> dict[str, Any]:
    entropy = torch.tensor(episode.columns["entropy"], dtype=torch.float64)[torch.tensor(episode.wrote)]
    places = torch.arange(len(entropy)) * TENTHS // len(entropy)
    return {
        "completion": tokenizer.decode(episode.ids, skip_special_tokens=True),
        "completion_ids": episode.ids,
        "length": len(entropy),
        "truncated": episode.ending == "budget",
        "entropy": float(entropy.mean()),
        "tenths": torch.zeros(TENTHS, dtype=torch.float64).scatter_add_(0, places, entropy).tolist(),
        "turns": len(episode.actions),
        **{name: values[0] for name, values in outcomes([episode]).items()},
    }


def _generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Any, temperature: float, length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, entropy, lengths, ended): [row, position], and [row] for lengths, which count the end token; of what is sampled after left-padded prompts."""
    seen = _Entropies(temperature)
    out = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        logits_processor=LogitsProcessorList([seen]),
    )
    ids = out[:, encoded["input_ids"].shape[1] :].cpu()
    entropy = torch.stack(seen.entropies, dim=1).cpu()
    ended = ids == tokenizer.eos_token_id
    return ids, entropy, torch.where(ended.any(1), ended.int().argmax(1) + 1, ids.shape[1]), ended


def _judge(task: Task, rows: Sequence[dict[str, Any]], drawn: Sequence[dict[str, Any]], samples: int, trainer_state: Any) -> list[dict[str, Any]]:
    """Reward, correctness and answer beside each response. A row that no reward could score counts as wrong, reward None."""
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    for key in ("completion_ids", "game_reward", "game_fault"):
        if key in drawn[0]:
            columns[key] = [d.pop(key) for d in drawn]
    columns |= {"trainer_state": trainer_state, "log_extra": _unlogged, "log_metric": _unlogged}
    prompts = [row["prompt"] for row in rows]
    plain = isinstance(prompts[0], str)
    completions = [d["completion"] if plain else [{"role": "assistant", "content": d["completion"]}] for d in drawn]
    parts = [reward(prompts=prompts, completions=completions, **columns) for reward in task.reward_funcs]
    judged = []
    for index, (row, found) in enumerate(zip(rows, drawn, strict=True)):
        scores = [part[index] for part in parts if part[index] is not None]
        reward = sum(scores) if scores else None
        first = parts[0][index]
        correct = first is not None and first >= task.correct_at - 1e-6
        judged.append(
            {
                "group": index // samples,
                "prompt": row["prompt"],
                "kind": row["kind"] if isinstance(row.get("kind"), str) else None,
                **found,
                "reward": reward,
                "correct": correct,
                "answer": task.extract(found["completion"]),
            }
        )
    return judged


def _unlogged(*positional: Any, **named: Any) -> None:
    """What a reward function logs belongs to the training's table of completions."""


def _summary(judged: Sequence[dict[str, Any]], samples: int, seed: int) -> Iterator[dict[str, Any]]:
    groups = [judged[start : start + samples] for start in range(0, len(judged), samples)]
    right = torch.tensor([sum(r["correct"] for r in g) for g in groups])
    per_prompt: dict[str, tuple[Tensor, Tensor | None]] = {}
    powers = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    for k in powers:
        per_prompt[f"pass@{k}"] = pass_at_k(right, samples, k), None
    per_prompt[f"maj@{samples}"] = (
        _column(maj_at_k([r["answer"] for r in g], [r["correct"] for r in g], samples) for g in groups),
        None,
    )
    per_prompt["answer_entropy"] = _column(answer_entropy([r["answer"] for r in g]) for g in groups), None
    per_prompt["length"] = _column(_mean(r["length"] for r in g) for g in groups), None
    tokens = _column(sum(r["length"] for r in g) for g in groups)
    per_prompt["entropy"] = _column(sum(r["entropy"] * r["length"] for r in g) for g in groups) / tokens, tokens
    per_prompt["truncated"] = _column(_mean(r["truncated"] for r in g) for g in groups), None
    if "turns" in judged[0]:
        per_prompt["turns"] = _column(_mean(r["turns"] for r in g) for g in groups), None
    for metric, (values, weights) in per_prompt.items():
        interval = bootstrap_interval(values, weights=weights, seed=seed)
        yield {
            "metric": metric,
            "value": interval.value,
            "low": interval.low,
            "high": interval.high,
            "prompts": len(groups),
            "samples": samples,
        }


def _column(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all generators inside, and put their states back afterwards."""
    python, legacy = random.getstate(), numpy.random.get_state()
    cuda = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)
