"""`token_signals` against plain PyTorch and TRL's chunked head: ln p of the target and the entropy of every token, in one process, interleaved.

    python bench/token_signals.py            # longer, with bfloat16 and more tokens
    python bench/token_signals.py --quick    # about a minute on two cores

plain   logits = hidden @ weight.T, log_softmax, gather, entropy: [token, vocab] is held
trl     TRL's ChunkedLogProbFunction with the chunk size of its trainers: what `add_fused_lm_head` puts before GRPO's loss

Three passes: `forward`; `log p` (forward, then backward through ln p, the entropy detached: GRPO); `log p, H` (backward through
both: an entropy bonus). Every round runs all three heads once, in an order that rotates; the ratio is ours / peer of the same
round, its median over the rounds with a 95 % bootstrap interval: below 1 we are quicker. Memory is the peak of what torch
allocates during one call, results and gradients included, inputs not. Targets are drawn from the model; logits have standard
deviation 2. Before timing, the values and gradients of the three are compared, and the largest difference is printed. Many small
operations suffer most when other processes hold the cores, so the share of them that a large product got is printed too:
below 0.95, measure again, or with --threads 1.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory would announce itself on stderr

import numpy as np
import torch
import trl
from torch.profiler import ProfilerActivity, profile
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from isentrope.measure import Entropy, LogProb, token_signals

Head = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]
PASSES = ("forward", "log p", "log p, H")


@dataclass(frozen=True)
class Size:
    name: str
    d: int
    vocab: int
    tokens: int


def sizes(quick: bool) -> list[Size]:
    base = json.loads((files("isentrope.assets") / "base-model" / "config.json").read_text())
    return [Size("embedded", base["hidden_size"], base["vocab_size"], 4096), Size("SmolLM2", 576, 49152, 512 if quick else 2048)]


def ours(hidden, weight, target, entropy_grad):
    found = token_signals(hidden, weight, target, [LogProb(), Entropy(grad=entropy_grad)])
    return found["log_prob"], found["entropy"]


def plain(hidden, weight, target, entropy_grad):
    log_probs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1), entropy


def chunked(hidden, weight, target, entropy_grad):
    chunk = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    log_probs, entropy, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, chunk, None, 1.0, ("log_probs", "entropy"))
    return log_probs, entropy if entropy_grad else entropy.detach()


HEADS: dict[str, Head] = {"isentrope": ours, "plain": plain, "trl": chunked}


def call(head: Head, inputs: tuple[torch.Tensor, ...], which: str) -> tuple[torch.Tensor, ...]:
    """Values and, where the pass has a backward, the gradients of hidden and weight; the loss is the sum of what carries gradient."""
    hidden, weight, target = inputs
    if which == "forward":
        with torch.no_grad():
            return head(hidden, weight, target, False)
    log_probs, entropy = head(hidden, weight, target, which == "log p, H")
    loss = log_probs.sum() + entropy.sum() if entropy.requires_grad else log_probs.sum()
    return log_probs.detach(), entropy.detach(), *torch.autograd.grad(loss, (hidden, weight))


def draw(size: Size, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(size.tokens, size.d, generator=generator).to(dtype)
    weight = (torch.randn(size.vocab, size.d, generator=generator) * 2 / size.d**0.5).to(dtype)
    target = torch.cat([torch.multinomial((part @ weight.T).float().softmax(-1), 1, generator=generator) for part in hidden.split(256)])
    return hidden.requires_grad_(), weight.requires_grad_(), target.squeeze(-1)


def peak_bytes(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    del kept
    events = sorted((event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def core_share() -> float:
    """Processor time of a product that uses every thread, over what an idle machine gives it."""
    square = torch.randn(1024, 1024)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(8):
        square @ square
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()


def difference(mine: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> float:
    """Largest of: absolute difference of the values; difference of a gradient relative to its norm."""
    values = [float((a - b).abs().max()) for a, b in zip(mine[:2], theirs[:2], strict=True)]
    gradients = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(mine[2:], theirs[2:], strict=True)]
    return max(values + gradients)


def compare(size: Size, dtype: torch.dtype, which: str, seconds: float, least: int) -> list[dict]:
    inputs = draw(size, dtype)
    names = list(HEADS)
    results = {name: call(HEADS[name], inputs, which) for name in names}  # the warm-up too
    apart = {name: difference(results["isentrope"], results[name]) for name in names}
    del results
    memory = {name: peak_bytes(lambda name=name: call(HEADS[name], inputs, which)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    shares = [core_share()]
    while len(times["trl"]) < least or time.perf_counter() - began < seconds:
        turn = len(times["trl"]) % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            call(HEADS[name], inputs, which)
            times[name].append(time.perf_counter() - start)
    shares.append(core_share())
    rows = []
    for peer in names[1:]:
        ratio = np.array(times["isentrope"]) / np.array(times[peer])
        low, high = np.percentile(np.median(np.random.default_rng(0).choice(ratio, size=(10_000, len(ratio))), axis=1), [2.5, 97.5])
        rows.append({
            "size": size.name, "dtype": str(dtype).removeprefix("torch."), "tokens": size.tokens, "d": size.d, "vocab": size.vocab, "pass": which, "peer": peer,
            "ours_ms": 1e3 * float(np.median(times["isentrope"])), "peer_ms": 1e3 * float(np.median(times[peer])), "ratio": float(np.median(ratio)),
            "low": float(low), "high": float(high), "rounds": len(ratio), "ours_mib": memory["isentrope"] / 2**20, "peer_mib": memory[peer] / 2**20,
            "difference": apart[peer], "cores": min(shares),
        })  # fmt: skip
    return rows


def verdict(row: dict) -> str:
    if row["high"] < 1:
        return "quicker"
    return "SLOWER" if row["low"] > 1 else "even"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 tokens of SmolLM2, float32, passes `forward` and `log p`, fewer rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    began, worst = time.perf_counter(), 1.0
    dtypes = (torch.float32,) if options.quick else (torch.float32, torch.bfloat16)
    seconds, least = (5.0, 5) if options.quick else (20.0, 9)
    if not options.json:
        print(f"torch {torch.__version__}, TRL {trl.__version__}, {torch.get_num_threads()} threads; ratio = ours / peer, below 1 we are quicker")
        print(f"{'model':9}{'tokens':>7}{'d':>5}{'vocab':>7} {'dtype':9}{'pass':9} {'peer':6}{'ours ms':>9}{'peer ms':>9}  {'ratio  [95 % interval]':26}"
              f"{'rounds':>7}{'ours MiB':>10}{'peer MiB':>10}{'ratio':>7}{'differ':>9}{'cores':>7}")  # fmt: skip
    for size in sizes(options.quick):
        for dtype in dtypes:
            for which in PASSES[:2] if options.quick else PASSES:
                for row in compare(size, dtype, which, seconds, least):
                    worst = min(worst, row["cores"])
                    if options.json:
                        print(json.dumps(row), flush=True)
                        continue
                    interval = f"{row['ratio']:.2f}  [{row['low']:.2f}, {row['high']:.2f}] {verdict(row)}"
                    print(f"{row['size']:9}{row['tokens']:7}{row['d']:5}{row['vocab']:7} {row['dtype']:9}{row['pass']:9} {row['peer']:6}{row['ours_ms']:9.1f}"
                          f"{row['peer_ms']:9.1f}  {interval:30}{row['rounds']:3}{row['ours_mib']:10.1f}{row['peer_mib']:10.1f}"
                          f"{row['ours_mib'] / row['peer_mib']:7.2f}{row['difference']:9.0e}{row['cores']:7.2f}", flush=True)  # fmt: skip
    if not options.json:
        if worst < 0.95:
            print(f"Other processes held the cores (a product got {worst:.0%} of them): measure again on an idle machine, or with --threads 1.")
        print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
