"""verl's real training worker with its FSDP engine on one process: an update of several micro-batches, the controllers, checkpoints."""

import copy

import pytest
import small
import torch
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from isentrope.errors import UserError
from isentrope.train.verl.worker import ControlledWorker


@pytest.fixture(scope="module", autouse=True)
def _process_group():
    small.one_process()
    yield
    torch.distributed.destroy_process_group()


def trained(config, *, steps: int = 1, rows: int = 16, **options):
    """(weights, metrics of the last step, worker) after training steps of one mini-batch each."""
    made = small.worker(config, **options)
    for step in range(steps):
        output = made.train_mini_batch(small.batch(rows, seed=step))
    return small.weights(made), tu.get(output, "metrics"), made


def differ(left, right) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_the_actor_of_every_rank_is_the_controlled_worker():
    assert ActorRolloutRefWorker.actor_worker_cls is ControlledWorker
    assert ActorRolloutRefWorker.ref_worker_cls is TrainingWorker


def test_an_empty_chain_trains_verls_weights_bit_for_bit():
    theirs, _, _ = trained(small.actor_config(loss_loss_mode="vanilla"), steps=2)
    ours, _, _ = trained(small.actor_config(), steps=2)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("link", ["clip-cov", "forking-tokens", "siren", "kl-cov", "epo"])
def test_an_update_is_the_same_in_one_micro_batch_and_in_several(link):
    """The scope is the update: verl's own Clip-Cov takes its means per micro-batch, and at one row each selects nothing. Weights stand still, so
    the second update's gradient shows what the first left in the link's state."""
    chain = [{"clip-cov": {"name": "clip-cov", "ratio": 0.1, "low": 0.01, "high": 50.0}, "siren": {"name": "siren", "beta": 0.5}}.get(link, link)]
    whole, shown = slopes(small.actor_config(chain), micro=16)
    size = max(float(slope.abs().max()) for slope in whole.values())
    for options in ({"micro": 1}, {"dynamic": True}, {"micro": 4, "packed": True}):
        parts, _ = slopes(small.actor_config(chain), **options)
        assert differ(whole, parts) < 1e-5 * size, options
    plain, _ = slopes(small.actor_config(), micro=16)
    assert differ(whole, plain) > 1e-3 * size
    assert f"isentrope/{link}/touched" in shown


def slopes(config, **options):
    """(gradient of the second update, its metrics)."""
    made = small.worker(config, learning_rate=0.0, **options)
    seen = small.watch_gradients(made)
    for step in range(2):
        output = made.train_mini_batch(small.batch(16, seed=step))
    assert made.control.step == 2
    return seen[1], tu.get(output, "metrics")


def test_the_survey_moves_neither_weights_nor_gradients():
    made = small.worker(small.actor_config(["forking-tokens"]), micro=4)
    calls = []
    forward_backward = made.engine.forward_backward_batch

    def watched(data, loss_function, forward_only=False):
        output = forward_backward(data, loss_function, forward_only=forward_only)
        calls.append((forward_only, [parameter.grad is None for parameter in made.engine.module.parameters()]))
        return output

    made.engine.forward_backward_batch = watched
    made.train_mini_batch(small.batch(16))
    assert [forward_only for forward_only, _ in calls] == [True, False]
    assert all(calls[0][1])
    assert not any(calls[1][1])


def test_one_micro_batch_is_surveyed_by_the_loss_itself():
    made = small.worker(small.actor_config(["forking-tokens"]), micro=16)
    passes = []
    forward_backward = made.engine.forward_backward_batch
    made.engine.forward_backward_batch = lambda *a, **k: (passes.append(k.get("forward_only")), forward_backward(*a, **k))[1]
    made.train_mini_batch(small.batch(16))
    assert passes == [False]


def test_a_controller_moves_and_its_state_is_in_the_checkpoint(tmp_path):
    chain = ["epo"]
    straight = small.worker(small.actor_config(chain))
    for step in range(3):
        if step == 2:
            straight.save_checkpoint(str(tmp_path / "checkpoint"), global_step=step)
        straight.train_mini_batch(small.batch(16, seed=step))
    assert (tmp_path / "checkpoint" / "isentrope_state_rank_0.pt").is_file()
    resumed = small.worker(small.actor_config(chain))
    resumed.load_checkpoint(str(tmp_path / "checkpoint"))
    assert resumed.control.step == 2
    assert resumed.control.state[0]["count"].tolist() == [2]
    resumed.train_mini_batch(small.batch(16, seed=2))
    assert torch.equal(resumed.control.state[0]["reference"], straight.control.state[0]["reference"])
    assert differ(small.weights(straight), small.weights(resumed)) == 0

    other = small.worker(small.actor_config(["clip-cov"]))
    with pytest.raises(UserError, match=r"holds the state of the chain \['epo'\]"):
        other.load_checkpoint(str(tmp_path / "checkpoint"))
    (tmp_path / "checkpoint" / "isentrope_state_rank_0.pt").unlink()
    with pytest.raises(UserError, match=r"holds no isentrope_state_rank_0\.pt"):
        resumed.load_checkpoint(str(tmp_path / "checkpoint"))


def test_an_update_that_verl_leaves_out_teaches_no_controller():
    """A gradient that is not finite: verl skips the step, and a history of entropies that took it in would be NaN for good."""
    made = small.worker(small.actor_config(["epo"]))
    made.train_mini_batch(small.batch(16))
    before, weights = made.control.state, small.weights(made)
    broken = small.batch(16, seed=1)
    broken["advantages"].values()[3] = torch.nan
    made.train_mini_batch(broken)
    assert made.control.state is before
    assert differ(weights, small.weights(made)) == 0
    made.train_mini_batch(small.batch(16, seed=2))
    assert made.control.state[0]["count"].tolist() == [2]


def test_progress_counts_mini_batches_and_epochs_of_the_whole_run():
    made = small.worker(small.actor_config(["clip-cov"]), micro=4)
    data = small.batch(16, mini=8)
    tu.assign_non_tensor(data, epochs=2)
    made.train_mini_batch(data)
    assert made.control.step == 4
    assert made.control.progress.total == 40  # 10 training steps


def test_a_signal_of_the_old_policy_comes_with_the_pass_that_scores_it():
    """clip-v reads N of the old policy: the pass for the old log-probs gives it back beside them, as a field that verl's trainer stores."""
    made = small.worker(small.actor_config([{"name": "clip-v", "mu": 0.2}]), micro=4)
    data = small.batch(16)
    asked = copy.deepcopy(data)
    tu.assign_non_tensor(asked, compute_loss=False)
    output = made.infer_batch(asked)
    assert set(output.keys()) >= {"log_probs", "entropy", "isentrope_old_N"}
    with pytest.raises(UserError, match=r"clip-v needs old\.N, which is not in the batch"):
        made.train_mini_batch(copy.deepcopy(data))
    data["isentrope_old_N"] = output["isentrope_old_N"]
    made.train_mini_batch(data)
    tu.assign_non_tensor(asked, calculate_entropy=False)  # the pass of a reference
    assert not [key for key in made.infer_batch(asked).keys() if key.startswith("isentrope")]  # noqa: SIM118


def test_our_signals_of_the_current_policy_are_those_of_the_full_softmax():
    made = small.worker(small.actor_config(["siren"]), micro=4)
    seen = []
    made.control.loss, loss = lambda step: (seen.append(step), loss(step))[1], made.control.loss
    made.train_mini_batch(small.batch(4, temperature=0.7))
    step = seen[-1]
    nucleus = step.signal("current.nucleus_entropy[0.8,10000]")
    entropy = step.signal("current.entropy")
    assert nucleus.requires_grad
    assert not entropy.requires_grad
    assert bool((nucleus[step.mask] <= entropy[step.mask] + 1e-4).all())
    p = step.log_probs.detach().exp()
    assert torch.allclose(step.signal("current.S")[step.mask], (p * (step.log_probs + entropy))[step.mask])


def test_distillation_and_a_second_loss_are_refused():
    from functools import partial

    made = small.worker(small.actor_config(["clip-cov"]))
    with pytest.raises(UserError, match="has its chain already"):
        made.set_loss_fn(made.loss_fn)

    def distillation_ppo_loss(config, model_output, data, dp_group=None): ...

    made.control = None
    with pytest.raises(UserError, match="binds the policy loss to distillation_ppo_loss"):
        made.set_loss_fn(partial(distillation_ppo_loss, config=small.actor_config(["clip-cov"])))
