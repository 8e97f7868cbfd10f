"""What a pass over Dask arrays reads: from which sources, in which pieces, how often. Pure.

A *source* is a Zarr array from which operands are read, or an operand itself where it is made in
another way. Its *pieces* are the chunks in which Dask reads it. A task makes each piece that it
needs once, so that a piece across whose middle two tasks meet is read twice; one that more tasks
need is made once, before the first pass. Reading a piece decodes every Zarr chunk that it touches,
whole: bytes here are those of whole decoded Zarr chunks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask._task_spec import TaskRef
from dask.layers import ArraySliceDep
from numpy.typing import NDArray

from nlsq_dask.engines.groups import MAX_GROUPS_TO_REPEAT, StreamPlan
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask, is_zarr

IntArray = NDArray[np.int64]


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
    """

    name: str
    pieces: Chunks
    itemsize: int
    stored: tuple[int, ...] | None = None

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


@dataclass(frozen=True, slots=True)
class Reading:
    """What tasks read together, in bytes.

    Attributes
    ----------
    each_time : int
        Every time the tasks run.
    once : int
        Once before: what more than two of the tasks need.
    later : int
        Every time but the first, where some tasks keep their rows.
    """

    each_time: int
    once: int
    later: int


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
        return stored
    return [Source(array.name, array.chunks, int(array.dtype.itemsize))]


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


def read_by(sources: Sequence[Source], stream: StreamPlan, blocks: Sequence[int]) -> Reading:
    """What tasks of one block each read, as a sample is taken; see :func:`read_in_pass`."""
    tasks = np.full(math.prod(map(len, stream.chunks)), -1, np.int64)
    tasks[list(blocks)] = np.arange(len(blocks))
    return _read(sources, stream.chunks, tasks, np.zeros(len(blocks), bool))


def read_in_pass(
    sources: Sequence[Source], stream: StreamPlan, kept: Sequence[bool] | None = None
) -> Reading:
    """What the tasks of one pass read.

    Parameters
    ----------
    sources : sequence of Source
    stream : StreamPlan
        Blocks and the tasks they belong to.
    kept : sequence of bool, optional
        Whether each task keeps its rows; none does by default.
    """
    sizes = [len(group.steps) for group in stream.groups]
    keeps = np.zeros(len(sizes), bool) if kept is None else np.array(kept, bool)
    return _read(sources, stream.chunks, np.repeat(np.arange(len(sizes)), sizes), keeps)


def largest_piece(sources: Sequence[Source]) -> int:
    """Bytes decoded at a time where the largest pieces of all sources meet."""
    return sum(int(source.piece_bytes().max()) for source in sources)


def _read(
    sources: Sequence[Source], chunks: Chunks, tasks: IntArray, keeps: NDArray[np.bool_]
) -> Reading:
    """Count the tasks that need each piece; tasks (blocks,) is -1 where there is none."""
    each_time = once = later = 0
    for source in sources:
        blocks, pieces = _cells(chunks, source.pieces)
        n_pieces = math.prod(map(len, source.pieces))
        owners = tasks[blocks]
        pairs = np.unique(owners[owners >= 0] * n_pieces + pieces[owners >= 0])
        users = np.bincount(pairs % n_pieces, minlength=n_pieces)
        again = np.bincount(pairs[~keeps[pairs // n_pieces]] % n_pieces, minlength=n_pieces)
        shared = users > MAX_GROUPS_TO_REPEAT
        size = source.piece_bytes()
        each_time += int((users * size)[~shared].sum())
        later += int((again * size)[~shared].sum())
        once += int(size[shared].sum())
    return Reading(each_time, once, later)


def _cells(chunks: Chunks, pieces: Chunks) -> tuple[IntArray, IntArray]:
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


def _slices(dep: object) -> bool:
    return isinstance(dep, ArraySliceDep)


def _literal(value: Any, layers: Mapping[Any, Any]) -> Any:
    """What an argument of a layer stands for, where that is a value and not a computation."""
    if isinstance(value, TaskRef) and value.key in layers:
        value = layers[value.key].get(value.key)
    return getattr(value, "value", value)
