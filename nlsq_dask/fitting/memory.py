"""What a streaming fit keeps in memory, and the memory that it takes.

Threads, samples and kept rows are decided here, and planned for with the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlsq_dask.core.memory_budget import GB, SAMPLE_COPIES, SOLVER_BYTES, size_sample
from nlsq_dask.core.worker_memory import CHUNKS_A_THREAD, WORKER_BASE_BYTES
from nlsq_dask.fitting.job import Job
from nlsq_dask.io.stage import STAGE_ROWS

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.cache import CacheChoice
    from nlsq_dask.engines.dask.engine import Streaming
    from nlsq_dask.engines.dask.sampling import SampledBlocks

# Rows of streamed data, or blocks, of which a model's guess sees all: a guess that misses a peak,
# because it lies in another block, leads to another minimum. So many rows are read in a moment, and
# of so few blocks one shows too much.
FEW_ROWS = 1_000_000
FEW_BLOCKS = 16


def parallel(job: Job) -> tuple[int, int]:
    """Workers, and threads of all together that read at one time, of a streaming fit."""
    from nlsq_dask.engines.dask.cluster import worker_threads  # engines, loaded for use
    from nlsq_dask.engines.dask.scheduler import local_threads

    if job.client is not None:
        threads = worker_threads(job.client)
        return len(threads), sum(threads)
    assert job.plan.config is not None, "a streaming fit has blocks"
    return 0, min(local_threads(), job.plan.config.threads)


def streaming_of(job: Job) -> Streaming:
    """How a streaming fit reads: groups, threads, staging buffers, and what is kept."""
    from nlsq_dask.engines.dask.engine import Streaming  # an engine, loaded for use

    config = job.plan.config
    assert config is not None, "a streaming fit has blocks"
    assert job.stream is not None
    return Streaming(
        stream=job.stream,
        client=job.client,
        stage_rows=min(config.block_rows, STAGE_ROWS),
        threads=config.threads,
        cache=cache_choice(job),
        cache_bytes=cache_bytes(job),
    )


def sampled(job: Job) -> SampledBlocks | None:
    """What a streaming fit reads before its first pass; None for nothing."""
    from nlsq_dask.engines.dask.sampling import sampled_blocks  # an engine, loaded for use

    if job.stream is None or not (job.pilot or job.guess is not None):
        return None
    few = job.data.n_rows <= FEW_ROWS or job.stream.n_blocks <= FEW_BLOCKS
    return sampled_blocks(job.stream, sample_rows(job), whole=few and job.guess is not None)


def base_bytes(job: Job) -> int:
    """Memory that a streaming fit takes in this process, or in each worker, without any data."""
    return SOLVER_BYTES if job.client is None else WORKER_BASE_BYTES


def streaming_bytes(job: Job) -> int:
    """Memory that a streaming fit takes in this process, or in each worker, but for kept rows."""
    from nlsq_dask.engines.dask.pieces import largest_pieces, sources_of  # engines, loaded for use
    from nlsq_dask.engines.dask.prefetch import prefetch_depth

    config, stream = job.plan.config, job.stream
    assert config is not None, "a streaming fit has blocks"
    assert stream is not None
    # Zarr decodes whole chunks, however small the part that Dask asks for.
    held = max(stream.piece_bytes, largest_pieces(sources_of(job.data)))
    held += prefetch_depth(stream) * stream.block_bytes
    sample = sampled(job)
    return (
        base_bytes(job)
        + stream.held_bytes
        + config.threads * (config.thread_bytes + CHUNKS_A_THREAD * held)
        + (0 if sample is None else sample_bytes(job, sample.rows))
    )


def sample_bytes(job: Job, rows: int) -> int:
    """Bytes of a sample of so many rows, with the copies at the peak of taking it."""
    return SAMPLE_COPIES * 8 * (len(job.data.coords) + 2) * rows


def sample_rows(job: Job) -> int:
    """Rows of a sample of streamed data at most."""
    return size_sample(job.plan.budget.threshold_gb * GB, len(job.data.coords))


def cache_choice(job: Job) -> CacheChoice:
    """Whether to keep rows: what is read but once need not be."""
    return job.cache if job.options.max_nfev != 1 else False


def cache_bytes(job: Job) -> int:
    """What of the budget is left for kept rows."""
    return max(int(job.plan.budget.threshold_gb * GB) - streaming_bytes(job), 0)
