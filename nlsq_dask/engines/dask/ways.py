"""How tasks read the Zarr arrays of a fit: from the files of the chunks, or through Zarr."""

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

# Reasons why Zarr reads an array whose chunk files this library could read.
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
            for why in _reasons(culled(nodes, [operand.key])):
                named[why][name] = None
    return tuple(_line(why, list(arrays)) for why, arrays in sorted(named.items()))


def _reasons(nodes: Mapping[Key, GraphNode]) -> Iterator[str]:
    """For each Zarr array, why its chunk files are not read directly; empty if they are."""
    values = {node.key: node.value for node in nodes.values() if isinstance(node, DataNode)}
    for value, _ in zarr_reads(list(nodes.values()), values, _reader):
        if isinstance(value, Leaf):
            yield why_not_direct(value.array)
        else:
            yield FUNCTION if value is zarr_below(value) else XARRAY


def _reader(value: Any) -> Any | None:
    """A value through which a Zarr array is read; None for any other."""
    return None if zarr_below(value) is None else value


def _line(why: str, names: Sequence[str]) -> str:
    arrays = ", ".join(names)
    return f"{arrays}: through Zarr, because {why}" if why else f"{arrays}: directly, file by file"
