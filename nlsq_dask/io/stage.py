"""The staging buffer: rows of any dtype, layout and shape, prepared for a kernel call.

A stage is a set of aligned float64 buffers of a fixed capacity. Blocks are copied into the stage
slice by slice, and the kernel runs whenever the stage is full. The copy casts, expands broadcast
coordinates and packs small blocks together. Every chunk layout gives the kernel the same shape, so
the kernel is compiled once.

The copy drops rows that are left out. The buffers hold the remaining rows without gaps, so the
kernel needs no masks, and no missing value reaches a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.structure import series_order
from nlsq_dask.io.announced import FLAGS, NUMBERS, Announced
from nlsq_dask.io.chunks import Box, box_size, broadcast_box, lengths, row_boxes, whole_box
from nlsq_dask.io.missing import NO_RULE, MissingRule

Shape = tuple[int, ...]

# XLA on the CPU uses a NumPy buffer without a copy only if its address is a multiple of this.
ALIGNMENT = 64

# Rows of a stage. 2**18 rows of x and y are 4 MiB: small enough to stay in the last-level cache
# between the copy and the kernel, and so large that the 50 µs of a call do not matter.
STAGE_ROWS = 1 << 18

# Most rows of a block that a stage takes at once. The copy keeps Python's lock: to get it back from
# another thread would take longer than to copy so few rows.
SMALL_ROWS = 1 << 12

FLOAT64 = np.dtype(np.float64)

# Smallest buffer of rows: with fewer rows, the overhead of a kernel call is all that it costs.
MIN_PART_ROWS = 1 << 10

# Least rows whose masks are examined at one time. Without a least number, a stage would be filled
# in ever smaller steps where masks leave few rows.
MIN_SCAN_ROWS = 1 << 12


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Block:
    """Rows as read: observations, and arrays that broadcast to their shape.

    Attributes
    ----------
    y : ndarray, shape (...), any real dtype
    coords : tuple of ndarray
        Coordinates, each with as many dimensions as ``y``. Lengths equal those of ``y``, or 1.
    sigma : ndarray or None
        Standard deviations, shaped like a coordinate.
    masks : tuple of ndarray of bool
        True where a row is left out, each shaped like a coordinate.
    rule : MissingRule
        Which values leave a row out.
    series_axes : tuple of int
        Axes of series that stay whole: rows that are left out keep their places. Empty where rows
        are independent.
    """

    y: NDArray[np.generic]
    coords: tuple[NDArray[np.generic], ...]
    sigma: NDArray[np.generic] | None = None
    masks: tuple[NDArray[np.bool_], ...] = ()
    rule: MissingRule = NO_RULE
    series_axes: tuple[int, ...] = ()

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """Values: ``y``, the coordinates, and ``sigma`` if there is one."""
        return (self.y, *self.coords) + (() if self.sigma is None else (self.sigma,))

    @property
    def selects(self) -> bool:
        """Whether any row may be left out."""
        return bool(self.masks) or self.rule.active

    def left_out(self, box: Box | None = None) -> NDArray[np.bool_]:
        """Flags of the rows of a box, or of the block, that are left out, in its shape."""
        if box is None:
            box = whole_box(self.y.shape)
        flags = np.zeros(tuple(s.stop - s.start for s in box), np.bool_)
        for mask in self.masks:
            flags |= mask[broadcast_box(box, mask.shape)]
        for missing in self.rule.flags([a[broadcast_box(box, a.shape)] for a in self.arrays]):
            flags |= missing
        return flags

    def in_series(self) -> Block:
        """Views of the same rows in the order of the series, whose rows are then neighbours."""
        order = series_order(self.series_axes, self.y.ndim)
        return replace(
            self,
            y=self.y.transpose(order),
            coords=tuple(c.transpose(order) for c in self.coords),
            sigma=None if self.sigma is None else self.sigma.transpose(order),
            masks=tuple(m.transpose(order) for m in self.masks),
            series_axes=tuple(range(self.y.ndim - len(self.series_axes), self.y.ndim)),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Meaning of the arrays of a block: y, coordinates, then sigma and masks if there are any.

    Attributes
    ----------
    weighted : bool
        Whether there is a sigma.
    n_masks : int
        Number of masks.
    rule : MissingRule
    names : tuple of str
        Names of the arrays in messages.
    varies : tuple of tuple of bool
        For each array and each dimension of y, whether the array varies along it. If not, the
        length of the array along the dimension is 1.
    series_axes : tuple of int
        As those of a block.
    """

    weighted: bool
    n_masks: int = 0
    rule: MissingRule = NO_RULE
    names: tuple[str, ...] = ()
    varies: tuple[tuple[bool, ...], ...] = ()
    series_axes: tuple[int, ...] = ()

    def check(self, arrays: Sequence[Any], shapes: Sequence[Shape], index: Shape, box: Box) -> None:
        """Compare the computed arrays of a block with their announcement.

        Parameters
        ----------
        arrays : sequence of array_like
            The computed arrays.
        shapes : sequence of tuple of int
            Announced shapes; see :meth:`shapes_in`.
        index : tuple of int
            Index of the block.
        box : tuple of slice
            Rows of the block.

        Raises
        ------
        InputError, InputTypeError
            If an array has another shape or kind of dtype. The message names the first such array.
        """
        n_values = len(arrays) - self.n_masks
        for number, array in enumerate(arrays):
            kinds = NUMBERS if number < n_values else FLAGS
            known = type(array) is np.ndarray and array.dtype.kind in kinds
            if known and array.shape == shapes[number]:
                continue
            self.announced(number, index, box, kinds).check(array)

    def checked(
        self, arrays: Sequence[Any], shapes: Sequence[Shape], index: Shape, box: Box
    ) -> Block:
        """Compose a block of computed arrays that are as announced; see :meth:`check`."""
        if not self.weighted and not self.n_masks:  # a fast path, for data in many small blocks
            for array, shape in zip(arrays, shapes, strict=True):
                if (
                    type(array) is not np.ndarray
                    or array.shape != shape
                    or array.dtype.kind not in NUMBERS
                ):
                    break
            else:
                y, *coords = arrays
                return Block(y, tuple(coords), None, (), self.rule, self.series_axes)
        self.check(arrays, shapes, index, box)
        return self.block(arrays)

    def announced(self, number: int, index: Shape, box: Box, kinds: str = NUMBERS) -> Announced:
        """What an array announces for a block, by the number of the array.

        Parameters
        ----------
        number : int
        index : tuple of int
            Index of the block.
        box : tuple of slice
            Rows of the block.
        kinds : str
            Kinds of dtypes that the array may have.
        """
        along = zip(index, box, self.varies[number], strict=True)
        own = [(i, s) if v else (0, slice(0, 1)) for i, s, v in along]
        own_index, own_box = tuple(i for i, _ in own), tuple(s for _, s in own)
        return Announced(self.names[number], own_index, own_box, kinds)

    def shapes_in(self, box: Box) -> tuple[Shape, ...]:
        """Shapes of the arrays of a block."""
        full = lengths(box)
        return tuple(
            tuple(n if v else 1 for n, v in zip(full, varies, strict=True))
            for varies in self.varies
        )

    def block(self, arrays: Sequence[Any]) -> Block:
        """Compose a block of arrays. A masked array gives its values and one more mask."""
        n_values = len(arrays) - self.n_masks
        values, masks = list(arrays[:n_values]), list(arrays[n_values:])
        if {*map(type, arrays)} != {np.ndarray}:
            masks = [np.ma.filled(mask, True) for mask in masks]
            masks += [m for a in values if (m := np.ma.getmask(a)) is not np.ma.nomask]
            values = [np.ma.getdata(a, subok=False) for a in values]
        sigma = values.pop() if self.weighted else None
        coords = tuple(values[1:])
        return Block(values[0], coords, sigma, tuple(masks), self.rule, self.series_axes)


def aligned_empty(*shape: int) -> FloatArray:
    """Allocate float64 values. XLA uses each row of the last axis without a copy.

    One allocation holds all rows, as the system can back 4 MB or more with huge pages. Pages of 4
    KiB take several times as long to obtain as to fill.
    """
    *outer, n_rows = shape
    stride = -(-n_rows * 8 // ALIGNMENT) * ALIGNMENT
    n_bytes = math.prod(outer) * stride
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    rows = aligned(raw, n_bytes).view(np.float64).reshape(*outer, stride // 8)
    return rows[..., :n_rows]


def aligned(raw: NDArray[np.uint8], n_bytes: int) -> NDArray[np.uint8]:
    """The first bytes at an aligned address, of at least ALIGNMENT more bytes."""
    offset = aligned_offset(raw)
    return raw[offset : offset + n_bytes]


def aligned_offset(raw: NDArray[Any]) -> int:
    """Bytes before the first aligned address."""
    return int(-raw.ctypes.data % ALIGNMENT)


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
        Memory of the buffers, with one more row if weighted; from :func:`aligned_empty`.
    flagged : bool
        Whether rows that are left out keep their places, for blocks of series.
    zeroed : bool
        Whether to fill the buffers with zeros. If not, call :meth:`clear_rest` after the last row:
        fresh memory is then written once.

    Attributes
    ----------
    y, weights : ndarray, shape (capacity,), float64
        Observations, and 1/sigma (None if not weighted).
    coords : tuple of ndarray, each (capacity,), float64
    counted : ndarray, shape (capacity,), bool, or None
        Which rows count, if rows that are left out keep their places; their y is 0.
    n_rows : int
        Rows filled so far. Values after these rows have no meaning.
    n_left_out : int
        Rows left out so far.
    """

    __slots__ = (
        "_columns",
        "_views",
        "capacity",
        "coords",
        "counted",
        "n_left_out",
        "n_rows",
        "weights",
        "y",
    )

    def __init__(
        self,
        n_coords: int,
        weighted: bool,
        capacity: int = STAGE_ROWS,
        memory: FloatArray | None = None,
        *,
        flagged: bool = False,
        zeroed: bool = True,
    ) -> None:
        if memory is None:
            memory = aligned_empty(n_coords + 1 + weighted, capacity)
        # The kernel also computes the rows after n_rows in the last tile, and masks them. Zeros
        # there avoid NaN traps and slow subnormal numbers.
        if zeroed:
            memory[:] = 0.0
        self.capacity = capacity
        self.n_rows = self.n_left_out = 0
        self.y, *columns = memory
        self.coords = tuple(columns[:n_coords])
        self.weights = columns[n_coords] if weighted else None
        self._columns = (self.y, *self.coords)
        self._views = tuple(memoryview(column) for column in self._columns)
        self.counted: NDArray[np.bool_] | None = None
        if flagged:
            raw = np.zeros(capacity + ALIGNMENT, np.uint8)
            self.counted = aligned(raw, capacity).view(np.bool_)

    @property
    def full(self) -> bool:
        """Whether the stage has no room for another row."""
        return self.n_rows == self.capacity

    def append(self, arrays: Sequence[Any], shape: Shape) -> bool:
        """Copy the rows of a small block, without sigma and without masks, if that is soon done.

        Parameters
        ----------
        arrays : sequence of array_like
            y and the coordinates, as computed.
        shape : tuple of int
            Announced shape of all of them.

        Returns
        -------
        bool
            False if no row is added: the stage would be full, there are too many rows, or an
            array has another shape than announced or values that are no numbers. A stage that is
            full is used before another block is made, as :meth:`fill` has it.
        """
        is_flat = len(shape) == 1
        size = shape[0] if is_flat else math.prod(shape)
        first = self.n_rows
        stop = first + size
        if stop >= self.capacity or size > SMALL_ROWS:
            return False
        rows = slice(first, stop)
        for number, array in enumerate(arrays):
            if array.__class__ is not np.ndarray or array.shape != shape:
                return False
            dtype: np.dtype[Any] = array.dtype
            flat: Any = array if is_flat else array.reshape(-1)
            # Arrays from other processes have any address, which makes the format another one.
            if dtype is FLOAT64 and array.flags.aligned:
                self._views[number][rows] = flat  # half of NumPy's time for 1,000 rows
            elif dtype is FLOAT64 or dtype.kind in NUMBERS:
                self._columns[number][rows] = flat
            else:
                return False
        self.n_rows = stop
        return True

    def fill(self, block: Block, start: int) -> int:
        """Copy rows of a block that are not left out, from row ``start`` on, as many as fit.

        Parameters
        ----------
        block : Block
        start : int
            First row of the block to examine.

        Returns
        -------
        int
            The first row that was not examined. If rows were left out, the stage may have room
            although the block has more rows.
        """
        if block.series_axes:
            return self._fill_series(block.in_series(), start)
        room = self.capacity - self.n_rows
        if not block.selects:
            stop = min(block.y.size, start + room)
            if stop - start == block.y.size and block.sigma is None:
                self._copy_whole(block)
                return stop
            for first, last, box in row_boxes(block.y.shape, start, stop):
                self._copy(block, box, last - first)
            return stop
        stop = min(block.y.size, start + max(room, MIN_SCAN_ROWS))
        for first, last, box in row_boxes(block.y.shape, start, stop):
            passed = self._copy_counting(block, first, last, box)
            if passed < last:
                return passed
        return stop

    def _fill_series(self, block: Block, start: int) -> int:
        """Copy whole series, those rows included that are left out, as many as fit.

        The axes of the series are the last. The capacity holds whole series.
        """
        assert self.counted is not None, "a stage for series"
        stop = min(block.y.size, start + self.capacity - self.n_rows)
        is_first = self.n_rows == 0
        for first, last, box in row_boxes(block.y.shape, start, stop):
            rows = slice(self.n_rows, self.n_rows + last - first)
            self._copy(block, box, last - first)
            self.counted[rows] = True
            if block.selects:
                left_out = block.left_out(box).reshape(-1)
                self.counted[rows] = ~left_out
                self.n_left_out += int(np.count_nonzero(left_out))
                self.y[rows][left_out] = 0.0
                if self.weights is not None:
                    self.weights[rows][left_out] = 1.0
        if is_first and self.n_rows < self.capacity:
            self._repeat_first(math.prod(block.y.shape[d] for d in block.series_axes))
        return stop

    def _repeat_first(self, n_rows: int) -> None:
        """Fill the coordinates after the last row with those of the first series.

        A tile may have more series than are filled. A loop in the model might never end for numbers
        that are no coordinates.
        """
        for coord in self.coords:
            coord[self.n_rows :].reshape(-1, n_rows)[:] = coord[:n_rows]

    def _copy_whole(self, block: Block) -> None:
        """Append all rows of a block without sigma: a fast path, for data in many small blocks."""
        y = block.y
        rows = slice(self.n_rows, self.n_rows + y.size)
        if y.ndim == 1:
            self.y[rows] = y
            for buffer, array in zip(self.coords, block.coords, strict=True):
                buffer[rows] = array
        else:
            self.y[rows].reshape(y.shape)[...] = y
            for buffer, array in zip(self.coords, block.coords, strict=True):
                buffer[rows].reshape(y.shape)[...] = array
        self.n_rows = rows.stop

    def _copy_counting(self, block: Block, first: int, last: int, box: Box) -> int:
        """Copy the rows of a box that are not left out; return the first that does not fit."""
        # NumPy copies by indices up to five times as fast as by flags, if the flags alternate.
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
        """Append rows of a box: all of them, or those at some places."""
        rows = slice(self.n_rows, self.n_rows + n_rows)
        shape = lengths(box)

        def copy(buffer: FloatArray, array: NDArray[np.generic]) -> None:
            piece = array[broadcast_box(box, array.shape)]
            if places is None:
                np.copyto(buffer[rows].reshape(shape), piece, casting="unsafe")
            else:
                numbers = np.broadcast_to(piece, shape).astype(np.float64, copy=False)
                # "clip" writes directly into the buffer; "raise" fills a copy first.
                np.take(numbers.reshape(-1), places, out=buffer[rows], mode="clip")

        for buffer, array in zip((self.y, *self.coords), (block.y, *block.coords), strict=True):
            copy(buffer, array)
        if self.weights is not None and block.sigma is not None:
            copy(self.weights, block.sigma)
            to_weights(self.weights[rows])
        self.n_rows += n_rows

    def clear_rest(self) -> None:
        """Fill the places after the last row with zeros, except coordinates of whole series."""
        weights = () if self.weights is None else (self.weights,)
        coords = () if self.counted is not None and self.n_rows else self.coords
        for buffer in (self.y, *weights, *coords):
            buffer[self.n_rows :] = 0.0

    def clear(self) -> None:
        """Forget all rows. Call it only after the kernel that reads the rows has returned."""
        self.n_rows = 0
        self.n_left_out = 0


def to_weights(values: FloatArray) -> None:
    """Turn standard deviations into weights 1/sigma, in place.

    A sigma that is not positive gets an infinite weight, so that the cost is not finite and the
    cause is searched for. So does an infinite sigma, whose weight would be 0.
    """
    np.maximum(values, 0.0, out=values)
    with np.errstate(divide="ignore", over="ignore"):
        np.reciprocal(values, out=values)
    if not values.min(initial=1.0) > 0.0:
        values[values == 0.0] = np.inf


def power_of_two_from(rows: int) -> int:
    """The smallest power of two that is at least ``rows``."""
    return 1 << (rows - 1).bit_length()
