r"""The entropy ledger of one real update: what its change of mean entropy is made of, and what each token did to it.

Over the tokens of an update, H(theta) = (1/n) sum_t H_t(theta) is their mean entropy in nats, on the same tokens before and after. With
h = grad H half-way along the update, H moves by <h, dtheta> up to the third order; an optimiser's update is a sum, so its effect is one (DESIGN
section 2):

    dtheta = - P g/c + P (1 - c)/c g + momentum + decay          g the clipped gradient, c what clipping left of it, 1 if nothing
    this_batch = -<h, P g>/c     gradient_clipping = <h, P g> (1 - c)/c     momentum = <h, m>     weight_decay = <h, d>
    residual = measured change - these four: the third and higher orders, and the rounding of the weights

With h at the opening weights instead the same is of first order only: `first_order`. P is the optimiser's scaling of this gradient in this
step, held at what it was (AdamW: (1 - beta1) lr / ((1 - beta1^t) (sqrt(v_hat) + eps)), with this gradient already in v_hat). The batch's
account is a sum over tokens: with u = P h,

    this_batch = sum_t part_t        part_t = - (dLoss/dlog p_t) (d log p_t / du)        and likewise for every signal that the loss differentiates

and two forward passes at theta +- eps u give d log p_t / du of all tokens at once. Symbols of the sheets `clip-cov`, `steer` and
`rft-entropy-dynamics`; the ledger itself is ours (DESIGN section 6).

Theories, all in nats: `exact` is <h, dtheta>, `first_order` the same from the opening. The other three know a token's own state only, as if every
state had logits of its own and made one step of the learning rate: their sizes are then not those of a network whose states share weights, and
their slope says by how much.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from isentrope.control.objectives import Objective
from isentrope.control.papers.clip_cov import covariance
from isentrope.control.papers.steer import own_logit_change, passes
from isentrope.control.stages import Chain, ChainStats, policy_loss
from isentrope.control.step import RowRng, State, Step

THEORIES = ("covariance", "omega", "token_rule", "first_order", "exact")
"""Clip-Cov's, STEER's, -w r A (S - N), and the gradient of the entropy along the real update, from its opening and half-way."""
ACCOUNTS = ("this_batch", "momentum", "weight_decay", "gradient_clipping", "residual")
"""What a change of entropy is booked on; they add up to it."""
CLASSES = ("digits", "word", "punctuation", "symbol", "space", "special", "mixed")
"""Kinds of tokens that any tokenizer has."""


# --- the optimiser's update, part by part


@dataclass(frozen=True)
class UpdateParts:
    """What one step adds to a parameter: - scale * gradient + momentum + decay. `scale` is P."""

    scale: Float[Tensor, "*shape"] | float
    momentum: Float[Tensor, "*shape"]
    decay: Float[Tensor, "*shape"]

    def change(self, gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The whole update that the optimiser makes of `gradient`."""
        return -self.scale * gradient + self.momentum + self.decay


def unsplit(optimizer: torch.optim.Optimizer) -> str | None:
    """Why this optimiser's update cannot be split into accounts; None if it can: torch's AdamW, Adam without weight decay, and SGD."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.SGD):
        return f"the optimiser is {type(optimizer).__module__}.{name}; AdamW, Adam and SGD of torch can be split"
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raised = f"{name} with {option}=True"
                return f"the optimiser is {raised}; it can be split with {option}=False"
        if isinstance(optimizer, torch.optim.Adam) and group["weight_decay"] and not group.get("decoupled_weight_decay"):
            return "the optimiser is Adam, whose weight decay goes through its second moment; AdamW can be split"
    return None


def update_parts(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]
) -> UpdateParts:
    """The parts of the update that `optimizer` is about to make of `parameter`; nothing is changed. See `unsplit` for what is known."""
    state = optimizer.state.get(parameter, {})
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if isinstance(optimizer, torch.optim.SGD):
        return _sgd(state, group, rate, decay, parameter.detach())
    beta1, beta2 = (float(beta) for beta in group["betas"])
    steps = float(state.get("step", 0.0)) + 1
    second = (1 - beta2) * gradient.square()
    first = torch.zeros_like(gradient)
    if "exp_avg" in state:
        second += beta2 * state["exp_avg_sq"]
        first = state["exp_avg"]
    scale = (rate / (1 - beta1**steps)) / (second.sqrt_().div_((1 - beta2**steps) ** 0.5).add_(float(group["eps"])))
    return UpdateParts((1 - beta1) * scale, -beta1 * scale * first, -rate * decay * parameter.detach())


def _sgd(state: Mapping[str, Any], group: Mapping[str, Any], rate: float, decay: float, parameter: Tensor) -> UpdateParts:
    """torch's SGD: its weight decay is part of the gradient and goes into the momentum, where later steps book it."""
    momentum, before = float(group["momentum"]), state.get("momentum_buffer")
    fresh = 1.0 if before is None else 1 - float(group["dampening"])
    carried = torch.zeros_like(parameter) if before is None else momentum * before
    if momentum and group["nesterov"]:
        fresh, carried = 1 + momentum * fresh, momentum * carried
    elif not momentum:
        fresh, carried = 1.0, torch.zeros_like(parameter)
    return UpdateParts(rate * fresh, -rate * carried, -rate * fresh * decay * parameter)


def dot(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> float:
    """Their inner product, summed in float64."""
    return float((left * right).sum(dtype=torch.float64))


def booked(slope: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], parts: UpdateParts, clipped: float) -> dict[str, float]:
    """One parameter's contribution to the four accounts that are known before the step, in nats.

    slope: h, the gradient of the mean entropy. gradient: as the optimiser gets it. clipped: c, what clipping multiplied it with, in (0, 1].
    """
    batch = -dot(slope, parts.scale * gradient)
    return {
        "this_batch": batch / clipped,
        "gradient_clipping": batch - batch / clipped,
        "momentum": dot(slope, parts.momentum),
        "weight_decay": dot(slope, parts.decay),
    }


def clip_factor(norm: float, most: float) -> float:
    """What torch's clip_grad_norm_ multiplied the gradient with; `most` 0 or None clips nothing.

    >>> clip_factor(4.0, 1.0), clip_factor(0.5, 1.0), clip_factor(4.0, 0.0)
    (0.24999993750001562, 1.0, 1.0)
    """
    return min(1.0, most / (norm + 1e-6)) if most else 1.0


# --- theories


def token_theories(view: Step, rate: float, push: Float[Tensor, "response token"]) -> dict[str, float]:
    """What the three theories of a token's own state say of the mean entropy of a whole update, in nats.

    view: the update at its opening weights, with current.entropy. rate: the learning rate. push: `predicted_push` of its tokens.
    covariance: - rate Cov(log p, A) over the tokens, Clip-Cov's Theorem 2 with its token statistic (Eq. 10). omega: rate times the mean of
    STEER's Omega_t, I_clip included. token_rule: rate times the sum of the pushes, which is the mean of - w r A (S - N) under a token mean.
    """
    mask, rows = view.mask, view.rollouts
    if not bool(mask.any()):
        return {"covariance": 0.0, "omega": 0.0, "token_rule": 0.0}
    found = covariance(view.log_probs, view.advantage, mask, rows.row_id)
    change = own_logit_change(view.advantage, view.log_probs, view.old_log_probs, view.signal("current.entropy"))
    if view.bounds is not None:
        ratio = (view.log_probs - view.old_log_probs).exp()
        change = torch.where(passes(ratio, view.advantage, view.bounds), change, 0.0)
    return {
        "covariance": -rate * float(found[mask].mean()),
        "omega": rate * float(change[mask].mean()),
        "token_rule": rate * float(push[mask].sum(dtype=torch.float64)),
    }


# --- this batch, token by token


def loss_slopes(
    step: Step,
    objective: Objective,
    control: Chain,
    stats: ChainStats | None,
    state: Sequence[State],
    rng: RowRng,
    differentiated: Iterable[str] = (),
) -> dict[str, Tensor]:
    """d Loss / d log p of every token under "log_prob", and the same for each signal in `differentiated` ("entropy" for current.entropy).

    The loss is that of the whole chain at the numbers that `step` carries; the model is not asked.
    """
    names = [name for name in differentiated if name != "log_prob"]
    leaves = {"log_prob": step.log_probs.detach().requires_grad_(True)}
    leaves |= {name: step.signals[f"current.{name}"].detach().requires_grad_(True) for name in names}
    signals = {key: value.detach() for key, value in step.signals.items()} | {f"current.{name}": leaves[name] for name in names}
    loss = policy_loss(replace(step, log_probs=leaves["log_prob"], signals=signals), objective, control, stats, state, rng).loss
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: torch.zeros_like(leaf) if slope is None else slope for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)}


def token_parts(slopes: Mapping[str, Tensor], ahead: Mapping[str, Tensor], behind: Mapping[str, Tensor], reach: float) -> Float64[Tensor, "response token"]:
    """Every token's part in the account `this_batch`, in nats.

    slopes: `loss_slopes`. ahead, behind: the same signals at theta + reach u and theta - reach u, u = P h. The loss knows no
    clipping, so the parts add up to the account without it, as it is booked.
    """
    total = torch.zeros(slopes["log_prob"].shape, dtype=torch.float64, device=slopes["log_prob"].device)
    for name, slope in slopes.items():
        moved = slope.double() * (ahead[name].double() - behind[name].double())
        total -= moved.reshape(*total.shape, -1).sum(-1)
    return total / (2 * reach)


# --- attribution


@dataclass(frozen=True)
class Share:
    """What the tokens of one kind did: how many they are, and the sum of each column over them, in nats."""

    kind: str
    tokens: int
    sums: Mapping[str, float]


def attribute(kinds: Sequence[str] | np.ndarray, columns: Mapping[str, np.ndarray]) -> list[Share]:
    """Sums of every column over tokens of the same kind; kinds in the order of their names. The sums add up to the column's.

    >>> attribute(["b", "a", "b"], {"part": np.array([1.0, 2.0, 3.0])})
    [Share(kind='a', tokens=1, sums={'part': 2.0}), Share(kind='b', tokens=2, sums={'part': 4.0})]
    """
    names, at = np.unique(np.asarray(kinds, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(at, minlength=len(names))
    sums = {name: np.bincount(at, weights=np.asarray(value, dtype=float), minlength=len(names)) for name, value in columns.items()}
    return [Share(str(kind), int(counts[row]), {name: float(value[row]) for name, value in sums.items()}) for row, kind in enumerate(names)]


def signs(advantage: Sequence[float]) -> list[str]:
    """`A > 0`, `A < 0` or `A = 0`."""
    return [("A > 0" if value > 0 else "A < 0") if value else "A = 0" for value in advantage]


def verdicts(correct: Sequence[float]) -> list[str]:
    """`right`, `wrong`, or `not judged` where NaN."""
    return ["not judged" if value != value else "right" if value > 0 else "wrong" for value in correct]


def tenths(mask: Bool[Tensor, "response token"]) -> list[str]:
    """Which tenth of its response's trained tokens each of them stands in, `tenth-01` to `tenth-10`; tokens in the order of `mask.nonzero()`."""
    length = mask.sum(-1, keepdim=True)
    place = ((mask.cumsum(-1) - 1) * 10).div(length.clamp(min=1), rounding_mode="floor") + 1
    return [f"tenth-{int(value):02d}" for value in place[mask].tolist()]


def token_class(text: str, special: bool = False) -> str:
    """One of CLASSES, from the token's text; surrounding blanks do not count.

    >>> [token_class(text) for text in (" the", "12", "+", ",", "\\n", "x2", "")]
    ['word', 'digits', 'symbol', 'punctuation', 'space', 'mixed', 'special']
    """
    if special or not text:
        return "special"
    kinds = {unicodedata.category(character)[0] for character in text.strip()}
    if not kinds:
        return "space"
    for found, name in (({"N"}, "digits"), ({"L", "M"}, "word"), ({"P"}, "punctuation"), ({"S"}, "symbol")):
        if kinds <= found:
            return name
    return "punctuation" if kinds <= {"P", "S"} else "mixed"
