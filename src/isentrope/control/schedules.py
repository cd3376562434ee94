"""Schedules: a hyper-parameter as a function of the position in the run, or of how often the policy is right."""

import math
from dataclasses import dataclass
from typing import Literal

from isentrope.control.blocks import check_fraction, check_one_of
from isentrope.control.step import Progress

Shape = Literal["constant", "linear", "cosine", "exponential", "accuracy"]
SHAPES: tuple[Shape, ...] = ("constant", "linear", "cosine", "exponential", "accuracy")


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` while the run goes from the fraction `begin` to the fraction `finish`; held before and after.

    constant: `start`. linear. cosine: half a wave, flat at both ends. exponential: equal ratios, so both ends need one sign and
    neither is 0. accuracy: linear in the share of correct responses instead of the position; `start` where no verifier spoke.

    >>> Schedule("linear", start=1.0, end=0.0).value(Progress(25, 100))
    0.75
    """

    shape: Shape = "constant"
    start: float = 1.0
    end: float = 0.0
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self):
        check_one_of("Schedule", "shape", self.shape, SHAPES, 'The default is "constant".')
        check_fraction("Schedule", "begin", self.begin)
        check_fraction("Schedule", "finish", self.finish)
        if self.begin > self.finish:
            raise ValueError(f"Schedule: begin must not exceed finish. Got begin={self.begin}, finish={self.finish}. Both are fractions of the run.")
        if self.shape == "exponential" and self.start * self.end <= 0:
            raise ValueError(
                f"Schedule: an exponential needs start and end of one sign and not 0. Got start={self.start}, end={self.end}. "
                'Give end a small value, or take shape="cosine".'
            )

    def value(self, progress: Progress, accuracy: float | None = None) -> float:
        """The value now. `accuracy`: share of correct responses in [0, 1]; None or NaN where no verifier spoke."""
        if self.shape == "constant":
            return self.start
        if self.shape == "accuracy":
            share = 0.0 if accuracy is None or math.isnan(accuracy) else accuracy
            return self.start + (self.end - self.start) * share
        share = self._share(progress.fraction)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** share
        return self.start + (self.end - self.start) * share

    def _share(self, fraction: float) -> float:
        if self.begin == self.finish:
            return float(fraction >= self.finish)
        return min(1.0, max(0.0, (fraction - self.begin) / (self.finish - self.begin)))
