"""Question: residuals by their size, by the abscissa and by block, in one reading of the data.

The histogram of all rows has narrow bins. Its cumulated counts give the quantiles of the residuals
without sorting any rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import block_boxes, regular_chunks
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.histogram import Grid, Histogram, cut
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock


@dataclass(frozen=True)
class RowSums:
    """Sums over the rows of each of k sets.

    Attributes
    ----------
    n : ndarray, shape (k,), int64
        Number of rows.
    total, squares : ndarray, shape (k,), float64
        Sums of standardised residuals, and of their squares.
    """

    n: NDArray[np.int64]
    total: FloatArray
    squares: FloatArray

    @classmethod
    def zero(cls, count: int) -> Self:
        """Sums over no rows."""
        return cls(np.zeros(count, np.int64), np.zeros(count), np.zeros(count))

    def __add__(self, other: RowSums) -> RowSums:
        return RowSums(self.n + other.n, self.total + other.total, self.squares + other.squares)


@dataclass(frozen=True)
class ResidualSums:
    """Answer: counts and sums over rows.

    Attributes
    ----------
    counts : ndarray, shape (n_z,), int64
        Number of rows by standardised residual.
    by_x, by_position : RowSums
        Sums by abscissa, and by position.
    """

    counts: NDArray[np.int64]
    by_x: RowSums
    by_position: RowSums

    def __add__(self, other: ResidualSums) -> ResidualSums:
        return ResidualSums(
            self.counts + other.counts,
            self.by_x + other.by_x,
            self.by_position + other.by_position,
        )


@dataclass(frozen=True, slots=True)
class Residuals(BlockQuestion[ResidualSums]):
    """Question: standardised residuals in bins of their size, of the abscissa and of blocks.

    A position is a block, or some neighbouring blocks. Data in memory have no blocks: there a
    position is a range of rows.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
        Parameters of the model.
    grid : Grid
        Bins of the abscissa and of the residuals.
    block_rows : int
        Rows of the largest block; for data in memory, rows that are looked at together.
    shape : tuple of int
        Number of blocks along each dimension; for data in memory, the shape of ``y``.
    positions : int
        Number of positions.
    model : int
        Number of the model.
    """

    params: FloatArray
    grid: Grid
    block_rows: int
    shape: tuple[int, ...]
    positions: int
    model: int = 0
    task_name: ClassVar[str] = "residuals"

    def zero(self) -> ResidualSums:
        """Sums over no rows."""
        counts = np.zeros(self.grid.n_z, np.int64)
        return ResidualSums(counts, RowSums.zero(self.grid.n_x), RowSums.zero(self.positions))

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> ResidualSums:
        """Sums over the rows of a block."""
        histogram = Histogram(self.params, self.grid, self.block_rows, self.model)
        total = self.zero()
        for at, part in self._parts(placed, whole=kernels.whole):
            bins = histogram.of_block(part, kernels)
            own = RowSums.zero(self.positions)
            own.n[at], own.total[at] = bins.n.sum(), bins.total.sum()
            own.squares[at] = bins.squares.sum()
            by_x = RowSums(bins.n, bins.total, bins.squares)
            total = total + ResidualSums(bins.residuals.sum(axis=0), by_x, own)
        return total

    def _parts(self, placed: PlacedBlock, *, whole: bool) -> Iterator[tuple[int, PlacedBlock]]:
        """Parts of a block, each with its position."""
        index, box, block = placed
        if index is not None:
            yield self._position(index), placed
            return
        # A model that is not row-wise needs all rows at once.
        most = block.y.size if whole else self.block_rows
        for _, inner in block_boxes(regular_chunks(block.y.shape, most, block.series_axes)):
            first = [part.start + own.start for part, own in zip(box, inner, strict=True)]
            yield self._position(first), (None, inner, cut(block, inner))

    def _position(self, index: Sequence[int]) -> int:
        number = int(np.ravel_multi_index(tuple(index), self.shape))
        return number * self.positions // math.prod(self.shape)
