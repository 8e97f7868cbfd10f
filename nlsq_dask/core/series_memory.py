"""Memory of the fits of many series that are read: whole series, or sums over frames.

A task that joins the blocks of a region of the map to whole series holds all their rows. One that
adds up sums over frames holds a state for each series, whatever the number of rows is. Everything
in this module is arithmetic on numbers, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlsq_dask.core.memory_budget import SAFETY_FACTOR, SOLVER_BYTES

#: Rows of each series that are fitted in memory before the frames are read.
PILOT_ROWS = 64

#: Readings of all frames that fits take: 5.0 to 5.1 at 512 and 2,048 frames
#: (``python -m benchmarks.each_store``).
FRAME_READINGS = 5

# Copies of the rows of a region where blocks are joined: the blocks, and the joined array.
COPIES = 2

# Rows of the series of one call of the program, in float64, as they are put together and as tiles.
CALL_COPIES = 3

# Series of one call of the program.
CALL_SERIES = 4096

# Frames that a task holds: decoded, joined to the rows of a call, and those of a call themselves.
FRAME_COPIES = 3

# Share of the room of a task for the states of its series; the rest is for gathered series.
SHARE_OF_STATES = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSizes:
    """Sizes that the memory of a task follows from.

    Attributes
    ----------
    n_rows : int
        Rows of a series.
    row_bytes : int
        Bytes of a row of a series, of all arrays that vary along both, as they are stored.
    n_free : int
        Free parameters, q.
    n_params : int
        All parameters, p.
    n_planes : int
        Numbers of the answer of a series.
    map_bytes : int
        Bytes of a series in all arrays that vary along the map alone.
    guessed : bool
        Whether the starts of a series follow from its rows.
    frame_rows : int
        Rows of the longest block along the fitted axes, but at least those of a call.
    """

    n_rows: int
    row_bytes: int
    n_free: int
    n_params: int
    n_planes: int
    frame_rows: int
    map_bytes: int = 0
    guessed: bool = False

    def whole_bytes(self, n_series: int) -> int:
        """Bytes of a task that joins the rows of so many series."""
        call = CALL_COPIES * 8 * min(n_series, CALL_SERIES)
        return self.n_rows * (COPIES * self.row_bytes * n_series + call)

    @property
    def held_bytes(self) -> int:
        """Bytes of a series from one reading of the frames to the next.

        Estimates, trial, gradient and largest norms of the derivatives are q numbers each, JᵀJ is
        q (q + 1) / 2, and nine numbers say where the search is. Three numbers and a flag tell what
        was read.
        """
        q = self.n_free
        search = 4 * q + q * (q + 1) // 2 + 9
        return 8 * (search + 3 + q * self.guessed) + 1 + self.map_bytes

    def state_bytes(self, n_series: int) -> int:
        """Bytes of a task that adds up the sums of so many series over frames.

        While frames are read there are also the sums, the trials that they are at, and the values
        of fixed parameters; before, the rows of the pilot; in the end, the answers.
        """
        q, p = self.n_free, self.n_params
        frames = FRAME_COPIES * self.frame_rows * self.row_bytes
        pilot = min(PILOT_ROWS, self.n_rows) * self.row_bytes
        sums = 8 * ((q + 1) * (q + 2) // 2 + q + p * (p > q))
        most = max(pilot + frames, sums + frames, 8 * self.n_planes)
        return n_series * (self.held_bytes + most)


def most_threads(n_bytes: int, n_rows: int) -> int:
    """Threads that may share the series of one task, in the memory that the task has.

    A task has room for the blocks of its region and for the joined array. While its series are
    fitted, only the array is there, and the calls of other threads take the place of the blocks.

    Parameters
    ----------
    n_bytes : int
        Of the rows of all series of the task, as they are stored.
    n_rows : int
        Rows of a series.
    """
    call = CALL_COPIES * 8 * CALL_SERIES * max(n_rows, 1)
    return 1 + (COPIES - 1) * n_bytes // call


def task_room(memory_bytes: float, tasks: int, base_bytes: int = SOLVER_BYTES) -> float:
    """Bytes of one of so many tasks at one time, in a memory; at least a quarter of its share."""
    usable = memory_bytes * SAFETY_FACTOR
    return max(usable - base_bytes, usable / 4) / tasks


def bands(shape: Sequence[int], most: int) -> list[int]:
    """Lengths of the parts into which a block of the map is cut along its axes, of `most` series.

    The first axes are cut first, down to a length of 1.
    """
    found = list(shape)
    for d in range(len(found)):
        rest = 1
        for n in found[d + 1 :]:
            rest *= n
        found[d] = min(found[d], max(most // rest, 1))
        if found[d] * rest <= most:
            break
    return found
