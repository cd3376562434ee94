"""The tabular world against enumeration, sampling and closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from isentrope.control.objectives import Objective
from isentrope.control.papers.cure import Cure
from isentrope.control.papers.spear import Spear
from isentrope.control.registry import registry
from isentrope.control.stages import Chain, chain
from isentrope.control.step import ORIGINS, Progress, RowRng, concatenate
from isentrope.lab import tabular
from isentrope.lab.bench import at_reward, smoothed
from isentrope.lab.tabular import Settings, Task, exact, live, responses, task, train


def last_is_one(prompt, ids):
    return (ids[:, -1] == 1).double()


def uniform(length: int = 3, vocab: int = 4, end: int | None = None) -> Task:
    zeros = torch.zeros(length, vocab, vocab, dtype=torch.float64)
    return Task(zeros, zeros.expand(2, -1, -1, -1).clone(), last_is_one, end)


def test_the_uniform_policy_in_closed_form():
    found = exact(uniform())
    assert found.reward == pytest.approx(1 / 4)
    assert found.entropy == pytest.approx(math.log(4))
    assert found.response_entropy == pytest.approx(3 * math.log(4))
    assert found.passed(2) == pytest.approx(1 - (3 / 4) ** 2)
    assert found.length == pytest.approx(3)


def test_an_end_token_makes_lengths_geometric_and_probabilities_still_add_up():
    found = exact(uniform(length=3, vocab=4, end=2))
    assert found.answers.sum(-1) == pytest.approx(1.0)
    assert found.length == pytest.approx(1 + 3 / 4 + (3 / 4) ** 2)
    assert found.entropy == pytest.approx(math.log(4))


def test_tokens_up_to_the_first_end_are_text():
    ids = torch.tensor([[2, 1, 2], [0, 2, 1], [0, 1, 1]])
    assert live(ids, 2).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert live(ids, None).all()


def test_enumeration_agrees_with_sampling():
    world = task(last_is_one, 3, prompts=2, length=3, vocab=3)
    prompt = torch.arange(2).repeat_interleave(20_000)
    ids = tabular.sampled(world, prompt, torch.Generator().manual_seed(1))
    found = exact(world)
    index = (ids * torch.tensor([9, 3, 1])).sum(-1)
    for at in range(2):
        frequency = torch.bincount(index[prompt == at], minlength=27) / 20_000
        assert (frequency - found.answers[at]).abs().max() < 5 * math.sqrt(0.25 / 20_000)  # five standard errors at their largest
    assert responses(3, 3)[14].tolist() == [1, 1, 2]


def test_an_update_is_the_policy_gradient():
    world = uniform(length=1, vocab=3)
    generator = torch.Generator().manual_seed(0)
    settings = Settings(samples=4000, rate=1.0)
    rollouts, prompt = tabular.rolled(world, Chain(), (), settings, Progress(), generator, RowRng())
    moved, _ = tabular.updated(world, rollouts, prompt, Chain(), (), Objective.named("grpo"), Progress(), RowRng(), 1.0)
    p, r = 1 / 3, 1 / 3
    spread = math.sqrt(r * (1 - r))
    expected = p * (1 - r) / spread / 2  # half of the tokens are this prompt's
    assert float(moved.own[0, 0, 0, 1]) == pytest.approx(expected, rel=0.08)
    assert float(moved.own[0, 0, 0].sum()) == pytest.approx(0.0, abs=1e-12)


def test_training_learns_repeats_itself_and_stays_itself():
    world = task(last_is_one, 0, prompts=3, length=2, vocab=3)
    settings = Settings(updates=20, rate=3.0)
    one, two = (train(world, seed=5, settings=settings) for _ in range(2))
    assert one["reward"][-1] > one["reward"][0] + 0.1
    assert np.array_equal(one["entropy"], two["entropy"])
    assert world.own.equal(task(last_is_one, 0, prompts=3, length=2, vocab=3).own)
    assert not np.array_equal(one["entropy"], train(world, seed=6, settings=settings)["entropy"])


@pytest.mark.parametrize("name", list(registry()))
def test_what_is_neutral_changes_nothing(name):
    link = registry()[name]().neutral()
    if name == "pear" or any(need.signal.key not in KNOWN for need in link.needs):
        pytest.skip("reads what a table has not: hidden states, attention, a closing tag")
    world = task(last_is_one, 0, prompts=2, length=2, vocab=3)
    settings = Settings(updates=3, samples=4, inner=2)  # two, or dispo warns that it has nothing to do
    plain, under = train(world, seed=1, objective=link.recipe(), settings=settings), train(world, link, seed=1, settings=settings)
    assert np.allclose(plain["entropy"], under["entropy"], atol=1e-12)


KNOWN = {"entropy", "log_prob", "sum_squares", "max_p", "S", "N", "p", "varentropy"}


def test_only_the_prompts_asked_for_are_trained_and_the_shared_part_carries_over():
    world = task(last_is_one, 0, prompts=3, length=2, vocab=3)
    settings = Settings(updates=30, rate=3.0, only=(0, 1))
    alone = train(replace(world, sharing=0.0), seed=1, settings=settings)
    shared = train(world, seed=1, settings=settings)
    assert alone["chance"][-1, 2] == pytest.approx(alone["chance"][0, 2], abs=1e-12)
    assert shared["chance"][-1, 2] > shared["chance"][0, 2] + 0.05
    assert alone["by_prompt"].shape == alone["chance"].shape == (9, 3)


def test_a_level_is_found_between_evaluations():
    table = {"reward": np.array([0.0, 0.5, 1.0]), "entropy": np.array([2.0, 1.0, 0.5])}
    history = tabular.History(uniform(), table)
    assert history.at(0.25) == pytest.approx(1.5)
    assert history.at(0.0) == pytest.approx(2.0)
    assert math.isnan(history.at(1.5))
    lower = tabular.History(uniform(), table | {"entropy": table["entropy"] - 0.25})
    assert tabular.matched(history, lower) == pytest.approx(-0.25)
    late = tabular.History(uniform(), table | {"reward": table["reward"] + 2.0})
    assert math.isnan(tabular.matched(history, late))


def test_runs_are_matched_at_the_first_passage():
    reward = np.concatenate([np.linspace(0, 1, 41), np.linspace(1, 0.5, 20)])
    assert at_reward(reward, 2 * reward, np.array([0.25, 0.5])) == pytest.approx([0.5, 1.0])
    assert np.isnan(at_reward(reward, reward, np.array([3.0]))).all()
    assert smoothed(np.array([0.0, 3.0, 0.0]), 3) == pytest.approx([1.5, 1.0, 1.5])


def test_shuffled_prompts_come_in_a_new_order_and_every_group_keeps_its_own():
    gold = torch.tensor([0, 1, 2])
    world = task(lambda prompt, ids: (ids[:, 0] == gold[prompt]).double(), 0, prompts=3, length=1, vocab=3)
    generator, orders = torch.Generator().manual_seed(0), set()
    for step in range(12):
        settings = Settings(samples=4, shuffled=True)
        rollouts, prompt = tabular.rolled(world, Chain(), (), settings, Progress(step), generator, RowRng(step=step))
        assert rollouts.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4  # groups are numbered as they come, as a trainer numbers them
        assert torch.equal(rollouts.reward, (rollouts.completion_ids[:, 0] == gold[prompt]).double())
        orders.add(tuple(prompt[::4].tolist()))
        assert sorted(prompt[::4].tolist()) == [0, 1, 2]
    assert len(orders) > 1


def test_branches_keep_what_was_cut_and_only_the_rest_is_trained():
    link = Cure(n1=2, n2=3, top_k=2, until=None)
    world = task(last_is_one, 0, prompts=3, length=5, vocab=4)
    rollouts, prompt = tabular.rolled(world, chain(link), (link.init(),), Settings(samples=8), Progress(), torch.Generator().manual_seed(0), RowRng())
    ids, trained = rollouts.completion_ids.view(3, 8, 5), rollouts.trained_mask.view(3, 8, 5)
    branch = (rollouts.origin == ORIGINS.index("branch")).view(3, 8)
    assert torch.equal(prompt.view(3, 8), torch.arange(3)[:, None].expand(3, 8))
    assert trained[:, :2].all()
    assert branch[:, 2:].all()
    for group in range(3):
        for row in range(2, 8):
            kept = int((~trained[group, row]).sum())
            assert 0 < kept < 5
            assert trained[group, row, kept:].all()
            assert torch.equal(ids[group, row, :kept], ids[group, (row - 2) // 3, :kept])


def test_successes_come_back_out_of_the_buffer_with_their_age_and_old_log_probs():
    link = Spear(replayed=2, baseline=8, max_age=3, rise=1, share=0.5)
    world = task(last_is_one, 0, prompts=4, length=2, vocab=3)
    control, generator = chain(link), torch.Generator().manual_seed(0)
    memory, states, seen = tabular.Memory.of(control), control.init(), []
    for step in range(4):
        states = tuple({**state, "step": step} for state in states)
        rollouts, _ = tabular.rolled(world, control, states, Settings(samples=6), Progress(step), generator, RowRng(step=step), memory)
        states = memory.collected(states)
        seen.append(rollouts.take((rollouts.origin == ORIGINS.index("replay")).nonzero().squeeze(1)))
    assert len(seen[0]) == 0  # nothing to replay yet
    replayed = concatenate([part for part in seen if len(part)])
    assert len(replayed) > 0
    assert (replayed.reward == 1).all()
    assert (replayed.age >= 1).all()
    assert (replayed.age <= 3).all()
    assert (replayed.advantage > 0).all()
    logits = tabular.row_logits(world, replayed.group, replayed.completion_ids).log_softmax(-1)
    now = logits.gather(-1, replayed.completion_ids[..., None]).squeeze(-1)
    torch.testing.assert_close(replayed.old_log_probs, now)  # the world was not trained in between
