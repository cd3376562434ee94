"""A made-up run directory, for looking at the report and for testing it: same files and columns as a real run, invented numbers.

The token rows are drawn from real softmax distributions that sharpen with the updates, so H, S, N, p and push obey their identities;
the curves over updates are invented. Not a result of anything.

    python -m isentrope.report.synthetic DIR
"""

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isentrope.provenance import Provenance
from isentrope.report.synthetic_ledger import ledger_frames

GROUP = 8
EVAL_METRICS = ("pass@1", "pass@2", "pass@4", "pass@8", "pass@16", "maj@16", "answer_entropy", "length", "entropy", "truncated")
HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>',
    "</script><svg onload=window.pwned=1>",
    "{{constructor.constructor('window.pwned=1')()}}",
    "a\u2028b\u2029c",
    "\x00\x07\x1b[31m\ufffd",
    "\u202egnp.exe",
    "<b>bold</b>&amp;<br>%{x}",
    "<a href='javascript:window.pwned=1'>x</a>",
    "]]><!--",
)
"""Texts that a model may write to harm the reader of its report."""


@dataclass(frozen=True)
class Slot:
    """One token of a completion: what may stand there, what ought to, and how sure the untrained model is of it."""

    choices: Sequence[str]
    right: int
    start: float  # logit lead of the right choice before training
    counts: bool = False  # a wrong choice here makes the answer wrong


def write(
    run_dir: str | Path,
    *,
    updates: int = 300,
    seed: int = 0,
    links: Sequence[str] = ("clip-cov", "forking-tokens"),
    hostile: bool = False,
    tokens_every: int = 5,
    finished: bool = True,
) -> Path:
    """Writes a run of so many updates into `run_dir` and returns it. `links`: names of the chain's interventions.

    hostile: completions, prompts, answers, token texts, link names and configuration attack the page. finished: False leaves
    out summary.json, as while a run is under way.
    """
    run_dir, rng = Path(run_dir), np.random.default_rng(seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    if hostile:
        links = (*links, HOSTILE[0], HOSTILE[1])
    tokens, samples = [], []
    for step in [1, *range(tokens_every, updates + 1, tokens_every)]:
        rows = _rollouts(rng, step, learned(step, updates), links, hostile)
        tokens += rows[0]
        samples += rows[1]
    frames = {"tokens": pl.DataFrame(tokens), "samples": pl.DataFrame(samples)}
    frames["steps"] = _steps(rng, updates, frames["tokens"], links)
    frames["evals"] = _evals(rng, updates)
    frames["answers"] = _answers(np.random.default_rng(seed + 1), updates, hostile)
    frames["events"] = pl.DataFrame(
        [
            {"step": 0, "level": "info", "kind": "start", "message": "Training begins: 2 threads, float32."},
            {
                "step": min(updates, 212),
                "level": "warning",
                "kind": "zero-std" if not hostile else HOSTILE[0],
                "message": f"9 of 16 groups had equal rewards: their advantages are 0.{HOSTILE[1] if hostile else ''}",
            },
        ]
    )
    frames |= ledger_frames(np.random.default_rng(seed + 2), frames["steps"]["entropy/mean"].to_numpy(), links, HOSTILE if hostile else ())
    for name, frame in frames.items():
        part(run_dir, name, frame, updates)
    _record(run_dir, frames, updates, seed, links, hostile, finished)
    return run_dir


def part(run_dir: Path, name: str, frame: pl.DataFrame, last: int) -> None:
    """One Parquet part of a tape."""
    folder = run_dir / "tape" / name
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / f"part-{last:08d}.parquet")


def learned(step: int, updates: int) -> float:
    """How far learning has come, in [0, 1]."""
    return float(1 / (1 + np.exp(-9 * (step / max(updates, 1) - 0.33))))


def _completion(rng: np.random.Generator, left: int, right: int, progress: float) -> list[Slot]:
    total, ones = left + right, left % 10 + right % 10
    carry = ones // 10
    digit = lambda value, start: Slot([str(other % 10) for other in range(value, value + 5)], 0, start, True)  # noqa: E731
    fixed = lambda text: Slot([text, " ", ",", "\n"], 0, 5.0)  # noqa: E731
    slots = [Slot(["So", "First", "Let", "Wait", "The", "OK"], int(rng.integers(0, 2)), 0.6), Slot([" ", ",", " we"], 0, 2.5)]
    slots += [fixed(str(left % 10)), fixed("+"), fixed(str(right % 10)), fixed("="), *(digit(int(c), 1.8) for c in str(ones))]
    slots += [Slot([",", ";", ".", "\n"], 0, 1.2), Slot([" carry", " keep", " then", " so"], 0, 0.8), fixed(f" {carry}"), Slot(["\n", ". ", "; "], 0, 1.5)]
    tens = left // 10 + right // 10 + carry
    slots += [fixed(str(left // 10)), fixed("+"), fixed(str(right // 10)), fixed("+"), fixed(str(carry)), fixed("="), *(digit(int(c), 1.5) for c in str(tens))]
    if rng.random() < 0.45 * (1 - progress) + 0.06:
        slots += [
            fixed("\n"),
            Slot(["Wait", "Hmm", "Check", "Alternatively"], 0, 0.5),
            Slot([",", ":", "..."], 0, 1.0),
            fixed(str(total)),
            Slot(["?", "!", "."], 0, 1.0),
        ]
    slots += [fixed("\n"), Slot(["Answer", "So", "=>", "Therefore"], 0, 1.0), fixed(": "), *(digit(int(c), 1.0) for c in str(total)), fixed("⏎")]
    return slots


def _token(rng: np.random.Generator, slot: Slot, progress: float) -> tuple[int, dict[str, float]]:
    """A token drawn from its slot's softmax (the choices and a tail of 60 others), and its signals."""
    logits = np.concatenate([rng.normal(0, 0.5, len(slot.choices)), rng.normal(-5.5, 1.0, 60)])
    logits[slot.right] += slot.start + 6.0 * progress
    p = np.exp(logits - logits.max())
    p /= p.sum()
    log_p = np.log(p)
    entropy = float(-(p * log_p).sum())
    discriminant = p * (log_p + entropy)
    k = int(rng.choice(len(p), p=p))
    k = k if k < len(slot.choices) else int(rng.integers(0, len(slot.choices)))
    return k, {
        "log_prob": float(log_p[k]),
        "entropy": entropy,
        "S": float(discriminant[k]),
        "N": float((p * discriminant).sum()),
        "p": float(p[k]),
        "max_p": float(p.max()),
    }


def _rollouts(rng: np.random.Generator, step: int, progress: float, links: Sequence[str], hostile: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    tokens, samples = [], []
    left, right = (int(value) for value in rng.integers(11, 99, 2))
    for row in range(GROUP):
        row_id, answer_right, rows = step * 1000 + row, True, []
        for position, slot in enumerate(_completion(rng, left, right, progress)):
            k, signals = _token(rng, slot, progress)
            answer_right &= not slot.counts or k == slot.right
            text = HOSTILE[(position // 2 + 7) % len(HOSTILE)] if hostile and position % 2 == 0 else slot.choices[k]
            rows.append(
                {
                    "step": step,
                    "row_id": row_id,
                    "group": step,
                    "position": position,
                    "token_id": zlib.crc32(text.encode()) % 1024,
                    "text": text,
                    **signals,
                    "ratio": 1.0 + float(rng.normal(0, 0.02)),
                }
            )
        tokens += rows
        samples.append(
            {
                "step": step,
                "row_id": row_id,
                "group": step,
                "prompt": f"What is {left} + {right}?" + (HOSTILE[2] if hostile else ""),
                "completion": "".join(item["text"] for item in rows),
                "reward": float(answer_right),
                "correct": answer_right,
                "truncated": False,
                "answer": HOSTILE[0] if hostile else rows[-4]["text"] * (left + right > 99) + rows[-3]["text"] + rows[-2]["text"],
                "length": len(rows),
                "origin": "policy",
            }
        )
    reward = np.array([sample["reward"] for sample in samples])
    advantage = (reward - reward.mean()) / (reward.std() + 1e-4)
    for sample, value in zip(samples, advantage, strict=True):
        mine = [item for item in tokens if item["row_id"] == sample["row_id"]]
        sample |= {"advantage": float(value), "entropy": float(np.mean([item["entropy"] for item in mine]))}
        for item in mine:
            _weigh(rng, item, float(value), len(tokens), links)
            item["correct"] = sample["correct"]
    return tokens, samples


def _weigh(rng: np.random.Generator, item: dict[str, Any], advantage: float, count: int, links: Sequence[str]) -> None:
    """Weight, touch and push of a token: the second link drops low-entropy tokens, the others a few at random."""
    weight = 1.0
    for index, link in enumerate(links):
        touched = item["entropy"] < 0.02 if index == 1 else bool(rng.random() < 0.03)
        item[f"link/{link}"] = touched
        weight *= 0.0 if touched else 1.0
    item |= {"advantage": advantage, "weight": weight}
    item["push"] = -weight * item["ratio"] * advantage * (item["S"] - item["N"]) / count


def _steps(rng: np.random.Generator, updates: int, tokens: pl.DataFrame, links: Sequence[str]) -> pl.DataFrame:
    step = np.arange(1, updates + 1)
    progress = np.array([learned(int(value), updates) for value in step])
    groups = (
        tokens.group_by("step")
        .agg(
            *(pl.col("entropy").quantile(q).alias(f"entropy/q{round(100 * q):02d}") for q in (0.05, 0.25, 0.5, 0.75, 0.95)),
            pl.col("entropy").mean().alias("entropy/mean"),
            pl.col("N").mean().alias("N/mean"),
            pl.col("S").mean().alias("S/mean"),
            (pl.len() / GROUP).cast(pl.Float64).alias("length/mean"),
        )
        .sort("step")
    )
    columns: dict[str, Any] = {
        "step": step,
        "seconds": 0.62 + rng.gamma(2, 0.05, updates),
        "learning_rate": 2e-4 * (1 - step / (updates + 1)),
        "loss": rng.normal(0, 0.02, updates),
    }
    smooth = np.ones(min(9, updates)) / min(9, updates)
    for name in groups.columns[1:]:
        values = np.interp(step, groups["step"].to_numpy(), groups[name].to_numpy())
        padded = np.pad(values, (len(smooth) // 2, len(smooth) - 1 - len(smooth) // 2), mode="edge")
        columns[name] = np.convolve(padded, smooth, "valid") * np.exp(rng.normal(0, 0.06, updates))
    columns["reward/mean"] = np.clip(0.18 + 0.74 * progress + rng.normal(0, 0.055, updates), 0, 1)
    columns |= {
        "reward/std": np.sqrt(columns["reward/mean"] * (1 - columns["reward/mean"])),
        "correct/mean": columns["reward/mean"],
        "reward/zero_std_groups": np.clip(progress**2, 0, 1),
    }
    columns |= {
        "tokens": columns["length/mean"] * 128,
        "grad_norm": rng.gamma(4, 0.15, updates),
        "truncated/share": np.full(updates, 0.002),
        "ratio/mean": np.ones(updates),
        "ratio/max": 1 + rng.gamma(2, 0.1, updates),
    }
    columns["tokens_per_second"] = columns["tokens"] / columns["seconds"]
    columns |= {"clip/low": np.full(updates, 0.001), "clip/high": np.full(updates, 0.002)}
    for index, link in enumerate(links):
        level = 0.55 if index == 1 else 0.03
        columns[f"touch/{link}"] = np.clip(level * (0.6 + 0.6 * progress) * np.exp(rng.normal(0, 0.08, updates)), 0, 1)
        sampled = np.where(step % 5 == 0, 1.0, np.nan)
        columns[f"removed/{link}"] = sampled * rng.normal(0.04 if index == 1 else 0.22, 0.05, updates) * (1 + progress)
        columns[f"link/{link}/threshold"] = 0.6 * (1 - progress) + 0.02
    return pl.DataFrame(columns)


def _evals(rng: np.random.Generator, updates: int) -> pl.DataFrame:
    talent, rows = rng.normal(0, 1.2, 128), []
    for step in sorted({0, *range(25, updates + 1, 25), updates}):
        progress = learned(step, updates) if step else 0.0
        chance = 1 / (1 + np.exp(-(-1.9 + 5.2 * progress + talent + rng.normal(0, 0.1, 128))))
        per_prompt = {f"pass@{k}": 1 - (1 - chance) ** k for k in (1, 2, 4, 8, 16)}
        per_prompt |= {
            "maj@16": np.clip(1.5 * chance - 0.05, 0, 1),
            "answer_entropy": 2.2 * (1 - chance),
            "length": 27 - 4 * progress + rng.normal(0, 1, 128),
            "entropy": 0.5 * (1 - progress) + 0.03 + rng.gamma(2, 0.02, 128),
            "truncated": (rng.random(128) < 0.01).astype(float),
        }
        for metric in EVAL_METRICS:
            values = per_prompt[metric]
            means = rng.choice(values, (400, 128)).mean(1)
            rows.append(
                {
                    "step": step,
                    "metric": metric,
                    "value": float(values.mean()),
                    "low": float(np.quantile(means, 0.025)),
                    "high": float(np.quantile(means, 0.975)),
                    "prompts": 128,
                    "samples": 16,
                }
            )
    return pl.DataFrame(rows)


def _answers(rng: np.random.Generator, updates: int, hostile: bool) -> pl.DataFrame:
    """Held-out prompts one by one, at the start and at the end; a few are forgotten."""
    talent, rows = rng.normal(0, 1.8, 128), []
    for step in sorted({0, updates}):
        progress = learned(step, updates) if step else 0.0
        chance = 1 / (1 + np.exp(-(-2.9 + 5.2 * progress + talent))) * np.where((np.arange(128) % 23 == 0) & (progress > 0.5), 0.02, 1.0)
        for group, right in enumerate(rng.binomial(16, chance).tolist()):
            text = f"What is {11 + group} + {97 - group // 2}?" + (HOSTILE[group % len(HOSTILE)] if hostile else "")
            row = {"step": step, "group": group, "prompt": text, "kind": HOSTILE[group % 3] if hostile else None, "samples": 16, "correct": right}
            row |= {"answers": json.dumps([[text if hostile else "108", right], [None, 16 - right]]), "tokens": 432, "entropy": 0.5 * (1 - progress) + 0.03}
            row |= {"majority": float(right >= 8) if right else None}
            row |= {"tokens/right": 27 * right, "entropy/right": row["entropy"] * 0.9 if right else None}
            row |= {"tokens/wrong": 432 - 27 * right, "entropy/wrong": row["entropy"] * 1.2 if right < 16 else None}
            for place in range(10):
                shape = 0.4 + 0.12 * place + float(rng.normal(0, 0.05))
                row |= {f"tokens/tenth-{place + 1:02d}": 43, f"entropy/tenth-{place + 1:02d}": row["entropy"] * shape}
            rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _record(run_dir: Path, frames: dict[str, pl.DataFrame], updates: int, seed: int, links: Sequence[str], hostile: bool, finished: bool) -> None:
    mean, single = Provenance("exact", aggregation="token-mean").to_dict(), Provenance("exact", aggregation="none").to_dict()
    provenance = {
        f"steps.entropy/{name}": mean | ({} if name == "mean" else {"aggregation": f"token-quantile-0.{name[1:]}"})
        for name in ("mean", "q05", "q25", "q50", "q75", "q95")
    }
    provenance |= {f"tokens.{name}": single for name in ("entropy", "S", "N", "push")} | dict.fromkeys(
        ("evals.entropy", "answers.entropy"), mean | {"policy": "sampling", "mask": "completion"}
    )
    bad = HOSTILE[0] if hostile else ""
    record = {
        "isentrope": "0.1.0",
        "versions": {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.2.0", "polars": "1.34.0", "evil" + bad: "1"},
        "preset": "demo",
        "seed": seed,
        "model": "embedded" + bad,
        "task": "two-digit addition" + bad,
        "objective": {"name": "grpo", "epsilon": 0.2, "beta": 0.0},
        "control": [{"name": link, "ratio": 0.02} for link in links],
        "threads": 2,
        "effective": {
            "learning_rate": 2e-4,
            "num_generations": 8,
            "per_device_train_batch_size": 128,
            "temperature": 1.0,
            "hub_token": "hf_secret",
            "run_name": "demo" + bad,
            "max_completion_length": 64,
        },
        "started": "2026-05-04T09:30:00+00:00",
        "provenance": provenance,
        "recovered_from": [],
    }
    (run_dir / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (run_dir / "config.yaml").write_text(
        f"model:\n  name: embedded # {bad}\ntask:\n  name: addition\ntrl:\n  learning_rate: 0.0002\n  hub_token: hf_secret\n", encoding="utf-8"
    )
    if finished:
        last = frames["evals"].filter(pl.col("metric") == "pass@1").tail(1)["value"][0]
        steps = frames["steps"]
        summary = {
            "pass@1": last,
            "entropy.start": steps["entropy/mean"][0],
            "entropy.end": steps["entropy/mean"][-1],
            "steps": updates,
            "seconds": float(steps["seconds"].sum()) + 31.0,
        }
        (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


if __name__ == "__main__":
    print(write(sys.argv[1]))
