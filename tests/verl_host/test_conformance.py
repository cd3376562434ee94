"""The verl host against the recorded pure function: the same batches through verl's real worker, engine and `ppo_loss`, in four micro-batches."""

import numpy as np
import pytest
import small
import torch
from conformance.recorded import ROWS, SEED, TEMPERATURE, UPDATES, batches, cases, difference, fingerprint
from verl.utils import tensordict_utils as tu

CASES = cases()


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    small.one_process()
    yield
    torch.distributed.destroy_process_group()


def as_verl(given):
    """A recorded batch as verl's v1 trainer keeps it: rows without padding, numbers on response tokens, the reward on the last one."""
    lengths = given["completion_mask"].sum(-1).tolist()

    def rows(value):
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(value, lengths, strict=True)], layout=torch.jagged)

    width = given["prompts"].shape[1]
    text = torch.cat([given["prompts"], given["responses"]], 1)
    scores = torch.zeros_like(given["old_log_probs"])
    scores[torch.arange(ROWS), torch.tensor(lengths) - 1] = given["reward"]
    fields = {
        "prompts": torch.nested.as_nested_tensor(list(given["prompts"]), layout=torch.jagged),
        "input_ids": torch.nested.as_nested_tensor([row[: width + n] for row, n in zip(text, lengths, strict=True)], layout=torch.jagged),
        "position_ids": torch.nested.as_nested_tensor([torch.arange(width + n) for n in lengths], layout=torch.jagged),
        "responses": rows(given["responses"]), "response_mask": rows(given["trained_mask"].long()), "loss_mask": rows(given["trained_mask"].long()),
        "old_log_probs": rows(given["old_log_probs"]), "entropy": rows(given["old_entropy"]), "ref_log_prob": rows(given["ref_log_probs"]),
        "rollout_log_probs": rows(given["sampling_log_probs"]), "advantages": rows(given["advantage"][:, None].expand_as(scores)), "rm_scores": rows(scores),
    }  # fmt: skip
    for key in (key for key in given if key.startswith("old.")):  # a model's output covers the prompt too, one token ahead
        whole = torch.nn.functional.pad(given[key], (width - 1, 1))
        fields["isentrope_old_" + key.removeprefix("old.")] = torch.nested.as_nested_tensor(
            [torch.cat([row[: width - 1 + n], row[-1:]]) for row, n in zip(whole, lengths, strict=True)], layout=torch.jagged
        )
    options = {
        "temperature": TEMPERATURE, "global_batch_size": ROWS, "mini_batch_size": ROWS, "calculate_entropy": True, "epochs": 1, "seed": 42,
        "dataloader_kwargs": {"shuffle": False}, "pad_token_id": 0,
    }  # fmt: skip
    return tu.get_tensordict({**fields, "uid": [f"prompt {group}" for group in given["group"].tolist()]}, non_tensor_dict=options)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_loss_and_gradient_are_those_of_the_pure_function(case, record_property):
    made = small.worker(small.actor_config(case.chain, loss_seed=SEED, ppo_micro_batch_size_per_gpu=2), micro=2, learning_rate=0.0, steps=UPDATES)
    seen = small.watch_gradients(made)
    for update, given in enumerate(batches()):
        output = made.train_mini_batch(as_verl(given))
        loss = abs(float(np.sum(tu.get(output, "metrics")["loss"])) - float(case.expected[f"{update}/loss"]))
        gradient = difference(fingerprint(seen[update]), case.expected, update)
        record_property("loss", loss)
        record_property("gradient", gradient)
        assert loss < 2e-6
        assert gradient < 2e-5
