"""The stage `fork` inside TRL's generation: in a game of several turns, some episodes of every group go on from others.

A group of k episodes begins with the roots that the link asks for; after every reply the link says which of those that can go on are doubled, until the
group is full. Where none can go on and some are lacking, one more begins at the prompt. A copy has the row of its parent, token for token, and a game of its
own, played again from the seed. What the link reads of an action is scored by a pass of the policy over what was drawn, turn by turn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from isentrope.control.forks import Standing, refuse_counts
from isentrope.control.stages import Fork
from isentrope.errors import UserError
from isentrope.measure.tokens import TopKEntropy
from isentrope.provenance import Provenance
from isentrope.train.carried import refuse_split_groups
from isentrope.train.games import GameSpec
from isentrope.train.turns import Episode, forked

if TYPE_CHECKING:
    from isentrope.train.trl import IsentropeTrainer

COUNTS = ("sampled_tokens", "kept_tokens", "pilot_tokens")


@dataclass
class Group:
    """Episodes of one prompt, as they come about; `first`: the row id of the first. `opened(n)`: n more that begin at the prompt."""

    episodes: list[Episode]
    first: int
    size: int
    opened: Callable[[int], list[Episode]]
    made: int = 0  # episodes added since the start


@dataclass
class Forking:
    """Runs the link `index` of a trainer's chain. `figures`: of the last generation, over all ranks (see `count`)."""

    trainer: "IsentropeTrainer"
    index: int
    link: Fork
    figures: Mapping[str, float] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        (need,) = (need for need in self.trainer.chain.links[self.index].needs if need.policy == "draft")
        self.signal = need.signal
        self.uniform = math.log(len(self.trainer._tokenizer))

    @property
    def key(self) -> str:
        return self.trainer.chain.keys[self.index]

    def groups(
        self, pilots: Sequence[Episode | None], samples: int, first_row: int, opened: Callable[[int, int], list[Episode]]
    ) -> list[Group]:
        """The groups as they begin; `opened(group, n)` gives n fresh episodes."""
        state, found = self.trainer.chain_state[self.index], []
        self._sums = dict.fromkeys(("roots", "forks", "at_forks", "actions", "at_actions"), 0.0)
        self._sums["pilot_tokens"] = float(sum(sum(pilot.wrote) for pilot in pilots if pilot is not None))
        for number, pilot in enumerate(pilots):
            first = first_row + number * samples
            roots = self.link.roots(samples, None if pilot is None else self.standing(pilot, first), state)
            if not 1 <= roots <= samples:
                raise ValueError(f"{self.key}: the stage fork must begin 1 to {samples} episodes at the prompt. Got {roots}.")
            self._sums["roots"] += roots

            def more(count: int, number: int = number) -> list[Episode]:
                return opened(number, count)

            found.append(Group(more(roots), first, samples, more))
        return found

    def grow(self, groups: Sequence[Group], rules: GameSpec) -> list[Episode]:
        """The episodes that come after this turn: copies of those that can go on, or a fresh one where none can."""
        added: list[Episode] = []
        for group in groups:
            new = self._more(group, rules)
            group.made += len(new)
            group.episodes += new
            added += new
        return added

    def _more(self, group: Group, rules: GameSpec) -> list[Episode]:
        free = group.size - len(group.episodes)
        going = [(place, episode) for place, episode in enumerate(group.episodes) if not episode.ending]
        if free == 0:
            return []
        if not going:
            return group.opened(1)
        standing = [self.standing(episode, group.first + place) for place, episode in going]
        rng = self.trainer.rng(-1 - self.trainer.generations).child(self.index)
        counts = self.link.forks(standing, free, group.made, self.trainer.chain_state[self.index], rng)
        refuse_counts(self.key, counts, standing, free)
        new: list[Episode] = []
        for (_, episode), seen, count in zip(going, standing, counts, strict=True):
            self._seen(seen, count)
            copies = [forked(episode, rules) for _ in range(count)]
            for line in (episode, *copies):
                line.run = seen.run + 1 if count else 0
            for copy in copies:
                copy.untrained = copy.kept if self.link.shared == "once" else 0
            new += copies
        return new

    def standing(self, episode: Episode, row: int) -> Standing:
        """What the link is shown of an episode."""
        turns = [torch.tensor(episode.said(turn, self.signal.key), dtype=torch.float64) for turn in range(len(episode.actions))]
        return Standing(row, tuple(turns), self.uniform, episode.run)

    def count(self, episodes: Sequence[Episode]) -> None:
        """Notes, over all ranks: the share of episodes that are copies; the mean share of its row that a copy took over; episodes of a group that began
        at the prompt before any was forked; the mean entropy (nats) of the actions after which lines were forked, and of all that could have been; tokens
        sampled, taken over, and of pilots."""
        copies = [episode for episode in episodes if episode.kept]
        sampled = sum(sum(episode.wrote[episode.kept :]) for episode in episodes)
        own = {
            "rows": len(episodes), "groups": len(episodes) / self.trainer.num_generations, "copies": len(copies), "sampled_tokens": sampled,
            "kept_tokens": sum(sum(episode.wrote[: episode.kept]) for episode in copies), "share_kept": sum(e.kept / max(1, len(e.ids)) for e in copies),
        }  # fmt: skip
        told = {**self._sums, **own}
        values = torch.tensor(list(told.values()), dtype=torch.float64, device=self.trainer.accelerator.device)
        total = dict(zip(told, self.trainer.accelerator.reduce(values, reduction="sum").tolist(), strict=True))
        self.figures = {
            "share": total["copies"] / total["rows"], "kept": _over(total["share_kept"], total["copies"]), "roots": total["roots"] / total["groups"],
            "entropy": _over(total["at_forks"], total["forks"]), "usual_entropy": _over(total["at_actions"], total["actions"]),
            **{name: total[name] for name in COUNTS},
        }  # fmt: skip
        for name in COUNTS:
            self.trainer._metrics["train"][f"isentrope/fork/{name}"].append(total[name])

    def provenance(self, temperature: float, dtype: str) -> dict[str, Provenance]:
        """Of the entropy columns `fork/LINK/...` of the tape."""
        common = {
            "estimator": "exact", "temperature": float(temperature), "truncation": self.signal.key if isinstance(self.signal, TopKEntropy) else None,
            "policy": "old", "mask": "trained", "unit": "nats", "dtype": dtype,
        }  # fmt: skip
        return {
            f"steps.fork/{self.key}/entropy": Provenance(**common, aggregation="mean-over-forks-of-the-token-mean-of-the-action-before"),
            f"steps.fork/{self.key}/usual_entropy": Provenance(**common, aggregation="mean-over-replies-of-the-token-mean-of-the-action-before"),
        }

    def _seen(self, standing: Standing, count: int) -> None:
        last = standing.turns[-1]
        mean = float(last.mean()) if len(last) else 0.0
        for name, times in (("forks", count), ("actions", 1)):
            self._sums[name] += times
            self._sums[f"at_{name}"] += times * mean


def _over(total: float, count: float) -> float:
    return total / count if count else math.nan


def forking(trainer: "IsentropeTrainer") -> Forking | None:
    """The stage of this trainer's chain, if a link has it.

    Raises UserError naming the link where there is no game, or a group does not lie on one process.
    """
    found = trainer.chain.having(Fork)
    if not found:
        return None
    index, link = found[0]
    assert isinstance(link, Fork)
    key = trainer.chain.keys[index]
    if trainer.player is None:
        raise UserError(f"{key} forks episodes of a game of several turns, and this run has none. Give it one (task.game, docs/turns.md), or drop the link.")
    refuse_split_groups(trainer.args, key)
    return Forking(trainer, index, link)
