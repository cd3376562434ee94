"""`attention_entropy` against the explicit softmax: entropy of every head and query of one layer, in one process, interleaved.

    python bench/attention_entropy.py            # more sizes, bfloat16, forward + backward, and the memory of 32,768 tokens
    python bench/attention_entropy.py --quick    # 2,048 tokens, forward, and the memory row

explicit   scores = scale q k^T + mask, p = softmax(scores) in float32, H = -(p * ln(p + 1e-9)).sum(-1): [head, query, key] is held
product    q k^T and p v of causal attention by the fused kernel alone: what the attention of the layer costs anyway

Causal, one sequence, standard normal queries and keys. Every round runs each once, in an order that rotates; the ratio is peer / ours of
the same round, its median over the rounds with a 95 % bootstrap interval: 15 means that we are 15 times faster. `MiB` is the peak of
what torch allocates during one call, results included, inputs not. Before timing, the values are compared with the explicit softmax
in float64 and the largest difference is printed, of ours and of the peer. The last row is memory alone: the growth of the process's
largest resident size during a forward and backward over 32,768 tokens, inputs not included, in a process of its own. Below `cores` 0.95
other processes held the cores: the explicit way waits for memory and ours for the cores, so measure again on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory would announce itself on stderr

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from isentrope.measure.attention import attention_entropy

Rows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Size:
    name: str
    heads: int
    kv_heads: int
    d: int
    tokens: int
    dtype: str = "float32"


QUICK = [Size("SmolLM2", 9, 3, 64, 2048)]
FULL = [*QUICK, Size("GPT-2", 12, 12, 64, 2048), Size("8B", 32, 8, 128, 2048), Size("SmolLM2", 9, 3, 64, 2048, "bfloat16"), Size("SmolLM2", 9, 3, 64, 512)]
LONG = Size("SmolLM2", 9, 3, 64, 32768)


def ours(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return attention_entropy(query, key, causal=True)


def explicit(query: torch.Tensor, key: torch.Tensor, epsilon: float = 1e-9) -> torch.Tensor:
    length = query.shape[2]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    scores = scores + torch.full((length, length), torch.finfo(scores.dtype).min, dtype=scores.dtype).triu(1)
    p = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return -(p * torch.log(p + epsilon)).sum(-1)


def product(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True).sum(-1)


WAYS: dict[str, Rows] = {"isentrope": ours, "explicit": explicit, "product": product}


def draw(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, size.dtype)
    query, key = (torch.randn(1, heads, size.tokens, size.d, generator=generator).to(dtype) for heads in (size.heads, size.kv_heads))
    return query.requires_grad_(), key.requires_grad_()


def call(way: Rows, inputs: tuple[torch.Tensor, torch.Tensor], backward: bool) -> torch.Tensor:
    if not backward:
        with torch.no_grad():
            return way(*inputs)
    found = way(*inputs)
    torch.autograd.grad(found.sum(), inputs)
    return found.detach()


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


def differences(size: Size, inputs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Largest absolute difference from the explicit softmax in float64 of the same inputs, one key head at a time."""
    each, worst = size.heads // size.kv_heads, {"isentrope": 0.0, "explicit": 0.0}
    with torch.no_grad():
        for shared in range(size.kv_heads):
            query, key = inputs[0][:, shared * each : (shared + 1) * each], inputs[1][:, shared : shared + 1]
            wanted = explicit(query.double(), key.double(), 1e-300)
            for name in worst:
                worst[name] = max(worst[name], float((WAYS[name](query, key) - wanted).abs().max()))
    return worst


def compare(size: Size, backward: bool, seconds: float, least: int) -> list[dict]:
    inputs = draw(size)
    names = list(WAYS)
    apart = differences(size, inputs)
    memory = {name: peak_bytes(lambda name=name: call(WAYS[name], inputs, backward)) for name in names}  # the warm-up too
    times: dict[str, list[float]] = {name: [] for name in names}
    began, shares = time.perf_counter(), [core_share()]
    while len(times["explicit"]) < least or time.perf_counter() - began < seconds:
        turn = len(times["explicit"]) % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            call(WAYS[name], inputs, backward)
            times[name].append(time.perf_counter() - start)
        shares.append(core_share())
    rows = []
    for peer in names[1:]:
        ratio = np.array(times[peer]) / np.array(times["isentrope"])
        low, high = np.percentile(np.median(np.random.default_rng(0).choice(ratio, size=(10_000, len(ratio))), axis=1), [2.5, 97.5])
        rows.append(asdict(size) | {
            "pass": "forward+backward" if backward else "forward", "peer": peer, "ours_ms": 1e3 * float(np.median(times["isentrope"])),
            "peer_ms": 1e3 * float(np.median(times[peer])), "ratio": float(np.median(ratio)), "low": float(low), "high": float(high), "rounds": len(ratio),
            "ours_mib": memory["isentrope"] / 2**20, "peer_mib": memory[peer] / 2**20, "ours_error": apart["isentrope"],
            "peer_error": apart.get(peer), "cores": float(np.median(shares)),
        })  # fmt: skip
    return rows


def largest_resident() -> float:
    """MiB, of this process since it began; getrusage would hand down its parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10


def long_row(backward: bool) -> dict:
    """To be run in a process of its own: the largest resident size never falls."""
    inputs = draw(LONG)
    call(ours, draw(QUICK[0]), backward)  # the kernel and torch's own start
    before, start = largest_resident(), time.perf_counter()
    call(ours, inputs, backward)
    took, after = time.perf_counter() - start, largest_resident()
    name = "forward+backward" if backward else "forward"
    return asdict(LONG) | {"pass": name, "ours_mib": after - before, "process_mib": after, "seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,048 tokens of SmolLM2's heads, float32, forward; and the memory row, forward")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--long", choices=["forward", "backward"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.long:
        print(json.dumps(long_row(options.long == "backward")))
        return
    began, worst = time.perf_counter(), 1.0
    if not options.json:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ratio = peer / ours, above 1 we are faster")
        print(f"{'heads of':9}{'heads':>6}{'kv':>4}{'d':>5}{'tokens':>7} {'dtype':9}{'pass':17}{'peer':9}{'ours ms':>9}{'peer ms':>9}  "
              f"{'ratio [95 % interval]':26}{'rounds':>6}{'ours MiB':>10}{'peer MiB':>10}{'error':>9}{'peer':>9}{'cores':>7}")  # fmt: skip
    for size in QUICK if options.quick else FULL:
        for backward in (False,) if options.quick else (False, True):
            for row in compare(size, backward, 5.0 if options.quick else 10.0, 5):
                worst = min(worst, row["cores"])
                if options.json:
                    print(json.dumps(row), flush=True)
                    continue
                interval = f"{row['ratio']:.2f}  [{row['low']:.2f}, {row['high']:.2f}]"
                other = "" if row["peer_error"] is None else f"{row['peer_error']:.0e}"
                print(f"{row['name']:9}{row['heads']:6}{row['kv_heads']:4}{row['d']:5}{row['tokens']:7} {row['dtype']:9}{row['pass']:17}{row['peer']:9}"
                      f"{row['ours_ms']:9.1f}{row['peer_ms']:9.1f}  {interval:26}{row['rounds']:6}{row['ours_mib']:10.1f}{row['peer_mib']:10.1f}"
                      f"{row['ours_error']:9.0e}{other:>9}{row['cores']:7.2f}", flush=True)  # fmt: skip
    for which in ("forward",) if options.quick else ("forward", "backward"):
        run = [sys.executable, __file__, "--long", which, "--threads", str(options.threads)]
        row = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(f"memory    {row['heads']} heads, {row['kv_heads']} key heads, d {row['d']}, {row['tokens']} tokens, {row['dtype']}, {row['pass']}: "
                  f"{row['ours_mib']:.0f} MiB beyond the inputs, the whole process {row['process_mib']:.0f} MiB, {row['seconds']:.0f} s")  # fmt: skip
    if not options.json:
        if worst < 0.95:
            print(f"Other processes held the cores (a product got {worst:.0%} of them): measure again on an idle machine, or with --threads 1.")
        print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
