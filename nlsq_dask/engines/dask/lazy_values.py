"""A fitted model on Dask arrays: arrays of the same chunks, of which nothing is computed here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import compute, tokenize
from dask.delayed import Delayed, delayed

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.engines.dask.groups import GroupPlan, common_chunks, plan_stream
from nlsq_dask.engines.dask.prefetch import read_blocks
from nlsq_dask.engines.dask.runners import ClusterRunner, LocalRunner
from nlsq_dask.engines.dask.task import Work
from nlsq_dask.io.announced import checked
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.io.stage import Block, Layout
from nlsq_dask.questions.bad_rows import BadRows, bad_rows_of
from nlsq_dask.questions.histogram import BinSums, Grid, bin_blocks
from nlsq_dask.questions.row_values import (
    RowFunction,
    residuals_of_block,
    without_mask,
)

if TYPE_CHECKING:
    from distributed import Client


def chunks_of_rows(data: Observations) -> Chunks:
    """Chunks for what is computed of all rows: those of y, or else of the coordinates."""
    for array in data.operands:
        if is_dask(array) and array.shape == data.y.shape:
            chunks: Chunks = array.chunks
            return chunks
    return common_chunks(data)


def of_rows(function: RowFunction, data: Observations) -> da.Array:
    """Values of a function of rows, (...) float64, in the chunks of the rows."""
    return _blockwise("of-rows", _function_of_block, function, data, data.coords)


def residuals_of_rows(function: RowFunction, data: Observations) -> da.Array:
    """Observations minus values, (...) float64, in the chunks of the rows."""
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
    # Costs nothing to make, and gives each block its shape: all else may broadcast.
    rows = da.zeros(data.y.shape, chunks=chunks, dtype=bool)
    index = tuple(range(data.y.ndim))
    model = _as_one_task(function.for_blocks_of(_largest_block(chunks)))
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
    """The function as a node of the graph: all blocks refer to one copy of the model.

    Its name follows from the model's token, so that equal models have equal names in any process.
    """
    spec = function.spec
    numbers = (function.params, function.root, function.buffer_rows)
    what = (spec.row_key, spec.style, *numbers, function.device)
    model: Delayed = delayed(function, name=f"nlsq-model-{tokenize(*what)}", traverse=False)
    return model


def _names(data: Observations, operands: Sequence[Array]) -> Sequence[str]:
    """What messages call the arrays: all of the data, or the coordinates alone."""
    names = data.layout.names
    return names if len(operands) == len(names) else names[1 : 1 + len(operands)]


def _with_chunks(array: Array, chunks: Chunks, name: str) -> da.Array:
    """A Dask array of an array that broadcasts to rows of given chunks."""
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


def finite_range(array: Array, client: Client | None) -> tuple[float, float]:
    """Smallest and largest finite value of a Dask array, read once."""
    finite = da.isfinite(array)
    ends = (da.where(finite, array, np.inf).min(), da.where(finite, array, -np.inf).max())
    low, high = compute(*ends) if client is None else client.compute(ends, sync=True)
    return float(low), float(high)


def bin_rows(
    function: RowFunction, grid: Grid, data: Observations, client: Client | None
) -> BinSums:
    """Sum over all rows in one reading, as a pass of a fit does."""
    sums = _in_one_reading("bins", _bin_group, function, data, client, grid)
    assert isinstance(sums, BinSums)
    return sums


def bad_rows(function: RowFunction, data: Observations, client: Client | None) -> BadRows:
    """Look for rows without a finite squared residual in one reading, as a pass of a fit does."""
    rows = _in_one_reading("bad-rows", _bad_rows_of_group, function, data, client)
    assert isinstance(rows, BadRows)
    return rows


def _in_one_reading(
    name: str,
    of_group: Callable[..., Any],
    function: RowFunction,
    data: Observations,
    client: Client | None,
    *args: Any,
) -> Any:
    """Sum of what groups find: ``of_group(plan, external, work, params, chunks, *args)``."""
    plan = plan_stream(data)
    work = Work(function.spec, data.layout, function.device)
    runner = (
        LocalRunner(plan, work, _no_progress, None)
        if client is None
        else ClusterRunner(plan, work, client, _no_progress)
    )
    try:
        return runner.run(name, of_group, function.params, plan.chunks, *args)
    finally:
        runner.close()


def _bin_group(
    plan: GroupPlan,
    external: Sequence[Any],
    work: Work,
    params: FloatArray,
    chunks: Chunks,
    grid: Grid,
) -> BinSums:
    """Sum over the blocks of a group."""
    function = RowFunction(work.spec, params, device=work.device)
    blocks = _blocks(plan, external, work)
    return bin_blocks(function.for_blocks_of(_largest_block(chunks)), grid, blocks)


def _bad_rows_of_group(
    plan: GroupPlan, external: Sequence[Any], work: Work, params: FloatArray, chunks: Chunks
) -> BadRows:
    """Look at the blocks of a group."""
    function = RowFunction(work.spec, params, device=work.device)
    places = zip(plan.steps, _blocks(plan, external, work), strict=True)
    blocks = ((step.index, step.box, block) for step, block in places)
    return bad_rows_of(function.for_blocks_of(_largest_block(chunks)), blocks)


def _blocks(plan: GroupPlan, external: Sequence[Any], work: Work) -> Iterator[Block]:
    """Blocks of a group, given the values of ``plan.external`` in that order."""
    return read_blocks(plan, dict(zip(plan.external, external, strict=True)), work.layout)


def _largest_block(chunks: Chunks) -> int:
    """Rows of the largest block."""
    return math.prod(map(max, chunks))


def _no_progress(done: int, total: int) -> None:
    """Report nothing."""
