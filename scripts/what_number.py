"""One model, one set of sampled responses, and the numbers that trainers and engines would call their entropy.

    python scripts/what_number.py                       # the embedded model on the demo task; docs/numbers.md shows its output
    python scripts/what_number.py --temperature 0.7

Samples `--prompts` x `--samples` responses at `--temperature` and evaluates every convention on the very same tokens, so that no
difference between two rows is chance. The old policy is the model with every weight moved by `--drift` of its tensor's deviation.
"""

import argparse
import copy
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import GenerationConfig

from isentrope import config as configuration
from isentrope.measure import Entropy, LogProb, TopKEntropy, TopKTail, token_signals_from_logits
from isentrope.provenance import Provenance
from isentrope.train.models import load
from isentrope.train.tasks import build, prompt_text

Said = tuple[str, float, str]  # what it is, the number, who means it


def sampled(loaded, prompts: list[str], samples: int, temperature: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids [row position], the mask of real positions, and the mask of trained ones (the completion to its end token)."""
    encoded = loaded.tokenizer([text for text in prompts for _ in range(samples)], return_tensors="pt", padding=True, padding_side="left")
    width = encoded.input_ids.shape[1]
    settings = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=length,
        eos_token_id=loaded.tokenizer.eos_token_id, pad_token_id=loaded.tokenizer.pad_token_id,
    )  # fmt: skip
    ids = loaded.model.generate(**encoded, generation_config=settings)
    ended = (ids[:, width:] == loaded.tokenizer.eos_token_id).int()
    real = ended.cumsum(-1) - ended == 0
    trained = torch.cat([torch.zeros_like(encoded.attention_mask, dtype=torch.bool), real], 1)
    return ids, torch.cat([encoded.attention_mask.bool(), real], 1), trained


def rows(model, old, ids: Tensor, real: Tensor, trained: Tensor, temperature: float) -> Iterator[Said]:
    """Every convention in turn. Position t predicts token t + 1."""
    positions = {"attention_mask": real.long(), "position_ids": (real.long().cumsum(-1) - 1).clamp(min=0)}
    logits = model(ids, **positions).logits[:, :-1].float()
    before = old(ids, **positions).logits[:, :-1].float()
    target, mask = ids[:, 1:], trained[:, 1:]

    def per_token(logits: Tensor, heat: float = temperature) -> Tensor:
        return token_signals_from_logits(logits, target, [Entropy()], temperature=heat)["entropy"]

    h = per_token(logits)
    token_mean = float(h[mask].mean())
    yield "exact, token mean over trained tokens", token_mean, "isentrope `entropy/mean`; TRL `entropy` (no tool tokens)"
    by_row = [h[row][mask[row]] for row in range(len(h))]
    yield "exact, mean over responses of their means", float(torch.stack([x.mean() for x in by_row]).mean()), "verl with `loss_agg_mode=seq-mean-token-mean`"
    yield "exact, mean over responses of their sums", float(torch.stack([x.sum() for x in by_row]).mean()), "verl with `loss_agg_mode=seq-mean-token-sum`"
    yield "exact, over padding and prompt too", float(h.mean()), "a forgotten mask"
    yield "exact, prompt counted", float(h[real[:, 1:]].mean()), "SFT trainers"
    yield "exact, of the old policy", float(per_token(before)[mask].mean()), "verl `actor/entropy`"
    yield "exact, logits not divided by the temperature", float(per_token(logits, 1.0)[mask].mean()), "OpenRLHF before its PR 1319"
    found = token_signals_from_logits(logits, target, [LogProb(), TopKEntropy(5), TopKTail(5)], temperature=temperature)
    yield "Monte Carlo, -log p of the sampled tokens", -float(found["log_prob"][mask].mean()), "Tinker `optim/entropy`; NeMo-RL, of another policy and weighted"
    tail = float(found["top_k_tail[5]"][mask].mean())
    yield f"top 5 of the vocabulary (tail at most {tail:.3f})", float(found["top_k_entropy[5]"][mask].mean()), "engines that return k log-probs"
    order = (logits / temperature).sort(-1, descending=True)
    p = order.values.softmax(-1)
    cut = order.values.masked_fill(p.cumsum(-1) - p >= 0.9, -math.inf)
    yield "exact, of the distribution cut to top_p 0.9", float(per_token(cut, 1.0)[mask].mean()), "what the engine sampled from, where it cuts"
    half = torch.log_softmax((logits / temperature).bfloat16(), -1)
    yield "exact, all of it in bfloat16", float(-(half.exp() * half).sum(-1)[mask].float().mean()), "fused heads that stay in 16 bits"
    yield "the first row in bits", token_mean / math.log(2), "information theory's unit"
    yield "exp of the first row", math.exp(token_mean), "a perplexity, sometimes plotted as entropy"


def drifted(model, drift: float):
    """The model with every weight moved by `drift` times the deviation of its tensor, seeded."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for weight in other.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * drift if weight.numel() > 1 else 0)
    return other


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--drift", type=float, default=0.1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    loaded = load("embedded")
    loaded.model.eval()
    task = build(configuration.load(preset="demo").task)
    prompts = [prompt_text(loaded.tokenizer, row["prompt"]) for row in task.validation.select(range(options.prompts))]
    batch = sampled(loaded, prompts, options.samples, options.temperature, 48)
    first = Provenance("exact", temperature=options.temperature, aggregation="token-mean")
    print(f"{options.prompts} prompts x {options.samples} responses at temperature {options.temperature}, {int(batch[2].sum())} trained tokens\n")
    print("| what it is | number | who calls it entropy |\n|---|---|---|")
    for what, number, who in rows(loaded.model, drifted(loaded.model, options.drift), *batch, options.temperature):
        print(f"| {what} | {number:.3f} | {who} |")
    print(f"\nThe first row's provenance: {first.describe()}")


if __name__ == "__main__":
    main()
