"""Blocks of series with the series around them, for answers that depend on neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from nlsq_dask.engines.dask.series import map_chunks
from nlsq_dask.engines.neighbours import ROUNDS
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask


def wide_chunks(problem: SeriesProblem, arrays: Sequence[Array]) -> Chunks:
    """Chunks of the map, with short ones joined: each is as long as what surrounds a block."""
    return tuple(map(_joined, map_chunks(problem, arrays)))


def _joined(lengths: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for n in lengths:
        if found and (found[-1] < ROUNDS or n < ROUNDS):
            found[-1] += n
        else:
            found.append(n)
    return tuple(found)


def with_halo(problem: SeriesProblem, arrays: Sequence[Array], grid: Chunks) -> list[Array]:
    """Arrays whose blocks contain the series around them, in blocks of the grid."""
    shape = arrays[0].shape
    own = dict(zip(problem.map_axes, grid, strict=True))
    found: list[Array] = []
    for array in arrays:
        varying = {d: c for d, c in own.items() if array.shape[d] == shape[d] and shape[d] > 1}
        if not varying:
            found.append(array)
            continue
        if is_dask(array):
            lazy = array.rechunk(varying)
        else:
            chunks = tuple(varying.get(d, n) for d, n in enumerate(array.shape))
            lazy = da.from_array(np.ma.asanyarray(array), chunks=chunks, name=False)
        # A single block, which may be shorter than what surrounds blocks, has nothing around it.
        depth = {d: ROUNDS if len(varying.get(d, ())) > 1 else 0 for d in range(array.ndim)}
        found.append(da.overlap.overlap(lazy, depth, "none", allow_rechunk=False))
    return found


def without_halo(answer: Any) -> Any:
    """A packed answer (k, ...) without the series around its blocks."""
    depth = {d: ROUNDS if d and n > 1 else 0 for d, n in enumerate(answer.numblocks)}
    return da.overlap.trim_internal(answer, depth, "none")
