"""TRL's own loops of tool calls through our host: what the tools answered stands in the row, and turns and masks are read off TRL's mask.

TRL renders the calls, parses them and calls the tools, with the chat template of Qwen3 that it ships. A random model never calls a tool, so what the
policy says is scripted; everything after it is real.
"""

import json
import math
import os
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from isentrope.control.stages import Intervention, policy_loss, survey
from isentrope.errors import UserError
from isentrope.train import locked
from isentrope.train.tools import calculator, python
from isentrope.train.trl import IsentropeTrainer

END = "<|im_end|>"
closes = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in locked.MACHINES, reason="the filter of system calls is Linux's, on x86-64 and aarch64"
)


def said(text: str) -> str:
    return f"<think>\n\n</think>\n\n{text}{END}"


def call(name: str, **arguments) -> str:
    return said(f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>")


def result(*texts: str) -> str:
    """What the template writes between a call and what the policy says next."""
    responses = "".join(f"\n<tool_response>\n{text}\n</tool_response>" for text in texts)
    return f"\n<|im_start|>user{responses}{END}\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    """A random Llama of characters that reads a whole prompt with its tools."""
    folder = tmp_path_factory.mktemp("chat")
    words = ["<pad>", "<|im_start|>", END, *map(chr, range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=END, additional_special_tokens=["<|im_start|>"])
    fast.chat_template = qwen3_chat_template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=4096, pad_token_id=0, eos_token_id=2, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Looks(Intervention):
    """Keeps what the rollout stages see."""

    name = "looks"

    def __post_init__(self):
        object.__setattr__(self, "seen", [])

    def advantage(self, rollouts, state):
        self.__dict__["seen"].append(rollouts)
        return rollouts.advantage


class Script:
    """Says what `script` has for a row: the n-th item after n results of tools."""

    script: list[list[str]] = []

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        prompts = [self._tokenizer.decode(ids) for ids in prompt_ids]
        turns = [prompt.count("<tool_response>") for prompt in prompts]
        if set(turns) == {0}:
            self.left = list(range(len(prompts)))
        else:  # TRL asks again for the rows that called a tool, in their order
            self.left = [row for row in self.left if len(self.script[row % 4]) > turns[0]]
        texts = [self.script[row % 4][turn] for row, turn in zip(self.left, turns, strict=True)]
        return [self._tokenizer(text)["input_ids"] for text in texts], None


class Ours(Script, IsentropeTrainer):
    pass


class Stock(Script, GRPOTrainer):
    pass


def trained(model_path, tmp_path, script, *, cls=Ours, rows=4, **more):
    """The trainer after one update, its loss, and its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=rows, num_generations=4, max_completion_length=600, max_steps=1, learning_rate=1e-2,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, disable_tqdm=True,
        )  # fmt: skip
        prompts = [[{"role": "user", "content": f"{row} + 1 ="}] for row in range(8)]
        Script.script = script
        trainer = cls(model=model_path, args=args, train_dataset=Dataset.from_dict({"prompt": prompts, "place": list("abcdabcd")}), **more)
        trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, loss, [parameter.detach() for parameter in trainer.model.parameters()]


def long_answers(completions, **columns):
    """Pays the numbers in the last message."""
    return [sum(letter.isdigit() for letter in completion[-1]["content"]) / 5 for completion in completions]


CALCULATES = [
    [call("calculator", expression="12 * (3 + 4)"), said("84")],
    [call("calculator", expression="6 * 7"), call("calculator", expression="1 / 0"), said("1")],
    [said("guess")],
    [call("abacus", beads="3"), said("nothing of it")],
]
ANSWERS = [["84"], ["42", "error: division by zero"], [], ["{'error': 'Tool abacus not found.'}"]]


def pieces(trainer, rollouts, row: int) -> list[tuple[int, bool, str]]:
    """(turn, whether the policy wrote it, text) of each unbroken run of a row."""
    found: list[tuple[int, bool, list[int]]] = []
    for place in rollouts.completion_mask[row].nonzero().flatten().tolist():
        key = (int(rollouts.turn[row, place]), bool(rollouts.trained_mask[row, place]))
        if not found or found[-1][:2] != key:
            found.append((*key, []))
        found[-1][2].append(int(rollouts.completion_ids[row, place]))
    return [(turn, wrote, trainer._tokenizer.decode(ids)) for turn, wrote, ids in found]


def expected(script: list[str], answers: list[str]) -> list[tuple[int, bool, str]]:
    rows = []
    for turn, text in enumerate(script):
        rows.append((turn, True, text))
        if turn < len(answers):
            rows.append((turn, False, result(answers[turn])))
    return rows


def test_tools_are_called_and_every_token_is_told(model_path, tmp_path):
    looks = Looks()
    trainer, _, _ = trained(model_path, tmp_path, CALCULATES, tools=[calculator], control=[looks], reward_funcs=long_answers)
    (rollouts,) = looks.seen
    for row in range(4):
        assert pieces(trainer, rollouts, row) == expected(CALCULATES[row], ANSWERS[row])
    assert [history["tools/call_frequency"] for history in trainer.state.log_history if "tools/call_frequency" in history] == [1.0]
    assert rollouts.reward.tolist() == pytest.approx([0.4, 0.2, 0.0, 0.0])
    assert rollouts.text[0].endswith("assistant: 84")
    assert not rollouts.truncated.any()


@closes
def test_a_program_runs_in_its_sandbox(model_path, tmp_path):
    looks = Looks()
    script = [[call("python", code="print(6 * 7)"), said("42")], [call("python", code="open('/etc/passwd')"), said("")], [said("a")], [said("b")]]
    trainer, _, _ = trained(model_path, tmp_path, script, tools=[python], control=[looks], reward_funcs=long_answers)
    told = [pieces(trainer, looks.seen[0], row)[1][2] for row in (0, 1)]
    assert told == [result("42\n"), result("PermissionError: [Errno 1] Operation not permitted: '/etc/passwd' (line 1)\n")]


def test_with_an_empty_chain_the_loss_and_the_weights_are_stock_trl_s(model_path, tmp_path):
    _, stock, weights = trained(model_path, tmp_path, CALCULATES, cls=Stock, tools=[calculator], reward_funcs=long_answers)
    trainer, ours, own = trained(model_path, tmp_path, CALCULATES, tools=[calculator], reward_funcs=long_answers)
    assert ours == stock != 0
    assert all(torch.equal(one, other) for one, other in zip(weights, own, strict=True))
    before = LlamaForCausalLM.from_pretrained(model_path).parameters()
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("control", ["empg", "earl"])
def test_the_loss_leaves_out_what_the_tools_said(model_path, tmp_path, control):
    """One update of a link of turns and of one of tokens."""
    trainer, loss, _ = trained(model_path, tmp_path, CALCULATES, tools=[calculator], control=[control], reward_funcs=long_answers)
    assert math.isfinite(loss)
    inputs = trainer._buffered_inputs[0]
    step, _ = trainer._make_step(trainer.model_wrapped, inputs)
    assert torch.equal(step.mask, (inputs["completion_mask"] * inputs["tool_mask"]).bool())
    assert int(step.mask.sum()) < int(inputs["completion_mask"].sum())
    stats = survey(step, trainer.objective, trainer.chain, trainer.chain_state, trainer.rng())
    result = policy_loss(step, trainer.objective, trainer.chain, stats, trainer.chain_state, trainer.rng())
    (slope,) = torch.autograd.grad(result.loss, step.log_probs)
    assert not slope[~step.mask].any()
    assert slope[step.mask].any()


class Room:
    """A thing lies behind one of four places; the environment pays who found it."""

    def reset(self, place: str = "a", **row) -> str:
        self.place, self.found = place, False
        return " a, b, c or d?"

    def look(self, where: str) -> str:
        """Looks behind a place.

        Args:
            where: One of a, b, c, d.
        """
        self.found = self.found or where == self.place
        return "here" if where == self.place else "none"

    def get_reward(self) -> float:
        return float(self.found)


LOOKS = [
    [call("look", where="a"), said("done")],
    [call("look", where="b"), call("look", where="a"), said("done")],
    [said("no")],
    [call("look", where="d"), said("?")],
]


def test_an_environment_is_one_of_each_row_and_its_turns_are_told(model_path, tmp_path):
    looks = Looks()
    trainer, _, _ = trained(model_path, tmp_path, LOOKS, rows=8, environment_factory=Room, control=["empg", looks])
    (rollouts,) = looks.seen
    for row in range(8):
        place = trainer.rows[row]["place"]
        tried = [next(where for where in "abcd" if f'"where": "{where}"' in text) for text in LOOKS[row % 4] if "look" in text]
        assert pieces(trainer, rollouts, row) == expected(LOOKS[row % 4], ["here" if where == place else "none" for where in tried])
        assert rollouts.reward[row] == float(place in tried)
    assert len(set(rollouts.reward.tolist())) == 2


def test_links_that_sample_refuse_the_loop_of_tools(model_path, tmp_path):
    for given in ({"tools": [calculator]}, {"environment_factory": Room}):
        with pytest.raises(UserError, match=rf"hapo samples by itself, which {next(iter(given))} gives no hook for"):
            trained(model_path, tmp_path, CALCULATES, control=["hapo"], reward_funcs=long_answers, **given)
