"""The memory of a worker, and the buffers and chunks that fit.

Everything in this module is arithmetic on numbers, before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import (
    MAX_ROWS,
    MAX_ROWS_SMALL,
    SAFETY_FACTOR,
    THREAD_BYTES,
    BlockConfig,
    bytes_of_row,
    rows_within,
)

# Memory of a worker before it reads a chunk: the interpreter, Dask, Zarr, JAX and the compiled
# model, measured as 285 to 400 MB.
WORKER_BASE_BYTES = 400_000_000

# Memory of a thread at the peak of reading a chunk, in decoded chunks: the result, the decoder's
# output, and the encoded bytes. Measured with Zarr 3.1: 2.96 for noise with zstd, 2.0 without
# compression.
CHUNKS_A_THREAD = 3


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The worker of a cluster with the least memory a thread.

    Attributes
    ----------
    memory_bytes : int
        Memory limit of the worker; without a limit, its share of the machine's memory.
    threads : int
        Tasks at one time.
    base_bytes : int
        Memory of the worker before it reads data.
    """

    memory_bytes: int
    threads: int
    base_bytes: int = WORKER_BASE_BYTES

    @property
    def room(self) -> float:
        """Memory for chunks, in bytes: usable memory less ``base_bytes``, at least a quarter."""
        usable = self.memory_bytes * SAFETY_FACTOR
        return max(usable - self.base_bytes, usable / 4)


def size_stage(
    worker: WorkerMemory,
    n_params: int,
    n_features: int = 1,
    *,
    use_gpu: bool = False,
    small_memory: bool = False,
) -> BlockConfig:
    """Size the buffers of a worker through which the chunks of Dask arrays pass.

    Buffers may take a quarter of the worker's room; the chunks need the rest. A fit does not choose
    the worker's number of threads. All but very small workers have room for the largest buffers, so
    that the bits of a sum do not depend on the division of a cluster into workers.
    """
    limit = MAX_ROWS_SMALL if small_memory else MAX_ROWS["chunked"]
    row_bytes = bytes_of_row(n_params, n_features, use_gpu)
    room = worker.room / 4 / worker.threads
    rows = min(limit, rows_within(room, row_bytes))
    return BlockConfig(
        block_rows=rows, threads=worker.threads, thread_bytes=THREAD_BYTES + rows * row_bytes
    )


def check_chunk_fits(
    worker: WorkerMemory,
    chunk_bytes: int,
    chunks: tuple[int, ...],
    config: BlockConfig,
    uncut: Sequence[int] = (),
) -> None:
    """Refuse chunks with which a worker would run out of memory.

    Every thread of a worker reads one chunk at a time. Meanwhile it holds :data:`CHUNKS_A_THREAD`
    times the decoded size of the chunk.

    Parameters
    ----------
    worker : WorkerMemory
    chunk_bytes : int
        Decoded bytes of the largest chunk, of all arrays together.
    chunks : tuple of int
        Shape of this chunk.
    config : BlockConfig
        The worker's buffers, from :func:`size_stage`.
    uncut : sequence of int
        Axes along which a block holds all chunks.

    Raises
    ------
    InputError
        If a chunk is too large, with both sizes and the call that makes smaller chunks; or if there
        is room for no chunk, with the memory that this chunk needs.
    """
    room = worker.room / worker.threads - config.thread_bytes
    fitting = max(room, 0.0) / CHUNKS_A_THREAD
    if chunk_bytes <= fitting:
        return
    row_bytes = chunk_bytes / math.prod(chunks)
    if fitting < row_bytes * math.prod(chunks[d] for d in uncut):
        # Buffers take a quarter of the room, at least twice the other memory of a thread.
        room = worker.threads * max(4 / 3 * CHUNKS_A_THREAD * chunk_bytes, 8 * THREAD_BYTES)
        least = min(room + worker.base_bytes, 4 * room) / SAFETY_FACTOR
        raise _errors.memory_too_small(worker.memory_bytes, worker.threads, least)
    smaller = fitting_chunks(chunks, int(fitting / row_bytes), uncut)
    raise _errors.chunk_too_large(
        chunks,
        chunk_bytes=chunk_bytes,
        memory_bytes=worker.memory_bytes,
        threads=worker.threads,
        fitting_bytes=int(fitting),
        fitting_chunks=smaller,
        joined=uncut,
    )


def check_held_fit(worker: WorkerMemory, held_bytes: int) -> None:
    """Refuse kept chunks that leave a worker too little room.

    Raises
    ------
    InputError
        If less than a quarter of the usable memory is free, with both sizes and the remedy.
    """
    usable = worker.memory_bytes * SAFETY_FACTOR
    room = max(usable * 3 / 4 - worker.base_bytes, 0.0)
    if held_bytes > room:
        raise _errors.chunks_held(held_bytes, worker.memory_bytes, int(room))


def fitting_chunks(
    chunks: tuple[int, ...], max_rows: int, uncut: Sequence[int] = ()
) -> tuple[int, ...]:
    """Cut a chunk down to a number of rows, along the first dimensions first.

    The rows of a chunk then stay neighbours in storage of C order.

    Parameters
    ----------
    chunks : tuple of int
        Shape of the chunk, without dimensions of length 0.
    max_rows : int
        Most rows; below 1 counts as 1.
    uncut : sequence of int
        Axes that are not cut.
    """
    smaller = list(chunks)
    room = max(max_rows // math.prod(chunks[d] for d in uncut), 1)
    for d in reversed([d for d in range(len(chunks)) if d not in uncut]):
        smaller[d] = min(chunks[d], room)
        room = max(room // chunks[d], 1)
    return tuple(smaller)
