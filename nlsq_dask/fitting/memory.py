"""What a streaming fit keeps in memory, and the memory that it takes.

Threads, samples and kept rows are decided here, and planned for with the same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nlsq_dask import _errors
from nlsq_dask._errors import ClusterWarning
from nlsq_dask.core.memory_budget import GB, SAMPLE_COPIES, size_sample
from nlsq_dask.core.structure import whole_series
from nlsq_dask.core.worker_memory import CHUNKS_A_THREAD
from nlsq_dask.engines.collapsed import varies_along
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.strategy import Streamed
from nlsq_dask.io.stage import STAGE_ROWS

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.cache import CacheChoice
    from nlsq_dask.engines.dask.engine import Streaming
    from nlsq_dask.engines.dask.sampling import SampledBlocks
    from nlsq_dask.engines.dask.steps import Group

# A model's guess sees all rows of streamed data of at most so many rows, or so many blocks. A guess
# that misses a peak, which lies in a block that was not sampled, leads to another minimum. So few
# rows are read in a moment, and each of so few blocks is a large part of the data.
MOST_GUESSED_ROWS = 1_000_000
MOST_GUESSED_BLOCKS = 16

# Numbers that describe the observations at one coordinate: weight, mean and scatter.
SPREAD_VALUES = 3


def streaming_of(job: Job, streamed: Streamed) -> Streaming:
    """How a streaming fit reads: groups, threads, staging buffers, and what is kept."""
    from nlsq_dask.engines.dask import reading  # an engine, loaded for use
    from nlsq_dask.engines.dask.engine import Streaming

    return Streaming(
        stream=streamed.stream,
        executor=streamed.executor,
        stage_rows=whole_series(min(streamed.blocks.block_rows, STAGE_ROWS), job.data.series_rows),
        threads=streamed.blocks.threads,
        cache=_cache_choice(job),
        cache_bytes=_cache_bytes(job, streamed),
        retries=reading.Retries(job.retries, reading.FIRST_WAIT),
        omits=job.on_error == "omit",
    )


def sampled(job: Job, streamed: Streamed) -> SampledBlocks | None:
    """What a streaming fit reads before its first pass; None for nothing."""
    from nlsq_dask.engines.dask.sampling import sampled_blocks  # an engine, loaded for use

    # A guess from collapsed rows is made from the means.
    if job.n_distinct or not (job.pilot or job.guess is not None):
        return None
    few = job.data.n_rows <= MOST_GUESSED_ROWS or streamed.stream.n_blocks <= MOST_GUESSED_BLOCKS
    whole = few and job.guess is not None and job.spec.series is None
    return sampled_blocks(streamed.stream, sample_rows(job), whole=whole)


def streaming_bytes(job: Job, streamed: Streamed) -> int:
    """Memory of a streaming fit in this process, or in each worker, without kept rows."""
    sample = sampled(job, streamed)
    return (
        reading_bytes(job, streamed)
        + (0 if sample is None else sample_bytes(job, sample.rows))
        + (collapse_bytes(job) if job.n_distinct else 0)
    )


def pausing(job: Job, streamed: Streamed) -> ClusterWarning | None:
    """Warning of a worker that pauses, as its memory with this fit is above Dask's threshold.

    Kept rows do not count: they are given what is left, up to a lower threshold.
    """
    from nlsq_dask.engines.dask.cluster import pause_bytes  # loaded for use

    worker = streamed.executor.smallest_worker()
    if worker is None:
        return None
    planned, most = reading_bytes(job, streamed), pause_bytes(worker)
    if planned <= most:
        return None
    return _errors.worker_may_pause(
        planned, limit=worker.memory_bytes, pauses_at=most, base=streamed.executor.base_bytes
    )


def reading_bytes(job: Job, streamed: Streamed) -> int:
    """Memory to read and sum in this process, or in each worker, with the program itself."""
    from nlsq_dask.engines.dask.pieces import largest_pieces, pieced_arrays_of  # loaded for use
    from nlsq_dask.engines.dask.prefetch import prefetch_depth

    blocks, stream = streamed.blocks, streamed.stream
    # Zarr decodes whole chunks, even where Dask asks for a small part.
    piece_bytes = max(stream.piece_bytes, largest_pieces(pieced_arrays_of(job.data)))
    piece_bytes += prefetch_depth(stream) * stream.block_bytes
    return (
        streamed.executor.base_bytes
        + stream.shared_bytes
        + blocks.threads * (blocks.thread_bytes + CHUNKS_A_THREAD * piece_bytes)
        + (_bytes_on_the_way(job, streamed) if job.n_distinct else 0)
    )


def collapse_bytes(job: Job) -> int:
    """Bytes of the means at the distinct coordinates: as they come, as one table, and staged."""
    n_coords, tables = len(job.data.coords), _tables(job)
    return job.n_distinct * (2 * _cell_bytes(job) + 8 * tables * (n_coords + 2))


def _tables(job: Job) -> int:
    """Kinds of means: with equal weights, and with those of sigma."""
    return 1 if job.data.sigma is None else 2


def _cell_bytes(job: Job) -> int:
    """Bytes of the means at one coordinate: weight, mean and scatter, and the coordinate."""
    return 8 * (SPREAD_VALUES * _tables(job) + len(job.data.coords))


def _bytes_on_the_way(job: Job, streamed: Streamed) -> int:
    """Bytes of the answers of groups that wait to be added, in one process at worst."""
    from nlsq_dask.engines.dask.tree import TREE_WIDTH  # an engine, loaded for use

    varies = varies_along(job.data)

    def cells(group: Group) -> int:
        boxes = {
            tuple((s.start, s.stop) for s, v in zip(step.box, varies, strict=True) if v)
            for step in group.steps
        }
        return sum(math.prod(stop - start for start, stop in box) for box in boxes)

    size, count = max(map(cells, streamed.stream.groups)), len(streamed.stream.groups)
    total = streamed.blocks.threads * size
    while count > 1:
        total += min(count, TREE_WIDTH) * size
        size, count = min(TREE_WIDTH * size, job.n_distinct), -(-count // TREE_WIDTH)
    return total * _cell_bytes(job)


def sample_bytes(job: Job, rows: int) -> int:
    """Bytes of a sample of so many rows, with all copies that exist while the sample is taken."""
    return SAMPLE_COPIES * 8 * (len(job.data.coords) + 2) * rows


def sample_rows(job: Job) -> int:
    """Rows of a sample of streamed data at most."""
    return size_sample(job.plan.budget.threshold_gb * GB, len(job.data.coords))


def _cache_choice(job: Job) -> CacheChoice:
    """Whether to keep rows. Rows that are read only once are not kept."""
    return job.cache if job.options.max_nfev != 1 and not job.n_distinct else False


def _cache_bytes(job: Job, streamed: Streamed) -> int:
    """Part of the memory budget for kept rows."""
    if job.n_distinct:
        return 0
    return max(int(job.plan.budget.threshold_gb * GB) - streaming_bytes(job, streamed), 0)
