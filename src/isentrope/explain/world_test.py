"""The reference worlds against autograd, enumeration and sampling."""

import pytest
import torch

from isentrope.explain.world import SoftmaxBandit, Tree


def _bandit(sharpness: float = 1.0) -> SoftmaxBandit:
    return SoftmaxBandit.random(torch.Generator().manual_seed(1), states=5, actions=7, sharpness=sharpness)


def _tree(sharpness: float = 1.0) -> Tree:
    return Tree.random(torch.Generator().manual_seed(2), prompts=2, depth=3, tokens=3, sharpness=sharpness)


def _slope(world: SoftmaxBandit | Tree) -> torch.Tensor:
    leaf = world.logits.clone().requires_grad_(True)
    moved = world.moved(leaf - world.logits)
    return torch.autograd.grad(moved.expected_reward, leaf)[0]


@pytest.mark.parametrize("world", [_bandit(), _bandit(4.0), _tree(), _tree(4.0)], ids=["bandit", "sharp bandit", "tree", "sharp tree"])
def test_the_gradient_is_autograds(world):
    torch.testing.assert_close(world.gradient, _slope(world), rtol=0, atol=1e-14)


def test_the_natural_gradient_solves_fishers_equation_in_every_state():
    world = _bandit()
    for state in range(5):
        p = world.probs[state]
        fisher = world.weight[state] * (torch.diag(p) - torch.outer(p, p))
        torch.testing.assert_close(fisher @ world.natural_gradient[state], world.gradient[state], rtol=0, atol=1e-15)
        torch.testing.assert_close(fisher @ (world.natural_gradient[state] + 3.0), world.gradient[state], rtol=0, atol=1e-15)


def test_the_natural_gradient_solves_fishers_equation_of_the_trees_responses():
    tree = replace_prompts(_tree())
    leaf = tree.logits.clone().requires_grad_(True)
    scores = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0].flatten() for value in tree.moved(leaf - tree.logits).log_probs[0]])
    fisher = scores.T @ (tree.probs[0][:, None] * scores)
    torch.testing.assert_close(fisher @ tree.natural_gradient.flatten(), tree.gradient.flatten(), rtol=0, atol=1e-14)


def replace_prompts(tree: Tree) -> Tree:
    """Its first prompt alone."""
    return Tree(tree.logits[:1], tree.reward[:1])


def test_advantages_along_a_path_sum_to_the_responses():
    tree = _tree()
    along = tree.advantage[:, tree.path, tree.response].sum(-1)
    torch.testing.assert_close(along, tree.response_advantage, rtol=0, atol=1e-14)


def test_the_entropy_of_responses_is_the_visited_token_entropies_and_of_surprisal_the_mean():
    tree = _tree(2.0)
    torch.testing.assert_close((tree.visits * tree.token_entropy).sum(-1), tree.response_entropy, rtol=0, atol=1e-14)
    torch.testing.assert_close(-(tree.probs * tree.log_probs).sum(-1), tree.response_entropy, rtol=0, atol=1e-14)


def test_surprisal_less_the_token_entropies_of_its_path_has_mean_zero_at_every_prefix():
    """Doob's decomposition of `aem-agentic`: M_L is a martingale."""
    tree = _tree(2.0)
    step = -tree.token_log_probs[:, tree.path, tree.response] - tree.token_entropy[:, tree.path]
    for tokens in range(1, 4):
        part = step[..., :tokens].sum(-1)
        assert (part * tree.probs).sum(-1).abs().max() < 1e-14
        assert part.abs().max() > 0.1


def test_a_path_leads_from_the_prompt_to_its_leaf():
    tree = _tree()
    assert tree.depth == 3
    assert tree.response[5].tolist() == [0, 1, 2]
    assert tree.path[5].tolist() == [0, 1, 5]  # children of node 1 are 4, 5, 6
    torch.testing.assert_close(tree.probs.sum(-1), torch.ones(2, dtype=torch.float64))


def test_sampling_meets_the_policy():
    world, tree, generator = _bandit(), _tree(), torch.Generator().manual_seed(3)
    state, action = world.sample(200_000, generator)
    found = torch.zeros(5, 7, dtype=torch.float64).index_put((state, action), torch.tensor(1.0, dtype=torch.float64), accumulate=True) / 200_000
    assert (found - world.weight[:, None] * world.probs).abs().max() < 0.004  # four standard errors
    leaf = tree.sample(100_000, generator)
    found = torch.stack([torch.bincount(row, minlength=27) for row in leaf]) / 100_000
    assert (found - tree.probs).abs().max() < 0.006


def test_the_same_seed_draws_the_same():
    first, second = (_tree().sample(50, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)


def test_what_cannot_happen_adds_nothing():
    bandit, tree = _bandit(), _tree()
    logits, nodes = bandit.logits.clone(), tree.logits.clone()
    logits[0, 3] = nodes[0, 0, 1] = -torch.inf
    bandit, tree = SoftmaxBandit(logits, bandit.reward, bandit.weight), Tree(nodes, tree.reward)
    for value in (bandit.entropy, bandit.gradient, tree.response_entropy, tree.gradient, tree.advantage, tree.visits):
        assert value.isfinite().all()
    assert bandit.gradient[0, 3] == 0
    assert tree.visits[0, 2] == 0
    assert (tree.gradient[0, 7:10] == 0).all()  # children of node 2


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: SoftmaxBandit(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2)), "float64"),
        (lambda: SoftmaxBandit(torch.zeros(2, 3).double(), torch.zeros(3, 2).double(), torch.ones(2).double()), r"reward must be \[state action\].*\[3, 2\]"),
        (lambda: SoftmaxBandit(torch.full((1, 3), torch.nan).double(), torch.zeros(1, 3).double(), torch.ones(1).double()), "NaN"),
        (lambda: Tree(torch.zeros(1, 5, 3).double(), torch.zeros(1, 27).double()), r"Tree: logits must be.*Got \[1, 5, 3\]"),
        (lambda: Tree(torch.zeros(1, 4, 1).double(), torch.zeros(1, 1).double()), "at least two actions"),
    ],
)
def test_bad_worlds_are_refused(unchecked, build, says):
    with pytest.raises(ValueError, match=says):
        build()
