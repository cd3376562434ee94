"""Build the embedded base model: tokenizer, pretraining text and a Llama of about a million parameters. Seeded.

    python scripts/build_base_model.py [--out DIR] [--steps N] [--seed N]

The text is made by `isentrope.train.worked` from prompts on the training side of the default task, so the model has never seen
a validation prompt. About two thirds of the worked answers are wrong; that is meant (see that module).
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isentrope.train.tasks import side_of
from isentrope.train.worked import STYLES, VERBS, Quality

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "src/isentrope/assets/base-model"
MIX = {"direct": 0.20, "columns": 0.38, "tens": 0.17, "think": 0.25}
QUALITY = {
    "direct": Quality(),
    "columns": Quality(slip=0.31),
    "tens": Quality(),
    "think": Quality(slip=0.38, doubt=0.25),  # the longest style is not the surest, so that a run need not end in it
}
VOCABULARY = 512
CONTEXT = 128
WORDS = """
the a an is are was of to in and or not that this it as on for with by from be has have can will must if then else so because since
first second third next last now here there one two three four five six seven eight nine ten zero add added adding sum total carry
carries carried digit digits number numbers unit units column columns tens ones hundred plus minus times equals answer result value
question problem solve solved solution step steps start begin ok let us me we try again check verify verified indeed recall wait hmm
but no yes alternatively instead hence thus therefore finally however although maybe perhaps think thinking thought reason reasoning
right wrong correct mistake error fix write read look find found know known need same different more less than both each every
where when which what why how also only just still before after while until given using used take makes make gives give get
left over under up down out back done good sure simple easy hard small large clear likely
""".split()  # noqa: SIM905


def tokenizer_text(rng: Random) -> list[str]:
    """Worked answers and sentences of reasoning words, for the merges only."""
    lines = [STYLES["think"](rng.randrange(10, 100), rng.randrange(10, 100), QUALITY["think"], rng) for _ in range(4000)]
    lines += [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(20000)]
    return lines + [verb for verb in VERBS for _ in range(3000)] + [w for w in WORDS for _ in range(20)]


def build_tokenizer(rng: Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any UTF-8 text round-trips); every digit is a token of its own, so that sums can be learned."""
    raw = Tokenizer(models.BPE(byte_fallback=False))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=["<|pad|>", "<|eos|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator((line.replace("<think>", "").replace("</think>", " ") for line in tokenizer_text(rng)), trainer)
    raw.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def example(rng: Random) -> tuple[str, str, bool]:
    """One prompt of the training side, its completion, and whether that is right."""
    while side_of(prompt := f"{(a := rng.randrange(10, 100))}+{(b := rng.randrange(10, 100))}=") != "train":
        pass
    style = rng.choices(list(MIX), list(MIX.values()))[0]
    text = STYLES[style](a, b, QUALITY[style], rng)
    answer = text.rsplit(">", 1)[-1].rsplit(":", 1)[-1]
    return prompt, text, int(answer) == a + b


def batch(tokenizer: PreTrainedTokenizerFast, size: int, rng: Random) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Token ids [size, T] padded on the right, labels with -100 on prompt and padding, and the share of right answers."""
    rows = [example(rng) for _ in range(size)]
    ids = tokenizer([p + c for p, c, _ in rows])["input_ids"]
    heads = [len(x) for x in tokenizer([p for p, _, _ in rows])["input_ids"]]
    ids = [[*x, tokenizer.eos_token_id] for x in ids]
    width = max(map(len, ids))
    tokens = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x in ids])
    labels = torch.tensor([[-100] * h + x[h:] + [-100] * (width - len(x)) for x, h in zip(ids, heads, strict=True)])
    return tokens, labels, sum(right for _, _, right in rows) / size


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, steps: int, size: int, peak: float, rng: Random) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    begun = time.perf_counter()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        tokens, labels, right = batch(tokenizer, size, rng)
        loss = model(tokens, attention_mask=tokens != tokenizer.pad_token_id, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.perf_counter() - begun
            print(f"step {step:5d}  loss {loss.item():.4f}  right in text {right:.2f}  {seconds:6.1f} s", flush=True)


def _portable(file: Path) -> None:
    """The tokenizer class by the name that older versions of transformers know too."""
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=OUT)
    arguments.add_argument("--steps", type=int, default=1200)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--peak", type=float, default=3e-3)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    rng = Random(given.seed)
    torch.manual_seed(given.seed)
    tokenizer = build_tokenizer(rng)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.3f} M parameters, {len(tokenizer)} tokens", flush=True)
    pretrain(model, tokenizer, steps=given.steps, size=given.batch, peak=given.peak, rng=rng)
    given.out.mkdir(parents=True, exist_ok=True)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    _portable(given.out / "tokenizer_config.json")
    print(f"saved to {given.out}: {sum(f.stat().st_size for f in given.out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
