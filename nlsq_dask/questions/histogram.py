"""Question: two-dimensional histograms of a fit, for plots of more rows than there are pixels.

Each row is counted in a bin of a regular grid over (abscissa, y), and in a bin of a grid over
(abscissa, z), where z is the standardised residual. Counts of blocks add, so that one reading of
the data is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import Box, block_boxes, broadcast_box, regular_chunks
from nlsq_dask.io.stage import STAGE_ROWS, Block
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.question import BlockQuestion, PlacedBlock
from nlsq_dask.questions.row_values import RowFunction, values_of_block

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The bins of both histograms.

    Attributes
    ----------
    x, y, z : tuple of float
        Lower and upper end of the abscissa, of the observations, and of the standardised
        residuals.
    n_x, n_y, n_z : int
        Number of bins of each.
    scale : float
        Divisor of the residuals if there is no sigma, in the units of y.
    fitted : bool
        True if the abscissa is the fitted value; False if it is the first coordinate.
    log_x, log_y : bool
        Whether the bins have equal lengths on a logarithmic axis. Both ends are then positive.
    clip_z : bool
        Whether residuals beyond the ends count in the first and the last bin.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]
    n_x: int
    n_y: int
    n_z: int
    scale: float
    fitted: bool
    log_x: bool = False
    log_y: bool = False
    clip_z: bool = False

    @property
    def x_edges(self) -> FloatArray:
        """Edges of the bins of the abscissa, shape (n_x + 1,)."""
        return _edges(self.x, self.n_x, log=self.log_x)

    @property
    def y_edges(self) -> FloatArray:
        """Edges of the bins of the observations, shape (n_y + 1,)."""
        return _edges(self.y, self.n_y, log=self.log_y)

    @property
    def z_edges(self) -> FloatArray:
        """Edges of the bins of the standardised residuals, shape (n_z + 1,)."""
        return _edges(self.z, self.n_z, log=False)


@dataclass(frozen=True)
class BinSums:
    """Answer: counts and sums over rows.

    Attributes
    ----------
    observed : ndarray, shape (n_x, n_y), int64
        Number of rows by abscissa and observation.
    residuals : ndarray, shape (n_x, n_z), int64
        Number of rows by abscissa and standardised residual.
    n : ndarray, shape (n_x,), int64
        Number of rows by abscissa.
    total, squares : ndarray, shape (n_x,), float64
        Sums of standardised residuals, and of their squares, by abscissa.
    n_outside : int
        Number of rows outside the grid of either histogram.
    """

    observed: Counts
    residuals: Counts
    n: Counts
    total: FloatArray
    squares: FloatArray
    n_outside: int

    @classmethod
    def zero(cls, grid: Grid) -> Self:
        """Sums over no rows."""
        n_x = grid.n_x
        observed = np.zeros((n_x, grid.n_y), np.int64)
        residuals = np.zeros((n_x, grid.n_z), np.int64)
        return cls(observed, residuals, np.zeros(n_x, np.int64), np.zeros(n_x), np.zeros(n_x), 0)

    def __add__(self, other: BinSums) -> BinSums:
        return BinSums(
            self.observed + other.observed,
            self.residuals + other.residuals,
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            self.n_outside + other.n_outside,
        )


@dataclass(frozen=True)
class Binned:
    """A fit in bins: the grid, and the sums over all rows.

    Attributes
    ----------
    grid : Grid
    sums : BinSums
    """

    grid: Grid
    sums: BinSums

    @property
    def x_edges(self) -> FloatArray:
        """Edges of the bins of the abscissa, shape (n_x + 1,)."""
        return self.grid.x_edges

    @property
    def y_edges(self) -> FloatArray:
        """Edges of the bins of the observations, shape (n_y + 1,)."""
        return self.grid.y_edges

    @property
    def z_edges(self) -> FloatArray:
        """Edges of the bins of the standardised residuals, shape (n_z + 1,)."""
        return self.grid.z_edges


@dataclass(frozen=True, slots=True)
class Histogram(BlockQuestion[BinSums]):
    """Question: the number of rows in each bin of a grid.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
        Parameters of the model.
    grid : Grid
    block_rows : int
        Rows of the largest block.
    model : int
        Number of the model.
    """

    params: FloatArray
    grid: Grid
    block_rows: int
    model: int = 0
    task_name: ClassVar[str] = "histogram"

    def zero(self) -> BinSums:
        """Sums over no rows."""
        return BinSums.zero(self.grid)

    def of_block(self, placed: PlacedBlock, kernels: Kernels) -> BinSums:
        """Sums over the rows of a block, in pieces of a moderate number of rows."""
        _, _, block = placed
        function = RowFunction.of(kernels, self.model, self.params).for_blocks_of(self.block_rows)
        # A model that is not row-wise needs all rows at once.
        most = STAGE_ROWS if function.row_wise else block.y.size
        total = self.zero()
        for _, box in block_boxes(regular_chunks(block.y.shape, most, block.series_axes)):
            total = total + _bin_rows(function, self.grid, cut(block, box))
        return total


def _bin_rows(function: RowFunction, grid: Grid, block: Block) -> BinSums:
    shape = block.y.shape
    counted = ~block.left_out()

    def rows(array: NDArray[np.generic]) -> FloatArray:
        return np.asarray(np.broadcast_to(array, shape)[counted], np.float64)

    fitted = rows(values_of_block(function, block))
    x, y = fitted if grid.fitted else rows(block.coords[0]), rows(block.y)
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are outside
        z = (y - fitted) / (grid.scale if block.sigma is None else rows(block.sigma))
    bin_x, bin_y, bin_z = (
        _bins(values, ends, n, log=log)
        for values, ends, n, log in (
            (x, grid.x, grid.n_x, grid.log_x),
            (y, grid.y, grid.n_y, grid.log_y),
            (np.clip(z, *grid.z) if grid.clip_z else z, grid.z, grid.n_z, False),
        )
    )
    along = (bin_x >= 0) & np.isfinite(z)

    def count(other: NDArray[np.intp], n: int) -> Counts:
        both = along & (other >= 0)
        flat = bin_x[both] * n + other[both]
        return np.bincount(flat, minlength=grid.n_x * n).reshape(grid.n_x, n)

    def total(values: FloatArray) -> FloatArray:
        # np.bincount returns integers if there are no rows.
        return np.bincount(position, values, minlength=grid.n_x).astype(np.float64)

    position, z_along = bin_x[along], z[along]
    shown = along & (bin_y >= 0) & (bin_z >= 0)
    return BinSums(
        count(bin_y, grid.n_y),
        count(bin_z, grid.n_z),
        np.bincount(position, minlength=grid.n_x),
        total(z_along),
        total(z_along**2),
        int(shown.size - np.count_nonzero(shown)),
    )


def _edges(ends: tuple[float, float], n: int, *, log: bool) -> FloatArray:
    """Edges of n bins, of equal lengths on a straight or a logarithmic axis."""
    return np.geomspace(*ends, n + 1) if log else np.linspace(*ends, n + 1)


def _bins(values: FloatArray, ends: tuple[float, float], n: int, *, log: bool) -> NDArray[np.intp]:
    """Bin of each value, -1 outside the grid; the last bin includes its upper end."""
    low, high = ends
    if log:
        low, high = np.log(low), np.log(high)
        with np.errstate(invalid="ignore", divide="ignore"):  # no bin for what is not positive
            values = np.log(values)
    inside = (values >= low) & (values <= high)  # False for NaN
    position = np.full(values.shape, -1, np.intp)
    position[inside] = np.minimum((values[inside] - low) * (n / (high - low)), n - 1)
    return position


def cut(block: Block, box: Box) -> Block:
    """The rows of a box, as views."""

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        return array[broadcast_box(box, array.shape)]

    return replace(
        block,
        y=rows(block.y),
        coords=tuple(rows(c) for c in block.coords),
        sigma=None if block.sigma is None else rows(block.sigma),
        masks=tuple(rows(m) for m in block.masks),
    )
