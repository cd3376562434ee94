"""The sections of the report, each a function from a run to a `Section`, or to None where it has no place; they stand in the page's order."""

from collections.abc import Callable

from isentrope.report.data import Run
from isentrope.report.figure import Section
from isentrope.report.sections import alarms, entropy, forecast, learning, ledger, pressure, record, samples, support, touch, turns

SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    learning.section,
    entropy.section,
    entropy.by_position,
    turns.section,
    support.section,
    forecast.section,
    alarms.section,
    ledger.section,
    pressure.section,
    touch.section,
    samples.section,
    record.section,
)
