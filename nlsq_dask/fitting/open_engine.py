"""The engine that answers the questions of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nlsq_dask import _errors
from nlsq_dask.engines.in_memory import (
    InMemoryEngine,
    chunked_engine,
    part_rows,
    standard_engine,
)
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.memory import pausing, streaming_of
from nlsq_dask.fitting.strategy import Chunked, Standard
from nlsq_dask.io.observations import Observations
from nlsq_dask.user_model.model_spec import ModelSpec

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine, PassProgress


def engine_of(
    job: Job,
    progress: PassProgress,
    specs: Sequence[ModelSpec] = (),
    show: Callable[[str], None] | None = None,
) -> InMemoryEngine | DaskEngine:
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
    strategy = job.strategy
    if isinstance(strategy, Standard):
        return standard_engine(job.data, kernels)
    if isinstance(strategy, Chunked):
        blocks = strategy.blocks
        return chunked_engine(job.data, kernels, blocks.block_rows, blocks.threads)
    from nlsq_dask.engines.dask.cluster import check_versions  # an engine, loaded for use
    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.engines.dask.signals import show_nothing

    if strategy.client is not None:
        check_versions(strategy.client)
    if (warning := pausing(job, strategy)) is not None:
        _errors.warn_caller(warning)
    engine = DaskEngine(
        job.data, kernels, streaming_of(job, strategy), progress, show or show_nothing
    )
    if engine.keeping.share:
        logger.info("%.0f %% of the rows stay in memory", 100 * engine.keeping.share)
    return engine


def sample_engine(job: Job, sample: Observations) -> InMemoryEngine:
    """Open an engine of some rows in memory, of the shape that is compiled for all rows."""
    strategy = job.strategy
    if isinstance(strategy, Standard):
        rows = part_rows(job.data.n_rows)
    else:
        rows = strategy.blocks.block_rows
    return chunked_engine(sample, job.kernels, rows)
