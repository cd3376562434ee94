"""A ledger beside real trainers: the training does not notice it, its books balance, and what it cannot do it says."""

import warnings

import polars as pl
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from isentrope.tape import Tape, TapeWriter
from isentrope.train.ledger import Ledger
from isentrope.train.recorder import TapeRecorder
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.trl_test import options

WAYS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "iterations": {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
    "decay-and-clip": {"weight_decay": 0.1, "max_grad_norm": 0.05},
    "no-clip": {"max_grad_norm": 0.0},
    "kl": {"beta": 0.1},
    "sgd": {"optim": "sgd", "learning_rate": 1.0},
}
CHAINS = {"empty": [], "two": [{"name": "clip-cov", "ratio": 0.1, "low": -1.0, "high": 1.0}, {"name": "entropy-bonus", "coef": 0.05}]}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def train(model_path, folder, *, way=None, control=(), every=1, tokens_every=None, peft=None, max_steps=3, **ledger):
    """A trainer that has trained, its tape, and the warnings of its ledger."""
    writer, said = TapeWriter(folder / "tape"), []
    books = None if every is None else Ledger(writer, every=every, warn=lambda kind, message: said.append((kind, message)), **ledger)
    args = options(folder / "out", max_steps=max_steps, **(way or {}))
    trainer = IsentropeTrainer(
        model=model_path, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), control=list(control), ledger=books, peft_config=peft,
        recorder=TapeRecorder(writer, tokens_every=tokens_every), correct_at=0.2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    writer.flush(max_steps)
    return trainer, Tape.read(folder), said


def weights(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def exact_gradients(model_path):
    """The model in float64, and with the gradient of its padding row, which torch drops: this toy samples padding in the middle of its text."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    model.model.embed_tokens.padding_idx = None
    return model


# --- it disturbs nothing


@pytest.mark.parametrize(
    ("way", "links", "tokens_every"), [("plain", "empty", None), ("plain", "two", None), ("accumulation", "two", 1), ("iterations", "empty", 1)]
)
def test_a_run_with_its_ledger_ends_in_the_same_weights_and_random_state(way, links, tokens_every, model_path, tmp_path):
    common = {"way": WAYS[way], "control": CHAINS[links], "tokens_every": tokens_every}
    without, _, _ = train(model_path, tmp_path / "without", every=None, **common)
    state = torch.get_rng_state()
    beside, tape, _ = train(model_path, tmp_path / "beside", **common)
    assert len(tape.table("ledger")) == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(without), weights(beside), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert beside.model.training == without.model.training


def test_weights_modes_and_gradients_are_left_bit_for_bit(model_path, tmp_path, monkeypatch):
    seen = []
    inner = Ledger.before_step

    def watched(self, trainer):
        trainer.model.lm_head.eval()  # one module in another mode than the rest
        look = lambda: (  # noqa: E731
            [p.detach().clone() for p in trainer.model.parameters()], [p.grad.clone() for p in trainer.model.parameters()],
            [module.training for module in trainer.model.modules()],
        )  # fmt: skip
        before = look()
        inner(self, trainer)
        seen.append((before, look()))

    monkeypatch.setattr(Ledger, "before_step", watched)
    train(model_path, tmp_path)
    assert len(seen) == 3
    for before, after in seen:
        for ours, theirs in zip(before[:2], after[:2], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert before[2] == after[2]


# --- the books balance


BOOKS = [(way, "two" if way in ("accumulation", "decay-and-clip", "sgd") else "empty") for way in WAYS]


@pytest.mark.parametrize(("way", "links"), BOOKS)
def test_accounts_add_up_to_the_measured_change_and_tokens_to_their_account(way, links, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("isentrope.train.ledger.REACH", 1e-4)
    _, tape, said = train(exact_gradients(model_path), tmp_path, way={"learning_rate": 1e-3} | WAYS[way], control=CHAINS[links])
    assert not said
    rows = tape.table("ledger")
    names = [name for name in rows.columns if name.startswith("account/")]
    assert len(names) == 5
    for row in rows.iter_rows(named=True):
        assert row["opening"] + sum(row[name] for name in names) == pytest.approx(row["closing"], abs=1e-12)
        assert sum(row[name] for name in names if name != "account/residual") == pytest.approx(row["theory/exact"], rel=1e-9, abs=1e-12)
        assert row["attributed"] == pytest.approx(row["account/this_batch"], abs=5e-4 * (row["raised"] - row["lowered"]))
        assert row["raised"] + row["lowered"] == pytest.approx(row["attributed"])
        assert row["raised"] > 0 > row["lowered"]
    assert (rows["account/weight_decay"] != 0).all() == (way == "decay-and-clip")
    assert (rows["account/gradient_clipping"] != 0).all() == (way == "decay-and-clip")
    assert rows["account/momentum"][0] == 0
    assert (rows["account/momentum"][1:] != 0).all() == (way != "sgd")
    parts = tape.table("ledger_parts")
    for (_, by), found in parts.group_by("step", "by"):
        step = found["step"][0]
        if by != "text":
            assert found["part"].sum() == pytest.approx(rows.filter(pl.col("step") == step)["attributed"][0], abs=1e-9)
            assert found["tokens"].sum() == rows.filter(pl.col("step") == step)["tokens"][0]


def test_the_opening_alone_misses_by_second_order_and_half_way_misses_little(model_path, tmp_path):
    missed = []
    for rate in (0.2, 0.1):
        _, tape, _ = train(exact_gradients(model_path), tmp_path / str(rate), way={"optim": "sgd", "learning_rate": rate}, max_steps=1)
        row = tape.table("ledger").row(0, named=True)
        missed.append(row["measured"] - row["theory/first_order"])
        assert abs(row["measured"] - row["theory/exact"]) < 0.2 * abs(missed[-1])
        assert row["account/residual"] == pytest.approx(row["measured"] - row["theory/exact"], rel=1e-2)
    assert missed[0] / missed[1] == pytest.approx(4, rel=0.2)


def test_the_opening_is_the_entropy_that_the_recorder_saw(model_path, tmp_path):
    _, tape, _ = train(model_path, tmp_path, every=2, tokens_every=1)
    rows = tape.table("ledger")
    assert rows["step"].to_list() == [1, 3]
    seen = tape.steps.filter(pl.col("step").is_in([1, 3]))
    assert rows["opening"].to_list() == pytest.approx(seen["entropy/mean"].to_list(), abs=1e-5)


def test_few_rows_at_a_time_give_the_same_books(model_path, tmp_path):
    _, whole, _ = train(model_path, tmp_path / "whole", way=WAYS["accumulation"], control=CHAINS["two"])
    _, split, _ = train(model_path, tmp_path / "split", way=WAYS["accumulation"], control=CHAINS["two"], rows=3)
    for name in ("opening", "measured", "theory/exact", "account/this_batch", "attributed", "link/clip-cov"):
        assert split.table("ledger")[name].to_list() == pytest.approx(whole.table("ledger")[name].to_list(), rel=1e-2, abs=2e-6), name


def test_what_a_link_adds_is_the_token_rule_with_it_less_without(model_path, tmp_path):
    _, tape, _ = train(model_path, tmp_path, control=CHAINS["two"][:1], tokens_every=1)
    rows, steps = tape.table("ledger"), tape.steps
    without = rows["theory/token_rule"] - rows["link/clip-cov"]
    removed = 1 - rows["theory/token_rule"] / without
    assert removed.to_list() == pytest.approx(steps["removed/clip-cov"].to_list(), rel=1e-3)


def test_the_most_responsible_tokens_come_with_their_text(model_path, tmp_path):
    trainer, tape, _ = train(model_path, tmp_path, tokens=5, decode=lambda ids: "".join(chr(97 + id % 26) for id in ids))
    tokens = tape.table("ledger_tokens")
    assert len(tokens) == 15
    for _, found in tokens.group_by("step"):
        size = found["part"].abs().to_list()
        assert size == sorted(size, reverse=True)
        assert (found["text"].str.len_chars() == 1).all()
        assert (found["before"].str.len_chars() == found["position"]).all()
    shares = tape.table("ledger_parts").filter(pl.col("by") == "response")
    assert shares["tokens"].max() <= trainer.args.max_completion_length


# --- where it cannot be kept


def test_adapters_have_books_too(model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("isentrope.train.ledger.REACH", 1e-4)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.0)
    _, tape, said = train(exact_gradients(model_path), tmp_path, peft=lora, way={"learning_rate": 1e-2})
    rows = tape.table("ledger")
    assert not said
    gap = (rows["attributed"] - rows["account/this_batch"]).abs() / (rows["raised"] - rows["lowered"])
    assert gap.max() < 1e-3
    assert (rows["measured"] != 0).all()


def test_an_optimiser_that_cannot_be_split_keeps_the_prediction_and_says_why(model_path, tmp_path):
    _, tape, said = train(model_path, tmp_path, way={"optim": "adafactor"})
    rows = tape.table("ledger")
    assert [kind for kind, _ in said] == ["ledger-accounts"]
    assert "Adafactor" in said[0][1]
    assert "account/this_batch" not in rows.columns
    assert (rows["measured"] - rows["theory/exact"]).to_list() == pytest.approx(rows["account/residual"].to_list())
    assert not len(tape.table("ledger_parts"))


def test_coarse_weights_are_refused_once_with_the_way_out(model_path, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    _, tape, said = train(model, tmp_path)
    assert not len(tape.table("ledger"))
    ((kind, message),) = said
    assert kind == "ledger-off"
    assert "bfloat16" in message
    assert "model.dtype" in message


def test_memory_that_runs_out_ends_the_ledger_and_not_the_run(model_path, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    plain, _, _ = train(model_path, tmp_path / "plain", every=None)
    monkeypatch.setattr("isentrope.train.ledger.token_parts", full)
    trainer, tape, said = train(model_path, tmp_path / "full")
    assert [kind for kind, _ in said] == ["ledger-off"]
    assert "ledger.rows" in said[0][1]
    assert not len(tape.table("ledger"))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(trainer), strict=True))
