r"""Why entropy moves: what one step of a tabular softmax does to it, in closed form. Nats; differentiable; exact to first order in the step.

Every state has logits z of its own; p = softmax(z). All of it is one line, DESIGN section 2:

    S_i = p_i (ln p_i + H)    dH = -sum_i S_i dz_i = -Cov_p(ln p, dz)    N = sum_i p_i S_i = Cov_p(p, ln p) >= 0

| the step dz | what entropy does | here | sheet |
|---|---|---|---|
| any | -Cov_p(ln p, dz) | `predicted_change` | `clip-cov`, Lemma 1 |
| eta p A (vanilla policy gradient) | -eta Cov_p(ln p, p A) = -eta E_p[S A] | `vanilla_change` | `clip-cov`, Theorem 1 |
| eta A (natural policy gradient) | -eta Cov_p(ln p, A) = eta E_p[A (S - H)], S = -ln p | `natural_change` | `clip-cov`, Theorem 2; `aem-agentic` |
| alpha e_k (one logit) | -alpha S_k | `discriminant` | `rft-entropy-dynamics`, 3.2 |
| alpha (e_k - p) (one sampled token, alpha = eta w r A) | -alpha (S_k - N) | `token_change` | `rft-entropy-dynamics`, 3.3; `steer` |
| the sum of such tokens | the sum of theirs | `batch_change` | `grpo-family`, 10 |
| the same with alpha independent of the token | 0 to first order, alpha^2 tr(Hess H F) / 2 to second | `noise_drift` | derived |

The state distribution is held fixed, as in the papers. Where earlier tokens decide which states are met, the mean entropy has one more first-order term,
through the visits: only the entropy of whole responses (a bandit whose actions are responses) has it in. `explain.theorems` measures the residual of each.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isentrope.measure.distribution import shannon


def covariance(x: Float[Tensor, "*batch outcome"], y: Float[Tensor, "*batch outcome"], probs: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """Cov_p(x, y) = sum_i p_i (x_i - E x) y_i; what has probability 0 adds nothing, whatever it holds."""
    some = probs > 0
    x, y = torch.where(some, x, 0.0), torch.where(some, y, 0.0)
    return (probs * (x - (probs * x).sum(-1, keepdim=True)) * y).sum(-1)


def discriminant(log_probs: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
    """S_i = p_i (ln p_i + H), nats, of every action: dH/dz_i = -S_i, and they sum to 0. 0 where p_i is 0.

    Source: sheet `rft-entropy-dynamics`; per sampled token of a model it is the signal `measure.Discriminant`.

    >>> discriminant(torch.tensor([0.5, 0.25, 0.25]).log())
    tensor([ 0.1733, -0.0866, -0.0866])
    """
    p = log_probs.exp()
    return torch.where(p > 0, p * (log_probs + shannon(p)[..., None]), 0.0)


def expected_discriminant(log_probs: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """N = E_p[S] = Cov_p(p, ln p), nats, >= 0; 0 for a uniform or a certain policy (`measure.ExpectedDiscriminant` of a model's tokens)."""
    return (log_probs.exp() * discriminant(log_probs)).sum(-1)


def predicted_change(log_probs: Float[Tensor, "*batch action"], logit_change: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """dH = -Cov_p(ln p, dz), nats, for logits that change by dz; the same for dz + constant. Source: 2505.22617, Lemma 1."""
    return -covariance(log_probs, logit_change, log_probs.exp())


def vanilla_change(log_probs: Float[Tensor, "*batch action"], advantage: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """dH per unit of learning rate of the exact policy gradient, nats: -Cov_p(ln p, p A) = -E_p[S A] = -Cov_p(S, A) where E_p A = 0.

    Source: 2505.22617, Theorem 1. Likely and good, or unlikely and bad: it falls.
    """
    return predicted_change(log_probs, log_probs.exp() * advantage)


def natural_change(log_probs: Float[Tensor, "*batch action"], advantage: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """dH per unit of learning rate of the natural policy gradient, nats: -Cov_p(ln p, A).

    With whole responses as actions it is E[A (S - H)], S = -ln p the surprisal: the drift of Fisher-Rao flow dp/dt = p (A - E A).
    Source: 2505.22617, Theorem 2; 2605.00425.
    """
    return predicted_change(log_probs, advantage)


def sampled_drift(surprisal: Float[Tensor, "*batch response"], advantage: Float[Tensor, "*batch response"]) -> Float[Tensor, "*batch"]:
    """The same drift from responses drawn by the policy itself, nats per unit of learning rate: the mean of A (S - mean S).

    Of G independent responses its mean is (1 - 1/G) times `natural_change`. surprisal: -ln pi(response), summed over its tokens.
    """
    return (advantage * (surprisal - surprisal.mean(-1, keepdim=True))).mean(-1)


def probability_change(log_probs: Float[Tensor, "*batch action"], token: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch action"]:
    """dp per unit of push on a sampled token k, dz = e_k - p: p_i (q - p_k - p_i), and p_k (1 - 2 p_k + q) for k itself, q = sum p^2.

    Source: sheet `entrocraft` (derived there).
    """
    p = log_probs.exp()
    chosen = torch.nn.functional.one_hot(token, p.shape[-1]).to(p.dtype)
    push = chosen - p
    return p * (push - (p * push).sum(-1, keepdim=True))


def token_change(log_probs: Float[Tensor, "*batch action"], token: Int[Tensor, "*batch"], push: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """dH of its state when the sampled token is pushed, nats: -push (S_k - N), push = eta w r A (learning rate, weight, ratio, advantage).

    Averaged over k ~ p with push = eta A_k it is `vanilla_change`; with one push for all k it is 0.
    Source: 2602.03392, Theorem 3.3; sheet `steer` (the exact rule that Omega approximates).

    >>> token_change(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor(0), torch.tensor(1.0))
    tensor(-0.1300)
    """
    s = discriminant(log_probs)
    return -push * (s.gather(-1, token[..., None]).squeeze(-1) - expected_discriminant(log_probs))


def batch_change(
    log_probs: Float[Tensor, "state action"], state: Int[Tensor, " sample"], token: Int[Tensor, " sample"], push: Float[Tensor, " sample"]
) -> Float[Tensor, " state"]:
    """dH of every state after one step on a batch of sampled tokens, nats: the sum of `token_change` of those drawn there, 0 where none was."""
    each = token_change(log_probs[state], token, push)
    return each.new_zeros(len(log_probs)).index_add(0, state, each)


def noise_drift(log_probs: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    r"""E dH per unit of sum push^2 when tokens are drawn from the policy and pushes do not depend on them, nats: tr(Hess H F) / 2.

        tr(Hess H F) = -[ N (1 + 2 q) - 3 M + q + q^2 - 2 c ]      q = sum p^2,  c = sum p^3,  M = sum p^2 S,  F = diag p - p p'

    To first order nothing happens (E S_k = N). To second order it falls, most where the policy is open (uniform over V: -(1/V)(1 - 1/V) / 2), and rises a
    little where one action is nearly certain: noise carries a softmax out of the middle and brings it back from the edge. Of G tokens at one state
    with group-normalised advantages and step eta / G, sum push^2 is eta^2 / G. Source: derived; residual of third order.
    """
    p, s, n = log_probs.exp(), discriminant(log_probs), expected_discriminant(log_probs)
    q, c, m = (p**2).sum(-1), (p**3).sum(-1), (p**2 * s).sum(-1)
    return -(n * (1 + 2 * q) - 3 * m + q + q**2 - 2 * c) / 2


def output_baseline(log_probs: Float[Tensor, "*batch action"], token: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Mean ln p_i of the other tokens, nats, weighted by -dp_i / dp_k: rewarding k lowers the entropy if ln p_k is above it.

    Equivalent to S_k > N; weights sum to 1 and may be negative; NaN for a certain token, which nothing moves. Source: 2604.26326, Theorem 1.
    """
    change, k = probability_change(log_probs, token), token[..., None]
    own = change.gather(-1, k)
    others = torch.where(log_probs.exp() > 0, -change / own * log_probs, 0.0).scatter(-1, k, 0.0)
    return torch.where(own.squeeze(-1) > 0, others.sum(-1), torch.nan)


def push_norm(log_probs: Float[Tensor, "*batch action"], token: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """|e_k - p| = sqrt(1 - 2 p_k + sum p^2), the norm of the sampled token's own logit gradient, in [0, sqrt 2]. Source: 2508.02260 (sheet, diagnostics)."""
    p = log_probs.exp()
    chosen = p.gather(-1, token[..., None]).squeeze(-1)
    return ((1 - chosen) ** 2 + ((p**2).sum(-1) - chosen**2).clamp(min=0)).sqrt()
