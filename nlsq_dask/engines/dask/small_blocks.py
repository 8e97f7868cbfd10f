"""Blocks of few rows, made in a loop that does for many of them at once what each needs alone.

To look whether the fit is over, to be ready for an error, and to hand a block on to the stage takes
longer than to compute a block of a thousand rows. Here the arrays of a block are copied into the
stage where they are made, and the rest is done once for all blocks that are made within a short
time. Calls, their order, attempts to read, errors and rows are those of
:func:`~nlsq_dask.engines.dask.prefetch.read_blocks`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.accumulate import StagedBlocks
from nlsq_dask.engines.dask.alike import AlikeSteps
from nlsq_dask.engines.dask.prefetch import checked_values, place_of
from nlsq_dask.engines.dask.reading import READ_ONCE, Reading
from nlsq_dask.engines.dask.steps import Group, Making, Makings, MakingsOfSteps
from nlsq_dask.io.places import Place
from nlsq_dask.io.stage import SMALL_ROWS, Block, Layout, Stage

# Seconds for which blocks are made before another look whether the fit is over, and for which the
# first blocks of a group are made, to measure them.
TURN_SECONDS = 0.01
FIRST_SECONDS = 0.001

# Most seconds of a block that one thread makes at a time, while other threads compute sums. Each
# call of NumPy releases the interpreter for a moment. Where another thread takes it, the first
# waits to get it back. For two arrays of a thousand rows and their sums, two threads took 31 µs of
# the processor so, and 18 µs in turns. Slower blocks may wait for a disk, or compute with the
# interpreter released, and gain by more threads.
ALONE_SECONDS = 50e-6

# Longest wait for another thread. A task that makes a block may itself run a fit.
WAIT_SECONDS = 10 * TURN_SECONDS

_alone = threading.Lock()


def are_small(group: Group, layout: Layout) -> bool:
    """Whether the blocks of a group have few rows, and arrays that a stage takes as they are."""
    plain = not (layout.weighted or layout.n_masks or layout.rule.active or layout.series_axes)
    is_full = all(map(all, layout.varies))
    return plain and is_full and group.n_rows <= SMALL_ROWS * len(group.steps)


class SmallBlocks(StagedBlocks):
    """The blocks of a group, for :func:`are_small` groups.

    Parameters
    ----------
    group : Group
    external : mapping
        Values that are handed to the group.
    layout : Layout
    reading : Reading
        Of a task that does not tell blocks.
    """

    def __init__(
        self,
        group: Group,
        external: Mapping[Key, Any],
        layout: Layout,
        reading: Reading = READ_ONCE,
    ) -> None:
        super().__init__(len(layout.varies) - 1)
        self._group = group
        self._external = external
        self._layout = layout
        self._reading = reading
        self._makings: Makings = MakingsOfSteps(iter(()))
        self._again = False
        self._is_quick: bool | None = None  # not measured

    def into(self, stage: Stage) -> Iterator[Block]:
        """Fill a stage; see :class:`~nlsq_dask.engines.accumulate.StagedBlocks`."""
        values = checked_values(self._group, self._external)
        self._makings = _makings(self._group, values)
        while (making := self._makings.current) is not None:
            self._reading.begin(making.step.index)
            try:
                arrays = self._reading.run(lambda: self._fill(stage), self._place)
            except _errors.ReadingError as error:
                error.block = self._current.step.index
                raise
            if arrays is None:
                continue
            step = self._current.step
            yield self._layout.checked(arrays, step.shapes, step.index, step.box)
            del arrays
            self._current.drop()
            self._makings.go_on()

    def _fill(self, stage: Stage) -> list[Any] | None:
        """Make blocks, and copy their rows into a stage.

        If a call fails, the next call makes that block alone: each block has its own attempts.

        Returns
        -------
        list or None
            Arrays of the current block, if the stage did not take them; None if it took all.
        """
        with self._turn(stage):
            turn = FIRST_SECONDS if self._is_quick is None else TURN_SECONDS
            ends = 0.0 if self._again else time.monotonic() + turn
            self._again = True  # unless it comes to its end
            arrays = self._makings.fill(stage, ends)
            self._again = False
        return arrays

    @contextmanager
    def _turn(self, stage: Stage) -> Iterator[None]:
        """Make blocks while no other thread does, if blocks take little time."""
        is_alone = bool(self._is_quick) and _alone.acquire(timeout=WAIT_SECONDS)
        first, began = stage.n_rows, time.monotonic()
        try:
            yield
        finally:
            if is_alone:
                _alone.release()
        if is_alone or self._is_quick is None:
            rows = max(stage.n_rows - first, 1)
            n_blocks = rows * len(self._group.steps) / self._group.n_rows
            self._is_quick = time.monotonic() - began <= ALONE_SECONDS * max(n_blocks, 1.0)

    @property
    def _current(self) -> Making:
        making = self._makings.current
        assert making is not None, "a block that is made"
        return making

    def _place(self) -> Place:
        return place_of(self._current, self._group, self._layout)


def _makings(group: Group, values: dict[Key, Any]) -> Makings:
    """Begin to make the first block of a group."""
    makings = group.steps.makings() if isinstance(group.steps, AlikeSteps) else None
    one_by_one = (step.making(values, group.announced) for step in group.steps)
    return makings or MakingsOfSteps(one_by_one)
