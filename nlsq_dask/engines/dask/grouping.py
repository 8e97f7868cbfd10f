"""Which neighbouring blocks make a group, the work of one task. Pure.

If two tasks need a piece, both read it. If many do, it is computed once and stays in memory through
the fit. A large array of such pieces would be in memory whole, so tasks then end where pieces end,
if they can: each piece is made and dropped by one task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlsq_dask.engines.dask.pieces import (
    MAX_TASKS_TO_REPEAT,
    SMALL_ARRAY_BYTES,
    IntArray,
    PiecedArray,
    count_users,
    open_bytes,
    shared_bytes,
    users_of,
    with_repeats,
)
from nlsq_dask.io.chunks import Chunks, cut_groups

# Fraction of an array that two tasks may both read, before tasks are made to end elsewhere.
MOST_AGAIN = 0.1

# Fewest groups that may end where pieces end, so that small clusters have work for every thread.
# With fewer, pieces are shared: they take no more memory than a few threads need for their own.
MIN_ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Grouping:
    """The blocks of each task.

    Attributes
    ----------
    blocks : list of int
        Numbers of the blocks that are read, in C order of the grid.
    groups : list of range
        Blocks of each task, as positions in `blocks`.
    tasks : ndarray, shape (blocks of the grid,), int64
        Number of the task of each block of the grid; -1 for a block that is not read.
    """

    blocks: list[int]
    groups: list[range]
    tasks: IntArray


def group_blocks(
    block_bytes: Sequence[int], chunks: Chunks, arrays: Sequence[PiecedArray]
) -> Grouping:
    """Cut all blocks into groups, one for each task.

    Parameters
    ----------
    block_bytes : sequence of int
        Decoded bytes of each block, in C order of the grid.
    chunks : tuple of tuple of int
        The grid.
    arrays : sequence of PiecedArray
        The arrays that blocks are read from.

    Returns
    -------
    Grouping
        The groups of :func:`~nlsq_dask.io.chunks.cut_groups`. If these cut the pieces of some
        arrays badly, groups end where the pieces of these arrays end, provided that at least
        MIN_ALIGNED groups are left.
    """
    every = list(range(len(block_bytes)))
    grouping = _grouping(every, cut_groups(block_bytes), len(every))
    awkward = _cut_badly(arrays, chunks, grouping.tasks)
    if awkward:
        aligned = cut_groups(block_bytes, open_bytes(awkward, chunks) == 0)
        if len(aligned) >= MIN_ALIGNED:
            return _grouping(every, aligned, len(every))
    return grouping


def group_sample(blocks: Sequence[int], chunks: Chunks, arrays: Sequence[PiecedArray]) -> Grouping:
    """Group the blocks of a sample: each block by itself, or with those that need the same piece.

    Parameters
    ----------
    blocks : sequence of int
        Numbers of the blocks, in order.
    chunks, arrays
        As for :func:`group_blocks`.
    """
    chosen, n_blocks = list(blocks), math.prod(map(len, chunks))
    single = _grouping(chosen, [range(i, i + 1) for i in range(len(chosen))], n_blocks)
    awkward = _cut_badly(arrays, chunks, single.tasks)
    if not awkward:
        return single
    # A group ends where every piece of its last block ends before the next block of the sample.
    ends = np.cumsum(open_bytes(awkward, chunks) == 0)[chosen]
    starts = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(chosen)]
    groups = [range(first, last) for first, last in itertools.pairwise(starts)]
    return _grouping(chosen, groups, n_blocks)


def group_appended(block_bytes: Sequence[int], first: Sequence[int], each: bool) -> Grouping:
    """Group blocks behind groups that are cut as before.

    Parameters
    ----------
    block_bytes : sequence of int
        Decoded bytes of each block, in C order of the grid.
    first : sequence of int
        Number of blocks of each of the first groups.
    each : bool
        Whether each of the other blocks is a group.
    """
    ends = [0, *itertools.accumulate(first)]
    groups = [range(start, stop) for start, stop in itertools.pairwise(ends)]
    rest = block_bytes[ends[-1] :]
    cut = [range(i, i + 1) for i in range(len(rest))] if each else cut_groups(rest)
    groups += [range(ends[-1] + own.start, ends[-1] + own.stop) for own in cut]
    every = list(range(len(block_bytes)))
    return _grouping(every, groups, len(every))


def most_open(arrays: Sequence[PiecedArray], chunks: Chunks, grouping: Grouping) -> int:
    """Most decoded bytes of pieces that a task holds from one block to the next.

    Pieces that are shared through the fit are not counted. If the pieces of an array are repeated,
    all its pieces of a task are counted.
    """
    tasks = grouping.tasks
    most = 0
    for array in arrays:
        if array.repeated:
            owners, pieces = users_of(array, chunks, tasks).T
            most += int(np.bincount(owners, array.piece_bytes()[pieces]).max(initial=0))
    passing = [a for a in arrays if not (a.in_memory or a.repeated)]
    own = [a for a in passing if not shared_bytes([a], chunks, tasks)]
    inside = np.flatnonzero((np.diff(tasks) == 0) & (tasks[1:] >= 0)) + 1
    return most + int(open_bytes(own, chunks)[inside].max(initial=0))


def _grouping(blocks: list[int], groups: list[range], n_blocks: int) -> Grouping:
    tasks = np.full(n_blocks, -1, np.int64)
    tasks[blocks] = np.repeat(np.arange(len(groups)), list(map(len, groups)))
    return Grouping(blocks, groups, tasks)


def _cut_badly(arrays: Sequence[PiecedArray], chunks: Chunks, tasks: IntArray) -> list[PiecedArray]:
    """Arrays with so many pieces across the edges of tasks that tasks should end elsewhere."""
    found = []
    for array in with_repeats(arrays, chunks, tasks):
        sizes, users = array.piece_bytes(), count_users(array, chunks, tasks)
        shared = sizes[users > MAX_TASKS_TO_REPEAT].sum()
        again = (sizes * (users - 1))[(users > 1) & (users <= MAX_TASKS_TO_REPEAT)].sum()
        if shared > SMALL_ARRAY_BYTES or again > MOST_AGAIN * sizes.sum():
            found.append(array)
    return [array for array in found if not (array.in_memory or array.repeated)]
