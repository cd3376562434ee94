"""The callback measures what `isentrope measure` measures, in trainers that it does not disturb."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from isentrope import EntropyCallback
from isentrope.errors import UserError
from isentrope.probe.measure import measure
from isentrope.train.callback import figures_of
from isentrope.train.models import load
from isentrope.train.tiny import save_tiny_model

TEXT = "abc def 12+30=42 hello world " * 4
COMMON = {
    "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
    "use_cpu": True, "bf16": False, "disable_tqdm": True, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def parts_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.config.attention_dropout = 0.3  # a draw from the generator would show in the weights
    return model, tokenizer


def sft(folder, out, **known):
    model, tokenizer = parts_of(folder)
    data = Dataset.from_dict({"text": [f"{index}+{index}={2 * index} abc" for index in range(32)]})
    return SFTTrainer(model=model, args=SFTConfig(output_dir=str(out), max_length=32, **COMMON), train_dataset=data, processing_class=tokenizer, **known)


def dpo(folder, out, **known):
    model, tokenizer = parts_of(folder)
    data = Dataset.from_dict({"prompt": ["1+1="] * 16, "chosen": ["2"] * 16, "rejected": ["11"] * 16})
    return DPOTrainer(model=model, args=DPOConfig(output_dir=str(out), max_length=32, **COMMON), train_dataset=data, processing_class=tokenizer, **known)


def weights(trainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters()]


def told(trainer, key="isentrope/entropy"):
    return {row["step"]: row for row in trainer.state.log_history if key in row}


@pytest.mark.parametrize("kind", [sft, dpo])
def test_a_training_does_not_notice_it(kind, folder, tmp_path):
    plain, watched = kind(folder, tmp_path / "a"), kind(folder, tmp_path / "b")
    watched.add_callback(EntropyCallback(TEXT, every=2, parts=("heads", "layers", "lens")))
    plain.train()
    watched.train()
    assert all(torch.equal(one, two) for one, two in zip(weights(plain), weights(watched), strict=True))
    assert sorted(told(watched)) == [0, 2, 4]
    assert watched.model.training == plain.model.training


def test_its_figures_are_those_of_the_command(folder, tmp_path):
    trainer = sft(folder, tmp_path / "a")
    callback = EntropyCallback(TEXT, every=3)
    trainer.add_callback(callback)
    trainer.train()
    rows = told(trainer)
    assert sorted(rows) == [0, 3, 4]
    start = figures_of(measure(load(folder), TEXT, source="text", parts=("heads", "layers")))
    assert {key: rows[0][key] for key in start} == pytest.approx(start, rel=1e-5)
    assert not any("lens" in key for key in rows[0])
    trainer.model.save_pretrained(tmp_path / "end")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "end")
    end = figures_of(measure(load(tmp_path / "end"), TEXT, source="text", parts=("heads", "layers")))
    assert {key: rows[4][key] for key in end} == pytest.approx(end, rel=1e-5)
    assert rows[4]["isentrope/entropy"] != rows[0]["isentrope/entropy"]
    assert callback.last is not None
    assert -float(callback.last.tokens["log_prob"].mean()) == rows[4]["isentrope/surprise"]
    assert rows[0]["isentrope/entropy"] <= math.log(callback.last.vocab)
    assert 0 < rows[4]["isentrope/cost"] < 1
    assert callback.spent == pytest.approx(sum(row["isentrope/seconds"] for row in rows.values()))


def test_trackers_see_it_through_the_trainers_log(folder, tmp_path):
    trainer, seen = sft(folder, tmp_path / "a"), []
    log = trainer.log
    trainer.log = lambda logs, *rest: (seen.append(dict(logs)), log(logs, *rest))[1]
    trainer.add_callback(EntropyCallback(TEXT, every=2, log=trainer.log, parts=()))
    trainer.train()
    measured = [row for row in seen if "isentrope/entropy" in row]
    assert len(measured) == 3
    assert not any("heads" in key or "layers" in key for row in measured for key in row)
    assert sorted(told(trainer)) == [0, 2, 4]


def test_adapters_are_measured_with_the_model(folder, tmp_path):
    trainer = sft(folder, tmp_path / "a", peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    trainer.add_callback(EntropyCallback(TEXT, every=4))
    trainer.train()
    rows = told(trainer)
    assert rows[0]["isentrope/entropy"] != rows[4]["isentrope/entropy"]
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "end")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "end")
    end = figures_of(measure(load(tmp_path / "end"), TEXT, source="text", parts=()))
    assert rows[4]["isentrope/entropy"] == pytest.approx(end["isentrope/entropy"], rel=1e-4)


def test_what_cannot_be_measured_is_said_at_once(folder, tmp_path):
    for settings, said in (({"every": 0}, "at least 1"), ({"parts": ("hands",)}, "Got hands"), ({"text": " \n"}, "text is empty")):
        with pytest.raises(UserError, match=said):
            EntropyCallback(**{"text": TEXT, **settings})
    trainer = sft(folder, tmp_path / "a")
    with pytest.raises(UserError, match="Got Linear"):
        EntropyCallback(TEXT).on_train_begin(trainer.args, trainer.state, trainer.control, model=torch.nn.Linear(2, 2), processing_class=None)
    with pytest.raises(UserError, match="processing_class"):
        EntropyCallback(TEXT).on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model, processing_class=None)
