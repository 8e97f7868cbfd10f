"""The engine that answers the questions of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nlsq_dask import _errors
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.in_memory import (
    InMemoryEngine,
    chunked_engine,
    in_place_engine,
    part_rows,
    standard_engine,
    stays_in_place,
)
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.memory import pausing, streaming_of
from nlsq_dask.fitting.strategy import Standard, Streamed
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.model_spec import ModelSpec

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine, PassProgress


def engine_of(
    job: Job,
    progress: PassProgress,
    specs: Sequence[ModelSpec] = (),
    show: Callable[[str], None] | None = None,
) -> InMemoryEngine | DaskEngine | CollapsedEngine:
    """Open the engine of the chosen strategy.

    Parameters
    ----------
    job : Job
    progress : callable
        Called as ``progress(pass_number, blocks_done, blocks)`` where data are streamed.
    specs : sequence of ModelSpec
        Models that questions are about, by number; by default the job's model alone.
    show : callable, optional
        Called with a few words where a streaming fit waits, as for a store that fails.
    """
    kernels = replace(job.kernels, specs=tuple(specs)) if specs else job.kernels
    rows = _engine_of_rows(job, kernels, progress, show)
    return CollapsedEngine(rows, job.data, kernels) if job.n_distinct else rows


def _engine_of_rows(
    job: Job, kernels: Kernels, progress: PassProgress, show: Callable[[str], None] | None
) -> InMemoryEngine | DaskEngine:
    """Open the engine that reads all rows."""
    strategy = job.strategy
    if isinstance(strategy, Streamed):
        from nlsq_dask.engines.dask.engine import DaskEngine  # an engine, loaded for use
        from nlsq_dask.engines.dask.signals import show_nothing

        strategy.executor.check_versions()
        if (warning := pausing(job, strategy)) is not None:
            _errors.warn_caller(warning)
        streaming = streaming_of(job, strategy)
        engine = DaskEngine(job.data, kernels, streaming, progress, show or show_nothing)
        if engine.keeping.share:
            logger.info("%.0f %% of the rows stay in memory", 100 * engine.keeping.share)
        return engine
    if job.n_distinct:  # rows that are read once are not copied
        return chunked_engine(job.data, kernels)
    if isinstance(strategy, Standard):
        return standard_engine(job.data, kernels)
    return chunked_engine(job.data, kernels, strategy.blocks.block_rows, strategy.blocks.threads)


def sample_engine(job: Job, sample: Observations) -> InMemoryEngine:
    """Open an engine of some rows in memory, of the shape that is compiled for all rows."""
    strategy = job.strategy
    if isinstance(strategy, Standard):
        rows = part_rows(job.data.n_rows)
        if stays_in_place(job.data, job.kernels):
            return in_place_engine(sample, job.kernels, rows)
    else:
        rows = strategy.blocks.block_rows
    return chunked_engine(sample, job.kernels, rows)
