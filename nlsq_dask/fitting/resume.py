"""Checkpoints of a fit: open the directory, write the states, check a state that is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from nlsq_dask import _errors
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.core.workflow import create_checkpoint_directory
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.checkpoint import Checkpoint, CheckpointStore, recorded_vector_bits
from nlsq_dask.fitting.job import Job, logger, versions
from nlsq_dask.fitting.omitted import Blocks
from nlsq_dask.fitting.same_data import (
    check_digests,
)
from nlsq_dask.io.codec import to_json
from nlsq_dask.results.record import PilotRecord, Start

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine


def with_vectors_of(job: Job, *directories: str | os.PathLike[str]) -> Job:
    """The fit with vectors of the width of its checkpoints, so that it goes on to the same bits."""
    found = [recorded_vector_bits(directory) for directory in directories]
    wanted = max((bits for bits in found if bits is not None), default=job.vector_bits)
    if wanted > job.vector_bits:
        logger.warning(_errors.vectors_narrower_than_before(job.vector_bits, wanted))
    return replace(job, vector_bits=min(wanted, job.vector_bits))


def open_checkpoints(job: Job, directory: str | os.PathLike[str] | None) -> CheckpointStore | None:
    """Open the directory of checkpoints; a new directory where the workflow wants one."""
    if directory is None:
        if not job.plan.checkpoint:
            return None
        try:
            directory = create_checkpoint_directory()
        except OSError as error:
            warning = _errors.checkpoint_not_written("nlsq_checkpoints", error)
            _errors.warn_caller(warning)
            return None
    store = CheckpointStore(
        directory,
        job.description(),
        versions(job),
        job.description(of_0_1=True),
        job.checkpoint_options,
    )
    logger.info("checkpoints in %s", store.directory)
    return store


@dataclass(frozen=True)
class Preparation:
    """Starts and pilot of a fit, before the search on all rows."""

    starts: tuple[Start, ...] = ()
    pilot: PilotRecord | None = None

    @classmethod
    def of(cls, saved: Checkpoint) -> Self:
        """Starts and pilot of a search that is resumed."""
        pilot = None if saved.pilot is None else PilotRecord.from_dict(saved.pilot)
        return cls(tuple(map(Start.from_dict, saved.starts)), pilot)


def save_state(
    store: CheckpointStore | None,
    state: SolverState,
    preparation: Preparation,
    n_passes: int,
    digests: Callable[[], dict[str, str]],
    omitted: Blocks,
    groups: Callable[[], dict[str, Any] | None] | None = None,
) -> None:
    """Write a checkpoint, if there is a store; of a finished search with checksums of its data."""
    if store is None:
        return
    starts, pilot = to_json(preparation.starts), to_json(preparation.pilot)
    of_data, of_groups = None, None
    if state.status is not None:
        try:
            of_data = digests()
        except (_errors.ReadingError, _errors.ClusterError) as error:  # the fit itself is done
            logger.warning("no checksums of the data for the last checkpoint: %s", error)
        of_groups = None if groups is None else groups()
    kept = Checkpoint(state, n_passes, starts, pilot, of_data, omitted=omitted, groups=of_groups)
    store.save(kept)


def check_resumed(
    store: CheckpointStore | None,
    saved: Checkpoint,
    job: Job,
    engine: InMemoryEngine | DaskEngine | CollapsedEngine,
) -> None:
    """Compare a few blocks with those of a finished checkpoint, whose search makes no pass.

    Raises
    ------
    DataChangedError
        If they differ.
    """
    if store is None or saved.state.status is None or saved.of_0_1:
        return
    if saved.digests is None:  # of an earlier release
        logger.warning("checkpoint %s is of a finished fit: no data are read", store.directory)
        return
    check_digests(store.directory, saved.digests, job, engine)
    logger.info("going on from a finished checkpoint: only a few blocks were read, and compared")
