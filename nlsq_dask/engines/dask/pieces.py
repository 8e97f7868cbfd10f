"""The pieces in which the arrays of a fit are read, and the blocks and tasks that need them. Pure.

A *source* is a Zarr array from which operands are read, or an operand itself where it is made in
another way. Its *pieces* are the chunks in which Dask reads it. A block may need several pieces,
and a piece may be needed by several blocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask._task_spec import TaskRef
from dask.highlevelgraph import MaterializedLayer
from dask.layers import ArraySliceDep
from numpy.typing import NDArray

from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask, is_zarr

IntArray = NDArray[np.int64]

# A piece that more tasks than this need is made once, before the first pass. One or two need it
# where it lies across a task's edge: then each makes it for itself, since keeping it would keep a
# part of the data in memory.
MAX_TASKS_TO_REPEAT = 2

# Bytes of such pieces of one array that are kept through a fit without a second thought. Those of
# larger arrays are made by each task after all, if that adds no more than this part to what all
# tasks read: a value for each pixel of an image, in tasks of many images each.
SMALL_ARRAY_BYTES = 64_000_000
MOST_REPEATED = 0.25


@dataclass(frozen=True, slots=True)
class Source:
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
        Shape of the Zarr chunks; None if it is not read from Zarr.
    in_memory : bool
        Whether its pieces are views of a NumPy array, which take no memory.
    operand : str
        Name of the Dask array that it belongs to.
    repeated : bool
        Whether every task makes the pieces that it needs, however many need them.
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
        """How often reading all pieces once decodes a Zarr chunk, on average."""
        if self.stored is None:
            return 1.0
        decoded = math.prod(int(lengths.sum()) for lengths in self.decoded_lengths())
        return decoded / math.prod(
            -(-n // c) * c for n, c in zip(self.shape, self.stored, strict=True)
        )

    def decoded_lengths(self) -> list[IntArray]:
        """Lengths that are decoded for each piece, along each dimension."""
        if self.stored is None:
            return [np.array(lengths, np.int64) for lengths in self.pieces]
        decoded = []
        for lengths, chunk in zip(self.pieces, self.stored, strict=True):
            stops = np.cumsum(lengths, dtype=np.int64)
            first = (stops - lengths) // chunk
            decoded.append((-(-stops // chunk) - first) * chunk)
        return decoded

    def piece_bytes(self) -> IntArray:
        """Bytes that are decoded for each piece, in C order of the pieces."""
        total = np.array([self.itemsize], np.int64)
        for lengths in self.decoded_lengths():
            total = np.multiply.outer(total, lengths).ravel()
        return total


def sources_of(data: Observations) -> list[Source]:
    """All sources of the Dask arrays of a fit, each once."""
    found = (s for a in data.operands if is_dask(a) for s in array_sources(a))
    return list({source.name: source for source in found}.values())


def array_sources(array: Array) -> list[Source]:
    """Sources of one Dask array.

    Where a source has another shape than the array (a slice of it is used, or a stack of several
    arrays), its pieces are not those of the rows: the array itself then stands for it, which errs
    by what is cut off.
    """
    stored = [_with_dimensions(source, array.ndim) for source in zarr_sources(array)]
    if stored and all(source.shape == array.shape for source in stored):
        return [replace(source, operand=array.name) for source in stored]
    itemsize, in_memory = int(array.dtype.itemsize), _is_in_memory(array)
    return [Source(array.name, array.chunks, itemsize, None, in_memory, array.name)]


def zarr_sources(array: Array) -> Iterator[Source]:
    """The Zarr arrays that the graph of a Dask array reads, and the pieces in which it does."""
    layers = array.__dask_graph__().layers
    for name, layer in layers.items():
        pieces = [d.chunks for d in getattr(layer, "io_deps", {}).values() if _slices(d)]
        if len(pieces) != 1:
            continue
        for value, index in layer.indices:
            if index is not None:
                continue
            origin = _literal(value, layers)
            if is_zarr(origin) and tuple(map(sum, pieces[0])) == origin.shape:
                yield Source(str(name), pieces[0], int(origin.dtype.itemsize), origin.chunks)


def users_of(source: Source, chunks: Chunks, tasks: IntArray) -> IntArray:
    """Tasks that need each piece, as pairs.

    Parameters
    ----------
    source : Source
    chunks : tuple of tuple of int
        Chunk grid of the blocks.
    tasks : ndarray, shape (blocks,), int64
        Number of the task of each block, in C order of the grid; -1 where there is none.

    Returns
    -------
    ndarray, shape (k, 2), int64
        Numbers of a task and of a piece that it needs, each pair once.
    """
    blocks, pieces = cells(chunks, source.pieces)
    owners = tasks[blocks]
    n_pieces = math.prod(map(len, source.pieces))
    pairs = np.unique(owners[owners >= 0] * n_pieces + pieces[owners >= 0])
    return np.stack(np.divmod(pairs, n_pieces), axis=1)


def count_users(source: Source, chunks: Chunks, tasks: IntArray) -> IntArray:
    """How many tasks need each piece, shape (pieces,); parameters as for :func:`users_of`."""
    pieces = users_of(source, chunks, tasks)[:, 1]
    return np.bincount(pieces, minlength=math.prod(map(len, source.pieces)))


def held_bytes(sources: Sequence[Source], chunks: Chunks, tasks: IntArray) -> int:
    """Decoded bytes of the pieces that are kept through a fit, since many tasks need them.

    Parameters are those of :func:`users_of`.
    """
    total = 0
    for source in sources:
        kept = count_users(source, chunks, tasks) > MAX_TASKS_TO_REPEAT
        kept &= not (source.in_memory or source.repeated)
        total += int(source.piece_bytes()[kept].sum())
    return total


def with_repeats(sources: Sequence[Source], chunks: Chunks, tasks: IntArray) -> list[Source]:
    """Decide which sources are repeated rather than kept; parameters as for :func:`users_of`."""
    sizes = [source.piece_bytes() for source in sources]
    users = [count_users(source, chunks, tasks) for source in sources]
    counted = list(zip(sizes, users, strict=True))
    room = MOST_REPEATED * sum(int(size[count > 0].sum()) for size, count in counted)
    marked = []
    for source, (size, count) in zip(sources, counted, strict=True):
        kept = 0 if source.in_memory else int(size[count > MAX_TASKS_TO_REPEAT].sum())
        repeated = kept > SMALL_ARRAY_BYTES and int((size * count).sum()) <= room
        marked.append(replace(source, repeated=repeated))
    return marked


def open_bytes(sources: Sequence[Source], chunks: Chunks) -> IntArray:
    """Decoded bytes of the pieces that are needed both before and after the edge of a block.

    Returns
    -------
    ndarray, shape (blocks + 1,), int64
        At the edge before each block, in C order of the grid, and after the last.
    """
    change = np.zeros(math.prod(map(len, chunks)) + 2, np.int64)
    for source in sources:
        blocks, pieces = cells(chunks, source.pieces)
        sizes = source.piece_bytes()
        first, last = np.full(sizes.size, change.size), np.full(sizes.size, -1)
        np.minimum.at(first, pieces, blocks)
        np.maximum.at(last, pieces, blocks)
        needed = last >= 0
        np.add.at(change, first[needed] + 1, sizes[needed])
        np.add.at(change, last[needed] + 1, -sizes[needed])
    return np.cumsum(change[:-1])


def largest_pieces(sources: Sequence[Source]) -> int:
    """Bytes decoded at a time where the largest pieces of all sources meet."""
    return sum(int(source.piece_bytes().max()) for source in sources)


def cells(chunks: Chunks, pieces: Chunks) -> tuple[IntArray, IntArray]:
    """Numbers of the block and of the piece of every cell that the cuts of both make."""
    block = piece = np.zeros(1, np.int64)
    for rows, lengths in zip(chunks, pieces, strict=True):
        of_block, of_piece = _cells_along(rows, lengths)
        block = (block[:, None] * len(rows) + of_block).ravel()
        piece = (piece[:, None] * len(lengths) + of_piece).ravel()
    return block, piece


def _cells_along(rows: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    blocks, pieces = (list(itertools.accumulate(cuts, initial=0)) for cuts in (rows, lengths))
    if pieces[-1] != blocks[-1]:  # a coordinate of length 1, which all blocks need
        return np.arange(len(rows)), np.zeros(len(rows), np.int64)
    starts = np.union1d(blocks, pieces)[:-1]
    return tuple(np.searchsorted(edges, starts, "right") - 1 for edges in (blocks, pieces))  # type: ignore[return-value]


def _with_dimensions(source: Source, n: int) -> Source:
    """A source with leading dimensions of length 1, as broadcasting adds them."""
    missing = n - len(source.pieces)
    stored = None if source.stored is None else (1,) * missing + source.stored
    return replace(source, pieces=((1,),) * missing + source.pieces, stored=stored)


def _is_in_memory(array: Array) -> bool:
    """Whether the chunks of a Dask array are NumPy arrays that its graph holds."""
    layer = array.__dask_graph__().layers.get(array.name, {})
    if not isinstance(layer, MaterializedLayer) or not layer:
        return False
    value = next(iter(layer.values()))
    return isinstance(getattr(value, "value", value), np.ndarray)


def _slices(dep: object) -> bool:
    return isinstance(dep, ArraySliceDep)


def _literal(value: Any, layers: Mapping[Any, Any]) -> Any:
    """What an argument of a layer stands for, where that is a value and not a computation."""
    if isinstance(value, TaskRef) and value.key in layers:
        value = layers[value.key].get(value.key)
    return getattr(value, "value", value)
