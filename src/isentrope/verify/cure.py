"""Recorded cases of CURE's released rollout (sheet `cure`): which positions it may cut, and the prompt that a branch goes on from."""

from dataclasses import replace

import torch

from isentrope.control.cuts import Drafts, contexts, drawn, eligible, leading
from isentrope.control.papers.cure import Cure
from isentrope.control.step import Rollouts
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "cure"


@answers(SLUG, "critical-token-candidates*")
def candidates(case: Case) -> Outputs:
    """The j-th draw is the j-th candidate, or the last one."""
    ids, entropy, most = case["response_ids"], case["entropy"], case.param("top_k")
    texts = {token: "x" * int(length) for token, length in enumerate(case["text_length"].tolist())}
    special = frozenset(case["special"].nonzero().squeeze(1).tolist())
    rollouts = replace(Rollouts.of(torch.ones_like(ids, dtype=torch.bool)), completion_ids=ids)
    found = leading(entropy, eligible(Drafts(rollouts, 0, ids.shape[1], texts, special), Cure().admits), most)
    count = (found >= 0).sum(-1)
    picks = torch.minimum(torch.arange(most), (count[:, None] - 1).clamp(min=0))
    return {"position_by_draw": torch.stack([drawn(found, (pick + 0.5).double() / count.clamp(min=1)) for pick in picks.T], dim=1)}


@answers(SLUG, "branch-prompt*")
def branch_prompt(case: Case) -> Outputs:
    """As released: of a context longer than the buffer its first tokens are kept; padded on the left."""
    pad, buffer = case.param("pad"), case.param("buffer")
    prompts = [[token for token in row if token != pad] for row in case["prompt_ids"].tolist()]
    kept = contexts(prompts, case["response_ids"].tolist(), case["cut"].tolist(), buffer=buffer)
    ids = torch.tensor([[pad] * (buffer - len(row)) + row for row in kept])
    mask = torch.tensor([[0] * (buffer - len(row)) + [1] * len(row) for row in kept])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
