"""verl's real `ppo_loss` with our policy loss in it, on tensors: exact with an empty chain, and what is refused."""

import copy

import pytest
import small
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.workers.utils.losses import ppo_loss

import isentrope.train.verl as host
from isentrope.errors import UserError
from isentrope.train.verl.batch import groups, turns

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def call(config, data, *, spread: float = 0.4, seed: int = 3, entropy: bool = True):
    """(loss, gradient of the log-probs, gradient of the entropies, metrics) of verl's `ppo_loss` on outputs drawn around the old ones."""
    draw = torch.Generator().manual_seed(seed)
    offsets = data["input_ids"].offsets()
    values = torch.full((int(offsets[-1]),), -3.0) + spread * torch.randn(int(offsets[-1]), generator=draw)
    leaf = values.requires_grad_(True)
    own = torch.rand(int(offsets[-1]), generator=draw).mul(3).requires_grad_(True)
    output = {"log_probs": torch.nested.nested_tensor_from_jagged(leaf, offsets)}
    if entropy:
        output["entropy"] = torch.nested.nested_tensor_from_jagged(own, offsets)
    loss, metrics = ppo_loss(config, output, data)
    slopes = torch.autograd.grad(loss, (leaf, own), allow_unused=True)
    return loss.detach(), slopes[0], slopes[1], metrics


def given(data, *, ranks: int = 1, tokens: int | None = 100, rows: int | None = 16):
    """The batch with what verl's engine writes into it before the loss."""
    tu.assign_non_tensor(data, dp_size=ranks, batch_num_tokens=tokens, global_batch_size=rows)
    return data


def batch(**options):
    """Eight responses to two prompts, as one rank of several sees them."""
    return given(small.batch(), **options)


def masked(data):
    """A tool's answer inside two responses, and one row that trains nothing."""
    mask = data["response_mask"].values().clone()
    offsets = data["response_mask"].offsets().tolist()
    mask[offsets[0] + 1] = 0
    mask[offsets[2] + 1 : offsets[2] + 2] = 0
    mask[offsets[5] : offsets[6]] = 0
    data["response_mask"] = nested(mask, offsets)
    return data


def nested(values, offsets):
    """Rows of `values` as verl keeps them."""
    return torch.nested.as_nested_tensor(list(values.split(torch.tensor(offsets).diff().tolist())), layout=torch.jagged)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", ["vanilla", "gspo", "sapo", "gpg", "cispo"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_an_empty_chain_is_verls_own_loss(mode, objective, ranks):
    if objective == "sapo" and mode != "seq-mean-token-mean":
        pytest.skip("verl aggregates sapo by seq-mean-token-mean whatever the mode")
    data = masked(batch(ranks=ranks))
    options = {"loss_agg_mode": mode, "clip_ratio_low": 0.1, "clip_ratio_high": 0.3}
    theirs = call(small.actor_config(loss_loss_mode=objective, **options), data)
    ours = call(small.actor_config(loss_objective=objective, **options), data)
    assert torch.equal(ours[0], theirs[0])
    exact = objective in ("vanilla", "gpg", "cispo")
    assert torch.equal(ours[1], theirs[1]) if exact else torch.allclose(ours[1], theirs[1], rtol=2e-6, atol=0)
    assert theirs[1].count_nonzero() > 10


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_chain_is_verls_loss_where_nothing_is_normalised_globally(mode):
    data = masked(batch(tokens=None, rows=None))
    theirs = call(small.actor_config(loss_loss_mode="vanilla", loss_agg_mode=mode), data)
    ours = call(small.actor_config(loss_agg_mode=mode), data)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_verls_kl_bonus_correction_and_scale_stay_verls():
    data = masked(batch())
    offsets = data["response_mask"].offsets().tolist()
    tokens = offsets[-1]
    draw = torch.Generator().manual_seed(9)
    data["ref_log_prob"] = nested(-3 + torch.randn(tokens, generator=draw), offsets)
    data["rollout_is_weights"] = nested(torch.rand(tokens, generator=draw) * 2, offsets)
    options = {"use_kl_loss": True, "entropy_coeff": 0.01, "loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 50}
    theirs = call(small.actor_config(loss_loss_mode="vanilla", **options), data)
    ours = call(small.actor_config(**options), data)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    plain = call(small.actor_config(**options), masked(batch()).set("ref_log_prob", data["ref_log_prob"]))
    assert not torch.equal(plain[0], ours[0])  # the correction's weights were there to be seen


def test_verls_metrics_keep_their_names_and_values():
    data = masked(batch())
    theirs, ours = call(small.actor_config(loss_loss_mode="vanilla"), data)[3], call(small.actor_config(), data)[3]
    assert set(theirs) == set(ours)
    for key in ("actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower", "actor/pg_loss"):
        assert float(ours[key].aggregate()) == pytest.approx(float(theirs[key].aggregate()), abs=1e-7), key
    assert float(theirs["actor/pg_clipfrac"].aggregate()) > 0.05


def test_a_chain_keeps_the_gradient_of_the_tokens_it_names():
    """Forking tokens at 0.25: gradient on a quarter of the tokens, those of highest entropy, from verl's own entropies."""
    data = given(small.batch(), tokens=int(small.batch()["response_mask"].values().sum()), rows=8)
    _, slope, _, metrics = call(small.actor_config([{"name": "forking-tokens", "share": 0.25}]), data)
    trained = int(data["response_mask"].values().sum())
    assert slope.count_nonzero() <= round(0.25 * trained) + 1
    assert slope.count_nonzero() > 0
    assert float(metrics["isentrope/forking-tokens/touched"].aggregate()) == pytest.approx(0.75, abs=0.02)


def test_an_entropy_term_reaches_the_entropies_of_verl():
    tokens = int(small.batch()["response_mask"].values().sum())
    chain = [{"name": "entropy-bonus", "coef": 0.5}]
    _, _, slope, _ = call(small.actor_config(chain), given(small.batch(), tokens=tokens, rows=8))
    seen = slope[slope != 0]
    assert len(seen) == tokens
    assert torch.allclose(seen, torch.full_like(seen, -0.5 / tokens))


def test_a_survey_of_a_part_of_an_update_is_refused():
    with pytest.raises(UserError, match="forking-tokens takes statistics over a whole update, and this loss sees one micro-batch"):
        call(small.actor_config(["forking-tokens"]), batch())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chain": ["forking-tokens"], "calculate_entropy": False}, "Add actor_rollout_ref.actor.calculate_entropy=True"),
        ({"chain": ["clip-cov"], "strategy": "megatron"}, "strategy must be fsdp or fsdp2 with a chain. Got 'megatron'"),
        ({"chain": ["entropy-bonus"], "entropy_coeff": 0.01}, "entropy_coeff=0.01 and the intervention 'entropy-bonus' mean the same"),
        ({"chain": ["clip-higher"], "clip_ratio_high": 0.28}, "clip_ratio_high=0.28 and the intervention 'clip-higher' mean the same"),
        ({"chain": ["siren"], "use_fused_kernels": True}, "computed from logits, and verl's fused kernels hold none"),
        ({"loss_objective": "geo_mean"}, "objective must be one of vanilla, gspo, sapo, gpg, cispo. Got 'geo_mean'"),
        ({"loss_objective": "sapo"}, "sapo aggregates by seq-mean-token-mean whatever loss_agg_mode says. Got 'token-mean'"),
        ({"chain": ["hapo"]}, "hapo cannot run under verl. stage sample: it sets a temperature for every token"),
        ({"chain": ["bupo"]}, "bupo cannot run under verl. signal current.layer_log_prob"),
        ({"chain": ["position-shaping"]}, "Write it under algorithm.chain, with algorithm.adv_estimator=isentrope"),
        ({"chain": ["clipcov"]}, "unknown intervention 'clipcov'. Did you mean 'clip-cov'"),
        ({"chain": "clip-cov"}, "chain must be a list of names"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(change, words):
    config = small.actor_config(**change)
    with pytest.raises(UserError) as refused:
        call(config, batch())
    assert words in str(refused.value)


def test_missing_fields_are_refused_and_not_replaced_by_neutral_ones():
    config = small.actor_config(["clip-cov"])
    for name, words in (("uid", "carries no uid"), ("rm_scores", "carries no rm_scores")):
        data = batch()
        del data[name]
        with pytest.raises(UserError, match=words):
            call(copy.deepcopy(config), data)
    with pytest.raises(UserError, match=r"needs current\.entropy, which is not in the model's outputs"):
        call(small.actor_config(["forking-tokens"]), batch(), entropy=False)
    data = batch()
    del data["entropy"]
    with pytest.raises(UserError, match=r"earl needs old\.entropy, which is not in the batch"):
        call(small.actor_config(["earl"]), data)


def test_the_loss_without_its_surroundings_says_what_is_missing():
    plain = small.configs.FSDPActorConfig(
        ppo_micro_batch_size_per_gpu=4, rollout_n=4, strategy="fsdp2", policy_loss=small.configs.PolicyLossConfig(loss_mode="isentrope")
    )
    with pytest.raises(UserError, match=r"_target_=isentrope\.train\.verl\.PolicyLossConfig"):
        call(plain, batch())
    one = torch.ones(1, 1)
    with pytest.raises(UserError, match=r"VERL_USE_EXTERNAL_MODULES=isentrope\.train\.verl"):
        get_policy_loss_fn("isentrope")(one, one, one, one.bool(), config=small.actor_config())


def test_turns_are_the_runs_of_trained_tokens():
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    assert turns(mask).tolist() == [[0, 0, 0, 1, 1, 1, 2, 2], [0] * 8, [0] * 8]


def test_groups_are_the_same_number_in_every_process():
    assert groups(["a", "b", "a"])[0] == groups(["a"])[0]
    assert len(set(groups([f"uid {i}" for i in range(1000)]).tolist())) == 1000
    assert int(groups(["prompt 0"])[0]) == 1178363468863713  # blake2b of the text


def test_the_typed_configuration_is_verls():
    assert issubclass(host.PolicyLossConfig, small.configs.PolicyLossConfig)
    assert host.PolicyLossConfig(chain=["clip-cov"]).get("loss_mode") == "isentrope"
