"""The arms of an experiment in the tabular world: every arm on the same seeds, compared pair by pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isentrope.control.objectives import Objective
from isentrope.control.stages import Intervention
from isentrope.lab.bench import Bench
from isentrope.lab.tabular import History, Settings, Task, matched, train


@dataclass(frozen=True)
class Arm:
    """How one arm is trained; what is None is the experiment's, or the recipe of the first link."""

    links: Intervention | Sequence[Intervention] = ()
    objective: Objective | None = None
    settings: Settings | None = None


@dataclass(frozen=True)
class Arms:
    """The histories of every arm, one per seed, in the same order."""

    runs: Mapping[str, Sequence[History]]

    def end(self, arm: str, base: str, name: str = "reward") -> list[float]:
        """A figure at the end, `arm` less `base`, one per seed."""
        return [float(one[name][-1] - two[name][-1]) for one, two in self._pairs(arm, base)]

    def matched(self, arm: str, base: str, name: str = "entropy") -> list[float]:
        """A figure at equal expected reward, `arm` less `base`, one per seed."""
        return [matched(two, one, name) for one, two in self._pairs(arm, base)]

    def area(self, arm: str, base: str, name: str = "reward") -> list[float]:
        """A figure averaged over the training, `arm` less `base`, one per seed: who is faster, where both arrive."""
        return [float(one[name].mean() - two[name].mean()) for one, two in self._pairs(arm, base)]

    def gained(self, arm: str, name: str = "reward") -> list[float]:
        """A figure at the end less the same at the start, one per seed."""
        return [float(one[name][-1] - one[name][0]) for one in self.runs[arm]]

    def _pairs(self, arm: str, base: str):
        return zip(self.runs[arm], self.runs[base], strict=True)


def trained(bench: Bench, world: Callable[[int], Task], arms: Mapping[str, Arm], settings: Settings = Settings()) -> Arms:
    """Every arm on every seed."""
    runs: dict[str, list[History]] = {name: [] for name in arms}
    for seed in range(bench.seeds):
        bench.tell(f"seed {seed + 1} of {bench.seeds}: {', '.join(arms)}")
        start = world(seed)
        for name, arm in arms.items():
            runs[name].append(train(start, arm.links, seed=seed, objective=arm.objective, settings=arm.settings or settings))
    return Arms(runs)
