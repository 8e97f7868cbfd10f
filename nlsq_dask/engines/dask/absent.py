"""Chunks of Zarr arrays that are not in their stores, and the blocks of a fit that read them. Pure.

The nodes of the stream tell which chunks a block reads, whatever lies between the store and the
rows: slices, transposes, functions. A block that needs a value made from an absent chunk, directly
or not, reads the chunk.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from dask._task_spec import Alias, DataNode, GraphNode, convert_legacy_graph
from dask.core import flatten
from dask.highlevelgraph import MaterializedLayer
from dask.typing import Key

from nlsq_dask.engines.dask.groups import Stream, without_collections
from nlsq_dask.engines.dask.node_order import culled
from nlsq_dask.engines.dask.reading import zarr_reads
from nlsq_dask.engines.dask.steps import Group
from nlsq_dask.io.lazy_arrays import stored_positions, zarr_below
from nlsq_dask.io.libraries import is_dask
from nlsq_dask.io.missing_chunks import ChunkIndex
from nlsq_dask.io.observations import Array, Observations

#: A Zarr array in this process, by its store and its path.
ArrayId: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True)
class StoredOperand:
    """A Zarr array that operands of a fit are read from.

    Attributes
    ----------
    array : zarr.Array
    names : tuple of str
        Names of the operands in messages.
    plain : bool
        Whether the graph has the Zarr array itself, which nobody decodes.
    """

    array: Any
    names: tuple[str, ...]
    plain: bool


def id_of(array: Any) -> ArrayId:
    """What two handles of one Zarr array have in common."""
    return id(array.store), array.path


def stored_operands(data: Observations) -> dict[ArrayId, StoredOperand]:
    """The Zarr arrays that the operands of a fit are read from."""
    return stored_below(zip(data.layout.names, data.operands, strict=True))


def stored_below(named: Iterable[tuple[str, Array]]) -> dict[ArrayId, StoredOperand]:
    """The Zarr arrays that some arrays are read from, each with a name in messages."""
    found: dict[ArrayId, StoredOperand] = {}
    for name, operand in named:
        for value in _literals(operand) if is_dask(operand) else ():
            array = zarr_below(value)
            if array is None:
                continue
            known = found.get(id_of(array))
            names = (*(known.names if known else ()), name)
            plain = value is array and (known is None or known.plain)
            found[id_of(array)] = StoredOperand(array, tuple(dict.fromkeys(names)), plain)
    return found


def _literals(operand: Array) -> Iterator[Any]:
    """Values in the graph of a Dask array that are no results of tasks."""
    for layer in operand.__dask_graph__().layers.values():
        if isinstance(layer, MaterializedLayer):
            for node in layer.values():
                if not isinstance(node, GraphNode):  # as Dask writes an array that is passed
                    yield node
                elif isinstance(node, DataNode):
                    yield node.value
                elif not isinstance(node, Alias):
                    yield from getattr(node, "args", ())
        else:
            yield from (value for value, index in getattr(layer, "indices", ()) if index is None)


@dataclass
class Reads:
    """Which blocks read absent chunks, and which chunks these are.

    Attributes
    ----------
    blocks : set of tuple of int
        Blocks by their index in the chunk grid.
    chunks : dict of set of tuple of int
        Chunks that some block reads, by array.
    """

    blocks: set[tuple[int, ...]] = field(default_factory=set)
    chunks: dict[ArrayId, set[ChunkIndex]] = field(default_factory=lambda: defaultdict(set))


@without_collections()
def reads_of(stream: Stream, absent: Mapping[ArrayId, frozenset[ChunkIndex]]) -> Reads:
    """Find the blocks that read absent chunks.

    Parameters
    ----------
    stream : Stream
    absent : mapping
        Absent chunks of each array that counts.
    """
    reads = Reads()
    shared = list(stream.shared.values())
    affected = _affected(shared, absent, reads, set())
    for group in stream.groups:
        _add_group(group, absent, reads, affected)
    return reads


def chunks_read(
    array: Array, absent: Mapping[ArrayId, frozenset[ChunkIndex]]
) -> dict[ArrayId, set[ChunkIndex]]:
    """The absent chunks that a Dask array is made from, by Zarr array."""
    graph = convert_legacy_graph(dict(array.__dask_graph__()))
    needed = culled(graph, flatten(array.__dask_keys__()))
    reads = Reads()
    _affected(list(needed.values()), absent, reads, set())
    return reads.chunks


def _add_group(
    group: Group,
    absent: Mapping[ArrayId, frozenset[ChunkIndex]],
    reads: Reads,
    shared: set[Key],
) -> None:
    nodes = [node for step in group.steps for node, _ in step.nodes]
    affected = _affected(nodes, absent, reads, shared)
    for step in group.steps:
        if any(operand.key in affected for operand in step.operands if operand.key is not None):
            reads.blocks.add(step.index)


def _affected(
    nodes: Sequence[GraphNode],
    absent: Mapping[ArrayId, frozenset[ChunkIndex]],
    reads: Reads,
    before: set[Key],
) -> set[Key]:
    """Keys with values that are made from absent chunks. A node comes after the nodes it needs."""
    affected = set(before)
    values = {node.key: node.value for node in nodes if isinstance(node, DataNode)}
    for node in nodes:
        found = False
        for value, box in zarr_reads([node], values, _reader):
            array = zarr_below(value)
            own = absent.get(id_of(array))
            if own and box is not None and len(box) == len(value.shape):
                chunks = own & set(_chunks_in(value, array, box))
                reads.chunks[id_of(array)] |= chunks
                found |= bool(chunks)
        if found or not affected.isdisjoint(node.dependencies):
            affected.add(node.key)
    return affected


def _reader(value: Any) -> Any | None:
    """A value through which a Zarr array is read; None for any other."""
    return None if zarr_below(value) is None else value


def _chunks_in(value: Any, array: Any, box: tuple[slice, ...]) -> Iterator[ChunkIndex]:
    """The chunks of an array that are read for a part of a value made from the array."""
    positions = stored_positions(value, box)
    if positions is None:
        return
    lengths = zip(positions, array.chunks, strict=True)
    yield from itertools.product(*(np.unique(p // chunk).tolist() for p, chunk in lengths))
