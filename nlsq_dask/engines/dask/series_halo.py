"""Blocks of series with the series around them, for answers that depend on neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.engines.dask.pieces import MAX_TASKS_TO_REPEAT
from nlsq_dask.engines.dask.series import map_chunks
from nlsq_dask.engines.neighbours import ROUNDS
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask


def wide_chunks(problem: SeriesProblem, arrays: Sequence[Array]) -> Chunks:
    """Chunks of the map, with short ones joined: each is as long as what surrounds a block."""
    return tuple(map(_joined, map_chunks(problem, arrays)))


def _joined(lengths: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for n in lengths:
        if found and found[-1] < ROUNDS:
            found[-1] += n
        else:
            found.append(n)
    if len(found) > 1 and found[-1] < ROUNDS:
        found[-2:] = [found[-2] + found[-1]]
    return tuple(found)


def surrounded(grid: Chunks) -> Chunks:
    """Lengths of the blocks of a grid, with the series around them."""
    return tuple(
        tuple(n + ROUNDS * ((i > 0) + (i < len(own) - 1)) for i, n in enumerate(own))
        for own in grid
    )


def times_made(problem: SeriesProblem, grid: Chunks, pieces: Chunks) -> NDArray[np.int64]:
    """How often each piece of an array is made, in the order of C.

    Two tasks that need a piece both make it. A piece that more tasks need is made once for all.

    Parameters
    ----------
    problem : SeriesProblem
    grid : tuple of tuple of int
        Blocks of the map, a task each.
    pieces : tuple of tuple of int
        Lengths of the pieces along the axes of y.
    """
    regions = dict(zip(problem.map_axes, zip(grid, surrounded(grid), strict=True), strict=True))
    users = np.ones(1, np.int64)
    for d, lengths in enumerate(pieces):
        own = np.ones(len(lengths), np.int64)
        if d in regions:
            blocks, whole = map(np.array, regions[d])
            before = np.where(np.arange(len(blocks)) > 0, ROUNDS, 0)
            starts = np.cumsum(blocks) - blocks - before
            # A task that needs a part of a block needs all pieces that the block is joined of.
            ends, stops = np.cumsum(blocks), np.cumsum(lengths)
            last = ends[np.searchsorted(ends, stops).clip(max=len(ends) - 1)]
            begun = np.searchsorted(ends, stops - lengths, side="right").clip(max=len(ends) - 1)
            first = (ends - blocks)[begun]
            own = ((starts < last[:, None]) & (starts + whole > first[:, None])).sum(axis=1)
            if sum(lengths) != blocks.sum():  # the same for all blocks
                own = np.full(len(lengths), len(blocks))
        users = np.multiply.outer(users, own).ravel()
    return np.where(users > MAX_TASKS_TO_REPEAT, 1, users)


def with_halo(problem: SeriesProblem, arrays: Sequence[Array], grid: Chunks) -> list[Array]:
    """Arrays whose blocks contain the series around them, in blocks of the grid."""
    shape = arrays[0].shape
    own = dict(zip(problem.map_axes, grid, strict=True))
    found: list[Array] = []
    for array in arrays:
        varying = {d: c for d, c in own.items() if array.shape[d] == shape[d] and shape[d] > 1}
        if not varying:
            found.append(array)
            continue
        if is_dask(array):
            lazy = array.rechunk(varying)
        else:
            chunks = tuple(varying.get(d, n) for d, n in enumerate(array.shape))
            lazy = da.from_array(np.ma.asanyarray(array), chunks=chunks, name=False)
        # A single block, which may be shorter than what surrounds blocks, has nothing around it.
        depth = {d: ROUNDS if len(varying.get(d, ())) > 1 else 0 for d in range(array.ndim)}
        found.append(da.overlap.overlap(lazy, depth, "none", allow_rechunk=False))
    return found


def without_halo(answer: Any) -> Any:
    """A packed answer (k, ...) without the series around its blocks."""
    depth = {d: ROUNDS if d and n > 1 else 0 for d, n in enumerate(answer.numblocks)}
    return da.overlap.trim_internal(answer, depth, "none")
