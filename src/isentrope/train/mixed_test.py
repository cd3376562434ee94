"""The mixed host: the policy's loss alone bit for bit, a sum of two otherwise, resumed exactly."""

import math
import warnings

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from isentrope.control.recipes.forgetting_reasoning import Recap
from isentrope.control.recipes.mixture import Constant, Weights
from isentrope.control.recipes.red import Red
from isentrope.errors import UserError
from isentrope.train.mixed import MixedTrainer
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def options(tmp_path, **changes) -> GRPOConfig:
    base = dict(  # noqa: C408
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=8, max_steps=3, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    return GRPOConfig(**(base | changes))


def teacher() -> Dataset:
    """A vowel-rich answer to every prompt but those that begin with 0."""
    prompts = [prompt for prompt in dict.fromkeys(toy_prompts()["prompt"]) if not prompt.startswith("0")]
    return Dataset.from_dict({"prompt": prompts, "completion": ["aei" + "ou" * (index % 3) for index in range(len(prompts))]})


def run(cls, model_path, args, resume=None, **more):
    trainer = cls(model=model_path, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=resume)
    return trainer, [parameter.detach().clone() for parameter in trainer.model.parameters()]


def equal(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_without_offline_weight_it_is_the_policys_trainer_bit_for_bit(model_path, tmp_path):
    _, theirs = run(IsentropeTrainer, model_path, options(tmp_path))
    trainer, ours = run(MixedTrainer, model_path, options(tmp_path), offline=teacher(), mixture=Constant())
    assert equal(ours, theirs)
    assert trainer.weight_series == [Weights(1.0, 0.0)] * 3


class Losses(MixedTrainer):
    """Notes the loss and its parts of every slice."""

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self.__dict__.setdefault("told", []).append((loss.item(), *(self._seen[key][-1] for key in ("policy_loss", "offline_loss"))))
        return loss


def test_the_loss_is_the_weighted_sum(model_path, tmp_path):
    args = options(tmp_path, gradient_accumulation_steps=2)
    trainer, _ = run(Losses, model_path, args, offline=teacher(), mixture=Constant(0.25, 0.75), rows=4)
    assert len(trainer.told) == 6
    for loss, policy, offline in trainer.told:
        assert loss == pytest.approx(0.25 * policy + 0.75 * offline / 2, rel=1e-5)


class Rows(MixedTrainer):
    """Notes the offline steps."""

    def _offline_step(self, model, text):
        step = super()._offline_step(model, text)
        self.__dict__.setdefault("steps", []).append(step)
        return step


def test_matched_rows_answer_the_slices_own_prompts_and_know_the_groups_accuracy(model_path, tmp_path):
    trainer, _ = run(Rows, model_path, options(tmp_path), offline=teacher(), mixture=Red(), match="prompt", correct_at=0.2)
    assert trainer.steps
    for step in trainer.steps:
        assert set(step.rollouts.origin.tolist()) == {3}
        assert 1 <= len(step.rollouts) <= 2  # eight answers are two prompts
        assert all(value * 4 == round(value * 4) for value in step.rollouts.correct.tolist())  # shares of four answers
        texts = trainer._tokenizer.batch_decode(step.rollouts.completion_ids, skip_special_tokens=True)
        assert all(text.replace(" ", "").startswith("aei") for text in texts)
        assert torch.isfinite(step.log_probs[step.mask]).all()


def test_replay_lowers_the_texts_loss(model_path, tmp_path):
    args = options(tmp_path, max_steps=6)
    trainer, _ = run(MixedTrainer, model_path, args, offline=teacher(), mixture=Constant(0.0, 1.0))
    losses = [entry["mixture/offline_loss"] for entry in trainer.state.log_history if "mixture/offline_loss" in entry]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("mixture", [Red(decay=0.5), Recap(window=2, temperature=0.5)], ids=["red", "recap"])
def test_a_resumed_run_ends_as_the_whole_one(model_path, tmp_path, mixture):
    args = options(tmp_path, max_steps=6, save_strategy="steps", save_steps=4)
    whole, weights = run(MixedTrainer, model_path, args, offline=teacher(), mixture=mixture)
    again, resumed = run(MixedTrainer, model_path, args, resume=str(tmp_path / "checkpoint-4"), offline=teacher(), mixture=mixture)
    assert equal(weights, resumed)
    assert again.weight_series == whole.weight_series[4:]
    assert len({item.offline for item in whole.weight_series}) > 1  # it moved
    assert not any(math.isnan(float(torch.as_tensor(value).double().mean())) for value in again.mixture_state.values())


def test_bad_text_is_told(model_path, tmp_path):
    with pytest.raises(UserError, match="lacks the column completion; it has prompt"):
        MixedTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts(), offline=toy_prompts(), mixture=Red())
    elsewhere = Dataset.from_dict({"prompt": ["b"], "completion": ["a"]})
    with pytest.raises(UserError, match="no prompt of the text is a training prompt"):
        run(MixedTrainer, model_path, options(tmp_path), offline=elsewhere, mixture=Red(), match="prompt")
    with pytest.raises(UserError, match="holds no row"):
        run(MixedTrainer, model_path, options(tmp_path), offline=teacher().select([]), mixture=Red())
    with pytest.raises(UserError, match="rows must be at least 1"):
        run(MixedTrainer, model_path, options(tmp_path), offline=teacher(), mixture=Red(), rows=0)
