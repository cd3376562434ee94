"""Residual streams and heads of many architectures, tiny and random, against what transformers itself returns."""

import pytest
import torch
from torch import nn

from isentrope.errors import UserError
from isentrope.probe.head import check_head, head_of
from isentrope.probe.stream import StreamError, residual_stream, stream_of

transformers = pytest.importorskip("transformers")

SIZE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = {**SIZE, "intermediate_size": 48}
GROUPED = {**WIDE, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED),
    "cohere": lambda: transformers.CohereConfig(**{**GROUPED, "logit_scale": 0.3}),
    "granite": lambda: transformers.GraniteConfig(**GROUPED, logits_scaling=4.0),
    "phi": lambda: transformers.PhiConfig(**WIDE, max_position_embeddings=64),  # its LM head has a bias
    "neox": lambda: transformers.GPTNeoXConfig(**WIDE, max_position_embeddings=64),
    "opt": lambda: transformers.OPTConfig(**SIZE, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32),
    "opt-projected": lambda: transformers.OPTConfig(**SIZE, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=16),
}
IDS = torch.randint(2, 61, (1, 11), generator=torch.Generator().manual_seed(3))


def built(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    for parameter in model.parameters():  # logits far from 0, and norms that do something
        parameter.data.mul_(2.0).add_(0.01)
    if model.get_output_embeddings().bias is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_stream_and_head_are_the_models_own(family):
    model = built(family)
    head, stream = head_of(model), stream_of(model, IDS)
    check_head(model, head, IDS)
    seen = {}
    with torch.no_grad(), residual_stream(stream, seen.__setitem__):
        said = model(IDS, output_hidden_states=True, use_cache=False)
    assert sorted(seen) == [0, 1, 2, 3]
    for layer in range(3):
        torch.testing.assert_close(seen[layer], said.hidden_states[layer], rtol=0, atol=0)
    assert stream.norm is not None
    with torch.no_grad():
        end = stream.norm(seen[3])
        torch.testing.assert_close(head.logits(end[0]), said.logits[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(end[..., :16], seen[3][..., :16])
        before = torch.distributions.Categorical(logits=said.logits[0]).entropy()
        torch.testing.assert_close(head.entropy(end[0]), before, rtol=1e-4, atol=1e-4)
        ids, shares = head.top(end[0], 4)
    wanted = said.logits[0].softmax(-1).topk(4)
    torch.testing.assert_close(shares, wanted.values, rtol=1e-4, atol=1e-5)
    assert (ids == wanted.indices).all()


def test_no_hook_is_left_behind():
    model = built("llama")
    stream = stream_of(model, IDS)
    with pytest.raises(RuntimeError), residual_stream(stream, lambda layer, hidden: None):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_all_of_a_small_vocabulary_can_be_asked_for():
    head = head_of(built("llama"))
    ids, shares = head.top(torch.randn(70, 32), 500)
    assert ids.shape == shares.shape == (70, 61)
    torch.testing.assert_close(shares.sum(-1), torch.ones(70))


def test_a_model_without_a_final_norm():
    model = built("gpt2")
    model.transformer.ln_f = nn.Identity()
    assert stream_of(model, IDS).norm is None


def test_a_head_that_is_not_read_here_is_refused():
    model = built("llama")
    head = head_of(model)
    forward = model.forward

    def other(*given, **named):
        said = forward(*given, **named)
        said.logits = said.logits.flip(-1)
        return said

    model.forward = other
    with pytest.raises(UserError, match="LlamaForCausalLM computes its logits in a way that is not read here"):
        check_head(model, head, IDS)
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not numbers"):
        check_head(model, head, IDS)


def test_what_is_no_row_of_blocks_is_refused():
    model = built("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(StreamError, match="no list of 7 blocks"):
        stream_of(model, IDS)
    model = built("llama")
    model.model.norm.register_forward_hook(lambda _, __, output: output * 2 + 1)
    stream_of(model, IDS)  # a hook on the norm is part of it
    model.model.register_forward_hook(lambda _, __, output: setattr(output, "last_hidden_state", output.last_hidden_state + 1))
    with pytest.raises(StreamError, match="more than a norm"):
        stream_of(model, IDS)
