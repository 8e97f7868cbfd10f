"""The stream of a fit: its Dask graph, cut into groups of neighbouring blocks. Pure.

Each task of a pass runs one group. A group has the part of the optimised Dask graph that makes its
blocks, as a list of steps, one for each block: make the arrays of the block, use them, drop what no
later block needs. An array that two blocks share is made once in a group. The memory of a group is
that of one block, however many blocks the group has.

Nodes of the graph on which many groups depend directly (an ``x.mean()`` upstream) are not part of
any group. They are computed once, before the first pass, and handed to every group.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.array.optimization import optimize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key

from nlsq_dask.engines.dask.grouping import (
    group_appended,
    group_blocks,
    group_sample,
    most_open,
)
from nlsq_dask.engines.dask.leaves import with_leaves
from nlsq_dask.engines.dask.pieces import (
    MAX_TASKS_TO_REPEAT,
    pieced_arrays_of,
    shared_bytes,
    with_repeats,
)
from nlsq_dask.io.announced import Announced, kinds_of
from nlsq_dask.io.chunks import (
    Box,
    Chunks,
    block_boxes,
    box_size,
    broadcast_box,
    largest_block,
    regular_chunks,
    spread_blocks,
)
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Shape

# Rows of a block of data without chunks of their own: 8 MB of float64. Of 1, 8 and 64 MB these were
# the fastest to read.
UNCHUNKED_BLOCK_ROWS = 1 << 20


# Most blocks that are a group, and so a task, each.
MOST_SINGLE = 10_000


@dataclass(frozen=True, slots=True)
class Operand:
    """One array of a block: a key of the graph, or a slice of a NumPy array."""

    key: Key | None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Step:
    """One block: the graph nodes that make it, and the keys to drop after each and at the end.

    Attributes
    ----------
    index : tuple of int
        Index of the block in the chunk grid.
    box : tuple of slice
        Rows of the block.
    shapes : tuple of tuple of int
        Announced shapes of its arrays.
    nodes : tuple of (GraphNode, tuple of key)
        Nodes in the order in which they run, each with the keys to drop after it.
    operands : tuple of Operand
        Arrays of the block.
    drop : tuple of key
        Keys to drop after the block is used.
    """

    index: tuple[int, ...]
    box: Box
    shapes: tuple[Shape, ...]
    nodes: tuple[tuple[GraphNode, tuple[Key, ...]], ...]
    operands: tuple[Operand, ...]
    drop: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """What one task does.

    Attributes
    ----------
    steps : tuple of Step
        Its blocks, in order.
    external : tuple of key
        Keys whose values are handed to the task.
    n_rows : int
        Rows of its blocks.
    announced : dict
        Shape and kind to expect of each chunk that blocks are cut from, by key.
    n_left_out : int
        Rows of blocks that were taken out of the group.
    """

    steps: tuple[Step, ...]
    external: tuple[Key, ...]
    n_rows: int
    announced: Mapping[Key, Announced] = field(default_factory=dict)
    n_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """All groups of a pass, and the part of the graph that they share.

    Attributes
    ----------
    groups : tuple of Group
        In row order of their blocks.
    shared : dict
        Graph that is computed once, before the first pass.
    shared_keys : tuple of key
        Keys of `shared` that groups need.
    chunks : tuple of tuple of int
        Chunk grid of the blocks, to which all arrays are rechunked.
    block_bytes : int
        Decoded bytes of the largest block.
    piece_bytes : int
        Most decoded bytes that a task holds at one time to make a block.
    shared_bytes : int
        Decoded bytes of the pieces that many tasks need. They stay in memory through the fit.
    names : dict
        Names of the arrays in messages, by their names in the graph.
    """

    groups: tuple[Group, ...]
    shared: Mapping[Key, GraphNode]
    shared_keys: tuple[Key, ...]
    chunks: Chunks
    block_bytes: int
    piece_bytes: int
    shared_bytes: int
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_blocks(self) -> int:
        """Number of blocks that have rows."""
        return sum(len(group.steps) for group in self.groups)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(group.n_rows for group in self.groups)


@contextmanager
def without_collections() -> Iterator[None]:
    """Pause the cyclic garbage collector of this process.

    The groups of 100,000 blocks are millions of objects, all in use: the collector's searches
    through them took half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collections()
def make_stream(
    data: Observations,
    unchunked_rows: int = UNCHUNKED_BLOCK_ROWS,
    most_blocks: int | None = None,
    *,
    each: bool = False,
    first: Sequence[int] | None = None,
) -> Stream:
    """Cut the data of a fit into groups.

    Parameters
    ----------
    data : Observations
        Any mixture of NumPy and Dask arrays.
    unchunked_rows : int
        Rows of a block of data without chunks of their own.
    most_blocks : int, optional
        Take only so many blocks, spread over the grid; all blocks by default.
    each : bool
        Make a group of each block, if there are at most MOST_SINGLE.
    first : sequence of int, optional
        Number of blocks of each of the first groups.
    """
    chunks = common_chunks(data, unchunked_rows)
    pieced_arrays = pieced_arrays_of(data)
    arrays = [match_chunks(a, chunks) for a in data.operands]
    blocks = [(index, box) for index, box in block_boxes(chunks) if box_size(box)]
    grouping = None
    if most_blocks is not None:
        chosen = spread_blocks(list(map(len, chunks)), most_blocks)
        grouping = group_sample(chosen, chunks, pieced_arrays)
        blocks = [blocks[i] for i in chosen]
    elif each and first is None and len(blocks) <= MOST_SINGLE:
        grouping = group_sample(range(len(blocks)), chunks, pieced_arrays)
    one_of: dict[tuple[Shape, ...], tuple[Shape, ...]] = {}  # equal tuples are sent once
    layout = data.layout
    shapes = [one_of.setdefault(s, s) for s in (layout.shapes_in(box) for _, box in blocks)]
    sizes = [sum(_operand_bytes(a, box) for a in arrays) for _, box in blocks]
    if first is not None:
        grouping = group_appended(sizes, first, each and len(blocks) <= MOST_SINGLE)
    grouping = grouping or group_blocks(sizes, chunks, pieced_arrays)
    groups = grouping.groups
    operands = [tuple(operand_of(a, index, box) for a in arrays) for index, box in blocks]
    announced = cut_pieces(data.operands, layout.names, chunks)
    graph = optimized_graph([a for a in arrays if is_dask(a)], list(announced))
    # Chunks of the large arrays `own` are made by each group for itself.
    pieced_arrays = with_repeats(pieced_arrays, chunks, grouping.tasks)
    own = {pieced.operand for pieced in pieced_arrays if pieced.repeated}
    pairs = zip(data.operands, arrays, strict=True)
    own |= {matched.name for a, matched in pairs if is_dask(a) and a.name in own}
    shared_keys = keys_to_share(graph, [[operands[i] for i in group] for group in groups], own)
    made = tuple(
        make_group(
            graph,
            [(*blocks[i], shapes[i], operands[i]) for i in group],
            shared_keys,
            announced,
        )
        for group in groups
    )
    return Stream(
        made,
        shared_graph(graph, shared_keys, announced),
        tuple(shared_keys),
        chunks,
        max(sizes),
        _piece_bytes(data, max(sizes) + most_open(pieced_arrays, chunks, grouping)),
        shared_bytes(pieced_arrays, chunks, grouping.tasks),
        names_of(data.operands, arrays, layout.names),
    )


def common_chunks(data: Observations, unchunked_rows: int = UNCHUNKED_BLOCK_ROWS) -> Chunks:
    """Chunk grid of the blocks.

    The grid has, along each dimension, the edges of the chunks of all Dask arrays that vary along
    it. If there are Dask arrays of full size, only their edges count: smaller arrays cost next to
    nothing to join. Dimensions along which series run are not cut: all chunks along them are
    joined. A dimension along which no Dask array varies is cut so that a block has up to
    `unchunked_rows` rows.
    """
    shape, uncut = data.y.shape, data.series_axes
    lazy = [a for a in data.operands if is_dask(a)]
    lazy = [a for a in lazy if a.shape == shape] or lazy
    cuts: list[set[int] | None] = [None] * len(shape)
    for array in lazy:
        for d, (n, full) in enumerate(zip(array.shape, shape, strict=True)):
            if n == full:
                edges = set(itertools.accumulate(array.chunks[d], initial=0))
                cuts[d] = edges | (cuts[d] or set())
    for d in uncut:
        cuts[d] = {0, shape[d]}
    free = tuple(n if cuts[d] is None else 1 for d, n in enumerate(shape))
    lengths = [max(c) if c else 1 for c in (_lengths(e) for e in cuts)]
    default = regular_chunks(free, max(1, unchunked_rows // math.prod(lengths)))
    return tuple(default[d] if cuts[d] is None else _lengths(cuts[d]) for d in range(len(shape)))


def _lengths(edges: set[int] | None) -> tuple[int, ...]:
    return tuple(b - a for a, b in itertools.pairwise(sorted(edges or ())))


def _piece_bytes(data: Observations, block_bytes: int) -> int:
    """Decoded bytes that a task holds to make a block of `block_bytes`."""
    lazy = [a for a in data.operands if is_dask(a)]
    largest = [int(largest_block(a.chunks) * a.dtype.itemsize) for a in lazy]
    return max(sum(largest), block_bytes)


def cut_pieces(
    arrays: Sequence[Array], names: Sequence[str], chunks: Chunks
) -> dict[Key, Announced]:
    """Announced shape and kind of each chunk of the arrays that are rechunked, by key.

    Cutting such a chunk would hide that it is longer than announced. Chunks of the other arrays are
    operands of blocks, and are compared when the block is used.
    """
    return {
        (array.name, *index): Announced(name, index, box, kinds_of(array))
        for array, name in zip(arrays, names, strict=True)
        if is_dask(array) and array.chunks != _own_chunks(array, chunks)
        for index, box in block_boxes(array.chunks)
    }


def names_of(
    arrays: Sequence[Array], matched: Sequence[Array], names: Sequence[str]
) -> dict[str, str]:
    """Names of the arrays in messages, by their names in the graph, as passed and as rechunked."""
    named = zip((*arrays, *matched), (*names, *names), strict=True)
    return {array.name: name for array, name in named if is_dask(array)}


def match_chunks(array: Array, chunks: Chunks) -> Array:
    """A Dask array with the chunk grid of the blocks; an array in memory as it is."""
    if not is_dask(array):
        return array
    wanted = _own_chunks(array, chunks)
    return array if array.chunks == wanted else array.rechunk(wanted)


def _own_chunks(array: Array, chunks: Chunks) -> Chunks:
    """The chunk grid of an array that is as long as the rows, or of length 1, along each axis."""
    return tuple((1,) if n == 1 else c for n, c in zip(array.shape, chunks, strict=True))


def optimized_graph(arrays: list[da.Array], unfused: list[Key]) -> dict[Key, GraphNode]:
    """The arrays' graphs as one graph, culled and fused as Dask does before it computes.

    Nodes of `unfused` are not fused with the nodes that use them. A sample needs the graph of all
    blocks, too: Dask reads only a part of a chunk if the graph needs one block of it.
    """
    if not arrays:
        return {}
    keys = [key for a in arrays for key in flatten(a.__dask_keys__())]
    graph = HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays))
    return with_leaves(convert_legacy_graph(dict(optimize(graph, keys, fuse_keys=unfused))))


def operand_of(array: Array, index: tuple[int, ...], box: Box) -> Operand:
    """The part of an array that belongs to a block."""
    if not is_dask(array):
        return Operand(None, array[broadcast_box(box, array.shape)])
    block = (0 if n == 1 else i for i, n in zip(index, array.shape, strict=True))
    return Operand((array.name, *block))


def _operand_bytes(array: Array, box: Box) -> int:
    part = broadcast_box(box, array.shape)
    return box_size(part) * int(array.dtype.itemsize)


def keys_to_share(
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
    order = _reverse_topological(graph)
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
            and not _is_light(graph[key])
            and not is_own(key)
        ]
        if not new:
            return dict.fromkeys(sorted(shared, key=str))
        shared.update(dict.fromkeys(new))


def _is_light(node: GraphNode) -> bool:
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


def _reverse_topological(graph: Mapping[Key, GraphNode]) -> list[Key]:
    """Keys of the graph, each before the keys that it depends on."""
    postorder: dict[Key, None] = {}
    for key in graph:
        _visit(graph, key, postorder)
    return list(reversed(postorder))


def _visit(graph: Mapping[Key, GraphNode], key: Key, done: dict[Key, None]) -> None:
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
            stack.extend((k, False) for k in _inputs(graph[current]))


def _inputs(node: GraphNode) -> list[Key]:
    """Keys that a node depends on, in an order that does not depend on the hash seed."""
    return sorted(node.dependencies, key=str)


def _cull(graph: Mapping[Key, GraphNode], keys: Iterable[Key]) -> dict[Key, GraphNode]:
    needed: dict[Key, None] = {}
    for key in keys:
        _visit(graph, key, needed)
    return {key: graph[key] for key in needed}


def shared_graph(
    graph: Mapping[Key, GraphNode], keys: Iterable[Key], announced: Mapping[Key, Announced]
) -> dict[Key, GraphNode]:
    """The part of a graph that makes some keys, for groups to share."""
    return _compared(_cull(graph, keys), announced)


def _compared(
    graph: Mapping[Key, GraphNode], announced: Mapping[Key, Announced]
) -> dict[Key, GraphNode]:
    """The graph, with a task behind each announced chunk that compares its shape and kind."""
    compared: dict[Key, GraphNode] = {}
    for key, node in graph.items():
        if key not in announced:
            compared[key] = node
            continue
        assert isinstance(key, tuple)
        made = (f"nlsq-made-{key[0]}", *key[1:])
        compared[made] = node.substitute({}, key=made)
        compared[key] = Task(key, announced[key].checked, TaskRef(made))
    return compared


def make_group(
    graph: Mapping[Key, GraphNode],
    blocks: list[tuple[tuple[int, ...], Box, tuple[Shape, ...], tuple[Operand, ...]]],
    shared: Mapping[Key, None],
    announced: Mapping[Key, Announced],
) -> Group:
    """Order the nodes of a group by block, and find the last use of each array."""
    made: dict[Key, None] = dict.fromkeys(shared)
    runs: list[list[Key]] = []
    last_use: dict[Key, tuple[int, int]] = {}
    external: dict[Key, None] = {}
    for b, (*_, operands) in enumerate(blocks):
        first = len(made)
        keys = [o.key for o in operands if o.key is not None]
        for key in keys:
            _visit(graph, key, made)
        run = list(itertools.islice(made, first, None))
        for position, key in enumerate(run):
            for needed in _inputs(graph[key]):
                last_use[needed] = (b, position)
        for key in keys:
            last_use[key] = (b, len(run))
        needs = itertools.chain(keys, *(_inputs(graph[key]) for key in run))
        external.update((k, None) for k in needs if k in shared or k not in graph)
        runs.append(run)
    drops: dict[tuple[int, int], list[Key]] = defaultdict(list)
    for key, place in last_use.items():
        drops[place].append(key)
    steps = tuple(
        Step(
            index,
            box,
            shapes,
            tuple((graph[key], tuple(drops[b, i])) for i, key in enumerate(run)),
            operands,
            tuple(drops[b, len(run)]),
        )
        for b, (run, (index, box, shapes, operands)) in enumerate(zip(runs, blocks, strict=True))
    )
    n_rows = sum(box_size(box) for _, box, *_ in blocks)
    used = itertools.chain(external, *runs)
    pieces = {key: announced[key] for key in used if key in announced}
    return Group(steps, tuple(external), n_rows, pieces)
