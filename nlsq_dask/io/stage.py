"""The staging buffer: rows of any dtype, layout and shape made ready for one kernel call.

A stage is a set of aligned float64 buffers of one fixed capacity. Blocks are copied into it slice
by slice, and the kernel runs whenever it is full. This one place casts, expands broadcast
coordinates and packs small blocks together, and it gives the kernel one shape for every chunk
layout there is, so that it is compiled once.

Rows that are left out are dropped on the way: the buffers hold one behind the other the rows that
count, so that nothing downstream knows of masks, and no NaN can reach a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.io.announced import FLAGS, NUMBERS, Announced
from nlsq_dask.io.chunks import Box, box_size, broadcast_box, lengths, row_boxes, whole_box
from nlsq_dask.io.missing import NO_RULE, MissingRule

Shape = tuple[int, ...]

# XLA on the CPU takes a NumPy buffer without a copy only where its address is a multiple of this.
ALIGNMENT = 64

# Rows of a stage. 2**18 rows of x and y are 4 MiB: small enough to stay in the last-level cache
# between the copy and the kernel, large enough to make the 50 µs of a call disappear.
STAGE_ROWS = 1 << 18

# Smallest buffer of rows: below it a kernel call costs its overhead, whatever the rows.
MIN_PART_ROWS = 1 << 10

# Rows, at least, of which is found at a time which of them count: without it a stage of which few
# rows count would be filled in ever smaller steps.
MIN_SCAN_ROWS = 1 << 12


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
    masks : tuple of ndarray of bool
        True where a row is left out, each shaped like a coordinate.
    rule : MissingRule
        Which values leave a row out.
    """

    y: NDArray[np.generic]
    coords: tuple[NDArray[np.generic], ...]
    sigma: NDArray[np.generic] | None = None
    masks: tuple[NDArray[np.bool_], ...] = ()
    rule: MissingRule = NO_RULE

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """Values: ``y``, the coordinates, and ``sigma`` where there is one."""
        return (self.y, *self.coords) + (() if self.sigma is None else (self.sigma,))

    @property
    def selects(self) -> bool:
        """Whether any row may be left out."""
        return bool(self.masks) or self.rule.active

    def left_out(self, box: Box | None = None) -> NDArray[np.bool_]:
        """Which rows of a box, or of the block, are left out, in its shape."""
        if box is None:
            box = whole_box(self.y.shape)
        flags = np.zeros(tuple(s.stop - s.start for s in box), np.bool_)
        for mask in self.masks:
            flags |= mask[broadcast_box(box, mask.shape)]
        for missing in self.rule.flags([a[broadcast_box(box, a.shape)] for a in self.arrays]):
            flags |= missing
        return flags


@dataclass(frozen=True, slots=True)
class Layout:
    """What the arrays of a block are: y, coordinates, then sigma and masks where there are any.

    Attributes
    ----------
    weighted : bool
        Whether there is a sigma.
    n_masks : int
        Number of masks.
    rule : MissingRule
    names : tuple of str
        What messages call the arrays.
    varies : tuple of tuple of bool
        For each array, whether it varies along each dimension of y; its length is 1 where not.
    """

    weighted: bool
    n_masks: int = 0
    rule: MissingRule = NO_RULE
    names: tuple[str, ...] = ()
    varies: tuple[tuple[bool, ...], ...] = ()

    def check(self, arrays: Sequence[Any], shapes: Sequence[Shape], index: Shape, box: Box) -> None:
        """Compare the arrays of a block with what was announced of them.

        Parameters
        ----------
        arrays : sequence of array_like
            As they were made.
        shapes : sequence of tuple of int
            As announced: see :meth:`shapes_in`.
        index : tuple of int
            Of the block.
        box : tuple of slice
            What it is of the rows.

        Raises
        ------
        InputError, InputTypeError
            Naming the first array that has another shape, or holds something else.
        """
        n_values = len(arrays) - self.n_masks
        for number, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
            kinds = NUMBERS if number < n_values else FLAGS
            # A fast path, as there may be many small blocks.
            if type(array) is np.ndarray and array.shape == shape and array.dtype.kind in kinds:
                continue
            along = zip(index, box, self.varies[number], strict=True)
            own = [(i, s) if v else (0, slice(0, 1)) for i, s, v in along]
            own_index, own_box = tuple(i for i, _ in own), tuple(s for _, s in own)
            Announced(self.names[number], own_index, own_box, kinds).check(array)

    def shapes_in(self, box: Box) -> tuple[Shape, ...]:
        """Shapes of the arrays of a block."""
        full = lengths(box)
        return tuple(
            tuple(n if v else 1 for n, v in zip(full, varies, strict=True))
            for varies in self.varies
        )

    def block(self, arrays: Sequence[Any]) -> Block:
        """The block that arrays make. Masked ones become their values and one more mask each."""
        n_values = len(arrays) - self.n_masks
        masks = [np.ma.filled(mask, True) for mask in arrays[n_values:]]
        masks += [m for a in arrays[:n_values] if (m := np.ma.getmask(a)) is not np.ma.nomask]
        values = [np.ma.getdata(a, subok=False) for a in arrays[:n_values]]
        sigma = values.pop() if self.weighted else None
        return Block(values[0], tuple(values[1:]), sigma, tuple(masks), self.rule)


def aligned_empty(*shape: int) -> FloatArray:
    """Allocate float64 values, each row of the last axis at an address that XLA does not copy.

    All in one piece, which the system can give in huge pages from 4 MB on: to be given pages of
    4 KiB takes several times as long as to fill them.
    """
    *outer, n_rows = shape
    stride = -(-n_rows * 8 // ALIGNMENT) * ALIGNMENT
    n_bytes = math.prod(outer) * stride
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    rows = raw[offset : offset + n_bytes].view(np.float64).reshape(*outer, stride // 8)
    return rows[..., :n_rows]


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
    memory : ndarray, shape (n_coords + 1, capacity) or (n_coords + 2, capacity), optional
        What the buffers are made of, one more where weighted; from :func:`aligned_empty`.

    Attributes
    ----------
    y, weights : ndarray, shape (capacity,), float64
        Observations, and 1/sigma (None where not weighted).
    coords : tuple of ndarray, each (capacity,), float64
    n_rows : int
        Rows filled so far; what lies behind them is of no meaning.
    n_left_out : int
        Rows left out so far.
    """

    __slots__ = ("capacity", "coords", "n_left_out", "n_rows", "weights", "y")

    def __init__(
        self,
        n_coords: int,
        weighted: bool,
        capacity: int = STAGE_ROWS,
        memory: FloatArray | None = None,
    ) -> None:
        if memory is None:
            memory = aligned_empty(n_coords + 1 + weighted, capacity)
        # The kernel also computes on the rows behind n_rows of the last tile, and masks them:
        # zeros there keep that arithmetic free of NaN traps and slow subnormal numbers.
        memory[:] = 0.0
        self.capacity = capacity
        self.n_rows = self.n_left_out = 0
        self.y, *columns = memory
        self.coords = tuple(columns[:n_coords])
        self.weights = columns[n_coords] if weighted else None

    @property
    def full(self) -> bool:
        """Whether no row fits any more."""
        return self.n_rows == self.capacity

    def fill(self, block: Block, start: int) -> int:
        """Copy rows of a block that count, from row ``start`` on, for as many as fit.

        Parameters
        ----------
        block : Block
        start : int
            First row of the block to look at.

        Returns
        -------
        int
            The first row that was not looked at. Before the block's end the stage may still have
            room, where rows were left out.
        """
        room = self.capacity - self.n_rows
        if not block.selects:
            stop = min(block.y.size, start + room)
            for first, last, box in row_boxes(block.y.shape, start, stop):
                self._copy(block, box, last - first)
            return stop
        stop = min(block.y.size, start + max(room, MIN_SCAN_ROWS))
        for first, last, box in row_boxes(block.y.shape, start, stop):
            passed = self._copy_counting(block, first, last, box)
            if passed < last:
                return passed
        return stop

    def _copy_counting(self, block: Block, first: int, last: int, box: Box) -> int:
        """Copy the rows of a box that count, and return the first row that found no place."""
        # Places rather than flags, by which NumPy copies up to five times as fast where they vary.
        places = np.flatnonzero(~block.left_out(box))
        room = self.capacity - self.n_rows
        if places.size > room:
            last = first + int(places[room])
            places = places[:room]
        self.n_left_out += last - first - places.size
        if places.size:
            self._copy(block, box, places.size, None if places.size == box_size(box) else places)
        return last

    def _copy(
        self, block: Block, box: Box, n_rows: int, places: NDArray[np.intp] | None = None
    ) -> None:
        """Copy rows of a box behind those that are there: all, or those at some places."""
        rows = slice(self.n_rows, self.n_rows + n_rows)
        shape = tuple(s.stop - s.start for s in box)

        def copy(buffer: FloatArray, array: NDArray[np.generic]) -> None:
            piece = array[broadcast_box(box, array.shape)]
            if places is None:
                np.copyto(buffer[rows].reshape(shape), piece, casting="unsafe")
            else:
                numbers = np.broadcast_to(piece, shape).astype(np.float64, copy=False)
                # "clip" writes into the buffer itself, where "raise" would fill a copy first.
                np.take(numbers.reshape(-1), places, out=buffer[rows], mode="clip")

        for buffer, array in zip((self.y, *self.coords), (block.y, *block.coords), strict=True):
            copy(buffer, array)
        if self.weights is not None and block.sigma is not None:
            copy(self.weights, block.sigma)
            weights = self.weights[rows]
            # A sigma that is not positive gets an infinite weight, which shows as a cost that is
            # not finite; so does an infinite one, which would else go unnoticed.
            np.maximum(weights, 0.0, out=weights)
            with np.errstate(divide="ignore", over="ignore"):
                np.reciprocal(weights, out=weights)
            if not weights.min(initial=1.0) > 0.0:
                weights[weights == 0.0] = np.inf
        self.n_rows += n_rows

    def clear(self) -> None:
        """Forget all rows. Only after the kernel call that reads them has returned its result."""
        self.n_rows = 0
        self.n_left_out = 0


def power_of_two_from(rows: int) -> int:
    """The smallest power of two that is at least ``rows``."""
    return 1 << (rows - 1).bit_length()
