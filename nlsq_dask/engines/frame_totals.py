"""Sums of many series at their trials, added up over slabs of a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.lane_step import LaneSums
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import vector_bits
from nlsq_dask.engines.frame_rows import Tables
from nlsq_dask.engines.lane_search import to_tiles
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_block import SeriesBlock
from nlsq_dask.kernels.frame_sums import frame_kernel, n_totals, sums_of
from nlsq_dask.kernels.lanes import TileShape

# Rows of one call of the program. With 16 rows a call, copies of the sums take a third of the time.
SLAB_ROWS = 16


@dataclass
class RowCounts:
    """What is counted of n series while their rows are read.

    Attributes
    ----------
    n_points, square : ndarray, shape (n,), float64
        Rows that count, and the sum of their squared weighted observations in the lanes' units.
    bad : ndarray, shape (n,), bool
        Series with rows that cannot be used.
    """

    n_points: FloatArray
    square: FloatArray
    bad: NDArray[np.bool_]

    @classmethod
    def none(cls, n: int) -> RowCounts:
        """Counts of no rows."""
        return cls(np.zeros(n), np.zeros(n), np.zeros(n, np.bool_))


@dataclass
class SlabSums:
    """Sums of n series at their trials.

    Attributes
    ----------
    problem : SeriesProblem
    trials : ndarray, shape (q, n), float64
    offsets : ndarray, shape (p, n) or (p, 1), float64
    scale : ndarray, shape (n,), float64
    counts : RowCounts or None
        Where the rows are counted, too.
    """

    problem: SeriesProblem
    trials: FloatArray
    offsets: FloatArray
    scale: FloatArray
    counts: RowCounts | None = None
    _shape: TileShape = field(init=False)
    _totals: list[FloatArray] = field(init=False)

    def __post_init__(self) -> None:
        model = self.problem.model(SLAB_ROWS)
        self._shape = TileShape.of(model)
        bits = min(self.problem.vector_bits, vector_bits())
        self._kernel = frame_kernel(model, self.problem.device, bits)
        tile = self._shape.tiles, n_totals(len(self.trials)), self._shape.lanes
        self._totals = [np.zeros(tile) for _ in self._parts()]

    def add(self, tables: Tables) -> None:
        """Add up to SLAB_ROWS rows of the series."""
        n_rows, n = len(tables["y", 0]), self.trials.shape[1]
        block = SeriesBlock(self.problem, tables, n_rows, n, (n,), self._shape)
        for number, part in enumerate(self._parts()):
            rows = block.rows(part)
            constants = self._constants(part)
            if self.counts is not None:
                width = part.stop - part.start
                n_points, square = block.counted(rows, constants[-1])
                self.counts.n_points[part] += n_points[:width]
                self.counts.square[part] += square[:width]
                self.counts.bad[part] |= rows.bad[:width]
            trials = to_tiles(self._wide(self.trials[:, part]), self._shape)
            data = block.tiles(rows, constants)
            self._totals[number] = self._kernel(self._totals[number], trials, data, n_rows)

    def found(self) -> Iterator[tuple[slice, LaneSums]]:
        """The sums of the series, some at a time: which these are, and arrays of their length."""
        size = len(self.trials)
        for part, totals in zip(self._parts(), self._totals, strict=True):
            flat = np.moveaxis(totals, 1, 0).reshape(totals.shape[1], -1)
            yield part, sums_of(flat[:, : part.stop - part.start], size)

    def _parts(self) -> Iterator[slice]:
        n, width = self.trials.shape[1], self._shape.tiles * self._shape.lanes
        for begin in range(0, n, width):
            yield slice(begin, min(begin + width, n))

    def _constants(self, part: slice) -> FloatArray:
        """Offsets and scale (p + 1, w) of some series."""
        offsets = self.offsets if self.offsets.shape[1] == 1 else self.offsets[:, part]
        found = np.empty((len(offsets) + 1, part.stop - part.start))
        found[:-1], found[-1] = offsets, self.scale[part]
        return self._wide(found)

    def _wide(self, values: FloatArray) -> FloatArray:
        """Values of series, and the last series again and again up to the width of whole tiles."""
        width = -(-values.shape[1] // self._shape.lanes) * self._shape.lanes
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), mode="edge")
