"""The blocks that a fit leaves out: told to its search, its checkpoints and its result."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from nlsq_dask.engines.collapsed import CollapsedEngine, engine_of_rows
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.job import Job

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

#: Blocks by their index in the chunk grid.
Blocks: TypeAlias = frozenset[tuple[int, ...]]


def blocks_omitted(engine: InMemoryEngine | DaskEngine | CollapsedEngine) -> Blocks:
    """The blocks that the answers of an engine leave out."""
    rows = engine_of_rows(engine)
    return frozenset() if isinstance(rows, InMemoryEngine) else rows.omissions.all


def leave_out(engine: InMemoryEngine | DaskEngine | CollapsedEngine, blocks: Blocks) -> None:
    """Leave out what an earlier run left out."""
    rows = engine_of_rows(engine)
    if not isinstance(rows, InMemoryEngine):
        rows.omissions.resume(blocks)


def of_same_rows(job: Job, blocks: Blocks) -> Job:
    """The job that reads the rows of a fit again. A block that cannot be read is now an error."""
    if not blocks and job.on_error == "raise":
        return job
    return replace(job, data=replace(job.data, omitted=blocks), on_error="raise")
