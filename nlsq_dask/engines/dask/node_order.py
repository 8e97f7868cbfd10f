"""The order in which the nodes of a Dask graph run: each after those that it depends on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dask._task_spec import GraphNode
from dask.typing import Key


def reverse_topological(graph: Mapping[Key, GraphNode]) -> list[Key]:
    """Keys of the graph, each before the keys that it depends on."""
    postorder: dict[Key, None] = {}
    for key in graph:
        visit(graph, key, postorder)
    return list(reversed(postorder))


def visit(graph: Mapping[Key, GraphNode], key: Key, done: dict[Key, None]) -> None:
    """Append a key to `done`, after the keys that it depends on.

    A recursive function would overflow the stack on deep graphs.
    """
    stack: list[tuple[Key, bool]] = [(key, False)]
    while stack:
        current, expanded = stack.pop()
        if current in done or current not in graph:
            continue
        if expanded:
            done[current] = None
        else:
            stack.append((current, True))
            stack.extend((k, False) for k in inputs_of(graph[current]))


def inputs_of(node: GraphNode) -> list[Key]:
    """Keys that a node depends on, in an order that does not depend on the hash seed."""
    return sorted(node.dependencies, key=str)


def culled(graph: Mapping[Key, GraphNode], keys: Iterable[Key]) -> dict[Key, GraphNode]:
    """The part of a graph that makes some keys."""
    needed: dict[Key, None] = {}
    for key in keys:
        visit(graph, key, needed)
    return {key: graph[key] for key in needed}
