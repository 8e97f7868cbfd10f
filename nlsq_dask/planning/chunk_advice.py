"""Chunks that will hurt a fit of Dask arrays, and the call that makes better ones. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dask.array.core import normalize_chunks

from nlsq_dask import _errors
from nlsq_dask.core.structure import argument_name
from nlsq_dask.engines.dask.groups import StreamPlan
from nlsq_dask.engines.dask.pieces import array_sources, sources_of, zarr_sources
from nlsq_dask.io.arguments import Sizes
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.observations import Array, Observations
from nlsq_dask.io.sources import is_dask
from nlsq_dask.planning.bytes_read import Reading

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
    advisor = _Advisor(data, _named(data), stream, threads)
    # Whole Zarr chunks may well match; what to do otherwise shows only then.
    cuts = tuple(advisor.cut_chunks()) or tuple(advisor.unlike(reading))
    return (*cuts, *advisor.small(), *advisor.idle())


def _named(data: Observations) -> Named:
    """The Dask arrays by the names of arguments; stacked coordinates are one argument."""
    named: dict[str, Array] = {}
    names = [*data.names, *("mask" for _ in data.masks)]
    for name, array in zip(names, data.operands, strict=True):
        if is_dask(array):
            named.setdefault(argument_name(data.structure, name), array)
    return named


@dataclass(frozen=True, slots=True)
class _Advisor:
    """Looks at Dask arrays, by the names of arguments, in one way after another."""

    data: Observations
    arrays: Named
    stream: StreamPlan
    threads: int

    def cut_chunks(self) -> Iterator[str]:
        """Zarr chunks that Dask reads in pieces."""
        for name, array in self.arrays.items():
            for source in zarr_sources(array):
                if source.stored is not None and source.repeats > NOTABLE_REPEATS:
                    pieces = tuple(map(max, source.pieces))
                    wanted = _whole(source.stored, source.shape, pieces)
                    yield _errors.zarr_chunks_cut(
                        name, pieces, source.stored, source.repeats, wanted
                    )

    def unlike(self, reading: Reading) -> Iterator[str]:
        """Arrays of which one has cuts where another has none."""
        full = _full_size(self.arrays)
        if len({array.chunks for array in full.values()}) < 2:
            return
        grids = {name: tuple(map(max, array.chunks)) for name, array in full.items()}
        shape = next(iter(full.values())).shape
        # Where all have cuts, so that no chunk is needed on both sides of one.
        common = zip(zip(*grids.values(), strict=True), shape, strict=True)
        wanted = tuple(min(math.lcm(*sizes), n) for sizes, n in common)
        itemsize = max(int(array.dtype.itemsize) for array in full.values())
        if math.prod(wanted) * itemsize > self._most(MAX_JOINED_BYTES, full):
            wanted = max(grids.values(), key=math.prod)
        like = normalize_chunks(wanted, shape)
        calls = {name: wanted for name, array in full.items() if array.chunks != like}
        # Pieces of Zarr chunks would be read once for each of the chunks that they are joined to.
        stored = any(_is_stored(full[n]) and not _joins(full[n].chunks, like) for n in calls)
        whole = sum(int(source.piece_bytes().sum()) for source in sources_of(self.data))
        repeated = max(reading.each_time + reading.once - whole, 0)
        held = self.stream.held_bytes
        yield _errors.chunks_differ(grids, repeated, held, self._calls(calls, stored), stored)

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
        """Bytes of a chunk at most that leave one for every thread, where that matters."""
        size = min(int(array.nbytes) for array in full.values())
        return min(most, size // self.threads) if size >= MIN_BYTES_TO_SHARE else most


def _full_size(arrays: Named) -> Named:
    """The arrays that do not broadcast."""
    most = max((int(array.size) for array in arrays.values()), default=0)
    return {name: array for name, array in arrays.items() if array.size == most}


def _joins(fine: Chunks, coarse: Chunks) -> bool:
    """Whether coarse chunks are made of whole fine ones."""
    return all(
        set(itertools.accumulate(joined)) <= set(itertools.accumulate(pieces))
        for pieces, joined in zip(fine, coarse, strict=True)
    )


def _is_stored(array: Array) -> bool:
    """Whether an array is read from Zarr."""
    return any(source.stored for source in array_sources(array))


def _whole(stored: Sizes, shape: Sizes, least: Sizes) -> Sizes:
    """As many whole Zarr chunks as make up ``least``."""
    sizes = zip(stored, shape, least, strict=True)
    return tuple(min(-(-size // chunk) * chunk, n) for chunk, n, size in sizes)


def _joined(chunk: Sizes, shape: Sizes, most: int) -> Sizes:
    """Whole chunks that make up so many elements, or fewer, and about the same number each.

    Joined along the last dimensions first, along which rows are neighbours in storage.
    """
    joined = list(chunk)
    for d in reversed(range(len(joined))):
        room = -(-most // math.prod(joined))
        cuts = -(-shape[d] // (joined[d] * room))
        joined[d] *= -(-shape[d] // (joined[d] * cuts))
        joined[d] = min(joined[d], shape[d])
    return tuple(joined)


def _cut(chunk: Sizes, parts: int) -> Sizes:
    """A chunk cut into about so many parts, along its first dimensions first."""
    cut = []
    for n in chunk:
        pieces = min(parts, n)
        cut.append(-(-n // pieces))
        parts = -(-parts // pieces)
    return tuple(cut)
