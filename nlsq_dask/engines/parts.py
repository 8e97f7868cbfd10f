"""Parts of rows in memory, as the kernel takes them in every pass.

XLA on the CPU takes a NumPy array without a copy only from an aligned address, and the rows of a
part begin at any address. So a part that stays *in place* is told to the kernel as a window of each
array, from the last aligned address before the part on, and the place of the part's first row in
the window. The other parts are copied into aligned buffers at their first use. These are the parts
whose window would not lie in the array, and all parts of arrays that are not float64, not
contiguous, or read from a file.

Of weighted rows only the weights are stored.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.accumulate import plain_columns, rows_of_stage
from nlsq_dask.io.chunks import whole_box
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import ALIGNMENT, Block, Stage, aligned_empty, aligned_offset, to_weights
from nlsq_dask.kernels.tiles import MORE_ROWS, Rows

# Bytes that are allocated at once for the buffers of several parts: enough for huge pages, and few
# enough that copying to another device needs little memory here.
PIECE_BYTES = 1 << 26


@dataclass(slots=True)
class Uncopied:
    """A part whose rows are copied into aligned buffers at its first use.

    Attributes
    ----------
    block : Block
        All rows, none of them left out and in no series.
    start : int
        First row of the part.
    memory : ndarray, shape (k, capacity) or (k, capacity + MORE_ROWS), float64
        The buffers. The part ends after `capacity` rows, or at the last row.
    wide : bool
        Whether the buffers are wide.
    copied : Rows or None
        The rows in the buffers, once they are copied.
    """

    block: Block
    start: int
    memory: FloatArray
    wide: bool = False
    copied: Rows | None = None

    def rows(self) -> Rows:
        """The rows in aligned buffers. One thread at a time calls this."""
        if self.copied is None:
            self.copied = self._copy()
        return self.copied

    def _copy(self) -> Rows:
        if not self.wide:
            return rows_of_stage(filled_from(self.block, self.start, self.memory)[0])
        stage = filled_from(self.block, self.start, self.memory[:, :-MORE_ROWS])[0]
        self.memory[:, -MORE_ROWS:] = 0.0
        y, *columns = self.memory
        weights = None if self.block.sigma is None else columns.pop()
        starts = (0,) * len(self.memory)
        return Rows.inside(Rows(tuple(columns), y, weights, stage.n_rows, starts=starts))


@dataclass(slots=True)
class Unweighted:
    """A part in place whose weights are computed at its first use.

    Attributes
    ----------
    wide : Rows
        The rows in wide buffers, without weights.
    sigma : ndarray, shape (capacity,), float64
    memory : ndarray, shape (capacity + MORE_ROWS,), float64
        Aligned memory of the weights.
    weighted : Rows or None
        The rows with weights, once these are computed.
    """

    wide: Rows
    sigma: FloatArray
    memory: FloatArray
    weighted: Rows | None = None

    def rows(self) -> Rows:
        """The rows with weights. One thread at a time calls this."""
        if self.weighted is None:
            weights = self.memory[:-MORE_ROWS]
            weights[:] = self.sigma
            to_weights(weights)
            self.memory[-MORE_ROWS:] = 0.0
            starts = (*(self.wide.starts or ()), 0)
            self.weighted = Rows.inside(self.wide._replace(weights=self.memory, starts=starts))
        return self.weighted


#: A part of rows in memory, of which none are left out.
Part: TypeAlias = Rows | Uncopied | Unweighted


def can_stay(data: Observations) -> bool:
    """Whether the rows in memory can stay in place, except for some at the ends of the arrays."""
    return not data.lazy and _columns_in_place(data.block(whole_box(data.y.shape))) is not None


def parts_in_place(data: Observations, capacity: int) -> Iterator[Part]:
    """All rows in parts of one capacity, in place where their windows lie in the arrays.

    The rows of other parts are in wide buffers, for which the same kernel is compiled.
    """
    block = data.block(whole_box(data.y.shape))
    columns = _columns_in_place(block)
    starts = range(0, data.n_rows, capacity)
    sigmas = None if columns is None or block.sigma is None else columns.pop()
    weights = _buffers(1, capacity + MORE_ROWS, 0 if sigmas is None else len(starts))
    for start in starts:
        wide = None if columns is None else _windows(columns, start, capacity)
        if wide is None:
            memory = aligned_empty(len(block.arrays), capacity + MORE_ROWS)
            yield Uncopied(block, start, memory, wide=True)
        elif sigmas is None:
            yield Rows.inside(wide)
        else:
            yield Unweighted(wide, sigmas[start : start + capacity], next(weights)[0])


def bytes_beside(data: Observations, capacity: int) -> int:
    """Most bytes of buffers beside arrays in place: of a part at each end, and of all weights."""
    length = 8 * (capacity + MORE_ROWS)
    n_weights = 0 if data.sigma is None else -(-data.n_rows // capacity)
    return length * (2 * len(data.values) + n_weights)


def uncopied_parts(data: Observations, capacity: int) -> Iterator[Uncopied]:
    """All rows in parts of one capacity, whose memory is reserved and not yet written."""
    block = data.block(whole_box(data.y.shape))
    starts = range(0, data.n_rows, capacity)
    buffers = _buffers(len(block.arrays), capacity, len(starts))
    for start, memory in zip(starts, buffers, strict=True):
        yield Uncopied(block, start, memory)


def aligned_parts(data: Observations, capacity: int) -> Iterator[Rows]:
    """Copy all rows that count into aligned buffers of one capacity; 0 if no row counts."""
    if not capacity:
        return
    block = data.block(whole_box(data.y.shape))
    start = 0
    for memory in _buffers(len(block.arrays), capacity, -(-data.n_rows // capacity)):
        stage, start = filled_from(block, start, memory)
        if stage.n_rows:
            yield rows_of_stage(stage)
        if start == data.n_rows:
            return


def filled_from(block: Block, start: int, memory: FloatArray) -> tuple[Stage, int]:
    """A stage in some memory, filled with rows from `start` on, and the first row not examined."""
    weighted, flagged = block.sigma is not None, bool(block.series_axes)
    stage = Stage(
        len(block.coords), weighted, memory.shape[1], memory, flagged=flagged, zeroed=False
    )
    while start < block.y.size and not stage.full:
        start = stage.fill(block, start)
    stage.clear_rest()
    return stage, start


def _buffers(n_buffers: int, length: int, n_parts: int) -> Iterator[FloatArray]:
    """Memory of the buffers of so many parts, (n_buffers, length) each, allocated in pieces."""
    most = max(PIECE_BYTES // (8 * n_buffers * length), 1)
    for first in range(0, n_parts, most):
        yield from aligned_empty(min(most, n_parts - first), n_buffers, length)


def _columns_in_place(block: Block) -> list[FloatArray] | None:
    """The values of a block as the kernel can take them in place; None if it cannot."""
    if block.selects or block.series_axes:
        return None
    columns = plain_columns(block)
    return None if columns is None or any(map(_is_of_a_file, block.arrays)) else columns


def _is_of_a_file(array: object) -> bool:
    """Whether an array is a view of a memory map, whose pages may have to be read again."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    if isinstance(array, memoryview):
        array = array.obj
    return isinstance(array, np.memmap | mmap.mmap)


def _windows(columns: Sequence[FloatArray], start: int, capacity: int) -> Rows | None:
    """Wide buffers of the part that begins at a row; None where an array has no such window."""
    found = [window for c in columns if (window := _window(c, start, capacity)) is not None]
    if len(found) < len(columns):
        return None
    (y, *coords), starts = zip(*found, strict=True)
    return Rows(tuple(coords), y, None, capacity, starts=starts)


def _window(column: FloatArray, start: int, capacity: int) -> tuple[FloatArray, int] | None:
    """The window of a part in an array, and the place of the part's first row in the window."""
    place = -aligned_offset(column[start:]) % ALIGNMENT // column.itemsize
    first, end = start - place, start - place + capacity + MORE_ROWS
    return (column[first:end], place) if first >= 0 and end <= column.size else None
