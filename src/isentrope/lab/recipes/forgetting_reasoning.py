"""RECAP on the embedded model: GRPO on one style of working, with text of another style, which the model knows, replayed beside it.

The sheet's questions, apart: does replay keep what is not trained (large), and does weighting the objectives add to it (small)?
"""

from functools import cache

from isentrope.control.recipes.forgetting_reasoning import Recap
from isentrope.control.recipes.mixture import Constant, Weights, Yoked
from isentrope.lab.recipes.embedded import answers, mixed, on_text, task, worked
from isentrope.train.worked import Quality

STEPS = 100
ARMS = {
    "neutral": "replay with uniform weights (temperature inf)",
    "recap": "RECAP as published: window 10, temperature 5",
    "placebo": "its two weights, each at the other objective",
    "no replay": "GRPO alone",
}
FIGURES = {
    "pass@1": "held-out prompts, 64 x 8 samples at temperature 1",
    "pass@8": "the same samples",
    "entropy": "of those samples, exact, token mean, nats",
    "other loss": "cross-entropy of held-out text of the replayed style, nats per token",
    "other entropy": "entropy on it, nats per token",
    "text weight": "of the replayed text's loss, mean over the updates (the policy's is 1 less)",
}


def _text(side: str, seed: int):
    """Worked answers in columns, as the base was made from them, errors included."""
    prompts = getattr(task("sums"), side)["prompt"]
    return worked(prompts[: 4000 if side == "train" else 256], "columns", Quality(), seed)


@cache
def _recap(seed: int, steps: int) -> tuple[dict[str, float], tuple[Weights, ...]]:
    loaded, series, _ = mixed(_text("train", 0), Recap(), seed, steps)
    return {**answers(loaded), **_other(loaded)}, tuple(series)


def _other(loaded) -> dict[str, float]:
    found = on_text(loaded, _text("validation", 1))
    return {"other loss": found["text loss"], "other entropy": found["text entropy"]}


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model."""
    if name == "recap":
        figures, series = _recap(seed, steps)
    else:
        swapped = tuple(Weights(item.offline, item.policy) for item in _recap(seed, steps)[1]) if name == "placebo" else ()
        mixture = Yoked(Recap(), swapped) if swapped else Constant(*((1.0, 0.0) if name == "no replay" else (0.5, 0.5)))
        loaded, series, _ = mixed(_text("train", 0), mixture, seed, steps)
        figures = {**answers(loaded), **_other(loaded)}
    return {**figures, "text weight": sum(item.offline for item in series) / len(series)}
