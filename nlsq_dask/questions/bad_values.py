"""Values that keep a sum of squares from being finite, found in one reading of all rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.io.announced import checked
from nlsq_dask.io.chunks import Box
from nlsq_dask.io.finite import Affected, Findings, scan, scan_in_memory
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import Block, Layout

if TYPE_CHECKING:
    from distributed import Client

# Findings of some rows; those of two sets of rows add.
FoundT = TypeVar("FoundT", Affected, Findings)

# What is found in a block, given its index and what it is of ``y``.
Look = Callable[[Block, tuple[int, ...] | None, Box], FoundT]


def finite_problem(data: Observations, client: Client | None = None) -> _errors.InputError | None:
    """Look for values that make a sum of squares not finite: NaN, infinities and sigma of zero.

    Reads all arrays once, block by block; rows that are left out do not count.

    Parameters
    ----------
    data : Observations
    client : distributed.Client, optional
        Cluster that reads lazy arrays.

    Returns
    -------
    InputError or None
        Naming the first array that has such values, their number, where the first is, and how many
        rows are affected in all. None if there is no such value.
    """
    found = look_at_chunks(scan, data, client) if data.lazy else scan_in_memory(data)
    return found.error(data.names)


def look_at_chunks(look: Look[FoundT], data: Observations, client: Client | None) -> FoundT:
    """Look at all rows of Dask arrays, in one computation over all of them."""
    import dask.array as da
    from dask.delayed import delayed

    def lazy(array: Any, name: str) -> Any:
        if isinstance(array, da.Array):
            return checked(array, name)
        return da.from_array(array, chunks=-1, name=False)

    axes = tuple(range(data.y.ndim))
    named = zip(data.operands, data.layout.names, strict=True)
    pairs = itertools.chain.from_iterable((lazy(a, name), axes) for a, name in named)
    _, arrays = da.core.unify_chunks(*pairs)
    found = da.map_blocks(
        _look_at_chunk,
        *arrays,
        look=delayed(look, traverse=False),  # one node of the graph for all blocks
        layout=data.layout,
        chunks=tuple((1,) * n for n in arrays[0].numblocks),
        dtype=object,
        meta=np.empty((0,) * len(axes), object),
    )
    computed = found.compute() if client is None else client.compute(found, sync=True)
    findings: list[FoundT] = list(computed.ravel())
    return reduce(add, findings)


def _look_at_chunk(
    *arrays: Any,
    look: Look[Any],
    layout: Layout,
    block_info: Mapping[int, Mapping[str, Any]],
) -> NDArray[np.object_]:
    """Findings of one chunk, as an array of one element."""
    here = block_info[0]
    box = tuple(slice(start, stop) for start, stop in here["array-location"])
    found = np.empty((1,) * len(box), object)
    found[...] = look(layout.block(arrays), tuple(here["chunk-location"]), box)
    return found
