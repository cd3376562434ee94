"""What a run leaves on its tape: one row per update, rows per token and per response for a keyed sample, and where entropy was pushed."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.control.stages import ChainStats, LossResult, predicted_push, removed_shares, stages_of
from isentrope.control.step import ORIGINS, Rollouts, RowRng, Step
from isentrope.explain.alarms import Push
from isentrope.measure.tokens import Discriminant, Entropy, ExpectedDiscriminant, MaxProb, Signal, TargetProb
from isentrope.provenance import Provenance
from isentrope.tape import TapeWriter
from isentrope.train.turn_figures import turn_counts, turn_means, turn_rows, turn_sums

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class TapeRecorder:
    """Writes a trainer's updates to a tape.

    steps: one row per update. tokens_every: updates between two token samples (None: no token rows, and TRL's own head stays).
    token_rows: responses sampled per token sample, chosen by keys of (seed, update, row). decode: token id -> text.
    update_norm: how far every update moves the weights; costs a copy of the trained weights.
    """

    def __init__(
        self,
        writer: TapeWriter,
        *,
        steps: bool = True,
        tokens_every: int | None = 5,
        token_rows: int = 8,
        decode: Callable[[int], str] = str,
        warn: Callable[[str, str], None] = lambda kind, message: None,
        equal_rewards_after: int = 100,
        update_norm: bool = False,
    ):
        self.writer, self.steps, self.tokens_every, self.token_rows = writer, steps, tokens_every, token_rows
        self.decode, self.warn, self.equal_rewards_after = decode, warn, equal_rewards_after
        self.signals: tuple[Signal, ...] = ()
        if tokens_every is not None:
            self.signals = (Entropy(), Discriminant(), ExpectedDiscriminant(), TargetProb(), MaxProb())
        self.update_norm = update_norm
        self.equal_rewards = 0
        self.last: dict[str, float] = {}
        self.pushes: tuple[Push, ...] = ()  # the tokens sampled in the last update; none in most
        self._text: dict[int, str] = {}
        self._seen: dict[str, int] = {}
        self._clear()

    # --- what is remembered over a resume

    def state(self) -> dict[str, Any]:
        return {"equal_rewards": self.equal_rewards, "batch": dict(self._batch)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.equal_rewards, self._batch = state["equal_rewards"], dict(state["batch"])

    # --- told by the host

    def begin(self) -> None:
        """An update begins: its clock starts, so that evaluations and saves between updates do not count."""
        self._began = time.perf_counter()

    def generation(self, trainer: "IsentropeTrainer", prompts: Sequence[str], rollouts: Rollouts) -> None:
        """A generation batch was sampled and scored; its figures describe every update that uses it."""
        reward, correct = _gathered_rows(trainer, rollouts.reward), _gathered_rows(trainer, rollouts.correct)
        groups = reward.view(-1, trainer.num_generations) if len(reward) % trainer.num_generations == 0 else reward.view(1, -1)
        spread = groups.nan_to_num(0.0).amax(1) - groups.nan_to_num(0.0).amin(1)
        lengths = _gathered_rows(trainer, rollouts.completion_mask.sum(-1).float())
        self._batch = {
            "reward/mean": _nanmean(reward),
            "reward/std": _nanstd(reward),
            "reward/zero_std_groups": float((spread == 0).float().mean()),
            "correct/mean": _nanmean(correct),
            "length/mean": float(lengths.mean()),
            "truncated/share": float(_gathered_rows(trainer, rollouts.truncated.float()).mean()),
            "tokens": float(lengths.sum()),
        }
        turns = _gathered_rows(trainer, turn_counts(rollouts).float())
        if float(turns.max()):
            self._batch |= {"turns/mean": float(turns.mean()), "turns/most": float(turns.max())}
        for index, name in enumerate(trainer.reward_func_names):
            self._batch[f"reward/part/{name}"] = _nanmean(_gathered_rows(trainer, rollouts.reward_parts[:, index].contiguous()))
        hotter = rollouts.completion_mask & (rollouts.sampling_temperature != float(trainer.temperature))
        for _, key in _links_with(trainer, "sample"):
            self._batch[f"touch/{key}"] = float(_gathered_rows(trainer, hotter.sum(-1).float()).sum() / lengths.sum().clamp(min=1))
        if trainer.regeneration is not None:
            key, found = trainer.regeneration.key, trainer.regeneration.figures
            self._batch |= {f"touch/{key}": found["share"], **{f"cut/{key}/{name}": value for name, value in found.items()}}
        if trainer.forking is not None:
            key, found = trainer.forking.key, trainer.forking.figures
            self._batch |= {f"touch/{key}": found["share"], **{f"fork/{key}/{name}": value for name, value in found.items()}}
        for key, share in trainer.touched_rollouts().items():
            self._batch[f"touch/{key}"] = max(share, self._batch.get(f"touch/{key}", 0.0))
        if self.tokens_every is not None and trainer.accelerator.is_main_process:
            self._samples(trainer, prompts, rollouts)

    def slice(self, trainer: "IsentropeTrainer", step: Step, stats: ChainStats | None, result: LossResult) -> None:
        """One slice of an update went through the loss."""
        if self.update_norm and self._weights is None:
            self._weights = [weight.detach().clone() for weight in _trained(trainer)]
        mask, observed = step.mask, result.observed
        self._loss += float(result.loss.detach())
        self._entropy.append(step.signals["current.entropy"].detach()[mask])
        ratio = observed.ratio.expand(mask.shape)[mask]
        sums = self._sums
        sums["tokens"] += float(mask.sum())
        sums["clip/low"] += float(observed.clipped_low.sum())
        sums["clip/high"] += float(observed.clipped_high.sum())
        sums["ratio/mean"] += float(ratio.sum())
        self._ratio_max = max(self._ratio_max, float(ratio.max()) if ratio.numel() else 0.0)
        if observed.kl is not None:
            sums["kl/mean"] += float(observed.kl[mask].sum())
        for name, key in (("S/mean", "current.S"), ("N/mean", "current.N")):
            if key in step.signals:
                sums[name] += float(step.signals[key][mask].sum())
        for key, touched in observed.touched.items():
            sums[f"touch/{key}"] += float(touched.sum())
        for key, value in turn_sums(step, step.signals["current.entropy"], observed.weight, int(self._batch.get("turns/most", 0))).items():
            sums[key] += value
        for index, key in enumerate(trainer.chain.keys):
            for name, value in ({} if stats is None or stats.links[index] is None else stats.links[index].scalars).items():
                self._link[f"link/{key}/{name}"] = float(value)
        if self._sampling(trainer):
            self._tokens(trainer, step, stats, result)

    def update(self, trainer: "IsentropeTrainer") -> None:
        """The optimiser has stepped: close the row of this update."""
        step = trainer.state.global_step
        sums, tokens = self._over_ranks(trainer)
        entropy = _gathered(trainer, torch.cat(self._entropy) if self._entropy else torch.zeros(0))
        row: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - self._began, "loss": self._loss}
        row["grad_norm"] = trainer.last_grad_norm
        row["learning_rate"] = trainer.last_learning_rate
        row |= self._batch
        row["tokens_per_second"] = row.get("tokens", 0.0) / max(row["seconds"], 1e-9)
        row |= _entropy_columns(entropy)
        for key in ("clip/low", "clip/high", "ratio/mean", "kl/mean", "S/mean", "N/mean"):
            if key in sums:
                row[key] = sums[key] / tokens
        row["ratio/max"] = self._ratio_max
        row |= turn_means(sums)
        for key in trainer.chain.keys:
            row[f"touch/{key}"] = max(sums.get(f"touch/{key}", 0.0) / tokens, self._batch.get(f"touch/{key}", 0.0))
        for key, (without, whole) in self._removed.items():
            row[f"removed/{key}"] = share_removed(without, whole)
        row |= self._link
        row |= controls(trainer.chain.keys, trainer.chain_state)
        if self._weights is not None:
            row["update/norm"] = distance(self._weights, _trained(trainer))
        row |= self._trl(trainer)
        self.last = {key: value for key, value in row.items() if isinstance(value, float | int)}
        if self.steps and trainer.accelerator.is_main_process:
            self.writer.append("steps", [row])
        self._watch(trainer, row)
        self.pushes = tuple(self._pushes)
        self._clear()

    def _over_ranks(self, trainer: "IsentropeTrainer") -> tuple[dict[str, float], float]:
        """Sums and number of tokens of the whole update; the loss (whose mean over ranks it is), the largest ratio and the pushes with them."""
        world = trainer.accelerator.num_processes
        if world > 1:
            names, links = sorted(self._sums), sorted(self._removed)
            local = [self._sums[name] for name in names] + [value for key in links for value in self._removed[key]] + [self._loss / world]
            largest = trainer.accelerator.gather(torch.tensor([self._ratio_max], dtype=torch.float64, device=trainer.accelerator.device))
            total = trainer.accelerator.reduce(torch.tensor(local, dtype=torch.float64, device=trainer.accelerator.device), reduction="sum").tolist()
            self._sums = dict(zip(names, total, strict=False))
            pushes = total[len(names) : -1]
            self._removed = {key: pushes[2 * at : 2 * at + 2] for at, key in enumerate(links)}
            self._loss, self._ratio_max = total[-1], float(largest.max())
        return self._sums, max(self._sums.get("tokens", 0.0), 1.0)

    def measured(self) -> dict[str, float]:
        """What trackers show beside TRL's metrics: entropies with quantiles, S, N, and what every link touched and removed."""
        shown = ("entropy/", "S/", "N/", "touch/", "removed/", "correct/")
        return {key: float(value) for key, value in self.last.items() if key.startswith(shown)}

    # --- parts

    def _clear(self) -> None:
        self._loss, self._ratio_max = 0.0, 0.0
        self._entropy: list[Tensor] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._link: dict[str, float] = {}
        self._removed: dict[str, list[float]] = {}
        self._pushes: list[Push] = []
        self._weights: list[Tensor] | None = None
        self._began = time.perf_counter()
        self._batch: dict[str, float] = getattr(self, "_batch", {})

    def _sampling(self, trainer: "IsentropeTrainer") -> bool:
        return self.tokens_every is not None and trainer.state.global_step % self.tokens_every == 0

    def _chosen(self, trainer: "IsentropeTrainer", row_id: Tensor, rows: int) -> Tensor:
        """Rows of a token sample: keyed, so that a resumed run samples the same."""
        share = min(1.0, self.token_rows / max(rows, 1))
        return RowRng(trainer.args.seed, -7).uniform(row_id, 1).squeeze(1) < share

    def _samples(self, trainer: "IsentropeTrainer", prompts: Sequence[str], rollouts: Rollouts) -> None:
        chosen = self._chosen(trainer, rollouts.row_id, len(rollouts)).nonzero().squeeze(1).tolist()
        step = trainer.state.global_step + 1
        if not any((step - 1 + offset) % self.tokens_every == 0 for offset in range(_updates_per_generation(trainer))):
            return
        rows, turns = [], []
        episodes = () if trainer.player is None else trainer.player.episodes
        decode = lambda ids: trainer._tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
        for row in chosen:
            rows.append({
                "step": step, "row_id": int(rollouts.row_id[row]), "group": int(rollouts.group[row]), "prompt": prompts[row],
                "completion": rollouts.text[row], "reward": float(rollouts.reward[row]), "correct": float(rollouts.correct[row]),
                "truncated": bool(rollouts.truncated[row]), "length": int(rollouts.completion_mask[row].sum()),
                "advantage": float(rollouts.token_advantage()[row].sum() / rollouts.trained_mask[row].sum().clamp(min=1)),
                "origin": ORIGINS[int(rollouts.origin[row])],
            })  # fmt: skip
            about = {name: rows[-1][name] for name in ("step", "row_id", "group", "reward", "correct")}
            turns += [about | turn for turn in turn_rows(rollouts, row, episodes, decode)]
        if rows:
            self.writer.append("samples", rows)
        if turns:
            self.writer.append("turns", turns)

    def _tokens(self, trainer: "IsentropeTrainer", step: Step, stats: ChainStats | None, result: LossResult) -> None:
        state, rng = trainer.chain_state, trainer.rng()
        push = predicted_push(step, trainer.objective, trainer.chain, stats, state, rng)
        for key, (without, whole) in removed_shares(step, trainer.objective, trainer.chain, stats, state, rng).items():
            total = self._removed.setdefault(key, [0.0, 0.0])
            total[0] += float(without)
            total[1] += float(whole)
        if not trainer.accelerator.is_main_process:
            return
        rollouts, mask = step.rollouts, step.mask
        rows = self._chosen(trainer, rollouts.row_id, _rows_per_generation(trainer))
        where = (mask & rows[:, None]).nonzero()
        if not len(where):
            return
        row, position = where[:, 0], where[:, 1]
        pick = lambda value: value.detach().expand(mask.shape)[row, position].float().tolist()  # noqa: E731
        ids = rollouts.completion_ids[row, position].tolist()
        columns: dict[str, list] = {
            "step": [trainer.state.global_step + 1] * len(ids), "row_id": rollouts.row_id[row].tolist(), "group": rollouts.group[row].tolist(),
            "position": position.tolist(), "token_id": ids, "text": [self._decoded(token) for token in ids],
            "log_prob": pick(step.log_probs), "entropy": pick(step.signals["current.entropy"]), "S": pick(step.signals["current.S"]),
            "N": pick(step.signals["current.N"]), "p": pick(step.signals["current.p"]), "max_p": pick(step.signals["current.max_p"]),
            "ratio": pick(result.observed.ratio), "advantage": pick(step.advantage), "weight": pick(result.observed.weight),
            "push": pick(push), "correct": rollouts.correct[row].tolist(),
        }  # fmt: skip
        if rollouts.turn is not None:
            columns["turn"] = rollouts.turn[row, position].tolist()
        for key, touched in result.observed.touched.items():
            columns[f"link/{key}"] = touched[row, position].tolist()
        self.writer.append("tokens", columns)
        self._pushes += [Push(*one) for one in zip(columns["text"], columns["push"], columns["advantage"], strict=True)]

    def _decoded(self, token: int) -> str:
        if token not in self._text:
            self._text[token] = self.decode(token)
        return self._text[token]

    def _trl(self, trainer: "IsentropeTrainer") -> dict[str, float]:
        """The latest value of each of TRL's own metrics since the last update, under `trl/`."""
        found = {}
        for key, values in trainer._metrics["train"].items():
            if key.startswith(("link/", "isentrope/")) or not values:
                continue
            fresh = values[self._seen.get(key, 0) :] if len(values) > self._seen.get(key, 0) else values
            found[f"trl/{key}"] = float(sum(fresh) / len(fresh))
        self._seen = {key: len(values) for key, values in trainer._metrics["train"].items()}
        if trainer.will_log():
            self._seen = {}
        return found

    def _watch(self, trainer: "IsentropeTrainer", row: Mapping[str, Any]) -> None:
        self.equal_rewards = self.equal_rewards + 1 if row.get("reward/zero_std_groups") == 1.0 else 0
        if self.equal_rewards and self.equal_rewards % self.equal_rewards_after == 0:
            level = row.get("reward/mean", math.nan)
            self.warn(
                "equal-rewards",
                f"For {self.equal_rewards} updates every group had equal rewards (mean {level:g}): all advantages are 0, so nothing is learned. "
                "The task is too hard, too easy, or its verifier always answers the same; look at the samples.",
            )


def share_removed(without: float, whole: float) -> float:
    """Which share of the predicted entropy change a link takes away: 1 all of it, 0 nothing, below 0 it adds. NaN if there is none.

    >>> share_removed(-2.0, -1.5), share_removed(2.0, 1.5), share_removed(-2.0, -3.0)
    (0.25, 0.25, -0.5)
    """
    return 1 - whole / without if without else math.nan


def provenance(temperature: float, dtype: str, own_head: bool, cutting: str | None = None) -> dict[str, Provenance]:
    """Provenance of every entropy column that this recorder writes. `cutting`: the link of the chain that re-generates."""
    common = {
        "estimator": "exact", "temperature": float(temperature), "truncation": None, "policy": "current", "mask": "trained",
        "unit": "nats", "dtype": dtype,
    }  # fmt: skip
    token_mean = Provenance(**common, aggregation="token-mean")
    single = Provenance(**common, aggregation="none")
    found = {"steps.entropy/mean": token_mean}
    for level in QUANTILES:
        found[f"steps.entropy/q{round(100 * level):02d}"] = Provenance(**common, aggregation=f"token-quantile-{level:g}")
    found["steps.trl/entropy"] = token_mean
    if own_head:
        found |= {"steps.S/mean": token_mean, "steps.N/mean": token_mean}
        found |= {f"tokens.{name}": single for name in ("entropy", "S", "N", "push")}
    if cutting is not None:
        old = common | {"policy": "old", "mask": "draft"}
        found[f"steps.cut/{cutting}/entropy"] = Provenance(**old, aggregation="mean-over-cuts")
        found[f"steps.cut/{cutting}/near_entropy"] = Provenance(**old, aggregation="mean-over-cuts-of-the-next-4-tokens")
        found[f"steps.cut/{cutting}/usual_entropy"] = Provenance(**old, aggregation="token-mean")
    return found


def controls(keys: Sequence[str], states: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`state/LINK/ENTRY`: what every controller remembered while this update was made; only numbers have a column."""
    return {
        f"state/{key}/{name}": float(value) for key, state in zip(keys, states, strict=True) for name, value in state.items() if isinstance(value, int | float)
    }


def distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Euclidean distance of two lists of weights of equal shapes, summed in float64."""
    return math.sqrt(sum(float((new.detach() - old).double().square().sum()) for old, new in zip(before, after, strict=True)))


def _trained(trainer: "IsentropeTrainer") -> list[Tensor]:
    """The weights that train, as this process holds them."""
    return [weight for weight in trainer.accelerator.unwrap_model(trainer.model).parameters() if weight.requires_grad]


def _entropy_columns(entropy: Tensor) -> dict[str, float]:
    if not entropy.numel():
        return {"entropy/mean": math.nan}
    levels = torch.tensor(QUANTILES, device=entropy.device)
    if entropy.numel() > 2**24:  # torch.quantile's limit
        entropy_for_quantile = entropy[:: entropy.numel() // 2**23 + 1]
    else:
        entropy_for_quantile = entropy
    cuts = torch.quantile(entropy_for_quantile.float(), levels).tolist()
    return {"entropy/mean": float(entropy.double().mean())} | {f"entropy/q{round(100 * q):02d}": cut for q, cut in zip(QUANTILES, cuts, strict=True)}


def _gathered(trainer: "IsentropeTrainer", value: Tensor) -> Tensor:
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return value
    value = value.to(accelerator.device)
    padded = accelerator.pad_across_processes(value, dim=0, pad_index=-1e9)
    gathered = accelerator.gather(padded)
    return gathered[gathered > -1e8]


def _gathered_rows(trainer: "IsentropeTrainer", value: Tensor) -> Tensor:
    """One value per response, of all ranks in their order, so that groups stand together."""
    return value if trainer.accelerator.num_processes == 1 else trainer.accelerator.gather(value.to(trainer.accelerator.device))


def _links_with(trainer: "IsentropeTrainer", stage: str):
    return [(link, key) for link, key in zip(trainer.chain.links, trainer.chain.keys, strict=True) if stage in stages_of(link)]


def _updates_per_generation(trainer: "IsentropeTrainer") -> int:
    args = trainer.args
    return max(1, args.steps_per_generation * trainer.num_iterations // args.gradient_accumulation_steps)


def _rows_per_generation(trainer: "IsentropeTrainer") -> int:
    return trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation


def _nanmean(value: Tensor) -> float:
    return float(value.nanmean()) if value.numel() else math.nan


def _nanstd(value: Tensor) -> float:
    kept = value[~torch.isnan(value)]
    return float(kept.std()) if kept.numel() > 1 else 0.0
