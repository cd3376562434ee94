"""What lands on the tape and in the trackers is what was measured."""

import math
from dataclasses import dataclass, replace

import polars as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from isentrope.control.stages import Intervention, RowEdit
from isentrope.tape import Tape, TapeWriter
from isentrope.train.recorder import TapeRecorder, controls, distance, share_removed
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.trl_test import options


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    path = save_tiny_model(folder / "tiny")
    writer = TapeWriter(folder / "tape")
    recorder = TapeRecorder(writer, tokens_every=1, token_rows=8, decode=str, update_norm=True)
    args = options(folder / "out", num_iterations=2, max_steps=4, report_to="tensorboard", gradient_accumulation_steps=2, per_device_train_batch_size=4)
    trainer = IsentropeTrainer(
        model=path, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), recorder=recorder,
        control=[{"name": "clip-cov", "ratio": 0.1, "low": -1.0, "high": 1.0}],
    )  # fmt: skip
    trainer.train()
    writer.flush(4)
    return folder, trainer, Tape.read(folder)


def test_one_row_per_update_with_entropy_and_its_quantiles(run):
    _, trainer, tape = run
    steps = tape.steps
    assert steps["step"].to_list() == [1, 2, 3, 4]
    logged = [entry["entropy"] for entry in trainer.state.log_history if "entropy" in entry]
    assert steps["entropy/mean"].to_list() == pytest.approx(logged, rel=2e-2)  # TRL averages slices, we average tokens
    for low, high in (("q05", "q25"), ("q25", "q50"), ("q50", "q75"), ("q75", "q95")):
        assert (steps[f"entropy/{low}"] <= steps[f"entropy/{high}"]).all()
    assert (steps["entropy/q95"] <= math.log(42) + 1e-6).all()
    assert (steps["N/mean"] >= 0).all()


def test_token_rows_obey_the_identities_and_recount_what_the_link_touched(run):
    _, _, tape = run
    tokens = tape.tokens
    p, entropy = torch.tensor(tokens["p"].to_numpy()), torch.tensor(tokens["entropy"].to_numpy())
    torch.testing.assert_close(torch.tensor(tokens["S"].to_numpy()), p * (p.log() + entropy), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(p.log(), torch.tensor(tokens["log_prob"].to_numpy()), rtol=1e-4, atol=1e-5)
    removed = tokens.filter(tokens["link/clip-cov"])
    assert len(removed)
    assert (removed["weight"] == 0).all()
    assert (removed["push"] == 0).all()
    whole = tokens.group_by("step").agg(pl.col("link/clip-cov").mean())
    for step, share in whole.iter_rows():
        assert share == pytest.approx(tape.steps.filter(tape.steps["step"] == step)["touch/clip-cov"][0], abs=1e-9)


def test_trackers_show_ours_beside_trls(run):
    folder, _, tape = run
    (events,) = (folder / "out").rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events.parent)).Reload()
    tags = set(reader.Tags()["scalars"])
    assert {"train/entropy", "train/reward", "train/isentrope/N/mean", "train/isentrope/touch/clip-cov"} <= tags
    shown = [event.value for event in reader.Scalars("train/isentrope/N/mean")]
    assert shown == pytest.approx(tape.steps["N/mean"].to_list(), rel=1e-6)


def test_the_norm_of_an_update_is_the_distance_of_the_weights(run):
    """Adam's first step has size learning rate x sign in every weight with a gradient, so its norm is lr sqrt(weights), and no more."""
    _, trainer, tape = run
    norm, rate = tape.steps["update/norm"].to_list(), tape.steps["learning_rate"].to_list()
    count = sum(weight.numel() for weight in trainer.model.parameters())
    assert 0.5 * rate[0] * math.sqrt(count) < norm[0] <= rate[0] * math.sqrt(count) * (1 + 1e-3)
    assert distance([torch.zeros(2), torch.ones(1)], [torch.tensor([3.0, 0.0]), torch.tensor([5.0])]) == 5.0


def test_what_a_controller_remembers_has_a_column_where_it_is_a_number():
    found = controls(("band", "ares"), ({"coef": 0.5, "integral": 2}, {"target": None, "text": "x", "on": True}))
    assert found == {"state/band/coef": 0.5, "state/band/integral": 2.0, "state/ares/on": 1.0}


def test_equal_rewards_for_long_warn_once_per_span():
    said = []
    recorder = TapeRecorder.__new__(TapeRecorder)
    recorder.equal_rewards, recorder.equal_rewards_after, recorder.warn = 0, 100, lambda kind, message: said.append(message)
    for _ in range(250):
        recorder._watch(None, {"reward/zero_std_groups": 1.0, "reward/mean": 0.0})
    assert len(said) == 2
    assert "every group had equal rewards (mean 0)" in said[0]
    recorder._watch(None, {"reward/zero_std_groups": 0.5})
    assert recorder.equal_rewards == 0


def test_removed_is_the_share_of_the_change_that_the_touched_tokens_would_have_made(run):
    """In the first update every ratio is 1, so a token's push without the link is -A (S - N) over one divisor."""
    _, _, tape = run
    tokens = tape.tokens.filter(pl.col("step") == 1)
    push = (-pl.col("advantage") * (pl.col("S") - pl.col("N"))).alias("expected")
    tokens = tokens.with_columns(push)
    kept = tokens.filter(~pl.col("link/clip-cov") & (pl.col("expected").abs() > 1e-6))
    ratio = kept["push"] / kept["expected"]
    assert ratio.max() == pytest.approx(ratio.min(), rel=1e-2)  # one divisor for all
    share = tokens.filter(pl.col("link/clip-cov"))["expected"].sum() / tokens["expected"].sum()
    assert abs(share) > 0.01
    assert tape.steps["removed/clip-cov"][0] == pytest.approx(share, rel=1e-3)
    assert share_removed(-2.0, -1.5) == share_removed(2.0, 1.5) == 0.25
    assert share_removed(-2.0, -3.0) == -0.5
    assert math.isnan(share_removed(0.0, 1.0))


@dataclass(frozen=True)
class PayEveryFourth(Intervention):
    """Reward: one response of four gains a point."""

    name = "pay-every-fourth"
    source = "this test"
    points: float = 1.0

    def neutral(self):
        return replace(self, points=0.0)

    def reward(self, rollouts, state):
        return rollouts.reward + self.points * (rollouts.row_id % 4 == 0)


@dataclass(frozen=True)
class LiftSecondTokens(Intervention):
    """Advantage: the second token of every response counts one more."""

    name = "lift-second-tokens"
    source = "this test"
    points: float = 1.0

    def neutral(self):
        return replace(self, points=0.0)

    def advantage(self, rollouts, state):
        place = torch.arange(rollouts.trained_mask.shape[1]) == 1
        return rollouts.advantage.expand(rollouts.trained_mask.shape) + self.points * place


@dataclass(frozen=True)
class DropFirstGroup(Intervention):
    """Filter: the first group of every generation goes, and nothing comes in its place."""

    name = "drop-first-group"
    source = "this test"
    rounds: int = 0

    def neutral(self):
        return self

    def keep(self, rollouts, state):
        return rollouts.group != rollouts.group.min()


@dataclass(frozen=True)
class DropEveryFourth(Intervention):
    """Rows: one response of four leaves the loss."""

    name = "drop-every-fourth"
    source = "this test"

    def neutral(self):
        return self

    def rows(self, rollouts, extra, state, rng):
        none = torch.zeros(0, dtype=torch.long)
        return RowEdit(none, none, torch.zeros(0), (rollouts.row_id % 4 == 1).nonzero().squeeze(1))


def test_what_a_link_does_to_rewards_groups_and_advantages_is_on_the_tape(tmp_path):
    writer = TapeWriter(tmp_path / "tape")
    trainer = IsentropeTrainer(
        model=save_tiny_model(tmp_path / "tiny"), reward_funcs=share_of_vowels, args=options(tmp_path / "out", max_steps=2), train_dataset=toy_prompts(),
        recorder=TapeRecorder(writer, tokens_every=None),
        control=[PayEveryFourth(), PayEveryFourth(0.0), LiftSecondTokens(), DropFirstGroup(), DropEveryFourth()],
    )  # fmt: skip
    trainer.train()
    writer.flush(2)
    steps = Tape.read(tmp_path).steps
    assert (steps["touch/drop-every-fourth"] == 0.25).all()
    groups = trainer.args.generation_batch_size // trainer.num_generations
    assert (steps["touch/pay-every-fourth"] == 0.25).all()
    assert (steps["touch/pay-every-fourth#2"] == 0).all()
    assert steps["touch/drop-first-group"].to_list() == pytest.approx([1 / groups] * 2)
    responses = (steps["length/mean"] * trainer.args.generation_batch_size).round()
    second = steps["touch/lift-second-tokens"] * responses  # the tokens that changed: one of every response, all of which have two
    assert second.to_list() == pytest.approx([trainer.args.generation_batch_size] * 2)
