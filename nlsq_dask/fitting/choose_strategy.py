"""Choose how the rows of a fit are read: the workflow, the blocks, the width of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlsq_dask.core.memory_budget import GB
from nlsq_dask.core.resources import XLA_VECTOR_BITS, vector_bits
from nlsq_dask.core.workflow import Machine, Problem, WorkflowPlan, plan_workflow
from nlsq_dask.engines.dask.executor import LOCAL, Executor
from nlsq_dask.fitting.job import Source, stream_of
from nlsq_dask.fitting.options import RunOptions
from nlsq_dask.fitting.strategy import Chunked, Standard, Strategy, Streamed
from nlsq_dask.io.sources import Observations, is_dask
from nlsq_dask.kernels.compiled import compiles_for_wide_vectors
from nlsq_dask.kernels.devices import DeviceChoice, find_device, free_memory

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.groups import Stream


def chosen_strategy(
    source: Source, n_params: int, row_wise: bool, options: RunOptions, executor: Executor
) -> tuple[WorkflowPlan, Strategy]:
    """The workflow, and how the rows are read. Data in memory are planned for this process."""
    data = source.data
    stream = None
    if data.lazy:
        stream = source.stream
        executor.check_devices(options.device)
    where = executor if data.lazy else LOCAL
    plan = _plan(data, n_params, row_wise, options, where, stream)
    blocks = plan.config
    if blocks is None:
        return plan, Standard()
    if plan.strategy != "streaming":
        return plan, Chunked(blocks)
    if stream is None:
        stream = stream_of(data, blocks)
    if options.diagnostics:
        stream = stream_of(data, None if data.lazy else blocks, each=True)
    return plan, Streamed(blocks, stream, executor)


def bits_of_process(device: DeviceChoice) -> int:
    """Bits of the vectors that this process can compile kernels for."""
    here = vector_bits()
    if here == XLA_VECTOR_BITS or find_device(device).platform != "cpu":
        return XLA_VECTOR_BITS
    return here if compiles_for_wide_vectors() else XLA_VECTOR_BITS


def bits_for(strategy: Strategy, device: DeviceChoice) -> int:
    """Bits of the vectors that this process and all workers can compile kernels for."""
    here = bits_of_process(device)
    if here == XLA_VECTOR_BITS:
        return here
    return strategy.executor.vector_bits(here) if isinstance(strategy, Streamed) else here


def _plan(
    data: Observations,
    n_params: int,
    row_wise: bool,
    options: RunOptions,
    executor: Executor,
    stream: Stream | None,
) -> WorkflowPlan:
    on_gpu = executor.uses_gpu(options.device)
    free = free_memory(options.device) if on_gpu else None
    chunk, piece_bytes, held_bytes = None, 0, 0
    if stream is not None:
        chunk = _largest_chunk(data, stream)
        piece_bytes, held_bytes = stream.piece_bytes, stream.shared_bytes
    return plan_workflow(
        Problem(
            data.n_rows,
            n_params,
            len(data.coords),
            lazy=data.lazy,
            row_wise=row_wise,
            broadcasts=not data.flat,
            chunks=chunk,
            chunk_bytes=piece_bytes,
            held_bytes=held_bytes,
            series_rows=data.series_rows,
            series_axes=data.series_axes,
        ),
        Machine(
            options.memory_limit_gb,
            use_gpu=on_gpu,
            gpu_memory_gb=None if free is None else free / GB,
            threads=executor.local_threads() if data.lazy else None,
            worker=executor.smallest_worker(),
        ),
        options.workflow,
        options.goal,
        strategy=options.strategy,
        n_starts=options.n_starts,
        tolerances=options.tolerances,
    )


def _largest_chunk(data: Observations, stream: Stream) -> tuple[int, ...]:
    """Largest shape that a thread reads at a time.

    Where the chunks of the arrays differ, blocks are cut from larger chunks.
    """
    full = (a for a in data.operands if is_dask(a) and a.shape == data.y.shape)
    grids = [stream.chunks, *(a.chunks for a in full)]
    return tuple(max(map(max, cuts)) for cuts in zip(*grids, strict=True))
