"""`policy_loss` with an empty chain against TRL 1.16's own method: loss and gradient, bit for bit, in float32."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from isentrope.control.objectives import Objective
from isentrope.control.stages import policy_loss
from isentrope.control.step import Normaliser, Rollouts, Step

HORIZON, ITEMS, ACCUMULATION, PER_GENERATION = 24, 61, 4.0, 8
OPTIONS = {
    "grpo": {"loss_type": "grpo"},
    "grpo-clip-higher": {"loss_type": "grpo", "epsilon_high": 0.28},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo-delta": {"loss_type": "dapo", "delta": 1.5},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "sapo": {"loss_type": "sapo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
}
KL = {"no-kl": {}, "kl": {"beta": 0.04, "use_bias_correction_kl": False}, "kl-corrected": {"beta": 0.04, "use_bias_correction_kl": True}}


def trl_loss(log_probs, batch, options):
    """`GRPOTrainer._compute_loss`, called unbound on a stand-in that hands it these log-probs."""
    epsilon = options.get("epsilon", 0.2)
    args = SimpleNamespace(
        delta=options.get("delta"), use_bias_correction_kl=options.get("use_bias_correction_kl", True), sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05, steps_per_generation=PER_GENERATION,
    )  # fmt: skip
    trainer = SimpleNamespace(
        args=args, loss_type=options["loss_type"], epsilon_low=epsilon, epsilon_high=options.get("epsilon_high", epsilon),
        beta=options.get("beta", 0.0), importance_sampling_level=options.get("importance_sampling_level", "token"),
        max_completion_length=HORIZON, current_gradient_accumulation_steps=ACCUMULATION, model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)}, _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
    )  # fmt: skip
    ids = torch.zeros(batch["mask"].shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": batch["mask"].long(),
        "advantages": batch["advantage"], "old_per_token_logps": batch["old"], "ref_per_token_logps": batch["ref"],
        "num_items_in_batch": torch.tensor(ITEMS),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def our_loss(log_probs, batch, options):
    advantage = batch["advantage"] if batch["advantage"].ndim == 2 else batch["advantage"].unsqueeze(1)
    rollouts = Rollouts.of(batch["mask"], advantage=advantage, old_log_probs=batch["old"], ref_log_probs=batch["ref"])
    divisor = torch.tensor(ITEMS).clamp(min=1.0) / 1 * ACCUMULATION / PER_GENERATION
    normaliser = Normaliser(token_divisor=divisor, rows=48, accumulation=ACCUMULATION, horizon=HORIZON)
    return policy_loss(Step(rollouts, log_probs, normaliser=normaliser), Objective.trl(**options)).loss


def batch_of(seed, *, per_token=False, rows=12, width=17):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=random)
    lengths[0], lengths[1] = width, 0
    log_probs = -3 * torch.rand(rows, width, generator=random)
    drift = 0.4 * torch.randn(rows, width, generator=random)
    advantage = torch.randn(rows, width, generator=random)
    advantage[2] = 0
    return log_probs, {
        "mask": torch.arange(width) < lengths[:, None],
        "old": log_probs + drift,
        "ref": log_probs + 0.3 * torch.randn(rows, width, generator=random),
        "advantage": advantage if per_token else advantage[:, 0].clone(),
    }


def both(log_probs, batch, options):
    found = []
    for loss_of in (trl_loss, our_loss):
        leaf = log_probs.clone().requires_grad_(True)
        loss = loss_of(leaf, batch, options)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    return found


@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_are_trls_bit_for_bit(name, kl, seed):
    log_probs, batch = batch_of(seed)
    (theirs, their_slope), (ours, our_slope) = both(log_probs, batch, OPTIONS[name] | KL[kl])
    assert theirs.dtype == ours.dtype == torch.float32
    assert float(their_slope.abs().max()) > 1e-4
    assert torch.equal(theirs, ours)
    assert torch.equal(their_slope, our_slope)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "gspo"])
def test_so_are_they_with_an_advantage_per_token(name):
    log_probs, batch = batch_of(7, per_token=True)
    (theirs, their_slope), (ours, our_slope) = both(log_probs, batch, OPTIONS[name] | KL["kl-corrected"])
    assert torch.equal(theirs, ours)
    assert torch.equal(their_slope, our_slope)


@pytest.mark.parametrize("name", OPTIONS)
def test_on_policy_too(name):
    log_probs, batch = batch_of(3)
    batch |= {"old": None}
    (theirs, their_slope), (ours, our_slope) = both(log_probs, batch, OPTIONS[name] | KL["kl"])
    assert torch.equal(theirs, ours)
    assert torch.equal(their_slope, our_slope)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("kl", KL)
@pytest.mark.parametrize("name", OPTIONS)
def test_what_stands_under_the_mask_changes_no_bit(name, kl, value):
    log_probs, batch = batch_of(4, per_token=name != "gspo")
    _, (ours, our_slope) = both(log_probs, batch, OPTIONS[name] | KL[kl])
    spoilt = {key: torch.where(batch["mask"], part, value) if part.dtype == torch.float32 and part.ndim == 2 else part for key, part in batch.items()}
    leaf = torch.where(batch["mask"], log_probs, value).requires_grad_(True)
    loss = our_loss(leaf, spoilt, OPTIONS[name] | KL[kl])
    (slope,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(loss, ours)
    assert torch.equal(slope, our_slope)


def test_a_wrong_bound_is_noticed():
    log_probs, batch = batch_of(1)
    (theirs, _), _ = both(log_probs, batch, OPTIONS["dapo"])
    assert not torch.equal(theirs, our_loss(log_probs, batch, OPTIONS["dapo"] | {"epsilon_high": 0.29}))
