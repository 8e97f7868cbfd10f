"""Values of the model for many series in Dask arrays, a task for each block of the map.

Arrays are cut to the blocks of y along the map, and are never expanded to its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.engines.series_values import values_of_block
from nlsq_dask.io.observations import Array
from nlsq_dask.io.sources import is_dask

# Index of the planes of the answer. The axes of y have the indexes 0, 1 and so on.
PLANES = -1


def lazy_values(
    problem: SeriesProblem,
    coords: Sequence[Array],
    params: Array,
    fit_shape: tuple[int, ...],
    arrays: Sequence[Array],
) -> Any:
    """Values of the model with the axes of y, as a Dask array; see `values_of_block`.

    Parameters
    ----------
    problem : SeriesProblem
    coords : sequence of array
        Coordinates with the axes of y.
    params : array, shape (p, ...)
        Estimates, with the axes of the map.
    fit_shape : tuple of int
        Lengths of the fitted axes.
    arrays : sequence of array
        Those of the fit, whose chunks the values have along the axes of the map.
    """
    grid = map_chunks(problem, arrays)
    full = list(arrays[0].shape)
    for d, n in zip(problem.fit_axes, fit_shape, strict=True):
        full[d] = n
    blocks, axes_of = _narrow(problem, coords, grid, tuple(full))
    if not is_dask(params):
        params = da.from_array(params, chunks=(-1, *grid))
    # Fitted axes are new in the values: an index that stays would keep the chunks of x.
    joined = [
        block.rechunk({i: -1 for i, d in enumerate(axes) if d in problem.fit_axes})
        for block, axes in zip(blocks[::2], blocks[1::2], strict=True)
    ]
    pairs = [item for pair in zip(joined, blocks[1::2], strict=True) for item in pair]
    known = {d for axes in blocks[1::2] for d in axes}
    new = {d: n for d, n in zip(problem.fit_axes, fit_shape, strict=True) if d not in known}
    return da.blockwise(
        _values_of_blocks,
        tuple(range(len(full))),
        params.rechunk((-1, *grid)),
        (PLANES, *problem.map_axes),
        *pairs,
        problem=problem,
        axes_of=axes_of,
        fit_shape=fit_shape,
        new_axes=new,
        concatenate=True,
        align_arrays=False,
        dtype=np.float64,
        meta=np.empty((0,) * len(full)),
    )


def map_chunks(problem: SeriesProblem, arrays: Sequence[Array]) -> tuple[tuple[int, ...], ...]:
    """Chunks of the answer along the axes of the map: those of y, or of the first lazy array."""
    shape = arrays[0].shape
    grid = []
    for d in problem.map_axes:
        lazy = (a.chunks[d] for a in arrays if is_dask(a) and a.shape[d] == shape[d])
        grid.append(next(lazy, (shape[d],)))
    return tuple(grid)


def _narrow(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    grid: tuple[tuple[int, ...], ...],
    full: tuple[int, ...],
) -> tuple[list[Any], tuple[tuple[int, ...], ...]]:
    """Arguments of blockwise: arrays without the axes along which they do not vary, and the axes.

    Along the axes of the map they have the chunks of the answer.
    """
    blocks: list[Any] = []
    axes_of = []
    for array in arrays:
        varying = tuple(d for d, n in enumerate(array.shape) if n > 1 or full[d] == 1)
        narrow = array[tuple(slice(None) if d in varying else 0 for d in range(array.ndim))]
        own = {
            i: grid[problem.map_axes.index(d)]
            for i, d in enumerate(varying)
            if d in problem.map_axes
        }
        if is_dask(narrow):
            narrow = narrow.rechunk(own) if own else narrow
        else:
            chunks = tuple(own.get(i, n) for i, n in enumerate(narrow.shape))
            narrow = da.from_array(np.ma.asanyarray(narrow), chunks=chunks)
        blocks += [narrow, varying]
        axes_of.append(varying)
    return blocks, tuple(axes_of)


def _values_of_blocks(
    params: FloatArray,
    *blocks: NDArray[Any],
    problem: SeriesProblem,
    axes_of: tuple[tuple[int, ...], ...],
    fit_shape: tuple[int, ...],
) -> FloatArray:
    """The task of values: see `values_of_block`."""
    return values_of_block(problem, _wide(problem, blocks, axes_of), params, fit_shape)


def _wide(
    problem: SeriesProblem,
    blocks: Sequence[NDArray[Any]],
    axes_of: tuple[tuple[int, ...], ...],
) -> list[NDArray[Any]]:
    """Blocks with all axes of y, of length 1 where they do not vary."""
    ndim = len(problem.fit_axes) + len(problem.map_axes)
    return [
        np.expand_dims(block, tuple(d for d in range(ndim) if d not in axes))
        for block, axes in zip(blocks, axes_of, strict=True)
    ]
