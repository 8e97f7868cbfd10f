"""The staging buffer: rows of any dtype, layout and shape made ready for one kernel call.

A stage is a set of aligned float64 buffers of one fixed capacity. Blocks are copied into it slice
by slice, and the kernel runs whenever it is full. This one place casts, expands broadcast
coordinates and packs small blocks together, and it gives the kernel one shape for every chunk
layout there is, so that it is compiled once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.chunks import broadcast_box, row_boxes

# XLA on the CPU takes a NumPy buffer without a copy only where its address is a multiple of this.
ALIGNMENT = 64

# Rows of a stage. 2**18 rows of x and y are 4 MiB: small enough to stay in the last-level cache
# between the copy and the kernel, large enough to make the 50 µs of a call disappear.
STAGE_ROWS = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """Rows as they were read: observations and what broadcasts to their shape.

    Attributes
    ----------
    y : ndarray, shape (...), any real dtype
    coords : tuple of ndarray
        Coordinates, each with as many dimensions as ``y``; lengths equal ``y``'s or 1.
    sigma : ndarray or None
        Standard deviations, shaped like a coordinate.
    """

    y: NDArray[np.generic]
    coords: tuple[NDArray[np.generic], ...]
    sigma: NDArray[np.generic] | None = None


def aligned_empty(n_rows: int) -> FloatArray:
    """Allocate ``n_rows`` float64 values at an address that XLA takes without a copy."""
    raw = np.empty(n_rows * 8 + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + n_rows * 8].view(np.float64)


class Stage:
    """Aligned buffers for up to ``capacity`` rows.

    Parameters
    ----------
    n_coords : int
        Number of coordinates.
    weighted : bool
        Whether rows have standard deviations.
    capacity : int
        Rows.

    Attributes
    ----------
    y, weights : ndarray, shape (capacity,), float64
        Observations, and 1/sigma (None where not weighted).
    coords : tuple of ndarray, each (capacity,), float64
    n_rows : int
        Rows filled so far; what lies behind them is of no meaning.
    """

    __slots__ = ("capacity", "coords", "n_rows", "weights", "y")

    def __init__(self, n_coords: int, weighted: bool, capacity: int = STAGE_ROWS) -> None:
        self.capacity = capacity
        self.n_rows = 0
        self.y = aligned_empty(capacity)
        self.coords = tuple(aligned_empty(capacity) for _ in range(n_coords))
        self.weights = aligned_empty(capacity) if weighted else None
        # The kernel also computes on the rows behind n_rows of the last tile, and masks them:
        # zeros there keep that arithmetic free of NaN traps and slow subnormal numbers.
        for buffer in self._buffers():
            buffer[:] = 0.0

    @property
    def full(self) -> bool:
        """Whether no row fits any more."""
        return self.n_rows == self.capacity

    def fill(self, block: Block, start: int) -> int:
        """Copy rows of a block, from row ``start`` on, for as many as fit.

        Parameters
        ----------
        block : Block
        start : int
            First row of the block to copy.

        Returns
        -------
        int
            The first row that was not copied.
        """
        shape = block.y.shape
        stop = min(block.y.size, start + self.capacity - self.n_rows)
        for first, last, box in row_boxes(shape, start, stop):
            begin = self.n_rows + first - start
            box_shape = tuple(s.stop - s.start for s in box)
            rows = slice(begin, begin + last - first)
            _cast_into(self.y[rows].reshape(box_shape), block.y[box])
            for buffer, coord in zip(self.coords, block.coords, strict=True):
                piece = coord[broadcast_box(box, coord.shape)]
                _cast_into(buffer[rows].reshape(box_shape), piece)
            if self.weights is not None and block.sigma is not None:
                piece = block.sigma[broadcast_box(box, block.sigma.shape)]
                weights = self.weights[rows].reshape(box_shape)
                _cast_into(weights, piece)
                with np.errstate(divide="ignore"):  # sigma = 0 shows as a non-finite cost
                    np.reciprocal(weights, out=weights)
        self.n_rows += stop - start
        return stop

    def clear(self) -> None:
        """Forget all rows. Only after the kernel call that reads them has returned its result."""
        self.n_rows = 0

    def _buffers(self) -> tuple[FloatArray, ...]:
        extra = () if self.weights is None else (self.weights,)
        return (self.y, *self.coords, *extra)


def _cast_into(out: FloatArray, piece: NDArray[np.generic]) -> None:
    np.copyto(out, piece, casting="unsafe")
