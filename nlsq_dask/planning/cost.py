"""The cost of a fit before it runs: bytes, passes, memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, cast, overload

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.memory_budget import GB, SOLVER_BYTES, THREAD_BYTES, bytes_of_series
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import SumsAt
from nlsq_dask.core.resources import available_cores
from nlsq_dask.engines.collapsed import varies_along
from nlsq_dask.engines.in_memory import part_rows, stays_in_place
from nlsq_dask.engines.parts import bytes_beside
from nlsq_dask.fitting.expected import passes_of
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.memory import (
    collapse_bytes,
    pausing,
    sample_bytes,
    sampled,
    streaming_bytes,
    streaming_of,
)
from nlsq_dask.fitting.open_engine import engine_of, sample_engine
from nlsq_dask.fitting.sample import LEAST_SAMPLE_ROWS, ROWS_A_SAMPLED_ROW
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.io.chunks import regular_chunks
from nlsq_dask.io.observations import PIECE_ROWS
from nlsq_dask.questions.collapse import MeansOf
from nlsq_dask.results.fit_plan import FitPlan
from nlsq_dask.results.result import FitResult

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.task import Work

# Values of `dry_run`. True times Dask and Zarr arrays only.
DryRun = bool | Literal["timed", "untimed"]

P = ParamSpec("P")


class FitCall(Protocol[P]):
    """The type of ``fit``: a plan for ``dry_run=True``, else a result."""

    # This overload overlaps with the next, which takes any `dry_run`. The first match counts.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, *args: Any, dry_run: Literal[True, "timed", "untimed"], **options: Any
    ) -> FitPlan: ...

    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> FitResult: ...


def with_dry_run(fit: Callable[P, FitResult | FitPlan]) -> FitCall[P]:
    """Tell a type checker what ``dry_run`` returns, without a second signature."""
    return cast("FitCall[P]", fit)


def plan_of(job: Job, dry_run: DryRun = True) -> FitPlan:
    """State what a job will cost.

    Parameters
    ----------
    job : Job
    dry_run : True, "timed" or "untimed"
        Whether to run a few tasks and time them. True times Dask and Zarr arrays. Without timing,
        nothing is read.
    """
    if dry_run is not True and not (isinstance(dry_run, str) and dry_run in ("timed", "untimed")):
        raise _errors.unknown_choice("dry_run", dry_run, ("timed", "untimed"))
    timed = job.data.lazy if dry_run is True else dry_run == "timed"
    streamed = job.strategy
    if not isinstance(streamed, Streamed):
        plan = _noting_memory(_in_memory(job), SOLVER_BYTES)
        return _timed_in_memory(job, plan) if timed else plan
    plan = _noting_memory(_streaming(job, streamed), streamed.executor.base_bytes)
    if not timed or not plan.threads:
        return plan
    from nlsq_dask.planning.timing import time_groups  # an engine, loaded for use

    work = _work(job, streamed)
    n_coords = len(job.data.coords)
    question = _first_question(job)
    timing = time_groups(streamed.stream, work, n_coords, question, streamed.executor, plan.threads)
    return replace(
        plan,
        compile_seconds=timing.compile_seconds,
        pass_seconds=timing.pass_seconds(plan.rows, plan.groups, plan.threads),
        later_pass_seconds=timing.pass_seconds(plan.rows, plan.groups, plan.threads, plan.kept),
        timed_rows=timing.rows,
    )


def _noting_memory(plan: FitPlan, fixed: int) -> FitPlan:
    """Warn of a memory limit below the planned memory. The program itself needs `fixed` bytes."""
    available = plan.budget.available_gb * GB
    if plan.memory_bytes <= available:
        return plan
    note = _errors.memory_exceeded(plan.memory_bytes, available, fixed)
    return replace(plan, warnings=(*plan.warnings, note))


def _streaming(job: Job, streamed: Streamed) -> FitPlan:
    """The plan of a fit that reads its blocks in tasks."""
    from nlsq_dask.engines.dask.cache import KeptGroup
    from nlsq_dask.engines.dask.pieces import pieced_arrays_of
    from nlsq_dask.engines.dask.ways import ways_of
    from nlsq_dask.planning import bytes_read  # engines, loaded for use
    from nlsq_dask.planning.chunk_advice import advise

    stream, data = streamed.stream, job.data
    workers, threads = streamed.executor.parallel(streamed.blocks.threads)
    arrays = pieced_arrays_of(data)
    cache = streaming_of(job, streamed).keeping(len(data.values))
    kept = [isinstance(group, KeptGroup) for group in cache.groups]
    a_pass = bytes_read.read_in_pass(arrays, stream, kept)
    plan = _common(job)
    if data.lazy:
        plan = replace(plan, bytes_per_pass=a_pass.each_time, bytes_per_later_pass=a_pass.later)
    sample = sampled(job, streamed)
    if sample is not None:
        read = bytes_read.read_by(arrays, stream, sample.blocks)
        few, many = plan.passes
        plan = replace(
            plan,
            passes=(few + sample.whole, many + sample.whole),
            pilot_blocks=len(sample.blocks),
            pilot_rows=sample.rows,
            pilot_bytes=read.each_time + read.once,
        )
    notes = advise(data, stream, threads, a_pass) if threads else (_errors.no_workers(),)
    if (warning := pausing(job, streamed)) is not None:
        notes = (*notes, str(warning))
    return replace(
        plan,
        blocks=stream.n_blocks,
        groups=len(stream.groups),
        workers=workers,
        threads=threads,
        kept=cache.share,
        bytes_once=a_pass.once,
        memory_bytes=streaming_bytes(job, streamed) + cache.worker_bytes,
        warnings=notes,
        ways=ways_of(stream, data.layout.names) if data.lazy else (),
    )


def _in_memory(job: Job) -> FitPlan:
    """The plan of a fit of data in memory."""
    strategy, data = job.strategy, job.data
    plan = _common(job)
    sample_rows = max(LEAST_SAMPLE_ROWS, data.n_rows // ROWS_A_SAMPLED_ROW)
    has_sample = plan.pilot or (job.guess is not None and not job.n_distinct)
    sample_rows = min(sample_rows, data.n_rows) if has_sample else 0
    row_bytes = 8 * (len(data.coords) + 1 + (data.sigma is not None))
    if job.n_distinct:
        blocks = math.prod(map(len, regular_chunks(data.y.shape, PIECE_ROWS, data.series_axes)))
        threads, memory = available_cores(), collapse_bytes(job)
    elif isinstance(strategy, Standard):
        part = part_rows(data.n_rows, data.series_rows) if job.row_wise else data.n_rows
        blocks, threads = -(-data.n_rows // part), available_cores()
        in_place = stays_in_place(data, job.kernels)
        memory = bytes_beside(data, part) if in_place else blocks * part * row_bytes
        if not job.row_wise:
            memory += bytes_of_series(data.n_rows, len(job.spec.names))
        elif data.series_axes:
            memory += threads * bytes_of_series(data.series_rows, len(job.spec.names))
    else:
        cuts = regular_chunks(data.y.shape, strategy.blocks.block_rows, data.series_axes)
        blocks, threads = math.prod(map(len, cuts)), strategy.blocks.threads
        memory = strategy.blocks.bytes_in_flight
    return replace(
        plan,
        blocks=blocks,
        groups=blocks,
        threads=threads,
        pilot_rows=sample_rows,
        memory_bytes=SOLVER_BYTES
        + threads * THREAD_BYTES
        + memory
        + sample_bytes(job, sample_rows),
    )


def _common(job: Job) -> FitPlan:
    """The part of a plan that is the same for data in memory and streamed data."""
    data_bytes = sum(int(a.nbytes) for a in job.data.operands)
    return FitPlan(
        rows=job.data.n_rows,
        params=len(job.reduction.names),
        blocks=1,
        groups=1,
        workers=0,
        threads=1,
        strategy=job.plan.strategy,
        reason=job.plan.reason,
        workflow=job.plan.workflow,
        budget=job.plan.budget,
        data_bytes=data_bytes,
        bytes_per_pass=data_bytes,
        bytes_per_later_pass=data_bytes,
        kept=0.0,
        bytes_once=0,
        pilot=job.pilot,
        pilot_blocks=0,
        pilot_rows=0,
        pilot_bytes=0,
        passes=passes_of(job),
        memory_bytes=0,
        decoded=job.data.decoded,
        n_distinct=job.n_distinct,
        devices=job.executor.device_names(job.device),
    )


def _params(job: Job) -> FloatArray:
    """All parameters at the start."""
    return np.asarray(job.reduction.expand(job.start), np.float64)


def _work(job: Job, streamed: Streamed) -> Work:
    return streaming_of(job, streamed).work(job.kernels, job.data.layout)


def _first_question(job: Job) -> SumsAt | MeansOf:
    """The question that is asked to time a pass."""
    if job.n_distinct:
        return MeansOf(varies_along(job.data))
    params = _params(job)
    return SumsAt(params, np.eye(params.size))


def _timed_in_memory(job: Job, plan: FitPlan) -> FitPlan:
    """Time a pass over a sample, or over all rows if the model needs all at once."""
    data = job.data
    thins = job.row_wise and not data.series_axes
    if thins:
        data = data.thinned(max(LEAST_SAMPLE_ROWS, data.n_rows // ROWS_A_SAMPLED_ROW))
    engine = sample_engine(job, data) if thins else engine_of(job, _silent)
    params = _params(job)
    marks = [time.perf_counter()]
    with engine:
        for _ in range(2):
            sums = engine.ask(SumsAt(params, np.eye(params.size)))
            marks.append(time.perf_counter())
    if not sums.n_points:
        raise _errors.all_left_out(data.n_rows, data.causes)
    first, second = (float(seconds) for seconds in np.diff(marks))
    share = data.n_rows / job.data.n_rows
    plan = replace(
        plan,
        compile_seconds=max(first - second, 0.0),
        pass_seconds=second / share,
        later_pass_seconds=second / share,
        timed_rows=data.n_rows,
    )
    return _timed_means(job, plan) if job.n_distinct else plan


def _timed_means(job: Job, plan: FitPlan) -> FitPlan:
    """Time the means of the first rows in memory, in one thread."""
    box, block = next(job.data.pieces())
    question = MeansOf(varies_along(job.data))
    marks = [time.perf_counter()]
    for _ in range(2):  # the first call gets its memory from the system
        question.of_block((None, box, block), job.kernels)
        marks.append(time.perf_counter())
    seconds = (marks[-1] - marks[-2]) * job.data.n_rows / block.y.size
    seconds /= min(plan.threads, plan.blocks)
    return replace(plan, pass_seconds=seconds, later_pass_seconds=seconds, timed_rows=block.y.size)


def _silent(done: int, total: int, blocks: int) -> None:
    """Report nothing."""
