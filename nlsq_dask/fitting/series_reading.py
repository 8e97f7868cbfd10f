"""How the series of lazy data are read: whole, or frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import GB
from nlsq_dask.core.resources import available_memory
from nlsq_dask.core.series_memory import (
    CALL_SERIES,
    SHARE_OF_STATES,
    SeriesSizes,
    bands,
    task_room,
)
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.frame_totals import SLAB_ROWS
from nlsq_dask.engines.neighbours import wants
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.io.chunks import Chunks, is_joined, joined_up_to
from nlsq_dask.io.observations import Array

# Least regions of a map whose chunks are joined: for progress, and for tasks on many workers.
LEAST_REGIONS = 64

#: In memory, in tasks with whole series, or in tasks that add up sums over frames.
SeriesStrategy = Literal["standard", "streaming", "frames"]


@dataclass(frozen=True)
class StoredLayout:
    """How a store of maps is laid out, and how the run that began it reads series.

    Attributes
    ----------
    regions : tuple of tuple of int
        Lengths of its regions along the axes of the map.
    in_frames : bool
        Whether series are read frame by frame.
    """

    regions: Chunks
    in_frames: bool


@dataclass(frozen=True)
class SeriesReading:
    """How the series of lazy data are read.

    Attributes
    ----------
    regions : tuple of tuple of int
        Lengths of the regions along the axes of the map, a task each.
    gathered_bytes : float or None
        Where blocks are frames, bytes of a task for the rows of series that are gathered.
    task_bytes : float
        Where blocks are frames, bytes of a task: sums and gathered rows.
    stored : tuple of tuple of int or None
        Lengths of the regions of a store that an earlier run began.
    """

    regions: Chunks
    gathered_bytes: float | None = None
    task_bytes: float = 0.0
    stored: Chunks | None = None

    @property
    def strategy(self) -> SeriesStrategy:
        """Name of how series are read: whole, or frame by frame."""
        return "streaming" if self.gathered_bytes is None else "frames"


def reading_of(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    memory_limit_gb: float | None,
    executor: Executor,
    begun: StoredLayout | None = None,
) -> SeriesReading:
    """Choose how series are read.

    Series are read whole, unless they lie in several blocks along the fitted axes, and the rows of
    a region of the map do not fit in the memory of a task. A region is a chunk of the map, or
    several neighbouring chunks of few series. Frames are read in regions for whose sums there is
    room.

    A run that goes on with a store reads as the run that began it, in smaller regions if needed:
    whole series and frames have other bits, and the regions of either have none.

    Parameters
    ----------
    problem : SeriesProblem
    arrays : sequence of array
        As ``problem.roles`` says.
    memory_limit_gb : float or None
        Memory of this process or of each worker.
    executor : Executor
        Where the tasks run.
    begun : StoredLayout or None
        Of the store that a run goes on with.

    Raises
    ------
    InputError
        If whole series are needed and do not fit.
    """
    found = _chosen(problem, arrays, memory_limit_gb, executor, begun)
    return found if begun is None else replace(found, stored=begun.regions)


def _chosen(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    memory_limit_gb: float | None,
    executor: Executor,
    begun: StoredLayout | None,
) -> SeriesReading:
    from nlsq_dask.engines.dask.series import map_chunks  # an engine, loaded for use
    from nlsq_dask.engines.dask.series_halo import surrounded, wide_chunks
    from nlsq_dask.engines.dask.series_regions import fit_chunks

    grid = wide_chunks(problem, arrays) if wants(problem) else map_chunks(problem, arrays)
    blocks = fit_chunks(problem, arrays)
    sizes = _sizes(problem, arrays, blocks)
    room_of = partial(_room, memory_limit_gb, executor)
    if begun is not None and begun.in_frames:
        return _in_frames(sizes, begun.regions, room_of())
    largest = tuple(map(max, grid))
    read = tuple(map(max, surrounded(grid))) if wants(problem) else largest
    needed = sizes.whole_bytes(math.prod(read))
    in_one_block = math.prod(map(len, blocks.values())) < 2
    if in_one_block or needed <= (room := room_of(math.prod(map(len, grid)))):
        return SeriesReading(_joined(problem, grid, sizes, room_of, begun))
    most = max(int(room // sizes.whole_bytes(1)), 1)
    if not problem.row_wise:
        raise _errors.series_too_large(needed, room, bands(largest, most))
    if wants(problem):
        raise _errors.neighbours_of_frames(needed, room, bands(largest, most))
    room = room_of()  # a chunk is cut into several regions, a task each
    if begun is None:
        return _in_frames(sizes, grid, room)
    return SeriesReading(_parts(grid, int(room // sizes.whole_bytes(1))))


def _in_frames(sizes: SeriesSizes, grid: Chunks, room: float) -> SeriesReading:
    """Read frame by frame, in parts of a grid so small that a task has room for their sums."""
    fitting = int(room * SHARE_OF_STATES // sizes.state_bytes(1))
    regions = _parts(grid, fitting)
    n_series = math.prod(map(max, regions))
    of_states = sizes.state_bytes(n_series)
    gathered = max(room - of_states, room * (1.0 - SHARE_OF_STATES))
    rows = min(gathered, sizes.whole_bytes(n_series))
    return SeriesReading(regions, gathered, of_states + rows)


def _joined(
    problem: SeriesProblem,
    grid: Chunks,
    sizes: SeriesSizes,
    room_of: Callable[[], float],
    begun: StoredLayout | None,
) -> Chunks:
    """Regions of neighbouring chunks of few series, or each a chunk.

    A run that goes on with a store has the regions of the store, where these are whole chunks.
    """
    if wants(problem) or not math.prod(map(math.prod, grid)):
        return grid
    if begun is not None:
        return begun.regions if is_joined(begun.regions, grid) else grid
    shape = tuple(map(sum, grid))
    chunk = tuple(own[0] for own in grid)
    if _regular(shape, chunk) != grid:
        return grid
    most = min(CALL_SERIES, math.prod(shape) // LEAST_REGIONS)
    joined = joined_up_to(most, shape, chunk)
    if joined == chunk or sizes.whole_bytes(math.prod(joined)) > room_of():
        return grid
    return _regular(shape, joined)


def _parts(grid: Chunks, most: int) -> Chunks:
    """A grid cut into regions of at most so many series, and of one series at least."""
    cut = bands(tuple(map(max, grid)), max(most, 1))
    return tuple(_cut(own, most) for own, most in zip(grid, cut, strict=True))


def _regular(shape: Sequence[int], lengths: Sequence[int]) -> Chunks:
    """A grid of parts of one length along each axis, but for the last."""
    return tuple(_cut((n,), most) for n, most in zip(shape, lengths, strict=True))


def _cut(lengths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Lengths, each cut into parts of at most `most`."""
    parts = ([most] * (n // most) + [n % most] * (n % most > 0) for n in lengths)
    return tuple(itertools.chain.from_iterable(parts))


def _sizes(
    problem: SeriesProblem, arrays: Sequence[Array], blocks: dict[int, tuple[int, ...]]
) -> SeriesSizes:
    named = list(zip(problem.roles, arrays, strict=True))
    full = [a for role, a in named if role.along and role.varies]
    maps = [a for role, a in named if role.varies and not role.along]
    return SeriesSizes(
        n_rows=math.prod(arrays[0].shape[d] for d in problem.fit_axes),
        row_bytes=sum(int(a.dtype.itemsize) for a in full),
        n_free=len(problem.reduction.names),
        n_params=len(problem.spec.names),
        n_planes=problem.n_planes,
        frame_rows=max(math.prod(map(max, blocks.values())), SLAB_ROWS),
        map_bytes=sum(int(a.dtype.itemsize) for a in maps),
        guessed=problem.guess is not None,
    )


def _room(memory_limit_gb: float | None, executor: Executor, n_regions: float = math.inf) -> float:
    """Bytes of a task: its share of the memory of this process, or of the smallest worker."""
    from nlsq_dask.engines.dask.scheduler import local_threads  # an engine, loaded for use

    given = None if memory_limit_gb is None else memory_limit_gb * GB
    worker = executor.smallest_worker()
    if worker is not None:
        memory = worker.memory_bytes if given is None else given
        return task_room(memory, worker.threads, worker.base_bytes)
    memory_here = float(available_memory()) if given is None else given
    return task_room(memory_here, max(int(min(local_threads(), n_regions)), 1))


def names_of(problem: SeriesProblem) -> list[str]:
    """Names of the arrays in messages, in the order of the roles."""
    single = problem.spec.structure == "single"
    parameters = problem.spec.names
    found = []
    for role in problem.roles:
        if role.kind == "x":
            found.append("x" if single else f"x[{role.index}]")
        elif role.kind in ("p0", "fixed"):
            found.append(f"{role.kind}[{parameters[role.index]!r}]")
        elif role.kind in ("lower", "upper"):
            found.append(f"the {role.kind} bound of {parameters[role.index]}")
        else:
            found.append(role.kind)
    return found


def lazy_answer_of(
    problem: SeriesProblem,
    arrays: Sequence[Array],
    reading: SeriesReading,
    retries: int,
    fit: str = "",
) -> Any:
    """The packed answer (k, ...) of all series as a Dask array.

    Parameters
    ----------
    problem : SeriesProblem
    arrays : sequence of array
        As ``problem.roles`` says.
    reading : SeriesReading
    retries : int
        How often tasks read again.
    fit : str
        Identifier of the fit that waits for the tasks.
    """
    from nlsq_dask.engines.dask.reading import FIRST_WAIT, Retries  # an engine, loaded for use
    from nlsq_dask.engines.dask.series import map_chunks
    from nlsq_dask.engines.dask.series_halo import with_halo, without_halo
    from nlsq_dask.engines.dask.series_regions import region_answer

    regions = reading.regions
    if wants(problem):
        arrays = with_halo(problem, arrays, regions)
        regions = map_chunks(problem, arrays)
    answer = region_answer(
        problem,
        arrays,
        names_of(problem),
        regions,
        retries=Retries(retries, FIRST_WAIT),
        fit=fit,
        gathered_bytes=reading.gathered_bytes,
    )
    return without_halo(answer) if wants(problem) else answer
