"""A second stream beside a policy-gradient step: text of origin "offline" whose loss joins each update, weighted by a `Mixture`.

    trainer = MixedTrainer(model, reward_funcs=verify, args=GRPOConfig(...), train_dataset=prompts, offline=text, mixture=Red())

Two objectives come back from an update, the policy's (all that `IsentropeTrainer` does, any chain included) and the text's; the mixture weighs them.
Rows of the text are those of the slice's own prompts (`match="prompt"`: a teacher's answers), or drawn at random (`match=None`: replay), by keys of
(seed, step, slice), so that a resumed run draws the same. With an offline weight of 0 nothing is read and the loss is the policy's bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor

from isentrope.control.recipes.mixture import Mixture, Weights, nll
from isentrope.control.step import ORIGINS, Normaliser, Rollouts, RowRng, Step
from isentrope.errors import UserError
from isentrope.train.batch import OURS, loss_mask
from isentrope.train.trl import IsentropeTrainer

_STREAM = 7919  # the offline draws' own random numbers


@dataclass(frozen=True)
class _Text:
    """One row of the second stream as token ids, and the group of the policy's answers to the same prompt (-1: none)."""

    prompt: list[int]
    completion: list[int]
    group: int = -1


class MixedTrainer(IsentropeTrainer):
    """IsentropeTrainer with a second stream.

    offline: a Dataset with the columns `prompt` and `completion` (strings). mixture: `Red`, `Recap`, `Constant`, or one's own.
    rows: of text per slice, at most. match: "prompt" takes the rows of the slice's prompts (none for a prompt that the text lacks); None draws.
    All other parameters are IsentropeTrainer's.

    Raises UserError for text without those columns, and on several processes.
    """

    def __init__(self, *given: Any, offline: Dataset, mixture: Mixture, rows: int = 8, match: Literal["prompt"] | None = None, **named: Any):
        super().__init__(*given, **named)
        missing = [name for name in ("prompt", "completion") if name not in offline.column_names]
        if missing or not len(offline):
            what = f"lacks the column {', '.join(missing)}; it has {', '.join(offline.column_names)}" if missing else "holds no row"
            raise UserError(f"offline: the text {what}. Give a Dataset with strings under prompt and completion.")
        if self.accelerator.num_processes > 1:
            raise UserError(f"MixedTrainer runs on one process. Got {self.accelerator.num_processes}.")
        if rows < 1:
            raise UserError(f"MixedTrainer: rows must be at least 1. Got {rows}. Without a second stream use IsentropeTrainer.")
        self.offline, self.mixture, self.offline_rows, self.match = offline, mixture, rows, match
        self.mixture_state = mixture.init()
        self.weight_series: list[Weights] = []  # of every update of this process, for a yoked placebo
        self._seen: dict[str, list[float]] = {}
        self._by_prompt: dict[tuple[int, ...], int] = {}
        if match == "prompt":
            self._by_prompt = {tuple(self._tokenizer(prompt)["input_ids"]): row for row, prompt in reversed(list(enumerate(offline["prompt"])))}
            if not set(offline["prompt"]) & set(self.train_dataset["prompt"]):
                raise UserError("offline: no prompt of the text is a training prompt, so match='prompt' would mix nothing. For replay write match=None.")

    # --- micro-batch clock

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        slice_ = self._slice
        policy = super()._compute_loss(model, inputs)
        weights = self.mixture.weights(self.mixture_state)
        mask = loss_mask(inputs)
        self._note("online_entropy", self._metrics["train"]["entropy"][-1] if bool(mask.any()) else float("nan"))
        self._note("policy_loss", policy.item())
        self._note("reward", inputs[OURS + "reward"].nanmean().item())
        loss = policy if weights.policy == 1 else weights.policy * policy
        text = self._rows(inputs, slice_) if weights.offline else []
        if not text:
            return loss
        step = self._offline_step(model, text)
        own = self.mixture.offline_loss(step, self.mixture_state) / self.current_gradient_accumulation_steps
        if not torch.isfinite(own):
            self._stop("the offline loss (the second stream)", {"ids": step.rollouts.completion_ids, "log_probs": step.log_probs})
        counted = step.mask.sum().clamp(min=1)
        self._note("offline_loss", (nll(step).sum() / counted).item())
        self._note("offline_entropy", (torch.where(step.mask, step.signal("current.entropy"), 0.0).sum() / counted).item())
        return loss + weights.offline * own

    def _note(self, key: str, value: float) -> None:
        self._seen.setdefault(key, []).append(value)

    def _rows(self, inputs: Mapping[str, Tensor], slice_: int) -> list[_Text]:
        """This slice's rows of the second stream."""
        if self.match is None:
            count = min(self.offline_rows, len(self.offline))
            keys = RowRng(self.args.seed, self.state.global_step).child(_STREAM).uniform(torch.arange(count) + slice_ * count, 1).squeeze(1)
            return [self._text(int(position)) for position in (keys * len(self.offline)).long()]
        found: dict[int, _Text] = {}
        for row, group in enumerate(inputs[OURS + "group"].tolist()):
            if group in found or len(found) == self.offline_rows:
                continue
            ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            at = self._by_prompt.get(tuple(ids.tolist()))
            if at is not None:
                found[group] = self._text(at, group)
        return list(found.values())

    def _text(self, row: int, group: int = -1) -> _Text:
        entry, tokenizer = self.offline[row], self._tokenizer
        prompt = tokenizer(entry["prompt"])["input_ids"]
        whole = tokenizer(entry["prompt"] + entry["completion"] + tokenizer.eos_token)["input_ids"]
        return _Text(prompt, whole[len(prompt) :][: self.max_completion_length], group)

    def _accuracy(self) -> dict[int, float]:
        """The share of right answers by group, over the whole generation batch."""
        group = torch.cat([part[OURS + "group"] for part in self._buffered_inputs]).tolist()
        correct = torch.cat([part[OURS + "correct"] for part in self._buffered_inputs]).tolist()
        every: dict[int, list[float]] = {}
        for key, right in zip(group, correct, strict=True):
            every.setdefault(key, []).append(right)
        return {key: sum(values) / len(values) for key, values in every.items()}

    def _offline_step(self, model: torch.nn.Module, text: Sequence[_Text]) -> Step:
        device, pad = self.accelerator.device, self._tokenizer.pad_token_id
        before, width = max(len(row.prompt) for row in text), max(len(row.completion) for row in text)
        ids = torch.full((len(text), before + width), pad, device=device)
        attention = torch.zeros_like(ids)
        for index, row in enumerate(text):
            where = slice(before - len(row.prompt), before + len(row.completion))
            ids[index, where] = torch.tensor(row.prompt + row.completion, device=device)
            attention[index, where] = 1
        log_probs, entropy, _ = self._get_per_token_logps_and_entropies(model, ids, attention, width, compute_entropy=True)
        accuracy = self._accuracy() if self.match == "prompt" else {}
        rollouts = Rollouts.of(
            attention[:, before:].bool(),
            group=torch.tensor([row.group for row in text], device=device),
            origin=torch.full((len(text),), ORIGINS.index("offline"), device=device),
            completion_ids=ids[:, before:],
            advantage=torch.ones(len(text), 1, device=device),
            correct=torch.tensor([accuracy.get(row.group, float("nan")) for row in text], device=device),
        )
        return Step(rollouts, log_probs, {"current.entropy": entropy.detach()}, progress=self.progress, normaliser=Normaliser())

    # --- end of the update

    def end_update(self) -> None:
        super().end_update()
        weights = self.mixture.weights(self.mixture_state)
        self.weight_series.append(weights)
        seen = {key: sum(values) / len(values) for key, values in self._seen.items()}
        for key in ("policy_loss", "offline_loss", "online_entropy", "offline_entropy", "reward"):
            seen.setdefault(key, float("nan"))
        self.mixture_state = self.mixture.update(self.mixture_state, seen, self.progress)
        self._seen = {}
        for key, value in {"policy_weight": weights.policy, "offline_weight": weights.offline, **seen}.items():
            if key in ("policy_weight", "offline_weight", "offline_loss", "offline_entropy"):
                self._metrics["train"][f"mixture/{key}"].append(value)

    def host_state(self) -> dict[str, Any]:
        return {**super().host_state(), "mixture": dict(self.mixture_state)}

    def load_host_state(self, state: Mapping[str, Any]) -> None:
        super().load_host_state(state)
        self.mixture_state = dict(state["mixture"])
