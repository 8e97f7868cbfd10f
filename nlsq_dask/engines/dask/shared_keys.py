"""Nodes of the graph that many groups need: computed once, before the first pass. Pure."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Container, Mapping

import numpy as np
from dask._task_spec import Alias, DataNode, GraphNode
from dask.typing import Key

from nlsq_dask.engines.dask.node_order import reverse_topological
from nlsq_dask.engines.dask.pieces import MAX_TASKS_TO_REPEAT
from nlsq_dask.engines.dask.steps import Operand


def shared_keys(
    graph: Mapping[Key, GraphNode],
    groups: list[list[tuple[Operand, ...]]],
    own_names: Container[str],
) -> dict[Key, None]:
    """Keys to compute once: those that more than MAX_TASKS_TO_REPEAT groups need directly.

    Chunks of the arrays `own_names` are never shared: each group makes them for itself.

    A group needs a node *directly* if the node is an operand of the group, or an input of a node
    that this group and few others need. In ``x - x.mean()`` all groups need the mean directly. All
    groups depend on every chunk of x through the mean, but only one group needs a chunk directly.
    Once the mean is shared, few groups need that chunk at all. The search is repeated until it
    finds no more keys.
    """

    def is_own(key: Key) -> bool:
        return isinstance(key, tuple) and key[0] in own_names

    shared: dict[Key, None] = {}
    order = reverse_topological(graph)
    while True:
        users = _users(graph, order, groups, shared)
        direct = _operand_users(groups)
        for key in order:
            of = users[key] if len(users[key]) <= MAX_TASKS_TO_REPEAT else None
            if of is None and isinstance(graph[key], Alias) and not is_own(key):
                of = direct[key]  # who needs a name needs what it stands for
            if key not in shared and of:
                for needed in graph[key].dependencies:
                    direct[needed] |= of
        new = [
            key
            for key in order
            if key not in shared
            and len(direct[key]) > MAX_TASKS_TO_REPEAT
            and not is_light(graph[key])
            and not is_own(key)
        ]
        if not new:
            return dict.fromkeys(sorted(shared, key=str))
        shared.update(dict.fromkeys(new))


def is_light(node: GraphNode) -> bool:
    """Whether every group may hold a copy of a node: a name or a handle, but no array in memory."""
    if isinstance(node, DataNode):
        return not isinstance(node.value, np.ndarray)
    return isinstance(node, Alias)


def _users(
    graph: Mapping[Key, GraphNode],
    order: list[Key],
    groups: list[list[tuple[Operand, ...]]],
    shared: Mapping[Key, None],
) -> dict[Key, set[int]]:
    """Groups that depend on each node, counted until there are more than MAX_TASKS_TO_REPEAT."""
    users = _operand_users(groups)
    for key in order:
        if key in shared:
            continue
        for needed in graph[key].dependencies:
            if len(users[needed]) <= MAX_TASKS_TO_REPEAT:
                users[needed] |= users[key]
    return users


def _operand_users(groups: list[list[tuple[Operand, ...]]]) -> dict[Key, set[int]]:
    """Groups that use each key as an operand of one of their blocks."""
    users: dict[Key, set[int]] = defaultdict(set)
    for g, operands in enumerate(groups):
        for operand in itertools.chain.from_iterable(operands):
            if operand.key is not None:
                users[operand.key].add(g)
    return users
