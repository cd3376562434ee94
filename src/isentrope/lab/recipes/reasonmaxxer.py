"""ReasonMaxxer on the embedded model: its own answers to training prompts, the mid pool, then one pass in order of clarity.

The sheet's question: do the gated tokens do what all tokens do, and as many random ones not, with less drift from the base?
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig

from isentrope.control.blocks import choose
from isentrope.control.recipes.reasonmaxxer import ReasonMaxxer, clarity, decision_positions, pool, signed_advantage
from isentrope.lab.recipes.embedded import LENGTH, answers, task, tune
from isentrope.measure.tokens import Entropy
from isentrope.measure.two_heads import DistributionHead, forward_kl
from isentrope.train.head import reference_of, reference_signals
from isentrope.train.models import LoadedModel, load

STEPS = 100
PROBLEMS, ANSWERS, BATCH = 150, 12, 8  # paper: 300, 20
OURS = ReasonMaxxer()
ARMS = {
    "neutral": "every token, signed cross-entropy, no KL (the paper's fullseq)",
    "reasonmaxxer": "positions of the base with more than 0.8 nats (right answers) or 1.4 (wrong), KL 0.1 elsewhere",
    "placebo": "as many positions of each answer at random, KL 0.1 elsewhere",
    "base": "not trained",
}
FIGURES = {
    "pass@1": "held-out prompts, 64 x 8 samples at temperature 1",
    "pass@8": "the same samples",
    "entropy": "of those samples, exact, token mean, nats",
    "drift": "KL(base || trained) on 256 answers of the base, token mean, nats",
    "gated": "share of the training answers' tokens above their threshold",
}


@torch.no_grad()
def _answered(loaded: LoadedModel, prompts: list[str], count: int, seed: int) -> list[str]:
    """`count` answers to each prompt at temperature 0.6, top-p 0.95 (sheet), the end token cut."""
    torch.manual_seed(seed)
    found: list[str] = []
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.95, top_k=0, max_new_tokens=LENGTH, pad_token_id=loaded.tokenizer.pad_token_id,
        eos_token_id=loaded.tokenizer.eos_token_id,
    )  # fmt: skip
    every = [prompt for prompt in prompts for _ in range(count)]
    for start in range(0, len(every), 500):
        encoded = loaded.tokenizer(every[start : start + 500], return_tensors="pt", padding=True, padding_side="left")
        out = loaded.model.generate(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], generation_config=config)
        found += loaded.tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


@torch.no_grad()
def _read(loaded: LoadedModel, prompts: list[str], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and attention [row position] of prompt + answer + end, right-padded, and the mask of the answer's targets [row position - 1]."""
    tokenizer = loaded.tokenizer
    rows = [tokenizer(p + t + tokenizer.eos_token)["input_ids"] for p, t in zip(prompts, texts, strict=True)]
    begins = torch.tensor([len(tokenizer(p)["input_ids"]) for p in prompts])
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    inside = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, inside.long(), (inside & (torch.arange(width) >= begins[:, None]))[:, 1:]


@functools.lru_cache(maxsize=4)
def _data(seed: int) -> tuple[Dataset, float, tuple[list[str], list[str]]]:
    """The training rows in order of clarity with their advantages, the gated share, and 256 of the answers for the drift."""
    loaded = load("embedded")
    loaded.model.eval()
    rows = task().train.shuffle(seed=seed).select(range(PROBLEMS))
    prompts = [str(prompt) for prompt in rows["prompt"]]
    texts = _answered(loaded, prompts, ANSWERS, seed)
    every = [dict(row) for row in rows for _ in range(ANSWERS)]
    columns = {key: [row[key] for row in every] for key in every[0] if key != "prompt"}
    reward = task().reward_funcs[0](prompts=[row["prompt"] for row in every], completions=texts, **columns)
    correct = [value is not None and value >= task().correct_at for value in reward]
    group = [index // ANSWERS for index in range(len(every))]
    kept = pool(correct, group, [len(text) for text in texts])
    prompt, text = [every[index]["prompt"] for index in kept], [texts[index] for index in kept]
    advantage = signed_advantage(torch.tensor([float(correct[index]) for index in kept]), torch.tensor([group[index] for index in kept]))
    ids, attention, mask = _read(loaded, prompt, text)
    with torch.no_grad():
        entropy = reference_signals(reference_of(loaded.model, ids, attention), torch.where(mask, ids[:, 1:], 0), mask, [Entropy()])["entropy"]
    assert OURS.tau_positive is not None
    assert OURS.tau_negative is not None
    gated = decision_positions(entropy, advantage[:, None].expand(mask.shape), mask, OURS.tau_positive, OURS.tau_negative)
    order = clarity(advantage, gated, mask).argsort(descending=True, stable=True).tolist()
    data = Dataset.from_dict({"prompt": [prompt[i] for i in order], "completion": [text[i] for i in order], "advantage": advantage[order].tolist()})
    return data, float(gated.sum() / mask.sum()), (prompts, texts[::ANSWERS])


@dataclass(frozen=True)
class AtRandom(ReasonMaxxer):
    """As many positions of each answer, at random."""

    name = "reasonmaxxer-at-random"

    def decisions(self, view, rng):
        ours = super().decisions(view, rng)
        keys = rng.uniform(view.rollouts.row_id, view.mask.shape[1])
        rows = [choose(view.mask[i : i + 1], int(ours[i].sum()), keys[i : i + 1]) for i in range(len(ours))]
        return torch.cat(rows)


@torch.no_grad()
def _drift(loaded: LoadedModel, prompts: list[str], texts: list[str]) -> float:
    base = load("embedded")
    ids, attention, mask = _read(loaded, prompts, texts)
    heads = []
    for model in (base.model.eval(), loaded.model.eval()):
        found = reference_of(model, ids, attention)
        head: Any = found.head
        heads.append(DistributionHead(found.hidden[:, :-1][mask], head.weight, head.bias, found.scale.scale, found.scale.softcap))
    return float(forward_kl(heads[0], heads[1]).mean())


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model."""
    data, gated, (prompts, texts) = _data(seed)
    link = {"neutral": OURS.neutral(), "reasonmaxxer": OURS, "placebo": AtRandom(), "base": None}[name]
    if link is None:
        loaded = load("embedded")
    else:
        torch.manual_seed(seed)
        order = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": BATCH, "learning_rate": 3e-5}
        loaded, _ = tune(data, [link], seed, steps, **order)
    return {**answers(loaded), "drift": _drift(loaded, prompts[:256], texts[:256]), "gated": gated}
