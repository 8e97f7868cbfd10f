"""Fits of many series whose maps go to a Zarr group as they come."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.core.checks import checked_progress
from nlsq_dask.engines.dask.executor import Executor
from nlsq_dask.engines.series import SeriesProblem
from nlsq_dask.fitting.each import EachJob, logger
from nlsq_dask.fitting.each_same_data import check_same_series
from nlsq_dask.fitting.faces import faces_of
from nlsq_dask.fitting.moment import SeriesDone
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.series_board import series_faces
from nlsq_dask.fitting.series_reading import (
    SeriesReading,
    StoredLayout,
    lazy_answer_of,
    reading_of,
)
from nlsq_dask.io.chunks import Chunks
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.map_store import (
    STATUS,
    MapSpec,
    StoredPlanes,
    check_problem,
    finished,
    is_in_memory,
    open_group,
    open_maps,
    saved_problem,
    write_coordinates,
    write_problem,
)
from nlsq_dask.io.observations import Array
from nlsq_dask.io.places import Place
from nlsq_dask.io.sources import is_dask
from nlsq_dask.results.maps_dataset import Maps, to_dataset, variable_names, variables_of

T = TypeVar("T")

# Bytes of y in a region of the map, where y is in memory.
REGION_BYTES = 1 << 24

# Parts of the description of a store that say how it is laid out, and not what is fitted.
LAYOUT = ("regions", "strategy")


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """What the caller of ``fit_each`` says about the store; see there."""

    store: Any
    resume: bool
    storage_options: Mapping[str, Any] | None
    executor: Executor
    progress: bool | None
    retries: int


def in_regions(job: EachJob) -> EachJob:
    """The job with y as a Dask array, cut along the axes of the map."""
    if job.lazy:
        return job
    import dask.array as da  # a fit in memory does not load Dask

    y, axes = job.arrays[0], job.axes
    wanted = {d: -1 if d in axes.fit else "auto" for d in range(y.ndim)}
    chunks = da.core.normalize_chunks(wanted, y.shape, limit=REGION_BYTES, dtype=np.float64)
    cut = da.from_array(y, chunks=chunks, name=False)
    return replace(job, arrays=(cut, *job.arrays[1:]))


def open_target(job: EachJob, options: StoreOptions) -> Target:
    """Open the store of a job, and choose how its series are read.

    A run that goes on reads series whole, or frame by frame, as the run did that began, and has the
    regions of that run. The memory of its machine may be another: it decides only what is read at
    one time.

    Parameters
    ----------
    job : EachJob
        With lazy data.
    options : StoreOptions

    Raises
    ------
    InputError, InputTypeError
        If there is no such place, or if it cannot be gone on with.
    """
    executor = options.executor
    executor.check()
    executor.check_devices(job.problem.device)
    group = open_group(options.store, options.storage_options)
    if not executor.shares_memory and is_in_memory(group):
        raise _errors.map_store_in_memory()
    saved = saved_problem(group, resume=options.resume)
    begun = None
    if saved is not None:
        layout = {name: saved[name] for name in LAYOUT if name in saved}
        check_problem(group, saved, description(job, layout))
        begun = layout_from(layout)
    reading = reading_of(job.problem, job.arrays, job.memory_limit_gb, executor, begun)
    return Target(job, group, reading, options, is_begun=saved is not None)


@dataclass(frozen=True)
class Target:
    """A store that maps are written to.

    Attributes
    ----------
    job : EachJob
    group : zarr.Group
    reading : SeriesReading
    options : StoreOptions
    is_begun : bool
        Whether the store holds maps of an earlier run.
    """

    job: EachJob
    group: Any
    reading: SeriesReading
    options: StoreOptions
    is_begun: bool

    def written(self, maps: Maps) -> tuple[dict[str, Array], dict[Status, int]]:
        """Write the maps of all series, or those that the store lacks.

        Parameters
        ----------
        maps : Maps
            Lazy maps of the job, from which the stored arrays have names and attributes.

        Returns
        -------
        fields : dict
            The fields of the answer by name, as Dask arrays of what is stored.
        counts : dict
            Number of series of each status.
        """
        from nlsq_dask.engines.dask.signals import Ears  # an engine, loaded for use

        specs = map_specs(self.job.problem, maps)
        with Progress(faces_of(checked_progress(self.options.progress))) as progress:
            ears = Ears(progress.note)
            boards = series_faces(self.job, self.options.executor, ears.fit)
            progress.add(boards)
            self.options.executor.listen()
            try:
                fields, counts = self._written(specs, ears.fit, progress)
                if self.job.frame is not None:
                    coords, names = to_dataset(maps).coords, [spec.name for spec in specs]
                    self._write(partial(write_coordinates, self.group, coords, names), ears.fit)
            except BaseException:
                ears.stop()
                raise
            finally:
                ears.close()
            progress.end_of_series()
            for board in boards:
                board.result(counts)
        return fields, counts

    def _write(self, write: Callable[[], T], fit: str) -> T:
        """Call a function that writes to the store, again where the store fails for a while."""
        from nlsq_dask.engines.dask.map_store import writing_of  # an engine, loaded for use
        from nlsq_dask.engines.dask.reading import FIRST_WAIT, Retries

        place = Place(("maps",), stored=(str(self.group.store_path),))
        retries = Retries(self.options.retries, FIRST_WAIT)
        return writing_of(retries, fit).run(write, lambda: place)

    def _written(
        self, specs: Sequence[MapSpec], fit: str, progress: Progress
    ) -> tuple[dict[str, Array], dict[Status, int]]:
        from nlsq_dask.engines.dask import map_store  # an engine, loaded for use
        from nlsq_dask.engines.dask.reading import FIRST_WAIT, Retries

        job, reading, retries = self.job, self.reading, self.options.retries
        answer = lazy_answer_of(job.problem, job.arrays, reading, retries, fit)
        regions = map_store.with_regions(answer, reading.stored)
        starts = map_store.starts_of(regions)
        sizes = tuple(own[0] for own in regions.chunks[1:])
        if not self.is_begun:
            described = description(job, layout_of(reading, regions.chunks[1:]))
            self._write(partial(write_problem, self.group, described), fit)
        made = partial(open_maps, self.group, specs, job.axes.map_shape, sizes)
        stored = self._write(made, fit)
        fields = fields_of_store(job.problem, specs, {s.name: s.array for s in stored})
        ready = finished(stored[-1].array, starts) if self.is_begun else {}
        is_left = np.ones(regions.numblocks[1:], np.bool_)
        for index in ready:
            is_left[index] = False
        left = np.argwhere(is_left)
        # A series of frames takes a reading of all data.
        if len(left) or reading.strategy != "frames":
            check_same_series(
                job, fields, list(ready), starts=starts, store=str(self.group.store_path)
            )
        logger.info(
            "maps go to %s: %d of %d regions are left",
            self.group.store_path,
            len(left),
            len(left) + len(ready),
        )
        total = sum(ready.values(), np.zeros(256, np.int64))
        report = _Report(progress, int(np.prod(job.axes.map_shape)), total)
        writing = map_store.Writing(tuple(stored), Retries(retries, FIRST_WAIT), fit, starts)
        executor = self.options.executor
        map_store.write_regions(regions, writing, left, executor, report)
        counts = {Status(i - 128): int(n) for i, n in enumerate(report.total) if n}
        return fields, counts


def unread_answer(job: EachJob) -> Any:
    """A packed answer (k, ...) of zeros, as a Dask array in one chunk that is never made."""
    import dask.array as da  # loaded for use

    return da.zeros((job.problem.n_planes, *job.axes.map_shape), chunks=-1)


class _Report:
    """Shows how many series are done, how fast, and how many of them converged."""

    def __init__(self, progress: Progress, n_series: int, total: NDArray[np.int64]) -> None:
        self.total = total
        self._progress, self._n = progress, n_series
        self._before, self._began = int(total.sum()), time.monotonic()

    def __call__(self, counts: NDArray[np.int64]) -> None:
        self.total = self.total + counts
        done, spent = int(self.total.sum()), time.monotonic() - self._began
        rate = (done - self._before) / max(spent, 1e-9)
        converged = self.total[129:].sum() / max(done, 1)  # a status above 0 is a success
        left = (self._n - done) / max(rate, 1e-9)
        self._progress.series(
            SeriesDone(
                done=done, total=self._n, per_second=rate, converged=float(converged), left=left
            )
        )


def map_specs(problem: SeriesProblem, maps: Maps) -> list[MapSpec]:
    """The maps to store, with the names of a dataset; the status is the last."""
    p, fields = len(maps.names), {f.name: f for f in problem.fields}
    names, variables = variable_names(maps), variables_of(maps)
    first, second = np.indices((p, p))
    high, low = np.maximum(first, second), np.minimum(first, second)
    specs = []
    for (field, i), name in names.items():
        dims, array, attrs = variables[name]
        start = fields[field].planes.start
        in_pcov = start + high * (high + 1) // 2 + low
        dtype = np.dtype(array.dtype)
        missing = np.nan if dtype.kind == "f" else 0
        specs.append(
            MapSpec(
                name=name,
                planes=in_pcov if field == "pcov" else np.array(start + i),
                dtype=dtype,
                fill=int(Status.NOT_FITTED) if field == STATUS else missing,
                dims=tuple(map(str, dims)),
                attrs={
                    key: value.tolist() if isinstance(value, np.ndarray) else value
                    for key, value in attrs.items()
                },
            )
        )
    return sorted(specs, key=lambda spec: spec.name == names[STATUS, 0])


def fields_of_store(
    problem: SeriesProblem, specs: Sequence[MapSpec], arrays: Mapping[str, Any]
) -> dict[str, Array]:
    """The fields of the answer by name, as Dask arrays of what is stored."""
    import dask.array as da  # loaded for use

    of_plane = {
        int(plane): (arrays[spec.name], tuple(map(int, np.unravel_index(i, spec.planes.shape))))
        for spec in specs
        for i, plane in enumerate(spec.planes.ravel())
    }
    fields: dict[str, Array] = {}
    for field in problem.fields:
        own = [of_plane[plane] for plane in range(field.planes.start, field.planes.stop)]
        first, _ = own[0]
        fields[field.name] = _vector(own) if field.is_vector else da.from_zarr(first)
    return fields


def _vector(own: Sequence[tuple[Any, tuple[int, ...]]]) -> Array:
    """Planes of stored maps as one Dask array, in chunks of a region of a plane.

    Dask makes the task of a chunk when the task is asked for. If Dask stacks arrays, it makes all
    tasks at once: some 400 bytes for each plane and region.
    """
    import dask.array as da  # loaded for use

    planes = StoredPlanes(tuple(own))
    meta = np.empty((0,) * planes.ndim, planes.dtype)
    lazy: Array = da.from_array(planes, planes.chunks, fancy=False, meta=meta)
    return lazy


def layout_of(reading: SeriesReading, regions: Chunks) -> dict[str, Any]:
    """How a store is laid out, and how its series are read, as JSON values."""
    is_frames = reading.strategy == "frames"
    return {"regions": to_json(regions), **({"strategy": "frames"} if is_frames else {})}


def layout_from(layout: Mapping[str, Any]) -> StoredLayout:
    """The layout of a store, from JSON values."""
    regions = tuple(tuple(map(int, own)) for own in layout["regions"])
    return StoredLayout(regions, in_frames="strategy" in layout)


def description(job: EachJob, layout: Mapping[str, Any]) -> dict[str, Any]:
    """What tells this problem from others, and the layout of its store, as JSON values."""
    problem = job.problem
    reduction = problem.reduction
    return {
        "model": problem.spec.key,
        "parameters": list(problem.spec.names),
        "shapes": [list(a.shape) for a in job.arrays],
        "dtypes": [str(a.dtype) for a in job.arrays],
        "roles": [f"{role.kind} {role.index}" for role in problem.roles],
        "dim": list(problem.fit_axes),
        "missing": repr(problem.rule),
        "fixed and ties": to_json([reduction.matrix, reduction.offset]),
        "bounds": to_json([problem.lower, problem.upper]),
        "p0": to_json(problem.start),
        "guess": repr(problem.guess),
        "absolute_sigma": problem.absolute_sigma,
        "stat_tol": problem.stat_tol,
        "max_nfev": problem.max_nfev,
        "covariance": problem.covariance,
        "arrays in memory": [_digest(a) for a in job.arrays[1:]],
        **({"decoded": list(job.data.decoded)} if job.data.decoded else {}),
        **({"refine": problem.refine} if problem.refine else {}),
        **layout,
    }


def _digest(array: Array) -> str | None:
    """Digest of the values of an array in memory; None for a lazy one, which is not read."""
    if is_dask(array):
        return None
    values = np.ascontiguousarray(np.ma.getdata(array))
    mask = np.ascontiguousarray(np.ma.getmaskarray(array)) if np.ma.isMA(array) else b""
    return hashlib.sha256(values.tobytes() + bytes(mask)).hexdigest()
