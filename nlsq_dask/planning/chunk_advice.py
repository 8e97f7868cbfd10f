"""Chunks that slow a fit of Dask arrays down, and the call for better chunks. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dask.array.core import normalize_chunks

from nlsq_dask import _errors
from nlsq_dask.core.structure import argument_name
from nlsq_dask.engines.dask.groups import Stream
from nlsq_dask.engines.dask.pieces import pieced_arrays_in, pieced_arrays_of, zarr_arrays_in
from nlsq_dask.io.arguments import Sizes
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.planning.bytes_read import Reading

# Blocks with fewer bytes, if there are more blocks than this, cost more than their rows. The
# benchmarks measure 12 to 75 µs for a block and pass, the time to read about 0.1 MB.
SMALL_BLOCK_BYTES = 1_000_000
MANY_BLOCKS = 10_000

# Recommended bytes of a chunk of one array. The time to open such a chunk does not matter, and
# three copies of it on many threads take little memory.
GOOD_CHUNK_BYTES = 16_000_000

# Most bytes that are recommended for a chunk of one array, if joined chunks match.
MAX_JOINED_BYTES = 64_000_000

# Warn if each Zarr chunk is read this many times in a pass. Edges alone cause fewer readings.
NOTABLE_REPEATS = 1.1

# Idle threads matter from this many bytes on: one thread reads less data in a moment.
MIN_BYTES_TO_SHARE = 10_000_000

Named = Mapping[str, Array]


def advise(data: Observations, stream: Stream, threads: int, reading: Reading) -> tuple[str, ...]:
    """Warnings of chunks that make a fit slower than necessary, the worst first.

    Parameters
    ----------
    data : Observations
    stream : Stream
        Blocks and tasks of the data.
    threads : int
        Threads of all workers together.
    reading : Reading
        Bytes that a pass reads.
    """
    advisor = _Advisor(data, _named(data), stream, threads)
    # Whole Zarr chunks may match; other advice makes sense only after that.
    cuts = tuple(advisor.cut_chunks()) or tuple(advisor.unlike(reading))
    return (*cuts, *advisor.small(), *advisor.idle())


def _named(data: Observations) -> Named:
    """The Dask arrays by the names of arguments. Stacked coordinates are one argument."""
    named: dict[str, Array] = {}
    names = [*data.names, *("mask" for _ in data.masks)]
    for name, array in zip(names, data.operands, strict=True):
        if is_dask(array):
            named.setdefault(argument_name(data.structure, name), array)
    return named


@dataclass(frozen=True, slots=True)
class _Advisor:
    """Checks of Dask arrays, by the names of arguments."""

    data: Observations
    arrays: Named
    stream: Stream
    threads: int

    def cut_chunks(self) -> Iterator[str]:
        """Zarr chunks that Dask reads in pieces."""
        for name, array in self.arrays.items():
            for pieced in zarr_arrays_in(array):
                if pieced.stored is not None and pieced.repeats > NOTABLE_REPEATS:
                    pieces = tuple(map(max, pieced.pieces))
                    wanted = _whole(pieced.stored, pieced.shape, pieces)
                    yield _errors.zarr_chunks_cut(
                        name, pieces, pieced.stored, pieced.repeats, wanted
                    )

    def unlike(self, reading: Reading) -> Iterator[str]:
        """Arrays that are not cut at the same places."""
        full = _full_size(self.arrays)
        if len({array.chunks for array in full.values()}) < 2:
            return
        grids = {name: tuple(map(max, array.chunks)) for name, array in full.items()}
        shape = next(iter(full.values())).shape
        # Places where all arrays are cut: no chunk is needed on both sides.
        common = zip(zip(*grids.values(), strict=True), shape, strict=True)
        wanted = tuple(min(math.lcm(*sizes), n) for sizes, n in common)
        itemsize = max(int(array.dtype.itemsize) for array in full.values())
        if math.prod(wanted) * itemsize > self._most(MAX_JOINED_BYTES, full):
            wanted = max(grids.values(), key=math.prod)
        like = normalize_chunks(wanted, shape)
        calls = {name: wanted for name, array in full.items() if array.chunks != like}
        # A Zarr chunk is read once for each of the joined chunks that has a piece of it.
        stored = any(_is_stored(full[n]) and not _joins(full[n].chunks, like) for n in calls)
        whole = sum(int(array.piece_bytes().sum()) for array in pieced_arrays_of(self.data))
        repeated = max(reading.each_time + reading.once - whole, 0)
        shared = self.stream.shared_bytes
        yield _errors.chunks_differ(grids, repeated, shared, self._calls(calls, stored), stored)

    def small(self) -> Iterator[str]:
        """Very many very small chunks."""
        full = _full_size(self.arrays)
        mean = sum(int(array.nbytes) for array in self.arrays.values()) / self.stream.n_blocks
        if self.stream.n_blocks <= MANY_BLOCKS or mean >= SMALL_BLOCK_BYTES or not full:
            return
        most = self._most(GOOD_CHUNK_BYTES, full)
        calls = {}
        for name, array in full.items():
            chunk = tuple(map(max, array.chunks))
            calls[name] = _joined(chunk, array.shape, most // int(array.dtype.itemsize))
        yield _errors.chunks_small(self.stream.n_blocks, mean, self._calls(calls))

    def idle(self) -> Iterator[str]:
        """Fewer tasks than threads."""
        tasks = len(self.stream.groups)
        full = _full_size(self.arrays)
        whole = sum(int(array.nbytes) for array in self.arrays.values())
        if tasks >= self.threads or whole < MIN_BYTES_TO_SHARE or not full:
            return
        parts = -(-self.threads // tasks)
        calls = {n: _cut(tuple(map(max, array.chunks)), parts) for n, array in full.items()}
        stored = any(map(_is_stored, full.values()))
        yield _errors.workers_idle(tasks, self.threads, self._calls(calls, stored), stored)

    def _calls(self, calls: Mapping[str, Sizes], stored: bool = False) -> str:
        """The expressions for arrays in other chunks."""
        arguments = self.data.arguments
        return "; ".join(
            arguments[name].stored_again(name, chunks)
            if stored
            else arguments[name].rechunked(name, chunks)
            for name, chunks in calls.items()
        )

    def _most(self, most: int, full: Named) -> int:
        """Largest chunk, in bytes, with a chunk for every thread, where idle threads matter."""
        size = min(int(array.nbytes) for array in full.values())
        return min(most, size // self.threads) if size >= MIN_BYTES_TO_SHARE else most


def _full_size(arrays: Named) -> Named:
    """The arrays that do not broadcast."""
    most = max((int(array.size) for array in arrays.values()), default=0)
    return {name: array for name, array in arrays.items() if array.size == most}


def _joins(fine: Chunks, coarse: Chunks) -> bool:
    """Whether coarse chunks consist of whole fine chunks."""
    return all(
        set(itertools.accumulate(joined)) <= set(itertools.accumulate(pieces))
        for pieces, joined in zip(fine, coarse, strict=True)
    )


def _is_stored(array: Array) -> bool:
    """Whether an array is read from Zarr."""
    return any(pieced.stored for pieced in pieced_arrays_in(array))


def _whole(stored: Sizes, shape: Sizes, least: Sizes) -> Sizes:
    """Sizes of as many whole Zarr chunks as reach ``least``."""
    sizes = zip(stored, shape, least, strict=True)
    return tuple(min(-(-size // chunk) * chunk, n) for chunk, n, size in sizes)


def _joined(chunk: Sizes, shape: Sizes, most: int) -> Sizes:
    """Sizes of joined whole chunks: at most so many elements, and all about equal.

    The last dimensions are joined first, as rows are neighbours in storage along them.
    """
    joined = list(chunk)
    for d in reversed(range(len(joined))):
        room = -(-most // math.prod(joined))
        cuts = -(-shape[d] // (joined[d] * room))
        joined[d] *= -(-shape[d] // (joined[d] * cuts))
        joined[d] = min(joined[d], shape[d])
    return tuple(joined)


def _cut(chunk: Sizes, parts: int) -> Sizes:
    """Size of a chunk cut into about so many parts, along its first dimensions first."""
    cut = []
    for n in chunk:
        pieces = min(parts, n)
        cut.append(-(-n // pieces))
        parts = -(-parts // pieces)
    return tuple(cut)
