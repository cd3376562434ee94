"""Entropy as a function of temperature: its derivatives, and the temperature at which it is what one wants.

H(T) of softmax(z / T), nats. With m2, m3 the central moments of ln p under p: dH/dT = m2 / T >= 0 (m2 is the varentropy) and
d2H/dT2 = -(m3 + 3 m2) / T^2. H rises from ln(number of equal maxima) at T -> 0 to ln(possible outcomes) at T -> inf.

Source: the sampling helpers of entropix (vectors README, `entropix`; no paper). Their second derivative has 2 m3 where m3 is right, and their search
takes ten steps, whatever it has reached; `released=True` reproduces both.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isentrope.measure.distribution import shannon

HOTTEST, COLDEST = 1e6, 1e-6


def _moments(logits: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H and the second and third central moments of ln p; impossible outcomes add nothing."""
    log_p = torch.log_softmax(logits / temperature.unsqueeze(-1), dim=-1)
    p = log_p.exp()
    apart = torch.where(p > 0, log_p, 0.0) - (p * torch.where(p > 0, log_p, 0.0)).sum(-1, keepdim=True)
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(-1), (p * apart.square()).sum(-1), (p * apart**3).sum(-1)


def entropy_slope(logits: Float[Tensor, "*batch outcome"], temperature: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """dH/dT = varentropy / T, nats per unit of temperature, >= 0. Raises ValueError for a temperature that is not positive."""
    _check(temperature)
    return _moments(logits, temperature)[1] / temperature


def entropy_curvature(logits: Float[Tensor, "*batch outcome"], temperature: Float[Tensor, "*batch"], *, released: bool = False) -> Float[Tensor, "*batch"]:
    """d2H/dT2 = -(m3 + 3 m2) / T^2; `released`: with 2 m3. Raises ValueError for a temperature that is not positive."""
    _check(temperature)
    _, second, third = _moments(logits, temperature)
    return -((2 if released else 1) * third + 3 * second) / temperature.square()


def temperature_for_entropy(logits: Float[Tensor, "*batch outcome"], target: Float[Tensor, "*batch"], *, steps: int = 60) -> Float[Tensor, "*batch"]:
    """The temperature at which softmax(logits / T) has the entropy `target` (nats), by bisection of ln T in [1e-6, 1e6]; not differentiable.

    Beyond the reach of the logits (below ln of their equal maxima, above ln of the possible outcomes) it is the end of that range.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> temperature_for_entropy(logits, torch.tensor([0.6931]))  # nearly uniform
    tensor([74.7...])
    """
    z = logits.detach().double()
    low, high = torch.full_like(target, COLDEST, dtype=torch.float64).log(), torch.full_like(target, HOTTEST, dtype=torch.float64).log()
    for _ in range(steps):
        middle = (low + high) / 2
        above = shannon(z / middle.exp().unsqueeze(-1), logits=True) > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return ((low + high) / 2).exp().to(torch.promote_types(logits.dtype, torch.float32))


def released_search(
    logits: Float[Tensor, "*batch outcome"], target: Float[Tensor, "*batch"], *, steps: int = 10, tolerance: float = 1e-6, start: float = 1.0, rate: float = 0.1
) -> Float[Tensor, "*batch"]:
    """The temperature after so many Halley steps in float32, as released: at most T/2 each, T (1 -+ rate) where the step is not defined.

    For comparison with recorded runs; it need not have arrived. Use `temperature_for_entropy`.
    """
    z = logits.float()
    heat = torch.full(target.shape, start, dtype=torch.float32, device=z.device)
    for _ in range(steps):
        entropy, second, third = _moments(z, heat)
        error, slope, bend = entropy - target.float(), second / heat, -(2 * third + 3 * second) / heat.square()
        below = 2 * slope.square() - error * bend
        halley = torch.where(below.abs() > 1e-8, 2 * error * slope / below, torch.inf)
        step = torch.where(halley.isfinite(), torch.minimum(torch.maximum(halley, -heat / 2), heat / 2), rate * heat * error.sign())
        heat = torch.where(error.abs() < tolerance, heat, heat - step)
    return heat


def _check(temperature: Tensor) -> None:
    if not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be > 0. Got {float(temperature.min())}.")
