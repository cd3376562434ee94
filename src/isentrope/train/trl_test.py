"""The host against stock TRL: bit for bit with an empty chain; split, spread and resumed without change."""

import sys
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from isentrope.control.stages import Intervention
from isentrope.control.step import Need, Step
from isentrope.errors import UserError
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, LogProb, MaxProb, TargetProb, token_signals_from_logits
from isentrope.train.carried import check_host
from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer, NonFiniteLoss


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


class Watch(TrainerCallback):
    """Gradients just before every optimiser step."""

    def __init__(self):
        self.gradients: list[list[torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append([parameter.grad.clone() for parameter in model.parameters()])


def options(tmp_path, **changes) -> GRPOConfig:
    base = dict(  # noqa: C408
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=8, max_steps=3, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    return GRPOConfig(**(base | changes))


def run(cls, model_path, args, **more):
    watch = Watch()
    trainer = cls(model=model_path, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), callbacks=[watch], **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, watch.gradients, [parameter.detach().clone() for parameter in trainer.model.parameters()]


CASES = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "sapo": {"loss_type": "sapo"},
    "delta": {"loss_type": "dapo", "delta": 1.5, "epsilon_high": 0.28},
}
WAYS = {
    "plain": {},
    "kl": {"beta": 0.1},
    "iterations": {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "kl+iterations": {"beta": 0.1, "num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_empty_chain_equals_stock_trl_bit_for_bit(case, way, model_path, tmp_path):
    args = CASES[case] | WAYS[way]
    _, stock_losses, stock_gradients, stock_weights = run(GRPOTrainer, model_path, options(tmp_path / "stock", **args))
    _, losses, gradients, weights = run(IsentropeTrainer, model_path, options(tmp_path / "ours", **args))
    assert losses == stock_losses
    assert len(gradients) == len(stock_gradients) == 3
    for ours, theirs in zip(gradients, stock_gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, stock_weights, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])  # equality of zeros would show nothing


def test_stock_metrics_keep_their_names_and_values(model_path, tmp_path):
    args = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1, "beta": 0.1}
    stock, *_ = run(GRPOTrainer, model_path, options(tmp_path / "stock", **args))
    ours, *_ = run(IsentropeTrainer, model_path, options(tmp_path / "ours", **args))
    for theirs, mine in zip(stock.state.log_history, ours.state.log_history, strict=True):
        for key, value in theirs.items():
            if key not in ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"):
                assert mine[key] == pytest.approx(value, abs=1e-7, nan_ok=True), key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss_type": "vespo"}, ["loss_type", "vespo", "dapo"]),
        ({"top_entropy_quantile": 0.2}, ["top_entropy_quantile", "forking-tokens"]),
        ({"entropy_coef": 0.01}, ["entropy_coef"]),
        ({"off_policy_mask_threshold": 0.5}, ["off_policy_mask_threshold"]),
    ],
)
def test_what_is_not_carried_is_refused_by_name(change, words, model_path, tmp_path):
    with pytest.raises(UserError) as refusal:
        IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path, **change), train_dataset=toy_prompts())
    for word in words:
        assert word in str(refusal.value)


RESUMED = {
    "iterations": {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1},
    "slices": {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4},
    "epochs": {"per_device_train_batch_size": 8, "num_generations": 4},  # 8 prompts: an epoch is 4 updates
}


@pytest.mark.parametrize("way", RESUMED)
def test_resume_from_any_step_equals_the_straight_run(way, model_path, tmp_path):
    """Stock TRL forgets its step counter, its buffered rollouts and the epoch's permutation."""
    rows = 8 if way == "epochs" else 64
    args = RESUMED[way] | {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}

    def trainer(folder):
        return IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(folder, **args), train_dataset=toy_prompts(rows))

    straight = trainer(tmp_path / "run")
    straight.train()
    for stop in (1, 3, 5):
        resumed = trainer(tmp_path / "again" / str(stop))
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
        for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
            assert torch.equal(ours, theirs), f"resumed from {stop}"
        assert resumed.state.global_step == 6


def test_stock_resume_drifts_so_the_test_above_can_fail(model_path, tmp_path):
    args = RESUMED["slices"] | {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    *_, weights = run(GRPOTrainer, model_path, options(tmp_path / "run", **args))
    again = GRPOTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path / "again", **args), train_dataset=toy_prompts())
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert any(not torch.equal(a, b) for a, b in zip(again.model.parameters(), weights, strict=True))


class Listener:
    """A recorder that keeps every step it is told of."""

    signals = (Discriminant(), ExpectedDiscriminant(), TargetProb(), MaxProb())

    def __init__(self):
        self.steps: list[Step] = []
        self.updates = 0

    def begin(self) -> None: ...
    def generation(self, trainer, prompts, rollouts) -> None:
        self.rollouts = rollouts

    def slice(self, trainer, step, stats, result) -> None:
        self.steps.append(step.detached())

    def update(self, trainer) -> None:
        self.updates += 1

    def measured(self) -> dict:
        return {}

    def state(self) -> dict:
        return {}

    def load_state(self, state) -> None: ...


@pytest.mark.parametrize("way", ["plain", "kl", "accumulation"])
def test_our_head_gives_the_weights_of_trls_within_rounding(way, model_path, tmp_path):
    args = CASES["dapo"] | WAYS[way]
    _, stock_losses, stock_gradients, _ = run(GRPOTrainer, model_path, options(tmp_path / "stock", **args))
    listener = Listener()
    _, losses, gradients, _ = run(IsentropeTrainer, model_path, options(tmp_path / "ours", **args), recorder=listener)
    assert losses[0] == pytest.approx(stock_losses[0], abs=1e-5)
    for ours, theirs in zip(gradients[0], stock_gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert listener.updates == 3


def test_signals_of_the_host_are_those_of_the_full_softmax(model_path, tmp_path):
    listener = Listener()
    trainer, *_ = run(IsentropeTrainer, model_path, options(tmp_path, learning_rate=0.0), recorder=listener)
    step = listener.steps[0]
    batch = trainer._buffered_inputs[0] if trainer._buffered_inputs else None
    assert batch is not None
    last = listener.steps[-1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -last.mask.shape[1] - 1 : -1].double()
    wanted = token_signals_from_logits(logits, batch["completion_ids"], [LogProb(), Entropy(), *Listener.signals])
    torch.testing.assert_close(last.log_probs[last.mask].double(), wanted["log_prob"][last.mask], rtol=0, atol=2e-6)
    for key in ("entropy", "S", "N", "p", "max_p"):
        torch.testing.assert_close(last.signals[f"current.{key}"][last.mask].double(), wanted[key][last.mask], rtol=0, atol=2e-6)
    assert step.rollouts.row_id.unique().numel() == len(step.rollouts)


@dataclass(frozen=True)
class Watcher(Intervention):
    """Declares signals of the behaviour policy and changes nothing."""

    name, source = "watcher", "a test"

    @property
    def needs(self):
        return (Need(LogProb(grad=False), policy="old"), Need(Entropy(), policy="old"))

    def advantage(self, rollouts, state):
        return rollouts.advantage


def test_declared_signals_of_the_old_policy_are_scored_its_log_probs_too(model_path, tmp_path):
    listener = Listener()
    run(IsentropeTrainer, model_path, options(tmp_path, max_steps=1), recorder=listener, control=[Watcher()])
    step = listener.steps[0]  # before the first update the old policy is the current one
    assert set(listener.rollouts.signals) == {"old.log_prob", "old.entropy"}
    old = {key: value[step.rollouts.trained_mask] for key, value in step.rollouts.signals.items()}
    torch.testing.assert_close(old["old.log_prob"], step.log_probs[step.mask], rtol=0, atol=2e-6)
    torch.testing.assert_close(old["old.entropy"], step.signals["current.entropy"][step.mask], rtol=0, atol=2e-6)


def test_a_link_that_can_do_nothing_is_told_once_with_the_reason(model_path, tmp_path):
    def told(link: str, **changes) -> list[str]:
        args = options(tmp_path, **changes)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), control=[link])
        return [str(one.message) for one in seen if "does nothing" in str(one.message)]

    (reason,) = told("clip-higher")
    assert reason.startswith("clip-higher does nothing in this run: with one update per generation every ratio is 1.")
    assert told("dual-clip", loss_type="sapo", num_iterations=2) == [
        "dual-clip does nothing in this run: the objective's form 'sapo' takes no such bound of the ratio."
    ]
    assert told("clip-higher", num_iterations=2) == []


def test_unsloth_and_an_untested_trl_are_refused(monkeypatch, model_path, tmp_path):
    monkeypatch.setitem(sys.modules, "unsloth", object())
    with pytest.raises(UserError, match="Unsloth is loaded"):
        IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts())
    monkeypatch.delitem(sys.modules, "unsloth")
    monkeypatch.setattr("isentrope.train.carried.version", lambda package: "1.17.2")
    with pytest.raises(UserError, match=r"TRL 1\.17\.2 is not tested.*1\.16"):
        IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts())


def test_a_changed_private_method_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_prepare_inputs", lambda self, batch: batch)
    with pytest.raises(UserError, match=r"GRPOTrainer\._prepare_inputs has no parameter generation_batch"):
        check_host()


def test_nan_loss_stops_the_run_saves_the_batch_and_names_the_stage(model_path, tmp_path):
    class Poisoned(IsentropeTrainer):
        def _make_step(self, model, inputs):
            step, entropy = super()._make_step(model, inputs)
            if self.state.global_step == 1:
                step = replace(step, log_probs=step.log_probs * float("nan"))
            return step, entropy

    with pytest.raises(NonFiniteLoss, match=r"step 2: .*the model's log-probs \(stage policy") as stop:
        run(Poisoned, model_path, options(tmp_path))
    assert set(torch.load(stop.value.path, weights_only=True)) >= {"completion_ids", "advantages"}


def test_nan_gradient_stops_before_the_weights_see_it(model_path, tmp_path):
    class Poisoned(IsentropeTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            if self.state.global_step == 1:
                loss.register_hook(lambda gradient: gradient * float("nan"))
            return loss

    trainer = Poisoned(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts())
    with pytest.raises(NonFiniteLoss, match=r"step 2: not finite, first in the gradient \(backward pass\)") as stop:
        trainer.train()
    assert all(bool(torch.isfinite(weight).all()) for weight in trainer.model.parameters())
    assert set(torch.load(stop.value.path, weights_only=True)[0]) >= {"completion_ids", "advantages"}


def test_probabilities_that_are_not_finite_stop_the_run_and_name_the_weights_or_the_forward_pass(model_path, tmp_path):
    trainer = IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts())
    head = trainer.model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        head[0, 0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"step 1: not finite, first in the weights \(of model\.layers\.0\.mlp\.up_proj\.weight") as stop:
        trainer.train()
    assert set(torch.load(stop.value.path, weights_only=True)) == {"prompt_ids"}
    with torch.no_grad():
        trainer.model.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(NonFiniteLoss, match=r"first in the model's probabilities while sampling \(the forward pass; the weights are finite\)"):
        trainer.train()


def test_a_batch_that_cannot_be_saved_does_not_hide_the_cause(model_path, tmp_path):
    trainer = IsentropeTrainer(model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path), train_dataset=toy_prompts())
    trainer.failure_directory = tmp_path / "file"
    trainer.failure_directory.write_text("in the way")
    with pytest.raises(NonFiniteLoss, match="first in here") as stop:
        trainer._stop("here", {})
    assert stop.value.path is None


@pytest.mark.parametrize(("correct_at", "expected"), [(1.0, 0.0), (0.0, 1.0)])
def test_what_counts_as_correct_is_set_by_its_threshold(correct_at, expected, model_path, tmp_path):
    listener = Listener()
    run(IsentropeTrainer, model_path, options(tmp_path, max_steps=1), recorder=listener, correct_at=correct_at)
    assert listener.rollouts.correct.mean().item() == expected
    assert 0 < listener.rollouts.reward.mean() < 1


def test_rewards_that_are_all_none_train_nothing_and_stay_finite(model_path, tmp_path):
    trainer = IsentropeTrainer(
        model=model_path, reward_funcs=lambda completions, **columns: [None] * len(completions), args=options(tmp_path), train_dataset=toy_prompts()
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_peft_adapters_train_through_our_head(model_path, tmp_path):
    from peft import LoraConfig

    listener = Listener()
    trainer = IsentropeTrainer(
        model=model_path, reward_funcs=share_of_vowels, args=options(tmp_path, max_steps=2), train_dataset=toy_prompts(), recorder=listener,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved
    assert all("lora" in name for name in moved)
    assert listener.updates == 2
