"""Values and residuals of a fitted model on Dask arrays, as Dask arrays; nothing is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed, delayed

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.dask.groups import common_chunks
from nlsq_dask.io.announced import checked
from nlsq_dask.io.chunks import Chunks, largest_block
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Layout
from nlsq_dask.questions.row_values import (
    RowFunction,
    residuals_of_block,
    without_mask,
)


def chunks_of_rows(data: Observations) -> Chunks:
    """Chunk grid of values of all rows: that of the first array of y's shape, else a common one."""
    for array in data.operands:
        if is_dask(array) and array.shape == data.y.shape:
            whole = ((n,) if d in data.series_axes else None for d, n in enumerate(array.shape))
            return tuple(w or own for w, own in zip(whole, array.chunks, strict=True))
    return common_chunks(data)


def of_rows(function: RowFunction, data: Observations) -> da.Array:
    """Values of a function of rows, y's shape, float64, in the chunks of the rows."""
    return _blockwise("of-rows", _function_of_block, function, data, data.coords)


def residuals_of_rows(function: RowFunction, data: Observations) -> da.Array:
    """Observations minus values, y's shape, float64, in the chunks of the rows."""
    return _blockwise("residuals", _residuals_of_block, function, data, data.operands)


def _blockwise(
    name: str,
    of_block: Callable[..., FloatArray],
    function: RowFunction,
    data: Observations,
    operands: Sequence[Array],
) -> da.Array:
    chunks = chunks_of_rows(data)
    named = zip(operands, _names(data, operands), strict=True)
    arrays = [_with_chunks(array, chunks, name) for array, name in named]
    # This array gives each block its shape, because all others may broadcast. It costs nothing.
    rows = da.zeros(data.y.shape, chunks=chunks, dtype=bool)
    index = tuple(range(data.y.ndim))
    model = _as_one_task(function.for_blocks_of(largest_block(chunks)))
    token = tokenize(model.key, repr(data.layout), chunks, *(a.name for a in arrays))
    lazy: da.Array = da.blockwise(
        of_block,
        index,
        *itertools.chain.from_iterable((a, index) for a in (rows, *arrays)),
        function=model,
        layout=data.layout,
        name=f"nlsq-{name}-{token}",
        dtype=np.dtype(np.float64),
        meta=np.empty((0,) * data.y.ndim),
        align_arrays=False,
    )
    return lazy


def _as_one_task(function: RowFunction) -> Delayed:
    """The function as one node of the graph, so that all blocks refer to one copy of the model.

    Its name is made from the model's token: equal models have equal names in any process.
    """
    spec = function.spec
    numbers = (function.params, function.root, function.buffer_rows, spec.series)
    what = (spec.row_key, spec.style, *numbers, function.device)
    model: Delayed = delayed(function, name=f"nlsq-model-{tokenize(*what)}", traverse=False)
    return model


def _names(data: Observations, operands: Sequence[Array]) -> Sequence[str]:
    """Names of the arrays in messages; the operands are all arrays, or the coordinates alone."""
    names = data.layout.names
    return names if len(operands) == len(names) else names[1 : 1 + len(operands)]


def _with_chunks(array: Array, chunks: Chunks, name: str) -> da.Array:
    """An array that broadcasts to the rows, as a Dask array in the chunks of the rows."""
    wanted = tuple(c if sum(c) == n else (1,) for n, c in zip(array.shape, chunks, strict=True))
    lazy: da.Array = checked(array, name) if is_dask(array) else da.from_array(array, chunks=wanted)
    return lazy if lazy.chunks == wanted else lazy.rechunk(wanted)


def _function_of_block(
    rows: Array, *coords: Array, function: RowFunction, layout: Layout
) -> FloatArray:
    del layout
    return function([without_mask(c) for c in coords], rows.shape)


def _residuals_of_block(
    _: Array, *operands: Array, function: RowFunction, layout: Layout
) -> FloatArray:
    return residuals_of_block(function, layout.block(operands))


def finite_range(array: Array, executor: Executor) -> tuple[float, float]:
    """Smallest and largest finite value of a Dask array, read once."""
    finite = da.isfinite(array)
    ends = (da.where(finite, array, np.inf).min(), da.where(finite, array, -np.inf).max())
    low, high = executor.compute(*ends)
    return float(low), float(high)
