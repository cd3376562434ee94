"""The replay buffer: who stays, ages, order; replayed rows in a run with the log-probs of their time; a resume that replays the same."""

import warnings

import pytest
import torch

pytest.importorskip("trl")

from trl import GRPOConfig

from isentrope.control.papers.spear import Spear
from isentrope.control.step import ORIGINS, Rollouts
from isentrope.train.replay import ReplayBuffer, Sampled
from isentrope.train.state import pack_state, unpack_state
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer

REPLAY = ORIGINS.index("replay")


def sampled(first: int, count: int, width: int, prompt: int = 2) -> Sampled:
    mask = torch.ones(count, width, dtype=torch.bool)
    rollouts = Rollouts.of(
        mask, row_id=torch.arange(first, first + count), completion_ids=torch.full((count, width), first), old_log_probs=torch.full((count, width), -1.0),
        text=tuple(f"row {first + row}" for row in range(count)), signals={"old.entropy": torch.zeros(count, width)},
    )  # fmt: skip
    return Sampled(rollouts, torch.full((count, prompt), first), torch.ones(count, prompt, dtype=torch.long))


def test_the_oldest_give_way_and_the_old_are_forgotten():
    buffer = ReplayBuffer(capacity=4, max_age=5)
    assert buffer.offered(0) is None
    buffer.add(sampled(10, 3, 2), step=0)
    buffer.add(sampled(20, 2, 4, prompt=3), step=3)
    found = buffer.offered(4)
    assert found is not None
    assert found.rollouts.row_id.tolist() == [11, 12, 20, 21]
    assert found.rollouts.age.tolist() == [4, 4, 1, 1]
    assert found.rollouts.origin.tolist() == [REPLAY] * 4
    assert found.rollouts.text == ("row 11", "row 12", "row 20", "row 21")
    assert found.rollouts.trained_mask.sum(-1).tolist() == [2, 2, 4, 4]
    assert found.prompt_ids.tolist() == [[0, 10, 10]] * 2 + [[20, 20, 20]] * 2
    assert found.prompt_mask.tolist() == [[0, 1, 1]] * 2 + [[1, 1, 1]] * 2
    young = buffer.offered(6)
    assert young is not None
    assert young.rollouts.row_id.tolist() == [20, 21]
    assert buffer.offered(9) is None
    assert len(buffer) == 0
    buffer.add(sampled(30, 0, 2), step=9)
    assert buffer.offered(9) is None


def test_its_state_comes_back():
    buffer, other = ReplayBuffer(4, 5), ReplayBuffer(4, 5)
    other.load_state(unpack_state(pack_state(buffer.state())))
    assert other.offered(0) is None
    buffer.add(sampled(10, 3, 2), step=1)
    other.load_state(unpack_state(pack_state(buffer.state())))
    ours, theirs = buffer.offered(2), other.offered(2)
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours.rollouts.old_log_probs, theirs.rollouts.old_log_probs)
    assert ours.rollouts.text == theirs.rollouts.text
    assert torch.equal(ours.rollouts.age, theirs.rollouts.age)
    assert torch.equal(ours.prompt_ids, theirs.prompt_ids)


class Watch:
    """The rows of every generation, and what was stored of them when they were sampled."""

    signals = ()

    def __init__(self):
        self.generations: list[Rollouts] = []

    def begin(self): ...
    def generation(self, trainer, prompts, rollouts):
        self.generations.append(rollouts)

    def slice(self, trainer, step, stats, result): ...
    def update(self, trainer): ...
    def measured(self):
        return {}

    def state(self):
        return {}

    def load_state(self, state): ...


def trainer_of(folder, model, steps, **changes):
    base = dict(  # noqa: C408
        output_dir=str(folder), per_device_train_batch_size=16, num_generations=4, max_completion_length=6, max_steps=steps, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="steps", save_steps=3, use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant",
        disable_tqdm=True,
    )  # fmt: skip
    return IsentropeTrainer(
        model=model, reward_funcs=share_of_vowels, args=GRPOConfig(**(base | changes)), train_dataset=toy_prompts(20),
        control=[Spear(replayed=2, baseline=12, max_age=4, rise=2)], recorder=Watch(),
    )  # fmt: skip


def train(trainer, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(**more)
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_replayed_rows_come_with_their_log_probs_and_a_resumed_run_replays_the_same(tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    whole = trainer_of(tmp_path / "whole", model, 6)
    end = train(whole)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    replayed = 0
    for step, rollouts in enumerate(whole.recorder.generations):
        for row in range(len(rollouts)):
            mask, name = rollouts.completion_mask[row], int(rollouts.row_id[row])
            now = rollouts.completion_ids[row][mask], rollouts.old_log_probs[row][mask]
            if int(rollouts.origin[row]) == REPLAY:
                replayed += 1
                assert step > 0
                assert 0 < int(rollouts.age[row]) <= 4
                assert float(rollouts.advantage[row, 0]) > 0
                if name in seen:  # unless its place was taken in its own generation
                    assert torch.equal(now[0], seen[name][0])
                    assert torch.equal(now[1], seen[name][1])
            else:
                seen[name] = now
    assert replayed > 0

    first = trainer_of(tmp_path / "cut", model, 6)
    first.args.max_steps = 3
    train(first)
    second = trainer_of(tmp_path / "cut", model, 6)
    again = train(second, resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert torch.equal(again, end)
    assert [int((one.origin == REPLAY).sum()) for one in second.recorder.generations] == [
        int((one.origin == REPLAY).sum()) for one in whole.recorder.generations[3:]
    ]


class Engine(IsentropeTrainer):
    """Tells, as vLLM does, a log-prob of every sampled token: here a number that names the token and its generation."""

    def _generate_single_turn(self, *args, **kwargs):
        ids, _ = super()._generate_single_turn(*args, **kwargs)
        return ids, [[-float(token + 100 * self.generations) for token in row] for row in ids]


def test_replayed_rows_keep_the_engines_log_probs_of_their_time(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "IsentropeTrainer", Engine)
    whole = trainer_of(tmp_path / "run", save_tiny_model(tmp_path / "tiny"), 6)
    train(whole)
    replayed = 0
    for step, rollouts in enumerate(whole.recorder.generations):
        mask = rollouts.completion_mask
        assert rollouts.sampling_log_probs.shape == mask.shape
        generation = (-rollouts.sampling_log_probs - rollouts.completion_ids) / 100
        for row in range(len(rollouts)):
            of_row = set(generation[row][mask[row]].tolist())
            assert of_row == {int(rollouts.row_id[row]) // 16}
            again = int(rollouts.origin[row]) == REPLAY
            replayed += again
            assert (of_row != {step}) == again
    assert replayed > 0
