"""The stream of a fit: its Dask graph, cut into groups of neighbouring blocks. Pure.

Each task of a pass runs one group (:mod:`~nlsq_dask.engines.dask.steps`). If one recipe makes all
blocks (:mod:`~nlsq_dask.engines.dask.recipe`), the graph of the chunks is not made at all.

If many groups depend directly on a node of the graph, such as an ``x.mean()`` upstream, no group
has the node. It is computed once, before the first pass, and handed to every group.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import GraphNode, Task, TaskRef, convert_legacy_graph
from dask.array.optimization import optimize
from dask.blockwise import optimize_blockwise
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key

from nlsq_dask.engines.dask.alike import alike_groups
from nlsq_dask.engines.dask.grouping import (
    Grouping,
    group_appended,
    group_blocks,
    group_sample,
    most_open,
)
from nlsq_dask.engines.dask.leaves import with_leaves
from nlsq_dask.engines.dask.node_order import culled
from nlsq_dask.engines.dask.pieces import pieced_arrays_of, shared_bytes, with_repeats
from nlsq_dask.engines.dask.recipe import recipe_of
from nlsq_dask.engines.dask.shared_keys import shared_keys
from nlsq_dask.engines.dask.steps import Group, Operand, make_group
from nlsq_dask.io.announced import Announced, kinds_of
from nlsq_dask.io.chunks import (
    Box,
    Chunks,
    block_boxes,
    block_sizes,
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

# Most layers of a graph that Dask culls layer by layer, which takes a time that grows with the
# number of layers times the number of chunks: 11 s for x and y of 6,000 ``from_delayed`` each, and
# 1.3 s where the layers are joined first.
MOST_LAYERS = 64


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
    sizes = _block_bytes(arrays, chunks)
    grouping = None
    if most_blocks is not None:
        chosen = spread_blocks(list(map(len, chunks)), most_blocks)
        grouping = group_sample(chosen, chunks, pieced_arrays)
        sizes = [sizes[i] for i in chosen]
    elif each and first is None and len(sizes) <= MOST_SINGLE:
        grouping = group_sample(range(len(sizes)), chunks, pieced_arrays)
    if first is not None:
        grouping = group_appended(sizes, first, each and len(sizes) <= MOST_SINGLE)
    grouping = grouping or group_blocks(sizes, chunks, pieced_arrays)
    pieced_arrays = with_repeats(pieced_arrays, chunks, grouping.tasks)
    # Chunks of the large arrays `own` are made by each group for itself.
    own = {pieced.operand for pieced in pieced_arrays if pieced.repeated}
    groups, shared, keys = _groups_of(data, arrays, chunks, grouping, own)
    return Stream(
        groups,
        shared,
        keys,
        chunks,
        max(sizes),
        _piece_bytes(data, max(sizes) + most_open(pieced_arrays, chunks, grouping)),
        shared_bytes(pieced_arrays, chunks, grouping.tasks),
        names_of(data.operands, arrays, data.layout.names),
    )


def _groups_of(
    data: Observations, arrays: Sequence[Array], chunks: Chunks, grouping: Grouping, own: set[str]
) -> tuple[tuple[Group, ...], dict[Key, GraphNode], tuple[Key, ...]]:
    """The groups, the graph that they share, and the keys of that graph that they need.

    Parameters
    ----------
    data : Observations
    arrays : sequence of (dask.array.Array or ndarray)
        The operands of the data, in the chunks of the grid.
    chunks : tuple of tuple of int
        The grid.
    grouping : Grouping
    own : set of str
        Dask arrays of which each group makes the chunks that it needs.
    """
    lazy = [a for a in arrays if is_dask(a)]
    if lazy and all(a.chunks == chunks and any(a is b for b in data.operands) for a in lazy):
        found = recipe_of(lazy, chunks)
        if found is not None:
            return alike_groups(*found, arrays, chunks, grouping), {}, ()
    return _groups_of_nodes(data, arrays, chunks, grouping, own)


def _groups_of_nodes(
    data: Observations, arrays: Sequence[Array], chunks: Chunks, grouping: Grouping, own: set[str]
) -> tuple[tuple[Group, ...], dict[Key, GraphNode], tuple[Key, ...]]:
    """The groups, as :func:`_groups_of`, from the graph of all chunks."""
    boxes = list(block_boxes(chunks))
    blocks = [boxes[i] for i in grouping.blocks]
    one_of: dict[tuple[Shape, ...], tuple[Shape, ...]] = {}  # equal tuples are sent once
    layout = data.layout
    shapes = [one_of.setdefault(s, s) for s in (layout.shapes_in(box) for _, box in blocks)]
    operands = [tuple(operand_of(a, index, box) for a in arrays) for index, box in blocks]
    announced = cut_pieces(data.operands, layout.names, chunks)
    graph = optimized_graph([a for a in arrays if is_dask(a)], list(announced))
    pairs = zip(data.operands, arrays, strict=True)
    own = own | {matched.name for a, matched in pairs if is_dask(a) and a.name in own}
    keys = shared_keys(graph, [[operands[i] for i in group] for group in grouping.groups], own)
    made = tuple(
        make_group(
            graph,
            [(*blocks[i], shapes[i], operands[i]) for i in group],
            keys,
            announced,
        )
        for group in grouping.groups
    )
    return made, shared_graph(graph, keys, announced), tuple(keys)


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
    graph: Any = HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays))
    if len(graph.layers) > MOST_LAYERS:
        joined = dict(optimize_blockwise(graph, keys=keys))
        graph = culled(convert_legacy_graph(joined), keys)
    return with_leaves(convert_legacy_graph(dict(optimize(graph, keys, fuse_keys=unfused))))


def operand_of(array: Array, index: tuple[int, ...], box: Box) -> Operand:
    """The part of an array that belongs to a block."""
    if not is_dask(array):
        return Operand(None, array[broadcast_box(box, array.shape)])
    block = (0 if n == 1 else i for i, n in zip(index, array.shape, strict=True))
    return Operand((array.name, *block))


def _block_bytes(arrays: Sequence[Array], chunks: Chunks) -> list[int]:
    """Decoded bytes of the arrays of each block, in C order of the grid."""
    total = np.zeros(math.prod(map(len, chunks)), np.int64)
    for array in arrays:
        pairs = zip(array.shape, chunks, strict=True)
        own = [(1,) * len(cuts) if n == 1 else cuts for n, cuts in pairs]
        total += array.dtype.itemsize * block_sizes(own)
    sizes: list[int] = total.tolist()
    return sizes


def shared_graph(
    graph: Mapping[Key, GraphNode], keys: Iterable[Key], announced: Mapping[Key, Announced]
) -> dict[Key, GraphNode]:
    """The part of a graph that makes some keys, for groups to share."""
    return _compared(culled(graph, keys), announced)


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
