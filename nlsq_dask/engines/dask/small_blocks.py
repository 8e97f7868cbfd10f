"""Blocks of few rows, made in a loop that does for many of them at once what each needs alone.

To look whether the fit is over, to be ready for an error, and to hand a block on to the stage takes
longer than to compute a block of a thousand rows. Here the arrays of a block are copied into the
stage where they are made, and the rest is done once for all blocks that are made within a short
time. Calls, their order, attempts to read, errors and rows are those of
:func:`~nlsq_dask.engines.dask.prefetch.read_blocks`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from dask.typing import Key

from nlsq_dask import _errors
from nlsq_dask.engines.accumulate import StagedBlocks
from nlsq_dask.engines.dask.alike import AlikeSteps
from nlsq_dask.engines.dask.prefetch import checked_values, place_of
from nlsq_dask.engines.dask.reading import READ_ONCE, Reading
from nlsq_dask.engines.dask.steps import Group, Making
from nlsq_dask.io.places import Place
from nlsq_dask.io.stage import SMALL_ROWS, Block, Layout, Stage

# Seconds for which blocks are made before another look whether the fit is over.
TURN_SECONDS = 0.01


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
        self._left: Iterator[Making] = iter(())
        self._making: Making | None = None
        self._again = False

    def into(self, stage: Stage) -> Iterator[Block]:
        """Fill a stage; see :class:`~nlsq_dask.engines.accumulate.StagedBlocks`."""
        values = checked_values(self._group, self._external)
        self._left = _makings(self._group, values)
        self._making = next(self._left, None)
        while self._making is not None:
            self._reading.begin(self._making.step.index)
            try:
                arrays = self._reading.run(lambda: self._fill(stage), self._place)
            except _errors.ReadingError as error:
                error.block = self._making.step.index
                raise
            if arrays is None:
                continue
            step = self._making.step
            yield self._layout.checked(arrays, step.shapes, step.index, step.box)
            del arrays
            self._making.drop()
            self._making = next(self._left, None)

    def _fill(self, stage: Stage) -> list[Any] | None:
        """Make blocks, and copy their rows into a stage.

        If a call fails, the next call makes that block alone: each block has its own attempts.

        Returns
        -------
        list or None
            Arrays of the last block, if the stage did not take them; None if it took all.
        """
        ends = 0.0 if self._again else time.monotonic() + TURN_SECONDS
        self._again = True  # unless it comes to its end
        making = self._making
        while making is not None:
            arrays = making.run()
            if not stage.append(arrays, making.shape):
                self._again = False
                return arrays
            making.drop()
            self._making = making = next(self._left, None)
            if time.monotonic() > ends:
                break
        self._again = False
        return None

    def _place(self) -> Place:
        assert self._making is not None, "a block that failed"
        return place_of(self._making, self._group, self._layout)


def _makings(group: Group, values: dict[Key, Any]) -> Iterator[Making]:
    """Begin to make each block of a group, after the block before is used."""
    if isinstance(group.steps, AlikeSteps):
        return group.steps.makings()
    return (step.making(values, group.announced) for step in group.steps)
