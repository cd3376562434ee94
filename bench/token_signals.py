"""`token_signals` against the matrix products it cannot avoid, TRL's fused head, plain PyTorch and Liger: one process, interleaved.

    python bench/token_signals.py            # every size, dtype and pass; half an hour on two cores
    python bench/token_signals.py --quick    # one row: SmolLM2's head, 1024 tokens, float32, forward and backward; under a minute
    python bench/token_signals.py --json     # one JSON object; goes with --quick

floor   the products alone: hidden . W^T for `forward`; for `forward+backward` four, as a backward that recomputes needs (logits twice,
        the gradients of hidden and W)
ours    log-prob, H, S, N and max p of every token; backward through log-prob and H
trl     TRL's ChunkedLogProbFunction with the chunk size of its trainers, which `add_fused_lm_head` puts before GRPO's loss: log-prob and H
plain   logits, log_softmax, gather, entropy, by autograd: [token, vocab] is held; left out where that needs more than 8 GiB
liger   Liger's fused head, where Triton and a GPU are

Every round runs all heads once, in an order that rotates. Times are medians over the rounds; a ratio is ours / peer within a round, its
median, with a 95 % bootstrap interval where there are five rounds or more. `extra` is the peak of what torch allocates during one call,
beyond inputs, values and gradients. Targets are drawn from the model; logits have standard deviation 2. `H bias` and `H error` are the
mean and the largest absolute difference of H from float64 of the same inputs (the first 1024 tokens). When other processes hold the
cores the ratios blur: `cores` is the least share of them that a large product got; below 0.95, measure again.
"""

import argparse
import gc
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory would announce itself on stderr

import numpy as np
import torch
import trl
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from isentrope.measure import (
    Discriminant,
    Entropy,
    ExpectedDiscriminant,
    InNucleus,
    LogProb,
    MaxProb,
    NucleusEntropy,
    Rank,
    TopKEntropy,
    TopKTail,
    token_signals,
    token_signals_from_logits,
)  # fmt: skip

Inputs = tuple[Tensor, Tensor, Tensor]
PASSES = ("forward", "forward+backward")
SIGNALS = (LogProb(), Entropy(grad=True), Discriminant(), ExpectedDiscriminant(), MaxProb())
ORDERED = (NucleusEntropy(0.9), Rank(), InNucleus(0.9), TopKEntropy(20), TopKTail(20))
MOST = 8 * 2**30  # bytes that a head may hold beyond its inputs, by estimate


@dataclass(frozen=True)
class Row:
    model: str
    d: int
    vocab: int
    tokens: int
    dtype: torch.dtype
    which: str  # one of PASSES, or "ordered"


def rows(quick: bool) -> Iterator[Row]:
    if quick:
        yield Row("SmolLM2", 576, 49152, 1024, torch.float32, PASSES[1])
        return
    for model, d, vocab in (("SmolLM2", 576, 49152), ("Qwen3-1.7B", 2048, 151936)):
        for tokens in (256, 1024, 4096):
            for dtype in (torch.float32, torch.bfloat16):
                for which in PASSES:
                    yield Row(model, d, vocab, tokens, dtype, which)
    for dtype in (torch.float32, torch.bfloat16):
        yield Row("SmolLM2", 576, 49152, 1024, dtype, "ordered")


# --- the heads; each returns values first, then gradients


def backward(values: Sequence[Tensor], inputs: Inputs, which: str) -> tuple[Tensor, ...]:
    """log-prob and H, then the gradients of their sum where the pass has a backward."""
    if which != PASSES[1]:
        return tuple(values)
    return (*(value.detach() for value in values), *torch.autograd.grad(values[0].sum() + values[1].sum(), inputs[:2]))


def ours(inputs: Inputs, which: str) -> tuple[Tensor, ...]:
    hidden, weight, target = inputs
    with torch.set_grad_enabled(which == PASSES[1]):
        return backward(list(token_signals(hidden, weight, target, ORDERED if which == "ordered" else SIGNALS).values()), inputs, which)


def plain(inputs: Inputs, which: str) -> tuple[Tensor, ...]:
    hidden, weight, target = inputs
    with torch.set_grad_enabled(which == PASSES[1]):
        if which == "ordered":
            return tuple(token_signals_from_logits(hidden @ weight.T, target, ORDERED).values())
        log_probs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
        return backward((log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)), inputs, which)


def fused_trl(inputs: Inputs, which: str) -> tuple[Tensor, ...]:
    hidden, weight, target = inputs
    with torch.set_grad_enabled(which == PASSES[1]):
        chunk = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, chunk, None, 1.0, ("log_probs", "entropy"))
        return backward((log_probs, entropy), inputs, which)


def floor(inputs: Inputs, which: str) -> tuple[Tensor, ...]:
    hidden, weight, _ = inputs
    with torch.no_grad():
        logits = hidden @ weight.T
        if which == PASSES[1]:
            del logits
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden
        return (logits[:, 0],)


def heads(row: Row) -> dict[str, Callable[[Inputs, str], tuple[Tensor, ...]]]:
    held = row.tokens * row.vocab * 4
    found: dict[str, Callable[[Inputs, str], tuple[Tensor, ...]]] = {"ours": ours, "floor": floor}
    if row.which != "ordered":
        found["trl"] = fused_trl
    if held * (4 if row.which != PASSES[0] else 3) <= MOST:
        found["plain"] = plain
    return found


def liger() -> str:
    """Why Liger is not among the peers."""
    missing = [name for name in ("triton", "liger_kernel") if importlib.util.find_spec(name) is None]
    if not torch.cuda.is_available():
        return "liger: does not run here (its heads are Triton kernels, and there is no GPU" + (f"; {', '.join(missing)} not installed)" if missing else ")")
    return "liger: " + (f"{', '.join(missing)} not installed" if missing else "not wired up for this GPU run")


# --- measuring


def draw(row: Row) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(row.tokens, row.d, generator=generator).to(row.dtype)
    weight = (torch.randn(row.vocab, row.d, generator=generator) * (2 / row.d**0.5)).to(row.dtype)
    target = torch.cat([torch.multinomial((part @ weight.T).float().softmax(-1), 1, generator=generator) for part in hidden.split(256)])
    return hidden.requires_grad_(), weight.requires_grad_(), target.squeeze(-1)


def extra_bytes(run: Callable[[], tuple[Tensor, ...]]) -> int:
    """Peak of what is allocated during the call, less what it returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    returned = sum(value.numel() * value.element_size() for value in kept)
    del kept
    events = sorted((event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max()) - returned


def entropy_error(inputs: Inputs, entropy: Tensor) -> tuple[float, float]:
    """Mean and largest absolute difference of H from float64, over the first 1024 tokens."""
    hidden, weight = inputs[0].detach()[:1024].double(), inputs[1].detach().double()
    exact = torch.cat([torch.special.entr((part @ weight.T).softmax(-1)).sum(-1) for part in hidden.split(64)])
    apart = entropy[:1024].double() - exact
    return float(apart.mean()), float(apart.abs().max())


def core_share() -> float:
    """Processor time of a product that uses every thread, over what an idle machine gives it."""
    square = torch.randn(1024, 1024)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(8):
        square @ square
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()


def measure(row: Row, seconds: float, least: int, most: float) -> dict:
    inputs, callers = draw(row), heads(row)
    names = list(callers)
    values = callers["ours"](inputs, row.which)
    found = {"model": row.model, "d": row.d, "vocab": row.vocab, "tokens": row.tokens, "dtype": str(row.dtype).removeprefix("torch."), "pass": row.which}
    if row.which != "ordered":
        found |= dict(zip(("entropy_bias", "entropy_error"), entropy_error(inputs, values[1]), strict=True))
    del values
    memory = {name: extra_bytes(lambda name=name: callers[name](inputs, row.which)) for name in names if name != "floor"}  # the warm-up too
    times: dict[str, list[float]] = {name: [] for name in names}
    shares, began = [core_share()], time.perf_counter()
    while True:
        turn = len(times["ours"]) % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            start = time.perf_counter()
            callers[name](inputs, row.which)
            times[name].append(time.perf_counter() - start)
        spent, rounds = time.perf_counter() - began, len(times["ours"])
        if spent > most or (spent > seconds and rounds >= least):
            break
    shares.append(core_share())
    found |= {"rounds": rounds, "cores": min(shares)}
    for name in names:
        found[f"{name}_s"] = float(np.median(times[name]))
        if name in memory:
            found[f"{name}_extra_mib"] = memory[name] / 2**20
        if name != "ours":
            ratio = np.array(times["ours"]) / np.array(times[name])
            found[f"ours_over_{name}"] = float(np.median(ratio))
            if rounds >= 5:
                draws = np.random.default_rng(0).choice(ratio, size=(10_000, rounds))
                found[f"ours_over_{name}_95"] = [float(edge) for edge in np.percentile(np.median(draws, axis=1), [2.5, 97.5])]
    return found


# --- the table


def shown(found: dict, name: str, key: str, pattern: str) -> str:
    value = found.get(key.format(name))
    return "-" if value is None else pattern.format(value)


HEADER = (
    f"{'model':11}{'d':>5}{'vocab':>7}{'tokens':>7} {'dtype':9}{'pass':17}{'ours s':>8}{'floor s':>8}{'trl s':>8}{'plain s':>8}"
    f"{'/floor':>8}{'/trl':>7}{'/plain':>7}  {'extra MiB: ours':>15}{'trl':>7}{'plain':>7}{'H bias':>10}{'H error':>9}{'rounds':>7}{'cores':>6}"
)


def line(found: dict) -> str:
    text = f"{found['model']:11}{found['d']:5}{found['vocab']:7}{found['tokens']:7} {found['dtype']:9}{found['pass']:17}"
    text += "".join(f"{shown(found, name, '{}_s', '{:.3f}'):>8}" for name in ("ours", "floor", "trl", "plain"))
    text += f"{shown(found, 'floor', 'ours_over_{}', '{:.2f}'):>8}" + "".join(f"{shown(found, name, 'ours_over_{}', '{:.2f}'):>7}" for name in ("trl", "plain"))
    text += f"  {shown(found, 'ours', '{}_extra_mib', '{:.1f}'):>15}" + "".join(f"{shown(found, n, '{}_extra_mib', '{:.0f}'):>7}" for n in ("trl", "plain"))
    return text + f"{shown(found, '', 'entropy_bias', '{:.1e}'):>10}{shown(found, '', 'entropy_error', '{:.1e}'):>9}{found['rounds']:7}{found['cores']:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first row alone")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", choices=("SmolLM2", "Qwen3-1.7B"), help="only this head")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    about = {"torch": torch.__version__, "trl": trl.__version__, "threads": torch.get_num_threads(), "liger": liger()}
    if not options.json:
        print(f"torch {about['torch']}, TRL {about['trl']}, {about['threads']} threads; {about['liger']}\n{HEADER}")
    found = []
    for row in rows(options.quick):
        if options.model not in (None, row.model):
            continue
        found.append(measure(row, seconds=10.0, least=5, most=40.0))
        if not options.json:
            print(line(found[-1]), flush=True)
    if options.json:
        print(json.dumps(about | {"rows": found}))
    elif min(row["cores"] for row in found) < 0.95:
        print("Other processes held the cores: measure again on an idle machine.")


if __name__ == "__main__":
    main()
