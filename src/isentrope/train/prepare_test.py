"""Prompts selected before training: what the stage is shown, full batches, the cache, and no trace in the run's own draws."""

import json
import math
import warnings
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("trl")

from trl import GRPOConfig

from isentrope.control.placebo import placebo
from isentrope.control.stages import Intervention, ProbeRequest
from isentrope.errors import UserError
from isentrope.train.prepare import FILE
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer

SHOWN = []


@dataclass(frozen=True)
class Take(Intervention):
    """The `count` probed prompts of the highest mean reward (with 0, none)."""

    name = "take"
    source = "a test"
    count: int = 3
    samples: int = 4
    prompts: int | None = 10

    def probe(self):
        return ProbeRequest(self.samples, self.prompts)

    def select(self, probed):
        SHOWN.append(probed)
        if self.count < 0:
            raise ValueError("Take: nothing will do.")
        return probed.position[torch.argsort(-probed.reward.mean(1), stable=True)[: self.count]]


def trainer_of(folder, control, *, steps=2, **changes):
    base = dict(  # noqa: C408
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=6, max_steps=steps, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True,
        steps_per_generation=2,
    )  # fmt: skip
    return IsentropeTrainer(
        model=save_tiny_model(folder / "tiny"), reward_funcs=share_of_vowels, args=GRPOConfig(**(base | changes)), train_dataset=toy_prompts(20),
        control=control,
    )  # fmt: skip


def weights(trainer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_the_run_trains_on_what_was_selected_and_a_second_one_does_not_sample_again(tmp_path):
    """Three prompts fill batches of four by being repeated; the file serves a second run, which is the same to the last bit; settings that
    differ do not use it."""
    SHOWN.clear()
    first = trainer_of(tmp_path, [Take()])
    end = weights(first)
    kept = json.loads((tmp_path / FILE).read_text())
    assert len(kept["position"]) == 10
    assert len(set(kept["chosen"])) == 3
    assert first.train_dataset["prompt"] == [toy_prompts(20)["prompt"][at] for at in kept["chosen"]] * 2
    assert SHOWN[0].reward.shape == SHOWN[0].length.shape == (10, 4)
    assert bool((SHOWN[0].length >= 1).all())
    assert first.state.log_history[0]["isentrope/probe_tokens"] == float(SHOWN[0].length.sum())

    again = trainer_of(tmp_path, [Take()])
    assert torch.equal(weights(again), end)
    assert "isentrope/probe_tokens" not in again.state.log_history[0]
    torch.testing.assert_close(SHOWN[1].reward, SHOWN[0].reward, rtol=0, atol=0)

    other = trainer_of(tmp_path, [Take(samples=8)], steps=1)
    weights(other)
    assert SHOWN[2].reward.shape == (10, 8)


def test_a_selection_of_everything_is_a_run_without_it(tmp_path):
    plain = weights(trainer_of(tmp_path / "plain", [_Nothing()]))
    everything = weights(trainer_of(tmp_path / "all", [_Nothing(), _Everything()]))
    assert torch.equal(plain, everything)


@dataclass(frozen=True)
class _Nothing(Intervention):
    name = "nothing"
    source = "a test"

    def advantage(self, rollouts, state):
        return rollouts.advantage


@dataclass(frozen=True)
class _Everything(Intervention):
    name = "everything"
    source = "a test"

    def probe(self):
        return ProbeRequest(4)

    def select(self, probed):
        return probed.position


def test_a_damaged_file_is_sampled_anew(tmp_path):
    SHOWN.clear()
    weights(trainer_of(tmp_path, [Take()], steps=1))
    whole = (tmp_path / FILE).read_text()
    for damaged in ("", whole[: len(whole) // 2], "[]", '{"settings": 1}'):
        (tmp_path / FILE).write_text(damaged)
        weights(trainer_of(tmp_path, [Take()], steps=1))
        assert json.loads((tmp_path / FILE).read_text()) == json.loads(whole)
    assert all(torch.equal(shown.reward, SHOWN[0].reward) for shown in SHOWN)


def test_links_choose_one_after_the_other_and_a_placebo_as_many(tmp_path):
    SHOWN.clear()
    trainer = trainer_of(tmp_path, [Take(count=5), Take(count=2, samples=2)], steps=1)
    weights(trainer)
    assert [len(shown.position) for shown in SHOWN] == [10, 5]
    assert len(set(trainer.train_dataset["prompt"])) <= 2
    sham = placebo(Take(count=5))
    chosen = sham.select(SHOWN[0])
    assert len(set(chosen.tolist())) == 5
    assert set(chosen.tolist()) <= set(SHOWN[0].position.tolist())
    assert not math.isclose(float(chosen.float().std()), 0.0)


@pytest.mark.parametrize(("count", "said"), [(0, "take selected none of the 10 prompts that were tried"), (-1, r"Take: nothing will do\.")])
def test_what_cannot_be_selected_is_told(tmp_path, count, said):
    with pytest.raises(UserError, match=said):
        weights(trainer_of(tmp_path, [Take(count=count)]))


def test_a_streamed_dataset_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, [Take()])
    trainer.train_dataset = iter(())
    with pytest.raises(UserError, match=r"take chooses among prompts, which a streamed dataset does not let it do"):
        trainer.train()
