"""The theorems as measurements: what a prediction misses on the reference worlds, at one step and at half of it.

A statement that is exact to first order misses what is of second order: halve the step and the residual falls fourfold. One that leaves a first-order term
out falls only twofold, which is how it is told from the truth. `python scripts/theory_table.py` writes the table of docs/theory.md from this list.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from isentrope.control.advantages import group_advantages
from isentrope.control.objectives import Objective
from isentrope.control.papers.steer import Steer, own_logit_change
from isentrope.control.stages import chain, policy_loss, predicted_push
from isentrope.control.step import Rollouts, RowRng, Step
from isentrope.explain import theory
from isentrope.explain.stability import softmax_shift_bound
from isentrope.explain.tilt import entropy_parts, leash, leash_slope
from isentrope.explain.world import SoftmaxBandit, Tree
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, LogProb, token_signals_from_logits

STEP = 0.02
Residual = Callable[[float], Tensor]


@dataclass(frozen=True)
class Theorem:
    """A statement, where it stands, and what it misses at a step: `order` None is an identity, which misses nothing but rounding."""

    name: str
    sheet: str
    function: str
    order: int | None
    residual: Residual  # step -> what was measured minus what was predicted, any shape, nats

    def size(self, step: float = STEP) -> float:
        """The norm of the residual at a step, nats."""
        return float(torch.linalg.vector_norm(self.residual(step)))

    def factor(self, step: float = STEP) -> float:
        """Residual at the step over residual at half of it: 2 to the power of its order. Raises ValueError for an identity, which has none."""
        if self.order is None:
            raise ValueError(f"Theorem: factor is for a residual with an order; {self.name!r} is an identity. Ask for its size.")
        return self.size(step) / self.size(step / 2)


def _bandit() -> SoftmaxBandit:
    return SoftmaxBandit.random(torch.Generator().manual_seed(5), states=16, actions=10, sharpness=1.5)


def _tree() -> Tree:
    return Tree.random(torch.Generator().manual_seed(6), prompts=3, depth=3, tokens=4, sharpness=1.2)


def _bandit_residual(direction: Tensor, slope: Tensor) -> Residual:
    """Entropy of every state after a step along a direction, less step times the predicted slope."""
    world = _bandit()
    return lambda step: world.moved(step * direction).entropy - world.entropy - step * slope


def _any_step() -> Residual:
    direction = torch.randn(16, 10, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return _bandit_residual(direction, theory.predicted_change(_bandit().log_probs, direction))


def _vanilla() -> Residual:
    world = _bandit()
    return _bandit_residual(world.probs * world.advantage, theory.vanilla_change(world.log_probs, world.advantage))


def _natural() -> Residual:
    world = _bandit()
    return _bandit_residual(world.natural_gradient, theory.natural_change(world.log_probs, world.advantage))


def _drawn() -> tuple[Tensor, Tensor, Tensor]:
    """One sampled token of every state, its one-hot vector, and a push of either sign."""
    world, generator = _bandit(), torch.Generator().manual_seed(8)
    token = torch.multinomial(world.probs, 1, generator=generator).squeeze(-1)
    push = torch.randn(16, generator=generator, dtype=torch.float64)
    return token, torch.nn.functional.one_hot(token, 10).double(), push


def _one_logit() -> Residual:
    token, chosen, push = _drawn()
    slope = -push * theory.discriminant(_bandit().log_probs)[torch.arange(16), token]
    return _bandit_residual(push[:, None] * chosen, slope)


def _one_token() -> Residual:
    token, chosen, push = _drawn()
    world = _bandit()
    return _bandit_residual(push[:, None] * (chosen - world.probs), theory.token_change(world.log_probs, token, push))


def _batch() -> Residual:
    world, generator = _bandit(), torch.Generator().manual_seed(9)
    state, token = world.sample(64, generator)
    push = torch.randn(64, generator=generator, dtype=torch.float64)
    pushed = push[:, None] * (torch.nn.functional.one_hot(token, 10).double() - world.probs[state])
    direction = torch.zeros_like(world.logits).index_add(0, state, pushed)
    return _bandit_residual(direction, theory.batch_change(world.log_probs, state, token, push))


def _mean_of_tokens(_: float) -> Tensor:
    world = _bandit()
    each = [theory.token_change(world.log_probs, torch.full((16,), k), world.advantage[:, k]) for k in range(10)]
    return (world.probs * torch.stack(each, dim=-1)).sum(-1) - theory.vanilla_change(world.log_probs, world.advantage)


def _noise(step: float, *, second_order: bool) -> Tensor:
    """E dH over tokens of the policy and pushes of mean 0 and of either sign, less the closed form."""
    world = _bandit()
    expected = torch.zeros(16, dtype=torch.float64)
    for push, chance in ((2.0, 1 / 3), (-1.0, 2 / 3)):
        for k in range(10):
            direction = torch.nn.functional.one_hot(torch.tensor(k), 10).double() - world.probs
            expected = expected + chance * world.probs[:, k] * (world.moved(step * push * direction).entropy - world.entropy)
    square = step**2 * (4 / 3 + 2 / 3)
    return expected - square * theory.noise_drift(world.log_probs) if second_order else expected


def _output_space() -> Residual:
    """-sum dp ln p with the change of probabilities that a sampled token makes."""
    token, chosen, push = _drawn()
    world = _bandit()
    slope = -push * (theory.probability_change(world.log_probs, token) * world.log_probs).sum(-1)
    return _bandit_residual(push[:, None] * (chosen - world.probs), slope)


def _entrocraft(_: float) -> Tensor:
    """Tokens for which the likelihood condition and S > N disagree."""
    log_probs = _bandit().log_probs
    s, n = theory.discriminant(log_probs), theory.expected_discriminant(log_probs)
    above = [log_probs[:, k] > theory.output_baseline(log_probs, torch.full((16,), k)) for k in range(10)]
    return (torch.stack(above, dim=-1) != (s > n[:, None])).double()


def _released_step() -> Residual:
    """A GRPO update off the sampling policy, clipped and weighted by STEER: token entropies of all nodes against the loss's own pushes."""
    tree, generator = _tree(), torch.Generator().manual_seed(10)
    leaf = tree.sample(12, generator).flatten()
    prompt = torch.arange(3).repeat_interleave(12)
    node, token = tree.path[leaf], tree.response[leaf]
    advantage = group_advantages(tree.reward[prompt, leaf], prompt)[:, None]
    old = tree.moved(0.3 * torch.randn(tree.logits.shape, generator=generator, dtype=torch.float64))
    rollouts = Rollouts.of(
        torch.ones(36, 3, dtype=torch.bool),
        group=prompt,
        completion_ids=token,
        advantage=advantage,
        old_log_probs=old.token_log_probs[prompt[:, None], node, token],
    )
    leaves = tree.logits.clone().requires_grad_(True)
    signals = token_signals_from_logits(leaves[prompt[:, None], node], token, [LogProb(), Discriminant(), ExpectedDiscriminant(), Entropy()])
    step_data = Step(rollouts, signals["log_prob"], {f"current.{key}": value for key, value in signals.items() if key != "log_prob"})
    objective, control = Objective(), chain(Steer(low=0.5))
    (gradient,) = torch.autograd.grad(policy_loss(step_data, objective, control).loss, leaves)
    push = predicted_push(step_data, objective, control, None, control.init(), RowRng())
    slope = torch.zeros(tree.logits.shape[:2], dtype=torch.float64).index_put((prompt[:, None], node), push, accumulate=True)
    return lambda step: tree.moved(-step * gradient).token_entropy - tree.token_entropy - step * slope


def _responses() -> Residual:
    """Entropy of whole responses under a natural step on every token."""
    tree = _tree()
    slope = theory.natural_change(tree.log_probs, tree.response_advantage)
    return lambda step: tree.moved(step * tree.natural_gradient).response_entropy - tree.response_entropy - step * slope


def _visits_fixed() -> Residual:
    """Mean token entropy along responses: Lemma 1 at every node, with the visits of before."""
    tree = _tree()
    slope = (tree.visits * theory.natural_change(tree.token_log_probs, tree.advantage)).sum(-1)
    return lambda step: tree.moved(step * tree.natural_gradient).response_entropy - tree.response_entropy - step * slope


def _modulated(_: float) -> Tensor:
    """E[alpha A (S - H)] = E[A] Cov(alpha, S) for advantages independent of the response: here all pairs of a response and an advantage."""
    tree = _tree()
    surprisal, advantage = -tree.log_probs, torch.tensor([-1.0, 0.3, 0.2], dtype=torch.float64)
    alpha = torch.exp(-surprisal / surprisal.amax(-1, keepdim=True))
    drift = torch.stack([theory.natural_change(tree.log_probs, alpha * value) for value in advantage], dim=-1).mean(-1)
    return drift - advantage.mean() * theory.covariance(alpha, surprisal, tree.probs)


def _tilted() -> Residual:
    tree = _tree()

    def entropy(beta: float) -> Float64[Tensor, " prompt"]:
        log_probs = leash(tree.log_probs, tree.reward, beta)
        return -(log_probs.exp() * log_probs).sum(-1)

    return lambda step: entropy(1.0 + step) - entropy(1.0) - step * leash_slope(tree.log_probs, tree.reward, 1.0)


def _flow_is_tilt(_: float) -> Tensor:
    """Ten natural steps with one reward against the tilt at ten times the step."""
    world = _bandit()
    moved = world
    for _ in range(10):
        moved = moved.moved(0.5 * moved.natural_gradient)
    return moved.log_probs - leash(world.log_probs, world.reward, 5.0)


def _grouped(_: float) -> Tensor:
    tree = _tree()
    parts = entropy_parts(tree.log_probs, tree.reward > 0.5)
    later = entropy_parts(leash(tree.log_probs, (tree.reward > 0.5).double(), 3.0), tree.reward > 0.5)
    return torch.stack([parts.whole - tree.response_entropy, parts.correct - later.correct, parts.wrong - later.wrong])


def _two_actions(_: float) -> Tensor:
    """The shift bound of a softmax is met by two actions that move symmetrically about a tie."""
    change = torch.linspace(0.01, 4.0, 20, dtype=torch.float64)[:, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    moved = (-change / 2).softmax(-1), (change / 2).softmax(-1)
    return (moved[1] - moved[0]).abs().sum(-1) / 2 - softmax_shift_bound(change, coef=1.0)


def _omega() -> Residual:
    """STEER's estimate as a prediction of its own token's state."""
    token, chosen, push = _drawn()
    world = _bandit()
    log_p = world.log_probs.gather(1, token[:, None])
    slope = own_logit_change(push[:, None], log_p, log_p, world.entropy[:, None]).squeeze(1)
    return _bandit_residual(push[:, None] * (chosen - world.probs), slope)


def _cross_product() -> Residual:
    """Clip-Cov's token statistic, -(ln p - mean)(A - mean) over the batch, as a prediction of its own token's state."""
    token, chosen, push = _drawn()
    world = _bandit()
    log_p = world.log_probs.gather(1, token[:, None]).squeeze(1)
    return _bandit_residual(push[:, None] * (chosen - world.probs), -(log_p - log_p.mean()) * (push - push.mean()))


THEOREMS: tuple[Theorem, ...] = (
    Theorem("dH = -Cov(ln p, dz), any step", "clip-cov", "theory.predicted_change", 2, _any_step()),
    Theorem("vanilla policy gradient: -eta E[S A]", "clip-cov", "theory.vanilla_change", 2, _vanilla()),
    Theorem("natural policy gradient: -eta Cov(ln p, A)", "clip-cov", "theory.natural_change", 2, _natural()),
    Theorem("one logit: -alpha S", "rft-entropy-dynamics", "theory.discriminant", 2, _one_logit()),
    Theorem("one sampled token: -eta w r A (S - N)", "rft-entropy-dynamics, steer", "theory.token_change", 2, _one_token()),
    Theorem("a batch of tokens: their sum", "grpo-family", "theory.batch_change", 2, _batch()),
    Theorem("a GRPO update off-policy, clipped, weighted by STEER", "grpo-family", "control.stages.predicted_push", 2, _released_step()),
    Theorem("the mean over tokens is the vanilla gradient", "clip-cov, rft-entropy-dynamics", "theory.token_change", None, _mean_of_tokens),
    Theorem("advantages independent of the token: 0", "rft-entropy-dynamics", "theory.token_change", 2, lambda step: _noise(step, second_order=False)),
    Theorem("the same: push^2 tr(Hess H F) / 2", "derived", "theory.noise_drift", 3, lambda step: _noise(step, second_order=True)),
    Theorem("dH = -sum dp ln p", "entrocraft", "theory.probability_change", 2, _output_space()),
    Theorem("ln p above the others' baseline is S > N", "entrocraft", "theory.output_baseline", None, _entrocraft),
    Theorem("whole responses: eta E[A (S - H)]", "aem-agentic", "theory.natural_change", 2, _responses()),
    Theorem("E[alpha A (S - H)] = E[A] Cov(alpha, S), A independent", "aem-agentic", "theory.covariance", None, _modulated),
    Theorem("dH/dbeta = -Cov(R, ln q) - beta Var(R)", "invisible-leash", "tilt.leash_slope", 2, _tilted()),
    Theorem("natural steps with one reward are the tilt", "invisible-leash", "tilt.leash", None, _flow_is_tilt),
    Theorem("H = h(c) + c H(correct) + (1 - c) H(wrong), the last two fixed", "invisible-leash", "tilt.entropy_parts", None, _grouped),
    Theorem("TV <= tanh(span(dQ) / 4 alpha), met by two actions", "policy-cliff", "stability.softmax_shift_bound", None, _two_actions),
    Theorem("mean token entropy, change of the visits left out", "clip-cov", "theory.natural_change", 1, _visits_fixed()),
    Theorem("Omega as a prediction", "steer", "control.papers.steer.own_logit_change", 1, _omega()),
    Theorem("-(ln p - mean)(A - mean) as a prediction", "clip-cov", "the statistic of `ClipCov`", 1, _cross_product()),
)
"""Every statement, with the order of what it misses: 1 marks what is no first-order theorem."""
