"""Which neighbouring blocks make a task. Pure.

A piece that two tasks need is read by both. One that many need would have to be kept through a fit,
and a large array of such pieces would be in memory whole. Where tasks can end with the pieces they
do, and each piece is made and dropped by one.
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
    Source,
    count_users,
    held_bytes,
    open_bytes,
    users_of,
    with_repeats,
)
from nlsq_dask.io.chunks import Chunks, cut_groups

# Part of an array at most that is read twice, since two tasks need it, without a second thought.
MOST_AGAIN = 0.1

# Groups that must be left, so that small clusters have work for every thread. Pieces of which there
# are fewer are kept: they take no more than a few threads need for theirs.
MIN_ALIGNED = 8


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which blocks tasks read.

    Attributes
    ----------
    blocks : list of int
        Numbers of the blocks that are read, in C order of the grid.
    groups : list of range
        Those of each task, as positions in `blocks`.
    tasks : ndarray, shape (blocks of the grid,), int64
        Number of the task of each block of the grid; -1 where there is none.
    """

    blocks: list[int]
    groups: list[range]
    tasks: IntArray


def group_blocks(block_bytes: Sequence[int], chunks: Chunks, sources: Sequence[Source]) -> Grouping:
    """Cut all blocks into the groups that tasks are.

    Parameters
    ----------
    block_bytes : sequence of int
        Decoded bytes of each block, in C order of the grid.
    chunks : tuple of tuple of int
        The grid.
    sources : sequence of Source
        What the blocks are made of.

    Returns
    -------
    Grouping
        Of the groups that :func:`~nlsq_dask.io.chunks.cut_groups` makes; they end with the pieces
        of arrays that these would cut badly, if that leaves enough groups.
    """
    every = list(range(len(block_bytes)))
    grouping = _grouping(every, cut_groups(block_bytes), len(every))
    awkward = _cut_badly(sources, chunks, grouping.tasks)
    if awkward:
        aligned = cut_groups(block_bytes, open_bytes(awkward, chunks) == 0)
        if len(aligned) >= MIN_ALIGNED:
            return _grouping(every, aligned, len(every))
    return grouping


def group_sample(blocks: Sequence[int], chunks: Chunks, sources: Sequence[Source]) -> Grouping:
    """Make groups of a sample: of one block each, or of those that share a piece.

    Parameters
    ----------
    blocks : sequence of int
        Numbers of the blocks, in order.
    chunks, sources
        As for :func:`group_blocks`.
    """
    chosen, n_blocks = list(blocks), math.prod(map(len, chunks))
    single = _grouping(chosen, [range(i, i + 1) for i in range(len(chosen))], n_blocks)
    awkward = _cut_badly(sources, chunks, single.tasks)
    if not awkward:
        return single
    # A group ends where all pieces have ended since its last block.
    ends = np.cumsum(open_bytes(awkward, chunks) == 0)[chosen]
    starts = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(chosen)]
    groups = [range(first, last) for first, last in itertools.pairwise(starts)]
    return _grouping(chosen, groups, n_blocks)


def most_open(sources: Sequence[Source], chunks: Chunks, grouping: Grouping) -> int:
    """Decoded bytes of the pieces that a group holds from one block to the next one, at most.

    Those that are kept through the fit are not counted; of those that are repeated, all that a
    group needs.
    """
    tasks = grouping.tasks
    most = 0
    for source in sources:
        if source.repeated:
            owners, pieces = users_of(source, chunks, tasks).T
            most += int(np.bincount(owners, source.piece_bytes()[pieces]).max(initial=0))
    passing = [s for s in sources if not (s.in_memory or s.repeated)]
    own = [s for s in passing if not held_bytes([s], chunks, tasks)]
    inside = np.flatnonzero((np.diff(tasks) == 0) & (tasks[1:] >= 0)) + 1
    return most + int(open_bytes(own, chunks)[inside].max(initial=0))


def _grouping(blocks: list[int], groups: list[range], n_blocks: int) -> Grouping:
    tasks = np.full(n_blocks, -1, np.int64)
    tasks[blocks] = np.repeat(np.arange(len(groups)), list(map(len, groups)))
    return Grouping(blocks, groups, tasks)


def _cut_badly(sources: Sequence[Source], chunks: Chunks, tasks: IntArray) -> list[Source]:
    """Sources with so many pieces across the ends of tasks that these should end elsewhere."""
    found = []
    for source in with_repeats(sources, chunks, tasks):
        sizes, users = source.piece_bytes(), count_users(source, chunks, tasks)
        kept = sizes[users > MAX_TASKS_TO_REPEAT].sum()
        again = (sizes * (users - 1))[(users > 1) & (users <= MAX_TASKS_TO_REPEAT)].sum()
        if kept > SMALL_ARRAY_BYTES or again > MOST_AGAIN * sizes.sum():
            found.append(source)
    return [source for source in found if not (source.in_memory or source.repeated)]
