"""Zarr arrays in a user's Dask graph, put in the form in which this library reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.array.optimization import GETTERS
from dask.typing import Key

from nlsq_dask.engines.dask.reading import FUSED
from nlsq_dask.io.lazy_arrays import undecoded
from nlsq_dask.io.leaf import Leaf


def with_leaves(graph: Mapping[Key, GraphNode]) -> dict[Key, GraphNode]:
    """The graph, with a leaf for each Zarr array that tasks only read slices of.

    A Zarr array that a user's function takes as an argument stays as it is. A leaf also takes the
    place of an object of xarray that reads a whole Zarr array, and changes no value. Of an array
    that a single task reads, Dask makes a part of the task.
    """
    graph = {key: _with_own_leaves(node) for key, node in graph.items()}
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


def _with_own_leaves(node: GraphNode) -> GraphNode:
    """The node, with a leaf for each Zarr array that is a part of the node."""
    if not isinstance(node, Task):
        return node
    first: dict[Key, GraphNode] | Leaf | None = None
    if inner := _inner_nodes(node):
        own = with_leaves(inner)
        first = own if any(own[key] is not inner[key] for key in inner) else None
    elif node.func in GETTERS:
        array = undecoded(getattr(node.args[0], "value", node.args[0]))
        first = None if array is None else Leaf(array)
    if first is None:
        return node
    rest, producer = node.args[1:], node.data_producer
    return Task(node.key, node.func, first, *rest, **node.kwargs, _data_producer=producer)


def _other_uses(node: GraphNode) -> Iterator[Key]:
    """Keys that a node depends on but for the array of a slice, also inside of fused nodes."""
    inner = _inner_nodes(node)
    if not inner:
        sliced = _sliced(node)
        yield from (key for key in node.dependencies if key != sliced)
        return
    assert isinstance(node, Task), "with arguments"
    _, _, names, *given = node.args
    outer = {name: of.key for name, of in zip(names, given, strict=True) if isinstance(of, TaskRef)}
    for part in inner.values():
        yield from (outer.get(key, key) for key in _other_uses(part))


def _inner_nodes(node: GraphNode) -> dict[Key, GraphNode]:
    """The nodes that a fused node holds, by key; none if the node is not fused."""
    if isinstance(node, Task) and getattr(node.func, "__name__", "") == FUSED:
        return dict(node.args[0])
    return {}


def _sliced(task: GraphNode) -> Key | None:
    """The key of the array that a task slices; None for another task."""
    if isinstance(task, Task) and task.func in GETTERS and isinstance(task.args[0], TaskRef):
        key: Key = task.args[0].key
        return key
    return None
