"""The TRL host against the recorded pure function: the same batches through TRL's own buffer, shuffle and slices. The verl host's half of this is
`tests/verl_host/test_conformance.py`, in its own environment."""

import warnings
from pathlib import Path

import pytest
import torch
from conformance.recorded import ROWS, SEED, TEMPERATURE, UPDATES, batches, cases, difference, fingerprint
from transformers import TrainerCallback
from trl import GRPOConfig

import isentrope
from isentrope.control.objectives import Objective
from isentrope.control.registry import registry
from isentrope.control.step import Rollouts
from isentrope.train.batch import pack
from isentrope.train.tiny import share_of_vowels, toy_prompts
from isentrope.train.trl import IsentropeTrainer
from isentrope.train.verl_carried import LOSS, side, why_not

MODEL = str(Path(isentrope.__file__).parent / "assets" / "base-model")
OBJECTIVE = Objective(dual_clip=3.0, log_ratio_clamp=20.0, empty_rows="exclude")
FAST = ("nothing", "clip-v (embedded)", "epo (embedded)", "siren (embedded)")  # two seconds each; the others are slow
CASES = [pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow) for case in cases()]


class Given(IsentropeTrainer):
    """Generates the recorded batches; everything after that is the host."""

    def _generate_and_score_completions(self, inputs):
        given = batches()[self.generations]
        self.generations += 1
        old = {"old.entropy": given["old_entropy"], "old.p": given["old_log_probs"].exp()}
        old["old.S"] = old["old.p"] * (given["old_log_probs"] + given["old_entropy"])
        rollouts = Rollouts.of(
            given["trained_mask"], completion_mask=given["completion_mask"], completion_ids=given["responses"], group=given["group"], reward=given["reward"],
            correct=given["reward"], turn=given["turn"], signals={key: value for key, value in given.items() if key.startswith("old.")} | old,
        )  # fmt: skip
        output = {
            "prompt_ids": given["prompts"], "prompt_mask": torch.ones_like(given["prompts"]),
            "completion_ids": given["responses"], "completion_mask": given["completion_mask"].long(), "advantages": given["advantage"],
            "old_per_token_logps": given["old_log_probs"], "ref_per_token_logps": given["ref_log_probs"],
            "sampling_per_token_logps": given["sampling_log_probs"], "num_items_in_batch": given["trained_mask"].sum(),
        }  # fmt: skip
        return pack(rollouts, output)


class Watch(TrainerCallback):
    def __init__(self):
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_pure_function(case, tmp_path, record_property):
    args = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=ROWS // 2, num_generations=4, max_completion_length=12,
        max_steps=UPDATES, learning_rate=0.0, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=SEED,
        lr_scheduler_type="constant", disable_tqdm=True, temperature=TEMPERATURE, max_grad_norm=1e9, gradient_checkpointing=False,
    )  # fmt: skip
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Given(
            model=MODEL, reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), callbacks=[watch], control=case.chain, objective=OBJECTIVE
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for update in range(UPDATES):
        loss = abs(losses[update] - float(case.expected[f"{update}/loss"]))
        gradient = difference(fingerprint(watch.gradients[update]), case.expected, update)
        record_property("loss", loss)
        record_property("gradient", gradient)
        assert loss < 2e-6
        assert gradient < 2e-5


def test_every_intervention_that_both_hosts_carry_is_recorded():
    """A new one: `python scripts/record_conformance.py`."""
    both = {name for name, kind in registry().items() if not why_not(kind()) and side(kind()) == LOSS}
    assert {case.name.removesuffix(" (embedded)") for case in cases()} == both | {"nothing"}
