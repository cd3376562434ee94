"""verl's estimator `isentrope`: GRPO's numbers with an empty chain, the pure stages with one, and what it says where it cannot."""

from dataclasses import fields

import numpy as np
import pytest
import small
import torch
from conformance.recorded import batches
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

from isentrope.control.advantages import group_advantages
from isentrope.control.registry import build, registry
from isentrope.control.stages import Advantage, Reward
from isentrope.control.step import Progress, Rollouts
from isentrope.errors import UserError
from isentrope.train.verl.advantage import _FETCHED, Fetched, _state
from isentrope.train.verl_carried import ALGORITHM, side, why_not

estimate = get_adv_estimator_fn("isentrope")
CARRIED = [name for name, kind in registry().items() if not why_not(kind()) and side(kind()) == ALGORITHM]
GIVEN = batches()[0]


def spec(link):
    """The intervention as YAML holds it."""
    return {"name": link.name} | {item.name: link.__dict__[item.name] for item in fields(link)}


def settings(chain, **more):
    return OmegaConf.create({"adv_estimator": "isentrope", "chain": chain, "norm_adv_by_std_in_grpo": True} | more)


def call(chain, fetched=True, **more):
    """The estimator as verl calls it, with what its trainer fetches or without."""
    rewards = torch.zeros_like(GIVEN["old_log_probs"])
    rewards[:, 0] = GIVEN["reward"]
    data = TensorDict({"responses": GIVEN["responses"], "old_log_probs": GIVEN["old_log_probs"], "entropy": GIVEN["old_entropy"]}, batch_size=8)
    found = Fetched(data, updates=0, planned=10, limit=12, text=tuple(str(row) for row in range(8))) if fetched else None
    token = _FETCHED.set(found)
    try:
        return estimate(
            token_level_rewards=rewards, response_mask=GIVEN["trained_mask"].long(), config=settings(chain, **more),
            index=np.array([f"uid {int(g)}" for g in GIVEN["group"]], dtype=object),
        )  # fmt: skip
    finally:
        _FETCHED.reset(token)


@pytest.mark.parametrize("scale", [True, False])
def test_an_empty_chain_is_verls_grpo(scale):
    rewards = torch.zeros_like(GIVEN["old_log_probs"])
    rewards[:, 0] = GIVEN["reward"]
    index = np.array([f"uid {int(g)}" for g in GIVEN["group"]], dtype=object)
    theirs, _ = compute_grpo_outcome_advantage(rewards, GIVEN["trained_mask"].long(), index=index, norm_adv_by_std_in_grpo=scale)
    ours, returns = call([], norm_adv_by_std_in_grpo=scale)
    assert torch.equal(ours, theirs)
    assert torch.equal(returns, theirs)
    assert ours.count_nonzero() > 20


@pytest.mark.parametrize("name", CARRIED)
def test_a_chain_gives_what_its_pure_stages_give(name):
    link = registry()[name]().embedded()
    mask = GIVEN["trained_mask"]
    old = {"old.entropy": GIVEN["old_entropy"], "old.p": GIVEN["old_log_probs"].exp(), "old.log_prob": GIVEN["old_log_probs"]}
    rollouts = Rollouts.of(
        mask, completion_mask=mask, completion_ids=GIVEN["responses"], group=GIVEN["group"], reward=GIVEN["reward"], correct=GIVEN["reward"],
        truncated=mask.sum(-1) >= 12, turn=GIVEN["turn"], old_log_probs=GIVEN["old_log_probs"], signals=old, text=tuple(str(row) for row in range(8)),
    )  # fmt: skip
    state = link.init()
    reward = link.reward(rollouts, state) if isinstance(link, Reward) else rollouts.reward
    base = group_advantages(reward, GIVEN["group"], epsilon=1e-6)
    rollouts = Rollouts(**(rollouts.__dict__ | {"reward": reward, "advantage": base[:, None]}))
    expected = Rollouts(**(rollouts.__dict__ | {"advantage": link.advantage(rollouts, state)})) if isinstance(link, Advantage) else rollouts
    assert torch.allclose(call([spec(link)])[0], expected.token_advantage(), atol=1e-6)


def test_some_of_them_change_the_advantage():
    plain = call([])[0]
    assert len(CARRIED) >= 8
    assert sum(not torch.equal(call([spec(registry()[name]().embedded())])[0], plain) for name in CARRIED) >= 5


def test_a_state_is_the_number_of_updates():
    """canon's schedule counts updates: what it makes of the hundredth follows from the number, so a resumed run goes on as the straight one."""
    chain = [{"name": "canon", "schedule": "cosine-falling"}]
    built = build(chain)
    data = TensorDict({}, batch_size=8)
    assert _state(built, Fetched(data, updates=0))[0] == built.init()[0]
    late = _state(built, Fetched(data, updates=7, planned=10))
    assert late[0]["updates"] == 7
    assert _state(built, Fetched(data, updates=3, planned=10))[0]["updates"] == 3
    state = built.init()
    for step in range(7):
        state = (built.links[0].update(state[0], None, Progress(step, 10)),)
    assert late == state


@pytest.mark.parametrize(
    ("chain", "fetched", "words"),
    [
        (["clip-cov"], True, "Write it under actor_rollout_ref.actor.policy_loss.chain"),
        (["dynamic-sampling"], True, "verl has a filter of its own, algorithm.filter_groups"),
        (["empg"], False, "needs old.entropy, which verl's trainer did not hand on"),
        (["canon"], False, "counts optimiser steps, which only verl's v1 trainer tells"),
        (None, True, "_target_=isentrope.train.verl.AlgoConfig"),
    ],
)
def test_what_it_cannot_do_it_says(chain, fetched, words):
    with pytest.raises(UserError) as found:
        call(chain, fetched)
    assert words in str(found.value)


def test_rows_that_pad_a_batch_have_no_advantage():
    mask = GIVEN["trained_mask"].clone()
    mask[3] = False
    found, _ = estimate(
        token_level_rewards=torch.where(mask, 1.0, 0.0), response_mask=mask.long(), config=settings(["position-shaping"]),
        index=np.array([str(int(g)) for g in GIVEN["group"]], dtype=object),
    )  # fmt: skip
    assert bool((found[3] == 0).all())
    assert bool(torch.isfinite(found).all())


assert small  # the platform, before verl
