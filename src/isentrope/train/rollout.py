"""The rollout clock inside TRL: score, extra samples, reward, filter, advantage, rows, on the whole generation batch of all ranks.

Runs after TRL has generated and scored a batch and before it shuffles and splits it. Every rank sees the gathered rollouts, decides
the same, and edits its own rows.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from isentrope.control.advantages import trl_advantages
from isentrope.control.stages import Advantage, Collect, Extra, ExtraRequest, Filter, Replay, Reward, RowEdit, Rows
from isentrope.control.step import ORIGINS, Rollouts, pad_width
from isentrope.errors import UserError
from isentrope.measure.tokens import Signal
from isentrope.train.batch import cut_width, gather_rollouts, is_correct
from isentrope.train.head import completion_signals
from isentrope.train.replay import ReplayBuffer, Sampled, joined

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

_EXTRA_ROWS = 1 << 40  # row ids of extra samples start here: never those of a batch
_BRANCH = ORIGINS.index("branch")
_PER_ROW = ("row_id", "origin", "age", "reward", "reward_parts", "correct", "truncated", "group")


class RolloutStages:
    """Runs the chain's rollout stages for one trainer."""

    def __init__(self, trainer: "IsentropeTrainer"):
        self.trainer = trainer
        self.touched: dict[str, float] = {}  # link -> share of what it changed in this generation, of the stages reward, filter and advantage
        self.old = [need.signal for need in trainer.chain.needs if need.policy == "old"]
        self.buffers = {index: ReplayBuffer(link.capacity, link.max_age) for index, link in trainer.chain.having(Replay) if isinstance(link, Replay)}
        if trainer.chain.having(Reward) and trainer.multi_objective_aggregation != "sum_then_normalize":
            raise UserError(
                "a reward stage needs trl.multi_objective_aggregation='sum_then_normalize': "
                f"got {trainer.multi_objective_aggregation!r}, which normalises every reward function by itself."
            )

    def run(self, inputs: Sequence[Mapping[str, Any]], rollouts: Rollouts, output: dict) -> tuple[Rollouts, dict]:
        """The local rollouts and TRL's dictionary after all stages."""
        trainer, chain, state = self.trainer, self.trainer.chain, self.trainer.chain_state
        if self.old:
            rollouts = replace(rollouts, signals=self._score(output, rollouts.completion_mask))
        if self.buffers and "old_per_token_logps" not in output:  # TRL leaves them out where a batch is used once; a buffer needs them
            output = {**output, "old_per_token_logps": self._log_probs(trainer.model, output)}
            rollouts = replace(rollouts, old_log_probs=output["old_per_token_logps"])
        view = gather_rollouts(trainer.accelerator, rollouts)
        everything = [dict(row) for row in inputs]
        extras: dict[int, Sampled] = {}
        if chain.having(Extra) or chain.having(Filter):
            everything = gather_object(everything) if trainer.accelerator.num_processes > 1 else everything
        for index, link in chain.having(Extra):
            request = link.extra(view, trainer.progress, state[index])
            if request is not None:
                extras[index] = self._extra(everything, view, request)

        self.touched = {}
        for index, link in chain.having(Reward):
            before = view.reward
            view = replace(view, reward=link.reward(view, state[index]))
            self._touch(index, ~torch.isclose(view.reward, before, rtol=0.0, atol=1e-6, equal_nan=True))
        if chain.having(Reward):
            view = replace(view, advantage=self._advantages(view.reward))
        edits: list[tuple[RowEdit, Sampled | None]] = []
        for index, link in chain.having(Filter):
            edits.append(self._filter(link, index, view))
        for index, link in chain.having(Advantage):
            before = view.token_advantage()
            view = replace(view, advantage=link.advantage(view, state[index]))
            self._touch(index, ~torch.isclose(view.token_advantage(), before, rtol=1e-5, atol=1e-7)[view.trained_mask])
        for index, link in chain.having(Rows):
            buffer = self.buffers.get(index)
            sampled = extras.get(index) if buffer is None else buffer.offered(trainer.state.global_step)
            rng = trainer.rng(-1 - trainer.generations).child(index)
            edit = link.rows(view, None if sampled is None else sampled.rollouts, state[index], rng)
            if buffer is not None and edit.clear:
                buffer.clear()
            edits.append((edit, sampled))
            changed = edit.target if edit.dropped is None else torch.cat([edit.target, edit.dropped])
            self._touch(index, torch.isin(torch.arange(len(view), device=changed.device), changed))
        self._after(view, output)

        local = self._local(view, output["completion_ids"].shape[1])
        output = dict(output)
        output["advantages"] = local.advantage.squeeze(1) if local.advantage.shape[1] == 1 else local.advantage
        for edit, sampled in edits:
            local, output = self._edit(local, output, edit, sampled)
        if edits:
            counted = local.trained_mask.sum()
            output["num_items_in_batch"] = trainer.accelerator.gather(counted).sum()
        return replace(local, signals={key: value for key, value in local.signals.items() if value.ndim == 2}), output  # states stay on this clock

    def _touch(self, index: int, changed: Tensor) -> None:
        """Notes which share of the responses, or of the trained tokens, a link has changed in this generation."""
        key = self.trainer.chain.keys[index]
        self.touched[key] = max(self.touched.get(key, 0.0), float(changed.float().mean()) if changed.numel() else 0.0)

    def _after(self, view: Rollouts, output: Mapping[str, Tensor]) -> None:
        """Buffers take what their links want of this generation, and states move."""
        trainer, chain, state = self.trainer, self.trainer.chain, list(self.trainer.chain_state)
        if self.buffers:
            prompts = [_gather_left(trainer.accelerator, output[name]) for name in ("prompt_ids", "prompt_mask")]
        for index, buffer in self.buffers.items():
            link = chain.links[index]
            assert isinstance(link, Replay)
            rows = link.remember(view, state[index]).nonzero().squeeze(1)
            buffer.add(Sampled(view.take(rows), prompts[0][rows], prompts[1][rows]), trainer.state.global_step)
        for index, link in chain.having(Collect):
            assert isinstance(link, Collect)
            state[index] = link.collect(view, state[index])
        trainer.chain_state = tuple(state)

    # --- score

    def _score(self, output: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """The declared signals of the behaviour policy."""
        return {f"old.{key}": value for key, value in policy_signals(self.trainer, output, mask, self.old).items()}

    # --- reward

    def _advantages(self, reward: Tensor) -> Tensor:
        trainer = self.trainer
        return trl_advantages(reward, trainer.num_generations, scale=trainer.scale_rewards).unsqueeze(1)

    # --- more samples

    def _extra(self, everything: Sequence[Mapping[str, Any]], view: Rollouts, request: ExtraRequest) -> Sampled:
        """`request.samples` responses for each of its groups, sampled at its temperature by all ranks together."""
        first_row = {int(group): row for row, group in reversed(list(enumerate(view.group.tolist())))}
        chosen = [int(group) for group in request.groups.tolist() for _ in range(request.samples)]
        prompts = [everything[first_row[group]] for group in chosen]
        return self.sampled(prompts, torch.tensor(chosen, device=view.group.device), request.temperature, request.samples)

    def sampled(
        self, rows: Sequence[Mapping[str, Any]], group: Tensor, temperature: float, samples: int, *, counted: str = "isentrope/extra_tokens",
        whole: bool = False,
    ) -> Sampled:  # fmt: skip
        """A response to each of `rows` by the current policy, shared among the ranks and scored.

        counted: the metric that counts its tokens. whole: rows are groups of `samples`, each on one rank, made up as the batch's own are.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        share = -(-len(rows) // (world * samples)) * samples if whole else -(-len(rows) // world)
        first_row = rank * share + _EXTRA_ROWS + trainer.generations * (1 << 20)
        mine = [rows[min(position, len(rows) - 1)] for position in range(rank * share, (rank + 1) * share)]
        kept_scores = trainer._scored
        prompts = [row["prompt"] for row in mine]
        prompt_lists, images, multimodal = trainer._tokenize_prompts(prompts)
        with generating(trainer, temperature=float(temperature)):
            if whole and trainer.regeneration is not None:
                found = trainer.regeneration.responses(prompt_lists, samples, first_row)
                ids, told = found.ids, lambda mask: {"mask": found.own(mask), "completion_mask": mask, "truncated": trainer.truncated(found.ids)}
            elif trainer.player is None:
                ids, _ = GRPOTrainer._generate_single_turn(trainer, prompt_lists, images, multimodal, samples)
                told = lambda mask: {"mask": mask, "truncated": trainer.truncated(ids)}  # noqa: E731
            else:
                ids, mine, told = trainer.player.extra(trainer, mine, samples if whole else None, first_row)
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] if isinstance(prompt, list) else text for prompt, text in zip(prompts, texts, strict=True)]
        parts = trainer._calculate_rewards([dict(row) for row in mine], prompts, completions, ids)
        trainer._scored = kept_scores
        parts = parts[rank * share : (rank + 1) * share]
        prompt_ids, prompt_mask = padded(trainer, prompt_lists, left=True)
        completion_ids, mask = padded(trainer, ids, left=False)
        local = Rollouts.of(
            **told(mask),
            row_id=torch.arange(share, device=mask.device) + first_row,
            group=group[torch.arange(rank * share, (rank + 1) * share, device=mask.device).clamp(max=len(rows) - 1)],
            origin=torch.full((share,), _BRANCH, device=mask.device),
            completion_ids=completion_ids,
            sampling_temperature=torch.full(mask.shape, float(temperature), device=mask.device),
            reward=trainer.total_reward(parts),
            reward_parts=parts,
            correct=is_correct(parts, trainer.correct_at),
            text=tuple(texts),
        )
        everyone = gather_rollouts(accelerator, local)
        real = torch.arange(len(rows), device=mask.device)
        gathered_ids, gathered_mask = _gather_left(accelerator, prompt_ids), _gather_left(accelerator, prompt_mask)
        trainer._metrics["train"][counted].append(float(everyone.take(real).lengths.sum()))
        return Sampled(everyone.take(real), gathered_ids[: len(rows)], gathered_mask[: len(rows)])

    # --- filter

    def _filter(self, link: Filter, index: int, view: Rollouts) -> tuple[RowEdit, Sampled | None]:
        """Groups that the link drops are sampled again from fresh prompts for at most `rounds` rounds; what stays dropped is masked."""
        trainer = self.trainer
        keep = link.keep(view, trainer.chain_state[index])
        self._touch(index, ~keep)
        size = trainer.num_generations
        dropped = [start for start in range(0, len(view), size) if not bool(keep[start : start + size].all())]
        filled: list[Sampled] = []
        advantages: list[Tensor] = []
        for attempt in range(link.rounds):
            if len(filled) == len(dropped):
                break
            for sampled in self._fresh(len(dropped) - len(filled), attempt):
                advantage = self._advantages(sampled.rollouts.reward)
                candidate = replace(sampled.rollouts, advantage=advantage)
                if bool(link.keep(candidate, trainer.chain_state[index]).all()) and len(filled) < len(dropped):
                    filled.append(sampled)
                    advantages.append(advantage.squeeze(1))
        device = view.row_id.device
        rows = [start + offset for start in dropped for offset in range(size)]
        target = torch.tensor(rows[: len(filled) * size], dtype=torch.long, device=device)
        left = torch.tensor(rows[len(filled) * size :], dtype=torch.long, device=device)
        together = joined(filled) if filled else None
        advantage = torch.cat(advantages) if advantages else torch.zeros(0, device=device)
        return RowEdit(target, torch.arange(len(target), device=device), advantage, left), together

    def _fresh(self, groups: int, attempt: int) -> list[Sampled]:
        """One `Sampled` per group, of prompts drawn from the training set by keys of (seed, generation, attempt)."""
        trainer, size = self.trainer, self.trainer.num_generations
        keys = trainer.rng(-1 - trainer.generations).child(1000 + attempt).uniform(torch.arange(groups), 1).squeeze(1)
        chosen = (keys * len(trainer.train_dataset)).long().tolist()
        rows = [dict(trainer.train_dataset[int(position)]) for position in chosen for _ in range(size)]
        group = torch.arange(groups, device=trainer.accelerator.device).repeat_interleave(size) + _EXTRA_ROWS + attempt * groups
        sampled = self.sampled(rows, group, float(trainer.temperature), size, whole=True)
        parts = []
        for start in range(0, len(rows), size):
            at = torch.arange(start, start + size, device=group.device)
            parts.append(Sampled(sampled.rollouts.take(at), sampled.prompt_ids[at], sampled.prompt_mask[at]))
        return parts

    # --- rows

    def _local(self, view: Rollouts, width: int) -> Rollouts:
        """This rank's rows, cut to the width that its own batch has: another rank's responses may be longer."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return view
        share = len(view) // accelerator.num_processes
        start = accelerator.process_index * share
        return cut_width(view.take(torch.arange(start, start + share, device=view.row_id.device)), width)

    def _edit(self, local: Rollouts, output: dict, edit: RowEdit, sampled: Sampled | None) -> tuple[Rollouts, dict]:
        """This rank's part of the edit: rows replaced and re-scored, dropped rows masked."""
        share = len(local)
        start = self.trainer.accelerator.process_index * share
        here = (edit.target >= start) & (edit.target < start + share)
        if sampled is not None and bool(here.any()):
            local, output = self._replace(local, output, edit.target[here] - start, edit.source[here], edit.advantage[here], sampled)
        if edit.dropped is not None and len(edit.dropped):
            rows = edit.dropped[(edit.dropped >= start) & (edit.dropped < start + share)] - start
            trained = local.trained_mask.clone()
            trained[rows] = False
            local = replace(local, trained_mask=trained)
        return local, output

    def _replace(self, local: Rollouts, output: dict, target: Tensor, source: Tensor, advantage: Tensor, sampled: Sampled) -> tuple[Rollouts, dict]:
        new = sampled.rollouts.take(source)
        pad = self.trainer._tokenizer.pad_token_id
        width = max(local.trained_mask.shape[1], int(new.completion_mask.sum(-1).max()) if len(new) else 1)
        prompt_width = max(output["prompt_ids"].shape[1], sampled.prompt_ids.shape[1])
        output = dict(output)
        output["prompt_ids"] = _put(_left(output["prompt_ids"], prompt_width, pad), target, _left(sampled.prompt_ids[source], prompt_width, pad))
        output["prompt_mask"] = _put(_left(output["prompt_mask"], prompt_width, 0), target, _left(sampled.prompt_mask[source], prompt_width, 0))
        output["completion_ids"] = _put(_right(output["completion_ids"], width, pad), target, _right(new.completion_ids, width, pad))
        output["completion_mask"] = _put(_right(output["completion_mask"], width, 0), target, _right(new.completion_mask, width, 0))
        mask = output["completion_mask"].bool()
        columns = advantage.unsqueeze(1).to(local.advantage.dtype)
        if local.advantage.shape[1] > 1:
            columns = columns.expand(-1, width)
            local = replace(local, advantage=_right(local.advantage, width, 0))
        shaped = _put(local.advantage, target, columns)
        output["advantages"] = shaped.squeeze(1) if shaped.shape[1] == 1 else shaped
        for key in ("old_per_token_logps", "ref_per_token_logps"):
            if key in output and key == "old_per_token_logps" and new.old_log_probs is not None:
                output[key] = _put(_right(output[key], width, 0), target, _right(new.old_log_probs, width, 0))
            elif key in output:
                output[key] = self._rescored(key, output, target, width)
        if "sampling_per_token_logps" in output:  # the engine's, of the time when a row was sampled; NaN, as TRL has it, where it told none
            told = torch.full_like(new.sampling_temperature, torch.nan) if new.sampling_log_probs is None else new.sampling_log_probs
            output["sampling_per_token_logps"] = _put(_right(output["sampling_per_token_logps"], width, 0), target, _right(told, width, 0))
        old = replace(
            local,
            completion_ids=output["completion_ids"],
            completion_mask=mask,
            trained_mask=_put(_right(local.trained_mask, width, 0), target, _right(new.trained_mask, width, 0)),
            turn=None if local.turn is None or new.turn is None else _put(_right(local.turn, width, 0), target, _right(new.turn, width, 0)),
            sampling_temperature=_put(_right(local.sampling_temperature, width, 1), target, _right(new.sampling_temperature, width, 1)),
            advantage=shaped,
            old_log_probs=output.get("old_per_token_logps"),
            ref_log_probs=output.get("ref_per_token_logps"),
            sampling_log_probs=output.get("sampling_per_token_logps"),
            text=None if local.text is None else tuple(_replaced(local.text, target, new.text)),
            signals={},
            **{name: _put(local.__dict__[name], target, new.__dict__[name]) for name in _PER_ROW},
        )  # fmt: skip
        return (replace(old, signals=self._score(output, mask)) if self.old else old), output

    def _rescored(self, key: str, output: Mapping[str, Tensor], target: Tensor, width: int) -> Tensor:
        """TRL's per-token log-probs with the replaced rows scored anew: by the behaviour policy, or by the reference."""
        trainer = self.trainer
        before = _right(output[key], width, 0)
        if key == "ref_per_token_logps" and trainer.ref_model is None:
            raise UserError("rows cannot be replaced with a PEFT reference policy (beta > 0 with an adapter): set trl.beta=0.")
        model = trainer.model if key == "old_per_token_logps" else trainer.ref_model
        some = {name: output[name][target] for name in ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")}
        return _put(before, target, self._log_probs(model, some))

    def _log_probs(self, model: torch.nn.Module, output: Mapping[str, Tensor]) -> Tensor:
        """[response, token] of these completions under `model`, by TRL's own pass without gradient."""
        trainer, width = self.trainer, output["completion_ids"].shape[1]
        input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(model, input_ids, attention, width, batch_size=trainer.args.per_device_train_batch_size)[0]


def policy_signals(trainer: "IsentropeTrainer", output: Mapping[str, Tensor], mask: Tensor, signals: Sequence[Signal]) -> dict[str, Tensor]:
    """Signals of these completions under the weights of now, by key, in one pass without gradient."""
    size = trainer.args.per_device_train_batch_size
    input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    parts = []
    with torch.no_grad(), trainer.accelerator.autocast():
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            parts.append(completion_signals(trainer.model_wrapped, input_ids[rows], attention[rows], mask[rows], signals))
    return {signal.key: torch.cat([part[signal.key] for part in parts]) for signal in signals}


@contextlib.contextmanager
def generating(trainer: "IsentropeTrainer", **options: float) -> Iterator[None]:
    """TRL's generation with other options (temperature, max_new_tokens), restored on exit."""
    config, kwargs = trainer.generation_config, trainer.generation_kwargs
    before = {name: (getattr(config, name), kwargs[name]) for name in options}
    for name, value in options.items():
        setattr(config, name, value)
        kwargs[name] = value
    try:
        yield
    finally:
        for name, (own, given) in before.items():
            setattr(config, name, own)
            kwargs[name] = given


def padded(trainer: "IsentropeTrainer", sequences: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and bool mask of these sequences, padded on one side."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), trainer._tokenizer.pad_token_id, device=trainer.accelerator.device)
    mask = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, where] = torch.tensor(sequence, device=ids.device)
        mask[row, where] = True
    return ids, mask


def _left(value: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(value, (width - value.shape[1], 0), value=fill)


def _right(value: Tensor, width: int, fill: float) -> Tensor:
    if value.shape[1] >= width:
        return value[:, :width]
    return pad_width(value, width) if fill == 0 else torch.nn.functional.pad(value, (0, width - value.shape[1]), value=fill)


def _put(value: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    out = value.clone()
    out[target] = rows.to(out.dtype)
    return out


def _replaced(texts: Sequence[str], target: Tensor, new: Sequence[str]) -> list[str]:
    out = list(texts)
    for row, text in zip(target.tolist(), new, strict=True):
        out[row] = text
    return out


def _gather_left(accelerator, value: Tensor) -> Tensor:
    if accelerator.num_processes == 1:
        return value
    width = int(accelerator.gather(torch.tensor([value.shape[1]], device=value.device)).max())
    return accelerator.gather(_left(value.to(torch.long), width, 0).contiguous())
