"""The reference worlds, where nothing has to be estimated: a bandit of independent states, and a tree of tokens with its reward at the leaf.

Both are tabular softmax policies in float64: every state (a node of the tree is one) has logits of its own, so policy, entropies in nats, expected reward,
gradients and natural gradients are sums that are carried out. -inf logits are legal: such an action never happens, and adds nothing anywhere.
A step is `world.moved(eta * world.gradient)`; what entropy then does is a subtraction, against which `explain.theory` is tested.

    J = sum_s d_s sum_a pi(a|s) r(s,a)        dJ/dz_{s,a} = d_s pi(a|s) A(s,a)        A = r - E_pi r; on the tree A = Q - V
    F = d_s (diag pi - pi pi')                F (A + const) = dJ/dz: the natural gradient is A itself, whatever d
Sources: Williams 1992; Kakade 2001; sheets `clip-cov` (Prop. 1, Theorem 2) and `aem-agentic`.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from isentrope.measure.distribution import shannon


@dataclass(frozen=True, eq=False)
class SoftmaxBandit:
    """Independent states, each a softmax over actions. Raises ValueError for shapes that do not fit or a dtype that is not float64."""

    logits: Float64[Tensor, "state action"]
    reward: Float64[Tensor, "state action"]
    weight: Float64[Tensor, " state"]  # d_s: how often each state is met; the policy does not change it

    def __post_init__(self):
        _check("SoftmaxBandit", self.logits, 2)
        if self.reward.shape != self.logits.shape or self.weight.shape != self.logits.shape[:1]:
            raise ValueError(
                f"SoftmaxBandit: reward must be [state action] and weight [state] for logits {list(self.logits.shape)}. "
                f"Got {list(self.reward.shape)} and {list(self.weight.shape)}."
            )

    @classmethod
    def random(cls, generator: torch.Generator, *, states: int = 8, actions: int = 12, sharpness: float = 1.0) -> "SoftmaxBandit":
        """Normal logits times `sharpness`, rewards uniform in [0, 1], weights that sum to 1."""
        logits = sharpness * torch.randn(states, actions, generator=generator, dtype=torch.float64)
        reward = torch.rand(states, actions, generator=generator, dtype=torch.float64)
        weight = torch.rand(states, generator=generator, dtype=torch.float64) + 0.5
        return cls(logits, reward, weight / weight.sum())

    @cached_property
    def log_probs(self) -> Float64[Tensor, "state action"]:
        """ln pi(a|s), nats; -inf where the logit is."""
        return self.logits.log_softmax(-1)

    @cached_property
    def probs(self) -> Float64[Tensor, "state action"]:
        """pi(a|s)."""
        return self.log_probs.exp()

    @cached_property
    def entropy(self) -> Float64[Tensor, " state"]:
        """H(s), nats."""
        return shannon(self.logits, logits=True)

    @property
    def mean_entropy(self) -> Float64[Tensor, ""]:
        """sum_s d_s H(s), nats."""
        return self.weight @ self.entropy

    @cached_property
    def value(self) -> Float64[Tensor, " state"]:
        """E_pi r of each state."""
        return (self.probs * self.reward).sum(-1)

    @property
    def expected_reward(self) -> Float64[Tensor, ""]:
        """J."""
        return self.weight @ self.value

    @property
    def advantage(self) -> Float64[Tensor, "state action"]:
        """r - E_pi r, of mean 0 under the policy: also the natural gradient of J (up to a constant per state, which a softmax does not feel)."""
        return self.reward - self.value[:, None]

    @property
    def gradient(self) -> Float64[Tensor, "state action"]:
        """dJ/dlogits, exact."""
        return self.weight[:, None] * self.probs * self.advantage

    @property
    def natural_gradient(self) -> Float64[Tensor, "state action"]:
        """The Fisher matrix's inverse applied to the gradient: the advantage itself."""
        return self.advantage

    def moved(self, change: Float64[Tensor, "state action"]) -> "SoftmaxBandit":
        """The bandit whose logits changed by this much."""
        return replace(self, logits=self.logits + change)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Int64[Tensor, " sample"], Int64[Tensor, " sample"]]:
        """`count` states drawn by weight, and an action of each drawn from the policy."""
        state = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        action = torch.multinomial(self.probs[state], 1, generator=generator).squeeze(-1)
        return state, action


@dataclass(frozen=True, eq=False)
class Tree:
    """Responses of `depth` tokens to each prompt: every prefix is a node with logits of its own, every leaf a response with a reward.

    Nodes are numbered breadth first: 0 is the prompt, the children of n are n V + 1 ... n V + V. Leaf y has its tokens as digits to the base V, the first
    token the highest. Prompts are met equally often. Shorter responses are paths with one possible token from some node on (-inf for the others).
    Raises ValueError for shapes that do not fit or a dtype that is not float64.
    """

    logits: Float64[Tensor, "prompt node token"]
    reward: Float64[Tensor, "prompt leaf"]

    def __post_init__(self):
        _check("Tree", self.logits, 3)
        leaves = self.logits.shape[1] * (self.logits.shape[2] - 1) + 1
        if self.tokens**self.depth != leaves or self.reward.shape != (self.logits.shape[0], leaves):
            raise ValueError(
                f"Tree: logits must be [prompt, 1 + V + ... + V^(depth-1), V] and reward [prompt, V^depth]. "
                f"Got {list(self.logits.shape)} and {list(self.reward.shape)}."
            )

    @classmethod
    def random(cls, generator: torch.Generator, *, prompts: int = 2, depth: int = 3, tokens: int = 4, sharpness: float = 1.0) -> "Tree":
        """Normal logits times `sharpness`, rewards uniform in [0, 1]."""
        nodes = sum(tokens**level for level in range(depth))
        logits = sharpness * torch.randn(prompts, nodes, tokens, generator=generator, dtype=torch.float64)
        return cls(logits, torch.rand(prompts, tokens**depth, generator=generator, dtype=torch.float64))

    @property
    def tokens(self) -> int:
        """Tokens to choose from at a node."""
        return self.logits.shape[2]

    @property
    def depth(self) -> int:
        """Tokens of a response."""
        nodes, depth = self.logits.shape[1], 0
        while nodes > 0:
            nodes, depth = (nodes - 1) // self.tokens, depth + 1
        return depth

    @cached_property
    def response(self) -> Int64[Tensor, "leaf depth"]:
        """The tokens of every leaf."""
        leaf = torch.arange(self.tokens**self.depth)
        return torch.stack([leaf // self.tokens**level % self.tokens for level in reversed(range(self.depth))], dim=-1)

    @cached_property
    def path(self) -> Int64[Tensor, "leaf depth"]:
        """The node at which each token of every leaf is chosen."""
        nodes = [torch.zeros(len(self.response), dtype=torch.long)]
        for token in self.response.T[:-1]:
            nodes.append(nodes[-1] * self.tokens + 1 + token)
        return torch.stack(nodes, dim=-1)

    @cached_property
    def token_log_probs(self) -> Float64[Tensor, "prompt node token"]:
        """ln pi(token | node), nats."""
        return self.logits.log_softmax(-1)

    @cached_property
    def log_probs(self) -> Float64[Tensor, "prompt leaf"]:
        """ln pi(response | prompt), nats."""
        return self.token_log_probs[:, self.path, self.response].sum(-1)

    @cached_property
    def probs(self) -> Float64[Tensor, "prompt leaf"]:
        """pi(response | prompt)."""
        return self.log_probs.exp()

    @cached_property
    def visits(self) -> Float64[Tensor, "prompt node"]:
        """Probability that a response passes through each node."""
        return self._over_nodes(self.probs).sum(-1)

    @cached_property
    def token_entropy(self) -> Float64[Tensor, "prompt node"]:
        """H of the softmax of every node, nats."""
        return shannon(self.logits, logits=True)

    @cached_property
    def response_entropy(self) -> Float64[Tensor, " prompt"]:
        """H of the distribution over responses, nats; by the chain rule the sum of visits times token entropies."""
        return shannon(self.probs)

    @property
    def expected_reward(self) -> Float64[Tensor, ""]:
        """J, the mean over prompts of E_pi R."""
        return (self.probs * self.reward).sum(-1).mean()

    @property
    def response_advantage(self) -> Float64[Tensor, "prompt leaf"]:
        """R - E_pi R."""
        return self.reward - (self.probs * self.reward).sum(-1, keepdim=True)

    @cached_property
    def advantage(self) -> Float64[Tensor, "prompt node token"]:
        """Q - V of every token; 0 where a node or token is never reached. Along a path it sums to the response's advantage."""
        mass, paid = self._over_nodes(self.probs), self._over_nodes(self.probs * self.reward)
        q = torch.where(mass > 0, paid / mass, 0.0)
        seen = mass.sum(-1, keepdim=True)
        v = torch.where(seen > 0, paid.sum(-1, keepdim=True) / seen, 0.0)
        return torch.where(mass > 0, q - v, 0.0)

    @property
    def gradient(self) -> Float64[Tensor, "prompt node token"]:
        """dJ/dlogits, exact."""
        return self.visits[..., None] * self.token_log_probs.exp() * self.advantage / len(self.logits)

    @property
    def natural_gradient(self) -> Float64[Tensor, "prompt node token"]:
        """The Fisher matrix's inverse applied to the gradient of each prompt's E R: the advantage of every token.

        Along it d ln pi(y) / dt = sum_t A_t = R(y) - E R: the response distribution follows Fisher-Rao flow (sheet `aem-agentic`).
        """
        return self.advantage

    def moved(self, change: Float64[Tensor, "prompt node token"]) -> "Tree":
        """The tree whose logits changed by this much."""
        return replace(self, logits=self.logits + change)

    def sample(self, count: int, generator: torch.Generator) -> Int64[Tensor, "prompt sample"]:
        """`count` leaves for every prompt, drawn from the policy."""
        return torch.multinomial(self.probs, count, replacement=True, generator=generator)

    def _over_nodes(self, amount: Tensor) -> Tensor:
        """[prompt node token]: the sum of an amount per leaf over the leaves below each token of each node."""
        below = amount.new_zeros(self.logits.shape)
        for node, token in zip(self.path.T, self.response.T, strict=True):
            below.view(len(amount), -1).index_add_(1, node * self.tokens + token, amount)
        return below


def _check(who: str, logits: Tensor, axes: int) -> None:
    if logits.dtype != torch.float64 or logits.ndim != axes or 0 in logits.shape or logits.shape[-1] < 2:
        raise ValueError(f"{who}: logits must be float64 with {axes} axes and at least two actions. Got {logits.dtype}, {list(logits.shape)}.")
    if torch.isnan(logits).any() or torch.isposinf(logits).any() or torch.isneginf(logits).all(-1).any():
        raise ValueError(f"{who}: logits must be finite or -inf, one of each state finite. Got NaN, +inf, or a state of only -inf.")
