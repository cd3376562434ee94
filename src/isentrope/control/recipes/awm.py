"""AWM: fine-tuning of a flow model by reward with its own matching loss, weighted by the advantage, in place of a step likelihood.

    x_t = (1 - t) x_0 + t e,    u = e - x_0,    m(t) = mean_d (v(x_t, t) - u)^2           x_0 a sample, e ~ N(0, I)
    l   = -w(t, m)                                                                        the surrogate log-likelihood
    rho = exp(l - stopgrad(l_old)),    loss = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) + beta KL + beta_ema KL_ema
    KL  = mean_d (v - v_ref)^2                                                            "ELBO": over 2 sigma_t^2, sigma_t = 0.7 sqrt(t / (1 - min(t, 0.99)))

| paper / code | here |
|---|---|
| weighting Uniform, t, t**2, huber, ghuber | `weighting` "uniform", "t", "t2", "huber": t (sqrt(m + 1e-10) - 1e-5), "ghuber": t ((m + 1e-10)^a - 1e-10^a) / a |
| a | `power` |
| exp_first, sum_first | `per_time`: a ratio per time, or one of the mean of l over the times |
| adv_clip_max, A_max | `advantage_clip`, `advantage_max`: A clipped, then scaled by A_max / clip |
| c, beta, ema_beta | `clip`, `kl_coef`, `ema_coef` |

On-policy rho is 1 and the gradient A grad l. Only with the ELBO's weights would rho be a likelihood ratio: off-policy use of the others is biased.
A negative A pushes v away from u without bound; clip, KL and a small A_max hold it.

Exact (sheet `awm`): the denoiser's noisy target of DDPO's step is the clean one plus independent noise of variance
kappa = sigma_s^2 sigma_t^2 / (sigma_t^2 - sigma_s^2) per dimension (`noise_of_target`), so both losses have the same minimiser and the noisy one more variance;
kappa grows without bound as the step shrinks.

Paper and code: steps and constants are the released scripts'; the standard deviation of advantages is that of all rewards of the update (ddof 0) by
default, per prompt with `scale="group"`. Not carried: the time grid shared by a micro-batch and the "linear" EMA schedule, which are the trainer's.
Not a method about entropy: the neighbour of the policy-gradient family for continuous policies.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isentrope.control.blocks import check_at_least, check_one_of

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]
_FLOOR = 1e-10


def prompt_advantage(
    reward: Float[Tensor, " sample"], prompt: Int[Tensor, " sample"], *, scale: Literal["global", "group"] = "global", epsilon: float = 1e-4
) -> Float[Tensor, " sample"]:
    """(r - mean of the prompt) / (std + epsilon), population std of all rewards or of the prompt's."""
    out = torch.zeros_like(reward)
    spread = reward.std(correction=0)
    for key in prompt.unique():
        rows = prompt == key
        own = reward[rows]
        out[rows] = (own - own.mean()) / ((spread if scale == "global" else own.std(correction=0)) + epsilon)
    return out


def interpolate(x0: Float[Tensor, "row *dims"], noise: Float[Tensor, "row *dims"], t: Float[Tensor, " row"]) -> Float[Tensor, "row *dims"]:
    """x_t = (1 - t) x_0 + t e."""
    t = t.reshape(-1, *[1] * (x0.ndim - 1))
    return (1 - t) * x0 + t * noise


def noise_of_target(sigma_s: float, sigma_t: float) -> float:
    """kappa: variance per dimension that a target built from the state at sigma_s has over the clean one; variance-exploding form.

    For flows sigma = t / (1 - t) at both times; the velocity's target then has kappa / t^2. Raises ValueError unless 0 <= sigma_s < sigma_t.
    """
    if not 0 <= sigma_s < sigma_t:
        raise ValueError(f"noise_of_target: sigma_s must be in [0, sigma_t). Got sigma_s={sigma_s}, sigma_t={sigma_t}.")
    return sigma_s**2 * sigma_t**2 / (sigma_t**2 - sigma_s**2)


def _mean(value: Float[Tensor, "row *dims"]) -> Float[Tensor, " row"]:
    return value.flatten(1).mean(-1)


@dataclass(frozen=True)
class AwmLoss:
    """The parts of a loss: `loss` is to be differentiated."""

    loss: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    ema_kl: Float[Tensor, ""]
    log_likelihood: Float[Tensor, " row"]
    ratio: Float[Tensor, " ratio"]


@dataclass(frozen=True)
class Awm:
    """Advantage-weighted matching. Rows are times x samples, time by time: row m B + b is sample b at time m."""

    weighting: Weighting = "ghuber"
    power: float = 0.25
    per_time: bool = True
    kl_weight: Literal["uniform", "elbo"] = "uniform"
    advantage_clip: float = 5.0
    advantage_max: float = 1.0
    clip: float = 1.0
    kl_coef: float = 0.001
    ema_coef: float = 1.0

    def __post_init__(self):
        check_one_of("Awm", "weighting", self.weighting, ("uniform", "t", "t2", "huber", "ghuber"), 'The default is "ghuber".')
        check_one_of("Awm", "kl_weight", self.kl_weight, ("uniform", "elbo"), 'The default is "uniform".')
        for name in ("power", "advantage_clip", "advantage_max"):
            if not self.__dict__[name] > 0:
                raise ValueError(f"Awm: {name} must be above 0. Got {self.__dict__[name]}.")
        for name in ("clip", "kl_coef", "ema_coef"):
            check_at_least("Awm", name, self.__dict__[name], 0.0, "Off is 0; of the clip, a large number.")

    def advantage(self, advantage: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
        """Clipped and rescaled."""
        return advantage.clamp(-self.advantage_clip, self.advantage_clip) * (self.advantage_max / self.advantage_clip)

    def log_likelihood(self, velocity: Float[Tensor, "row *dims"], target: Float[Tensor, "row *dims"], t: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """l of every row; 0 where the velocity meets its target."""
        m = _mean((velocity - target) ** 2)
        if self.weighting == "huber":
            return -t * ((m + _FLOOR).sqrt() - _FLOOR**0.5)
        if self.weighting == "ghuber":
            return -t * ((m + _FLOOR) ** self.power - _FLOOR**self.power) / self.power
        return -m * {"uniform": 1.0, "t": t, "t2": t**2}[self.weighting]

    def distance(self, velocity: Float[Tensor, "row *dims"], other: Float[Tensor, "row *dims"], t: Float[Tensor, " row"]) -> Float[Tensor, ""]:
        """The KL term between two velocity fields."""
        gap = _mean((velocity - other.detach()) ** 2)
        if self.kl_weight == "elbo":
            gap = gap / (2 * 0.49 * t / (1 - t.clamp(max=0.99)))
        return gap.mean()

    def loss(
        self,
        velocity: Float[Tensor, "row *dims"],
        x0: Float[Tensor, "sample *dims"],
        noise: Float[Tensor, "row *dims"],
        t: Float[Tensor, " row"],
        advantage: Float[Tensor, " sample"],
        *,
        old: Float[Tensor, "row *dims"] | None = None,
        reference: Float[Tensor, "row *dims"] | None = None,
        ema: Float[Tensor, "row *dims"] | None = None,
    ) -> AwmLoss:
        """The loss of one micro-batch. velocity, old, reference and ema are predictions at `interpolate(x0, noise, t)`.

        old None: on-policy. reference or ema None: without that KL. Raises ValueError unless the rows are times x samples.
        """
        times = len(t) // max(1, len(x0))
        if times * len(x0) != len(t):
            raise ValueError(f"Awm.loss: rows must be times x samples, {len(x0)} samples. Got {len(t)} rows.")
        target = noise - x0.repeat(times, *[1] * (x0.ndim - 1))
        own = self.log_likelihood(velocity, target, t)
        gap = own - (own if old is None else self.log_likelihood(old, target, t)).detach()
        weight = self.advantage(advantage)
        if self.per_time:
            weight = weight.repeat(times)
        else:
            gap = gap.reshape(times, -1).mean(0)
        ratio = gap.exp()
        policy = torch.maximum(-weight * ratio, -weight * ratio.clamp(1 - self.clip, 1 + self.clip)).mean()
        zero = policy.new_zeros(())
        kl = zero if reference is None else self.distance(velocity, reference, t)
        ema_kl = zero if ema is None else self.distance(velocity, ema, t)
        return AwmLoss(policy + self.kl_coef * kl + self.ema_coef * ema_kl, policy, kl, ema_kl, own, ratio)
