"""Invented ledgers for looking at the report and for testing it: same columns as a real run's. Not a result of anything."""

from collections.abc import Sequence

import numpy as np
import polars as pl

ACCOUNTS = {"this_batch": 0.35, "momentum": 0.65, "weight_decay": 0.004, "gradient_clipping": -0.004}
KINDS = {
    "advantage": ("A > 0", "A < 0"), "correct": ("right", "wrong"), "position": tuple(f"tenth-{at:02d}" for at in range(1, 11)),
    "class": ("digits", "symbol", "word", "space", "special"), "response": tuple(str(row) for row in range(32)), "text": ("=", "+", "7", " so", "\n"),
}  # fmt: skip


def ledger_frames(rng: np.random.Generator, entropy: np.ndarray, links: Sequence[str], texts: Sequence[str] = (), every: int = 5) -> dict[str, pl.DataFrame]:
    """Tables of the ledgers of a run whose mean entropy went as `entropy`, update by update. `texts`: further token texts."""
    rows, parts, tokens = [], [], []
    for step in range(1, len(entropy) + 1, every):
        opening = float(entropy[step - 1])
        exact = float(-0.02 * opening + rng.normal(0, 0.003 * opening))
        account = {name: share * exact for name, share in ACCOUNTS.items()}
        measured = exact * float(rng.normal(0.97, 0.05))
        batch, spread = account["this_batch"], abs(exact)
        rule = exact * 1e-3 + float(rng.normal(0, 1e-5))
        rows.append({
            "step": step, "tokens": 640, "opening": opening, "closing": opening + measured, "measured": measured, "theory/exact": exact, 
            "theory/first_order": 1.1 * exact,
            "theory/token_rule": rule, "theory/omega": 3 * rule, "theory/covariance": float(rng.normal(0, 1e-5)),
            **{f"account/{name}": value for name, value in account.items()}, "account/residual": measured - exact, "attributed": batch * 1.002,
            "raised": spread, "lowered": batch - spread, "clipped": 0.9, "seconds": 0.4, **{f"link/{name}": 0.2 * rule for name in links},
        })  # fmt: skip
        for by, kinds in KINDS.items():
            kinds = (*kinds, *texts) if by == "text" else kinds
            share = rng.normal(1, 3, len(kinds))
            share = batch * share / share.sum()
            parts += [{"step": step, "by": by, "kind": kind, "tokens": 640 // len(kinds), "part": float(value), "push": float(value) * 1e-3}
                      for kind, value in zip(kinds, share, strict=True)]  # fmt: skip
        for at, text in enumerate((*KINDS["text"], *texts)):
            tokens.append({
                "step": step, "row_id": at, "group": at // 8, "position": at, "token_id": at, "text": text, "before": f"12+{at}", "log_prob": -1.0,
                "entropy": 0.9, "S": 0.1, "N": 0.05, "advantage": float(rng.normal()), "correct": float(at % 2),
                "part": float(rng.normal(0, spread / 20)), "push": 1e-5,
            })  # fmt: skip
    return {"ledger": pl.DataFrame(rows), "ledger_parts": pl.DataFrame(parts), "ledger_tokens": pl.DataFrame(tokens)}
