"""Bytes that a pass over Dask arrays reads: which pieces, and how often. Pure functions.

A task computes each piece that it needs once. If two tasks need a piece, both read it. If more
tasks need a piece, it is computed once, before the first pass. Reading a piece decodes every Zarr
chunk that the piece touches, so all bytes here are those of whole decoded Zarr chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_dask.engines.dask.grouping import group_sample
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.pieces import (
    MAX_TASKS_TO_REPEAT,
    IntArray,
    PiecedArray,
    users_of,
    with_repeats,
)
from nlsq_dask.io.chunks import Chunks


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes that tasks read together.

    Attributes
    ----------
    each_time : int
        Bytes read each time the tasks run.
    once : int
        Bytes read once before: pieces that more than two of the tasks need.
    later : int
        Bytes read each time but the first, if some tasks keep their rows.
    """

    each_time: int
    once: int
    later: int


def read_by(arrays: Sequence[PiecedArray], stream: Stream, blocks: Sequence[int]) -> Reading:
    """Bytes that a sample of some blocks reads; see :func:`read_in_pass`."""
    grouping = group_sample(blocks, stream.chunks, arrays)
    return _read(arrays, stream.chunks, grouping.tasks, np.zeros(len(grouping.groups), bool))


def read_in_pass(
    arrays: Sequence[PiecedArray], stream: Stream, kept: Sequence[bool] | None = None
) -> Reading:
    """Bytes that the tasks of one pass read.

    Parameters
    ----------
    arrays : sequence of PiecedArray
    stream : Stream
        Blocks, and their tasks.
    kept : sequence of bool, optional
        For each task, whether it keeps its rows. By default none does.
    """
    sizes = [len(group.steps) for group in stream.groups]
    keeps = np.zeros(len(sizes), bool) if kept is None else np.array(kept, bool)
    return _read(arrays, stream.chunks, np.repeat(np.arange(len(sizes)), sizes), keeps)


def _read(
    arrays: Sequence[PiecedArray], chunks: Chunks, tasks: IntArray, keeps: NDArray[np.bool_]
) -> Reading:
    """Count the tasks that need each piece. In tasks, shape (blocks,), -1 means no task."""
    each_time = once = later = 0
    for array in with_repeats(arrays, chunks, tasks):
        owners, pieces = users_of(array, chunks, tasks).T
        size = array.piece_bytes()
        users = np.bincount(pieces, minlength=size.size)
        again = np.bincount(pieces[~keeps[owners]], minlength=size.size)
        shared = (users > MAX_TASKS_TO_REPEAT) & (not array.repeated)
        each_time += int((users * size)[~shared].sum())
        later += int((again * size)[~shared].sum())
        once += int(size[shared].sum())
    return Reading(each_time, once, later)
