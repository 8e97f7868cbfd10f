"""Chunks that will hurt a fit of Dask arrays, and the call that makes better ones. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from dask.array.core import normalize_chunks

from nlsq_dask import _errors
from nlsq_dask.engines.groups import StreamPlan
from nlsq_dask.engines.reading import Reading, array_sources, sources_of, zarr_sources
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask

# Below so many bytes, and above so many of them, blocks cost more than their rows: the 12 to 75
# microseconds a block and pass that the benchmarks measure are the time to read 0.1 MB or so.
SMALL_BLOCK_BYTES = 1_000_000
MANY_BLOCKS = 10_000

# Bytes of the chunks that are recommended, of one array. The time to open one is then nothing, and
# three copies of each on many threads are still no memory.
GOOD_CHUNK_BYTES = 16_000_000

# Bytes of the chunks of one array that are recommended at most, where joined ones match.
MAX_JOINED_BYTES = 64_000_000

# Readings of each Zarr chunk a pass from which on it is worth saying. Edges alone make less.
NOTABLE_REPEATS = 1.1

# Data for which idle threads matter: less is read in a moment by one.
MIN_BYTES_TO_SHARE = 10_000_000

Named = Mapping[str, Array]


def advise(
    data: Observations, stream: StreamPlan, threads: int, reading: Reading
) -> tuple[str, ...]:
    """Texts, the worst first, on chunks that make a fit slower than it need be.

    Parameters
    ----------
    data : Observations
    stream : StreamPlan
        Its blocks and tasks.
    threads : int
        Threads that read, of all workers together.
    reading : Reading
        What a pass reads.
    """
    arrays = _named(data)
    # Whole Zarr chunks may well match; what to do otherwise shows only then.
    cuts = tuple(_cut_chunks(arrays)) or tuple(_unlike(data, arrays, reading))
    return (*cuts, *_small(arrays, stream), *_idle(arrays, stream, threads))


def _named(data: Observations) -> Named:
    """The Dask arrays by the names of arguments; stacked coordinates are one argument."""
    named: dict[str, Array] = {}
    names = [*data.names, *("mask" for _ in data.masks)]
    for name, array in zip(names, data.operands, strict=True):
        if is_dask(array):
            named.setdefault(
                "x" if data.structure == "stacked" and name[:2] == "x[" else name, array
            )
    return named


def _cut_chunks(arrays: Named) -> Iterator[str]:
    for name, array in arrays.items():
        for source in zarr_sources(array):
            if source.stored is not None and source.repeats > NOTABLE_REPEATS:
                pieces = tuple(map(max, source.pieces))
                wanted = _whole(source.stored, source.shape, pieces)
                yield _errors.zarr_chunks_cut(name, pieces, source.stored, source.repeats, wanted)


def _unlike(data: Observations, arrays: Named, reading: Reading) -> Iterator[str]:
    """Arrays of which one has cuts where another has none."""
    full = _full_size(arrays)
    if len({array.chunks for array in full.values()}) < 2:
        return
    grids = {name: tuple(map(max, array.chunks)) for name, array in full.items()}
    itemsize = max(int(array.dtype.itemsize) for array in full.values())
    shape = next(iter(full.values())).shape
    # Where all have cuts, so that no chunk is needed on both sides of one.
    common = zip(zip(*grids.values(), strict=True), shape, strict=True)
    wanted = tuple(min(math.lcm(*sizes), n) for sizes, n in common)
    if math.prod(wanted) * itemsize > MAX_JOINED_BYTES:
        wanted = max(grids.values(), key=math.prod)
    like = normalize_chunks(wanted, shape)
    calls = {name: wanted for name, array in full.items() if array.chunks != like}
    whole = sum(int(source.piece_bytes().sum()) for source in sources_of(data))
    yield _errors.chunks_differ(grids, max(reading.each_time + reading.once - whole, 0), calls)


def _small(arrays: Named, stream: StreamPlan) -> Iterator[str]:
    full = _full_size(arrays)
    mean = sum(int(array.nbytes) for array in arrays.values()) / stream.n_blocks
    if stream.n_blocks <= MANY_BLOCKS or mean >= SMALL_BLOCK_BYTES or not full:
        return
    calls = {}
    for name, array in full.items():
        chunk = tuple(map(max, array.chunks))
        calls[name] = _joined(chunk, array.shape, int(array.dtype.itemsize))
    yield _errors.chunks_small(stream.n_blocks, mean, calls)


def _idle(arrays: Named, stream: StreamPlan, threads: int) -> Iterator[str]:
    """Fewer tasks than threads."""
    tasks = len(stream.groups)
    full = _full_size(arrays)
    whole = sum(int(array.nbytes) for array in arrays.values())
    if tasks >= threads or whole < MIN_BYTES_TO_SHARE or not full:
        return
    calls, stored = {}, False
    for name, array in full.items():
        stored = stored or any(source.stored for source in array_sources(array))
        calls[name] = _cut(tuple(map(max, array.chunks)), -(-threads // tasks))
    yield _errors.workers_idle(tasks, threads, calls, stored)


def _full_size(arrays: Named) -> Named:
    """The arrays that do not broadcast."""
    most = max((int(array.size) for array in arrays.values()), default=0)
    return {name: array for name, array in arrays.items() if array.size == most}


def _whole(
    stored: tuple[int, ...], shape: tuple[int, ...], least: tuple[int, ...]
) -> tuple[int, ...]:
    """As many whole Zarr chunks as make up ``least``."""
    sizes = zip(stored, shape, least, strict=True)
    return tuple(min(-(-size // chunk) * chunk, n) for chunk, n, size in sizes)


def _joined(chunk: tuple[int, ...], shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Whole chunks that make up about GOOD_CHUNK_BYTES.

    Joined along the last dimensions first, along which rows are neighbours in storage.
    """
    joined = list(chunk)
    for d in reversed(range(len(joined))):
        room = GOOD_CHUNK_BYTES // (math.prod(joined) * itemsize)
        joined[d] = min(joined[d] * max(room, 1), shape[d])
    return tuple(joined)


def _cut(chunk: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """A chunk cut into about so many parts, along its first dimensions first."""
    cut = []
    for n in chunk:
        pieces = min(parts, n)
        cut.append(-(-n // pieces))
        parts = -(-parts // pieces)
    return tuple(cut)
