"""Write the answers of many series to a Zarr group, a task for each region of the map.

A task reads the blocks of a region, fits its series, and writes its maps, the status last. Nothing
but the number of series of each status comes back, and the graph is made in parts of some hundred
tasks, so the memory does not depend on the size of the data. Writing is tried again where a store
fails, as reading is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask._task_spec import DataNode
from dask.array.optimization import optimize
from dask.blockwise import Blockwise
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.dask.prefetch import is_remote
from nlsq_dask.engines.dask.reading import Reading, Retries
from nlsq_dask.engines.dask.signals import signals_of
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.map_store import STATUS, StoredMap, counts_of
from nlsq_dask.io.places import Place

#: Called with the number of series of each status of a region that is done.
Done = Callable[[NDArray[np.int64]], None]

#: A graph, and the keys of its tasks whose results are wanted.
TasksOf: TypeAlias = tuple[dict[Key, Any], list[Key]]

# Tasks whose graph is in memory at one time, with their results: some 7 kB a task. Where tasks run
# in this process, its threads wait for the last task of a graph before the next graph.
HANDED_OUT = 512

# Most maps of a region that are written at one time, to a store across a network. A fit of three
# parameters has 13 maps, and one after the other each waits for the store.
MOST_WRITES = 16


@dataclass(frozen=True)
class Writing:
    """Where and how the maps of regions are written.

    Attributes
    ----------
    stored : tuple of StoredMap
        The last is the status.
    retries : Retries
    fit : str
        Identifier of the fit, for the signals between its tasks and the fit.
    starts : tuple of tuple of int
        Where the regions begin and end along each axis of the map.
    """

    stored: tuple[StoredMap, ...]
    retries: Retries
    fit: str
    starts: tuple[tuple[int, ...], ...]

    def write(self, index: tuple[int, ...], packed: Any) -> None:
        """Write the maps of a region, the status last."""
        region = tuple(slice(own[i], own[i + 1]) for own, i in zip(self.starts, index, strict=True))
        place = Place(("maps",), index, region, (str(self.stored[-1].array.store_path),))
        writing = writing_of(self.retries, self.fit)

        def write(target: StoredMap) -> None:
            writing.run(partial(target.write, region, packed), lambda: place)

        *maps, status = self.stored
        if is_remote(status.array.store):
            with ThreadPoolExecutor(min(len(maps), MOST_WRITES), "nlsq-write") as pool:
                list(pool.map(write, maps))  # raises the error of a map
        else:
            for target in maps:
                write(target)
        write(status)


def writing_of(retries: Retries, fit: str) -> Reading:
    """How the tasks of a fit write, and how the fit does."""
    return Reading(retries, signals_of(fit), failed=_errors.maps_not_written, done="written")


def with_regions(answer: Any, stored: Chunks | None = None) -> Any:
    """The packed answer (k, ...) in regions of one size, but for the last along each axis.

    If some are stored already, these are the regions.
    """
    if stored is not None:
        return answer.rechunk(dict(enumerate(stored, start=1)))
    sizes = {axis: max(own) for axis, own in enumerate(answer.chunks) if axis}
    regular = all(set(own[:-1]) <= {max(own)} for own in answer.chunks)
    return answer if regular else answer.rechunk(sizes)


def starts_of(answer: Any) -> tuple[tuple[int, ...], ...]:
    """Where the regions begin and end along each axis of the map."""
    return tuple(tuple(np.cumsum([0, *own]).tolist()) for own in answer.chunks[1:])


def write_regions(
    answer: Any,
    writing: Writing,
    regions: NDArray[np.int64],
    executor: Executor,
    done: Done,
) -> None:
    """Fit and write some regions of the map.

    Parameters
    ----------
    answer : dask.array.Array
        The packed answer (k, ...), in regions.
    writing : Writing
    regions : ndarray of int, shape (n, d)
        Indices of the regions along the d axes of the map.
    executor : Executor
    done : callable
        Called after each region.
    """
    assert writing.stored[-1].name.endswith(STATUS)
    # One value for all tasks: Dask would go through the arrays of the maps, and pickle them, for
    # each task.
    common = f"fit-each-writing-{uuid.uuid4().hex}"
    shared = HighLevelGraph.from_collections(common, {common: DataNode(common, writing)}, ())
    written = da.map_blocks(
        _write_region,
        answer,
        Delayed(common, shared),
        dtype=np.int64,
        chunks=((256,), *((1,) * n for n in answer.numblocks[1:])),
        meta=np.empty((0,) * answer.ndim, np.int64),
        token="fit-each-write",
    )
    most = executor.most_handed_out(HANDED_OUT) if _is_lazy(written.__dask_graph__()) else None
    executor.run_each(
        _graphs(written, regions, most or max(len(regions), 1)),
        lambda counts: done(counts.reshape(-1)),
    )


def _graphs(written: Any, regions: NDArray[np.int64], most: int) -> Iterator[TasksOf]:
    """The graphs of at most so many tasks each, made when they are asked for."""
    for first in range(0, len(regions), most):
        keys: list[Key] = [(written.name, 0, *i) for i in regions[first : first + most].tolist()]
        yield dict(optimize(written.__dask_graph__(), keys)), keys


def _is_lazy(graph: HighLevelGraph) -> bool:
    """Whether a graph makes a task when the task is asked for, and tasks share no other task.

    A task that others share would run again with each part of the graph.
    """
    layers = graph.layers.values()
    return all(
        isinstance(layer, Blockwise) or all(isinstance(node, DataNode) for node in layer.values())
        for layer in layers
    )


def _write_region(
    packed: NDArray[Any], writing: Writing, block_id: tuple[int, ...] = ()
) -> NDArray[np.int64]:
    """The task: write the maps of a region, the status last; returns its counts (256, 1, ...)."""
    writing.write(block_id[1:], packed)
    status = packed[writing.stored[-1].planes].astype(np.int8)
    return counts_of(status).reshape(256, *(1,) * (packed.ndim - 1))
