"""The engine that evaluates the sums of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nlsq_dask.engines.in_memory import (
    InMemoryEvaluator,
    chunked_evaluator,
    part_rows,
    standard_evaluator,
)
from nlsq_dask.fitting.job import Job, logger
from nlsq_dask.fitting.memory import cache_bytes, cache_choice, sample_rows
from nlsq_dask.io.observations import Observations
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.user_model.model import ModelSpec

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEvaluator, PassProgress


def evaluator_of(
    job: Job, progress: PassProgress, models: Sequence[ModelSpec] = ()
) -> InMemoryEvaluator[Any] | DaskEvaluator:
    """Make the evaluator of the chosen strategy; `models` are those that read together."""
    config = job.plan.config
    if job.stream is not None:
        from nlsq_dask.engines.dask.engine import DaskEvaluator  # an engine, loaded for use

        assert config is not None, "a streaming fit has blocks"
        evaluator = DaskEvaluator(
            job.data,
            job.spec,
            job.device,
            job.client,
            progress,
            job.stream,
            min(config.block_rows, STAGE_ROWS),
            config.threads,
            sample_rows(job),
            models,
            cache_choice(job),
            cache_bytes(job),
        )
        if evaluator.keeping.share:
            logger.info("%.0f %% of the rows stay in memory", 100 * evaluator.keeping.share)
        return evaluator
    if config is None:
        return standard_evaluator(job.data, job.spec, job.device, job.row_wise, models)
    return chunked_evaluator(
        job.data, job.spec, job.device, config.block_rows, config.threads, models
    )


def sample_evaluator(job: Job, sample: Observations) -> InMemoryEvaluator[Any]:
    """Make an evaluator of some rows in memory, of the shape that is compiled for all rows."""
    config = job.plan.config
    rows = part_rows(job.data.n_rows) if config is None else config.block_rows
    return chunked_evaluator(sample, job.spec, job.device, rows)
