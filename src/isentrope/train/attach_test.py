"""A trainer that gains a chain by one line equals one that was built with it, and loses nothing of its own."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

import isentrope
from isentrope.control.objectives import Objective
from isentrope.control.standard import EntropyBonus
from isentrope.errors import UserError
from isentrope.report import data
from isentrope.tape import Tape
from isentrope.train.attach import attach
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer

CHAIN = [{"name": "forking-tokens", "share": 0.5}, {"name": "clip-cov", "ratio": 0.1}]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


class Mine(GRPOTrainer):
    """A user's subclass: counts what passes by, and changes nothing."""

    calls = 0

    def _generate_and_score(self):
        return None

    def _calculate_rewards(self, *args, **kwargs):
        self.calls += 1
        return super()._calculate_rewards(*args, **kwargs)


def args(folder, kind=GRPOConfig, **options) -> GRPOConfig:
    return kind(
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, steps_per_generation=2, max_completion_length=8,
        learning_rate=1e-2, report_to="none", logging_steps=1, use_cpu=True, bf16=False, disable_tqdm=True, seed=3,
        **{"max_steps": 3, "save_strategy": "no", **options},
    )  # fmt: skip


def stock(model, folder, kind=GRPOTrainer, *, options=None, **known):
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    settings = args(folder, **(options or {})) if kind is not GMPOTrainer else args(folder, GMPOConfig)
    return kind(model=model, reward_funcs=share_of_vowels, args=settings, train_dataset=toy_prompts(), processing_class=tokenizer, **known)


def trained(trainer) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_attached_is_built_bit_for_bit(model, tmp_path):
    attached = trained(attach(stock(model, tmp_path / "a"), CHAIN))
    built = trained(stock(model, tmp_path / "b", IsentropeTrainer, control=CHAIN))
    plain = trained(stock(model, tmp_path / "c"))
    assert same(attached, built)
    assert not same(attached, plain)


def test_an_empty_chain_leaves_the_training_as_it_was(model, tmp_path):
    assert same(trained(attach(stock(model, tmp_path / "a"))), trained(stock(model, tmp_path / "b")))


def test_a_subclass_goes_on_doing_its_own(model, tmp_path):
    trainer = stock(model, tmp_path, Mine)
    found = attach(trainer, CHAIN)
    assert found is trainer
    assert isinstance(trainer, Mine)
    assert isinstance(trainer, IsentropeTrainer)
    trained(trainer)
    assert trainer.calls == 2  # generations of three updates with two slices each


def test_a_loss_that_adds_to_ours_goes_on_and_one_of_its_own_is_found_out(model, tmp_path):
    class Adds(GRPOTrainer):
        losses: list[float]

        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.losses = [*getattr(self, "losses", []), float(loss)]
            return loss + 0.0

    class Replaces(GRPOTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return model(inputs["prompt_ids"]).logits.mean()

    adding = attach(stock(model, tmp_path / "a", Adds), CHAIN)
    assert same(trained(adding), trained(attach(stock(model, tmp_path / "b"), CHAIN)))
    assert len(adding.losses) == 3
    with pytest.raises(UserError, match=r"attach: Replaces\.compute_loss computes a loss of its own.*super\(\)\.compute_loss"):
        trained(attach(stock(model, tmp_path / "c", Replaces), CHAIN))


def test_an_adapter_resumes_exactly(model, tmp_path):
    """As a user does it: a folder with the adapter's checkpoints, the same script again, `resume_from_checkpoint=True`."""
    peft = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    saving = {"save_strategy": "steps", "save_steps": 2, "beta": 0.04, "num_iterations": 2, "max_steps": 4}
    whole = trained(attach(stock(model, tmp_path / "whole", options=saving, peft_config=peft), CHAIN))
    again = attach(stock(model, tmp_path / "whole", options=saving, peft_config=peft), CHAIN)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(whole, dict(again.model.named_parameters()))


def test_an_adapter_trains_alone(model, tmp_path):
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = attach(stock(model, tmp_path / "a", peft_config=peft), CHAIN)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    after = trained(trainer)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    torch.manual_seed(0)
    again = trained(stock(model, tmp_path / "b", IsentropeTrainer, control=CHAIN, peft_config=peft))
    assert {name for name in again if "lora_" in name} >= moved


def test_its_tape_is_a_run_that_the_report_reads(model, tmp_path):
    trainer = attach(stock(model, tmp_path / "out"), CHAIN, tape=tmp_path / "tape", tokens_every=1)
    trained(trainer)
    found = data.read(tmp_path / "tape")
    assert found.steps["step"].to_list() == [1, 2, 3]
    assert found.links == ("forking-tokens", "clip-cov")
    assert found.finished
    assert not found.problems
    assert len(found.tokens)
    assert (found.steps["touch/forking-tokens"] > 0).all()
    record = json.loads((tmp_path / "tape" / "run.json").read_text())
    assert record["attached"] is True
    assert record["task"]["rewards"] == ["share_of_vowels"]
    assert record["provenance"]["steps.entropy/mean"]["unit"] == "nats"
    isentrope.report.build(tmp_path / "tape")
    page = (tmp_path / "tape" / "report.html").read_text(encoding="utf-8")
    assert "A script of your own trained it" in page
    assert "isentrope train --config" not in page


def test_a_resumed_training_goes_on_with_its_tape(model, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(attach(stock(model, tmp_path / "out", options=saving), CHAIN, tape=tmp_path / "tape"))
    again = stock(model, tmp_path / "out", options=saving | {"max_steps": 4})
    attach(again, CHAIN, tape=tmp_path / "tape")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert Tape.read(tmp_path / "tape").steps["step"].to_list() == [1, 2, 3, 4]


def test_a_second_training_does_not_write_over_the_first_tape(model, tmp_path):
    trained(attach(stock(model, tmp_path / "a"), CHAIN, tape=tmp_path / "tape"))
    with pytest.raises(UserError, match="holds the tape of an earlier training"):
        trained(attach(stock(model, tmp_path / "b"), CHAIN, tape=tmp_path / "tape"))
    assert len(Tape.read(tmp_path / "tape").steps) == 3


def test_a_trainer_that_has_trained_generates_anew(model, tmp_path):
    trainer = stock(model, tmp_path)
    trained(trainer)
    trained(attach(trainer, CHAIN))
    assert trainer.state.global_step == 3


def test_what_cannot_be_attached_is_refused_and_left_alone(model, tmp_path):
    trainer = stock(model, tmp_path)
    with pytest.raises(UserError, match="clip-covv"):
        attach(trainer, ["clip-covv"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        attach(trainer, CHAIN, tape=tmp_path / "full")
    assert type(trainer) is GRPOTrainer
    attach(trainer, [EntropyBonus(coef=0.01)], objective=Objective.named("dapo"))
    assert type(trainer).__name__ == "IsentropeGRPOTrainer"
    with pytest.raises(UserError, match="carries a chain already"):
        attach(trainer, CHAIN)
    with pytest.raises(UserError, match=r"gmpo.*has its own _compute_loss"):
        attach(stock(model, tmp_path / "gmpo", GMPOTrainer), CHAIN)
    with pytest.raises(UserError, match="Got str"):
        attach("trainer", CHAIN)
    with pytest.raises(UserError, match="top_entropy_quantile"):
        attach(stock(model, tmp_path / "q", options={"top_entropy_quantile": 0.2}), ["clip-cov"])
