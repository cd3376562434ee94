"""Recorded cases of ARES as released (sheet `ares`): window entropies are pure functions of levels, the reward is its paper module's."""

import torch

from isentrope.control.papers.ares import released_shaping
from isentrope.measure.level import reduce, window_threshold, windows
from isentrope.verify.cases import Case, Outputs, answers

SLUG = "ares"


@answers(SLUG, "code-window-entropy*")
def code_window_entropy(case: Case) -> Outputs:
    """`threshold` judges windows; `sample_threshold` is the estimate that a batch would make. The first leaves the tail bucket in, the second out."""
    top, ids, width = case["top_logprobs"].double(), case["top_ids"], case.param("window")
    text = torch.arange(top.shape[1]) < case["length"].unsqueeze(1)
    p = top.exp()
    listed = torch.special.entr(p).sum(-1)
    entropy = listed + torch.special.entr((1 - p.sum(-1)).clamp(min=0))
    triggers = torch.isin(ids.gather(-1, top.argmax(-1, keepdim=True)).squeeze(-1), case["trigger_ids"])
    after = windows(entropy, width=width, mask=text, following=True)
    judged = triggers & after.full
    excess = after.mean - case.param("threshold")
    return {
        "mean_entropy": reduce(entropy, mask=text),
        "sample_threshold": window_threshold(listed, mask=text, quantile=case.param("percentile") / 100, width=width, released=True),
        "valid_count": (judged & (excess >= 0)).sum(-1),
        "invalid_count": (judged & (excess < 0)).sum(-1),
        "soft_cost": reduce(excess.clamp(min=0), how="sum", mask=judged, empty=0.0),
    }


@answers(SLUG, "code-reward*")
def code_reward(case: Case) -> Outputs:
    correct = case.mask("correct")
    shaping = released_shaping(case["bucket"], correct, case["window_count"], case["target_count"], case["alpha"])
    return {"shaping": shaping, "reward": correct.double() + shaping}
