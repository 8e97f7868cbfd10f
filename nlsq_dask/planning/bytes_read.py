"""What a pass over Dask arrays reads: from which sources, in which pieces, how often. Pure.

A task makes each piece that it needs once, so that a piece across whose middle two tasks meet is
read twice; one that more tasks need is made once, before the first pass. Reading a piece decodes
every Zarr chunk that it touches, whole: bytes here are those of whole decoded Zarr chunks.
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


def read_by(sources: Sequence[PiecedArray], stream: Stream, blocks: Sequence[int]) -> Reading:
    """What the tasks read that take a sample of some blocks; see :func:`read_in_pass`."""
    grouping = group_sample(blocks, stream.chunks, sources)
    return _read(sources, stream.chunks, grouping.tasks, np.zeros(len(grouping.groups), bool))


def read_in_pass(
    sources: Sequence[PiecedArray], stream: Stream, kept: Sequence[bool] | None = None
) -> Reading:
    """What the tasks of one pass read.

    Parameters
    ----------
    sources : sequence of PiecedArray
    stream : Stream
        Blocks and the tasks they belong to.
    kept : sequence of bool, optional
        Whether each task keeps its rows; none does by default.
    """
    sizes = [len(group.steps) for group in stream.groups]
    keeps = np.zeros(len(sizes), bool) if kept is None else np.array(kept, bool)
    return _read(sources, stream.chunks, np.repeat(np.arange(len(sizes)), sizes), keeps)


def _read(
    sources: Sequence[PiecedArray], chunks: Chunks, tasks: IntArray, keeps: NDArray[np.bool_]
) -> Reading:
    """Count the tasks that need each piece; tasks (blocks,) is -1 where there is none."""
    each_time = once = later = 0
    for source in with_repeats(sources, chunks, tasks):
        owners, pieces = users_of(source, chunks, tasks).T
        size = source.piece_bytes()
        users = np.bincount(pieces, minlength=size.size)
        again = np.bincount(pieces[~keeps[owners]], minlength=size.size)
        shared = (users > MAX_TASKS_TO_REPEAT) & (not source.repeated)
        each_time += int((users * size)[~shared].sum())
        later += int((again * size)[~shared].sum())
        once += int(size[shared].sum())
    return Reading(each_time, once, later)
