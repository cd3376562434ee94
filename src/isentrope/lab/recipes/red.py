"""RED on the embedded model: GRPO, with a teacher's answers to the same prompts beside it.

The sheet's question: is the weight from entropy changes better than none, than a fixed one, than the same weights at other times?
"""

from functools import cache
from random import Random

from isentrope.control.recipes.mixture import Constant, Weights, Yoked
from isentrope.control.recipes.red import Red
from isentrope.lab.recipes.embedded import PERFECT, answers, mixed, task, worked

STEPS = 100
ARMS = {
    "neutral": "GRPO alone (weight 0)",
    "red": "RED as its re-implementation sets it: coef 0.1, w_max 5, decay 0.99",
    "placebo": "the weights of that run in random order",
    "fixed": "GRPO + 0.1 x the mean cross-entropy of the same rows",
}
FIGURES = {
    "pass@1": "held-out prompts, 64 x 8 samples at temperature 1",
    "pass@8": "the same samples",
    "entropy": "of those samples, exact, token mean, nats",
    "weight": "of the text, mean over the updates",
    "bound": "share of the updates in which the clip to [1, w_max] decided the weight",
}


@cache
def _series(seed: int, steps: int) -> tuple[dict[str, float], tuple[Weights, ...]]:
    """Figures of the run with RED, and its weights."""
    text = worked(task().train["prompt"], "think", PERFECT, 0)
    loaded, series, state = mixed(text, Red(), seed, steps, match="prompt")
    return {**answers(loaded), "bound": int(state["bound"]) / steps}, tuple(series)


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of one trained model."""
    if name == "red":
        figures, series = _series(seed, steps)
        return {**figures, "weight": sum(item.offline for item in series) / len(series)}
    if name == "placebo":
        order = list(_series(seed, steps)[1])
        Random(seed).shuffle(order)
        mixture = Yoked(Red(), tuple(order))
    else:
        mixture = Constant(1.0, 0.0 if name == "neutral" else Red().coef)
    text = worked(task().train["prompt"], "think", PERFECT, 0)
    loaded, series, _ = mixed(text, mixture, seed, steps, match="prompt")
    return {**answers(loaded), "weight": sum(item.offline for item in series) / len(series)}
