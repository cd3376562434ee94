"""Log-probs of internal policies through the host's head: by hand, by gradient, and in a run."""

import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from isentrope.control.papers.bupo import Bupo  # noqa: E402
from isentrope.control.requests import LayerLogProb  # noqa: E402
from isentrope.errors import UserError  # noqa: E402
from isentrope.measure.tokens import LogProb  # noqa: E402
from isentrope.train.head import attach_head, completion_signals  # noqa: E402

WIDTH, TEMPERATURE = 5, 0.7
IDS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))
SEEN = torch.tensor([[0] * 3 + [1] * 8, [1] * 11])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config)
    made.model.norm.weight.data.uniform_(0.5, 2.0)
    for parameter in made.parameters():
        parameter.data.mul_(2.0)
    attach_head(made, TEMPERATURE)
    return made


def told(model, *asked):
    return completion_signals(model, IDS, SEEN, MASK, asked)


def by_hand(model, layer, norm=None):
    states = model.model(input_ids=IDS, attention_mask=SEEN, output_hidden_states=True).hidden_states
    hidden = states[layer][:, -WIDTH - 1 : -1]
    hidden = hidden if norm is None else norm(hidden)
    log_p = torch.log_softmax(model.lm_head(hidden) / TEMPERATURE, dim=-1)
    return log_p.gather(-1, IDS[:, -WIDTH:, None]).squeeze(-1)


@pytest.mark.parametrize("layer", [1, 2])
def test_an_internal_policy_by_hand(model, layer):
    for norm, applied in (("none", None), ("final", model.model.norm)):
        request = LayerLogProb(layer, norm)
        value = told(model, request)[request.key]
        torch.testing.assert_close(value[MASK], by_hand(model, layer, applied)[MASK], rtol=1e-4, atol=1e-5)
        assert (value[~MASK] == 0).all()


def test_the_last_block_is_the_model_itself(model):
    found = told(model, LogProb(), LayerLogProb(3), LayerLogProb(3, "final"))
    assert torch.equal(found["layer_log_prob[3]"], found["log_prob"])
    assert torch.equal(found["layer_log_prob[3,norm]"], found["log_prob"])


@pytest.mark.parametrize(("norm", "reached"), [("none", False), ("final", True)])
def test_nothing_above_the_block_has_a_gradient(model, norm, reached):
    model.zero_grad()
    request = LayerLogProb(2, norm)
    told(model, request)[request.key][MASK].sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None and bool((parameter.grad != 0).any())}
    assert not any(".layers.2." in name for name in moved)
    assert ("model.norm.weight" in moved) == reached
    below = {name for name, _ in model.named_parameters() if ".layers.0." in name or ".layers.1." in name}
    assert below <= moved
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= moved


def test_without_grad_it_is_detached(model):
    found = told(model, LayerLogProb(1, grad=False))["layer_log_prob[1]"]
    assert not found.requires_grad


def test_a_layer_that_is_not_there_is_named(model):
    with pytest.raises(UserError, match=r"LayerLogProb: layer must lie in 1\.\.3, the number of blocks of this model\. Got 4\."):
        told(model, LayerLogProb(4))


def test_a_run_trains_the_block_and_then_the_model(tmp_path):
    """Of two blocks: while the first is trained the second does not move, the final norm neither; afterwards both do. At the first update of
    a generation the ratio is 1."""
    from trl import GRPOConfig

    from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
    from isentrope.train.trl import IsentropeTrainer

    args = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=8, max_steps=4, learning_rate=1e-2,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=3, lr_scheduler_type="constant", disable_tqdm=True,
        num_iterations=2,
    )  # fmt: skip
    ratios, weights = [], []

    class Watch:
        signals = ()

        def begin(self): ...
        def generation(self, trainer, prompts, rollouts):
            assert rollouts.signals["old.layer_log_prob[1]"].shape == rollouts.trained_mask.shape

        def slice(self, trainer, step, stats, result):
            ratios.append(result.observed.ratio[step.mask])

        def update(self, trainer):
            weights.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()})

        def measured(self):
            return {}

        def state(self):
            return {}

        def load_state(self, state): ...

    trainer = IsentropeTrainer(
        model=save_tiny_model(tmp_path / "tiny"), reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(),
        control=[Bupo(layer=1, updates=2)], recorder=Watch(),
    )  # fmt: skip
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    above = [name for name in start if ".layers.1." in name or name == "model.norm.weight"]
    assert all(torch.equal(weights[1][name], start[name]) for name in above)
    assert not torch.equal(weights[1]["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])
    assert all(not torch.equal(weights[3][name], start[name]) for name in above)
    torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]), rtol=0, atol=1e-5)
    assert float((ratios[1] - 1).abs().max()) > 1e-3
