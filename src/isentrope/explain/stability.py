r"""How far a policy can move when the reward moves a little: not at all, all the way, or in proportion.

Without entropy, the optimal policy jumps where two actions tie: with m tied actions an arbitrarily small change of reward takes (m - 1) / m of the mass of
the uniform optimal policy elsewhere. With an entropy bonus alpha it is Lipschitz:

    TV(pi_1, pi_2) <= tanh( span(dQ) / (4 alpha) ) <= span(dQ) / (4 alpha) <= |dR| / (2 alpha (1 - discount))

TV is half the L1 distance, norms are sup norms, span = max - min. For KL regularisation towards a base policy, alpha is its coefficient, whatever the base.
discount = 1 makes the last bound void; a bandit or a whole response has discount 0. Rewards of several models count by their weighted sum, with weights that
depend on nothing. Source: 2507.20150, results 1-9; the tanh form is derived (sheet `policy-cliff`, extras). float64 inside.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SWEEPS = 100_000  # of the Bellman operator, a contraction by the discount: enough for a discount of 0.999


def optimal_values(
    reward: Float[Tensor, "state action"], transition: Float[Tensor, "state action state"], *, discount: float, temperature: float = 0.0
) -> Float[Tensor, "state action"]:
    """Q*, in units of reward, by iterating the Bellman operator; with temperature alpha > 0 the soft one, whose value is alpha ln sum exp(Q / alpha).

    The optimal policy is softmax(Q / alpha), at 0 the actions of `optimal_actions`. float64, to 1e-13 of the largest value.
    Raises ValueError for a discount outside [0, 1) or a negative temperature.
    """
    if not 0 <= discount < 1:
        raise ValueError(f"optimal_values: discount must be in [0, 1); whole responses are a bandit, discount 0. Got {discount}.")
    if not temperature >= 0:
        raise ValueError(f"optimal_values: temperature must be >= 0 (0 is the hard maximum). Got {temperature}.")
    reward, transition = reward.double(), transition.double()
    q = reward
    for _ in range(SWEEPS):
        value = q.amax(-1) if temperature == 0 else temperature * (q / temperature).logsumexp(-1)
        after = reward + discount * (transition @ value)
        moved = (after - q).abs().max()
        q = after
        if moved <= 1e-13 * (1 - discount) * (1 + q.abs().max()):
            break
    return q


def optimal_actions(q: Float[Tensor, "*batch action"], *, tolerance: float = 1e-9) -> Bool[Tensor, "*batch action"]:
    """Which actions are within `tolerance` of the best: a set, since which of two equal numbers argmax returns is an accident."""
    return q >= q.amax(-1, keepdim=True) - tolerance


def margin(q: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """Best minus second best value: the hard policy stands while |dR| < margin (1 - discount) / 2."""
    best = q.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def tie_breaker(
    reward: Float[Tensor, "state action"],
    transition: Float[Tensor, "state action state"],
    *,
    state: int,
    action: int,
    size: float,
    discount: float,
) -> Float[Tensor, "state action"]:
    """A reward at most `size` away, under which `action`, one of several optimal ones of `state`, is the only one there.

    Built backwards from the values: raise Q*(state, action) by size / (1 + discount) and read off the reward. Raises ValueError if the action is not
    optimal. Source: 2507.20150, results 4 and 6.
    """
    q = optimal_values(reward, transition, discount=discount)
    best = optimal_actions(q)[state]
    if not bool(best[action]):
        raise ValueError(f"tie_breaker: action must be optimal in state {state}: {best.nonzero().flatten().tolist()}. Got {action}.")
    raised = q.clone()
    raised[state, action] = q[state].max() + size / (1 + discount)
    return raised - discount * (transition.double() @ raised.amax(-1))


def hard_jump(tied: int) -> float:
    """(m - 1) / m: TV from the uniform policy over m tied actions to any one of them."""
    return (tied - 1) / tied


def policy_shift_bound(reward_change: float, *, coef: float, discount: float = 0.0) -> float:
    """The most that the soft optimal policy of a state can move, TV in [0, 1], when no reward moves by more than `reward_change`.

    coef: of the entropy bonus (or of the KL penalty), in units of reward per nat. Source: 2507.20150, result 9.
    """
    return min(1.0, reward_change / (2 * _coef(coef) * (1 - discount)))


def softmax_shift_bound(value_change: Float[Tensor, "*batch action"], *, coef: float) -> Float[Tensor, "*batch"]:
    """TV between softmax(Q / coef) and softmax((Q + dQ) / coef), whatever Q: at most tanh(span(dQ) / (4 coef)), met by two actions. (derived)"""
    span = value_change.amax(-1) - value_change.amin(-1)
    return torch.tanh(span / (4 * _coef(coef)))


def smoothing_cost(actions: int, *, coef: float) -> float:
    """The most value that a state gives up for its entropy: max Q - E_pi Q <= coef ln(actions), in units of reward."""
    return _coef(coef) * math.log(actions)


def _coef(coef: float) -> float:
    if not coef > 0:
        raise ValueError(f"explain.stability: coef must be > 0; without entropy there is no bound. Got {coef}.")
    return coef
