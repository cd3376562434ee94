"""Pairs of episodes for TRL's DPOTrainer, token for token: what the policy read and wrote is trained on as it stood, never decoded and encoded again.

    collator = EpisodeCollator(pad_token_id=tokenizer.pad_token_id)
    DPOTrainer(model, args=DPOConfig(..., remove_unused_columns=False), train_dataset=pairs_dataset(pairs, tokenizer), data_collator=collator, ...)

TRL 1.16 tokenises the columns `prompt`, `chosen` and `rejected` of any data set; those are here for a reader, and the collator takes the tokens. Tokens of the
environment stay in the row and leave DPO's log-ratios, which are the policy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DataCollatorForPreference

from isentrope.train.turns import Episode


def pairs_dataset(pairs: Sequence[tuple[Episode, Episode]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """(chosen, rejected) episodes as a preference data set. Raises ValueError for a pair of two prompts."""
    rows = []
    for chosen, rejected in pairs:
        if chosen.prompt_ids != rejected.prompt_ids:
            raise ValueError("pairs_dataset: both episodes of a pair must be of one prompt.")
        told = {name: tokenizer.decode(ids) for name, ids in (("prompt", chosen.prompt_ids), ("chosen", chosen.ids), ("rejected", rejected.ids))}
        tokens = {"prompt_tokens": chosen.prompt_ids, "chosen_tokens": chosen.ids, "rejected_tokens": rejected.ids}
        rows.append(told | tokens | {"chosen_wrote": list(map(int, chosen.wrote)), "rejected_wrote": list(map(int, rejected.wrote))})
    return Dataset.from_list(rows)


@dataclass
class EpisodeCollator(DataCollatorForPreference):
    """TRL's collator over the tokens of `pairs_dataset`; the completion mask is what the policy wrote."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        sides = ("chosen", "rejected")
        tokens = [{"prompt_ids": row["prompt_tokens"]} | {f"{side}_ids": row[f"{side}_tokens"] for side in sides} for row in examples]
        out = super().torch_call(tokens)
        mask = torch.zeros_like(out["completion_mask"])
        for at, (side, row) in enumerate((side, row) for side in sides for row in examples):
            start = len(row["prompt_tokens"])
            mask[at, start : start + len(row[f"{side}_wrote"])] = torch.tensor(row[f"{side}_wrote"])[: mask.shape[1] - start]
        out["completion_mask"] = mask * out["completion_mask"]
        return out
