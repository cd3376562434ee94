"""Updates of the tabular policy one by one, with the policy before and after each: for claims about what an update does."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention, chain
from isentrope.control.step import Progress, Rollouts, RowRng
from isentrope.lab.tabular import Settings, Task, rolled, row_logits, updated


@dataclass(frozen=True)
class Moment:
    """One optimiser step: the policy before and after, and the responses that made it."""

    before: Task
    after: Task
    rollouts: Rollouts
    prompt: Tensor

    @property
    def log_probs(self) -> Float64[Tensor, "token vocab"]:
        """ln pi of the policy before, at every token of the batch, nats."""
        return _log_probs(self.before, self)

    @property
    def token(self) -> Tensor:
        """The sampled tokens, in the order of `log_probs`."""
        return self.rollouts.completion_ids[self.rollouts.trained_mask]

    @property
    def advantage(self) -> Float64[Tensor, " token"]:
        """Of every token."""
        return self.rollouts.token_advantage()[self.rollouts.trained_mask]

    @property
    def chosen(self) -> Float64[Tensor, " token"]:
        """ln pi of the sampled tokens, nats."""
        return self.log_probs.gather(-1, self.token[:, None]).squeeze(-1)

    @property
    def change(self) -> float:
        """Of the mean entropy at the batch's own tokens, nats: the same tokens before and after."""
        return float((_entropy(_log_probs(self.after, self)) - _entropy(self.log_probs)).mean())


def walk(world: Task, *, seed: int, settings: Settings, objective: Objective, link: Intervention | None = None) -> Iterator[Moment]:
    """The optimiser steps of a training, in order; as `tabular.train` makes them."""
    control = chain(*([] if link is None else [link]))
    generator = torch.Generator().manual_seed(7919 * seed + 3)
    states = control.init()
    for update in range(settings.updates):
        progress, rng = Progress(update, settings.updates), RowRng(seed=seed, step=update)
        rollouts, prompt = rolled(world, control, states, settings, progress, generator, rng)
        for _ in range(settings.inner):
            after, states = updated(world, rollouts, prompt, control, states, objective, progress, rng, settings.rate)
            yield Moment(world, after, rollouts, prompt)
            world = after


def alone(moment: Moment, step: float) -> Float64[Tensor, " token"]:
    """What each token of the batch would do to its own state's entropy by itself, nats: a real step of this size along A (e_k - p)."""
    log_probs, p = moment.log_probs, moment.log_probs.exp()
    push = torch.nn.functional.one_hot(moment.token, p.shape[-1]).double() - p
    moved = (log_probs + step * moment.advantage[:, None] * push).log_softmax(-1)
    return _entropy(moved) - _entropy(log_probs)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's; NaN where one of the two is constant."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]) if float(x.std()) > 0 and float(y.std()) > 0 else float("nan")


def _log_probs(world: Task, moment: Moment) -> Tensor:
    return row_logits(world, moment.prompt, moment.rollouts.completion_ids)[moment.rollouts.trained_mask].log_softmax(-1)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)
