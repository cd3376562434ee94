"""Alarms in a run: what the detectors of `isentrope.explain.alarms` see, what happens when one rings, and the replay of a finished tape.

An alarm is an event on the tape (kind "alarm/NAME" or "alarm/NAME/LINK", level warning; level info when its episode is over), a line in the
progress, and, where `alarms.act` asks for it, an action:

    stop     the run ends after this update as if it were the last one planned: evaluated, saved, summarised, with its report
    bonus    the coefficient of the chain's entropy-bonus is doubled (collapse, narrowing) or halved (explosion), once an episode
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isentrope.control.entropy_terms import EntropyBonus
from isentrope.control.stages import Chain, Intervention, stages_of
from isentrope.errors import UserError
from isentrope.explain.alarms import Alarm, Detector, Monitor, Push, Seen, detectors
from isentrope.tape import Tape

ON_TOKENS = frozenset({"policy", "clip", "weight", "regularise", "sample", "rows"})
"""Stages whose touch the recorder counts."""
FACTORS: Mapping[str, float] = {"collapse": 2.0, "narrowing": 2.0, "explosion": 0.5}
"""What the action "bonus" multiplies the coefficient by."""


class Alarms:
    """The detectors of one run, and what they remember.

    act: alarm -> "stop" or "bonus". tell: (kind, message, level) to tape and progress.
    Raises UserError for the action "bonus" at an alarm that it does not answer, or without a constant entropy-bonus in the chain.
    """

    def __init__(
        self, chain: Chain, tell: Callable[[str, str, str], None], *, end: int | None = None, spent: float = 0.25, act: Mapping[str, str] | None = None
    ):  # fmt: skip
        self.chain, self.tell, self.act = chain, tell, dict(act or {})
        self.monitor = Monitor(of_chain(chain.links, chain.keys, end=end, spent=spent))
        self.memory = self.monitor.init()
        self.factor = 1.0  # of the entropy bonus, by actions
        self.stopped: dict[str, Any] | None = None
        for name, action in self.act.items():
            if action == "bonus":
                self._check_bonus(name)

    def see(self, seen: Seen) -> bool:
        """One update. True if the run is to stop after it."""
        self.memory, rung = self.monitor.update(self.memory, seen)
        for alarm in rung:
            self.tell("/".join(part for part in ("alarm", alarm.name, alarm.about) if part), alarm.sentence(), "info" if alarm.over else "warning")
            if not alarm.over:
                self._act(alarm)
        return self.stopped is not None

    def controlled(self) -> Chain:
        """The run's chain with what the actions made of it."""
        links = tuple(replace(link, coef=link.coef * self.factor) if _constant_bonus(link) else link for link in self.chain.links)
        return self.chain if self.factor == 1.0 else replace(self.chain, links=links)

    def state(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"memory": self.memory, "factor": self.factor, "stopped": self.stopped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.memory, self.factor, self.stopped = dict(state["memory"]), float(state["factor"]), state["stopped"]

    def _act(self, alarm: Alarm) -> None:
        action = self.act.get(alarm.name)
        if action == "stop" and self.stopped is None:
            self.stopped = {"by": alarm.name, "step": alarm.step}
            self.tell("alarm-action", f"The run stops after update {alarm.step}, as alarms.act asks at {alarm.name}.", "warning")
        elif action == "bonus":
            self.factor *= FACTORS[alarm.name]
            self.tell(
                "alarm-action",
                f"The coefficient of entropy-bonus is now {self.factor:g} times the configured one, as alarms.act asks at {alarm.name}.",
                "warning",
            )

    def _check_bonus(self, name: str) -> None:
        if name not in FACTORS:
            raise UserError(f'alarms.act.{name}: "bonus" answers {", ".join(FACTORS)}. Got it for {name!r}; take "stop".')
        if not any(_constant_bonus(link) for link in self.chain.links):
            raise UserError(
                f'alarms.act.{name}: "bonus" moves the coefficient of an entropy-bonus without schedule or controller, and the chain has none that is not 0. '
                'Add one: control=[{name: entropy-bonus, coef: 0.01}], or take "stop".'
            )


def of_chain(links: Sequence[Intervention], keys: Sequence[str], *, end: int | None = None, spent: float = 0.25) -> tuple[Detector, ...]:
    """The detectors of a run with this chain. A link that acts on every token by design is not watched for what it touches."""
    masks = [key for link, key in zip(links, keys, strict=True) if not link.dense and ON_TOKENS & set(stages_of(link))]
    bonus = next((link.coef for link in links if _constant_bonus(link)), None)
    return detectors(end=end, spent=spent, masks=masks, bonus=bonus)


def _constant_bonus(link: Intervention) -> bool:
    return isinstance(link, EntropyBonus) and link.controller == "none" and link.schedule == "constant" and link.coef != 0


def seen_on(tape: Tape) -> list[Seen]:
    """What a run's detectors saw, from its tape."""
    evaluations: dict[int, dict[str, tuple[float, float, float]]] = {}
    for row in tape.evals.iter_rows(named=True):
        evaluations.setdefault(row["step"], {})[row["metric"]] = (row["value"], row["low"], row["high"])
    pushes: dict[int, list[Push]] = {}
    for step, text, push, advantage in tape.tokens.select("step", "text", "push", "advantage").iter_rows():
        pushes.setdefault(step, []).append(Push(text, push, advantage))
    rows = [{"step": 0}, *tape.steps.iter_rows(named=True)]
    return [Seen(row["step"], row, pushes.get(row["step"], ()), evaluations.get(row["step"])) for row in rows]


def replay(tape: Tape, watched: Sequence[Detector]) -> list[Alarm]:
    """The alarms that these detectors would have raised on a finished run."""
    return list(Monitor(tuple(watched)).over(seen_on(tape)))
