"""`Objective`: what a policy-gradient step minimises, as data; and how a loss per token becomes one number.

Sheet `grpo-family`, sections 3, 4, 6 and 8. An objective names a form of token loss, the level of its ratio, a clip window, an
aggregation and a KL term; its methods are the steps of `policy_loss`. Where TRL defines a combination (`Objective.trl`), the order
of operations is TRL's, so that with nothing else switched on loss and gradient are TRL 1.16's bit for bit.

Masks select (`torch.where`), they never multiply: values under the mask may be NaN.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isentrope.control.surrogates import (
    Bounds,
    Estimator,
    Level,
    cispo_loss,
    clipped_loss,
    gmpo_loss,
    importance_ratio,
    kl_estimate,
    reinforce_loss,
    sapo_loss,
    selected,
)  # fmt: skip

if TYPE_CHECKING:
    from isentrope.control.step import Normaliser

__all__ = ["Bounds", "Estimator", "Form", "Level", "Mode", "Objective", "aggregate"]

Form = Literal["ppo", "reinforce", "cispo", "sapo", "gmpo"]
Mode = Literal[
    "token-mean", "token-mean-local", "token-sum", "token-sum-norm", "seq-mean-token-mean", "seq-mean-token-sum",
    "seq-mean-token-sum-norm", "dr-grpo", "luspo",
]  # fmt: skip
EmptyRows = Literal["count", "exclude"]


@dataclass(frozen=True)
class Objective:
    """What a policy-gradient step minimises, before any intervention.

    form: ppo (clipped), reinforce (-A log p), cispo (-sg(clipped r) A log p), sapo (soft gate), gmpo (geometric mean of ratios).
    level: one ratio per token, per sequence (exp of the mean of d), "sequence-token" (GSPO's token form) or "sequence-sum" (RLOO).
    epsilon_low, epsilon_high: the window [1 - low, 1 + high] of r; for gmpo [e^-low, e^high]. None: not clipped on that side.
    epsilon_cap: the upper bound of r itself, in place of 1 + epsilon_high (TRL's cispo).
    dual_clip: c, bounds the loss at -A c where A < 0. delta: TRL's cap of the unclipped branch.
    log_ratio_clamp: the exponent of the ratio is held inside +- this many nats (verl 20, TRL None).
    aggregation, empty_rows: see `aggregate`.
    kl, kl_coef: estimator and coefficient of the KL to the reference, added per token; kl_bias_correction multiplies it by r, whose
    gradient flows (TRL). kl_clamp: bounds of x and of k3 (verl (20, 10), TRL None).
    tau_positive, tau_negative: sapo's temperatures for A > 0 and A <= 0.

    Raises ValueError for a value outside its range.
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
    empty_rows: EmptyRows = "count"
    kl: Estimator | None = None
    kl_coef: float = 0.0
    kl_bias_correction: bool = False
    kl_clamp: tuple[float, float] | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        _choice("form", self.form, get_args(Form))
        _choice("level", self.level, get_args(Level))
        _choice("aggregation", self.aggregation, get_args(Mode))
        _choice("empty_rows", self.empty_rows, get_args(EmptyRows))
        if self.kl is not None:
            _choice("kl", self.kl, get_args(Estimator))
        _above("epsilon_low", self.epsilon_low, 0.0, closed=True)
        _above("epsilon_high", self.epsilon_high, 0.0, closed=True)
        _above("epsilon_cap", self.epsilon_cap, 0.0)
        _above("dual_clip", self.dual_clip, 1.0)
        _above("delta", self.delta, 0.0)
        _above("log_ratio_clamp", self.log_ratio_clamp, 0.0)
        _above("kl_coef", self.kl_coef, 0.0, closed=True)
        _above("tau_positive", self.tau_positive, 0.0)
        _above("tau_negative", self.tau_negative, 0.0)
        if self.kl is None and self.kl_coef:
            raise ValueError(f"Objective: kl must name an estimator where kl_coef is not 0. Got kl=None, kl_coef={self.kl_coef}. Write kl='k3'.")
        if self.form == "gmpo" and self.level != "token":
            raise ValueError(f"Objective: level must be 'token' for form 'gmpo', which averages over the sequence itself. Got {self.level!r}.")

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
        """The objective that TRL 1.16 means by these options of GRPOConfig.

        With cispo, epsilon_high is the absolute cap of the ratio (5.0 is recommended); left None it is `epsilon`, so 0.2.

        Raises ValueError for a loss type or level that is not carried.
        """
        if loss_type not in _TRL_MODES:
            raise ValueError(
                f"Objective.trl: loss_type must be one of {', '.join(_TRL_MODES)}. Got {loss_type!r}. GSPO is loss_type 'grpo' with "
                "importance_sampling_level 'sequence'; luspo and vespo are not carried."
            )
        if importance_sampling_level not in ("token", "sequence"):
            raise ValueError(f"Objective.trl: importance_sampling_level must be token or sequence. Got {importance_sampling_level!r}.")
        high = epsilon if epsilon_high is None else epsilon_high
        shared = cls(
            epsilon_low=None, epsilon_high=None, level=importance_sampling_level, aggregation=_TRL_MODES[loss_type],
            kl="k3" if beta else None, kl_coef=beta, kl_bias_correction=bool(beta) and use_bias_correction_kl,
        )  # fmt: skip
        if loss_type == "cispo":
            return replace(shared, form="cispo", epsilon_cap=high)
        if loss_type == "sapo":
            return replace(shared, form="sapo", tau_positive=sapo_temperature_pos, tau_negative=sapo_temperature_neg)
        return replace(shared, epsilon_low=epsilon, epsilon_high=high, delta=delta)

    @classmethod
    def named(cls, name: str) -> "Objective":
        """A published objective with its own defaults (sheet `grpo-family`, sections 3 and 8); ppo is verl's, with dual clip 3.

        All hold the log-ratio inside +-20 nats, which verl does for ppo, cispo and sapo and others do not at all: gradients then stay
        finite however far the policy went.

        Raises ValueError for an unknown name.
        """
        base, unclipped = cls(log_ratio_clamp=20.0), cls(epsilon_low=None, epsilon_high=None, log_ratio_clamp=20.0)
        rows: Mode = "seq-mean-token-mean"
        presets = {
            "ppo": replace(base, dual_clip=3.0, empty_rows="exclude"),
            "reinforce": replace(unclipped, form="reinforce"),
            "gpg": replace(unclipped, form="reinforce"),
            "grpo": replace(base, aggregation=rows),
            "dr_grpo": replace(base, aggregation="dr-grpo"),
            "dapo": replace(base, epsilon_high=0.28),
            "gspo": replace(base, level="sequence", epsilon_low=3e-4, epsilon_high=4e-4, aggregation=rows),
            "cispo": replace(unclipped, form="cispo", epsilon_cap=5.0),
            "gmpo": replace(base, form="gmpo", epsilon_low=0.4, epsilon_high=0.4, aggregation=rows),
            "sapo": replace(unclipped, form="sapo", aggregation=rows),
            "rloo": replace(base, level="sequence-sum", aggregation=rows),
        }
        if name not in presets:
            raise ValueError(f"Objective.named: name must be one of {', '.join(presets)}. Got {name!r}.")
        return presets[name]

    def bounds(self) -> Bounds:
        """The objective's own clip window, of the ratio."""
        if self.form == "gmpo":
            low = None if self.epsilon_low is None else math.exp(-self.epsilon_low)
            high = None if self.epsilon_high is None else math.exp(self.epsilon_high)
        else:
            low = None if self.epsilon_low is None else 1 - self.epsilon_low
            high = None if self.epsilon_high is None else 1 + self.epsilon_high
        return Bounds(low, high if self.epsilon_cap is None else self.epsilon_cap, self.dual_clip, self.delta)

    @property
    def reads(self) -> frozenset[str]:
        """The fields of `Bounds` that this form has a use for: what is set in another one is clipped away."""
        fields = {"ppo": ("low", "high", "cap", "delta"), "cispo": ("low", "high"), "gmpo": ("low", "high")}
        return frozenset(fields.get(self.form, ()))

    def ratio(
        self,
        log_probs: Float[Tensor, "response token"],
        old_log_probs: Float[Tensor, "response token"],
        mask: Bool[Tensor, "response token"],
    ) -> Float[Tensor, "response #token"]:
        """r per token, or [response, 1] at the levels "sequence" and "sequence-sum"; 1 at masked positions."""
        return importance_ratio(log_probs, old_log_probs, mask, level=self.level, clamp=self.log_ratio_clamp)

    def surrogate(
        self,
        ratio: Float[Tensor, "response #token"],
        advantage: Float[Tensor, "response #token"],
        log_probs: Float[Tensor, "response token"],
        bounds: Bounds,
        mask: Bool[Tensor, "response token"],
    ) -> Float[Tensor, "response #token"]:
        """The loss per token, or [response, 1] for gmpo and where ratio and advantage both are per response.

        Before weights and aggregation; positions under the mask hold some finite number.
        """
        advantage = selected(advantage, mask)
        if self.form == "ppo":
            return clipped_loss(ratio, advantage, bounds)
        if self.form == "sapo":
            return sapo_loss(ratio, advantage, self.tau_positive, self.tau_negative)
        if self.form == "gmpo":
            return gmpo_loss(ratio, advantage, mask, bounds)
        log_probs = torch.where(mask, log_probs, 0.0)
        if self.form == "cispo":
            return cispo_loss(ratio, advantage, log_probs, bounds)
        return reinforce_loss(log_probs, advantage)

    def kl_term(
        self,
        log_probs: Float[Tensor, "response token"],
        ref_log_probs: Float[Tensor, "response token"] | None,
        ratio: Float[Tensor, "response #token"],
    ) -> Float[Tensor, "response token"]:
        """KL to the reference per token in nats, by this objective's estimator, before `kl_coef`. Log-probs must be finite everywhere.

        Raises ValueError without an estimator or without reference log-probs.
        """
        if self.kl is None or ref_log_probs is None:
            missing = "kl names no estimator" if self.kl is None else "the step carries no reference log-probs"
            raise ValueError(f"Objective.kl_term needs kl and ref_log_probs; {missing}. In TRL set trl.beta above 0.")
        clamp, value_clamp = (None, None) if self.kl_clamp is None else self.kl_clamp
        kl = kl_estimate(log_probs, ref_log_probs, self.kl, log_ratio_clamp=clamp, value_clamp=value_clamp)
        return kl * ratio if self.kl_bias_correction else kl

    def aggregate(
        self,
        token_loss: Float[Tensor, "response #token"],
        mask: Bool[Tensor, "response token"],
        normaliser: "Normaliser",
        kept: Bool[Tensor, "response token"] | None = None,
        kept_share: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, ""]:
        """The scalar loss of one slice under this objective's mode (see the function `aggregate`).

        kept: tokens that stay in the divisor (the numerator is the caller's). kept_share: kept tokens over trained tokens of the
        whole update, by which the token divisor of "token-mean" shrinks.
        """
        rows = None if normaliser.rows is None or self.empty_rows == "count" else normaliser.rows / normaliser.world_size
        return aggregate(
            token_loss, mask, self.aggregation, kept=kept, kept_share=kept_share, token_divisor=normaliser.token_divisor,
            row_divisor=rows, accumulation=normaliser.accumulation, horizon=normaliser.horizon, empty_rows=self.empty_rows,
        )  # fmt: skip


_TRL_MODES: dict[str, Mode] = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean-local",
    "dr_grpo": "dr-grpo",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "sapo": "seq-mean-token-mean",
}


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Objective: {name} must be one of {', '.join(allowed)}. Got {value!r}.")


def _above(name: str, value: float | None, bound: float, *, closed: bool = False) -> None:
    if value is None or value > bound or (closed and value == bound):
        return
    raise ValueError(f"Objective: {name} must be {'at least' if closed else 'above'} {bound:g}. Got {value!r}. Off is None.")


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
    empty_rows: EmptyRows = "count",
    epsilon: float = 0.0,
) -> Float[Tensor, ""]:
    """One number from a loss per token (sheet `grpo-family`, section 4). With no valid token it is 0.

    - token-mean: sum / token_divisor (None: this slice's tokens). token-mean-local: sum / this slice's tokens (TRL bnpo).
    - token-sum: the sum. token-sum-norm: sum / horizon (verl's Dr.GRPO of January 2026: not divided by the number of rows).
    - seq-mean-token-mean: mean over rows of the row's token mean. seq-mean-token-sum: mean over rows of the row's sum.
    - seq-mean-token-sum-norm: the latter / horizon (verl's Dr.GRPO of August 2026). dr-grpo: sum / (rows x horizon), TRL's.
    - luspo: mean over rows of the sum of [response, 1] losses over the row's tokens.

    horizon None: the padded length. accumulation: slices per update, divides every mode but token-mean, token-sum and
    token-sum-norm. empty_rows: rows without a token count in the mean over rows with value 0 ("count", TRL) or not ("exclude", verl).
    row_divisor: replaces the number of rows and `accumulation` (verl: rows of the global batch / data-parallel size).
    kept: tokens that stay in the counts that divide; kept_share scales a given token_divisor. epsilon: added to a row's token count
    (verl 1e-8).
    """
    total = torch.where(mask, token_loss, 0.0)
    counted = mask if kept is None else mask & kept
    if mode == "token-sum":
        return total.sum()
    if mode == "token-mean":
        return total.sum() / _token_divisor(counted, token_divisor, None if kept is None else kept_share)
    if mode == "token-mean-local":
        return total.sum() / counted.sum().clamp(min=1.0) / accumulation
    length = mask.shape[1] if horizon is None else horizon
    if mode == "token-sum-norm":
        return total.sum() / length
    if mode == "dr-grpo":
        return total.sum() / (token_loss.size(0) * length) / accumulation
    rows = total.sum(-1)
    if mode == "seq-mean-token-mean":
        tokens = counted.sum(-1).clamp(min=1.0)
        rows = rows / (tokens.to(rows.dtype) + epsilon if epsilon else tokens)
    if row_divisor is not None:
        mean = rows.sum() / row_divisor
    elif empty_rows == "count":
        mean = rows.mean() / accumulation
    else:
        mean = rows.sum() / mask.any(-1).sum().clamp(min=1) / accumulation
    return mean / length if mode == "seq-mean-token-sum-norm" else mean  # last: verl's order, which bit equality needs


def _token_divisor(counted: Tensor, divisor: Tensor | float | None, kept_share: Tensor | None) -> Tensor | float:
    """The divisor of a token sum. Where nothing is kept the numerator is what regularisers left, over the full divisor."""
    if divisor is None:
        return counted.sum().clamp(min=1.0)
    return divisor if kept_share is None else divisor * torch.where(kept_share > 0, kept_share, 1.0)
