"""The pieces in which tasks read the arrays of a fit, and which blocks and tasks need each. Pure.

A *pieced array* is a Zarr array that an operand of the model is read from. An operand that is made
in another way is a pieced array itself. Its *pieces* are the chunks in which Dask reads it. A
block may need several pieces, and several blocks may need the same piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask._task_spec import TaskRef
from dask.highlevelgraph import MaterializedLayer
from dask.layers import ArraySliceDep
from numpy.typing import NDArray

from nlsq_dask.io.chunks import Chunks, block_sizes
from nlsq_dask.io.lazy_arrays import zarr_inside
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask

IntArray = NDArray[np.int64]

# If more tasks than this need a piece, it is computed once before the first pass and shared by
# them. A piece across the edge between two tasks is made by both: sharing all such pieces would
# hold a part of the data in memory through the fit.
MAX_TASKS_TO_REPEAT = 2

# An array shares pieces of up to so many bytes. The shared pieces of a larger array are made by
# each task instead, if that adds at most this fraction to the bytes that all tasks read. Example: a
# value for each pixel of an image, where each task reads many images.
SMALL_ARRAY_BYTES = 64_000_000
MOST_REPEATED = 0.25


@dataclass(frozen=True, slots=True)
class PiecedArray:
    """An array that is read piece by piece.

    Attributes
    ----------
    name : str
        Its key in the Dask graph.
    pieces : tuple of tuple of int
        Lengths of the pieces along each dimension.
    itemsize : int
        Bytes of an element, decoded.
    stored : tuple of int or None
        Shape of the Zarr chunks; None for an array that is not read from Zarr.
    in_memory : bool
        True if the pieces are views of a NumPy array, which take no memory of their own.
    operand : str
        Name of the Dask array that is read from this array.
    repeated : bool
        True if every task makes the pieces that it needs, even those that many tasks need.
    """

    name: str
    pieces: Chunks
    itemsize: int
    stored: tuple[int, ...] | None = None
    in_memory: bool = False
    operand: str = ""
    repeated: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(map(sum, self.pieces))

    @property
    def repeats(self) -> float:
        """Times that a Zarr chunk is decoded, on average, when every piece is read once."""
        if self.stored is None:
            return 1.0
        decoded = math.prod(int(lengths.sum()) for lengths in self.decoded_lengths())
        return decoded / math.prod(
            -(-n // c) * c for n, c in zip(self.shape, self.stored, strict=True)
        )

    def decoded_lengths(self) -> list[IntArray]:
        """Lengths that Zarr decodes to read each piece, along each dimension."""
        if self.stored is None:
            return [np.array(lengths, np.int64) for lengths in self.pieces]
        decoded = []
        for lengths, chunk in zip(self.pieces, self.stored, strict=True):
            stops = np.cumsum(lengths, dtype=np.int64)
            first = (stops - lengths) // chunk
            decoded.append((-(-stops // chunk) - first) * chunk)
        return decoded

    def piece_bytes(self) -> IntArray:
        """Bytes that are decoded to read each piece, shape (pieces,), in C order of the pieces."""
        return self.itemsize * block_sizes(self.decoded_lengths())


def pieced_arrays_of(data: Observations) -> list[PiecedArray]:
    """The pieced arrays of all operands of a fit, each once."""
    found = (s for a in data.operands if is_dask(a) for s in pieced_arrays_in(a))
    return list({pieced.name: pieced for pieced in found}.values())


def pieced_arrays_in(array: Array) -> list[PiecedArray]:
    """The pieced arrays of one Dask array.

    If the Dask array has another shape than a Zarr array that it reads (it is a slice, or a stack
    of several), the pieces of the Zarr array do not line up with the rows. The Dask array then
    stands for the Zarr array; the bytes of the part that is not used are not counted.
    """
    stored = [_with_dimensions(pieced, array.ndim) for pieced in zarr_arrays_in(array)]
    if stored and all(pieced.shape == array.shape for pieced in stored):
        return [replace(pieced, operand=array.name) for pieced in stored]
    itemsize, in_memory = int(array.dtype.itemsize), _is_in_memory(array)
    return [PiecedArray(array.name, array.chunks, itemsize, None, in_memory, array.name)]


def zarr_arrays_in(array: Array) -> Iterator[PiecedArray]:
    """The Zarr arrays that the graph of a Dask array reads."""
    layers = array.__dask_graph__().layers
    for name, layer in layers.items():
        pieces = [d.chunks for d in getattr(layer, "io_deps", {}).values() if _slices(d)]
        if len(pieces) != 1:
            continue
        for value, index in layer.indices:
            if index is not None:
                continue
            origin = zarr_inside(_literal(value, layers))
            if origin is not None and tuple(map(sum, pieces[0])) == origin.shape:
                yield PiecedArray(str(name), pieces[0], int(origin.dtype.itemsize), origin.chunks)


def users_of(array: PiecedArray, chunks: Chunks, tasks: IntArray) -> IntArray:
    """Pairs of a task and a piece that the task needs.

    Parameters
    ----------
    array : PiecedArray
    chunks : tuple of tuple of int
        Chunk grid of the blocks.
    tasks : ndarray, shape (blocks,), int64
        Number of the task of each block, in C order of the grid; -1 for a block without a task.

    Returns
    -------
    ndarray, shape (k, 2), int64
        Number of the task and number of the piece. Each pair appears once.
    """
    blocks, pieces = cells(chunks, array.pieces)
    owners = tasks[blocks]
    n_pieces = math.prod(map(len, array.pieces))
    pairs = _distinct(owners[owners >= 0] * n_pieces + pieces[owners >= 0])
    return np.stack(np.divmod(pairs, n_pieces), axis=1)


def count_users(array: PiecedArray, chunks: Chunks, tasks: IntArray) -> IntArray:
    """Number of tasks that need each piece, shape (pieces,); arguments of :func:`users_of`."""
    pieces = users_of(array, chunks, tasks)[:, 1]
    return np.bincount(pieces, minlength=math.prod(map(len, array.pieces)))


def shared_bytes(arrays: Sequence[PiecedArray], chunks: Chunks, tasks: IntArray) -> int:
    """Decoded bytes of the shared pieces: computed once, they stay in memory through the fit.

    `chunks` and `tasks` are those of :func:`users_of`.
    """
    total = 0
    for array in arrays:
        if not (array.in_memory or array.repeated):
            shared = count_users(array, chunks, tasks) > MAX_TASKS_TO_REPEAT
            total += int(array.piece_bytes()[shared].sum())
    return total


def with_repeats(
    arrays: Sequence[PiecedArray], chunks: Chunks, tasks: IntArray
) -> list[PiecedArray]:
    """Decide which arrays each task makes for itself; arguments of :func:`users_of`."""
    sizes = [array.piece_bytes() for array in arrays]
    users = [count_users(array, chunks, tasks) for array in arrays]
    counted = list(zip(sizes, users, strict=True))
    room = MOST_REPEATED * sum(int(size[count > 0].sum()) for size, count in counted)
    marked = []
    for array, (size, count) in zip(arrays, counted, strict=True):
        shared = 0 if array.in_memory else int(size[count > MAX_TASKS_TO_REPEAT].sum())
        repeated = shared > SMALL_ARRAY_BYTES and int((size * count).sum()) <= room
        marked.append(replace(array, repeated=repeated))
    return marked


def open_bytes(arrays: Sequence[PiecedArray], chunks: Chunks) -> IntArray:
    """Decoded bytes of the pieces that blocks on both sides of an edge need, for each edge.

    Returns
    -------
    ndarray, shape (blocks + 1,), int64
        Bytes at the edge before each block, in C order of the grid, and after the last block.
    """
    change = np.zeros(math.prod(map(len, chunks)) + 2, np.int64)
    for array in arrays:
        blocks, pieces = cells(chunks, array.pieces)
        sizes = array.piece_bytes()
        first, last = np.full(sizes.size, change.size), np.full(sizes.size, -1)
        np.minimum.at(first, pieces, blocks)
        np.maximum.at(last, pieces, blocks)
        needed = last >= 0
        np.add.at(change, first[needed] + 1, sizes[needed])
        np.add.at(change, last[needed] + 1, -sizes[needed])
    return np.cumsum(change[:-1])


def largest_pieces(arrays: Sequence[PiecedArray]) -> int:
    """Decoded bytes of one piece of each array, the largest piece of each."""
    return sum(int(array.piece_bytes().max()) for array in arrays)


def cells(chunks: Chunks, pieces: Chunks) -> tuple[IntArray, IntArray]:
    """Number of the block and number of the piece of each cell.

    The cells are what remains when the array is cut at the edges of both.
    """
    block = piece = np.zeros(1, np.int64)
    for rows, lengths in zip(chunks, pieces, strict=True):
        of_block, of_piece = _cells_along(rows, lengths)
        block = (block[:, None] * len(rows) + of_block).ravel()
        piece = (piece[:, None] * len(lengths) + of_piece).ravel()
    return block, piece


def _cells_along(rows: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    if rows == lengths:
        return np.arange(len(rows)), np.arange(len(rows))
    blocks, pieces = (np.cumsum([0, *cuts], dtype=np.int64) for cuts in (rows, lengths))
    if pieces[-1] != blocks[-1]:  # a coordinate of length 1: all blocks need its piece
        return np.arange(len(rows)), np.zeros(len(rows), np.int64)
    starts = _distinct(np.concatenate([blocks, pieces]))[:-1]
    return tuple(np.searchsorted(edges, starts, "right") - 1 for edges in (blocks, pieces))  # type: ignore[return-value]


def _distinct(numbers: IntArray) -> IntArray:
    """Each number once, ascending. ``np.unique`` takes 30 times as long for numbers in order."""
    numbers = np.sort(numbers)
    first: IntArray = numbers[np.append(True, numbers[1:] != numbers[:-1])[: numbers.size]]
    return first


def _with_dimensions(array: PiecedArray, n: int) -> PiecedArray:
    """The array with leading dimensions of length 1, as broadcasting adds them."""
    missing = n - len(array.pieces)
    stored = None if array.stored is None else (1,) * missing + array.stored
    return replace(array, pieces=((1,),) * missing + array.pieces, stored=stored)


def _is_in_memory(array: Array) -> bool:
    """Whether the chunks of a Dask array are NumPy arrays in its graph."""
    layer = array.__dask_graph__().layers.get(array.name, {})
    if not isinstance(layer, MaterializedLayer) or not layer:
        return False
    value = next(iter(layer.values()))
    return isinstance(getattr(value, "value", value), np.ndarray)


def _slices(dep: object) -> bool:
    return isinstance(dep, ArraySliceDep)


def _literal(value: Any, layers: Mapping[Any, Any]) -> Any:
    """The value of a layer's argument; the argument itself if a task computes it."""
    if isinstance(value, TaskRef) and value.key in layers:
        value = layers[value.key].get(value.key)
    return getattr(value, "value", value)
