"""A tiny random model and a toy task, saved to a folder: what host tests and benches train on."""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789+-= "


def save_tiny_model(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2) -> str:
    """A random Llama of about 25,000 parameters with a character tokenizer; returns the folder's path."""
    vocab = {"<pad>": 0, "<eos>": 1, **{character: index + 2 for index, character in enumerate(ALPHABET)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # sharper than a fresh initialisation, so that entropies and ratios spread
        model.model.embed_tokens.weight.mul_(5)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def toy_prompts(rows: int = 64) -> Dataset:
    """Prompts of unequal length."""
    return Dataset.from_dict({"prompt": [f"{index % 7}+{index % 11}=" + "a" * (index % 3) for index in range(rows)]})


def share_of_vowels(completions, **columns) -> list[float]:
    """The share of vowels among the characters: a reward that a random model gets partly."""
    return [sum(character in "aeiou" for character in text) / max(1, len(text)) for text in completions]
