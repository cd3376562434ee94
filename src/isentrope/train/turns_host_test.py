"""Several turns inside TRL: the host against stock TRL on the same episodes, and what reaches a stage, the loss and a resumed run."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from isentrope.control.stages import ExtraRequest, Intervention, RowEdit, policy_loss
from isentrope.errors import UserError
from isentrope.train.batch import loss_mask
from isentrope.train.games import GameSpec, Reply
from isentrope.train.tiny import save_tiny_model
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.turns import Player, outcome


class Vowels:
    """Asks two to four times for vowels and pays their share in all that was written; some seeds raise in the second turn."""

    def reset(self, seed: int) -> str:
        self.seed, self.heard = seed, ""
        return f"say {seed}="

    def step(self, action: str) -> Reply:
        self.heard += action
        if self.seed % 9 == 8 and len(self.heard) > 6:
            raise ValueError("seed of fault")
        share = sum(letter in "aeiou" for letter in self.heard) / max(1, len(self.heard))
        self.seed -= 100
        return Reply("more" * (1 + self.seed % 2), done=self.seed < -200 - 100 * (self.seed % 3), reward=share)


RULES = GameSpec("vowels", Vowels, turns=4, turn_tokens=5)
ROWS = Dataset.from_dict({"prompt": [f"say {seed}=" for seed in range(64)], "seed": list(range(64))})


class Stock(GRPOTrainer):
    """Stock TRL with the same rollout function; it only remembers its rows."""

    forking = None

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs
        return super()._generate_and_score_completions(inputs)

    def taken_temperatures(self):
        return None


@dataclass(frozen=True)
class Looks(Intervention):
    """Keeps what the rollout stages see."""

    name = "looks"

    def __post_init__(self):
        object.__setattr__(self, "seen", [])

    def advantage(self, rollouts, state):
        self.__dict__["seen"].append(rollouts)
        return rollouts.advantage


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def paid(completions, game_reward, game_fault, **columns):
    return [None if fault else reward for reward, fault in zip(game_reward, game_fault, strict=True)]


def trained(cls, model_path, tmp_path, *, changes: dict[str, Any] | None = None, resume: str | None = None, **more):
    """The trainer after its run, its losses and its weights."""
    base = dict(  # noqa: C408
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=30, max_steps=3, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True,
        steps_per_generation=2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(**(base | (changes or {})))
        trainer = cls(model=model_path, reward_funcs=paid, args=args, train_dataset=ROWS, **more)
        trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_several_turns_equal_stock_trl_bit_for_bit(model_path, tmp_path, loss_type):
    changes = {"loss_type": loss_type}
    _, stock, weights = trained(Stock, model_path, tmp_path, changes=changes, rollout_func=Player(RULES))
    _, ours, own = trained(IsentropeTrainer, model_path, tmp_path, changes=changes, game=RULES)
    assert ours == stock
    assert any(loss != 0 for loss in stock)
    assert all(torch.equal(one, other) for one, other in zip(weights, own, strict=True))


def test_what_the_stages_see(model_path, tmp_path):
    looks = Looks()
    trainer, _, _ = trained(IsentropeTrainer, model_path, tmp_path, control=[looks], game=RULES)
    assert looks.seen
    rollouts, episodes = looks.seen[-1], trainer.player.episodes
    assert rollouts.turn is not None
    for row, episode in enumerate(episodes):
        length = len(episode.ids)
        assert rollouts.completion_ids[row, :length].tolist() == episode.ids
        assert rollouts.completion_mask[row].tolist() == [place < length for place in range(rollouts.completion_mask.shape[1])]
        assert rollouts.trained_mask[row, :length].tolist() == episode.wrote
        assert not rollouts.trained_mask[row, length:].any()
        assert rollouts.turn[row, :length].tolist() == episode.turn
        assert bool(rollouts.truncated[row]) == (episode.ending == "budget")
        assert length <= 30
    endings = {episode.ending for episode in episodes}
    assert len(endings) > 1
    assert len({max(episode.turn) for episode in episodes}) > 1, "ragged"
    faulty = torch.tensor([episode.ending == "fault" for episode in episodes])
    assert torch.equal(torch.isnan(rollouts.reward), faulty)
    assert not rollouts.advantage[faulty].any()


def test_the_loss_counts_the_tokens_of_the_policy_alone(model_path, tmp_path):
    trainer, _, _ = trained(IsentropeTrainer, model_path, tmp_path, game=RULES)
    inputs = trainer._buffered_inputs[0]
    step, _ = trainer._make_step(trainer.model_wrapped, inputs)
    assert torch.equal(step.mask, (inputs["completion_mask"] * inputs["tool_mask"]).bool())
    assert int(step.mask.sum()) < int(inputs["completion_mask"].sum())
    result = policy_loss(step, trainer.objective, trainer.chain, None, trainer.chain_state, trainer.rng())
    (slope,) = torch.autograd.grad(result.loss, step.log_probs)
    assert not slope[~step.mask].any()
    assert slope[step.mask].any()


def test_a_resumed_run_plays_what_the_other_would_have(model_path, tmp_path):
    whole = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    _, _, straight = trained(IsentropeTrainer, model_path, tmp_path, changes=whole, game=RULES, control=["empg"])
    for cut in (1, 2):  # inside a generation, and between two
        resumed = trained(IsentropeTrainer, model_path, tmp_path, changes=whole, game=RULES, control=["empg"], resume=str(tmp_path / f"checkpoint-{cut}"))
        assert all(torch.equal(one, other) for one, other in zip(straight, resumed[2], strict=True))


def test_temperatures_of_links_are_kept_for_every_turn(model_path, tmp_path):
    looks = Looks()
    trainer, _, _ = trained(IsentropeTrainer, model_path, tmp_path, control=["hapo", looks], game=RULES)
    used, wrote = looks.seen[-1].sampling_temperature, looks.seen[-1].trained_mask
    assert (used[~wrote] == trainer.temperature).all()
    assert (used[wrote] != trainer.temperature).any()
    second = (looks.seen[-1].turn == 1) & wrote
    assert (used[second] != trainer.temperature).any()


@dataclass(frozen=True)
class Branches(Intervention):
    """Replaces the first response of every group by a hotter one beside the batch."""

    name = "branches"

    def extra(self, rollouts, progress, state):
        return ExtraRequest(torch.unique(rollouts.group), 1, 1.3)

    def rows(self, rollouts, extra, state, rng):
        target = torch.arange(0, len(rollouts), 4)
        return RowEdit(target, torch.arange(len(target)), torch.ones(len(target)))


def said_by_the_environment(trainer, inputs) -> set[str]:
    """What stands outside the trained tokens of a slice, without the ends of actions that were written for the policy."""
    outside = inputs["completion_mask"].bool() & ~loss_mask(inputs)
    found = (trainer._tokenizer.decode(ids[here], skip_special_tokens=True) for ids, here in zip(inputs["completion_ids"], outside, strict=True))
    return {text.replace(" ", "").replace("more", "") for text in found}


SPEAR = {"name": "spear", "replayed": 2, "share": 0.5, "baseline": 4, "coef": 1.0, "rise": 1}


@pytest.mark.parametrize("control", [[Branches()], ["dynamic-sampling"], [SPEAR], ["empg"], ["epo"], ["aem-agentic"], ["clip-cov", "forking-tokens"]])
def test_links_leave_the_masks_right(model_path, tmp_path, control):
    """Rows that come from beside the batch, out of a buffer or anew are episodes too, with their own turns and masks."""
    trainer, losses, _ = trained(IsentropeTrainer, model_path, tmp_path, changes={"max_steps": 6}, control=control, game=RULES)
    assert all(map(math.isfinite, losses))
    origins = set()
    for inputs in trainer._buffered_inputs:
        assert said_by_the_environment(trainer, inputs) == {""}
        origins |= set(inputs["isentrope/origin"].tolist())
        wrote, turn = loss_mask(inputs), inputs["isentrope/turn"]
        for row in range(len(wrote)):
            assert sorted(set(turn[row][wrote[row]].tolist())) == list(range(int(turn[row].max()) + 1)), "every turn has a token of the policy"
    if control == [Branches()]:
        assert origins == {0, 1}


def test_an_own_rollout_function_runs_and_its_turns_come_from_its_mask(model_path, tmp_path):
    looks = Looks()
    again = Looks()
    trained(IsentropeTrainer, model_path, tmp_path, control=[looks], rollout_func=Player(RULES))
    trained(IsentropeTrainer, model_path, tmp_path, control=[again], game=RULES)
    assert torch.equal(looks.seen[-1].turn, again.seen[-1].turn)


def test_links_that_sample_refuse_a_foreign_loop(model_path, tmp_path):
    with pytest.raises(UserError, match=r"hapo samples by itself, which rollout_func gives no hook for.*Give the environment as a game"):
        trained(IsentropeTrainer, model_path, tmp_path, control=["hapo"], rollout_func=Player(RULES))


def test_the_reward_of_a_game_names_its_fault():
    with pytest.raises(RuntimeError, match="broken"):
        outcome(["a", "b"], game_reward=[1.0, 0.0], game_fault=["", "broken"])
