"""Tool-Light on the embedded model: a line of its working is a step; chains branch at lines, make pairs, and stock DPO trains on them.

The sheet's question: are branches at uncertain steps worth their tokens, against random places and against whole new chains? There is no tool here: the
calls that the paper counts are lines of working.
"""

import functools
import tempfile
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import GenerationConfig, PrinterCallback
from trl import DPOConfig, DPOTrainer

from isentrope.control.recipes.tool_light import Brancher, Sampled, preference_pairs
from isentrope.lab.recipes.embedded import LENGTH, answers, task
from isentrope.measure.tokens import TopKEntropy
from isentrope.train.head import reference_of, reference_signals
from isentrope.train.models import LoadedModel, load

STEPS = 100
QUESTIONS, BATCH = 80, 8
OURS = Brancher(prefixes=(2, 4, 6, 8, 10))  # lines of the embedded model have about ten tokens
ARMS = {
    "neutral": "ten whole chains a question (vanilla sampling)",
    "tool-light": "a main chain, three continuations at each of its three most uncertain lines",
    "placebo": "a main chain, three continuations at each of three random places",
    "base": "not trained",
}
FIGURES = {
    "pass@1": "held-out prompts, 64 x 8 samples at temperature 1",
    "pass@8": "the same samples",
    "entropy": "of those samples, exact, token mean, nats",
    "pairs": "made from the questions",
    "tokens": "generated for them, thousands",
    "pairs per 1000 tokens": "the two above",
    "both kinds": "share of the questions with a right and a wrong chain",
}


@torch.no_grad()
def _continued(loaded: LoadedModel, starts: list[str]) -> tuple[list[str], int]:
    """A sampled continuation of each text at temperature 1, and how many tokens that took."""
    tokenizer, found, tokens = loaded.tokenizer, [], 0
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=LENGTH, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    for begin in range(0, len(starts), 400):
        encoded = tokenizer(starts[begin : begin + 400], return_tensors="pt", padding=True, padding_side="left")
        out = loaded.model.generate(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], generation_config=config)
        new = out[:, encoded["input_ids"].shape[1] :]
        tokens += int((new != tokenizer.pad_token_id).sum())
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found, tokens


@torch.no_grad()
def _entropies(loaded: LoadedModel, prompts: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
    """The entropy of the 50 likeliest tokens at every token of each text, nats."""
    tokenizer, signal, out = loaded.tokenizer, TopKEntropy(k=50), []
    for begin in range(0, len(texts), 400):
        rows = [tokenizer(p + t)["input_ids"] for p, t in zip(prompts[begin : begin + 400], texts[begin : begin + 400], strict=True)]
        starts = [len(tokenizer(p)["input_ids"]) for p in prompts[begin : begin + 400]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        inside = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        found = reference_signals(reference_of(loaded.model, ids, inside.long()), ids[:, 1:], inside[:, 1:], [signal])[signal.key]
        out += [found[i, start - 1 : len(row) - 1].tolist() for i, (row, start) in enumerate(zip(rows, starts, strict=True))]
    return out


def _places(loaded: LoadedModel, name: str, text: str, entropy: list[float], rng: Random) -> list[int]:
    """How many tokens of the chain stay, for each of its branch points."""
    pieces = [loaded.tokenizer(line)["input_ids"] for line in text.splitlines(keepends=True)]
    starts = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
    if sum(map(len, pieces)) != len(entropy):
        starts = [0]  # lines that do not encode by themselves: one step
    points = [point.position for point in OURS.choose(entropy, starts)] if entropy else []
    return points if name == "tool-light" else [rng.randrange(1, len(entropy) + 1) for _ in points]


@functools.lru_cache(maxsize=8)
def _pairs(name: str, seed: int) -> tuple[Dataset, dict[str, float]]:
    """Pairs of one way of sampling, and what they cost."""
    loaded, rng = load("embedded"), Random(seed)
    loaded.model.eval()
    torch.manual_seed(seed)
    rows = [dict(row) for row in task().train.shuffle(seed=seed).select(range(QUESTIONS))]
    prompts = [str(row["prompt"]) for row in rows]
    main, tokens = _continued(loaded, prompts)
    owner, prefix = [], []
    for index, entropy in enumerate(_entropies(loaded, prompts, main)):
        if name == "neutral":
            owner += [index] * (OURS.points * OURS.branches)
            prefix += [""] * (OURS.points * OURS.branches)
            continue
        ids = loaded.tokenizer(main[index])["input_ids"]
        for place in _places(loaded, name, main[index], entropy, rng):
            owner += [index] * OURS.branches
            prefix += [loaded.tokenizer.decode(ids[:place])] * OURS.branches
    more, spent = _continued(loaded, [prompts[index] + start for index, start in zip(owner, prefix, strict=True)])
    texts = [*main, *(start + end for start, end in zip(prefix, more, strict=True))]
    owners = [*range(QUESTIONS), *owner]
    chains = _judged(loaded, rows, owners, texts)
    made = {"prompt": [], "chosen": [], "rejected": []}
    both = 0
    for index, prompt in enumerate(prompts):
        own = [chain for chain, other in zip(chains, owners, strict=True) if other == index]
        both += len({chain.correct for chain in own}) == 2
        for chosen, rejected in preference_pairs(own):
            for key, value in zip(made, (prompt, chosen, rejected), strict=True):
                made[key].append(value)
    count, thousands = len(made["prompt"]), (tokens + spent) / 1000
    return Dataset.from_dict(made), {"pairs": count, "tokens": thousands, "pairs per 1000 tokens": count / thousands, "both kinds": both / QUESTIONS}


def _judged(loaded: LoadedModel, rows: list[dict[str, Any]], owners: list[int], texts: list[str]) -> list[Sampled]:
    every = [rows[index] for index in owners]
    columns = {key: [row[key] for row in every] for key in every[0] if key != "prompt"}
    reward = task().reward_funcs[0](prompts=[row["prompt"] for row in every], completions=texts, **columns)
    entropy = _entropies(loaded, [str(row["prompt"]) for row in every], texts)
    return [
        Sampled(text, value is not None and value >= task().correct_at, text.count("\n"), sum(own) / max(1, len(own)))
        for text, value, own in zip(texts, reward, entropy, strict=True)
    ]


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model, and of its pairs."""
    loaded = load("embedded")
    if name == "base":
        return answers(loaded)
    pairs, cost = _pairs(name, seed)
    torch.manual_seed(seed)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=5e-5, lr_scheduler_type="constant", beta=0.1, seed=seed,
            data_seed=seed, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), bf16=False, max_length=None,
            logging_steps=50, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = DPOTrainer(model=loaded.model, ref_model=None, args=args, train_dataset=pairs, processing_class=loaded.tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {**answers(loaded), **cost}
