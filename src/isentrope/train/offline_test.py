"""The offline host against stock TRL's SFT trainer: bit for bit with a neutral chain; split without change; resumed exactly."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from isentrope.control.papers.hapo import Hapo
from isentrope.control.recipes.entropy_sft import EntropySft
from isentrope.control.stages import Intervention, TokenWeight
from isentrope.control.step import Need
from isentrope.errors import UserError
from isentrope.measure.tokens import Entropy
from isentrope.train.offline import OfflineTrainer
from isentrope.train.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def text(rows: int = 48, **columns) -> Dataset:
    """Completions of unequal length."""
    data = {
        "prompt": [f"{index % 7}+{index % 11}=" for index in range(rows)],
        "completion": [f"{index % 7 + index % 11}" + "abcdefgh"[: index % 9] for index in range(rows)],
    }
    return Dataset.from_dict({**data, **columns})


def options(tmp_path, **changes) -> SFTConfig:
    base = dict(  # noqa: C408
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=3, learning_rate=1e-2, logging_steps=1, report_to="none",
        save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True, max_length=None,
    )  # fmt: skip
    return SFTConfig(**(base | changes))


class Watch(TrainerCallback):
    """Gradients just before every optimiser step."""

    def __init__(self):
        self.gradients: list[list[torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])


def run(cls, model_path, args, *, data=None, resume=None, **more):
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = cls(model=model_path, args=args, train_dataset=text() if data is None else data, callbacks=[watch], **more)
        trainer.train(resume_from_checkpoint=resume)
    logs = [{k: v for k, v in entry.items() if k in TOLD} for entry in trainer.state.log_history if "loss" in entry]
    return trainer, logs, watch.gradients, [parameter.detach().clone() for parameter in trainer.model.parameters()]


TOLD = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")


def equal(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def far(ours, theirs) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("control", [[], [EntropySft(keep=1.0)]], ids=["empty", "neutral"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_neutral_chain_equals_stock_trl_bit_for_bit(model_path, tmp_path, control, accumulation):
    args = options(tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4)
    _, theirs, gradients, weights = run(SFTTrainer, model_path, args)
    trainer, ours, own_gradients, own_weights = run(OfflineTrainer, model_path, args, control=control)
    assert not trainer.own_head
    assert [{k: v for k, v in row.items() if k in TOLD} for row in ours] == theirs
    assert all(equal(a, b) for a, b in zip(own_gradients, gradients, strict=True))
    assert equal(own_weights, weights)


@dataclass(frozen=True)
class Nothing(Intervention):
    """Asks for signals of both policies, and does nothing."""

    name = "nothing"
    source = "none"
    anchored = True

    @property
    def needs(self):
        return (Need(Entropy()), Need(Entropy(), "old"))

    def weight(self, step, stats, state):
        return TokenWeight()


def test_our_head_agrees_with_trls(model_path, tmp_path):
    """The loss through our head, which the signals need, is stock TRL's within float32."""
    _, theirs, gradients, _ = run(SFTTrainer, model_path, options(tmp_path))
    trainer, ours, own, _ = run(OfflineTrainer, model_path, options(tmp_path), control=[Nothing()])
    assert trainer.own_head
    for mine, stock in zip(ours, theirs, strict=True):
        assert {key: mine[key] for key in TOLD} == pytest.approx({key: stock[key] for key in TOLD}, rel=2e-4)
    assert far(own[0], gradients[0]) < 1e-6


@dataclass(frozen=True)
class Spy(Nothing):
    """Notes what it is given."""

    seen: tuple[list, ...] = ()

    def __hash__(self):
        return id(self.seen)

    def weight(self, step, stats, state):
        self.seen[0].append(step)
        return TokenWeight()


def test_a_link_sees_the_rows_of_its_text(model_path, tmp_path):
    """Origin, advantage, group, the base's entropy (equal to the current one before the first update) and the KL to it (then 0)."""
    seen: list = []
    data = text(advantage=[float(index % 3 - 1) for index in range(48)], group=list(range(48)))
    trainer, *_ = run(OfflineTrainer, model_path, options(tmp_path), data=data, control=[Spy(seen=(seen,))])
    first, last = seen[0], seen[-1]
    assert set(first.rollouts.origin.tolist()) == {3}
    assert torch.equal(first.rollouts.group % 3 - 1, first.advantage.squeeze(1).long())
    assert torch.allclose(first.signal("old.entropy"), first.signal("current.entropy"), atol=1e-6)
    assert float(first.signal("current.base_kl").detach().abs().max()) < 1e-6
    assert float(last.signal("current.base_kl").detach().max()) > 1e-4
    assert not torch.allclose(last.signal("old.entropy"), last.signal("current.entropy"), atol=1e-4)
    ids = first.rollouts.completion_ids[0][first.mask[0]]
    assert trainer.processing_class.decode(ids).endswith("<eos>")


def test_an_advantage_weighs_its_row(model_path, tmp_path):
    """Advantage -2 on every row: minus twice the stock gradient."""
    data = text(advantage=[-2.0] * 48)
    _, _, gradients, _ = run(SFTTrainer, model_path, options(tmp_path, max_grad_norm=0.0))
    _, _, own, _ = run(OfflineTrainer, model_path, options(tmp_path, max_grad_norm=0.0), data=data)
    assert all(torch.allclose(a, -2 * b, atol=1e-6) for a, b in zip(own[0], gradients[0], strict=True))


def test_entropy_sft_does_not_depend_on_how_the_update_is_split(model_path, tmp_path):
    """The choice is made over the update: 1 x 12 rows and 3 x 4 rows give the same gradient; per micro-batch they do not."""
    found = {}
    for scope in ("update", "micro-batch"):
        for rows, slices in ((12, 1), (4, 3)):
            args = options(tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=slices, max_steps=1)
            found[scope, slices] = run(OfflineTrainer, model_path, args, control=[EntropySft(keep=0.3, scope=scope)])[2][0]
    assert far(found["update", 1], found["update", 3]) < 1e-6
    assert far(found["micro-batch", 1], found["micro-batch", 3]) > 1e-4


def test_it_keeps_the_stated_share(model_path, tmp_path):
    trainer, logs, *_ = run(OfflineTrainer, model_path, options(tmp_path), control=[EntropySft(keep=0.5)])
    told = [entry["link/entropy-sft/touched"] for entry in trainer.state.log_history if "loss" in entry]
    assert told == pytest.approx([0.5] * 3, abs=0.02)  # removed
    assert logs[0]["loss"] > run(OfflineTrainer, model_path, options(tmp_path))[1][0]["loss"]  # the kept tokens are the hard ones


def test_other_links_of_the_same_stages_run_here(model_path, tmp_path):
    trainer, *_ = run(OfflineTrainer, model_path, options(tmp_path, max_steps=1), control=["forking-tokens", {"name": "siren"}])
    assert trainer.state.log_history[0]["link/forking-tokens/touched"] > 0.5


@dataclass(frozen=True)
class Counter(Intervention):
    """A controller: the weight of every token grows with the updates made."""

    name = "counter"
    source = "none"

    def init(self):
        return {"updates": 0}

    def weight(self, step, stats, state):
        return TokenWeight(torch.full(step.mask.shape, 1.0 + int(state["updates"])))

    def update(self, state, stats, progress):
        return {"updates": int(state["updates"]) + 1}


def test_a_resumed_run_ends_as_the_whole_one(model_path, tmp_path):
    """Controllers and the base travel with the checkpoint."""
    control = [Counter(), Nothing(), EntropySft(keep=0.5)]
    args = options(tmp_path / "whole", max_steps=4, save_strategy="steps", save_steps=2)
    _, _, _, whole = run(OfflineTrainer, model_path, args, control=control)
    again, _, _, resumed = run(OfflineTrainer, model_path, args, control=control, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.chain_state[0] == {"updates": 4}
    assert equal(whole, resumed)
    (tmp_path / "whole" / "checkpoint-2" / "isentrope-offline.pt").unlink()
    with pytest.raises(UserError, match="not written by isentrope's offline host"):
        run(OfflineTrainer, model_path, args, control=control, resume=str(tmp_path / "whole" / "checkpoint-2"))


def test_evaluation_stays_plain_cross_entropy(model_path, tmp_path):
    losses = {}
    for cls, more in ((SFTTrainer, {}), (OfflineTrainer, {"control": [EntropySft(keep=0.1)]})):
        trainer = cls(model=model_path, args=options(tmp_path), train_dataset=text(), eval_dataset=text(16), **more)
        losses[cls] = trainer.evaluate()["eval_loss"]
    assert losses[OfflineTrainer] == losses[SFTTrainer]


def test_with_adapters_the_base_is_the_model_without_them(model_path, tmp_path):
    from peft import LoraConfig

    seen: list = []
    args = options(tmp_path, max_steps=2, learning_rate=0.1)
    trainer, *_ = run(
        OfflineTrainer, model_path, args, control=[Spy(seen=(seen,))],
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=True),
    )  # fmt: skip
    assert trainer._base is None
    assert float(seen[0].signal("current.base_kl").detach().abs().max()) < 1e-6
    assert float(seen[-1].signal("current.base_kl").detach().max()) > 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"packing": True, "max_length": 32}, "packing"), ({"loss_type": "dft"}, "loss_type='dft'"), ({"label_smoothing_factor": 0.1}, "label_smoothing_factor")],
)  # fmt: skip
def test_what_is_not_carried_is_refused_by_name(model_path, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        OfflineTrainer(model=model_path, args=options(tmp_path, **changes), train_dataset=text())


def test_links_of_other_stages_are_refused_by_name(model_path, tmp_path):
    with pytest.raises(UserError, match=r"hapo has the stage .*sample.*Stages here: survey, weight"):
        OfflineTrainer(model=model_path, args=options(tmp_path), train_dataset=text(), control=[Hapo()])


def test_the_script_of_the_docs_runs():
    script = (Path(__file__).parents[3] / "docs" / "offline.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(script, found)
    assert found["trainer"].state.global_step == 2
