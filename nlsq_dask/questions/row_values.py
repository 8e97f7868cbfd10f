"""A model with its parameters, as a function of rows in memory: any shape, any real dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import whole_series
from nlsq_dask.io.chunks import broadcast_box, row_boxes
from nlsq_dask.io.observations import Array
from nlsq_dask.io.stage import (
    MIN_PART_ROWS,
    STAGE_ROWS,
    Block,
    aligned_empty,
    power_of_two_from,
)
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.kernels.values import row_kernel
from nlsq_dask.user_model.model_spec import ModelSpec


@dataclass(frozen=True)
class RowFunction:
    """Computes values of a model, or standard errors of the values.

    Attributes
    ----------
    spec : ModelSpec
        The model.
    params : ndarray, shape (p,), float64
    root : ndarray, shape (p, q), float64, or None
        Square root of the covariance of the parameters, to compute standard errors; None to compute
        values.
    device : str, tuple of str or None
        Device of the kernel; None is JAX's default.
    row_wise : bool
        False evaluates the model on all rows at once.
    buffer_rows : int or None
        Rows of a buffer, so that blocks of all sizes share one compiled kernel. None chooses a
        length that fits the rows.
    """

    spec: ModelSpec
    params: FloatArray
    root: FloatArray | None = None
    device: DeviceChoice = None
    row_wise: bool = True
    buffer_rows: int | None = None

    @classmethod
    def of(
        cls, kernels: Kernels, model: int, params: FloatArray, root: FloatArray | None = None
    ) -> Self:
        """Function of one of the models of `kernels`, by its number."""
        whole = kernels.whole
        return cls(kernels.specs[model], params, root, kernels.device, row_wise=not whole)

    def for_blocks_of(self, rows: int) -> RowFunction:
        """The same function, with a buffer for blocks of up to `rows` rows."""
        return replace(self, buffer_rows=_buffer_rows(rows, self.spec.series_rows))

    def __call__(self, coords: Sequence[Array], shape: tuple[int, ...]) -> FloatArray:
        """Compute all rows, one buffer after the other.

        Parameters
        ----------
        coords : sequence of ndarray
            Coordinates of real dtypes, with as many dimensions as `shape`. Each length is 1 or that
            of `shape`.
        shape : tuple of int
            Shape of the rows, of at least one dimension.

        Returns
        -------
        ndarray, shape ``shape``, float64
        """
        if self.spec.series is None:
            return self._in_order(coords, shape)
        order = self.spec.series.order(len(shape))
        turned = self._in_order([c.transpose(order) for c in coords], [shape[d] for d in order])
        return turned.transpose(np.argsort(order))

    def _in_order(self, coords: Sequence[Array], shape: Sequence[int]) -> FloatArray:
        """The same for rows that are passed to the model in C order."""
        n = math.prod(shape)
        out = np.zeros(n)
        if n == 0 or (self.root is not None and self.root.shape[1] == 0):
            return out.reshape(shape)
        capacity = n
        if self.row_wise:
            capacity = self.buffer_rows or _buffer_rows(n, self.spec.series_rows)
        buffers = tuple(aligned_empty(len(coords), capacity))
        for start in range(0, n, capacity):
            stop = min(start + capacity, n)
            _fill(buffers, coords, shape, start, stop, self.spec.series_rows)
            out[start:stop] = self._of_rows(buffers)[: stop - start]
        return out.reshape(shape)

    def _of_rows(self, coords: tuple[FloatArray, ...]) -> FloatArray:
        kernel = row_kernel(self.spec, self.device, whole=not self.row_wise)
        if self.root is None:
            return kernel.values(self.params, coords)
        return kernel.standard_errors(self.params, self.root, coords)


def _buffer_rows(rows: int, series_rows: int) -> int:
    """Rows of a buffer: a power of two, so that the kernel is compiled for few lengths."""
    wanted = min(max(power_of_two_from(rows), MIN_PART_ROWS), STAGE_ROWS)
    return whole_series(wanted, series_rows)


def values_of_block(function: RowFunction, block: Block) -> FloatArray:
    """Values on the rows of a block, in the block's shape.

    A model that is not row-wise gets only the rows that are not left out, as in the fit. The value
    of a row that is left out is then NaN.

    Parameters
    ----------
    function : RowFunction
    block : Block
    """
    shape = block.y.shape
    if function.row_wise or not block.selects:
        return function(block.coords, shape)
    counted = ~block.left_out()
    coords = [np.broadcast_to(c, shape)[counted] for c in block.coords]
    values = np.full(shape, np.nan)
    values[counted] = function(coords, coords[0].shape)
    return values


def residuals_of_block(function: RowFunction, block: Block) -> FloatArray:
    """Observations minus values, in the block's shape; NaN for rows that are left out.

    Parameters
    ----------
    function : RowFunction
        Values of the model.
    block : Block
    """
    residuals = values_of_block(function, block)
    np.subtract(block.y, residuals, out=residuals)
    if block.selects:
        residuals[block.left_out()] = np.nan
    return residuals


def without_mask(array: Array) -> Array:
    """Values of an array in memory, with NaN where it is masked."""
    if np.ma.getmask(array) is np.ma.nomask:
        return np.ma.getdata(array, subok=False)
    return np.where(np.ma.getmask(array), np.nan, np.ma.getdata(array, subok=False))


def _fill(
    buffers: Sequence[FloatArray],
    coords: Sequence[Array],
    shape: Sequence[int],
    start: int,
    stop: int,
    series_rows: int = 1,
) -> None:
    """Copy rows ``start`` to ``stop`` of the coordinates, broadcast to a shape, into buffers.

    The rest of a buffer repeats the last row, or the last series: a loop in the model might never
    end for numbers that are no coordinates.
    """
    for buffer, coord in zip(buffers, coords, strict=True):
        for first, last, box in row_boxes(shape, start, stop):
            rows = buffer[first - start : last - start]
            target = rows.reshape(tuple(s.stop - s.start for s in box))
            np.copyto(target, coord[broadcast_box(box, coord.shape)], casting="unsafe")
        n = stop - start
        buffer[n:].reshape(-1, series_rows)[:] = buffer[n - series_rows : n]
