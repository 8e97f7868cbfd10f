"""Time of a block and time left, as ranges from the blocks that were measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

# Half-width of the range of the mean time of a block, in standard errors of the mean, and as a part
# of the mean after a single measurement, which has no standard error.
HALF_WIDTH = 2.0
FIRST_WIDTH = 0.5

# The range begins at this part of the mean at least: time does not run backwards.
LEAST = 0.5


@dataclass(frozen=True, slots=True)
class Seconds:
    """A range of time; `high` is None if only the lower end is known."""

    low: float
    high: float | None

    def times(self, few: float, many: float) -> Self:
        """The time of `few` to `many` such parts."""
        return type(self)(few * self.low, None if self.high is None else many * self.high)

    def __add__(self, other: Seconds) -> Seconds:
        open_end = self.high is None or other.high is None
        high = None if open_end else (self.high or 0.0) + (other.high or 0.0)
        return Seconds(self.low + other.low, high)


class Pace:
    """Time of a block in one pass.

    Parameters
    ----------
    began : float
        Time at which the pass began.
    """

    def __init__(self, began: float) -> None:
        self._began = self._last = began
        self._blocks = 0
        self._reports = 0
        self._squares = 0.0

    def report(self, now: float, done: int) -> None:
        """Note that so many blocks are done."""
        new = done - self._blocks
        if new <= 0:
            return
        # Blocks that are reported together took equal times, as far as anybody knows.
        self._squares += (now - self._last) ** 2 / new
        self._reports += 1
        self._blocks, self._last = done, now

    @property
    def seconds(self) -> float:
        """Time that the measured blocks took together."""
        return self._last - self._began

    @property
    def last(self) -> float:
        """Time at which the last block was done, or the pass began."""
        return self._last

    @property
    def blocks(self) -> int:
        """Number of blocks that are measured."""
        return self._blocks

    @property
    def of_block(self) -> Seconds | None:
        """Time of a block; None before a block is measured."""
        if not self._blocks:
            return None
        mean = self.seconds / self._blocks
        width = FIRST_WIDTH * mean
        if self._reports > 1:
            variance = max(self._squares / self._blocks - mean**2, 0.0)
            width = HALF_WIDTH * math.sqrt(variance / (self._reports - 1))
        return Seconds(max(mean - width, LEAST * mean), mean + width)
