"""How tasks read the Zarr arrays of a fit: chunk by chunk as they are stored, or through Zarr."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask._task_spec import DataNode, GraphNode
from dask.typing import Key

from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.node_order import culled
from nlsq_dask.engines.dask.reading import zarr_reads
from nlsq_dask.io.direct import why_not_direct
from nlsq_dask.io.lazy_arrays import zarr_below
from nlsq_dask.io.leaf import Leaf

# How chunks are read as they are stored.
FILES = "directly, file by file"
OBJECTS = "directly, object by object"

# Reasons why Zarr reads an array whose chunks this library could read.
XARRAY = "xarray decodes it or selects from it"
FUNCTION = "a function takes the array itself"


def ways_of(stream: Stream, names: Sequence[str]) -> tuple[str, ...]:
    """How the Zarr arrays of the first block are read, a line for each way.

    Parameters
    ----------
    stream : Stream
    names : sequence of str
        Names of the arrays of a block in messages.
    """
    step = stream.groups[0].steps[0]
    nodes = {**stream.shared, **{node.key: node for node, _ in step.nodes}}
    named: dict[str, dict[str, None]] = defaultdict(dict)
    for name, operand in zip(names, step.operands, strict=True):
        if operand.key is not None:
            for way in _ways(culled(nodes, [operand.key])):
                named[way][name] = None
    return tuple(f"{', '.join(arrays)}: {way}" for way, arrays in sorted(named.items()))


def _ways(nodes: Mapping[Key, GraphNode]) -> Iterator[str]:
    """How each Zarr array is read."""
    values = {node.key: node.value for node in nodes.values() if isinstance(node, DataNode)}
    for value, _ in zarr_reads(list(nodes.values()), values, _reader):
        if isinstance(value, Leaf):
            why = why_not_direct(value.array)
        else:
            why = FUNCTION if value is zarr_below(value) else XARRAY
        if why:
            yield f"through Zarr, because {why}"
        else:
            yield OBJECTS if value.asks_a_store else FILES


def _reader(value: Any) -> Any | None:
    """A value through which a Zarr array is read; None for any other."""
    return None if zarr_below(value) is None else value
