"""AWM on two small flow models: eight Gaussians on a ring in 2-D, and scikit-learn's digits. The reward prefers some of the modes.

The sheet's question, which the paper does not ask: what does it do to the diversity of what is sampled? And what does a noisy target cost?
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isentrope.control.recipes.awm import Awm, interpolate, noise_of_target, prompt_advantage

STEPS = 100
SAMPLES, TIMES, SOLVER = 128, 6, 14  # per update; training times per sample; steps of the rollout (paper: G 24, M 6, 14)
ARMS = {
    "neutral": "advantages of 0: the KL to the base alone",
    "awm": "AWM as released: ghuber, M = 6, beta 0.001",
    "placebo": "its rewards permuted over the samples",
    "noisy": "AWM with the target of a step likelihood: the clean one plus noise of variance kappa / t^2",
}
FIGURES = {
    "ring reward": "mean reward of samples; the reward is 1 + cos of the angle, of the eight Gaussians",
    "ring entropy": "of the nearest Gaussian among the samples, plug-in, nats (ln 8 = 2.079)",
    "ring gradient noise": "trace of the variance of the gradient over the squared norm of its mean, 32 updates at the base",
    "digits reward": "mean reward of samples; the reward is the share of bright pixels",
    "digits entropy": "of the class that a logistic regression gives the samples, plug-in, nats (ln 10 = 2.303)",
}


@dataclass(frozen=True)
class Density:
    """Data to learn, a reward on samples, and the mode of each."""

    data: Tensor
    reward: Callable[[Tensor], Tensor]
    mode: Callable[[Tensor], Tensor]
    modes: int


def _ring() -> Density:
    draw = torch.Generator().manual_seed(0)
    angle = torch.arange(8) * torch.pi / 4
    centres = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    data = centres[torch.randint(8, (4096,), generator=draw)] + 0.15 * torch.randn(4096, 2, generator=draw)
    reward = lambda x: 1 + x[:, 0] / x.norm(dim=-1).clamp(min=1e-6)  # noqa: E731
    return Density(data, reward, lambda x: torch.cdist(x, centres).argmin(-1), 8)


def _digits() -> Density:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    found: Any = load_digits()
    data = torch.tensor(found.data, dtype=torch.float32) / 8 - 1  # pixels 0..16 to -1..1
    judge = LogisticRegression(max_iter=2000).fit(data.numpy(), found.target)
    reward = lambda x: (x > 0).float().mean(-1)  # noqa: E731
    return Density(data, reward, lambda x: torch.as_tensor(judge.predict(x.numpy())), 10)


class Velocity(nn.Module):
    """v(x, t): a small MLP with Fourier features of the time."""

    def __init__(self, dimensions: int, width: int):
        super().__init__()
        self.dimensions, self.width = dimensions, width
        self.body = nn.Sequential(nn.Linear(dimensions + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dimensions))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0]) * torch.pi
        return self.body(torch.cat([x, angle.sin(), angle.cos()], -1))


@torch.no_grad()
def sample(model: nn.Module, count: int, dimensions: int, draw: torch.Generator, steps: int = SOLVER) -> Tensor:
    """Euler from t = 1 (noise) to t = 0 (data)."""
    x = torch.randn(count, dimensions, generator=draw)
    for step in range(steps, 0, -1):
        x = x - model(x, torch.full((count,), step / steps)) / steps
    return x


@functools.cache
def _base(name: str) -> tuple[Density, Velocity]:
    """The density, and a model trained on it by flow matching."""
    density = {"ring": _ring, "digits": _digits}[name]()
    draw = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    dimensions = density.data.shape[1]
    model = Velocity(dimensions, 128 if name == "ring" else 256)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(3000):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / 3000)
        x0 = density.data[torch.randint(len(density.data), (256,), generator=draw)]
        noise, t = torch.randn(x0.shape, generator=draw), torch.rand(256, generator=draw)
        optimiser.zero_grad()
        (model(interpolate(x0, noise, t), t) - (noise - x0)).square().mean().backward()
        optimiser.step()
    return density, model


def _copy(model: Velocity) -> Velocity:
    fresh = Velocity(model.dimensions, model.width)
    fresh.load_state_dict(model.state_dict())
    return fresh


def _loss(name: str, model: nn.Module, base: nn.Module, ema: nn.Module, density: Density, draw: torch.Generator) -> Tensor:
    """One update's loss on fresh samples of the model."""
    x0 = sample(model, SAMPLES, density.data.shape[1], draw)
    reward = density.reward(x0)
    advantage = prompt_advantage(reward, torch.zeros(SAMPLES, dtype=torch.long))
    if name == "neutral":
        advantage = torch.zeros_like(advantage)
    if name == "placebo":
        advantage = advantage[torch.randperm(SAMPLES, generator=draw)]
    at = torch.randperm(SOLVER - 1, generator=draw)[:TIMES] + 1  # the grid of the rollout without its first, pure-noise index
    t = (at / SOLVER).repeat_interleave(SAMPLES)
    noise = torch.randn(len(t), x0.shape[1], generator=draw)
    xt = interpolate(x0.repeat(TIMES, 1), noise, t)
    target = noise
    if name == "noisy":  # x_0 stays, the velocity's target e - x_0 gains sqrt(kappa) / t of noise
        sigma = [(int(k) / SOLVER / (1 - int(k) / SOLVER), (int(k) - 1) / SOLVER / (1 - (int(k) - 1) / SOLVER)) for k in at]
        kappa = torch.tensor([noise_of_target(low, high) for high, low in sigma]).repeat_interleave(SAMPLES)
        target = noise + (kappa.sqrt() / t)[:, None] * torch.randn(noise.shape, generator=draw)
    with torch.no_grad():
        reference, slow = base(xt, t), ema(xt, t)
    return Awm().loss(model(xt, t), x0, target, t, advantage, reference=reference, ema=slow).loss


def _noise(name: str, density: Density, base: Velocity, seed: int) -> float:
    """Relative variance of the gradient at the base."""
    draw, model = torch.Generator().manual_seed(500 + seed), _copy(base)
    slopes = []
    for _ in range(32):
        found = torch.autograd.grad(_loss(name, model, base, base, density, draw), list(model.parameters()))
        slopes.append(torch.cat([part.flatten() for part in found]))
    every = torch.stack(slopes).double()
    mean = every.mean(0)
    return float(every.var(0).sum() / (mean @ mean))


def _trained(name: str, density: Density, base: Velocity, seed: int, steps: int) -> Velocity:
    model, ema = _copy(base), _copy(base)
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    for step in range(steps):
        optimiser.zero_grad()
        _loss(name, model, base, ema, density, draw).backward()
        optimiser.step()
        decay = min(0.3, 0.001 * step)
        with torch.no_grad():
            for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
    return model


def arm(name: str, seed: int, steps: int) -> dict[str, float]:
    """Figures of the two trained models."""
    figures: dict[str, float] = {}
    for where in ("ring", "digits"):
        density, base = _base(where)
        model = _trained(name, density, base, seed, steps)
        x = sample(model, 2048, density.data.shape[1], torch.Generator().manual_seed(9), steps=40)
        share = torch.bincount(density.mode(x), minlength=density.modes).double() / len(x)
        figures |= {f"{where} reward": float(density.reward(x).mean()), f"{where} entropy": float(torch.special.entr(share).sum())}
        if where == "ring" and name != "neutral":  # whose gradient at the base is 0
            figures["ring gradient noise"] = _noise(name, density, base, seed)
    return figures
