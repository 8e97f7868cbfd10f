"""Choose how the rows of a fit are read: the workflow, the cluster, the width of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import GB
from nlsq_dask.core.resources import XLA_VECTOR_BITS, vector_bits
from nlsq_dask.core.workflow import Machine, Problem, WorkflowPlan, plan_workflow
from nlsq_dask.fitting.job import Source, stream_of
from nlsq_dask.fitting.options import RunOptions
from nlsq_dask.fitting.strategy import Chunked, Standard, Strategy, Streamed
from nlsq_dask.io.sources import Observations, is_dask
from nlsq_dask.kernels.compiled import compiles_for_wide_vectors
from nlsq_dask.kernels.devices import DeviceChoice, check_names_no_devices, find_device, free_memory

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask.groups import Stream


def chosen_strategy(
    source: Source, n_params: int, row_wise: bool, options: RunOptions
) -> tuple[WorkflowPlan, Strategy]:
    """The workflow, and how the rows are read."""
    data = source.data
    client, stream = None, None
    if data.lazy:
        client, stream = _active_client(options.client), source.stream
        if client is not None:
            check_names_no_devices(options.device)
    plan = _plan(data, n_params, row_wise, options, client, stream)
    blocks = plan.config
    if blocks is None:
        return plan, Standard()
    if plan.strategy != "streaming":
        return plan, Chunked(blocks)
    if stream is None:
        # Data in memory go to a cluster only if the caller names the cluster: on the active cluster
        # they would take the same memory once more.
        client, stream = options.client, stream_of(data, blocks)
    if options.diagnostics:
        stream = stream_of(data, None if data.lazy else blocks, each=True)
    return plan, Streamed(blocks, stream, client)


def check_client(client: Any) -> None:
    """Refuse what is no client, and clients with which a fit would hang."""
    if not hasattr(client, "scheduler"):
        raise _errors.not_a_client(client)
    if not hasattr(client, "submit"):
        raise _errors.cluster_as_client(client)
    # An asynchronous client that was not awaited is not connected, either.
    if client.asynchronous:
        raise _errors.client_asynchronous()
    if client.status != "running":
        raise _errors.client_not_running(client.status)


def _active_client(wanted: Client | None) -> Client | None:
    from nlsq_dask.engines.dask.scheduler import active_client  # an engine, loaded for use

    client = active_client(wanted)
    if client is not None:
        check_client(client)
    return client


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
    if isinstance(strategy, Streamed) and strategy.client is not None:
        from nlsq_dask.engines.dask.vectors import narrowest_vectors  # an engine, loaded for use

        return min(here, narrowest_vectors(strategy.client))
    return here


def _plan(
    data: Observations,
    n_params: int,
    row_wise: bool,
    options: RunOptions,
    client: Client | None,
    stream: Stream | None,
) -> WorkflowPlan:
    worker, threads = None, None
    if client is not None:
        from nlsq_dask.engines.dask.cluster import smallest_worker  # an engine, loaded for use

        worker = smallest_worker(client)
    elif data.lazy:
        from nlsq_dask.engines.dask.scheduler import local_threads  # an engine, loaded for use

        threads = local_threads()
    on_gpu = client is None and find_device(options.device).platform != "cpu"
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
            threads=threads,
            worker=worker,
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
