"""The parts that an objective is made of: importance ratios, token losses, KL estimators, and what is logged about clipping.

Sheet `grpo-family`, sections 3 and 6. Losses are minimised. Log-probs are nats, of logits divided by the sampling temperature;
d = log p - old log p, r = exp(d). Masked positions are selected out of every result, so NaN or infinity under the mask reaches
neither values nor gradients. Where TRL defines a form, its order of operations is kept: loss and gradient are TRL's bit for bit.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Level = Literal["token", "sequence", "sequence-token", "sequence-sum"]
Estimator = Literal["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]


@dataclass(frozen=True)
class Bounds:
    """The clip window of the ratio. None: not clipped on that side.

    low, high: the window [low, high] of r, a number or one per token. cap: dual clip c, which bounds the loss at -A c where A < 0.
    delta: TRL's cap of the unclipped branch.
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None
    cap: float | None = None
    delta: float | None = None

    def clamp(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`value` held inside [low, high]; no gradient outside."""
        low, high = self.low, self.high
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            value = value if low is None else value.clamp(min=low)
            return value if high is None else value.clamp(max=high)
        return value if low is None and high is None else torch.clamp(value, low, high)

    def log(self) -> "Bounds":
        """The same window for d = ln r. A bound at or below 0 becomes -inf, which clips nothing below and everything above."""
        return Bounds(_log(self.low), _log(self.high))


def _log(bound: float | Tensor | None) -> float | Tensor | None:
    if bound is None or isinstance(bound, Tensor):
        return None if bound is None else torch.log(bound.clamp(min=0.0))
    return math.log(bound) if bound > 0 else -math.inf


def selected(value: Float[Tensor, "response #token"], mask: Bool[Tensor, "response token"]) -> Float[Tensor, "response #token"]:
    """`value` where the mask counts and 0 elsewhere; a value per response is 0 where the whole row is masked."""
    return torch.where(mask if value.shape == mask.shape else mask.any(-1, keepdim=True), value, 0.0)


# --- ratios


def importance_ratio(
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    level: Level = "token",
    clamp: float | None = None,
) -> Float[Tensor, "response #token"]:
    """The importance ratio, 1 at masked positions.

    token: exp(d). sequence: exp(mean_t d), [response, 1] (GSPO as in TRL). sequence-token: sg(s) exp(log p - sg(log p)) with ln s at
    most 10 (GSPO's token form, verl): the value of s, a gradient per token. sequence-sum: exp(sum_t d), [response, 1] (RLOO).
    `clamp` holds the exponent inside +-clamp nats; without it exp(d) overflows above 88 in float32 and its gradient is NaN.
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    if level == "sequence-sum":
        log_ratio = log_ratio.sum(-1).unsqueeze(-1)
    elif level in ("sequence", "sequence-token"):
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    if clamp is not None:
        log_ratio = torch.clamp(log_ratio, -clamp, clamp)
    if level == "sequence-token":
        own = torch.where(mask, log_probs - log_probs.detach(), 0.0)
        log_ratio = torch.clamp(own + log_ratio.detach(), max=10.0)
    return torch.exp(log_ratio)


# --- token losses


def clipped_loss(
    ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], bounds: Bounds
) -> Float[Tensor, "response #token"]:
    """PPO's clipped loss max(-A r, -A clip(r)).

    No gradient iff (A > 0, r > high) or (A < 0, r < low). With `delta` the unclipped branch uses min(r, delta). With `cap` the loss
    is at most -A cap where A < 0, so r > cap has no gradient there either. Source: Schulman et al. 2017, arXiv 1707.06347, Eq. 7;
    dual clip: Ye et al. 2020, arXiv 1912.09729, Eq. 5.

    >>> clipped_loss(torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0]]), Bounds(0.8, 1.2))
    tensor([[-0.5000, -1.2000]])
    """
    held = bounds.clamp(ratio)
    free = ratio if bounds.delta is None else torch.clamp(ratio, max=bounds.delta)
    loss = -torch.min(free * advantage, held * advantage)
    if bounds.cap is None:
        return loss
    return torch.where(advantage < 0, torch.min(-advantage * bounds.cap, loss), loss)


def reinforce_loss(
    log_probs: Float[Tensor, "response token"], advantage: Float[Tensor, "response #token"]
) -> Float[Tensor, "response token"]:
    """-A log p, the score-function loss (REINFORCE, GPG); there is no ratio in it. Source: Williams 1992."""
    return -advantage * log_probs


def cispo_loss(
    ratio: Float[Tensor, "response #token"],
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    bounds: Bounds,
) -> Float[Tensor, "response token"]:
    """-sg(clip(r)) A log p: the clip limits a weight, so no token loses its gradient. Source: MiniMax-M1, arXiv 2506.13585, Eq. 4."""
    return -bounds.clamp(ratio).detach() * advantage * log_probs


def sapo_loss(
    ratio: Float[Tensor, "response #token"],
    advantage: Float[Tensor, "response #token"],
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Tensor, "response #token"]:
    """-A f(r) with the soft gate f(r) = (4 / tau) sigmoid(tau (r - 1)), f'(1) = 1; tau_negative where A <= 0."""
    tau = torch.where(advantage > 0, tau_positive, tau_negative)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return -gate * advantage


def gmpo_loss(
    ratio: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    bounds: Bounds,
) -> Float[Tensor, "response 1"]:
    """-A exp(mean_t d'), the geometric mean of the response's ratios, with d' = sgn(A) min(sgn(A) d, sgn(A) clip(d)).

    A is the mean over the response's tokens; the window is that of r. A row without tokens is 0. Source: GMPO, arXiv 2507.20673.
    """
    tokens = mask.sum(-1, keepdim=True).clamp(min=1.0)
    per_row = torch.where(mask, advantage, 0.0).sum(-1, keepdim=True) / tokens
    sign = torch.sign(per_row)
    log_ratio = torch.log(torch.where(mask, ratio, 1.0))
    bounded = sign * torch.min(sign * log_ratio, sign * bounds.log().clamp(log_ratio))
    return -per_row * torch.exp(torch.where(mask, bounded, 0.0).sum(-1, keepdim=True) / tokens)


def vespo_weight(
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    k: tuple[float, float] = (2.0, 3.0),
    lam: tuple[float, float] = (3.0, 2.0),
) -> Float[Tensor, "response #token"]:
    """VESPO's weight phi = exp(lam + k ln w - lam w), detached; its loss is -phi A log p. (k, lam) are for (A >= 0, A < 0).

    ln w = sum_t clip(d, -20, 20), held inside [ln 1e-8, 20]: a sum over the response, not a mean (TRL 1.16).
    """
    with torch.no_grad():
        drift = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-20.0, 20.0)
        log_w = drift.sum(-1, keepdim=True).clamp(math.log(1e-8), 20.0)
        scale = torch.where(advantage >= 0, lam[0], lam[1]).clamp(min=1e-4)
        log_phi = scale + torch.where(advantage >= 0, k[0], k[1]) * log_w - scale * torch.exp(log_w)
        return torch.exp(log_phi).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def off_policy_mask(
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    sampling_log_probs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    threshold: float,
) -> Bool[Tensor, "response #token"]:
    """What TRL's off-policy sequence mask keeps: A >= 0, or mean_t(sampling log p - log p) <= threshold nats (DeepSeek-V3.2).

    Dropped tokens stay in the denominator. A log-prob that the engine could not give (NaN) counts as no drift.
    """
    drift = torch.where(mask, sampling_log_probs - log_probs.detach(), 0.0).nan_to_num(nan=0.0)
    drift = drift.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    return (advantage >= 0) | (drift <= threshold)


def value_loss(
    value: Float[Tensor, "response token"],
    old_value: Float[Tensor, "response token"],
    returns: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    clip: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """PPO's clipped value loss, half the token mean of max((v - R)^2, (v' - R)^2) with v' = old v +- clip; and the share of tokens
    where the clipped error is the larger one."""
    held = torch.clamp(value, old_value - clip, old_value + clip)
    free_error, held_error = (value - returns) ** 2, (held - returns) ** 2
    loss = 0.5 * masked_mean(torch.max(free_error, held_error), mask)
    return loss, masked_mean((held_error > free_error).to(value.dtype), mask)


# --- KL to a reference


def kl_estimate(
    log_probs: Float[Tensor, "*shape"],
    ref_log_probs: Float[Tensor, "*shape"],
    estimator: str = "k3",
    *,
    log_ratio_clamp: float | None = None,
    value_clamp: float | None = None,
) -> Float[Tensor, "*shape"]:
    """Estimate of KL(policy || reference) per sampled token, in nats. With x = log p - ref log p:

    k1: x, mean KL; as a loss its mean gradient is 0, so it belongs into the reward. abs: |x|. k2: x^2 / 2, biased, but its mean
    gradient is that of KL(policy || reference). k3: e^-x + x - 1 >= 0, mean KL, mean gradient that of KL(reference || policy).
    A "+" keeps the value and takes k2's gradient. `log_ratio_clamp` and `value_clamp` hold x and the value of k3 (verl: 20 and 10;
    TRL: none). Source: Schulman, joschu.net/blog/kl-approx.html; verl core_algos.kl_penalty.

    Raises ValueError for an unknown estimator.
    """
    if estimator.endswith("+"):
        value = kl_estimate(log_probs, ref_log_probs, estimator[:-1], log_ratio_clamp=log_ratio_clamp, value_clamp=value_clamp)
        slope = 0.5 * (log_probs - ref_log_probs) ** 2
        return slope - slope.detach() + value.detach()
    if estimator == "k3":
        up, down = ref_log_probs - log_probs, ref_log_probs - log_probs  # two nodes: gradients then add up in TRL's order
        if log_ratio_clamp is not None:
            up, down = (torch.clamp(x, -log_ratio_clamp, log_ratio_clamp) for x in (up, down))
        value = torch.exp(up) - down - 1
        return value if value_clamp is None else torch.clamp(value, -value_clamp, value_clamp)
    x = log_probs - ref_log_probs
    if estimator == "k1":
        return x
    if estimator == "abs":
        return x.abs()
    if estimator == "k2":
        return 0.5 * x**2
    raise ValueError(f"kl_estimate: estimator must be k1, abs, k2 or k3, with or without '+'. Got {estimator!r}.")


# --- what is logged


def masked_mean(value: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the mask; 0 if it is empty."""
    return torch.where(mask, value, 0.0).sum() / mask.sum().clamp(min=1)


def clip_fractions(
    ratio: Float[Tensor, "response token"],
    advantage: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    bounds: Bounds,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """verl's (clipfrac, clipfrac_lower), shares of valid tokens by strict comparison: clipped branch above the unclipped one, before
    the dual clip; and A < 0 with that maximum above -A cap (0 without a dual clip)."""
    free, held = -advantage * ratio, -advantage * bounds.clamp(ratio)
    share = masked_mean((held > free).to(ratio.dtype), mask)
    if bounds.cap is None:
        return share, torch.zeros_like(share)
    capped = (torch.max(free, held) > -advantage * bounds.cap) & (advantage < 0)
    return share, masked_mean(capped.to(ratio.dtype), mask)


def changed_share(
    ratio: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], bounds: Bounds
) -> Float[Tensor, ""]:
    """Share of valid tokens whose ratio the window changes, on either side (verl's clipfrac of CISPO)."""
    return masked_mean((bounds.clamp(ratio) != ratio).to(ratio.dtype), mask)
