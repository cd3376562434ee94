"""What can be asked of a token: one small frozen value per signal.

p = softmax(z) over the vocabulary, z the logits after softcap and temperature, k the target, all in nats:

    H = -sum_i p_i ln p_i     S_i = p_i (ln p_i + H)     N = sum_i p_i S_i = Cov_p(p, ln p) >= 0

so that dH/dz_i = -S_i and sum_i S_i = 0 (DESIGN section 2). A position whose logits are all -inf, or hold a NaN or +inf, has no
distribution: its values are NaN (its rank is the vocabulary size).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Signal:
    """A number per token. `key` names it in results; it carries gradient when `grad` is True and is detached otherwise."""

    grad = False  # neither annotated: as fields of this class they would come first in the subclasses
    name = ""

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True)
class LogProb(Signal):
    """ln p_k, nats, <= 0; -inf where the target's logit is -inf. Gradient: d/dz_i = [i = k] - p_i."""

    grad: bool = True
    name = "log_prob"


@dataclass(frozen=True)
class Entropy(Signal):
    """H, nats, in [0, ln vocab]. Gradient: d/dz_i = -p_i (ln p_i + H)."""

    grad: bool = False
    name = "entropy"


@dataclass(frozen=True)
class SumSquares(Signal):
    """sum_i p_i^2, in [1 / vocab, 1]; its negative logarithm is the Renyi-2 entropy. Gradient: d/dz_i = 2 p_i (p_i - sum p^2)."""

    grad: bool = False
    name = "sum_p2"


@dataclass(frozen=True)
class Discriminant(Signal):
    """S_k = p_k (ln p_k + H), nats: raising the target's logit takes it from H. 0 where p_k is 0. No gradient."""

    name = "S"


@dataclass(frozen=True)
class ExpectedDiscriminant(Signal):
    """N = sum_i p_i S_i, nats, >= 0: the mean of S under the policy itself. No gradient."""

    name = "N"


@dataclass(frozen=True)
class TargetProb(Signal):
    """p_k. No gradient."""

    name = "p"


@dataclass(frozen=True)
class MaxProb(Signal):
    """The largest probability, in [1 / vocab, 1]. No gradient."""

    name = "max_p"


@dataclass(frozen=True)
class Varentropy(Signal):
    """Variance of -ln p under p, nats^2, >= 0. No gradient."""

    name = "varentropy"


@dataclass(frozen=True)
class MeanLogit(Signal):
    """Mean over the vocabulary of the logits as they enter the softmax (-inf if one of them is). No gradient."""

    name = "mean_logit"


@dataclass(frozen=True)
class Rank(Signal):
    """How many tokens are strictly more likely than the target, int64; 0 means that none is. No gradient."""

    name = "rank"


@dataclass(frozen=True)
class NucleusEntropy(Signal):
    """Entropy of p renormalised on its nucleus, nats: all ranks before the first whose inclusive cumulative mass reaches `top_p`.

    The token that crosses is left out: a position with a token at or above `top_p` has an empty nucleus, entropy 0 and no
    gradient. top_p > 1 keeps every token. `top_k`: of the nucleus only the k most likely can be members (None: no such limit); p is
    still normalised over the whole vocabulary. Gradient through the renormalised q, not through the membership:
    d/dz_i = -q_i (ln q_i + value) inside, 0 outside; equally likely tokens at the edge that cannot all be members share.
    Source: sheet `siren`, method 1 (the released rule; its 1e-12 constants are left out).
    """

    top_p: float = 0.8
    top_k: int | None = None
    grad: bool = False
    name = "nucleus_entropy"

    def __post_init__(self) -> None:
        if not self.top_p > 0:
            raise ValueError(f"NucleusEntropy: top_p must be > 0 (above 1 keeps every token). Got {self.top_p}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"NucleusEntropy: top_k must be None (no limit) or at least 1. Got {self.top_k}.")

    @property
    def key(self) -> str:
        top_p = float(self.top_p)
        return f"{self.name}[{top_p}]" if self.top_k is None else f"{self.name}[{top_p},{self.top_k}]"


@dataclass(frozen=True)
class InNucleus(Signal):
    """Whether top-p sampling could have drawn the target, bool: the tokens strictly more likely hold less than `top_p` between them.

    This is the sampler's nucleus, with the token that crosses `top_p` in it (`NucleusEntropy` leaves that one out); of equally likely
    tokens at its edge all are members, where a sampler keeps some by its sorting order. False where there is no distribution.
    """

    top_p: float = 0.9
    name = "in_nucleus"

    def __post_init__(self) -> None:
        if not self.top_p > 0:
            raise ValueError(f"InNucleus: top_p must be > 0 (1 or above: every token that is possible at all). Got {self.top_p}.")

    @property
    def key(self) -> str:
        return f"{self.name}[{float(self.top_p)}]"


@dataclass(frozen=True)
class TopKEntropy(Signal):
    """-sum p ln p over the `k` most likely tokens, nats, p normalised over the whole vocabulary: what an engine that returns k
    log-probs can know of H. H - TopKTail <= value <= H. No gradient."""

    k: int = 20
    name = "top_k_entropy"

    def __post_init__(self) -> None:
        _check_k("TopKEntropy", self.k)

    @property
    def key(self) -> str:
        return f"{self.name}[{self.k}]"


@dataclass(frozen=True)
class TopKTail(Signal):
    """The most that the tokens beyond the `k` most likely can add to H, nats: m ln(n / m), m their mass and n how many of them
    are possible (above -inf), reached where they are equally likely. 0 where m is 0. No gradient."""

    k: int = 20
    name = "top_k_tail"

    def __post_init__(self) -> None:
        _check_k("TopKTail", self.k)

    @property
    def key(self) -> str:
        return f"{self.name}[{self.k}]"


def _check_k(name: str, k: int) -> None:
    if k < 1:
        raise ValueError(f"{name}: k must be at least 1. Got {k}.")


SIGNALS: tuple[type[Signal], ...] = (
    LogProb, Entropy, Discriminant, ExpectedDiscriminant, SumSquares, MaxProb, TargetProb, Varentropy, MeanLogit, Rank, InNucleus, NucleusEntropy,
    TopKEntropy, TopKTail,
)  # fmt: skip
"""Every signal."""

SIGNALS_WITH_GRAD: tuple[type[Signal], ...] = (LogProb, Entropy, SumSquares, NucleusEntropy)
"""Those that carry gradient when `grad` is True."""
