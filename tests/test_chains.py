"""Composition (DESIGN section 4): random chains of two to four registered interventions over random batches."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isentrope.control.objectives import Objective
from isentrope.control.registry import registry
from isentrope.control.stages import Chain, Fork, Policy, Regenerate, Reward, chain, policy_loss, survey
from isentrope.control.step import join_steps, micro_batches
from isentrope.testing.checks import distance
from isentrope.testing.world import RNG, World, group_advantage, roll, world

NAMES = sorted(registry())
WINDOWLESS = {"kl-cov", "dispo", "aepo-agentic"}
POLICIES, CUTTING = ({name for name in NAMES if isinstance(registry()[name](), stage)} for stage in (Policy, (Regenerate, Fork)))
AGGREGATIONS = ("grpo", "dapo", "dr_grpo")


def built(names: list[str], neutral: bool = False) -> Chain:
    links = [registry()[name]().embedded() for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clips that override and links that oppose each other are told of elsewhere
        return chain(*(link.neutral() if neutral else link for link in links))


def played(control: Chain, scene: World, objective: Objective, slices: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradient with respect to the logits, row ids: every link's rollout stages in chain order, then one update."""
    states = control.init()
    for link, state in zip(control.links, states, strict=True):
        scene, _ = roll(link, scene, state, RNG)
    scene = scene.scored(control.needs)
    leaf = scene.logits.clone().requires_grad_(True)
    step = scene.step(control.needs, leaf)
    step = replace(step, normaliser=replace(step.normaliser, token_divisor=step.mask.sum().clamp(min=1), rows=len(step.rollouts)))
    parts = list(micro_batches(step, len(step.rollouts) // slices))
    stats = survey(join_steps(parts), objective, control, states, RNG) if control.links else None
    loss = sum(policy_loss(part, objective, control, stats, states, RNG).loss for part in parts)
    gradient = torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else torch.zeros_like(leaf)
    return loss.detach(), gradient, step.rollouts.row_id


def chains(names: list[str]) -> st.SearchStrategy[list[str]]:
    """At most one link may choose the policy of the ratio, at most one say how a group begins; hapo's window and a link that leaves none are refused."""

    def allowed(chosen: list[str]) -> bool:
        return all(sum(name in kind for name in chosen) <= 1 for kind in (POLICIES, CUTTING)) and not ("hapo" in chosen and WINDOWLESS & set(chosen))

    return st.lists(st.sampled_from(names), min_size=2, max_size=4).filter(allowed)


SCENES = st.tuples(
    st.integers(0, 50), st.integers(1, 4), st.sampled_from([2, 4]), st.sampled_from(["plain", "tiny", "huge", "equal", "masked", "truncated"])
)  # fmt: skip


def batch(seed: int, groups: int, samples: int, kind: str) -> World:
    """Ragged masks always; `kind` says what else is odd about it."""
    scene = world(seed, groups=groups, samples=samples)
    rollouts = scene.rollouts
    if kind in ("tiny", "huge"):
        reward = rollouts.reward * (1e-9 if kind == "tiny" else 1e6)
        rollouts = replace(rollouts, reward=reward, advantage=1e3 * group_advantage(reward, rollouts.group))
    if kind == "equal":
        rollouts = replace(rollouts, reward=torch.ones_like(rollouts.reward), advantage=torch.zeros_like(rollouts.advantage))
    if kind == "masked":
        trained = rollouts.trained_mask.clone()
        trained[: 1 + len(trained) // 2] = False
        rollouts = replace(rollouts, trained_mask=trained)
    if kind == "truncated":
        rollouts = replace(rollouts, truncated=torch.ones_like(rollouts.truncated))
    return replace(scene, rollouts=rollouts)


def neutral_anywhere() -> list[str]:
    """Those whose neutral setting leaves any objective as it is, not their recipe's alone (kl-cov means one without clip)."""

    def leaves_alone(name: str) -> bool:
        ours, base = (played(control, batch(3, 3, 4, "plain"), Objective.named("dapo")) for control in (built([name], neutral=True), Chain()))
        return torch.equal(ours[1], base[1])

    return [name for name in NAMES if leaves_alone(name)]


NEUTRAL = neutral_anywhere()
DRAWN = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@DRAWN
@given(chains(NAMES), SCENES, st.sampled_from(AGGREGATIONS))
def test_any_chain_is_finite_and_padding_is_inert(names, scene, aggregation):
    scene, objective = batch(*scene), Objective.named(aggregation)
    loss, gradient, rows = played(built(names), scene, objective)
    assert loss.isfinite(), names
    assert gradient.isfinite().all(), names
    padded = replace(scene.wider(3), padding=float("nan"))
    again, wider, same_rows = played(built(names), padded, objective)
    assert torch.equal(rows, same_rows)
    assert distance(again, loss) < 1e-9, names
    assert distance(wider[:, : gradient.shape[1]], gradient) < 1e-9, names
    assert not wider[:, gradient.shape[1] :].any()


@DRAWN
@given(chains(NEUTRAL), SCENES, st.sampled_from(AGGREGATIONS))
def test_neutral_strengths_are_the_objective(names, scene, aggregation):
    scene, objective = batch(*scene), Objective.named(aggregation)
    control = built(names, neutral=True)
    if control.having(Reward):  # a host then takes the advantages from the rewards anew
        scene = replace(scene, rollouts=replace(scene.rollouts, advantage=group_advantage(scene.rollouts.reward, scene.rollouts.group)))
    loss, gradient, _ = played(control, scene, objective)
    base, plain, _ = played(Chain(), scene, objective)
    assert torch.equal(loss, base), names
    assert torch.equal(gradient, plain), names


@DRAWN
@given(chains(NAMES), SCENES, st.sampled_from(AGGREGATIONS))
def test_slices_add_up_to_the_update(names, scene, aggregation):
    scene, objective = batch(*scene), Objective.named(aggregation)
    whole, parts = (played(built(names), scene, objective, slices) for slices in (1, 2))
    assert distance(parts[0], whole[0]) < 1e-9, names
    assert distance(parts[1], whole[1]) < 1e-9, names


def test_most_neutral_settings_are_neutral_under_any_objective():
    assert len(NEUTRAL) > len(NAMES) / 2


def test_a_chain_is_a_value():
    first, second = built(NAMES[:3]), built(NAMES[:3])
    assert first == second
    assert hash(first) == hash(second)
    assert all(name in repr(first) for name in (type(link).__name__ for link in first.links))


@pytest.mark.parametrize("name", NAMES)
def test_a_link_twice_has_two_keys(name):
    if name not in POLICIES | CUTTING:
        assert built([name, name]).keys == (name, f"{name}#2")
