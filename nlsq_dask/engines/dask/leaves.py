"""Zarr arrays in a user's Dask graph, put in the form in which this library reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.array.optimization import GETTERS
from dask.typing import Key

from nlsq_dask.io.lazy_arrays import undecoded
from nlsq_dask.io.leaf import Leaf


def with_leaves(graph: Mapping[Key, GraphNode]) -> dict[Key, GraphNode]:
    """The graph, with a leaf for each Zarr array that tasks only read slices of.

    A Zarr array that a user's function takes as an argument stays as it is. A leaf also takes the
    place of an object of xarray that reads a whole Zarr array, and changes no value.
    """
    arrays = {
        key: array
        for key, node in graph.items()
        if isinstance(node, DataNode) and (array := undecoded(node.value)) is not None
    }
    if arrays:
        for node in graph.values():
            for key in _other_uses(node):
                arrays.pop(key, None)
    leaves = {key: DataNode(key, Leaf(array)) for key, array in arrays.items()}
    return {**graph, **leaves}


def _other_uses(node: GraphNode) -> Iterator[Key]:
    """Keys that a node depends on but for the array of a slice, also inside of fused nodes."""
    for task in _fused(node):
        sliced = _sliced(task)
        yield from (key for key in task.dependencies if key != sliced)


def _fused(node: GraphNode) -> Iterator[GraphNode]:
    """The nodes that a fused node runs; the node itself if it is not fused."""
    inner = node.args[0] if isinstance(node, Task) and node.args else None
    if isinstance(inner, dict) and inner and all(isinstance(n, GraphNode) for n in inner.values()):
        for part in inner.values():
            yield from _fused(part)
    else:
        yield node


def _sliced(task: GraphNode) -> Key | None:
    """The key of the array that a task slices; None for another task."""
    if isinstance(task, Task) and task.func in GETTERS and isinstance(task.args[0], TaskRef):
        key: Key = task.args[0].key
        return key
    return None
