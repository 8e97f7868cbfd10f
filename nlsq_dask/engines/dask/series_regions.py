"""Fits of many series in tasks that read: a task for each region of the map.

A task has the part of the Dask graph that makes its blocks (:mod:`nlsq_dask.engines.dask.groups`),
one block for each chunk along the fitted axes. It reads them one after the other, tries again where
a store fails, and names what failed, as the tasks of :func:`nlsq_dask.fit` do. The blocks of a
region are joined to whole series; or they are frames, which are read several times and never
joined (:mod:`nlsq_dask.engines.frames`).
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Semaphore
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.layers import ArrayBlockwiseDep
from dask.typing import Key
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.series_memory import most_threads
from nlsq_dask.engines.dask.alike import alike_group
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
from nlsq_dask.engines.dask.idle_memory import reusing_on_worker
from nlsq_dask.engines.dask.prefetch import depth_of, read_ahead, room_aside
from nlsq_dask.engines.dask.reading import Reading, Retries, shared_nodes
from nlsq_dask.engines.dask.recipe import Given, Recipe, recipe_of
from nlsq_dask.engines.dask.scheduler import threads_here
from nlsq_dask.engines.dask.series import PLANES, map_chunks
from nlsq_dask.engines.dask.shared_keys import shared_keys
from nlsq_dask.engines.dask.signals import signals_of
from nlsq_dask.engines.dask.steps import Group, make_group
from nlsq_dask.engines.fit_block import fit_in_threads
from nlsq_dask.engines.frame_rows import IntArray
from nlsq_dask.engines.frames import fit_frames
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.chunks import Box, Chunks, block_boxes, is_joined, largest_block
from nlsq_dask.io.observations import Array
from nlsq_dask.io.reused_memory import ReusedMemory, memory_of_process
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
    n_regions : int
        Regions of the map. Where the threads of a process are more, they share the series of each.
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
    n_regions: int
    fit: str = ""
    read_ahead: int = 0
    gathered_bytes: float | None = None
    memory: ReusedMemory = field(default_factory=memory_of_process)


@dataclass(frozen=True, slots=True)
class Region:
    """What the task of one region reads.

    Attributes
    ----------
    name : str
        Of the answer in the graph; unlike all others.
    index : tuple of int
        Of the region in the map.
    group : Group
    """

    name: str
    index: tuple[int, ...]
    group: Group

    def __dask_tokenize__(self) -> tuple[str, tuple[int, ...]]:
        # Dask would go through all that the task reads: 10 ms for each task, before the first runs.
        return self.name, self.index


class RegionGroups(ArrayBlockwiseDep):
    """The regions of a map whose blocks one recipe makes. Each is made when it is asked for.

    Parameters
    ----------
    name : str
        Of the answer in the graph; unlike all others.
    recipe : Recipe
    given : tuple of sequence
        What is given to the recipe for each block of the grid.
    arrays : sequence of array
        As the roles of the problem say.
    chunks : tuple of tuple of int
        The grid of all blocks.
    map_axes : tuple of int
        Axes of the grid along which the regions lie.
    regions : tuple of tuple of int
        Lengths of the regions along these axes: a region has whole blocks.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        given: Given,
        arrays: Sequence[Array],
        chunks: Chunks,
        map_axes: tuple[int, ...],
        regions: Chunks,
    ) -> None:
        super().__init__(regions)
        self.name = name
        self._recipe = recipe
        self._given = given
        self._in_memory = [None if is_dask(a) else a for a in arrays]
        self._edges = tuple(tuple(itertools.accumulate(own, initial=0)) for own in chunks)
        self._map_axes = map_axes
        self._firsts = tuple(
            first_blocks(own, chunks[d]) for own, d in zip(regions, map_axes, strict=True)
        )

    def __dask_tokenize__(self) -> str:
        return self.name

    def __getitem__(self, idx: tuple[int, ...]) -> Region:
        edges, corner = list(self._edges), [0] * len(self._edges)
        for d, i, firsts in zip(self._map_axes, idx, self._firsts, strict=True):
            edges[d], corner[d] = edges[d][firsts[i] : firsts[i + 1] + 1], firsts[i]
        given = self._given_in(corner, [len(cuts) - 1 for cuts in edges])
        group = alike_group(self._recipe, self._in_memory, tuple(edges), tuple(corner), given)
        return Region(self.name, idx, group)

    def _given_in(self, corner: Sequence[int], n_blocks: Sequence[int]) -> Given:
        """What is given to the recipe for the blocks of a part of the grid."""
        if not self._given:
            return ()
        part = (range(first, first + n) for first, n in zip(corner, n_blocks, strict=True))
        grid = [len(cuts) - 1 for cuts in self._edges]
        numbers = np.ravel_multi_index(np.ix_(*part), grid).ravel().tolist()
        return tuple(tuple(own[i] for i in numbers) for own in self._given)


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
    shape = arrays[0].shape
    varies = tuple(tuple(n == m for n, m in zip(a.shape, shape, strict=True)) for a in arrays)
    layout = ArraysLayout(False, names=tuple(names), varies=varies)
    name = f"{TASK_NAME}-{uuid.uuid4().hex}"

    def work_of(groups: Iterable[Group]) -> RegionWork:
        return RegionWork(
            problem=problem,
            shape=shape,
            layout=layout,
            retries=retries,
            n_regions=max(math.prod(map(len, regions)), 1),
            fit=fit,
            read_ahead=depth_of(groups, _block_bytes(arrays, chunks)),
            gathered_bytes=gathered_bytes,
        )

    lazy = [a for a in arrays if is_dask(a)]
    found = recipe_of(lazy, chunks) if all(a.chunks == chunks for a in lazy) else None
    if found is not None:
        groups_of = RegionGroups(name, *found, arrays, chunks, problem.map_axes, regions)
        return _alike(groups_of, work_of)
    groups, shared, named = _groups_of_nodes(problem, arrays, chunks, layout, regions)
    nodes = shared_nodes(shared, named, retries, fit)
    return _of_nodes(name, groups, nodes, work_of(groups.values()), regions)


def _groups_of_nodes(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    chunks: Chunks,
    layout: ArraysLayout,
    regions: Chunks,
) -> tuple[dict[tuple[int, ...], Group], dict[Key, GraphNode], dict[str, str]]:
    """The groups of all regions, the graph that they share, and names of the arrays in it."""
    matched, names = [match_chunks(a, chunks) for a in arrays], layout.names
    announced = cut_pieces(arrays, names, chunks)
    graph = optimized_graph([a for a in matched if is_dask(a)], list(announced))
    blocks: dict[tuple[int, ...], list[Any]] = {}
    numbers = {
        d: np.repeat(np.arange(len(own)), np.diff(first_blocks(own, chunks[d]))).tolist()
        for own, d in zip(regions, problem.map_axes, strict=True)
    }
    for index, box in block_boxes(chunks):
        operands = tuple(operand_of(a, index, box) for a in matched)
        region = tuple(numbers[d][index[d]] for d in problem.map_axes)
        blocks.setdefault(region, []).append((index, box, layout.shapes_in(box), operands))
    # Chunks of the arrays that are as large as y are made by each task for itself.
    shape = arrays[0].shape
    full = {a.name for a in (*arrays, *matched) if is_dask(a) and a.shape == shape}
    used = [[operands for *_, operands in own] for own in blocks.values()]
    keys = shared_keys(graph, used, full)
    groups = {r: make_group(graph, own, keys, announced) for r, own in blocks.items()}
    shared = shared_graph(graph, keys, announced)
    return groups, shared, names_of(arrays, matched, names)


def _of_nodes(
    name: str,
    groups: Mapping[tuple[int, ...], Group],
    shared: Mapping[Key, GraphNode],
    work: RegionWork,
    regions: Chunks,
) -> Any:
    """The packed answer, from the groups of all regions and the graph that the groups share."""
    # One value for all tasks of a process, which so keep their memory from one to the next.
    common = f"{name}-work"
    tasks: dict[Key, GraphNode] = {**shared, common: DataNode(common, work)}
    for index, group in groups.items():
        key: Key = (name, 0, *index)
        external = List(*(TaskRef(k) for k in group.external))
        region = DataNode(None, Region(name, index, group))
        tasks[key] = Task(key, fit_region, region, TaskRef(common), external)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=())
    chunks = ((work.problem.n_planes,), *regions)
    return da.Array(graph, name, chunks, np.float64, meta=np.empty((0,) * len(chunks)))


def _alike(groups: RegionGroups, work_of: Callable[[Iterable[Group]], RegionWork]) -> Any:
    """The packed answer, as a layer that makes a task when Dask asks for the task.

    The graph of a map of any size so takes the memory of the tasks that run.
    """
    first = groups[(0,) * len(groups.chunks)]
    work = work_of([first.group])
    common = f"{groups.name}-work"
    shared = HighLevelGraph.from_collections(common, {common: DataNode(common, work)}, ())
    along = tuple(range(len(groups.chunks)))
    return da.blockwise(
        fit_region,
        (PLANES, *along),
        groups,
        along,
        Delayed(common, shared),
        None,
        name=groups.name,
        new_axes={PLANES: work.problem.n_planes},
        dtype=np.float64,
        meta=np.empty((0,) * (1 + len(along))),
        align_arrays=False,
    )


def fit_region(region: Region, work: RegionWork, external: Sequence[Any] = ()) -> FloatArray:
    """The task: the packed answer (k, ...) of a region."""
    group = region.group
    frames = GroupFrames(group, dict(zip(group.external, external, strict=True)), work)
    with reusing_on_worker(work.memory, keeps_freed=True):
        if work.gathered_bytes is None:
            arrays = frames.joined()
            return fit_in_threads(work.problem, arrays, _threads_of(work, arrays))
        return fit_frames(work.problem, frames, frames.map_shape, work.gathered_bytes)


def _threads_of(work: RegionWork, arrays: Sequence[NDArray[Any]]) -> int:
    """Threads for the series of a region: several where the map has fewer regions than threads."""
    y, varies = arrays[0], work.layout.varies
    n_rows = math.prod(y.shape[d] for d in work.problem.fit_axes)
    n_bytes = sum(a.nbytes for a, own in zip(arrays, varies, strict=True) if all(own))
    return max(min(threads_here() // work.n_regions, most_threads(n_bytes, n_rows)), 1)


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
        """Lengths of the region along the axes of the map, where blocks are frames."""
        box = self.group.steps[0].box
        return tuple(box[d].stop - box[d].start for d in self.work.problem.map_axes)

    def read(self, frames: Sequence[int]) -> Iterator[Sequence[NDArray[Any]]]:
        """The arrays of some frames, in ascending order, each with the axes of y."""
        return self._read(frames)

    def _read(
        self, frames: Sequence[int], room: Semaphore | None = None
    ) -> Iterator[Sequence[NDArray[Any]]]:
        """The arrays of some frames; `room` as for :func:`read_ahead`."""
        work = self.work
        chosen = {self.group.steps[i].index for i in frames}
        others = {step.index for step in self.group.steps} - chosen
        signals = signals_of(work.fit)
        reading = Reading(work.retries, signals, failed=_errors.series_not_read)
        group = group_without(self.group, others)
        depth = work.read_ahead
        for block in read_ahead(group, self.external, work.layout, depth, reading, room):
            yield block.arrays

    def joined(self) -> list[NDArray[Any]]:
        """The arrays of the region with whole series."""
        steps = self.group.steps
        room = room_aside(self.work.fit, self.work.read_ahead)
        parts = list(self._read(range(len(steps)), room))
        if len(parts) == 1:
            return list(parts[0])
        boxes = [step.box for step in steps]
        return [
            _assembled([part[i] for part in parts], boxes, varies) if any(varies) else parts[0][i]
            for i, varies in enumerate(self.work.layout.varies)
        ]


def _assembled(
    blocks: Sequence[NDArray[Any]], boxes: Sequence[Box], varies: Sequence[bool]
) -> NDArray[Any]:
    """One array of blocks that fill a box, each at its own box."""
    low = [min(own[d].start for own in boxes) if v else 0 for d, v in enumerate(varies)]
    high = [max(own[d].stop for own in boxes) if v else 1 for d, v in enumerate(varies)]
    shape = [b - a for a, b in zip(low, high, strict=True)]
    empty: Any = np.ma.empty if any(map(np.ma.isMA, blocks)) else np.empty
    found: NDArray[Any] = empty(shape, np.result_type(*(b.dtype for b in blocks)))
    for block, box in zip(blocks, boxes, strict=True):
        inside = (
            slice(own.start - first, own.stop - first) if v else slice(None)
            for own, first, v in zip(box, low, varies, strict=True)
        )
        found[tuple(inside)] = block
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
    """The chunk grid of all blocks: whole chunks of the map if the regions have whole chunks."""
    grid = map_chunks(problem, arrays)
    own = grid if is_joined(regions, grid) else regions
    along = fit_chunks(problem, arrays) | dict(zip(problem.map_axes, own, strict=True))
    return tuple(along[d] for d in range(len(along)))


def first_blocks(regions: Sequence[int], blocks: Sequence[int]) -> tuple[int, ...]:
    """Number of the first block of each region along an axis, and at last how many there are."""
    if tuple(regions) == tuple(blocks):  # also where some have no series
        return tuple(range(len(regions) + 1))
    edges, wanted = (list(itertools.accumulate(own, initial=0)) for own in (blocks, regions))
    return tuple(np.searchsorted(edges, wanted).tolist())


def _block_bytes(arrays: Sequence[Array], chunks: Chunks) -> int:
    """Decoded bytes of the largest block of the arrays that are as large as y."""
    full = [a for a in arrays if a.shape == arrays[0].shape]
    return largest_block(chunks) * sum(int(a.dtype.itemsize) for a in full)
