"""Policy-gradient objectives as pure functions: ratios, surrogates, KL estimators, aggregation, and `Objective`, which names a combination.

Sheet: `grpo-family`. Losses are minimised. Log-probs are nats, of logits divided by the sampling temperature; d = log p - old log p,
r = exp(d). Where TRL defines a form, its order of operations is kept, so that with nothing else switched on the loss and its
gradient are TRL's bit for bit. Masked positions must be made finite by the caller (`policy_loss` does): they are selected out, but a
NaN under the mask would survive a product.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from isentrope.control.step import Normaliser

Form = Literal["ppo", "reinforce", "cispo", "sapo", "gmpo"]
Level = Literal["token", "sequence", "sequence-token", "sequence-sum"]
Mode = Literal[
    "token-mean", "token-mean-local", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "dr-grpo", "luspo",
]  # fmt: skip
Estimator = Literal["k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"]


@dataclass(frozen=True)
class Bounds:
    """The clip window of the ratio. None: not clipped on that side.

    low, high: window [low, high], a number or one per token. cap: dual clip c, bounds the loss at -A c where A < 0.
    delta: TRL's cap of the unclipped branch.
    """

    low: float | Tensor | None = None
    high: float | Tensor | None = None
    cap: float | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Objective:
    """What a policy-gradient step minimises, before any intervention.

    form: ppo (clipped), reinforce (-A log p), cispo (-sg(clipped r) A log p), sapo (soft gate), gmpo (geometric mean).
    level: one ratio per token, per sequence (mean of d), "sequence-token" (GSPO's token form), or "sequence-sum" (RLOO).
    epsilon_low, epsilon_high: window 1 - low, 1 + high; for gmpo in log space; for cispo `epsilon_cap` is the absolute upper bound
    instead, as in TRL. None: no bound. dual_clip: c. delta: TRL's. log_ratio_clamp: d clamped to +- this (verl 20, TRL None).
    aggregation, empty_rows: see `aggregate`. kl, kl_coef, kl_bias_correction: KL to the reference added per token.
    """

    form: Form = "ppo"
    level: Level = "token"
    epsilon_low: float | None = 0.2
    epsilon_high: float | None = 0.2
    epsilon_cap: float | None = None
    dual_clip: float | None = None
    delta: float | None = None
    log_ratio_clamp: float | None = None
    aggregation: Mode = "token-mean"
    empty_rows: Literal["count", "exclude"] = "count"
    kl: Estimator | None = None
    kl_coef: float = 0.0
    kl_bias_correction: bool = False
    tau_positive: float = 1.0
    tau_negative: float = 1.05

    @classmethod
    def trl(
        cls,
        loss_type: str,
        *,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        beta: float = 0.0,
        importance_sampling_level: str = "token",
        use_bias_correction_kl: bool = True,
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
    ) -> "Objective":
        """The objective that TRL 1.16 means by these options.

        Raises ValueError for a loss type that is not carried.
        """
        modes: dict[str, Mode] = {
            "grpo": "seq-mean-token-mean", "sapo": "seq-mean-token-mean", "bnpo": "token-mean-local", "dr_grpo": "dr-grpo",
            "dapo": "token-mean", "cispo": "token-mean",
        }  # fmt: skip
        if loss_type not in modes:
            raise ValueError(f"Objective.trl: loss_type must be one of {', '.join(modes)}. Got {loss_type!r}.")
        high = epsilon if epsilon_high is None else epsilon_high
        common = {
            "level": importance_sampling_level, "aggregation": modes[loss_type], "kl": "k3" if beta else None, "kl_coef": beta,
            "kl_bias_correction": use_bias_correction_kl,
        }  # fmt: skip
        if loss_type == "cispo":
            return cls(form="cispo", epsilon_low=None, epsilon_high=None, epsilon_cap=high, **common)
        if loss_type == "sapo":
            return cls(form="sapo", epsilon_low=None, epsilon_high=None, tau_positive=sapo_temperature_pos, tau_negative=sapo_temperature_neg, **common)
        return cls(epsilon_low=epsilon, epsilon_high=high, delta=delta, **common)

    @classmethod
    def named(cls, name: str) -> "Objective":
        """A published objective with its own defaults (sheet grpo-family, sections 3 and 8).

        Raises ValueError for an unknown name.
        """
        presets = {
            "ppo": cls(log_ratio_clamp=20.0, dual_clip=3.0, empty_rows="exclude"),
            "reinforce": cls(form="reinforce", epsilon_low=None, epsilon_high=None),
            "gpg": cls(form="reinforce", epsilon_low=None, epsilon_high=None),
            "grpo": cls(aggregation="seq-mean-token-mean"),
            "dr_grpo": cls(aggregation="dr-grpo"),
            "dapo": cls(epsilon_high=0.28),
            "gspo": cls(level="sequence", epsilon_low=3e-4, epsilon_high=4e-4, aggregation="seq-mean-token-mean"),
            "cispo": cls(form="cispo", epsilon_low=None, epsilon_high=None, epsilon_cap=5.0),
            "gmpo": cls(form="gmpo", epsilon_low=0.4, epsilon_high=0.4, aggregation="seq-mean-token-mean"),
            "sapo": cls(form="sapo", epsilon_low=None, epsilon_high=None, aggregation="seq-mean-token-mean"),
            "rloo": cls(level="sequence-sum", aggregation="seq-mean-token-mean"),
        }
        if name not in presets:
            raise ValueError(f"Objective.named: name must be one of {', '.join(presets)}. Got {name!r}.")
        return presets[name]

    def with_(self, **changes) -> "Objective":
        """This objective with some fields changed."""
        return replace(self, **changes)

    def bounds(self) -> Bounds:
        """The objective's own clip window."""
        if self.epsilon_cap is not None:
            return Bounds(None, self.epsilon_cap)
        if self.form == "gmpo":
            return Bounds(None if self.epsilon_low is None else -self.epsilon_low, self.epsilon_high)
        low = None if self.epsilon_low is None else 1 - self.epsilon_low
        high = None if self.epsilon_high is None else 1 + self.epsilon_high
        return Bounds(low, high, self.dual_clip, self.delta)

    def ratio(
        self, log_probs: Float[Tensor, "response token"], old_log_probs: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]
    ) -> Float[Tensor, "response #token"]:
        """r per token, or [response, 1] at the sequence levels."""
        return importance_ratio(log_probs, old_log_probs, mask, level=self.level, clamp=self.log_ratio_clamp)

    def surrogate(
        self,
        ratio: Float[Tensor, "response #token"],
        advantage: Float[Tensor, "response #token"],
        log_probs: Float[Tensor, "response token"],
        bounds: Bounds,
        mask: Bool[Tensor, "response token"],
    ) -> Float[Tensor, "response #token"]:
        """The loss per token (per sequence for gmpo and the sequence levels), before mask, weights and aggregation."""
        if self.form == "ppo":
            return clipped_loss(ratio, advantage, bounds)
        if self.form == "cispo":
            return cispo_loss(ratio, advantage, log_probs, bounds)
        if self.form == "sapo":
            return sapo_loss(ratio, advantage, self.tau_positive, self.tau_negative)
        if self.form == "gmpo":
            return gmpo_loss(ratio, advantage, mask, bounds)
        return -advantage * log_probs

    def kl_term(
        self, log_probs: Float[Tensor, "response token"], ref_log_probs: Float[Tensor, "response token"] | None, ratio: Float[Tensor, "response #token"]
    ) -> Float[Tensor, "response token"]:
        """KL to the reference per token, in nats, by this objective's estimator.

        Raises ValueError without reference log-probs.
        """
        if ref_log_probs is None:
            raise ValueError("Objective: kl needs reference log-probs; the step carries none. In TRL set trl.beta > 0.")
        if self.kl == "k3":  # TRL's order of operations, without verl's clamps
            kl = torch.exp(ref_log_probs - log_probs) - (ref_log_probs - log_probs) - 1
        else:
            kl = kl_estimate(log_probs, ref_log_probs, self.kl)
        return kl * ratio if self.kl_bias_correction else kl

    def aggregate(
        self,
        token_loss: Float[Tensor, "response #token"],
        mask: Bool[Tensor, "response token"],
        normaliser: "Normaliser",
        kept: Bool[Tensor, "response token"] | None = None,
        kept_share: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, ""]:
        """The scalar loss of one slice. `kept`: tokens that stay in the divisor; `kept_share`: their share in the whole update."""
        return aggregate(
            token_loss, mask, self.aggregation, kept=kept, kept_share=kept_share, token_divisor=normaliser.token_divisor,
            accumulation=normaliser.accumulation, horizon=normaliser.horizon, empty_rows=self.empty_rows,
        )  # fmt: skip


# --- ratios


def importance_ratio(
    log_probs: Float[Tensor, "response token"],
    old_log_probs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    level: Level = "token",
    clamp: float | None = None,
) -> Float[Tensor, "response #token"]:
    """exp(d), its sequence mean, GSPO's token form sg(s) exp(log p - sg(log p)) with the sequence log-ratio clamped at 10, or exp(sum d)."""
    log_ratio = log_probs - old_log_probs
    if level == "token":
        return torch.exp(log_ratio if clamp is None else torch.clamp(log_ratio, -clamp, clamp))
    if level == "sequence-sum":
        return torch.exp((log_ratio * mask).sum(-1)).unsqueeze(-1)
    mean = (log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)
    if level == "sequence":
        return torch.exp(mean.unsqueeze(-1))
    return torch.exp(torch.clamp(log_probs - log_probs.detach() + mean.detach().unsqueeze(-1), max=10.0))


# --- surrogates


def clipped_loss(ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], bounds: Bounds) -> Float[Tensor, "response #token"]:
    """PPO's clipped loss max(-A r, -A clip(r)), with TRL's delta and the dual clip where the bounds hold them."""
    free = ratio if bounds.delta is None else torch.clamp(ratio, max=bounds.delta)
    if bounds.low is None and bounds.high is None:
        loss = -(free * advantage)
    else:
        loss = -torch.min(free * advantage, _clamp(ratio, bounds) * advantage)
    if bounds.cap is None:
        return loss
    return torch.where(advantage < 0, torch.min(-advantage * bounds.cap, loss), loss)


def cispo_loss(
    ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], log_probs: Float[Tensor, "response token"], bounds: Bounds
) -> Float[Tensor, "response token"]:
    """-sg(clip(r)) A log p (MiniMax-M1): every token keeps its gradient."""
    return -_clamp(ratio, bounds).detach() * advantage * log_probs


def sapo_loss(
    ratio: Float[Tensor, "response #token"], advantage: Float[Tensor, "response #token"], tau_positive: float = 1.0, tau_negative: float = 1.05
) -> Float[Tensor, "response #token"]:
    """-A f(r) with the gate f(r) = (4 / tau) sigmoid(tau (r - 1)); f'(1) = 1."""
    tau = torch.where(advantage > 0, tau_positive, tau_negative)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return -gate * advantage


def gmpo_loss(
    ratio: Float[Tensor, "response token"], advantage: Float[Tensor, "response #token"], mask: Bool[Tensor, "response token"], bounds: Bounds
) -> Float[Tensor, "response 1"]:
    """-A exp(mean_t d_m) with d_m the signed minimum of d and its clip in log space; A the mean over the response's tokens."""
    tokens = mask.sum(-1, keepdim=True)
    per_row = (advantage.expand(mask.shape) * mask).sum(-1, keepdim=True) / (tokens + 1e-8)
    sign = torch.sign(per_row)
    log_ratio = torch.log(ratio)
    bounded = sign * torch.min(sign * log_ratio, sign * _clamp(log_ratio, bounds))
    return -per_row * torch.exp((bounded * mask).sum(-1, keepdim=True) / (tokens + 1e-8))


def vespo_weight(
    advantage: Float[Tensor, "response #token"],
    log_ratio: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Float[Tensor, "response 1"]:
    """phi = exp(lambda + k ln w - lambda w), detached, with ln w = sum_t clip(d, -20, 20) clipped to [ln 1e-8, 20] (TRL); loss -phi A log p."""
    with torch.no_grad():
        log_w = (torch.clamp(log_ratio, -20.0, 20.0) * mask).sum(-1, keepdim=True)
        log_w = torch.clamp(log_w, math_log_floor, 20.0)
        positive = advantage[:, :1] >= 0
        k = torch.where(positive, k_positive, k_negative).to(log_w.dtype)
        lam = torch.where(positive, lambda_positive, lambda_negative).to(log_w.dtype)
        return torch.nan_to_num(torch.exp(lam + k * log_w - lam * torch.exp(log_w)), nan=0.0, posinf=0.0, neginf=0.0)


math_log_floor = -18.420680743952367  # ln 1e-8


def off_policy_mask(
    advantage: Float[Tensor, "response #token"],
    log_probs: Float[Tensor, "response token"],
    sampling_log_probs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    threshold: float,
) -> Bool[Tensor, "response 1"]:
    """Sequences kept by TRL's off-policy mask: A >= 0, or mean_t(old - log p) <= threshold (DeepSeek-V3.2)."""
    drift = ((sampling_log_probs - log_probs).detach() * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    return (advantage[:, :1] >= 0) | (drift <= threshold)


def value_loss(
    value: Float[Tensor, "response token"],
    old_value: Float[Tensor, "response token"],
    returns: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    clip: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """PPO's clipped value loss, 0.5 token-mean of max((v - R)^2, (clip(v) - R)^2), and the share of tokens where the clip won (verl)."""
    bounded = torch.clamp(value, old_value - clip, old_value + clip)
    free, held = (value - returns) ** 2, (bounded - returns) ** 2
    loss = 0.5 * masked_mean(torch.max(free, held), mask)
    return loss, masked_mean((held > free).to(value.dtype), mask)


def clip_fractions(
    ratio: Float[Tensor, "response token"], advantage: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], bounds: Bounds
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """verl's shares of valid tokens: clipped branch above the unclipped one (before the dual clip), and dual clip active (A < 0)."""
    free, held = -advantage * ratio, -advantage * _clamp(ratio, bounds)
    share = masked_mean((held > free).to(ratio.dtype), mask)
    if bounds.cap is None:
        return share, torch.zeros_like(share)
    above = (torch.max(free, held) > -advantage * bounds.cap) & (advantage < 0)
    return share, masked_mean(above.to(ratio.dtype), mask)


def cispo_clip_fraction(ratio: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"], bounds: Bounds) -> Float[Tensor, ""]:
    """Share of ratios that the window changes, on either side."""
    return masked_mean((_clamp(ratio, bounds) != ratio).to(ratio.dtype), mask)


def _clamp(value: Tensor, bounds: Bounds) -> Tensor:
    if bounds.low is None and bounds.high is None:
        return value
    numbers = all(bound is None or isinstance(bound, int | float) for bound in (bounds.low, bounds.high))
    if numbers or (isinstance(bounds.low, Tensor) and isinstance(bounds.high, Tensor)):
        return torch.clamp(value, bounds.low, bounds.high)
    for bound, side in ((bounds.low, torch.maximum), (bounds.high, torch.minimum)):
        if bound is not None:
            value = side(value, torch.as_tensor(bound, dtype=value.dtype, device=value.device).expand_as(value))
    return value


# --- KL estimators


def kl_estimate(log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"], estimator: str | None = "k3") -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference) in nats, with verl's clamps for k3; a "+" keeps the value and uses k2's gradient.

    Raises ValueError for an unknown estimator.
    """
    x = log_probs - ref_log_probs
    if estimator is not None and estimator.endswith("+"):
        value, slope = kl_estimate(log_probs, ref_log_probs, estimator[:-1]), 0.5 * x**2
        return slope - slope.detach() + value.detach()
    if estimator == "k1":
        return x
    if estimator == "abs":
        return x.abs()
    if estimator == "k2":
        return 0.5 * x**2
    if estimator == "k3":
        down = torch.clamp(-x, -20.0, 20.0)
        return torch.clamp(torch.exp(down) - down - 1, -10.0, 10.0)
    raise ValueError(f"kl_estimate: estimator must be k1, abs, k2 or k3, with or without '+'. Got {estimator!r}.")


# --- aggregation


def masked_mean(value: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the mask; 0 if it is empty."""
    return torch.where(mask, value, 0.0).sum() / mask.sum().clamp(min=1)


def aggregate(
    token_loss: Float[Tensor, "response #token"],
    mask: Bool[Tensor, "response token"],
    mode: Mode,
    *,
    kept: Bool[Tensor, "response token"] | None = None,
    kept_share: Float[Tensor, ""] | None = None,
    token_divisor: Tensor | float | None = None,
    row_divisor: float | None = None,
    accumulation: float = 1.0,
    horizon: float | None = None,
    empty_rows: Literal["count", "exclude"] = "count",
) -> Float[Tensor, ""]:
    """One number from a loss per token (sheet grpo-family, section 4).

    token-mean: sum / token_divisor (default: this slice's tokens). token-mean-local: sum / this slice's tokens.
    seq-mean-token-mean, seq-mean-token-sum: per-row mean or sum, mean over rows. seq-mean-token-sum-norm: the latter / horizon.
    dr-grpo: sum / (rows x horizon). luspo: mean of row sums. token-sum: sum.
    The row-wise modes and token-mean-local are divided by `accumulation`. Rows without tokens count in the mean ("count", TRL) or not
    ("exclude", verl). `row_divisor` replaces the number of rows. With no valid token at all the result is 0.
    """
    total = token_loss * mask
    counted = mask if kept is None else mask & kept
    if mode == "token-sum":
        return total.sum()
    if mode == "token-mean":
        divisor = counted.sum().clamp(min=1.0) if token_divisor is None else token_divisor
        if kept is not None and kept_share is not None and token_divisor is not None:
            divisor = divisor * kept_share.clamp(min=1e-12)
        return total.sum() / divisor
    if mode == "token-mean-local":
        return total.sum() / counted.sum().clamp(min=1.0) / accumulation
    length = mask.shape[1] if horizon is None else horizon
    if mode == "dr-grpo":
        return total.sum() / (token_loss.size(0) * length) / accumulation
    rows = total.sum(-1)
    if mode == "seq-mean-token-mean":
        rows = rows / counted.sum(-1).clamp(min=1.0)
    elif mode == "seq-mean-token-sum-norm":
        rows = rows / length
    if row_divisor is not None:
        return rows.sum() / row_divisor
    if empty_rows == "count":
        return rows.mean() / accumulation
    return rows.sum() / mask.any(-1).sum().clamp(min=1) / accumulation
