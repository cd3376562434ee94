"""What stages are told of the network's inside, against the states and attention matrices that transformers returns; and its way through the host."""

import warnings
from dataclasses import dataclass

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from isentrope.control.requests import AttentionEntropy, HiddenStates, Request  # noqa: E402
from isentrope.control.stages import Intervention  # noqa: E402
from isentrope.control.step import Need, Rollouts, concatenate  # noqa: E402
from isentrope.errors import UserError  # noqa: E402
from isentrope.measure.tokens import Entropy  # noqa: E402
from isentrope.train.head import attach_head, completion_signals  # noqa: E402

WIDTH = 5
IDS = torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))
SEEN = torch.tensor([[0] * 3 + [1] * 8, [1] * 11])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
    )
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in made.named_parameters():  # rows of attention far from uniform
        parameter.data.mul_(8.0 if "q_proj" in name or "k_proj" in name else 2.0)
    attach_head(made, 1.0)
    return made


def told(model, *requests):
    with torch.no_grad():
        return completion_signals(model, IDS, SEEN, MASK, requests)


def truth(model, **asked):
    with torch.no_grad():
        return model.model(input_ids=IDS, attention_mask=SEEN, **asked)


def test_the_states_are_of_the_position_before_the_token(model):
    states = truth(model, output_hidden_states=True).hidden_states
    found = told(model, HiddenStates(), HiddenStates(-1), HiddenStates(0))
    for layer in (-2, -1, 0):
        value = found[f"hidden[{layer}]"]
        torch.testing.assert_close(value[MASK], states[layer][:, -WIDTH - 1 : -1][MASK])
        assert (value[~MASK] == 0).all()
        assert not value.requires_grad
    torch.testing.assert_close(model.lm_head(found["hidden[-1]"][0, 0]), model(IDS, attention_mask=SEEN).logits[0, -WIDTH - 1])


def by_hand(attention, row, token, first):
    """Entropy over its ceiling of one query, mean over heads, over the keys from `first` on."""
    query = IDS.shape[1] - WIDTH + token - 1
    p = attention[row, :, query, first : query + 1].double()
    p = p / p.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).mean() / torch.log(torch.tensor(query + 1.0 - first, dtype=torch.float64))


@pytest.mark.parametrize(("layer", "index"), [(None, 1), (0, 0), (2, 2)])
@pytest.mark.parametrize("sinkless", [False, True])
def test_the_attention_is_of_the_query_that_produces_the_token(model, layer, index, sinkless):
    attention = truth(model, output_attentions=True).attentions[index]
    request = AttentionEntropy(layer, sinkless)
    value = told(model, request)[request.key]
    for row, token in MASK.nonzero().tolist():
        wanted = by_hand(attention, row, token, (3 if row == 0 else 0) + sinkless)
        assert float(value[row, token]) == pytest.approx(float(wanted), abs=1e-5)
    assert (value[~MASK] == 0).all()


def test_one_pass_fills_signals_and_several_layers(model):
    forwards = []
    handle = model.model.register_forward_hook(lambda *_: forwards.append(1))
    found = told(model, Entropy(), AttentionEntropy(2), AttentionEntropy(0, sinkless=True), HiddenStates())
    handle.remove()
    assert len(forwards) == 1
    assert set(found) == {"entropy", "attention_entropy[2]", "attention_entropy[0,sinkless]", "hidden[-2]"}
    alone = told(model, Entropy())["entropy"]
    assert torch.equal(found["entropy"], alone)
    torch.testing.assert_close(found["attention_entropy[2]"], told(model, AttentionEntropy(2))["attention_entropy[2]"])


def test_what_is_not_there_is_refused(model):
    with pytest.raises(UserError, match=r"HiddenStates: layer must lie in -4\.\.3, 0 the embeddings\. Got 9\."):
        told(model, HiddenStates(9))
    with pytest.raises(UserError, match=r"AttentionEntropy: layer must lie in 0\.\.2, or be None for the middle one\. Got 3\."):
        told(model, AttentionEntropy(3))
    with pytest.raises(UserError, match="this host cannot fill"):
        told(model, Request())
    with pytest.raises(ValueError, match=r"Need: HiddenStates\(layer=-2\) is scored once per rollout\. Got policy='current'\. Write policy='old'\."):
        Need(HiddenStates())


def test_states_are_permuted_joined_and_padded_like_the_tokens():
    def rollouts(rows, width):
        states = torch.randn(rows, width, 3)
        return Rollouts.of(torch.ones(rows, width, dtype=torch.bool), signals={"old.hidden[-2]": states, "old.entropy": states[..., 0]})

    one, two = rollouts(2, 4), rollouts(3, 6)
    both = concatenate([one, two]).take(torch.tensor([4, 0]))
    assert torch.equal(both.signal("old.hidden[-2]")[0], two.signal("old.hidden[-2]")[2])
    assert torch.equal(both.signal("old.hidden[-2]")[1, :4], one.signal("old.hidden[-2]")[0])
    assert (both.signal("old.hidden[-2]")[1, 4:] == 0).all()
    assert torch.equal(both.signal("old.hidden[-2]")[..., 0], both.signal("old.entropy"))


@dataclass(frozen=True)
class Asking(Intervention):
    """Reads the inside on both clocks and changes nothing."""

    name, source = "asking", "a test"

    @property
    def needs(self):
        return (Need(HiddenStates(), policy="old"), Need(AttentionEntropy(), policy="old"))

    def advantage(self, rollouts, state):
        states = rollouts.signal("old.hidden[-2]")
        assert states.shape == (*rollouts.trained_mask.shape, 32)
        assert (states[rollouts.trained_mask].abs().sum(-1) > 0).all()
        return rollouts.advantage

    def regularise(self, step, stats, state):
        from isentrope.control.stages import Penalty

        assert set(step.rollouts.signals) == {"old.attention_entropy[middle]"}  # the states were for the rollout clock
        value = step.signal("old.attention_entropy[middle]")[step.mask]
        assert 0 < float(value.min()) <= float(value.max()) <= 1
        return Penalty()


def test_the_host_hands_them_to_the_stages(tmp_path):
    from trl import GRPOConfig

    from isentrope.train.tiny import save_tiny_model, share_of_vowels, toy_prompts
    from isentrope.train.trl import IsentropeTrainer

    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=8, report_to=[],
        use_cpu=True, bf16=False, gradient_accumulation_steps=2, save_strategy="no",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = IsentropeTrainer(
            model=save_tiny_model(tmp_path / "model"), reward_funcs=share_of_vowels, args=args, train_dataset=toy_prompts(), control=[Asking()]
        )
        trainer.train()
    assert trainer.state.global_step == 2
