"""The cost of a fit before it is run: what it reads, how often, in which memory and time."""

from __future__ import annotations

import html
import math
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, cast, overload

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._errors import in_units
from nlsq_dask._job import Job, largest_chunk
from nlsq_dask._multi_start import FIRST_EVALUATIONS
from nlsq_dask._result import FitResult
from nlsq_dask._sample import SAMPLE_PART, SAMPLE_ROWS
from nlsq_dask.core.memory_budget import (
    CHUNKS_A_THREAD,
    GB,
    GPU_MATRICES,
    SAMPLE_COPIES,
    SOLVER_BYTES,
    THREAD_BYTES,
    WORKER_BASE_BYTES,
    MemoryBudget,
    Strategy,
    size_sample,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import available_cores
from nlsq_dask.engines.in_memory import part_rows
from nlsq_dask.io.chunks import regular_chunks, spread_blocks
from nlsq_dask.io.stage import STAGE_ROWS

if TYPE_CHECKING:
    from nlsq_dask.engines.group_task import Work

# Passes of the fits of NIST's 14 reference problems from both starts, each on 400,000 rows in 20
# chunks: 20 of the 28 are within these, the others are hard (up to 500 evaluations).
PASSES_AFTER_PILOT = (2, 4)
PASSES = (4, 20)

# Columns of the print.
WIDTH = 96

# What `dry_run` may be; True times Dask and Zarr arrays alone.
DryRun = bool | Literal["timed", "untimed"]

P = ParamSpec("P")


@dataclass(frozen=True)
class FitPlan:
    """What a fit will cost, from :func:`plan`; prints as a table. Sizes are in bytes.

    Attributes
    ----------
    rows, params : int
        Rows, those that will be left out among them, and parameters that are fitted.
    blocks, groups : int
        Pieces in which the data are read or summed, and the tasks of a pass that do it.
    workers, threads : int
        Workers of the cluster (0 without one), and tasks that run at one time.
    strategy : {"standard", "chunked", "streaming"}
    reason : str
        Why this strategy.
    workflow : str or None
    budget : MemoryBudget
        Memory, in GB, of this process or of the smallest worker.
    data_bytes : int
        All arrays, decoded.
    bytes_per_pass : int
        What a pass reads, in whole decoded Zarr chunks and as often as they are decoded. For data
        in memory, what it goes through.
    bytes_once : int
        What is read once, before the first pass, since many tasks need it.
    pilot : bool
        Whether a sample is fitted first.
    pilot_blocks, pilot_rows, pilot_bytes : int
        Blocks of which the sample is taken, its rows at most, and what is read for it. Zero where
        no sample is taken; a model that guesses its own start has one too.
    passes : pair of int
        Readings of all rows that most fits take.
    memory_bytes : int
        Most memory that this process, or each worker, takes, beside data that are in it already.
    compile_seconds, pass_seconds : float or None
        Compilation of the model, and a pass over all rows; None where nothing was timed.
    timed_rows : int
        Rows that were read and summed to find `pass_seconds`.
    warnings : tuple of str
        Chunks that will make the fit slower than it need be, and the call that helps.
    """

    rows: int
    params: int
    blocks: int
    groups: int
    workers: int
    threads: int
    strategy: Strategy
    reason: str
    workflow: str | None
    budget: MemoryBudget
    data_bytes: int
    bytes_per_pass: int
    bytes_once: int
    pilot: bool
    pilot_blocks: int
    pilot_rows: int
    pilot_bytes: int
    passes: tuple[int, int]
    memory_bytes: int
    compile_seconds: float | None = None
    pass_seconds: float | None = None
    timed_rows: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> tuple[int, int]:
        """Bytes that the whole fit reads, for the fewest and the most passes."""
        before = self.bytes_once + self.pilot_bytes
        few, many = self.passes
        return before + few * self.bytes_per_pass, before + many * self.bytes_per_pass

    @property
    def total_seconds(self) -> tuple[float, float] | None:
        """Time of all readings, for the fewest and the most passes; None if not timed.

        The sample is among them, but not its fit, which runs in memory; nor is compilation.
        """
        if self.pass_seconds is None:
            return None
        speed = self.pass_seconds / self.bytes_per_pass
        few, many = (speed * size for size in self.total_bytes)
        return few, many

    def __str__(self) -> str:
        rows = _table(self)
        width = max(len(name) for name, _ in rows)
        lines = [_title(self)]
        for name, text in rows:
            lines += _wrapped(text, f"  {name:<{width}}  ")
        for text in self.warnings:
            lines += _wrapped(text, "  Warning: ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in _table(self)
        )
        notes = "".join(f"<li>{html.escape(text)}</li>" for text in self.warnings)
        listed = f"<p>Warnings</p><ul>{notes}</ul>" if notes else ""
        return f"<p>{html.escape(_title(self))}</p><table>{rows}</table>{listed}"


class FitCall(Protocol[P]):
    """The type of ``fit``: a plan for ``dry_run=True``, else a result."""

    # It overlaps with the next, which takes any `dry_run`: the first that matches is taken.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, *args: Any, dry_run: Literal[True, "timed", "untimed"], **options: Any
    ) -> FitPlan: ...

    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> FitResult: ...


def with_dry_run(fit: Callable[P, FitResult | FitPlan]) -> FitCall[P]:
    """Let a type checker know what ``dry_run`` returns, without a second signature."""
    return cast("FitCall[P]", fit)


def plan_of(job: Job, dry_run: DryRun = True) -> FitPlan:
    """State what a job will cost.

    Parameters
    ----------
    job : Job
    dry_run : True, "timed" or "untimed"
        Whether to run a few tasks and time them; True does so for Dask and Zarr arrays. If not,
        nothing is read.
    """
    if dry_run is not True and dry_run not in ("timed", "untimed"):
        raise _errors.unknown_choice("dry_run", dry_run, ("timed", "untimed"))
    timed = job.data.lazy if dry_run is True else dry_run == "timed"
    if job.stream is None:
        plan = _in_memory(job)
        return _timed_in_memory(job, plan) if timed else plan
    plan = _streaming(job)
    if not timed or not plan.threads:
        return plan
    from nlsq_dask.engines.trial import try_groups  # an engine, loaded for use

    work = _work(job)
    n_coords = len(job.data.coords)
    trial = try_groups(job.stream, work, n_coords, _params(job), job.client, plan.threads)
    return replace(
        plan,
        compile_seconds=trial.compile_seconds,
        pass_seconds=trial.pass_seconds(plan.rows, plan.groups, plan.threads),
        timed_rows=trial.rows,
    )


def _streaming(job: Job) -> FitPlan:
    """The plan of a fit whose blocks are read by tasks."""
    from nlsq_dask.engines import reading  # engines, loaded for use
    from nlsq_dask.engines.chunk_advice import advise
    from nlsq_dask.engines.prefetch import prefetch_depth

    stream, config, data = job.stream, job.plan.config, job.data
    assert stream is not None
    assert config is not None, "a streaming fit has blocks"
    workers, threads = _where(job)
    sources = reading.sources_of(data)
    a_pass = reading.read_in_pass(sources, stream)
    each_time = a_pass.each_time
    if not data.lazy:
        each_time = sum(int(a.nbytes) for a in data.operands)
    plan = _common(job)
    sample = (0, 0, 0)
    if plan.pilot or job.guess is not None:
        chosen, rows = _sampled(job)
        read = reading.read_by(sources, stream, chosen)
        sample = len(chosen), rows, read.each_time + read.once
    held = max(largest_chunk(data, stream)[1], reading.largest_piece(sources))
    held += prefetch_depth(stream) * stream.block_bytes
    a_worker = config.threads * (config.thread_bytes + CHUNKS_A_THREAD * held)
    base = SOLVER_BYTES if job.client is None else WORKER_BASE_BYTES
    notes = advise(data, stream, threads, a_pass) if threads else (_errors.no_workers(),)
    return replace(
        plan,
        blocks=stream.n_blocks,
        groups=len(stream.groups),
        workers=workers,
        threads=threads,
        bytes_per_pass=each_time,
        bytes_once=a_pass.once,
        pilot_blocks=sample[0],
        pilot_rows=sample[1],
        pilot_bytes=sample[2],
        memory_bytes=base + a_worker + a_pass.once + _sample_memory(job, sample[1]),
        warnings=notes,
    )


def _in_memory(job: Job) -> FitPlan:
    """The plan of a fit of data in memory."""
    config, data = job.plan.config, job.data
    plan = _common(job)
    sample_rows = max(SAMPLE_ROWS, data.n_rows // SAMPLE_PART)
    sample_rows = min(sample_rows, data.n_rows) if plan.pilot or job.guess is not None else 0
    row_bytes = 8 * (len(data.coords) + 1 + (data.sigma is not None))
    if config is None:
        part = part_rows(data.n_rows) if job.row_wise else data.n_rows
        blocks, threads = -(-data.n_rows // part), available_cores()
        memory = blocks * part * row_bytes
        if not job.row_wise:
            memory += 8 * GPU_MATRICES * data.n_rows * (len(job.spec.names) + 1)
    else:
        cuts = regular_chunks(data.y.shape, config.block_rows)
        blocks, threads = math.prod(map(len, cuts)), config.threads
        memory = config.bytes_in_flight
    return replace(
        plan,
        blocks=blocks,
        groups=blocks,
        threads=threads,
        pilot_rows=sample_rows,
        memory_bytes=SOLVER_BYTES
        + threads * THREAD_BYTES
        + memory
        + _sample_memory(job, sample_rows),
    )


def _common(job: Job) -> FitPlan:
    """What a plan says of data and strategy wherever the data are."""
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
        bytes_once=0,
        pilot=job.pilot,
        pilot_blocks=0,
        pilot_rows=0,
        pilot_bytes=0,
        passes=_passes(job),
        memory_bytes=0,
    )


def _passes(job: Job) -> tuple[int, int]:
    """Readings of all rows that most fits take."""
    few, many = PASSES_AFTER_PILOT if job.pilot else PASSES
    if not job.pilot and job.plan.n_starts > 1:
        # All starts in one pass, then each takes steps of its own: see `_multi_start`.
        few, many = 1 + job.plan.n_starts, many + 1 + FIRST_EVALUATIONS * job.plan.n_starts
    most = job.options.max_nfev
    return (few, many) if most is None else (min(few, most), min(many, most))


def _where(job: Job) -> tuple[int, int]:
    """Workers, and threads of all together that read at one time."""
    if job.client is not None:
        from nlsq_dask.engines.cluster import worker_threads  # an engine, loaded for use

        threads = worker_threads(job.client)
        return len(threads), sum(threads)
    from nlsq_dask.engines.dask import local_threads  # an engine, loaded for use

    assert job.plan.config is not None, "a streaming fit has blocks"
    return 0, min(local_threads(), job.plan.config.threads)


def _sampled(job: Job) -> tuple[list[int], int]:
    """Numbers of the blocks of which a sample is taken, and its rows at most."""
    from nlsq_dask.engines.dask import sample_blocks  # an engine, loaded for use

    assert job.stream is not None
    chunks = job.stream.chunks
    chosen = spread_blocks([len(cuts) for cuts in chunks], sample_blocks(job.stream.n_blocks))
    sizes = np.ones(1, np.int64)
    for cuts in chunks:
        sizes = np.multiply.outer(sizes, np.array(cuts, np.int64)).ravel()
    rows = sizes[chosen]
    most = size_sample(job.plan.budget.threshold_gb * GB, len(job.data.coords))
    step = -(-int(rows.sum()) // most)
    return chosen, int((-(-rows // step)).sum())


def _sample_memory(job: Job, rows: int) -> int:
    """Bytes of a sample, with the copies at the peak of taking it."""
    return SAMPLE_COPIES * 8 * (len(job.data.coords) + 2) * rows


def _params(job: Job) -> FloatArray:
    """All parameters at the start."""
    return np.asarray(job.reduction.expand(job.start), np.float64)


def _work(job: Job) -> Work:
    from nlsq_dask.engines.group_task import Work  # engines, loaded for use
    from nlsq_dask.engines.prefetch import prefetch_depth

    assert job.stream is not None
    assert job.plan.config is not None, "a streaming fit has blocks"
    stage_rows = min(job.plan.config.block_rows, STAGE_ROWS)
    ahead = prefetch_depth(job.stream)
    return Work(job.spec, job.data.layout, job.device, stage_rows, read_ahead=ahead)


def _timed_in_memory(job: Job, plan: FitPlan) -> FitPlan:
    """Time a pass over a sample, or over all rows where the model needs them at once."""
    data = job.data
    if job.row_wise:
        data = data.thinned(max(SAMPLE_ROWS, data.n_rows // SAMPLE_PART))
    evaluator = job.sample_evaluator(data) if job.row_wise else job.evaluator(_silent)
    params = _params(job)
    marks = [time.perf_counter()]
    with evaluator:
        for _ in range(2):
            evaluator.evaluate(params, np.eye(params.size))
            marks.append(time.perf_counter())
    first, second = (float(seconds) for seconds in np.diff(marks))
    share = data.n_rows / job.data.n_rows
    return replace(
        plan,
        compile_seconds=max(first - second, 0.0),
        pass_seconds=second / share,
        timed_rows=data.n_rows,
    )


def _silent(done: int, total: int, blocks: int) -> None:
    """Report nothing."""


def _title(plan: FitPlan) -> str:
    plural = "" if plan.params == 1 else "s"
    return f"Plan of a fit of {plan.params} parameter{plural} to {plan.rows:,} rows"


def _table(plan: FitPlan) -> list[tuple[str, str]]:
    """Names and texts of the print, in order."""
    streaming = plan.strategy == "streaming"
    preset = "" if plan.workflow is None else f"; workflow {plan.workflow!r}"
    rows = [
        ("strategy", f"{plan.strategy}: {plan.reason}{preset}"),
        ("data", in_units(plan.data_bytes) + (", decoded" if streaming else " in memory")),
        ("a pass", _pass_text(plan)),
        ("pilot" if plan.pilot else "start", _first_text(plan)),
        ("passes", _passes_text(plan)),
        ("reads", f"{_span(*map(in_units, plan.total_bytes))} in all" if streaming else ""),
        ("memory", _memory_text(plan)),
        ("time", _time_text(plan)),
    ]
    return [(name, text) for name, text in rows if text]


def _pass_text(plan: FitPlan) -> str:
    where = f"{plan.threads} thread{_s(plan.threads)}" if plan.threads else "no worker yet"
    if plan.workers:
        where += f" of {plan.workers} worker{_s(plan.workers)}"
    if plan.strategy != "streaming":
        return f"{plan.groups:,} block{_s(plan.groups)} on {where}"
    once = f", and {in_units(plan.bytes_once)} once before" if plan.bytes_once else ""
    return (
        f"reads {in_units(plan.bytes_per_pass)}{once}: {plan.blocks:,} block{_s(plan.blocks)} in "
        f"{plan.groups:,} task{_s(plan.groups)} on {where}"
    )


def _first_text(plan: FitPlan) -> str:
    if not plan.pilot_rows:
        return ""
    use = "a fit of" if plan.pilot else "a guess from"
    source = f"{plan.blocks:,} blocks ({in_units(plan.pilot_bytes)} read)"
    taken = f" from {plan.pilot_blocks:,} of {source}" if plan.pilot_blocks else ""
    return f"{use} a sample in memory: at most {plan.pilot_rows:,} rows{taken}"


def _passes_text(plan: FitPlan) -> str:
    passes = f"{_span(*map(str, plan.passes))} over all rows"
    if plan.pilot:
        return f"{passes}, as most fits take that start from the answer of a sample"
    return f"{passes}, as most fits take"


def _memory_text(plan: FitPlan) -> str:
    of = f"at most {in_units(plan.memory_bytes)} of {in_units(plan.budget.available_gb * GB)}"
    if plan.workers:
        return f"{of} on each worker"
    return f"{of} in this process" + ("" if plan.strategy == "streaming" else ", beside the data")


def _time_text(plan: FitPlan) -> str:
    if plan.total_seconds is None or plan.pass_seconds is None or plan.compile_seconds is None:
        return "not measured; plan(..., time=True) reads a little and measures"
    total = _span(*map(_in_time, plan.total_seconds))
    sample = " and the fit of the sample" if plan.pilot else ""
    compiling = _in_time(plan.compile_seconds)
    return (
        f"about {total} for all passes, {_in_time(plan.pass_seconds)} each (measured on "
        f"{plan.timed_rows:,} rows); besides {compiling} of compilation{sample}"
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _in_time(seconds: float) -> str:
    """Write a duration with two digits."""
    if seconds < 0.0995:
        return f"{max(seconds * 1e3, 0.1):.2g} ms"
    for limit, unit, name in ((99.5, 1, "s"), (5970, 60, "min"), (171_000, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86_400:.2g} days"


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
