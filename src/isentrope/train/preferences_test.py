"""Pairs of episodes as TRL's DPOTrainer reads them."""

import pytest
import torch
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from isentrope.train.games import Keys
from isentrope.train.models import EMBEDDED, load
from isentrope.train.preferences import EpisodeCollator, pairs_dataset
from isentrope.train.turns import Episode


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(EMBEDDED))


def episode(tokenizer, parts: list[tuple[str, bool]], prompt: str = "abcd:") -> Episode:
    made = Episode(Keys(), tokenizer(prompt)["input_ids"])
    for turn, (text, wrote) in enumerate(parts):
        ids = tokenizer(text)["input_ids"]
        made.append(ids, turn // 2, {"entropy": [0.5] * len(ids)} if wrote else None)
    return made


def pair(tokenizer):
    won = episode(tokenizer, [("c", True), ("71\n", False), ("71", True)])
    lost = episode(tokenizer, [("d", True), ("none\n", False), ("1", True), ("2", True)])
    return won, lost


def test_the_collator_gives_the_rows_token_for_token_and_masks_the_environment(tokenizer):
    won, lost = pair(tokenizer)
    data = pairs_dataset([(won, lost), (lost, won)], tokenizer)
    out = EpisodeCollator(pad_token_id=tokenizer.pad_token_id)([dict(row) for row in data])
    for at, one in enumerate((won, lost, lost, won)):  # TRL's order: the chosen ones, then the rejected ones
        row = one.prompt_ids + one.ids
        assert out["input_ids"][at, : len(row)].tolist() == row
        assert out["attention_mask"][at].sum() == len(row)
        assert out["completion_mask"][at].tolist() == [0] * len(one.prompt_ids) + list(map(int, one.wrote)) + [0] * (out["input_ids"].shape[1] - len(row))


def test_a_pair_is_of_one_prompt(tokenizer):
    with pytest.raises(ValueError, match="must be of one prompt"):
        pairs_dataset([(episode(tokenizer, [("c", True)]), episode(tokenizer, [("c", True)], "abc:"))], tokenizer)


def test_trl_trains_on_these_tokens_and_no_others(tokenizer, tmp_path):
    """One step of stock DPO: log-ratios are 0 before it, and the loss's gradient at the reference is -beta / 2 times that of the margin of what was written."""
    loaded = load("embedded")
    won, lost = pair(tokenizer)

    def score(one: Episode) -> torch.Tensor:
        row = torch.tensor([one.prompt_ids + one.ids])
        log_p = loaded.model(input_ids=row).logits.log_softmax(-1)[0, :-1].gather(-1, row[0, 1:, None]).squeeze(-1)
        return log_p[len(one.prompt_ids) - 1 :][torch.tensor(one.wrote)].sum()

    margin = torch.autograd.grad(score(won) - score(lost), loaded.model.get_output_embeddings().weight)[0]
    args = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=1, max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
        max_length=None, beta=0.1, activation_checkpointing=False, remove_unused_columns=False, learning_rate=0.0, max_grad_norm=0.0,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=loaded.model, args=args, train_dataset=pairs_dataset([(won, lost)], tokenizer), processing_class=loaded.tokenizer,
        data_collator=EpisodeCollator(pad_token_id=tokenizer.pad_token_id),
    )  # fmt: skip
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, batch)
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    slope = torch.autograd.grad(loss, trainer.model.get_output_embeddings().weight)[0]
    torch.testing.assert_close(slope, -0.1 / 2 * margin, rtol=1e-4, atol=1e-6)
