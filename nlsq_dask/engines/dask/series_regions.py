"""Fits of many series in tasks that read: a task for each region of the map.

A task has the part of the Dask graph that makes its blocks (:mod:`nlsq_dask.engines.dask.groups`),
one block for each chunk along the fitted axes. It reads them one after the other, tries again where
a store fails, and names what failed, as the tasks of :func:`nlsq_dask.fit` do. The blocks of a
region are joined to whole series; or they are frames, which are read several times and never
joined (:mod:`nlsq_dask.engines.frames`).
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.dask.group_parts import group_without
from nlsq_dask.engines.dask.groups import (
    cut_pieces,
    match_chunks,
    names_of,
    operand_of,
    optimized_graph,
    shared_graph,
    without_collections,
)
from nlsq_dask.engines.dask.prefetch import depth_of, read_ahead
from nlsq_dask.engines.dask.reading import Reading, Retries, shared_nodes
from nlsq_dask.engines.dask.shared_keys import shared_keys
from nlsq_dask.engines.dask.signals import signals_of
from nlsq_dask.engines.dask.steps import Group, make_group
from nlsq_dask.engines.fit_block import fit_block
from nlsq_dask.engines.frame_rows import IntArray
from nlsq_dask.engines.frames import fit_frames
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.chunks import Box, Chunks, block_boxes, largest_block
from nlsq_dask.io.observations import Array
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_process, reusing
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Block, Layout

# Name of the tasks, in dashboards.
TASK_NAME = "fit-each"


@dataclass(frozen=True, slots=True)
class ArraysLayout(Layout):
    """Arrays of a block as they are, in the order of the roles."""

    def block(self, arrays: Sequence[Any]) -> Block:
        """A block whose y is the first array, and whose coordinates are all others."""
        return Block(arrays[0], tuple(arrays[1:]))


@dataclass(frozen=True, kw_only=True)
class RegionWork:
    """What the tasks of all regions have in common.

    Attributes
    ----------
    problem : SeriesProblem
    shape : tuple of int
        Shape of y.
    layout : ArraysLayout
    retries : Retries
    fit : str
        Identifier of the fit, for the signals between its tasks and the fit.
    read_ahead : int
        Number of blocks that are read ahead.
    gathered_bytes : float or None
        Bytes for the rows of series that are gathered, where blocks are frames; None where they are
        joined.
    memory : ReusedMemory
        What the tasks of a process read into.
    """

    problem: SeriesProblem
    shape: tuple[int, ...]
    layout: ArraysLayout
    retries: Retries
    fit: str = ""
    read_ahead: int = 0
    gathered_bytes: float | None = None
    memory: ReusedMemory = field(default_factory=memory_of_process)


@without_collections()
def region_answer(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    names: Sequence[str],
    regions: Chunks,
    *,
    retries: Retries,
    fit: str = "",
    gathered_bytes: float | None = None,
) -> Any:
    """The packed answer (k, ...) of all series, as a Dask array with a task for each region.

    Parameters
    ----------
    problem : SeriesProblem
    arrays : sequence of array
        As ``problem.roles`` says, each with the axes of y.
    names : sequence of str
        Names of the arrays in messages.
    regions : tuple of tuple of int
        Lengths of the regions along the axes of the map.
    retries : Retries
    fit : str
        Identifier of the fit; empty for tasks that nobody waits for yet.
    gathered_bytes : float, optional
        Where blocks are frames, see :class:`RegionWork`.
    """
    chunks = _blocks_of(problem, arrays, regions)
    matched = [match_chunks(a, chunks) for a in arrays]
    shape = arrays[0].shape
    varies = tuple(tuple(n == m for n, m in zip(a.shape, shape, strict=True)) for a in arrays)
    layout = ArraysLayout(False, names=tuple(names), varies=varies)
    announced = cut_pieces(arrays, names, chunks)
    graph = optimized_graph([a for a in matched if is_dask(a)], list(announced))
    blocks: dict[tuple[int, ...], list[Any]] = {}
    for index, box in block_boxes(chunks):
        operands = tuple(operand_of(a, index, box) for a in matched)
        region = tuple(index[d] for d in problem.map_axes)
        blocks.setdefault(region, []).append((index, box, layout.shapes_in(box), operands))
    # Chunks of the arrays that are as large as y are made by each task for itself.
    full = {a.name for a in (*arrays, *matched) if is_dask(a) and a.shape == shape}
    used = [[operands for *_, operands in own] for own in blocks.values()]
    shared = shared_keys(graph, used, full)
    groups = {r: make_group(graph, own, shared, announced) for r, own in blocks.items()}
    work = RegionWork(
        problem=problem,
        shape=shape,
        layout=layout,
        retries=retries,
        fit=fit,
        read_ahead=depth_of(groups.values(), _block_bytes(arrays, chunks)),
        gathered_bytes=gathered_bytes,
    )
    common = shared_nodes(
        shared_graph(graph, shared, announced), names_of(arrays, matched, names), retries, fit
    )
    return _lazy(groups, common, work, regions)


def _lazy(
    groups: Mapping[tuple[int, ...], Group],
    shared: Mapping[Key, GraphNode],
    work: RegionWork,
    regions: Chunks,
) -> Any:
    name = f"{TASK_NAME}-{uuid.uuid4().hex}"
    # One value for all tasks of a process, which so keep their memory from one to the next.
    common = f"{name}-work"
    tasks: dict[Key, GraphNode] = {**shared, common: DataNode(common, work)}
    for region, group in groups.items():
        key: Key = (name, 0, *region)
        external = List(*(TaskRef(k) for k in group.external))
        tasks[key] = Task(key, fit_region, DataNode(None, group), external, TaskRef(common))
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=())
    chunks = ((work.problem.n_planes,), *regions)
    return da.Array(graph, name, chunks, np.float64, meta=np.empty((0,) * len(chunks)))


def fit_region(group: Group, external: Sequence[Any], work: RegionWork) -> FloatArray:
    """The task: the packed answer (k, ...) of a region."""
    frames = GroupFrames(group, dict(zip(group.external, external, strict=True)), work)
    with reusing(work.memory):
        if work.gathered_bytes is None:
            return fit_block(work.problem, frames.joined())
        return fit_frames(work.problem, frames, frames.map_shape, work.gathered_bytes)


@dataclass
class GroupFrames:
    """The blocks of a group as the frames of a region; :class:`~nlsq_dask.engines.frames.Frames`.

    Parameters
    ----------
    group : Group
    external : mapping
        Values of the group's external keys.
    work : RegionWork
    """

    group: Group
    external: Mapping[Key, Any]
    work: RegionWork

    @cached_property
    def rows(self) -> list[IntArray]:
        """Numbers of the rows of each frame."""
        axes = self.work.problem.fit_axes
        lengths = tuple(self.work.shape[d] for d in axes)
        found = []
        for step in self.group.steps:
            along = np.ix_(*(np.arange(step.box[d].start, step.box[d].stop) for d in axes))
            found.append(np.asarray(np.ravel_multi_index(along, lengths)).ravel())
        return found

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Lengths of the region along the axes of the map."""
        box = self.group.steps[0].box
        return tuple(box[d].stop - box[d].start for d in self.work.problem.map_axes)

    def read(self, frames: Sequence[int]) -> Iterator[Sequence[NDArray[Any]]]:
        """The arrays of some frames, in ascending order, each with the axes of y."""
        work = self.work
        chosen = {self.group.steps[i].index for i in frames}
        others = {step.index for step in self.group.steps} - chosen
        signals = signals_of(work.fit)
        reading = Reading(work.retries, signals, failed=_errors.series_not_read)
        group = group_without(self.group, others)
        for block in read_ahead(group, self.external, work.layout, work.read_ahead, reading):
            yield block.arrays

    def joined(self) -> list[NDArray[Any]]:
        """The arrays of the region with whole series."""
        steps = self.group.steps
        parts = list(self.read(range(len(steps))))
        if len(parts) == 1:
            return list(parts[0])
        boxes = [step.box for step in steps]
        return [
            _assembled([part[i] for part in parts], boxes, varies, self.work)
            for i, varies in enumerate(self.work.layout.varies)
        ]


def _assembled(
    blocks: Sequence[NDArray[Any]], boxes: Sequence[Box], varies: Sequence[bool], work: RegionWork
) -> NDArray[Any]:
    """One array of blocks that lie next to each other along the fitted axes."""
    along = [d for d in work.problem.fit_axes if varies[d]]
    if not along:
        return blocks[0]
    shape = [work.shape[d] if d in along else n for d, n in enumerate(blocks[0].shape)]
    empty: Any = np.ma.empty if any(map(np.ma.isMA, blocks)) else np.empty
    found: NDArray[Any] = empty(shape, np.result_type(*(b.dtype for b in blocks)))
    for block, box in zip(blocks, boxes, strict=True):
        found[tuple(box[d] if d in along else slice(None) for d in range(len(shape)))] = block
    return found


def fit_chunks(problem: SeriesProblem, arrays: Sequence[Array]) -> dict[int, tuple[int, ...]]:
    """Lengths of the blocks along each fitted axis: between the edges of the chunks of all arrays.

    An axis along which no lazy array varies is not cut.
    """
    shape = arrays[0].shape
    found = {}
    for d in problem.fit_axes:
        lazy = [a.chunks[d] for a in arrays if is_dask(a) and a.shape[d] == shape[d]]
        edges = sorted({0, shape[d]}.union(*(itertools.accumulate(own) for own in lazy)))
        found[d] = tuple(b - a for a, b in itertools.pairwise(edges))
    return found


def _blocks_of(problem: SeriesProblem, arrays: Sequence[Array], regions: Chunks) -> Chunks:
    """The chunk grid of all blocks."""
    along = fit_chunks(problem, arrays) | dict(zip(problem.map_axes, regions, strict=True))
    return tuple(along[d] for d in range(len(along)))


def _block_bytes(arrays: Sequence[Array], chunks: Chunks) -> int:
    """Decoded bytes of the largest block of the arrays that are as large as y."""
    full = [a for a in arrays if a.shape == arrays[0].shape]
    return largest_block(chunks) * sum(int(a.dtype.itemsize) for a in full)
