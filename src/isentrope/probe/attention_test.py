"""Recorded entropies against the attention matrices that transformers returns, on tiny random models of several families."""

import pytest
import torch

from isentrope.measure.attention import visible_keys
from isentrope.probe.attention import record_attention

transformers = pytest.importorskip("transformers")

COMMON = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=4),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=4, attn_logit_softcapping=4.0, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
}
RUNS = [(family, how) for family in CONFIGS for how in ("sdpa", "eager") if (family, how) != ("gemma2", "sdpa")]  # transformers' sdpa has no softcap
IDS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))
PADDINGS = {"none": None, "left": torch.tensor([[0] * 3 + [1] * 8, [1] * 11]), "right": torch.tensor([[1] * 11, [1] * 6 + [0] * 5])}


def built(family, implementation, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=implementation).eval()
    for name, parameter in model.named_parameters():  # rows far from uniform
        if "q_norm" in name or "k_norm" in name:
            parameter.data.add_(2.0)
        else:
            parameter.data.mul_(8.0 if "q_proj" in name or "k_proj" in name else 4.0)
    return model


def from_matrices(model, mask):
    """Entropies of what `output_attentions` returns, [layer][batch heads queries], NaN for padding."""
    with torch.no_grad():
        matrices = model(IDS, attention_mask=mask, output_attentions=True).attentions
    counts = torch.ones(2, 1, 11, dtype=torch.bool) if mask is None else (mask != 0).unsqueeze(1)
    return [torch.special.entr(a.double()).sum(-1).masked_fill(~counts, torch.nan) for a in matrices]


@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize(("family", "implementation"), RUNS)
def test_equal_to_the_entropies_of_the_returned_matrices(family, implementation, pad):
    mask = PADDINGS[pad]
    wanted = from_matrices(built(family, "eager"), mask)
    model = built(family, implementation)
    with torch.no_grad(), record_attention(model, per_query=True) as recorded:
        model(IDS, attention_mask=mask)
    assert recorded.mean_entropy.shape == (3, 4)
    for layer, rows in enumerate(recorded.rows):
        torch.testing.assert_close(rows[0].entropy.double(), wanted[layer], rtol=0, atol=5e-5, equal_nan=True)
        torch.testing.assert_close(recorded.mean_entropy[layer].double(), wanted[layer].nanmean((0, 2)), rtol=0, atol=2e-5)
    assert (recorded.mean_entropy <= recorded.mean_ceiling + 1e-5).all()
    assert recorded.mean_entropy.min() < 0.9 * recorded.mean_ceiling.min()
    assert (recorded.counted == (22 if mask is None else int(mask.sum()))).all()


@pytest.mark.parametrize("pad", ["none", "left"])
def test_ceilings_are_of_the_keys_that_each_layer_sees(pad):
    visible = torch.ones(2, 11, dtype=torch.bool) if PADDINGS[pad] is None else PADDINGS[pad] != 0
    model = built("gemma3", "sdpa")
    with torch.no_grad(), record_attention(model) as recorded:
        model(IDS, attention_mask=PADDINGS[pad])
    for layer, window in enumerate([4, None, 4]):
        ceilings = visible_keys(11, 11, causal=True, window=window, visible=visible)[:, 0][visible].double().log()
        torch.testing.assert_close(recorded.mean_ceiling[layer], ceilings.mean().float().expand(4))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("pad", ["none", "left", "right"])
def test_sinkless_rows_are_renormalised_without_the_first_token(implementation, pad):
    mask = PADDINGS[pad]
    model = built("llama", "eager")
    with torch.no_grad():
        matrices = model(IDS, attention_mask=mask, output_attentions=True).attentions
    first = [0, 0] if mask is None else mask.argmax(1).tolist()
    model = built("llama", implementation)
    with torch.no_grad(), record_attention(model, sinkless=True) as recorded:
        model(IDS, attention_mask=mask)
    for layer, matrix in enumerate(matrices):
        rows = []
        for row, start in enumerate(first):
            stop = 11 if mask is None else start + int(mask[row].sum())
            rest = matrix[row, :, start + 1 : stop, start + 1 :].double()
            rows.append(torch.special.entr(rest / rest.sum(-1, keepdim=True)).sum(-1))
        torch.testing.assert_close(recorded.mean_sinkless[layer].double(), torch.cat(rows, -1).mean(-1), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("family", "implementation"), RUNS)
def test_the_model_computes_what_it_always_does(family, implementation):
    model, mask = built(family, implementation), PADDINGS["left"]
    before = model(IDS, attention_mask=mask, labels=IDS)
    slopes = torch.autograd.grad(before.loss, list(model.parameters()))
    registered = set(transformers.AttentionInterface._global_mapping), set(transformers.AttentionMaskInterface._global_mapping)
    with record_attention(model, sinkless=True):
        inside = model(IDS, attention_mask=mask, labels=IDS)
        same = torch.autograd.grad(inside.loss, list(model.parameters()))
    assert torch.equal(before.logits, inside.logits)
    assert all(torch.equal(a, b) for a, b in zip(slopes, same, strict=True))
    assert model.config._attn_implementation == implementation
    assert registered == (set(transformers.AttentionInterface._global_mapping), set(transformers.AttentionMaskInterface._global_mapping))
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_everything_is_restored_after_an_exception():
    model = built("llama", "sdpa")
    registered = set(transformers.AttentionInterface._global_mapping)
    with pytest.raises(RuntimeError, match="stop"), record_attention(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    assert set(transformers.AttentionInterface._global_mapping) == registered
    assert not model._forward_pre_hooks


def test_several_forwards_are_one_mean_and_another_model_is_left_alone():
    model, other = built("llama", "sdpa"), built("llama", "sdpa", seed=1)
    with torch.no_grad(), record_attention(model, per_query=True) as recorded:
        model(IDS[:, :5])
        other(IDS)
        model(IDS)
    assert (recorded.counted == 2 * (5 + 11)).all()
    together = torch.cat([torch.cat([row.entropy for row in layer], -1).mean((0, 2)).unsqueeze(0) for layer in recorded.rows])
    torch.testing.assert_close(recorded.mean_entropy, together)
    torch.testing.assert_close(recorded.rows[0][0].entropy, recorded.rows[0][1].entropy[:, :, :5])  # causal: the same prefix


def test_generation_with_a_cache_sees_the_rows_of_one_forward():
    model = built("llama", "sdpa")
    with torch.no_grad():
        with record_attention(model, per_query=True) as whole:
            model(IDS)
        with record_attention(model, per_query=True) as parts:
            cache = model(IDS[:, :7], use_cache=True).past_key_values
            for i in range(7, 11):
                cache = model(IDS[:, i : i + 1], past_key_values=cache, use_cache=True).past_key_values
    for one, many in zip(whole.rows, parts.rows, strict=True):
        torch.testing.assert_close(one[0].entropy, torch.cat([part.entropy for part in many], -1), rtol=0, atol=2e-5)
        torch.testing.assert_close(one[0].ceiling, torch.cat([part.ceiling for part in many], -1))


def test_bfloat16_models_are_recorded_in_float32():
    model = built("llama", "sdpa").bfloat16()
    with torch.no_grad(), record_attention(model, per_query=True) as recorded:
        model(IDS)
    assert recorded.rows[0][0].entropy.dtype == torch.float32


def test_what_cannot_be_recorded_is_refused_by_name():
    model = built("llama", "sdpa")
    with pytest.raises(ValueError, match="being recorded already"), record_attention(model), record_attention(model):
        pass
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="must be a transformers model"), record_attention(torch.nn.Linear(2, 2)):
        pass
    with record_attention(model) as recorded:
        pass
    with pytest.raises(ValueError, match="no attention was recorded"):
        recorded.mean_entropy  # noqa: B018
    with torch.no_grad(), record_attention(model) as recorded:
        model(IDS)
    with pytest.raises(ValueError, match="sinkless=True"):
        recorded.mean_sinkless  # noqa: B018
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="Got flex_attention"), record_attention(model):
        pass


def test_a_sink_logit_is_an_outcome_beside_the_keys():
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**GROUPED, sliding_window=4, num_local_experts=2, num_experts_per_tok=1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    with torch.no_grad(), record_attention(model, per_query=True) as recorded:
        matrices = model(IDS, output_attentions=True).attentions
    for rows, matrix in zip(recorded.rows, matrices, strict=True):
        keys = matrix.double()
        wanted = torch.special.entr(keys).sum(-1) + torch.special.entr(1 - keys.sum(-1))
        torch.testing.assert_close(rows[0].entropy.double(), wanted, rtol=0, atol=5e-6)
    assert torch.allclose(recorded.rows[1][0].ceiling[0, 0], torch.arange(2.0, 13.0).log())
