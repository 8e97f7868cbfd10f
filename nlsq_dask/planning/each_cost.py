"""The cost of many fits before they run: blocks, bytes, memory. Nothing is read."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import GB, SAFETY_FACTOR
from nlsq_dask.core.resources import available_cores, available_memory
from nlsq_dask.core.series_memory import FRAME_READINGS
from nlsq_dask.core.worker_memory import fitting_chunks
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.neighbours import wants
from nlsq_dask.fitting.each import EachJob, series_reading
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.sources import is_dask
from nlsq_dask.kernels.lanes import LANES, TILES, TileShape, constant_rows, n_state_rows
from nlsq_dask.results.maps_plan import MapsPlan

# Copies of the rows of a batch of tiles: as float64, as tiles, and as they go to the pool.
BATCH_COPIES = 3

# Copies of the answers of a block: as they are computed, packed, and as maps.
ANSWER_COPIES = 3

# A block with fewer series costs as much as a block of this many: the program works on tiles.
FEW_SERIES = LANES // 4

# Fewer small blocks than this take less than a second together, and need no warning.
MANY_BLOCKS_OF_SERIES = 100

# Series of a recommended block: those of some calls of the program.
GOOD_SERIES = 2 * TILES * LANES


def plan_of_each(job: EachJob, executor: Executor, *, stored: bool = False) -> MapsPlan:
    """State what many fits will cost.

    Parameters
    ----------
    job : EachJob
        With y in regions, where the maps are stored.
    executor : Executor
        Where the fits run.
    stored : bool
        Whether the maps are written to a store.
    """
    reading = series_reading(job, executor)
    grid = tuple((n,) for n in job.axes.map_shape) if reading is None else reading.regions
    in_frames = reading is not None and reading.strategy == "frames"
    joined = 1 if in_frames else _joined(job)
    largest = tuple(map(max, grid))
    series = math.prod(largest)
    blocks = math.prod(map(len, grid))
    workers, threads, at_one_time, available = _machine(job, executor, blocks)
    read = largest if reading is None else _read_together(job, grid)
    block_bytes = _block_bytes(job, read)
    task = _task_bytes(job, math.prod(read), block_bytes, joined=joined)
    if reading is not None and in_frames:
        task = int(reading.task_bytes)
    base = executor.base_bytes
    memory = base + at_one_time * task
    maps = sum(
        math.prod(job.axes.map_shape) * (f.planes.stop - f.planes.start) * f.dtype.itemsize
        for f in job.problem.fields
    )
    if not stored and not workers:
        memory += maps
    return MapsPlan(
        series=math.prod(job.axes.map_shape),
        rows=job.axes.n_rows,
        params=len(job.problem.reduction.names),
        strategy="standard" if reading is None else reading.strategy,
        blocks=blocks,
        joined=joined,
        block_series=series,
        block_bytes=block_bytes,
        workers=workers,
        threads=threads,
        data_bytes=sum(int(a.nbytes) for a in job.arrays),
        readings=FRAME_READINGS if in_frames else 1,
        bytes_read=_bytes_read(job, grid) * (_frames_decoded(job, blocks) if in_frames else 1),
        bytes_of_maps=maps,
        stored=stored,
        memory_bytes=memory,
        available_bytes=available,
        warnings=tuple(
            _warnings(
                job,
                grid,
                blocks=blocks,
                memory=memory,
                available=available,
                base=base,
                at_one_time=at_one_time,
                in_frames=in_frames,
            )
        ),
        decoded=job.data.decoded,
    )


def _read_together(job: EachJob, grid: Chunks) -> tuple[int, ...]:
    """Lengths of the largest block along the map, with the neighbours that it needs."""
    from nlsq_dask.engines.dask.series_halo import surrounded  # an engine, loaded for use

    return tuple(map(max, surrounded(grid) if wants(job.problem) else grid))


def _joined(job: EachJob) -> int:
    """Chunks of y that a block joins to whole series."""
    y = job.arrays[0]
    return math.prod(len(y.chunks[d]) for d in job.axes.fit) if is_dask(y) else 1


def _machine(job: EachJob, executor: Executor, blocks: int) -> tuple[int, int, int, int]:
    """Workers, all threads, tasks at one time in a process, and bytes of its memory."""
    given = job.memory_limit_gb
    memory_here = available_memory() if given is None else int(given * GB)
    if not job.lazy:  # the series of the one block are shared out to threads
        return 0, available_cores(), 1, memory_here
    workers, threads = executor.parallel()
    worker = executor.smallest_worker()
    if worker is None:  # in this process, or on a cluster whose workers are still to come
        return workers, threads, max(min(threads, blocks), 1), memory_here
    available = worker.memory_bytes if given is None else memory_here
    return workers, threads, worker.threads, available


def _block_bytes(job: EachJob, largest: tuple[int, ...]) -> int:
    """Decoded bytes of the largest block of all arrays."""
    sizes = dict(zip(job.axes.map, largest, strict=True))
    return sum(
        math.prod(min(n, sizes.get(d, n)) for d, n in enumerate(a.shape)) * int(a.dtype.itemsize)
        for a in job.arrays
    )


def _task_bytes(job: EachJob, series: int, block_bytes: int, *, joined: int) -> int:
    """Memory of a task: its block, one batch of tiles, and the answers."""
    problem = job.problem
    n_params, size = problem.reduction.matrix.shape
    shape = TileShape.of(problem.model(job.axes.n_rows))
    batch = min(-(-series // shape.lanes), shape.tiles) * shape.lanes
    varying = sum(role.along and role.varies for role in problem.roles)
    state = n_state_rows(size) + constant_rows(n_params, size).height(based=False)
    of_rows = BATCH_COPIES * shape.rows * varying
    if not problem.row_wise:  # the derivatives of a tile are stored
        of_rows += shape.rows * (size + 1) // shape.tiles
    block = block_bytes * (2 if joined > 1 else 1) if job.lazy else 0
    answer = ANSWER_COPIES * (state + problem.n_planes) * series
    return block + 8 * (batch * (of_rows + state) + answer)


def _frames_decoded(job: EachJob, regions: int) -> int:
    """How often each frame is decoded: in each reading, for each region of its chunk of the map."""
    from nlsq_dask.engines.dask.series import map_chunks  # an engine, loaded for use

    chunks = math.prod(map(len, map_chunks(job.problem, job.arrays)))
    return FRAME_READINGS * -(-regions // chunks)


def _bytes_read(job: EachJob, grid: Chunks) -> int:
    """Bytes of one reading: a piece decodes whole Zarr chunks, and is made once.

    A piece that lies in a block and around another is made for both.
    """
    if not job.lazy:
        return 0
    from nlsq_dask.engines.dask.pieces import pieced_arrays_in  # an engine, loaded for use
    from nlsq_dask.engines.dask.series_halo import times_made

    found = (p for a in job.arrays if is_dask(a) for p in pieced_arrays_in(a))
    pieces = {p.name: p for p in found}.values()
    made = {
        p.name: times_made(job.problem, grid, p.pieces) if wants(job.problem) else 1 for p in pieces
    }
    return sum(int((p.piece_bytes() * made[p.name]).sum()) for p in pieces if not p.in_memory)


def _warnings(
    job: EachJob,
    grid: Chunks,
    *,
    blocks: int,
    memory: int,
    available: int,
    base: int,
    at_one_time: int,
    in_frames: bool,
) -> Iterator[str]:
    """What makes the fits slow, or too large, and the call that helps.

    Regions of frames are cut such that they fit.
    """
    largest = tuple(map(max, grid))
    usable = max(available * SAFETY_FACTOR - base, available / 4)
    if memory > base + usable and job.lazy and not in_frames:
        series = math.prod(largest)
        share = usable / max(memory - base, 1)
        fitting = fitting_chunks(largest, int(series * share))
        yield _errors.blocks_of_series_too_large(
            memory / GB, available / GB, at_one_time, _chunks_of_y(job, fitting)
        )
    elif blocks > MANY_BLOCKS_OF_SERIES and math.prod(largest) < FEW_SERIES:
        wanted = fitting_chunks(job.axes.map_shape, GOOD_SERIES)
        yield _errors.blocks_of_few_series(blocks, math.prod(largest), _chunks_of_y(job, wanted))


def _chunks_of_y(job: EachJob, largest: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks of y that hold whole series of such a part of the map."""
    sizes = dict(zip(job.axes.map, largest, strict=True))
    return tuple(sizes.get(d, n) for d, n in enumerate(job.axes.shape))
